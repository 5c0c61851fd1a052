//! Fresh chunk ids with the nodes to write their shards to. Planned chunks that are not committed in time are garbage.

use dfs_proto::meta::{Allocate, Allocated};
use dfs_proto::{ChunkId, Class, Code, Failure, Labels, NodeId, Redundancy, limits};

use super::plan::Nodes;
use super::{Context, counters, garbage};
use crate::cluster::{self, Candidate, Wanted};
use crate::store::keys;
use crate::store::records::{Chunk, ChunkState, Shard};

/// Nodes that a client may ask to avoid.
const MAX_AVOID: usize = 1024;

/// EINVAL; NO_SPACE when the nodes are full, TOO_FEW_NODES when too few are there. Where not all chunks asked for find
/// room, fewer come back; where not all shards of a chunk do, fewer shards, but never fewer than a commit needs.
pub(super) fn run(cx: &mut Context<'_, '_>, request: &Allocate) -> Result<Allocated, Failure> {
    let class: Class = request.class.parse()?;
    if request.count == 0 || request.count as usize > limits::MAX_COMMIT_CHUNKS {
        let message = format!("an allocation is of 1 to {} chunks", limits::MAX_COMMIT_CHUNKS);
        return Err(Failure::new(Code::Invalid, message));
    }
    check_avoid(&request.avoid)?;
    let near = writer_host(cx, request.client.as_ref());
    let nodes = cx.live.nodes.iter().map(|(id, node)| (id, node.labels()));
    let long = cluster::redundancy_of(&class, nodes);
    let redundancy = if request.is_short { long.as_copies() } else { long };
    let mut room = Room::new(cx, &class, redundancy, &request.avoid, &[]);
    let mut made: Vec<(ChunkId, Chunk)> = Vec::new();
    for _ in 0..request.count {
        let id = ChunkId(counters::take(cx, counters::LAST_CHUNK)?);
        let wanted = Wanted { chunk: id, shards: redundancy.shards() as usize, taken: &[], near: &near };
        let nodes = match room.place(cx, wanted, redundancy.needed_to_write() as usize) {
            Ok(nodes) => nodes,
            Err(failure) if made.is_empty() => return Err(failure),
            Err(_) => break,
        };
        let shards = nodes.iter().enumerate();
        let mut chunk = Chunk {
            redundancy: redundancy.to_string(),
            class: class.to_string(),
            shards: shards.map(|(index, node)| planned(index as u32, *node)).collect(),
            ..Chunk::default()
        };
        chunk.set_state(ChunkState::Planned);
        garbage::enqueue(cx, id, &mut chunk, cx.settings.plan_lifetime);
        cx.tx.put(keys::chunk(id), &chunk);
        made.push((id, chunk));
    }
    answer(cx, &made)
}

/// A list from the wire is bounded.
pub(super) fn check_avoid(avoid: &[u64]) -> Result<(), Failure> {
    match avoid.len() {
        0..=MAX_AVOID => Ok(()),
        _ => Err(Failure::new(Code::Invalid, format!("at most {MAX_AVOID} nodes can be avoided"))),
    }
}

/// A shard that is to be written.
pub(super) fn planned(index: u32, node: NodeId) -> Shard {
    Shard { index, node: node.0, ..Shard::default() }
}

/// Plans for the client, and the space promised: nothing fails after that.
pub(super) fn answer(cx: &mut Context<'_, '_>, made: &[(ChunkId, Chunk)]) -> Result<Allocated, Failure> {
    let mut nodes = Nodes::default();
    let plans: Result<Vec<_>, Failure> = made.iter().map(|(id, chunk)| nodes.plan(cx, *id, chunk)).collect();
    let chunks = plans?;
    for (id, chunk) in made {
        let redundancy: Redundancy = chunk.redundancy.parse()?;
        for shard in &chunk.shards {
            // Nobody knows its length yet.
            let bytes = if shard.lost { 0 } else { redundancy.max_shard_length() };
            cx.live.nodes.promise(NodeId(shard.node), *id, bytes);
        }
    }
    Ok(Allocated { chunks, plan_lifetime_ms: cx.settings.plan_lifetime.as_millis() as u64 })
}

/// The host to place the first shard on, where the setting says so.
fn writer_host(cx: &Context<'_, '_>, client: Option<&Labels>) -> String {
    match client {
        Some(labels) if cx.settings.place_near_writer => labels.host.clone(),
        _ => String::new(),
    }
}

/// The nodes that may get shards, with the space that is left on them as an operation goes on.
pub(super) struct Room<'a> {
    /// Sorted by node.
    candidates: Vec<Candidate>,
    avoid: Vec<NodeId>,
    never: Vec<NodeId>,
    class: &'a Class,
    /// What a shard may come to take.
    shard_bytes: u64,
}

impl<'a> Room<'a> {
    /// All that are up, writable, in the zones of `class` and not full, but for `never`; those to avoid are there for want
    /// of others only.
    pub(super) fn new(
        cx: &Context<'_, '_>,
        class: &'a Class,
        redundancy: Redundancy,
        avoid: &[u64],
        never: &[NodeId],
    ) -> Self {
        let shard_bytes = redundancy.max_shard_length();
        let mut room = Self {
            candidates: cx.live.nodes.candidates(cx.uptime, cx.settings.patience(), shard_bytes),
            avoid: avoid.iter().copied().map(NodeId).collect(),
            never: never.to_vec(),
            class,
            shard_bytes,
        };
        let mut candidates = std::mem::take(&mut room.candidates);
        candidates.retain(|candidate| room.may_take(candidate));
        Self { candidates, ..room }
    }

    fn may_take(&self, candidate: &Candidate) -> bool {
        !self.never.contains(&candidate.node) && self.class.allows_zone(&candidate.zone)
    }

    /// Nodes for `wanted`, at least `needed` of them.
    pub(super) fn place(
        &mut self,
        cx: &Context<'_, '_>,
        wanted: Wanted<'_>,
        needed: usize,
    ) -> Result<Vec<NodeId>, Failure> {
        let policy = &cx.settings.placement;
        let liked: Vec<Candidate> = self
            .candidates
            .iter()
            .filter(|candidate| !self.avoid.contains(&candidate.node))
            .cloned()
            .collect();
        let mut chosen = cluster::place(policy, wanted, &liked);
        if chosen.len() < needed {
            chosen = cluster::place(policy, wanted, &self.candidates);
        }
        if chosen.len() < needed {
            return Err(self.too_few(cx, needed, chosen.len()));
        }
        for candidate in &mut self.candidates {
            if chosen.contains(&candidate.node) {
                candidate.free_bytes -= self.shard_bytes;
            }
        }
        self.candidates.retain(|candidate| candidate.free_bytes >= self.shard_bytes);
        Ok(chosen)
    }

    /// Why there are too few nodes: that they are full is the user's problem, that they are away passes.
    fn too_few(&self, cx: &Context<'_, '_>, needed: usize, found: usize) -> Failure {
        let up = cx.live.nodes.candidates(cx.uptime, cx.settings.patience(), 0);
        let up = up.iter().filter(|candidate| self.may_take(candidate)).count();
        if up >= needed {
            let message = format!(
                "the cluster is full: {found} of {up} chunk daemons have room, a chunk needs {needed}; add chunk \
                 daemons or delete files"
            );
            return Failure::new(Code::NoSpace, message);
        }
        let message = format!(
            "{up} chunk daemons are there that can take data of class {}, a chunk needs {needed}: see `dfs-admin \
             status`",
            self.class
        );
        Failure::new(Code::TooFewNodes, message)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use dfs_proto::meta::{NodeHeartbeat, Replace, request};

    use super::super::testing::{Bench, answer};
    use super::*;

    fn allocate(bench: &mut Bench, allocate: Allocate) -> Result<Vec<BTreeSet<u64>>, Failure> {
        let allocated = answer!(bench.run(request::Op::Allocate(allocate)), Allocated)?;
        let nodes = |shards: &[dfs_proto::meta::ShardPlan]| -> BTreeSet<u64> {
            shards.iter().map(|shard| shard.node.as_ref().unwrap().node).collect()
        };
        Ok(allocated.chunks.iter().map(|chunk| nodes(&chunk.shards)).collect())
    }

    fn three_copies(count: u32, avoid: &[u64]) -> Allocate {
        Allocate { class: "replicated:3".into(), count, avoid: avoid.to_vec(), ..Allocate::default() }
    }

    #[test]
    fn bad_requests_are_told_so() {
        let mut bench = Bench::with_nodes(3);
        let bad = |change: &dyn Fn(&mut Allocate)| {
            let mut request = three_copies(1, &[]);
            change(&mut request);
            request
        };
        for request in [
            bad(&|request| request.class = "raid5".into()),
            bad(&|request| request.count = 0),
            bad(&|request| request.count = 257),
            bad(&|request| request.avoid = vec![1; MAX_AVOID + 1]),
        ] {
            assert_eq!(allocate(&mut bench, request).unwrap_err().code, Code::Invalid);
        }
        assert_eq!(allocate(&mut bench, three_copies(256, &[])).unwrap().len(), 256);
    }

    #[test]
    fn fewer_nodes_will_do_down_to_one_to_spare() {
        let mut bench = Bench::with_nodes(4);
        for _ in 0..50 {
            let [nodes] = &allocate(&mut bench, three_copies(1, &[2])).unwrap()[..] else {
                panic!("one chunk")
            };
            assert_eq!(*nodes, BTreeSet::from([1, 3, 4]));
        }
        let degraded = allocate(&mut bench, three_copies(1, &[2, 4])).unwrap();
        assert_eq!(degraded, [BTreeSet::from([1, 3])]);
        let forced = allocate(&mut bench, three_copies(1, &[1, 2, 4])).unwrap();
        assert_eq!(forced[0].len(), 3, "with one node alone nothing could be written");

        let fenced = NodeHeartbeat { node: 1, epoch: 1, read_only: true, ..NodeHeartbeat::default() };
        bench.run(request::Op::NodeHeartbeat(fenced)).unwrap();
        assert_eq!(allocate(&mut bench, three_copies(1, &[])).unwrap(), [BTreeSet::from([2, 3, 4])]);
        bench.uptime += bench.settings.node_suspect_after;
        bench.beat(3, 1 << 40);
        let failure = allocate(&mut bench, three_copies(1, &[])).unwrap_err();
        assert_eq!(failure.code, Code::TooFewNodes, "{failure}");
        bench.beat(4, 1 << 40);
        assert_eq!(allocate(&mut bench, three_copies(1, &[])).unwrap(), [BTreeSet::from([3, 4])]);
    }

    fn of_class(class: &str, is_short: bool) -> Allocate {
        Allocate { class: class.into(), is_short, ..three_copies(1, &[]) }
    }

    #[test]
    fn a_class_decides_how_many_shards_and_where() {
        let mut bench = Bench::with_nodes(0);
        for number in 1..=8 {
            let zone = if number <= 6 { "a" } else { "b" };
            bench.join_at(
                number,
                Labels { host: format!("h{number}"), zone: zone.into(), ..Labels::default() },
            );
        }
        let kept_as = |bench: &Bench, id: u64| {
            let chunk = bench.chunk(id).unwrap();
            (chunk.redundancy, chunk.class)
        };
        let cases = [
            (of_class("ec:4+2", false), 6, "ec:4+2"),
            (of_class("ec:4+2", true), 3, "replicated:3"),
            (of_class("auto", false), 6, "ec:4+2"),
            (of_class("auto,zone=a", false), 6, "ec:4+2"),
            (of_class("replicated:2,zone=b", true), 2, "replicated:2"),
        ];
        for (id, (request, shards, redundancy)) in (1..).zip(cases) {
            let nodes = allocate(&mut bench, request.clone()).unwrap().remove(0);
            assert_eq!(nodes.len(), shards, "{request:?}");
            let allowed = |node: &u64| match request.class.split_once("zone=") {
                Some((_, zone)) => (*node <= 6) == (zone == "a"),
                None => true,
            };
            assert!(nodes.iter().all(allowed), "{request:?}: {nodes:?}");
            assert_eq!(kept_as(&bench, id), (redundancy.to_owned(), request.class));
        }
        let failure = allocate(&mut bench, of_class("replicated:3,zone=c", false)).unwrap_err();
        assert_eq!(failure.code, Code::TooFewNodes, "{failure}");
        let failed = Replace { chunk: 5, failed: vec![7], avoid: vec![] };
        let failure = bench.run(request::Op::Replace(failed)).unwrap_err();
        assert_eq!(failure.code, Code::TooFewNodes, "another node would be in another zone: {failure}");
    }

    #[test]
    fn a_coded_chunk_promises_its_shards_only() {
        let mut bench = Bench::with_nodes(6);
        for node in 1..=6 {
            bench.beat(node, limits::MAX_CHUNK_LENGTH);
        }
        let four = Allocate { count: 9, ..of_class("ec:4+2", false) };
        assert_eq!(allocate(&mut bench, four).unwrap().len(), 4, "each shard is a quarter at most");
    }

    #[test]
    fn a_burst_does_not_promise_more_than_there_is() {
        let mut bench = Bench::with_nodes(3);
        for node in 1..=3 {
            bench.beat(node, 10 * limits::MAX_CHUNK_LENGTH);
        }
        assert_eq!(allocate(&mut bench, three_copies(7, &[])).unwrap().len(), 7);
        assert_eq!(allocate(&mut bench, three_copies(7, &[])).unwrap().len(), 3, "so many more have room");
        let failure = allocate(&mut bench, three_copies(1, &[])).unwrap_err();
        assert_eq!(failure.code, Code::NoSpace, "{failure}");
        bench.beat(1, limits::MAX_CHUNK_LENGTH);
        bench.beat(2, limits::MAX_CHUNK_LENGTH - 1);
        bench.beat(3, limits::MAX_CHUNK_LENGTH);
        assert_eq!(allocate(&mut bench, three_copies(9, &[])).unwrap(), [BTreeSet::from([1, 3])]);
    }
}
