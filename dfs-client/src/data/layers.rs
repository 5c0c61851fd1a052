//! The dirty layers of one inode: one being written to, and those that were cut off it to be flushed, oldest first.
//!
//! A layer that was cut stays readable until its commit is settled; layers settle in the order of their cuts. A layer is
//! never larger than a chunk, so that one chunk and one commit take it. Pure memory, no I/O.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use dfs_proto::limits::MAX_CONTENT_LENGTH;
use dfs_proto::meta::FileCommit;
use dfs_proto::{Ino, Timestamp};

use super::packer::Placement;
use super::segments::{Frozen, Segments};

/// Runs in one layer: half of what one commit may name, so that several fit.
const MAX_LAYER_RUNS: usize = dfs_proto::limits::MAX_COMMIT_EXTENTS / 2;

/// Where a write goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteAt {
    /// At this offset.
    Offset(u64),
    /// At the end of the file (O_APPEND).
    End,
}

/// What a commit says of a layer besides its bytes.
#[derive(Clone, Copy, Debug)]
struct Facts {
    mtime: Timestamp,
    kill_set_id: bool,
    /// Where the file ended when the layer was begun, as long as everything in it was appended since.
    append_base: Option<u64>,
    /// When its oldest byte was written.
    since: Instant,
}

/// A layer that was cut.
#[derive(Debug)]
struct Cut {
    number: u64,
    bytes: Arc<Frozen>,
    /// Added to the offsets in `bytes`, modulo 2^64: the server moved what was appended before it.
    shift: u64,
    facts: Facts,
    taken: bool,
}

/// A cut layer on its way to the nodes.
#[derive(Clone, Debug)]
pub(super) struct TakenLayer {
    pub(super) number: u64,
    pub(super) bytes: Arc<Frozen>,
}

/// What [`Layers::take`] found.
#[derive(Debug)]
pub(super) enum Take {
    /// Nothing to flush.
    Nothing,
    /// The next layer is larger than what was allowed.
    TooLarge,
    /// The next layer.
    Layer(TakenLayer),
}

/// All dirty layers of an inode.
#[derive(Debug)]
pub(super) struct Layers {
    active: Segments,
    facts: Option<Facts>,
    cuts: VecDeque<Cut>,
    /// Of the active layer; numbers begin at 1.
    number: u64,
}

impl Default for Layers {
    fn default() -> Self {
        Self { active: Segments::default(), facts: None, cuts: VecDeque::new(), number: 1 }
    }
}

impl Layers {
    /// Whether there is nothing dirty at all.
    pub(super) fn is_clean(&self) -> bool {
        self.active.is_empty() && self.cuts.is_empty()
    }

    /// The end of the last dirty byte.
    pub(super) fn end(&self) -> u64 {
        self.cuts.iter().map(Cut::end).max().unwrap_or(0).max(self.active.end())
    }

    /// Dirty bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.cuts.iter().map(|cut| cut.bytes.bytes() as u64).sum::<u64>() + self.active.bytes() as u64
    }

    /// Bytes that no flush has taken yet.
    pub(super) fn waiting_bytes(&self) -> usize {
        let waiting = self.cuts.iter().rev().take_while(|cut| !cut.taken);
        waiting.map(|cut| cut.bytes.bytes()).sum::<usize>() + self.active.bytes()
    }

    /// Runs in the active layer.
    pub(super) fn active_runs(&self) -> usize {
        self.active.runs()
    }

    /// The most that a write can cost (a cut before it would make it less).
    pub(super) fn worst_cost(&self, offset: u64, length: usize) -> usize {
        self.active.worst_cost(offset, length)
    }

    /// When the oldest byte that no flush has taken was written.
    pub(super) fn waiting_since(&self) -> Option<Instant> {
        let cut = self.cuts.iter().find(|cut| !cut.taken).map(|cut| cut.facts.since);
        cut.or(self.facts.map(|facts| facts.since))
    }

    /// The time of the last write, while it is dirty here.
    pub(super) fn mtime(&self) -> Option<Timestamp> {
        self.facts.or(self.cuts.back().map(|cut| cut.facts)).map(|facts| facts.mtime)
    }

    /// Whether a write that clears set-id bits is dirty here.
    pub(super) fn kills_set_id(&self) -> bool {
        self.facts.is_some_and(|facts| facts.kill_set_id) || self.cuts.iter().any(|cut| cut.facts.kill_set_id)
    }

    /// The number of the last layer that holds anything; 0 when nothing was ever dirty.
    pub(super) fn last_number(&self) -> u64 {
        if self.active.is_empty() { self.number - 1 } else { self.number }
    }

    /// Puts `data` (at most a chunk) at `offset`; `at` says how the writer came to that offset. What it added to the
    /// layers' cost.
    pub(super) fn write(
        &mut self,
        at: WriteAt,
        offset: u64,
        data: &[u8],
        kill_set_id: bool,
        now: (Instant, Timestamp),
    ) -> usize {
        let full = self.active.bytes() + data.len() > MAX_CONTENT_LENGTH as usize
            || self.active.runs() + self.active.worst_runs(offset, data.len()) > MAX_LAYER_RUNS;
        // What others appended meanwhile came to light: this goes behind it, on a base of its own.
        let base = self.facts.and_then(|facts| facts.append_base);
        let moved = at == WriteAt::End && base.is_some() && offset != self.active.end();
        if full || moved {
            self.cut();
        }
        let append_base = (at == WriteAt::End).then_some(offset);
        let facts = self.facts.get_or_insert(Facts { mtime: now.1, kill_set_id, append_base, since: now.0 });
        facts.mtime = now.1;
        facts.kill_set_id |= kill_set_id;
        if at != WriteAt::End {
            facts.append_base = None;
        }
        let before = self.active.cost();
        self.active.write(offset, data);
        self.active.cost() - before
    }

    /// Ends the active layer, if anything is in it.
    fn cut(&mut self) {
        let bytes = std::mem::take(&mut self.active);
        if let Some(facts) = self.facts.take().filter(|_| !bytes.is_empty()) {
            let cut =
                Cut { number: self.number, bytes: Arc::new(bytes.freeze()), shift: 0, facts, taken: false };
            self.cuts.push_back(cut);
            self.number += 1;
        }
    }

    /// Takes the next layer to flush if it is not larger than `most_bytes` and `most_extents`.
    pub(super) fn take(&mut self, most_bytes: usize, most_extents: usize) -> Take {
        if self.cuts.back().is_none_or(|cut| cut.taken) {
            self.cut();
        }
        match self.cuts.iter_mut().find(|cut| !cut.taken) {
            None => Take::Nothing,
            Some(cut) if cut.bytes.bytes() > most_bytes || cut.bytes.extents() > most_extents => {
                Take::TooLarge
            }
            Some(cut) => {
                cut.taken = true;
                Take::Layer(TakenLayer { number: cut.number, bytes: Arc::clone(&cut.bytes) })
            }
        }
    }

    /// Whether a flush would still find something.
    pub(super) fn is_waiting(&self) -> bool {
        !self.active.is_empty() || self.cuts.iter().any(|cut| !cut.taken)
    }

    /// What to commit of a layer that lies in `chunk` as `placement` says; `None` when there is no such layer.
    pub(super) fn commit(
        &self,
        ino: Ino,
        number: u64,
        chunk: u64,
        placement: &Placement,
    ) -> Option<FileCommit> {
        let cut = self.cuts.iter().find(|cut| cut.number == number)?;
        let mut extents = placement.clone();
        for extent in &mut extents {
            extent.offset = extent.offset.wrapping_add(cut.shift);
            extent.chunk = chunk;
        }
        Some(FileCommit {
            ino: ino.0,
            extents,
            size: cut.end(),
            mtime: Some(cut.facts.mtime.into()),
            append_base: cut.facts.append_base.map(|base| base.wrapping_add(cut.shift)),
            kill_set_id: cut.facts.kill_set_id,
        })
    }

    /// Lets go of the oldest cut layer, which must be `number`; what it cost.
    pub(super) fn settle(&mut self, number: u64) -> usize {
        match self.cuts.front() {
            Some(cut) if cut.number == number => self.cuts.pop_front().map_or(0, |cut| cut.bytes.cost()),
            _ => panic!("layer {number} is settled out of order"),
        }
    }

    /// The server moved what was appended by `distance` (modulo 2^64): what was appended behind it moves along.
    pub(super) fn shift(&mut self, distance: u64) {
        for cut in self.cuts.iter_mut().filter(|cut| cut.facts.append_base.is_some()) {
            cut.shift = cut.shift.wrapping_add(distance);
        }
        if let Some(base) = self.facts.as_mut().and_then(|facts| facts.append_base.as_mut()) {
            *base = base.wrapping_add(distance);
            self.active.shift(distance);
        }
    }

    /// Forgets what is at and beyond `size` in the active layer; how much less it costs.
    pub(super) fn discard_from(&mut self, size: u64) -> usize {
        let before = self.active.cost();
        self.active.discard_from(size);
        if self.active.is_empty() {
            self.facts = None;
        }
        before - self.active.cost()
    }

    /// What of `range` is dirty, the newest layer's bytes first, and what is left of the range.
    pub(super) fn read(&self, range: Range<u64>) -> (Vec<(u64, Bytes)>, Vec<Range<u64>>) {
        let (mut parts, mut left) = (Vec::new(), vec![range]);
        if !self.active.is_empty() {
            let copy = |(at, part)| (at, Bytes::copy_from_slice(part));
            left = subtract(left, &mut parts, |range| self.active.overlapping(range).map(copy).collect());
        }
        for cut in self.cuts.iter().rev() {
            left = subtract(left, &mut parts, |range| cut.overlapping(range));
        }
        (parts, left)
    }
}

impl Cut {
    fn end(&self) -> u64 {
        self.bytes.end().wrapping_add(self.shift)
    }

    fn overlapping(&self, range: Range<u64>) -> Vec<(u64, Bytes)> {
        if self.shift == 0 {
            return self.bytes.overlapping(range).collect();
        }
        // A layer that was moved lies whole on one side of the wrap, but the range may not.
        let runs = self.bytes.runs().iter().map(|(start, run)| (start.wrapping_add(self.shift), run));
        let parts = runs.filter_map(|(start, run)| {
            let from = range.start.max(start);
            let to = range.end.min(start + run.len() as u64);
            (from < to).then(|| (from, run.slice((from - start) as usize..(to - start) as usize)))
        });
        parts.collect()
    }
}

/// Adds what `layer` has of the ranges `left` to `parts`, and returns what it has not.
fn subtract(
    left: Vec<Range<u64>>,
    parts: &mut Vec<(u64, Bytes)>,
    layer: impl Fn(Range<u64>) -> Vec<(u64, Bytes)>,
) -> Vec<Range<u64>> {
    let mut remaining = Vec::with_capacity(left.len());
    for range in left {
        let mut at = range.start;
        for (start, part) in layer(range.clone()) {
            if at < start {
                remaining.push(at..start);
            }
            at = start + part.len() as u64;
            parts.push((start, part));
        }
        if at < range.end {
            remaining.push(at..range.end);
        }
    }
    remaining
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(layers: &mut Layers, at: WriteAt, offset: u64, data: &[u8]) {
        layers.write(at, offset, data, false, (Instant::now(), Timestamp::now()));
    }

    fn take(layers: &mut Layers) -> TakenLayer {
        match layers.take(usize::MAX, usize::MAX) {
            Take::Layer(layer) => layer,
            other => panic!("{other:?}"),
        }
    }

    fn text(layers: &Layers, range: Range<u64>) -> String {
        let mut out = vec![b'.'; (range.end - range.start) as usize];
        let (parts, left) = layers.read(range.clone());
        for (at, part) in &parts {
            out[(at - range.start) as usize..][..part.len()].copy_from_slice(part);
        }
        let holes: u64 = left.iter().map(|range| range.end - range.start).sum();
        assert_eq!(holes as usize, out.iter().filter(|byte| **byte == b'.').count());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn newer_layers_cover_older_ones_until_they_settle() {
        let mut layers = Layers::default();
        write(&mut layers, WriteAt::Offset(2), 2, b"aaaaaa");
        let first = take(&mut layers);
        write(&mut layers, WriteAt::Offset(4), 4, b"bb");
        assert!(matches!(layers.take(1, 9), Take::TooLarge));
        let second = take(&mut layers);
        write(&mut layers, WriteAt::Offset(5), 5, b"ccccc");
        assert_eq!(text(&layers, 0..12), "..aabccccc..");
        assert_eq!((first.number, second.number, layers.last_number()), (1, 2, 3));
        layers.settle(1);
        assert_eq!(text(&layers, 0..12), "....bccccc..");
        layers.settle(2);
        assert_eq!(text(&layers, 0..12), ".....ccccc..");
        assert_eq!(layers.discard_from(7), 3);
        assert_eq!(text(&layers, 0..12), ".....cc.....");
        layers.discard_from(0);
        assert!(layers.is_clean() && layers.mtime().is_none());
    }

    #[test]
    fn a_layer_never_outgrows_a_chunk() {
        let mut layers = Layers::default();
        for i in 0..70 {
            write(&mut layers, WriteAt::End, i << 20, &vec![1; 1 << 20]);
        }
        assert_eq!(take(&mut layers).bytes.bytes(), 63 << 20);
        assert_eq!(take(&mut layers).bytes.bytes(), 7 << 20);
        assert!(matches!(layers.take(usize::MAX, usize::MAX), Take::Nothing));
        for i in 0..2 * MAX_LAYER_RUNS as u64 {
            write(&mut layers, WriteAt::Offset(i * 10), i * 10, b"x");
        }
        assert!(take(&mut layers).bytes.extents() <= MAX_LAYER_RUNS);
    }

    #[test]
    fn appended_layers_move_with_the_ones_before_them() {
        let mut layers = Layers::default();
        let place = |layer: &TakenLayer| super::super::packer::pack([&*layer.bytes].into_iter()).1.remove(0);
        write(&mut layers, WriteAt::End, 10, b"aaa");
        let first = take(&mut layers);
        write(&mut layers, WriteAt::End, 13, b"bbb");
        let second = take(&mut layers);
        write(&mut layers, WriteAt::End, 16, b"ccc");
        let commit = layers.commit(Ino(5), first.number, 77, &place(&first)).unwrap();
        assert_eq!((commit.append_base, commit.size, commit.extents[0].offset), (Some(10), 13, 10));
        layers.settle(1);
        layers.shift(100);
        let commit = layers.commit(Ino(5), second.number, 78, &place(&second)).unwrap();
        assert_eq!((commit.append_base, commit.size, commit.extents[0].offset), (Some(113), 116, 113));
        assert_eq!(text(&layers, 110..122), "...bbbccc...");
        write(&mut layers, WriteAt::Offset(0), 0, b"z");
        let third = take(&mut layers);
        assert_eq!(layers.commit(Ino(5), third.number, 79, &place(&third)).unwrap().append_base, None);
    }
}
