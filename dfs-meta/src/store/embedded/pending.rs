//! What is committed but not in the tree yet: two tables in memory above it. The newer one takes commits; the older one
//! changes no more, and is being applied to the tree.
//!
//! Readers look into the newer table first, then into the older one, then into the tree. They hold no lock meanwhile: a
//! table that has been applied lives on for those who read it. A reader sees at least every commit that had returned when
//! it began.

use std::ops::Bound;
use std::sync::{Arc, RwLock};

use crossbeam_skiplist::SkipMap;
use crossbeam_skiplist::map::Entry;

use crate::store::{Batch, Pair, StoreError};

/// Changes by key: `None` deletes.
pub(super) type Table = SkipMap<Vec<u8>, Option<Vec<u8>>>;

/// Both tables.
#[derive(Default)]
pub(super) struct Pending {
    layers: RwLock<Layers>,
}

/// The tables as a reader found them.
#[derive(Clone, Default)]
pub(super) struct Layers {
    newer: Arc<Table>,
    older: Option<Arc<Table>>,
}

/// Which end of a range comes first.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    Start,
    End,
}

type Change = Result<(Vec<u8>, Option<Vec<u8>>), StoreError>;

const POISONED: &str = "no code panics while it changes the tables";

impl Pending {
    /// Enters a batch that is durable.
    pub(super) fn insert(&self, batch: &Batch) {
        let newer = self.layers().newer;
        for (key, value) in batch {
            newer.insert(key.clone(), value.clone());
        }
    }

    pub(super) fn layers(&self) -> Layers {
        self.layers.read().expect(POISONED).clone()
    }

    /// The newer table becomes the older one, of which there must be none; commits go to an empty one from now on.
    pub(super) fn turn(&self) {
        let mut layers = self.layers.write().expect(POISONED);
        assert!(layers.older.is_none(), "the older table is applied before the next one takes its place");
        layers.older = Some(std::mem::take(&mut layers.newer));
    }

    /// The table to apply.
    pub(super) fn older(&self) -> Option<Arc<Table>> {
        self.layers().older
    }

    /// Everything in the older table is in the tree.
    pub(super) fn applied(&self) {
        self.layers.write().expect(POISONED).older = None;
    }
}

impl Layers {
    /// What the tables say of a key: `None` nothing, so that the tree is to be asked.
    pub(super) fn get(&self, key: &[u8]) -> Option<Option<Vec<u8>>> {
        let tables = std::iter::once(&self.newer).chain(&self.older);
        tables.into_iter().find_map(|table| table.get(key)).map(|entry| entry.value().clone())
    }

    /// The pairs with `start <= key < end`, sorted from this side, of the tables above `tree`, which has the range's
    /// pairs in the same order.
    pub(super) fn merge<'a>(
        &'a self,
        (start, end): (&'a [u8], &'a [u8]),
        from: From,
        tree: impl Iterator<Item = Result<Pair, StoreError>> + 'a,
    ) -> impl Iterator<Item = Result<Pair, StoreError>> + 'a {
        let bounds = (Bound::Included(start), Bound::Excluded(end));
        let mut sources: Vec<Source<'a>> = Vec::with_capacity(3);
        for table in std::iter::once(&self.newer).chain(&self.older) {
            let changes = table.range::<[u8], _>(bounds);
            let own =
                |entry: Entry<'_, Vec<u8>, Option<Vec<u8>>>| Ok((entry.key().clone(), entry.value().clone()));
            sources.push(match from {
                From::Start => Source::new(changes.map(own)),
                From::End => Source::new(changes.rev().map(own)),
            });
        }
        sources.push(Source::new(tree.map(|pair| pair.map(|(key, value)| (key, Some(value))))));
        let exists = |change: Change| match change {
            Ok((key, value)) => value.map(|value| Ok((key, value))),
            Err(error) => Some(Err(error)),
        };
        Merged { sources, from }.filter_map(exists)
    }
}

/// Sources as one; where several have a key, the first of them counts.
struct Merged<'a> {
    sources: Vec<Source<'a>>,
    from: From,
}

/// Sorted changes, with the next one at hand.
struct Source<'a> {
    changes: Box<dyn Iterator<Item = Change> + 'a>,
    next: Option<Change>,
}

impl<'a> Source<'a> {
    fn new(changes: impl Iterator<Item = Change> + 'a) -> Self {
        let mut changes: Box<dyn Iterator<Item = Change> + 'a> = Box::new(changes);
        let next = changes.next();
        Self { changes, next }
    }

    fn key(&self) -> Option<&Vec<u8>> {
        self.next.as_ref().and_then(|change| change.as_ref().ok()).map(|(key, _)| key)
    }

    fn take(&mut self) -> Option<Change> {
        std::mem::replace(&mut self.next, self.changes.next())
    }
}

impl Iterator for Merged<'_> {
    type Item = Change;

    fn next(&mut self) -> Option<Change> {
        if let Some(failed) = self.sources.iter_mut().find(|source| matches!(source.next, Some(Err(_)))) {
            return failed.take();
        }
        let keys = self.sources.iter().filter_map(Source::key);
        let key = match self.from {
            From::Start => keys.min(),
            From::End => keys.max(),
        };
        let key = key?.clone();
        let having = self.sources.iter_mut().filter(|source| source.key() == Some(&key));
        // All of them go on.
        having.filter_map(Source::take).reduce(|first, _| first)
    }
}
