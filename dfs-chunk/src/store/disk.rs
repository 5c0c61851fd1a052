//! What the store asks of a disk: files written once from front to end, files read at any place, files
//! overwritten in place, names. Everything that can fail on a disk goes through here, so that tests put a disk that fails in its place.
//!
//! Paths are relative to the disk's root. Nothing is durable before a `sync` says so.

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::path::Path;

/// One disk.
pub trait Disk: Send + Sync + 'static {
    /// Makes a new file that will be `length` bytes long, replacing one of that name. ENOSPC when it can't.
    fn create(&self, path: &Path, length: u64) -> io::Result<Box<dyn Output>>;
    /// Opens a file for reading.
    fn open(&self, path: &Path, ahead: ReadAhead) -> io::Result<Box<dyn Input>>;
    /// Opens a file for overwriting what was written of it.
    fn open_log(&self, path: &Path) -> io::Result<Box<dyn Log>>;
    /// Makes ranges of a file zeros, and gives them back to the disk where its filesystem can do that.
    fn free(&self, path: &Path, ranges: &[Range<u64>]) -> io::Result<()>;
    /// Makes a directory unless it is there.
    fn create_directory(&self, path: &Path) -> io::Result<()>;
    /// Renames a file, replacing one of the new name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes a directory's names durable.
    fn sync_directory(&self, path: &Path) -> io::Result<()>;
    /// The files of a directory.
    fn list(&self, path: &Path) -> io::Result<Vec<Listed>>;
    /// How much there is and how much of it is free.
    fn space(&self) -> io::Result<Space>;
}

/// A file being written.
pub trait Output: Send {
    /// Adds bytes at the end.
    fn append(&mut self, data: &[u8]) -> io::Result<()>;
    /// Makes everything appended durable. After an error nothing is known of the file, and it must not be asked again.
    fn sync(&mut self) -> io::Result<()>;
}

/// A file being read.
pub trait Input: Send + Sync {
    /// The file's length.
    fn length(&self) -> io::Result<u64>;
    /// Fills the buffer or fails; `UnexpectedEof` where the file ends before.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// Fills the buffer if that takes no wait for the disk. `false`: ask [`Self::read_at`].
    fn read_now(&self, buffer: &mut [u8], offset: u64) -> bool;
    /// The open file, for others to read, where it is one.
    fn handle(&self) -> Option<BorrowedFd<'_>>;
}

/// A file that is overwritten in place, so that making it durable moves no metadata.
pub trait Log: Send + Sync {
    /// Overwrites a range inside the file, durably when it returns. Memory, offset and length are aligned to 4096 bytes.
    /// After an error nothing is known of the range.
    fn write_durably(&self, data: &[u8], offset: u64) -> io::Result<()>;
}

/// Whether the kernel may read more of a file than is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadAhead {
    /// Who reads it knows better.
    Never,
    /// As it finds right.
    AsUsual,
}

/// A file in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name; names that are not UTF-8 are not ours and not listed.
    pub name: String,
    /// Its length in bytes.
    pub length: u64,
    /// How long ago it was last written; 0 when its time lies in the future.
    pub age_ms: u64,
}

/// A disk's space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// All of it.
    pub total_bytes: u64,
    /// What can still be written.
    pub free_bytes: u64,
}
