//! The full list of what this node holds, page by page. A page covers its range of chunk ids completely; a list that breaks
//! off says nothing of the rest, so it need not be resumed: the metadata server asks again.

use dfs_proto::limits::MAX_INVENTORY_PAGE;
use dfs_proto::meta::request::Op;
use dfs_proto::meta::{HeldShard, NodeInventory};
use dfs_proto::{ChunkId, ClusterId, Epoch, Failure, NodeId};

use crate::meta_link::MetaLink;
use crate::store::Store;

/// Sends all pages. How many shards they listed.
pub(super) async fn send(
    link: &MetaLink,
    cluster: ClusterId,
    node: NodeId,
    epoch: Epoch,
    store: &Store,
) -> Result<usize, Failure> {
    let mut first = ChunkId(0);
    let mut listed = 0;
    loop {
        let page = store.page(first, MAX_INVENTORY_PAGE);
        listed += page.shards.len();
        let held = page.shards.iter().map(|(key, length, age_ms)| HeldShard {
            chunk: key.chunk.0,
            index: key.index.0,
            length: u64::from(*length),
            age_ms: *age_ms,
        });
        let inventory = NodeInventory {
            node: node.0,
            epoch: epoch.0,
            first: first.0,
            last: page.last.0,
            shards: held.collect(),
        };
        link.call(Some(cluster), Op::NodeInventory(inventory)).await?;
        match page.last.0.checked_add(1) {
            Some(next) => first = ChunkId(next),
            None => return Ok(listed),
        }
    }
}
