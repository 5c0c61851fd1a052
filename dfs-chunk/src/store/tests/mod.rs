//! A store on a disk that fails when told to.

mod files;
mod segments;

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use dfs_proto::Redundancy;
use dfs_proto::limits::{BLOCK_SIZE, MAX_FRAME_DATA};
use tempfile::TempDir;

use super::disk::Space;
use super::faulty::{Faults, FaultyDisk};
use super::shard_file::ShardHeader;
use super::*;

const CLUSTER: ClusterId = ClusterId([5; 16]);
/// A disk so small that its segments take 1 MiB each: fifteen of the longest records.
const SMALL_DISK: Space = Space { total_bytes: 64 << 20, free_bytes: 32 << 20 };
const SMALL: usize = 5000;
const LARGE: usize = 700_000;

/// A store on a disk that fails when told to.
struct Bench {
    directory: TempDir,
    store: Arc<Store>,
    faults: Arc<Faults>,
}

fn key(chunk: u64) -> ShardKey {
    ShardKey { chunk: ChunkId(chunk), index: ShardIndex(0) }
}

/// Bytes that differ from chunk to chunk.
fn content(chunk: u64, length: usize) -> Vec<u8> {
    (0..length as u64).map(|i| (i * 7 + chunk * 13 + i / 65_536) as u8).collect()
}

fn start(root: &Path, faults: impl FnOnce(&Faults)) -> Result<(Arc<Store>, Arc<Faults>), Failure> {
    let disk = FaultyDisk::new(root);
    faults(&disk.faults);
    let faults = disk.faults.clone();
    let store = Store::start(Arc::new(disk), CLUSTER, Reserve::Bytes(0), Buffers::default())?;
    Ok((store, faults))
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (store, faults) =
            start(directory.path(), |faults| *faults.space.lock().unwrap() = Some(SMALL_DISK)).unwrap();
        Self { directory, store, faults }
    }

    /// Ends the store and starts it again on a disk without faults.
    fn restart(self) -> Self {
        let Self { directory, store, .. } = self;
        drop(store);
        let (store, faults) =
            start(directory.path(), |faults| *faults.space.lock().unwrap() = Some(SMALL_DISK)).unwrap();
        Self { directory, store, faults }
    }

    async fn put_bytes(&self, chunk: u64, data: Vec<u8>) -> Result<(), Failure> {
        let redundancy = Redundancy::Replicated { copies: 3 };
        let header = ShardHeader { cluster: CLUSTER, key: key(chunk), redundancy, length: data.len() as u32 };
        let mut incoming = self.store.receive(header).await?;
        for frame in data.chunks(MAX_FRAME_DATA / 4) {
            let crc32c = frame.chunks(BLOCK_SIZE).map(crc32c::crc32c).collect();
            incoming.append(Blocks { data: Bytes::copy_from_slice(frame), crc32c, held: None }).await;
        }
        incoming.finish().await
    }

    async fn put(&self, chunk: u64, length: usize) -> Result<(), Failure> {
        self.put_bytes(chunk, content(chunk, length)).await
    }

    fn get(&self, chunk: u64) -> Result<Vec<u8>, Failure> {
        let shard = self.store.open(key(chunk))?;
        let length = shard.header().length as usize;
        let mut data = Vec::new();
        while data.len() < length {
            let part = (length - data.len()).min(MAX_FRAME_DATA);
            let (frame, crcs) = self.store.read(&shard, data.len() as u64, part)?;
            assert_eq!(first_bad_block(&frame, &crcs), None);
            data.extend_from_slice(&frame);
        }
        Ok(data)
    }

    fn held(&self) -> Vec<u64> {
        self.store.page(ChunkId(0), 1000).shards.iter().map(|(key, ..)| key.chunk.0).collect()
    }

    /// Closes what stays open from writing or reading, so that the next reader opens it.
    fn close_files(&self) {
        self.store.shared.open_files().clear();
    }

    fn path(&self, chunk: u64) -> PathBuf {
        self.directory.path().join(shard_path(key(chunk)))
    }

    fn temporary_files(&self) -> usize {
        std::fs::read_dir(self.directory.path().join(TEMPORARY)).unwrap().count()
    }

    fn segment(&self, id: u32) -> PathBuf {
        self.directory.path().join(format!("segments/{id:08x}"))
    }

    fn segments(&self) -> usize {
        std::fs::read_dir(self.directory.path().join("segments")).unwrap().count()
    }

    /// Bytes that all segments take of the disk.
    fn segment_bytes(&self) -> u64 {
        let segments = std::fs::read_dir(self.directory.path().join("segments")).unwrap();
        segments
            .map(|entry| entry.and_then(|entry| entry.metadata()).map_or(0, |file| file.blocks() * 512))
            .sum()
    }

    /// Puts the longest of small shards, each as soon as there is room for it in a segment.
    async fn put_records(&self, chunks: std::ops::RangeInclusive<u64>) {
        for chunk in chunks {
            eventually("there is a segment", || self.store.segments.has_room()).await;
            self.put(chunk, BLOCK_SIZE).await.unwrap();
            assert!(!self.path(chunk).exists(), "chunk {chunk} has a file of its own");
        }
    }
}

async fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    for _ in 0..500 {
        if is() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}
