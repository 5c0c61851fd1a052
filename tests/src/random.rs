//! Random operations on a filesystem beside its model: after each batch the two trees are compared.
//!
//! The names are few, so that operations meet each other; what they are applied to mostly exists. A run is told by its
//! seed, which is printed when it fails, and taken from `DFS_TEST_SEED` where that is set.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::model::Model;
use crate::operation::{Data, Operation, RenameHow, Space, Target};
use crate::tree::{Content, Tree};

/// Files stay below this, so that a whole tree is compared in a moment.
const MAX_SIZE: u64 = 1 << 20;
/// Directories are nested at most so deep.
const MAX_DEPTH: usize = 4;
/// Handles that may be open at once.
const SLOTS: u8 = 4;
/// Operations printed when a run fails.
const SHOWN: usize = 40;

/// One run of random operations on a target.
#[derive(Debug)]
pub struct Run<T> {
    /// What is tested.
    pub target: T,
    model: Model,
    random: StdRng,
    seed: u64,
    history: Vec<String>,
}

/// The seed of this test: `DFS_TEST_SEED` or a new one. It is printed, and so shown with the test's failure.
pub fn seed() -> u64 {
    let seed = match std::env::var("DFS_TEST_SEED") {
        Ok(text) => text.parse().expect("DFS_TEST_SEED is a number"),
        Err(_) => rand::rng().random(),
    };
    eprintln!("to repeat this run: DFS_TEST_SEED={seed}");
    seed
}

impl<T: Target> Run<T> {
    /// A run on an empty filesystem.
    pub fn new(mut target: T, seed: u64) -> Self {
        let model = Model::of_empty(&target.tree());
        Self { target, model, random: StdRng::seed_from_u64(seed), seed, history: Vec::new() }
    }

    /// Does `count` operations on both, each answered alike, and compares the trees.
    ///
    /// # Panics
    /// At the first difference, with the last operations.
    pub fn batch(&mut self, count: usize) {
        for _ in 0..count {
            let operation = self.choose_operation();
            let expected = self.model.apply(&operation);
            let found = self.target.apply(&operation);
            self.history.push(format!("{operation:?} -> {expected:?}"));
            if expected != found {
                self.fail(&format!("{operation:?} should answer {expected:?} and answered {found:?}"));
            }
        }
        self.compare();
    }

    /// Compares the trees.
    ///
    /// # Panics
    /// When they differ.
    pub fn compare(&mut self) {
        if let Some(difference) = self.model.tree().difference(&self.target.tree()) {
            self.fail(&difference);
        }
    }

    /// Compares the model's tree with what another way into the same filesystem shows.
    ///
    /// # Panics
    /// When they differ.
    pub fn compare_with(&mut self, other: &mut impl Target) {
        if let Some(difference) = self.model.tree().difference(&other.tree()) {
            self.fail(&difference);
        }
    }

    /// Closes all handles on both, as before unmounting.
    pub fn close_all(&mut self) {
        self.model.close_all();
        self.target.close_all();
        self.note("all handles are closed");
    }

    /// Notes in the history what was done besides operations.
    pub fn note(&mut self, what: &str) {
        self.history.push(what.into());
    }

    /// A choice among `count` steps for the test to take, from the same seed.
    pub fn choose(&mut self, count: usize) -> usize {
        self.random.random_range(0..count)
    }

    fn fail(&self, difference: &str) -> ! {
        let last = self.history[self.history.len().saturating_sub(SHOWN)..].join("\n    ");
        let count = self.history.len();
        panic!("seed {}, after {count} operations: {difference}\nthe last ones:\n    {last}", self.seed);
    }

    fn choose_operation(&mut self) -> Operation {
        Chooser { tree: self.model.tree(), model: &self.model, random: &mut self.random }.operation()
    }
}

/// Chooses one operation that suits the model's present state.
struct Chooser<'a> {
    tree: Tree,
    model: &'a Model,
    random: &'a mut StdRng,
}

impl Chooser<'_> {
    fn operation(&mut self) -> Operation {
        let slot = self.random.random_range(0..SLOTS);
        match self.random.random_range(0..100) {
            0..10 => Operation::Create { path: self.new_path(), mode: self.mode() },
            10..16 => Operation::Mkdir { path: self.new_path(), mode: self.mode() },
            16..18 => Operation::Symlink { path: self.new_path(), length: self.symlink_length() },
            18..19 => Operation::Fifo { path: self.new_path(), mode: self.mode() },
            19..22 => Operation::Link { from: self.any_path(), to: self.new_path() },
            22..27 => Operation::Unlink { path: self.any_path() },
            27..30 => Operation::Rmdir { path: self.directory() },
            30..38 => self.rename(),
            38..52 => {
                let path = self.file();
                let offset = self.offset(&path);
                Operation::Write { path, offset, data: self.data() }
            }
            52..56 => self.append(),
            56..60 => {
                let path = self.file();
                let offset = self.offset(&path);
                Operation::Read { path, offset, length: self.length() as usize }
            }
            60..64 => {
                let path = self.file();
                let size = self.offset(&path);
                Operation::Truncate { path, size }
            }
            64..69 => self.fallocate(),
            69..72 => self.copy(),
            72..74 => Operation::Fsync { path: self.any_path() },
            74..77 => Operation::Chmod { path: self.any_path(), mode: self.random.random_range(0..0o10000) },
            77..79 => {
                let (uid, gid) = (self.random.random_range(0..3), self.random.random_range(0..3));
                Operation::Chown { path: self.any_path(), uid, gid }
            }
            79..82 => {
                let seconds = *[0, 1, 1_000_000_000, 4_000_000_000].choose(self.random).expect("not empty");
                let nanos = self.random.random_range(0..1_000_000_000);
                Operation::SetModified { path: self.any_path(), seconds, nanos }
            }
            82..86 => {
                let value = Data { seed: self.random.random(), length: self.random.random_range(0..200) };
                Operation::SetXattr { path: self.any_path(), name: self.xattr_name(), value }
            }
            86..88 => Operation::RemoveXattr { path: self.any_path(), name: self.xattr_name() },
            88..91 => Operation::Open { slot, path: self.file() },
            91..94 => {
                let offset = self.random.random_range(0..=self.model.open_size(slot).unwrap_or(0) + 10);
                Operation::WriteOpen { slot, offset: offset.min(MAX_SIZE), data: self.data() }
            }
            94..96 => {
                let offset = self.random.random_range(0..=self.model.open_size(slot).unwrap_or(0));
                Operation::ReadOpen { slot, offset, length: self.length() as usize }
            }
            96..98 => Operation::TruncateOpen { slot, size: self.length() },
            _ => Operation::Close { slot },
        }
    }

    fn name(&mut self) -> OsString {
        const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "a name\n", "ünï", "-"];
        match self.random.random_range(0..100) {
            0 => "x".repeat(255).into(),
            1 => "y".repeat(256).into(),
            2 => std::os::unix::ffi::OsStringExt::from_vec(vec![0xff, 0xfe, b'z']),
            _ => OsString::from(*NAMES.choose(self.random).expect("not empty")),
        }
    }

    /// A path of names that may or may not be there.
    fn random_path(&mut self) -> PathBuf {
        (0..self.random.random_range(1..=MAX_DEPTH)).map(|_| self.name()).collect()
    }

    /// An existing path that satisfies `suits`, most of the time.
    fn existing(&mut self, suits: impl Fn(&Content) -> bool) -> PathBuf {
        let below_root = |(path, _): &(&PathBuf, _)| !path.as_os_str().is_empty();
        let paths: Vec<&PathBuf> = self.tree.0.iter().filter(below_root).map(|(path, _)| path).collect();
        let suited: Vec<&PathBuf> =
            paths.iter().copied().filter(|path| suits(&self.tree.0[*path].content)).collect();
        let chosen = match self.random.random_range(0..20) {
            0 => None,
            1 => paths.choose(self.random).copied(),
            _ => suited.choose(self.random).copied(),
        };
        chosen.cloned().unwrap_or_else(|| self.random_path())
    }

    fn any_path(&mut self) -> PathBuf {
        self.existing(|_| true)
    }

    fn file(&mut self) -> PathBuf {
        self.existing(|content| matches!(content, Content::File(_)))
    }

    fn directory(&mut self) -> PathBuf {
        self.existing(|content| matches!(content, Content::Directory))
    }

    /// A name in a directory that is there, most of the time.
    fn new_path(&mut self) -> PathBuf {
        let parent = match self.random.random_range(0..3) {
            0 => PathBuf::new(),
            _ => self.directory(),
        };
        let parent = if parent.components().count() >= MAX_DEPTH { PathBuf::new() } else { parent };
        parent.join(self.name())
    }

    fn mode(&mut self) -> u32 {
        self.random.random_range(0..0o1000)
    }

    fn symlink_length(&mut self) -> usize {
        *[1, 20, 300, 4000].choose(self.random).expect("not empty")
    }

    fn xattr_name(&mut self) -> String {
        let name = *["user.a", "user.b", "trusted.a", "trusted.b"].choose(self.random).expect("not empty");
        name.to_owned()
    }

    fn length(&mut self) -> u64 {
        match self.random.random_range(0..6) {
            0 => self.random.random_range(1..10),
            1 => 4096,
            2 => 65_536,
            3 => self.random.random_range(65_530..65_542),
            4 => self.random.random_range(1..5000),
            _ => self.random.random_range(1..200_000),
        }
    }

    fn data(&mut self) -> Data {
        Data { seed: self.random.random(), length: self.length() as usize }
    }

    fn size(&self, path: &Path) -> u64 {
        match self.tree.0.get(path).map(|entry| &entry.content) {
            Some(Content::File(bytes)) => bytes.len() as u64,
            _ => 0,
        }
    }

    /// An offset in, at the end of, or somewhat beyond a file.
    fn offset(&mut self, path: &Path) -> u64 {
        let size = self.size(path);
        let offset = match self.random.random_range(0..6) {
            0 => 0,
            1 => size,
            2 => self.random.random_range(0..=size) & !4095,
            3 => size + self.random.random_range(0..100_000),
            4 => self.random.random_range(0..=size) & !65_535,
            _ => self.random.random_range(0..=size),
        };
        offset.min(MAX_SIZE)
    }

    fn append(&mut self) -> Operation {
        let path = self.file();
        if self.size(&path) >= MAX_SIZE {
            return Operation::Truncate { path, size: 0 };
        }
        Operation::Append { path, data: self.data() }
    }

    fn fallocate(&mut self) -> Operation {
        let path = self.file();
        let all = [Space::Allocate, Space::KeepSize, Space::Punch, Space::Punch, Space::Zero];
        let how = *all.choose(self.random).expect("not empty");
        Operation::Fallocate { offset: self.offset(&path), path, how, length: self.length() }
    }

    fn copy(&mut self) -> Operation {
        let (from, to) = (self.file(), self.file());
        let (from_offset, to_offset) = (self.offset(&from), self.offset(&to));
        Operation::Copy { from, from_offset, to, to_offset, length: self.length() }
    }

    fn rename(&mut self) -> Operation {
        let all = [RenameHow::Replace, RenameHow::Replace, RenameHow::NoReplace, RenameHow::Exchange];
        let how = *all.choose(self.random).expect("not empty");
        let from = self.any_path();
        let to = if self.random.random_bool(0.5) { self.any_path() } else { self.new_path() };
        Operation::Rename { from, to, how }
    }
}
