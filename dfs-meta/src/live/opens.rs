//! Which session has which inode open, so that an inode without a name lives until its last close.

use std::collections::{BTreeSet, HashMap};

use dfs_proto::{Code, Failure, Ino, SessionId};

/// Inodes that one session may have open.
pub const MAX_OPEN: usize = 1 << 20;

/// Open inodes by session and sessions by inode. A session counts once for an inode, however many handles it has.
#[derive(Default)]
pub struct OpenTable {
    by_session: HashMap<SessionId, BTreeSet<Ino>>,
    by_inode: HashMap<Ino, BTreeSet<SessionId>>,
}

impl OpenTable {
    /// Whether the session may open one inode more. EINVAL without a session, EBUSY when it has too many.
    pub fn check_room(&self, session: SessionId) -> Result<(), Failure> {
        if session == SessionId(0) {
            return Err(Failure::new(Code::Invalid, "only a session can have files open"));
        }
        match self.count(session) {
            MAX_OPEN.. => {
                Err(Failure::new(Code::Busy, format!("a session has at most {MAX_OPEN} files open")))
            }
            _ => Ok(()),
        }
    }

    /// The session has the inode open from now on.
    pub fn open(&mut self, session: SessionId, ino: Ino) {
        self.by_session.entry(session).or_default().insert(ino);
        self.by_inode.entry(ino).or_default().insert(session);
    }

    /// The session's last handle on the inode is closed.
    pub fn close(&mut self, session: SessionId, ino: Ino) {
        if let Some(inos) = self.by_session.get_mut(&session) {
            inos.remove(&ino);
            if inos.is_empty() {
                self.by_session.remove(&session);
            }
        }
        if let Some(sessions) = self.by_inode.get_mut(&ino) {
            sessions.remove(&session);
            if sessions.is_empty() {
                self.by_inode.remove(&ino);
            }
        }
    }

    /// Forgets a session; returns what it had open.
    pub fn remove_session(&mut self, session: SessionId) -> BTreeSet<Ino> {
        let inos = self.by_session.get(&session).cloned().unwrap_or_default();
        for &ino in &inos {
            self.close(session, ino);
        }
        inos
    }

    /// The sessions that have the inode open.
    pub fn sessions_of(&self, ino: Ino) -> impl Iterator<Item = SessionId> + '_ {
        self.by_inode.get(&ino).into_iter().flatten().copied()
    }

    /// How many inodes the session has open.
    pub fn count(&self, session: SessionId) -> usize {
        self.by_session.get(&session).map_or(0, BTreeSet::len)
    }
}
