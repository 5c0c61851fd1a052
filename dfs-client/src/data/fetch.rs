//! Brings blocks from the nodes into the block cache, each once: who wants a block that is on its way waits for it.
//!
//! A fetch runs in a task of its own, so that it ends and is cached even when who asked went away. What is in flight is
//! bounded by [`MAX_IN_FLIGHT_BLOCKS`]; reading ahead gives way when half of that is taken.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use dfs_proto::meta::ChunkPlan;
use dfs_proto::{Code, Failure};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};

use super::cache::{BlockCache, BlockKey};
use crate::chunk::ChunkIo;

/// Blocks asked for in one request: 1 MiB.
const MAX_FETCH_BLOCKS: usize = 16;
/// Blocks in flight over the whole mount: 32 MiB.
const MAX_IN_FLIGHT_BLOCKS: usize = 512;

/// Fetches in flight.
pub(super) struct Fetcher {
    io: Arc<ChunkIo>,
    cache: Arc<BlockCache>,
    runtime: Handle,
    in_flight: Mutex<HashMap<BlockKey, Fetch>>,
    room: Semaphore,
}

type Fetched = Result<Arc<Vec<Bytes>>, Failure>;

/// A request in flight, from the block `first` on.
#[derive(Clone)]
struct Fetch {
    first: u32,
    done: watch::Receiver<Option<Fetched>>,
}

/// Blocks to fetch in one request, and who is to be told.
struct Missing {
    range: Range<u32>,
    done: watch::Sender<Option<Fetched>>,
    fetch: Fetch,
}

impl Missing {
    fn new(block: u32) -> Self {
        let (sender, done) = watch::channel(None);
        Self { range: block..block + 1, done: sender, fetch: Fetch { first: block, done } }
    }
}

/// Where a block comes from.
enum Source {
    Here(Bytes),
    Coming(Fetch),
}

/// Blocks that are here or on their way.
pub(super) struct Blocks {
    first: u32,
    sources: Vec<Source>,
}

impl Fetcher {
    pub(super) fn new(io: Arc<ChunkIo>, cache: Arc<BlockCache>, runtime: Handle) -> Arc<Self> {
        Arc::new(Self {
            io,
            cache,
            runtime,
            in_flight: Mutex::new(HashMap::new()),
            room: Semaphore::new(MAX_IN_FLIGHT_BLOCKS),
        })
    }

    /// The blocks `range` of a chunk: starts fetching those that are neither here nor on their way.
    pub(super) fn start(self: &Arc<Self>, plan: &Arc<ChunkPlan>, range: Range<u32>) -> Blocks {
        let first = range.start;
        let mut sources = Vec::with_capacity(range.len());
        let mut missing: Vec<Missing> = Vec::new();
        {
            let mut in_flight = self.lock();
            for block in range {
                let key = (plan.chunk, block);
                // A fetch puts its blocks into the cache before it leaves the table, which is locked here.
                let here = self.cache.get(key).map(Source::Here);
                let source =
                    here.or_else(|| in_flight.get(&key).cloned().map(Source::Coming)).unwrap_or_else(|| {
                        match missing.last_mut() {
                            Some(last) if last.range.end == block && last.range.len() < MAX_FETCH_BLOCKS => {
                                last.range.end += 1;
                            }
                            _ => missing.push(Missing::new(block)),
                        }
                        let fetch = missing.last().expect("one was just made sure of").fetch.clone();
                        in_flight.insert(key, fetch.clone());
                        Source::Coming(fetch)
                    });
                sources.push(source);
            }
        }
        for Missing { range, done, .. } in missing {
            let task = Task { fetcher: Arc::clone(self), plan: Arc::clone(plan), range };
            self.runtime.spawn(async move {
                let fetched = task.run().await;
                drop(task); // out of the table, now that the blocks are in the cache
                done.send_replace(Some(fetched));
            });
        }
        Blocks { first, sources }
    }

    /// Starts fetching the blocks `range` unless enough is in flight already.
    pub(super) fn ahead(self: &Arc<Self>, plan: &Arc<ChunkPlan>, range: Range<u32>) {
        if self.room.available_permits() >= MAX_IN_FLIGHT_BLOCKS / 2 {
            let _ = self.start(plan, range);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<BlockKey, Fetch>> {
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
        let blocks = self.fetcher.io.read(&self.plan, self.range.clone()).await?;
        for (block, bytes) in self.range.clone().zip(&blocks) {
            self.fetcher.cache.insert((self.plan.chunk, block), bytes.clone());
        }
        Ok(Arc::new(blocks))
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

impl Blocks {
    /// Waits until all are here, in order.
    pub(super) async fn wait(self) -> Result<Vec<Bytes>, Failure> {
        let mut blocks = Vec::with_capacity(self.sources.len());
        for (block, source) in (self.first..).zip(self.sources) {
            match source {
                Source::Here(bytes) => blocks.push(bytes),
                Source::Coming(Fetch { first, mut done }) => {
                    let gone = || Failure::new(Code::InputOutput, "a fetch ended without an answer");
                    let fetched = done.wait_for(Option::is_some).await.map_err(|_| gone())?;
                    let fetched = fetched.as_ref().ok_or_else(gone)?.as_ref().map_err(Clone::clone)?;
                    blocks.push(fetched.get((block - first) as usize).ok_or_else(gone)?.clone());
                }
            }
        }
        Ok(blocks)
    }
}
