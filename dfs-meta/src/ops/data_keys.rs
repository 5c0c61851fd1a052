//! Keys and data keys as records, below the operations on them. A data key lives as long as an inode or a chunk names it,
//! and a key can't be removed while there is a data key encrypted with it, so that nothing becomes unreadable by accident.
//!
//! Keys themselves never come here: see `dfs_client::keys`.

use dfs_proto::class::check_key_name;
use dfs_proto::encoding::WRAPPED_LENGTH;
use dfs_proto::{Code, Failure, limits, meta};

use super::{Context, counters};
use crate::store::keys;
use crate::store::records::{DataKey, MasterKey};

/// The record of a key. NO_KEY when there is none.
pub(super) fn load_master(cx: &mut Context<'_, '_>, name: &str) -> Result<MasterKey, Failure> {
    let key = match check_key_name(name) {
        Ok(()) => cx.tx.get::<MasterKey>(&keys::master_key(name))?,
        Err(_) => None,
    };
    key.ok_or_else(|| {
        let message = format!("there is no key {name:?}: `dfs-admin key create {name}` makes one");
        Failure::new(Code::NoKey, message)
    })
}

/// The record of a data key. NOT_FOUND when there is none.
pub(super) fn load(cx: &mut Context<'_, '_>, id: u64) -> Result<DataKey, Failure> {
    let key = cx.tx.get::<DataKey>(&keys::data_key(id))?;
    key.ok_or_else(|| Failure::new(Code::NotFound, format!("there is no data key {id}")))
}

/// Adds a data key, with one user; its id. NO_KEY, INVALID, STALE (the key was rotated), NO_SPACE (it has too many).
pub(super) fn add(
    cx: &mut Context<'_, '_>,
    name: &str,
    data_key: Option<&meta::DataKey>,
) -> Result<u64, Failure> {
    let mut master = load_master(cx, name)?;
    let Some(data_key) = data_key.filter(|data_key| data_key.key == name) else {
        let message = format!(
            "a data key encrypted with {name:?} is needed: set the class through a mount that has the key"
        );
        return Err(Failure::new(Code::NoKey, message));
    };
    check_wrapped(data_key, &master)?;
    if master.data_keys >= limits::MAX_DATA_KEYS as u64 {
        let message = format!(
            "{} directories have data keys of the key {name:?} already: create another key",
            limits::MAX_DATA_KEYS
        );
        return Err(Failure::new(Code::NoSpace, message));
    }
    let id = counters::take(cx, counters::LAST_DATA_KEY)?;
    let record = DataKey { key: name.to_owned(), wrapped: data_key.wrapped.to_vec(), users: 1 };
    cx.tx.put(keys::data_key(id), &record);
    master.data_keys += 1;
    cx.tx.put(keys::master_key(name), &master);
    Ok(id)
}

/// INVALID, or STALE when it was encrypted with another generation of the key.
pub(super) fn check_wrapped(data_key: &meta::DataKey, master: &MasterKey) -> Result<(), Failure> {
    if data_key.wrapped.len() != WRAPPED_LENGTH {
        return Err(Failure::new(Code::Invalid, format!("an encrypted data key has {WRAPPED_LENGTH} bytes")));
    }
    if data_key.generation != master.generation {
        let message = format!("the key {:?} was rotated: mount anew with the key as it is now", data_key.key);
        return Err(Failure::new(Code::Stale, message));
    }
    Ok(())
}

/// Somebody more names a data key. 0: none.
pub(super) fn hold(cx: &mut Context<'_, '_>, id: u64) -> Result<(), Failure> {
    if id != 0 {
        let mut data_key = load(cx, id)?;
        data_key.users += 1;
        cx.tx.put(keys::data_key(id), &data_key);
    }
    Ok(())
}

/// Somebody names it no more; with the last it goes. 0: none.
pub(super) fn release(cx: &mut Context<'_, '_>, id: u64) -> Result<(), Failure> {
    if id == 0 {
        return Ok(());
    }
    let mut data_key = load(cx, id)?;
    data_key.users = data_key.users.saturating_sub(1);
    if data_key.users > 0 {
        cx.tx.put(keys::data_key(id), &data_key);
        return Ok(());
    }
    cx.tx.delete(keys::data_key(id));
    let mut master = load_master(cx, &data_key.key)?;
    master.data_keys = master.data_keys.saturating_sub(1);
    cx.tx.put(keys::master_key(&data_key.key), &master);
    Ok(())
}

/// NO_KEY unless the client has the key of this data key; 0: none is needed.
pub(super) fn check_has(cx: &mut Context<'_, '_>, id: u64, names: &[String]) -> Result<(), Failure> {
    if id == 0 {
        return Ok(());
    }
    let data_key = load(cx, id)?;
    if names.contains(&data_key.key) {
        return Ok(());
    }
    let message = format!(
        "it is encrypted with the key {:?}, which this mount lacks: mount with -o key={0}:FILE",
        data_key.key
    );
    Err(Failure::new(Code::NoKey, message))
}

/// As the wire has it.
pub(super) fn shown(name: String, master: &MasterKey) -> meta::Key {
    meta::Key {
        name,
        source: master.source,
        salt: master.salt.clone().into(),
        rounds: master.rounds,
        check: master.check.clone().into(),
        generation: master.generation,
        data_keys: master.data_keys,
    }
}

/// A record from what the wire has. INVALID.
pub(super) fn master_of(key: &meta::Key) -> Result<MasterKey, Failure> {
    check_key_name(&key.name)?;
    let source = meta::KeySource::try_from(key.source);
    let fits = match source {
        Ok(meta::KeySource::KeyFile) => key.salt.is_empty() && key.rounds == 0,
        Ok(meta::KeySource::Passphrase) => {
            (16..=64).contains(&key.salt.len()) && key.rounds >= limits::MIN_PASSPHRASE_ROUNDS
        }
        Err(_) => false,
    };
    if !fits || key.check.len() != 32 {
        let message = format!("the key {:?} does not say how it is made, or how to tell it", key.name);
        return Err(Failure::new(Code::Invalid, message));
    }
    Ok(MasterKey {
        source: key.source,
        salt: key.salt.to_vec(),
        rounds: key.rounds,
        check: key.check.to_vec(),
        generation: key.generation,
        data_keys: 0,
    })
}

#[cfg(test)]
mod tests;
