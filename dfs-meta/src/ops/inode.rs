//! What most operations share: loading inodes with the right errno, and showing them as attributes.

use dfs_proto::{Attr, Class, Code, Failure, FileKind, Ino, Timestamp};

use super::Context;
use crate::machine::transaction::Transaction;
use crate::store::keys;
use crate::store::records::{Inode, StoredTime};

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
    }
}

/// Writes the root directory of a fresh filesystem, whose files are kept as `class` says.
pub fn put_root(tx: &mut Transaction<'_>, class: Class, now: Timestamp) {
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
}
