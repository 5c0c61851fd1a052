//! Extended attributes as records, below the operations on them: which names there may be, and the inode's flag that
//! says whether it has any, so that most files need no look.

use dfs_proto::{Class, Code, Failure, FileKind, Ino, limits};

use super::Context;
use crate::store::keys;
use crate::store::records::{Inode, XattrValue};

/// A POSIX ACL that goes beyond the mode.
pub(super) const ACCESS_ACL: &[u8] = b"system.posix_acl_access";
/// What new files in a directory get.
pub(super) const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";

/// All names of one inode with a NUL after each: what listxattr(2) can hand out.
pub(super) const MAX_NAMES_TOTAL: usize = 64 * 1024;

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Bytes kept as they are.
    Plain,
    /// Kept as bytes, for regular files and directories only.
    User,
    /// `system.posix_acl_access`
    AccessAcl,
    /// `system.posix_acl_default`
    DefaultAcl,
    /// `dfs.class`: shown on everything, set on directories.
    Class,
}

/// What a name stands for. ERANGE for a length that no name has, EINVAL, EOPNOTSUPP outside the known namespaces.
pub(super) fn kind_of(name: &[u8]) -> Result<Kind, Failure> {
    if name.is_empty() || name.len() > limits::MAX_XATTR_NAME {
        let message = format!("an extended attribute's name has 1 to {} bytes", limits::MAX_XATTR_NAME);
        return Err(Failure::new(Code::Range, message));
    }
    if name.contains(&0) {
        return Err(Failure::new(Code::Invalid, "an extended attribute's name may not contain NUL"));
    }
    if name == ACCESS_ACL {
        return Ok(Kind::AccessAcl);
    }
    if name == DEFAULT_ACL {
        return Ok(Kind::DefaultAcl);
    }
    if name == Class::XATTR.as_bytes() {
        return Ok(Kind::Class);
    }
    for (prefix, kind) in
        [(&b"user."[..], Kind::User), (b"trusted.", Kind::Plain), (b"security.", Kind::Plain)]
    {
        match name.strip_prefix(prefix) {
            Some(b"") => return Err(Failure::new(Code::Invalid, "nothing follows the namespace")),
            Some(_) => return Ok(kind),
            None => {}
        }
    }
    let name = String::from_utf8_lossy(name);
    Err(Failure::new(Code::NotSupported, format!("extended attributes like {name:?} are not supported")))
}

/// Whether the inode may have `user.` attributes: on others, permission bits do not say who may fill the disk (xattr(7)).
pub(super) fn may_have_user(inode: &Inode) -> bool {
    matches!(inode.kind(), FileKind::Regular | FileKind::Directory)
}

/// That the inode has no such attribute: ENODATA.
pub(super) fn missing(ino: Ino, name: &[u8]) -> Failure {
    let name = String::from_utf8_lossy(name);
    Failure::new(Code::NoData, format!("inode {ino} has no extended attribute {name:?}"))
}

/// The value of an attribute that is kept as bytes.
pub(super) fn get(
    cx: &mut Context<'_, '_>,
    ino: Ino,
    inode: &Inode,
    name: &[u8],
) -> Result<Option<Vec<u8>>, Failure> {
    if !inode.has_xattrs {
        return Ok(None);
    }
    Ok(cx.tx.get::<XattrValue>(&keys::xattr(ino, name))?.map(|record| record.value))
}

/// All names and the lengths of their values, in order.
pub(super) fn list(
    cx: &mut Context<'_, '_>,
    ino: Ino,
    inode: &Inode,
) -> Result<Vec<(Vec<u8>, usize)>, Failure> {
    if !inode.has_xattrs {
        return Ok(Vec::new());
    }
    // Bounded by what `check_space` lets in.
    let all = cx.tx.scan::<XattrValue>(&keys::xattrs(ino), usize::MAX)?;
    Ok(all.into_iter().map(|(key, record)| (keys::xattr_name(&key).to_vec(), record.value.len())).collect())
}

/// ENOSPC when the inode's attributes would take too much with this one set.
pub(super) fn check_space(
    cx: &mut Context<'_, '_>,
    ino: Ino,
    inode: &Inode,
    name: &[u8],
    value: &[u8],
) -> Result<(), Failure> {
    let (mut names_total, mut total) = (name.len() + 1, name.len() + value.len());
    for (other, length) in list(cx, ino, inode)? {
        if other != name {
            names_total += other.len() + 1;
            total += other.len() + length;
        }
    }
    if total > limits::MAX_XATTR_TOTAL || names_total > MAX_NAMES_TOTAL {
        let message =
            format!("the extended attributes of inode {ino} would take more than one inode may have");
        return Err(Failure::new(Code::NoAttributeSpace, message));
    }
    Ok(())
}

/// Sets an attribute. The caller saves the inode.
pub(super) fn put(cx: &mut Context<'_, '_>, ino: Ino, inode: &mut Inode, name: &[u8], value: Vec<u8>) {
    cx.tx.put(keys::xattr(ino, name), &XattrValue { value });
    inode.has_xattrs = true;
}

/// Removes an attribute; returns whether it was there. The caller saves the inode.
pub(super) fn remove(
    cx: &mut Context<'_, '_>,
    ino: Ino,
    inode: &mut Inode,
    name: &[u8],
) -> Result<bool, Failure> {
    let key = keys::xattr(ino, name);
    if !inode.has_xattrs || !cx.tx.contains(&key)? {
        return Ok(false);
    }
    cx.tx.delete(key);
    inode.has_xattrs = !cx.tx.is_empty(&keys::xattrs(ino))?;
    Ok(true)
}

/// Removes all of them with their inode.
pub(super) fn remove_all(cx: &mut Context<'_, '_>, ino: Ino, inode: &mut Inode) -> Result<(), Failure> {
    if inode.has_xattrs {
        for key in cx.tx.scan_keys(&keys::xattrs(ino), usize::MAX)? {
            cx.tx.delete(key);
        }
        inode.has_xattrs = false;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sorted_into_namespaces() {
        assert_eq!(kind_of(b"user.x").unwrap(), Kind::User);
        assert_eq!(kind_of(b"trusted.x").unwrap(), Kind::Plain);
        assert_eq!(kind_of(b"security.capability").unwrap(), Kind::Plain);
        assert_eq!(kind_of(b"system.posix_acl_access").unwrap(), Kind::AccessAcl);
        assert_eq!(kind_of(b"system.posix_acl_default").unwrap(), Kind::DefaultAcl);
        assert_eq!(kind_of(b"dfs.class").unwrap(), Kind::Class);
        for (name, code) in [
            (&b""[..], Code::Range),
            (&[b'x'; 256], Code::Range),
            (b"user.a\0b", Code::Invalid),
            (b"user.", Code::Invalid),
            (b"user", Code::NotSupported),
            (b"system.other", Code::NotSupported),
            (b"dfs.other", Code::NotSupported),
            (b"nonsense", Code::NotSupported),
        ] {
            assert_eq!(kind_of(name).unwrap_err().code, code, "{}", String::from_utf8_lossy(name));
        }
    }
}
