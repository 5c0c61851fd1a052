//! Garbage collection: chunks that nothing points to, and planned ones whose commit never came.
//!
//! A chunk waits in the queue (`G`) until it is due; then its shards are ordered off their nodes (`R`), and its record
//! goes with the last of them. It fails closed: a chunk with a live byte or a back-pointer, looked at in the same
//! transaction, is never removed, and what does not add up is left alone and told.

use std::time::Duration;

use dfs_proto::{ChunkId, Failure, NodeId};

use super::{Context, Progress, data_keys};
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
        remove_shards(cx, id, &mut chunk)?;
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
fn remove_shards(cx: &mut Context<'_, '_>, id: ChunkId, chunk: &mut Chunk) -> Result<(), Failure> {
    chunk.set_state(ChunkState::Removing);
    chunk.due_ms = 0;
    if chunk.shards.is_empty() {
        return forget(cx, id, chunk);
    }
    for shard in &chunk.shards {
        cx.tx.put(keys::removal(NodeId(shard.node), id), &Marker {});
    }
    cx.tx.put(keys::chunk(id), chunk);
    Ok(())
}

/// Nothing is left of a chunk but its record.
fn forget(cx: &mut Context<'_, '_>, id: ChunkId, chunk: &Chunk) -> Result<(), Failure> {
    cx.tx.delete(keys::chunk(id));
    data_keys::release(cx, chunk.data_key())
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
        return forget(cx, id, &chunk);
    }
    cx.tx.put(keys::chunk(id), &chunk);
    Ok(())
}

#[cfg(test)]
mod tests {
    use dfs_proto::meta::{NodeHeartbeat, NodeOrders, request};

    use super::super::Internal;
    use super::super::testing::{Bench, answer, on_every_store};
    use super::*;

    fn told(bench: &mut Bench, node: u64, deleted: &[u64]) -> NodeOrders {
        let beat = NodeHeartbeat { node, epoch: 1, deleted: deleted.to_vec(), ..NodeHeartbeat::default() };
        answer!(bench.run(request::Op::NodeHeartbeat(beat)), NodeOrders).unwrap()
    }

    fn later(bench: &mut Bench, duration: Duration) {
        bench.now.seconds += duration.as_secs() as i64;
        bench.finish(Internal::CollectGarbage);
    }

    #[test]
    fn what_nothing_points_to_goes_after_its_grace_with_its_last_shard() {
        on_every_store(|bench| {
            for node in 1..=3 {
                bench.join(node, &format!("host{node}"));
            }
            let ino = bench.file("f");
            let old = bench.write(ino, &[(0, 100)]);
            let new = bench.write(ino, &[(0, 100)]);
            let grace = bench.settings.garbage_grace;
            later(bench, grace - Duration::from_secs(60));
            assert!(told(bench, 1, &[old]).delete.is_empty(), "not before the grace is over");
            assert_eq!(bench.chunk(old).unwrap().shards.len(), 3, "and not because a node says so");
            later(bench, Duration::from_secs(120));
            for node in 1..=3 {
                bench.check();
                assert_eq!(bench.chunk(old).unwrap().state(), ChunkState::Removing);
                assert_eq!(told(bench, node, &[]).delete, [old]);
                assert!(told(bench, node, &[new, old]).delete.is_empty());
            }
            assert_eq!(bench.chunk(old), None);
            assert_eq!(bench.chunk(new).unwrap().state(), ChunkState::Sealed);
            bench.check();
        });
    }

    #[test]
    fn a_plan_whose_commit_never_came_is_removed_everywhere() {
        let mut bench = Bench::with_nodes(3);
        let chunk = bench.allocate(1).unwrap().chunks[0].chunk;
        let lifetime = bench.settings.plan_lifetime;
        later(&mut bench, lifetime - Duration::from_secs(60));
        assert_eq!(bench.chunk(chunk).unwrap().state(), ChunkState::Planned);
        later(&mut bench, Duration::from_secs(120));
        bench.check();
        for node in 1..=3 {
            assert_eq!(told(&mut bench, node, &[]).delete, [chunk]);
            told(&mut bench, node, &[chunk]);
        }
        assert_eq!(bench.chunk(chunk), None);
        bench.check();
    }

    #[test]
    fn a_chunk_in_use_is_kept_whatever_the_queue_says() {
        let mut bench = Bench::with_nodes(3);
        let ino = bench.file("f");
        let used = bench.write(ino, &[(0, 100)]);
        let lied_about = bench.write(ino, &[(100, 100)]);
        let garbage = |cx: &mut Context<'_, '_>, id: u64, lie: bool| -> Result<(), Failure> {
            let mut chunk = cx.tx.get::<Chunk>(&keys::chunk(ChunkId(id)))?.unwrap();
            chunk.set_state(ChunkState::Garbage);
            chunk.live_bytes = if lie { 0 } else { chunk.live_bytes };
            enqueue(cx, ChunkId(id), &mut chunk, Duration::ZERO);
            cx.tx.put(keys::chunk(ChunkId(id)), &chunk);
            Ok(())
        };
        let put =
            |cx: &mut Context<'_, '_>| garbage(cx, used, false).and_then(|()| garbage(cx, lied_about, true));
        bench.with(dfs_proto::SessionId(0), put).unwrap();
        later(&mut bench, Duration::from_secs(3600));
        for node in 1..=3 {
            assert!(told(&mut bench, node, &[]).delete.is_empty());
        }
    }

    #[test]
    fn orders_are_given_in_bounded_portions() {
        let mut bench = Bench::with_nodes(3);
        for _ in 0..6 {
            bench.allocate(256).unwrap();
        }
        later(&mut bench, Duration::from_secs(3600));
        let mut removed = 0;
        loop {
            let orders = told(&mut bench, 1, &[]);
            assert!(orders.delete.len() <= dfs_proto::limits::MAX_DELETE_ORDERS);
            removed += orders.delete.len();
            told(&mut bench, 1, &orders.delete);
            if !orders.more {
                break;
            }
        }
        assert_eq!(removed, 6 * 256);
    }
}
