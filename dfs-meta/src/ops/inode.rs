//! What most operations share: loading inodes with the right errno, and showing them as attributes.

use dfs_proto::{Attr, Class, Code, Failure, FileKind, Ino, Timestamp};

use super::{Context, counters};
use crate::machine::transaction::Transaction;
use crate::store::keys;
use crate::store::records::{Inode, StoredTime};

/// The set-user-id bit.
pub const S_ISUID: u32 = 0o4000;
/// The set-group-id bit.
pub const S_ISGID: u32 = 0o2000;
/// All bits that a mode may have.
pub const MODE_BITS: u32 = 0o7777;

/// Loads an inode; ESTALE when it is gone.
pub fn load(cx: &mut Context<'_, '_>, ino: Ino) -> Result<Inode, Failure> {
    let inode = cx.tx.get::<Inode>(&keys::inode(ino))?;
    inode.ok_or_else(|| Failure::new(Code::Stale, format!("inode {ino} is gone")))
}

/// Loads a directory; ENOTDIR when it is something else.
pub fn load_directory(cx: &mut Context<'_, '_>, ino: Ino) -> Result<Inode, Failure> {
    let inode = load(cx, ino)?;
    match inode.kind() {
        FileKind::Directory => Ok(inode),
        _ => Err(Failure::new(Code::NotADirectory, format!("inode {ino} is not a directory"))),
    }
}

/// An inode as stat(2) shows it.
pub fn attr(ino: Ino, inode: &Inode) -> Attr {
    let time = |time: StoredTime| Some(Timestamp::from(time).into());
    Attr {
        ino: ino.0,
        kind: inode.kind,
        mode: inode.mode,
        uid: inode.uid,
        gid: inode.gid,
        nlink: inode.nlink,
        rdev: inode.rdev,
        size: inode.size,
        allocated_bytes: inode.allocated_bytes,
        atime: time(inode.atime),
        mtime: time(inode.mtime),
        ctime: time(inode.ctime),
        version: inode.version,
        class: inode.class.clone(),
        no_xattrs: !inode.has_xattrs,
        data_key: inode.data_key,
    }
}

/// Writes an inode back.
pub fn save(cx: &mut Context<'_, '_>, ino: Ino, inode: &Inode) {
    cx.tx.put(keys::inode(ino), inode);
}

/// Marks a change of attributes, names or extents: ctime and version. Once in an operation for each inode, since
/// clients tell their own changes from those of others by counting versions.
pub fn changed(inode: &mut Inode, now: Timestamp) {
    inode.ctime = now.into();
    inode.version += 1;
}

/// Marks a change of contents, a file's or a directory's: mtime, ctime and version.
pub fn contents_changed(inode: &mut Inode, now: Timestamp) {
    inode.mtime = now.into();
    changed(inode, now);
}

/// Takes away what lets a file run with another's rights, as Linux does when a file is written, truncated or given
/// away: the set-user-id bit, the set-group-id bit where the group may execute, and file capabilities. Leaves saving
/// and counting the change to the caller.
pub fn kill_set_id(cx: &mut Context<'_, '_>, ino: Ino, inode: &mut Inode) -> Result<(), Failure> {
    inode.mode &= !S_ISUID;
    if inode.mode & 0o0010 != 0 {
        inode.mode &= !S_ISGID;
    }
    remove_capability(cx, ino, inode)
}

/// Takes away file capabilities, as any write does.
pub fn remove_capability(cx: &mut Context<'_, '_>, ino: Ino, inode: &mut Inode) -> Result<(), Failure> {
    let key = keys::xattr(ino, b"security.capability");
    if inode.has_xattrs && cx.tx.contains(&key)? {
        cx.tx.delete(key);
        inode.has_xattrs = !cx.tx.is_empty(&keys::xattrs(ino))?;
    }
    Ok(())
}

/// Marks a write: times, version, and what a write takes away. The change is as old as the last write, which a client
/// may tell some time afterwards; ctime never goes back for that.
pub fn written(
    cx: &mut Context<'_, '_>,
    ino: Ino,
    inode: &mut Inode,
    mtime: Timestamp,
    may_not_keep_set_id: bool,
) -> Result<(), Failure> {
    if may_not_keep_set_id {
        kill_set_id(cx, ino, inode)?;
    } else {
        remove_capability(cx, ino, inode)?;
    }
    inode.mtime = mtime.into();
    inode.ctime = mtime.max(inode.ctime.into()).into();
    inode.version += 1;
    Ok(())
}

/// Writes the root directory of a fresh filesystem, whose files are kept as `class` says.
pub fn put_root(tx: &mut Transaction<'_>, class: &Class, now: Timestamp) {
    let root = Inode {
        kind: FileKind::Directory.into(),
        mode: 0o755,
        nlink: 2,
        atime: now.into(),
        mtime: now.into(),
        ctime: now.into(),
        version: 1,
        class: class.to_string(),
        parent: Ino::ROOT.0,
        ..Inode::default()
    };
    tx.put(keys::inode(Ino::ROOT), &root);
    counters::put_first(tx);
}
