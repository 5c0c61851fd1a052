//! Extended attributes: `user.`, `trusted.`, `security.`, POSIX ACLs, and `dfs.class`.
//!
//! Who may see and set which is the caller's to check, as for all permissions.

use bytes::Bytes;
use dfs_proto::limits::{MAX_XATTR_NAME, MAX_XATTR_VALUE};
use dfs_proto::meta::{DataKey, GetXattr, ListXattr, RemoveXattr, SetXattr, XattrMode, request};
use dfs_proto::{Class, Code, Failure, Ino};

use super::{FileSystem, answers};
use crate::session::MetaCalls;

/// Names that are offered, beside those with the prefixes below.
const WHOLE_NAMES: [&str; 3] = ["system.posix_acl_access", "system.posix_acl_default", Class::XATTR];
const PREFIXES: [&str; 3] = ["user.", "trusted.", "security."];

/// EOPNOTSUPP for a namespace that is not offered, ERANGE for a name that is too long, as xattr(7) has it.
fn check_name(name: &[u8]) -> Result<Bytes, Failure> {
    if name.len() > MAX_XATTR_NAME {
        return Err(Failure::new(Code::Range, "the name of an extended attribute is at most 255 bytes long"));
    }
    let whole = WHOLE_NAMES.iter().any(|offered| name == offered.as_bytes());
    let prefixed =
        PREFIXES.iter().any(|prefix| name.len() > prefix.len() && name.starts_with(prefix.as_bytes()));
    if !(whole || prefixed) || name.contains(&0) {
        return Err(Failure::new(Code::NotSupported, "there is no such namespace of extended attributes"));
    }
    Ok(Bytes::copy_from_slice(name))
}

impl FileSystem {
    /// The value; ENODATA when there is none.
    pub async fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Bytes, Failure> {
        let name = check_name(name)?;
        answers::value(self.session.read(request::Op::GetXattr(GetXattr { ino: ino.0, name })).await?)
    }

    /// All names.
    pub async fn listxattr(&self, ino: Ino) -> Result<Vec<Bytes>, Failure> {
        answers::names(self.session.read(request::Op::ListXattr(ListXattr { ino: ino.0 })).await?)
    }

    /// Sets a value of at most 64 KiB (else E2BIG). `kill_set_gid`: an access ACL set by somebody outside the file's
    /// group, without CAP_FSETID.
    pub async fn setxattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
        kill_set_gid: bool,
    ) -> Result<(), Failure> {
        self.writable()?;
        let name = check_name(name)?;
        if value.len() > MAX_XATTR_VALUE {
            return Err(Failure::new(Code::ArgumentTooLong, "an extended attribute holds at most 64 KiB"));
        }
        let data_key = match name == Class::XATTR.as_bytes() {
            true => self.data_key_for(value)?,
            false => None,
        };
        let value = Bytes::copy_from_slice(value);
        let op = SetXattr { ino: ino.0, name, value, mode: mode.into(), kill_set_gid, data_key };
        self.change_xattr(ino, request::Op::SetXattr(op)).await
    }

    /// A class that encrypts comes with a data key, which only who has the key can make.
    fn data_key_for(&self, class: &[u8]) -> Result<Option<DataKey>, Failure> {
        let text = std::str::from_utf8(class).unwrap_or_default();
        match text.trim_end_matches('\n').parse::<Class>() {
            Ok(Class { key: Some(key), .. }) => self.keys.fresh(&key).map(Some),
            // What is wrong with it is the server's to say.
            _ => Ok(None),
        }
    }

    /// Removes one; ENODATA when there is none.
    pub async fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<(), Failure> {
        self.writable()?;
        let name = check_name(name)?;
        self.change_xattr(ino, request::Op::RemoveXattr(RemoveXattr { ino: ino.0, name })).await
    }

    async fn change_xattr(&self, ino: Ino, op: request::Op) -> Result<(), Failure> {
        self.flush_inode(ino).await?;
        if let Some(attr) = answers::done_or_attr(self.session.change(op).await?)? {
            self.changed(attr);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_offered_namespaces_are_let_through() {
        for good in [
            "user.a",
            "trusted.overlay.opaque",
            "security.capability",
            "system.posix_acl_access",
            "dfs.class",
        ] {
            assert!(check_name(good.as_bytes()).is_ok(), "{good}");
        }
        for bad in ["", "user.", "user", "system.nfs4_acl", "dfs.other", "btrfs.compression", "user.a\0b"] {
            assert_eq!(check_name(bad.as_bytes()).unwrap_err().code, Code::NotSupported, "{bad:?}");
        }
        assert_eq!(check_name(&[b'u'; 256]).unwrap_err().code, Code::Range);
    }
}
