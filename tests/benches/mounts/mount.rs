//! One mounted filesystem to measure, and the work that is done on each.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use dfs_tests::{commands, sources};
use tempfile::TempDir;

/// What is in a small file.
pub(crate) const SMALL: usize = 4096;
/// Directories that small files are spread over.
const DIRECTORIES: u32 = 20;

/// What is done on every mount.
pub(crate) struct Work {
    /// Small files.
    pub(crate) files: u32,
    /// The large file, in MiB.
    pub(crate) size: u32,
    /// A source tree as an archive on the local disk, and how many files are in it.
    pub(crate) archive: PathBuf,
    pub(crate) archived: usize,
    _directory: TempDir,
}

impl Work {
    pub(crate) fn prepare(files: u32, size: u32) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let archive = directory.path().join("tree.tar");
        let tree = sources::tree();
        // What not every filesystem has is left out.
        let pack = "tar -cf \"$1\" --exclude='./odd things' .; tar -tf \"$1\" | grep -vc '/$'";
        let archived = commands::shell(&tree, pack, &[&archive]).trim().parse()?;
        Ok(Self { files, size, archive, archived, _directory: directory })
    }
}

/// A mounted filesystem.
pub(crate) struct Mount<'a> {
    /// In the table.
    pub(crate) name: String,
    /// A directory of ours on it.
    pub(crate) root: PathBuf,
    pub(crate) work: &'a Work,
    remount: Option<String>,
}

impl<'a> Mount<'a> {
    pub(crate) fn new(
        name: &str,
        directory: &Path,
        remount: Option<String>,
        work: &'a Work,
    ) -> anyhow::Result<Self> {
        let look = |path: &Path| fs::metadata(path).with_context(|| format!("look at {}", path.display()));
        let is_mounted = look(directory)?.dev() != look(&directory.join(".."))?.dev();
        ensure!(is_mounted, "{name}: nothing is mounted at {}", directory.display());
        let mount = Self { name: name.to_owned(), root: directory.join("measured"), work, remount };
        mount.clear()?;
        fs::create_dir(&mount.root).with_context(|| format!("write to {}", directory.display()))?;
        Ok(mount)
    }

    /// Removes everything of ours.
    pub(crate) fn clear(&self) -> anyhow::Result<()> {
        match fs::remove_dir_all(&self.root) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", self.root.display()))
            }
            _ => Ok(()),
        }
    }

    /// Empties all caches: the mount's own by its command, the kernel's for clients and servers alike.
    pub(crate) fn go_cold(&self) -> anyhow::Result<()> {
        if let Some(command) = &self.remount {
            commands::shell(Path::new("/"), command, &[]);
        }
        nix::unistd::sync();
        fs::write("/proc/sys/vm/drop_caches", "3").context("drop the kernel's caches")
    }

    /// The large file.
    pub(crate) fn large(&self) -> PathBuf {
        self.root.join("large")
    }

    /// The directories of small files.
    pub(crate) fn directories(&self) -> impl Iterator<Item = PathBuf> {
        (0..DIRECTORIES).map(|number| self.root.join(format!("small/d{number}")))
    }

    /// Small files, spread over the directories.
    pub(crate) fn small(&self) -> Vec<PathBuf> {
        let path = |number| self.root.join(format!("small/d{}/f{number}", number % DIRECTORIES));
        (0..self.work.files).map(path).collect()
    }

    /// Runs a shell script in our directory.
    pub(crate) fn shell(&self, script: &str) -> String {
        commands::shell(&self.root, script, &[&self.work.archive])
    }
}

/// So many of something in so long, by the second.
pub(crate) fn rate(count: usize, elapsed: Duration) -> f64 {
    count as f64 / elapsed.as_secs_f64()
}

/// How many of something a second.
pub(crate) fn timed(count: usize, run: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let started = Instant::now();
    run()?;
    Ok(rate(count, started.elapsed()))
}
