//! The chunk daemon: keeps shards on one disk, verifies them, sends them on.
//!
//! ```text
//! main → config
//!   └──→ daemon ──→ server → service → order (checks)     what is asked
//!          │                    ├────→ forward            the rest of a chain
//!          │                    └────→ store → disk
//!          ├──→ local → store                             open files, for clients on this machine
//!          └──→ background (heartbeat, deletions, inventory) → store, meta_link
//! ```
//!
//! The store knows no network, the background never calls the service, and only `store/shard_file.rs` and
//! `store/segments/format.rs` know bytes on disk.

mod background;
pub mod config;
pub mod daemon;
mod forward;
mod local;
mod meta_link;
mod node;
mod order;
mod server;
mod service;
pub mod store;
