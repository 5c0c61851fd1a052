//! Handing a request to the runtime, and answering it from there.
//!
//! Bounds what is in flight: the event loop stops reading requests while too many of them, or too many bytes of writes,
//! wait for servers; the kernel keeps the rest. Waits for locks don't count, since the request that ends one may be among
//! those not read yet. A request whose caller is killed is answered with EINTR and given up.

use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use dfs_proto::{Code, Failure};
use fuser::{
    Errno, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyLock, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::convert::errno;
use super::directory::Changes;
use crate::caller::{Caller, Wait};

/// Requests in flight.
const MAX_REQUESTS: usize = 4096;
/// Waits for locks in flight, beside the other requests.
const MAX_LOCK_WAITS: usize = 1 << 16;
/// KiB of data in writes that wait.
const MAX_WRITE_KIB: usize = 64 * 1024;

/// A reply that can be an error.
pub(super) trait Reply: Send + 'static {
    fn error(self, errno: Errno);
}

macro_rules! replies {
    ($($reply:ident),*) => {
        $(impl Reply for $reply {
            fn error(self, errno: Errno) {
                $reply::error(self, errno);
            }
        })*
    };
}

replies!(
    ReplyAttr,
    ReplyCreate,
    ReplyData,
    ReplyDirectory,
    ReplyDirectoryPlus,
    ReplyEmpty,
    ReplyEntry,
    ReplyLock,
    ReplyLseek,
    ReplyOpen,
    ReplyStatfs,
    ReplyWrite,
    ReplyXattr
);

/// What kind of request is handed on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    /// For the log.
    pub(super) name: &'static str,
    /// What ends its wait.
    pub(super) wait: Wait,
    /// It may change attributes.
    pub(super) changes: bool,
}

impl Kind {
    /// A request that changes nothing.
    pub(super) const fn read(name: &'static str) -> Self {
        Self { name, wait: Wait::Operation, changes: false }
    }

    /// A request that may change attributes.
    pub(super) const fn change(name: &'static str) -> Self {
        Self { name, wait: Wait::Operation, changes: true }
    }

    /// A wait for a lock.
    pub(super) const fn lock(name: &'static str) -> Self {
        Self { name, wait: Wait::Lock, changes: true }
    }

    /// A close: goes on when its caller is gone, since what was written must not be lost with the writer.
    pub(super) const fn close(name: &'static str) -> Self {
        Self { name, wait: Wait::Close, changes: true }
    }
}

/// The way from the event loop to the runtime.
#[derive(Debug)]
pub(super) struct Hand {
    runtime: Handle,
    requests: Arc<Semaphore>,
    lock_waits: Arc<Semaphore>,
    write_kib: Arc<Semaphore>,
    pub(super) changes: Arc<Changes>,
}

impl Hand {
    pub(super) fn new(runtime: Handle) -> Self {
        Self {
            runtime,
            requests: Arc::new(Semaphore::new(MAX_REQUESTS)),
            lock_waits: Arc::new(Semaphore::new(MAX_LOCK_WAITS)),
            write_kib: Arc::new(Semaphore::new(MAX_WRITE_KIB)),
            changes: Arc::default(),
        }
    }

    /// Runs `operation` and answers with its outcome.
    pub(super) fn on<R: Reply, T: Send + 'static>(
        &self,
        kind: Kind,
        request: &Request,
        reply: R,
        operation: impl Future<Output = Result<T, Failure>> + Send + 'static,
        answer: impl FnOnce(R, T) + Send + 'static,
    ) {
        let semaphore = match kind.wait {
            Wait::Lock => match self.lock_waits.clone().try_acquire_owned() {
                Ok(permit) => return self.spawn(kind, request, permit, reply, operation, answer),
                Err(_) => return refuse(reply, kind.name, &Failure::from(Code::NoLocks)),
            },
            Wait::Operation | Wait::Close => &self.requests,
        };
        let permit = self.permits(semaphore, 1);
        self.spawn(kind, request, permit, reply, operation, answer);
    }

    /// Room for the data of a write that has to wait. The event loop waits for it here.
    pub(super) fn room_for(&self, bytes: usize) -> OwnedSemaphorePermit {
        self.permits(&self.write_kib, bytes.div_ceil(1024).clamp(1, MAX_WRITE_KIB) as u32)
    }

    fn permits(&self, semaphore: &Arc<Semaphore>, count: u32) -> OwnedSemaphorePermit {
        match semaphore.clone().try_acquire_many_owned(count) {
            Ok(permit) => permit,
            Err(_) => self
                .runtime
                .block_on(semaphore.clone().acquire_many_owned(count))
                .expect("the semaphores are never closed"),
        }
    }

    fn spawn<R: Reply, T: Send + 'static>(
        &self,
        kind: Kind,
        request: &Request,
        permit: OwnedSemaphorePermit,
        reply: R,
        operation: impl Future<Output = Result<T, Failure>> + Send + 'static,
        answer: impl FnOnce(R, T) + Send + 'static,
    ) {
        let caller = Caller { thread: request.pid() };
        tracing::trace!("{} for thread {}", kind.name, caller.thread);
        let changes = kind.changes.then(|| self.changes.clone());
        if let Some(changes) = &changes {
            changes.note();
        }
        let mut operation = Box::pin(operation);
        if kind.wait == Wait::Close {
            // Most closes have nothing to wait for.
            let _context = self.runtime.enter();
            if let Poll::Ready(outcome) = operation.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                if let Some(changes) = &changes {
                    changes.note();
                }
                return match outcome {
                    Ok(value) => answer(reply, value),
                    Err(failure) => refuse(reply, kind.name, &failure),
                };
            }
        }
        self.runtime.spawn(async move {
            let _permit = permit;
            let outcome = caller.stays(kind.wait, operation.as_mut()).await;
            if let Some(changes) = &changes {
                changes.note();
            }
            match outcome {
                Some(Ok(value)) => answer(reply, value),
                Some(Err(failure)) => refuse(reply, kind.name, &failure),
                None => {
                    reply.error(Errno::EINTR);
                    if kind.wait == Wait::Close
                        && let Err(failure) = operation.await
                    {
                        tracing::error!("{} after its process was killed: {failure}", kind.name);
                    }
                }
            }
        });
    }
}

/// Answers with a failure's errno. What is an answer like any other is for the debugging log; what somebody has to look
/// at is a warning.
pub(super) fn refuse(reply: impl Reply, name: &'static str, failure: &Failure) {
    match failure.errno() {
        libc::EIO | libc::ENOSPC | libc::ENOLCK | libc::EINVAL => tracing::warn!("{name}: {failure}"),
        _ => tracing::debug!("{name}: {failure}"),
    }
    reply.error(errno(failure));
}
