//! Between the client library's types and fuser's: node ids, attributes, kinds, errors.

use std::time::{Duration, SystemTime};

use dfs_client::fs::OpenOptions;
use dfs_proto::limits::{BLOCK_SIZE, MAX_NAME};
use dfs_proto::meta::{FallocateMode, FsStats, RenameMode, TimeChange};
use dfs_proto::{Attr, Code, Failure, FileKind, Ino, Time, Timestamp};
use fuser::{Errno, FileAttr, FileType, INodeNo, RenameFlags, ReplyStatfs, ReplyXattr};

use super::raw_request::RawTime;

/// How long the kernel trusts a name and attributes: other mounts see a change so late at most. Names that are absent
/// are never remembered.
pub(super) const TRUST: Duration = Duration::from_secs(1);
/// The longest copy_file_range: its reply counts in 32 bits, and this is a multiple of every block size.
pub(super) const MAX_COPY: u64 = 1 << 30;
/// The unit in which statfs counts.
const STATFS_BLOCK: u32 = 4096;

/// Node ids are inode numbers, but the root of a mount has node id 1: it has changed places with the filesystem's root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NodeIds {
    root: Ino,
}

impl NodeIds {
    pub(super) fn new(root: Ino) -> Self {
        Self { root }
    }

    pub(super) fn ino_of(self, node: INodeNo) -> Ino {
        Ino(self.swap(node.0))
    }

    pub(super) fn node_of(self, ino: Ino) -> INodeNo {
        INodeNo(self.swap(ino.0))
    }

    /// What stands for "." and "..", whose attributes the kernel does not take from a listing.
    pub(super) fn bare_directory(self, ino: Ino) -> FileAttr {
        let attr = Attr { ino: ino.0, kind: FileKind::Directory.into(), ..Attr::default() };
        self.attr(&attr).expect("a directory is a known kind")
    }

    fn swap(self, number: u64) -> u64 {
        match number {
            1 => self.root.0,
            number if number == self.root.0 => 1,
            number => number,
        }
    }

    /// What stat(2) shows. An attribute of a kind this program does not know is an error, never a guess.
    pub(super) fn attr(self, attr: &Attr) -> Result<FileAttr, Failure> {
        let kind = known_file_type(Ino(attr.ino), attr.kind())?;
        Ok(FileAttr {
            ino: self.node_of(Ino(attr.ino)),
            size: attr.size,
            blocks: attr.allocated_bytes.div_ceil(512),
            atime: system_time(attr.atime),
            mtime: system_time(attr.mtime),
            ctime: system_time(attr.ctime),
            crtime: SystemTime::UNIX_EPOCH,
            kind,
            perm: (attr.mode & 0o7777) as u16,
            nlink: attr.nlink,
            uid: attr.uid,
            gid: attr.gid,
            rdev: attr.rdev as u32,
            blksize: BLOCK_SIZE as u32,
            flags: 0,
        })
    }
}

/// A kind of file. One that this program does not know is an error, never a guess.
pub(super) fn known_file_type(ino: Ino, kind: FileKind) -> Result<FileType, Failure> {
    Ok(match kind {
        FileKind::Regular => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::Unknown => {
            return Err(Failure::new(Code::InputOutput, format!("inode {ino} is of an unknown kind")));
        }
    })
}

/// What open(2) was asked for.
pub(super) fn open_options(flags: i32, kill_set_id: bool) -> OpenOptions {
    let access = flags & libc::O_ACCMODE;
    OpenOptions {
        read: access != libc::O_WRONLY,
        write: access != libc::O_RDONLY,
        append: flags & libc::O_APPEND != 0,
        truncate: flags & libc::O_TRUNC != 0,
        kill_set_id,
        direct: flags & libc::O_DIRECT != 0,
        // O_SYNC has the bit of O_DSYNC.
        sync: flags & libc::O_DSYNC != 0,
    }
}

/// `None` for flags that no filesystem here has.
pub(super) fn rename_mode(flags: RenameFlags) -> Option<RenameMode> {
    Some(match flags.bits() {
        0 => RenameMode::Replace,
        libc::RENAME_NOREPLACE => RenameMode::NoReplace,
        libc::RENAME_EXCHANGE => RenameMode::Exchange,
        _ => return None,
    })
}

/// `None` for the modes that are not offered: collapsing, inserting and unsharing ranges.
pub(super) fn fallocate_mode(mode: i32) -> Option<FallocateMode> {
    const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
    const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | KEEP;
    const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
    const ZERO_KEEP: i32 = ZERO | KEEP;
    Some(match mode {
        0 => FallocateMode::Allocate,
        KEEP => FallocateMode::KeepSize,
        PUNCH => FallocateMode::PunchHole,
        ZERO => FallocateMode::ZeroRange,
        ZERO_KEEP => FallocateMode::ZeroRangeKeepSize,
        _ => return None,
    })
}

pub(super) fn time_change(time: RawTime) -> TimeChange {
    match time {
        RawTime::Now => TimeChange { now: true, value: None },
        RawTime::At(time) => TimeChange { now: false, value: Some(time.into()) },
    }
}

/// Space in whole blocks. There is no limit to the number of files; what df(1) shows as free is what 32 bits leave.
pub(super) fn statfs(reply: ReplyStatfs, stats: &FsStats) {
    let block = u64::from(STATFS_BLOCK);
    let free = stats.available_bytes / block;
    let most_files = u64::from(u32::MAX).max(stats.files);
    reply.statfs(
        stats.total_bytes / block,
        free,
        free,
        most_files,
        most_files - stats.files,
        STATFS_BLOCK,
        MAX_NAME as u32,
        STATFS_BLOCK,
    );
}

/// The value of an extended attribute, or a list of names: with no room asked for, the length alone.
pub(super) fn xattr(reply: ReplyXattr, room: u32, value: &[u8]) {
    match room {
        0 => reply.size(value.len() as u32),
        room if value.len() > room as usize => reply.error(Errno::ERANGE),
        _ => reply.data(value),
    }
}

fn system_time(time: Option<Time>) -> SystemTime {
    Timestamp::from(time.unwrap_or_default()).into()
}

/// The errno of a failure, for the kernel.
pub(super) fn errno(failure: &Failure) -> Errno {
    Errno::from_i32(failure.errno())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_changes_places_with_one() {
        let whole = NodeIds::new(Ino(1));
        assert_eq!((whole.node_of(Ino(1)), whole.node_of(Ino(9))), (INodeNo(1), INodeNo(9)));
        let part = NodeIds::new(Ino(42));
        for (ino, node) in [(42, 1), (1, 42), (7, 7)] {
            assert_eq!(part.node_of(Ino(ino)), INodeNo(node));
            assert_eq!(part.ino_of(INodeNo(node)), Ino(ino));
        }
    }

    #[test]
    fn attributes_are_shown_as_stat_does() {
        let attr = Attr {
            ino: 42,
            kind: FileKind::BlockDevice.into(),
            mode: 0o4755,
            nlink: 2,
            rdev: 0xfff0_01ff,
            size: 1 << 40,
            allocated_bytes: 513,
            mtime: Some(Time { seconds: -1, nanos: 500_000_000 }),
            ..Attr::default()
        };
        let shown = NodeIds::new(Ino(42)).attr(&attr).unwrap();
        assert_eq!((shown.ino, shown.kind, shown.perm), (INodeNo(1), FileType::BlockDevice, 0o4755));
        assert_eq!((shown.size, shown.blocks, shown.rdev), (1 << 40, 2, 0xfff0_01ff));
        assert_eq!(SystemTime::UNIX_EPOCH.duration_since(shown.mtime).unwrap(), Duration::from_millis(500));
        assert_eq!(shown.atime, SystemTime::UNIX_EPOCH);
        let unknown = Attr { kind: 99, ..attr };
        assert_eq!(NodeIds::new(Ino(1)).attr(&unknown).unwrap_err().code, Code::InputOutput);
    }

    #[test]
    fn flags_of_open_are_understood() {
        let options = open_options(libc::O_RDONLY, false);
        assert_eq!((options.read, options.write, options.sync), (true, false, false));
        let options = open_options(libc::O_WRONLY | libc::O_APPEND | libc::O_SYNC, false);
        assert_eq!((options.read, options.write, options.append, options.sync), (false, true, true, true));
        let options = open_options(libc::O_RDWR | libc::O_TRUNC | libc::O_DIRECT | libc::O_DSYNC, true);
        assert!(options.read && options.write && options.truncate && options.direct && options.sync);
        assert!(options.kill_set_id && !options.append);
    }

    #[test]
    fn modes_that_are_not_offered_are_refused() {
        assert_eq!(rename_mode(RenameFlags::empty()), Some(RenameMode::Replace));
        assert_eq!(rename_mode(RenameFlags::RENAME_EXCHANGE), Some(RenameMode::Exchange));
        assert_eq!(rename_mode(RenameFlags::RENAME_WHITEOUT), None);
        assert_eq!(rename_mode(RenameFlags::RENAME_NOREPLACE | RenameFlags::RENAME_EXCHANGE), None);
        assert_eq!(fallocate_mode(libc::FALLOC_FL_KEEP_SIZE), Some(FallocateMode::KeepSize));
        for refused in [
            libc::FALLOC_FL_PUNCH_HOLE,
            libc::FALLOC_FL_COLLAPSE_RANGE,
            libc::FALLOC_FL_INSERT_RANGE,
            libc::FALLOC_FL_UNSHARE_RANGE,
        ] {
            assert_eq!(fallocate_mode(refused), None);
        }
    }

    #[test]
    fn every_failure_has_an_errno() {
        assert_eq!(errno(&Failure::from(Code::NotFound)).code(), libc::ENOENT);
        assert_eq!(errno(&Failure::from(Code::Corrupt)).code(), libc::EIO);
    }
}
