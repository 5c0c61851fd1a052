//! The data of files: dirty buffers, packing, write-back, reading and reading ahead, the block cache.
//!
//! One [`DataPlane`] a mount, one [`InodeData`] for each file that is open or dirty. Writes stay in memory until a flush
//! packs them into a chunk, makes it durable on its nodes and commits the extents; until that is answered they are
//! readable here. All memory is bounded: dirty bytes by the budget, cached blocks by the cache, requests by the fetcher.
//!
//! `inode` (state) → `layers` → `segments`; `flusher` → `packer`, `ids`, [`crate::encoding`], [`crate::chunk`]; `reader` →
//! `plan`, `fetch` → `cache`, `content` → [`crate::encoding`], [`crate::chunk`].

mod budget;
mod cache;
mod content;
mod fetch;
mod flusher;
mod ids;
mod inode;
mod layers;
mod packer;
mod plan;
mod readahead;
mod reader;
mod segments;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use dfs_proto::meta::PlanReply;
use dfs_proto::{Attr, Class, ClusterId, Failure, Ino, Labels};
use futures::future::join_all;
use tokio::runtime::Handle;

use crate::chunk::ChunkIo;
use crate::keys::Keyring;
use crate::session::MetaCalls;
use budget::Budget;
use cache::BlockCache;
use content::Contents;
use fetch::Fetcher;
use flusher::{Flusher, Urgency};
use ids::{ChunkIds, Kind};

pub use inode::InodeData;
pub use layers::WriteAt;

/// How often the age of dirty data is looked at, as a part of the age it may reach.
const AGE_CHECKS: u32 = 10;

/// What a mount decides about its data.
#[derive(Clone)]
pub struct DataSettings {
    /// Dirty bytes over all files, those on their way included. At least 4 MiB.
    pub dirty_budget_bytes: usize,
    /// Bytes of the block cache.
    pub cache_bytes: usize,
    /// The age at which dirty data is written back without being asked for.
    pub write_back_after: Duration,
    /// How long reads and uploads are tried before they fail; zero: for ever.
    pub timeout: Duration,
    /// Where this client is: near nodes are read from, and chosen for what it writes.
    pub labels: Labels,
    /// Called when what the kernel may have cached of a file is not what the file holds any more: appended bytes went to
    /// another place, or written bytes were lost. Called from a runtime thread; must not wait for requests.
    pub on_stale: Arc<dyn Fn(Ino) + Send + Sync>,
}

impl Default for DataSettings {
    fn default() -> Self {
        Self {
            dirty_budget_bytes: 128 * 1024 * 1024,
            cache_bytes: 192 * 1024 * 1024,
            write_back_after: Duration::from_secs(5),
            timeout: Duration::from_secs(60),
            labels: Labels::default(),
            on_stale: Arc::new(|_| {}),
        }
    }
}

impl fmt::Debug for DataSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataSettings")
            .field("dirty_budget_bytes", &self.dirty_budget_bytes)
            .field("cache_bytes", &self.cache_bytes)
            .field("write_back_after", &self.write_back_after)
            .field("timeout", &self.timeout)
            .field("labels", &self.labels)
            .finish_non_exhaustive()
    }
}

impl DataSettings {
    /// Whether what began at `started` has used up its time.
    fn is_over(&self, started: Instant) -> bool {
        !self.timeout.is_zero() && started.elapsed() >= self.timeout
    }
}

/// The data of all files on one mount.
pub struct DataPlane {
    settings: DataSettings,
    runtime: Handle,
    meta: Arc<dyn MetaCalls>,
    io: Arc<ChunkIo>,
    keys: Arc<Keyring>,
    ids: Arc<ChunkIds>,
    cache: Arc<BlockCache>,
    fetcher: Arc<Fetcher>,
    budget: Budget,
    flusher: Flusher,
    /// Every file somebody holds. Dead entries are removed by the file's drop.
    files: Mutex<HashMap<Ino, Weak<InodeData>>>,
    /// Files with dirty bytes, which must not go away.
    dirty: Mutex<HashMap<Ino, Arc<InodeData>>>,
}

impl DataPlane {
    /// The data of a mount. Must be called within a tokio runtime, on which its background work will run.
    pub fn new(
        meta: Arc<dyn MetaCalls>,
        cluster: ClusterId,
        keys: Arc<Keyring>,
        settings: DataSettings,
    ) -> Arc<Self> {
        let runtime = Handle::current();
        let io = Arc::new(ChunkIo::new(Arc::clone(&meta), cluster, settings.labels.clone()));
        let cache = Arc::new(BlockCache::new(settings.cache_bytes));
        let plane = Arc::new(Self {
            ids: Arc::new(ChunkIds::new(Arc::clone(&meta), Arc::clone(&io), settings.labels.clone())),
            fetcher: Fetcher::new(
                Contents::new(Arc::clone(&io), Arc::clone(&keys)),
                Arc::clone(&cache),
                runtime.clone(),
            ),
            budget: Budget::new(settings.dirty_budget_bytes),
            flusher: Flusher::default(),
            files: Mutex::default(),
            dirty: Mutex::default(),
            settings,
            runtime,
            meta,
            io,
            keys,
            cache,
        });
        tokio::spawn(write_back_by_age(Arc::downgrade(&plane), plane.settings.write_back_after));
        plane
    }

    /// The data of a file: the same for all its handles here, kept alive by them and as long as it is dirty. `attr` and
    /// `head`, the first extents, are fresh from the server.
    pub fn open(self: &Arc<Self>, attr: &Attr, head: Option<PlanReply>) -> Arc<InodeData> {
        let inode = {
            let mut files = self.files();
            match files.get(&Ino(attr.ino)).and_then(Weak::upgrade) {
                Some(inode) => inode,
                None => {
                    let inode = InodeData::new(Arc::clone(self), attr);
                    files.insert(Ino(attr.ino), Arc::downgrade(&inode));
                    inode
                }
            }
        };
        inode.refresh(attr, head);
        inode
    }

    /// The data of a file if it is open or dirty here.
    pub fn get(&self, ino: Ino) -> Option<Arc<InodeData>> {
        self.files().get(&ino).and_then(Weak::upgrade)
    }

    /// Makes everything that was written up to now durable. All files are tried; the first failure is returned.
    pub async fn flush_all(self: &Arc<Self>) -> Result<(), Failure> {
        let dirty: Vec<_> = self.dirty().values().cloned().collect();
        self.flusher.submit(self, dirty.iter().cloned(), Urgency::Waited);
        join_all(dirty.iter().map(|inode| inode.flush())).await.into_iter().collect()
    }

    /// Writes back, in the background, the dirty files that are `chosen`.
    fn write_back(self: &Arc<Self>, chosen: impl Fn(&InodeData) -> bool) {
        let mut dirty: Vec<_> = self.dirty().values().cloned().collect();
        dirty.retain(|inode| inode.is_waiting() && chosen(inode));
        self.flusher.submit(self, dirty, Urgency::Background);
    }

    /// A file has dirty bytes now. Called under the file's lock.
    fn became_dirty(&self, inode: Arc<InodeData>, class: Option<Class>) {
        if let Some(class) = class {
            // Most files are short.
            self.ids.prepare(&Kind { is_short: class.is_coded(), class }, &self.runtime);
        }
        self.dirty().insert(inode.ino(), inode);
    }

    /// A file has none any more. Called under the file's lock by somebody who holds the file.
    fn became_clean(&self, ino: Ino) {
        self.dirty().remove(&ino);
    }

    /// The last holder of a file let go of it.
    fn closed(&self, ino: Ino) {
        let mut files = self.files();
        if files.get(&ino).is_some_and(|file| file.strong_count() == 0) {
            files.remove(&ino);
        }
    }

    fn files(&self) -> MutexGuard<'_, HashMap<Ino, Weak<InodeData>>> {
        self.files.lock().expect("nothing panics while it holds the table of files")
    }

    fn dirty(&self) -> MutexGuard<'_, HashMap<Ino, Arc<InodeData>>> {
        self.dirty.lock().expect("nothing panics while it holds the table of dirty files")
    }
}

/// Writes back what has been dirty for `age`, as long as the plane lives.
async fn write_back_by_age(plane: Weak<DataPlane>, age: Duration) {
    let mut ticks = tokio::time::interval((age / AGE_CHECKS).max(Duration::from_millis(10)));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(plane) = plane.upgrade() else { return };
        // One tick early: the age is a promise.
        let old = age.saturating_sub(age / AGE_CHECKS * 2);
        plane.write_back(|inode| inode.waiting_since().is_some_and(|since| since.elapsed() >= old));
    }
}
