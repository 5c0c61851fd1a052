//! Numbers of the whole filesystem that operations keep up to date as they go, so that telling them costs one read.

use dfs_proto::{Failure, Ino};

use super::Context;
use crate::machine::transaction::Transaction;
use crate::store::StoreError;
use crate::store::keys;
use crate::store::records::Counter;

/// Inodes: the root among them, and those without a name until they are destroyed.
pub const FILES: &str = "files";
/// Bytes that extents cover, over all inodes: the sum of their `allocated_bytes`.
pub const USED_BYTES: &str = "used_bytes";
/// The inode number handed out last.
pub const LAST_INO: &str = "last_ino";
/// The chunk id handed out last.
pub const LAST_CHUNK: &str = "last_chunk";
/// The chunk daemon's id handed out last.
pub const LAST_NODE: &str = "last_node";
/// The session's id handed out last.
pub const LAST_SESSION: &str = "last_session";

/// The data key's id handed out last.
pub const LAST_DATA_KEY: &str = "last_data_key";

/// What a counter says; 0 when it was never set.
pub fn get(tx: &mut Transaction<'_>, name: &str) -> Result<u64, StoreError> {
    Ok(tx.get::<Counter>(&keys::setting(name))?.unwrap_or_default().value)
}

/// Sets a counter.
pub fn set(tx: &mut Transaction<'_>, name: &str, value: u64) {
    tx.put(keys::setting(name), &Counter { value });
}

/// Counts up.
pub fn add(cx: &mut Context<'_, '_>, name: &str, amount: u64) -> Result<(), Failure> {
    if amount > 0 {
        let value = get(cx.tx, name)?.saturating_add(amount);
        set(cx.tx, name, value);
    }
    Ok(())
}

/// Counts down.
pub fn subtract(cx: &mut Context<'_, '_>, name: &str, amount: u64) -> Result<(), Failure> {
    if amount > 0 {
        let value = get(cx.tx, name)?.saturating_sub(amount);
        set(cx.tx, name, value);
    }
    Ok(())
}

/// Hands out the next number of a counter whose numbers are never used twice.
pub fn take(cx: &mut Context<'_, '_>, name: &str) -> Result<u64, Failure> {
    let value = get(cx.tx, name)? + 1;
    set(cx.tx, name, value);
    Ok(value)
}

/// What a fresh filesystem begins with: its root directory.
pub(super) fn put_first(tx: &mut Transaction<'_>) {
    set(tx, FILES, 1);
    set(tx, LAST_INO, Ino::ROOT.0);
}
