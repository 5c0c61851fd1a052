//! Whether keys count their data keys, and data keys the inodes and chunks that name them.

use std::collections::BTreeMap;

use dfs_proto::ChunkId;

use super::super::counters;
use super::each;
use crate::machine::transaction::Transaction;
use crate::store::StoreError;
use crate::store::keys;
use crate::store::records::{Chunk, DataKey, Inode, MasterKey};

/// Says what is wrong, one sentence each, at most `limit` of them.
pub(super) fn check(tx: &mut Transaction<'_>, limit: usize) -> Result<Vec<String>, StoreError> {
    let mut users: BTreeMap<u64, u64> = BTreeMap::new();
    each(tx, keys::inodes(), |_, inode: Inode| *users.entry(inode.data_key).or_default() += 1)?;
    let all_chunks = keys::chunks(ChunkId(0), ChunkId(u64::MAX));
    each(tx, all_chunks, |_, chunk: Chunk| *users.entry(chunk.data_key()).or_default() += 1)?;
    users.remove(&0);

    let mut problems = Vec::new();
    let mut data_keys: BTreeMap<String, u64> = BTreeMap::new();
    let mut last = 0;
    each(tx, keys::data_keys_after(0), |key, data_key: DataKey| {
        last = keys::data_key_id(key);
        let named = users.remove(&last).unwrap_or(0);
        if named != data_key.users || named == 0 {
            problems.push(format!("data key {last} counts {} users instead of {named}", data_key.users));
        }
        *data_keys.entry(data_key.key).or_default() += 1;
    })?;
    problems.extend(users.keys().map(|id| format!("data key {id} is named but not there")));
    each(tx, keys::master_keys(), |key, master: MasterKey| {
        let name = keys::master_key_name(key);
        let there = data_keys.remove(&name).unwrap_or(0);
        if there != master.data_keys {
            problems.push(format!("key {name:?} counts {} data keys instead of {there}", master.data_keys));
        }
    })?;
    problems.extend(data_keys.keys().map(|name| format!("key {name:?} has data keys and is not there")));
    if counters::get(tx, counters::LAST_DATA_KEY)? < last {
        problems.push(format!("data key {last} is there but was never handed out"));
    }
    problems.truncate(limit);
    Ok(problems)
}
