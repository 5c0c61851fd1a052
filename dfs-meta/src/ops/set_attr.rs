//! Changes attributes: chmod(2), chown(2), truncate(2), utimensat(2).

use dfs_proto::meta::{SetAttr, TimeChange};
use dfs_proto::{Attr, Code, Failure, FileKind, Ino, Time, Timestamp, limits};

use super::{Context, acl, extents, inode};
use crate::store::records::{Inode, StoredTime};

/// Extents removed at a time while a file is cut.
const PIECE: usize = 4096;

/// EFBIG, EINVAL, EISDIR (the size of a directory); ESTALE when the inode is gone.
pub(super) fn run(cx: &mut Context<'_, '_>, request: &SetAttr) -> Result<Attr, Failure> {
    let ino = Ino(request.ino);
    let mut inode = inode::load(cx, ino)?;
    if changes_nothing(request, &inode) {
        return Ok(inode::attr(ino, &inode));
    }
    if let Some(size) = request.size {
        let resized = size != inode.size;
        set_size(cx, ino, &mut inode, size)?;
        if resized {
            inode.mtime = cx.now.into();
        }
    }
    if request.uid.is_some() || request.gid.is_some() {
        inode.uid = request.uid.unwrap_or(inode.uid);
        inode.gid = request.gid.unwrap_or(inode.gid);
        if inode.kind() != FileKind::Directory {
            inode::kill_set_id(cx, ino, &mut inode)?;
        }
    }
    if request.kill_set_id {
        inode::kill_set_id(cx, ino, &mut inode)?;
    }
    if let Some(mode) = request.mode {
        set_mode(cx, ino, &mut inode, mode)?;
    }
    if let Some(atime) = request.atime {
        inode.atime = time(cx, atime)?;
    }
    if let Some(mtime) = request.mtime {
        inode.mtime = time(cx, mtime)?;
    }
    inode::changed(&mut inode, cx.now);
    if let Some(ctime) = request.ctime {
        inode.ctime = checked(ctime)?;
    }
    inode::save(cx, ino, &inode);
    Ok(inode::attr(ino, &inode))
}

/// truncate(2) to the size that the file has: as on other filesystems, not even its times change.
fn changes_nothing(request: &SetAttr, inode: &Inode) -> bool {
    let size_alone = SetAttr { ino: request.ino, size: Some(inode.size), ..SetAttr::default() };
    *request == size_alone && inode.kind() == FileKind::Regular
}

/// Cuts or extends a regular file; what it is extended by is a hole. Times are the caller's.
pub(super) fn set_size(
    cx: &mut Context<'_, '_>,
    ino: Ino,
    inode: &mut Inode,
    size: u64,
) -> Result<(), Failure> {
    match inode.kind() {
        FileKind::Regular => {}
        FileKind::Directory => {
            return Err(Failure::new(Code::IsADirectory, format!("inode {ino} is a directory")));
        }
        _ => return Err(Failure::new(Code::Invalid, format!("inode {ino} is not a regular file"))),
    }
    if size > limits::MAX_FILE_SIZE {
        return Err(Failure::new(
            Code::TooBig,
            format!("a file has at most {} bytes", limits::MAX_FILE_SIZE),
        ));
    }
    if size < inode.size && inode.allocated_bytes > 0 {
        while !extents::remove_range(cx, ino, inode, size, u64::MAX, PIECE)? {}
    }
    inode.size = size;
    Ok(())
}

fn set_mode(cx: &mut Context<'_, '_>, ino: Ino, inode: &mut Inode, mode: u32) -> Result<(), Failure> {
    if mode & !inode::MODE_BITS != 0 {
        return Err(Failure::new(Code::Invalid, "a mode has no bits but 07777"));
    }
    if inode.kind() == FileKind::Symlink {
        return Err(Failure::new(Code::NotSupported, "a symbolic link's mode cannot be changed"));
    }
    inode.mode = mode;
    acl::follow_chmod(cx, ino, inode)
}

fn time(cx: &Context<'_, '_>, change: TimeChange) -> Result<StoredTime, Failure> {
    match change {
        TimeChange { now: true, value: None } => Ok(cx.now.into()),
        TimeChange { now: false, value: Some(value) } => checked(value),
        _ => Err(Failure::new(Code::Invalid, "a time is either now or a value")),
    }
}

fn checked(time: Time) -> Result<StoredTime, Failure> {
    match time.nanos {
        0..1_000_000_000 => Ok(Timestamp::from(time).into()),
        _ => Err(Failure::new(Code::Invalid, "a second has fewer nanoseconds")),
    }
}

#[cfg(test)]
mod tests;
