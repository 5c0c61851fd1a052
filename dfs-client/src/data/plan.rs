//! The extents of one file that this client knows, all of one version of the file, with the file's size at that version.
//!
//! An answer of another version replaces everything; sizes and extents of different versions never meet (the way other
//! systems came to read zeros). What is known is bounded by [`MAX_KNOWN_EXTENTS`].

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dfs_proto::meta::{ChunkPlan, Extent, PlanReply};
use dfs_proto::{Attr, Code, Failure, extent};

/// Without leases another mount may change the file: after so long the version is asked for again.
pub(super) const PLAN_VALID_FOR: Duration = Duration::from_secs(1);
/// Extents kept for one inode; beyond it what was known is dropped and asked for again.
const MAX_KNOWN_EXTENTS: usize = 32_768;
/// Chunks that no extent known names any more, kept until there are so many.
const MAX_UNUSED_CHUNKS: usize = 64;

/// What is known of where a file's bytes are.
#[derive(Debug)]
pub(super) struct KnownExtents {
    version: u64,
    size: u64,
    validated: Instant,
    extents: BTreeMap<u64, Extent>,
    chunks: HashMap<u64, Arc<ChunkPlan>>,
    /// Ranges of the file, by start, for which `extents` is complete. Not touching each other.
    covered: BTreeMap<u64, u64>,
}

/// Where a range of a file lies: the extents clipped to it, in order; the rest are holes, up to `size`.
#[derive(Clone, Debug)]
pub(super) struct View {
    /// Of the file, at the version of the extents.
    pub(super) size: u64,
    /// Each with its chunk's place.
    pub(super) parts: Vec<(Extent, Arc<ChunkPlan>)>,
}

/// A checked answer of the metadata server.
#[derive(Clone, Debug)]
pub(super) struct PlanAnswer {
    pub(super) attr: Attr,
    range: Range<u64>,
    extents: Vec<Extent>,
    chunks: HashMap<u64, Arc<ChunkPlan>>,
}

impl PlanAnswer {
    /// Checks an answer to a plan from `offset` on; `None` when it bears no attributes.
    pub(super) fn check(reply: PlanReply, offset: u64) -> Result<Option<Self>, Failure> {
        let Some(attr) = reply.attr else { return Ok(None) };
        extent::check_all(&reply.extents)?;
        // Nothing lies beyond the end of the file.
        let end = if reply.covered_end >= attr.size { u64::MAX } else { reply.covered_end };
        let chunks: HashMap<_, _> =
            reply.chunks.into_iter().map(|chunk| (chunk.chunk, Arc::new(chunk))).collect();
        for extent in &reply.extents {
            let chunk = chunks.get(&extent.chunk).ok_or_else(|| {
                Failure::new(
                    Code::InputOutput,
                    format!("the plan names chunk {} but not its nodes", extent.chunk),
                )
            })?;
            if extent.chunk_offset + extent.length > chunk.content_length() {
                return Err(Failure::new(
                    Code::InputOutput,
                    format!(
                        "an extent of inode {} reaches beyond the end of chunk {}",
                        attr.ino, extent.chunk
                    ),
                ));
            }
        }
        let range = offset..end.max(offset);
        let inside = range.start..range.end.min(attr.size);
        let extents = reply.extents.iter().filter_map(|extent| extent.clip(&inside)).collect();
        Ok(Some(Self { attr, range, extents, chunks }))
    }

    /// The end of what this answer covers.
    pub(super) fn end(&self) -> u64 {
        self.range.end
    }

    /// The extents inside `range`, as far as this answer goes, with their chunks.
    pub(super) fn parts(&self, range: &Range<u64>) -> Vec<(Extent, Arc<ChunkPlan>)> {
        let parts = self.extents.iter().filter_map(|extent| extent.clip(range));
        parts.filter_map(|part| Some((part, Arc::clone(self.chunks.get(&part.chunk)?)))).collect()
    }
}

impl KnownExtents {
    /// What one answer, asked for at `asked`, tells.
    pub(super) fn new(answer: &PlanAnswer, asked: Instant) -> Self {
        let mut known = Self {
            version: answer.attr.version,
            size: answer.attr.size,
            validated: asked,
            extents: BTreeMap::new(),
            chunks: HashMap::new(),
            covered: BTreeMap::new(),
        };
        known.add(answer);
        known
    }

    /// A file that no extent covers.
    pub(super) fn empty(attr: &Attr, asked: Instant) -> Self {
        Self {
            version: attr.version,
            size: attr.size,
            validated: asked,
            extents: BTreeMap::new(),
            chunks: HashMap::new(),
            covered: BTreeMap::from([(0, u64::MAX)]),
        }
    }

    /// This client's own commit made the file what `attr` says, one version later: `extents` cover what they touch.
    /// Whether all of it is known now; if not, forget this.
    pub(super) fn committed(
        &mut self,
        attr: &Attr,
        extents: &[Extent],
        chunk: &Arc<ChunkPlan>,
        asked: Instant,
    ) -> bool {
        if self.version + 1 != attr.version || self.extents.len() + extents.len() > MAX_KNOWN_EXTENTS {
            return false;
        }
        for extent in extents {
            self.punch(&extent.range());
            self.extents.insert(extent.offset, *extent);
            self.cover(extent.range());
        }
        self.chunks.insert(chunk.chunk, Arc::clone(chunk));
        if self.chunks.len() > 2 * self.extents.len() + MAX_UNUSED_CHUNKS {
            let used: HashSet<u64> = self.extents.values().map(|extent| extent.chunk).collect();
            self.chunks.retain(|id, _| used.contains(id));
        }
        (self.version, self.size) = (attr.version, attr.size);
        self.validate(asked);
        true
    }

    /// Cuts `hole` out of the extents.
    fn punch(&mut self, hole: &Range<u64>) {
        let first = self.extents.range(..=hole.start).next_back().map_or(hole.start, |(start, _)| *start);
        let touched: Vec<u64> = self.extents.range(first..hole.end).map(|(start, _)| *start).collect();
        for start in touched {
            if let Some(extent) = self.extents.remove(&start) {
                let kept = extent.without(hole);
                self.extents.extend(kept.into_iter().flatten().map(|part| (part.offset, part)));
            }
        }
    }

    /// The file's version that all this is of.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Adds an answer of the same version.
    pub(super) fn merge(&mut self, answer: &PlanAnswer, asked: Instant) {
        debug_assert_eq!(answer.attr.version, self.version, "extents of two versions");
        if self.extents.len() + answer.extents.len() > MAX_KNOWN_EXTENTS {
            *self = Self::new(answer, asked);
        } else {
            self.add(answer);
            self.validate(asked);
        }
    }

    /// Adds what the answer tells of ranges not known yet, so that extents never overlap here.
    fn add(&mut self, answer: &PlanAnswer) {
        for gap in self.gaps(&answer.range) {
            let parts = answer.extents.iter().filter_map(|extent| extent.clip(&gap));
            self.extents.extend(parts.map(|part| (part.offset, part)));
        }
        self.chunks.extend(answer.chunks.iter().map(|(id, chunk)| (*id, Arc::clone(chunk))));
        self.cover(answer.range.clone());
    }

    /// All extents of `range` are known, those that there are.
    fn cover(&mut self, range: Range<u64>) {
        let Range { mut start, mut end } = range;
        if start >= end {
            return;
        }
        let before = self.covered.range(..=start).next_back().filter(|(_, e)| **e >= start).map(|(s, _)| *s);
        start = before.unwrap_or(start);
        let joined: Vec<u64> = self.covered.range(start..=end).map(|(s, _)| *s).collect();
        for key in joined {
            end = end.max(self.covered.remove(&key).unwrap_or(end));
        }
        self.covered.insert(start, end);
    }

    /// The parts of `range` that are not covered.
    fn gaps(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        let mut at = range.start;
        let first = self.covered.range(..=range.start).next_back().map_or(range.start, |(start, _)| *start);
        for (&start, &end) in self.covered.range(first..range.end.max(first)) {
            if at < start {
                gaps.push(at..start);
            }
            at = at.max(end);
        }
        if at < range.end {
            gaps.push(at..range.end);
        }
        gaps
    }

    /// The server said at `asked` that the version is still this one.
    pub(super) fn validate(&mut self, asked: Instant) {
        self.validated = self.validated.max(asked);
    }

    /// Whether the version was asked for recently enough.
    pub(super) fn is_valid(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.validated) < PLAN_VALID_FOR
    }

    /// Where `range` lies, or `None` when some of it is not known.
    pub(super) fn view(&self, range: &Range<u64>) -> Option<View> {
        let end = range.end.min(self.size);
        if range.start < end {
            let (_, covered_end) = self.covered.range(..=range.start).next_back()?;
            if *covered_end < end {
                return None;
            }
        }
        let first = self.extents.range(..=range.start).next_back().map_or(range.start, |(start, _)| *start);
        let parts =
            self.extents.range(first..range.end.max(first)).filter_map(|(_, extent)| extent.clip(range));
        let parts = parts.map(|part| Some((part, Arc::clone(self.chunks.get(&part.chunk)?))));
        Some(View { size: self.size, parts: parts.collect::<Option<_>>()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(offset: u64, length: u64, chunk: u64) -> Extent {
        Extent { offset, length, chunk, chunk_offset: 0 }
    }

    fn answer(offset: u64, covered_end: u64, extents: Vec<Extent>) -> PlanAnswer {
        let chunk = |id| ChunkPlan { chunk: id, length: 1 << 20, ..ChunkPlan::default() };
        let chunks = extents.iter().map(|extent| chunk(extent.chunk)).collect();
        let attr = Some(Attr { ino: 9, size: 1000, version: 4, ..Attr::default() });
        PlanAnswer::check(PlanReply { attr, extents, chunks, covered_end }, offset).unwrap().unwrap()
    }

    #[test]
    fn only_what_answers_covered_is_known() {
        let now = Instant::now();
        let mut known = KnownExtents::new(&answer(0, 100, vec![extent(0, 50, 7)]), now);
        assert_eq!(known.view(&(10..100)).unwrap().parts.len(), 1);
        assert!(known.view(&(10..101)).is_none());
        known.merge(&answer(200, 300, vec![extent(250, 10, 8)]), now);
        assert!(known.view(&(50..250)).is_none());
        known.merge(&answer(90, 220, vec![extent(150, 10, 9)]), now);
        assert_eq!(known.view(&(0..300)).unwrap().parts.len(), 3);
        assert!(known.view(&(0..301)).is_none());
        known.merge(&answer(300, 1000, vec![]), now);
        assert!(known.view(&(0..u64::MAX)).is_some(), "nothing lies beyond the end");
        assert_eq!(known.covered.len(), 1);
    }

    #[test]
    fn a_shorter_answer_takes_nothing_of_a_longer_one_away() {
        let mut known = KnownExtents::new(&answer(0, 1000, vec![extent(50, 150, 7)]), Instant::now());
        for (start, end) in [(50, 60), (90, 100), (199, 300)] {
            known.merge(&answer(start, end, vec![extent(50, 150, 7)]), Instant::now());
            let parts = known.view(&(0..1000)).unwrap().parts;
            assert_eq!(parts.iter().map(|(part, _)| part.length).sum::<u64>(), 150);
            assert_eq!(known.view(&(120..130)).unwrap().parts[0].0.chunk_offset, 70);
        }
    }

    #[test]
    fn answers_that_do_not_fit_together_are_refused() {
        let attr = Some(Attr { size: 1000, ..Attr::default() });
        let reply = |length| PlanReply {
            attr: attr.clone(),
            extents: vec![extent(0, 100, 7)],
            chunks: vec![ChunkPlan { chunk: 7, length, ..ChunkPlan::default() }],
            covered_end: 1000,
        };
        assert!(PlanAnswer::check(reply(100), 0).is_ok());
        assert_eq!(PlanAnswer::check(reply(99), 0).unwrap_err().code, Code::InputOutput);
        let nowhere = PlanReply { chunks: vec![], ..reply(100) };
        assert_eq!(PlanAnswer::check(nowhere, 0).unwrap_err().code, Code::InputOutput);
    }

    #[test]
    fn own_commits_keep_what_is_known_up_to_date_and_no_others() {
        let now = Instant::now();
        let mut known = KnownExtents::new(&answer(0, 1000, vec![extent(0, 300, 7)]), now);
        let chunk = Arc::new(ChunkPlan { chunk: 8, length: 500, ..ChunkPlan::default() });
        let attr = |version, size| Attr { ino: 9, version, size, ..Attr::default() };
        let mine = [extent(100, 50, 8), extent(1200, 10, 8)];
        assert!(!known.committed(&attr(6, 1210), &mine, &chunk, now), "somebody else changed it in between");
        assert!(known.committed(&attr(5, 1210), &mine, &chunk, now));
        let view = known.view(&(0..2000)).expect("all is known still");
        let parts: Vec<_> =
            view.parts.iter().map(|(e, _)| (e.offset, e.length, e.chunk, e.chunk_offset)).collect();
        assert_eq!(parts, [(0, 100, 7, 0), (100, 50, 8, 0), (150, 150, 7, 150), (1200, 10, 8, 0)]);
        assert_eq!((view.size, known.version()), (1210, 5));
        let mut part = KnownExtents::new(&answer(0, 200, vec![]), now);
        assert!(part.committed(&attr(5, 1210), &mine[1..], &chunk, now));
        assert!(part.view(&(0..201)).is_none() && part.view(&(1200..3000)).is_some());
    }

    #[test]
    fn what_is_known_grows_old() {
        let now = Instant::now();
        let mut known = KnownExtents::new(&answer(0, 1000, vec![]), now);
        assert!(known.is_valid(now + PLAN_VALID_FOR / 2));
        assert!(!known.is_valid(now + PLAN_VALID_FOR));
        known.validate(now + PLAN_VALID_FOR);
        assert!(known.is_valid(now + PLAN_VALID_FOR));
        known.validate(now);
        assert!(known.is_valid(now + PLAN_VALID_FOR), "an older answer does not take validity away");
    }
}
