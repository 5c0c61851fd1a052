//! The store's twin in memory, for tests: the same contract but for durability, of which it has none.

use std::collections::BTreeMap;
use std::sync::RwLock;

use super::{Batch, Pair, Store, StoreError};

/// An ordered map behind a lock.
#[derive(Default)]
pub struct MemoryStore {
    pairs: RwLock<BTreeMap<Vec<u8>, Vec<u8>>>,
}

const POISONED: &str = "no code panics while it holds the map";

impl Store for MemoryStore {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.pairs.read().expect(POISONED).get(key).cloned())
    }

    fn scan(&self, start: &[u8], end: &[u8], limit: usize) -> Result<Vec<Pair>, StoreError> {
        if start >= end {
            return Ok(Vec::new());
        }
        let pairs = self.pairs.read().expect(POISONED);
        let range = pairs.range(start.to_vec()..end.to_vec());
        Ok(range.take(limit).map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    fn last(&self, start: &[u8], end: &[u8]) -> Result<Option<Pair>, StoreError> {
        if start >= end {
            return Ok(None);
        }
        let pairs = self.pairs.read().expect(POISONED);
        let last = pairs.range(start.to_vec()..end.to_vec()).next_back();
        Ok(last.map(|(key, value)| (key.clone(), value.clone())))
    }

    fn commit(&self, batch: &Batch, durable: &mut dyn FnMut()) -> Result<(), StoreError> {
        let mut pairs = self.pairs.write().expect(POISONED);
        for (key, value) in batch {
            match value {
                Some(value) => pairs.insert(key.clone(), value.clone()),
                None => pairs.remove(key),
            };
        }
        drop(pairs);
        durable();
        Ok(())
    }

    fn reserve(&self, _bytes: u64) -> Result<bool, StoreError> {
        Ok(true)
    }

    fn fits_in_memory(&self) -> bool {
        true
    }

    fn size_bytes(&self) -> Result<u64, StoreError> {
        let pairs = self.pairs.read().expect(POISONED);
        Ok(pairs.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum())
    }
}
