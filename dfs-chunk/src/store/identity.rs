//! Whose disk this is. `identity.toml` in its root says which disk it is, and, from its first join on, of which cluster
//! and which node. A directory with anything else in it is never taken for an empty disk; a lock keeps a second daemon
//! away for as long as the first one uses it.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dfs_proto::{ClusterId, Code, Failure, NodeId};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::buffers::Buffers;
use super::local_disk::LocalDisk;

const IDENTITY: &str = "identity.toml";
const TEMPORARY: &str = "identity.toml.new";
const LOCK: &str = "lock";
const FORMAT_VERSION: u32 = 2;
/// An identity is some lines; whatever is longer is not one.
const MAX_LENGTH: u64 = 16 * 1024;

/// A disk that this process has for itself.
pub struct ClaimedDisk {
    root: PathBuf,
    record: Record,
    lock: DiskLock,
}

/// Held by all that use the disk: while one of them is left, nobody else can claim it.
pub(super) type DiskLock = Arc<Flock<File>>;

/// The file's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    /// Of the whole disk: directories, shard files, logs.
    format: u32,
    disk: Uuid,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<u64>,
}

impl ClaimedDisk {
    /// Locks the disk and reads its identity; formats it when it is an empty directory. BUSY, INVALID,
    /// VERSION_UNKNOWN, CORRUPT, INPUT_OUTPUT.
    pub fn claim(root: &Path) -> Result<Self, Failure> {
        let context = |what: &str, error: std::io::Error| {
            Failure::new(Code::InputOutput, format!("cannot {what} {}: {error}", root.display()))
        };
        std::fs::create_dir_all(root).map_err(|error| context("make the data directory", error))?;
        let fresh = !root.join(IDENTITY).try_exists().map_err(|error| context("look into", error))?;
        if fresh {
            refuse_foreign_files(root)?;
        }
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(root.join(LOCK));
        let lock = lock.map_err(|error| context("open the lock file in", error))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
            nix::Error::EWOULDBLOCK => Failure::new(
                Code::Busy,
                format!(
                    "{} is in use by another chunk daemon: each one needs a data directory of its own",
                    root.display()
                ),
            ),
            error => context("lock", error.into()),
        })?;
        let record = match read(root)? {
            Some(record) => record,
            None => {
                let record =
                    Record { format: FORMAT_VERSION, disk: Uuid::new_v4(), cluster: None, node: None };
                write(root, &record).map_err(|error| context("write an identity to", error))?;
                record
            }
        };
        Ok(Self { root: root.to_owned(), record, lock: Arc::new(lock) })
    }

    /// Its files; the disk stays claimed while this is there.
    pub fn open(&self, buffers: Buffers) -> Result<LocalDisk, Failure> {
        let opened = LocalDisk::open(&self.root, buffers);
        let disk = opened.map_err(|error| {
            Failure::new(Code::InputOutput, format!("cannot open {}: {error}", self.root.display()))
        })?;
        Ok(disk.holding(self.lock.clone()))
    }

    /// Made when the disk was formatted.
    pub fn disk(&self) -> [u8; 16] {
        self.record.disk.into_bytes()
    }

    /// The cluster and the node that it is; `None` before its first join.
    pub fn membership(&self) -> Option<(ClusterId, NodeId)> {
        let cluster = ClusterId(self.record.cluster?.into_bytes());
        Some((cluster, NodeId(self.record.node?)))
    }

    /// Writes down, durably, what the metadata server said at a join. WRONG_CLUSTER where the disk is another's.
    pub fn join(&mut self, cluster: ClusterId, node: NodeId) -> Result<(), Failure> {
        match self.membership() {
            Some(known) if known == (cluster, node) => return Ok(()),
            Some((known, _)) if known != cluster => {
                return Err(Failure::new(
                    Code::WrongCluster,
                    format!(
                        "{} belongs to cluster {known}, the metadata server to {cluster}: give this daemon another \
                         data directory, or the address of its own cluster",
                        self.root.display()
                    ),
                ));
            }
            Some((_, known)) => {
                return Err(Failure::new(
                    Code::NodeRefused,
                    format!("{} is node {known}, the metadata server calls it {node}", self.root.display()),
                ));
            }
            None => {}
        }
        let record =
            Record { cluster: Some(Uuid::from_bytes(cluster.0)), node: Some(node.0), ..self.record.clone() };
        write(&self.root, &record).map_err(|error| {
            Failure::new(
                Code::InputOutput,
                format!("cannot write an identity to {}: {error}", self.root.display()),
            )
        })?;
        self.record = record;
        Ok(())
    }
}

/// A new disk may hold what mkfs leaves and what an interrupted formatting left, nothing else.
fn refuse_foreign_files(root: &Path) -> Result<(), Failure> {
    let unreadable = |error: std::io::Error| {
        Failure::new(Code::InputOutput, format!("cannot list {}: {error}", root.display()))
    };
    for entry in std::fs::read_dir(root).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name();
        if name != "lost+found" && name != TEMPORARY && name != LOCK {
            return Err(Failure::new(
                Code::Invalid,
                format!(
                    "{} holds {} but no {IDENTITY}: it is not a chunk daemon's disk, and it is not empty either",
                    root.display(),
                    name.display()
                ),
            ));
        }
    }
    Ok(())
}

fn read(root: &Path) -> Result<Option<Record>, Failure> {
    let path = root.join(IDENTITY);
    let bad = |why: String| Failure::new(Code::Corrupt, format!("{}: {why}", path.display()));
    let text = match std::fs::metadata(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Ok(metadata) if metadata.len() > MAX_LENGTH => return Err(bad("is too long for an identity".into())),
        Ok(_) => std::fs::read_to_string(&path),
        Err(error) => Err(error),
    };
    let text = text.map_err(|error| {
        Failure::new(Code::InputOutput, format!("cannot read {}: {error}", path.display()))
    })?;
    // The version first: another one may have other keys.
    let table: toml::Table = text.parse().map_err(|error| bad(format!("is not TOML: {error}")))?;
    match table.get("format").and_then(toml::Value::as_integer) {
        Some(format) if format == i64::from(FORMAT_VERSION) => {}
        Some(format) => {
            return Err(Failure::new(
                Code::VersionUnknown,
                format!(
                    "{} has disk format {format}, this program knows {FORMAT_VERSION}: use a later version of dfs",
                    root.display()
                ),
            ));
        }
        None => return Err(bad("does not tell the disk's format".into())),
    }
    let record: Record = toml::from_str(&text).map_err(|error| bad(error.to_string()))?;
    if record.cluster.is_some() != record.node.is_some() || record.node == Some(0) {
        return Err(bad("tells a cluster without a node, or a node without a cluster".into()));
    }
    Ok(Some(record))
}

/// Replaces the file: either the old or the new one is there after a crash.
fn write(root: &Path, record: &Record) -> std::io::Result<()> {
    let text = toml::to_string(record).map_err(std::io::Error::other)?;
    let temporary = root.join(TEMPORARY);
    let mut file = File::create(&temporary)?;
    file.write_all(b"# Whose disk this is. Written by dfs-chunk; never edit it.\n")?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&temporary, root.join(IDENTITY))?;
    File::open(root)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: ClusterId = ClusterId([7; 16]);

    #[test]
    fn a_disk_keeps_its_identity_and_serves_one_daemon() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("new");
        let mut disk = ClaimedDisk::claim(&root).unwrap();
        assert_eq!(disk.membership(), None);
        let id = disk.disk();
        assert_eq!(ClaimedDisk::claim(&root).err().unwrap().code, Code::Busy);
        disk.join(CLUSTER, NodeId(3)).unwrap();
        disk.join(CLUSTER, NodeId(3)).unwrap();
        assert_eq!(disk.join(ClusterId([8; 16]), NodeId(3)).unwrap_err().code, Code::WrongCluster);
        assert_eq!(disk.join(CLUSTER, NodeId(4)).unwrap_err().code, Code::NodeRefused);
        let files = disk.open(Buffers::default()).unwrap();
        drop(disk);
        assert_eq!(ClaimedDisk::claim(&root).err().unwrap().code, Code::Busy, "its files are in use");
        drop(files);
        let disk = ClaimedDisk::claim(&root).unwrap();
        assert_eq!((disk.disk(), disk.membership()), (id, Some((CLUSTER, NodeId(3)))));
    }

    #[test]
    fn only_an_empty_directory_is_formatted() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("lost+found")).unwrap();
        std::fs::write(directory.path().join("letter"), "dear").unwrap();
        let refused = ClaimedDisk::claim(directory.path()).err().unwrap();
        assert!(refused.message.contains("letter"), "{refused}");
        std::fs::remove_file(directory.path().join("letter")).unwrap();
        assert!(ClaimedDisk::claim(directory.path()).is_ok());
    }

    #[test]
    fn unknown_formats_and_damage_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let disk = Uuid::new_v4();
        let cases = [
            (format!("format = 3\ndisk = \"{disk}\"\nmore = 1\n"), Code::VersionUnknown),
            (format!("format = 2\ndisk = \"{disk}\"\nmore = 1\n"), Code::Corrupt),
            (format!("format = 2\ndisk = \"{disk}\"\nnode = 1\n"), Code::Corrupt),
            ("format = 2\n".to_owned(), Code::Corrupt),
            ("\u{1}".to_owned(), Code::Corrupt),
            (String::new(), Code::Corrupt),
        ];
        for (text, code) in cases {
            std::fs::write(directory.path().join(IDENTITY), &text).unwrap();
            assert_eq!(ClaimedDisk::claim(directory.path()).err().unwrap().code, code, "{text:?}");
        }
    }
}
