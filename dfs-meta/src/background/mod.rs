//! Work that nobody asks for: each kind is a worker that hands the machine small pieces, like any client, and rests in
//! between, so that it never takes more than its share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dfs_proto::{Code, Failure};
use tokio::task::JoinSet;

use crate::machine::Handle;
use crate::ops::{Internal, Progress};
use crate::store::Store;

/// How long a worker rests after a failure.
const AFTER_FAILURE: Duration = Duration::from_secs(5);
/// A worker with more to do rests so many times as long as its last piece took.
const THROTTLE: u32 = 4;

/// One kind of background work.
pub trait Worker: Send + 'static {
    /// For the log.
    fn name(&self) -> &'static str;

    /// How long to wait when nothing is left to do.
    fn idle(&self) -> Duration;

    /// Does one bounded piece.
    fn work(&mut self) -> impl Future<Output = Result<Progress, Failure>> + Send;
}

/// A worker whose pieces are an internal operation of the machine.
struct Operation {
    handle: Handle,
    name: &'static str,
    op: Internal,
    idle: Duration,
}

impl Worker for Operation {
    fn name(&self) -> &'static str {
        self.name
    }

    fn idle(&self) -> Duration {
        self.idle
    }

    async fn work(&mut self) -> Result<Progress, Failure> {
        self.handle.internal(self.op).await
    }
}

/// Keeps space set aside for deleting, and tells the machine when that is all there is.
struct Space {
    store: Arc<dyn Store>,
    reserve_bytes: u64,
    nearly_full: Arc<AtomicBool>,
}

impl Worker for Space {
    fn name(&self) -> &'static str {
        "space"
    }

    fn idle(&self) -> Duration {
        Duration::from_secs(1)
    }

    async fn work(&mut self) -> Result<Progress, Failure> {
        let (store, reserve_bytes) = (self.store.clone(), self.reserve_bytes);
        let reserved = tokio::task::spawn_blocking(move || store.reserve(reserve_bytes)).await;
        let full = !reserved.map_err(|error| Failure::new(Code::InputOutput, error.to_string()))??;
        if self.nearly_full.swap(full, Ordering::Relaxed) != full {
            match full {
                true => tracing::error!(
                    reserve_bytes,
                    "the metadata store's disk is nearly full: only what frees space is accepted"
                ),
                false => tracing::info!("the metadata store's disk has room again"),
            }
        }
        Ok(Progress::Idle)
    }
}

/// Starts all workers; they stop when the set is dropped.
pub fn start(
    handle: &Handle,
    store: Arc<dyn Store>,
    reserve_bytes: u64,
    nearly_full: Arc<AtomicBool>,
    session_timeout: Duration,
) -> JoinSet<()> {
    let mut workers = JoinSet::new();
    workers.spawn(drive(Space { store, reserve_bytes, nearly_full }));
    let second = Duration::from_secs(1);
    for (name, op, idle) in [
        // Often enough to tell a server that stood still from sessions that were silent.
        ("session expiry", Internal::ExpireSessions, second.min(session_timeout / 10)),
        ("orphan adoption", Internal::AdoptOrphans, second),
        ("garbage collection", Internal::CollectGarbage, second),
        ("orphan purge", Internal::PurgeOrphans, second),
    ] {
        workers.spawn(drive(Operation { handle: handle.clone(), name, op, idle }));
    }
    workers
}

/// Lets a worker work for ever, with rests.
async fn drive(mut worker: impl Worker) {
    loop {
        let started = Instant::now();
        let rest = match worker.work().await {
            Ok(Progress::Idle) => worker.idle(),
            Ok(Progress::More) => started.elapsed() * THROTTLE,
            Err(failure) => {
                tracing::warn!(worker = worker.name(), %failure, "background work failed");
                AFTER_FAILURE
            }
        };
        tokio::time::sleep(rest).await;
    }
}
