//! The bytes of one file that were written and not yet flushed: a map from file offset to runs of bytes.
//!
//! Runs never overlap and never exceed [`MAX_RUN`]. A write goes over what is there in place and fills the gaps between,
//! so that no write splits or moves a run; sequential writes append to the last one. Pure memory, no I/O.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;

/// The longest run: one frame of chunk data, so that full runs of a stream are sent as they are.
pub(super) const MAX_RUN: usize = dfs_proto::limits::MAX_FRAME_DATA;

/// What a run costs besides its bytes, for the budget.
pub(super) const RUN_OVERHEAD: usize = 128;

/// Runs of bytes by file offset.
#[derive(Debug, Default)]
pub(super) struct Segments {
    runs: BTreeMap<u64, Vec<u8>>,
    bytes: usize,
}

impl Segments {
    /// Whether nothing is there.
    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Runs held.
    pub(super) fn runs(&self) -> usize {
        self.runs.len()
    }

    /// What the budget is charged for all this.
    pub(super) fn cost(&self) -> usize {
        self.bytes + self.runs.len() * RUN_OVERHEAD
    }

    /// The most runs that writing `length` bytes at `offset` can add: each gap it fills begins at the write's start or
    /// at the end of a run, and is cut into runs of at most [`MAX_RUN`].
    pub(super) fn worst_runs(&self, offset: u64, length: usize) -> usize {
        let gaps = self.runs.range(offset..offset.saturating_add(length as u64)).count() + 1;
        gaps + length / MAX_RUN + 1
    }

    /// The most that writing can add to [`Self::cost`].
    pub(super) fn worst_cost(&self, offset: u64, length: usize) -> usize {
        length + self.worst_runs(offset, length) * RUN_OVERHEAD
    }

    /// The end of the last run; 0 when there is none.
    pub(super) fn end(&self) -> u64 {
        self.runs.last_key_value().map_or(0, |(start, run)| start + run.len() as u64)
    }

    /// Puts `data` at `offset`, over what was there.
    pub(super) fn write(&mut self, offset: u64, mut data: &[u8]) {
        let mut at = offset;
        while !data.is_empty() {
            let taken = self.overwrite(at, data).unwrap_or_else(|| self.fill_gap(at, data));
            at += taken as u64;
            data = &data[taken..];
        }
    }

    /// Writes over the run that holds the byte at `at`; how many bytes, or `None` when no run does.
    fn overwrite(&mut self, at: u64, data: &[u8]) -> Option<usize> {
        let (start, run) = self.runs.range_mut(..=at).next_back()?;
        let from = usize::try_from(at - start).ok().filter(|&from| from < run.len())?;
        let taken = data.len().min(run.len() - from);
        run[from..from + taken].copy_from_slice(&data[..taken]);
        Some(taken)
    }

    /// Fills the gap that begins at `at`, up to the next run or a full run; how many bytes.
    fn fill_gap(&mut self, at: u64, data: &[u8]) -> usize {
        let gap = self.runs.range(at..).next().map_or(u64::MAX, |(start, _)| start - at);
        let length = data.len().min(usize::try_from(gap).unwrap_or(usize::MAX));
        let mut stream = false;
        if let Some((start, run)) = self.runs.range_mut(..at).next_back()
            && start + run.len() as u64 == at
        {
            if run.len() < MAX_RUN {
                let taken = length.min(MAX_RUN - run.len());
                run.extend_from_slice(&data[..taken]);
                self.bytes += taken;
                return taken;
            }
            stream = true;
        }
        let taken = length.min(MAX_RUN);
        // Who filled the run before will fill this one too: take its memory once.
        let mut run = Vec::with_capacity(if stream { MAX_RUN } else { taken });
        run.extend_from_slice(&data[..taken]);
        self.runs.insert(at, run);
        self.bytes += taken;
        taken
    }

    /// Forgets what is at and beyond `size`.
    pub(super) fn discard_from(&mut self, size: u64) {
        for (_, run) in self.runs.split_off(&size) {
            self.bytes -= run.len();
        }
        if let Some((start, run)) = self.runs.last_key_value()
            && start + run.len() as u64 > size
        {
            let start = *start;
            if let Some(run) = self.runs.get_mut(&start) {
                let keep = (size - start) as usize;
                self.bytes -= run.len() - keep;
                run.truncate(keep);
            }
        }
    }

    /// Moves everything by `distance`, modulo 2^64.
    pub(super) fn shift(&mut self, distance: u64) {
        let runs = std::mem::take(&mut self.runs);
        self.runs = runs.into_iter().map(|(start, run)| (start.wrapping_add(distance), run)).collect();
    }

    /// The parts of `range` that are here, in order.
    pub(super) fn overlapping(&self, range: Range<u64>) -> impl Iterator<Item = (u64, &[u8])> {
        let first = self.runs.range(..=range.start).next_back().map_or(range.start, |(start, _)| *start);
        self.runs.range(first..range.end.max(first)).filter_map(move |(&start, run)| {
            let from = range.start.max(start);
            let to = range.end.min(start + run.len() as u64);
            (from < to).then(|| (from, &run[(from - start) as usize..(to - start) as usize]))
        })
    }

    /// Ends writing: the same runs, shared and unchangeable.
    pub(super) fn freeze(self) -> Frozen {
        let cost = self.cost();
        let runs: Vec<_> = self.runs.into_iter().map(|(start, run)| (start, Bytes::from(run))).collect();
        let apart = runs.windows(2).filter(|pair| pair[0].0 + pair[0].1.len() as u64 != pair[1].0).count();
        Frozen { extents: apart + usize::from(!runs.is_empty()), runs, bytes: self.bytes, cost }
    }
}

/// What [`Segments`] held when it was cut: read while it is flushed, never changed.
#[derive(Debug)]
pub(super) struct Frozen {
    runs: Vec<(u64, Bytes)>,
    bytes: usize,
    cost: usize,
    extents: usize,
}

impl Frozen {
    /// Runs in file order, not overlapping.
    pub(super) fn runs(&self) -> &[(u64, Bytes)] {
        &self.runs
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// What the budget is charged for it.
    pub(super) fn cost(&self) -> usize {
        self.cost
    }

    /// Extents that it takes: runs that touch are one.
    pub(super) fn extents(&self) -> usize {
        self.extents
    }

    /// The end of the last run.
    pub(super) fn end(&self) -> u64 {
        self.runs.last().map_or(0, |(start, run)| start + run.len() as u64)
    }

    /// The parts of `range` that are here, in order.
    pub(super) fn overlapping(&self, range: Range<u64>) -> impl Iterator<Item = (u64, Bytes)> {
        let first = self.runs.partition_point(|(start, run)| start + run.len() as u64 <= range.start);
        self.runs[first..].iter().take_while(move |(start, _)| *start < range.end).map(move |(start, run)| {
            let from = range.start.max(*start);
            let to = range.end.min(start + run.len() as u64);
            (from, run.slice((from - start) as usize..(to - start) as usize))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    fn check(segments: &Segments, model: &[Option<u8>]) {
        let mut seen = vec![None; model.len()];
        for (start, part) in segments.overlapping(0..model.len() as u64) {
            for (i, byte) in part.iter().enumerate() {
                assert!(seen[start as usize + i].replace(*byte).is_none(), "runs overlap");
            }
        }
        assert!(seen == model, "the runs differ from the model");
        assert_eq!(segments.bytes(), model.iter().flatten().count());
        assert_eq!(segments.end(), model.iter().rposition(Option::is_some).map_or(0, |last| last as u64 + 1));
    }

    #[test]
    fn random_writes_read_back_as_from_an_array() {
        let seed = rand::random();
        println!("seed {seed}");
        let mut random = SmallRng::seed_from_u64(seed);
        let size = 3 * MAX_RUN;
        let (mut segments, mut model) = (Segments::default(), vec![None; size]);
        for step in 0..400u64 {
            let offset = random.random_range(0..size);
            let length = if random.random_bool(0.1) { size } else { random.random_range(0..5000) };
            let length = length.min(size - offset);
            if random.random_bool(0.05) {
                segments.discard_from(offset as u64);
                model[offset..].fill(None);
            } else {
                let before = segments.cost();
                let worst = segments.worst_cost(offset as u64, length);
                segments.write(offset as u64, &vec![step as u8; length]);
                model[offset..offset + length].fill(Some(step as u8));
                assert!(segments.cost() <= before + worst, "the budget was charged too little");
            }
            if step % 20 == 0 {
                check(&segments, &model);
            }
        }
        check(&segments, &model);
        let frozen = segments.freeze();
        assert!(frozen.runs().iter().all(|(_, run)| run.len() <= MAX_RUN));
        for _ in 0..100 {
            let start = random.random_range(0..size);
            let end = random.random_range(start..=size);
            let mut seen = vec![None; end - start];
            for (at, part) in frozen.overlapping(start as u64..end as u64) {
                for (i, byte) in part.iter().enumerate() {
                    seen[at as usize - start + i] = Some(*byte);
                }
            }
            assert!(seen == model[start..end]);
        }
    }

    #[test]
    fn a_stream_becomes_full_runs_without_spare_memory() {
        let mut segments = Segments::default();
        for i in 0..40 {
            segments.write(i * 128 * 1024, &[7; 128 * 1024]);
        }
        assert_eq!(segments.runs(), 5);
        assert!(segments.runs.values().all(|run| run.len() == MAX_RUN && run.capacity() == MAX_RUN));
    }

    #[test]
    fn scattered_small_writes_stay_apart_and_cheap() {
        let mut segments = Segments::default();
        for i in 0..8192u64 {
            segments.write((i * 7919 % 8192) * 12_288, &[1; 4096]);
        }
        assert_eq!((segments.runs(), segments.bytes()), (8192, 8192 * 4096));
        assert_eq!(segments.overlapping(12_288 * 5..12_288 * 7).count(), 2);
    }
}
