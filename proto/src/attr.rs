//! Times and file kinds between the wire and the program.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::common::{FileKind, Time};

/// A point in time with nanoseconds, before or after 1970; orders as time does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Since 1970-01-01 UTC; may be negative.
    pub seconds: i64,
    /// 0..1_000_000_000, after `seconds`.
    pub nanos: u32,
}

impl Timestamp {
    /// The clock's time.
    pub fn now() -> Self {
        SystemTime::now().into()
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        match time.duration_since(UNIX_EPOCH) {
            Ok(after) => Self { seconds: after.as_secs() as i64, nanos: after.subsec_nanos() },
            Err(before) => {
                let before = before.duration();
                match before.subsec_nanos() {
                    0 => Self { seconds: -(before.as_secs() as i64), nanos: 0 },
                    nanos => Self { seconds: -(before.as_secs() as i64) - 1, nanos: 1_000_000_000 - nanos },
                }
            }
        }
    }
}

impl From<Timestamp> for SystemTime {
    fn from(time: Timestamp) -> Self {
        let whole = Duration::from_secs(time.seconds.unsigned_abs());
        let nanos = Duration::from_nanos(time.nanos.into());
        let base =
            if time.seconds >= 0 { UNIX_EPOCH.checked_add(whole) } else { UNIX_EPOCH.checked_sub(whole) };
        base.and_then(|base| base.checked_add(nanos)).unwrap_or(UNIX_EPOCH)
    }
}

impl From<Timestamp> for Time {
    fn from(time: Timestamp) -> Self {
        Self { seconds: time.seconds, nanos: time.nanos }
    }
}

impl From<Time> for Timestamp {
    /// Nanoseconds out of bounds are cut to the last one of their second.
    fn from(time: Time) -> Self {
        Self { seconds: time.seconds, nanos: time.nanos.min(999_999_999) }
    }
}

/// The S_IFMT bits of a kind; 0 for an unknown one.
pub fn type_bits(kind: FileKind) -> u32 {
    match kind {
        FileKind::Unknown => 0,
        FileKind::Fifo => 0o010_000,
        FileKind::CharDevice => 0o020_000,
        FileKind::Directory => 0o040_000,
        FileKind::BlockDevice => 0o060_000,
        FileKind::Regular => 0o100_000,
        FileKind::Symlink => 0o120_000,
        FileKind::Socket => 0o140_000,
    }
}

/// The kind that a mode's S_IFMT bits name; no bits mean a regular file, as in mknod(2).
pub fn kind_of_mode(mode: u32) -> FileKind {
    match mode & 0o170_000 {
        0 | 0o100_000 => FileKind::Regular,
        0o010_000 => FileKind::Fifo,
        0o020_000 => FileKind::CharDevice,
        0o040_000 => FileKind::Directory,
        0o060_000 => FileKind::BlockDevice,
        0o120_000 => FileKind::Symlink,
        0o140_000 => FileKind::Socket,
        _ => FileKind::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_keep_their_nanoseconds() {
        for (seconds, nanos) in [(-1, 999_999_999), (-2, 0), (0, 0), (1, 1), (-1, 1)] {
            let time = Timestamp { seconds, nanos };
            assert_eq!(Timestamp::from(SystemTime::from(time)), time);
        }
    }

    #[test]
    fn kinds_and_mode_bits_agree() {
        for kind in 1..=7 {
            let kind = FileKind::try_from(kind).unwrap();
            assert_eq!(kind_of_mode(type_bits(kind) | 0o7777), kind);
        }
    }
}
