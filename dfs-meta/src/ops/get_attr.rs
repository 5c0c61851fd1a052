//! An inode's attributes: stat(2).

use dfs_proto::meta::GetAttr;
use dfs_proto::{Attr, Failure, Ino};

use super::{Context, inode};

/// ESTALE when the inode is gone.
pub(super) fn run(cx: &mut Context<'_, '_>, request: &GetAttr) -> Result<Attr, Failure> {
    let ino = Ino(request.ino);
    Ok(inode::attr(ino, &inode::load(cx, ino)?))
}
