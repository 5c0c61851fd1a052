//! Inodes without a name. One that somebody has open lives on until its last close, under a record for each session
//! that has it open (`O session ino`); one that nobody has open is destroyed, at once when that is little work, else in
//! bounded pieces by the purge (`O 0 ino`).
//!
//! After a restart it is not known who has what open until the grace period is over, so in it nothing is destroyed: the
//! purge looks again afterwards, and leaves alone what a session has brought back.

use dfs_proto::{Failure, FileKind, Ino, SessionId};

use super::{Context, Progress, counters, data_keys, extents, inode, xattrs};
use crate::store::keys;
use crate::store::records::{Inode, Marker};

/// Extents removed in one operation when an inode is destroyed.
const PIECE: usize = 4096;
/// Inodes looked at in one operation of the purge.
const PURGE_INODES: usize = 256;
/// Nobody: the inode waits for its purge.
const NOBODY: SessionId = SessionId(0);

/// Counts one name less and counts it as a change. The entry is removed by the caller. Whatever else the caller has
/// changed in the inode is saved with it.
pub(super) fn drop_link(cx: &mut Context<'_, '_>, ino: Ino, mut inode: Inode) -> Result<(), Failure> {
    inode::changed(&mut inode, cx.now);
    inode.nlink = match inode.kind() {
        FileKind::Directory => 0,
        _ => inode.nlink.saturating_sub(1),
    };
    if inode.nlink > 0 {
        inode::save(cx, ino, &inode);
        return Ok(());
    }
    let open_in: Vec<SessionId> = cx.live.opens.sessions_of(ino).collect();
    for &session in &open_in {
        cx.tx.put(keys::orphan(session, ino), &Marker {});
    }
    if open_in.is_empty() {
        return abandon(cx, ino, inode);
    }
    if cx.live.sessions.in_grace(cx.uptime) {
        // Other sessions that have it open may not have come back yet.
        cx.tx.put(keys::orphan(NOBODY, ino), &Marker {});
    }
    inode::save(cx, ino, &inode);
    Ok(())
}

/// The session that asks has this inode without a name open after all.
pub(super) fn adopt(cx: &mut Context<'_, '_>, ino: Ino) {
    cx.tx.put(keys::orphan(cx.session, ino), &Marker {});
    cx.tx.delete(keys::orphan(NOBODY, ino));
}

/// A session's last handle on an inode without a name is closed.
pub(super) fn release(
    cx: &mut Context<'_, '_>,
    session: SessionId,
    ino: Ino,
    inode: Inode,
) -> Result<(), Failure> {
    cx.tx.delete(keys::orphan(session, ino));
    let open_elsewhere = cx.live.opens.sessions_of(ino).any(|other| other != session);
    match open_elsewhere && !cx.live.sessions.in_grace(cx.uptime) {
        true => Ok(()),
        false => abandon(cx, ino, inode),
    }
}

/// Nobody is known to have the inode open: destroys it, or leaves it to the purge.
fn abandon(cx: &mut Context<'_, '_>, ino: Ino, mut inode: Inode) -> Result<(), Failure> {
    if cx.live.sessions.in_grace(cx.uptime) || !destroy(cx, ino, &mut inode, PIECE)? {
        inode::save(cx, ino, &inode);
        cx.tx.put(keys::orphan(NOBODY, ino), &Marker {});
    }
    Ok(())
}

/// Removes up to `limit` of the inode's extents, and the inode when none is left. False: there is more to remove, and
/// the caller saves the inode.
fn destroy(cx: &mut Context<'_, '_>, ino: Ino, inode: &mut Inode, limit: usize) -> Result<bool, Failure> {
    if inode.allocated_bytes > 0 && !extents::remove_range(cx, ino, inode, 0, u64::MAX, limit)? {
        return Ok(false);
    }
    xattrs::remove_all(cx, ino, inode)?;
    cx.tx.delete(keys::inode(ino));
    data_keys::release(cx, inode.data_key)?;
    counters::subtract(cx, counters::FILES, 1)?;
    Ok(true)
}

/// One bounded piece of destroying what nobody has open any more.
pub(super) fn purge(cx: &mut Context<'_, '_>) -> Result<Progress, Failure> {
    if cx.live.sessions.in_grace(cx.uptime) {
        return Ok(Progress::Idle);
    }
    let waiting = cx.tx.scan_keys(&keys::orphans(NOBODY), PURGE_INODES)?;
    let mut more = waiting.len() == PURGE_INODES;
    let mut budget = PIECE;
    for key in waiting {
        if budget == 0 {
            more = true;
            break;
        }
        let (_, ino) = keys::orphan_parts(&key);
        // One that a session has brought back is closed under a record of its own.
        if let Some(mut inode) = cx.tx.get::<Inode>(&keys::inode(ino))?
            && inode.nlink == 0
            && cx.live.opens.sessions_of(ino).next().is_none()
        {
            let extents = cx.tx.scan_keys(&keys::extents(ino, 0, u64::MAX), budget)?.len();
            if !destroy(cx, ino, &mut inode, budget)? {
                inode::save(cx, ino, &inode);
                return Ok(Progress::More);
            }
            budget -= extents;
        }
        cx.tx.delete(key);
    }
    Ok(if more { Progress::More } else { Progress::Idle })
}

#[cfg(test)]
mod tests;
