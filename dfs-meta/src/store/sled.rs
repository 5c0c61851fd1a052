//! The embedded engine: sled. The only file that names it.
//!
//! sled's own background flush is off: a commit applies its batch atomically, flushes sled's log and then forces the
//! log file to disk itself, because sled 0.34 only calls sync_file_range(2), which neither writes the file's size and
//! block map nor empties the disk's cache. sled locks its directory, so that two servers never share a store.

use std::fs::File;
use std::path::{Path, PathBuf};

use sled::{Db, IVec, Mode};

use super::{Batch, Pair, Store, StoreError};

/// A store in a directory of its own.
pub struct SledStore {
    db: Db,
    /// The log that sled writes, opened once more to force it to disk.
    log: File,
}

impl SledStore {
    /// Opens or creates the store in `directory`; its page cache takes about `cache_bytes` of memory. Fails with a
    /// sentence when another process has it open.
    pub fn open(directory: &Path, cache_bytes: u64) -> Result<Self, StoreError> {
        std::fs::create_dir_all(directory).map_err(|error| disk_error(&error, directory))?;
        let config = sled::Config::new()
            .path(directory)
            .cache_capacity(cache_bytes)
            .flush_every_ms(None)
            .mode(Mode::HighThroughput);
        let db = config.open().map_err(|error| open_error(error, directory))?;
        let path = directory.join("db");
        let log = File::open(&path).map_err(|error| disk_error(&error, &path))?;
        // The names of the files that sled has just made.
        for made in [Some(directory), directory.parent()].into_iter().flatten() {
            let handle = File::open(made).map_err(|error| disk_error(&error, made))?;
            handle.sync_all().map_err(|error| disk_error(&error, made))?;
        }
        Ok(Self { db, log })
    }
}

impl Store for SledStore {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.db.get(key).map_err(engine_error)?.map(|value| value.to_vec()))
    }

    fn scan(&self, start: &[u8], end: &[u8], limit: usize) -> Result<Vec<Pair>, StoreError> {
        if start >= end {
            return Ok(Vec::new());
        }
        self.db.range(start..end).take(limit).map(|pair| pair.map(own).map_err(engine_error)).collect()
    }

    fn last(&self, start: &[u8], end: &[u8]) -> Result<Option<Pair>, StoreError> {
        if start >= end {
            return Ok(None);
        }
        self.db.range(start..end).next_back().transpose().map(|pair| pair.map(own)).map_err(engine_error)
    }

    fn commit(&self, batch: &Batch) -> Result<(), StoreError> {
        let mut changes = sled::Batch::default();
        for (key, value) in batch {
            match value {
                Some(value) => changes.insert(&key[..], &value[..]),
                None => changes.remove(&key[..]),
            }
        }
        self.db.apply_batch(changes).map_err(engine_error)?;
        self.db.flush().map_err(engine_error)?;
        self.log.sync_data().map_err(|error| engine_error(sled::Error::Io(error)))
    }

    fn size_bytes(&self) -> Result<u64, StoreError> {
        self.db.size_on_disk().map_err(engine_error)
    }
}

fn own((key, value): (IVec, IVec)) -> Pair {
    (key.to_vec(), value.to_vec())
}

fn is_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}

fn disk_error(error: &std::io::Error, path: &Path) -> StoreError {
    match is_full(error) {
        true => StoreError::Full,
        false => StoreError::Io(format!("{}: {error}", path.display())),
    }
}

fn engine_error(error: sled::Error) -> StoreError {
    match error {
        sled::Error::Io(error) if is_full(&error) => StoreError::Full,
        error => StoreError::Io(error.to_string()),
    }
}

/// sled tells a lock held by somebody else only by its text.
fn open_error(error: sled::Error, directory: &Path) -> StoreError {
    let path = PathBuf::from(directory);
    match &error {
        sled::Error::Io(io) if io.to_string().contains("could not acquire lock") => StoreError::Io(format!(
            "{} is in use by another metadata server; stop that one first, or give this one a directory of its own",
            path.display()
        )),
        sled::Error::Io(io) if is_full(io) => StoreError::Full,
        _ => StoreError::Io(format!("opening {}: {error}", path.display())),
    }
}
