//! The locked ranges of one inode in one lock space.

use dfs_proto::SessionId;
use dfs_proto::meta::{LockKind, LockRange, LockSpace};

use super::{Lock, Owner};

/// Ranges in order of their first byte.
#[derive(Default)]
pub(super) struct Ranges {
    held: Vec<Held>,
}

/// A locked range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) owner: Owner,
    start: u64,
    /// Inclusive.
    end: u64,
    exclusive: bool,
    pid: u32,
}

impl Held {
    pub(super) fn to_wire(self, space: LockSpace) -> LockRange {
        let kind = if self.exclusive { LockKind::Exclusive } else { LockKind::Shared };
        LockRange {
            space: space.into(),
            kind: kind.into(),
            owner: self.owner.number,
            start: self.start,
            end: self.end,
            pid: self.pid,
        }
    }
}

impl Ranges {
    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    pub(super) fn holds(&self, session: SessionId) -> bool {
        self.held.iter().any(|held| held.owner.session == session)
    }

    /// Others' ranges that stand in the way of a lock.
    pub(super) fn conflicts<'r>(&'r self, lock: &'r Lock) -> impl Iterator<Item = Held> + 'r {
        let before_end = self.held.iter().take_while(|held| held.start <= lock.end);
        before_end.copied().filter(|held| {
            let either_excludes = held.exclusive || lock.kind == LockKind::Exclusive;
            lock.kind != LockKind::Unlock
                && held.end >= lock.start
                && held.owner != lock.owner
                && either_excludes
        })
    }

    /// Makes the lock the owner's only one on its range; nothing stands in the way. Returns whether something became
    /// free for others.
    pub(super) fn set(&mut self, lock: &Lock) -> bool {
        let exclusive = lock.kind == LockKind::Exclusive;
        let mut new = Held { owner: lock.owner, start: lock.start, end: lock.end, exclusive, pid: lock.pid };
        let mut freed = false;
        let mut pieces = Vec::new();
        self.held.retain(|held| {
            let touches =
                held.start <= lock.end.saturating_add(1) && lock.start <= held.end.saturating_add(1);
            if held.owner != lock.owner || !touches {
                return true;
            }
            let overlaps = held.start <= lock.end && lock.start <= held.end;
            if lock.kind != LockKind::Unlock && held.exclusive == exclusive {
                // The same kind: one longer range.
                new.start = new.start.min(held.start);
                new.end = new.end.max(held.end);
                return false;
            }
            if !overlaps {
                return true;
            }
            freed |= lock.kind == LockKind::Unlock || held.exclusive;
            if held.start < lock.start {
                pieces.push(Held { end: lock.start - 1, ..*held });
            }
            if held.end > lock.end {
                pieces.push(Held { start: lock.end + 1, ..*held });
            }
            false
        });
        if lock.kind != LockKind::Unlock {
            pieces.push(new);
        }
        for piece in pieces {
            let at = self.held.partition_point(|held| held.start < piece.start);
            self.held.insert(at, piece);
        }
        freed
    }

    /// Removes what a session holds; returns how many ranges it were.
    pub(super) fn remove_session(&mut self, session: SessionId) -> usize {
        let before = self.held.len();
        self.held.retain(|held| held.owner.session != session);
        before - self.held.len()
    }
}
