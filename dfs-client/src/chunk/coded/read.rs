//! Reads blocks of a coded chunk. Each is a cell of one data shard, and all shards that have some are asked at once. Where
//! one fails, is not there, or is slow, so many others are asked for the same rows that what is lost can be computed;
//! whichever comes first, the answer or enough others, is taken.
//!
//! Every part was verified by its checksums as it came; what is computed from such parts is what was written.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use dfs_proto::limits::BLOCK_SIZE;
use dfs_proto::meta::ChunkPlan;
use dfs_proto::{Code, Failure, Stripe};
use futures::StreamExt;
use futures::stream::FuturesUnordered;

use super::super::ChunkIo;
use super::super::nodes::{Lane, Node};
use super::super::read::{hedge_after, unreadable};
use crate::erasure::{self, Part};

/// Decoding above this is not done on a thread that others wait for.
const INLINE_DECODE_BYTES: usize = 256 * 1024;

/// One read under way.
struct Reading<'a> {
    stripe: &'a Stripe,
    blocks: Range<u32>,
    /// All rows that hold some of the blocks: what is asked of every shard once something has to be computed.
    rows: Range<u32>,
    /// Who can be asked, by shard.
    holders: BTreeMap<u32, Arc<Node>>,
    parts: BTreeMap<u32, Part>,
    /// Shards asked and not heard of yet, with what they were asked for.
    asked: BTreeMap<u32, Range<u32>>,
    /// Shards that failed.
    failed: BTreeSet<u32>,
    /// Asked, and not counted on any more.
    late: BTreeSet<u32>,
}

impl ChunkIo {
    /// The blocks `range`, in a buffer of their own. Failures as for copies.
    pub(in super::super) async fn read_coded(
        &self,
        plan: &ChunkPlan,
        stripe: &Stripe,
        blocks: Range<u32>,
    ) -> Result<Bytes, Failure> {
        let now = Instant::now();
        let holders = plan.shards.iter().filter_map(|shard| {
            let node = self.nodes.get(shard.node.as_ref()?).ok()?;
            (shard.index < stripe.data_shards() + stripe.parity_shards()).then_some((shard.index, node))
        });
        let holders: BTreeMap<u32, Arc<Node>> = holders.collect();
        let late = holders.iter().filter(|(_, node)| node.is_suspect(now)).map(|(shard, _)| *shard).collect();
        let mut reading = Reading {
            stripe,
            rows: stripe.rows_of(&blocks),
            blocks,
            holders,
            parts: BTreeMap::new(),
            asked: BTreeMap::new(),
            failed: BTreeSet::new(),
            late,
        };
        let lane = Lane::of_read(reading.rows.len() as u64 * BLOCK_SIZE as u64);
        let mut failures = Vec::new();
        let mut running = FuturesUnordered::new();
        let mut hedge = None;
        loop {
            if let Some(data) = reading.assemble() {
                return Ok(data);
            }
            if let Some(lost) = reading.restorable() {
                reading.restore(lost).await?;
                continue;
            }
            for (shard, node, rows) in reading.next(lane) {
                let length = stripe.shard_length(shard);
                let read = self.read_shard(node, plan, shard, length, rows.clone());
                running.push(async move { (shard, rows, read.await) });
            }
            if running.is_empty() {
                return Err(unreadable(plan, failures));
            }
            let patience = reading.patience(lane).filter(|_| hedge.is_none());
            tokio::select! {
                biased;
                Some((shard, rows, answer)) = running.next() => match answer {
                    Ok(data) => reading.came(shard, Part { rows, data }),
                    Err(failure) => {
                        reading.failed(shard);
                        failures.push(failure);
                    }
                },
                () = tokio::time::sleep(patience.unwrap_or_default()), if patience.is_some() => {
                    hedge = self.hedge();
                    if hedge.is_some() {
                        tracing::debug!(chunk = plan.chunk, "slow shards are raced by what the others give");
                        reading.late.extend(reading.asked.keys());
                    }
                }
            }
        }
    }
}

impl Reading<'_> {
    /// The data shards that hold some of the blocks, with their rows.
    fn wanted(&self) -> impl Iterator<Item = (u32, Range<u32>)> + '_ {
        let rows = |shard| (shard, self.stripe.rows_on(shard, &self.blocks));
        (0..self.stripe.data_shards()).map(rows).filter(|(_, rows)| !rows.is_empty())
    }

    fn has(&self, shard: u32, rows: &Range<u32>) -> bool {
        self.parts.get(&shard).is_some_and(|part| part.covers(rows))
    }

    /// Whether it is not there, or not counted on.
    fn is_out(&self, shard: u32) -> bool {
        self.failed.contains(&shard) || self.late.contains(&shard) || !self.holders.contains_key(&shard)
    }

    /// Whether something wanted has to be computed.
    fn is_degraded(&self) -> bool {
        self.wanted().any(|(shard, rows)| !self.has(shard, &rows) && self.is_out(shard))
    }

    /// Whether a shard counts for computing: its cells are here, or there are none.
    fn counts(&self, shard: u32) -> bool {
        self.stripe.part_length(shard, &self.rows) == 0 || self.has(shard, &self.rows)
    }

    /// Whom to ask now, and for which rows.
    fn next(&mut self, lane: Lane) -> Vec<(u32, Arc<Node>, Range<u32>)> {
        let degraded = self.is_degraded();
        let mut next = Vec::new();
        for (shard, rows) in self.wanted().collect::<Vec<_>>() {
            if !self.has(shard, &rows) && !self.is_out(shard) && !self.asked.contains_key(&shard) {
                // Whole rows at once where they are needed anyway.
                next.push((shard, if degraded { self.rows.clone() } else { rows }));
            }
        }
        if degraded {
            let asked = |shard: &u32| {
                let asked =
                    self.asked.get(shard).or(next.iter().find(|(s, _)| s == shard).map(|(_, rows)| rows));
                asked.is_some_and(|rows| rows.start <= self.rows.start && self.rows.end <= rows.end)
            };
            let shards = self.stripe.data_shards() + self.stripe.parity_shards();
            let coming = |shard: &u32| self.counts(*shard) || (asked(shard) && !self.is_out(*shard));
            let enough = self.stripe.data_shards() as usize;
            let missing = enough.saturating_sub((0..shards).filter(coming).count());
            let now = Instant::now();
            let free = |shard: &u32| {
                !coming(shard)
                    && !asked(shard)
                    && !self.failed.contains(shard)
                    && self.holders.contains_key(shard)
            };
            let mut others: Vec<u32> = (0..shards).filter(free).collect();
            // Those that are late or suspect come last, but they do come.
            others.sort_by_key(|shard| (self.late.contains(shard), self.holders[shard].rank(lane, now)));
            next.extend(others.into_iter().take(missing).map(|shard| (shard, self.rows.clone())));
        }
        self.asked.extend(next.iter().cloned());
        next.into_iter().map(|(shard, rows)| (shard, self.holders[&shard].clone(), rows)).collect()
    }

    /// How long to wait for those asked, while there are others to ask.
    fn patience(&self, lane: Lane) -> Option<Duration> {
        let free = |shard: &&u32| !self.asked.contains_key(shard) && !self.parts.contains_key(shard);
        let other = self.holders.keys().filter(free).find(|shard| !self.is_out(**shard))?;
        Some(hedge_after(&self.holders[other], lane, self.rows.len()))
    }

    fn came(&mut self, shard: u32, part: Part) {
        self.asked.remove(&shard);
        self.late.remove(&shard);
        if !self.has(shard, &part.rows) {
            self.parts.insert(shard, part);
        }
    }

    fn failed(&mut self, shard: u32) {
        self.asked.remove(&shard);
        self.failed.insert(shard);
    }

    /// The shards to compute, if something has to be and enough is here.
    fn restorable(&self) -> Option<Vec<u32>> {
        let shards = self.stripe.data_shards() + self.stripe.parity_shards();
        let here = (0..shards).filter(|shard| self.counts(*shard)).count();
        let lost = self.wanted().filter(|(shard, rows)| !self.has(*shard, rows)).map(|(shard, _)| shard);
        (self.is_degraded() && here >= self.stripe.data_shards() as usize).then(|| lost.collect())
    }

    async fn restore(&mut self, lost: Vec<u32>) -> Result<(), Failure> {
        let length = self.stripe.coded_length(&self.rows) * self.stripe.data_shards() as usize;
        let restored = if length <= INLINE_DECODE_BYTES {
            erasure::restore(self.stripe, &self.rows, &self.parts, &lost)?
        } else {
            let (stripe, rows, parts) = (*self.stripe, self.rows.clone(), self.parts.clone());
            let restoring =
                tokio::task::spawn_blocking(move || erasure::restore(&stripe, &rows, &parts, &lost));
            restoring
                .await
                .map_err(|error| Failure::new(Code::InputOutput, format!("decoding failed: {error}")))??
        };
        self.parts.extend(restored);
        Ok(())
    }

    /// The blocks, once all are here.
    fn assemble(&self) -> Option<Bytes> {
        if !self.wanted().all(|(shard, rows)| self.has(shard, &rows)) {
            return None;
        }
        let length = self.wanted().map(|(shard, rows)| self.stripe.part_length(shard, &rows)).sum();
        let mut data = BytesMut::with_capacity(length);
        for block in self.blocks.clone() {
            let (shard, row) = self.stripe.place_of(block);
            data.put_slice(self.parts[&shard].within(self.stripe, shard, &(row..row + 1)));
        }
        Some(data.freeze())
    }
}
