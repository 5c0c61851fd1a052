use std::time::Instant;

use tokio::runtime::Handle;

use super::*;
use crate::testing::{CLUSTER, DATA_AT, LocalDoor, listen_for, shard_file, unused_node};

/// Bytes that differ from block to block.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 13 % 255) as u8).collect()
}

#[tokio::test]
async fn ranges_are_read_from_one_file_and_verified() {
    let (data, node) = (pattern(5 * BLOCK_SIZE + 77), unused_node());
    let (file, place) = shard_file(&data);
    let file = file.as_file();
    let door = LocalDoor::open(node, file, place);
    assert!(is_here(CLUSTER, node) && !is_here(CLUSTER, unused_node()));
    let shards = Arc::new(LocalShards::new(CLUSTER));
    let name = ShardName { node, chunk: 5, index: 2 };
    let length = data.len() as u64;
    let read = async |from: usize, to: usize| {
        shards.read(name, length, from as u64, (to - from) as u64).await.map(|read| read == data[from..to])
    };
    for (from, to) in [(0, 1), (1, 3), (0, 5), (4, 6), (5, 6), (0, 6)] {
        let (from, to) = (from * BLOCK_SIZE, (to * BLOCK_SIZE).min(data.len()));
        assert_eq!(read(from, to).await, Some(true), "{from}..{to}");
    }
    // A block that goes bad is not returned; the others are, as soon as the file is asked for again.
    std::os::unix::fs::FileExt::write_all_at(file, b"bad", u64::from(DATA_AT) + 2 * BLOCK_SIZE as u64)
        .unwrap();
    assert_eq!(read(BLOCK_SIZE, 3 * BLOCK_SIZE).await, None);
    assert_eq!(read(0, BLOCK_SIZE).await, Some(true));
    file.set_len(u64::from(DATA_AT) + BLOCK_SIZE as u64).unwrap();
    assert_eq!(read(4 * BLOCK_SIZE, 5 * BLOCK_SIZE).await, None, "the file is too short");
    assert_eq!(read(0, BLOCK_SIZE).await, Some(true));
    // Another length than the plan tells, and a shard of one block: not this way.
    let other = ShardName { chunk: 6, ..name };
    assert_eq!(shards.read(other, length + 1, 0, BLOCK_SIZE as u64).await, None);
    assert_eq!(shards.read(other, BLOCK_SIZE as u64, 0, BLOCK_SIZE as u64).await, None);
    assert_eq!(door.close(), 4, "once, once after each that was bad, and once in vain");
    let gone = ShardName { chunk: 7, ..name };
    assert_eq!(shards.read(gone, length, 0, BLOCK_SIZE as u64).await, None);
    assert_eq!(read(0, BLOCK_SIZE).await, Some(true), "what is open is read without its daemon");
}

#[tokio::test]
async fn a_daemon_that_does_not_answer_is_not_waited_for() {
    let node = unused_node();
    let _listener = listen_for(node, 1);
    let shards = Arc::new(LocalShards::new(CLUSTER));
    let started = Instant::now();
    // More than there are threads for, or room before the door.
    const EXCESS: usize = 8;
    let reads = (0..(MAX_READS + EXCESS) as u64).map(|chunk| {
        let (shards, name) = (shards.clone(), ShardName { node, chunk, index: 0 });
        async move {
            assert_eq!(shards.read(name, 1 << 20, 0, 1 << 20).await, None);
            started.elapsed()
        }
    });
    let ended = futures::future::join_all(reads).await;
    let at_once = |after: &&Duration| **after < Duration::from_millis(PATIENCE_MS as u64) / 2;
    assert!(ended.iter().filter(at_once).count() >= EXCESS, "{ended:?}");
    is_here(CLUSTER, node);
    assert!(started.elapsed() < 3 * Duration::from_millis(PATIENCE_MS as u64), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn what_is_deleted_or_idle_is_closed_and_nobody_sweeps_when_nothing_is_open() {
    let data = pattern(2 * BLOCK_SIZE);
    let shards = Arc::new(LocalShards::new(CLUSTER));
    let doors = [(); 2].map(|()| {
        let ((file, place), node) = (shard_file(&data), unused_node());
        (LocalDoor::open(node, file.as_file(), place), ShardName { node, chunk: 1, index: 0 }, file)
    });
    let [(kept_door, busy, _named), (deleted_door, deleted, file)] = doors;
    let idle = ShardName { chunk: 2, ..busy };
    let read = async |name| {
        let read = shards.read(name, data.len() as u64, 0, BLOCK_SIZE as u64).await;
        assert!(read.unwrap() == data[..BLOCK_SIZE]);
    };
    let open = |name| Arc::downgrade(&shards.open_files().shards.peek(&name).unwrap().shard);
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let start = tokio::time::Instant::now();
    let sweep = async |number| tokio::time::sleep_until(start + SWEEP_EVERY * number + SWEEP_EVERY / 2).await;
    let idle_sweeps = MAX_IDLE.div_duration_f32(SWEEP_EVERY) as u32;

    assert_eq!(tasks(), 0, "nothing is open");
    for name in [busy, idle, deleted] {
        read(name).await;
    }
    assert_eq!(tasks(), 1, "one sweeper for all");
    let [busy_file, idle_file, deleted_file] = [busy, idle, deleted].map(open);
    sweep(1).await;
    assert!([&busy_file, &idle_file, &deleted_file].iter().all(|file| file.strong_count() == 1));
    drop(file);
    read(deleted).await;
    let reader = shards.get(&deleted);
    sweep(2).await;
    assert_eq!(deleted_file.strong_count(), 2, "not closed under its reader");
    drop(reader);
    sweep(3).await;
    assert_eq!(deleted_file.strong_count(), 0, "deleted");
    for number in 4..=idle_sweeps {
        assert_eq!(idle_file.strong_count(), 1, "not idle for long, sweep {number}");
        read(busy).await;
        sweep(number).await;
    }
    assert_eq!((idle_file.strong_count(), busy_file.strong_count()), (0, 1), "idle, and in use");
    sweep(2 * idle_sweeps).await;
    assert_eq!((busy_file.strong_count(), tasks()), (0, 0), "nothing is open any more");

    read(busy).await;
    assert_eq!(tasks(), 1, "swept again");
    drop(shards);
    tokio::time::sleep(SWEEP_EVERY * 2).await;
    assert_eq!(tasks(), 0, "who has gone needs no sweeper");
    assert_eq!((kept_door.close(), deleted_door.close()), (3, 1));
}
