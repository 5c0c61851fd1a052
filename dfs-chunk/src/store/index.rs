//! Which shards are here and where: a sorted table in memory, built at start from the segments and from the names and
//! lengths of the files. Some 60 bytes a shard; the disk is never listed again.
//!
//! Only shards that are durable and whole enter it. One found corrupt stays, so that its good blocks can still be read,
//! but is no longer reported as held, and a new copy may replace it.

use std::collections::BTreeMap;
use std::time::Instant;

use dfs_proto::{ChunkId, ShardIndex};

use super::shard_file::{self, ShardKey};

/// The unit of places in segments, in bytes.
pub(super) const PAGE: u64 = 4096;

/// Where a shard lies in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) segment: u32,
    /// Its first page, and how many it takes.
    pub(super) page: u32,
    pub(super) pages: u32,
}

/// What is known of a shard without opening it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    /// Bytes of data.
    pub(super) length: u32,
    /// `None`: it has a file of its own.
    pub(super) place: Option<Place>,
    /// Failed a checksum since this process started.
    pub(super) corrupt: bool,
    /// Seconds after the index's base; negative for what was there before.
    written_s: i32,
}

impl Held {
    fn used_bytes(&self) -> u64 {
        match self.place {
            Some(place) => u64::from(place.pages) * PAGE,
            None => shard_file::file_length(self.length),
        }
    }
}

/// The table. Not locked by itself.
pub(super) struct Index {
    shards: BTreeMap<ShardKey, Held>,
    /// Places that have become free since they were taken away last: at most as many as shards are deleted meanwhile.
    freed: Vec<Place>,
    used_bytes: u64,
    base: Instant,
}

/// A stretch of the table for the metadata server: everything held from the asked chunk on to `last`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The last chunk id that the page covers completely; `u64::MAX` when it is the end.
    pub last: ChunkId,
    /// The shards with lengths and ages in milliseconds, sorted.
    pub shards: Vec<(ShardKey, u32, u64)>,
}

impl Index {
    /// An empty one; ages count from `now`.
    pub(super) fn new(now: Instant) -> Self {
        Self { shards: BTreeMap::new(), freed: Vec::new(), used_bytes: 0, base: now }
    }

    /// Adds a shard written `age_ms` before `now`. Returns what it replaces.
    pub(super) fn insert(
        &mut self,
        key: ShardKey,
        length: u32,
        place: Option<Place>,
        age_ms: u64,
        now: Instant,
    ) -> Option<Held> {
        let since_base = now.duration_since(self.base).as_secs() as i64;
        let written = since_base - i64::try_from(age_ms / 1000).unwrap_or(i64::MAX).min(i64::MAX / 2);
        let written_s = written.clamp(i32::MIN.into(), i32::MAX.into()) as i32;
        let before = self.remove(key);
        let held = Held { length, place, corrupt: false, written_s };
        self.shards.insert(key, held);
        self.used_bytes += held.used_bytes();
        before
    }

    /// Forgets a shard.
    pub(super) fn remove(&mut self, key: ShardKey) -> Option<Held> {
        let held = self.shards.remove(&key)?;
        self.used_bytes -= held.used_bytes();
        self.freed.extend(held.place);
        Some(held)
    }

    /// The places in segments of what was removed or replaced since this was asked last.
    pub(super) fn take_freed(&mut self) -> Vec<Place> {
        std::mem::take(&mut self.freed)
    }

    /// What is known of a shard.
    pub(super) fn get(&self, key: ShardKey) -> Option<Held> {
        self.shards.get(&key).copied()
    }

    /// The shards of a chunk that are here.
    pub(super) fn of_chunk(&self, chunk: ChunkId) -> Vec<ShardKey> {
        let key = |index| ShardKey { chunk, index: ShardIndex(index) };
        self.shards.range(key(0)..=key(u32::MAX)).map(|(key, _)| *key).collect()
    }

    /// Notes that a shard failed its checksum. Whether that is news.
    pub(super) fn mark_corrupt(&mut self, key: ShardKey) -> bool {
        match self.shards.get_mut(&key) {
            Some(held) if !held.corrupt => {
                held.corrupt = true;
                true
            }
            _ => false,
        }
    }

    /// How many shards are here.
    pub(super) fn len(&self) -> usize {
        self.shards.len()
    }

    /// Bytes that all shards take.
    pub(super) fn used_bytes(&self) -> u64 {
        self.used_bytes
    }

    /// At most `max` shards from chunk `first` on, but all of those of the chunks it covers.
    pub(super) fn page(&self, first: ChunkId, max: usize, now: Instant) -> Page {
        let since_base = now.duration_since(self.base).as_secs() as i64;
        let from = ShardKey { chunk: first, index: ShardIndex(0) };
        let mut shards: Vec<_> = self
            .shards
            .range(from..)
            .filter(|(_, held)| !held.corrupt)
            .take(max + 1)
            .map(|(key, held)| {
                let age_s = (since_base - i64::from(held.written_s)).max(0) as u64;
                (*key, held.length, age_s * 1000)
            })
            .collect();
        if shards.len() <= max {
            return Page { last: ChunkId(u64::MAX), shards };
        }
        // The chunk at the cut may go on behind it: leave it to the next page, whole.
        let cut = shards[max].0.chunk;
        shards.retain(|(key, ..)| key.chunk < cut);
        Page { last: ChunkId(cut.0 - 1), shards }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn key(chunk: u64, index: u32) -> ShardKey {
        ShardKey { chunk: ChunkId(chunk), index: ShardIndex(index) }
    }

    #[test]
    fn pages_cover_everything_once_and_never_cut_a_chunk() {
        let now = Instant::now();
        let mut index = Index::new(now);
        for chunk in 1..=40 {
            for shard in 0..=(chunk % 3) as u32 {
                index.insert(key(chunk * 5, shard), 10, None, 0, now);
            }
        }
        let mut first = ChunkId(0);
        let mut seen = Vec::new();
        loop {
            let page = index.page(first, 7, now);
            assert!(page.shards.len() <= 7);
            assert!(page.shards.iter().all(|(key, ..)| key.chunk >= first && key.chunk <= page.last));
            seen.extend(page.shards.iter().map(|(key, ..)| *key));
            if page.last == ChunkId(u64::MAX) {
                break;
            }
            first = ChunkId(page.last.0 + 1);
        }
        assert_eq!(seen, index.shards.keys().copied().collect::<Vec<_>>());
    }

    #[test]
    fn corrupt_shards_are_not_reported_until_replaced() {
        let now = Instant::now();
        let mut index = Index::new(now);
        index.insert(key(1, 0), 100, None, 5000, now);
        assert!(index.mark_corrupt(key(1, 0)));
        assert!(!index.mark_corrupt(key(1, 0)), "told once");
        assert!(index.page(ChunkId(0), 10, now).shards.is_empty());
        index.insert(key(1, 0), 100, None, 0, now);
        assert_eq!(index.page(ChunkId(0), 10, now).shards.len(), 1);
    }

    #[test]
    fn ages_and_used_bytes_are_kept() {
        let now = Instant::now();
        let mut index = Index::new(now);
        index.insert(key(1, 0), 100, None, 5000, now);
        index.insert(key(2, 0), 200, None, u64::MAX, now);
        let later = now + Duration::from_secs(3);
        let page = index.page(ChunkId(0), 10, later);
        assert_eq!(page.shards[0], (key(1, 0), 100, 8000));
        assert!(page.shards[1].2 > 1_000_000_000_000, "older than anything");
        assert_eq!(index.used_bytes(), shard_file::file_length(100) + shard_file::file_length(200));
        assert_eq!(index.of_chunk(ChunkId(1)), [key(1, 0)]);
        index.remove(key(1, 0));
        index.remove(key(2, 0));
        assert_eq!((index.used_bytes(), index.len()), (0, 0));
        assert_eq!(index.take_freed(), []);
    }

    #[test]
    fn places_are_freed_by_removing_and_by_replacing() {
        let now = Instant::now();
        let mut index = Index::new(now);
        let place = |page| Place { segment: 7, page, pages: 2 };
        assert_eq!(index.insert(key(1, 0), 5000, Some(place(1)), 0, now), None);
        assert_eq!(index.used_bytes(), 2 * PAGE);
        let before = index.insert(key(1, 0), 5000, Some(place(3)), 0, now);
        assert_eq!(before.unwrap().place, Some(place(1)));
        assert_eq!(index.take_freed(), [place(1)]);
        index.remove(key(1, 0));
        index.remove(key(1, 0));
        assert_eq!((index.take_freed(), index.take_freed()), (vec![place(3)], vec![]));
        assert_eq!(index.used_bytes(), 0);
    }
}
