//! Brings blocks from the nodes into the block cache, each once: who wants a block that is on its way waits for it.
//!
//! A fetch runs in a task of its own, so that it ends and is cached even when who asked went away. What is in flight is
//! bounded by [`MAX_IN_FLIGHT_BLOCKS`]; reading ahead gives way when half of that is taken.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use dfs_proto::meta::ChunkPlan;
use dfs_proto::{Code, Failure};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};

use super::cache::{self, BlockCache, Run};
use super::content::Contents;

/// Blocks in flight over the whole mount: 32 MiB.
const MAX_IN_FLIGHT_BLOCKS: usize = 512;

/// Fetches in flight.
pub(super) struct Fetcher {
    contents: Contents,
    cache: Arc<BlockCache>,
    runtime: Handle,
    /// By chunk and block.
    in_flight: Mutex<HashMap<(u64, u32), Fetch>>,
    room: Semaphore,
}

type Fetched = Result<Run, Failure>;

/// A request in flight for blocks of one frame.
#[derive(Clone)]
struct Fetch {
    blocks: Range<u32>,
    done: watch::Receiver<Option<Fetched>>,
}

/// Where blocks come from.
enum Source {
    Here(Run),
    Coming(Range<u32>, Fetch),
}

/// Blocks that are here or on their way.
pub(super) struct Blocks(Vec<Source>);

impl Fetcher {
    pub(super) fn new(contents: Contents, cache: Arc<BlockCache>, runtime: Handle) -> Arc<Self> {
        Arc::new(Self {
            contents,
            cache,
            runtime,
            in_flight: Mutex::new(HashMap::new()),
            room: Semaphore::new(MAX_IN_FLIGHT_BLOCKS),
        })
    }

    /// The blocks `range` of a chunk: starts fetching those that are neither here nor on their way.
    pub(super) fn start(self: &Arc<Self>, plan: &Arc<ChunkPlan>, range: Range<u32>) -> Blocks {
        let mut sources = Vec::new();
        let mut missing = Vec::new();
        {
            let mut in_flight = self.lock();
            for range in cache::frames(range) {
                // A fetch puts its blocks into the cache before it leaves the table, which is locked here.
                let here = self.cache.frame_of(plan.chunk, range.start);
                let mut at = range.start;
                while at < range.end {
                    let key = |block| (plan.chunk, block);
                    let source = if let Some(run) = here.from(at) {
                        Source::Here(run.within(&range))
                    } else if let Some(fetch) = in_flight.get(&key(at)) {
                        Source::Coming(at..fetch.blocks.end.min(range.end), fetch.clone())
                    } else {
                        let known =
                            |block: &u32| here.from(*block).is_some() || in_flight.contains_key(&key(*block));
                        let end = (at + 1..range.end).find(known).unwrap_or(range.end);
                        let (sender, done) = watch::channel(None);
                        let fetch = Fetch { blocks: at..end, done };
                        in_flight.extend((at..end).map(|block| (key(block), fetch.clone())));
                        missing.push((at..end, sender));
                        Source::Coming(at..end, fetch)
                    };
                    at = source.end();
                    sources.push(source);
                }
            }
        }
        for (range, done) in missing {
            let task = Task { fetcher: Arc::clone(self), plan: Arc::clone(plan), range };
            self.runtime.spawn(async move {
                let fetched = task.run().await;
                drop(task); // out of the table, now that the blocks are in the cache
                done.send_replace(Some(fetched));
            });
        }
        Blocks(sources)
    }

    /// Starts fetching the blocks `range` unless enough is in flight already.
    pub(super) fn ahead(self: &Arc<Self>, plan: &Arc<ChunkPlan>, range: Range<u32>) {
        if self.room.available_permits() >= MAX_IN_FLIGHT_BLOCKS / 2 {
            let _ = self.start(plan, range);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(u64, u32), Fetch>> {
        self.in_flight.lock().expect("nothing panics while it holds the table of fetches")
    }
}

/// One request; leaves the table when dropped, however it ended.
struct Task {
    fetcher: Arc<Fetcher>,
    plan: Arc<ChunkPlan>,
    range: Range<u32>,
}

impl Task {
    async fn run(&self) -> Fetched {
        let room = self.fetcher.room.acquire_many(self.range.len() as u32).await;
        let _room = room.map_err(|_| Failure::new(Code::Interrupted, "the mount is ending"))?;
        let data = self.fetcher.contents.read(&self.plan, self.range.clone()).await?;
        let run = Run::new(self.range.start, data);
        self.fetcher.cache.insert(self.plan.chunk, run.clone());
        Ok(run)
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        let mut in_flight = self.fetcher.lock();
        for block in self.range.clone() {
            in_flight.remove(&(self.plan.chunk, block));
        }
    }
}

impl Source {
    /// The block after its last.
    fn end(&self) -> u32 {
        match self {
            Self::Here(run) => run.blocks().end,
            Self::Coming(blocks, _) => blocks.end,
        }
    }
}

impl Blocks {
    /// Waits until all are here, in order.
    pub(super) async fn wait(self) -> Result<Vec<Run>, Failure> {
        let mut runs = Vec::with_capacity(self.0.len());
        for source in self.0 {
            match source {
                Source::Here(run) => runs.push(run),
                Source::Coming(blocks, Fetch { mut done, .. }) => {
                    let gone = || Failure::new(Code::InputOutput, "a fetch ended without an answer");
                    let fetched = done.wait_for(Option::is_some).await.map_err(|_| gone())?;
                    runs.push(
                        fetched.as_ref().ok_or_else(gone)?.as_ref().map_err(Clone::clone)?.within(&blocks),
                    );
                }
            }
        }
        Ok(runs)
    }
}
