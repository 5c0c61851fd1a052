//! A session lives. Nothing is to be done: the machine notes for every request of a session that it was heard of, and
//! refuses those of one that is over.

use dfs_proto::Failure;
use dfs_proto::meta::{Done, Heartbeat};

use super::Context;

/// SESSION_EXPIRED comes from the machine.
pub(super) fn run(_cx: &mut Context<'_, '_>, _request: &Heartbeat) -> Result<Done, Failure> {
    Ok(Done {})
}
