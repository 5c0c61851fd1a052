//! The kernel's side of a mount: preparing the mount point, mount(2), unmounting, readahead.
//!
//! Nothing here speaks FUSE: a mount is an open /dev/fuse that somebody else serves. A mount point whose daemon died is
//! freed first. All errors are sentences.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{major, makedev, minor};
use nix::sys::statvfs::statvfs;
use nix::unistd::{getgid, getuid};

use crate::options::{Flags, Mount};

/// The file system type in /proc/mounts.
const TYPE: &str = "fuse.dfs";
/// Dead mounts stacked on one mount point that are cleared before giving up.
const MAX_LEFTOVERS: usize = 64;
/// What the kernel reads ahead of a sequential reader; its default for FUSE is 128 KiB.
const READ_AHEAD_KIB: u32 = 4096;

/// Resolves the mount point to an absolute path and frees it of mounts whose daemon died. It must be a directory on
/// which `source` is not mounted yet.
pub(crate) fn prepare(target: &Path, source: &str) -> Result<PathBuf, String> {
    let shown = target.display();
    for _ in 0..MAX_LEFTOVERS {
        // Attributes may still be remembered of a mount whose daemon died; this asks.
        match statvfs(target) {
            Ok(_) => return settle(target, source),
            // The daemon of the mount there died.
            Err(Errno::ENOTCONN | Errno::ECONNABORTED) => umount2(target, MntFlags::MNT_DETACH)
                .map_err(|errno| format!("unmount what a dead daemon left at {shown}: {}", errno.desc()))?,
            Err(Errno::ENOENT) => return Err(format!("the mount point {shown} does not exist")),
            Err(errno) => return Err(format!("look at the mount point {shown}: {}", errno.desc())),
        }
    }
    Err(format!("more than {MAX_LEFTOVERS} dead mounts lie on {shown}: unmount them by hand"))
}

/// The absolute path of a mount point that answers.
fn settle(target: &Path, source: &str) -> Result<PathBuf, String> {
    let shown = target.display();
    let path =
        fs::canonicalize(target).map_err(|error| format!("resolve the mount point {shown}: {error}"))?;
    if !path.is_dir() {
        return Err(format!("the mount point {shown} is not a directory"));
    }
    match top_mount(&path)? {
        Some(top) if top.fs_type == TYPE && top.source == source => {
            Err(format!("{source} is already mounted on {}", path.display()))
        }
        _ => Ok(path),
    }
}

/// Mounts: the filesystem is attached to `target` and waits for somebody to answer at the descriptor.
pub(crate) fn attach(request: &Mount, target: &Path) -> Result<OwnedFd, String> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").map_err(|error| {
        format!(
            "open /dev/fuse: {error}: load the kernel's fuse module, or allow the device in this container"
        )
    })?;
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={}",
        device.as_raw_fd(),
        getuid().as_raw(),
        getgid().as_raw()
    );
    if request.default_permissions {
        data.push_str(",default_permissions");
    }
    if request.allow_other {
        data.push_str(",allow_other");
    }
    let flags = kernel_flags(request.flags);
    mount(Some(request.source.text.as_str()), target, Some(TYPE), flags, Some(data.as_str())).map_err(
        |errno| match errno {
            Errno::EPERM => {
                format!("mount {} on {}: only root may mount dfs", request.source.text, target.display())
            }
            Errno::ENODEV => "mount: this kernel has no FUSE: load its fuse module".to_owned(),
            errno => format!("mount {} on {}: {}", request.source.text, target.display(), errno.desc()),
        },
    )?;
    Ok(device.into())
}

/// Changes the flags of a mounted dfs.
pub(crate) fn remount(target: &Path, flags: Flags) -> Result<(), String> {
    let shown = target.display();
    let path =
        fs::canonicalize(target).map_err(|error| format!("resolve the mount point {shown}: {error}"))?;
    match top_mount(&path)? {
        Some(top) if top.fs_type == TYPE => {}
        _ => return Err(format!("no dfs is mounted on {shown}: nothing to remount")),
    }
    let flags = kernel_flags(flags) | MsFlags::MS_REMOUNT;
    mount(None::<&str>, &path, None::<&str>, flags, None::<&str>)
        .map_err(|errno| format!("remount {shown}: {}", errno.desc()))
}

/// Unmounts the mount of this device number; if another one is there by now, or none, it is left alone. A mount that is
/// busy is detached instead: it disappears from the tree, and its users keep what they have open for as long as this
/// process serves it. Returns whether there was something to unmount.
pub(crate) fn detach(target: &Path, device: u64) -> Result<bool, String> {
    let told = |errno: Errno| format!("unmount {}: {}", target.display(), errno.desc());
    if top_mount(target)?.is_none_or(|top| top.device != device) {
        return Ok(false);
    }
    match umount2(target, MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) => Ok(true),
        Err(Errno::EINVAL | Errno::ENOENT) => Ok(false),
        Err(Errno::EBUSY) => {
            umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).map(|()| true).map_err(told)
        }
        Err(errno) => Err(told(errno)),
    }
}

/// Takes a mount away that never came to life: its connection is broken off, so that nobody hangs in it.
pub(crate) fn abandon(target: &Path) {
    if let Err(errno) = umount2(target, MntFlags::MNT_FORCE | MntFlags::MNT_DETACH) {
        tracing::error!("take the mount on {} back: {}", target.display(), errno.desc());
    }
}

/// Asks the mount for its root's attributes: proof that it answers. Returns its device number. Blocks until the daemon
/// answers, so it must never be called on a thread that serves requests.
pub(crate) fn ask(target: &Path) -> Result<u64, String> {
    fs::metadata(target)
        .map(|root| root.dev())
        .map_err(|error| format!("the mount on {} does not answer: {error}", target.display()))
}

/// Lets the kernel read further ahead. A convenience: failing changes speed only.
pub(crate) fn raise_read_ahead(device: u64) {
    let path = format!("/sys/class/bdi/{}:{}/read_ahead_kb", major(device), minor(device));
    if let Err(error) = fs::write(&path, READ_AHEAD_KIB.to_string()) {
        tracing::info!("the kernel's readahead stays at its default: {path}: {error}");
    }
}

fn kernel_flags(flags: Flags) -> MsFlags {
    [
        (flags.read_only, MsFlags::MS_RDONLY),
        (flags.no_dev, MsFlags::MS_NODEV),
        (flags.no_suid, MsFlags::MS_NOSUID),
        (flags.no_exec, MsFlags::MS_NOEXEC),
        (flags.sync, MsFlags::MS_SYNCHRONOUS),
        (flags.dir_sync, MsFlags::MS_DIRSYNC),
        (flags.no_atime, MsFlags::MS_NOATIME),
        (flags.no_dir_atime, MsFlags::MS_NODIRATIME),
        (flags.strict_atime, MsFlags::MS_STRICTATIME),
    ]
    .into_iter()
    .filter(|(set, _)| *set)
    .fold(MsFlags::empty(), |all, (_, flag)| all | flag)
}

/// One line of /proc/self/mountinfo.
#[derive(Debug, PartialEq, Eq)]
struct MountLine {
    device: u64,
    target: PathBuf,
    fs_type: String,
    source: String,
}

/// The mount that a path names now: of several on one mount point, the last.
fn top_mount(target: &Path) -> Result<Option<MountLine>, String> {
    let text = File::open("/proc/self/mountinfo")
        .and_then(|file| io::read_to_string(io::BufReader::new(file)))
        .map_err(|error| format!("read /proc/self/mountinfo: {error}"))?;
    Ok(text.lines().rev().filter_map(parse_mount_line).find(|line| line.target == target))
}

/// `36 35 98:0 /root /target options optional… - type source superoptions`, blanks as octal escapes.
fn parse_mount_line(line: &str) -> Option<MountLine> {
    let (front, back) = line.split_once(" - ")?;
    let mut front = front.split(' ').skip(2);
    let (major, minor) = front.next()?.split_once(':')?;
    let target = front.nth(1)?;
    let mut back = back.split(' ');
    let (fs_type, source) = (back.next()?, back.next()?);
    Some(MountLine {
        device: makedev(major.parse().ok()?, minor.parse().ok()?),
        target: PathBuf::from(unescape(target)),
        fs_type: fs_type.to_owned(),
        source: unescape(source).to_string_lossy().into_owned(),
    })
}

/// Undoes the kernel's `\040` for blanks, tabs, newlines and backslashes.
fn unescape(text: &str) -> OsString {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = (byte == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match octal {
            Some(value) => {
                plain.push(value);
                rest = &tail[3..];
            }
            None => {
                plain.push(byte);
                rest = tail;
            }
        }
    }
    OsString::from_vec(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_mountinfo_are_understood() {
        let line = r"36 35 0:52 / /mnt/a\040b rw,relatime shared:1 master:2 - fuse.dfs meta:7600:/x\134y rw,user_id=0";
        let parsed = parse_mount_line(line).unwrap();
        assert_eq!(parsed.target, PathBuf::from("/mnt/a b"));
        assert_eq!((parsed.fs_type.as_str(), parsed.source.as_str()), (TYPE, r"meta:7600:/x\y"));
        assert_eq!((major(parsed.device), minor(parsed.device)), (0, 52));
        let bare = "22 1 254:0 / / rw - ext4 /dev/vda rw";
        assert_eq!(parse_mount_line(bare).unwrap().target, PathBuf::from("/"));
        for broken in [
            "",
            "36 35 0:52 / /mnt rw",
            "36 35 052 / /mnt rw - a b",
            "1 2 3:4 - a b",
            "36 35 0:52 / /mnt - a",
        ] {
            assert_eq!(parse_mount_line(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn escapes_are_undone_and_broken_ones_are_kept() {
        assert_eq!(unescape(r"a\040\011b\134"), OsString::from("a \tb\\"));
        assert_eq!(unescape(r"\04"), OsString::from(r"\04"));
        assert_eq!(unescape(r"\9zz"), OsString::from(r"\9zz"));
    }

    #[test]
    fn mount_points_that_cannot_be_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("missing");
        assert!(prepare(&missing, "meta:/").unwrap_err().contains("does not exist"));
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(prepare(&file, "meta:/").unwrap_err().contains("not a directory"));
        std::os::unix::fs::symlink(directory.path(), directory.path().join("link")).unwrap();
        let resolved = prepare(&directory.path().join("link"), "meta:/").unwrap();
        assert_eq!(resolved, fs::canonicalize(directory.path()).unwrap());
        assert!(remount(directory.path(), Flags::default()).unwrap_err().contains("no dfs is mounted"));
        assert_eq!(detach(directory.path(), 7), Ok(false));
    }
}
