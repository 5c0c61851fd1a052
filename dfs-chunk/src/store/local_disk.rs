//! The real disk: a directory on a local filesystem.
//!
//! Large files are written with direct I/O: on ext4 it makes them durable several times faster than the page cache,
//! and a stream of writes does not push out what readers use. A filesystem that refuses it gets buffered writes.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, PosixFadviseAdvice, fallocate, fcntl, posix_fadvise};
use nix::sys::statvfs::statvfs;
use nix::unistd::{fdatasync, syncfs};
use rustix::io::{ReadWriteFlags, preadv2};

use super::buffers::{ALIGNMENT, Buffer, Buffers};
use super::disk::{Disk, Input, Listed, Log, Output, Space};

/// Files from this length on are preallocated and written with direct I/O.
const DIRECT_FROM: u64 = 256 * 1024;

/// A directory on a local filesystem.
pub struct LocalDisk {
    root: PathBuf,
    /// For `syncfs`, which reports write errors that happened since this was opened.
    directory: File,
    buffers: Buffers,
}

impl LocalDisk {
    /// Opens the directory, which must be there.
    pub fn open(root: &Path, buffers: Buffers) -> io::Result<Self> {
        Ok(Self { root: root.to_owned(), directory: File::open(root)?, buffers })
    }
}

impl Disk for LocalDisk {
    fn create(&self, path: &Path, length: u64) -> io::Result<Box<dyn Output>> {
        let path = self.root.join(path);
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true);
        if length < DIRECT_FROM {
            return Ok(Box::new(BufferedOutput { file: options.open(path)?, offset: 0 }));
        }
        let direct = options.clone().custom_flags(OFlag::O_DIRECT.bits()).open(&path);
        let (file, direct) = match direct {
            Ok(file) => (file, true),
            Err(error) if error.kind() == ErrorKind::InvalidInput => (options.open(&path)?, false),
            Err(error) => return Err(error),
        };
        match fallocate(&file, FallocateFlags::empty(), 0, length as i64) {
            Ok(()) | Err(nix::Error::EOPNOTSUPP) => {}
            Err(error) => {
                drop(file);
                // Nobody knows of the file yet; when even this fails it is cleared away at the next start.
                let _ = std::fs::remove_file(&path);
                return Err(error.into());
            }
        }
        let buffer = self.buffers.take();
        Ok(Box::new(DirectOutput { file, direct, buffer, filled: 0, offset: 0 }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Input>> {
        let file = File::open(self.root.join(path))?;
        // Clients read ahead themselves, and from several nodes in turn: what the kernel would read besides is for nobody.
        // Where a filesystem takes no advice, the file can be read all the same.
        if let Err(error) = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM) {
            tracing::debug!(%error, path = %path.display(), "the kernel reads ahead of what is asked for");
        }
        Ok(Box::new(LocalInput { file }))
    }

    fn open_log(&self, path: &Path, length: u64) -> io::Result<(Box<dyn Log>, u64)> {
        let final_path = self.root.join(path);
        let open = || OpenOptions::new().read(true).write(true).open(&final_path);
        let file = match open() {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // Written, not only allocated: turning allocated blocks into written ones would move metadata at each
                // sync. Under a name of its own until all is durable, so that a log is never half made.
                let temporary = self.root.join(path.with_extension("new"));
                let file = OpenOptions::new().write(true).create(true).truncate(true).open(&temporary)?;
                let zeros = vec![0; 256 * 1024];
                let mut offset = 0;
                while offset < length {
                    let part = (length - offset).min(zeros.len() as u64) as usize;
                    file.write_all_at(&zeros[..part], offset)?;
                    offset += part as u64;
                }
                file.sync_all()?;
                std::fs::rename(&temporary, &final_path)?;
                File::open(final_path.parent().unwrap_or(&self.root))?.sync_all()?;
                open()?
            }
            Err(error) => return Err(error),
        };
        let length = file.metadata()?.len();
        Ok((Box::new(LocalLog { file }), length))
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        std::fs::create_dir_all(self.root.join(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(self.root.join(from), self.root.join(to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(self.root.join(path))
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        File::open(self.root.join(path))?.sync_all()
    }

    fn sync_all(&self) -> io::Result<()> {
        Ok(syncfs(&self.directory)?)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Listed>> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(self.root.join(path))? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let metadata = entry.metadata()?;
            if metadata.is_file() {
                let age = metadata.modified()?.elapsed().unwrap_or_default();
                files.push(Listed { name, length: metadata.len(), age_ms: age.as_millis() as u64 });
            }
        }
        Ok(files)
    }

    fn space(&self) -> io::Result<Space> {
        let stat = statvfs(&self.root)?;
        let unit = stat.fragment_size();
        Ok(Space {
            total_bytes: stat.blocks().saturating_mul(unit),
            free_bytes: stat.blocks_available().saturating_mul(unit),
        })
    }
}

struct BufferedOutput {
    file: File,
    offset: u64,
}

impl Output for BufferedOutput {
    fn append(&mut self, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, self.offset)?;
        self.offset += data.len() as u64;
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(fdatasync(&self.file)?)
    }
}

/// Gathers what is appended and writes it in aligned pieces.
struct DirectOutput {
    file: File,
    /// Whether the file is open for direct I/O still.
    direct: bool,
    buffer: Buffer,
    filled: usize,
    /// Where the buffer goes in the file.
    offset: u64,
}

impl DirectOutput {
    /// Writes the first `length` bytes of the buffer, a multiple of the alignment.
    fn write(&mut self, length: usize) -> io::Result<()> {
        match self.file.write_all_at(&self.buffer[..length], self.offset) {
            Err(error) if error.kind() == ErrorKind::InvalidInput && self.direct => {
                // Some filesystems accept O_DIRECT and then want another alignment.
                fcntl(&self.file, FcntlArg::F_SETFL(OFlag::empty()))?;
                self.direct = false;
                self.file.write_all_at(&self.buffer[..length], self.offset)
            }
            result => result,
        }
    }
}

impl Output for DirectOutput {
    fn append(&mut self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let part = data.len().min(self.buffer.len() - self.filled);
            self.buffer[self.filled..self.filled + part].copy_from_slice(&data[..part]);
            self.filled += part;
            data = &data[part..];
            if self.filled == self.buffer.len() {
                self.write(self.filled)?;
                self.offset += self.filled as u64;
                self.filled = 0;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.filled > 0 {
            let padded = self.filled.next_multiple_of(ALIGNMENT);
            self.buffer[self.filled..padded].fill(0);
            self.write(padded)?;
            // The file ends where its bytes end. What follows would have to be written behind an unaligned end.
            self.file.set_len(self.offset + self.filled as u64)?;
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.flush()?;
        Ok(fdatasync(&self.file)?)
    }
}

struct LocalInput {
    file: File,
}

impl Input for LocalInput {
    fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn read_now(&self, buffer: &mut [u8], offset: u64) -> bool {
        let length = buffer.len();
        let read = preadv2(&self.file, &mut [IoSliceMut::new(buffer)], offset, ReadWriteFlags::NOWAIT);
        read == Ok(length)
    }

    fn handle(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }
}

struct LocalLog {
    file: File,
}

impl Log for LocalLog {
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(fdatasync(&self.file)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_any_length_come_back_as_written() {
        let directory = tempfile::tempdir().unwrap();
        let disk = LocalDisk::open(directory.path(), Buffers::default()).unwrap();
        for length in [1, 4095, 4096, 262_144, 262_145, 1_048_576, 1_048_577, 3_000_001] {
            let bytes: Vec<u8> = (0..length).map(|i| (i * 31 % 251) as u8).collect();
            let path = Path::new("file");
            let mut output = disk.create(path, length as u64).unwrap();
            for piece in bytes.chunks(70_001) {
                output.append(piece).unwrap();
            }
            output.sync().unwrap();
            drop(output);
            assert!(std::fs::read(directory.path().join(path)).unwrap() == bytes, "length {length}");
            let input = disk.open(path).unwrap();
            assert_eq!(input.length().unwrap(), length as u64);
            let end = input.read_at(&mut [0; 2], length as u64 - 1).unwrap_err();
            assert_eq!(end.kind(), ErrorKind::UnexpectedEof);
            // In memory since it was read above.
            let mut now = vec![0; length];
            assert!(input.read_now(&mut now, 0) && now == bytes, "length {length}");
            assert!(!input.read_now(&mut now, 1), "there is not so much");
        }
    }

    #[test]
    fn a_log_is_zeros_at_first_and_keeps_its_length() {
        let directory = tempfile::tempdir().unwrap();
        let disk = LocalDisk::open(directory.path(), Buffers::default()).unwrap();
        let (log, length) = disk.open_log(Path::new("log"), 300_000).unwrap();
        assert_eq!(length, 300_000);
        let mut bytes = vec![1; 300_000];
        log.read_at(&mut bytes, 0).unwrap();
        assert!(bytes.iter().all(|&byte| byte == 0));
        log.write_at(b"here", 4096).unwrap();
        log.sync().unwrap();
        let (log, length) = disk.open_log(Path::new("log"), 10).unwrap();
        assert_eq!(length, 300_000, "a log keeps the length that it was made with");
        log.read_at(&mut bytes[..4], 4096).unwrap();
        assert_eq!(&bytes[..4], b"here");
        assert!(disk.space().unwrap().free_bytes > 0);
    }
}
