//! copy_file_range(2) by extents: the target's range points to the same bytes of the same chunks as the source's. No
//! data moves; each extent counts its chunk's live bytes once more, so that either file may go first.

use dfs_proto::meta::{Copied, CopyRange, Extent};
use dfs_proto::{ChunkId, Code, Failure, Ino, limits};

use super::extents::Ledger;
use super::{Context, extents, inode, plan};
use crate::store::keys;
use crate::store::records::{Chunk, Inode};

/// Extents copied, and extents of the target replaced, in one operation. Where there are more, less is copied.
const PIECE: usize = 8192;

/// The length copied: less than asked for at the source's end, or after a bounded piece of a longer work. EINVAL (the
/// ranges overlap in one file, or no regular file), EISDIR, EFBIG; EXDEV when the target's data is to be kept in another
/// class: then the bytes have to be read and written; ESTALE when an inode is gone.
pub(super) fn run(cx: &mut Context<'_, '_>, request: &CopyRange) -> Result<Copied, Failure> {
    let (source, target) = (Ino(request.source), Ino(request.target));
    let from = plan::load_regular(cx, source)?;
    let mut to = plan::load_regular(cx, target)?;
    let length = request.length.min(from.size.saturating_sub(request.source_offset));
    if source == target && request.source_offset.abs_diff(request.target_offset) < length {
        return Err(Failure::new(Code::Invalid, "a file cannot be copied over itself"));
    }
    if request.target_offset.checked_add(length).is_none_or(|end| end > limits::MAX_FILE_SIZE) {
        return Err(Failure::new(Code::TooBig, "the copy would reach beyond the largest file"));
    }
    if length == 0 {
        return Ok(Copied { length: 0, attr: Some(inode::attr(target, &to)) });
    }

    let (copies, length) = copies(cx, request, &from, length)?;
    check_class(cx, &copies, &to)?;
    let mut ledger = Ledger::default();
    let start = request.target_offset;
    let cleared = extents::clear(cx, &mut ledger, target, &mut to, start..start + length, PIECE)?;
    let length = cleared - start;
    let fitting: Vec<Extent> = copies.iter().filter_map(|copy| copy.clip(&(start..cleared))).collect();
    extents::overlay(cx, &mut ledger, target, &mut to, &fitting)?;
    ledger.settle(cx)?;
    to.size = to.size.max(cleared);
    inode::written(cx, target, &mut to, cx.now, request.kill_set_id)?;
    inode::save(cx, target, &to);
    Ok(Copied { length, attr: Some(inode::attr(target, &to)) })
}

/// The source's extents as the target's, and for how many bytes they are all.
fn copies(
    cx: &mut Context<'_, '_>,
    request: &CopyRange,
    from: &Inode,
    length: u64,
) -> Result<(Vec<Extent>, u64), Failure> {
    let range = request.source_offset..request.source_offset + length;
    let mut found = match from.allocated_bytes {
        0 => Vec::new(),
        _ => extents::overlapping(cx, Ino(request.source), &range, PIECE + 1)?,
    };
    let mut length = length;
    if found.len() > PIECE {
        length = found[PIECE].offset - request.source_offset;
        found.truncate(PIECE);
    }
    let parts = found.iter().filter_map(|extent| extent.clip(&range));
    let moved = parts
        .map(|part| Extent { offset: part.offset - request.source_offset + request.target_offset, ..part });
    Ok((moved.collect(), length))
}

/// What is kept in one class is not shared with a file whose data is to be kept in another.
fn check_class(cx: &mut Context<'_, '_>, copies: &[Extent], to: &Inode) -> Result<(), Failure> {
    let mut last = None;
    for copy in copies {
        if last.replace(copy.chunk) == Some(copy.chunk) {
            continue;
        }
        let id = ChunkId(copy.chunk);
        let chunk = cx.tx.get::<Chunk>(&keys::chunk(id))?.unwrap_or_default();
        if chunk.class != to.class {
            let message =
                format!("the source's data is kept as {}, the target's as {}", chunk.class, to.class);
            return Err(Failure::new(Code::CrossDevice, message));
        }
    }
    Ok(())
}
