//! After a restart of the server a session brings back what it had open and locked. Repeating it changes nothing, so
//! it needs no number.

use dfs_proto::meta::{HeldLock, Reclaim, Reclaimed};
use dfs_proto::{Code, Failure, Ino, limits};

use super::{Context, orphan, set_lock};
use crate::live::locks::Lock;
use crate::store::keys;
use crate::store::records::Inode;

/// Tells which inodes are gone and which locks somebody else holds by now.
pub(super) fn run(cx: &mut Context<'_, '_>, request: &Reclaim) -> Result<Reclaimed, Failure> {
    let most = limits::MAX_RECLAIM_ITEMS;
    if request.open_inos.len() > most || request.locks.len() > most {
        return Err(Failure::new(Code::Invalid, format!("a reclaim names at most {most} inodes and locks")));
    }
    let mut open = Vec::new();
    let mut stale_inos = Vec::new();
    for &ino in &request.open_inos {
        let ino = Ino(ino);
        match cx.tx.get::<Inode>(&keys::inode(ino))? {
            Some(inode) => open.push((ino, inode.nlink == 0)),
            None => stale_inos.push(ino.0),
        }
    }
    for &(ino, unnamed) in &open {
        if unnamed {
            // Whatever its last name took along while nobody knew who had it open stays until this session closes it.
            orphan::adopt(cx, ino);
        }
    }
    for (ino, _) in open {
        cx.live.opens.open(cx.session, ino);
    }
    let lost_locks = reclaim_locks(cx, &request.locks);
    if request.complete {
        cx.live.sessions.reclaimed(cx.session);
    }
    Ok(Reclaimed { stale_inos, lost_locks })
}

/// Takes a session's locks again. Returns those that somebody else holds by now, and all of a session that has no
/// right to be served before others while they reclaim.
fn reclaim_locks(cx: &mut Context<'_, '_>, locks: &[HeldLock]) -> Vec<HeldLock> {
    let sessions = &cx.live.sessions;
    if sessions.in_grace(cx.uptime) && !sessions.may_reclaim(cx.session, cx.uptime) {
        return locks.to_vec();
    }
    let mut lost = Vec::new();
    for held in locks {
        let ino = Ino(held.ino);
        let lock = Lock::parse(cx.session, held.lock.as_ref());
        match lock.and_then(|lock| cx.live.locks.set(ino, &lock)) {
            Ok(told) => set_lock::tell(cx, ino, told),
            Err(_) => lost.push(*held),
        }
    }
    lost
}
