//! Reading, writing and closing files.
//!
//! What is at hand, and what there is room for, is done on the event loop. A shared mapping may be written after its file
//! was closed; no close follows that would flush it, so from the first close on such writes are durable when the kernel
//! is answered. Thus nothing is dirty when a filesystem has been unmounted.

use std::collections::HashSet;
use std::sync::Mutex;

use dfs_client::fs::HandleId;
use fuser::{ReplyData, ReplyEmpty, ReplyWrite, Request};

use super::hand::{Kind, refuse};
use super::reply::Adapter;

/// Open files of which a descriptor was closed already: more may follow, or none.
#[derive(Debug, Default)]
pub(super) struct ClosedOnce(Mutex<HashSet<u64>>);

impl ClosedOnce {
    fn insert(&self, handle: HandleId) {
        self.0.lock().expect("no panic under this lock").insert(handle.0);
    }

    fn remove(&self, handle: HandleId) {
        self.0.lock().expect("no panic under this lock").remove(&handle.0);
    }

    fn contains(&self, handle: HandleId) -> bool {
        self.0.lock().expect("no panic under this lock").contains(&handle.0)
    }
}

impl Adapter {
    pub(super) fn read_file(
        &self,
        request: &Request,
        handle: HandleId,
        offset: u64,
        size: usize,
        reply: ReplyData,
    ) {
        match self.fs.try_read(handle, offset, size) {
            Some(Ok(bytes)) => return reply.data(&bytes),
            Some(Err(failure)) => return refuse(reply, "read", &failure),
            None => {}
        }
        let fs = self.fs.clone();
        let operation = async move { fs.read(handle, offset, size).await };
        self.hand.on(Kind::read("read"), request, reply, operation, |reply, bytes| reply.data(&bytes));
    }

    pub(super) fn write_file(
        &self,
        request: &Request,
        handle: HandleId,
        offset: u64,
        data: &[u8],
        kill_set_id: bool,
        reply: ReplyWrite,
    ) {
        self.hand.changes.note();
        let at_once = self.fs.try_write(handle, offset, data, kill_set_id);
        self.hand.changes.note();
        match at_once {
            Some(Ok(written)) => return reply.written(written as u32),
            Some(Err(failure)) => return refuse(reply, "write", &failure),
            None => {}
        }
        let room = self.hand.room_for(data.len());
        let (fs, data) = (self.fs.clone(), data.to_vec());
        let operation = async move {
            let _room = room;
            fs.write(handle, offset, &data, kill_set_id).await
        };
        self.hand.on(Kind::change("write"), request, reply, operation, |reply, written| {
            reply.written(written as u32);
        });
    }

    /// Takes pages of a shared mapping.
    pub(super) fn write_mapped(
        &self,
        request: &Request,
        handle: HandleId,
        offset: u64,
        data: &[u8],
        reply: ReplyWrite,
    ) {
        let durable = self.closed.contains(handle);
        if !durable {
            self.hand.changes.note();
            let at_once = self.fs.try_write_back(handle, offset, data);
            self.hand.changes.note();
            match at_once {
                Some(Ok(written)) => return reply.written(written as u32),
                Some(Err(failure)) => return refuse(reply, "write back", &failure),
                None => {}
            }
        }
        let room = self.hand.room_for(data.len());
        let (fs, data) = (self.fs.clone(), data.to_vec());
        let operation = async move {
            let _room = room;
            let written = fs.write_back(handle, offset, &data).await?;
            if durable {
                fs.fsync(handle, true).await?;
            }
            Ok(written)
        };
        self.hand.on(Kind::change("write back"), request, reply, operation, |reply, written| {
            reply.written(written as u32);
        });
    }

    /// One descriptor of an open file is closed.
    pub(super) fn close_file(&self, request: &Request, handle: HandleId, lock_owner: u64, reply: ReplyEmpty) {
        self.closed.insert(handle);
        let fs = self.fs.clone();
        let operation = async move { fs.flush(handle, lock_owner).await };
        self.done(Kind::close("close"), request, reply, operation);
    }

    /// The last one is.
    pub(super) fn release_file(
        &self,
        request: &Request,
        handle: HandleId,
        flock_owner: Option<u64>,
        reply: ReplyEmpty,
    ) {
        self.closed.remove(handle);
        let fs = self.fs.clone();
        let operation = async move {
            fs.release(handle, flock_owner).await;
            Ok(())
        };
        self.done(Kind::close("release"), request, reply, operation);
    }
}
