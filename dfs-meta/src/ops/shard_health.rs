//! Shards that are lost and found: what nodes and readers tell, written to the chunk's record and to what its node
//! should hold. Idempotent. A lost shard stays where it is; only repair may replace it, only garbage collection remove it.

use dfs_proto::{ChunkId, Failure, NodeId};

use super::Context;
use crate::store::keys;
use crate::store::records::{Chunk, ChunkState, Held, Shard};

/// What is wrong with a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// It is not there; it may turn up again.
    Missing,
    /// It failed its checksums; listing it does not heal it.
    Corrupt,
}

/// A shard is not to be read any more. Returns whether that is news. Chunks that are not sealed don't care.
pub(super) fn lose(cx: &mut Context<'_, '_>, node: NodeId, id: ChunkId, loss: Loss) -> Result<bool, Failure> {
    change(cx, node, id, |shard| {
        shard.lost = true;
        shard.corrupt |= loss == Loss::Corrupt;
    })
}

/// A missing shard has turned up. Returns whether that is news.
pub(super) fn find(cx: &mut Context<'_, '_>, node: NodeId, id: ChunkId) -> Result<bool, Failure> {
    change(cx, node, id, |shard| shard.lost = shard.corrupt)
}

fn change(
    cx: &mut Context<'_, '_>,
    node: NodeId,
    id: ChunkId,
    change: impl FnOnce(&mut Shard),
) -> Result<bool, Failure> {
    let Some(mut chunk) = cx.tx.get::<Chunk>(&keys::chunk(id))? else { return Ok(false) };
    if !matches!(chunk.state(), ChunkState::Sealed | ChunkState::Garbage) {
        return Ok(false);
    }
    let Some(shard) = chunk.shards.iter_mut().find(|shard| shard.node == node.0) else { return Ok(false) };
    let before = *shard;
    change(shard);
    let after = *shard;
    if after == before {
        return Ok(false);
    }
    cx.tx.put(keys::chunk(id), &chunk);
    if let Some(mut held) = cx.tx.get::<Held>(&keys::held(node, id))? {
        held.lost = after.lost;
        cx.tx.put(keys::held(node, id), &held);
    }
    Ok(true)
}
