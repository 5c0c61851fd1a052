//! The inodes that are open here: counted, shown with what is dirty, and told to the server when the last user goes.
//!
//! Guarantees that the server's idea of what is open covers ours: an inode is counted before it is asked for, and a
//! new open waits for a close of the same inode that is on its way. Closes are sent in batches, a moment late, so
//! that one which is opened again soon costs no call.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use dfs_proto::limits::MAX_RECLAIM_ITEMS;
use dfs_proto::meta::{Close, ClosedFile, PlanReply, request};
use dfs_proto::{Attr, Code, Failure, Ino, Timestamp};
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::data::InodeData;
use crate::session::MetaCalls;

/// How long a close may wait for company.
const LINGER: Duration = Duration::from_millis(50);
/// An access time older than this is updated by reading, whatever the file's other times are.
const RELATIVE_ATIME_SECONDS: i64 = 24 * 60 * 60;

/// One inode that is open here.
pub(super) struct OpenInode {
    pub(super) ino: Ino,
    /// Regular files only.
    pub(super) data: Option<Arc<InodeData>>,
    /// The newest attributes from the server, without what is dirty here.
    latest: Mutex<Attr>,
    accessed: Mutex<Option<Timestamp>>,
    /// A lock on it was lost: what was done under it must not take effect.
    lost: AtomicBool,
}

impl OpenInode {
    /// EIO when a lock on the inode was lost while it was open.
    pub(super) fn usable(&self) -> Result<(), Failure> {
        match self.lost.load(Ordering::Acquire) {
            false => Ok(()),
            true => Err(Failure::new(
                Code::InputOutput,
                format!(
                    "a lock on inode {} was lost with the session: close the file and open it again",
                    self.ino
                ),
            )),
        }
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.data.as_ref().is_some_and(|data| data.is_dirty())
    }

    /// Everything written so far, durable and committed.
    pub(super) async fn flush(&self) -> Result<(), Failure> {
        match &self.data {
            Some(data) if data.is_dirty() => data.flush().await,
            _ => Ok(()),
        }
    }

    /// Takes note of attributes from the server and returns how they are shown: never older than what was shown
    /// before, and with what is dirty here.
    pub(super) fn note(&self, attr: Attr, head: Option<PlanReply>) -> Attr {
        let newest = {
            let mut latest = self.latest.lock().expect("no panic under this lock");
            if attr.version >= latest.version {
                if let Some(data) = &self.data {
                    data.refresh(&attr, head);
                }
                *latest = attr;
            }
            latest.clone()
        };
        self.overlay(newest)
    }

    /// Takes note of attributes that `data` learnt by itself.
    pub(super) fn note_committed(&self, attr: &Attr) {
        let mut latest = self.latest.lock().expect("no panic under this lock");
        if attr.version >= latest.version {
            *latest = attr.clone();
        }
    }

    /// The newest attributes known here, as they are shown.
    pub(super) fn shown(&self) -> Attr {
        let latest = self.latest.lock().expect("no panic under this lock").clone();
        self.overlay(latest)
    }

    fn overlay(&self, attr: Attr) -> Attr {
        let attr = match &self.data {
            Some(data) => data.overlay(attr),
            None => attr,
        };
        with_atime(attr, *self.accessed.lock().expect("no panic under this lock"))
    }

    /// The file was read at `now`, and its access time is to say so.
    pub(super) fn accessed(&self, now: Timestamp) {
        *self.accessed.lock().expect("no panic under this lock") = Some(now);
    }

    /// Whether reading at `now` is to change the access time when that is kept relative to the other times.
    pub(super) fn atime_is_due(&self, now: Timestamp) -> bool {
        let latest = self.latest.lock().expect("no panic under this lock");
        let [atime, mtime, ctime] =
            [latest.atime, latest.mtime, latest.ctime].map(|time| time.unwrap_or_default().into());
        drop(latest);
        let atime = self.accessed.lock().expect("no panic under this lock").unwrap_or(atime).max(atime);
        atime <= mtime
            || atime <= ctime
            || now.seconds.saturating_sub(atime.seconds) >= RELATIVE_ATIME_SECONDS
    }
}

fn with_atime(mut attr: Attr, accessed: Option<Timestamp>) -> Attr {
    if let Some(accessed) = accessed
        && accessed > attr.atime.unwrap_or_default().into()
    {
        attr.atime = Some(accessed.into());
    }
    attr
}

#[derive(Default)]
struct Entry {
    /// Handles, and opens under way.
    users: usize,
    open: Option<Arc<OpenInode>>,
    /// A close is on its way to the server.
    closing: bool,
    /// After the last user went: the access time to send with the close.
    accessed: Option<Timestamp>,
}

#[derive(Default)]
struct Table {
    entries: HashMap<Ino, Entry>,
    /// Inodes whose last user went; some may have users again.
    idle: Vec<Ino>,
    /// Entries without users: their close is not answered yet.
    unsettled: usize,
}

/// The table of open inodes.
#[derive(Default)]
pub(super) struct Inodes {
    table: Mutex<Table>,
    /// Some inode lost a lock; spares everyone else the look.
    any_lost: AtomicBool,
    /// Wakes the task that sends closes.
    work: Arc<Notify>,
    /// Wakes who waits for closes to be answered.
    settled: Notify,
}

/// One user of an inode, from before the server is asked to open it until it may be closed.
pub(super) struct Entered {
    inodes: Arc<Inodes>,
    ino: Ino,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.inodes.leave(self.ino);
    }
}

impl Drop for Inodes {
    fn drop(&mut self) {
        self.work.notify_one();
    }
}

impl Inodes {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("no panic under this lock")
    }

    /// Counts a user, once no close of this inode is on its way. True where it had to wait for one.
    pub(super) async fn enter(self: &Arc<Self>, ino: Ino) -> (Entered, bool) {
        let mut waited = false;
        loop {
            let mut settled = std::pin::pin!(self.settled.notified());
            {
                let mut table = self.table();
                let table = &mut *table;
                let known = table.entries.contains_key(&ino);
                let entry = table.entries.entry(ino).or_default();
                if !entry.closing {
                    if known && entry.users == 0 {
                        table.unsettled -= 1;
                    }
                    entry.users += 1;
                    return (Entered { inodes: self.clone(), ino }, waited);
                }
                settled.as_mut().enable();
            }
            waited = true;
            settled.await;
        }
    }

    /// The inode that an open brought, with fresh attributes; `make` opens its data when it is the first.
    pub(super) fn admit(
        &self,
        entered: &Entered,
        attr: Attr,
        head: Option<PlanReply>,
        make: impl FnOnce(&Attr, Option<PlanReply>) -> Option<Arc<InodeData>>,
    ) -> Arc<OpenInode> {
        let mut table = self.table();
        let entry = table.entries.get_mut(&entered.ino).expect("whoever entered is counted");
        if let Some(open) = entry.open.clone() {
            drop(table);
            open.note(attr, head);
            return open;
        }
        let data = make(&attr, head);
        let open = Arc::new(OpenInode {
            ino: entered.ino,
            data,
            latest: Mutex::new(attr),
            accessed: Mutex::new(entry.accessed.take()),
            lost: AtomicBool::new(false),
        });
        entry.open = Some(open.clone());
        open
    }

    fn leave(&self, ino: Ino) {
        let mut table = self.table();
        let table = &mut *table;
        let entry = table.entries.get_mut(&ino).expect("whoever leaves has entered");
        entry.users -= 1;
        if entry.users == 0 {
            if let Some(open) = entry.open.take() {
                entry.accessed = *open.accessed.lock().expect("no panic under this lock");
            }
            table.idle.push(ino);
            table.unsettled += 1;
            self.work.notify_one();
        }
    }

    /// The inode, if it is open here.
    pub(super) fn get(&self, ino: Ino) -> Option<Arc<OpenInode>> {
        self.table().entries.get(&ino).and_then(|entry| entry.open.clone())
    }

    /// How attributes from the server are shown.
    pub(super) fn show(&self, attr: Attr, head: Option<PlanReply>) -> Attr {
        let (open, accessed) = match self.table().entries.get(&Ino(attr.ino)) {
            Some(entry) => (entry.open.clone(), entry.accessed),
            None => return attr,
        };
        match open {
            Some(open) => open.note(attr, head),
            None => with_atime(attr, accessed),
        }
    }

    /// The access time was set by hand: what reading would have made of it is void.
    pub(super) fn forget_access(&self, ino: Ino) {
        if let Some(entry) = self.table().entries.get_mut(&ino) {
            entry.accessed = None;
            if let Some(open) = &entry.open {
                *open.accessed.lock().expect("no panic under this lock") = None;
            }
        }
    }

    /// Whether anything written here is not committed yet.
    pub(super) fn any_dirty(&self) -> bool {
        self.table().entries.values().any(|entry| entry.open.as_ref().is_some_and(|open| open.is_dirty()))
    }

    /// Every inode that is open or being opened.
    pub(super) fn open_inos(&self) -> Vec<Ino> {
        self.table().entries.iter().filter(|(_, entry)| entry.users > 0).map(|(ino, _)| *ino).collect()
    }

    /// A lock on the inode was lost: everything not yet committed is forgotten, and nothing goes on until it is closed.
    pub(super) fn lose(&self, ino: Ino) {
        let Some(open) = self.get(ino) else { return };
        self.any_lost.store(true, Ordering::Release);
        open.lost.store(true, Ordering::Release);
        if let Some(data) = &open.data {
            data.discard_from(0);
        }
    }

    /// EIO when a lock on the inode was lost.
    pub(super) fn usable(&self, ino: Ino) -> Result<(), Failure> {
        match self.any_lost.load(Ordering::Acquire) {
            true => self.get(ino).map_or(Ok(()), |open| open.usable()),
            false => Ok(()),
        }
    }

    /// Starts sending closes; ends with the table.
    pub(super) fn start_closer(self: &Arc<Self>, meta: Arc<dyn MetaCalls>) {
        tokio::spawn(closer(Arc::downgrade(self), self.work.clone(), meta));
    }

    /// Waits until every close is sent and answered.
    pub(super) async fn close_all(&self) {
        loop {
            let mut settled = std::pin::pin!(self.settled.notified());
            settled.as_mut().enable();
            if self.table().unsettled == 0 {
                return;
            }
            settled.await;
        }
    }

    fn start_closing(&self) -> Vec<ClosedFile> {
        let mut table = self.table();
        let mut files = Vec::new();
        while files.len() < MAX_RECLAIM_ITEMS
            && let Some(ino) = table.idle.pop()
        {
            // Opened again, or closed already under an earlier mention.
            let Some(entry) = table.entries.get_mut(&ino).filter(|entry| entry.users == 0 && !entry.closing)
            else {
                continue;
            };
            entry.closing = true;
            files.push(ClosedFile { ino: ino.0, atime: entry.accessed.map(Into::into) });
        }
        files
    }

    fn finish_closing(&self, files: &[ClosedFile]) {
        let mut table = self.table();
        for file in files {
            table.entries.remove(&Ino(file.ino));
        }
        table.unsettled -= files.len();
        drop(table);
        self.settled.notify_waiters();
    }
}

async fn closer(inodes: Weak<Inodes>, work: Arc<Notify>, meta: Arc<dyn MetaCalls>) {
    loop {
        let Some(strong) = inodes.upgrade() else { return };
        let files = strong.start_closing();
        if files.is_empty() {
            drop(strong);
            work.notified().await;
            sleep(LINGER).await;
            continue;
        }
        if let Err(failure) = meta.change(request::Op::Close(Close { files: files.clone() })).await {
            let count = files.len();
            tracing::warn!(
                "{count} closed files stay open at the metadata server until the session ends: {failure}"
            );
        }
        strong.finish_closing(&files);
    }
}
