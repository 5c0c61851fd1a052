//! Locks between the kernel's `struct file_lock` and the client library's.

use dfs_proto::meta::{LockKind, LockRange, LockSpace};
use fuser::Request;

use super::raw_request;

/// The end of a lock that reaches to the end of the file whatever its size: the kernel's OFFSET_MAX and ours.
const TO_THE_END: u64 = i64::MAX as u64;

/// What a lock request asks for; `None` for what no lock is.
pub(super) fn range(
    request: &Request,
    owner: u64,
    (start, end): (u64, u64),
    typ: i32,
    pid: u32,
) -> Option<LockRange> {
    let space = if raw_request::lock_is_flock(request) { LockSpace::Flock } else { LockSpace::Posix };
    build(space, owner, (start, end), typ, pid)
}

fn build(space: LockSpace, owner: u64, (start, end): (u64, u64), typ: i32, pid: u32) -> Option<LockRange> {
    let kind = match typ {
        libc::F_RDLCK => LockKind::Shared,
        libc::F_WRLCK => LockKind::Exclusive,
        libc::F_UNLCK => LockKind::Unlock,
        _ => return None,
    };
    let end = end.min(TO_THE_END);
    (start <= end).then(|| LockRange { space: space.into(), kind: kind.into(), owner, start, end, pid })
}

/// The F_ constant of a lock.
pub(super) fn type_of(lock: &LockRange) -> i32 {
    match lock.kind() {
        LockKind::Unlock => libc::F_UNLCK,
        LockKind::Shared => libc::F_RDLCK,
        LockKind::Exclusive => libc::F_WRLCK,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_are_translated_both_ways() {
        for typ in [libc::F_RDLCK, libc::F_WRLCK, libc::F_UNLCK] {
            let lock = build(LockSpace::Posix, 7, (3, 9), typ, 42).unwrap();
            assert_eq!((lock.owner, lock.start, lock.end, lock.pid), (7, 3, 9, 42));
            assert_eq!(type_of(&lock), typ);
        }
        let whole = build(LockSpace::Flock, 7, (0, u64::MAX), libc::F_WRLCK, 1).unwrap();
        assert_eq!((whole.space(), whole.end), (LockSpace::Flock, i64::MAX as u64));
        assert_eq!(build(LockSpace::Posix, 7, (3, 9), 17, 42), None);
        assert_eq!(build(LockSpace::Posix, 7, (9, 3), libc::F_WRLCK, 42), None);
    }
}
