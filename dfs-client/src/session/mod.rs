//! The session with the metadata server: calls, numbered slots, heartbeats, reclaim after a restart.
//!
//! Everything above asks the metadata server through [`MetaCalls`] alone, so that tests can put a server of their own
//! behind it. [`Session`] is the real one: `door` makes one attempt at one call, `calls` repeats attempts until a
//! request is settled, `keeper` keeps the session alive and mends it after a restart or a fence, `slots` numbers the
//! changing requests. Never caches anything of the filesystem.

mod calls;
mod door;
mod keeper;
mod slots;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use dfs_proto::meta::{HeldLock, reply, request};
use dfs_proto::{ClusterId, Failure, Ino};
use futures::future::BoxFuture;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

pub(crate) use calls::task_lost;
use door::Door;
use keeper::State;

/// How long [`Session::close`] waits for requests under way, and then for the server.
const CLOSE_PATIENCE: Duration = Duration::from_secs(10);

/// What the library asks of the metadata server.
///
/// Failed operations come back as the server's own [`Failure`]; an answer of another kind than the operation has is
/// the caller's to refuse.
pub trait MetaCalls: Send + Sync + 'static {
    /// A request that may be repeated without harm: it changes nothing, or nothing durable that a repeat would change
    /// once more. Retried until it is answered or the timeout is over; dropping the future gives the request up.
    fn read(&self, op: request::Op) -> BoxFuture<'_, Result<reply::Result, Failure>>;

    /// A changing request: numbered, so that it takes effect once however often it is sent. It goes on in a task of
    /// its own: when the future is dropped the request is still settled, only nobody learns how.
    fn change(&self, op: request::Op) -> BoxFuture<'_, Result<reply::Result, Failure>>;
}

/// What a session holds for its owner at the metadata server, and what the server has to tell the owner.
///
/// Called from the session's own tasks: must not block, and must not call the session and wait.
pub trait Holdings: Send + Sync + 'static {
    /// Every inode that is open, or being opened.
    fn open_inos(&self) -> Vec<Ino>;
    /// Every lock that is held.
    fn locks(&self) -> Vec<HeldLock>;
    /// What could not be had back after a restart of the server: inodes that are gone, locks that others hold now.
    fn not_reclaimed(&self, gone: &[Ino], lost: &[HeldLock]);
    /// The session was over, a new one is there: every lock is lost. Called before any request goes on.
    fn session_lost(&self);
    /// A lock on the inode may be free; without an inode, any lock.
    fn unlocked(&self, ino: Option<Ino>);
    /// Whether a changing request may (still) be sent: one whose right went with a lost lock may not.
    fn allows(&self, op: &request::Op) -> Result<(), Failure>;
}

/// How to reach the cluster.
#[derive(Clone, Debug)]
pub struct SessionSettings {
    /// Addresses of the metadata server, `host` or `host:port`; tried in turn.
    pub metas: Vec<String>,
    /// Who this is, for people: host name, process id and mount point.
    pub client: String,
    /// How long an operation waits for a server that does not answer; `None`: for ever.
    pub timeout: Option<Duration>,
}

impl Default for SessionSettings {
    fn default() -> Self {
        Self { metas: Vec::new(), client: String::new(), timeout: Some(Duration::from_secs(60)) }
    }
}

/// One client's life with the metadata server. Survives restarts of the server, and its own end by opening a new
/// session with the same server.
pub struct Session {
    core: Arc<Core>,
}

struct Core {
    settings: SessionSettings,
    door: Door,
    cluster: ClusterId,
    state: watch::Sender<State>,
    /// Wakes the keeper.
    mend: Notify,
    /// How often the holdings were counted for the server.
    generation: AtomicU64,
    holdings: OnceLock<Weak<dyn Holdings>>,
    stop: CancellationToken,
}

impl Session {
    /// Opens a session, waiting for the server as long as the timeout says.
    pub async fn connect(settings: SessionSettings) -> Result<Self, Failure> {
        let core = keeper::open(settings).await?;
        tokio::spawn(keeper::keep(core.clone()));
        tokio::spawn(keeper::watch(core.clone()));
        Ok(Self { core })
    }

    /// Names who owns what the session holds. Once, before anything is opened or locked.
    pub fn attach(&self, holdings: Weak<dyn Holdings>) {
        assert!(self.core.holdings.set(holdings).is_ok(), "a session has one owner");
    }

    /// The cluster's identity.
    pub fn cluster(&self) -> ClusterId {
        self.core.cluster
    }

    /// Grows each time the holdings are counted for a server that lost them. Who asked for something to hold under
    /// one generation and noted it under another must ask again: the count may have missed it.
    pub fn generation(&self) -> u64 {
        self.core.generation.load(Ordering::SeqCst)
    }

    /// Waits for changing requests under way, then ends the session. What it still held is gone.
    pub async fn close(&self) -> Result<(), Failure> {
        self.core.close().await
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.core.stop.cancel();
    }
}

impl MetaCalls for Session {
    fn read(&self, op: request::Op) -> BoxFuture<'_, Result<reply::Result, Failure>> {
        Box::pin(self.core.settle(op, calls::Kind::Reading))
    }

    fn change(&self, op: request::Op) -> BoxFuture<'_, Result<reply::Result, Failure>> {
        let core = self.core.clone();
        let task = tokio::spawn(async move { core.settle(op, calls::Kind::Changing).await });
        Box::pin(async move { task.await.unwrap_or_else(|lost| Err(task_lost(&lost))) })
    }
}
