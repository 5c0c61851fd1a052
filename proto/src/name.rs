//! A directory entry's name, parsed once at the edge and trusted afterwards.

use std::fmt;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::common::Code;
use crate::error::Failure;
use crate::limits::MAX_NAME;

/// 1..=255 bytes without '/' and NUL; neither "." nor "..".
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Bytes);

/// Cookies below this one are for ".", ".." and the start of a directory.
pub const FIRST_COOKIE: u64 = 4;

impl Name {
    /// Checks a name from the wire or the kernel. ENAMETOOLONG, EINVAL.
    pub fn parse(bytes: impl Into<Bytes>) -> Result<Self, Failure> {
        let bytes = bytes.into();
        if bytes.len() > MAX_NAME {
            return Err(Failure::new(Code::NameTooLong, "a name is at most 255 bytes long"));
        }
        if bytes.is_empty() || &bytes[..] == b"." || &bytes[..] == b".." {
            return Err(Failure::new(Code::Invalid, "a name may not be empty, \".\" or \"..\""));
        }
        if bytes.iter().any(|&b| b == b'/' || b == 0) {
            return Err(Failure::new(Code::Invalid, "a name may not contain '/' or NUL"));
        }
        Ok(Self(bytes))
    }

    /// The bytes of the name.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// For the wire, without copying.
    pub fn to_bytes(&self) -> Bytes {
        self.0.clone()
    }

    /// Where the name stands in its directory's order. Directories are kept in the order of this hash, so that a
    /// position in a listing is a number that stays true whatever others create and remove (as in ext4's htree).
    /// In `FIRST_COOKIE..2^62`, so that it fits the kernel's signed offset.
    pub fn cookie(&self) -> u64 {
        let digest = Sha256::digest(&self.0);
        let mut head = [0; 8];
        head.copy_from_slice(&digest[..8]);
        (u64::from_be_bytes(head) >> 2).max(FIRST_COOKIE)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        String::from_utf8_lossy(&self.0).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0b"] {
            assert_eq!(Name::parse(bad.to_vec()).unwrap_err().code, Code::Invalid);
        }
        assert_eq!(Name::parse(vec![b'x'; 256]).unwrap_err().code, Code::NameTooLong);
        assert_eq!(Name::parse(vec![b'x'; 255]).unwrap().as_bytes().len(), 255);
        assert!(Name::parse(&b"\xff\xfe"[..]).is_ok(), "names are bytes, not UTF-8");
    }

    #[test]
    fn cookies_fit_the_kernel_and_never_change() {
        // On disk: changing the function would orphan every directory entry.
        assert_eq!(Name::parse(&b"a"[..]).unwrap().cookie(), 0xca97_8112_ca1b_bdca >> 2);
        for i in 0..1000 {
            let cookie = Name::parse(format!("f{i}").into_bytes()).unwrap().cookie();
            assert!((FIRST_COOKIE..1 << 62).contains(&cookie));
        }
    }
}
