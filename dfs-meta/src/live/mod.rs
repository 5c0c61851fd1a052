//! What is kept in memory only: who was heard of when, open files, locks. It is lost at a restart, and clients and
//! chunk daemons bring it back: they heartbeat, rejoin and reclaim.
//!
//! An operation changes this state only after everything in it that can fail has succeeded, since only the store's
//! writes are undone when it fails.

pub mod locks;
pub mod nodes;
pub mod opens;
pub mod sessions;

use crate::machine::transaction::Transaction;
use crate::ops::Settings;
use crate::store::records::Session;
use crate::store::{StoreError, keys};

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

impl Live {
    /// What a server that starts for the `boot`th time knows: what the store says, heard of nobody yet.
    pub fn load(tx: &mut Transaction<'_>, boot: u64, settings: &Settings) -> Result<Self, StoreError> {
        let sessions = tx.scan::<Session>(&keys::sessions(), usize::MAX)?;
        let sessions = sessions.into_iter().map(|(key, session)| (keys::session_id(&key), session));
        let sessions = sessions::SessionTable::load(boot, sessions, settings.session_timeout);
        Ok(Self { sessions, ..Self::default() })
    }
}
