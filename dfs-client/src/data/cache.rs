//! The block cache: 64 KiB blocks of chunks, kept in frames of up to 16, as they are read. Chunks never change, so what is
//! here is never stale.
//!
//! Blocks that came together share one buffer, so that a long read is answered from it without being copied. A buffer
//! belongs to one frame and goes with it, so that the cache's weight is the memory it takes. The least recently used
//! frames go first: what was read ahead must stay until its reader comes.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use dfs_proto::limits::{BLOCK_SIZE, MAX_FRAME_DATA};
use moka::notification::RemovalCause;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

/// Blocks in a frame.
const FRAME_BLOCKS: u32 = (MAX_FRAME_DATA / BLOCK_SIZE) as u32;
/// What a run of blocks takes besides its bytes.
const RUN_OVERHEAD: usize = 256;
/// So many bytes may come before what is too much goes: left to itself, the cache lets dozens of frames pass.
const TIDY_AFTER: usize = 4 * MAX_FRAME_DATA;

/// Consecutive blocks of a chunk, all in one frame. Each is whole but for the chunk's last.
#[derive(Clone, Debug)]
pub(super) struct Run {
    first: u32,
    data: Bytes,
}

impl Run {
    /// The blocks from number `first` on.
    pub(super) fn new(first: u32, data: Bytes) -> Self {
        Self { first, data }
    }

    /// The numbers of its blocks.
    pub(super) fn blocks(&self) -> Range<u32> {
        self.first..self.first + self.data.len().div_ceil(BLOCK_SIZE) as u32
    }

    /// Where in its chunk it starts, in bytes.
    pub(super) fn offset(&self) -> u64 {
        u64::from(self.first) * BLOCK_SIZE as u64
    }

    /// Its bytes.
    pub(super) fn data(&self) -> &Bytes {
        &self.data
    }

    /// The blocks that are also in `range`; none if the two don't overlap.
    pub(super) fn within(&self, range: &Range<u32>) -> Self {
        let first = range.start.clamp(self.first, self.blocks().end);
        let from = ((first - self.first) as usize * BLOCK_SIZE).min(self.data.len());
        let to = (range.end.max(first) - self.first) as usize * BLOCK_SIZE;
        Self { first, data: self.data.slice(from..to.min(self.data.len())) }
    }
}

/// What is here of one frame.
#[derive(Clone, Debug, Default)]
pub(super) struct Frame {
    /// They don't overlap.
    runs: Arc<[Run]>,
}

impl Frame {
    /// The blocks from `block` on that came together, if it is here.
    pub(super) fn from(&self, block: u32) -> Option<Run> {
        let run = self.runs.iter().find(|run| run.blocks().contains(&block))?;
        Some(run.within(&(block..u32::MAX)))
    }

    /// With one run more; what it overlaps goes.
    fn with(&self, run: Run) -> Self {
        let new = run.blocks();
        let apart = |old: &&Run| old.blocks().end <= new.start || new.end <= old.blocks().start;
        let runs = self.runs.iter().filter(apart).cloned().chain([run.clone()]).collect();
        Self { runs }
    }

    fn weight(&self) -> u32 {
        self.runs.iter().map(|run| run.data.len() + RUN_OVERHEAD).sum::<usize>() as u32
    }
}

/// `range` cut where frames end.
pub(super) fn frames(range: Range<u32>) -> impl Iterator<Item = Range<u32>> {
    let numbers = range.start / FRAME_BLOCKS..range.end.div_ceil(FRAME_BLOCKS);
    let of_frame = move |frame| frame * FRAME_BLOCKS..(frame + 1) * FRAME_BLOCKS;
    let cut = move |frame: Range<u32>| frame.start.max(range.start)..frame.end.min(range.end);
    numbers.map(of_frame).map(cut).filter(|range| !range.is_empty())
}

/// The place of a frame in the cache, one as long as the frame is there. Emptied when the frame goes: the cache's own table
/// frees what it held only when no thread looks at it any more, which may be many frames later.
type Place = Arc<Mutex<Frame>>;

/// Blocks that were read or written lately.
#[derive(Debug)]
pub(super) struct BlockCache {
    /// By chunk and number in the chunk.
    frames: Cache<(u64, u32), Place>,
    /// Held while a frame is put together, so that of two runs which come to it at once none is lost. Counts the bytes that
    /// came since the cache was last made to look for what is too much.
    joining: Mutex<usize>,
}

impl BlockCache {
    /// A cache that takes about `capacity_bytes` of memory, and up to [`TIDY_AFTER`] more.
    pub(super) fn new(capacity_bytes: usize) -> Self {
        let frames = Cache::builder()
            .max_capacity(capacity_bytes as u64)
            .weigher(|_: &(u64, u32), place: &Place| look_into(place).weight())
            .eviction_policy(EvictionPolicy::lru())
            .eviction_listener(|_, place: Place, cause: RemovalCause| {
                if cause.was_evicted() {
                    // A name, so that it is freed when the place is unlocked again.
                    let _gone = std::mem::take(&mut *look_into(&place));
                }
            })
            .build();
        Self { frames, joining: Mutex::default() }
    }

    /// What is here of the frame that `block` is in.
    pub(super) fn frame_of(&self, chunk: u64, block: u32) -> Frame {
        self.frames
            .get(&(chunk, block / FRAME_BLOCKS))
            .map(|place| look_into(&place).clone())
            .unwrap_or_default()
    }

    /// The blocks `range` of a chunk in order, if all are here.
    pub(super) fn get(&self, chunk: u64, range: Range<u32>) -> Option<Vec<Run>> {
        let mut runs = Vec::new();
        for range in frames(range) {
            let frame = self.frame_of(chunk, range.start);
            let mut next = range.start;
            while next < range.end {
                let run = frame.from(next)?.within(&range);
                next = run.blocks().end;
                runs.push(run);
            }
        }
        Some(runs)
    }

    /// Keeps blocks of one frame, whose buffer is their own.
    pub(super) fn insert(&self, chunk: u64, run: Run) {
        let key = (chunk, run.first / FRAME_BLOCKS);
        debug_assert!(run.blocks().end.div_ceil(FRAME_BLOCKS) == key.1 + 1, "a run is of one frame");
        let mut since_tidy = self.joining.lock().expect("nothing panics while it puts a frame together");
        let place = self.frames.get(&key).unwrap_or_default();
        *since_tidy += run.data.len();
        {
            let mut frame = look_into(&place);
            *frame = frame.with(run);
        }
        // Also when it is there already: it weighs more now.
        self.frames.insert(key, place);
        if *since_tidy >= TIDY_AFTER {
            *since_tidy = 0;
            self.frames.run_pending_tasks();
        }
    }
}

fn look_into(place: &Place) -> MutexGuard<'_, Frame> {
    place.lock().expect("nothing panics while it holds a frame")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn run(first: u32, length: usize) -> Run {
        Run::new(first, (0..length).map(|at| (at / BLOCK_SIZE) as u8 + first as u8).collect())
    }

    #[test]
    fn a_run_is_cut_to_a_range_at_blocks() {
        let run = run(4, 3 * BLOCK_SIZE + 10);
        assert_eq!(run.blocks(), 4..8);
        let cases = [(0..100, 4..8, 3 * BLOCK_SIZE + 10), (5..7, 5..7, 2 * BLOCK_SIZE), (7..9, 7..8, 10)];
        for (range, blocks, length) in cases {
            let part = run.within(&range);
            assert_eq!((part.blocks(), part.data.len()), (blocks.clone(), length), "{range:?}");
            assert_eq!(part.data[0], blocks.start as u8);
        }
        for outside in [0..3, 8..10, 5..5] {
            assert!(run.within(&outside).data.is_empty(), "{outside:?}");
        }
    }

    #[test]
    fn ranges_are_cut_where_frames_end() {
        let cut = |range| frames(range).collect::<Vec<_>>();
        assert_eq!(cut(3..40), [3..16, 16..32, 32..40]);
        assert_eq!(cut(16..48), [16..32, 32..48]);
        assert!(cut(5..5).is_empty());
    }

    #[test]
    fn what_is_all_here_is_found_and_comes_from_as_few_buffers_as_it_came_in() {
        let cache = BlockCache::new(64 << 20);
        let blocks = |range| Some(cache.get(7, range)?.iter().map(Run::blocks).collect::<Vec<_>>());
        cache.insert(7, run(0, MAX_FRAME_DATA));
        cache.insert(7, run(16, BLOCK_SIZE));
        cache.insert(7, run(18, 2 * BLOCK_SIZE));
        assert_eq!(blocks(3..17), Some(vec![3..16, 16..17]));
        assert_eq!(blocks(16..18), None, "17 is missing");
        assert_eq!(cache.get(8, 0..1).map(|runs| runs.len()), None, "of another chunk");
        cache.insert(7, run(17, BLOCK_SIZE));
        assert_eq!(blocks(16..20), Some(vec![16..17, 17..18, 18..20]));
        cache.insert(7, run(16, 4 * BLOCK_SIZE));
        assert_eq!(blocks(15..20), Some(vec![15..16, 16..20]), "what came anew stands for what it overlaps");
        let bytes: Vec<u8> = cache.get(7, 14..18).unwrap().iter().map(|run| run.data[0]).collect();
        assert_eq!(bytes, [14, 16]);
    }

    #[test]
    fn it_keeps_to_its_capacity_whether_blocks_come_one_by_one_or_in_frames() {
        let capacity = 8 << 20;
        for blocks in [1, 3, FRAME_BLOCKS] {
            let cache = BlockCache::new(capacity);
            for chunk in 0..64 {
                for first in (0..64).step_by(blocks as usize) {
                    for range in frames(first..(first + blocks).min(64)) {
                        cache.insert(chunk, run(range.start, range.len() * BLOCK_SIZE));
                    }
                }
            }
            cache.frames.run_pending_tasks();
            let held: usize = cache
                .frames
                .iter()
                .flat_map(|(_, place)| {
                    look_into(&place).runs.iter().map(|run| run.data.len()).collect::<Vec<_>>()
                })
                .sum();
            assert!(held <= capacity && held > capacity / 2, "{held} bytes in pieces of {blocks} blocks");
        }
    }

    /// A buffer that counts its bytes while it is there.
    struct Counted(&'static [u8], Arc<AtomicUsize>);

    impl AsRef<[u8]> for Counted {
        fn as_ref(&self) -> &[u8] {
            self.0
        }
    }

    impl Drop for Counted {
        fn drop(&mut self) {
            self.1.fetch_sub(self.0.len(), Ordering::Relaxed);
        }
    }

    #[test]
    fn what_it_lets_go_is_given_back_at_once_however_fast_blocks_come() {
        static FRAME: [u8; MAX_FRAME_DATA] = [0; MAX_FRAME_DATA];
        let (cache, held, most) =
            (BlockCache::new(64 << 20), Arc::new(AtomicUsize::new(0)), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for chunk in 0..8 {
                let (cache, held, most) = (&cache, &held, &most);
                scope.spawn(move || {
                    for first in (0..1000 * FRAME_BLOCKS).step_by(FRAME_BLOCKS as usize) {
                        let now = held.fetch_add(MAX_FRAME_DATA, Ordering::Relaxed) + MAX_FRAME_DATA;
                        most.fetch_max(now, Ordering::Relaxed);
                        cache
                            .insert(chunk, Run::new(first, Bytes::from_owner(Counted(&FRAME, held.clone()))));
                    }
                });
            }
        });
        let most = most.into_inner() >> 20;
        assert!(most <= 64 + 16, "{most} MiB in a cache of 64");
    }
}
