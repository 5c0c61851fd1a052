//! The machine: runs operations one at a time and makes their effects durable in groups.
//!
//! Two threads take turns. One holds the state and runs what is queued; when nobody is committing it lets go of the
//! state and commits what it ran, while the other thread runs the next group. So a commit costs no handing over
//! between threads, and what arrives during one commit is the next one. An answer leaves when its group is durable;
//! one that rests on nothing uncommitted leaves at once.
//!
//! A request that only reads, and may read nothing uncommitted, is run by whoever brings it, when neither thread is in the
//! state at that moment: handing it over and back takes longer than most reads.
//!
//! Nobody waits for the store's disk to run an operation: where the store is larger than its cache, a request is rehearsed
//! on another thread first.
//!
//! When a commit fails the machine ends: what operations have seen since is not in the store, so nothing may be
//! answered from it. Requests are never dropped silently: their callers are told that the server stopped.

mod admission;
mod core;
mod inbox;
mod job;
mod rehearsal;
pub mod startup;
#[cfg(test)]
mod tests;
pub mod transaction;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use dfs_proto::meta::{Reply, Request};
use dfs_proto::{Code, Failure};
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use self::core::{Core, Group};
use self::inbox::{Inbox, Next};
use self::job::{Answer, Job, Work};
use crate::live::Live;
use crate::ops::{Internal, Progress, Settings};
use crate::store::space::Space;
use crate::store::{Store, StoreError};

/// What requests in the queue may take together, in units of [`PERMIT_BYTES`].
const PERMITS: usize = 4096;
/// Each request takes one permit, and one more for each so many bytes.
const PERMIT_BYTES: usize = 16 * 1024;

const PANICKED: &str = "the machine panicked: a broken invariant";

/// The running machine.
pub struct Machine {
    handle: Handle,
    threads: Vec<JoinHandle<()>>,
}

/// Hands work to the machine.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
    permits: Arc<Semaphore>,
    ended: watch::Receiver<Option<End>>,
}

/// How the machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It was asked to, and everything queued was done.
    Stopped,
    /// What was wrong.
    Failed(String),
}

struct Shared {
    inbox: Inbox,
    /// Held by the thread whose turn it is to run what is queued.
    turn: Mutex<()>,
    state: Mutex<State>,
    store: Arc<dyn Store>,
    space: Arc<Space>,
    settings: Settings,
    ended: watch::Sender<Option<End>>,
}

struct State {
    core: Core,
    /// What ran since the last commit.
    group: Group,
}

impl Machine {
    /// Starts the machine on a store and what is known of the world at the start. While `space` is nearly
    /// full, only operations that free some run.
    pub fn start(
        store: Arc<dyn Store>,
        live: Live,
        settings: Settings,
        space: Arc<Space>,
    ) -> std::io::Result<Self> {
        let core = Core::new(store.clone(), live, settings.clone(), space.clone());
        let state = Mutex::new(State { core, group: Group::default() });
        let (sender, ended) = watch::channel(None);
        let shared = Arc::new(Shared {
            inbox: Inbox::default(),
            turn: Mutex::default(),
            state,
            store,
            space,
            settings,
            ended: sender,
        });
        let mut threads = Vec::new();
        for name in ["machine-a", "machine-b"] {
            let shared = shared.clone();
            threads.push(std::thread::Builder::new().name(name.into()).spawn(move || shared.take_turns())?);
        }
        let handle = Handle { shared, permits: Arc::new(Semaphore::new(PERMITS)), ended };
        Ok(Self { handle, threads })
    }

    /// Hands work to it.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Finishes what is queued, makes it durable, and stops. Blocks.
    pub fn stop(self) -> End {
        self.handle.shared.inbox.close();
        let panicked = self.threads.into_iter().map(JoinHandle::join).any(|ended| ended.is_err());
        let end = self.handle.ended.borrow().clone();
        match end {
            Some(End::Failed(reason)) => End::Failed(reason),
            _ if panicked => End::Failed(PANICKED.into()),
            _ => End::Stopped,
        }
    }
}

impl Handle {
    /// Runs a request; the answer is in the reply, failures too. Waits while too much is queued. UNAVAILABLE when the
    /// machine has stopped: then nobody knows whether the request took effect, and asking again with its number tells.
    pub async fn call(&self, request: Request) -> Result<Reply, Failure> {
        let permits = (1 + request.encoded_len() / PERMIT_BYTES).min(PERMITS) as u32;
        let permit = self.permits.clone().acquire_many_owned(permits).await.map_err(|_| stopped())?;
        let request = match self.shared.store.fits_in_memory() {
            true => match self.shared.run_now(&request) {
                Some(reply) => return Ok(reply),
                None => request,
            },
            false => self.rehearse(request).await,
        };
        let (sender, receiver) = oneshot::channel();
        self.push(Work::Call(Box::new(request), sender), permit)?;
        receiver.await.map(|reply| *reply).map_err(|_| stopped())
    }

    /// Runs a piece of background work.
    pub async fn internal(&self, op: Internal) -> Result<Progress, Failure> {
        let (sender, receiver) = oneshot::channel();
        let permit = self.permits.clone().acquire_owned().await.map_err(|_| stopped())?;
        self.push(Work::Internal(op, sender), permit)?;
        receiver.await.map_err(|_| stopped())?
    }

    /// Looks at the state in memory, between two operations. `look` is given the machine's uptime; it must be quick
    /// and must not wait for anything.
    pub async fn inspect<T: Send + 'static>(
        &self,
        look: impl FnOnce(&mut Live, Duration) -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let (sender, receiver) = oneshot::channel();
        let look = move |live: &mut Live, uptime| drop(sender.send(look(live, uptime)));
        let permit = self.permits.clone().acquire_owned().await.map_err(|_| stopped())?;
        self.push(Work::Inspect(Box::new(look)), permit)?;
        receiver.await.map_err(|_| stopped())
    }

    /// Waits until the machine has ended.
    pub async fn ended(&self) -> End {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(end) => end.clone().unwrap_or(End::Stopped),
            Err(_) => End::Stopped,
        }
    }

    /// Lets a request that would find the store's cache cold run on another thread first.
    async fn rehearse(&self, request: Request) -> Request {
        if !rehearsal::is_of_use(&request) {
            return request;
        }
        let (request, shared) = (Arc::new(request), self.shared.clone());
        let rehearsed = request.clone();
        let rehearsal = tokio::task::spawn_blocking(move || {
            rehearsal::rehearse(&*shared.store, &shared.settings, &rehearsed);
        });
        // However it ended, the real run decides.
        drop(rehearsal.await);
        Arc::unwrap_or_clone(request)
    }

    fn push(&self, work: Work, permit: OwnedSemaphorePermit) -> Result<(), Failure> {
        self.shared.inbox.push(Job { work, permit: Some(permit) }).map_err(|_| stopped())
    }
}

fn stopped() -> Failure {
    Failure::new(Code::Unavailable, "the metadata server is stopping")
}

impl Shared {
    /// The life of one of the two threads.
    fn take_turns(&self) {
        let guard = EndOnPanic(self);
        while let Some((group, in_flight)) = self.run_group() {
            let mut answers = group.answers;
            let mut durable = || {
                in_flight.durable.store(true, Ordering::Release);
                answers.drain(..).for_each(Answer::send);
            };
            let result = match in_flight.batch.is_empty() {
                // Its answers rest on the group before, which is durable by now.
                true => {
                    durable();
                    Ok(())
                }
                false => self.store.commit(&in_flight.batch, &mut durable).and_then(|()| self.space.check()),
            };
            if let Err(error) = result {
                return self.fail(&error);
            }
            in_flight.in_store.store(true, Ordering::Release);
            self.inbox.committed();
        }
        drop(guard);
        self.abandon();
        self.end(End::Stopped);
    }

    /// Lets go of what ran and will not be committed any more, and so of those who wait for it.
    fn abandon(&self) {
        let group = std::mem::take(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner).group);
        drop(group);
    }

    /// Runs operations until their group is to be committed; `None` when there will be no more, or another thread panicked.
    fn run_group(&self) -> Option<(Group, Arc<core::InFlight>)> {
        let _turn = self.lock(&self.turn)?;
        let mut gathered = Group::default().gathered();
        loop {
            match self.inbox.next(gathered) {
                Next::Run(job) => {
                    let State { core, group } = &mut *self.lock(&self.state)?;
                    core.run(job, group);
                    gathered = group.gathered();
                }
                Next::Commit => {
                    let State { core, group } = &mut *self.lock(&self.state)?;
                    let mut group = std::mem::take(group);
                    let in_flight = core.hand_over(std::mem::take(&mut group.batch));
                    return Some((group, in_flight));
                }
                Next::Stop => return None,
            }
        }
    }

    /// Answers a request that only reads, if nobody is in the state and everything that it may read is durable.
    fn run_now(&self, request: &Request) -> Option<Reply> {
        request.op.as_ref().filter(|op| admission::only_reads(op))?;
        let _guard = EndOnPanic(self);
        let mut state = self.state.try_lock().ok()?;
        let State { core, group } = &mut *state;
        core.run_now(request, group)
    }

    /// `None` when a thread panicked while it held it; then the machine ends.
    fn lock<'m, T>(&self, mutex: &'m Mutex<T>) -> Option<MutexGuard<'m, T>> {
        mutex.lock().inspect_err(|_| self.end(End::Failed(PANICKED.into()))).ok()
    }

    /// What the group read or wrote is not durable, and later operations have seen it: nothing may be answered.
    fn fail(&self, error: &StoreError) {
        tracing::error!(%error, "a commit failed: the metadata server stops, so as not to answer from what is lost");
        self.end(End::Failed(error.to_string()));
        self.inbox.fail();
        self.abandon();
    }

    /// The first end counts.
    fn end(&self, end: End) {
        self.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            ended.get_or_insert(end);
            first
        });
    }
}

/// A panic is a broken invariant: the machine ends and says so, instead of leaving its callers waiting.
struct EndOnPanic<'a>(&'a Shared);

impl Drop for EndOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.end(End::Failed(PANICKED.into()));
            self.0.inbox.fail();
            self.0.abandon();
        }
    }
}
