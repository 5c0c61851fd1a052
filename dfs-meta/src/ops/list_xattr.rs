//! The names of an inode's extended attributes: listxattr(2).
//!
//! `dfs.class` is not among them, though it can be asked for: programs that copy all attributes they find (rsync -X,
//! cp -a, tar) would carry it where nobody wants it, and try to remove it where it cannot be removed.

use dfs_proto::meta::{ListXattr, Names};
use dfs_proto::{Failure, Ino};

use super::{Context, inode, xattrs};

/// ESTALE when the inode is gone.
pub(super) fn run(cx: &mut Context<'_, '_>, request: &ListXattr) -> Result<Names, Failure> {
    let ino = Ino(request.ino);
    let inode = inode::load(cx, ino)?;
    let names = xattrs::list(cx, ino, &inode)?.into_iter().map(|(name, _)| name.into()).collect();
    Ok(Names { names })
}
