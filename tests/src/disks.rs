//! Small disks for tests of full ones, files that are durable, and damage to what lies on a disk.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A filesystem in memory of a given size, unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts one of `megabytes` on a new directory below `parent`.
    ///
    /// # Panics
    /// When it can't be mounted: that needs root.
    pub fn new(parent: &Path, name: &str, megabytes: u32) -> Self {
        let path = parent.join(name);
        std::fs::create_dir(&path).expect("make a mount point");
        let options = format!("size={megabytes}m");
        let result = mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()));
        result.unwrap_or_else(|error| panic!("this test mounts a small disk, which needs root: {error}"));
        Self { path }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
    }
}

/// Makes a file, or empties the one that is there, and returns when these bytes of it are durable.
pub fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Every file below a directory, the largest first.
pub fn files_below(directory: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    let mut queue = vec![directory.to_owned()];
    while let Some(directory) = queue.pop() {
        for entry in std::fs::read_dir(&directory).expect("list a directory") {
            let entry = entry.expect("list a directory");
            // It may be renamed or removed meanwhile by the daemon that owns it.
            let Ok(metadata) = entry.metadata() else { continue };
            match metadata.is_dir() {
                true => queue.push(entry.path()),
                false => found.push((entry.path(), metadata.len())),
            }
        }
    }
    found.sort_by_key(|(_, length)| std::cmp::Reverse(*length));
    found
}

/// Turns over one bit of a file at an offset.
pub fn flip_bit(path: &Path, offset: u64) {
    use std::os::unix::fs::FileExt;
    let file =
        std::fs::OpenOptions::new().read(true).write(true).open(path).expect("open a file to damage it");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("read a byte to damage it");
    file.write_all_at(&[byte[0] ^ 0x10], offset).expect("damage a byte");
    file.sync_all().expect("damage a file durably");
}
