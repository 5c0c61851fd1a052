//! Makes a key known, by what tells whether somebody has it.

use dfs_proto::meta::{CreateKey, Done};
use dfs_proto::{Code, Failure, limits};

use super::{Context, data_keys};
use crate::store::keys;
use crate::store::records::MasterKey;

/// EXISTS, INVALID, NO_SPACE. The same again is done already.
pub(super) fn run(cx: &mut Context<'_, '_>, request: &CreateKey) -> Result<Done, Failure> {
    let key = request.key.as_ref().ok_or_else(|| Failure::new(Code::Invalid, "a key is needed"))?;
    let record = MasterKey { generation: 1, ..data_keys::master_of(key)? };
    if let Some(present) = cx.tx.get::<MasterKey>(&keys::master_key(&key.name))? {
        if present.check == record.check {
            return Ok(Done {});
        }
        let message = format!("there is a key {:?} already: `dfs-admin key rotate` changes it", key.name);
        return Err(Failure::new(Code::Exists, message));
    }
    if cx.tx.scan_keys(&keys::master_keys(), limits::MAX_KEYS)?.len() >= limits::MAX_KEYS {
        return Err(Failure::new(Code::NoSpace, format!("a cluster has at most {} keys", limits::MAX_KEYS)));
    }
    cx.tx.put(keys::master_key(&key.name), &record);
    Ok(Done {})
}
