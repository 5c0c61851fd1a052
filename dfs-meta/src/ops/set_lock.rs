//! Takes, changes or gives back a lock: fcntl(2) F_SETLK and F_SETLKW, flock(2). Locks live in memory: after a restart
//! sessions bring theirs back, and until they had the time to, nobody gets a new one.

use std::collections::BTreeSet;

use dfs_proto::meta::{LockKind, SetLock, Unlocked, event, reply};
use dfs_proto::{Code, Failure, Ino, SessionId};

use super::{Context, inode};
use crate::live::locks::Lock;

/// LOCKED, DEADLOCK, NO_LOCKS, GRACE, EINVAL; ESTALE when the inode is gone. A lock taken is answered with fresh
/// attributes, since what is cached of the file has to be looked at anew.
pub(super) fn run(cx: &mut Context<'_, '_>, request: &SetLock) -> Result<reply::Result, Failure> {
    let ino = Ino(request.ino);
    let lock = Lock::parse(cx.session, request.lock.as_ref())?;
    if lock.kind == LockKind::Unlock {
        let told = cx.live.locks.set(ino, &lock)?;
        tell(cx, ino, told);
        return Ok(reply::Result::Done(dfs_proto::meta::Done {}));
    }
    check_grace(cx)?;
    let attr = inode::attr(ino, &inode::load(cx, ino)?);
    match cx.live.locks.set(ino, &lock) {
        Ok(told) => {
            tell(cx, ino, told);
            Ok(reply::Result::Attr(attr))
        }
        Err(failure) => {
            if failure.code == Code::Locked && request.wait {
                cx.live.locks.wait(ino, &lock, cx.uptime)?;
            }
            Err(failure)
        }
    }
}

/// After a restart nobody knows who holds what until all sessions had the time to tell.
pub(super) fn check_grace(cx: &Context<'_, '_>) -> Result<(), Failure> {
    match cx.live.sessions.in_grace(cx.uptime) {
        true => Err(Failure::new(
            Code::Grace,
            "the metadata server was restarted and waits for clients to bring back their locks: try again",
        )),
        false => Ok(()),
    }
}

/// Tells sessions that a lock they wait for may be free.
pub(super) fn tell(cx: &mut Context<'_, '_>, ino: Ino, sessions: BTreeSet<SessionId>) {
    for session in sessions {
        cx.live.sessions.notify(session, event::Event::Unlocked(Unlocked { ino: ino.0 }));
    }
}

#[cfg(test)]
mod tests {
    use dfs_proto::Epoch;
    use dfs_proto::meta::{CloseSession, HeldLock, LockRange, Reclaim, request};

    use super::super::testing::Bench;
    use super::*;
    use crate::live::Live;
    use crate::live::sessions::SessionTable;
    use crate::store::records;

    const ONE: SessionId = SessionId(1);
    const OTHER: SessionId = SessionId(2);
    /// The first file of a fresh filesystem.
    const FILE: u64 = 2;

    fn lock(kind: LockKind) -> LockRange {
        LockRange { kind: kind.into(), owner: 7, end: 9, pid: 42, ..LockRange::default() }
    }

    fn set(bench: &mut Bench, session: SessionId, kind: LockKind) -> Result<reply::Result, Failure> {
        let op = SetLock { ino: FILE, lock: Some(lock(kind)), wait: true };
        bench.run_as(session, request::Op::SetLock(op))
    }

    fn record() -> records::Session {
        records::Session { epoch: 1, ..records::Session::default() }
    }

    fn grace() -> std::time::Duration {
        std::time::Duration::from_secs(20)
    }

    #[test]
    fn who_waits_is_told_when_the_holder_ends() {
        let mut bench = Bench::new();
        assert_eq!(bench.file("f"), Ino(FILE));
        for session in [ONE, OTHER] {
            bench.live.sessions.add(session, &record(), bench.uptime);
        }
        let mut events = bench.live.sessions.watch(OTHER, Epoch(1)).unwrap();
        let hello = events.try_recv().unwrap().event;
        assert!(matches!(hello, Some(event::Event::Hello(_))));
        let Ok(reply::Result::Attr(attr)) = set(&mut bench, ONE, LockKind::Exclusive) else { panic!("free") };
        assert_eq!(attr.ino, FILE);
        assert_eq!(set(&mut bench, OTHER, LockKind::Shared).unwrap_err().code, Code::Locked);
        let get = dfs_proto::meta::GetLock { ino: FILE, lock: Some(lock(LockKind::Shared)) };
        let Ok(reply::Result::LockState(state)) = bench.run_as(OTHER, request::Op::GetLock(get)) else {
            panic!("the state of the lock")
        };
        assert_eq!(state.conflict, Some(lock(LockKind::Exclusive)));
        assert!(events.try_recv().is_err());
        bench.run_as(ONE, request::Op::CloseSession(CloseSession {})).unwrap();
        let unlocked = events.try_recv().unwrap().event;
        assert_eq!(unlocked, Some(event::Event::Unlocked(Unlocked { ino: FILE })));
        assert!(set(&mut bench, OTHER, LockKind::Shared).is_ok());
        let gone = SetLock { ino: 99, lock: Some(lock(LockKind::Shared)), wait: false };
        assert_eq!(bench.run_as(OTHER, request::Op::SetLock(gone)).unwrap_err().code, Code::Stale);
    }

    #[test]
    fn after_a_restart_locks_come_back_before_new_ones_are_given() {
        let mut bench = Bench::new();
        assert_eq!(bench.file("f"), Ino(FILE));
        bench.uptime = std::time::Duration::ZERO;
        let sessions = SessionTable::load(2, [(ONE, record())], grace());
        bench.live = Live { sessions, ..Live::default() };
        bench.live.sessions.add(OTHER, &record(), bench.uptime);
        assert_eq!(set(&mut bench, OTHER, LockKind::Exclusive).unwrap_err().code, Code::Grace);
        let held = HeldLock { ino: FILE, lock: Some(lock(LockKind::Exclusive)) };
        let mut reclaim = |session| {
            let op = Reclaim { locks: vec![held], complete: true, ..Reclaim::default() };
            match bench.run_as(session, request::Op::Reclaim(op)) {
                Ok(reply::Result::Reclaimed(reclaimed)) => reclaimed.lost_locks,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(reclaim(OTHER), [held], "a new session has nothing to bring back");
        assert_eq!(reclaim(ONE), []);
        assert_eq!(set(&mut bench, OTHER, LockKind::Exclusive).unwrap_err().code, Code::Locked);
        assert!(set(&mut bench, ONE, LockKind::Unlock).is_ok());
        assert!(set(&mut bench, OTHER, LockKind::Exclusive).is_ok());
    }
}
