//! What version of each inode the kernel's cached pages show, so that an open knows whether they may stay.
//!
//! Own changes move the version on, since the kernel took part in them; anything else makes the pages stale. Bounded:
//! an inode that was forgotten costs a reread, never a stale read.

use dfs_proto::{Attr, Ino};
use moka::sync::Cache;

/// Inodes remembered.
const CAPACITY: u64 = 200_000;

#[derive(Clone, Copy)]
struct Cached {
    version: u64,
    /// No foreign change slipped in since the kernel last dropped the inode's pages.
    pure: bool,
}

pub(super) struct Versions {
    seen: Cache<Ino, Cached>,
}

impl Versions {
    pub(super) fn new() -> Self {
        Self { seen: Cache::new(CAPACITY) }
    }

    /// At an open: whether the kernel may keep its pages. Where not, it drops them now.
    pub(super) fn open(&self, attr: &Attr) -> bool {
        let ino = Ino(attr.ino);
        let keep = self.seen.get(&ino).is_some_and(|cached| cached.pure && cached.version == attr.version);
        if !keep {
            self.seen.insert(ino, Cached { version: attr.version, pure: true });
        }
        keep
    }

    /// After a change of our own, made through the kernel.
    pub(super) fn changed(&self, attr: &Attr) {
        let ino = Ino(attr.ino);
        if let Some(cached) = self.seen.get(&ino)
            && attr.version == cached.version + 1
        {
            self.seen.insert(ino, Cached { version: attr.version, pure: cached.pure });
        }
    }

    /// At attributes from the server: whether somebody else changed the inode, so that the kernel's pages of it have
    /// to go. True once for each such change.
    pub(super) fn is_news(&self, attr: &Attr) -> bool {
        let ino = Ino(attr.ino);
        let news = self.seen.get(&ino).is_some_and(|cached| cached.version < attr.version);
        if news {
            self.seen.insert(ino, Cached { version: attr.version, pure: false });
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(version: u64) -> Attr {
        Attr { ino: 5, version, ..Default::default() }
    }

    #[test]
    fn pages_stay_over_own_changes_and_go_with_those_of_others() {
        let versions = Versions::new();
        assert!(!versions.open(&at(1)), "nothing is known of it yet");
        assert!(versions.open(&at(1)));
        versions.changed(&at(2));
        assert!(versions.open(&at(2)), "the kernel took part in the change");
        versions.changed(&at(4));
        assert!(!versions.open(&at(4)), "version 3 was somebody else's");
        assert!(versions.is_news(&at(5)));
        assert!(!versions.is_news(&at(5)), "told once");
        assert!(!versions.is_news(&at(4)), "an answer that came late");
        assert!(!versions.open(&at(5)), "pages may have come in while the news went round");
        assert!(versions.open(&at(5)));
    }
}
