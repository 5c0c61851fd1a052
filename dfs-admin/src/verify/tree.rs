//! Walks a tree and computes its digest: every file is read as any program would read it, no symbolic link is followed, no
//! other filesystem is entered.
//!
//! Memory is bounded by the names of the directories on the way down. What can't be read is told by its path and leaves the
//! tree without a digest; the walk goes on, so that everything that is wrong is found in one go. Blocking.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use sha2::{Digest, Sha256};

use super::digest::{DirectoryDigest, Leaf, MODE_BITS, TreeDigest, of_leaf};

/// Bytes read at a time.
const BUFFER: usize = 1024 * 1024;
/// Directories below each other: each is open while those below it are read.
const MAX_DEPTH: usize = 512;
/// Bytes of names that are kept at a time.
const MAX_NAME_BYTES: usize = 512 * 1024 * 1024;
/// What a name takes beside its bytes.
const NAME_FRAME: usize = 32;

/// What the walk tells as it goes.
pub(super) trait Observer {
    /// A regular file was read, and it has some bytes or can't be read.
    fn file(&mut self, ino: u64);
    /// So many more bytes were read.
    fn read(&mut self, bytes: u64);
    /// An object is done, whatever it is.
    fn object(&mut self, kind: FileType);
    /// This could not be read.
    fn failed(&mut self, path: &Path, error: &io::Error);
    /// Another filesystem is mounted here; in the digest the directory is empty.
    fn other_mount(&mut self, path: &Path);
}

/// The digest of the tree at `root`, or `None` when some of it could not be read.
pub(super) fn digest(root: &Path, observer: &mut impl Observer) -> Option<TreeDigest> {
    let mut walk =
        Walk { observer, buffer: vec![0; BUFFER], device: 0, name_bytes: 0, path: root.to_owned() };
    let stat = match rustix::fs::statat(rustix::fs::CWD, root, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(error) => {
            walk.observer.failed(root, &error.into());
            return None;
        }
    };
    walk.device = stat.st_dev;
    let Ok(name) = std::ffi::CString::new(root.as_os_str().as_bytes()) else {
        walk.observer.failed(root, &io::ErrorKind::InvalidInput.into());
        return None;
    };
    walk.object(rustix::fs::CWD, &name, 0)
}

struct Walk<'a, O> {
    observer: &'a mut O,
    buffer: Vec<u8>,
    /// Of the tree.
    device: u64,
    /// Of the directories that are being read.
    name_bytes: usize,
    /// Where it is, for messages.
    path: PathBuf,
}

impl<O: Observer> Walk<'_, O> {
    /// Any object.
    fn object(&mut self, parent: BorrowedFd<'_>, name: &CStr, depth: usize) -> Option<TreeDigest> {
        let (kind, digest) = match self.look(parent, name) {
            Ok((FileType::Directory, _)) => (FileType::Directory, self.directory(parent, name, depth)),
            Ok((kind, stat)) => {
                let digest = self.leaf(parent, name, kind, &stat);
                (kind, digest.map_err(|error| self.observer.failed(&self.path, &error)).ok())
            }
            Err(error) => {
                self.observer.failed(&self.path, &error);
                return None;
            }
        };
        self.observer.object(kind);
        digest
    }

    fn look(&self, parent: BorrowedFd<'_>, name: &CStr) -> io::Result<(FileType, Stat)> {
        let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok((FileType::from_raw_mode(stat.st_mode), stat))
    }

    fn leaf(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &CStr,
        kind: FileType,
        stat: &Stat,
    ) -> io::Result<TreeDigest> {
        let device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        let leaf = match kind {
            FileType::RegularFile => return self.file(parent, name),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(parent, name, Vec::new())?;
                return Ok(of_leaf(0, Leaf::Symlink(target.as_bytes())));
            }
            FileType::Fifo => Leaf::Fifo,
            FileType::Socket => Leaf::Socket,
            FileType::CharacterDevice => Leaf::CharDevice(device.0, device.1),
            FileType::BlockDevice => Leaf::BlockDevice(device.0, device.1),
            _ => return Err(io::Error::other("its kind is not known")),
        };
        Ok(of_leaf(stat.st_mode & MODE_BITS, leaf))
    }

    fn file(&mut self, parent: BorrowedFd<'_>, name: &CStr) -> io::Result<TreeDigest> {
        // What was a file a moment ago may be a fifo now, which must not be waited for.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let file = rustix::fs::openat(parent, name, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(io::Error::other("it was another kind of file a moment ago: try again"));
        }
        if stat.st_dev != self.device {
            return Err(io::Error::other("a file of another filesystem is mounted here: unmount it"));
        }
        let content = self.content(&file);
        // What was not yet written back is when it is closed.
        drop(file);
        // The chunks of one that can't be read are looked at all the more.
        if !matches!(content, Ok((_, 0))) {
            self.observer.file(stat.st_ino);
        }
        Ok(of_leaf(stat.st_mode & MODE_BITS, Leaf::File(content?.0)))
    }

    /// The SHA-256 of a file's bytes, and how many there are.
    fn content(&mut self, file: &OwnedFd) -> io::Result<(TreeDigest, u64)> {
        let (mut content, mut length) = (Sha256::new(), 0);
        loop {
            let read = match rustix::io::read(file, &mut self.buffer[..]) {
                Ok(0) => return Ok((content.finalize().into(), length)),
                Ok(read) => read,
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            content.update(&self.buffer[..read]);
            length += read as u64;
            self.observer.read(read as u64);
        }
    }

    fn directory(&mut self, parent: BorrowedFd<'_>, name: &CStr, depth: usize) -> Option<TreeDigest> {
        let names_before = self.name_bytes;
        let (directory, mode, mut names) = match self.list(parent, name, depth) {
            Ok(listed) => listed,
            Err(error) => {
                self.name_bytes = names_before;
                self.observer.failed(&self.path, &error);
                return None;
            }
        };
        names.sort_unstable();
        let mut digest = Some(DirectoryDigest::new(mode, names.len() as u64));
        for name in &names {
            self.path.push(std::ffi::OsStr::from_bytes(name.to_bytes()));
            let entry = self.object(directory.as_fd(), name, depth + 1);
            self.path.pop();
            match (&mut digest, entry) {
                (Some(digest), Some(entry)) => digest.add(name.to_bytes(), &entry),
                _ => digest = None,
            }
        }
        self.name_bytes = names_before;
        digest.map(DirectoryDigest::finish)
    }

    /// The directory, open, its mode, and its names in any order.
    fn list(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &CStr,
        depth: usize,
    ) -> io::Result<(OwnedFd, u32, Vec<std::ffi::CString>)> {
        if depth > MAX_DEPTH {
            let text =
                format!("it lies more than {MAX_DEPTH} directories deep: verify what is below it by itself");
            return Err(io::Error::other(text));
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(parent, name, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&directory)?;
        let mode = stat.st_mode & MODE_BITS;
        if stat.st_dev != self.device {
            self.observer.other_mount(&self.path);
            return Ok((directory, mode, Vec::new()));
        }
        let mut names = Vec::new();
        for entry in Dir::read_from(&directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            self.name_bytes += name.to_bytes().len() + NAME_FRAME;
            if self.name_bytes > MAX_NAME_BYTES {
                let text = "it has more names than are kept in memory: verify its directories one by one";
                return Err(io::Error::other(text));
            }
            names.push(name.to_owned());
        }
        Ok((directory, mode, names))
    }
}

#[cfg(test)]
mod tests;
