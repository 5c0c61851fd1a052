//! Which chunk daemons were heard of when, how full they are, and what space was promised on them since.
//!
//! A mirror of the store's node records for the daemons that joined or sent a heartbeat since this server started. Times
//! are the server's uptime, never the wall clock. Nothing here is durable: heartbeats bring it back.

use std::collections::BTreeMap;
use std::time::Duration;

use dfs_proto::meta::NodeState;
use dfs_proto::{ChunkId, Epoch, Labels, NodeAddress, NodeId};

use crate::cluster::Candidate;
use crate::store::records;

/// Nodes in a cluster.
pub const MAX_NODES: usize = 4096;
/// A full list of shards that was asked for and has not ended after so long is asked for again.
const INVENTORY_PATIENCE: Duration = Duration::from_secs(600);

/// Chunk daemons' liveness and fill.
#[derive(Default)]
pub struct NodeTable {
    nodes: BTreeMap<NodeId, LiveNode>,
}

/// One chunk daemon that was heard of since the server started.
#[derive(Clone, Debug)]
pub struct LiveNode {
    /// Of its last join; heartbeats with another one are refused.
    pub epoch: Epoch,
    /// Where it answers.
    pub address: NodeAddress,
    /// Of its program.
    pub version: String,
    /// The server's uptime when it was last heard of.
    pub heard: Duration,
    /// As it said last.
    pub fill: Fill,
    /// Bytes promised on it since it said so, by chunk: what its answer can't know yet.
    promised: BTreeMap<ChunkId, u64>,
    promised_bytes: u64,
    /// The full list of its shards.
    pub inventory: Inventory,
}

/// What a node says about its disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fill {
    /// All it may use.
    pub capacity_bytes: u64,
    /// What is left of it.
    pub available_bytes: u64,
    /// Shards on it.
    pub shards: u64,
    /// Its disk failed and takes no more.
    pub read_only: bool,
}

/// Where the server is with asking a node for the full list of its shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inventory {
    /// To be asked for with the next heartbeat.
    Wanted,
    /// Asked for: what was sealed before is missing when the list lacks it.
    Asked {
        /// The wall clock then, ms since 1970.
        since_ms: u64,
        /// The server's uptime when it was last asked for or came on.
        at: Duration,
        /// The first page came.
        begun: bool,
    },
    /// All of it came.
    Done {
        /// The server's uptime then.
        at: Duration,
    },
}

/// When a node counts as what.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Suspect after so long without a heartbeat.
    pub suspect_after: Duration,
    /// Down after so long.
    pub down_after: Duration,
}

impl NodeTable {
    /// A node joined, or sent the first heartbeat since this server started.
    pub fn join(&mut self, id: NodeId, record: &records::Node, fill: Fill, uptime: Duration) {
        let node = LiveNode {
            epoch: Epoch(record.epoch),
            address: address(id, record),
            version: record.version.clone(),
            heard: uptime,
            fill,
            promised: BTreeMap::new(),
            promised_bytes: 0,
            inventory: Inventory::Wanted,
        };
        self.nodes.insert(id, node);
    }

    /// A heartbeat. What was promised before it is forgotten: the node counts it now, or will soon.
    pub fn heard(&mut self, id: NodeId, fill: Fill, uptime: Duration) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.heard = uptime;
            node.fill = fill;
            node.promised.clear();
            node.promised_bytes = 0;
        }
    }

    /// A node that was heard of since the server started.
    pub fn get(&self, id: NodeId) -> Option<&LiveNode> {
        self.nodes.get(&id)
    }

    /// The same, to change it.
    pub fn get_mut(&mut self, id: NodeId) -> Option<&mut LiveNode> {
        self.nodes.get_mut(&id)
    }

    /// All of them, by id.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, &LiveNode)> {
        self.nodes.iter().map(|(&id, node)| (id, node))
    }

    /// What a node counts as; one that was never heard of is down.
    pub fn state(&self, id: NodeId, uptime: Duration, patience: Patience) -> NodeState {
        self.nodes.get(&id).map_or(NodeState::Down, |node| node.state(uptime, patience))
    }

    /// The nodes that may get shards of up to `shard_bytes`.
    pub fn candidates(&self, uptime: Duration, patience: Patience, shard_bytes: u64) -> Vec<Candidate> {
        let up = self.iter().filter(|(_, node)| node.state(uptime, patience) == NodeState::Up);
        up.filter(|(_, node)| node.free_bytes() >= shard_bytes)
            .map(|(id, node)| Candidate::new(id, &node.labels(), node.fill.capacity_bytes, node.free_bytes()))
            .collect()
    }

    /// Space for a shard of a chunk is promised.
    pub fn promise(&mut self, id: NodeId, chunk: ChunkId, bytes: u64) {
        if let Some(node) = self.nodes.get_mut(&id) {
            let before = node.promised.insert(chunk, bytes).unwrap_or(0);
            node.promised_bytes = node.promised_bytes + bytes - before;
        }
    }

    /// A promised shard turned out to be this long (0: it is not there).
    pub fn keep_promise(&mut self, id: NodeId, chunk: ChunkId, bytes: u64) {
        if self.nodes.get(&id).is_some_and(|node| node.promised.contains_key(&chunk)) {
            self.promise(id, chunk, bytes);
        }
    }
}

impl LiveNode {
    /// Up, suspect or down by its silence; read-only when it says so.
    pub fn state(&self, uptime: Duration, patience: Patience) -> NodeState {
        let silence = uptime.saturating_sub(self.heard);
        if silence >= patience.down_after {
            NodeState::Down
        } else if silence >= patience.suspect_after {
            NodeState::Suspect
        } else if self.fill.read_only {
            NodeState::NodeReadOnly
        } else {
            NodeState::Up
        }
    }

    /// What may be promised on it still.
    pub fn free_bytes(&self) -> u64 {
        self.fill.available_bytes.saturating_sub(self.promised_bytes)
    }

    /// What it fails with.
    pub fn labels(&self) -> Labels {
        self.address.labels.clone().unwrap_or_default()
    }

    /// Whether to ask for the full list of shards now, every `interval`; then it counts as asked.
    pub fn ask_for_inventory(&mut self, now_ms: u64, uptime: Duration, interval: Duration) -> bool {
        let ask = match self.inventory {
            Inventory::Wanted => true,
            Inventory::Asked { at, begun, .. } => !begun || uptime.saturating_sub(at) >= INVENTORY_PATIENCE,
            Inventory::Done { at } => uptime.saturating_sub(at) >= interval,
        };
        if ask {
            // A list that was asked for twice may have begun at the first time: that is what it is good for.
            let since_ms = match self.inventory {
                Inventory::Asked { since_ms, .. } => since_ms,
                _ => now_ms,
            };
            self.inventory = Inventory::Asked { since_ms, at: uptime, begun: false };
        }
        ask
    }

    /// When the list that is being sent was asked for, by the wall clock: what was sealed before and is lacking in it
    /// is missing. `None` when nobody asked.
    pub fn asked_since_ms(&self) -> Option<u64> {
        match self.inventory {
            Inventory::Asked { since_ms, .. } => Some(since_ms),
            _ => None,
        }
    }

    /// A page of the list came.
    pub fn inventory_page(&mut self, uptime: Duration, last: bool) {
        if let Inventory::Asked { at, begun, .. } = &mut self.inventory {
            (*at, *begun) = (uptime, true);
            if last {
                self.inventory = Inventory::Done { at: uptime };
            }
        }
    }

    /// Something is amiss: ask for the list, unless one is on its way.
    pub fn want_inventory(&mut self) {
        if let Inventory::Done { .. } = self.inventory {
            self.inventory = Inventory::Wanted;
        }
    }
}

/// Where a node answers, as its record says.
pub fn address(id: NodeId, record: &records::Node) -> NodeAddress {
    let labels = Labels { host: record.host.clone(), rack: record.rack.clone(), zone: record.zone.clone() };
    NodeAddress { node: id.0, address: record.address.clone(), labels: Some(labels) }
}
