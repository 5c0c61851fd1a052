//! The ordered key–value store below the state machine: a few calls, so that engines are easy to add and to break in
//! tests. Keys and records have their own files; this one knows bytes only.
//!
//! Guarantees asked of every engine: `commit` is atomic, and durable when it says so; reads see all commits that have
//! returned, but for keys that a commit under way changes, which the machine reads from that commit; all methods may be called from several threads (commits come from one).

pub mod embedded;
pub mod keys;
pub mod memory;
pub mod records;
pub mod space;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use dfs_proto::{Code, Failure};

/// A key and its value.
pub type Pair = (Vec<u8>, Vec<u8>);

/// Changes to apply together: `Some` puts, `None` deletes.
pub type Batch = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// An ordered key–value store.
pub trait Store: Send + Sync + 'static {
    /// The value of a key.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// At most `limit` pairs with `start <= key < end`, in key order.
    fn scan(&self, start: &[u8], end: &[u8], limit: usize) -> Result<Vec<Pair>, StoreError>;

    /// The pair with the greatest key in `start <= key < end`.
    fn last(&self, start: &[u8], end: &[u8]) -> Result<Option<Pair>, StoreError>;

    /// Applies a batch, all of it or nothing. Calls `durable` as soon as it would survive a power cut, which may be before
    /// it can be read; when this returns, it can. An error after `durable` means that it can be read after a restart.
    fn commit(&self, batch: &Batch, durable: &mut dyn FnMut()) -> Result<(), StoreError>;

    /// Keeps `bytes` set aside for later commits: at least half of that is there when this returns true, and it is
    /// filled up below that. False: the disk has not so much left.
    fn reserve(&self, bytes: u64) -> Result<bool, StoreError>;

    /// Whether everything in the store may be in memory: reading never waits for a disk then.
    fn fits_in_memory(&self) -> bool;

    /// Bytes the store takes on its disk.
    fn size_bytes(&self) -> Result<u64, StoreError>;
}

/// Why the store failed. After a failed commit the server must not answer from what it had not committed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk is full.
    #[error("the metadata store's disk is full")]
    Full,
    /// Another process has it open.
    #[error("{0}")]
    InUse(String),
    /// Reading or writing failed.
    #[error("the metadata store failed: {0}")]
    Io(String),
    /// A record that cannot be decoded, or of a version this program does not know.
    #[error("the metadata store holds a bad record at {key}: {reason}")]
    BadRecord {
        /// The key, for people.
        key: String,
        /// What is wrong with the value.
        reason: String,
    },
}

impl StoreError {
    fn is_full(error: &std::io::Error) -> bool {
        matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
    }
}

impl From<std::io::Error> for StoreError {
    fn from(error: std::io::Error) -> Self {
        match Self::is_full(&error) {
            true => Self::Full,
            false => Self::Io(error.to_string()),
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let code = match error {
            StoreError::Full => Code::NoSpace,
            StoreError::Io(_) | StoreError::InUse(_) => Code::InputOutput,
            StoreError::BadRecord { .. } => Code::Corrupt,
        };
        Self::new(code, error.to_string())
    }
}
