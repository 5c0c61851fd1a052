//! The embedded engine, for a metadata server on one machine: a write-ahead log, tables in memory, a tree on disk.
//!
//! A commit is durable when it is in the [`journal`], which is one write and one fdatasync(2), and is then entered in a
//! table in memory ([`pending`]). When half of the journal is full, commits go on with the other half and another table,
//! while a thread applies the first table to the [`tree`] and makes that durable as a whole: what was changed many times
//! meanwhile, or made and removed again, is written once or not at all, and nobody waits for it. After a crash, and at every
//! start, the journal is replayed.

mod journal;
mod pending;
mod tree;

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

use self::journal::Journal;
use self::pending::{From, Pending};
use self::tree::{Tree, disk_error};
use super::{Batch, Pair, Store, StoreError};

/// The journal's size: bounds the time of a replay and the memory of the tables, and is written once when the store is made.
const JOURNAL_BYTES: usize = 16 << 20;
/// A replay writes what is in the journal to the tree once more, and more than that: it must fit what is set aside for bad
/// times.
const JOURNAL_PART_OF_RESERVE: u64 = 4;
const MIN_JOURNAL_BYTES: usize = 1 << 20;

const POISONED: &str = "no commit panics while it holds the journal";

/// A store in a directory of its own.
pub struct EmbeddedStore {
    parts: Arc<Parts>,
    /// Commits come one at a time.
    journal: Mutex<Journal>,
    applier: Option<JoinHandle<()>>,
}

/// What the thread that applies has to do with.
struct Parts {
    tree: Tree,
    pending: Pending,
    progress: Mutex<Progress>,
    changed: Condvar,
}

#[derive(Default)]
struct Progress {
    /// The older table is on its way to the tree.
    applying: bool,
    /// Why it can't go there: nothing is committed any more.
    failure: Option<StoreError>,
    ending: bool,
}

impl EmbeddedStore {
    /// Opens or creates the store in `directory`; its page cache takes about `cache_bytes` of memory. Fails with a
    /// sentence when another process has it open.
    pub fn open(directory: &Path, cache_bytes: u64) -> Result<Self, StoreError> {
        Self::open_with_journal(directory, cache_bytes, JOURNAL_BYTES)
    }

    /// The same for a store of which the caller will keep `reserve_bytes` of the disk free: when it is made, its journal
    /// gets a size that can be replayed within them.
    pub fn open_within(directory: &Path, cache_bytes: u64, reserve_bytes: u64) -> Result<Self, StoreError> {
        let part = usize::try_from(reserve_bytes / JOURNAL_PART_OF_RESERVE).unwrap_or(JOURNAL_BYTES);
        Self::open_with_journal(directory, cache_bytes, part.clamp(MIN_JOURNAL_BYTES, JOURNAL_BYTES))
    }

    fn open_with_journal(directory: &Path, cache_bytes: u64, journal: usize) -> Result<Self, StoreError> {
        let tree = Tree::open(directory, cache_bytes)?;
        let replay =
            |batch: Batch| batch.iter().try_for_each(|(key, value)| tree.apply(key, value.as_deref()));
        let journal = Journal::open(directory, journal, replay)?;
        // The names of the files that were just made.
        for made in [Some(directory), directory.parent()].into_iter().flatten() {
            let handle = File::open(made).map_err(|error| disk_error(&error, made))?;
            handle.sync_all().map_err(|error| disk_error(&error, made))?;
        }
        tree.checkpoint()?;
        let parts = Arc::new(Parts {
            tree,
            pending: Pending::default(),
            progress: Mutex::default(),
            changed: Condvar::new(),
        });
        let applying = parts.clone();
        let applier = std::thread::Builder::new().name("apply".into()).spawn(move || applying.run())?;
        Ok(Self { parts, journal: Mutex::new(journal), applier: Some(applier) })
    }

    /// Goes on in the journal's other half, when everything in it is in the tree.
    fn turn(&self, journal: &mut Journal) -> Result<(), StoreError> {
        let mut progress = self.parts.applied()?;
        self.parts.pending.turn();
        progress.applying = true;
        self.parts.changed.notify_all();
        journal.turn();
        Ok(())
    }

    /// A batch longer than half of the journal goes to the tree by itself, once everything before it is there.
    fn commit_past_journal(&self, journal: &mut Journal, batch: &Batch) -> Result<(), StoreError> {
        // Nothing older must be left in the journal: it would be replayed over the batch.
        for _ in 0..2 {
            self.turn(journal)?;
            journal.prepare(&Batch::new());
            journal.append()?;
        }
        drop(self.parts.applied()?);
        self.parts.tree.apply_atomically(batch)?;
        self.parts.tree.checkpoint()
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        self.parts.progress().ending = true;
        self.parts.changed.notify_all();
        if self.applier.take().is_some_and(|applier| applier.join().is_err()) {
            tracing::error!("the thread that applies commits ended by a panic");
        }
    }
}

impl Parts {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().expect("no code panics while it notes progress")
    }

    /// Waits until everything in the older table is in the tree.
    fn applied(&self) -> Result<MutexGuard<'_, Progress>, StoreError> {
        let waiting = |progress: &mut Progress| progress.applying && progress.failure.is_none();
        let progress = self.changed.wait_while(self.progress(), waiting);
        let progress = progress.expect("no code panics while it notes progress");
        progress.check()?;
        Ok(progress)
    }

    /// The thread that applies. What it leaves at the end is in the journal.
    fn run(&self) {
        loop {
            let idle = |progress: &mut Progress| !progress.applying && !progress.ending;
            let progress = self.changed.wait_while(self.progress(), idle);
            if progress.expect("no code panics while it notes progress").ending {
                return;
            }
            let result = self.apply();
            let mut progress = self.progress();
            progress.applying = false;
            progress.failure = result.err();
            self.changed.notify_all();
            if let Some(error) = &progress.failure {
                tracing::error!(%error, "what was committed could not be applied; it is in the journal");
                return;
            }
        }
    }

    fn apply(&self) -> Result<(), StoreError> {
        let Some(table) = self.pending.older() else { return Ok(()) };
        for change in table.iter() {
            self.tree.apply(change.key(), change.value().as_deref())?;
        }
        self.tree.checkpoint()?;
        self.pending.applied();
        Ok(())
    }
}

impl Progress {
    /// Whether commits can go on.
    fn check(&self) -> Result<(), StoreError> {
        match &self.failure {
            None => Ok(()),
            Some(StoreError::Full) => Err(StoreError::Full),
            Some(error) => Err(StoreError::Io(error.to_string())),
        }
    }
}

impl Store for EmbeddedStore {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        match self.parts.pending.layers().get(key) {
            Some(value) => Ok(value),
            None => self.parts.tree.get(key),
        }
    }

    fn scan(&self, start: &[u8], end: &[u8], limit: usize) -> Result<Vec<Pair>, StoreError> {
        if start >= end {
            return Ok(Vec::new());
        }
        let layers = self.parts.pending.layers();
        let tree = self.parts.tree.range(start, end);
        layers.merge((start, end), From::Start, tree).take(limit).collect()
    }

    fn last(&self, start: &[u8], end: &[u8]) -> Result<Option<Pair>, StoreError> {
        if start >= end {
            return Ok(None);
        }
        let layers = self.parts.pending.layers();
        let tree = self.parts.tree.range(start, end).rev();
        layers.merge((start, end), From::End, tree).next().transpose()
    }

    fn commit(&self, batch: &Batch, durable: &mut dyn FnMut()) -> Result<(), StoreError> {
        let mut journal = self.journal.lock().expect(POISONED);
        self.parts.progress().check()?;
        if !journal.prepare(batch) {
            self.turn(&mut journal)?;
            if !journal.prepare(batch) {
                self.commit_past_journal(&mut journal, batch)?;
                durable();
                return Ok(());
            }
        }
        journal.append()?;
        durable();
        self.parts.pending.insert(batch);
        Ok(())
    }

    fn reserve(&self, bytes: u64) -> Result<bool, StoreError> {
        self.parts.tree.reserve(bytes)
    }

    fn fits_in_memory(&self) -> bool {
        self.parts.tree.fits_in_memory()
    }

    fn size_bytes(&self) -> Result<u64, StoreError> {
        self.parts.tree.size_bytes()
    }
}

#[cfg(test)]
mod tests;
