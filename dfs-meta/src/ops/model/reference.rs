//! The reference: a filesystem as POSIX describes it, as plain maps, with none of the server's data structures. What an
//! operation answers is the inode whose attributes come with the answer, or an error's code.

use std::collections::{BTreeMap, BTreeSet};

use dfs_proto::meta::{Create, RenameMode};
use dfs_proto::{Attr, Code, FileKind, Time};

/// An operation's outcome.
pub(super) type Outcome = Result<Option<u64>, Code>;

/// A file of any kind.
#[derive(Clone, Debug, Default)]
pub(super) struct Node {
    pub(super) kind: FileKind,
    mode: u32,
    uid: u32,
    gid: u32,
    rdev: u64,
    pub(super) target: Vec<u8>,
    size: u64,
    /// The bytes that were written.
    written: BTreeSet<u64>,
    /// A directory's names.
    pub(super) entries: BTreeMap<String, u64>,
    /// Names of the file itself.
    names: u32,
    pub(super) xattrs: BTreeMap<String, Vec<u8>>,
    open_in: BTreeSet<u64>,
    times: [Time; 3],
    version: u64,
    class: String,
}

const ACCESSED: usize = 0;
const MODIFIED: usize = 1;
const CHANGED: usize = 2;

/// The whole filesystem.
pub(super) struct Reference {
    pub(super) nodes: BTreeMap<u64, Node>,
    pub(super) last_ino: u64,
    pub(super) now: Time,
}

impl Reference {
    /// With a root directory made at `now`.
    pub(super) fn new(now: Time) -> Self {
        let root = Node {
            kind: FileKind::Directory,
            mode: 0o755,
            names: 1,
            times: [now; 3],
            version: 1,
            class: "replicated:3".into(),
            ..Node::default()
        };
        Self { nodes: BTreeMap::from([(1, root)]), last_ino: 1, now }
    }

    /// As stat(2) shows it.
    pub(super) fn attr(&self, ino: u64) -> Attr {
        let node = &self.nodes[&ino];
        let is_directory = |ino: &&u64| self.nodes[ino].kind == FileKind::Directory;
        let subdirectories = node.entries.values().filter(is_directory).count() as u32;
        Attr {
            data_key: 0,
            ino,
            kind: node.kind.into(),
            mode: node.mode,
            uid: node.uid,
            gid: node.gid,
            nlink: match (node.kind, node.names) {
                (FileKind::Directory, 0) => 0,
                (FileKind::Directory, _) => 2 + subdirectories,
                (_, names) => names,
            },
            rdev: node.rdev,
            size: node.size,
            allocated_bytes: node.written.len() as u64,
            atime: Some(node.times[ACCESSED]),
            mtime: Some(node.times[MODIFIED]),
            ctime: Some(node.times[CHANGED]),
            version: node.version,
            class: node.class.clone(),
            no_xattrs: node.xattrs.is_empty(),
        }
    }

    pub(super) fn used_bytes(&self) -> u64 {
        self.nodes.values().map(|node| node.written.len() as u64).sum()
    }

    fn node(&self, ino: u64) -> Result<&Node, Code> {
        self.nodes.get(&ino).ok_or(Code::Stale)
    }

    fn directory(&self, ino: u64) -> Result<&Node, Code> {
        let node = self.node(ino)?;
        if node.kind == FileKind::Directory { Ok(node) } else { Err(Code::NotADirectory) }
    }

    fn living_directory(&self, ino: u64) -> Result<&Node, Code> {
        let node = self.directory(ino)?;
        if node.names > 0 { Ok(node) } else { Err(Code::NotFound) }
    }

    fn entry(&self, parent: u64, name: &str) -> Result<u64, Code> {
        self.directory(parent)?.entries.get(name).copied().ok_or(Code::NotFound)
    }

    /// Something other than the contents changed.
    fn changed(&mut self, ino: u64) {
        let now = self.now;
        let node = self.nodes.get_mut(&ino).expect("it was looked up");
        node.times[CHANGED] = now;
        node.version += 1;
    }

    fn contents_changed(&mut self, ino: u64) {
        self.changed(ino);
        let now = self.now;
        self.nodes.get_mut(&ino).expect("it was looked up").times[MODIFIED] = now;
    }

    fn get(&mut self, ino: u64) -> &mut Node {
        self.nodes.get_mut(&ino).expect("it was looked up")
    }

    fn forget_if_unused(&mut self, ino: u64) {
        let node = &self.nodes[&ino];
        if node.names == 0 && node.open_in.is_empty() {
            self.nodes.remove(&ino);
        }
    }

    fn drop_name(&mut self, ino: u64) {
        self.get(ino).names -= 1;
        self.changed(ino);
        self.forget_if_unused(ino);
    }

    pub(super) fn create(&mut self, session: u64, create: &Create, name: &str) -> Outcome {
        let parent = self.living_directory(create.parent)?.clone();
        let kind = create.kind();
        if let Some(&ino) = parent.entries.get(name) {
            let found = self.nodes[&ino].kind;
            if create.exclusive || kind != FileKind::Regular {
                return Err(Code::Exists);
            }
            return match found {
                FileKind::Regular => {
                    if create.open {
                        self.get(ino).open_in.insert(session);
                    }
                    Ok(Some(ino))
                }
                FileKind::Directory => Err(Code::IsADirectory),
                _ => Err(Code::Stale),
            };
        }
        self.last_ino += 1;
        let ino = self.last_ino;
        let set_group_id = parent.mode & 0o2000 != 0;
        let mut mode = create.mode & !create.umask;
        if kind == FileKind::Symlink {
            mode = 0o777;
        }
        if set_group_id && kind == FileKind::Directory {
            mode |= 0o2000;
        }
        let node = Node {
            kind,
            mode,
            uid: create.uid,
            gid: if set_group_id { parent.gid } else { create.gid },
            rdev: create.rdev,
            target: create.target.to_vec(),
            size: create.target.len() as u64,
            names: 1,
            open_in: if create.open { BTreeSet::from([session]) } else { BTreeSet::new() },
            times: [self.now; 3],
            version: 1,
            class: parent.class,
            ..Node::default()
        };
        self.nodes.insert(ino, node);
        self.get(create.parent).entries.insert(name.into(), ino);
        self.contents_changed(create.parent);
        Ok(Some(ino))
    }

    pub(super) fn link(&mut self, ino: u64, parent: u64, name: &str) -> Outcome {
        let (kind, names) = (self.node(ino)?.kind, self.node(ino)?.names);
        if self.living_directory(parent)?.entries.contains_key(name) {
            return Err(Code::Exists);
        }
        if kind == FileKind::Directory {
            return Err(Code::NotPermitted);
        }
        if names == 0 {
            return Err(Code::NotFound);
        }
        self.get(ino).names += 1;
        self.changed(ino);
        self.get(parent).entries.insert(name.into(), ino);
        self.contents_changed(parent);
        Ok(Some(ino))
    }

    pub(super) fn unlink(&mut self, parent: u64, name: &str) -> Outcome {
        let ino = self.entry(parent, name)?;
        if self.nodes[&ino].kind == FileKind::Directory {
            return Err(Code::IsADirectory);
        }
        self.get(parent).entries.remove(name);
        self.contents_changed(parent);
        self.drop_name(ino);
        Ok(None)
    }

    pub(super) fn rmdir(&mut self, parent: u64, name: &str) -> Outcome {
        let ino = self.entry(parent, name)?;
        if self.nodes[&ino].kind != FileKind::Directory {
            return Err(Code::NotADirectory);
        }
        if !self.nodes[&ino].entries.is_empty() {
            return Err(Code::NotEmpty);
        }
        self.get(parent).entries.remove(name);
        self.contents_changed(parent);
        self.drop_name(ino);
        Ok(None)
    }

    /// Whether `ino` is `below` or one of the directories above it, found from the top down.
    fn contains(&self, ino: u64, below: u64) -> bool {
        ino == below || self.nodes[&ino].entries.values().any(|&child| self.contains(child, below))
    }

    pub(super) fn rename(&mut self, from: (u64, &str), to: (u64, &str), mode: RenameMode) -> Outcome {
        self.directory(from.0)?;
        let target = self.living_directory(to.0)?.entries.get(to.1).copied();
        let source = self.entry(from.0, from.1)?;
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(Code::Exists),
            (RenameMode::Exchange, None) => return Err(Code::NotFound),
            _ => {}
        }
        if self.contains(source, to.0) && self.nodes[&source].kind == FileKind::Directory {
            return Err(Code::Invalid);
        }
        if let (RenameMode::Exchange, Some(target)) = (mode, target)
            && self.nodes[&target].kind == FileKind::Directory
            && self.contains(target, from.0)
        {
            return Err(Code::Invalid);
        }
        if target == Some(source) {
            return Ok(None);
        }
        if let (Some(target), RenameMode::Replace) = (target, mode) {
            let is_directory = |ino: u64| self.nodes[&ino].kind == FileKind::Directory;
            match (is_directory(source), is_directory(target)) {
                (true, false) => return Err(Code::NotADirectory),
                (false, true) => return Err(Code::IsADirectory),
                (true, true) if !self.nodes[&target].entries.is_empty() => return Err(Code::NotEmpty),
                _ => {}
            }
        }
        self.get(from.0).entries.remove(from.1);
        self.get(to.0).entries.insert(to.1.into(), source);
        self.changed(source);
        match (target, mode) {
            (Some(target), RenameMode::Exchange) => {
                self.get(from.0).entries.insert(from.1.into(), target);
                self.changed(target);
            }
            (Some(target), _) => self.drop_name(target),
            (None, _) => {}
        }
        self.contents_changed(from.0);
        if from.0 != to.0 {
            self.contents_changed(to.0);
        }
        Ok(None)
    }

    fn kill_set_id(&mut self, ino: u64) {
        let node = self.get(ino);
        node.mode &= !0o4000;
        if node.mode & 0o010 != 0 {
            node.mode &= !0o2000;
        }
    }

    pub(super) fn chmod(&mut self, ino: u64, mode: u32) -> Outcome {
        if self.node(ino)?.kind == FileKind::Symlink {
            return Err(Code::NotSupported);
        }
        self.get(ino).mode = mode;
        self.changed(ino);
        Ok(Some(ino))
    }

    pub(super) fn chown(&mut self, ino: u64, uid: u32, gid: u32) -> Outcome {
        if self.node(ino)?.kind != FileKind::Directory {
            self.kill_set_id(ino);
        }
        (self.get(ino).uid, self.get(ino).gid) = (uid, gid);
        self.changed(ino);
        Ok(Some(ino))
    }

    pub(super) fn utimens(&mut self, ino: u64, atime: Time, mtime: Time) -> Outcome {
        self.node(ino)?;
        self.get(ino).times[ACCESSED] = atime;
        self.get(ino).times[MODIFIED] = mtime;
        self.changed(ino);
        Ok(Some(ino))
    }

    fn set_size(&mut self, ino: u64, size: u64) -> Result<(), Code> {
        match self.node(ino)?.kind {
            FileKind::Regular => {}
            FileKind::Directory => return Err(Code::IsADirectory),
            _ => return Err(Code::Invalid),
        }
        let node = self.get(ino);
        node.size = size;
        node.written.retain(|&at| at < size);
        Ok(())
    }

    pub(super) fn truncate(&mut self, ino: u64, size: u64) -> Outcome {
        let before = self.node(ino)?.size;
        self.set_size(ino, size)?;
        if before != size {
            self.contents_changed(ino);
        }
        Ok(Some(ino))
    }

    pub(super) fn open(&mut self, session: u64, ino: u64, truncate: bool) -> Outcome {
        let node = self.node(ino)?;
        if node.names == 0 && !node.open_in.contains(&session) {
            return Err(Code::Stale);
        }
        if truncate {
            self.set_size(ino, 0)?;
            self.contents_changed(ino);
        }
        self.get(ino).open_in.insert(session);
        Ok(Some(ino))
    }

    pub(super) fn close(&mut self, session: u64, ino: u64) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.open_in.remove(&session);
            self.forget_if_unused(ino);
        }
    }

    /// What a session has open.
    pub(super) fn open_in(&self, session: u64) -> Vec<u64> {
        let open = self.nodes.iter().filter(|(_, node)| node.open_in.contains(&session));
        open.map(|(&ino, _)| ino).collect()
    }

    /// Bytes at these places, each of `length`.
    pub(super) fn write(&mut self, ino: u64, places: &[u64], length: u64) {
        let node = self.get(ino);
        for &place in places {
            node.written.extend(place..place + length);
            node.size = node.size.max(place + length);
        }
        self.contents_changed(ino);
    }

    pub(super) fn set_xattr(&mut self, ino: u64, name: &str, value: &[u8]) -> Outcome {
        let kind = self.node(ino)?.kind;
        if name.starts_with("user.") && !matches!(kind, FileKind::Regular | FileKind::Directory) {
            return Err(Code::NotPermitted);
        }
        self.get(ino).xattrs.insert(name.into(), value.into());
        self.changed(ino);
        Ok(Some(ino))
    }

    pub(super) fn remove_xattr(&mut self, ino: u64, name: &str) -> Outcome {
        let kind = self.node(ino)?.kind;
        if name.starts_with("user.") && !matches!(kind, FileKind::Regular | FileKind::Directory) {
            return Err(Code::NotPermitted);
        }
        self.get(ino).xattrs.remove(name).ok_or(Code::NoData)?;
        self.changed(ino);
        Ok(Some(ino))
    }

    pub(super) fn set_class(&mut self, ino: u64, class: &str) -> Outcome {
        if self.node(ino)?.kind != FileKind::Directory {
            return Err(Code::NotSupported);
        }
        self.get(ino).class = class.into();
        self.changed(ino);
        Ok(Some(ino))
    }
}
