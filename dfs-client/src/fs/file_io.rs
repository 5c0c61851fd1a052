//! Reading and writing open files, and what else is done with their bytes.
//!
//! `try_read` and `try_write` answer at once or not at all, for callers that may not wait.

use std::sync::Arc;

use bytes::Bytes;
use dfs_proto::limits::MAX_FILE_SIZE;
use dfs_proto::meta::{CopyRange, Fallocate, FallocateMode, Seek, reply, request};
use dfs_proto::{Code, Failure, Ino, Timestamp};

use super::handles::{Handle, HandleId};
use super::inodes::OpenInode;
use super::{AtimePolicy, FileSystem, answers};
use crate::data::{InodeData, WriteAt};
use crate::session::MetaCalls;

impl FileSystem {
    /// Reads what is at hand without waiting; `None` when something would have to be fetched. Short at the end of
    /// the file.
    pub fn try_read(&self, handle: HandleId, offset: u64, length: usize) -> Option<Result<Bytes, Failure>> {
        let handle = match self.readable(handle) {
            Ok(handle) => handle,
            Err(failure) => return Some(Err(failure)),
        };
        let bytes = data_of(&handle).ok()?.try_read(offset, length)?;
        self.touch(&handle.inode);
        Some(Ok(bytes))
    }

    /// Reads; short at the end of the file, never zeros for bytes that could not be fetched.
    pub async fn read(&self, handle: HandleId, offset: u64, length: usize) -> Result<Bytes, Failure> {
        let handle = self.readable(handle)?;
        let bytes = data_of(&handle)?.read(offset, length).await?;
        self.touch(&handle.inode);
        Ok(bytes)
    }

    /// Takes bytes into the dirty buffer if there is room; `None` when the caller would have to wait.
    pub fn try_write(
        &self,
        handle: HandleId,
        offset: u64,
        bytes: &[u8],
        kill_set_id: bool,
    ) -> Option<Result<usize, Failure>> {
        let (handle, at) = match self.prepare_write(handle, offset, bytes.len()) {
            Ok(prepared) => prepared,
            Err(failure) => return Some(Err(failure)),
        };
        if self.is_sync(&handle) {
            return None;
        }
        data_of(&handle).ok()?.try_write(at, bytes, kill_set_id).map(|_| Ok(bytes.len()))
    }

    /// Writes; waits for room in the dirty buffer, and with O_SYNC, O_DSYNC or a mount that is `sync` until the bytes
    /// are durable. With O_APPEND the offset is where the file ends.
    pub async fn write(
        &self,
        handle: HandleId,
        offset: u64,
        bytes: &[u8],
        kill_set_id: bool,
    ) -> Result<usize, Failure> {
        let (handle, at) = self.prepare_write(handle, offset, bytes.len())?;
        data_of(&handle)?.write(at, bytes, kill_set_id).await?;
        if self.is_sync(&handle) {
            handle.flush().await?;
        }
        Ok(bytes.len())
    }

    /// Data and what is needed to find it are durable when this returns; errors of write-back since the last time are
    /// told. Attributes always are durable, so `datasync` changes nothing.
    pub async fn fsync(&self, handle: HandleId, _datasync: bool) -> Result<(), Failure> {
        let handle = self.handles.get(handle)?;
        handle.inode.usable()?;
        handle.flush().await
    }

    /// fallocate(2).
    pub async fn fallocate(
        &self,
        handle: HandleId,
        offset: u64,
        length: u64,
        mode: FallocateMode,
        kill_set_id: bool,
    ) -> Result<(), Failure> {
        self.writable()?;
        let handle = self.handles.get(handle)?;
        let ino = handle.inode.ino;
        if length == 0 {
            return Err(Failure::new(Code::Invalid, "a range may not be empty"));
        }
        if offset.checked_add(length).is_none_or(|end| end > MAX_FILE_SIZE) {
            return Err(too_big());
        }
        self.flush_inode(ino).await?;
        let (mut offset, mut length) = (offset, length);
        loop {
            let op = Fallocate { ino: ino.0, offset, length, mode: mode.into(), kill_set_id };
            // A range of very many extents is done in several steps.
            let (done, attr) = match self.session.change(request::Op::Fallocate(op)).await? {
                reply::Result::Copied(done) => (done.length.min(length), done.attr),
                answer => (length, Some(answers::attr(answer)?)),
            };
            if let Some(attr) = attr {
                self.changed(attr);
            }
            (offset, length) = (offset + done, length - done);
            if length == 0 {
                return Ok(());
            }
            if done == 0 {
                return Err(Failure::new(
                    Code::InputOutput,
                    "the metadata server does not get on with a range",
                ));
            }
        }
    }

    /// lseek(2) with SEEK_DATA, or SEEK_HOLE with `hole`.
    pub async fn seek(&self, handle: HandleId, offset: u64, hole: bool) -> Result<u64, Failure> {
        let ino = self.handles.get(handle)?.inode.ino;
        self.flush_inode(ino).await?;
        answers::offset(self.session.read(request::Op::Seek(Seek { ino: ino.0, offset, hole })).await?)
    }

    /// copy_file_range(2) by extents: no data moves. Returns how many bytes there were to copy.
    pub async fn copy_range(
        &self,
        source: HandleId,
        source_offset: u64,
        target: HandleId,
        target_offset: u64,
        length: u64,
        kill_set_id: bool,
    ) -> Result<u64, Failure> {
        self.writable()?;
        let source = self.readable(source)?.inode.ino;
        let target = self.handles.get(target)?.inode.ino;
        if target_offset.checked_add(length).is_none_or(|end| end > MAX_FILE_SIZE) {
            return Err(too_big());
        }
        self.flush_inode(source).await?;
        self.flush_inode(target).await?;
        let op = CopyRange {
            source: source.0,
            source_offset,
            target: target.0,
            target_offset,
            length,
            kill_set_id,
        };
        let copied = answers::copied(self.session.change(request::Op::CopyRange(op)).await?)?;
        if let Some(attr) = copied.attr {
            self.changed(attr);
        }
        Ok(copied.length)
    }

    fn readable(&self, handle: HandleId) -> Result<Arc<Handle>, Failure> {
        let handle = self.handles.get(handle)?;
        handle.inode.usable()?;
        Ok(handle)
    }

    fn prepare_write(
        &self,
        handle: HandleId,
        offset: u64,
        length: usize,
    ) -> Result<(Arc<Handle>, WriteAt), Failure> {
        let handle = self.writable_handle(handle)?;
        if handle.options.append {
            return Ok((handle, WriteAt::End));
        }
        checked_range(offset, length)?;
        Ok((handle, WriteAt::Offset(offset)))
    }

    pub(super) fn writable_handle(&self, handle: HandleId) -> Result<Arc<Handle>, Failure> {
        self.writable()?;
        self.readable(handle)
    }

    fn is_sync(&self, handle: &Handle) -> bool {
        self.sync || handle.options.sync
    }

    /// The file was read: whether that shows in its access time is the policy's to say.
    fn touch(&self, inode: &OpenInode) {
        if self.read_only || self.atime == AtimePolicy::Never {
            return;
        }
        let now = Timestamp::now();
        let due = self.atime == AtimePolicy::Strict || inode.atime_is_due(now);
        if due {
            inode.accessed(now);
        }
    }
}

/// EFBIG beyond the largest file.
pub(super) fn checked_range(offset: u64, length: usize) -> Result<(), Failure> {
    match offset.checked_add(length as u64) {
        Some(end) if end <= MAX_FILE_SIZE => Ok(()),
        _ => Err(too_big()),
    }
}

pub(super) fn data_of(handle: &Handle) -> Result<&Arc<InodeData>, Failure> {
    handle.inode.data.as_ref().ok_or_else(|| {
        let Ino(ino) = handle.inode.ino;
        Failure::new(Code::Invalid, format!("inode {ino} is not a regular file"))
    })
}

fn too_big() -> Failure {
    Failure::new(Code::TooBig, "a file is at most 2^63 - 1 bytes long")
}
