//! The real disk: a directory on a local filesystem.
//!
//! Large files and logs are written with direct I/O: it makes them durable faster than the page cache does (on ext4, large
//! files several times), and a stream of writes does not push out what readers use. A filesystem that refuses it gets
//! buffered writes.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, IoSliceMut};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, PosixFadviseAdvice, fallocate, fcntl, posix_fadvise};
use nix::sys::statvfs::statvfs;
use nix::unistd::fdatasync;
use rustix::io::{ReadWriteFlags, preadv2};

use super::buffers::{ALIGNMENT, Buffer, Buffers};
use super::disk::{Disk, Input, Listed, Log, Output, ReadAhead, Space};
use super::identity::DiskLock;

/// Files from this length on are preallocated and written with direct I/O.
const DIRECT_FROM: u64 = 256 * 1024;

/// A directory on a local filesystem.
pub struct LocalDisk {
    root: PathBuf,
    buffers: Buffers,
    _lock: Option<DiskLock>,
}

impl LocalDisk {
    /// Opens the directory, which must be there.
    pub fn open(root: &Path, buffers: Buffers) -> io::Result<Self> {
        File::open(root)?;
        Ok(Self { root: root.to_owned(), buffers, _lock: None })
    }

    /// Keeps the disk locked for as long as this is there.
    pub(super) fn holding(self, lock: DiskLock) -> Self {
        Self { _lock: Some(lock), ..self }
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
        let file = open_direct(&options, OFlag::empty(), &path)?;
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
        Ok(Box::new(DirectOutput { file, buffer, filled: 0, offset: 0 }))
    }

    fn open(&self, path: &Path, ahead: ReadAhead) -> io::Result<Box<dyn Input>> {
        let file = File::open(self.root.join(path))?;
        // Where a filesystem takes no advice, the file can be read all the same.
        if ahead == ReadAhead::Never
            && let Err(error) = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM)
        {
            tracing::debug!(%error, path = %path.display(), "the kernel reads ahead of what is asked for");
        }
        Ok(Box::new(LocalInput { file }))
    }

    fn open_log(&self, path: &Path) -> io::Result<Box<dyn Log>> {
        let file = open_direct(OpenOptions::new().write(true), OFlag::O_DSYNC, &self.root.join(path))?;
        Ok(Box::new(LocalLog { file }))
    }

    fn free(&self, path: &Path, ranges: &[Range<u64>]) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(self.root.join(path))?;
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        for range in ranges {
            match fallocate(&file, hole, range.start as i64, (range.end - range.start) as i64) {
                Err(nix::Error::EOPNOTSUPP) => {
                    let zeros = vec![0; (range.end - range.start) as usize];
                    file.write_all_at(&zeros, range.start)?;
                }
                result => result?,
            }
        }
        Ok(())
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

/// Opens for direct I/O, or for buffered where the filesystem refuses that.
fn open_direct(options: &OpenOptions, flags: OFlag, path: &Path) -> io::Result<File> {
    let open = |flags: OFlag| options.clone().custom_flags(flags.bits()).open(path);
    match open(flags | OFlag::O_DIRECT) {
        Err(error) if error.kind() == ErrorKind::InvalidInput => open(flags),
        result => result,
    }
}

/// Writes aligned bytes. Some filesystems accept O_DIRECT and then want another alignment: they get buffered writes.
fn write_direct(file: &File, data: &[u8], offset: u64) -> io::Result<()> {
    match file.write_all_at(data, offset) {
        Err(error) if error.kind() == ErrorKind::InvalidInput => {
            let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
            fcntl(file, FcntlArg::F_SETFL(flags - OFlag::O_DIRECT))?;
            file.write_all_at(data, offset)
        }
        result => result,
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

    fn sync(&mut self) -> io::Result<()> {
        Ok(fdatasync(&self.file)?)
    }
}

/// Gathers what is appended and writes it in aligned pieces.
struct DirectOutput {
    file: File,
    buffer: Buffer,
    filled: usize,
    /// Where the buffer goes in the file.
    offset: u64,
}

impl DirectOutput {
    /// Writes the first `length` bytes of the buffer, a multiple of the alignment.
    fn write(&mut self, length: usize) -> io::Result<()> {
        write_direct(&self.file, &self.buffer[..length], self.offset)
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

    fn sync(&mut self) -> io::Result<()> {
        if self.filled > 0 {
            let padded = self.filled.next_multiple_of(ALIGNMENT);
            self.buffer[self.filled..padded].fill(0);
            self.write(padded)?;
            // The file ends where its bytes end. What follows would have to be written behind an unaligned end.
            self.file.set_len(self.offset + self.filled as u64)?;
        }
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
    fn write_durably(&self, data: &[u8], offset: u64) -> io::Result<()> {
        write_direct(&self.file, data, offset)
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
            let input = disk.open(path, ReadAhead::Never).unwrap();
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
    fn a_log_is_overwritten_in_place_and_freed_in_parts() {
        let directory = tempfile::tempdir().unwrap();
        let buffers = Buffers::default();
        let disk = LocalDisk::open(directory.path(), buffers.clone()).unwrap();
        const LENGTH: usize = 1 << 20;
        std::fs::write(directory.path().join("log"), vec![7; LENGTH]).unwrap();
        let log = disk.open_log(Path::new("log")).unwrap();
        let mut page = buffers.take();
        page[..2 * ALIGNMENT].fill(9);
        log.write_durably(&page[..2 * ALIGNMENT], 8192).unwrap();
        // Whatever its memory is: where direct I/O refuses it, it is written all the same.
        log.write_durably(&[8; 3], 1).unwrap();
        let blocks = || {
            std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(directory.path().join("log")).unwrap())
        };
        let before = blocks();
        disk.free(Path::new("log"), &[4096..8192, 12288..LENGTH as u64 - 4096]).unwrap();
        assert!(blocks() < before / 2, "{} of {before} are left", blocks());
        let mut expected = vec![7; LENGTH];
        expected[1..4].fill(8);
        expected[8192..16384].fill(9);
        expected[4096..8192].fill(0);
        expected[12288..LENGTH - 4096].fill(0);
        assert!(std::fs::read(directory.path().join("log")).unwrap() == expected);
        assert!(disk.space().unwrap().free_bytes > 0);
    }
}
