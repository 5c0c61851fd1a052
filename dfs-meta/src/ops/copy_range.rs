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

#[cfg(test)]
mod tests {
    use dfs_proto::meta::request;

    use super::super::testing::{Bench, answer};
    use super::*;
    use crate::store::records::ChunkState;

    fn copy(bench: &mut Bench, from: (Ino, u64), to: (Ino, u64), length: u64) -> Result<Copied, Failure> {
        let op = CopyRange {
            source: from.0.0,
            source_offset: from.1,
            target: to.0.0,
            target_offset: to.1,
            length,
            kill_set_id: false,
        };
        answer!(bench.run(request::Op::CopyRange(op)), Copied)
    }

    #[test]
    fn a_copy_outlives_its_source() {
        let mut bench = Bench::with_nodes(3);
        let (one, other) = (bench.file("one"), bench.file("other"));
        let chunk = bench.write(one, &[(0, 100), (200, 100)]);
        let copied = copy(&mut bench, (one, 50), (other, 1000), u64::MAX).unwrap();
        assert_eq!((copied.length, copied.attr.unwrap().size), (250, 1250));
        let extents: Vec<_> = bench.plan(other).extents.iter().map(|e| (e.range(), e.chunk_offset)).collect();
        assert_eq!(extents, [(1000..1050, 50), (1150..1250, 100)], "holes are copied as holes");
        assert_eq!(bench.chunk(chunk).unwrap().live_bytes, 350);
        bench.write(one, &[(0, 300)]);
        assert_eq!(bench.chunk(chunk).unwrap().live_bytes, 150);
        bench.check();
        bench.write(other, &[(0, 1250)]);
        assert_eq!(bench.chunk(chunk).unwrap().state(), ChunkState::Garbage);
        bench.check();
    }

    #[test]
    fn what_cannot_be_copied_is_told() {
        let mut bench = Bench::with_nodes(3);
        let (one, other) = (bench.file("one"), bench.file("other"));
        bench.write(one, &[(0, 100)]);
        let version = bench.plan(other).attr.unwrap().version;
        let mut code = |from, to, length| copy(&mut bench, from, to, length).unwrap_err().code;
        assert_eq!(code((one, 0), (one, 50), 100), Code::Invalid);
        assert_eq!(code((one, 0), (other, u64::MAX), 1), Code::TooBig);
        assert_eq!(code((one, 0), (Ino(1), 0), 1), Code::IsADirectory);
        assert_eq!(code((one, 0), (Ino(99), 0), 1), Code::Stale);
        assert_eq!(copy(&mut bench, (one, 100), (other, 0), 9).unwrap().length, 0);
        assert_eq!(copy(&mut bench, (one, 0), (one, 100), 500).unwrap().length, 100, "side by side");
        let after = bench.plan(other).attr.unwrap();
        assert_eq!((after.size, after.version), (0, version));

        let mut inode = bench.with(dfs_proto::SessionId(1), |cx| inode::load(cx, other)).unwrap();
        inode.class = "replicated:2".into();
        let save = |cx: &mut Context<'_, '_>| {
            inode::save(cx, other, &inode);
            Ok(())
        };
        bench.with(dfs_proto::SessionId(1), save).unwrap();
        assert_eq!(copy(&mut bench, (one, 0), (other, 0), 9).unwrap_err().code, Code::CrossDevice);
    }

    #[test]
    fn long_copies_are_made_in_pieces() {
        let mut bench = Bench::with_nodes(3);
        let (one, other) = (bench.file("one"), bench.file("other"));
        let ranges: Vec<_> = (0..10_000).map(|at| (at * 10, 5)).collect();
        bench.write(one, &ranges);
        bench.write(other, &ranges);
        let mut done = 0;
        let mut calls = 0;
        while done < 99_995 {
            done += copy(&mut bench, (one, done), (other, done), 99_995 - done).unwrap().length;
            calls += 1;
        }
        assert_eq!((done, calls), (99_995, 2));
        assert_eq!(bench.plan(one).extents, bench.plan(other).extents);
        bench.check();
    }
}
