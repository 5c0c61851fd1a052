//! A reference filesystem in memory: what POSIX and Linux say each operation does, in the fewest words.
//!
//! It never looks at dfs, and is itself checked against the local filesystem. Everything runs as root, symbolic links
//! are never followed (their targets lead nowhere), and times are kept only while they are what somebody set.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::operation::{Answer, Operation, Outcome, RenameHow, Slot, Space, UMASK, symlink_target};
use crate::tree::{Content, Entry, Tree};

/// The root's inode.
const ROOT: u64 = 1;
const SET_UID: u32 = 0o4000;
const SET_GID: u32 = 0o2000;
const GROUP_EXECUTE: u32 = 0o0010;

/// The filesystem.
#[derive(Clone, Debug)]
pub struct Model {
    inodes: BTreeMap<u64, Inode>,
    next: u64,
    open: HashMap<Slot, u64>,
}

#[derive(Clone, Debug)]
struct Inode {
    body: Body,
    mode: u32,
    uid: u32,
    gid: u32,
    links: u64,
    xattrs: BTreeMap<String, Vec<u8>>,
    modified: Option<(i64, u32)>,
}

#[derive(Clone, Debug)]
enum Body {
    File(Vec<u8>),
    Directory(BTreeMap<OsString, u64>),
    Symlink(OsString),
    Fifo,
}

impl Model {
    /// An empty filesystem whose root has the attributes of `tree`'s root.
    ///
    /// # Panics
    /// When `tree` holds anything else.
    pub fn of_empty(tree: &Tree) -> Self {
        assert_eq!(tree.0.len(), 1, "the filesystem is not empty: {:?}", tree.0.keys());
        let root = &tree.0[Path::new("")];
        let root = Inode {
            body: Body::Directory(BTreeMap::new()),
            mode: root.mode,
            uid: root.uid,
            gid: root.gid,
            links: root.nlink,
            xattrs: root.xattrs.clone(),
            modified: None,
        };
        Self { inodes: BTreeMap::from([(ROOT, root)]), next: ROOT + 1, open: HashMap::new() }
    }

    /// Does one operation.
    pub fn apply(&mut self, operation: &Operation) -> Outcome {
        let done = |result: Result<(), Errno>| result.map(|()| Answer::Done);
        match operation {
            Operation::Create { path, mode } => done(self.make(path, Body::File(Vec::new()), mode & !UMASK)),
            Operation::Mkdir { path, mode } => {
                done(self.make(path, Body::Directory(BTreeMap::new()), mode & !UMASK))
            }
            Operation::Symlink { path, length } => {
                done(self.make(path, Body::Symlink(symlink_target(*length)), 0o777))
            }
            Operation::Fifo { path, mode } => done(self.make(path, Body::Fifo, mode & !UMASK)),
            Operation::Link { from, to } => done(self.link(from, to)),
            Operation::Unlink { path } => done(self.unlink(path)),
            Operation::Rmdir { path } => done(self.rmdir(path)),
            Operation::Rename { from, to, how } => done(self.rename(from, to, *how)),
            Operation::Write { path, offset, data } => {
                let bytes = self.file(path)?;
                write(bytes, *offset as usize, &data.bytes());
                done(Ok(()))
            }
            Operation::Append { path, data } => {
                self.file(path)?.extend(data.bytes());
                done(Ok(()))
            }
            Operation::Read { path, offset, length } => {
                let ino = self.regular(path)?;
                Ok(self.read(ino, *offset, *length))
            }
            Operation::Truncate { path, size } => {
                self.file(path)?.resize(*size as usize, 0);
                done(Ok(()))
            }
            Operation::Fallocate { path, how, offset, length } => {
                fallocate(self.file(path)?, *how, *offset as usize, *length as usize);
                done(Ok(()))
            }
            Operation::Copy { from, from_offset, to, to_offset, length } => {
                self.copy(from, *from_offset, to, *to_offset, *length).map(Answer::Copied)
            }
            Operation::Fsync { path } => {
                let ino = self.lookup(path)?;
                let is_directory = matches!(self.inodes[&ino].body, Body::Directory(_));
                done(if is_directory { Ok(()) } else { self.regular(path).map(drop) })
            }
            Operation::Chmod { path, mode } => {
                let ino = self.lookup(path)?;
                let inode = self.inode(ino);
                match inode.body {
                    Body::Symlink(_) => return Err(Errno::ENOENT),
                    _ => inode.mode = *mode,
                }
                done(Ok(()))
            }
            Operation::Chown { path, uid, gid } => {
                let ino = self.lookup(path)?;
                self.inode(ino).chown(*uid, *gid);
                done(Ok(()))
            }
            Operation::SetModified { path, seconds, nanos } => {
                let ino = self.lookup(path)?;
                self.inode(ino).modified = Some((*seconds, *nanos));
                done(Ok(()))
            }
            Operation::SetXattr { path, name, value } => {
                self.xattrs(path, name)?.insert(name.clone(), value.bytes());
                done(Ok(()))
            }
            Operation::RemoveXattr { path, name } => {
                let removed = self.xattrs(path, name)?.remove(name);
                done(removed.map(drop).ok_or(Errno::ENODATA))
            }
            Operation::Open { slot, path } => {
                let ino = self.regular(path)?;
                let before = self.open.insert(*slot, ino);
                before.into_iter().for_each(|before| self.forget_unused(before));
                done(Ok(()))
            }
            Operation::WriteOpen { slot, offset, data } => {
                write(self.open_file(*slot)?, *offset as usize, &data.bytes());
                done(Ok(()))
            }
            Operation::ReadOpen { slot, offset, length } => {
                let ino = *self.open.get(slot).ok_or(Errno::EBADF)?;
                Ok(self.read(ino, *offset, *length))
            }
            Operation::TruncateOpen { slot, size } => {
                self.open_file(*slot)?.resize(*size as usize, 0);
                done(Ok(()))
            }
            Operation::Close { slot } => {
                let ino = self.open.remove(slot).ok_or(Errno::EBADF)?;
                self.forget_unused(ino);
                done(Ok(()))
            }
        }
    }

    /// Closes all handles.
    pub fn close_all(&mut self) {
        let open: Vec<u64> = self.open.drain().map(|(_, ino)| ino).collect();
        open.into_iter().for_each(|ino| self.forget_unused(ino));
    }

    /// Everything that has a name.
    pub fn tree(&self) -> Tree {
        let mut tree = Tree::default();
        let mut inodes = BTreeMap::new();
        let mut queue = vec![(PathBuf::new(), ROOT)];
        while let Some((path, ino)) = queue.pop() {
            let inode = &self.inodes[&ino];
            let content = match &inode.body {
                Body::File(bytes) => Content::File(bytes.clone()),
                Body::Symlink(target) => Content::Symlink(target.clone()),
                Body::Fifo => Content::Fifo,
                Body::Directory(entries) => {
                    queue.extend(entries.iter().map(|(name, child)| (path.join(name), *child)));
                    Content::Directory
                }
            };
            let entry = Entry {
                content,
                mode: inode.mode,
                uid: inode.uid,
                gid: inode.gid,
                nlink: inode.links,
                xattrs: inode.xattrs.clone(),
                modified: inode.modified,
                same_as: PathBuf::new(),
            };
            inodes.insert(path.clone(), ino);
            tree.0.insert(path, entry);
        }
        tree.link_names(&inodes);
        tree
    }

    /// The size of the file that a slot holds open.
    pub fn open_size(&self, slot: Slot) -> Option<u64> {
        match &self.inodes[self.open.get(&slot)?].body {
            Body::File(bytes) => Some(bytes.len() as u64),
            _ => None,
        }
    }

    fn inode(&mut self, ino: u64) -> &mut Inode {
        self.inodes.get_mut(&ino).expect("a name or handle leads to an inode")
    }

    /// The entry `name` of a directory. ENOTDIR, ENAMETOOLONG; ENOENT through a symbolic link, since it dangles.
    fn entry(&self, directory: u64, name: &OsStr) -> Result<Option<u64>, Errno> {
        match &self.inodes[&directory].body {
            Body::Directory(_) if name.len() > 255 => Err(Errno::ENAMETOOLONG),
            Body::Directory(entries) => Ok(entries.get(name).copied()),
            Body::Symlink(_) => Err(Errno::ENOENT),
            _ => Err(Errno::ENOTDIR),
        }
    }

    /// The directory that holds the last name of a path, and that name.
    fn parent<'p>(&self, path: &'p Path) -> Result<(u64, &'p OsStr), Errno> {
        let name = path.file_name().expect("operations are on paths below the root");
        let mut directory = ROOT;
        for part in path.parent().into_iter().flatten() {
            directory = self.entry(directory, part)?.ok_or(Errno::ENOENT)?;
        }
        match self.inodes[&directory].body {
            Body::Directory(_) => Ok((directory, name)),
            Body::Symlink(_) => Err(Errno::ENOENT),
            _ => Err(Errno::ENOTDIR),
        }
    }

    fn lookup(&self, path: &Path) -> Result<u64, Errno> {
        let (directory, name) = self.parent(path)?;
        self.entry(directory, name)?.ok_or(Errno::ENOENT)
    }

    /// A regular file, as open(O_NOFOLLOW | O_NONBLOCK) for writing finds it.
    fn regular(&self, path: &Path) -> Result<u64, Errno> {
        let ino = self.lookup(path)?;
        match self.inodes[&ino].body {
            Body::File(_) => Ok(ino),
            Body::Directory(_) => Err(Errno::EISDIR),
            Body::Symlink(_) => Err(Errno::ELOOP),
            Body::Fifo => Err(Errno::ENXIO),
        }
    }

    /// The bytes of a file that are about to change.
    fn file(&mut self, path: &Path) -> Result<&mut Vec<u8>, Errno> {
        let ino = self.regular(path)?;
        Ok(self.bytes(ino))
    }

    fn open_file(&mut self, slot: Slot) -> Result<&mut Vec<u8>, Errno> {
        let ino = *self.open.get(&slot).ok_or(Errno::EBADF)?;
        Ok(self.bytes(ino))
    }

    fn bytes(&mut self, ino: u64) -> &mut Vec<u8> {
        let inode = self.inode(ino);
        inode.modified = None;
        match &mut inode.body {
            Body::File(bytes) => bytes,
            other => unreachable!("only regular files are opened, not {other:?}"),
        }
    }

    fn read(&self, ino: u64, offset: u64, length: usize) -> Answer {
        let Body::File(bytes) = &self.inodes[&ino].body else { unreachable!("only regular files are read") };
        let start = bytes.len().min(offset as usize);
        Answer::Bytes(bytes[start..bytes.len().min(start + length)].to_vec())
    }

    /// The entries of a directory that are about to change.
    fn entries(&mut self, directory: u64) -> &mut BTreeMap<OsString, u64> {
        let inode = self.inode(directory);
        inode.modified = None;
        match &mut inode.body {
            Body::Directory(entries) => entries,
            other => unreachable!("names are only changed in directories, not in {other:?}"),
        }
    }

    fn is_directory(&self, ino: u64) -> bool {
        matches!(self.inodes[&ino].body, Body::Directory(_))
    }

    fn make(&mut self, path: &Path, body: Body, mode: u32) -> Result<(), Errno> {
        let (directory, name) = self.parent(path)?;
        if self.entry(directory, name)?.is_some() {
            return Err(Errno::EEXIST);
        }
        let is_directory = matches!(body, Body::Directory(_));
        let parent = &self.inodes[&directory];
        let inherits = parent.mode & SET_GID != 0;
        let inode = Inode {
            body,
            mode: if inherits && is_directory { mode | SET_GID } else { mode },
            uid: 0,
            gid: if inherits { parent.gid } else { 0 },
            links: if is_directory { 2 } else { 1 },
            xattrs: BTreeMap::new(),
            modified: None,
        };
        let ino = self.next;
        self.next += 1;
        self.inodes.insert(ino, inode);
        self.entries(directory).insert(name.to_owned(), ino);
        self.inode(directory).links += u64::from(is_directory);
        Ok(())
    }

    fn link(&mut self, from: &Path, to: &Path) -> Result<(), Errno> {
        let ino = self.lookup(from)?;
        let (directory, name) = self.parent(to)?;
        if self.entry(directory, name)?.is_some() {
            return Err(Errno::EEXIST);
        }
        if self.is_directory(ino) {
            return Err(Errno::EPERM);
        }
        self.inode(ino).links += 1;
        self.entries(directory).insert(name.to_owned(), ino);
        Ok(())
    }

    fn unlink(&mut self, path: &Path) -> Result<(), Errno> {
        let ino = self.lookup(path)?;
        if self.is_directory(ino) {
            return Err(Errno::EISDIR);
        }
        self.remove_entry(path)
    }

    fn rmdir(&mut self, path: &Path) -> Result<(), Errno> {
        let ino = self.lookup(path)?;
        match &self.inodes[&ino].body {
            Body::Directory(entries) if entries.is_empty() => self.remove_entry(path),
            Body::Directory(_) => Err(Errno::ENOTEMPTY),
            _ => Err(Errno::ENOTDIR),
        }
    }

    /// Takes a name away, whatever it names.
    fn remove_entry(&mut self, path: &Path) -> Result<(), Errno> {
        let (directory, name) = self.parent(path)?;
        let ino = self.entries(directory).remove(name).ok_or(Errno::ENOENT)?;
        if self.is_directory(ino) {
            self.inode(directory).links -= 1;
            self.inode(ino).links = 0;
        } else {
            self.inode(ino).links -= 1;
        }
        self.forget_unused(ino);
        Ok(())
    }

    /// Forgets an inode that nobody can reach any more; it may be forgotten already.
    fn forget_unused(&mut self, ino: u64) {
        let is_open = self.open.values().any(|&open| open == ino);
        if self.inodes.get(&ino).is_some_and(|inode| inode.links == 0) && !is_open {
            self.inodes.remove(&ino);
        }
    }

    fn rename(&mut self, from: &Path, to: &Path, how: RenameHow) -> Result<(), Errno> {
        let (from_directory, from_name) = self.parent(from)?;
        let (to_directory, to_name) = self.parent(to)?;
        let moved = self.entry(from_directory, from_name)?.ok_or(Errno::ENOENT)?;
        let target = self.entry(to_directory, to_name)?;
        match (how, target) {
            (RenameHow::NoReplace, Some(_)) => return Err(Errno::EEXIST),
            (RenameHow::Exchange, None) => return Err(Errno::ENOENT),
            _ => {}
        }
        if to.starts_with(from) && to != from {
            return Err(Errno::EINVAL);
        }
        if from.starts_with(to) && to != from {
            return Err(if how == RenameHow::Exchange { Errno::EINVAL } else { Errno::ENOTEMPTY });
        }
        if target == Some(moved) {
            return Ok(());
        }
        if let Some(target) = target
            && how == RenameHow::Exchange
        {
            self.entries(from_directory).insert(from_name.to_owned(), target);
            self.entries(to_directory).insert(to_name.to_owned(), moved);
            let (gone, come) = (u64::from(self.is_directory(moved)), u64::from(self.is_directory(target)));
            self.inode(from_directory).links += come;
            self.inode(from_directory).links -= gone;
            self.inode(to_directory).links += gone;
            self.inode(to_directory).links -= come;
            return Ok(());
        }
        if let Some(target) = target {
            match (self.is_directory(moved), &self.inodes[&target].body) {
                (true, Body::Directory(entries)) if !entries.is_empty() => return Err(Errno::ENOTEMPTY),
                (true, Body::Directory(_)) => {}
                (true, _) => return Err(Errno::ENOTDIR),
                (false, Body::Directory(_)) => return Err(Errno::EISDIR),
                (false, _) => {}
            }
            self.remove_entry(to)?;
        }
        self.entries(from_directory).remove(from_name);
        self.entries(to_directory).insert(to_name.to_owned(), moved);
        if self.is_directory(moved) {
            self.inode(from_directory).links -= 1;
            self.inode(to_directory).links += 1;
        }
        Ok(())
    }

    fn copy(&mut self, from: &Path, start: u64, to: &Path, target: u64, length: u64) -> Result<u64, Errno> {
        let source = self.regular(from)?;
        let destination = self.regular(to)?;
        let Answer::Bytes(bytes) = self.read(source, start, length as usize) else { return Ok(0) };
        let length = bytes.len() as u64;
        if source == destination && target + length > start && target < start + length {
            return Err(Errno::EINVAL);
        }
        if !bytes.is_empty() {
            write(self.bytes(destination), target as usize, &bytes);
        }
        Ok(length)
    }

    /// The extended attributes of a path. EPERM: those of the user name space are for files and directories.
    fn xattrs(&mut self, path: &Path, name: &str) -> Result<&mut BTreeMap<String, Vec<u8>>, Errno> {
        let ino = self.lookup(path)?;
        let inode = self.inode(ino);
        let allowed = !name.starts_with("user.") || matches!(inode.body, Body::File(_) | Body::Directory(_));
        if allowed { Ok(&mut inode.xattrs) } else { Err(Errno::EPERM) }
    }
}

impl Inode {
    /// Even root's chown(2) takes the set-id bits of what is not a directory.
    fn chown(&mut self, uid: u32, gid: u32) {
        (self.uid, self.gid) = (uid, gid);
        if !matches!(self.body, Body::Directory(_)) {
            self.mode &= !SET_UID;
            if self.mode & GROUP_EXECUTE != 0 {
                self.mode &= !SET_GID;
            }
        }
    }
}

fn write(bytes: &mut Vec<u8>, offset: usize, data: &[u8]) {
    let end = offset + data.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[offset..end].copy_from_slice(data);
}

fn fallocate(bytes: &mut Vec<u8>, how: Space, offset: usize, length: usize) {
    let end = offset + length;
    if matches!(how, Space::Allocate | Space::Zero) && bytes.len() < end {
        bytes.resize(end, 0);
    }
    if matches!(how, Space::Punch | Space::Zero) {
        let (start, end) = (offset.min(bytes.len()), end.min(bytes.len()));
        bytes[start..end].fill(0);
    }
}
