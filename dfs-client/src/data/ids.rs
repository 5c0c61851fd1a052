//! Chunk ids in hand: allocated ahead, in the background, so that a flush finds one without a call.
//!
//! Per kind. Half used up, more are fetched; the faster they go, the more at a time, up to [`MAX_IN_HAND`]. An id older
//! than half of its lifetime is not used any more: the server may take its chunk for abandoned.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use dfs_proto::meta::{Allocate, ChunkPlan, reply, request};
use dfs_proto::{Class, Code, Failure, Labels};
use tokio::sync::watch;

use crate::chunk::ChunkIo;
use crate::session::MetaCalls;

/// Ids fetched at first.
const FIRST_IN_HAND: u32 = 8;
/// The most fetched at once: the server keeps room for a whole chunk on each of their nodes.
const MAX_IN_HAND: u32 = 32;
/// Ids that last less than this are too few.
const REFILL_AT_MOST_EVERY: Duration = Duration::from_secs(1);

/// What chunks with ids of one pool are for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Kind {
    /// Of the files.
    pub(super) class: Class,
    /// Kept as copies, whatever the class says: see [`Class::is_short`].
    pub(super) is_short: bool,
}

/// The ids that this client may write chunks under.
pub(super) struct ChunkIds {
    meta: Arc<dyn MetaCalls>,
    io: Arc<ChunkIo>,
    here: Labels,
    pools: Mutex<HashMap<Kind, Pool>>,
}

struct Pool {
    ready: VecDeque<(ChunkPlan, Instant)>,
    count: u32,
    refilled: Option<Instant>,
    /// While a refill is under way; its end tells how it went.
    refill: Option<watch::Receiver<Option<Result<(), Failure>>>>,
}

impl ChunkIds {
    pub(super) fn new(meta: Arc<dyn MetaCalls>, io: Arc<ChunkIo>, here: Labels) -> Self {
        Self { meta, io, here, pools: Mutex::new(HashMap::new()) }
    }

    /// A fresh chunk id with its nodes. Waits only when none is in hand.
    pub(super) async fn take(self: &Arc<Self>, kind: &Kind) -> Result<ChunkPlan, Failure> {
        loop {
            let mut refill = {
                let mut pools = self.lock();
                let pool = pools.entry(kind.clone()).or_insert_with(Pool::new);
                let now = Instant::now();
                let plan = pool.pop(now);
                if (pool.ready.len() as u32) <= pool.count / 2 && pool.refill.is_none() {
                    self.refill(kind, pool, now);
                }
                match (plan, &pool.refill) {
                    (Some(plan), _) => return Ok(plan),
                    (None, Some(refill)) => refill.clone(),
                    (None, None) => {
                        return Err(Failure::new(Code::Unavailable, "chunk ids are not being fetched"));
                    }
                }
            };
            match refill.wait_for(Option::is_some).await.as_deref() {
                Ok(Some(Err(failure))) => return Err(failure.clone()),
                Ok(_) => {}
                Err(_) => return Err(Failure::new(Code::Unavailable, "fetching chunk ids was given up")),
            }
        }
    }

    /// Makes sure that ids are on their way: somebody will want one soon.
    pub(super) fn prepare(self: &Arc<Self>, kind: &Kind, runtime: &tokio::runtime::Handle) {
        let mut pools = self.lock();
        let pool = pools.entry(kind.clone()).or_insert_with(Pool::new);
        let now = Instant::now();
        pool.ready.retain(|(_, until)| now < *until);
        if pool.ready.is_empty() && pool.refill.is_none() {
            let _entered = runtime.enter();
            self.refill(kind, pool, now);
        }
    }

    /// Drops the ids in hand: the server refused one, so the others are not trusted either.
    pub(super) fn forget(&self, kind: &Kind) {
        if let Some(pool) = self.lock().get_mut(kind) {
            pool.ready.clear();
        }
    }

    /// Starts fetching more, in a task of its own.
    fn refill(self: &Arc<Self>, kind: &Kind, pool: &mut Pool, now: Instant) {
        let recent = |at: Instant| now.saturating_duration_since(at) < REFILL_AT_MOST_EVERY;
        if pool.refilled.is_some_and(recent) {
            pool.count = (pool.count * 2).min(MAX_IN_HAND);
        }
        pool.refilled = Some(now);
        let (done, refill) = watch::channel(None);
        pool.refill = Some(refill);
        let count = pool.count;
        let (ids, kind) = (Arc::clone(self), kind.clone());
        tokio::spawn(async move {
            let fetched = ids.fetch(&kind, count).await;
            let mut pools = ids.lock();
            let pool = pools.entry(kind).or_insert_with(Pool::new);
            pool.refill = None;
            let outcome = fetched.map(|plans| pool.ready.extend(plans));
            done.send_replace(Some(outcome));
        });
    }

    async fn fetch(&self, kind: &Kind, count: u32) -> Result<Vec<(ChunkPlan, Instant)>, Failure> {
        let asked = Instant::now();
        let op = Allocate {
            class: kind.class.to_string(),
            is_short: kind.is_short,
            count,
            avoid: self.io.suspects(),
            client: Some(self.here.clone()),
        };
        match self.meta.change(request::Op::Allocate(op)).await? {
            reply::Result::Allocated(allocated) => {
                let until = asked + Duration::from_millis(allocated.plan_lifetime_ms) / 2;
                if allocated.chunks.is_empty() || until <= Instant::now() {
                    return Err(Failure::new(
                        Code::Unavailable,
                        "the metadata server gave no usable chunk ids",
                    ));
                }
                Ok(allocated.chunks.into_iter().map(|plan| (plan, until)).collect())
            }
            _ => Err(Failure::new(
                Code::InputOutput,
                "the metadata server answered an allocation with something else",
            )),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Kind, Pool>> {
        self.pools.lock().expect("nothing panics while it holds the chunk ids")
    }
}

impl Pool {
    fn new() -> Self {
        Self { ready: VecDeque::new(), count: FIRST_IN_HAND, refilled: None, refill: None }
    }

    /// The oldest id that is still good.
    fn pop(&mut self, now: Instant) -> Option<ChunkPlan> {
        while let Some((plan, until)) = self.ready.pop_front() {
            if now < until {
                return Some(plan);
            }
        }
        None
    }
}
