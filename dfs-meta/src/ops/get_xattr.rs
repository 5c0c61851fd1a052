//! One extended attribute: getxattr(2).

use dfs_proto::meta::{GetXattr, Value};
use dfs_proto::{Failure, Ino};

use super::xattrs::Kind;
use super::{Context, inode, xattrs};

/// ENODATA, ERANGE, EINVAL, EOPNOTSUPP; ESTALE when the inode is gone. `dfs.class` shows how the inode's data is kept.
pub(super) fn run(cx: &mut Context<'_, '_>, request: &GetXattr) -> Result<Value, Failure> {
    let ino = Ino(request.ino);
    let kind = xattrs::kind_of(&request.name)?;
    let inode = inode::load(cx, ino)?;
    let value = match kind {
        Kind::Class => Some(inode.class.into_bytes()),
        _ => xattrs::get(cx, ino, &inode, &request.name)?,
    };
    let value = value.ok_or_else(|| xattrs::missing(ino, &request.name))?;
    Ok(Value { value: value.into() })
}
