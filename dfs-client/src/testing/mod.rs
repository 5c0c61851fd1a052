//! A cluster inside the test's process: chunk nodes in memory behind real connections, and a metadata server behind
//! [`MetaCalls`](crate::session::MetaCalls). Both can be told to fail in the ways that real ones do, and both check what
//! they are told: the server refuses to seal a chunk that is not durable as it is said to be.

mod door;
mod meta;
mod nodes;

pub(crate) use door::{DATA_AT, LocalDoor, listen_for, shard_file, unused_node};
pub(crate) use meta::FakeMeta;
pub(crate) use nodes::{FakeNode, Fault};

use std::sync::Arc;

use dfs_proto::ClusterId;

/// The fake cluster's identity.
pub(crate) const CLUSTER: ClusterId = ClusterId(*b"cluster of tests");

/// Starts `count` nodes, numbered from 1, and a metadata server that knows them.
pub(crate) fn cluster(count: u64) -> (Arc<FakeMeta>, Vec<Arc<FakeNode>>) {
    cluster_of(1..=count)
}

/// The same with these numbers.
pub(crate) fn cluster_of(nodes: impl IntoIterator<Item = u64>) -> (Arc<FakeMeta>, Vec<Arc<FakeNode>>) {
    let nodes: Vec<_> = nodes.into_iter().map(FakeNode::start).collect();
    (Arc::new(FakeMeta::new(nodes.clone())), nodes)
}
