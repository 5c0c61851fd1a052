//! What is kept in memory only: who was heard of when, open files, locks. It is lost at a restart, and clients and
//! chunk daemons bring it back: they heartbeat, rejoin and reclaim.
//!
//! An operation changes this state only after everything in it that can fail has succeeded, since only the store's
//! writes are undone when it fails.

pub mod locks;
pub mod nodes;
pub mod opens;
pub mod sessions;

/// All of it.
#[derive(Default)]
pub struct Live {
    /// Sessions' heartbeats, reclaims and the grace period.
    pub sessions: sessions::SessionTable,
    /// Who has which inode open.
    pub opens: opens::OpenTable,
    /// File locks.
    pub locks: locks::LockTable,
    /// Chunk daemons' heartbeats and fill.
    pub nodes: nodes::NodeTable,
}
