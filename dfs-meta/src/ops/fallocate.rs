//! fallocate(2): extends a file, punches holes, zeroes ranges. A hole costs nothing and reads as zeros, so zeroing is
//! punching; space for what is not written yet is not set aside, but what could never fit is refused.

use dfs_proto::meta::{Copied, Fallocate, FallocateMode, reply};
use dfs_proto::{Class, Code, Failure, Ino, limits};

use super::{Context, extents, inode, plan, stat_fs};
use crate::store::records::Inode;

/// Extents cut in one operation. Where there are more, the answer says how far it came.
const PIECE: usize = 16_384;

/// EINVAL, EISDIR, EFBIG; NO_SPACE when the cluster could never hold the range; ESTALE when the inode is gone.
///
/// Answered with the attributes; or, after a bounded piece of a longer work, with how much of the range is done: the
/// caller goes on behind it.
pub(super) fn run(cx: &mut Context<'_, '_>, request: &Fallocate) -> Result<reply::Result, Failure> {
    let ino = Ino(request.ino);
    let mut inode = plan::load_regular(cx, ino)?;
    let mode = FallocateMode::try_from(request.mode)
        .map_err(|_| Failure::new(Code::NotSupported, "this mode of fallocate is not known"))?;
    if request.length == 0 {
        return Err(Failure::new(Code::Invalid, "fallocate needs a length"));
    }
    let end = request.offset.checked_add(request.length).filter(|end| *end <= limits::MAX_FILE_SIZE);
    let end = end.ok_or_else(|| Failure::new(Code::TooBig, "fallocate beyond the largest file"))?;
    let (cuts, extends) = match mode {
        FallocateMode::Allocate => (false, true),
        FallocateMode::KeepSize => (false, false),
        FallocateMode::PunchHole | FallocateMode::ZeroRangeKeepSize => (true, false),
        FallocateMode::ZeroRange => (true, true),
    };
    if mode != FallocateMode::PunchHole {
        check_room(cx, &inode, request.length)?;
    }
    let mut done_to = end;
    if cuts {
        let mut ledger = extents::Ledger::default();
        done_to = extents::clear(cx, &mut ledger, ino, &mut inode, request.offset..end, PIECE)?;
        ledger.settle(cx)?;
    }
    if extends {
        inode.size = inode.size.max(done_to);
    }
    inode::written(cx, ino, &mut inode, cx.now, request.kill_set_id)?;
    inode::save(cx, ino, &inode);
    let attr = inode::attr(ino, &inode);
    Ok(match done_to == end {
        true => reply::Result::Attr(attr),
        false => reply::Result::Copied(Copied { length: done_to - request.offset, attr: Some(attr) }),
    })
}

/// What could not be written afterwards even if nobody else wrote is refused, once all chunk daemons had the time to
/// tell this server how full they are.
fn check_room(cx: &Context<'_, '_>, inode: &Inode, length: u64) -> Result<(), Failure> {
    if cx.uptime < cx.settings.node_dead_after {
        return Ok(());
    }
    let class: Class = inode.class.parse()?;
    let free = stat_fs::available_bytes(cx, &class);
    if length > free.saturating_add(inode.allocated_bytes) {
        let message = format!("the cluster has no room for {length} bytes more of class {class}");
        return Err(Failure::new(Code::NoSpace, message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use dfs_proto::Attr;
    use dfs_proto::meta::request;

    use super::super::testing::{Bench, CAPACITY};
    use super::*;

    fn fallocate(
        bench: &mut Bench,
        ino: Ino,
        offset: u64,
        length: u64,
        mode: FallocateMode,
    ) -> Result<reply::Result, Failure> {
        let op = Fallocate { ino: ino.0, offset, length, mode: mode.into(), kill_set_id: false };
        bench.run(request::Op::Fallocate(op))
    }

    fn attr(result: Result<reply::Result, Failure>) -> Attr {
        match result.expect("a good fallocate") {
            reply::Result::Attr(attr) => attr,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn modes_differ_in_what_they_keep() {
        let mut bench = Bench::with_nodes(3);
        let ino = bench.file("f");
        bench.write(ino, &[(0, 1000)]);
        let mut run = |offset, length, mode| {
            let attr = attr(fallocate(&mut bench, ino, offset, length, mode));
            (attr.size, attr.allocated_bytes, attr.version)
        };
        let (size, allocated, version) = run(500, 1000, FallocateMode::KeepSize);
        assert_eq!((size, allocated), (1000, 1000));
        assert_eq!(run(500, 1000, FallocateMode::PunchHole), (1000, 500, version + 1));
        assert_eq!(run(0, 100, FallocateMode::ZeroRangeKeepSize), (1000, 400, version + 2));
        assert_eq!(run(450, 1000, FallocateMode::ZeroRange), (1450, 350, version + 3));
        assert_eq!(run(0, 2000, FallocateMode::Allocate), (2000, 350, version + 4));
        bench.check();
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let mut bench = Bench::with_nodes(3);
        let ino = bench.file("f");
        let mut code =
            |ino, offset, length, mode| fallocate(&mut bench, ino, offset, length, mode).unwrap_err().code;
        assert_eq!(code(ino, 0, 0, FallocateMode::Allocate), Code::Invalid);
        assert_eq!(code(ino, u64::MAX, 2, FallocateMode::Allocate), Code::TooBig);
        assert_eq!(code(ino, i64::MAX as u64, 1, FallocateMode::PunchHole), Code::TooBig);
        assert_eq!(code(Ino(1), 0, 1, FallocateMode::Allocate), Code::IsADirectory);
        assert_eq!(code(Ino(999), 0, 1, FallocateMode::Allocate), Code::Stale);
        let unknown = Fallocate { ino: ino.0, length: 1, mode: 99, ..Fallocate::default() };
        assert_eq!(bench.run(request::Op::Fallocate(unknown)).unwrap_err().code, Code::NotSupported);
        assert!(
            fallocate(&mut bench, ino, 0, 2 * CAPACITY, FallocateMode::Allocate).is_ok(),
            "who knows yet"
        );
        bench.uptime += bench.settings.node_dead_after;
        (1..=3).for_each(|node| drop(bench.beat(node, CAPACITY)));
        let failure = fallocate(&mut bench, ino, 0, 2 * CAPACITY, FallocateMode::Allocate).unwrap_err();
        assert_eq!(failure.code, Code::NoSpace, "{failure}");
        assert!(fallocate(&mut bench, ino, 0, 2 * CAPACITY, FallocateMode::PunchHole).is_ok());
    }

    #[test]
    fn long_work_is_done_in_pieces() {
        let mut bench = Bench::with_nodes(3);
        let ino = bench.file("f");
        for part in 0..3 {
            let ranges: Vec<_> = (0..8000).map(|at| ((part * 8000 + at) * 10, 5)).collect();
            bench.write(ino, &ranges);
        }
        let end = 24_000 * 10 + 1000;
        let result = fallocate(&mut bench, ino, 0, end, FallocateMode::ZeroRange).unwrap();
        let reply::Result::Copied(Copied { length, attr: Some(before) }) = result else {
            panic!("{result:?}")
        };
        assert_eq!((length, before.size), (PIECE as u64 * 10, 23_999 * 10 + 5));
        let after = attr(fallocate(&mut bench, ino, length, end - length, FallocateMode::ZeroRange));
        assert_eq!((after.size, after.allocated_bytes), (end, 0));
        bench.check();
    }
}
