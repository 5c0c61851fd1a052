//! Puts another key in the place of one. What is encrypted with data keys stays as it is: they alone are encrypted anew,
//! which the client has done.

use std::collections::HashSet;

use dfs_proto::meta::{Done, RotateKey};
use dfs_proto::{Code, Failure, limits};

use super::{Context, data_keys};
use crate::store::keys;
use crate::store::records::{DataKey, MasterKey};

/// INVALID, NO_KEY; STALE when the key was rotated meanwhile, or the data keys are not all of its own. The same again is
/// done already.
pub(super) fn run(cx: &mut Context<'_, '_>, request: &RotateKey) -> Result<Done, Failure> {
    let key = request.key.as_ref().ok_or_else(|| Failure::new(Code::Invalid, "a key is needed"))?;
    let new = data_keys::master_of(key)?;
    let present = data_keys::load_master(cx, &key.name)?;
    if present.generation == new.generation && present.check == new.check {
        return Ok(Done {});
    }
    let stale = |what: &str| Failure::new(Code::Stale, format!("the key {:?} {what}: try again", key.name));
    if present.generation.checked_add(1) != Some(new.generation) {
        return Err(stale("was rotated meanwhile"));
    }
    if request.data_keys.len() > limits::MAX_DATA_KEYS {
        let message = format!("a key has at most {} data keys", limits::MAX_DATA_KEYS);
        return Err(Failure::new(Code::Invalid, message));
    }
    if request.data_keys.len() as u64 != present.data_keys {
        return Err(stale("has other data keys by now"));
    }
    let mut seen = HashSet::new();
    let mut records = Vec::with_capacity(request.data_keys.len());
    for data_key in &request.data_keys {
        data_keys::check_wrapped(data_key, &new)?;
        let record = cx.tx.get::<DataKey>(&keys::data_key(data_key.id))?;
        let record = record.filter(|record| record.key == key.name && seen.insert(data_key.id));
        let record = record.ok_or_else(|| stale("has other data keys by now"))?;
        records.push((data_key.id, DataKey { wrapped: data_key.wrapped.to_vec(), ..record }));
    }
    for (id, record) in records {
        cx.tx.put(keys::data_key(id), &record);
    }
    cx.tx.put(keys::master_key(&key.name), &MasterKey { data_keys: present.data_keys, ..new });
    Ok(Done {})
}
