//! A whole filesystem as a value: every path with its attributes, contents and extended attributes, to be compared.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// What a path is.
#[derive(Clone, PartialEq, Eq)]
pub enum Content {
    /// A regular file with its bytes.
    File(Vec<u8>),
    /// A directory; its entries are paths of their own.
    Directory,
    /// A symbolic link with its target.
    Symlink(OsString),
    /// A named pipe.
    Fifo,
    /// Something else, named.
    Other(&'static str),
}

/// One path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it is and holds.
    pub content: Content,
    /// Permission, set-id and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of links.
    pub nlink: u64,
    /// Extended attributes of the user and trusted name spaces.
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// Modification time; `None` is equal to any.
    pub modified: Option<(i64, u32)>,
    /// The first path, in the tree's order, that names the same inode.
    pub same_as: PathBuf,
}

/// Every path below a root, relative to it; the root is the empty path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree(pub BTreeMap<PathBuf, Entry>);

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(bytes) => write!(f, "a file of {} bytes", bytes.len()),
            Self::Directory => f.write_str("a directory"),
            Self::Symlink(target) => write!(f, "a symlink to {target:?}"),
            Self::Fifo => f.write_str("a fifo"),
            Self::Other(kind) => f.write_str(kind),
        }
    }
}

impl Tree {
    /// Reads everything below `root` with ordinary system calls.
    ///
    /// # Panics
    /// When something can't be read; the sentence names it.
    pub fn read(root: &Path) -> Self {
        let mut tree = BTreeMap::new();
        let mut inodes = BTreeMap::new();
        let mut queue = vec![PathBuf::new()];
        while let Some(path) = queue.pop() {
            let full = if path.as_os_str().is_empty() { root.to_owned() } else { root.join(&path) };
            let metadata = must(fs::symlink_metadata(&full), "stat", &full);
            let kind = metadata.file_type();
            let content = if kind.is_dir() {
                for entry in must(fs::read_dir(&full), "list", &full) {
                    queue.push(path.join(must(entry, "list", &full).file_name()));
                }
                Content::Directory
            } else if kind.is_file() {
                let bytes = must(fs::read(&full), "read", &full);
                assert_eq!(
                    bytes.len() as u64,
                    metadata.len(),
                    "the length and the size of {}",
                    full.display()
                );
                Content::File(bytes)
            } else if kind.is_symlink() {
                Content::Symlink(must(fs::read_link(&full), "read the link", &full).into_os_string())
            } else if kind.is_fifo() {
                Content::Fifo
            } else if kind.is_socket() {
                Content::Other("a socket")
            } else {
                Content::Other("a device")
            };
            inodes.insert(path.clone(), metadata.ino());
            let entry = Entry {
                content,
                mode: metadata.mode() & 0o7777,
                uid: metadata.uid(),
                gid: metadata.gid(),
                nlink: metadata.nlink(),
                xattrs: read_xattrs(&full),
                modified: Some((metadata.mtime(), metadata.mtime_nsec() as u32)),
                same_as: PathBuf::new(),
            };
            let before = tree.insert(path, entry);
            assert!(before.is_none(), "{} is listed twice", full.display());
        }
        let mut tree = Self(tree);
        tree.link_names(&inodes);
        tree
    }

    /// Fills in `same_as` from the inode of each path.
    pub(crate) fn link_names(&mut self, inodes: &BTreeMap<PathBuf, u64>) {
        let mut first = BTreeMap::new();
        for (path, entry) in &mut self.0 {
            let inode = inodes[path];
            entry.same_as = first.entry(inode).or_insert_with(|| path.clone()).clone();
        }
    }

    /// Forgets what two copies of one tree, made by different programs at different times, need not share: the root's
    /// own attributes and the directories' modification times.
    pub fn without_times(mut self) -> Self {
        for entry in self.0.values_mut() {
            entry.modified = None;
        }
        self
    }

    /// Where `other` first differs, as a sentence, or `None` when the two are equal.
    pub fn difference(&self, other: &Tree) -> Option<String> {
        for (path, entry) in &self.0 {
            let Some(found) = other.0.get(path) else {
                return Some(format!("{path:?} is missing; it should be {entry:?}"));
            };
            if let Some(difference) = entry.difference(found) {
                return Some(format!("{path:?} differs: {difference}"));
            }
        }
        let extra = other.0.keys().find(|path| !self.0.contains_key(*path))?;
        Some(format!("{extra:?} should not be there; it is {:?}", other.0[extra]))
    }
}

impl Entry {
    fn difference(&self, found: &Entry) -> Option<String> {
        if let (Content::File(expected), Content::File(found)) = (&self.content, &found.content)
            && expected != found
        {
            return Some(difference_of_bytes(expected, found));
        }
        let fields = [
            (self.content != found.content, format!("{:?}, found {:?}", self.content, found.content)),
            (self.mode != found.mode, format!("mode {:o}, found {:o}", self.mode, found.mode)),
            (self.uid != found.uid, format!("uid {}, found {}", self.uid, found.uid)),
            (self.gid != found.gid, format!("gid {}, found {}", self.gid, found.gid)),
            (self.nlink != found.nlink, format!("{} links, found {}", self.nlink, found.nlink)),
            (self.xattrs != found.xattrs, format!("xattrs {:?}, found {:?}", self.xattrs, found.xattrs)),
            (
                self.same_as != found.same_as,
                format!("the inode of {:?}, found {:?}", self.same_as, found.same_as),
            ),
        ];
        if let Some((_, sentence)) = fields.into_iter().find(|(differs, _)| *differs) {
            return Some(format!("expected {sentence}"));
        }
        match (self.modified, found.modified) {
            (Some(expected), Some(found)) if expected != found => {
                Some(format!("expected modification time {expected:?}, found {found:?}"))
            }
            _ => None,
        }
    }
}

/// Where two files' bytes first differ, and for how long.
pub fn difference_of_bytes(expected: &[u8], found: &[u8]) -> String {
    if expected.len() != found.len() {
        return format!("expected {} bytes, found {}", expected.len(), found.len());
    }
    let differs = |&(a, b): &(&u8, &u8)| a != b;
    let start = expected.iter().zip(found).position(|pair| differs(&pair)).unwrap_or(0);
    let run = expected[start..].iter().zip(&found[start..]).take_while(|pair| differs(pair)).count();
    let zeros = found[start..start + run].iter().all(|&byte| byte == 0);
    format!(
        "of {} bytes those from {start} on for {run} are wrong: expected {}, found {}",
        expected.len(),
        expected[start],
        if zeros { "zeros".to_owned() } else { found[start].to_string() }
    )
}

fn read_xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for name in must(xattr::list(path), "list the extended attributes of", path) {
        let ours = name.as_bytes().starts_with(b"user.") || name.as_bytes().starts_with(b"trusted.");
        if ours && let Some(value) = must(xattr::get(path, &name), "read an extended attribute of", path) {
            found.insert(name.to_string_lossy().into_owned(), value);
        }
    }
    found
}

fn must<T>(result: std::io::Result<T>, verb: &str, path: &Path) -> T {
    result.unwrap_or_else(|error| panic!("can't {verb} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_difference_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        fs::write(root.join("a"), b"hello").unwrap();
        fs::hard_link(root.join("a"), root.join("b")).unwrap();
        std::os::unix::fs::symlink("nowhere", root.join("c")).unwrap();
        let tree = Tree::read(root);
        assert_eq!(tree.difference(&Tree::read(root)), None);
        assert_eq!(tree.0[Path::new("b")].same_as, Path::new("a"));

        let change = |change: &dyn Fn(&mut Tree), expected: &str| {
            let mut other = tree.clone();
            change(&mut other);
            let difference = tree.difference(&other).expect("a difference");
            assert!(difference.contains(expected), "{difference}");
        };
        change(&|tree| drop(tree.0.remove(Path::new("b"))), "missing");
        change(
            &|tree| drop(tree.0.insert("d".into(), tree.0[Path::new("c")].clone())),
            "should not be there",
        );
        let entry =
            |tree: &mut Tree, edit: &dyn Fn(&mut Entry)| edit(tree.0.get_mut(Path::new("a")).unwrap());
        change(&|tree| entry(tree, &|a| a.content = Content::File(b"hellO".to_vec())), "from 4 on for 1");
        change(&|tree| entry(tree, &|a| a.content = Content::Fifo), "found a fifo");
        change(&|tree| entry(tree, &|a| a.mode = 0), "mode");
        change(&|tree| entry(tree, &|a| a.nlink = 7), "links");
        change(&|tree| entry(tree, &|a| a.modified = Some((1, 1))), "modification time");
        change(&|tree| entry(tree, &|a| a.same_as = "b".into()), "the inode of");
    }
}
