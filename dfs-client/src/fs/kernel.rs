//! What a kernel that caches needs beside the calls of POSIX.

use dfs_proto::{Attr, Failure, Ino};

use super::FileSystem;
use super::file_io::{checked_range, data_of};
use super::handles::HandleId;
use crate::data::WriteAt;

impl FileSystem {
    /// The newest attributes known of an inode that is open here, with what is dirty. Asks nobody: they are as fresh as
    /// the last answer of the server about it.
    pub fn known(&self, ino: Ino) -> Option<Attr> {
        self.mounted.inodes.get(ino).map(|open| open.shown())
    }

    /// Takes a page of a shared mapping that the kernel writes back, if there is room; `None` when the caller would have
    /// to wait. The kernel names any handle that may write: its O_APPEND and O_SYNC don't count.
    pub fn try_write_back(
        &self,
        handle: HandleId,
        offset: u64,
        bytes: &[u8],
    ) -> Option<Result<usize, Failure>> {
        let checked = checked_range(offset, bytes.len()).and_then(|()| self.writable_handle(handle));
        let handle = match checked {
            Ok(handle) => handle,
            Err(failure) => return Some(Err(failure)),
        };
        let data = data_of(&handle).ok()?;
        data.try_write(WriteAt::Offset(offset), bytes, false).map(|_| Ok(bytes.len()))
    }

    /// As [`Self::try_write_back`], but waits for room.
    pub async fn write_back(&self, handle: HandleId, offset: u64, bytes: &[u8]) -> Result<usize, Failure> {
        checked_range(offset, bytes.len())?;
        let handle = self.writable_handle(handle)?;
        data_of(&handle)?.write(WriteAt::Offset(offset), bytes, false).await?;
        Ok(bytes.len())
    }
}
