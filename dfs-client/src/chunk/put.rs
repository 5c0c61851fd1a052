//! Writes one chunk to the nodes of its plan.
//!
//! A small chunk goes to all nodes at once, a large one to the first with the rest as its chain, and of a coded one each
//! node gets its own shard. When a node fails,
//! another one is asked for and gets the shard; fewer shards than the redundancy wants are accepted only when no node is left,
//! and never fewer than [`Redundancy::needed_to_write`]. A shard counts once its node said that it is durable.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dfs_proto::chunk::{ForwardTo, PutFrame, PutHeader, PutReply, small_reply, small_request};
use dfs_proto::limits::MAX_FRAME_DATA;
use dfs_proto::meta::{ChunkPlan, Replace, ShardPlan, reply, request};
use dfs_proto::{Code, Failure, Redundancy, Stripe, put};
use futures::future::join_all;
use futures::{Stream, StreamExt, stream};

use super::nodes::{Lane, Node};
use super::packed::Frame;
use super::{ChunkIo, PackedChunk, coded};

/// A node that takes no byte and gives no answer for so long has failed. One that is gone is noticed sooner, by pings;
/// this is for disks that hang, and longer than nodes wait for their own disk or for the next in the chain, so that the
/// one next to the trouble tells of it.
const STALL_TIMEOUT: Duration = Duration::from_secs(50);
/// The longest that one chunk may take to one chain.
const PUT_DEADLINE: Duration = Duration::from_secs(180);
/// How often a large put is looked at.
const WATCH_EVERY: Duration = Duration::from_millis(250);
/// Rounds of replacing failed nodes for one chunk.
const MAX_ROUNDS: usize = 8;

/// What became of a shard on its way to a node.
#[derive(Debug)]
pub(super) enum Outcome {
    Durable,
    /// The node failed: it is not asked again for this chunk.
    Failed(Failure),
    /// Something before the node failed: it may be asked again.
    Unknown,
}

/// A shard's index and the node that is to keep it.
pub(super) type Target = (u32, Arc<Node>);

impl ChunkIo {
    /// Writes `packed` as the chunk of `plan`; the shards that are durable, by index. CHUNK_REFUSED: the plan is over, take a
    /// fresh one. NO_SPACE: the nodes that are left are full.
    pub(crate) async fn put(
        &self,
        packed: &PackedChunk,
        plan: &ChunkPlan,
    ) -> Result<Vec<ShardPlan>, Failure> {
        let redundancy: Redundancy = plan.redundancy.parse()?;
        let mut durable: Vec<ShardPlan> = Vec::with_capacity(plan.shards.len());
        let mut missing: Vec<ShardPlan> = plan.shards.clone();
        let mut failed: Vec<u64> = Vec::new(); // nodes not to ask again for this chunk
        let mut last = Failure::new(Code::Unavailable, format!("no node is named for chunk {}", plan.chunk));
        for round in 0..MAX_ROUNDS {
            let (mut targets, mut away) = self.targets(&missing, &failed);
            if !away.is_empty() {
                match self.replace(plan.chunk, &away, &failed).await {
                    Ok(others) => {
                        missing.retain(|shard| !others.iter().any(|other| other.index == shard.index));
                        missing.extend(others);
                        (targets, away) = self.targets(&missing, &failed);
                    }
                    Err(failure) if failure.code == Code::ChunkRefused => return Err(failure),
                    Err(failure) => last = keep_no_space(last, failure),
                }
            }
            if durable.len() + targets.len() < redundancy.needed_to_write() as usize {
                // Better to ask those that failed a while ago than nobody.
                targets.extend(away.into_iter().filter(|(_, node)| !failed.contains(&node.id)));
            }
            if targets.is_empty() {
                break;
            }
            let outcomes = self.send(packed, plan.chunk, redundancy, &targets).await;
            for ((index, node), outcome) in targets.iter().zip(outcomes) {
                match outcome {
                    Outcome::Durable => {
                        node.succeeded();
                        durable.push(ShardPlan { index: *index, node: Some(node.place()) });
                        missing.retain(|shard| shard.index != *index);
                    }
                    Outcome::Failed(failure) => {
                        tracing::warn!(chunk = plan.chunk, node = node.id, round, %failure, "a put failed");
                        node.failed(&failure, self.cluster);
                        failed.push(node.id);
                        last = keep_no_space(last, failure);
                    }
                    Outcome::Unknown => {}
                }
            }
            if missing.is_empty() {
                break;
            }
        }
        if durable.len() >= redundancy.needed_to_write() as usize {
            durable.sort_unstable_by_key(|shard| shard.index);
            return Ok(durable);
        }
        let text = format!(
            "chunk {} is on {} of the {} nodes that {redundancy} needs at least: {}",
            plan.chunk,
            durable.len(),
            redundancy.needed_to_write(),
            last.message
        );
        Err(Failure::new(if last.code == Code::NoSpace { Code::NoSpace } else { Code::Unavailable }, text))
    }

    /// The shards to send now, and those whose nodes are to be replaced: they failed for this chunk or are suspect.
    fn targets(&self, missing: &[ShardPlan], failed: &[u64]) -> (Vec<Target>, Vec<Target>) {
        let now = Instant::now();
        let nodes = missing.iter().filter_map(|shard| {
            let address = shard.node.as_ref()?;
            match self.nodes.get(address) {
                Ok(node) => Some((shard.index, node)),
                Err(failure) => {
                    tracing::warn!(%failure, "a node cannot be asked");
                    None
                }
            }
        });
        nodes.partition(|(_, node)| !failed.contains(&node.id) && !node.is_suspect(now))
    }

    /// Asks for other nodes in the place of those `away`; what is new among the answer.
    async fn replace(&self, chunk: u64, away: &[Target], failed: &[u64]) -> Result<Vec<ShardPlan>, Failure> {
        let mut op =
            Replace { chunk, failed: away.iter().map(|(_, node)| node.id).collect(), avoid: self.suspects() };
        op.avoid.extend(failed);
        match self.meta.change(request::Op::Replace(op)).await? {
            reply::Result::Allocated(allocated) => {
                let shards =
                    allocated.chunks.into_iter().filter(|plan| plan.chunk == chunk).flat_map(|p| p.shards);
                let wanted = |shard: &ShardPlan| {
                    let new = |(index, node): &Target| {
                        *index == shard.index
                            && shard.node.as_ref().is_some_and(|other| other.node != node.id)
                    };
                    away.iter().any(new)
                };
                Ok(shards.filter(wanted).collect())
            }
            _ => Err(Failure::new(
                Code::InputOutput,
                "the metadata server answered a replace with something else",
            )),
        }
    }

    /// Sends the chunk to all targets.
    async fn send(
        &self,
        packed: &PackedChunk,
        chunk: u64,
        redundancy: Redundancy,
        targets: &[Target],
    ) -> Vec<Outcome> {
        let shard_header = |index, length, forward| PutHeader {
            cluster: self.cluster.to_bytes(),
            chunk,
            index,
            redundancy: redundancy.to_string(),
            length,
            forward,
        };
        if let Some(stripe) = Stripe::new(redundancy, packed.length()) {
            let header = |index, length| shard_header(index, length, Vec::new());
            return coded::send(packed, &stripe, header, targets, &self.buffers).await;
        }
        let header = |index, forward| shard_header(index, packed.length(), forward);
        if packed.length() <= MAX_FRAME_DATA as u64 {
            let puts = targets.iter().map(|(index, node)| async move {
                Outcome::of(put_small(node, packed, header(*index, Vec::new())).await, node, *index)
            });
            return join_all(puts).await;
        }
        let Some(((first_index, first), rest)) = targets.split_first() else { return Vec::new() };
        let forward =
            rest.iter().map(|(index, node)| ForwardTo { node: Some(node.place()), index: *index }).collect();
        let frames = stream::iter(packed.frames().to_vec());
        match put_to(first, header(*first_index, forward), frames).await {
            Ok(reply) => {
                let mut broken = false;
                let outcomes =
                    targets.iter().map(|(index, node)| match Outcome::of_reply(&reply, node, *index) {
                        // Behind a node that failed, the others had no chance.
                        Outcome::Failed(_) if broken => Outcome::Unknown,
                        Outcome::Failed(failure) => {
                            broken = true;
                            Outcome::Failed(failure)
                        }
                        other => other,
                    });
                outcomes.collect()
            }
            Err(failure) => std::iter::once(Outcome::Failed(failure))
                .chain(rest.iter().map(|_| Outcome::Unknown))
                .collect(),
        }
    }
}

/// Sends a chunk of one frame to one node and waits for its answer.
async fn put_small(node: &Arc<Node>, packed: &PackedChunk, header: PutHeader) -> Result<PutReply, Failure> {
    let _under_way = node.begin(Lane::Quick);
    let [frame] = packed.frames() else { unreachable!("a chunk that fits a frame is one") };
    let (data, block_crc32c) = (frame.data.clone(), frame.block_crc32c.clone());
    let put = small_request::Op::Put(PutFrame { header: Some(header), data, block_crc32c });
    match tokio::time::timeout(STALL_TIMEOUT, node.exchange(Lane::Quick, put)).await {
        Ok(Ok(small_reply::Result::Put(reply))) => Ok(reply),
        Ok(Ok(_)) => {
            Err(node.explain(Failure::new(Code::InputOutput, "the answer to a put is something else")))
        }
        Ok(Err(failure)) => Err(failure),
        Err(_) => Err(stalled(node)),
    }
}

/// Streams a shard to one node and waits for its answer while there is progress.
pub(super) async fn put_to(
    node: &Arc<Node>,
    header: PutHeader,
    frames: impl Stream<Item = Frame> + Send + Unpin + 'static,
) -> Result<PutReply, Failure> {
    let _under_way = node.begin(Lane::Bulk);
    let started = Instant::now();
    let progress_ms = Arc::new(AtomicU64::new(0));
    let mut header = Some(header);
    let taken = Arc::clone(&progress_ms);
    let frames = frames.map(move |frame| {
        taken.store(started.elapsed().as_millis() as u64, Ordering::Relaxed);
        PutFrame { header: header.take(), data: frame.data, block_crc32c: frame.block_crc32c }
    });
    let call = put::put(node.channel(Lane::Bulk), frames);
    tokio::pin!(call);
    loop {
        tokio::select! {
            answer = &mut call => return answer.map_err(|status| node.explain(status.into())),
            () = tokio::time::sleep(WATCH_EVERY) => {
                let last = Duration::from_millis(progress_ms.load(Ordering::Relaxed));
                let elapsed = started.elapsed();
                if elapsed - last.min(elapsed) > STALL_TIMEOUT || elapsed > PUT_DEADLINE {
                    return Err(stalled(node));
                }
            }
        }
    }
}

impl Outcome {
    /// Of a put to one node alone.
    pub(super) fn of(answer: Result<PutReply, Failure>, node: &Node, index: u32) -> Self {
        match answer {
            Ok(reply) => Self::of_reply(&reply, node, index),
            Err(failure) => Self::Failed(failure),
        }
    }

    /// What the answer says of one node.
    fn of_reply(reply: &PutReply, node: &Node, index: u32) -> Self {
        match reply.results.iter().find(|result| result.node == node.id && result.index == index) {
            None => Self::Failed(Failure::new(
                Code::Unavailable,
                format!("{} did not say whether the shard is durable", node.name()),
            )),
            Some(result) => match result.error.clone().map(Failure::from) {
                None => Self::Durable,
                Some(failure) => Self::Failed(failure),
            },
        }
    }
}

fn stalled(node: &Node) -> Failure {
    node.explain(Failure::new(Code::InputOutput, format!("did not take chunk data for {STALL_TIMEOUT:?}")))
}

/// Of two failures the one that says more to the caller: a full disk.
fn keep_no_space(before: Failure, now: Failure) -> Failure {
    if before.code == Code::NoSpace { before } else { now }
}
