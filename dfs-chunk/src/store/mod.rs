//! What a chunk daemon keeps: shards on one disk.
//!
//! ```text
//! DATA DIRECTORY
//!   identity.toml        which disk, cluster and node this is (identity.rs)
//!   lock                 held by the daemon that has the disk
//!   tmp/                 files being written; cleared at start
//!   segments/N           small shards, many in a file; N is 8 hex digits (segments/)
//!   shards/xx/C.I        shard I of chunk C, 16 hex digits; xx is bits 12..20 of C (shard_file.rs)
//! ```
//!
//! A file under its final name is whole: it was durable before it was named. A shard in a segment is whole when its record
//! is. What is reported as held is in the index; only what is durable enters it.
//!
//! Arrows: incoming, reading → segments → shard_file, shared → index, disk. Nothing here knows the network.

mod buffers;
mod claims;
pub mod disk;
pub mod identity;
mod incoming;
mod index;
mod local_disk;
mod reading;
mod segments;
pub mod shard_file;
mod shared;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use dfs_proto::{ChunkId, ClusterId, Code, Failure, ShardIndex};

use self::claims::Claims;
use self::disk::{Disk, Listed};
use self::index::Index;
use self::segments::Segments;
use self::shard_file::ShardKey;
use self::shared::{Shared, shard_directory, shard_path};

pub use self::buffers::Buffers;
pub use self::incoming::{Blocks, Incoming};
pub use self::index::Page;
pub use self::local_disk::LocalDisk;
pub use self::reading::OpenShard;
pub use self::shard_file::first_bad_block;
pub use self::shared::{Reserve, Room};

const TEMPORARY: &str = "tmp";
const SHARD_DIRECTORIES: u64 = 256;

/// The shards of one disk.
pub struct Store {
    shared: Arc<Shared>,
    segments: Segments,
    claims: Arc<Claims>,
    buffers: Buffers,
    next_temporary: AtomicU64,
}

impl Store {
    /// Clears what a crash left, reads the segments, and lists the shard files. Blocking, some seconds on a large disk.
    pub fn start(
        disk: Arc<dyn Disk>,
        cluster: ClusterId,
        reserve: Reserve,
        buffers: Buffers,
    ) -> Result<Arc<Self>, Failure> {
        let started = Instant::now();
        let failed = |what: &str, error: std::io::Error| {
            Failure::new(Code::InputOutput, format!("cannot {what}: {error}"))
        };
        let made = disk.create_directory(Path::new(TEMPORARY));
        made.map_err(|error| failed("make the directory for temporary files", error))?;
        for number in 0..SHARD_DIRECTORIES {
            let made = disk.create_directory(&shard_directory(ChunkId(number << 12)));
            made.map_err(|error| failed("make the directories of the shards", error))?;
        }
        disk.sync_directory(Path::new("shards"))
            .and_then(|()| disk.sync_directory(Path::new("")))
            .map_err(|error| failed("make directories durable", error))?;
        for Listed { name, .. } in list(&*disk, Path::new(TEMPORARY))? {
            let removed = disk.remove(&Path::new(TEMPORARY).join(&name));
            removed.map_err(|error| failed("remove a temporary file", error))?;
        }
        let mut index = Index::new(Instant::now());
        let loaded = segments::load(&*disk, cluster, &mut index)?;
        let damaged = scan(&*disk, &mut index)?;
        let (shards, bytes) = (index.len(), index.used_bytes());
        let shared = Arc::new(Shared::new(disk, cluster, reserve, index));
        for key in damaged {
            shared.note_corrupt(key, &Failure::new(Code::Corrupt, "the length of its file is impossible"));
        }
        let segments = Segments::start(shared.clone(), loaded, &buffers)?;
        let elapsed_ms = started.elapsed().as_millis() as u64;
        tracing::info!(shards, bytes, elapsed_ms, "the shards are listed");
        let claims = Arc::new(Claims::default());
        Ok(Arc::new(Self { shared, segments, claims, buffers, next_temporary: AtomicU64::new(0) }))
    }

    /// Removes all shards of a chunk; done when none is there. They may come back after a crash.
    pub fn delete(&self, chunk: ChunkId) -> Result<(), Failure> {
        self.shared.check_writable()?;
        let _names = self.shared.names();
        let keys = self.shared.index().of_chunk(chunk);
        for key in keys {
            self.shared.open_files().pop(&key);
            let held = self.shared.index().get(key);
            if held.is_some_and(|held| held.place.is_none())
                && let Err(error) = self.shared.disk.remove(&shard_path(key))
                && error.kind() != std::io::ErrorKind::NotFound
            {
                return Err(self.shared.write_failed("remove a shard file", &error));
            }
            self.shared.index().remove(key);
        }
        Ok(())
    }

    /// At most `max` shards from chunk `first` on, sorted.
    pub fn page(&self, first: ChunkId, max: usize) -> Page {
        self.shared.index().page(first, max, Instant::now())
    }

    /// How many shards are here.
    pub fn shards(&self) -> u64 {
        self.shared.index().len() as u64
    }

    /// How much is here and how much fits.
    pub fn room(&self) -> Result<Room, Failure> {
        self.shared.room()
    }

    /// Whether the disk is read-only after an error.
    pub fn is_fenced(&self) -> bool {
        self.shared.is_fenced()
    }

    /// Chunks whose shard here is damaged and of which the metadata server does not know yet.
    pub fn corrupt(&self) -> Vec<ChunkId> {
        self.shared.corrupt()
    }

    /// The metadata server has been told of these.
    pub fn forget_corrupt(&self, told: &[ChunkId]) {
        self.shared.forget_corrupt(told);
    }

    /// Returns when there is something that the metadata server should hear at once.
    pub async fn news(&self) {
        self.shared.news.notified().await;
    }

    fn temporary_path(&self) -> PathBuf {
        Path::new(TEMPORARY).join(self.next_temporary.fetch_add(1, Ordering::Relaxed).to_string())
    }
}

/// Enters every shard file by its name in the index. Returns those whose length no shard has.
fn scan(disk: &dyn Disk, index: &mut Index) -> Result<Vec<ShardKey>, Failure> {
    let now = Instant::now();
    let mut damaged = Vec::new();
    for number in 0..SHARD_DIRECTORIES {
        let directory = shard_directory(ChunkId(number << 12));
        for Listed { name, length, age_ms } in list(disk, &directory)? {
            let key = parse_name(&name).filter(|key| shard_directory(key.chunk) == directory);
            let Some(key) = key else {
                tracing::warn!(path = %directory.join(name).display(), "not a shard file: left alone");
                continue;
            };
            if index.get(key).is_some() {
                // Its record, which was found whole, was written because the file is damaged.
                let removed = disk.remove(&directory.join(name));
                removed.map_err(|error| {
                    let what = format!("cannot remove a damaged shard file: {error}");
                    Failure::new(Code::InputOutput, what)
                })?;
                continue;
            }
            let known = shard_file::data_length(length);
            index.insert(key, known.unwrap_or(1), None, age_ms, now);
            damaged.extend(known.is_none().then_some(key));
        }
    }
    Ok(damaged)
}

fn list(disk: &dyn Disk, directory: &Path) -> Result<Vec<Listed>, Failure> {
    disk.list(directory).map_err(|error| {
        Failure::new(Code::InputOutput, format!("cannot list {}: {error}", directory.display()))
    })
}

/// `C.I` as [`shard_path`] writes it.
fn parse_name(name: &str) -> Option<ShardKey> {
    let (chunk, index) = name.split_once('.')?;
    let key = ShardKey {
        chunk: ChunkId(u64::from_str_radix(chunk, 16).ok()?),
        index: ShardIndex(index.parse().ok()?),
    };
    (shard_path(key).file_name()? == name).then_some(key)
}

#[cfg(test)]
mod faulty;
#[cfg(test)]
mod tests;
