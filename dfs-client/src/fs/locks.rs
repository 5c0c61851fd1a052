//! fcntl(2) and flock(2) locks, as the metadata server grants them.
//!
//! Acquiring a lock revalidates the inode, so that who holds it sees what the last holder wrote; releasing one flushes
//! first. What is held is remembered, to reclaim it after a restart of the server. A wait is given up by dropping its
//! future: a lock that is granted after that is given back.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use dfs_proto::meta::{GetLock, HeldLock, LockKind, LockRange, LockSpace, SetLock, request};
use dfs_proto::{Attr, Code, Failure, Ino};
use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

use super::handles::HandleId;
use super::observer::Mounted;
use super::ranges::HeldRanges;
use super::{FileSystem, answers};
use crate::session::{MetaCalls, Session, task_lost};

/// A waiter asks again after so long, in case the server's word that the lock is free was lost.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// The locks of one mount.
#[derive(Default)]
pub(super) struct Locks {
    held: Mutex<HashMap<Ino, HeldRanges>>,
    waiting: Mutex<HashMap<Ino, Arc<Notify>>>,
}

impl Locks {
    fn ranges(&self) -> MutexGuard<'_, HashMap<Ino, HeldRanges>> {
        self.held.lock().expect("no panic under this lock")
    }

    fn apply(&self, ino: Ino, lock: LockRange) {
        let mut held = self.ranges();
        let ranges = held.entry(ino).or_default();
        ranges.apply(lock);
        if ranges.all().is_empty() {
            held.remove(&ino);
        }
    }

    /// What the lock's owner holds in its range.
    fn within(&self, ino: Ino, lock: &LockRange) -> Vec<LockRange> {
        self.ranges().get(&ino).map_or_else(Vec::new, |ranges| ranges.within(lock))
    }

    /// Everything held, as the server wants to hear it.
    pub(super) fn held(&self) -> Vec<HeldLock> {
        let held = self.ranges();
        let locks = held.iter().flat_map(|(ino, ranges)| ranges.all().iter().map(|lock| (ino.0, *lock)));
        locks.map(|(ino, lock)| HeldLock { ino, lock: Some(lock) }).collect()
    }

    /// The locks on an inode are lost; true if there were any.
    pub(super) fn forget(&self, ino: Ino) -> bool {
        self.ranges().remove(&ino).is_some()
    }

    /// All locks are lost; returns on which inodes.
    pub(super) fn forget_all(&self) -> Vec<Ino> {
        std::mem::take(&mut *self.ranges()).into_keys().collect()
    }

    /// Wakes those that wait for a lock on the inode, or for any.
    pub(super) fn wake(&self, ino: Option<Ino>) {
        let waiting = self.waiting.lock().expect("no panic under this lock");
        match ino {
            Some(ino) => waiting.get(&ino).into_iter().for_each(|waiters| waiters.notify_waiters()),
            None => waiting.values().for_each(|waiters| waiters.notify_waiters()),
        }
    }

    fn waiter(&self, ino: Ino) -> Waiter<'_> {
        let mut waiting = self.waiting.lock().expect("no panic under this lock");
        Waiter { locks: self, ino, woken: waiting.entry(ino).or_default().clone() }
    }
}

/// Somebody who waits for a lock on an inode.
struct Waiter<'l> {
    locks: &'l Locks,
    ino: Ino,
    woken: Arc<Notify>,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut waiting = self.locks.waiting.lock().expect("no panic under this lock");
        // The table's and this one: nobody else waits.
        if Arc::strong_count(&self.woken) == 2 {
            waiting.remove(&self.ino);
        }
    }
}

impl FileSystem {
    /// A lock that stands in the way of `lock`, or `None`.
    pub async fn get_lock(&self, ino: Ino, lock: LockRange) -> Result<Option<LockRange>, Failure> {
        let op = request::Op::GetLock(GetLock { ino: ino.0, lock: Some(lock) });
        Ok(answers::lock_state(self.session.read(op).await?)?.conflict)
    }

    /// Sets or gives back a lock. Where it conflicts: waits with `wait`, else EAGAIN.
    pub async fn set_lock(
        self: &Arc<Self>,
        handle: HandleId,
        lock: LockRange,
        wait: bool,
    ) -> Result<(), Failure> {
        let handle = self.handles.get(handle)?;
        let ino = handle.inode.ino;
        if lock.kind() == LockKind::Unlock {
            // Goes on when the caller gives up: nobody else would give the lock back.
            let this = self.clone();
            let unlocking = tokio::spawn(async move { this.unlock(ino, lock).await });
            return unlocking.await.map_err(|lost| task_lost(&lost))?;
        }
        handle.inode.usable()?;
        let waiter = self.mounted.locks.waiter(ino);
        let attr = loop {
            let mut woken = std::pin::pin!(waiter.woken.notified());
            // Counts from before asking, so that no word is missed.
            woken.as_mut().enable();
            match self.ask(ino, lock, wait).await {
                Ok(attr) => break attr,
                Err(failure) if failure.code == Code::Locked && wait => {
                    let _ = timeout(ASK_AGAIN, woken).await;
                    handle.inode.usable()?;
                }
                Err(failure) => return Err(failure),
            }
        };
        drop(waiter);
        if let Some(attr) = attr {
            self.mounted.revalidate(attr).await;
        }
        Ok(())
    }

    /// Whether an owner has POSIX locks on an inode.
    pub(super) fn holds_posix(&self, ino: Ino, owner: u64) -> bool {
        !self.mounted.locks.within(ino, &everything(LockSpace::Posix, owner)).is_empty()
    }

    /// Gives back every POSIX lock of an owner on an inode.
    pub(super) async fn unlock_posix(&self, ino: Ino, owner: u64) -> Result<(), Failure> {
        self.unlock(ino, everything(LockSpace::Posix, owner)).await
    }

    /// Gives back the flock(2) lock of an owner on an inode.
    pub(super) async fn unlock_flock(&self, ino: Ino, owner: u64) -> Result<(), Failure> {
        self.unlock(ino, everything(LockSpace::Flock, owner)).await
    }

    /// What is not held costs no call. The lock is given back also where what was written under it could not be
    /// flushed; that failure is returned.
    async fn unlock(&self, ino: Ino, lock: LockRange) -> Result<(), Failure> {
        if self.mounted.locks.within(ino, &lock).is_empty() {
            return Ok(());
        }
        let flushed = self.flush_inode(ino).await;
        let unlocked = self.ask(ino, lock, false).await;
        flushed.and(unlocked.map(drop))
    }

    /// Asks the server once, in a task of its own: what it grants after the caller gave up is given back. With a lock
    /// come fresh attributes.
    async fn ask(&self, ino: Ino, lock: LockRange, wait: bool) -> Result<Option<Attr>, Failure> {
        let (session, mounted) = (self.session.clone(), self.mounted.clone());
        let (answer, answered) = oneshot::channel();
        let task = tokio::spawn(async move {
            let before = mounted.locks.within(ino, &lock);
            let result = set(&session, &mounted, ino, lock, wait).await;
            let granted = result.is_ok() && lock.kind() != LockKind::Unlock;
            if answer.send(result).is_err() && granted {
                give_back(&session, &mounted, ino, lock, before).await;
            }
        });
        match answered.await {
            Ok(result) => result,
            Err(_) => Err(task.await.err().map_or_else(
                || Failure::new(Code::InputOutput, "asking for a lock ended without an answer"),
                |lost| task_lost(&lost),
            )),
        }
    }
}

/// Asks, and notes what is granted. A repeat of the same lock by the same owner changes nothing, so it needs no slot,
/// and no write to the server's store. Where the server counted what is held meanwhile, the count may have missed it:
/// then it is asked again, which is the same lock of the same owner.
async fn set(
    session: &Session,
    mounted: &Mounted,
    ino: Ino,
    lock: LockRange,
    wait: bool,
) -> Result<Option<Attr>, Failure> {
    loop {
        let generation = session.generation();
        let op = request::Op::SetLock(SetLock { ino: ino.0, lock: Some(lock), wait });
        let attr = answers::done_or_attr(session.read(op).await?)?;
        mounted.locks.apply(ino, lock);
        if generation == session.generation() {
            return Ok(attr);
        }
    }
}

/// Puts the owner's locks back to what they were before one that nobody waits for any more.
async fn give_back(session: &Session, mounted: &Mounted, ino: Ino, lock: LockRange, before: Vec<LockRange>) {
    let unlock = LockRange { kind: LockKind::Unlock.into(), ..lock };
    for lock in std::iter::once(unlock).chain(before) {
        if let Err(failure) = set(session, mounted, ino, lock, false).await {
            tracing::warn!("giving back an interrupted lock on inode {ino} failed: {failure}");
        }
    }
}

fn everything(space: LockSpace, owner: u64) -> LockRange {
    LockRange {
        space: space.into(),
        kind: LockKind::Unlock.into(),
        owner,
        start: 0,
        end: i64::MAX as u64,
        pid: 0,
    }
}
