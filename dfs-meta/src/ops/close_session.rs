//! A session ends: by its own wish, or because it was not heard of for too long. Either way it changes nothing any
//! more, and what it held is free.

use dfs_proto::meta::{CloseSession, Done};
use dfs_proto::{Failure, SessionId};

use super::{Context, Progress, set_lock};
use crate::store::keys;
use crate::store::records::Marker;

/// Sessions fenced, and orphans adopted, in one operation.
const PIECE: usize = 1024;

/// The session's own wish.
pub(super) fn run(cx: &mut Context<'_, '_>, _request: &CloseSession) -> Result<Done, Failure> {
    delete_records(cx, cx.session)?;
    free(cx, cx.session, "closed by the client");
    Ok(Done {})
}

/// Fences the sessions that were not heard of for the session timeout.
pub(super) fn expire(cx: &mut Context<'_, '_>) -> Result<Progress, Failure> {
    let timeout = cx.settings.session_timeout;
    let silent = cx.live.sessions.silent(cx.uptime, timeout, PIECE);
    for &id in &silent {
        delete_records(cx, id)?;
    }
    for &id in &silent {
        free(cx, id, &format!("not heard of for {} s", timeout.as_secs_f64()));
    }
    Ok(if silent.len() == PIECE { Progress::More } else { Progress::Idle })
}

/// Removes the session and its slots, so that none of its requests is accepted any more. Its unnamed inodes are left
/// to [`adopt_orphans`], since they may be many.
fn delete_records(cx: &mut Context<'_, '_>, id: SessionId) -> Result<(), Failure> {
    for slot in cx.tx.scan_keys(&keys::slots(id), usize::MAX)? {
        cx.tx.delete(slot);
    }
    cx.tx.delete(keys::session(id));
    Ok(())
}

/// Frees what the session had open and locked.
fn free(cx: &mut Context<'_, '_>, id: SessionId, reason: &str) {
    cx.live.opens.remove_session(id);
    for (ino, told) in cx.live.locks.remove_session(id) {
        set_lock::tell(cx, ino, told);
    }
    cx.live.sessions.remove(id, reason);
    tracing::info!(session = id.0, reason, "session ended");
}

/// Unnamed inodes of sessions that are over wait for their purge under nobody's name (session 0), unless another
/// session has them open too and will close them.
pub(super) fn adopt_orphans(cx: &mut Context<'_, '_>) -> Result<Progress, Failure> {
    let mut from = SessionId(1);
    loop {
        let first = cx.tx.scan_keys(&keys::orphans_from(from), 1)?;
        let Some(first) = first.first() else { return Ok(Progress::Idle) };
        let (session, _) = keys::orphan_parts(first);
        if cx.live.sessions.contains(session) {
            from = SessionId(session.0 + 1);
            continue;
        }
        let orphans = cx.tx.scan_keys(&keys::orphans(session), PIECE)?;
        for key in orphans {
            let (_, ino) = keys::orphan_parts(&key);
            cx.tx.delete(key);
            let others = cx.live.opens.sessions_of(ino).next().is_some();
            if !others || cx.live.sessions.in_grace(cx.uptime) {
                cx.tx.put(keys::orphan(SessionId(0), ino), &Marker {});
            }
        }
        return Ok(Progress::More);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use dfs_proto::meta::{Heartbeat, OpenSession, Reclaim, reply, request};
    use dfs_proto::{Code, Epoch, Ino, PROTOCOL_VERSION};

    use super::super::Internal;
    use super::super::testing::{Bench, on_every_store};
    use super::*;
    use crate::live::sessions::SessionTable;
    use crate::store::records::{Inode, Session, Slot};

    fn open_session(bench: &mut Bench) -> SessionId {
        let op = OpenSession { client: "c".into(), version: "1".into(), protocol: PROTOCOL_VERSION };
        match bench.run_as(SessionId(0), request::Op::OpenSession(op)).unwrap() {
            reply::Result::SessionOpened(opened) => SessionId(opened.session),
            other => panic!("{other:?}"),
        }
    }

    /// An inode without a name that `session` has open.
    fn put_orphan(bench: &mut Bench, session: SessionId, ino: Ino) {
        let put = |cx: &mut Context<'_, '_>| {
            cx.tx.put(keys::inode(ino), &Inode::default());
            cx.tx.put(keys::orphan(session, ino), &Marker {});
            cx.live.opens.open(session, ino);
            Ok(())
        };
        bench.with(session, put).unwrap();
    }

    fn owners(bench: &mut Bench) -> Vec<(u64, u64)> {
        let keys =
            bench.with(SessionId(0), |cx| Ok(cx.tx.scan_keys(&keys::orphans_from(SessionId(0)), 9999)?));
        keys.unwrap().iter().map(|key| keys::orphan_parts(key)).map(|(s, i)| (s.0, i.0)).collect()
    }

    #[test]
    fn a_silent_session_is_fenced_and_its_orphans_are_nobodys() {
        on_every_store(|bench| {
            let (silent, other) = (open_session(bench), open_session(bench));
            assert_ne!(silent, other);
            put_orphan(bench, silent, Ino(7));
            put_orphan(bench, silent, Ino(8));
            put_orphan(bench, other, Ino(8));
            let put_slot = |cx: &mut Context<'_, '_>| {
                cx.tx.put(keys::slot(silent, 3), &Slot { number: 1, reply: Vec::new() });
                Ok(())
            };
            bench.with(silent, put_slot).unwrap();
            for _ in 0..30 {
                bench.live.sessions.heard(other, bench.uptime);
                bench.finish(Internal::ExpireSessions);
            }
            assert!(bench.live.sessions.check(other, Epoch(1)).is_ok());
            assert_eq!(bench.live.sessions.check(silent, Epoch(1)).unwrap_err().code, Code::SessionExpired);
            assert_eq!(bench.live.opens.count(silent), 0);
            assert!(
                bench.store.scan(b"S", b"U", 9).unwrap().iter().all(|(key, _)| *key == keys::session(other))
            );
            bench.finish(Internal::AdoptOrphans);
            assert_eq!(owners(bench), [(0, 7), (other.0, 8)], "the other session still has 8 open");
        });
    }

    #[test]
    fn in_grace_orphans_wait_for_those_who_may_have_them_open() {
        on_every_store(|bench| {
            let (first, second) = (open_session(bench), open_session(bench));
            put_orphan(bench, first, Ino(7));
            put_orphan(bench, second, Ino(7));
            // The server starts again: nobody has told what is open.
            bench.live = Default::default();
            let record = Session { epoch: 1, ..Session::default() };
            let stored = [(first, record.clone()), (second, record)];
            bench.live.sessions = SessionTable::load(2, stored, bench.uptime + Duration::from_secs(20));
            bench.run_as(first, request::Op::CloseSession(CloseSession {})).unwrap();
            bench.finish(Internal::AdoptOrphans);
            assert_eq!(owners(bench), [(0, 7), (second.0, 7)]);
            let reclaim = Reclaim { open_inos: vec![7, 99], complete: true, ..Reclaim::default() };
            match bench.run_as(second, request::Op::Reclaim(reclaim)).unwrap() {
                reply::Result::Reclaimed(reclaimed) => assert_eq!(reclaimed.stale_inos, [99]),
                other => panic!("{other:?}"),
            }
            assert_eq!(owners(bench), [(second.0, 7)], "taken back");
            assert!(!bench.live.sessions.in_grace(bench.uptime));
            assert_eq!(bench.live.opens.sessions_of(Ino(7)).collect::<Vec<_>>(), [second]);
            bench.run_as(second, request::Op::Heartbeat(Heartbeat {})).unwrap();
        });
    }

    #[test]
    fn another_protocol_is_refused() {
        let op = OpenSession { protocol: PROTOCOL_VERSION + 1, ..OpenSession::default() };
        let refused = Bench::new().run_as(SessionId(0), request::Op::OpenSession(op)).unwrap_err();
        assert_eq!(refused.code, Code::VersionUnknown);
    }
}
