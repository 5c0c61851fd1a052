//! Work that nobody asks for: each kind is a worker that hands the machine small pieces, like any client, and rests in
//! between, so that it never takes more than its share.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dfs_proto::{Code, Failure};
use tokio::task::JoinSet;

use crate::machine::Handle;
use crate::ops::{Internal, Progress};
use crate::store::space::Space;

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

/// Finds out that others made room on the store's disk, or took it.
struct Room(Arc<Space>);

impl Worker for Room {
    fn name(&self) -> &'static str {
        "space"
    }

    fn idle(&self) -> Duration {
        Duration::from_secs(1)
    }

    async fn work(&mut self) -> Result<Progress, Failure> {
        let space = self.0.clone();
        let checked = tokio::task::spawn_blocking(move || space.check()).await;
        checked.map_err(|error| Failure::new(Code::InputOutput, error.to_string()))??;
        Ok(Progress::Idle)
    }
}

/// Starts all workers; they stop when the set is dropped.
pub fn start(handle: &Handle, space: Arc<Space>, session_timeout: Duration) -> JoinSet<()> {
    let mut workers = JoinSet::new();
    workers.spawn(drive(Room(space)));
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
