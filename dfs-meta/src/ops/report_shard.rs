//! A reader found a shard missing or corrupt: it is not handed out to readers any more. Which is true of a missing one
//! its node has to tell, by the full list of what it holds.

use dfs_proto::meta::{Done, ReportShard};
use dfs_proto::{ChunkId, Code, Failure, NodeId};

use super::Context;
use super::shard_health::{self, Loss};

/// EINVAL. A shard that is not there to be lost is no error: it may have been replaced meanwhile.
pub(super) fn run(cx: &mut Context<'_, '_>, request: &ReportShard) -> Result<Done, Failure> {
    let (node, id) = (NodeId(request.node), ChunkId(request.chunk));
    let loss = match request.code() {
        Code::NotFound => Loss::Missing,
        Code::Corrupt => Loss::Corrupt,
        code => {
            let message =
                format!("a shard is reported as not found or corrupt, not as {}", code.as_str_name());
            return Err(Failure::new(Code::Invalid, message));
        }
    };
    if shard_health::lose(cx, node, id, loss)? {
        tracing::warn!(
            chunk = id.0,
            node = node.0,
            ?loss,
            session = cx.session.0,
            "a shard is reported lost"
        );
        if let (Loss::Missing, Some(live)) = (loss, cx.live.nodes.get_mut(node)) {
            live.want_inventory();
        }
    }
    Ok(Done {})
}
