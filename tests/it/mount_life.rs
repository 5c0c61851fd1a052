//! A mount from the command to its end: readiness, background, leftovers of dead daemons, signals, unmounting.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use dfs_tests::cluster::Cluster;
use dfs_tests::mounted::{is_mounted, require_fuse};
use dfs_tests::{commands, programs};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::sys::statvfs::statvfs;
use nix::unistd::Pid;

/// How long a mount command may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A mount point whose daemon went to the background.
struct Background {
    path: PathBuf,
    source: String,
    log: PathBuf,
}

impl Background {
    fn at(cluster: &Cluster, name: &str, inside: &str) -> Self {
        require_fuse();
        let path = cluster.directory().join(name);
        fs::create_dir(&path).unwrap();
        let source = format!("{}:{inside}", cluster.address());
        Self { path, source, log: cluster.directory().join(format!("{name}.log")) }
    }

    /// The command, as mount(8) calls it.
    fn command(&self, options: &str) -> Output {
        let mut command = Command::new(programs::program("dfs-fuse"));
        let options = format!("rw,log={},{options}", self.log.display());
        commands::run(command.arg(&self.source).arg(&self.path).args(["-o", &options]), PATIENCE)
    }

    fn mount(&self, options: &str) {
        let output = self.command(options);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stderr.is_empty() && output.stdout.is_empty());
    }

    fn unmount(&self) {
        umount2(&self.path, MntFlags::empty()).unwrap();
    }

    /// The daemon's process id, by its log file: one that is being killed has closed it last of all.
    fn daemon(&self) -> Option<Pid> {
        fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let open = fs::read_dir(entry.path().join("fd")).ok()?.flatten();
            let mut paths = open.filter_map(|file| fs::read_link(file.path()).ok());
            paths.any(|path| path == self.log).then(|| Pid::from_raw(pid))
        })
    }

    fn wait_for_the_end(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while let Some(daemon) = self.daemon() {
            assert!(Instant::now() < deadline, "daemon {daemon} goes on: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(daemon) = self.daemon() {
            let _ = kill(daemon, Signal::SIGKILL);
        }
        while is_mounted(&self.path) && umount2(&self.path, MntFlags::MNT_DETACH).is_ok() {}
        if std::thread::panicking() {
            eprintln!("{}:\n{}", self.log.display(), self.log());
        }
    }
}

fn sentence(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The mount answers when the command returns, is what /proc/mounts says, and what was written is there for the next
/// mount when umount returns.
#[test]
fn the_command_returns_when_the_mount_answers_and_umount_when_all_is_written() {
    let cluster = Cluster::start();
    let (first, second) = (Background::at(&cluster, "first", "/"), Background::at(&cluster, "second", "/"));
    second.mount("");
    for round in 0..3 {
        first.mount("nosuid,noatime");
        let line = fs::read_to_string("/proc/self/mounts").unwrap();
        let line = line.lines().find(|line| line.contains(first.path.to_str().unwrap())).unwrap();
        assert!(line.starts_with(&first.source) && line.contains(" fuse.dfs "), "{line}");
        for option in ["rw", "nosuid", "noatime", "default_permissions", "allow_other"] {
            assert!(line.split([' ', ',']).any(|word| word == option), "{option}: {line}");
        }
        let written = format!("round {round}\n").repeat(1000);
        fs::write(first.path.join("file"), &written).unwrap();
        mapped_write(&first.path.join("mapped"), round);
        first.unmount();
        assert!(!is_mounted(&first.path));
        assert_eq!(fs::read_to_string(second.path.join("file")).unwrap(), written);
        assert_eq!(fs::read(second.path.join("mapped")).unwrap(), vec![round; 8192]);
        first.wait_for_the_end();
    }
    second.unmount();
    second.wait_for_the_end();
    for log in [first.log(), second.log()] {
        assert!(
            !log.contains("ERROR") && !log.contains("session"),
            "nothing of this is worth an alarm: {log}"
        );
    }
}

/// Writes through a mapping after its file was closed.
fn mapped_write(path: &Path, byte: u8) {
    use std::num::NonZeroUsize;
    use std::os::fd::AsFd;

    use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

    let file = fs::File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap();
    file.set_len(8192).unwrap();
    let length = NonZeroUsize::new(8192).unwrap();
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a fresh mapping that nothing else uses, inside the file's length.
    unsafe {
        let mapping = mmap(None, length, protection, MapFlags::MAP_SHARED, file.as_fd(), 0).unwrap();
        drop(file);
        mapping.as_ptr().cast::<u8>().write_bytes(byte, 8192);
        munmap(mapping, 8192).unwrap();
    }
}

#[test]
fn what_a_dead_daemon_left_is_got_past() {
    let cluster = Cluster::start();
    let mount = Background::at(&cluster, "mnt", "/");
    mount.mount("");
    fs::write(mount.path.join("kept"), "kept").unwrap();
    for _ in 0..2 {
        let daemon = mount.daemon().expect("the daemon runs");
        kill(daemon, Signal::SIGKILL).unwrap();
        mount.wait_for_the_end();
        // The second where the daemon's last file is being closed at this moment.
        assert!(matches!(statvfs(&mount.path), Err(Errno::ENOTCONN | Errno::ECONNABORTED)));
        mount.mount("");
        assert_eq!(fs::read_to_string(mount.path.join("kept")).unwrap(), "kept");
    }
    kill(mount.daemon().unwrap(), Signal::SIGKILL).unwrap();
    mount.wait_for_the_end();
    mount.unmount();
    assert!(!is_mounted(&mount.path), "no dead mount lies below");
}

#[test]
fn a_signal_flushes_and_unmounts() {
    let cluster = Cluster::start();
    let mut mount = cluster.mount();
    let other = cluster.mount();
    fs::write(mount.join("file"), "x".repeat(100_000)).unwrap();
    mount.signal(Signal::SIGTERM);
    let ending = mount.wait(Duration::from_secs(20)).expect("the daemon ends");
    assert!(ending.is_clean(), "{ending}: {}", mount.log());
    assert!(!is_mounted(mount.path()));
    assert_eq!(fs::metadata(other.join("file")).unwrap().len(), 100_000);
}

/// A busy mount disappears from the tree, and what its user had written is not lost.
#[test]
fn a_signal_takes_a_busy_mount_away_too() {
    use std::io::Write;

    let cluster = Cluster::start();
    let mut mount = cluster.mount();
    let other = cluster.mount();
    let mut open = fs::File::create(mount.join("open")).unwrap();
    open.write_all(b"not closed yet").unwrap();
    mount.signal(Signal::SIGINT);
    let ending = mount.wait(Duration::from_secs(20)).expect("the daemon ends");
    assert!(ending.is_clean(), "{ending}: {}", mount.log());
    assert!(!is_mounted(mount.path()));
    assert_eq!(fs::read_to_string(other.join("open")).unwrap(), "not closed yet");
    assert_eq!(open.write(b"too late").unwrap_err().raw_os_error(), Some(libc::ENOTCONN));
}

#[test]
fn the_same_source_is_not_mounted_twice_on_one_point() {
    let cluster = Cluster::start();
    let mount = Background::at(&cluster, "mnt", "/");
    mount.mount("");
    let again = mount.command("");
    assert_eq!(again.status.code(), Some(32));
    assert!(sentence(&again).contains("is already mounted on"), "{}", sentence(&again));
    mount.unmount();
    assert!(!is_mounted(&mount.path));
}

#[test]
fn what_cannot_be_mounted_is_refused_with_a_sentence() {
    let cluster = Cluster::start();
    let root = cluster.mount();
    fs::write(root.join("file"), "").unwrap();
    for (name, inside, told) in [
        ("absent", "/no/such", "\"no/such\" to mount does not exist"),
        ("not-a-directory", "/file", "is not a directory"),
    ] {
        let mount = Background::at(&cluster, name, inside);
        let output = mount.command("");
        assert_eq!(output.status.code(), Some(32));
        assert!(sentence(&output).contains(told), "{}", sentence(&output));
        assert!(!is_mounted(&mount.path));
        mount.wait_for_the_end();
    }
}

/// A subdirectory is a whole filesystem: its root is its own parent, and nothing above shows.
#[test]
fn a_subdirectory_is_mounted_as_a_root() {
    use std::os::unix::fs::MetadataExt;

    let cluster = Cluster::start();
    let whole = cluster.mount();
    fs::create_dir_all(whole.join("a/b/c")).unwrap();
    fs::write(whole.join("a/above"), "").unwrap();
    let part = cluster.mount_with("/a/b", "");
    assert_eq!(fs::metadata(part.path()).unwrap().ino(), 1);
    assert_eq!(fs::canonicalize(part.join("c/..")).unwrap(), fs::canonicalize(part.path()).unwrap());
    let listed = commands::shell(part.path(), "ls -ai .", &[]);
    let inodes: Vec<_> = listed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
    let names: Vec<_> = inodes.iter().map(|words| words[1]).collect();
    assert_eq!(names, [".", "..", "c"]);
    assert_eq!(inodes[0][0], "1");
    fs::write(part.join("c/file"), "seen from above").unwrap();
    assert_eq!(fs::read_to_string(whole.join("a/b/c/file")).unwrap(), "seen from above");
    fs::rename(part.join("c/file"), part.join("file")).unwrap();
    assert!(whole.join("a/b/file").exists());
}

#[test]
fn flags_are_enforced_and_remounting_changes_them() {
    let cluster = Cluster::start();
    let whole = cluster.mount();
    fs::write(whole.join("script"), "#!/bin/sh\n").unwrap();
    commands::shell(whole.path(), "chmod 755 script; mknod null c 1 3", &[]);
    let mount = Background::at(&cluster, "mnt", "/");
    mount.mount("ro,noexec,nodev");
    let refused = |result: std::io::Result<()>| result.unwrap_err().raw_os_error();
    assert_eq!(refused(fs::write(mount.path.join("new"), "")), Some(libc::EROFS));
    let script = || commands::Running::try_start(&mut Command::new(mount.path.join("script")));
    assert_eq!(refused(script().map(drop)), Some(libc::EACCES));
    assert_eq!(refused(fs::write(mount.path.join("null"), "")), Some(libc::EACCES));
    let remounted = mount.command("remount,exec,dev");
    assert!(remounted.status.success(), "{}", sentence(&remounted));
    fs::write(mount.path.join("new"), "").unwrap();
    fs::write(mount.path.join("null"), "swallowed").unwrap();
    assert!(script().unwrap().wait(PATIENCE).unwrap().success());
    mount.mount_options_are(&["rw"]);
    mount.unmount();
    assert_eq!(umount2(&mount.path, MntFlags::empty()), Err(Errno::EINVAL));
}

impl Background {
    fn mount_options_are(&self, expected: &[&str]) {
        let table = fs::read_to_string("/proc/self/mounts").unwrap();
        let line = table.lines().find(|line| line.contains(self.path.to_str().unwrap())).unwrap();
        for option in expected {
            assert!(line.split([' ', ',']).any(|word| word == *option), "{option}: {line}");
        }
    }
}

/// The kernel may read further ahead than its default for FUSE.
#[test]
fn readahead_is_raised() {
    use std::os::unix::fs::MetadataExt;

    let cluster = Cluster::start();
    let mount = cluster.mount();
    let device = fs::metadata(mount.path()).unwrap().dev();
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let kib = fs::read_to_string(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb")).unwrap();
    assert_eq!(kib.trim(), "4096");
}
