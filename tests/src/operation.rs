//! The operations that random tests drive a filesystem with, and what they answer.
//!
//! Paths are relative to the filesystem's root and never follow a symbolic link. Data is told by a seed and a length, so
//! that a list of operations can be printed and read.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use nix::errno::Errno;

/// The umask that every operation runs under.
pub const UMASK: u32 = 0o022;

/// Bytes that a seed and a length tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Data {
    /// Tells one run of bytes from another.
    pub seed: u32,
    /// How many.
    pub length: usize,
}

impl Data {
    /// The bytes themselves; never zero, so that they are told from a hole.
    pub fn bytes(self) -> Vec<u8> {
        let mut state = u64::from(self.seed) << 1 | 1;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % 255) as u8 + 1
        };
        (0..self.length).map(|_| next()).collect()
    }
}

/// How a rename treats a name that is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameHow {
    /// Replaces it.
    Replace,
    /// RENAME_NOREPLACE.
    NoReplace,
    /// RENAME_EXCHANGE.
    Exchange,
}

/// What fallocate(2) does to a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Plain: the file is at least so long afterwards.
    Allocate,
    /// KEEP_SIZE.
    KeepSize,
    /// PUNCH_HOLE | KEEP_SIZE.
    Punch,
    /// ZERO_RANGE.
    Zero,
}

/// A handle that stays open over several operations.
pub type Slot = u8;

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are the arguments of the system calls that the variants name")]
pub enum Operation {
    /// open(O_CREAT | O_EXCL)
    Create {
        path: PathBuf,
        mode: u32,
    },
    Mkdir {
        path: PathBuf,
        mode: u32,
    },
    /// Its target is [`symlink_target`] of the length.
    Symlink {
        path: PathBuf,
        length: usize,
    },
    Fifo {
        path: PathBuf,
        mode: u32,
    },
    Link {
        from: PathBuf,
        to: PathBuf,
    },
    Unlink {
        path: PathBuf,
    },
    Rmdir {
        path: PathBuf,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
        how: RenameHow,
    },
    Write {
        path: PathBuf,
        offset: u64,
        data: Data,
    },
    Append {
        path: PathBuf,
        data: Data,
    },
    Read {
        path: PathBuf,
        offset: u64,
        length: usize,
    },
    Truncate {
        path: PathBuf,
        size: u64,
    },
    Fallocate {
        path: PathBuf,
        how: Space,
        offset: u64,
        length: u64,
    },
    /// copy_file_range(2)
    Copy {
        from: PathBuf,
        from_offset: u64,
        to: PathBuf,
        to_offset: u64,
        length: u64,
    },
    Fsync {
        path: PathBuf,
    },
    Chmod {
        path: PathBuf,
        mode: u32,
    },
    Chown {
        path: PathBuf,
        uid: u32,
        gid: u32,
    },
    /// utimensat(2), modification time only
    SetModified {
        path: PathBuf,
        seconds: i64,
        nanos: u32,
    },
    SetXattr {
        path: PathBuf,
        name: String,
        value: Data,
    },
    RemoveXattr {
        path: PathBuf,
        name: String,
    },
    /// Opens a regular file for reading and writing; what the slot held is closed.
    Open {
        slot: Slot,
        path: PathBuf,
    },
    WriteOpen {
        slot: Slot,
        offset: u64,
        data: Data,
    },
    ReadOpen {
        slot: Slot,
        offset: u64,
        length: usize,
    },
    TruncateOpen {
        slot: Slot,
        size: u64,
    },
    Close {
        slot: Slot,
    },
}

/// A target that leads nowhere: following links is the kernel's work, not a filesystem's.
pub fn symlink_target(length: usize) -> OsString {
    format!("nowhere/{}", "t".repeat(length)).into()
}

/// What an operation answers where it succeeds.
#[derive(Clone, PartialEq, Eq)]
pub enum Answer {
    /// Nothing but that it is done.
    Done,
    /// The bytes read.
    Bytes(Vec<u8>),
    /// How many bytes were copied.
    Copied(u64),
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => f.write_str("Done"),
            Self::Bytes(bytes) => write!(f, "{} bytes", bytes.len()),
            Self::Copied(count) => write!(f, "{count} copied"),
        }
    }
}

/// An operation's answer or its errno.
pub type Outcome = Result<Answer, Errno>;

/// A filesystem that operations are applied to: the one under test.
pub trait Target {
    /// Does one operation.
    fn apply(&mut self, operation: &Operation) -> Outcome;
    /// Everything that is in the filesystem.
    ///
    /// # Panics
    /// When it can't be read whole.
    fn tree(&mut self) -> crate::tree::Tree;
    /// Closes all handles, as for unmounting.
    fn close_all(&mut self);
}
