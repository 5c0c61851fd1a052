//! The dfs metadata server: namespace, extents, chunk plans, locks, cluster membership.
//!
//! ```text
//! main → service, status, background → machine → ops → store     (arrows are imports; they never point back)
//!                                                 └──→ live, cluster
//! ```
//!
//! - `service`  gRPC: decode a request, hand it to the machine, encode its reply
//! - `status`   the cluster's state for operators, counted beside the machine
//! - `background`  work that nobody asks for, in small pieces through the machine
//! - `machine`  runs operations one at a time: an overlay of the store, group commit, rehearsals of what may be cold
//! - `ops`      one file per operation: a function of (state, request, session, time) to (reply, writes)
//! - `live`     what is kept in memory only and built anew after a restart: who is there, open files, locks
//! - `cluster`  chunk daemons and where to place shards
//! - `store`    the ordered key–value store, its keys and its records, space set aside on its disk
//!
//! Invariants: an operation reads no clock, draws no randomness and does no I/O but through its transaction; no reply
//! leaves before what it says is durable; only `store/keys.rs` encodes keys and only `store/embedded/tree.rs` names sled.

pub mod background;
pub mod cluster;
pub mod config;
pub mod live;
pub mod machine;
pub mod ops;
pub mod service;
pub mod status;
pub mod store;
