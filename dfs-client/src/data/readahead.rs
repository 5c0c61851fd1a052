//! Who reads a file in order is read ahead of, in windows that grow while it goes on; who jumps about is not.
//!
//! Pure arithmetic: it says which range to fetch next and fetches nothing itself. The kernel sends the reads of one
//! reader in parallel and out of order, so a read near the place that was expected counts as in order. Several readers
//! of one file are told apart, up to [`MAX_STREAMS`].

use std::ops::Range;

/// The first window.
const FIRST_WINDOW: u64 = 256 * 1024;
/// The largest window.
const MAX_WINDOW: u64 = 8 * 1024 * 1024;
/// How far from its place a read may be and still count as in order.
const SLACK: u64 = 1024 * 1024;
/// Who has read so often in order is taken to go on; a read near the last one may be chance.
const READS_IN_ORDER: u32 = 2;
/// Readers of one inode that are told apart.
const MAX_STREAMS: usize = 8;

/// One reader going forward.
#[derive(Clone, Copy, Debug)]
struct Stream {
    /// The end of what it read.
    next: u64,
    /// Reads in order so far, up to [`READS_IN_ORDER`].
    in_order: u32,
    /// How far ahead of it to fetch; 0: it has not read in order often enough.
    window: u64,
    /// The end of what was fetched for it.
    fetched: u64,
}

/// The readers of one inode, the last one to read first.
#[derive(Debug, Default)]
pub(super) struct Readahead {
    streams: Vec<Stream>,
}

impl Readahead {
    /// Notes a read of `range` of a file that is `size` long, and says what to fetch besides.
    pub(super) fn note(&mut self, range: Range<u64>, size: u64) -> Option<Range<u64>> {
        let found = self
            .streams
            .iter()
            .position(|stream| range.start + SLACK >= stream.next && range.start <= stream.next + SLACK);
        let mut stream = match found {
            Some(index) => self.streams.remove(index),
            None => {
                self.streams.truncate(MAX_STREAMS - 1);
                Stream { next: range.start, in_order: 0, window: 0, fetched: range.start }
            }
        };
        let forward = range.end > stream.next;
        stream.next = stream.next.max(range.end);
        stream.fetched = stream.fetched.max(stream.next);
        if range.start == 0 {
            // A file that is read from its start is most often read to its end.
            stream.in_order = READS_IN_ORDER;
        } else if found.is_some() && forward {
            stream.in_order = (stream.in_order + 1).min(READS_IN_ORDER);
        }
        if stream.in_order == READS_IN_ORDER && stream.window == 0 {
            stream.window = FIRST_WINDOW;
        }
        let mut ahead = None;
        if forward
            && stream.window > 0
            && stream.fetched < size
            && stream.fetched - stream.next <= stream.window / 2
        {
            let end = (stream.next + stream.window).min(size);
            if end > stream.fetched {
                ahead = Some(stream.fetched..end);
                stream.fetched = end;
                stream.window = (stream.window * 2).min(MAX_WINDOW);
            }
        }
        self.streams.insert(0, stream);
        ahead
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn a_reader_in_order_finds_everything_fetched_in_growing_windows() {
        let (mut readahead, mut fetched, mut largest) = (Readahead::default(), 0, 0);
        let size = 100 * MIB;
        let mut missed = 0;
        for at in (0..size).step_by(128 * 1024) {
            let range = at..at + 128 * 1024;
            missed += u64::from(range.end > fetched);
            fetched = fetched.max(range.end);
            if let Some(ahead) = readahead.note(range, size) {
                assert_eq!(ahead.start, fetched, "nothing is fetched twice or left out");
                fetched = ahead.end;
                largest = largest.max(ahead.end - ahead.start);
            }
        }
        assert_eq!((fetched, missed), (size, 1));
        assert!((MAX_WINDOW / 2..=MAX_WINDOW).contains(&largest));
    }

    #[test]
    fn reads_in_parallel_and_out_of_order_still_count() {
        let (mut readahead, mut ahead) = (Readahead::default(), 0);
        for at in (0..64u64).map(|i| (i ^ 3) * 128 * 1024) {
            ahead += readahead.note(at..at + 128 * 1024, 64 * MIB).map_or(0, |range| range.end - range.start);
        }
        assert!(ahead > 4 * MIB, "only {ahead} bytes were read ahead");
    }

    #[test]
    fn who_jumps_about_is_not_read_ahead_of() {
        let mut readahead = Readahead::default();
        for i in 1..1000u64 {
            let at = (i * 7919 % 997) * 10 * MIB;
            if at > 0 {
                assert_eq!(readahead.note(at..at + 4096, 10_000 * MIB), None);
            }
        }
        assert!(readahead.streams.len() <= MAX_STREAMS);
    }

    #[test]
    fn two_readers_do_not_disturb_each_other() {
        let (mut readahead, mut ahead) = (Readahead::default(), 0);
        for i in 0..64u64 {
            for start in [0, 500 * MIB] {
                let at = start + i * 128 * 1024;
                ahead += readahead
                    .note(at..at + 128 * 1024, 1000 * MIB)
                    .map_or(0, |range| range.end - range.start);
            }
        }
        assert!(ahead > 16 * MIB, "only {ahead} bytes were read ahead");
    }
}
