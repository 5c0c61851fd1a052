//! Where a file's bytes are: its extents with the nodes of their chunks' shards, for reading.
//!
//! Extents are shown whole, also where the range asked for begins or ends inside one. Shards reported lost are left
//! out, unless too few others are left: then any of them may still hold the blocks somebody wants.

use std::collections::HashMap;

use dfs_proto::meta::{ChunkPlan, Plan, PlanReply, ShardPlan};
use dfs_proto::{ChunkId, Code, Failure, FileKind, Ino, NodeAddress, NodeId, Redundancy, limits};
use prost::Message;

use super::{Context, extents, inode};
use crate::live::nodes;
use crate::store::keys;
use crate::store::records::{self, Chunk, Inode, Shard};

/// Extents that come with an open, so that a small file needs no call more.
const HEAD_EXTENTS: usize = 64;
/// Chunks and nodes in one answer take at most so many bytes: messages are bounded.
const MAX_CHUNK_PLAN_BYTES: usize = 2 * 1024 * 1024;

/// EINVAL for what is not a regular file, ESTALE when it is gone.
pub(super) fn run(cx: &mut Context<'_, '_>, request: &Plan) -> Result<PlanReply, Failure> {
    let ino = Ino(request.ino);
    let inode = load_regular(cx, ino)?;
    let end = request.offset.saturating_add(request.length).min(limits::MAX_FILE_SIZE);
    let max_extents = request.max_extents.clamp(1, limits::MAX_PLAN_EXTENTS) as usize;
    covering(cx, ino, &inode, request.offset, end, max_extents)
}

/// The first extents of a regular file, to go with the answer to an open.
pub fn head(cx: &mut Context<'_, '_>, ino: Ino, inode: &Inode) -> Result<PlanReply, Failure> {
    covering(cx, ino, inode, 0, limits::MAX_FILE_SIZE, HEAD_EXTENTS)
}

/// Loads a regular file; EISDIR, EINVAL.
pub fn load_regular(cx: &mut Context<'_, '_>, ino: Ino) -> Result<Inode, Failure> {
    let inode = inode::load(cx, ino)?;
    match inode.kind() {
        FileKind::Regular => Ok(inode),
        FileKind::Directory => Err(Failure::new(Code::IsADirectory, format!("inode {ino} is a directory"))),
        _ => Err(Failure::new(Code::Invalid, format!("inode {ino} is not a regular file"))),
    }
}

/// Up to `max_extents` extents that overlap `offset..end`, and how far that is complete.
fn covering(
    cx: &mut Context<'_, '_>,
    ino: Ino,
    inode: &Inode,
    offset: u64,
    end: u64,
    max_extents: usize,
) -> Result<PlanReply, Failure> {
    let mut found = match inode.allocated_bytes {
        0 => Vec::new(),
        _ => extents::overlapping(cx, ino, &(offset..end), max_extents + 1)?,
    };
    let mut covered_end = end.max(offset);
    if found.len() > max_extents {
        covered_end = found[max_extents].offset;
        found.truncate(max_extents);
    }
    let mut nodes = Nodes::default();
    let mut chunks: HashMap<u64, ()> = HashMap::new();
    let mut plans = Vec::new();
    let mut plan_bytes = 0;
    for (at, extent) in found.iter().enumerate() {
        if chunks.insert(extent.chunk, ()).is_some() {
            continue;
        }
        let plan = chunk_plan(cx, &mut nodes, ChunkId(extent.chunk))?;
        plan_bytes += plan.encoded_len();
        if plan_bytes > MAX_CHUNK_PLAN_BYTES && at > 0 {
            covered_end = extent.offset;
            found.truncate(at);
            break;
        }
        plans.push(plan);
    }
    Ok(PlanReply { attr: Some(inode::attr(ino, inode)), extents: found, chunks: plans, covered_end })
}

fn chunk_plan(cx: &mut Context<'_, '_>, nodes: &mut Nodes, id: ChunkId) -> Result<ChunkPlan, Failure> {
    let chunk = cx.tx.get::<Chunk>(&keys::chunk(id))?.ok_or_else(|| {
        Failure::new(Code::Corrupt, format!("the metadata store's chunk {id} is pointed to but not there"))
    })?;
    nodes.plan(cx, id, &chunk)
}

/// Nodes' addresses, each looked up once in an operation.
#[derive(Default)]
pub(super) struct Nodes {
    addresses: HashMap<NodeId, NodeAddress>,
}

impl Nodes {
    /// Where a chunk's shards are that are worth reading, ordered by index.
    pub(super) fn plan(
        &mut self,
        cx: &mut Context<'_, '_>,
        id: ChunkId,
        chunk: &Chunk,
    ) -> Result<ChunkPlan, Failure> {
        let redundancy: Redundancy = chunk.redundancy.parse()?;
        let good = chunk.shards.iter().filter(|shard| !shard.lost).count();
        // Where too little is left, what is lost may still have some bytes.
        let enough = good >= redundancy.needed_to_read() as usize;
        self.plan_of(cx, id, chunk, |shard| !shard.lost || !enough)
    }

    /// The same for some of a chunk's shards.
    pub(super) fn plan_of(
        &mut self,
        cx: &mut Context<'_, '_>,
        id: ChunkId,
        chunk: &Chunk,
        is_told: impl Fn(&Shard) -> bool,
    ) -> Result<ChunkPlan, Failure> {
        let mut shards = Vec::with_capacity(chunk.shards.len());
        for shard in chunk.shards.iter().filter(|shard| is_told(shard)) {
            let node = Some(self.address(cx, NodeId(shard.node))?);
            shards.push(ShardPlan { index: shard.index, node });
        }
        shards.sort_by_key(|shard| shard.index);
        Ok(ChunkPlan {
            chunk: id.0,
            length: chunk.length,
            redundancy: chunk.redundancy.clone(),
            shards,
            encoding: chunk.encoding.clone(),
        })
    }

    fn address(&mut self, cx: &mut Context<'_, '_>, id: NodeId) -> Result<NodeAddress, Failure> {
        if let Some(address) = self.addresses.get(&id) {
            return Ok(address.clone());
        }
        let address = match cx.live.nodes.get(id) {
            Some(node) => node.address.clone(),
            None => {
                let record = cx.tx.get::<records::Node>(&keys::node(id))?.ok_or_else(|| {
                    Failure::new(
                        Code::Corrupt,
                        format!("the metadata store's node {id} is named but not there"),
                    )
                })?;
                nodes::address(id, &record)
            }
        };
        self.addresses.insert(id, address.clone());
        Ok(address)
    }
}

#[cfg(test)]
mod tests {
    use dfs_proto::meta::request;

    use super::super::testing::{Bench, answer};
    use super::*;

    #[test]
    fn a_plan_says_how_far_it_goes() {
        let mut bench = Bench::with_nodes(3);
        let ino = bench.file("f");
        let chunk = bench.write(ino, &[(0, 100), (200, 100), (400, 100)]);
        let mut plan = |offset, length, max_extents| {
            let op = Plan { ino: ino.0, offset, length, max_extents };
            let plan = answer!(bench.run(request::Op::Plan(op)), Plan).unwrap();
            assert!(plan.chunks.iter().all(|plan| plan.chunk == chunk));
            assert_eq!(plan.chunks.len(), usize::from(!plan.extents.is_empty()), "each chunk once");
            let ranges: Vec<_> = plan.extents.iter().map(|extent| (extent.offset, extent.end())).collect();
            (ranges, plan.covered_end)
        };
        assert_eq!(plan(0, 1000, 10), (vec![(0, 100), (200, 300), (400, 500)], 1000));
        assert_eq!(
            plan(0, 1000, 2),
            (vec![(0, 100), (200, 300)], 400),
            "the hole up to the next is known too"
        );
        assert_eq!(plan(250, 150, 10), (vec![(200, 300)], 400), "whole extents");
        assert_eq!(plan(100, 100, 10), (vec![], 200));
        assert_eq!(plan(100, 0, 0), (vec![], 100));
        assert_eq!(plan(450, u64::MAX, 0), (vec![(400, 500)], limits::MAX_FILE_SIZE));
        assert_eq!(plan(u64::MAX, u64::MAX, 1), (vec![], u64::MAX));
        let directory = Plan { ino: 1, ..Plan::default() };
        assert_eq!(bench.run(request::Op::Plan(directory)).unwrap_err().code, Code::IsADirectory);
    }

    #[test]
    fn an_answer_fits_a_message() {
        let mut bench = Bench::with_nodes(3);
        for node in 1..=3 {
            bench.join(node, &"h".repeat(250));
        }
        let ino = bench.file("f");
        for at in 0..2500 {
            bench.write(ino, &[(at * 100, 100)]);
        }
        let plan = bench.plan(ino);
        assert!(plan.encoded_len() < limits::MAX_MESSAGE / 2 + (1 << 20), "{}", plan.encoded_len());
        assert!(plan.extents.len() > 100 && plan.extents.len() < 2500, "{}", plan.extents.len());
        assert_eq!(plan.covered_end, plan.extents.last().unwrap().end());
        assert_eq!(plan.chunks.len(), plan.extents.len());
    }
}
