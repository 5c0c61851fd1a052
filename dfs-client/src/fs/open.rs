//! Opening, creating-and-opening, and releasing regular files.
//!
//! An open goes on in a task of its own, so that one whose caller gave up is closed again and never left open at the
//! server.

use std::sync::Arc;

use dfs_proto::meta::{Create, GetAttr, Open, PlanReply, request};
use dfs_proto::{Attr, Code, Failure, FileKind, Ino, Name};

use super::handles::{Handle, HandleId};
use super::inodes::{Entered, OpenInode};
use super::namespace::NewFile;
use super::{FileSystem, answers};
use crate::session::{MetaCalls, task_lost};

/// What open(2) was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// O_RDONLY or O_RDWR
    pub read: bool,
    /// O_WRONLY or O_RDWR
    pub write: bool,
    /// O_APPEND
    pub append: bool,
    /// O_TRUNC
    pub truncate: bool,
    /// With `truncate`: the caller may not keep set-id bits.
    pub kill_set_id: bool,
    /// O_DIRECT: the kernel's cache is passed by.
    pub direct: bool,
    /// O_SYNC or O_DSYNC
    pub sync: bool,
}

impl FileSystem {
    /// Opens a regular file. With the handle comes whether the kernel may keep the pages it has of the file.
    pub async fn open(self: &Arc<Self>, ino: Ino, options: OpenOptions) -> Result<(HandleId, bool), Failure> {
        if options.write || options.truncate {
            self.writable()?;
        }
        let this = self.clone();
        let opened = tokio::spawn(async move { this.open_settled(ino, options).await });
        let (inode, entered, attr) = opened.await.map_err(|lost| task_lost(&lost))??;
        let keep_cache = self.mounted.versions.open(&attr);
        if let Some(data) = inode.data.as_ref().filter(|_| !options.write && !keep_cache) {
            data.fetch_if_small();
        }
        Ok((self.handles.add(Handle::new(inode, options, entered)), keep_cache))
    }

    async fn open_settled(
        &self,
        ino: Ino,
        options: OpenOptions,
    ) -> Result<(Arc<OpenInode>, Entered, Attr), Failure> {
        let (entered, _) = self.mounted.inodes.enter(ino).await;
        if options.truncate && !self.keys.names().is_empty() {
            // The server knows the names of our keys, not whether one was rotated: what can't be written is not thrown away.
            let op = request::Op::GetAttr(GetAttr { ino: ino.0 });
            self.check_key(&answers::attr(self.session.read(op).await?)?).await?;
        }
        if options.truncate
            && let Some(open) = self.mounted.inodes.get(ino)
            && let Some(data) = &open.data
        {
            open.usable()?;
            data.discard_from(0);
            // What is being committed must not arrive after the truncation.
            open.flush().await?;
        }
        let keys = self.keys.names().to_vec();
        let op = Open { ino: ino.0, truncate: options.truncate, kill_set_id: options.kill_set_id, keys };
        let op = request::Op::Open(op);
        let answer = match options.truncate {
            true => self.session.change(op).await?,
            false => self.session.read(op).await?,
        };
        let (attr, head) = answers::opened(answer)?;
        if options.truncate {
            self.mounted.versions.changed(&attr);
        }
        let inode = self.admit(&entered, attr.clone(), head);
        inode.usable()?;
        self.check_key(&attr).await?;
        Ok((inode, entered, attr))
    }

    /// ENOKEY now rather than at the first read.
    async fn check_key(&self, attr: &Attr) -> Result<(), Failure> {
        match (attr.kind(), attr.data_key) {
            (FileKind::Regular, id) if id != 0 => self.keys.data_key(id).await.map(drop),
            _ => Ok(()),
        }
    }

    /// Creates a regular file and opens it; a file that is there is opened as it is, unless `exclusive`.
    pub async fn create_open(
        self: &Arc<Self>,
        parent: Ino,
        name: &[u8],
        file: NewFile,
        options: OpenOptions,
        exclusive: bool,
    ) -> Result<(Attr, HandleId, bool), Failure> {
        self.writable()?;
        let name = Name::parse(name.to_vec())?;
        if file.kind != FileKind::Regular {
            return Err(Failure::new(Code::Invalid, "only regular files are created and opened in one call"));
        }
        let keys = self.keys.names().to_vec();
        let create = Create { open: true, exclusive, keys, ..file.create(parent, &name) };
        let this = self.clone();
        let created = tokio::spawn(async move { this.create_settled(create).await });
        let (inode, entered, attr) = created.await.map_err(|lost| task_lost(&lost))??;
        if options.truncate && attr.size > 0 {
            // It was there: now that it is open, truncating is an open of its own.
            let (handle, keep_cache) = self.open(Ino(attr.ino), options).await?;
            return Ok((inode.shown(), handle, keep_cache));
        }
        let keep_cache = self.mounted.versions.open(&attr);
        let shown = inode.shown();
        Ok((shown, self.handles.add(Handle::new(inode, options, entered)), keep_cache))
    }

    async fn create_settled(&self, create: Create) -> Result<(Arc<OpenInode>, Entered, Attr), Failure> {
        let mut generation = self.session.generation();
        let (mut attr, mut head) = answers::opened(self.session.change(request::Op::Create(create)).await?)?;
        let (entered, mut waited) = self.mounted.inodes.enter(Ino(attr.ino)).await;
        // Not counted while it was asked for, unlike an open: a close of the same inode may have overtaken it, or a
        // reclaim left it out. Then it is opened again.
        while waited || generation != self.session.generation() {
            generation = self.session.generation();
            waited = false;
            let op = Open { ino: attr.ino, keys: self.keys.names().to_vec(), ..Default::default() };
            (attr, head) = answers::opened(self.session.read(request::Op::Open(op)).await?)?;
        }
        let inode = self.admit(&entered, attr.clone(), head);
        self.check_key(&attr).await?;
        Ok((inode, entered, attr))
    }

    fn admit(&self, entered: &Entered, attr: Attr, head: Option<PlanReply>) -> Arc<OpenInode> {
        self.mounted.inodes.admit(entered, attr, head, |attr, head| {
            (attr.kind() == FileKind::Regular).then(|| self.plane.open(attr, head))
        })
    }

    /// The inode that a handle is open on.
    pub fn inode_of(&self, handle: HandleId) -> Result<Ino, Failure> {
        Ok(self.handles.get(handle)?.inode.ino)
    }

    /// close(2) of one descriptor: what was written is durable and committed, errors of write-back are told, and the
    /// owner's POSIX locks on the file go. Goes on when the caller gives up, so that a killed process leaves no lock.
    pub async fn flush(self: &Arc<Self>, handle: HandleId, lock_owner: u64) -> Result<(), Failure> {
        let handle = self.handles.get(handle)?;
        if !handle.inode.is_dirty() && !self.holds_posix(handle.inode.ino, lock_owner) {
            return handle.inode.usable().and(handle.background_error());
        }
        let this = self.clone();
        let closing = tokio::spawn(async move {
            let flushed = handle.inode.usable().and(handle.flush().await);
            let unlocked = this.unlock_posix(handle.inode.ino, lock_owner).await;
            flushed.and(unlocked)
        });
        closing.await.map_err(|lost| task_lost(&lost))?
    }

    /// The last descriptor of an open file is gone. With the owner of its flock(2) lock, that lock goes too. What is
    /// still dirty is flushed; nobody is there to be told of an error, so it is logged.
    pub async fn release(&self, handle: HandleId, flock_owner: Option<u64>) {
        let Some(handle) = self.handles.remove(handle) else { return };
        let ino = handle.inode.ino;
        if let Err(failure) = handle.inode.flush().await {
            tracing::error!("writing inode {ino} back after its last close failed: {failure}");
        }
        if let Some(owner) = flock_owner
            && let Err(failure) = self.unlock_flock(ino, owner).await
        {
            tracing::warn!("the lock on inode {ino} stays until the session ends: {failure}");
        }
    }
}
