//! Sets an extended attribute, an access control list, or a directory's class: setxattr(2).

use dfs_proto::meta::{SetXattr, XattrMode};
use dfs_proto::{Attr, Code, Failure, FileKind, Ino, limits};

use super::acl::Acl;
use super::xattrs::Kind;
use super::{Context, check_class, data_keys, inode, xattrs};
use crate::store::records::Inode;

/// E2BIG, EACCES (a default ACL on something else than a directory), EEXIST, EINVAL, ENODATA, ENOKEY (a class that encrypts,
/// without a data key), ENOSPC, EOPNOTSUPP, EPERM, ERANGE; ESTALE when the inode is gone.
pub(super) fn run(cx: &mut Context<'_, '_>, request: &SetXattr) -> Result<Attr, Failure> {
    let ino = Ino(request.ino);
    let kind = xattrs::kind_of(&request.name)?;
    if request.value.len() > limits::MAX_XATTR_VALUE {
        let message = format!("an extended attribute has at most {} bytes", limits::MAX_XATTR_VALUE);
        return Err(Failure::new(Code::ArgumentTooLong, message));
    }
    let mode = XattrMode::try_from(request.mode)
        .map_err(|_| Failure::new(Code::Invalid, format!("set mode {} is not known", request.mode)))?;
    let mut inode = inode::load(cx, ino)?;
    if kind == Kind::User && !xattrs::may_have_user(&inode) {
        let message = "only regular files and directories have user attributes";
        return Err(Failure::new(Code::NotPermitted, message));
    }
    if mode != XattrMode::Set {
        check_present(cx, ino, &inode, kind, &request.name, mode)?;
    }
    match kind {
        Kind::Plain | Kind::User => {
            xattrs::check_space(cx, ino, &inode, &request.name, &request.value)?;
            xattrs::put(cx, ino, &mut inode, &request.name, request.value.to_vec());
        }
        Kind::AccessAcl => set_access_acl(cx, ino, &mut inode, &request.value, request.kill_set_gid)?,
        Kind::DefaultAcl => set_default_acl(cx, ino, &mut inode, &request.value)?,
        Kind::Class => set_class(cx, &mut inode, request)?,
    }
    inode::changed(&mut inode, cx.now);
    inode::save(cx, ino, &inode);
    Ok(inode::attr(ino, &inode))
}

/// XATTR_CREATE and XATTR_REPLACE.
fn check_present(
    cx: &mut Context<'_, '_>,
    ino: Ino,
    inode: &Inode,
    kind: Kind,
    name: &[u8],
    mode: XattrMode,
) -> Result<(), Failure> {
    let present = kind == Kind::Class || xattrs::get(cx, ino, inode, name)?.is_some();
    match (mode, present) {
        (XattrMode::Create, true) => {
            Err(Failure::new(Code::Exists, format!("inode {ino} has the extended attribute already")))
        }
        (XattrMode::ReplaceOnly, false) => Err(xattrs::missing(ino, name)),
        _ => Ok(()),
    }
}

/// The list's owner, group (or mask) and other become the mode's; what a mode can say is kept as a mode only.
fn set_access_acl(
    cx: &mut Context<'_, '_>,
    ino: Ino,
    inode: &mut Inode,
    value: &[u8],
    kill_set_gid: bool,
) -> Result<(), Failure> {
    check_may_have_acl(inode)?;
    let Some(acl) = Acl::parse(value)? else {
        xattrs::remove(cx, ino, inode, xattrs::ACCESS_ACL)?;
        return Ok(());
    };
    let (mode, exact) = acl.mode();
    inode.mode = inode.mode & !0o777 | mode;
    if kill_set_gid {
        inode.mode &= !inode::S_ISGID;
    }
    if exact {
        xattrs::remove(cx, ino, inode, xattrs::ACCESS_ACL)?;
    } else {
        let value = acl.to_bytes();
        xattrs::check_space(cx, ino, inode, xattrs::ACCESS_ACL, &value)?;
        xattrs::put(cx, ino, inode, xattrs::ACCESS_ACL, value);
    }
    Ok(())
}

fn set_default_acl(
    cx: &mut Context<'_, '_>,
    ino: Ino,
    inode: &mut Inode,
    value: &[u8],
) -> Result<(), Failure> {
    check_may_have_acl(inode)?;
    match Acl::parse(value)? {
        None => {
            xattrs::remove(cx, ino, inode, xattrs::DEFAULT_ACL)?;
        }
        Some(_) if inode.kind() != FileKind::Directory => {
            return Err(Failure::new(
                Code::AccessDenied,
                "only a directory has a default access control list",
            ));
        }
        Some(acl) => {
            let value = acl.to_bytes();
            xattrs::check_space(cx, ino, inode, xattrs::DEFAULT_ACL, &value)?;
            xattrs::put(cx, ino, inode, xattrs::DEFAULT_ACL, value);
        }
    }
    Ok(())
}

fn check_may_have_acl(inode: &Inode) -> Result<(), Failure> {
    match inode.kind() {
        FileKind::Symlink => {
            Err(Failure::new(Code::NotSupported, "a symbolic link has no access control list"))
        }
        _ => Ok(()),
    }
}

/// What is made below the directory from now on is kept that way; what is there stays as it is.
fn set_class(cx: &mut Context<'_, '_>, inode: &mut Inode, request: &SetXattr) -> Result<(), Failure> {
    if inode.kind() != FileKind::Directory {
        let message = "the class is set on directories; files have that of the directory they were made in";
        return Err(Failure::new(Code::NotSupported, message));
    }
    let text =
        std::str::from_utf8(&request.value).map_err(|_| Failure::new(Code::Invalid, "a class is text"))?;
    let class = check_class::check(cx, text.trim_end_matches('\n'))?;
    let data_key = match &class.key {
        Some(key) => data_keys::add(cx, key, request.data_key.as_ref())?,
        None => 0,
    };
    data_keys::release(cx, inode.data_key)?;
    (inode.class, inode.data_key) = (class.to_string(), data_key);
    Ok(())
}

#[cfg(test)]
mod tests;
