//! What all parts of the store have in common: the disk, the table of shards, the fence, and the space promised to
//! writes under way.
//!
//! Locks, in the order in which they may be taken: `names`, then the segments' state, then `index` or `open_files`.

use std::io::{self, ErrorKind};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use dfs_proto::{ChunkId, ClusterId, Code, Failure};
use lru::LruCache;
use tokio::sync::Notify;

use super::disk::{Disk, Space};
use super::index::{Index, Place};
use super::shard_file::{ShardFile, ShardKey};

/// Shard files kept open with their tables (4 KiB each at most).
const MAX_OPEN_FILES: NonZeroUsize = NonZeroUsize::new(512).expect("not zero");

/// Space that is never given to shards.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reserve {
    /// So many bytes.
    Bytes(u64),
    /// A part of the disk, 0.0..1.0.
    Fraction(f64),
    /// 1 GiB, or 5 % of the disk where that is less.
    Default,
}

impl Reserve {
    /// In bytes, of a disk of this size.
    pub fn bytes(self, total_bytes: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Fraction(fraction) => (total_bytes as f64 * fraction) as u64,
            Self::Default => (1 << 30).min(total_bytes / 20),
        }
    }
}

/// How much a store holds and may still take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Bytes of shards plus what is available: on a disk shared with others, this store's share.
    pub capacity_bytes: u64,
    /// Free, less the reserve and what is promised to writes under way.
    pub available_bytes: u64,
}

/// Where a shard that is durable is kept.
pub(super) enum Kept {
    /// Under its name, and here is the file if that is open.
    File(Option<ShardFile>),
    /// In a segment.
    Record(Place),
}

pub(super) struct Shared {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) cluster: ClusterId,
    reserve: Reserve,
    /// Held while a shard file gets or loses its final name, so that a delete never misses one that is just being named.
    names: Mutex<()>,
    index: Mutex<Index>,
    open_files: Mutex<LruCache<ShardKey, Arc<ShardFile>>>,
    /// Why nothing is written any more.
    fence: OnceLock<String>,
    promised_bytes: AtomicU64,
    /// Chunks whose shard here was found corrupt or missing and of which nobody has been told yet.
    corrupt: Mutex<Vec<ChunkId>>,
    /// Rings when there is something that the metadata server should hear at once.
    pub(super) news: Notify,
}

/// Space promised to a write under way; given back when dropped.
pub(super) struct Promise {
    shared: Arc<Shared>,
    bytes: u64,
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.shared.promised_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Reports beyond this many wait until a heartbeat has taken some away; they are found again by the next reader.
const MAX_CORRUPT_REPORTS: usize = 4096;

impl Shared {
    pub(super) fn new(disk: Arc<dyn Disk>, cluster: ClusterId, reserve: Reserve, index: Index) -> Self {
        Self {
            disk,
            cluster,
            reserve,
            names: Mutex::default(),
            index: Mutex::new(index),
            open_files: Mutex::new(LruCache::new(MAX_OPEN_FILES)),
            fence: OnceLock::new(),
            promised_bytes: AtomicU64::new(0),
            corrupt: Mutex::default(),
            news: Notify::new(),
        }
    }

    pub(super) fn names(&self) -> MutexGuard<'_, ()> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().expect("a panic left the table of shards half changed")
    }

    pub(super) fn open_files(&self) -> MutexGuard<'_, LruCache<ShardKey, Arc<ShardFile>>> {
        self.open_files.lock().expect("a panic left the table of open files half changed")
    }

    /// Enters a shard that is durable.
    pub(super) fn add(&self, key: ShardKey, length: u32, kept: Kept) {
        // Before the shard is in the index, where a delete finds it: no deleted file stays open.
        let place = match kept {
            Kept::File(Some(file)) => {
                self.open_files().put(key, Arc::new(file));
                None
            }
            Kept::File(None) => {
                self.open_files().pop(&key);
                None
            }
            Kept::Record(place) => {
                self.open_files().pop(&key);
                Some(place)
            }
        };
        let before = self.index().insert(key, length, place, 0, Instant::now());
        if place.is_some() && before.is_some_and(|before| before.place.is_none()) {
            // A damaged file, which the record heals.
            if let Err(error) = self.disk.remove(&shard_path(key)) {
                tracing::warn!(%error, chunk = %key.chunk, "a damaged shard file is left until the next start");
            }
        }
    }

    /// Whether the disk takes writes.
    pub(super) fn check_writable(&self) -> Result<(), Failure> {
        match self.fence.get() {
            None => Ok(()),
            Some(reason) => Err(Failure::new(
                Code::InputOutput,
                format!("this node takes no more writes: {reason}; check its disk and start it again"),
            )),
        }
    }

    pub(super) fn is_fenced(&self) -> bool {
        self.fence.get().is_some()
    }

    /// Ends all writing. What is here is still read.
    pub(super) fn raise_fence(&self, reason: String) {
        if self.fence.set(reason.clone()).is_ok() {
            tracing::error!(reason, "the disk is fenced: reads only from now on");
            self.news.notify_one();
        }
    }

    /// What an error of a write means: a full disk is told, a failing one is fenced.
    pub(super) fn write_failed(&self, doing: &str, error: &io::Error) -> Failure {
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                Failure::new(Code::NoSpace, format!("cannot {doing}: the disk is full"))
            }
            // Of this process, not of the disk.
            ErrorKind::OutOfMemory | ErrorKind::PermissionDenied => {
                Failure::new(Code::InputOutput, format!("cannot {doing}: {error}"))
            }
            _ if matches!(error.raw_os_error(), Some(nix::libc::EMFILE | nix::libc::ENFILE)) => {
                Failure::new(Code::Unavailable, format!("cannot {doing}: {error}"))
            }
            _ => self.sync_failed(doing, error),
        }
    }

    /// What an error of making something durable means: the kernel may have dropped what it could not write, so that
    /// asking again would succeed without it. Nothing is written any more.
    pub(super) fn sync_failed(&self, doing: &str, error: &io::Error) -> Failure {
        if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) {
            return Failure::new(Code::NoSpace, format!("cannot {doing}: the disk is full"));
        }
        self.raise_fence(format!("cannot {doing}: {error}"));
        Failure::new(Code::InputOutput, format!("cannot {doing}: {error}"))
    }

    /// Notes a shard that cannot be read as it should.
    pub(super) fn note_corrupt(&self, key: ShardKey, failure: &Failure) {
        self.open_files().pop(&key);
        if !self.index().mark_corrupt(key) {
            return;
        }
        tracing::error!(chunk = %key.chunk, index = %key.index, %failure, "a shard is damaged");
        let mut corrupt = self.corrupt.lock().unwrap_or_else(PoisonError::into_inner);
        if corrupt.len() < MAX_CORRUPT_REPORTS && !corrupt.contains(&key.chunk) {
            corrupt.push(key.chunk);
            self.news.notify_one();
        }
    }

    /// The damaged chunks that nobody has been told of; told is what is passed to [`Self::forget_corrupt`].
    pub(super) fn corrupt(&self) -> Vec<ChunkId> {
        self.corrupt.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn forget_corrupt(&self, told: &[ChunkId]) {
        self.corrupt.lock().unwrap_or_else(PoisonError::into_inner).retain(|chunk| !told.contains(chunk));
    }

    /// Takes space for a file of this length out of what is available. NO_SPACE.
    pub(super) fn promise(self: &Arc<Self>, bytes: u64) -> Result<Promise, Failure> {
        let space = self.space()?;
        let reserve = self.reserve.bytes(space.total_bytes);
        // Taken first, so that of two at once one sees the other's.
        let promised = self.promised_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let promise = Promise { shared: self.clone(), bytes };
        if promised > space.free_bytes.saturating_sub(reserve) {
            return Err(Failure::new(Code::NoSpace, "the node's disk is full down to its reserve"));
        }
        Ok(promise)
    }

    pub(super) fn room(&self) -> Result<Room, Failure> {
        let space = self.space()?;
        let available_bytes = space
            .free_bytes
            .saturating_sub(self.reserve.bytes(space.total_bytes))
            .saturating_sub(self.promised_bytes.load(Ordering::Relaxed));
        let used_bytes = self.index().used_bytes();
        Ok(Room { capacity_bytes: used_bytes.saturating_add(available_bytes), available_bytes })
    }

    fn space(&self) -> Result<Space, Failure> {
        self.disk.space().map_err(|error| {
            Failure::new(Code::InputOutput, format!("cannot ask the disk for its space: {error}"))
        })
    }
}

/// The directory of a shard file. Chunk ids are handed out in order, so neighbours share a directory, and making many of
/// them durable at once touches few; 256 directories share the load of a large disk evenly.
pub(super) fn shard_directory(chunk: ChunkId) -> PathBuf {
    PathBuf::from(format!("shards/{:02x}", chunk.0 >> 12 & 0xff))
}

/// The path of a shard file.
pub(super) fn shard_path(key: ShardKey) -> PathBuf {
    shard_directory(key.chunk).join(format!("{:016x}.{}", key.chunk.0, key.index))
}
