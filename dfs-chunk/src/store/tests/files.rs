//! Shards with files of their own, and what is the same for all shards.

use std::os::unix::fs::FileExt;

use super::*;

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

/// Puts, deletions, readings and restarts at random, compared with what should be there.

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
async fn the_reserve_is_kept_and_promises_count() {
    let bench = Bench::new();
    let space = Space { free_bytes: 1_000_000, ..SMALL_DISK };
    *bench.faults.space.lock().unwrap() = Some(space);
    let redundancy = Redundancy::Replicated { copies: 3 };
    let header = |chunk| ShardHeader { cluster: CLUSTER, key: key(chunk), redundancy, length: 600_000 };
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
