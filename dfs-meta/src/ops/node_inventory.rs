//! One page of the full list of what a chunk daemon holds, compared with what it should hold.
//!
//! It fails closed. What the page lacks between its first and its last chunk is marked lost, never forgotten, and only
//! when it was sealed before the list was asked for. What the page has and nobody knows is ordered off only when no
//! metadata can name it: its id was handed out, its chunk's record is gone or does not list the node, and it is older
//! than the garbage grace and any plan.

use std::collections::BTreeMap;

use dfs_proto::meta::{Done, HeldShard, NodeInventory};
use dfs_proto::{ChunkId, Code, Epoch, Failure, NodeId, limits};

use super::{Context, counters, node_heartbeat, shard_health};
use crate::store::keys;
use crate::store::records::{Chunk, ChunkState, Held, Marker};

/// Shards that a page can be compared with at once: as many as a page has, and as many again that are missing.
const MAX_COMPARED: usize = 2 * limits::MAX_INVENTORY_PAGE;

/// NODE_REFUSED, EINVAL.
pub(super) fn run(cx: &mut Context<'_, '_>, request: &NodeInventory) -> Result<Done, Failure> {
    let node = NodeId(request.node);
    check(request)?;
    let record = node_heartbeat::check_epoch(cx, node, Epoch(request.epoch))?;
    let asked = cx.live.nodes.get(node).and_then(|node| node.asked_since_ms());
    let Some(since_ms) = asked.filter(|_| record.is_none()) else {
        // Nobody knows how old this list is: the server will ask for another.
        return Ok(Done {});
    };

    let (first, last) = (ChunkId(request.first), ChunkId(request.last));
    let mut expected = BTreeMap::new();
    let held = cx.tx.scan::<Held>(&keys::held_by(node, first, last), MAX_COMPARED + 1)?;
    let all = held.len() <= MAX_COMPARED;
    expected.extend(held.iter().take(MAX_COMPARED).map(|(key, held)| (keys::shard_chunk(key), *held)));
    // Beyond what could be compared nothing is said; the next list will tell.
    let compared_to = if all { last } else { expected.keys().next_back().copied().unwrap_or(first) };

    let next_id = counters::get(cx.tx, counters::LAST_CHUNK)?.saturating_add(1);
    for shards in request.shards.chunk_by(|one, next| one.chunk == next.chunk) {
        let id = ChunkId(shards[0].chunk);
        if id > compared_to {
            break;
        }
        let Some(held) = expected.remove(&id) else {
            for shard in shards {
                unexpected(cx, node, shard, next_id)?;
            }
            continue;
        };
        // Others of the same chunk are left over from a writer that gave up; they go with the chunk.
        let whole = shards.iter().any(|shard| (held.index, held.length) == (shard.index, shard.length));
        match (whole, held.lost) {
            (false, _) => shard_health::lose(cx, node, id, shard_health::Loss::Corrupt).map(drop)?,
            (true, true) => shard_health::find(cx, node, id).map(drop)?,
            (true, false) => {}
        }
    }
    let mut missing = 0_u64;
    for (id, held) in expected {
        let being_removed = cx.tx.contains(&keys::removal(node, id))?;
        if !held.lost
            && !being_removed
            && held.since_ms < since_ms
            && shard_health::lose(cx, node, id, shard_health::Loss::Missing)?
        {
            missing += 1;
        }
    }
    if missing > 0 {
        tracing::warn!(node = node.0, missing, "a chunk daemon lacks shards that it should hold");
    }
    if let Some(live) = cx.live.nodes.get_mut(node) {
        live.inventory_page(cx.uptime, request.last == u64::MAX);
    }
    Ok(Done {})
}

fn check(request: &NodeInventory) -> Result<(), Failure> {
    let sorted = request.shards.is_sorted_by(|one, next| (one.chunk, one.index) < (next.chunk, next.index));
    let inside = request.shards.iter().all(|shard| (request.first..=request.last).contains(&shard.chunk));
    if request.shards.len() > limits::MAX_INVENTORY_PAGE || !sorted || !inside || request.first > request.last
    {
        let message = format!(
            "an inventory's page has at most {} shards, sorted by chunk and index, from its first chunk to its last",
            limits::MAX_INVENTORY_PAGE
        );
        return Err(Failure::new(Code::Invalid, message));
    }
    Ok(())
}

/// A shard that the node should not hold.
fn unexpected(
    cx: &mut Context<'_, '_>,
    node: NodeId,
    shard: &HeldShard,
    next_id: u64,
) -> Result<(), Failure> {
    let id = ChunkId(shard.chunk);
    if shard.chunk >= next_id {
        tracing::error!(
            node = node.0,
            chunk = id.0,
            "a chunk daemon holds a chunk from the future; left alone"
        );
        return Ok(());
    }
    let old_enough = cx.settings.garbage_grace.max(cx.settings.plan_lifetime);
    if u128::from(shard.age_ms) <= old_enough.as_millis() {
        return Ok(());
    }
    let nobody_needs_it = match cx.tx.get::<Chunk>(&keys::chunk(id))? {
        None => true,
        Some(chunk) => match chunk.state() {
            ChunkState::Planned | ChunkState::Garbage => false,
            ChunkState::Sealed | ChunkState::Removing => {
                chunk.state() == ChunkState::Removing || chunk.shards.iter().all(|known| known.node != node.0)
            }
        },
    };
    if nobody_needs_it {
        cx.tx.put(keys::removal(node, id), &Marker {});
    }
    Ok(())
}

#[cfg(test)]
mod tests;
