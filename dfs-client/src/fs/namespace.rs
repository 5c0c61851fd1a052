//! Names: looking up, making, linking, moving and removing them, and listing directories.

use bytes::Bytes;
use dfs_proto::limits::MAX_DIRECTORY_ENTRIES;
use dfs_proto::meta::{
    Create, DirectoryPage, GetAttr, Link, Lookup, ReadDir, ReadLink, Rename, RenameMode, Rmdir, Unlink,
    request,
};
use dfs_proto::{Attr, Failure, FileKind, Ino, Name};

use super::{FileSystem, answers};
use crate::session::MetaCalls;

/// What to make. The default ACL and a set-group-id bit of the directory have their say at the server.
#[derive(Clone, Debug)]
pub struct NewFile {
    /// Any kind.
    pub kind: FileKind,
    /// Before the umask: 07777.
    pub mode: u32,
    /// The caller's.
    pub umask: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Of a device.
    pub rdev: u64,
    /// Of a symbolic link: 1..=4095 bytes.
    pub target: Bytes,
}

impl NewFile {
    /// The request that makes it; neither opened nor exclusive.
    pub(super) fn create(&self, parent: Ino, name: &Name) -> Create {
        Create {
            parent: parent.0,
            name: name.to_bytes(),
            kind: self.kind.into(),
            mode: self.mode & 0o7777,
            umask: self.umask,
            uid: self.uid,
            gid: self.gid,
            rdev: self.rdev,
            target: self.target.clone(),
            ..Create::default()
        }
    }
}

impl FileSystem {
    /// The attributes of the inode that `name` leads to; "." and ".." too, where ".." of the root is the root.
    pub async fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr, Failure> {
        if parent == self.root && name == b".." {
            return self.getattr(parent).await;
        }
        let name = match name {
            b"." | b".." => Bytes::copy_from_slice(name),
            name => Name::parse(name.to_vec())?.to_bytes(),
        };
        let answer = self.session.read(request::Op::Lookup(Lookup { parent: parent.0, name })).await?;
        Ok(self.seen(answers::attr(answer)?))
    }

    /// Attributes, with what is dirty here.
    pub async fn getattr(&self, ino: Ino) -> Result<Attr, Failure> {
        let answer = self.session.read(request::Op::GetAttr(GetAttr { ino: ino.0 })).await?;
        Ok(self.seen(answers::attr(answer)?))
    }

    /// mkdir, mknod, symlink, and create without opening. EEXIST when the name is taken.
    pub async fn create(&self, parent: Ino, name: &[u8], file: NewFile) -> Result<Attr, Failure> {
        self.writable()?;
        let name = Name::parse(name.to_vec())?;
        let create = Create { exclusive: true, ..file.create(parent, &name) };
        let answer = self.session.change(request::Op::Create(create)).await?;
        Ok(self.changed(answers::opened(answer)?.0))
    }

    /// Where a symbolic link leads.
    pub async fn readlink(&self, ino: Ino) -> Result<Bytes, Failure> {
        answers::value(self.session.read(request::Op::ReadLink(ReadLink { ino: ino.0 })).await?)
    }

    /// One more name for an inode.
    pub async fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr, Failure> {
        self.writable()?;
        let name = Name::parse(name.to_vec())?.to_bytes();
        self.flush_inode(ino).await?;
        let op = request::Op::Link(Link { ino: ino.0, parent: parent.0, name });
        Ok(self.changed(answers::attr(self.session.change(op).await?)?))
    }

    /// Removes a name of anything but a directory. Who has the file open keeps it.
    pub async fn unlink(&self, parent: Ino, name: &[u8]) -> Result<(), Failure> {
        self.writable()?;
        let name = Name::parse(name.to_vec())?.to_bytes();
        let op = request::Op::Unlink(Unlink { parent: parent.0, name });
        self.note_change(self.session.change(op).await?)
    }

    /// Removes an empty directory.
    pub async fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<(), Failure> {
        self.writable()?;
        let name = Name::parse(name.to_vec())?.to_bytes();
        let op = request::Op::Rmdir(Rmdir { parent: parent.0, name });
        self.note_change(self.session.change(op).await?)
    }

    /// Moves a name. What is dirty in the file is flushed first, so that after a crash the new name never shows less
    /// than was written before the rename.
    pub async fn rename(
        &self,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        mode: RenameMode,
    ) -> Result<(), Failure> {
        self.writable()?;
        let name = Name::parse(name.to_vec())?.to_bytes();
        let new_name = Name::parse(new_name.to_vec())?.to_bytes();
        if self.mounted.inodes.any_dirty() {
            let lookup = Lookup { parent: parent.0, name: name.clone() };
            let moved = answers::attr(self.session.read(request::Op::Lookup(lookup)).await?)?;
            self.flush_inode(Ino(moved.ino)).await?;
        }
        let op = request::Op::Rename(Rename {
            parent: parent.0,
            name,
            new_parent: new_parent.0,
            new_name,
            mode: mode.into(),
        });
        self.note_change(self.session.change(op).await?)
    }

    /// Entries after `cookie` in the directory's stable order; "." and ".." are the caller's to add (the page names
    /// the parent). At most `max_entries`; the server may return fewer without being at the end.
    pub async fn readdir(
        &self,
        ino: Ino,
        cookie: u64,
        max_entries: u32,
        with_attrs: bool,
    ) -> Result<DirectoryPage, Failure> {
        let max_entries = max_entries.clamp(1, MAX_DIRECTORY_ENTRIES);
        let op = request::Op::ReadDir(ReadDir { ino: ino.0, cookie, max_entries, with_attrs });
        let mut page = answers::directory_page(self.session.read(op).await?)?;
        if ino == self.root {
            page.parent = ino.0;
        }
        for entry in &mut page.entries {
            entry.attr = entry.attr.take().map(|attr| self.seen(attr));
        }
        Ok(page)
    }

    /// Names are durable when the call that made them returns, so there is nothing left to do.
    pub async fn fsyncdir(&self, _ino: Ino) -> Result<(), Failure> {
        Ok(())
    }

    fn note_change(&self, answer: dfs_proto::meta::reply::Result) -> Result<(), Failure> {
        if let Some(attr) = answers::done_or_attr(answer)? {
            self.changed(attr);
        }
        Ok(())
    }

    /// What was written to the inode through this mount, durable and committed; EIO when a lock on it was lost.
    pub(super) async fn flush_inode(&self, ino: Ino) -> Result<(), Failure> {
        match self.mounted.inodes.get(ino) {
            Some(open) => open.usable().and(open.flush().await),
            None => Ok(()),
        }
    }
}
