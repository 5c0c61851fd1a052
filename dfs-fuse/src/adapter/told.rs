//! What the kernel is told of inodes, and which versions it was told of lately.
//!
//! The kernel believes attributes for [`TRUST`]. An open that finds a newer version must make it ask again, or a reader
//! that was told of an older size would not see what somebody else wrote before the open. An open that finds what the
//! kernel knows already needs nothing, which spares most of them a request.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use dfs_proto::{Attr, Failure, Ino};
use fuser::FileAttr;

use super::convert::{NodeIds, TRUST};

/// Inodes remembered in one period; what does not fit counts as told of an unknown version.
const MAX_INODES: usize = 1 << 18;

/// All attributes on their way to the kernel pass here.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) nodes: NodeIds,
    periods: Mutex<Periods>,
}

/// Versions told during the present period of [`TRUST`] and the one before it: older ones the kernel has forgotten.
#[derive(Debug)]
struct Periods {
    began: Instant,
    present: HashMap<Ino, u64>,
    previous: HashMap<Ino, u64>,
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
        Self { nodes, periods: Mutex::default() }
    }

    /// The kernel is being told these attributes.
    pub(super) fn tell(&self, attr: &Attr) -> Result<FileAttr, Failure> {
        self.note(attr);
        self.nodes.attr(attr)
    }

    fn note(&self, attr: &Attr) {
        let mut periods = self.periods(Instant::now());
        let ino = Ino(attr.ino);
        if periods.present.len() < MAX_INODES || periods.present.contains_key(&ino) {
            periods.present.insert(ino, attr.version);
        } else {
            periods.overflowed[0] = true;
        }
    }

    /// Whether the kernel may still believe attributes of another version than these.
    pub(super) fn differs(&self, attr: &Attr) -> bool {
        let periods = self.periods(Instant::now());
        let ino = Ino(attr.ino);
        match periods.present.get(&ino).or_else(|| periods.previous.get(&ino)) {
            Some(version) => *version != attr.version,
            None => periods.overflowed != [false; 2],
        }
    }

    fn periods(&self, now: Instant) -> MutexGuard<'_, Periods> {
        let mut periods = self.periods.lock().expect("no panic under this lock");
        periods.turn(now);
        periods
    }
}

impl Periods {
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

    fn attr(ino: u64, version: u64) -> Attr {
        Attr { ino, version, ..Attr::default() }
    }

    #[test]
    fn another_version_than_was_told_differs() {
        let told = Told::new(NodeIds::new(Ino(1)));
        assert!(!told.differs(&attr(1, 5)), "the kernel was never told of it");
        told.note(&attr(1, 5));
        assert!(!told.differs(&attr(1, 5)));
        assert!(told.differs(&attr(1, 6)));
        told.note(&attr(1, 6));
        assert!(!told.differs(&attr(1, 6)));
    }

    #[test]
    fn what_was_told_is_forgotten_after_two_periods() {
        let mut periods = Periods::default();
        let start = periods.began;
        periods.present.insert(Ino(1), 5);
        periods.turn(start + TRUST / 2);
        assert_eq!(periods.present.len(), 1);
        periods.turn(start + TRUST);
        assert_eq!((periods.present.len(), periods.previous.len()), (0, 1));
        periods.present.insert(Ino(2), 5);
        periods.turn(start + TRUST * 2);
        assert_eq!(periods.previous.get(&Ino(2)), Some(&5));
        assert_eq!(periods.previous.get(&Ino(1)), None);
        periods.overflowed[0] = true;
        periods.turn(start + TRUST * 3);
        assert_eq!(periods.overflowed, [false, true]);
        periods.turn(start + TRUST * 5);
        assert_eq!((periods.previous.len(), periods.overflowed), (0, [false; 2]));
    }
}
