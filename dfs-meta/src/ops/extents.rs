//! Changing what a file's ranges point to. Everything that adds or cuts extents goes through here, so that what
//! belongs together stays together:
//!
//! - a file's extents (`E`) never overlap, and every one has its back-pointer (`B`) in the same transaction;
//! - a chunk's live bytes are the sum of the extents that point into it; at none it is garbage from that moment on;
//! - an inode's allocated bytes are the sum of its extents, and the counter of used bytes the sum over all inodes.

use std::collections::BTreeMap;
use std::ops::Range;

use dfs_proto::meta::Extent;
use dfs_proto::{ChunkId, Code, Failure, Ino};

use super::{Context, counters, garbage};
use crate::store::keys;
use crate::store::records::{Chunk, ChunkState, Inode, Marker, StoredExtent};

/// Old extents read at once at the start of an overlay, and at most.
const FIRST_PAGE: usize = 16;
const LARGEST_PAGE: usize = 1024;

/// Cuts extents out of `start..end`, at most `limit` of them; returns whether none is left there. Maintains chunks,
/// back-pointers and counters; the caller puts the inode.
pub fn remove_range(
    cx: &mut Context<'_, '_>,
    ino: Ino,
    inode: &mut Inode,
    start: u64,
    end: u64,
    limit: usize,
) -> Result<bool, Failure> {
    let mut ledger = Ledger::default();
    let cleared = clear(cx, &mut ledger, ino, inode, start..end, limit)?;
    ledger.settle(cx)?;
    Ok(cleared >= end)
}

/// What changes of extents mean for chunks and for the space in use. Summed up over an operation, so that each chunk
/// is read and written once.
#[derive(Default)]
pub(super) struct Ledger {
    chunks: BTreeMap<ChunkId, Balance>,
    used: Balance,
}

#[derive(Clone, Copy, Default)]
struct Balance {
    added: u64,
    removed: u64,
}

impl Ledger {
    /// Looks at a chunk when settling even if nothing points into it.
    pub(super) fn touch(&mut self, chunk: ChunkId) {
        self.chunks.entry(chunk).or_default();
    }

    /// Writes the chunks' live bytes; those with none become garbage.
    pub(super) fn settle(self, cx: &mut Context<'_, '_>) -> Result<(), Failure> {
        for (id, balance) in self.chunks {
            let damaged =
                |what| Failure::new(Code::Corrupt, format!("the metadata store's chunk {id} {what}"));
            let chunk = cx.tx.get::<Chunk>(&keys::chunk(id))?;
            let mut chunk = chunk.ok_or_else(|| damaged("is pointed to but not there"))?;
            if chunk.state() != ChunkState::Sealed {
                return Err(damaged("is pointed to but not sealed"));
            }
            let live = chunk.live_bytes.checked_add(balance.added);
            chunk.live_bytes = live
                .and_then(|live| live.checked_sub(balance.removed))
                .ok_or_else(|| damaged("has fewer live bytes than extents point to"))?;
            if chunk.live_bytes == 0 {
                garbage::discard(cx, id, &mut chunk);
            }
            cx.tx.put(keys::chunk(id), &chunk);
        }
        counters::add(cx, counters::USED_BYTES, self.used.added)?;
        counters::subtract(cx, counters::USED_BYTES, self.used.removed)
    }
}

/// Cuts extents out of a range, at most `limit` of them; returns up to where the range is clear.
pub(super) fn clear(
    cx: &mut Context<'_, '_>,
    ledger: &mut Ledger,
    ino: Ino,
    inode: &mut Inode,
    range: Range<u64>,
    limit: usize,
) -> Result<u64, Failure> {
    if inode.allocated_bytes == 0 || range.is_empty() {
        return Ok(range.end);
    }
    let mut old = overlapping(cx, ino, &range, limit.saturating_add(1))?;
    let cleared = if old.len() > limit { old[limit].offset.max(range.start) } else { range.end };
    old.truncate(limit);
    let kept: Vec<Extent> =
        old.iter().flat_map(|extent| extent.without(&(range.start..cleared))).flatten().collect();
    replace(cx, ledger, ino, inode, &old, &kept)?;
    Ok(cleared)
}

/// Lays extents (sorted, not overlapping) over what the file has: overlapped ones are cut, and neighbours that
/// continue each other in one chunk become one.
pub(super) fn overlay(
    cx: &mut Context<'_, '_>,
    ledger: &mut Ledger,
    ino: Ino,
    inode: &mut Inode,
    new: &[Extent],
) -> Result<(), Failure> {
    let mut rest = new;
    let mut page = FIRST_PAGE;
    while let (Some(first), Some(last)) = (rest.first(), rest.last()) {
        // One extent more at either side, for what only touches and may be continued.
        let around = first.offset.saturating_sub(1)..last.end().saturating_add(1);
        let old = match inode.allocated_bytes {
            0 => Vec::new(),
            _ => overlapping(cx, ino, &around, page)?,
        };
        let complete = old.len() < page;
        let known_to = if complete { u64::MAX } else { old.last().map_or(0, Extent::end) };
        let taken = rest.iter().take_while(|extent| extent.end() <= known_to).count();
        if taken == 0 {
            clear_all(cx, ledger, ino, inode, first.range())?;
            continue;
        }
        let (now, later) = rest.split_at(taken);
        let merged = overlaid(&old, now);
        replace(cx, ledger, ino, inode, &old, &merged)?;
        rest = later;
        // Dense new extents are worth larger pages; far apart ones would read in vain.
        page = if taken > 1 { (page * 4).min(LARGEST_PAGE) } else { FIRST_PAGE };
    }
    Ok(())
}

/// Cuts all extents out of a range, page by page.
fn clear_all(
    cx: &mut Context<'_, '_>,
    ledger: &mut Ledger,
    ino: Ino,
    inode: &mut Inode,
    range: Range<u64>,
) -> Result<(), Failure> {
    let mut start = range.start;
    while start < range.end {
        start = clear(cx, ledger, ino, inode, start..range.end, LARGEST_PAGE)?;
    }
    Ok(())
}

/// At most `limit` extents that overlap a range, in order.
pub(super) fn overlapping(
    cx: &mut Context<'_, '_>,
    ino: Ino,
    range: &Range<u64>,
    limit: usize,
) -> Result<Vec<Extent>, Failure> {
    let mut found = Vec::new();
    if range.start > 0 && limit > 0 {
        let before = cx.tx.last::<StoredExtent>(&keys::extents(ino, 0, range.start))?;
        found.extend(
            before.map(|(key, stored)| extent_at(&key, &stored)).filter(|extent| extent.end() > range.start),
        );
    }
    let inside = keys::extents(ino, range.start, range.end);
    let stored = cx.tx.scan::<StoredExtent>(&inside, limit - found.len().min(limit))?;
    found.extend(stored.iter().map(|(key, stored)| extent_at(key, stored)));
    Ok(found)
}

fn extent_at(key: &[u8], stored: &StoredExtent) -> Extent {
    Extent {
        offset: keys::extent_offset(key),
        length: stored.length,
        chunk: stored.chunk,
        chunk_offset: stored.chunk_offset,
    }
}

/// `new` over `old`, both sorted and without overlaps; what continues is joined.
fn overlaid(old: &[Extent], new: &[Extent]) -> Vec<Extent> {
    let mut result: Vec<Extent> = Vec::with_capacity(old.len() + new.len());
    let mut push = |extent: Extent| match result.last_mut() {
        Some(last) if last.continues_into(&extent) => last.length += extent.length,
        _ => result.push(extent),
    };
    let mut below = old.iter().copied();
    let mut pending = below.next();
    for extent in new {
        while let Some(lower) = pending {
            let [before, after] = lower.without(&extent.range());
            if let Some(before) = before {
                push(before);
            }
            if after.is_some() {
                pending = after;
                break;
            }
            pending = below.next();
        }
        push(*extent);
    }
    pending.into_iter().chain(below).for_each(push);
    result
}

/// Makes the records of `old` those of `new`: both sorted by offset, of the same part of one file.
fn replace(
    cx: &mut Context<'_, '_>,
    ledger: &mut Ledger,
    ino: Ino,
    inode: &mut Inode,
    old: &[Extent],
    new: &[Extent],
) -> Result<(), Failure> {
    let mut balance = Balance::default();
    let mut put = |cx: &mut Context<'_, '_>, extent: &Extent| {
        let stored =
            StoredExtent { length: extent.length, chunk: extent.chunk, chunk_offset: extent.chunk_offset };
        cx.tx.put(keys::extent(ino, extent.offset), &stored);
        cx.tx.put(keys::chunk_user(ChunkId(extent.chunk), ino, extent.offset), &Marker {});
        ledger.chunks.entry(ChunkId(extent.chunk)).or_default().added += extent.length;
        balance.added += extent.length;
    };
    let mut kept = new.iter().peekable();
    let mut removed = Vec::new();
    for before in old {
        while let Some(extent) = kept.next_if(|extent| extent.offset < before.offset) {
            put(cx, extent);
        }
        match kept.next_if(|extent| extent.offset == before.offset) {
            Some(extent) if extent == before => continue,
            Some(extent) => {
                cx.tx.delete(keys::chunk_user(ChunkId(before.chunk), ino, before.offset));
                put(cx, extent);
            }
            None => {
                cx.tx.delete(keys::chunk_user(ChunkId(before.chunk), ino, before.offset));
                cx.tx.delete(keys::extent(ino, before.offset));
            }
        }
        removed.push(before);
    }
    for extent in kept {
        put(cx, extent);
    }
    for extent in removed {
        ledger.chunks.entry(ChunkId(extent.chunk)).or_default().removed += extent.length;
        balance.removed += extent.length;
    }
    ledger.used.added += balance.added;
    ledger.used.removed += balance.removed;
    let allocated = (inode.allocated_bytes + balance.added).checked_sub(balance.removed);
    inode.allocated_bytes = allocated.ok_or_else(|| {
        Failure::new(Code::Corrupt, format!("the metadata store's inode {ino} covers less than its extents"))
    })?;
    Ok(())
}

#[cfg(test)]
mod tests;
