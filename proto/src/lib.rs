//! What two dfs processes must agree on: messages, ids, attributes, classes, extent arithmetic and error codes.
//!
//! This crate does no I/O, keeps no state and knows no clock.

pub mod attr;
pub mod class;
pub mod encoding;
pub mod error;
pub mod extent;
pub mod ids;
pub mod limits;
pub mod local;
pub mod name;
pub mod put;
pub mod redundancy;
pub mod stripe;

/// Generated from `common.proto`: what several services share.
#[allow(missing_docs, clippy::all)]
pub mod common {
    tonic::include_proto!("dfs");
}

/// Generated from `meta.proto`: the metadata server's door.
#[allow(missing_docs, clippy::all)]
pub mod meta {
    tonic::include_proto!("dfs.meta");
}

/// Generated from `chunk.proto`: a chunk daemon's door.
#[allow(missing_docs, clippy::all)]
pub mod chunk {
    tonic::include_proto!("dfs.chunk");
}

pub use attr::Timestamp;
pub use class::Class;
pub use common::{Attr, Code, Error, FileKind, Labels, NodeAddress, Time};
pub use error::Failure;
pub use ids::{ChunkId, ClusterId, Epoch, Ino, NodeId, SessionId, ShardIndex};
pub use name::Name;
pub use redundancy::Redundancy;
pub use stripe::Stripe;

/// Told when a session opens or a node joins; a server refuses one it does not know.
pub const PROTOCOL_VERSION: u32 = 1;
