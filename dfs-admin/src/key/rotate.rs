//! `dfs-admin key rotate`: all data keys of a key are decrypted with it, encrypted with a new one, and handed back in one
//! operation. Neither key leaves this process.

use std::path::Path;

use anyhow::{Context, Result, bail};
use dfs_client::keys::{MasterKey, Secret, read_secret};
use dfs_proto::limits::{MAX_DATA_KEYS, MAX_DATA_KEYS_PAGE};
use dfs_proto::meta::{DataKey, Key, KeySource, ListDataKeys, RotateKey, reply, request};
use dfs_proto::{Code, Failure};

use super::secret::{NewKey, ask};
use super::{done, find_key, make, open};
use crate::server::{Server, unexpected};

/// How often the data keys are listed anew when some came or went while they were encrypted.
const ATTEMPTS: u32 = 10;

/// Rotates a key. That the cluster has the new one already is as good: an answer may have been lost.
pub(super) async fn run(server: &Server, name: &str, from: Option<&Path>, new: &NewKey) -> Result<()> {
    let record = present(server, name).await?;
    let old = match open(&record, &present_secret(&record, from).await?).await {
        Ok(old) => old,
        Err(failure) => match new.present() {
            Some(secret) if is_of(&record, new, &secret).await => return Ok(()),
            _ => return Err(failure).context("open the key as it is now"),
        },
    };
    let secret = new.obtain().await?;
    if is_of(&record, new, &secret).await {
        bail!("the new key is the one that {name:?} is already: give another one");
    }
    let generation = record.generation.checked_add(1).context("a key cannot be rotated any more")?;
    let (key, new_key) = make(name, new.source(), &secret, generation).await?;
    for _ in 0..ATTEMPTS {
        let now = present(server, name).await?;
        if (now.generation, &now.check) != (record.generation, &record.check) {
            bail!(
                "somebody else rotated the key {name:?} meanwhile: `dfs-admin key list` tells its generation"
            );
        }
        let data_keys = list(server, name).await?;
        let data_keys = encrypt_anew(&data_keys, &old, &new_key)?;
        let rotate = RotateKey { key: Some(key.clone()), data_keys };
        match done(server, request::Op::RotateKey(rotate)).await {
            Err(failure) if failure.code == Code::Stale => {}
            rotated => return rotated.with_context(|| format!("rotate the key {name:?}{}", new.remains())),
        }
    }
    bail!(
        "data keys of {name:?} come and go faster than they can be encrypted anew{}: try again when fewer directories are given \
         classes",
        new.remains()
    )
}

async fn present(server: &Server, name: &str) -> Result<Key> {
    let record = find_key(server, name).await?;
    record.with_context(|| format!("there is no key {name:?}: `dfs-admin key list` tells those there are"))
}

/// The secret of the key as it is.
async fn present_secret(record: &Key, from: Option<&Path>) -> Result<Secret> {
    match from {
        Some(path) => Ok(read_secret(path)?),
        None if record.source() == KeySource::Passphrase => Ok(ask("Present passphrase: ", "--from").await?),
        None => bail!("give the file with the key {:?} as it is now with --from FILE", record.name),
    }
}

/// Whether the new secret is the key's already.
async fn is_of(record: &Key, new: &NewKey, secret: &Secret) -> bool {
    record.source() == new.source() && open(record, secret).await.is_ok()
}

/// All data keys that are encrypted with a key.
async fn list(server: &Server, name: &str) -> Result<Vec<DataKey>> {
    let mut all: Vec<DataKey> = Vec::new();
    loop {
        let after = all.last().map_or(0, |last| last.id);
        let op = request::Op::ListDataKeys(ListDataKeys { key: name.to_owned(), after });
        let page = match server.call(op).await? {
            reply::Result::DataKeys(page) => page.data_keys,
            other => bail!(unexpected(&other)),
        };
        let is_last = page.len() < MAX_DATA_KEYS_PAGE;
        all.extend(page);
        if all.len() > MAX_DATA_KEYS {
            bail!("the metadata server tells of more data keys than a key may have ({MAX_DATA_KEYS})");
        }
        if is_last {
            return Ok(all);
        }
    }
}

fn encrypt_anew(data_keys: &[DataKey], old: &MasterKey, new: &MasterKey) -> Result<Vec<DataKey>, Failure> {
    let anew = |data_key: &DataKey| Ok(DataKey { id: data_key.id, ..new.wrap(&old.unwrap(data_key)?)? });
    data_keys.iter().map(anew).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_keys_stay_what_they_are_under_another_key() {
        let key = |secret: u8, generation| {
            MasterKey::create("k", KeySource::KeyFile, &[secret; 32], generation).unwrap().1
        };
        let (old, new) = (key(1, 1), key(2, 2));
        let data_keys: Vec<_> = (1..=3).map(|_| dfs_client::keys::DataKey::random().unwrap()).collect();
        let wrapped: Vec<DataKey> =
            (1..).zip(&data_keys).map(|(id, key)| DataKey { id, ..old.wrap(key).unwrap() }).collect();
        let anew = encrypt_anew(&wrapped, &old, &new).unwrap();
        for (place, data_key) in data_keys.iter().enumerate() {
            assert_eq!((anew[place].id, anew[place].generation), (place as u64 + 1, 2));
            assert_eq!(new.unwrap(&anew[place]).unwrap().expose(), data_key.expose());
            assert_eq!(old.unwrap(&anew[place]).unwrap_err().code, Code::NoKey);
        }
        assert_eq!(encrypt_anew(&wrapped, &new, &old).unwrap_err().code, Code::NoKey);
    }
}
