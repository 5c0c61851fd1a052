//! Walks a whole store and says what does not fit together. It changes nothing; it is for tests, and for a server that
//! is not running.
//!
//! What must hold: every entry, its back-pointer and the inode that both name fit; every inode with names is reached
//! from the root, and its link count is the number of its names; an inode without a name is on somebody's list; extents
//! do not overlap, and fit their chunks' back-pointers, lengths and live bytes; chunks fit what nodes should hold and
//! remove, and the garbage queue; the counters count what is there.
//!
//! It keeps a few numbers of every inode and chunk in memory.

mod chunks;
mod data_keys;

use std::collections::{BTreeMap, BTreeSet};

use dfs_proto::{ChunkId, FileKind, Ino, Name, SessionId};

use super::counters;
use crate::machine::transaction::Transaction;
use crate::store::StoreError;
use crate::store::keys::{self, Key, KeyRange};
use crate::store::records::{Chunk, ChunkState, Dentry, Inode, Marker, Record, StoredExtent, XattrValue};

/// Pairs read at once.
const PAGE: usize = 1024;
/// Problems told; one broken record often makes many.
const MAX_PROBLEMS: usize = 100;

/// Says what is wrong, one sentence each; nothing when all is well.
pub fn check(tx: &mut Transaction<'_>) -> Result<Vec<String>, StoreError> {
    let mut walk = Walk::default();
    each(tx, keys::inodes(), |key, inode: Inode| walk.inode(keys::inode_number(key), &inode))?;
    each(tx, keys::all_dentries(), |key, dentry: Dentry| walk.dentry(key, dentry))?;
    each(tx, keys::all_back_pointers(), |key, _: Marker| walk.back_pointer(key))?;
    each(tx, keys::orphans_from(SessionId(0)), |key, _: Marker| walk.orphan(key))?;
    each(tx, keys::all_xattrs(), |key, _: XattrValue| walk.xattr(key))?;
    each(tx, keys::all_extents(), |key, extent: StoredExtent| walk.extent(key, extent))?;
    each(tx, keys::all_chunk_users(), |key, _: Marker| walk.chunk_user(key))?;
    let all_chunks = keys::chunks(ChunkId(0), ChunkId(u64::MAX));
    each(tx, all_chunks, |key, chunk: Chunk| walk.chunk(keys::chunk_id(key), &chunk))?;
    walk.links();
    walk.reach();
    walk.data();
    walk.counters(tx)?;
    walk.problems.extend(chunks::check(tx, MAX_PROBLEMS - walk.problems.len())?);
    walk.problems.extend(data_keys::check(tx, MAX_PROBLEMS - walk.problems.len())?);
    Ok(walk.problems)
}

/// Hands every record of a range to `visit`.
fn each<R: Record>(
    tx: &mut Transaction<'_>,
    mut range: KeyRange,
    mut visit: impl FnMut(&Key, R),
) -> Result<(), StoreError> {
    loop {
        let page = tx.scan::<R>(&range, PAGE)?;
        let full = page.len() == PAGE;
        for (key, record) in page {
            visit(&key, record);
            range.start = key;
        }
        if !full {
            return Ok(());
        }
        range.start.push(0);
    }
}

/// What is known of an inode.
#[derive(Default)]
struct Seen {
    kind: FileKind,
    nlink: u32,
    parent: u64,
    size: u64,
    allocated_bytes: u64,
    has_xattrs: bool,
    names: u32,
    subdirectories: u32,
    entries: u64,
    back_pointers: u32,
    orphan: bool,
    xattrs: bool,
    extent_bytes: u64,
    extents_end: u64,
}

#[derive(Default)]
struct Walk {
    inodes: BTreeMap<Ino, Seen>,
    /// (parent, name, inode) of entries, until their back-pointers are found.
    unmatched: BTreeSet<(Ino, Vec<u8>, Ino)>,
    /// The subdirectories of each directory.
    children: BTreeMap<Ino, Vec<Ino>>,
    /// (chunk, inode, offset) of extents, until their back-pointers are found.
    unmatched_extents: BTreeSet<(u64, Ino, u64)>,
    /// Live bytes, and the greatest end of an extent, by chunk.
    used: BTreeMap<u64, (u64, u64)>,
    problems: Vec<String>,
}

impl Walk {
    fn problem(&mut self, problem: String) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(problem);
        }
    }

    fn inode(&mut self, ino: Ino, inode: &Inode) {
        let seen = Seen {
            kind: inode.kind(),
            nlink: inode.nlink,
            parent: inode.parent,
            size: inode.size,
            allocated_bytes: inode.allocated_bytes,
            has_xattrs: inode.has_xattrs,
            ..Seen::default()
        };
        if seen.kind == FileKind::Symlink && inode.target.len() as u64 != inode.size {
            self.problem(format!("symlink {ino} has size {} and another target", inode.size));
        }
        self.inodes.insert(ino, seen);
    }

    fn dentry(&mut self, key: &Key, dentry: Dentry) {
        let parent = keys::dentry_parent(key);
        let (cookie, name) = keys::dentry_parts(key);
        let shown = String::from_utf8_lossy(name).into_owned();
        let ino = Ino(dentry.ino);
        match Name::parse(name.to_vec()) {
            Ok(parsed) if parsed.cookie() == cookie => {}
            Ok(_) => self.problem(format!("entry {shown:?} of directory {parent} is in the wrong place")),
            Err(_) => self.problem(format!("entry {shown:?} of directory {parent} has a bad name")),
        }
        match self.inodes.get_mut(&parent) {
            Some(directory) if directory.kind == FileKind::Directory => {
                directory.entries += 1;
                directory.subdirectories += u32::from(dentry.kind() == FileKind::Directory);
            }
            _ => self.problem(format!("entry {shown:?} is in {parent}, which is not a directory")),
        }
        let mut problem = None;
        match self.inodes.get_mut(&ino) {
            None => problem = Some(format!("entry {shown:?} of {parent} names {ino}, which is not there")),
            Some(named) => {
                named.names += 1;
                if named.kind != dentry.kind() {
                    problem = Some(format!("entry {shown:?} of {parent} has another kind than {ino}"));
                }
                if named.kind == FileKind::Directory {
                    if named.parent != parent.0 {
                        problem = Some(format!("directory {ino} is in {parent}, but says {}", named.parent));
                    }
                    self.children.entry(parent).or_default().push(ino);
                }
            }
        }
        if let Some(problem) = problem {
            self.problem(problem);
        }
        self.unmatched.insert((parent, name.to_vec(), ino));
    }

    fn back_pointer(&mut self, key: &Key) {
        let ino = keys::back_pointer_inode(key);
        let (parent, name) = keys::back_pointer_parts(key);
        if !self.unmatched.remove(&(parent, name.to_vec(), ino)) {
            let name = String::from_utf8_lossy(name).into_owned();
            self.problem(format!("inode {ino} says it is {name:?} in {parent}, which has no such entry"));
        }
        if let Some(seen) = self.inodes.get_mut(&ino) {
            seen.back_pointers += 1;
        }
    }

    fn orphan(&mut self, key: &Key) {
        let (session, ino) = keys::orphan_parts(key);
        match self.inodes.get_mut(&ino) {
            Some(seen) => seen.orphan = true,
            None => self.problem(format!("session {session} keeps inode {ino}, which is not there")),
        }
    }

    fn xattr(&mut self, key: &Key) {
        let ino = keys::xattr_inode(key);
        match self.inodes.get_mut(&ino) {
            Some(seen) => seen.xattrs = true,
            None => self.problem(format!("an extended attribute of inode {ino}, which is not there")),
        }
    }

    fn extent(&mut self, key: &Key, extent: StoredExtent) {
        let (ino, offset) = (keys::extent_inode(key), keys::extent_offset(key));
        let end = offset.saturating_add(extent.length);
        let mut problem = None;
        match self.inodes.get_mut(&ino) {
            Some(seen) if seen.kind == FileKind::Regular => {
                if offset < seen.extents_end {
                    problem = Some(format!("extents of inode {ino} overlap at {offset}"));
                }
                if extent.length == 0 || end > seen.size {
                    problem = Some(format!("an extent of inode {ino} ends at {end}, beyond the file"));
                }
                seen.extents_end = end;
                seen.extent_bytes += extent.length;
            }
            _ => problem = Some(format!("an extent of {ino}, which is not a regular file")),
        }
        if let Some(problem) = problem {
            self.problem(problem);
        }
        self.unmatched_extents.insert((extent.chunk, ino, offset));
        let (live, chunk_end) = self.used.entry(extent.chunk).or_default();
        *live += extent.length;
        *chunk_end = (*chunk_end).max(extent.chunk_offset.saturating_add(extent.length));
    }

    fn chunk_user(&mut self, key: &Key) {
        let chunk = keys::chunk_user_chunk(key);
        let (ino, offset) = keys::chunk_user_parts(key);
        if !self.unmatched_extents.remove(&(chunk.0, ino, offset)) {
            self.problem(format!("chunk {chunk} says inode {ino} uses it at {offset}, which it does not"));
        }
    }

    fn chunk(&mut self, id: ChunkId, chunk: &Chunk) {
        let used = self.used.remove(&id.0);
        let (live, end) = used.unwrap_or_default();
        if chunk.live_bytes != live {
            self.problem(format!("chunk {id} counts {} live bytes instead of {live}", chunk.live_bytes));
        }
        if end > chunk.content_length() {
            self.problem(format!("an extent points beyond the end of chunk {id}"));
        }
        if (chunk.state() == ChunkState::Sealed) != (live > 0) {
            self.problem(format!("chunk {id} has {live} live bytes and is {:?}", chunk.state()));
        }
    }

    /// Every inode by itself: names, link count, flags.
    fn links(&mut self) {
        let mut problems = Vec::new();
        for (ino, seen) in &self.inodes {
            let mut wrong = |what: String| problems.push(format!("inode {ino} {what}"));
            let directory = seen.kind == FileKind::Directory;
            let expected = match (directory, *ino == Ino::ROOT || seen.names > 0) {
                (true, true) => 2 + seen.subdirectories,
                (true, false) => 0,
                (false, _) => seen.names,
            };
            if seen.nlink != expected {
                wrong(format!("has {} links instead of {expected}", seen.nlink));
            }
            if directory && seen.names != u32::from(*ino != Ino::ROOT && seen.nlink > 0) {
                wrong(format!("is a directory with {} names", seen.names));
            }
            if seen.names != seen.back_pointers {
                wrong(format!("has {} names and {} back-pointers", seen.names, seen.back_pointers));
            }
            if (seen.nlink == 0) != seen.orphan {
                wrong(format!("has {} links; kept without a name: {}", seen.nlink, seen.orphan));
            }
            if directory && seen.nlink == 0 && seen.entries > 0 {
                wrong("was removed and has entries".into());
            }
            if seen.has_xattrs != seen.xattrs {
                wrong(format!("says of extended attributes {}, has {}", seen.has_xattrs, seen.xattrs));
            }
            if seen.allocated_bytes != seen.extent_bytes {
                wrong(format!("counts {} bytes, extents {}", seen.allocated_bytes, seen.extent_bytes));
            }
            if seen.kind == FileKind::Unknown {
                wrong("is of no kind".into());
            }
        }
        for (parent, name, ino) in &self.unmatched {
            let name = String::from_utf8_lossy(name);
            problems.push(format!("entry {name:?} of {parent} has no back-pointer from {ino}"));
        }
        problems.into_iter().for_each(|problem| self.problem(problem));
    }

    /// Every directory with a name is reached from the root: so there is no loop, and every file is reached.
    fn reach(&mut self) {
        let mut reached = BTreeSet::from([Ino::ROOT]);
        let mut next = vec![Ino::ROOT];
        while let Some(directory) = next.pop() {
            for &child in self.children.get(&directory).into_iter().flatten() {
                if reached.insert(child) {
                    next.push(child);
                }
            }
        }
        let lost: Vec<Ino> = self
            .inodes
            .iter()
            .filter(|(ino, seen)| {
                seen.kind == FileKind::Directory && seen.nlink > 0 && !reached.contains(ino)
            })
            .map(|(ino, _)| *ino)
            .collect();
        for ino in lost {
            self.problem(format!("directory {ino} is not reached from the root"));
        }
    }

    /// What was found of data and nothing fits.
    fn data(&mut self) {
        for (chunk, ino, offset) in std::mem::take(&mut self.unmatched_extents) {
            self.problem(format!("chunk {chunk} does not know that inode {ino} uses it at {offset}"));
        }
        for (chunk, _) in std::mem::take(&mut self.used) {
            self.problem(format!("extents point into chunk {chunk}, which is not there"));
        }
    }

    fn counters(&mut self, tx: &mut Transaction<'_>) -> Result<(), StoreError> {
        let used_bytes = self.inodes.values().map(|seen| seen.allocated_bytes).sum();
        let last_ino = self.inodes.keys().next_back().map_or(0, |ino| ino.0);
        for (name, expected) in
            [(counters::FILES, self.inodes.len() as u64), (counters::USED_BYTES, used_bytes)]
        {
            let counted = counters::get(tx, name)?;
            if counted != expected {
                self.problem(format!("{name} counts {counted} instead of {expected}"));
            }
        }
        if counters::get(tx, counters::LAST_INO)? < last_ino {
            self.problem(format!("inode {last_ino} is there but was never handed out"));
        }
        Ok(())
    }
}
