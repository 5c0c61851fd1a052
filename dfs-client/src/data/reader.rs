//! Reads: dirty layers, then the block cache, then the nodes.
//!
//! The layers are looked at first and the extents after them, so that bytes committed in between are seen in one of the
//! two. Size and extents are of one version. A range that no extent covers is zeros; a range that could not be read is
//! an error, never zeros.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dfs_proto::limits::{BLOCK_SIZE, MAX_PLAN_EXTENTS};
use dfs_proto::meta::{ChunkPlan, Extent, GetAttr, Plan, reply, request};
use dfs_proto::{Code, Failure};

use super::cache::Run;
use super::inode::{InodeData, State};
use super::plan::{PlanAnswer, View};

/// The longest read answered at once; a longer one returns so many bytes.
const MAX_READ: usize = 16 * 1024 * 1024;
/// Extents asked for at once.
const PLAN_EXTENTS: u32 = 1024;
/// How far extents are asked for beyond what is read.
const PLAN_AHEAD: u64 = 1 << 40;
/// Plans asked for one read, while the file keeps changing under it or has very many extents.
const MAX_PLANS: usize = 1024;
/// The wait before a failed read is tried again, at first and at most.
const RETRY_AFTER: Duration = Duration::from_millis(50);
const MAX_RETRY_AFTER: Duration = Duration::from_secs(1);
/// A chunk that every node denies having is looked for again so often with a fresh plan: it may just have moved.
const MAX_DENIALS: usize = 2;

/// Bytes at an offset of the file.
type Part = (u64, Bytes);

/// The dirty bytes of a range, and what is left of it.
struct Dirty {
    parts: Vec<Part>,
    left: Vec<Range<u64>>,
    end: u64,
}

impl Dirty {
    fn look(state: &State, range: Range<u64>) -> Self {
        let (parts, left) = state.layers.read(range);
        Self { parts, left, end: state.layers.end() }
    }
}

impl InodeData {
    /// Reads without waiting: only what is dirty or cached here, or a hole by extents that are still valid. `None`: call
    /// [`Self::read`]. May be called outside the runtime.
    pub fn try_read(self: &Arc<Self>, offset: u64, length: usize) -> Option<Bytes> {
        let range = range_of(offset, length);
        let (dirty, view, ahead) = {
            let mut state = self.lock();
            let dirty = Dirty::look(&state, range.clone());
            if dirty.left.is_empty() {
                return Some(assemble(dirty.parts, range));
            }
            let known = state.known.as_ref().filter(|known| known.is_valid(Instant::now()))?;
            let view = known.view(&range)?;
            let ahead = state.readahead.note(range.clone(), view.size);
            (dirty, view, ahead)
        };
        self.read_ahead(ahead);
        let range = range.start..range.end.min(view.size.max(dirty.end)).max(range.start);
        let mut parts = dirty.parts;
        for (extent, chunk) in clipped(&view, &dirty.left) {
            for run in self.plane.cache.get(chunk.chunk, blocks_of(&extent))? {
                parts.push(cut(&extent, &run)?);
            }
        }
        Some(assemble(parts, range))
    }

    /// Reads up to `length` bytes from `offset` on; fewer at the end of the file, and never more than 16 MiB. EIO when no
    /// copy of the bytes is left, or none can be reached within the mount's timeout.
    pub async fn read(self: &Arc<Self>, offset: u64, length: usize) -> Result<Bytes, Failure> {
        let range = range_of(offset, length);
        let started = Instant::now();
        let (mut wait, mut denials) = (RETRY_AFTER, 0);
        loop {
            let failure = match self.read_once(range.clone()).await {
                Ok(bytes) => return Ok(bytes),
                Err(failure) => failure,
            };
            // The nodes may be others by now: ask again where the chunks are.
            self.lock().known = None;
            let denied = matches!(failure.code, Code::NotFound | Code::Corrupt);
            denials += usize::from(denied);
            if denied && denials > MAX_DENIALS {
                return Err(Failure::new(Code::InputOutput, failure.message));
            }
            if !denied && !failure.is_transient() || self.plane.settings.is_over(started) {
                return Err(failure);
            }
            tracing::warn!(ino = %self.ino, %failure, "a read failed and is tried again");
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(MAX_RETRY_AFTER);
        }
    }

    async fn read_once(self: &Arc<Self>, range: Range<u64>) -> Result<Bytes, Failure> {
        let dirty = Dirty::look(&self.lock(), range.clone());
        if dirty.left.is_empty() {
            return Ok(assemble(dirty.parts, range));
        }
        let view = self.view(&range).await?;
        let wanted: Vec<_> = clipped(&view, &dirty.left).collect();
        let coming: Vec<_> =
            wanted.iter().map(|(extent, chunk)| self.plane.fetcher.start(chunk, blocks_of(extent))).collect();
        let ahead = self.lock().readahead.note(range.clone(), view.size);
        self.read_ahead(ahead);
        let mut parts = dirty.parts;
        for ((extent, chunk), blocks) in wanted.iter().zip(coming) {
            for run in blocks.wait().await? {
                parts.push(cut(extent, &run).ok_or_else(|| {
                    Failure::new(Code::Corrupt, format!("chunk {} is shorter than its extents", chunk.chunk))
                })?);
            }
        }
        let end = range.end.min(view.size.max(dirty.end)).max(range.start);
        Ok(assemble(parts, range.start..end))
    }

    /// Starts fetching a file of one block, if it is known where it is: who opens a small file to read it mostly reads it
    /// at once. Must be called within the runtime.
    pub fn fetch_if_small(self: &Arc<Self>) {
        let Some(view) = self.known_view(&(0..BLOCK_SIZE as u64)) else { return };
        if view.size <= BLOCK_SIZE as u64 {
            for (extent, chunk) in &view.parts {
                self.plane.fetcher.ahead(chunk, blocks_of(extent));
            }
        }
    }

    /// Starts fetching a range for a reader that will come to it.
    fn read_ahead(self: &Arc<Self>, ahead: Option<Range<u64>>) {
        let Some(ahead) = ahead else { return };
        let inode = Arc::clone(self);
        self.plane.runtime.spawn(async move {
            match inode.view(&ahead).await {
                Ok(view) => {
                    for (extent, chunk) in &view.parts {
                        inode.plane.fetcher.ahead(chunk, blocks_of(extent));
                    }
                }
                Err(failure) => tracing::debug!(ino = %inode.ino, %failure, "reading ahead failed"),
            }
        });
    }

    /// Where `range` lies: from what is known, or from the server.
    async fn view(&self, range: &Range<u64>) -> Result<View, Failure> {
        if let Some(view) = self.known_view(range) {
            return Ok(view);
        }
        let _planning = self.planning.lock().await;
        if let Some(view) = self.known_view(range) {
            return Ok(view);
        }
        if self.lock().known.is_some() {
            // Known but old, or known of other ranges: one small call says whether it is still true.
            self.validate().await?;
            if let Some(view) = self.known_view(range) {
                return Ok(view);
            }
        }
        self.plan(range).await
    }

    fn known_view(&self, range: &Range<u64>) -> Option<View> {
        self.lock().known.as_ref().filter(|known| known.is_valid(Instant::now()))?.view(range)
    }

    /// Asks whether what is known is still of the file's version.
    async fn validate(&self) -> Result<(), Failure> {
        if self.lock().known.as_ref().is_some_and(|known| known.is_valid(Instant::now())) {
            return Ok(());
        }
        let asked = Instant::now();
        match self.plane.meta.read(request::Op::GetAttr(GetAttr { ino: self.ino.0 })).await? {
            reply::Result::Attr(attr) => {
                self.lock().learn(&attr, asked);
                Ok(())
            }
            _ => Err(Failure::new(
                Code::InputOutput,
                "the metadata server answered a stat with something else",
            )),
        }
    }

    /// Asks for the extents of `range`, in as many calls as it takes, all of one version.
    async fn plan(&self, range: &Range<u64>) -> Result<View, Failure> {
        let mut view: Option<(u64, View)> = None;
        let mut at = range.start;
        for _ in 0..MAX_PLANS {
            let asked = Instant::now();
            let op = Plan {
                ino: self.ino.0,
                offset: at,
                length: range.end.saturating_sub(at).max(PLAN_AHEAD),
                max_extents: PLAN_EXTENTS.min(MAX_PLAN_EXTENTS),
            };
            let reply::Result::Plan(reply) = self.plane.meta.read(request::Op::Plan(op)).await? else {
                return Err(Failure::new(
                    Code::InputOutput,
                    "the metadata server answered a plan with something else",
                ));
            };
            let answer = PlanAnswer::check(reply, at)?
                .ok_or_else(|| Failure::new(Code::InputOutput, "a plan came without attributes"))?;
            self.lock().learn_plan(&answer, asked);
            let end = answer.end();
            match &mut view {
                Some((version, view)) if *version == answer.attr.version => {
                    view.parts.extend(answer.parts(range))
                }
                // The file changed between two answers: begin again with the newer.
                Some(_) if at != range.start => {
                    (view, at) = (None, range.start);
                    continue;
                }
                view => {
                    *view = Some((
                        answer.attr.version,
                        View { size: answer.attr.size, parts: answer.parts(range) },
                    ))
                }
            }
            if end >= range.end.min(answer.attr.size) {
                return view.map(|(_, view)| view).ok_or_else(|| Failure::from(Code::InputOutput));
            }
            if end <= at {
                return Err(Failure::new(Code::InputOutput, "a plan covers nothing of what was asked for"));
            }
            at = end;
        }
        Err(Failure::new(Code::Unavailable, format!("inode {} changes faster than it can be read", self.ino)))
    }
}

fn range_of(offset: u64, length: usize) -> Range<u64> {
    offset..offset.saturating_add(length.min(MAX_READ) as u64)
}

/// The extents of a view inside the ranges `left`, each with its chunk.
fn clipped<'a>(view: &'a View, left: &'a [Range<u64>]) -> impl Iterator<Item = (Extent, &'a Arc<ChunkPlan>)> {
    view.parts.iter().flat_map(move |(extent, chunk)| {
        left.iter().filter_map(move |range| Some((extent.clip(range)?, chunk)))
    })
}

/// The blocks of its chunk that an extent lies in.
fn blocks_of(extent: &Extent) -> Range<u32> {
    let block = BLOCK_SIZE as u64;
    (extent.chunk_offset / block) as u32..(extent.chunk_offset + extent.length).div_ceil(block) as u32
}

/// The part of some blocks that belongs to an extent, with its place in the file; `None` when they are too short.
fn cut(extent: &Extent, run: &Run) -> Option<Part> {
    let first = run.offset();
    let start = extent.chunk_offset.max(first);
    let end = (extent.chunk_offset + extent.length).min(u64::from(run.blocks().end) * BLOCK_SIZE as u64);
    let offset = extent.offset + (start - extent.chunk_offset);
    let (from, to) = ((start - first) as usize, end.saturating_sub(first) as usize);
    (from < to && to <= run.data().len()).then(|| (offset, run.data().slice(from..to)))
}

/// The bytes of `range`: the parts, which don't overlap, and zeros where there is none.
fn assemble(mut parts: Vec<Part>, range: Range<u64>) -> Bytes {
    let length = range.end.saturating_sub(range.start) as usize;
    if let [(offset, part)] = parts.as_slice()
        && *offset == range.start
        && part.len() == length
    {
        return part.clone();
    }
    parts.sort_unstable_by_key(|(offset, _)| *offset);
    let mut bytes = Vec::with_capacity(length);
    for (offset, part) in parts {
        bytes.resize((offset - range.start) as usize, 0);
        bytes.extend_from_slice(&part);
    }
    bytes.resize(length, 0);
    bytes.into()
}
