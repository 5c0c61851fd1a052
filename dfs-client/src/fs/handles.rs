//! Open files as the caller knows them: a number for each open, until it is released.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use dfs_proto::{Code, Failure};

use super::inodes::{Entered, OpenInode};
use super::open::OpenOptions;

/// One open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HandleId(pub u64);

pub(super) struct Handle {
    pub(super) inode: Arc<OpenInode>,
    pub(super) options: OpenOptions,
    /// Errors of write-back in the background that this handle was told of.
    seen_errors: Mutex<u64>,
    /// Counts as a user of the inode until every call on the handle has returned.
    _entered: Entered,
}

impl Handle {
    pub(super) fn new(inode: Arc<OpenInode>, options: OpenOptions, entered: Entered) -> Self {
        // What happened before this open is for those who had the file open then.
        let seen = inode.data.as_ref().map_or(0, |data| data.errors_seen_by_now());
        Self { inode, options, seen_errors: Mutex::new(seen), _entered: entered }
    }

    /// Flushes, and tells of errors in the background once.
    pub(super) async fn flush(&self) -> Result<(), Failure> {
        let flushed = self.inode.flush().await;
        flushed.and(self.background_error())
    }

    /// An error of write-back that this handle was not told of yet.
    pub(super) fn background_error(&self) -> Result<(), Failure> {
        let mut seen = self.seen_errors.lock().expect("no panic under this lock");
        match self.inode.data.as_ref().and_then(|data| data.errors_since(&mut seen)) {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }
}

/// All open files of a mount.
#[derive(Default)]
pub(super) struct Handles {
    table: RwLock<HashMap<HandleId, Arc<Handle>>>,
    last: AtomicU64,
}

impl Handles {
    pub(super) fn add(&self, handle: Handle) -> HandleId {
        let id = HandleId(self.last.fetch_add(1, Ordering::Relaxed) + 1);
        self.table.write().expect("no panic under this lock").insert(id, Arc::new(handle));
        id
    }

    pub(super) fn get(&self, id: HandleId) -> Result<Arc<Handle>, Failure> {
        let found = self.table.read().expect("no panic under this lock").get(&id).cloned();
        found.ok_or_else(|| Failure::new(Code::Invalid, format!("there is no open file {}", id.0)))
    }

    pub(super) fn remove(&self, id: HandleId) -> Option<Arc<Handle>> {
        self.table.write().expect("no panic under this lock").remove(&id)
    }

    pub(super) fn clear(&self) {
        let all = std::mem::take(&mut *self.table.write().expect("no panic under this lock"));
        // Outside the lock: this may close inodes.
        drop(all);
    }
}
