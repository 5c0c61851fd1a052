//! The locks that this mount holds on one inode: arithmetic on ranges, as fcntl(2) has it. No I/O.
//!
//! A new lock replaces what its owner held in its range; unlocking cuts its range out. Owners never meet here: whose
//! locks conflict is the metadata server's to say.

use dfs_proto::meta::{LockKind, LockRange};

/// Locks on one inode, of any owner and either space.
#[derive(Debug, Default)]
pub(super) struct HeldRanges {
    ranges: Vec<LockRange>,
}

fn same_owner(a: &LockRange, b: &LockRange) -> bool {
    a.space == b.space && a.owner == b.owner
}

fn overlap(a: &LockRange, b: &LockRange) -> bool {
    a.start <= b.end && b.start <= a.end
}

impl HeldRanges {
    /// Sets or unlocks a range for its owner.
    pub(super) fn apply(&mut self, mut lock: LockRange) {
        let mut kept = Vec::with_capacity(self.ranges.len() + 1);
        for held in self.ranges.drain(..) {
            let touches = overlap(&held, &lock)
                || held.end.checked_add(1) == Some(lock.start)
                || lock.end.checked_add(1) == Some(held.start);
            if !same_owner(&held, &lock) || !touches {
                kept.push(held);
            } else if held.kind == lock.kind {
                // Grows together, so that many small locks in a row stay one.
                lock.start = lock.start.min(held.start);
                lock.end = lock.end.max(held.end);
            } else {
                if held.start < lock.start {
                    kept.push(LockRange { end: held.end.min(lock.start - 1), ..held });
                }
                if held.end > lock.end {
                    kept.push(LockRange { start: held.start.max(lock.end + 1), ..held });
                }
            }
        }
        if lock.kind() != LockKind::Unlock {
            kept.push(lock);
        }
        self.ranges = kept;
    }

    /// What the lock's owner holds in its range, cut to it.
    pub(super) fn within(&self, lock: &LockRange) -> Vec<LockRange> {
        let held = self.ranges.iter().filter(|held| same_owner(held, lock) && overlap(held, lock));
        held.map(|held| LockRange { start: held.start.max(lock.start), end: held.end.min(lock.end), ..*held })
            .collect()
    }

    pub(super) fn all(&self) -> &[LockRange] {
        &self.ranges
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lock(kind: LockKind, owner: u64, start: u64, end: u64) -> LockRange {
        LockRange { space: 0, kind: kind.into(), owner, start, end, pid: 7 }
    }

    proptest! {
        #[test]
        fn every_byte_has_what_was_last_said_of_it(
            steps in proptest::collection::vec((0i32..3, 0u64..3, 0u64..24, 0u64..24), 0..40)
        ) {
            let mut held = HeldRanges::default();
            let mut bytes = [[0i32; 48]; 3];
            for (kind, owner, start, length) in steps {
                let range = lock(LockKind::try_from(kind).unwrap(), owner, start, start + length);
                held.apply(range);
                bytes[owner as usize][start as usize..=(start + length) as usize].fill(kind);
            }
            for owner in 0..3 {
                for at in 0..48 {
                    let mine = held.within(&lock(LockKind::Unlock, owner, at, at));
                    prop_assert!(mine.len() <= 1, "two locks of one owner on one byte");
                    let kind = mine.first().map_or(0, |lock| lock.kind);
                    prop_assert_eq!(kind, bytes[owner as usize][at as usize]);
                }
            }
        }
    }

    #[test]
    fn locks_to_the_end_of_time_are_cut_without_overflow() {
        let mut held = HeldRanges::default();
        held.apply(lock(LockKind::Exclusive, 1, 0, u64::MAX));
        held.apply(lock(LockKind::Unlock, 1, 10, u64::MAX));
        held.apply(lock(LockKind::Shared, 1, 0, 0));
        let mut ranges: Vec<_> = held.all().iter().map(|held| (held.kind(), held.start, held.end)).collect();
        ranges.sort_by_key(|range| range.1);
        assert_eq!(ranges, [(LockKind::Shared, 0, 0), (LockKind::Exclusive, 1, 9)]);
    }

    #[test]
    fn neighbours_of_a_kind_become_one() {
        let mut held = HeldRanges::default();
        for start in [0, 2, 1, 3] {
            held.apply(lock(LockKind::Exclusive, 1, start, start));
        }
        assert_eq!(held.all().len(), 1);
        assert_eq!((held.all()[0].start, held.all()[0].end), (0, 3));
    }
}
