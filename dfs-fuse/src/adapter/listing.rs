//! Listing directories, with and without attributes.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex};

use dfs_proto::{Code, Failure, FileKind, Ino};
use fuser::{Errno, ReplyDirectory, ReplyDirectoryPlus, Request};

use super::convert::{self, TRUST};
use super::directory::{Item, PAGE_ENTRIES};
use super::hand::{Kind, Reply, refuse};
use super::reply::{Adapter, GENERATION};

/// A reply that is filled while its request is worked on.
struct Filling<R>(Arc<Mutex<Option<R>>>);

impl<R> Filling<R> {
    fn new(reply: R) -> Self {
        Self(Arc::new(Mutex::new(Some(reply))))
    }

    fn share(&self) -> Self {
        Self(self.0.clone())
    }

    /// Whether the reply was full. One that was answered meanwhile takes nothing more.
    fn add(&self, fill: impl FnOnce(&mut R) -> bool) -> bool {
        self.0.lock().expect("no panic under this lock").as_mut().is_none_or(fill)
    }

    fn take(self) -> Option<R> {
        self.0.lock().expect("no panic under this lock").take()
    }
}

impl<R: Reply> Reply for Filling<R> {
    fn error(self, errno: Errno) {
        if let Some(reply) = self.take() {
            reply.error(errno);
        }
    }
}

impl Adapter {
    pub(super) fn list(&self, request: &Request, handle: u64, offset: u64, reply: ReplyDirectory) {
        let directory = match self.directories.get(handle) {
            Ok(directory) => directory,
            Err(failure) => return refuse(reply, "readdir", &failure),
        };
        let reply = Filling::new(reply);
        let filled = reply.share();
        let (fs, told, changes) = (self.fs.clone(), self.told.clone(), self.hand.changes.clone());
        let operation = async move {
            let ino = directory.ino;
            let fetch = |cookie| fs.readdir(ino, cookie, PAGE_ENTRIES, false);
            let add = |item: Item<'_>| {
                let (name, ino, kind, cookie) = match item {
                    Item::Special { name, ino, cookie } => {
                        (name.as_bytes(), ino, FileKind::Directory, cookie)
                    }
                    Item::Entry { entry, .. } => {
                        (&entry.name[..], Ino(entry.ino), entry.kind(), entry.cookie)
                    }
                };
                let (node, kind) = (told.nodes.node_of(ino), convert::known_file_type(ino, kind)?);
                Ok(filled.add(|reply| reply.add(node, cookie, kind, OsStr::from_bytes(name))))
            };
            directory.list(offset, false, &changes, &told, fetch, add).await
        };
        self.hand.on(Kind::read("readdir"), request, reply, operation, |reply, ()| {
            if let Some(reply) = reply.take() {
                reply.ok();
            }
        });
    }

    pub(super) fn list_with_attributes(
        &self,
        request: &Request,
        handle: u64,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let directory = match self.directories.get(handle) {
            Ok(directory) => directory,
            Err(failure) => return refuse(reply, "readdirplus", &failure),
        };
        let reply = Filling::new(reply);
        let filled = reply.share();
        let (fs, told, changes) = (self.fs.clone(), self.told.clone(), self.hand.changes.clone());
        let operation = async move {
            let ino = directory.ino;
            let fetch = |cookie| fs.readdir(ino, cookie, PAGE_ENTRIES, true);
            let add = |item: Item<'_>| {
                let (name, attr, cookie, trust) = match item {
                    Item::Special { name, ino, cookie } => {
                        (name.as_bytes(), told.nodes.bare_directory(ino), cookie, TRUST)
                    }
                    Item::Entry { entry, asked } => {
                        let attr = entry.attr.as_ref().ok_or_else(|| {
                            Failure::new(Code::InputOutput, "a directory page came without attributes")
                        })?;
                        (&entry.name[..], told.tell(asked, attr)?, entry.cookie, asked.trust())
                    }
                };
                let name = OsStr::from_bytes(name);
                Ok(filled.add(|reply| reply.add(attr.ino, cookie, name, &trust, &attr, GENERATION)))
            };
            directory.list(offset, true, &changes, &told, fetch, add).await
        };
        self.hand.on(Kind::read("readdirplus"), request, reply, operation, |reply, ()| {
            if let Some(reply) = reply.take() {
                reply.ok();
            }
        });
    }
}
