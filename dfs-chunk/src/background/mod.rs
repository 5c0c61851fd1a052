//! What a chunk daemon does unasked: tell the metadata server that it lives and what it holds, and delete what is
//! ordered away. Uses the store as the service does, never the service.

mod deletions;
pub(crate) mod heartbeat;
mod inventory;
