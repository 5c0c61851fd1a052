//! A chunk daemon lives: how full it is, what it removed as ordered, what it found corrupt. It is told what to remove.
//! Without news nothing is written.

use dfs_proto::meta::{NodeHeartbeat, NodeOrders};
use dfs_proto::{ChunkId, Code, Epoch, Failure, NodeId, limits};

use super::{Context, garbage, shard_health};
use crate::live::nodes::Fill;
use crate::store::keys;
use crate::store::records::Node;

/// Chunks that one heartbeat may tell as deleted, and as corrupt.
const MAX_TOLD: usize = 8192;

/// NODE_REFUSED when the node is unknown or comes with another epoch: it has to join again, or another daemon has
/// joined with its disk. EINVAL.
pub(super) fn run(cx: &mut Context<'_, '_>, request: &NodeHeartbeat) -> Result<NodeOrders, Failure> {
    let id = NodeId(request.node);
    if request.deleted.len() > MAX_TOLD || request.corrupt.len() > MAX_TOLD {
        let message = format!("a heartbeat tells of at most {MAX_TOLD} deleted and corrupt shards");
        return Err(Failure::new(Code::Invalid, message));
    }
    let record = check_epoch(cx, id, Epoch(request.epoch))?;
    for &chunk in &request.deleted {
        garbage::removed(cx, id, ChunkId(chunk))?;
    }
    for &chunk in &request.corrupt {
        shard_health::lose(cx, id, ChunkId(chunk), shard_health::Loss::Corrupt)?;
    }
    let mut orders = cx.tx.scan_keys(&keys::removals(id), limits::MAX_DELETE_ORDERS + 1)?;
    let more = orders.len() > limits::MAX_DELETE_ORDERS;
    orders.truncate(limits::MAX_DELETE_ORDERS);

    let fill = Fill {
        capacity_bytes: request.capacity_bytes,
        available_bytes: request.available_bytes,
        shards: request.shards,
        read_only: request.read_only,
    };
    if let Some(record) = record {
        cx.live.nodes.join(id, &record, fill, cx.uptime);
    }
    cx.live.nodes.heard(id, fill, cx.uptime);
    let (now_ms, uptime, interval) = (cx.now_ms(), cx.uptime, cx.settings.inventory_interval);
    let send_inventory =
        cx.live.nodes.get_mut(id).is_some_and(|node| node.ask_for_inventory(now_ms, uptime, interval));
    Ok(NodeOrders {
        delete: orders.iter().map(|key| keys::shard_chunk(key).0).collect(),
        more,
        send_inventory,
    })
}

/// That the node is there in this epoch. Returns its record when the server was started since it was last heard of.
pub(super) fn check_epoch(
    cx: &mut Context<'_, '_>,
    id: NodeId,
    epoch: Epoch,
) -> Result<Option<Node>, Failure> {
    let live = cx.live.nodes.get(id).map(|node| node.epoch);
    let record = match live {
        Some(_) => None,
        None => cx.tx.get::<Node>(&keys::node(id))?,
    };
    let known = live.or(record.as_ref().map(|record| Epoch(record.epoch)));
    match known {
        Some(known) if known == epoch => Ok(record),
        Some(known) => {
            let message =
                format!("node {id} is in epoch {known}, the request came from epoch {epoch}: join again");
            Err(Failure::new(Code::NodeRefused, message))
        }
        None => Err(Failure::new(Code::NodeRefused, format!("node {id} is not known here: join first"))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Bench;
    use super::*;
    use dfs_proto::meta::request;

    #[test]
    fn an_old_epoch_is_refused_and_a_restarted_server_takes_daemons_back() {
        let mut bench = Bench::with_nodes(3);
        assert!(bench.beat(1, 1 << 40).send_inventory, "asked for after a join");
        assert_eq!(bench.join(1, "host1").epoch, 2, "a second daemon with the same disk");
        let mut beat = |node, epoch| {
            let beat = NodeHeartbeat { node, epoch, ..NodeHeartbeat::default() };
            bench.run(request::Op::NodeHeartbeat(beat))
        };
        assert_eq!(beat(1, 1).unwrap_err().code, Code::NodeRefused);
        assert_eq!(beat(9, 1).unwrap_err().code, Code::NodeRefused);
        assert!(beat(1, 2).is_ok());
        bench.live = crate::live::Live::default();
        assert_eq!(bench.allocate(1).unwrap_err().code, Code::TooFewNodes, "nobody is there yet");
        bench.beat(2, 1 << 40);
        bench.beat(3, 1 << 40);
        assert_eq!(bench.allocate(1).unwrap().chunks[0].shards.len(), 2);
    }
}
