//! What an operation reads and writes: its own writes, over those of the running group, over those of the group that
//! is being committed, over the store. Dropping a transaction drops its writes, so an operation that fails leaves
//! none behind.

use std::collections::BTreeMap;

use crate::store::keys::{Key, KeyRange};
use crate::store::records::Record;
use crate::store::{Batch, Pair, Store, StoreError};

/// Writes of operations before that are not in the store yet.
#[derive(Clone, Copy)]
pub struct Overlay<'a> {
    /// What they write.
    pub batch: &'a Batch,
    /// Whether they would survive a power cut.
    pub durable: bool,
}

/// One operation's view of the state.
pub struct Transaction<'a> {
    store: &'a dyn Store,
    /// Not yet in the store, newest first.
    overlays: Vec<Overlay<'a>>,
    writes: Batch,
    read_uncommitted: bool,
}

impl<'a> Transaction<'a> {
    /// A view of `overlays` (newest first) over `store`, with no writes yet.
    pub fn new(store: &'a dyn Store, overlays: Vec<Overlay<'a>>) -> Self {
        Self { store, overlays, writes: Batch::new(), read_uncommitted: false }
    }

    /// The writes, and whether the reply must wait because something read was not durable yet.
    pub fn finish(self) -> (Batch, bool) {
        (self.writes, self.read_uncommitted)
    }

    /// Whether nothing was written.
    pub fn is_read_only(&self) -> bool {
        self.writes.is_empty()
    }

    /// The record at `key`.
    pub fn get<R: Record>(&mut self, key: &[u8]) -> Result<Option<R>, StoreError> {
        match self.get_value(key)? {
            Some(value) => R::from_value(key, &value).map(Some),
            None => Ok(None),
        }
    }

    /// Whether there is a record at `key`.
    pub fn contains(&mut self, key: &[u8]) -> Result<bool, StoreError> {
        Ok(self.get_value(key)?.is_some())
    }

    /// Puts a record.
    pub fn put<R: Record>(&mut self, key: Key, record: &R) {
        self.writes.insert(key, Some(record.to_value()));
    }

    /// Deletes a record, if there is one.
    pub fn delete(&mut self, key: Key) {
        self.writes.insert(key, None);
    }

    /// At most `limit` records of a range, in key order.
    pub fn scan<R: Record>(&mut self, range: &KeyRange, limit: usize) -> Result<Vec<(Key, R)>, StoreError> {
        let pairs = self.scan_values(range, limit)?;
        pairs
            .into_iter()
            .map(|(key, value)| R::from_value(&key, &value).map(|record| (key, record)))
            .collect()
    }

    /// At most `limit` keys of a range, in order.
    pub fn scan_keys(&mut self, range: &KeyRange, limit: usize) -> Result<Vec<Key>, StoreError> {
        Ok(self.scan_values(range, limit)?.into_iter().map(|(key, _)| key).collect())
    }

    /// Whether a range holds nothing.
    pub fn is_empty(&mut self, range: &KeyRange) -> Result<bool, StoreError> {
        Ok(self.scan_values(range, 1)?.is_empty())
    }

    /// The record with the greatest key of a range.
    pub fn last<R: Record>(&mut self, range: &KeyRange) -> Result<Option<(Key, R)>, StoreError> {
        let mut end = range.end.clone();
        loop {
            let mut found = self.store.last(&range.start, &end)?;
            for layer in self.layers() {
                if range.start < end {
                    let newest = layer.range(range.start.clone()..end.clone()).next_back();
                    if let Some((key, value)) = newest
                        && found.as_ref().is_none_or(|(best, _)| key > best)
                    {
                        found = Some((key.clone(), value.clone().unwrap_or_default()));
                    }
                }
            }
            let Some((key, _)) = found else { return Ok(None) };
            // A newer layer may have changed or deleted what an older one shows.
            match self.get::<R>(&key)? {
                Some(record) => return Ok(Some((key, record))),
                None => end = key,
            }
        }
    }

    /// The layers above the store, oldest first.
    fn layers(&self) -> impl Iterator<Item = &Batch> {
        self.overlays.iter().rev().map(|overlay| overlay.batch).chain(std::iter::once(&self.writes))
    }

    fn get_value(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        if let Some(value) = self.writes.get(key) {
            return Ok(value.clone());
        }
        for overlay in &self.overlays {
            if let Some(value) = overlay.batch.get(key) {
                self.read_uncommitted |= !overlay.durable;
                return Ok(value.clone());
            }
        }
        self.store.get(key)
    }

    fn scan_values(&mut self, range: &KeyRange, limit: usize) -> Result<Vec<Pair>, StoreError> {
        if range.start >= range.end || limit == 0 {
            return Ok(Vec::new());
        }
        let mut above: BTreeMap<&Key, &Option<Vec<u8>>> = BTreeMap::new();
        let mut uncommitted = false;
        for overlay in self.overlays.iter().rev() {
            let mut in_range = overlay.batch.range(range.start.clone()..range.end.clone()).peekable();
            uncommitted |= !overlay.durable && in_range.peek().is_some();
            above.extend(in_range);
        }
        above.extend(self.writes.range(range.start.clone()..range.end.clone()));

        // Deletes above hide pairs below, so ask for that many more, and go on until the store has no more to give.
        let page = limit.saturating_add(above.len()).min(limit.max(1024));
        let mut merged = Vec::new();
        let mut start = range.start.clone();
        let mut above = above.into_iter().peekable();
        'store: loop {
            let below = self.store.scan(&start, &range.end, page)?;
            let exhausted = below.len() < page;
            if let Some((last, _)) = below.last() {
                start = last.clone();
                start.push(0);
            }
            for (key, value) in below {
                while let Some((upper, change)) = above.next_if(|(upper, _)| **upper < key) {
                    if let Some(change) = change {
                        merged.push((upper.clone(), change.clone()));
                        if merged.len() == limit {
                            break 'store;
                        }
                    }
                }
                match above.next_if(|(upper, _)| **upper == key) {
                    Some((_, Some(change))) => merged.push((key, change.clone())),
                    Some((_, None)) => continue,
                    None => merged.push((key, value)),
                }
                if merged.len() == limit {
                    break 'store;
                }
            }
            if exhausted {
                let rest =
                    above.filter_map(|(key, change)| change.clone().map(|change| (key.clone(), change)));
                merged.extend(rest.take(limit - merged.len()));
                break;
            }
        }
        self.read_uncommitted |= uncommitted;
        Ok(merged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::MemoryStore;
    use crate::store::records::Counter;
    use proptest::prelude::*;

    fn key(number: u8) -> Key {
        vec![b'M', number]
    }

    fn batch(changes: &[(u8, Option<u64>)]) -> Batch {
        changes
            .iter()
            .map(|&(at, value)| (key(at), value.map(|value| Counter { value }.to_value())))
            .collect()
    }

    fn changes() -> impl Strategy<Value = Vec<(u8, Option<u64>)>> {
        proptest::collection::vec((0u8..24, proptest::option::of(0u64..100)), 0..24)
    }

    proptest! {
        #[test]
        fn layers_read_as_one_map(
            stored in changes(), older in changes(), newer in changes(), own in changes(),
            start in 0u8..24, length in 0u8..24, limit in 1usize..12,
        ) {
            let store = MemoryStore::default();
            store.commit(&batch(&stored), &mut || ()).unwrap();
            let (older, newer) = (batch(&older), batch(&newer));
            let mut model = BTreeMap::new();
            for layer in [&batch(&stored), &older, &newer, &batch(&own)] {
                for (key, value) in layer {
                    match value {
                        Some(value) => model.insert(key.clone(), Counter::from_value(key, value).unwrap().value),
                        None => model.remove(key),
                    };
                }
            }
            let overlays = [&newer, &older].map(|batch| Overlay { batch, durable: false });
            let mut tx = Transaction::new(&store, overlays.into());
            for (at, value) in &batch(&own) {
                match value {
                    Some(value) => tx.put(at.clone(), &Counter::from_value(at, value).unwrap()),
                    None => tx.delete(at.clone()),
                }
            }
            for at in 0..24 {
                let got = tx.get::<Counter>(&key(at)).unwrap().map(|counter| counter.value);
                prop_assert_eq!(got, model.get(&key(at)).copied());
            }
            let range = KeyRange { start: key(start), end: key(start + length) };
            let expected: Vec<_> = model.range(range.start.clone()..range.end.clone()).map(|(k, v)| (k.clone(), *v)).collect();
            let got: Vec<_> = tx.scan::<Counter>(&range, limit).unwrap().into_iter().map(|(k, c)| (k, c.value)).collect();
            prop_assert_eq!(&got[..], &expected[..expected.len().min(limit)]);
            let last = tx.last::<Counter>(&range).unwrap().map(|(k, c)| (k, c.value));
            prop_assert_eq!(last, expected.last().cloned());
        }
    }

    #[test]
    fn what_is_not_durable_yet_is_noticed() {
        let store = MemoryStore::default();
        store.commit(&batch(&[(1, Some(1))]), &mut || ()).unwrap();
        let (pending, durable) = (batch(&[(2, Some(2))]), batch(&[(4, Some(4))]));
        let overlays =
            vec![Overlay { batch: &pending, durable: false }, Overlay { batch: &durable, durable: true }];
        let mut tx = Transaction::new(&store, overlays);
        let all = |start: u8, end: u8| KeyRange { start: key(start), end: key(end) };
        tx.get::<Counter>(&key(1)).unwrap();
        tx.put(key(3), &Counter { value: 3 });
        tx.get::<Counter>(&key(3)).unwrap();
        assert!(tx.get::<Counter>(&key(4)).unwrap().is_some());
        assert_eq!(tx.scan_keys(&all(3, 9), 9).unwrap(), [key(3), key(4)]);
        assert!(!tx.read_uncommitted);
        tx.scan_keys(&all(0, 9), 9).unwrap();
        assert!(std::mem::take(&mut tx.read_uncommitted));
        tx.get::<Counter>(&key(2)).unwrap();
        assert!(tx.finish().1);
    }
}
