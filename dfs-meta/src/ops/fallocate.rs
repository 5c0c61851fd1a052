//! fallocate(2): extends a file, punches holes, zeroes ranges. A hole costs nothing and reads as zeros, so zeroing is
//! punching; space for what is not written yet is not set aside, but what could never fit is refused.

use dfs_proto::meta::{Copied, Fallocate, FallocateMode, reply};
use dfs_proto::{Class, Code, Failure, Ino, limits};

use super::{Context, extents, inode, plan};
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
    let (_, free) = cx.live.nodes.space(cx.uptime, cx.settings.patience());
    let class: Class = inode.class.parse()?;
    let (stored, data) = class.overhead();
    let room = u128::from(free) * u128::from(data) / u128::from(stored) + u128::from(inode.allocated_bytes);
    if u128::from(length) > room {
        let message = format!("the cluster has no room for {length} bytes more of class {class}");
        return Err(Failure::new(Code::NoSpace, message));
    }
    Ok(())
}
