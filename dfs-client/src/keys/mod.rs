//! The keys that a client has, and the data keys that it decrypts with them.
//!
//! The metadata server keeps data keys encrypted, and of keys only what tells whether one is right; neither leaves this
//! process. Keys are read once, at the mount: who is given another one mounts anew.

mod files;
mod master;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Arc, Mutex};

use dfs_proto::limits::MAX_KEYS;
use dfs_proto::meta::{self, GetDataKey, ListKeys, reply, request};
use dfs_proto::{Code, Failure};
use lru::LruCache;

pub use files::{KeyFiles, create_secret, read_secret};
pub(crate) use master::derive;
pub use master::{DataKey, KEY_LENGTH, MasterKey, Secret};

use crate::session::MetaCalls;

/// Data keys kept decrypted.
const MAX_DATA_KEYS: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// The keys of one mount.
pub struct Keyring {
    meta: Arc<dyn MetaCalls>,
    masters: BTreeMap<String, MasterKey>,
    names: Vec<String>,
    data_keys: Mutex<LruCache<u64, Arc<DataKey>>>,
}

impl Keyring {
    /// Reads keys and checks them against what the cluster knows of them. NO_KEY when one that was given by itself is not
    /// there or is another one; what a directory has of that kind is told in the log and left out.
    pub async fn open(meta: Arc<dyn MetaCalls>, files: &KeyFiles) -> Result<Self, Failure> {
        let all = files.all()?;
        let known = if all.is_empty() { Vec::new() } else { list(&*meta).await? };
        let mut masters = BTreeMap::new();
        for (name, path) in all {
            let record = known.iter().find(|record| record.name == name).cloned();
            match open_file(record, &name, &path).await {
                Ok(key) => {
                    masters.insert(name, key);
                }
                Err(failure) if files.files.contains_key(&name) => return Err(failure),
                Err(failure) => tracing::warn!("a key is left out: {failure}"),
            }
        }
        if masters.len() > MAX_KEYS {
            return Err(Failure::new(Code::Invalid, format!("a mount has at most {MAX_KEYS} keys")));
        }
        Ok(Self::new(meta, masters))
    }

    pub(crate) fn new(meta: Arc<dyn MetaCalls>, masters: BTreeMap<String, MasterKey>) -> Self {
        let names = masters.keys().cloned().collect();
        Self { meta, masters, names, data_keys: Mutex::new(LruCache::new(MAX_DATA_KEYS)) }
    }

    /// A mount's that was given none.
    pub fn empty(meta: Arc<dyn MetaCalls>) -> Self {
        Self::new(meta, BTreeMap::new())
    }

    /// The names of the keys, for the metadata server to see what can be opened.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// A data key. NO_KEY without its key.
    pub async fn data_key(&self, id: u64) -> Result<Arc<DataKey>, Failure> {
        if let Some(data_key) = self.known(id) {
            return Ok(data_key);
        }
        let record = match self.meta.read(request::Op::GetDataKey(GetDataKey { id })).await? {
            reply::Result::DataKeys(found) => found.data_keys.into_iter().find(|found| found.id == id),
            _ => None,
        };
        let record = record.ok_or_else(|| {
            Failure::new(
                Code::InputOutput,
                "the metadata server answered with something else than a data key",
            )
        })?;
        let data_key = Arc::new(self.master(&record.key)?.unwrap(&record)?);
        self.data_keys().put(id, Arc::clone(&data_key));
        Ok(data_key)
    }

    fn known(&self, id: u64) -> Option<Arc<DataKey>> {
        self.data_keys().get(&id).cloned()
    }

    /// A fresh data key, encrypted with a key. NO_KEY without that.
    pub fn fresh(&self, key: &str) -> Result<meta::DataKey, Failure> {
        self.master(key)?.wrap(&DataKey::random()?)
    }

    fn master(&self, name: &str) -> Result<&MasterKey, Failure> {
        self.masters.get(name).ok_or_else(|| {
            let message = format!("this mount lacks the key {name:?}: mount with -o key={name}:FILE");
            Failure::new(Code::NoKey, message)
        })
    }

    fn data_keys(&self) -> std::sync::MutexGuard<'_, LruCache<u64, Arc<DataKey>>> {
        self.data_keys.lock().expect("nothing panics while it holds the data keys")
    }
}

/// What the cluster knows of its keys.
async fn list(meta: &dyn MetaCalls) -> Result<Vec<meta::Key>, Failure> {
    match meta.read(request::Op::ListKeys(ListKeys {})).await? {
        reply::Result::Keys(keys) => Ok(keys.keys),
        _ => {
            Err(Failure::new(Code::InputOutput, "the metadata server answered with something else than keys"))
        }
    }
}

/// The key in a file.
async fn open_file(record: Option<meta::Key>, name: &str, path: &Path) -> Result<MasterKey, Failure> {
    let record = record.ok_or_else(|| {
        let message = format!("the cluster has no key {name:?}: `dfs-admin key create {name}` makes one");
        Failure::new(Code::NoKey, message)
    })?;
    let path = path.to_owned();
    // A passphrase takes long.
    let opened = tokio::task::spawn_blocking(move || {
        let told = |failure: Failure| Failure::new(failure.code, format!("{}: {failure}", path.display()));
        let secret = read_secret(&path)?;
        MasterKey::open(&record, &secret).map_err(told)
    });
    opened.await.map_err(|error| Failure::new(Code::InputOutput, format!("reading a key failed: {error}")))?
}
