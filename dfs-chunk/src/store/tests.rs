use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use dfs_proto::Class;
use dfs_proto::limits::{BLOCK_SIZE, MAX_FRAME_DATA};
use tempfile::TempDir;

use super::disk::Space;
use super::faulty::{Faults, FaultyDisk};
use super::shard_file::ShardHeader;
use super::*;

const CLUSTER: ClusterId = ClusterId([5; 16]);
/// A disk so small that its intake logs take 1 MiB each: some fifteen of the longest records.
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

    /// Ends the store without any last work, as a crash does, and starts it again on a disk without faults.
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

    /// Puts small shards from `first` on until a log is full and the shard `first` has its file.
    async fn fill_log(&self, first: u64) -> u64 {
        let mut next = first;
        while !self.path(first).exists() {
            assert!(next < first + 200, "a full log is emptied");
            self.put(next, BLOCK_SIZE).await.unwrap();
            next += 1;
        }
        next
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
    let used: u64 = lengths.iter().map(|&length| shard_file::file_length(length as u32)).sum();
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
async fn small_shards_get_files_and_their_logs_are_used_again() {
    let bench = Bench::new();
    let mut next = 1;
    for _ in 0..3 {
        next = bench.fill_log(next).await;
    }
    for chunk in 1..next {
        assert!(bench.get(chunk).unwrap() == content(chunk, BLOCK_SIZE), "chunk {chunk}");
    }
    let bench = bench.restart();
    assert_eq!(bench.held(), (1..next).collect::<Vec<_>>());
    for chunk in 1..next {
        assert!(bench.get(chunk).unwrap() == content(chunk, BLOCK_SIZE), "chunk {chunk} after a restart");
    }
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
async fn a_shard_deleted_before_it_has_a_file_gets_none() {
    let bench = Bench::new();
    bench.put(1, SMALL).await.unwrap();
    bench.store.delete(ChunkId(1)).unwrap();
    let next = bench.fill_log(2).await;
    eventually("the log is empty", || bench.path(next - 10).exists()).await;
    assert!(!bench.path(1).exists());
    assert_eq!(bench.get(1).unwrap_err().code, Code::NotFound);
}

#[tokio::test]
async fn a_torn_record_is_not_held_and_hides_none_behind_it() {
    let bench = Bench::new();
    for chunk in 1..=3 {
        bench.put(chunk, SMALL).await.unwrap();
    }
    let log = bench.directory.path().join("intake/0.log");
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
async fn a_log_without_its_header_is_still_replayed() {
    let bench = Bench::new();
    for chunk in 1..=3 {
        bench.put(chunk, SMALL).await.unwrap();
    }
    let log = bench.directory.path().join("intake/0.log");
    let Bench { directory, store, .. } = bench;
    drop(store);
    let file = std::fs::OpenOptions::new().write(true).open(log).unwrap();
    file.write_all_at(&[0xff; 100], 10).unwrap();
    let (store, faults) = start(directory.path(), |_| {}).unwrap();
    let bench = Bench { directory, store, faults };
    assert_eq!(bench.held(), [1, 2, 3]);
}

#[tokio::test]
async fn logs_of_others_are_refused() {
    let bench = Bench::new();
    bench.put(1, SMALL).await.unwrap();
    let log = bench.directory.path().join("intake/0.log");
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
async fn small_shards_wait_in_the_log_while_the_disk_is_full() {
    let bench = Bench::new();
    *bench.faults.room.lock().unwrap() = Some(100_000);
    let mut held = Vec::new();
    // Two logs are full, then the plain way finds no room either.
    for chunk in 1.. {
        assert!(chunk < 100, "the logs are bounded");
        match bench.put(chunk, BLOCK_SIZE).await {
            Ok(()) => held.push(chunk),
            Err(failure) => {
                assert_eq!(failure.code, Code::NoSpace);
                break;
            }
        }
    }
    assert!(held.len() > 20 && !bench.store.is_fenced());
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
async fn an_error_of_the_log_ends_all_writing() {
    let bench = Bench::new();
    bench.put(1, SMALL).await.unwrap();
    bench.faults.log_sync_fails.store(true, Relaxed);
    assert_eq!(bench.put(2, SMALL).await.unwrap_err().code, Code::InputOutput);
    assert!(bench.store.is_fenced());
    assert!(bench.get(1).unwrap() == content(1, SMALL));
    assert_eq!(bench.held(), [1]);
}

#[tokio::test]
async fn logs_are_kept_until_the_files_are_durable() {
    let bench = Bench::new();
    bench.faults.sync_all_fails.store(true, Relaxed);
    let mut chunk = 0;
    while !bench.store.is_fenced() {
        chunk += 1;
        assert!(chunk < 100, "a failed sync fences");
        if bench.put(chunk, BLOCK_SIZE).await.is_err() {
            break;
        }
    }
    eventually("the fence is up", || bench.store.is_fenced()).await;
    let held = bench.held();
    // A power cut takes every file that was never durable.
    for &chunk in &held {
        let _ = std::fs::write(bench.path(chunk), b"torn");
    }
    let bench = bench.restart();
    assert_eq!(bench.held(), held);
    for &chunk in &held {
        assert!(bench.get(chunk).unwrap() == content(chunk, BLOCK_SIZE));
    }
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
