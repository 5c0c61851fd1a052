//! Other nodes for shards of a planned chunk whose nodes failed the writer.
//!
//! Failed nodes stay in the chunk's record, since they may hold a piece of it all the same: what they have is removed
//! when the chunk is sealed or given up.

use dfs_proto::meta::{Allocated, Replace};
use dfs_proto::{ChunkId, Class, Code, Failure, Labels, NodeId, Redundancy};

use super::allocate::{self, Room};
use super::{Context, garbage};
use crate::cluster::Wanted;
use crate::live::nodes;
use crate::store::keys;
use crate::store::records::{self, Chunk, ChunkState, Shard};

/// Nodes that one chunk may have had; a writer that failed on more should begin anew.
const MAX_SHARDS: usize = 64;

/// The chunk as it is planned now: shards whose nodes failed are elsewhere, or left out where no other node is left.
/// CHUNK_REFUSED when it is not planned any more; NO_SPACE and TOO_FEW_NODES when fewer shards are left than a commit
/// needs.
pub(super) fn run(cx: &mut Context<'_, '_>, request: &Replace) -> Result<Allocated, Failure> {
    allocate::check_avoid(&request.avoid)?;
    allocate::check_avoid(&request.failed)?;
    let id = ChunkId(request.chunk);
    let chunk = cx.tx.get::<Chunk>(&keys::chunk(id))?;
    let Some(mut chunk) = chunk.filter(|chunk| chunk.state() == ChunkState::Planned) else {
        let message = format!("chunk {id} is not planned any more: allocate another and write it again");
        return Err(Failure::new(Code::ChunkRefused, message));
    };
    let (redundancy, class): (Redundancy, Class) = (chunk.redundancy.parse()?, chunk.class.parse()?);
    for shard in &mut chunk.shards {
        shard.lost |= request.failed.contains(&shard.node);
    }
    let standing: Vec<Shard> = chunk.shards.iter().filter(|shard| !shard.lost).copied().collect();
    let mut open: Vec<u32> = (0..redundancy.shards()).collect();
    open.retain(|index| standing.iter().all(|shard| shard.index != *index));
    if chunk.shards.len() + open.len() > MAX_SHARDS {
        let message = format!("chunk {id} has failed on too many nodes: allocate another and write it again");
        return Err(Failure::new(Code::ChunkRefused, message));
    }

    let mut taken = Vec::with_capacity(standing.len());
    for shard in &standing {
        taken.push((NodeId(shard.node), labels(cx, NodeId(shard.node))?));
    }
    let had: Vec<NodeId> = chunk.shards.iter().map(|shard| NodeId(shard.node)).collect();
    let needed = (redundancy.needed_to_write() as usize).saturating_sub(standing.len());
    let wanted = Wanted { chunk: id, shards: open.len(), taken: &taken, near: "" };
    let nodes = Room::new(cx, &class, redundancy, &request.avoid, &had).place(cx, wanted, needed)?;
    chunk.shards.extend(open.iter().zip(nodes).map(|(&index, node)| allocate::planned(index, node)));

    garbage::dequeue(cx, id, &mut chunk);
    garbage::enqueue(cx, id, &mut chunk, cx.settings.plan_lifetime);
    cx.tx.put(keys::chunk(id), &chunk);
    allocate::answer(cx, &[(id, chunk)])
}

fn labels(cx: &mut Context<'_, '_>, id: NodeId) -> Result<Labels, Failure> {
    if let Some(node) = cx.live.nodes.get(id) {
        return Ok(node.labels());
    }
    let record = cx.tx.get::<records::Node>(&keys::node(id))?.unwrap_or_default();
    Ok(nodes::address(id, &record).labels.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use dfs_proto::meta::{Commit, request};

    use super::super::testing::{Bench, answer};
    use super::*;

    fn replace(bench: &mut Bench, chunk: u64, failed: &[u64]) -> Result<Vec<(u32, u64)>, Failure> {
        let op = Replace { chunk, failed: failed.to_vec(), avoid: vec![] };
        let allocated = answer!(bench.run(request::Op::Replace(op)), Allocated)?;
        Ok(shards(&allocated))
    }

    fn shards(allocated: &Allocated) -> Vec<(u32, u64)> {
        let shards = allocated.chunks[0].shards.iter();
        shards.map(|shard| (shard.index, shard.node.as_ref().unwrap().node)).collect()
    }

    #[test]
    fn a_failed_node_gives_its_index_to_another_until_none_is_left() {
        let mut bench = Bench::with_nodes(5);
        let allocated = bench.allocate(1).unwrap();
        let chunk = allocated.chunks[0].chunk;
        let first = shards(&allocated);
        let second = replace(&mut bench, chunk, &[first[1].1]).unwrap();
        assert_eq!((second[0], second[2]), (first[0], first[2]));
        assert!(second[1].0 == 1 && first.iter().all(|shard| shard.1 != second[1].1));
        assert_eq!(replace(&mut bench, chunk, &[first[1].1]).unwrap(), second, "asked again");
        let third = replace(&mut bench, chunk, &[second[1].1]).unwrap();
        let fourth = replace(&mut bench, chunk, &[third[1].1]).unwrap();
        assert_eq!(fourth, [first[0], first[2]], "all five were tried");
        assert_eq!(replace(&mut bench, chunk, &[first[0].1]).unwrap_err().code, Code::TooFewNodes);

        let all: BTreeSet<u64> = (1..=5).collect();
        let sealed =
            Bench::sealed(&dfs_proto::meta::ChunkPlan { shards: vec![], ..allocated.chunks[0].clone() }, 9);
        let kept = [first[0], first[2]];
        let shards = kept.iter().map(|&(index, node)| dfs_proto::meta::SealedShard { index, node }).collect();
        let sealed = dfs_proto::meta::SealedChunk { shards, ..sealed };
        let ino = bench.file("f");
        let extent = dfs_proto::meta::Extent { offset: 0, length: 9, chunk, chunk_offset: 0 };
        let file =
            dfs_proto::meta::FileCommit { ino: ino.0, extents: vec![extent], size: 9, ..Default::default() };
        bench.commit(Commit { chunks: vec![sealed], files: vec![file] }).unwrap();
        for node in all {
            let orders = bench.beat(node, 1 << 40).delete;
            let holds = kept.iter().any(|shard| shard.1 == node);
            assert_eq!(orders, if holds { vec![] } else { vec![chunk] }, "node {node}");
        }
        assert_eq!(replace(&mut bench, chunk, &[]).unwrap_err().code, Code::ChunkRefused);
    }
}
