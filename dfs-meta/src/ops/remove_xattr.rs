//! Removes an extended attribute or an access control list: removexattr(2).

use dfs_proto::meta::RemoveXattr;
use dfs_proto::{Attr, Code, Failure, Ino};

use super::xattrs::Kind;
use super::{Context, inode, xattrs};

/// ENODATA, EPERM, ERANGE, EINVAL, EOPNOTSUPP; ESTALE when the inode is gone. As on other filesystems, removing an access
/// control list that is not there is no error, and the mode stays what the list made it.
pub(super) fn run(cx: &mut Context<'_, '_>, request: &RemoveXattr) -> Result<Attr, Failure> {
    let ino = Ino(request.ino);
    let kind = xattrs::kind_of(&request.name)?;
    let mut inode = inode::load(cx, ino)?;
    match kind {
        Kind::Class => {
            let message = "a class cannot be removed: set another one";
            return Err(Failure::new(Code::NotPermitted, message));
        }
        Kind::User if !xattrs::may_have_user(&inode) => {
            let message = "only regular files and directories have user attributes";
            return Err(Failure::new(Code::NotPermitted, message));
        }
        Kind::Plain | Kind::User | Kind::AccessAcl | Kind::DefaultAcl => {}
    }
    if xattrs::remove(cx, ino, &mut inode, &request.name)? {
        inode::changed(&mut inode, cx.now);
        inode::save(cx, ino, &inode);
    } else if matches!(kind, Kind::Plain | Kind::User) {
        return Err(xattrs::missing(ino, &request.name));
    }
    Ok(inode::attr(ino, &inode))
}
