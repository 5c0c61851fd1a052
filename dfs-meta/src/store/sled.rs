//! The embedded engine: sled behind a write-ahead log. The only file that names sled.
//!
//! sled 0.34 writes its log with sync_file_range(2), which leaves the file's block map and the disk's cache alone, and
//! never syncs large values, which it keeps in files of their own: after a power loss, what it called flushed may be
//! gone. So a commit is durable in the [`Journal`] first, which is one write and one fdatasync(2), and then applied to
//! sled in memory; when the journal is full, and at every start, sled is made durable as a whole (a checkpoint) and
//! the journal begins again. After a crash the journal is replayed.
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

use super::journal::Journal;
use super::{Batch, Pair, Store, StoreError};

/// The write-ahead log's size: bounds the time of a replay, and is written once when the store is made.
const JOURNAL_BYTES: usize = 16 << 20;
/// A replay writes what is in the log to sled once more, and more than that: it must fit what is set aside for bad times.
const JOURNAL_PART_OF_RESERVE: u64 = 4;
const MIN_JOURNAL_BYTES: usize = 1 << 20;
/// How long to wait for a store that another server has open.
const IN_USE_PATIENCE: Duration = Duration::from_secs(1);

/// A store in a directory of its own.
pub struct SledStore {
    db: Db,
    /// The log file that sled writes, opened once more.
    log: File,
    /// Its length when it was looked at last.
    log_bytes: AtomicU64,
    cache_bytes: u64,
    directory: PathBuf,
    writer: Mutex<Writer>,
}

/// What commits need; they come one at a time.
struct Writer {
    journal: Journal,
    /// Files of large values that are durable.
    synced: HashSet<OsString>,
}

impl SledStore {
    /// Opens or creates the store in `directory`; its page cache takes about `cache_bytes` of memory. Fails with a
    /// sentence when another process has it open.
    pub fn open(directory: &Path, cache_bytes: u64) -> Result<Self, StoreError> {
        Self::open_with_journal(directory, cache_bytes, JOURNAL_BYTES)
    }

    /// The same for a store of which the caller will keep `reserve_bytes` of the disk free: when it is made, its log gets
    /// a size that can be replayed within them.
    pub fn open_within(directory: &Path, cache_bytes: u64, reserve_bytes: u64) -> Result<Self, StoreError> {
        let part = usize::try_from(reserve_bytes / JOURNAL_PART_OF_RESERVE).unwrap_or(JOURNAL_BYTES);
        Self::open_with_journal(directory, cache_bytes, part.clamp(MIN_JOURNAL_BYTES, JOURNAL_BYTES))
    }

    fn open_with_journal(directory: &Path, cache_bytes: u64, journal: usize) -> Result<Self, StoreError> {
        std::fs::create_dir_all(directory).map_err(|error| disk_error(&error, directory))?;
        let config = sled::Config::new()
            .path(directory)
            .cache_capacity(cache_bytes)
            .flush_every_ms(None)
            .mode(Mode::HighThroughput);
        let db = open_patiently(&config, directory)?;
        let path = directory.join("db");
        let log = File::options().write(true).open(&path).map_err(|error| disk_error(&error, &path))?;
        let journal = Journal::open(directory, journal, |batch| apply(&db, &batch))?;
        // The names of the files that were just made.
        for made in [Some(directory), directory.parent()].into_iter().flatten() {
            let handle = File::open(made).map_err(|error| disk_error(&error, made))?;
            handle.sync_all().map_err(|error| disk_error(&error, made))?;
        }
        let writer = Mutex::new(Writer { journal, synced: HashSet::new() });
        let log_bytes = AtomicU64::new(log.metadata()?.len());
        let store = Self { db, log, log_bytes, cache_bytes, directory: directory.to_owned(), writer };
        store.checkpoint(&mut store.writer.lock().expect(POISONED))?;
        Ok(store)
    }

    /// Makes sled durable as it is; the journal begins again.
    fn checkpoint(&self, writer: &mut Writer) -> Result<(), StoreError> {
        self.db.flush().map_err(engine_error)?;
        let blobs = self.directory.join("blobs");
        let mut present = HashSet::new();
        for entry in std::fs::read_dir(&blobs).map_err(|error| disk_error(&error, &blobs))? {
            let entry = entry.map_err(|error| disk_error(&error, &blobs))?;
            let name = entry.file_name();
            if !writer.synced.contains(&name) {
                match File::open(entry.path()).and_then(|file| file.sync_all()) {
                    // sled removes those it needs no more at any time.
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                    result => result.map_err(|error| disk_error(&error, &entry.path()))?,
                }
            }
            present.insert(name);
        }
        if present != writer.synced {
            let handle = File::open(&blobs).and_then(|directory| directory.sync_all());
            handle.map_err(|error| disk_error(&error, &blobs))?;
        }
        writer.synced = present;
        self.log.sync_data()?;
        writer.journal.restart();
        Ok(())
    }
}

const POISONED: &str = "no commit panics while it holds the journal";

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

    fn commit(&self, batch: &Batch, durable: &mut dyn FnMut()) -> Result<(), StoreError> {
        let mut writer = self.writer.lock().expect(POISONED);
        if !writer.journal.prepare(batch) {
            self.checkpoint(&mut writer)?;
            if !writer.journal.prepare(batch) {
                // Longer than the whole journal: sled applies a batch atomically by itself, only more slowly.
                apply_atomically(&self.db, batch)?;
                self.checkpoint(&mut writer)?;
                durable();
                return Ok(());
            }
        }
        writer.journal.append()?;
        durable();
        apply(&self.db, batch)
    }

    /// Blocks beyond the end of sled's log are kept allocated: whoever else fills the disk, they are ours.
    fn reserve(&self, bytes: u64) -> Result<bool, StoreError> {
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

    /// The log is longer than what is in it, so that it is never said too late that the cache is too small.
    fn fits_in_memory(&self) -> bool {
        self.log_bytes.load(Ordering::Relaxed) <= self.cache_bytes
    }

    fn size_bytes(&self) -> Result<u64, StoreError> {
        self.db.size_on_disk().map_err(engine_error)
    }
}

/// Applies a batch that is in the journal, which makes it whole after a crash. sled's own batches would begin two new
/// buffers of its log for each, and so write and sync twice.
fn apply(db: &Db, batch: &Batch) -> Result<(), StoreError> {
    for (key, value) in batch {
        match value {
            Some(value) => db.insert(&key[..], &value[..]),
            None => db.remove(&key[..]),
        }
        .map_err(engine_error)?;
    }
    Ok(())
}

fn apply_atomically(db: &Db, batch: &Batch) -> Result<(), StoreError> {
    let mut changes = sled::Batch::default();
    for (key, value) in batch {
        match value {
            Some(value) => changes.insert(&key[..], &value[..]),
            None => changes.remove(&key[..]),
        }
    }
    db.apply_batch(changes).map_err(engine_error)
}

fn own((key, value): (IVec, IVec)) -> Pair {
    (key.to_vec(), value.to_vec())
}

fn disk_error(error: &std::io::Error, path: &Path) -> StoreError {
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

    fn all(store: &SledStore) -> Vec<Pair> {
        store.scan(b"", b"\xff", usize::MAX).unwrap()
    }

    #[test]
    fn a_second_server_is_told_that_the_store_is_in_use() {
        let directory = tempfile::tempdir().unwrap();
        let first = SledStore::open(directory.path(), 1 << 20).unwrap();
        let refused = SledStore::open(directory.path(), 1 << 20).err().unwrap();
        assert!(
            matches!(&refused, StoreError::InUse(why) if why.contains("another metadata server")),
            "{refused}"
        );
        drop(first);
        SledStore::open(directory.path(), 1 << 20).unwrap();
    }

    #[test]
    fn commits_outlive_full_journals_and_batches_longer_than_one() {
        let directory = tempfile::tempdir().unwrap();
        let open = || SledStore::open_with_journal(directory.path(), 1 << 20, 8192).unwrap();
        let store = open();
        let mut expected = Vec::new();
        for number in 0..100u8 {
            // Each tenth is longer than the journal.
            let length = if number % 10 == 9 { 300_000 } else { 500 };
            let pair = (vec![number], vec![number; length]);
            store.commit(&Batch::from([(pair.0.clone(), Some(pair.1.clone()))]), &mut || ()).unwrap();
            expected.push(pair);
        }
        assert!(all(&store) == expected);
        drop(store);
        assert!(all(&open()) == expected);
    }

    #[test]
    fn the_journal_of_a_small_disk_is_small() {
        for (reserve, journal) in [(0, 1), (16 << 20, 4), (1 << 30, 16)] {
            let directory = tempfile::tempdir().unwrap();
            drop(SledStore::open_within(directory.path(), 1 << 20, reserve).unwrap());
            let made = std::fs::metadata(directory.path().join("journal")).unwrap().len();
            assert_eq!(made, journal << 20, "a reserve of {reserve}");
        }
    }

    #[test]
    fn what_only_the_journal_has_is_replayed() {
        let directory = tempfile::tempdir().unwrap();
        drop(SledStore::open(directory.path(), 1 << 20).unwrap());
        let batch =
            |value: &[u8]| Batch::from([(b"k".to_vec(), Some(value.to_vec())), (value.to_vec(), None)]);
        let mut journal = Journal::open(directory.path(), 0, |_| Ok::<_, StoreError>(())).unwrap();
        for value in [b"one", b"two"] {
            assert!(journal.prepare(&batch(value)));
            journal.append().unwrap();
        }
        let store = SledStore::open(directory.path(), 1 << 20).unwrap();
        assert_eq!(all(&store), [(b"k".to_vec(), b"two".to_vec())]);
        drop(store);
        // Replayed once: the journal has begun again, or rather has nothing newer to say.
        assert_eq!(
            all(&SledStore::open(directory.path(), 1 << 20).unwrap()),
            [(b"k".to_vec(), b"two".to_vec())]
        );
    }

    #[test]
    fn a_store_that_outgrows_its_cache_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let store = SledStore::open(directory.path(), 4 << 20).unwrap();
        assert!(store.fits_in_memory());
        for number in 0..100_u32 {
            let value = (0..100_000_u32).map(|i| (i * number) as u8).collect();
            store.commit(&Batch::from([(number.to_le_bytes().to_vec(), Some(value))]), &mut || ()).unwrap();
            assert!(store.reserve(0).unwrap());
        }
        store.db.flush().unwrap();
        assert!(store.reserve(0).unwrap());
        assert!(!store.fits_in_memory(), "10 MB are in it");
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
        let store = SledStore::open(directory.path(), 1 << 20).unwrap();
        assert!(store.reserve(3 << 20).unwrap());
        let metadata = store.log.metadata().unwrap();
        assert!(metadata.blocks() * 512 >= metadata.len() + (3 << 20));
        assert!(store.reserve(3 << 20).unwrap(), "what is held already counts");
        store.log.set_len(metadata.len() + (2 << 20)).unwrap();
        assert!(store.reserve(3 << 20).unwrap());
        let metadata = store.log.metadata().unwrap();
        assert!(metadata.blocks() * 512 >= metadata.len() + (3 << 20), "too little was left of it");
        assert!(!store.reserve(1 << 60).unwrap(), "no disk has so much");
    }
}
