//! The digest of a tree: what is in it, wherever it is.
//!
//! A Merkle digest by SHA-256. An object's digest is that of a tag, its kind, its permission bits and what it holds; every
//! part has a fixed length or its length before it, so that no two objects are encoded alike:
//!
//! ```text
//! "dfs tree 1"  10 bytes: of this encoding and nothing else
//! kind           1 byte   f, d, l, p (fifo), s (socket), c, b
//! mode           4 bytes  07777, little-endian as all numbers; 0 for symbolic links, which have none of their own
//! then of a file              SHA-256 of its bytes
//!      of a directory         number of entries (8); each in the order of the names' bytes: length of its name (4), name, digest
//!      of a symbolic link     length of its target (8), target
//!      of a device            major (4), minor (4)
//! ```
//!
//! Owners, times, extended attributes, and which names are links to one file, are not in it; nor is the root's own name.

use sha2::{Digest, Sha256};

const TAG: &[u8; 10] = b"dfs tree 1";
/// The bits of a mode that are in a digest.
pub(super) const MODE_BITS: u32 = 0o7777;

/// Of one object and all below it.
pub(super) type TreeDigest = [u8; 32];

/// An object without entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leaf<'a> {
    /// With the SHA-256 of its bytes.
    File(TreeDigest),
    /// With its target.
    Symlink(&'a [u8]),
    Fifo,
    Socket,
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
}

/// The digest of what is no directory.
pub(super) fn of_leaf(mode: u32, leaf: Leaf<'_>) -> TreeDigest {
    match leaf {
        Leaf::File(content) => begin(b'f', mode).chain_update(content),
        Leaf::Symlink(target) => {
            begin(b'l', 0).chain_update((target.len() as u64).to_le_bytes()).chain_update(target)
        }
        Leaf::Fifo => begin(b'p', mode),
        Leaf::Socket => begin(b's', mode),
        Leaf::CharDevice(major, minor) => device(b'c', mode, major, minor),
        Leaf::BlockDevice(major, minor) => device(b'b', mode, major, minor),
    }
    .finalize()
    .into()
}

/// The digest of a directory, entry by entry.
#[derive(Clone, Debug)]
pub(super) struct DirectoryDigest {
    hash: Sha256,
    /// Entries that are still to come.
    left: u64,
}

impl DirectoryDigest {
    /// Of a directory with so many entries.
    pub(super) fn new(mode: u32, entries: u64) -> Self {
        Self { hash: begin(b'd', mode).chain_update(entries.to_le_bytes()), left: entries }
    }

    /// The next entry in the order of the names' bytes.
    pub(super) fn add(&mut self, name: &[u8], digest: &TreeDigest) {
        self.left = self.left.checked_sub(1).expect("as many entries as were told");
        self.hash.update((name.len() as u32).to_le_bytes());
        self.hash.update(name);
        self.hash.update(digest);
    }

    /// With all entries in it.
    pub(super) fn finish(self) -> TreeDigest {
        assert_eq!(self.left, 0, "as many entries as were told");
        self.hash.finalize().into()
    }
}

fn begin(kind: u8, mode: u32) -> Sha256 {
    Sha256::new().chain_update(TAG).chain_update([kind]).chain_update((mode & MODE_BITS).to_le_bytes())
}

fn device(kind: u8, mode: u32, major: u32, minor: u32) -> Sha256 {
    begin(kind, mode).chain_update(major.to_le_bytes()).chain_update(minor.to_le_bytes())
}

/// As people see it.
pub(super) fn hex(digest: &TreeDigest) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_two_objects_are_encoded_alike() {
        let content = |bytes: &[u8]| Leaf::File(Sha256::digest(bytes).into());
        let mut seen = HashSet::new();
        let mut fresh = |digest: TreeDigest| assert!(seen.insert(digest), "another one has this digest");
        for mode in [0, 0o644, 0o755, 0o4755, 0o7777] {
            for leaf in [content(b""), content(b"a"), Leaf::Fifo, Leaf::Socket] {
                fresh(of_leaf(mode, leaf));
            }
            for (major, minor) in [(0, 1), (1, 0), (1, 1)] {
                fresh(of_leaf(mode, Leaf::CharDevice(major, minor)));
                fresh(of_leaf(mode, Leaf::BlockDevice(major, minor)));
            }
            fresh(DirectoryDigest::new(mode, 0).finish());
        }
        fresh(of_leaf(0o777, Leaf::Symlink(b"a")));
        fresh(of_leaf(0o777, Leaf::Symlink(b"ab")));
        let child = of_leaf(0o644, content(b"a"));
        let directory = |entries: &[(&[u8], &TreeDigest)]| {
            let mut digest = DirectoryDigest::new(0o755, entries.len() as u64);
            entries.iter().for_each(|(name, child)| digest.add(name, child));
            digest.finish()
        };
        // A name that holds what comes behind a shorter one.
        let mut long = b"a".to_vec();
        long.extend_from_slice(&child);
        long.extend_from_slice(&[1, 0, 0, 0, b'b']);
        fresh(directory(&[(b"a", &child)]));
        fresh(directory(&[(b"b", &child)]));
        fresh(directory(&[(b"a", &child), (b"b", &child)]));
        fresh(directory(&[(&long, &child)]));
        fresh(directory(&[(b"a", &directory(&[(b"a", &child)]))]));
    }

    #[test]
    fn file_types_are_no_part_of_the_mode_and_the_encoding_stays() {
        assert_eq!(of_leaf(0o100_644, Leaf::Fifo), of_leaf(0o644, Leaf::Fifo));
        assert_eq!(of_leaf(0o777, Leaf::Symlink(b"a")), of_leaf(0o700, Leaf::Symlink(b"a")));
        let by_hand = Sha256::digest(b"dfs tree 1p\xa4\x01\0\0");
        assert_eq!(of_leaf(0o644, Leaf::Fifo)[..], by_hand[..]);
    }
}
