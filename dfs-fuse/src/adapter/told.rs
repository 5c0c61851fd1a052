//! What the kernel is told of inodes, and what it was told lately.
//!
//! The kernel believes attributes until they are [`TRUST`] old, counted from when the server was asked. While it does:
//! - An open that finds another version than was told must make it ask again, or a reader that was told of an older size
//!   would not see what somebody else wrote before the open. An open that finds what is known already costs nothing.
//! - The kernel asks again and again after what it changed or read itself. For an inode that is open here the client
//!   library knows the answer: the server's, with our own changes.
//! - It asks for security labels and ACLs of every file; of a file that was told to have none it need not wait for the
//!   server to say so.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use dfs_proto::{Attr, Failure, Ino};
use fuser::FileAttr;

use super::convert::{NodeIds, TRUST};

/// Inodes remembered in one period; what does not fit counts as told of an unknown version.
const MAX_INODES: usize = 1 << 18;

/// Namespaces of extended attributes that [`Attr::no_xattrs`] speaks of.
const NAMESPACES: [&[u8]; 4] = [b"security.", b"system.posix_acl_", b"trusted.", b"user."];

/// When the server was asked for attributes, and what had been changed by then.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    at: Instant,
    xattr_changes: u64,
}

impl Asked {
    /// For how long the answer may be believed from now on.
    pub(super) fn trust(self) -> Duration {
        TRUST.saturating_sub(self.at.elapsed())
    }
}

/// All attributes on their way to the kernel pass here.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) nodes: NodeIds,
    periods: Mutex<Periods>,
    /// Changes of extended attributes by this mount, begun and ended.
    xattr_changes: AtomicU64,
    /// When this mount last took a name from some inode: its links and change time are others since, and the answer did
    /// not say whose.
    names_taken: Mutex<Option<Instant>>,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    version: u64,
    asked: Instant,
    no_xattrs: bool,
}

/// What was told during the present period of [`TRUST`] and the one before it: the rest the kernel has forgotten.
#[derive(Debug)]
struct Periods {
    began: Instant,
    present: HashMap<Ino, Known>,
    previous: HashMap<Ino, Known>,
    /// Some inode did not fit into one of them.
    overflowed: [bool; 2],
}

impl Default for Periods {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            present: HashMap::new(),
            previous: HashMap::new(),
            overflowed: [false; 2],
        }
    }
}

impl Told {
    pub(super) fn new(nodes: NodeIds) -> Self {
        Self {
            nodes,
            periods: Mutex::default(),
            xattr_changes: AtomicU64::new(0),
            names_taken: Mutex::default(),
        }
    }

    /// Before the server is asked for attributes.
    pub(super) fn ask(&self) -> Asked {
        Asked { at: Instant::now(), xattr_changes: self.xattr_changes.load(Ordering::SeqCst) }
    }

    /// The kernel is being told what the server answered.
    pub(super) fn tell(&self, asked: Asked, attr: &Attr) -> Result<FileAttr, Failure> {
        self.note(asked, attr);
        self.nodes.attr(attr)
    }

    fn note(&self, asked: Asked, attr: &Attr) {
        let ino = Ino(attr.ino);
        let mut periods = self.periods(Instant::now());
        // Under the lock: a change that begins now takes the entry out again.
        let unchanged = asked.xattr_changes == self.xattr_changes.load(Ordering::SeqCst);
        let known = Known { version: attr.version, asked: asked.at, no_xattrs: attr.no_xattrs && unchanged };
        if periods.present.len() < MAX_INODES || periods.present.contains_key(&ino) {
            periods.present.insert(ino, known);
        } else {
            periods.overflowed[0] = true;
        }
    }

    /// Whether the kernel may still believe attributes of another version than these.
    pub(super) fn differs(&self, attr: &Attr) -> bool {
        let periods = self.periods(Instant::now());
        match periods.get(Ino(attr.ino)) {
            Some(known) => known.version != attr.version,
            None => periods.overflowed != [false; 2],
        }
    }

    /// For how long what was told of an inode last may still be believed; `None` when it may not.
    pub(super) fn trust(&self, ino: Ino) -> Option<Duration> {
        let now = Instant::now();
        let known = self.periods(now).get(ino)?;
        if self.names_taken().is_some_and(|taken| known.asked <= taken) {
            return None;
        }
        TRUST.checked_sub(now.saturating_duration_since(known.asked)).filter(|trust| !trust.is_zero())
    }

    /// A name was taken away or moved by this mount.
    pub(super) fn name_taken(&self) {
        *self.names_taken() = Some(Instant::now());
    }

    fn names_taken(&self) -> MutexGuard<'_, Option<Instant>> {
        self.names_taken.lock().expect("nobody panics with it")
    }

    /// Whether an inode was told to have no extended attribute of this name, or of any in the namespaces.
    pub(super) fn has_no_xattr(&self, ino: Ino, name: &[u8]) -> bool {
        let now = Instant::now();
        NAMESPACES.iter().any(|namespace| name.starts_with(namespace))
            && self
                .periods(now)
                .get(ino)
                .is_some_and(|known| known.no_xattrs && now.saturating_duration_since(known.asked) < TRUST)
    }

    /// An extended attribute of the inode is about to change, or has changed: what was asked before does not count.
    pub(super) fn xattrs_change(&self, ino: Ino) {
        self.xattr_changes.fetch_add(1, Ordering::SeqCst);
        let mut periods = self.periods(Instant::now());
        let Periods { present, previous, .. } = &mut *periods;
        for known in [present, previous].into_iter().filter_map(|period| period.get_mut(&ino)) {
            known.no_xattrs = false;
        }
    }

    fn periods(&self, now: Instant) -> MutexGuard<'_, Periods> {
        let mut periods = self.periods.lock().expect("no panic under this lock");
        periods.turn(now);
        periods
    }
}

impl Periods {
    fn get(&self, ino: Ino) -> Option<Known> {
        self.present.get(&ino).or_else(|| self.previous.get(&ino)).copied()
    }

    fn turn(&mut self, now: Instant) {
        let age = now.saturating_duration_since(self.began);
        if age < TRUST {
            return;
        }
        self.previous = std::mem::take(&mut self.present);
        self.overflowed = [false, self.overflowed[0]];
        if age >= TRUST * 2 {
            self.previous = HashMap::new();
            self.overflowed = [false; 2];
        }
        self.began = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACL: &[u8] = b"system.posix_acl_access";

    fn attr(ino: u64, version: u64) -> Attr {
        Attr { ino, version, kind: 1, no_xattrs: true, ..Attr::default() }
    }

    fn told() -> Told {
        Told::new(NodeIds::new(Ino(1)))
    }

    #[test]
    fn another_version_than_was_told_differs() {
        let told = told();
        assert!(!told.differs(&attr(1, 5)), "the kernel was never told of it");
        told.tell(told.ask(), &attr(1, 5)).unwrap();
        assert!(!told.differs(&attr(1, 5)));
        assert!(told.differs(&attr(1, 6)));
        told.tell(told.ask(), &attr(1, 6)).unwrap();
        assert!(!told.differs(&attr(1, 6)));
    }

    #[test]
    fn trust_counts_from_the_question() {
        let told = told();
        assert_eq!(told.trust(Ino(1)), None);
        let asked = told.ask();
        told.tell(asked, &attr(1, 5)).unwrap();
        assert!(told.trust(Ino(1)).is_some_and(|trust| trust <= TRUST));
        let early = Asked { at: Instant::now() - TRUST, ..asked };
        assert_eq!(early.trust(), Duration::ZERO);
        told.tell(early, &attr(1, 5)).unwrap();
        assert_eq!(told.trust(Ino(1)), None);
        assert!(!told.has_no_xattr(Ino(1), ACL));
    }

    #[test]
    fn absent_attributes_are_known_until_one_is_set() {
        let told = told();
        assert!(!told.has_no_xattr(Ino(1), ACL), "nothing is known");
        let early = told.ask();
        told.tell(early, &attr(1, 5)).unwrap();
        assert!(told.has_no_xattr(Ino(1), ACL) && told.has_no_xattr(Ino(1), b"security.capability"));
        assert!(!told.has_no_xattr(Ino(1), b"dfs.class"), "not an attribute of the inode alone");
        told.xattrs_change(Ino(1));
        assert!(!told.has_no_xattr(Ino(1), ACL));
        told.tell(early, &attr(1, 5)).unwrap();
        assert!(!told.has_no_xattr(Ino(1), ACL), "an answer from before the change");
        told.tell(told.ask(), &attr(1, 6)).unwrap();
        assert!(told.has_no_xattr(Ino(1), ACL), "it was removed");
        told.tell(told.ask(), &Attr { no_xattrs: false, ..attr(1, 7) }).unwrap();
        assert!(!told.has_no_xattr(Ino(1), ACL));
    }

    #[test]
    fn what_was_told_is_forgotten_after_two_periods() {
        let mut periods = Periods::default();
        let start = periods.began;
        let known = Known { version: 5, asked: start, no_xattrs: true };
        periods.present.insert(Ino(1), known);
        periods.turn(start + TRUST / 2);
        assert_eq!(periods.present.len(), 1);
        periods.turn(start + TRUST);
        assert_eq!((periods.present.len(), periods.previous.len()), (0, 1));
        periods.present.insert(Ino(2), known);
        periods.turn(start + TRUST * 2);
        assert!(periods.get(Ino(2)).is_some() && periods.get(Ino(1)).is_none());
        periods.overflowed[0] = true;
        periods.turn(start + TRUST * 3);
        assert_eq!(periods.overflowed, [false, true]);
        periods.turn(start + TRUST * 5);
        assert_eq!((periods.previous.len(), periods.overflowed), (0, [false; 2]));
    }
}
