//! File locks.

/// Locks by inode.
#[derive(Default)]
pub struct LockTable {}
