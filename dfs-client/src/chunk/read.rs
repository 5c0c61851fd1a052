//! Reads blocks of one chunk from whichever of its nodes serves them first and whole; coded chunks in `coded`.
//!
//! The nearest and quickest node is asked first; when it is slow the next one is asked too, when it fails the next one
//! is asked at once. Every block is verified against the checksum that its writer computed. A shard that is missing or
//! corrupt is reported to the metadata server. When no node has the blocks, that is an error: bytes are never made up.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use dfs_proto::chunk::{ReadRequest, small_reply, small_request};
use dfs_proto::limits::BLOCK_SIZE;
use dfs_proto::meta::{ChunkPlan, ReportShard, ShardPlan, request};
use dfs_proto::{ClusterId, Code, Failure, Stripe};
use futures::StreamExt;
use futures::stream::FuturesUnordered;

use super::ChunkIo;
use super::local::ShardName;
use super::nodes::{Lane, Node, sort_for_read};

/// A node that sends nothing for so long has failed.
const STALL_TIMEOUT: Duration = Duration::from_millis(2500);
/// Another node is asked too when the answer is not there after so many times what it usually takes,
const HEDGE_FACTOR: u32 = 8;
/// but not before this,
const MIN_HEDGE_AFTER: Duration = Duration::from_millis(30);
/// and this more for each block,
const HEDGE_PER_BLOCK: Duration = Duration::from_millis(2);
/// and after this at the latest.
const MAX_HEDGE_AFTER: Duration = Duration::from_millis(1000);
/// Hedges in flight: when everything is slow, asking twice makes it slower.
const MAX_HEDGES: usize = 4;
/// A chunk is read in places of 4 MiB, each preferably from one node.
const PLACE_BLOCKS: u32 = 64;
/// Shards reported already; forgotten when so many have gathered.
const MAX_REPORTED: usize = 4096;

/// What was reported, so that each bad shard is reported once, and how many hedges are in flight.
#[derive(Default)]
pub(super) struct Reports {
    sent: Mutex<HashSet<(u64, u64)>>,
    hedges: AtomicUsize,
    /// Since the start.
    all_hedges: AtomicUsize,
}

impl ChunkIo {
    /// The blocks `range` of a chunk, at most a frame of them, in a buffer of their own. NOT_FOUND or CORRUPT: every node
    /// answered and none has them whole; another code: some node did not answer.
    pub(crate) async fn read(&self, plan: &ChunkPlan, range: Range<u32>) -> Result<Bytes, Failure> {
        match Stripe::new(plan.redundancy.parse()?, plan.length) {
            Some(stripe) => self.read_coded(plan, &stripe, range).await,
            None => self.read_copies(plan, range).await,
        }
    }

    async fn read_copies(&self, plan: &ChunkPlan, range: Range<u32>) -> Result<Bytes, Failure> {
        let mut candidates: Vec<(Arc<Node>, &ShardPlan)> = plan
            .shards
            .iter()
            .filter_map(|shard| Some((self.nodes.get(shard.node.as_ref()?).ok()?, shard)))
            .collect();
        let lane = Lane::of_read(bytes_of(plan.length, &range).1);
        sort_for_read(plan.chunk.wrapping_add(u64::from(range.start / PLACE_BLOCKS)), lane, &mut candidates);
        candidates.reverse();
        let mut failures = Vec::new();
        let mut running = FuturesUnordered::new();
        let mut hedges = Vec::new();
        loop {
            if running.is_empty() {
                match candidates.pop() {
                    Some((node, shard)) => {
                        running.push(self.read_shard(node, plan, shard.index, plan.length, range.clone()))
                    }
                    None => return Err(unreadable(plan, failures)),
                }
            }
            let hedge_after = candidates.last().map(|(node, _)| hedge_after(node, lane, range.len()));
            tokio::select! {
                biased;
                Some(answer) = running.next() => match answer {
                    Ok(data) => return Ok(data),
                    Err(failure) => failures.push(failure),
                },
                () = tokio::time::sleep(hedge_after.unwrap_or_default()), if hedge_after.is_some() && hedges.is_empty() => {
                    if let (Some(hedge), Some((node, shard))) = (self.hedge(), candidates.pop()) {
                        tracing::debug!(chunk = plan.chunk, node = node.id, "a slow read is hedged");
                        running.push(self.read_shard(node, plan, shard.index, plan.length, range.clone()));
                        hedges.push(hedge);
                    }
                }
            }
        }
    }

    /// Reads that were asked of a second node because the first was slow, since the start.
    #[cfg(test)]
    pub(crate) fn hedges(&self) -> usize {
        self.reports.all_hedges.load(Ordering::Relaxed)
    }

    /// A place among the hedges in flight, or `None` when there are enough.
    pub(super) fn hedge(&self) -> Option<Hedge<'_>> {
        let hedge = Hedge(&self.reports.hedges);
        let is_free = self.reports.hedges.fetch_add(1, Ordering::Relaxed) < MAX_HEDGES;
        self.reports.all_hedges.fetch_add(usize::from(is_free), Ordering::Relaxed);
        is_free.then_some(hedge)
    }

    /// Some blocks of a shard of `length` bytes from one node. Its health, latency and bad shards are noted.
    pub(super) async fn read_shard(
        &self,
        node: Arc<Node>,
        plan: &ChunkPlan,
        index: u32,
        length: u64,
        range: Range<u32>,
    ) -> Result<Bytes, Failure> {
        let part = bytes_of(length, &range);
        // It says nothing of the daemon's health.
        if let Some(data) = self.read_here(&node, plan.chunk, index, length, part).await {
            return Ok(data);
        }
        let answer = fetch(self.cluster, &node, plan.chunk, index, part).await;
        match &answer {
            Ok(_) => node.succeeded(),
            Err(failure) if matches!(failure.code, Code::NotFound | Code::Corrupt) => {
                tracing::warn!(chunk = plan.chunk, node = node.id, %failure, "a shard is bad");
                self.report(plan.chunk, node.id, failure.code);
            }
            Err(failure) => {
                tracing::warn!(chunk = plan.chunk, node = node.id, %failure, "a read failed");
                node.failed(failure, self.cluster);
            }
        }
        answer
    }

    /// The blocks from the shard's file, where that is on this machine and all is well with it.
    async fn read_here(
        &self,
        node: &Arc<Node>,
        chunk: u64,
        index: u32,
        shard_length: u64,
        (offset, length): (u64, u64),
    ) -> Option<Bytes> {
        if !node.is_here {
            return None;
        }
        let lane = Lane::of_read(length);
        let mut under_way = node.begin_read(lane);
        let name = ShardName { node: node.id, chunk, index };
        let read = self.local.read(name, shard_length, offset, length);
        let Ok(data) = tokio::time::timeout(STALL_TIMEOUT, read).await else {
            let text = format!("the disk of {} gave nothing for {STALL_TIMEOUT:?}", node.name());
            node.failed(&Failure::new(Code::InputOutput, text), self.cluster);
            return None;
        };
        if data.is_some() {
            under_way.answered();
        }
        data
    }

    /// Tells the metadata server of a bad shard, once, without waiting for it.
    pub(crate) fn report(&self, chunk: u64, node: u64, code: Code) {
        {
            let mut sent = self.reports.sent.lock().expect("nothing panics while it holds the reports");
            if sent.len() >= MAX_REPORTED {
                sent.clear();
            }
            if !sent.insert((chunk, node)) {
                return;
            }
        }
        let meta = Arc::clone(&self.meta);
        tokio::spawn(async move {
            let op = request::Op::ReportShard(ReportShard { chunk, node, code: code.into() });
            if let Err(failure) = meta.change(op).await {
                tracing::warn!(chunk, node, %failure, "a bad shard could not be reported");
            }
        });
    }
}

/// Some blocks of a shard, offset and length in bytes, from its daemon, verified.
pub(super) async fn fetch(
    cluster: ClusterId,
    node: &Arc<Node>,
    chunk: u64,
    index: u32,
    (offset, length): (u64, u64),
) -> Result<Bytes, Failure> {
    let lane = Lane::of_read(length);
    let mut under_way = node.begin_read(lane);
    let request = ReadRequest { cluster: cluster.to_bytes(), chunk, index, offset, length };
    let read = node.exchange(lane, small_request::Op::Read(request));
    let answer = tokio::time::timeout(STALL_TIMEOUT, read).await.map_err(|_| {
        let text = format!("{} sent nothing for {STALL_TIMEOUT:?}", node.name());
        Failure::new(Code::InputOutput, text)
    })?;
    let small_reply::Result::Read(frame) = answer? else {
        return Err(node.explain(Failure::new(Code::InputOutput, "the answer to a read is something else")));
    };
    under_way.answered();
    verify(&frame.data, &frame.block_crc32c, length).map_err(|what| {
        Failure::new(Code::Corrupt, format!("{} sent {what} of chunk {chunk}", node.name()))
    })?;
    // What arrives lies somewhere in a buffer of the connection's, which may be several times as large.
    Ok(Bytes::copy_from_slice(&frame.data))
}

/// The failure to return when too little of a chunk could be read.
pub(super) fn unreadable(plan: &ChunkPlan, failures: Vec<Failure>) -> Failure {
    let definite = failures.iter().all(|failure| matches!(failure.code, Code::NotFound | Code::Corrupt));
    let code = match failures.first() {
        Some(first) if definite => first.code,
        _ => Code::Unavailable,
    };
    let reasons: Vec<&str> = failures.iter().map(|failure| failure.message.as_str()).collect();
    let reasons = if reasons.is_empty() { "the plan names no node".to_owned() } else { reasons.join("; ") };
    Failure::new(code, format!("chunk {} could not be read: {reasons}", plan.chunk))
}

/// How long to wait for the answer of others before `next` is asked too.
pub(super) fn hedge_after(next: &Node, lane: Lane, blocks: usize) -> Duration {
    let transfer = HEDGE_PER_BLOCK * blocks as u32;
    (next.latency(lane) * HEDGE_FACTOR + transfer).clamp(MIN_HEDGE_AFTER + transfer, MAX_HEDGE_AFTER)
}

/// Counts a hedge in flight.
pub(super) struct Hedge<'a>(&'a AtomicUsize);

impl Drop for Hedge<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Offset and length of some blocks of a shard of `length` bytes.
pub(super) fn bytes_of(length: u64, range: &Range<u32>) -> (u64, u64) {
    let at = |block: u32| (u64::from(block) * BLOCK_SIZE as u64).min(length);
    (at(range.start), at(range.end) - at(range.start))
}

/// Verifies the blocks of a frame of `length` bytes.
fn verify(data: &Bytes, sums: &[u32], length: u64) -> Result<(), &'static str> {
    if data.is_empty() || data.len() as u64 != length {
        return Err("a frame of a wrong length");
    }
    if data.len().div_ceil(BLOCK_SIZE) != sums.len() {
        return Err("a frame without its checksums");
    }
    let is_good = |(block, sum): (&[u8], &u32)| crc32c::crc32c(block) == *sum;
    if data.chunks(BLOCK_SIZE).zip(sums).all(is_good) { Ok(()) } else { Err("a corrupt block") }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::Instant;

    use dfs_proto::Labels;
    use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags};
    use tempfile::NamedTempFile;

    use super::*;
    use crate::chunk::PackedChunk;
    use crate::testing::{CLUSTER, Fault, LocalDoor, cluster_of, shard_file, unused_node};

    #[test]
    fn only_whole_and_verified_blocks_are_taken() {
        let data: Bytes = (0..BLOCK_SIZE + 10).map(|i| i as u8).collect();
        let sums: Vec<u32> = data.chunks(BLOCK_SIZE).map(crc32c::crc32c).collect();
        let take = |data: &Bytes, sums: &[u32], length: usize| verify(data, sums, length as u64);
        assert_eq!(take(&data, &sums, data.len()), Ok(()));
        assert!(take(&data, &sums, data.len() + 1).is_err(), "less than asked for");
        assert!(take(&data, &sums, data.len() - 1).is_err(), "more than asked for");
        assert!(take(&data, &sums[..1], data.len()).is_err());
        assert!(take(&Bytes::new(), &[], 5).is_err(), "nothing is no answer");
        let mut bad = data.to_vec();
        bad[BLOCK_SIZE + 3] ^= 1;
        assert_eq!(take(&Bytes::from(bad), &sums, data.len()).unwrap_err(), "a corrupt block");
    }

    /// While the first is held, every read of the second waits: the kernel asks for a permission that nobody gives.
    fn hold_reads(file: &NamedTempFile) -> (Fanotify, File) {
        let flags = InitFlags::FAN_CLASS_CONTENT | InitFlags::FAN_CLOEXEC;
        let held = Fanotify::init(flags, EventFFlags::O_RDONLY).expect("run as root: this test holds reads");
        held.mark(MarkFlags::FAN_MARK_ADD, MaskFlags::FAN_ACCESS_PERM, file, None::<&str>).unwrap();
        // Of what was open before, newer kernels do not ask.
        (held, file.reopen().unwrap())
    }

    #[tokio::test]
    async fn a_disk_that_hangs_makes_its_node_suspect_and_the_daemon_is_asked() {
        /// What the daemon takes for its answer, so that the node is seen to be suspect meanwhile.
        const ANSWER_AFTER: Duration = Duration::from_secs(1);
        let (meta, nodes) = cluster_of([unused_node()]);
        let node = &nodes[0];
        // Longer than what is tried on the thread that asks: it would be held, too.
        let data: Bytes = (0..4 * BLOCK_SIZE).map(|i| (i / 7) as u8).collect();
        let (file, place) = shard_file(&data);
        let (_held, file) = hold_reads(&file);
        let door = LocalDoor::open(node.id, &file, place);
        let io = ChunkIo::new(meta, CLUSTER, Labels::default());
        let shards = vec![ShardPlan { index: 0, node: Some(node.place()) }];
        let redundancy = "replicated:1".to_owned();
        let plan = ChunkPlan { chunk: 1, length: data.len() as u64, redundancy, shards, encoding: None };
        io.put(&PackedChunk::new(vec![data.clone()]), &plan).await.unwrap();
        node.break_with(Fault::Slow(ANSWER_AFTER));
        let started = Instant::now();
        let mut read = std::pin::pin!(io.read(&plan, 0..4));
        while io.suspects().is_empty() {
            assert!(started.elapsed() < STALL_TIMEOUT + ANSWER_AFTER, "nobody is suspect");
            let wait = tokio::time::timeout(Duration::from_millis(10), &mut read);
            assert!(wait.await.is_err(), "read before the node is suspect, after {:?}", started.elapsed());
        }
        assert!(started.elapsed() >= STALL_TIMEOUT, "suspect after {:?}", started.elapsed());
        assert_eq!(io.suspects(), [node.id]);
        assert_eq!((door.close(), node.take_counts().1), (1, 0), "so far only the file was asked for");
        assert!(read.await.unwrap() == data);
        assert_eq!(node.take_counts().1, 4, "the daemon was asked for all of it");
        assert!(started.elapsed() < STALL_TIMEOUT + 2 * ANSWER_AFTER, "{:?}", started.elapsed());
    }
}
