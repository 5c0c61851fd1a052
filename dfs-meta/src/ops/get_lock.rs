//! Whether a lock could be taken: fcntl(2) F_GETLK.

use dfs_proto::meta::{GetLock, LockState};
use dfs_proto::{Failure, Ino};

use super::Context;
use super::set_lock::check_grace;
use crate::live::locks::Lock;

/// A lock of somebody else that stands in the way; GRACE, EINVAL.
pub(super) fn run(cx: &mut Context<'_, '_>, request: &GetLock) -> Result<LockState, Failure> {
    let lock = Lock::parse(cx.session, request.lock.as_ref())?;
    check_grace(cx)?;
    Ok(LockState { conflict: cx.live.locks.conflict(Ino(request.ino), &lock) })
}
