//! One chunk to and from the nodes that keep it: replicas, chains, coded shards, replacements, hedged reads, reads of this
//! machine's files.
//!
//! Knows chunks, blocks and nodes; knows nothing of files. What it returns was verified by checksum here; what it says
//! is durable was acknowledged by the node as durable. It never makes bytes up.

mod coded;
mod latency;
mod local;
mod nodes;
mod packed;
mod put;
mod read;
pub mod verify;

use std::sync::Arc;

use dfs_proto::{ClusterId, Labels};

use crate::buffers::Buffers;
use crate::session::MetaCalls;

pub(crate) use packed::{PackedChunk, lay_out};

/// Chunk I/O of one client.
pub(crate) struct ChunkIo {
    cluster: ClusterId,
    meta: Arc<dyn MetaCalls>,
    nodes: nodes::Nodes,
    local: Arc<local::LocalShards>,
    reports: read::Reports,
    /// Of the frames of coded chunks.
    buffers: Buffers,
}

impl ChunkIo {
    /// Chunk I/O for a client that is where `labels` say.
    pub(crate) fn new(meta: Arc<dyn MetaCalls>, cluster: ClusterId, labels: Labels) -> Self {
        Self {
            cluster,
            meta,
            nodes: nodes::Nodes::new(cluster, labels),
            local: Arc::new(local::LocalShards::new(cluster)),
            reports: read::Reports::default(),
            buffers: Buffers::default(),
        }
    }

    /// Memory for what is about to be written.
    pub(crate) fn buffers(&self) -> &Buffers {
        &self.buffers
    }

    /// Nodes that failed this client some seconds ago: not to be chosen for new chunks.
    pub(crate) fn suspects(&self) -> Vec<u64> {
        self.nodes.suspects()
    }
}
