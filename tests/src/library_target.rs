//! The client library as the target of random operations: no kernel, no mount.
//!
//! What the kernel does on the way to a mounted filesystem is done here: resolving paths, and refusing what never
//! reaches a filesystem. Everything runs as root.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dfs_client::fs::{FileSystem, HandleId, NewFile, OpenOptions, Settings};
use dfs_client::session::SessionSettings;
use dfs_proto::meta::{FallocateMode, RenameMode, SetAttr, TimeChange, XattrMode};
use dfs_proto::{Attr, Failure, FileKind, Ino, Time};
use nix::errno::Errno;
use tokio::runtime::Runtime;

use crate::operation::{Answer, Operation, Outcome, RenameHow, Slot, Space, Target, UMASK, symlink_target};
use crate::tree::{Content, Entry, Tree};

/// Entries asked for at once: few, so that listings go over several pages.
const PAGE: u32 = 3;
/// Read and written at once, as the kernel does.
const PIECE: usize = 128 * 1024;
/// The owner of locks that are never taken.
const NOBODY: u64 = 0;

/// A regular file of root's, to be made with just this mode.
pub fn regular_file(mode: u32) -> NewFile {
    NewFile { kind: FileKind::Regular, mode, umask: 0, uid: 0, gid: 0, rdev: 0, target: Default::default() }
}

/// One client of a cluster.
pub struct LibraryTarget {
    runtime: Runtime,
    fs: Option<Arc<FileSystem>>,
    settings: Settings,
    open: HashMap<Slot, HandleId>,
}

impl std::fmt::Debug for LibraryTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LibraryTarget").field("open", &self.open).finish_non_exhaustive()
    }
}

type Done<T> = Result<T, Errno>;

fn errno(failure: Failure) -> Errno {
    // Not what operations answer, and so worth a word in a test's output.
    if matches!(failure.errno(), libc::EIO | libc::EOPNOTSUPP) {
        eprintln!("the library failed: {failure} ({:?})", failure.code);
    }
    Errno::from_raw(failure.errno())
}

impl LibraryTarget {
    /// A client of the cluster whose metadata server answers at `meta`.
    ///
    /// # Panics
    /// When it can't connect.
    pub fn connect(meta: &str) -> Self {
        let session =
            SessionSettings { metas: vec![meta.into()], client: "a test".into(), ..Default::default() };
        Self::with(Settings { session, ..Default::default() })
    }

    /// A client with other settings.
    ///
    /// # Panics
    /// When it can't connect.
    pub fn with(settings: Settings) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("start a runtime");
        let fs = runtime.block_on(FileSystem::connect(settings.clone())).expect("connect to the cluster");
        Self { runtime, fs: Some(fs), settings, open: HashMap::new() }
    }

    /// The filesystem itself.
    ///
    /// # Panics
    /// Never: it is only away within `reconnect`.
    pub fn fs(&self) -> Arc<FileSystem> {
        self.fs.clone().expect("a client is connected")
    }

    /// Runs a future on the client's own runtime.
    pub fn run<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Shuts the client down, as unmounting does, and connects a new one.
    ///
    /// # Panics
    /// When something could not be made durable, or the cluster does not answer.
    pub fn reconnect(&mut self) {
        self.close_all();
        let fs = self.fs.take().expect("a client is connected");
        self.run(fs.shutdown()).expect("everything is durable at the end");
        drop(fs);
        let connecting = FileSystem::connect(self.settings.clone());
        self.fs = Some(self.runtime.block_on(connecting).expect("connect to the cluster again"));
    }

    fn lookup_in(&self, directory: &Attr, name: &OsStr) -> Done<Attr> {
        match directory.kind() {
            // Links lead nowhere in these tests.
            FileKind::Symlink => Err(Errno::ENOENT),
            FileKind::Directory => {
                self.run(self.fs().lookup(Ino(directory.ino), name.as_bytes())).map_err(errno)
            }
            _ => Err(Errno::ENOTDIR),
        }
    }

    fn parent<'p>(&self, path: &'p Path) -> Done<(Attr, &'p OsStr)> {
        let name = path.file_name().expect("operations are on paths below the root");
        let root = self.fs().root();
        let mut directory = self.run(self.fs().getattr(root)).map_err(errno)?;
        for part in path.parent().into_iter().flatten() {
            directory = self.lookup_in(&directory, part)?;
        }
        match directory.kind() {
            FileKind::Directory => Ok((directory, name)),
            FileKind::Symlink => Err(Errno::ENOENT),
            _ => Err(Errno::ENOTDIR),
        }
    }

    fn lookup(&self, path: &Path) -> Done<Attr> {
        let (directory, name) = self.parent(path)?;
        self.lookup_in(&directory, name)
    }

    /// Like open(O_RDWR | O_NOFOLLOW | O_NONBLOCK).
    fn open_at(&self, path: &Path, append: bool) -> Done<(Ino, HandleId)> {
        let attr = self.lookup(path)?;
        match attr.kind() {
            FileKind::Regular => {}
            FileKind::Directory => return Err(Errno::EISDIR),
            FileKind::Symlink => return Err(Errno::ELOOP),
            _ => return Err(Errno::ENXIO),
        }
        let options = OpenOptions { read: true, write: true, append, ..Default::default() };
        let (handle, _) = self.run(self.fs().open(Ino(attr.ino), options)).map_err(errno)?;
        Ok((Ino(attr.ino), handle))
    }

    fn close(&self, handle: HandleId) -> Done<()> {
        let fs = self.fs();
        self.run(async {
            let flushed = fs.flush(handle, NOBODY).await;
            fs.release(handle, None).await;
            flushed
        })
        .map_err(errno)
    }

    fn with_file<T>(
        &self,
        path: &Path,
        append: bool,
        work: impl FnOnce(Ino, HandleId) -> Done<T>,
    ) -> Done<T> {
        let (ino, handle) = self.open_at(path, append)?;
        let result = work(ino, handle);
        let closed = self.close(handle);
        result.and_then(|value| closed.map(|()| value))
    }

    fn slot(&self, slot: Slot) -> Done<HandleId> {
        self.open.get(&slot).copied().ok_or(Errno::EBADF)
    }

    fn write(&self, handle: HandleId, offset: u64, bytes: &[u8]) -> Done<()> {
        let fs = self.fs();
        let mut at = offset;
        for piece in bytes.chunks(PIECE) {
            // As the adapter does: at once where that can be.
            let guard = self.runtime.enter();
            let tried = fs.try_write(handle, at, piece, false);
            drop(guard);
            let written = match tried {
                Some(result) => result,
                None => self.run(fs.write(handle, at, piece, false)),
            };
            at += written.map_err(errno)? as u64;
        }
        Ok(())
    }

    fn read(&self, handle: HandleId, offset: u64, length: usize) -> Done<Vec<u8>> {
        let fs = self.fs();
        let mut bytes = Vec::new();
        while bytes.len() < length {
            let (at, wanted) = (offset + bytes.len() as u64, (length - bytes.len()).min(PIECE));
            let guard = self.runtime.enter();
            let tried = fs.try_read(handle, at, wanted);
            drop(guard);
            let piece = match tried {
                Some(result) => result,
                None => self.run(fs.read(handle, at, wanted)),
            };
            let piece = piece.map_err(errno)?;
            if piece.is_empty() {
                break;
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }

    fn make(&self, path: &Path, kind: FileKind, mode: u32, target: &OsStr) -> Done<()> {
        let (directory, name) = self.parent(path)?;
        let target = target.as_bytes().to_vec().into();
        let file = NewFile { kind, mode, umask: UMASK, uid: 0, gid: 0, rdev: 0, target };
        let fs = self.fs();
        self.run(fs.create(Ino(directory.ino), name.as_bytes(), file)).map(drop).map_err(errno)
    }

    fn create(&self, path: &Path, mode: u32) -> Done<()> {
        let (directory, name) = self.parent(path)?;
        let file = NewFile { umask: UMASK, ..regular_file(mode) };
        let options = OpenOptions { write: true, ..Default::default() };
        let fs = self.fs();
        let made = self.run(fs.create_open(Ino(directory.ino), name.as_bytes(), file, options, true));
        self.close(made.map_err(errno)?.1)
    }

    fn set(&self, set: SetAttr) -> Done<()> {
        self.run(self.fs().setattr(set)).map(drop).map_err(errno)
    }

    fn rename(&self, from: &Path, to: &Path, how: RenameHow) -> Done<()> {
        let (from_directory, from_name) = self.parent(from)?;
        let (to_directory, to_name) = self.parent(to)?;
        self.lookup_in(&from_directory, from_name)?;
        let taken = match self.lookup_in(&to_directory, to_name) {
            Ok(_) => true,
            Err(Errno::ENOENT) => false,
            Err(error) => return Err(error),
        };
        match how {
            RenameHow::NoReplace if taken => return Err(Errno::EEXIST),
            RenameHow::Exchange if !taken => return Err(Errno::ENOENT),
            _ => {}
        }
        if to.starts_with(from) && to != from {
            return Err(Errno::EINVAL);
        }
        if from.starts_with(to) && to != from {
            return Err(if how == RenameHow::Exchange { Errno::EINVAL } else { Errno::ENOTEMPTY });
        }
        let mode = match how {
            RenameHow::Replace => RenameMode::Replace,
            RenameHow::NoReplace => RenameMode::NoReplace,
            RenameHow::Exchange => RenameMode::Exchange,
        };
        let (from_ino, to_ino) = (Ino(from_directory.ino), Ino(to_directory.ino));
        self.run(self.fs().rename(from_ino, from_name.as_bytes(), to_ino, to_name.as_bytes(), mode))
            .map_err(errno)
    }

    fn fallocate(&self, path: &Path, how: Space, offset: u64, length: u64) -> Done<()> {
        let mode = match how {
            Space::Allocate => FallocateMode::Allocate,
            Space::KeepSize => FallocateMode::KeepSize,
            Space::Punch => FallocateMode::PunchHole,
            Space::Zero => FallocateMode::ZeroRange,
        };
        self.with_file(path, false, |_, handle| {
            self.run(self.fs().fallocate(handle, offset, length, mode, false)).map_err(errno)
        })
    }

    fn copy(&self, from: &Path, start: u64, to: &Path, target: u64, length: u64) -> Done<u64> {
        self.with_file(from, false, |source_ino, source| {
            self.with_file(to, false, |target_ino, destination| {
                let size = self.run(self.fs().getattr(source_ino)).map_err(errno)?.size;
                let length = length.min(size.saturating_sub(start));
                if length == 0 {
                    return Ok(0);
                }
                // The kernel's own check.
                if source_ino == target_ino && target + length > start && target < start + length {
                    return Err(Errno::EINVAL);
                }
                self.run(self.fs().copy_range(source, start, destination, target, length, false))
                    .map_err(errno)
            })
        })
    }

    /// The inode whose extended attributes an operation is about. EPERM as in xattr(7).
    fn xattr_owner(&self, path: &Path, name: &str) -> Done<Ino> {
        let attr = self.lookup(path)?;
        let allowed =
            !name.starts_with("user.") || matches!(attr.kind(), FileKind::Regular | FileKind::Directory);
        if allowed { Ok(Ino(attr.ino)) } else { Err(Errno::EPERM) }
    }

    fn change(&mut self, operation: &Operation) -> Done<()> {
        match operation {
            Operation::Create { path, mode } => self.create(path, *mode),
            Operation::Mkdir { path, mode } => self.make(path, FileKind::Directory, *mode, OsStr::new("")),
            Operation::Symlink { path, length } => {
                self.make(path, FileKind::Symlink, 0o777, &symlink_target(*length))
            }
            Operation::Fifo { path, mode } => self.make(path, FileKind::Fifo, *mode, OsStr::new("")),
            Operation::Link { from, to } => {
                let ino = Ino(self.lookup(from)?.ino);
                let (directory, name) = self.parent(to)?;
                let fs = self.fs();
                self.run(fs.link(ino, Ino(directory.ino), name.as_bytes())).map(drop).map_err(errno)
            }
            Operation::Unlink { path } => {
                let (directory, name) = self.parent(path)?;
                self.run(self.fs().unlink(Ino(directory.ino), name.as_bytes())).map_err(errno)
            }
            Operation::Rmdir { path } => {
                let (directory, name) = self.parent(path)?;
                self.run(self.fs().rmdir(Ino(directory.ino), name.as_bytes())).map_err(errno)
            }
            Operation::Rename { from, to, how } => self.rename(from, to, *how),
            Operation::Write { path, offset, data } => {
                self.with_file(path, false, |_, handle| self.write(handle, *offset, &data.bytes()))
            }
            Operation::Append { path, data } => {
                self.with_file(path, true, |_, handle| self.write(handle, 0, &data.bytes()))
            }
            Operation::Truncate { path, size } => self.with_file(path, false, |ino, _| {
                self.set(SetAttr { ino: ino.0, size: Some(*size), ..Default::default() })
            }),
            Operation::Fallocate { path, how, offset, length } => {
                self.fallocate(path, *how, *offset, *length)
            }
            Operation::Fsync { path } => match self.lookup(path)?.kind() {
                FileKind::Directory => Ok(()),
                _ => self.with_file(path, false, |_, handle| {
                    self.run(self.fs().fsync(handle, false)).map_err(errno)
                }),
            },
            Operation::Chmod { path, mode } => {
                let attr = self.lookup(path)?;
                match attr.kind() {
                    FileKind::Symlink => Err(Errno::ENOENT),
                    _ => self.set(SetAttr { ino: attr.ino, mode: Some(*mode), ..Default::default() }),
                }
            }
            Operation::Chown { path, uid, gid } => {
                let ino = self.lookup(path)?.ino;
                self.set(SetAttr { ino, uid: Some(*uid), gid: Some(*gid), ..Default::default() })
            }
            Operation::SetModified { path, seconds, nanos } => {
                let ino = self.lookup(path)?.ino;
                let value = Some(Time { seconds: *seconds, nanos: *nanos });
                self.set(SetAttr { ino, mtime: Some(TimeChange { now: false, value }), ..Default::default() })
            }
            Operation::SetXattr { path, name, value } => {
                let ino = self.xattr_owner(path, name)?;
                let fs = self.fs();
                self.run(fs.setxattr(ino, name.as_bytes(), &value.bytes(), XattrMode::Set, false))
                    .map_err(errno)
            }
            Operation::RemoveXattr { path, name } => {
                let ino = self.xattr_owner(path, name)?;
                self.run(self.fs().removexattr(ino, name.as_bytes())).map_err(errno)
            }
            Operation::Open { slot, path } => {
                let (_, handle) = self.open_at(path, false)?;
                match self.open.insert(*slot, handle) {
                    Some(before) => self.close(before),
                    None => Ok(()),
                }
            }
            Operation::WriteOpen { slot, offset, data } => {
                self.write(self.slot(*slot)?, *offset, &data.bytes())
            }
            Operation::TruncateOpen { slot, size } => {
                let handle = self.slot(*slot)?;
                let ino = self.fs().inode_of(handle).map_err(errno)?;
                self.set(SetAttr { ino: ino.0, size: Some(*size), ..Default::default() })
            }
            Operation::Close { slot } => {
                let handle = self.open.remove(slot).ok_or(Errno::EBADF)?;
                self.close(handle)
            }
            Operation::Read { .. } | Operation::ReadOpen { .. } | Operation::Copy { .. } => {
                unreachable!("answered with more than done")
            }
        }
    }

    fn content(&self, attr: &Attr) -> Done<Content> {
        Ok(match attr.kind() {
            FileKind::Directory => Content::Directory,
            FileKind::Fifo => Content::Fifo,
            FileKind::Symlink => {
                let target = self.run(self.fs().readlink(Ino(attr.ino))).map_err(errno)?;
                Content::Symlink(std::ffi::OsString::from_vec(target.to_vec()))
            }
            FileKind::Regular => {
                let options = OpenOptions { read: true, ..Default::default() };
                let (handle, _) = self.run(self.fs().open(Ino(attr.ino), options)).map_err(errno)?;
                let bytes = self.read(handle, 0, usize::MAX)?;
                self.close(handle)?;
                assert_eq!(bytes.len() as u64, attr.size, "the length and the size of inode {}", attr.ino);
                Content::File(bytes)
            }
            _ => Content::Other("a device or a socket"),
        })
    }

    fn entry(&self, attr: &Attr) -> Done<Entry> {
        let ino = Ino(attr.ino);
        let mut xattrs = BTreeMap::new();
        for name in self.run(self.fs().listxattr(ino)).map_err(errno)? {
            let value = self.run(self.fs().getxattr(ino, &name)).map_err(errno)?;
            let name = String::from_utf8_lossy(&name).into_owned();
            if name.starts_with("user.") || name.starts_with("trusted.") {
                xattrs.insert(name, value.to_vec());
            }
        }
        let modified = attr.mtime.unwrap_or_default();
        Ok(Entry {
            content: self.content(attr)?,
            mode: attr.mode,
            uid: attr.uid,
            gid: attr.gid,
            nlink: attr.nlink.into(),
            xattrs,
            modified: Some((modified.seconds, modified.nanos)),
            same_as: PathBuf::new(),
        })
    }

    fn list(&self, ino: Ino) -> Done<Vec<(PathBuf, Attr)>> {
        let mut found = Vec::new();
        let mut cookie = 0;
        loop {
            let page = self.run(self.fs().readdir(ino, cookie, PAGE, true)).map_err(errno)?;
            for entry in page.entries {
                cookie = entry.cookie;
                let name = std::ffi::OsString::from_vec(entry.name.to_vec());
                found.push((name.into(), entry.attr.expect("attributes were asked for")));
            }
            if page.end {
                return Ok(found);
            }
        }
    }
}

impl Target for LibraryTarget {
    fn apply(&mut self, operation: &Operation) -> Outcome {
        match operation {
            Operation::Read { path, offset, length } => self
                .with_file(path, false, |_, handle| self.read(handle, *offset, *length))
                .map(Answer::Bytes),
            Operation::ReadOpen { slot, offset, length } => {
                self.read(self.slot(*slot)?, *offset, *length).map(Answer::Bytes)
            }
            Operation::Copy { from, from_offset, to, to_offset, length } => {
                self.copy(from, *from_offset, to, *to_offset, *length).map(Answer::Copied)
            }
            _ => self.change(operation).map(|()| Answer::Done),
        }
    }

    fn tree(&mut self) -> Tree {
        let fs = self.fs();
        let root = self.run(fs.getattr(fs.root())).expect("the root's attributes");
        let mut tree = Tree::default();
        let mut inodes = BTreeMap::new();
        let mut queue = vec![(PathBuf::new(), root)];
        while let Some((path, attr)) = queue.pop() {
            if attr.kind() == FileKind::Directory {
                let listed = self.list(Ino(attr.ino)).expect("list a directory");
                queue.extend(listed.into_iter().map(|(name, attr)| (path.join(name), attr)));
            }
            inodes.insert(path.clone(), attr.ino);
            let entry = self.entry(&attr).unwrap_or_else(|error| panic!("read {path:?}: {error}"));
            assert!(tree.0.insert(path.clone(), entry).is_none(), "{path:?} is listed twice");
        }
        tree.link_names(&inodes);
        tree
    }

    fn close_all(&mut self) {
        for (_, handle) in std::mem::take(&mut self.open) {
            self.close(handle).expect("close a handle");
        }
    }
}

impl Drop for LibraryTarget {
    fn drop(&mut self) {
        let Some(fs) = self.fs.take() else { return };
        if !std::thread::panicking()
            && let Err(failure) = self.runtime.block_on(fs.shutdown())
        {
            eprintln!("shutting the client down failed: {failure}");
        }
    }
}
