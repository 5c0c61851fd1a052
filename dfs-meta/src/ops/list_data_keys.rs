//! The data keys of one key, page by page.

use dfs_proto::meta::{DataKey, DataKeys, ListDataKeys};
use dfs_proto::{Failure, limits};

use super::{Context, data_keys};
use crate::store::keys;
use crate::store::records;

/// NO_KEY.
pub(super) fn run(cx: &mut Context<'_, '_>, request: &ListDataKeys) -> Result<DataKeys, Failure> {
    let generation = data_keys::load_master(cx, &request.key)?.generation;
    let mut found = Vec::new();
    let mut range = keys::data_keys_after(request.after);
    // At most as many as all keys may have.
    loop {
        let page = cx.tx.scan::<records::DataKey>(&range, limits::MAX_DATA_KEYS_PAGE)?;
        let Some((last, _)) = page.last().filter(|_| found.len() < limits::MAX_DATA_KEYS_PAGE) else { break };
        range.start = keys::data_keys_after(keys::data_key_id(last)).start;
        for (key, record) in page.into_iter().filter(|(_, record)| record.key == request.key) {
            let (id, wrapped) = (keys::data_key_id(&key), record.wrapped.into());
            found.push(DataKey { id, key: record.key, generation, wrapped });
        }
    }
    found.truncate(limits::MAX_DATA_KEYS_PAGE);
    Ok(DataKeys { data_keys: found })
}
