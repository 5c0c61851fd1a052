use std::collections::BTreeMap;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use dfs_proto::Class;
use dfs_proto::limits::{BLOCK_SIZE, MAX_FRAME_DATA};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
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
        let class = Class::Replicated { copies: 3 };
        let header = ShardHeader { cluster: CLUSTER, key: key(chunk), class, length: data.len() as u32 };
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

#[tokio::test]
async fn shards_of_all_lengths_are_kept_over_a_restart_and_deleted() {
    let mut bench = Bench::new();
    let lengths =
        [1, SMALL, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, LARGE, 2 * MAX_FRAME_DATA, 3_333_333];
    for round in 0..2 {
        for (chunk, &length) in (1..).zip(&lengths) {
            if round == 0 {
                bench.put(chunk, length).await.unwrap();
            }
            assert!(bench.get(chunk).unwrap() == content(chunk, length), "{length} bytes in round {round}");
        }
        assert_eq!(bench.held(), (1..=lengths.len() as u64).collect::<Vec<_>>());
        bench = bench.restart();
    }
    let used = |&length: &usize| match length {
        ..=BLOCK_SIZE => (128 + length as u64).next_multiple_of(4096),
        _ => shard_file::file_length(length as u32),
    };
    let used: u64 = lengths.iter().map(used).sum();
    assert_eq!(bench.store.shared.index().used_bytes(), used);
    for chunk in 1..=lengths.len() as u64 {
        bench.store.delete(ChunkId(chunk)).unwrap();
        bench.store.delete(ChunkId(chunk)).unwrap();
        assert_eq!(bench.get(chunk).unwrap_err().code, Code::NotFound);
        assert!(!bench.path(chunk).exists());
    }
    assert_eq!((bench.store.shards(), bench.temporary_files()), (0, 0));
}

#[tokio::test]
async fn the_same_again_is_accepted_and_anything_else_is_not() {
    let bench = Bench::new();
    for (chunk, length) in [(1, SMALL), (2, LARGE)] {
        bench.put(chunk, length).await.unwrap();
        bench.put(chunk, length).await.unwrap();
        assert_eq!(bench.put(chunk, length + 1).await.unwrap_err().code, Code::Exists);
        let other = bench.put_bytes(chunk, content(chunk + 1, length)).await;
        assert_eq!(other.unwrap_err().code, Code::Exists);
        assert!(bench.get(chunk).unwrap() == content(chunk, length));
    }
    let (first, second) = tokio::join!(bench.put(3, LARGE), bench.put(3, LARGE));
    assert_eq!((first, second), (Ok(()), Ok(())), "both at once");
}

#[tokio::test]
async fn small_shards_fill_one_segment_after_the_other() {
    let bench = Bench::new();
    bench.put_records(1..=50).await;
    let read = |bench: &Bench| {
        for chunk in 1..=50 {
            assert!(bench.get(chunk).unwrap() == content(chunk, BLOCK_SIZE), "chunk {chunk}");
        }
    };
    read(&bench);
    assert!(bench.segments() >= 4, "there are fifteen in each");
    let bench = bench.restart();
    assert_eq!(bench.held(), (1..=50).collect::<Vec<_>>());
    read(&bench);
    bench.put_records(51..=80).await;
    assert_eq!(bench.restart().held(), (1..=80).collect::<Vec<_>>());
}

#[tokio::test]
async fn many_small_shards_at_once_share_a_flush() {
    let bench = Arc::new(Bench::new());
    let before = bench.faults.syncs.load(Relaxed);
    let puts: Vec<_> = (1..=100)
        .map(|chunk| {
            let bench = bench.clone();
            tokio::spawn(async move { bench.put(chunk, 100).await })
        })
        .collect();
    for put in puts {
        put.await.unwrap().unwrap();
    }
    let syncs = bench.faults.syncs.load(Relaxed) - before;
    assert!(syncs < 100, "{syncs} flushes for 100 shards");
    assert_eq!(bench.store.shards(), 100);
}

#[tokio::test]
async fn what_is_deleted_from_segments_is_given_back_to_the_disk() {
    let bench = Bench::new();
    bench.put_records(1..=50).await;
    let before = bench.segment_bytes();
    // Of the first segment all, of the second each other one.
    let deleted = |chunk: u64| chunk <= 15 || (chunk <= 30 && chunk.is_multiple_of(2));
    for chunk in (1..=50).filter(|&chunk| deleted(chunk)) {
        bench.store.delete(ChunkId(chunk)).unwrap();
    }
    let left = before - 22 * (BLOCK_SIZE as u64 + 4096);
    eventually("the space is free", || bench.segment_bytes() <= left).await;
    assert!(!bench.segment(0).exists());
    let kept: Vec<u64> = (1..=50).filter(|&chunk| !deleted(chunk)).collect();
    for bench in [bench.restart().restart()] {
        assert_eq!(bench.held(), kept);
        for &chunk in &kept {
            assert!(bench.get(chunk).unwrap() == content(chunk, BLOCK_SIZE), "chunk {chunk}");
        }
        for &chunk in &kept {
            bench.store.delete(ChunkId(chunk)).unwrap();
        }
        eventually("only the spare is left", || bench.segments() == 1).await;
    }
}

#[tokio::test]
async fn what_is_deleted_does_not_come_back_with_the_next_start() {
    let bench = Bench::new();
    for chunk in 1..=5 {
        bench.put(chunk, SMALL).await.unwrap();
    }
    bench.store.delete(ChunkId(3)).unwrap();
    let bench = bench.restart();
    assert_eq!(bench.held(), [1, 2, 4, 5]);
    let spare = 1 << 20;
    eventually("what was never written is free", || bench.segment_bytes() <= 4096 + 4 * 8192 + spare).await;
}

#[tokio::test]
async fn a_disk_too_small_for_segments_gets_files() {
    let directory = tempfile::tempdir().unwrap();
    let tiny = Space { total_bytes: 32 << 20, ..SMALL_DISK };
    let (store, faults) =
        start(directory.path(), |faults| *faults.space.lock().unwrap() = Some(tiny)).unwrap();
    let bench = Bench { directory, store, faults };
    bench.put(1, SMALL).await.unwrap();
    assert!(bench.get(1).unwrap() == content(1, SMALL));
    assert!(bench.path(1).exists() && bench.segments() == 0);
    // A damaged file is healed by a record.
    let bench = bench.restart();
    let whole = std::fs::read(bench.path(1)).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(bench.path(1)).unwrap();
    file.write_all_at(&[0xff; 4], 5000).unwrap();
    assert_eq!(bench.get(1).unwrap_err().code, Code::Corrupt);
    bench.put(1, SMALL).await.unwrap();
    assert!(bench.get(1).unwrap() == content(1, SMALL));
    assert!(!bench.path(1).exists());
    // A crash before the file was gone leaves both.
    std::fs::write(bench.path(1), whole).unwrap();
    let bench = bench.restart();
    assert_eq!((bench.held(), bench.path(1).exists()), (vec![1], false));
    assert!(bench.get(1).unwrap() == content(1, SMALL));
}

/// Puts, deletions, readings and restarts at random, compared with what should be there.
#[tokio::test]
async fn random_operations_leave_what_they_should() {
    let seed = std::env::var("DFS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut bench = Bench::new();
    let mut expected = BTreeMap::new();
    let mut next = 1;
    for _ in 0..600 {
        let some = |expected: &BTreeMap<u64, usize>, random: &mut StdRng| {
            expected
                .iter()
                .nth(random.random_range(0..expected.len().max(1)))
                .map(|(&chunk, &length)| (chunk, length))
        };
        match random.random_range(0..100) {
            0..50 => {
                let length = random.random_range(1..=BLOCK_SIZE + 2000);
                bench.put(next, length).await.unwrap();
                expected.insert(next, length);
                next += 1;
            }
            50..75 => {
                if let Some((chunk, _)) = some(&expected, &mut random) {
                    bench.store.delete(ChunkId(chunk)).unwrap();
                    expected.remove(&chunk);
                }
            }
            75..98 => {
                if let Some((chunk, length)) = some(&expected, &mut random) {
                    assert!(
                        bench.get(chunk).unwrap() == content(chunk, length),
                        "chunk {chunk}, seed {seed}"
                    );
                }
            }
            _ => bench = bench.restart(),
        }
    }
    let bench = bench.restart();
    assert_eq!(bench.held(), expected.keys().copied().collect::<Vec<_>>(), "seed {seed}");
    for (chunk, length) in expected {
        assert!(bench.get(chunk).unwrap() == content(chunk, length), "chunk {chunk}, seed {seed}");
    }
}

#[tokio::test]
async fn a_torn_record_is_not_held_and_hides_none_behind_it() {
    let bench = Bench::new();
    for chunk in 1..=3 {
        bench.put(chunk, SMALL).await.unwrap();
    }
    let log = bench.segment(0);
    let Bench { directory, store, .. } = bench;
    drop(store);
    // The second record's data: the header, one record of two pages, a record's header.
    let file = std::fs::OpenOptions::new().write(true).open(log).unwrap();
    file.write_all_at(&[0xff; 16], 4096 + 2 * 4096 + 128 + 1000).unwrap();
    let (store, faults) = start(directory.path(), |_| {}).unwrap();
    let bench = Bench { directory, store, faults };
    assert_eq!(bench.held(), [1, 3]);
    assert!(bench.get(3).unwrap() == content(3, SMALL));
}

#[tokio::test]
async fn a_segment_without_its_header_is_still_read() {
    let bench = Bench::new();
    for chunk in 1..=3 {
        bench.put(chunk, SMALL).await.unwrap();
    }
    let log = bench.segment(0);
    let Bench { directory, store, .. } = bench;
    drop(store);
    let file = std::fs::OpenOptions::new().write(true).open(log).unwrap();
    file.write_all_at(&[0xff; 100], 10).unwrap();
    let (store, faults) = start(directory.path(), |_| {}).unwrap();
    let bench = Bench { directory, store, faults };
    assert_eq!(bench.held(), [1, 2, 3]);
}

#[tokio::test]
async fn segments_of_others_are_refused() {
    let bench = Bench::new();
    bench.put(1, SMALL).await.unwrap();
    let log = bench.segment(0);
    let Bench { directory, store, .. } = bench;
    drop(store);
    let disk = Arc::new(FaultyDisk::new(directory.path()));
    let other = Store::start(disk, ClusterId([6; 16]), Reserve::Bytes(0), Buffers::default());
    assert_eq!(other.err().unwrap().code, Code::WrongCluster);
    let file = std::fs::OpenOptions::new().write(true).read(true).open(log).unwrap();
    let mut header = [0; 4096];
    file.read_exact_at(&mut header, 0).unwrap();
    header[8] = 9;
    let crc = crc32c::crc32c(&header[..4092]);
    header[4092..].copy_from_slice(&crc.to_le_bytes());
    file.write_all_at(&header, 0).unwrap();
    assert_eq!(start(directory.path(), |_| {}).err().unwrap().code, Code::VersionUnknown);
}

#[tokio::test]
async fn a_full_disk_is_told_and_leaves_nothing() {
    let bench = Bench::new();
    bench.put(1, LARGE).await.unwrap();
    *bench.faults.room.lock().unwrap() = Some(300_000);
    assert_eq!(bench.put(2, LARGE).await.unwrap_err().code, Code::NoSpace);
    assert_eq!((bench.held(), bench.temporary_files()), (vec![1], 0));
    assert!(!bench.store.is_fenced());
    bench.store.delete(ChunkId(1)).unwrap();
    *bench.faults.room.lock().unwrap() = None;
    bench.put(2, LARGE).await.unwrap();
}

#[tokio::test]
async fn small_shards_fill_the_segment_that_is_there_while_the_disk_is_full() {
    let bench = Bench::new();
    *bench.faults.room.lock().unwrap() = Some(100_000);
    let mut held = Vec::new();
    // The segment is full and no other can be made, then the plain way finds no room either.
    for chunk in 1.. {
        assert!(chunk < 100, "a segment is bounded");
        match bench.put(chunk, BLOCK_SIZE).await {
            Ok(()) => held.push(chunk),
            Err(failure) => {
                assert_eq!(failure.code, Code::NoSpace);
                break;
            }
        }
    }
    assert!(held.len() >= 15 && !bench.store.is_fenced());
    for &chunk in &held {
        assert!(bench.get(chunk).unwrap() == content(chunk, BLOCK_SIZE));
    }
    let bench = bench.restart();
    assert_eq!(bench.held(), held);
}

#[tokio::test]
async fn the_reserve_is_kept_and_promises_count() {
    let bench = Bench::new();
    let space = Space { free_bytes: 1_000_000, ..SMALL_DISK };
    *bench.faults.space.lock().unwrap() = Some(space);
    let class = Class::Replicated { copies: 3 };
    let header = |chunk| ShardHeader { cluster: CLUSTER, key: key(chunk), class, length: 600_000 };
    let first = bench.store.receive(header(1)).await.unwrap();
    assert!(bench.store.room().unwrap().available_bytes < 400_000);
    assert_eq!(bench.store.receive(header(2)).await.err().unwrap().code, Code::NoSpace);
    drop(first);
    eventually("the promise is given back", || bench.store.room().unwrap().available_bytes == 1_000_000)
        .await;
    assert_eq!(bench.temporary_files(), 0, "what was dropped half way leaves nothing");
    bench.put(2, 600_000).await.unwrap();
}

#[tokio::test]
async fn an_error_of_fdatasync_ends_all_writing() {
    let bench = Bench::new();
    bench.put(1, LARGE).await.unwrap();
    bench.faults.sync_fails.store(true, Relaxed);
    assert_eq!(bench.put(2, LARGE).await.unwrap_err().code, Code::InputOutput);
    assert!(bench.store.is_fenced());
    // The disk says yes again, and must not be believed.
    bench.faults.sync_fails.store(false, Relaxed);
    assert_eq!(bench.put(2, LARGE).await.unwrap_err().code, Code::InputOutput);
    assert_eq!(bench.put(3, SMALL).await.unwrap_err().code, Code::InputOutput);
    assert!(bench.store.delete(ChunkId(1)).is_err());
    assert!(bench.get(1).unwrap() == content(1, LARGE), "reading goes on");
    assert_eq!((bench.held(), bench.temporary_files()), (vec![1], 0));
    let bench = bench.restart();
    assert_eq!(bench.held(), [1]);
    bench.put(2, LARGE).await.unwrap();
}

#[tokio::test]
async fn a_name_that_is_not_durable_is_not_acknowledged() {
    let bench = Bench::new();
    bench.faults.sync_directory_fails.store(true, Relaxed);
    assert_eq!(bench.put(1, LARGE).await.unwrap_err().code, Code::InputOutput);
    assert!(bench.store.is_fenced() && bench.held().is_empty());
}

#[tokio::test]
async fn an_error_of_a_segment_ends_all_writing() {
    let bench = Bench::new();
    bench.put(1, SMALL).await.unwrap();
    bench.faults.log_fails.store(true, Relaxed);
    assert_eq!(bench.put(2, SMALL).await.unwrap_err().code, Code::InputOutput);
    assert!(bench.store.is_fenced());
    assert!(bench.get(1).unwrap() == content(1, SMALL));
    assert_eq!(bench.held(), [1]);
}

#[tokio::test]
async fn a_segment_that_cannot_be_tidied_is_still_read() {
    let bench = Bench::new();
    bench.put_records(1..=20).await;
    bench.faults.free_fails.store(true, Relaxed);
    bench.store.delete(ChunkId(1)).unwrap();
    eventually("the fence is up", || bench.store.is_fenced()).await;
    for chunk in 2..=20 {
        assert!(bench.get(chunk).unwrap() == content(chunk, BLOCK_SIZE));
    }
}

#[tokio::test]
async fn a_damaged_record_is_told_and_healed_by_a_new_copy() {
    let bench = Bench::new();
    for chunk in 1..=3 {
        bench.put(chunk, SMALL).await.unwrap();
    }
    let file = std::fs::OpenOptions::new().write(true).open(bench.segment(0)).unwrap();
    let record = |number: u64| 4096 + number * 8192;
    for (chunk, at) in [(1, record(0) + 20), (2, record(1) + 128), (3, record(2) + 128 + SMALL as u64 - 1)] {
        assert!(bench.get(chunk).is_ok());
        file.write_all_at(&[0xff], at).unwrap();
        assert_eq!(bench.get(chunk).unwrap_err().code, Code::Corrupt, "a byte at {at}");
    }
    assert_eq!(bench.store.corrupt(), [ChunkId(1), ChunkId(2), ChunkId(3)]);
    assert!(bench.held().is_empty());
    for chunk in 1..=3 {
        bench.put(chunk, SMALL).await.unwrap();
        assert!(bench.get(chunk).unwrap() == content(chunk, SMALL));
    }
    let bench = bench.restart();
    assert_eq!(bench.held(), [1, 2, 3]);
    bench.faults.read_fails.store(true, Relaxed);
    assert_eq!(bench.get(1).unwrap_err().code, Code::InputOutput);
}

#[tokio::test]
async fn damage_is_found_reported_once_and_healed_by_a_new_copy() {
    let bench = Bench::new();
    bench.put(1, LARGE).await.unwrap();
    bench.put(2, LARGE).await.unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(bench.path(1)).unwrap();
    file.write_all_at(&[0xff; 4], 4096 + 3 * BLOCK_SIZE as u64).unwrap();
    for _ in 0..2 {
        assert_eq!(bench.get(1).unwrap_err().code, Code::Corrupt);
    }
    assert_eq!(bench.store.corrupt(), [ChunkId(1)]);
    assert_eq!(bench.held(), [2], "what is damaged is not reported as held");
    bench.store.forget_corrupt(&[ChunkId(1)]);
    assert!(bench.store.corrupt().is_empty());
    bench.put(1, LARGE).await.unwrap();
    assert!(bench.get(1).unwrap() == content(1, LARGE));
    assert_eq!(bench.held(), [1, 2]);
}

#[tokio::test]
async fn a_file_stays_open_from_its_writing_until_it_is_deleted() {
    let bench = Bench::new();
    bench.put(1, LARGE).await.unwrap();
    assert!(bench.get(1).unwrap() == content(1, LARGE));
    assert_eq!(bench.faults.headers_read.load(Relaxed), 0, "header and table are as they were written");
    bench.close_files();
    assert!(bench.get(1).unwrap() == content(1, LARGE));
    assert_eq!(bench.faults.headers_read.load(Relaxed), 1);
    // The data is verified all the same.
    bench.put(2, LARGE).await.unwrap();
    bench.faults.flip_at.store(5000, Relaxed);
    assert_eq!(bench.get(2).unwrap_err().code, Code::Corrupt);
    bench.faults.flip_at.store(u64::MAX, Relaxed);
    bench.store.delete(ChunkId(1)).unwrap();
    assert!(bench.store.shared.open_files().get(&key(1)).is_none(), "its space would stay taken");
}

#[tokio::test]
async fn bits_that_flip_on_the_way_are_found() {
    let bench = Bench::new();
    bench.put(1, LARGE).await.unwrap();
    for at in [0, 4000, 4096, 4096 + LARGE as u64 - 1, 4096 + LARGE as u64 + 3] {
        bench.close_files();
        bench.faults.flip_at.store(at, Relaxed);
        assert_eq!(bench.get(1).unwrap_err().code, Code::Corrupt, "a bit at {at}");
    }
    bench.faults.flip_at.store(u64::MAX, Relaxed);
    assert!(bench.get(1).unwrap() == content(1, LARGE));
}

#[tokio::test]
async fn missing_short_and_unreadable_files_are_errors() {
    let bench = Bench::new();
    for chunk in 1..=4 {
        bench.put(chunk, LARGE).await.unwrap();
    }
    std::fs::remove_file(bench.path(1)).unwrap();
    let short = std::fs::OpenOptions::new().write(true).open(bench.path(2)).unwrap();
    short.set_len(LARGE as u64).unwrap();
    bench.close_files();
    assert_eq!(bench.get(1).unwrap_err().code, Code::Corrupt);
    assert_eq!(bench.get(2).unwrap_err().code, Code::Corrupt);
    bench.faults.read_fails.store(true, Relaxed);
    assert_eq!(bench.get(3).unwrap_err().code, Code::InputOutput);
    assert_eq!(bench.store.corrupt(), [ChunkId(1), ChunkId(2), ChunkId(3)]);
    assert!(!bench.store.is_fenced(), "reads fence nothing");
}

#[tokio::test]
async fn a_start_clears_what_a_crash_left_and_tells_impossible_files() {
    let bench = Bench::new();
    bench.put(1, LARGE).await.unwrap();
    std::fs::write(bench.directory.path().join("tmp/17"), b"half").unwrap();
    std::fs::write(bench.directory.path().join("shards/00/letter.txt"), b"dear").unwrap();
    std::fs::write(bench.path(2), b"not a shard").unwrap();
    let bench = bench.restart();
    assert_eq!((bench.held(), bench.temporary_files()), (vec![1], 0));
    assert_eq!(bench.store.corrupt(), [ChunkId(2)]);
    assert_eq!(bench.get(2).unwrap_err().code, Code::Corrupt);
    assert!(bench.directory.path().join("shards/00/letter.txt").exists());
    bench.put(2, SMALL).await.unwrap();
    assert!(bench.get(2).unwrap() == content(2, SMALL));
}

#[test]
fn names_of_files_are_read_as_they_are_written() {
    for key in [key(1), key(0x12_3456), ShardKey { chunk: ChunkId(u64::MAX), index: ShardIndex(4) }] {
        let path = shard_path(key);
        assert_eq!(parse_name(path.file_name().unwrap().to_str().unwrap()), Some(key));
    }
    for bad in [
        "",
        "x",
        "1.0",
        "0000000000000001",
        "0000000000000001.00",
        "+000000000000001.0",
        "000000000000000A.0",
    ] {
        assert_eq!(parse_name(bad), None, "{bad:?}");
    }
    assert_eq!(shard_path(key(0x1234_5678)).to_str().unwrap(), "shards/45/0000000012345678.0");
}
