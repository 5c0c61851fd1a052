//! The tree: sled, the only file that names it. Knows nothing of durability but how to make all of itself durable at once.
//!
//! sled 0.34 writes its log with sync_file_range(2), which leaves the file's block map and the disk's cache alone, and
//! never syncs large values, which it keeps in files of their own: after a power loss, what it called flushed may be
//! gone. So only a checkpoint counts, and what came after the last one is applied once more.
//!
//! sled locks its directory, so that two servers never share a store.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::fcntl::{FallocateFlags, fallocate};
use sled::{Db, IVec, Mode};

use crate::store::{Batch, Pair, StoreError};

/// How long to wait for a store that another server has open.
const IN_USE_PATIENCE: Duration = Duration::from_secs(1);

/// An ordered map on a disk.
pub(super) struct Tree {
    db: Db,
    /// The log file that sled writes, opened once more.
    log: File,
    /// Its length when it was looked at last.
    log_bytes: AtomicU64,
    cache_bytes: u64,
    directory: PathBuf,
    /// Files of large values that are durable.
    synced: Mutex<HashSet<OsString>>,
}

impl Tree {
    /// Opens or creates the tree in `directory`; its page cache takes about `cache_bytes` of memory. Fails with a
    /// sentence when another process has it open.
    pub(super) fn open(directory: &Path, cache_bytes: u64) -> Result<Self, StoreError> {
        std::fs::create_dir_all(directory).map_err(|error| disk_error(&error, directory))?;
        let config = sled::Config::new()
            .path(directory)
            .cache_capacity(cache_bytes)
            .flush_every_ms(None)
            .mode(Mode::HighThroughput);
        let db = open_patiently(&config, directory)?;
        let path = directory.join("db");
        let log = File::options().write(true).open(&path).map_err(|error| disk_error(&error, &path))?;
        let log_bytes = AtomicU64::new(log.metadata()?.len());
        Ok(Self {
            db,
            log,
            log_bytes,
            cache_bytes,
            directory: directory.to_owned(),
            synced: Mutex::default(),
        })
    }

    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.db.get(key).map_err(engine_error)?.map(|value| value.to_vec()))
    }

    /// The pairs with `start <= key < end`, from either side.
    pub(super) fn range(
        &self,
        start: &[u8],
        end: &[u8],
    ) -> impl DoubleEndedIterator<Item = Result<Pair, StoreError>> + use<> {
        self.db.range(start..end).map(|pair| pair.map(own).map_err(engine_error))
    }

    /// Makes a change. sled's own batches would begin two new buffers of its log for each, and so write and sync twice.
    pub(super) fn apply(&self, key: &[u8], value: Option<&[u8]>) -> Result<(), StoreError> {
        match value {
            Some(value) => self.db.insert(key, value),
            None => self.db.remove(key),
        }
        .map_err(engine_error)?;
        Ok(())
    }

    /// Applies a batch of which all or nothing is there after a crash.
    pub(super) fn apply_atomically(&self, batch: &Batch) -> Result<(), StoreError> {
        let mut changes = sled::Batch::default();
        for (key, value) in batch {
            match value {
                Some(value) => changes.insert(&key[..], &value[..]),
                None => changes.remove(&key[..]),
            }
        }
        self.db.apply_batch(changes).map_err(engine_error)
    }

    /// Makes everything that was applied durable.
    pub(super) fn checkpoint(&self) -> Result<(), StoreError> {
        self.db.flush().map_err(engine_error)?;
        let blobs = self.directory.join("blobs");
        let mut synced = self.synced.lock().expect("no code panics while it compares names");
        let mut present = HashSet::new();
        for entry in std::fs::read_dir(&blobs).map_err(|error| disk_error(&error, &blobs))? {
            let entry = entry.map_err(|error| disk_error(&error, &blobs))?;
            let name = entry.file_name();
            if !synced.contains(&name) {
                match File::open(entry.path()).and_then(|file| file.sync_all()) {
                    // sled removes those it needs no more at any time.
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                    result => result.map_err(|error| disk_error(&error, &entry.path()))?,
                }
            }
            present.insert(name);
        }
        if present != *synced {
            let handle = File::open(&blobs).and_then(|directory| directory.sync_all());
            handle.map_err(|error| disk_error(&error, &blobs))?;
        }
        *synced = present;
        Ok(self.log.sync_data()?)
    }

    /// Keeps `bytes` set aside for later changes, as [`crate::store::Store::reserve`] asks: blocks beyond the end of sled's log are kept
    /// allocated, so that whoever else fills the disk, they are ours.
    pub(super) fn reserve(&self, bytes: u64) -> Result<bool, StoreError> {
        let metadata = self.log.metadata()?;
        self.log_bytes.store(metadata.len(), Ordering::Relaxed);
        let held = (metadata.blocks() * 512).saturating_sub(metadata.len());
        if held >= bytes / 2 {
            return Ok(true);
        }
        let stat = nix::sys::statvfs::fstatvfs(&self.log).map_err(std::io::Error::from)?;
        let free = stat.blocks_available() as u64 * stat.fragment_size() as u64;
        if held.saturating_add(free) < bytes {
            return Ok(false);
        }
        let beyond = (metadata.len() as i64, bytes as i64);
        match fallocate(&self.log, FallocateFlags::FALLOC_FL_KEEP_SIZE, beyond.0, beyond.1) {
            Ok(()) => Ok(true),
            Err(nix::Error::ENOSPC | nix::Error::EDQUOT) => Ok(false),
            // Such a filesystem promises nothing; that there is room now must do.
            Err(nix::Error::EOPNOTSUPP) => Ok(true),
            Err(error) => Err(std::io::Error::from(error).into()),
        }
    }

    /// Whether everything is in memory. The log is longer than what is in it, so that it is never said too late that the cache is too small.
    pub(super) fn fits_in_memory(&self) -> bool {
        self.log_bytes.load(Ordering::Relaxed) <= self.cache_bytes
    }

    pub(super) fn size_bytes(&self) -> Result<u64, StoreError> {
        self.db.size_on_disk().map_err(engine_error)
    }
}

fn own((key, value): (IVec, IVec)) -> Pair {
    (key.to_vec(), value.to_vec())
}

pub(super) fn disk_error(error: &std::io::Error, path: &Path) -> StoreError {
    match StoreError::is_full(error) {
        true => StoreError::Full,
        false => StoreError::Io(format!("{}: {error}", path.display())),
    }
}

fn engine_error(error: sled::Error) -> StoreError {
    match error {
        sled::Error::Io(error) => error.into(),
        error => StoreError::Io(error.to_string()),
    }
}

/// Opens sled; a store that was just closed may be held a moment longer by threads that finish writing.
fn open_patiently(config: &sled::Config, directory: &Path) -> Result<Db, StoreError> {
    let give_up = Instant::now() + IN_USE_PATIENCE;
    loop {
        match config.open().map_err(|error| open_error(error, directory)) {
            Err(StoreError::InUse(_)) if Instant::now() < give_up => std::thread::sleep(IN_USE_PATIENCE / 20),
            result => return result,
        }
    }
}

/// sled tells a lock held by somebody else only by its text.
fn open_error(error: sled::Error, directory: &Path) -> StoreError {
    let path = directory.display();
    match &error {
        sled::Error::Io(io) if io.to_string().contains("could not acquire lock") => {
            StoreError::InUse(format!(
                "{path} is in use by another metadata server; stop that one first, or give this one a directory of its own"
            ))
        }
        sled::Error::Io(io) if StoreError::is_full(io) => StoreError::Full,
        _ => StoreError::Io(format!("opening {path}: {error}")),
    }
}

/// Takes the place of the C library's sync_file_range(2), which sled calls after each write to its log: told that there
/// is no such call, sled uses fsync(2). Only so do its writes reach the disk in the order that its recovery counts on
/// (it overwrites old segments when newer ones are written); commits don't wait for them.
#[unsafe(no_mangle)]
extern "C" fn sync_file_range(_file: i32, _offset: i64, _length: i64, _flags: u32) -> i32 {
    nix::Error::ENOSYS.set();
    -1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_that_outgrows_its_cache_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let tree = Tree::open(directory.path(), 4 << 20).unwrap();
        assert!(tree.fits_in_memory());
        for number in 0..100_u32 {
            let value: Vec<u8> = (0..100_000_u32).map(|i| (i * number) as u8).collect();
            tree.apply(&number.to_le_bytes(), Some(&value)).unwrap();
            assert!(tree.reserve(0).unwrap());
        }
        tree.checkpoint().unwrap();
        assert!(tree.reserve(0).unwrap());
        assert!(!tree.fits_in_memory(), "10 MB are in it");
    }

    #[test]
    fn sled_is_made_to_use_fsync() {
        unsafe extern "C" {
            #[link_name = "sync_file_range"]
            fn as_sled_calls_it(file: i32, offset: i64, length: i64, flags: u32) -> i32;
        }
        // SAFETY: no pointers are passed.
        assert_eq!(unsafe { as_sled_calls_it(-1, 0, 0, 0) }, -1);
        assert_eq!(nix::Error::last(), nix::Error::ENOSYS, "the C library's would say EBADF");
    }

    #[test]
    fn a_reserve_is_set_aside_beyond_the_log_and_filled_up() {
        let directory = tempfile::tempdir().unwrap();
        let tree = Tree::open(directory.path(), 1 << 20).unwrap();
        assert!(tree.reserve(3 << 20).unwrap());
        let metadata = tree.log.metadata().unwrap();
        assert!(metadata.blocks() * 512 >= metadata.len() + (3 << 20));
        assert!(tree.reserve(3 << 20).unwrap(), "what is held already counts");
        tree.log.set_len(metadata.len() + (2 << 20)).unwrap();
        assert!(tree.reserve(3 << 20).unwrap());
        let metadata = tree.log.metadata().unwrap();
        assert!(metadata.blocks() * 512 >= metadata.len() + (3 << 20), "too little was left of it");
        assert!(!tree.reserve(1 << 60).unwrap(), "no disk has so much");
    }
}
