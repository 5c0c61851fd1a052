//! The embedded engine, for a metadata server on one machine: a write-ahead log, tables in memory, a tree on disk.
//!
//! A commit is durable when it is in the [`journal`], which is one write and one fdatasync(2). What it puts is then entered
//! in a table in memory ([`pending`]), and what it deletes is taken away. When half of the journal is full, commits go on
//! with the other half and another table, while a thread applies the first table to the [`tree`] and makes that durable as
//! a whole: what was changed many times meanwhile, or made and removed again, is written once or not at all, and nobody
//! waits for it. After a crash, and at every start, the journal is replayed; the tree may know of some of it already.

mod journal;
mod pending;
mod tree;

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use self::journal::Journal;
use self::pending::Pending;
use self::tree::{Tree, disk_error};
use super::{Batch, Pair, Store, StoreError};

/// The journal's size: bounds the time of a replay and the memory of the tables, and is written once when the store is made.
const JOURNAL_BYTES: usize = 16 << 20;
/// A replay writes what is in the journal to the tree once more, and more than that: it must fit what is set aside for bad
/// times.
const JOURNAL_PART_OF_RESERVE: u64 = 4;
const MIN_JOURNAL_BYTES: usize = 1 << 20;

/// The thread that applies does so many pairs (some tenths of a millisecond of a processor) and then leaves the processor
/// to those that somebody waits for, until somebody waits for it.
const PAIRS_AT_ONCE: usize = 32;
const PAUSE: Duration = Duration::from_millis(1);

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
    /// Held while a pair goes from the older table to the tree, so that it does not go there when it is deleted.
    step: Mutex<()>,
    progress: Mutex<Progress>,
    changed: Condvar,
}

#[derive(Default)]
struct Progress {
    /// The older table is on its way to the tree.
    applying: bool,
    /// Somebody waits for that.
    urgent: bool,
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
            step: Mutex::default(),
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
        let mut progress = self.progress();
        if progress.applying {
            progress.urgent = true;
            self.changed.notify_all();
        }
        let waiting = |progress: &mut Progress| progress.applying && progress.failure.is_none();
        let progress = self.changed.wait_while(progress, waiting);
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
            if !self.note(|| self.apply()) {
                return;
            }
        }
    }

    /// Notes how `apply` ended, by a panic too, so that nobody waits for it in vain. Whether there will be more.
    fn note(&self, apply: impl FnOnce() -> Result<(), StoreError>) -> bool {
        let result = catch_unwind(AssertUnwindSafe(apply))
            .unwrap_or_else(|_| Err(StoreError::Io("a panic while commits were applied".into())));
        let mut progress = self.progress();
        (progress.applying, progress.urgent) = (false, false);
        progress.failure = result.err();
        self.changed.notify_all();
        if let Some(error) = &progress.failure {
            tracing::error!(%error, "what was committed could not be applied; it is in the journal");
        }
        progress.failure.is_none()
    }

    /// Makes a batch that is durable visible to readers.
    fn show(&self, batch: &Batch) -> Result<(), StoreError> {
        let layers = self.pending.layers();
        for (key, value) in batch {
            match value {
                Some(value) => layers.put(key, value),
                None => {
                    let _step = self.step();
                    layers.remove(key);
                    self.tree.apply(key, None)?;
                }
            }
        }
        Ok(())
    }

    fn step(&self) -> MutexGuard<'_, ()> {
        self.step.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits a moment, unless somebody waits. False when all is to end.
    fn pause(&self) -> bool {
        let idle = |progress: &mut Progress| !progress.urgent && !progress.ending;
        let waited = self.changed.wait_timeout_while(self.progress(), PAUSE, idle);
        !waited.expect("no code panics while it notes progress").0.ending
    }

    fn apply(&self) -> Result<(), StoreError> {
        let Some(table) = self.pending.older() else { return Ok(()) };
        for (number, pair) in table.iter().enumerate() {
            if number % PAIRS_AT_ONCE == 0 && !self.pause() {
                return Ok(());
            }
            let _step = self.step();
            if !pair.is_removed() {
                self.tree.apply(pair.key(), Some(pair.value()))?;
            }
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
            Some(value) => Ok(Some(value)),
            None => self.parts.tree.get(key),
        }
    }

    fn scan(&self, start: &[u8], end: &[u8], limit: usize) -> Result<Vec<Pair>, StoreError> {
        if start >= end {
            return Ok(Vec::new());
        }
        let layers = self.parts.pending.layers();
        let tree = self.parts.tree.range(start, end);
        layers.merge((start, end), tree).take(limit).collect()
    }

    fn last(&self, start: &[u8], end: &[u8]) -> Result<Option<Pair>, StoreError> {
        if start >= end {
            return Ok(None);
        }
        let pending = self.parts.pending.layers().last(start, end);
        let tree = self.parts.tree.range(start, end).next_back().transpose()?;
        // Of equal keys the tables' counts.
        Ok(match (pending, tree) {
            (Some(pending), Some(tree)) if tree.0 > pending.0 => Some(tree),
            (pending, tree) => pending.or(tree),
        })
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
        self.parts.show(batch)
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
