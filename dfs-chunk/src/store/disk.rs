//! What the store asks of a disk: files written once from front to end, files read at any place, preallocated logs,
//! names. Everything that can fail on a disk goes through here, so that tests put a disk that fails in its place.
//!
//! Paths are relative to the disk's root. Nothing is durable before a `sync` says so.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

/// One disk.
pub trait Disk: Send + Sync + 'static {
    /// Makes a new file that will be `length` bytes long, replacing one of that name. ENOSPC when it can't.
    fn create(&self, path: &Path, length: u64) -> io::Result<Box<dyn Output>>;
    /// Opens a file for reading.
    fn open(&self, path: &Path) -> io::Result<Box<dyn Input>>;
    /// Opens a log for overwriting in place, with its length; makes it of `length` durable zeros when it is not there.
    fn open_log(&self, path: &Path, length: u64) -> io::Result<(Box<dyn Log>, u64)>;
    /// Makes a directory unless it is there.
    fn create_directory(&self, path: &Path) -> io::Result<()>;
    /// Renames a file, replacing one of the new name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes a directory's names durable.
    fn sync_directory(&self, path: &Path) -> io::Result<()>;
    /// Makes everything on the disk durable that was written before.
    fn sync_all(&self) -> io::Result<()>;
    /// The files of a directory.
    fn list(&self, path: &Path) -> io::Result<Vec<Listed>>;
    /// How much there is and how much of it is free.
    fn space(&self) -> io::Result<Space>;
}

/// A file being written.
pub trait Output: Send {
    /// Adds bytes at the end.
    fn append(&mut self, data: &[u8]) -> io::Result<()>;
    /// Hands what was appended to the operating system.
    fn flush(&mut self) -> io::Result<()>;
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

/// A preallocated file that is overwritten in place, so that making it durable moves no metadata.
pub trait Log: Send + Sync {
    /// Overwrites a range inside the file.
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()>;
    /// Fills the buffer or fails.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// Makes everything written durable. After an error nothing is known of what was written since the last success.
    fn sync(&self) -> io::Result<()>;
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
