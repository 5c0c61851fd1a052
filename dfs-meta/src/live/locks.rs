//! File locks: POSIX byte ranges (fcntl(2)) and whole-file ones (flock(2)), which know nothing of each other.
//!
//! An owner is a number of a session. Its ranges on an inode never overlap, and neighbours of one kind are one range.
//! Ranges of different owners overlap only where both are shared. Who waits is remembered only to be told when asking
//! again may help, and to notice when owners wait for each other in a circle; nothing is granted unasked.

mod ranges;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use dfs_proto::meta::{LockKind, LockRange, LockSpace};
use dfs_proto::{Code, Failure, Ino, SessionId};

use ranges::Ranges;

/// Ranges that one session may hold.
const MAX_PER_SESSION: usize = 65_536;
/// Ranges on one inode.
const MAX_PER_INODE: usize = 16_384;
/// Who waits asks again every second; who has not for so long does not wait any more.
const WAIT_LIFETIME: Duration = Duration::from_secs(3);
/// Owners looked at in search of a circle; longer ones are not found, and wait.
const MAX_CIRCLE: usize = 1024;
/// The last byte a lock may cover.
const LAST_BYTE: u64 = i64::MAX as u64;

/// Locks by inode.
#[derive(Default)]
pub struct LockTable {
    files: HashMap<Ino, FileLocks>,
    sessions: HashMap<SessionId, SessionLocks>,
    waits: HashMap<Owner, Wait>,
}

#[derive(Default)]
struct FileLocks {
    posix: Ranges,
    flock: Ranges,
    /// To be told when something becomes free.
    waiting: BTreeSet<SessionId>,
}

#[derive(Default)]
struct SessionLocks {
    ranges: usize,
    inos: BTreeSet<Ino>,
}

/// What an owner waits for.
struct Wait {
    ino: Ino,
    blockers: Vec<Owner>,
    until: Duration,
}

/// Who may hold locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    /// Whose owner.
    pub session: SessionId,
    /// Unique in the session.
    pub number: u64,
}

/// A checked request for a lock, or for giving it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lock {
    /// Of which kind of locks.
    pub space: LockSpace,
    /// What to hold afterwards.
    pub kind: LockKind,
    /// For whom.
    pub owner: Owner,
    /// First byte.
    pub start: u64,
    /// Last byte.
    pub end: u64,
    /// For people.
    pub pid: u32,
}

impl Lock {
    /// From the wire. EINVAL.
    pub fn parse(session: SessionId, lock: Option<&LockRange>) -> Result<Self, Failure> {
        let bad = || Failure::new(Code::Invalid, format!("not a lock: {lock:?}"));
        let lock = lock.ok_or_else(bad)?;
        let space = LockSpace::try_from(lock.space).map_err(|_| bad())?;
        let kind = LockKind::try_from(lock.kind).map_err(|_| bad())?;
        if lock.start > lock.end || lock.end > LAST_BYTE {
            return Err(bad());
        }
        let owner = Owner { session, number: lock.owner };
        let (start, end) = match space {
            LockSpace::Posix => (lock.start, lock.end),
            LockSpace::Flock => (0, LAST_BYTE),
        };
        Ok(Self { space, kind, owner, start, end, pid: lock.pid })
    }
}

impl LockTable {
    /// A lock of somebody else that stands in the way.
    pub fn conflict(&self, ino: Ino, lock: &Lock) -> Option<LockRange> {
        self.files.get(&ino)?.ranges(lock.space).conflicts(lock).next().map(|held| held.to_wire(lock.space))
    }

    /// Takes, changes or gives back a lock; returns whom to tell that something became free. LOCKED, NO_LOCKS.
    pub fn set(&mut self, ino: Ino, lock: &Lock) -> Result<BTreeSet<SessionId>, Failure> {
        self.waits.remove(&lock.owner);
        if lock.kind == LockKind::Unlock && !self.files.contains_key(&ino) {
            return Ok(BTreeSet::new());
        }
        if let Some(other) = self.conflict(ino, lock) {
            let message = format!("inode {ino} is locked by process {} from byte {}", other.pid, other.start);
            return Err(Failure::new(Code::Locked, message));
        }
        let mine = self.sessions.entry(lock.owner.session).or_default();
        let file = self.files.entry(ino).or_default();
        // Setting one range makes at most two more of them.
        let full = mine.ranges + 2 > MAX_PER_SESSION || file.count() + 2 > MAX_PER_INODE;
        if lock.kind != LockKind::Unlock && full {
            let message = format!("too many locks: on inode {ino}, or in session {}", lock.owner.session);
            self.tidy(ino, lock.owner.session);
            return Err(Failure::new(Code::NoLocks, message));
        }
        let before = file.ranges(lock.space).len();
        let freed = file.ranges_mut(lock.space).set(lock);
        let after = file.ranges(lock.space).len();
        mine.ranges = mine.ranges + after - before;
        mine.inos.insert(ino);
        let told = if freed { std::mem::take(&mut file.waiting) } else { BTreeSet::new() };
        self.tidy(ino, lock.owner.session);
        if freed {
            // Whoever waited here will ask again, and may not have to wait any more.
            self.waits.retain(|_, wait| wait.ino != ino);
        }
        Ok(told)
    }

    /// The owner waits for what stands in the way of a lock: its session is to be told. DEADLOCK when that would never
    /// end, because somebody in the way waits, over others or not, for this owner (POSIX locks only).
    pub fn wait(&mut self, ino: Ino, lock: &Lock, uptime: Duration) -> Result<(), Failure> {
        let Some(file) = self.files.get_mut(&ino) else { return Ok(()) };
        let blockers: BTreeSet<Owner> =
            file.ranges(lock.space).conflicts(lock).map(|held| held.owner).collect();
        if blockers.is_empty() {
            return Ok(());
        }
        if lock.space == LockSpace::Posix {
            self.waits.retain(|_, wait| wait.until > uptime);
            let blockers: Vec<Owner> = blockers.into_iter().collect();
            if self.leads_to(&blockers, lock.owner) {
                let message = format!(
                    "waiting for a lock on inode {ino} would never end: its holder waits for this one"
                );
                return Err(Failure::new(Code::Deadlock, message));
            }
            self.waits.insert(lock.owner, Wait { ino, blockers, until: uptime + WAIT_LIFETIME });
        }
        if let Some(file) = self.files.get_mut(&ino) {
            file.waiting.insert(lock.owner.session);
        }
        Ok(())
    }

    /// Gives back all that a session holds; returns whom to tell of which inodes.
    pub fn remove_session(&mut self, session: SessionId) -> Vec<(Ino, BTreeSet<SessionId>)> {
        self.waits.retain(|owner, _| owner.session != session);
        let Some(held) = self.sessions.remove(&session) else { return Vec::new() };
        let inos = held.inos.into_iter();
        inos.map(|ino| (ino, self.drop_all(session, ino))).filter(|(_, told)| !told.is_empty()).collect()
    }

    /// How many ranges a session holds.
    pub fn count(&self, session: SessionId) -> usize {
        self.sessions.get(&session).map_or(0, |held| held.ranges)
    }

    fn drop_all(&mut self, session: SessionId, ino: Ino) -> BTreeSet<SessionId> {
        let Some(file) = self.files.get_mut(&ino) else { return BTreeSet::new() };
        let removed = file.posix.remove_session(session) + file.flock.remove_session(session);
        file.waiting.remove(&session);
        let told = std::mem::take(&mut file.waiting);
        if let Some(held) = self.sessions.get_mut(&session) {
            held.ranges -= removed;
        }
        self.tidy(ino, session);
        self.waits.retain(|_, wait| wait.ino != ino);
        told
    }

    /// Forgets what is empty.
    fn tidy(&mut self, ino: Ino, session: SessionId) {
        let holds =
            self.files.get(&ino).is_some_and(|file| file.posix.holds(session) || file.flock.holds(session));
        if let Some(held) = self.sessions.get_mut(&session).filter(|_| !holds) {
            held.inos.remove(&ino);
            if held.inos.is_empty() {
                self.sessions.remove(&session);
            }
        }
        if self.files.get(&ino).is_some_and(|file| file.count() == 0) {
            self.files.remove(&ino);
        }
    }

    /// Whether one of `from` is `to`, or waits for somebody who is.
    fn leads_to(&self, from: &[Owner], to: Owner) -> bool {
        let mut open = from.to_vec();
        let mut seen = HashSet::new();
        while let Some(owner) = open.pop() {
            if owner == to {
                return true;
            }
            if seen.len() < MAX_CIRCLE && seen.insert(owner) {
                open.extend(self.waits.get(&owner).into_iter().flat_map(|wait| &wait.blockers));
            }
        }
        false
    }
}

impl FileLocks {
    fn ranges(&self, space: LockSpace) -> &Ranges {
        match space {
            LockSpace::Posix => &self.posix,
            LockSpace::Flock => &self.flock,
        }
    }

    fn ranges_mut(&mut self, space: LockSpace) -> &mut Ranges {
        match space {
            LockSpace::Posix => &mut self.posix,
            LockSpace::Flock => &mut self.flock,
        }
    }

    fn count(&self) -> usize {
        self.posix.len() + self.flock.len()
    }
}

#[cfg(test)]
mod tests;
