//! What is committed but not in the tree yet: two tables in memory above it. The newer one takes what commits put; the older
//! one takes nothing more, and is being applied to the tree. What commits delete is taken out of both, and of the tree, at
//! once: there are no marks for deleted keys, which a search would have to walk over.
//!
//! Readers look into the newer table first, then into the older one, then into the tree. They hold no lock meanwhile: a
//! table that has been applied lives on for those who read it. A reader sees at least every commit that had returned when
//! it began; but a key that is overwritten at that very moment may be missing from its table.

use std::ops::Bound;
use std::sync::{Arc, RwLock};

use crossbeam_skiplist::SkipMap;
use crossbeam_skiplist::map::Entry;

use crate::store::{Pair, StoreError};

/// Values by key.
pub(super) type Table = SkipMap<Vec<u8>, Vec<u8>>;

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

const POISONED: &str = "no code panics while it changes the tables";

impl Pending {
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
    pub(super) fn put(&self, key: &[u8], value: &[u8]) {
        self.newer.insert(key.to_vec(), value.to_vec());
    }

    pub(super) fn remove(&self, key: &[u8]) {
        self.tables().for_each(|table| drop(table.remove(key)));
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.tables().find_map(|table| table.get(key)).map(|entry| entry.value().clone())
    }

    /// The pair with the greatest key in the range, of the tables alone.
    pub(super) fn last(&self, start: &[u8], end: &[u8]) -> Option<Pair> {
        let range = (Bound::Included(start), Bound::Excluded(end));
        let lasts = self.tables().filter_map(|table| table.range::<[u8], _>(range).next_back());
        // Of equal keys the newer table's counts.
        lasts.reduce(|newer, older| if older.key() > newer.key() { older } else { newer }).map(own)
    }

    /// The pairs with `start <= key < end`, sorted, of the tables above `tree`, which has the range's pairs in the same
    /// order.
    pub(super) fn merge<'a>(
        &'a self,
        (start, end): (&'a [u8], &'a [u8]),
        tree: impl Iterator<Item = Result<Pair, StoreError>> + 'a,
    ) -> impl Iterator<Item = Result<Pair, StoreError>> + 'a {
        let range = (Bound::Included(start), Bound::Excluded(end));
        let tables = self.tables().map(|table| Source::new(table.range::<[u8], _>(range).map(own).map(Ok)));
        let mut sources: Vec<Source<'a>> = tables.collect();
        sources.push(Source::new(tree));
        Merged { sources }
    }

    /// The newer one first.
    fn tables(&self) -> impl Iterator<Item = &Table> {
        std::iter::once(&*self.newer).chain(self.older.as_deref())
    }
}

fn own(entry: Entry<'_, Vec<u8>, Vec<u8>>) -> Pair {
    (entry.key().clone(), entry.value().clone())
}

/// Sources as one; where several have a key, the first of them counts.
struct Merged<'a> {
    sources: Vec<Source<'a>>,
}

/// Sorted pairs, with the next one at hand.
struct Source<'a> {
    pairs: Box<dyn Iterator<Item = Result<Pair, StoreError>> + 'a>,
    next: Option<Result<Pair, StoreError>>,
}

impl<'a> Source<'a> {
    fn new(pairs: impl Iterator<Item = Result<Pair, StoreError>> + 'a) -> Self {
        let mut pairs: Box<dyn Iterator<Item = _> + 'a> = Box::new(pairs);
        let next = pairs.next();
        Self { pairs, next }
    }

    fn key(&self) -> Option<&Vec<u8>> {
        self.next.as_ref().and_then(|pair| pair.as_ref().ok()).map(|(key, _)| key)
    }

    fn take(&mut self) -> Option<Result<Pair, StoreError>> {
        std::mem::replace(&mut self.next, self.pairs.next())
    }
}

impl Iterator for Merged<'_> {
    type Item = Result<Pair, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(failed) = self.sources.iter_mut().find(|source| matches!(source.next, Some(Err(_)))) {
            return failed.take();
        }
        let key = self.sources.iter().filter_map(Source::key).min()?.clone();
        let having = self.sources.iter_mut().filter(|source| source.key() == Some(&key));
        // All of them go on.
        having.filter_map(Source::take).reduce(|first, _| first)
    }
}
