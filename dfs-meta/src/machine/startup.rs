//! What happens to a store before the machine runs on it: a fresh one is made a filesystem, an older one is checked,
//! and the start is counted, so that clients notice it.

use dfs_proto::{Class, ClusterId, Timestamp};

use super::transaction::Transaction;
use crate::live::Live;
use crate::ops::{Settings, inode};
use crate::store::records::{Blob, Counter};
use crate::store::{Store, StoreError, keys};

/// How keys and records are laid out. A store of another format is refused.
const FORMAT: u64 = 1;

/// Why a store cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is not what this program can serve.
    #[error("{0}")]
    Refused(String),
}

/// Makes `store` ready: `settings` learns the cluster's id, the state in memory begins with what the store knows. A
/// fresh filesystem gets `new_cluster` as its id, and its files are kept as `class` says. The start is durable when
/// this returns.
pub fn prepare(
    store: &dyn Store,
    settings: &mut Settings,
    new_cluster: ClusterId,
    class: &Class,
    now: Timestamp,
) -> Result<Live, StartError> {
    let mut tx = Transaction::new(store, Vec::new());
    let format = tx.get::<Counter>(&keys::setting("format"))?;
    match format {
        Some(Counter { value: FORMAT }) => {}
        Some(Counter { value }) => {
            return Err(StartError::Refused(format!(
                "the metadata store has format {value}, this program knows format {FORMAT} only; run the version of \
                 dfs-meta that wrote it"
            )));
        }
        None if store.scan(&[], &[0xff], 1)?.is_empty() => {
            tx.put(keys::setting("format"), &Counter { value: FORMAT });
            tx.put(keys::setting("cluster"), &Blob { value: new_cluster.0.to_vec() });
            inode::put_root(&mut tx, class, now);
        }
        None => {
            let message = "the store holds data, but not a dfs filesystem's: its format is not told anywhere";
            return Err(StartError::Refused(message.into()));
        }
    }
    let cluster = tx.get::<Blob>(&keys::setting("cluster"))?.unwrap_or_default();
    settings.cluster = ClusterId::from_slice(&cluster.value).ok_or_else(|| {
        StartError::Refused("the metadata store does not say which cluster it is of".into())
    })?;
    let boot = tx.get::<Counter>(&keys::setting("boot"))?.unwrap_or_default().value + 1;
    tx.put(keys::setting("boot"), &Counter { value: boot });
    let live = Live::load(&mut tx, boot, settings)?;
    let (writes, _) = tx.finish();
    store.commit(&writes, &mut || ())?;
    Ok(live)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Batch;
    use crate::store::memory::MemoryStore;
    use crate::store::records::{Inode, Record, Session};
    use dfs_proto::{Epoch, Ino, SessionId};
    use std::time::Duration;

    const A: ClusterId = ClusterId([1; 16]);
    const B: ClusterId = ClusterId([2; 16]);

    fn start(store: &dyn Store, new: ClusterId) -> Result<(Live, Settings), StartError> {
        let mut settings = Settings::default();
        let class: Class = "replicated:2".parse().unwrap();
        let live = prepare(store, &mut settings, new, &class, Timestamp::default())?;
        Ok((live, settings))
    }

    fn put(store: &dyn Store, key: Vec<u8>, record: &impl Record) {
        store.commit(&Batch::from([(key, Some(record.to_value()))]), &mut || ()).unwrap();
    }

    #[test]
    fn a_filesystem_is_made_once_and_starts_are_counted() {
        let store = MemoryStore::default();
        let (live, settings) = start(&store, A).unwrap();
        assert_eq!((live.sessions.boot(), settings.cluster), (1, A));
        assert!(!live.sessions.in_grace(Duration::ZERO));
        let root = store.get(&keys::inode(Ino::ROOT)).unwrap().unwrap();
        assert_eq!(Inode::from_value(b"", &root).unwrap().class, "replicated:2");
        put(&store, keys::session(SessionId(5)), &Session { epoch: 9, ..Session::default() });
        let (live, settings) = start(&store, B).unwrap();
        assert_eq!((live.sessions.boot(), settings.cluster), (2, A));
        assert!(live.sessions.check(SessionId(5), Epoch(9)).is_ok());
        assert!(live.sessions.in_grace(Duration::ZERO));
    }

    #[test]
    fn strange_stores_are_refused() {
        let store = MemoryStore::default();
        put(&store, b"something".to_vec(), &Counter { value: 1 });
        assert!(start(&store, A).err().unwrap().to_string().contains("not a dfs filesystem"));
        let store = MemoryStore::default();
        start(&store, A).unwrap();
        put(&store, keys::setting("format"), &Counter { value: 77 });
        assert!(start(&store, A).err().unwrap().to_string().contains("format 77"));
        put(&store, keys::setting("format"), &Counter { value: FORMAT });
        put(&store, keys::setting("cluster"), &Blob { value: vec![1] });
        assert!(start(&store, A).err().unwrap().to_string().contains("which cluster"));
    }
}
