//! A disk for tests: a real one underneath, with faults on demand in front of it.

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::buffers::Buffers;
use super::disk::{Disk, Input, Listed, Log, Output, ReadAhead, Space};
use super::local_disk::LocalDisk;

/// What goes wrong; all of it may change while the disk is in use.
#[derive(Default)]
pub(super) struct Faults {
    /// Bytes that may still be appended to files; then ENOSPC.
    pub(super) room: Mutex<Option<u64>>,
    /// EIO when data of a file is made durable.
    pub(super) sync_fails: AtomicBool,
    /// EIO when a directory is made durable.
    pub(super) sync_directory_fails: AtomicBool,
    /// EIO when a part of a file is given back.
    pub(super) free_fails: AtomicBool,
    /// EIO when a log is written.
    pub(super) log_fails: AtomicBool,
    /// EIO when a file is read.
    pub(super) read_fails: AtomicBool,
    /// Flips a bit of every byte read at this offset of a file; `u64::MAX`: none.
    pub(super) flip_at: AtomicU64,
    /// Space told, instead of the real one.
    pub(super) space: Mutex<Option<Space>>,
    /// How often data, directories and logs were made durable.
    pub(super) syncs: AtomicU64,
    /// How often a file's beginning was read: its header.
    pub(super) headers_read: AtomicU64,
}

pub(super) struct FaultyDisk {
    real: LocalDisk,
    pub(super) faults: Arc<Faults>,
}

impl FaultyDisk {
    pub(super) fn new(root: &Path) -> Self {
        let faults = Faults { flip_at: AtomicU64::new(u64::MAX), ..Faults::default() };
        let real = LocalDisk::open(root, Buffers::default()).expect("open the test's directory");
        Self { real, faults: Arc::new(faults) }
    }
}

fn fail_if(fault: &AtomicBool) -> io::Result<()> {
    match fault.load(Ordering::Relaxed) {
        true => Err(io::Error::from_raw_os_error(nix::libc::EIO)),
        false => Ok(()),
    }
}

impl Faults {
    fn take_room(&self, bytes: usize) -> io::Result<()> {
        let mut room = self.room.lock().unwrap();
        if let Some(left) = &mut *room {
            *left = left
                .checked_sub(bytes as u64)
                .ok_or_else(|| io::Error::from_raw_os_error(nix::libc::ENOSPC))?;
        }
        Ok(())
    }
}

impl Disk for FaultyDisk {
    fn create(&self, path: &Path, length: u64) -> io::Result<Box<dyn Output>> {
        let real = self.real.create(path, length)?;
        Ok(Box::new(FaultyOutput { real, faults: self.faults.clone() }))
    }

    fn open(&self, path: &Path, ahead: ReadAhead) -> io::Result<Box<dyn Input>> {
        Ok(Box::new(FaultyInput { real: self.real.open(path, ahead)?, faults: self.faults.clone() }))
    }

    fn open_log(&self, path: &Path) -> io::Result<Box<dyn Log>> {
        Ok(Box::new(FaultyLog { real: self.real.open_log(path)?, faults: self.faults.clone() }))
    }

    fn free(&self, path: &Path, ranges: &[Range<u64>]) -> io::Result<()> {
        fail_if(&self.faults.free_fails)?;
        self.real.free(path, ranges)
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        self.real.create_directory(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.real.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.real.remove(path)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.faults.syncs.fetch_add(1, Ordering::Relaxed);
        fail_if(&self.faults.sync_directory_fails)?;
        self.real.sync_directory(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Listed>> {
        self.real.list(path)
    }

    fn space(&self) -> io::Result<Space> {
        match *self.faults.space.lock().unwrap() {
            Some(space) => Ok(space),
            None => self.real.space(),
        }
    }
}

struct FaultyOutput {
    real: Box<dyn Output>,
    faults: Arc<Faults>,
}

impl Output for FaultyOutput {
    fn append(&mut self, data: &[u8]) -> io::Result<()> {
        self.faults.take_room(data.len())?;
        self.real.append(data)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.faults.syncs.fetch_add(1, Ordering::Relaxed);
        fail_if(&self.faults.sync_fails)?;
        self.real.sync()
    }
}

struct FaultyInput {
    real: Box<dyn Input>,
    faults: Arc<Faults>,
}

impl Input for FaultyInput {
    fn length(&self) -> io::Result<u64> {
        self.real.length()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        fail_if(&self.faults.read_fails)?;
        self.faults.headers_read.fetch_add(u64::from(offset == 0), Ordering::Relaxed);
        self.real.read_at(buffer, offset)?;
        let flip = self.faults.flip_at.load(Ordering::Relaxed);
        if let Some(at) = flip.checked_sub(offset)
            && at < buffer.len() as u64
        {
            buffer[at as usize] ^= 0x10;
        }
        Ok(())
    }

    fn read_now(&self, _buffer: &mut [u8], _offset: u64) -> bool {
        false
    }

    fn handle(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

struct FaultyLog {
    real: Box<dyn Log>,
    faults: Arc<Faults>,
}

impl Log for FaultyLog {
    fn write_durably(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.faults.syncs.fetch_add(1, Ordering::Relaxed);
        fail_if(&self.faults.log_fails)?;
        self.real.write_durably(data, offset)
    }
}
