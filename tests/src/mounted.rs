//! A real mount through `dfs-fuse`, in the foreground as a child process.
//!
//! Whatever happens to a test, its mount is gone afterwards: unmounted, or detached from the tree when it is busy.
//! Where mounting is impossible (no /dev/fuse, not root) the test fails with a sentence that says so.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::{Duration, Instant};

use dfs_admin::daemon::{Daemon, Ending, Program, arguments};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;

use crate::cluster::print_log_tail;
use crate::{keeper, programs};

/// How long a mount may take to answer.
const READY: Duration = Duration::from_secs(60);
/// How long a mount's process may take to end after it was unmounted.
const STOP: Duration = Duration::from_secs(30);
/// Mount points of tests lie in directories whose names start so.
const PREFIX: &str = "dfs-tests-";

/// A mounted filesystem, until it is dropped.
#[derive(Debug)]
pub struct Mount {
    program: Program,
    path: PathBuf,
    daemon: Option<Daemon>,
}

/// Fails the test where nothing can be mounted.
///
/// # Panics
/// Without root or /dev/fuse.
pub fn require_fuse() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test mounts a filesystem and so must run as root: run cargo test as root"
    );
    let device = fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
    if let Err(error) = device {
        panic!("this test mounts a filesystem and so needs /dev/fuse, which can't be opened: {error}");
    }
    static SWEEP: Once = Once::new();
    SWEEP.call_once(detach_dead_mounts);
}

impl Mount {
    /// Mounts `inside` of the filesystem of the server at `address`, on a fresh directory under `directory`.
    pub fn new(address: &str, inside: &str, options: &str, directory: &Path) -> Self {
        Self::try_new(address, inside, options, directory).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// As [`Mount::new`], for a mount that may be refused.
    pub fn try_new(address: &str, inside: &str, options: &str, directory: &Path) -> anyhow::Result<Self> {
        require_fuse();
        let path = tempfile::Builder::new().prefix("mnt-").tempdir_in(directory)?.keep();
        let source = format!("{address}:{inside}");
        let options = match options {
            "" => "foreground".to_owned(),
            more => format!("foreground,{more}"),
        };
        let name = path.file_name().expect("a temporary directory has a name").to_string_lossy().into_owned();
        let program = Program {
            name: format!("dfs-fuse {name}"),
            path: programs::program("dfs-fuse"),
            args: arguments([&source, &path, &"-o", &options]),
            log: directory.join(format!("dfs-fuse-{name}.log")),
            parent_death_signal: Signal::SIGKILL,
        };
        let mut mount = Self { program, path, daemon: None };
        mount.start()?;
        Ok(mount)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a name inside it.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// The process id of its daemon while that runs.
    pub fn pid(&mut self) -> Option<u32> {
        self.daemon.as_mut().and_then(|daemon| daemon.ended().is_none().then(|| daemon.pid()))
    }

    /// Mounts it again in the same place, after [`Mount::unmount`] or [`Mount::kill`].
    pub fn remount(&mut self) {
        self.start().unwrap_or_else(|error| panic!("{error:#}"));
    }

    /// Unmounts it and waits until its daemon has ended.
    ///
    /// # Panics
    /// When something still uses it, or the daemon fails.
    pub fn unmount(&mut self) {
        // The kernel lets go of a closed file's last reference a moment after close(2) returned.
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            match umount2(&self.path, MntFlags::empty()) {
                Ok(()) => break,
                Err(Errno::EBUSY) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(20))
                }
                Err(error) => panic!("unmount {}: {error}", self.path.display()),
            }
        }
        let mut daemon = self.daemon.take().expect("a mount that was not mounted is not unmounted");
        let ending = daemon.wait(STOP).unwrap_or(Ending::Overdue);
        assert!(ending.is_clean(), "the mount's daemon {ending} after umount; {}", daemon.last_words(20));
    }

    /// Kills its daemon with SIGKILL and detaches what is left of the mount, as an operator would.
    pub fn kill(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill();
        }
        self.detach();
    }

    /// Kills its daemon and leaves the dead mount where it is.
    pub fn kill_and_leave(&mut self) {
        if let Some(daemon) = self.daemon.as_mut() {
            daemon.kill();
        }
    }

    /// Sends its daemon a signal.
    pub fn signal(&mut self, signal: Signal) {
        if let Some(daemon) = self.daemon.as_mut() {
            daemon.signal(signal);
        }
    }

    /// Waits for its daemon to end by itself.
    pub fn wait(&mut self, timeout: Duration) -> Option<Ending> {
        self.daemon.as_mut().and_then(|daemon| daemon.wait(timeout))
    }

    /// Everything its daemon has written to its log.
    pub fn log(&self) -> String {
        let bytes = fs::read(&self.program.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn start(&mut self) -> anyhow::Result<()> {
        assert!(self.daemon.is_none(), "{} is mounted", self.path.display());
        let mut daemon = keeper::start(&self.program)?;
        daemon.wait_for_line(READY, |line| line.contains("mounted").then_some(()))?;
        self.daemon = Some(daemon);
        Ok(())
    }

    fn detach(&self) {
        while is_mounted(&self.path) {
            if let Err(error) = umount2(&self.path, MntFlags::MNT_DETACH) {
                eprintln!("detach {}: {error}", self.path.display());
                return;
            }
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if std::thread::panicking() {
            print_log_tail(&self.program.name, &self.log());
        }
        if self.daemon.is_some() && umount2(&self.path, MntFlags::empty()).is_err() {
            self.detach();
        }
        if let Some(mut daemon) = self.daemon.take()
            && daemon.wait(STOP).is_none()
        {
            eprintln!("{} did not end after it was unmounted", self.program.name);
            daemon.kill();
        }
        self.detach();
        // Only an empty directory is removed: what lies below a mount that stayed is not touched.
        let _ = fs::remove_dir(&self.path);
    }
}

/// Whether something is mounted at `path`, by the kernel's table: asking the mount itself could hang.
pub fn is_mounted(path: &Path) -> bool {
    mount_points().iter().any(|(point, _)| point == path)
}

/// Every mount point of this process with its filesystem type.
fn mount_points() -> Vec<(PathBuf, String)> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("read /proc/self/mountinfo");
    let parse = |line: &str| {
        let point = line.split(' ').nth(4)?;
        let kind = line.split_once(" - ")?.1.split(' ').next()?;
        Some((PathBuf::from(point), kind.to_owned()))
    };
    table.lines().filter_map(parse).collect()
}

/// Detaches mounts of earlier test runs whose daemons were killed. A living one answers, and is left alone.
fn detach_dead_mounts() {
    for (point, kind) in mount_points() {
        let ours = point.components().any(|part| part.as_os_str().as_bytes().starts_with(PREFIX.as_bytes()));
        let dead = || matches!(nix::sys::statvfs::statvfs(&point), Err(Errno::ENOTCONN));
        if ours && kind.starts_with("fuse") && dead() {
            let _ = umount2(&point, MntFlags::MNT_DETACH);
        }
    }
}
