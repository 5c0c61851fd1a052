//! A writer that remembers what was acknowledged, and the check of what a crash left.
//!
//! Files are written in pieces. What fsync(2) (or close, or rename after fsync) acknowledged must be there and whole
//! afterwards; of the rest each file is absent or a whole prefix of what was written, never other bytes. A file of
//! numbered pages that are overwritten in place must show, page by page, a version no older than the acknowledged one.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::operation::Data;
use crate::tree::difference_of_bytes;

/// Pages of the file that is overwritten in place.
const PAGES: u64 = 32;
/// Bytes in one of them.
const PAGE: usize = 4096;
/// Its name.
const PAGES_NAME: &str = "pages";

/// What one writer has written and what of it was acknowledged.
#[derive(Debug)]
pub struct Journal {
    directory: PathBuf,
    random: StdRng,
    files: Vec<Written>,
    pages: Vec<Versions>,
    next: u32,
    /// The longest that one system call took.
    pub slowest: Duration,
}

/// One file.
#[derive(Clone, Debug)]
struct Written {
    name: String,
    data: Data,
    /// Its whole length is durable.
    acknowledged: bool,
}

/// One page: the last version that was acknowledged, and the last that was written.
#[derive(Clone, Copy, Debug, Default)]
struct Versions {
    acknowledged: u32,
    written: u32,
}

impl Journal {
    /// A writer of files in `directory`, which is made.
    pub fn new(directory: &Path, seed: u64) -> io::Result<Self> {
        std::fs::create_dir_all(directory)?;
        let pages = vec![Versions::default(); PAGES as usize];
        let file = File::create(directory.join(PAGES_NAME))?;
        file.set_len(PAGES * PAGE as u64)?;
        file.sync_all()?;
        File::open(directory)?.sync_all()?;
        Ok(Self {
            directory: directory.to_owned(),
            random: StdRng::seed_from_u64(seed),
            files: Vec::new(),
            pages,
            next: 0,
            slowest: Duration::ZERO,
        })
    }

    /// Writes for ever in new files and old pages, until a system call fails; its error is returned.
    pub fn write_until_error(&mut self) -> io::Error {
        loop {
            if let Err(error) = self.write_one() {
                return error;
            }
        }
    }

    /// Writes one file or one page.
    pub fn write_one(&mut self) -> io::Result<()> {
        match self.random.random_range(0..4) {
            0 => self.write_page(),
            1 => self.write_file(false),
            _ => self.write_file(true),
        }
    }

    /// How many files and pages were acknowledged as durable.
    pub fn acknowledged(&self) -> usize {
        let files = self.files.iter().filter(|file| file.acknowledged).count();
        files + self.pages.iter().filter(|page| page.acknowledged > 0).count()
    }

    fn write_file(&mut self, sync: bool) -> io::Result<()> {
        self.next += 1;
        let length = match self.random.random_range(0..8) {
            0 => 0,
            1..5 => self.random.random_range(1..10_000),
            5..7 => self.random.random_range(1..200_000),
            _ => self.random.random_range(1..3_000_000),
        };
        let data = Data { seed: self.next, length };
        let name = format!("file-{}", self.next);
        let path = self.directory.join(&name);
        self.files.push(Written { name, data, acknowledged: false });
        let bytes = data.bytes();
        let file = self.timed(|| File::create_new(&path))?;
        for piece in bytes.chunks(100_000) {
            self.timed(|| (&file).write_all(piece))?;
        }
        if sync {
            self.timed(|| file.sync_all())?;
            self.acknowledge_last();
        }
        Ok(())
    }

    fn write_page(&mut self) -> io::Result<()> {
        let index = self.random.random_range(0..PAGES);
        let page = &mut self.pages[index as usize];
        page.written += 1;
        let version = page.written;
        let path = self.directory.join(PAGES_NAME);
        let file = self.timed(|| OpenOptions::new().write(true).open(&path))?;
        self.timed(|| file.write_all_at(&page_bytes(index, version), index * PAGE as u64))?;
        self.timed(|| file.sync_data())?;
        self.pages[index as usize].acknowledged = version;
        Ok(())
    }

    fn acknowledge_last(&mut self) {
        self.files.last_mut().expect("a file was just written").acknowledged = true;
    }

    fn timed<T>(&mut self, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let start = Instant::now();
        let result = call();
        self.slowest = self.slowest.max(start.elapsed());
        result
    }

    /// Compares everything with what `directory` shows now. Files that are not whole are forgotten, so that the journal
    /// can be continued after a crash.
    ///
    /// # Panics
    /// When acknowledged bytes are gone, or bytes were invented.
    pub fn check(&mut self, directory: &Path) {
        for file in &mut self.files {
            let expected = file.data.bytes();
            let path = directory.join(&file.name);
            let found = match std::fs::read(&path) {
                Ok(found) => found,
                Err(error) if error.kind() == io::ErrorKind::NotFound && !file.acknowledged => continue,
                Err(error) => panic!("{} (acknowledged: {}): {error}", path.display(), file.acknowledged),
            };
            let name = &file.name;
            if file.acknowledged {
                assert!(
                    found == expected,
                    "{name} was acknowledged: {}",
                    difference_of_bytes(&expected, &found)
                );
            }
            let prefix = &expected[..found.len().min(expected.len())];
            assert!(found == prefix, "{name} is not a prefix: {}", difference_of_bytes(prefix, &found));
        }
        self.check_pages(directory);
        self.check_names(directory);
    }

    fn check_pages(&mut self, directory: &Path) {
        let found = std::fs::read(directory.join(PAGES_NAME)).expect("read the file of pages");
        assert_eq!(found.len(), PAGES as usize * PAGE, "the length of the file of pages");
        for (index, (bytes, page)) in found.chunks(PAGE).zip(&mut self.pages).enumerate() {
            let versions = page.acknowledged..=page.written;
            let version = versions.clone().find(|version| bytes == page_bytes(index as u64, *version));
            let Some(version) = version else {
                panic!("page {index} is none of the versions {versions:?}; it begins with {:?}", &bytes[..16])
            };
            // What is there after a crash has become durable, whoever asked for it.
            page.acknowledged = version;
        }
    }

    /// Nothing is there that was never made.
    fn check_names(&mut self, directory: &Path) {
        for entry in std::fs::read_dir(directory).expect("list the directory") {
            let name = entry.expect("list the directory").file_name().to_string_lossy().into_owned();
            let known = name == PAGES_NAME || self.files.iter().any(|file| file.name == name);
            assert!(known, "{name} was never made");
        }
    }
}

/// Version 0 was never written: zeros.
fn page_bytes(index: u64, version: u32) -> Vec<u8> {
    match version {
        0 => vec![0; PAGE],
        _ => Data { seed: version << 8 | index as u32, length: PAGE }.bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_and_inventions_are_found() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let mut journal = Journal::new(path, 7).unwrap();
        for _ in 0..100 {
            journal.write_one().unwrap();
        }
        journal.check(path);
        let failing = |damage: &dyn Fn(), expected: &str, mut journal: Journal| {
            damage();
            let check = std::panic::AssertUnwindSafe(|| journal.check(path));
            let panic = std::panic::catch_unwind(check).unwrap_err();
            let message = panic.downcast_ref::<String>().unwrap();
            assert!(message.contains(expected), "{message}");
        };
        let copy = |journal: &Journal| Journal {
            directory: path.to_owned(),
            random: StdRng::seed_from_u64(0),
            files: journal.files.clone(),
            pages: journal.pages.clone(),
            next: 0,
            slowest: Duration::ZERO,
        };
        let big = |file: &&Written| file.data.length > 100;
        let synced = journal.files.iter().filter(big).find(|file| file.acknowledged).unwrap();
        let open = |name: &str| OpenOptions::new().write(true).open(path.join(name)).unwrap();
        failing(&|| open(&synced.name).set_len(50).unwrap(), "was acknowledged", copy(&journal));
        std::fs::write(path.join(&synced.name), synced.data.bytes()).unwrap();

        let loose = journal.files.iter().filter(big).find(|file| !file.acknowledged).unwrap();
        open(&loose.name).set_len(50).unwrap();
        copy(&journal).check(path);
        failing(&|| open(&loose.name).write_all_at(&[0; 10], 20).unwrap(), "is not a prefix", copy(&journal));
        std::fs::remove_file(path.join(&loose.name)).unwrap();
        copy(&journal).check(path);

        failing(&|| open(PAGES_NAME).write_all_at(b"x", 5000).unwrap(), "page 1 is none", copy(&journal));
    }
}
