//! Small shards in segments.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

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
