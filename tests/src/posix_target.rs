//! A directory as the target of random operations, by ordinary system calls: a mount of dfs, or, to check the model
//! itself, a directory of the local filesystem.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, FallocateFlags, OFlag, RenameFlags};
use nix::sys::stat::{FchmodatFlags, Mode, UtimensatFlags};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid};

use crate::operation::{Answer, Operation, Outcome, RenameHow, Slot, Space, Target, UMASK, symlink_target};
use crate::tree::Tree;

/// A directory to work in.
#[derive(Debug)]
pub struct PosixTarget {
    root: PathBuf,
    open: HashMap<Slot, File>,
}

impl PosixTarget {
    /// Works below `root`. The umask of the whole process becomes [`UMASK`].
    pub fn new(root: &Path) -> Self {
        nix::sys::stat::umask(Mode::from_bits_truncate(UMASK));
        Self { root: root.to_owned(), open: HashMap::new() }
    }

    fn at(&self, path: &Path) -> PathBuf {
        self.root.join(path)
    }

    /// Opens a regular file for reading and writing; ENXIO for a fifo, as for one that nobody reads.
    fn open(&self, path: &Path, more: OFlag) -> Result<File, Errno> {
        let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | more;
        let file = File::from(nix::fcntl::open(&self.at(path), flags, Mode::empty())?);
        let is_fifo = file.metadata().map_err(errno)?.file_type().is_fifo();
        if is_fifo { Err(Errno::ENXIO) } else { Ok(file) }
    }

    fn slot(&self, slot: Slot) -> Result<&File, Errno> {
        self.open.get(&slot).ok_or(Errno::EBADF)
    }

    fn change(&mut self, operation: &Operation) -> Result<(), Errno> {
        match operation {
            Operation::Create { path, mode } => {
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
                nix::fcntl::open(&self.at(path), flags, Mode::from_bits_truncate(*mode)).map(drop)
            }
            Operation::Mkdir { path, mode } => {
                nix::unistd::mkdir(&self.at(path), Mode::from_bits_truncate(*mode))
            }
            Operation::Symlink { path, length } => {
                nix::unistd::symlinkat(symlink_target(*length).as_os_str(), AT_FDCWD, &self.at(path))
            }
            Operation::Fifo { path, mode } => {
                nix::unistd::mkfifo(&self.at(path), Mode::from_bits_truncate(*mode))
            }
            Operation::Link { from, to } => {
                nix::unistd::linkat(AT_FDCWD, &self.at(from), AT_FDCWD, &self.at(to), AtFlags::empty())
            }
            Operation::Unlink { path } => nix::unistd::unlink(&self.at(path)),
            Operation::Rmdir { path } => std::fs::remove_dir(self.at(path)).map_err(errno),
            Operation::Rename { from, to, how } => {
                let flags = match how {
                    RenameHow::Replace => RenameFlags::empty(),
                    RenameHow::NoReplace => RenameFlags::RENAME_NOREPLACE,
                    RenameHow::Exchange => RenameFlags::RENAME_EXCHANGE,
                };
                nix::fcntl::renameat2(AT_FDCWD, &self.at(from), AT_FDCWD, &self.at(to), flags)
            }
            Operation::Write { path, offset, data } => {
                let file = self.open(path, OFlag::empty())?;
                file.write_all_at(&data.bytes(), *offset).map_err(errno)
            }
            Operation::Append { path, data } => {
                use std::io::Write;
                let mut file = self.open(path, OFlag::O_APPEND)?;
                file.write_all(&data.bytes()).map_err(errno)
            }
            Operation::Truncate { path, size } => {
                self.open(path, OFlag::empty())?.set_len(*size).map_err(errno)
            }
            Operation::Fallocate { path, how, offset, length } => {
                let file = self.open(path, OFlag::empty())?;
                let flags = match how {
                    Space::Allocate => FallocateFlags::empty(),
                    Space::KeepSize => FallocateFlags::FALLOC_FL_KEEP_SIZE,
                    Space::Punch => {
                        FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE
                    }
                    Space::Zero => FallocateFlags::FALLOC_FL_ZERO_RANGE,
                };
                nix::fcntl::fallocate(file.as_fd(), flags, *offset as i64, *length as i64)
            }
            Operation::Fsync { path } => {
                let full = self.at(path);
                let is_directory = std::fs::symlink_metadata(&full).map_err(errno)?.is_dir();
                let file = if is_directory {
                    File::open(full).map_err(errno)?
                } else {
                    self.open(path, OFlag::empty())?
                };
                file.sync_all().map_err(errno)
            }
            Operation::Chmod { path, mode } => {
                let mode = Mode::from_bits_truncate(*mode);
                nix::sys::stat::fchmodat(AT_FDCWD, &self.at(path), mode, FchmodatFlags::FollowSymlink)
            }
            Operation::Chown { path, uid, gid } => {
                let (uid, gid) = (Some(Uid::from_raw(*uid)), Some(Gid::from_raw(*gid)));
                nix::unistd::fchownat(AT_FDCWD, &self.at(path), uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)
            }
            Operation::SetModified { path, seconds, nanos } => {
                let modified = TimeSpec::new(*seconds, i64::from(*nanos));
                let flags = UtimensatFlags::NoFollowSymlink;
                nix::sys::stat::utimensat(AT_FDCWD, &self.at(path), &TimeSpec::UTIME_OMIT, &modified, flags)
            }
            Operation::SetXattr { path, name, value } => {
                xattr::set(self.at(path), name, &value.bytes()).map_err(errno)
            }
            Operation::RemoveXattr { path, name } => xattr::remove(self.at(path), name).map_err(errno),
            Operation::Open { slot, path } => {
                let file = self.open(path, OFlag::empty())?;
                self.open.insert(*slot, file);
                Ok(())
            }
            Operation::WriteOpen { slot, offset, data } => {
                self.slot(*slot)?.write_all_at(&data.bytes(), *offset).map_err(errno)
            }
            Operation::TruncateOpen { slot, size } => self.slot(*slot)?.set_len(*size).map_err(errno),
            Operation::Close { slot } => self.open.remove(slot).map(drop).ok_or(Errno::EBADF),
            Operation::Read { .. } | Operation::ReadOpen { .. } | Operation::Copy { .. } => {
                unreachable!("answered with more than done")
            }
        }
    }

    fn copy(
        &self,
        from: &Path,
        mut start: i64,
        to: &Path,
        mut target: i64,
        length: u64,
    ) -> Result<u64, Errno> {
        let source = self.open(from, OFlag::empty())?;
        let destination = self.open(to, OFlag::empty())?;
        // The loop must not go on in what it has itself appended to the source.
        let size = source.metadata().map_err(errno)?.len();
        let length = length.min(size.saturating_sub(start as u64));
        let mut copied = 0;
        while copied < length {
            let left = (length - copied) as usize;
            match nix::fcntl::copy_file_range(
                &source,
                Some(&mut start),
                &destination,
                Some(&mut target),
                left,
            )? {
                0 => break,
                count => copied += count as u64,
            }
        }
        Ok(copied)
    }
}

impl Target for PosixTarget {
    fn apply(&mut self, operation: &Operation) -> Outcome {
        match operation {
            Operation::Read { path, offset, length } => {
                read(&self.open(path, OFlag::empty())?, *offset, *length)
            }
            Operation::ReadOpen { slot, offset, length } => read(self.slot(*slot)?, *offset, *length),
            Operation::Copy { from, from_offset, to, to_offset, length } => {
                self.copy(from, *from_offset as i64, to, *to_offset as i64, *length).map(Answer::Copied)
            }
            _ => self.change(operation).map(|()| Answer::Done),
        }
    }

    fn tree(&mut self) -> Tree {
        Tree::read(&self.root)
    }

    fn close_all(&mut self) {
        self.open.clear();
    }
}

fn read(file: &File, offset: u64, length: usize) -> Outcome {
    let mut bytes = vec![0; length];
    let mut filled = 0;
    while filled < length {
        match file.read_at(&mut bytes[filled..], offset + filled as u64).map_err(errno)? {
            0 => break,
            count => filled += count,
        }
    }
    bytes.truncate(filled);
    Ok(Answer::Bytes(bytes))
}

fn errno(error: io::Error) -> Errno {
    // Nothing but the system's own errors comes from these calls; another would differ from the model, as it should.
    error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Run, seed};

    /// The model is only worth what it knows of POSIX: the local filesystem tells.
    #[test]
    fn the_model_agrees_with_the_local_filesystem() {
        assert!(nix::unistd::geteuid().is_root(), "this test changes owners and so must run as root");
        for round in 0..3 {
            let directory = tempfile::tempdir_in(crate::programs::target_directory()).unwrap();
            let mut run = Run::new(PosixTarget::new(directory.path()), seed().wrapping_add(round));
            for _ in 0..16 {
                run.batch(100);
            }
        }
    }
}
