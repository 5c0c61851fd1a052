//! Garbage collection: chunks that nothing points to, and planned ones whose commit never came.
//!
//! A chunk waits in the queue (`G`) until it is due; then its shards are ordered off their nodes (`R`), and its record
//! goes with the last of them. It fails closed: a chunk with a live byte or a back-pointer, looked at in the same
//! transaction, is never removed, and what does not add up is left alone and told.

use std::time::Duration;

use dfs_proto::{ChunkId, Failure, NodeId};

use super::{Context, Progress};
use crate::store::keys;
use crate::store::records::{Chunk, ChunkState, Marker};

/// Chunks looked at in one operation.
const PIECE: usize = 256;

/// One bounded piece of removing what is due.
pub(super) fn collect(cx: &mut Context<'_, '_>) -> Result<Progress, Failure> {
    let due = cx.tx.scan_keys(&keys::garbage_due(cx.now_ms()), PIECE)?;
    let progress = if due.len() == PIECE { Progress::More } else { Progress::Idle };
    for key in due {
        let (due_ms, id) = keys::garbage_parts(&key);
        cx.tx.delete(key);
        let Some(mut chunk) = cx.tx.get::<Chunk>(&keys::chunk(id))? else { continue };
        let waiting = matches!(chunk.state(), ChunkState::Planned | ChunkState::Garbage);
        if !waiting || chunk.due_ms != due_ms {
            continue;
        }
        if chunk.live_bytes != 0 || !cx.tx.is_empty(&keys::chunk_users(id))? {
            tracing::error!(
                chunk = id.0,
                live_bytes = chunk.live_bytes,
                "a chunk in use is in the garbage queue; kept"
            );
            continue;
        }
        remove_shards(cx, id, &mut chunk);
    }
    Ok(progress)
}

/// A sealed chunk without live bytes is garbage from now on. The caller puts the record.
pub(super) fn discard(cx: &mut Context<'_, '_>, id: ChunkId, chunk: &mut Chunk) {
    debug_assert_eq!(chunk.live_bytes, 0, "chunk {id} is in use");
    chunk.set_state(ChunkState::Garbage);
    enqueue(cx, id, chunk, cx.settings.garbage_grace);
}

/// Makes a chunk due after `delay`. The caller puts the record.
pub(super) fn enqueue(cx: &mut Context<'_, '_>, id: ChunkId, chunk: &mut Chunk, delay: Duration) {
    chunk.due_ms = cx.now_ms().saturating_add(delay.as_millis() as u64);
    cx.tx.put(keys::garbage(chunk.due_ms, id), &Marker {});
}

/// Takes a chunk out of the queue. The caller puts the record.
pub(super) fn dequeue(cx: &mut Context<'_, '_>, id: ChunkId, chunk: &mut Chunk) {
    cx.tx.delete(keys::garbage(chunk.due_ms, id));
    chunk.due_ms = 0;
}

/// Orders a chunk's shards off their nodes, those that were only planned too.
fn remove_shards(cx: &mut Context<'_, '_>, id: ChunkId, chunk: &mut Chunk) {
    chunk.set_state(ChunkState::Removing);
    chunk.due_ms = 0;
    if chunk.shards.is_empty() {
        cx.tx.delete(keys::chunk(id));
        return;
    }
    for shard in &chunk.shards {
        cx.tx.put(keys::removal(NodeId(shard.node), id), &Marker {});
    }
    cx.tx.put(keys::chunk(id), chunk);
}

/// A node says that an ordered removal is done. Without such an order nothing is forgotten.
pub(super) fn removed(cx: &mut Context<'_, '_>, node: NodeId, id: ChunkId) -> Result<(), Failure> {
    let order = keys::removal(node, id);
    if !cx.tx.contains(&order)? {
        return Ok(());
    }
    cx.tx.delete(order);
    let Some(mut chunk) = cx.tx.get::<Chunk>(&keys::chunk(id))? else { return Ok(()) };
    if chunk.state() != ChunkState::Removing {
        return Ok(());
    }
    cx.tx.delete(keys::held(node, id));
    chunk.shards.retain(|shard| shard.node != node.0);
    if chunk.shards.is_empty() {
        cx.tx.delete(keys::chunk(id));
    } else {
        cx.tx.put(keys::chunk(id), &chunk);
    }
    Ok(())
}
