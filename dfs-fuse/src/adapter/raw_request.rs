//! The words of a request that fuser 0.18 does not hand on.
//!
//! fuser gives a handler the request's header only. The header is the start of the buffer that read(2) from /dev/fuse
//! filled: 40 bytes whose first word is the whole message's length, followed by the operation's arguments in the layout
//! of the kernel's `include/uapi/linux/fuse.h`. This file reads single words there, never past that length.

use std::mem::size_of;

use dfs_proto::Timestamp;
use fuser::Request;

/// sizeof(struct fuse_in_header)
const HEADER: usize = 40;

/// fuse_setattr_in.valid
const FATTR_ATIME: u32 = 1 << 4;
const FATTR_MTIME: u32 = 1 << 5;
const FATTR_ATIME_NOW: u32 = 1 << 7;
const FATTR_MTIME_NOW: u32 = 1 << 8;
const FATTR_CTIME: u32 = 1 << 10;
const FATTR_KILL_SUIDGID: u32 = 1 << 11;
/// fuse_open_in.open_flags and fuse_create_in.open_flags
const FUSE_OPEN_KILL_SUIDGID: u32 = 1 << 0;
/// fuse_lk_in.lk_flags
const FUSE_LK_FLOCK: u32 = 1 << 0;

/// A time in a setattr request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RawTime {
    /// The time of the server.
    Now,
    /// A time of the caller's choice.
    At(Timestamp),
}

/// What setattr's arguments say beyond what fuser tells. fuser computes times before 1970 with the wrong sign of their
/// nanoseconds, so all times are read here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RawSetAttr {
    pub(super) atime: Option<RawTime>,
    pub(super) mtime: Option<RawTime>,
    pub(super) ctime: Option<Timestamp>,
    /// The set-id bits are to be cleared.
    pub(super) kill_set_id: bool,
}

/// Of a setattr request.
pub(super) fn setattr(request: &Request) -> RawSetAttr {
    parse_setattr(arguments(request))
}

/// Of an open request with O_TRUNC: the caller may not keep set-id bits.
pub(super) fn open_kills_set_id(request: &Request) -> bool {
    word(arguments(request), 4) & FUSE_OPEN_KILL_SUIDGID != 0
}

/// As [`open_kills_set_id`], of a create request.
pub(super) fn create_kills_set_id(request: &Request) -> bool {
    word(arguments(request), 12) & FUSE_OPEN_KILL_SUIDGID != 0
}

/// Of a lock request: it is flock(2)'s, not fcntl(2)'s.
pub(super) fn lock_is_flock(request: &Request) -> bool {
    word(arguments(request), 40) & FUSE_LK_FLOCK != 0
}

/// The bytes that follow a request's header.
fn arguments(request: &Request) -> &[u8] {
    let header = std::ptr::from_ref(request).cast::<u8>();
    debug_assert_eq!(size_of::<Request>(), HEADER);
    // SAFETY: fuser makes a `Request` by casting a reference to the header inside its receive buffer (`Request` is a
    // transparent wrapper of fuse_in_header, session.rs and request.rs of fuser 0.18) and calls the handler before it
    // reads the next request. It has checked that the header's length is that of the bytes read, so as many bytes as
    // the first word says are initialised and stay unchanged for as long as the borrow of `request` lives.
    unsafe {
        let length = header.cast::<u32>().read() as usize;
        std::slice::from_raw_parts(header.add(HEADER), length.saturating_sub(HEADER))
    }
}

fn parse_setattr(arguments: &[u8]) -> RawSetAttr {
    let valid = word(arguments, 0);
    let time = |seconds, nanos| Timestamp {
        seconds: long(arguments, seconds) as i64,
        nanos: word(arguments, nanos).min(999_999_999),
    };
    let change = |set, now, seconds, nanos| match (valid & set != 0, valid & now != 0) {
        (false, _) => None,
        (true, true) => Some(RawTime::Now),
        (true, false) => Some(RawTime::At(time(seconds, nanos))),
    };
    RawSetAttr {
        atime: change(FATTR_ATIME, FATTR_ATIME_NOW, 32, 56),
        mtime: change(FATTR_MTIME, FATTR_MTIME_NOW, 40, 60),
        ctime: (valid & FATTR_CTIME != 0).then(|| time(48, 64)),
        kill_set_id: valid & FATTR_KILL_SUIDGID != 0,
    }
}

/// The 32-bit word at an offset; 0 where an older kernel sends none.
fn word(arguments: &[u8], at: usize) -> u32 {
    arguments.get(at..).and_then(|rest| rest.first_chunk()).copied().map_or(0, u32::from_ne_bytes)
}

/// The 64-bit word at an offset; 0 where an older kernel sends none.
fn long(arguments: &[u8], at: usize) -> u64 {
    arguments.get(at..).and_then(|rest| rest.first_chunk()).copied().map_or(0, u64::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_nothing_but_its_header() {
        assert_eq!(size_of::<Request>(), HEADER);
    }

    #[test]
    fn setattr_arguments_are_read_where_the_kernel_puts_them() {
        let mut arguments = [0_u8; 88];
        let valid = FATTR_ATIME | FATTR_ATIME_NOW | FATTR_MTIME | FATTR_CTIME | FATTR_KILL_SUIDGID;
        arguments[..4].copy_from_slice(&valid.to_ne_bytes());
        arguments[40..48].copy_from_slice(&(-2_i64).to_ne_bytes());
        arguments[48..56].copy_from_slice(&5_i64.to_ne_bytes());
        arguments[60..64].copy_from_slice(&500_000_000_u32.to_ne_bytes());
        arguments[64..68].copy_from_slice(&u32::MAX.to_ne_bytes());
        let parsed = parse_setattr(&arguments);
        assert_eq!(parsed.atime, Some(RawTime::Now));
        assert_eq!(parsed.mtime, Some(RawTime::At(Timestamp { seconds: -2, nanos: 500_000_000 })));
        assert_eq!(parsed.ctime, Some(Timestamp { seconds: 5, nanos: 999_999_999 }));
        assert!(parsed.kill_set_id);
        assert_eq!(parse_setattr(&[0; 88]), RawSetAttr::default());
        assert_eq!(parse_setattr(&[0xff, 0xff]), RawSetAttr::default(), "short arguments read as zeros");
    }
}
