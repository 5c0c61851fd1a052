//! Packing, write-back, memory, appends.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use dfs_proto::{Ino, Timestamp};

use super::*;

#[tokio::test]
async fn many_small_files_flushed_together_share_few_chunks() {
    let bench = Bench::new(3).await;
    let files: Vec<_> = (0..100).map(|i| bench.create(100 + i)).collect();
    for (i, file) in files.iter().enumerate() {
        write(file, 0, &pattern(4096 + i, i)).await;
    }
    bench.plane.flush_all().await.unwrap();
    let (chunks, commits) = (bench.meta.sealed().len(), bench.meta.take_calls("commit"));
    assert!(chunks <= 2 && commits <= 2, "{chunks} chunks, {commits} commits");
    for i in 0..100 {
        assert!(bench.read_elsewhere(100 + i as u64).await == pattern(4096 + i, i));
    }
}

#[tokio::test]
async fn a_lone_flush_takes_one_put_on_each_node_and_one_commit() {
    let bench = Bench::new(3).await;
    let file = bench.create(7);
    write(&file, 0, b"first").await;
    file.flush().await.unwrap();
    for node in &bench.nodes {
        node.take_counts();
    }
    bench.meta.take_calls("commit");
    bench.meta.take_calls("allocate");
    write(&file, 5, b"second").await;
    file.flush().await.unwrap();
    file.flush().await.unwrap();
    assert!(bench.nodes.iter().all(|node| node.take_counts().0 == 1));
    assert_eq!((bench.meta.take_calls("commit"), bench.meta.take_calls("allocate")), (1, 0));
    assert_eq!(bench.read_elsewhere(7).await, b"firstsecond");
}

#[tokio::test]
async fn what_nobody_flushes_is_written_back_by_age() {
    let settings = DataSettings { write_back_after: Duration::from_millis(300), ..DataSettings::default() };
    let bench = Bench::with(3, settings).await;
    let file = bench.create(7);
    write(&file, 0, b"abc").await;
    drop(file);
    let begun = Instant::now();
    eventually("writing back", || bench.meta.attr(7).size == 3).await;
    assert!(begun.elapsed() < Duration::from_secs(2));
    eventually("letting go", || bench.plane.get(Ino(7)).is_none()).await;
    assert_eq!(bench.read_elsewhere(7).await, b"abc");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_larger_than_the_budget_flows_through_it() {
    let settings = DataSettings {
        dirty_budget_bytes: 24 * MIB,
        write_back_after: Duration::from_secs(600),
        ..DataSettings::default()
    };
    let bench = Bench::with(3, settings).await;
    let file = bench.create(7);
    let piece = pattern(MIB, 1);
    for i in 0..100 {
        let at = WriteAt::Offset((i * MIB) as u64);
        if file.try_write(at, &piece, false).is_none() {
            file.write(at, &piece, false).await.unwrap();
        }
        assert!(file.lock().layers.bytes() <= 24 * MIB as u64);
    }
    file.flush().await.unwrap();
    assert_eq!(bench.meta.attr(7).size, 100 * MIB as u64);
    let elsewhere = bench.another().open(&bench.meta.attr(7), None);
    for i in [0, 37, 99] {
        assert!(elsewhere.read((i * MIB) as u64, MIB).await.unwrap() == piece);
    }
    let extents = bench.meta.extents(7);
    assert!(extents.len() <= 40, "{} extents for one stream", extents.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_writers_of_many_files_share_a_small_budget() {
    let settings = DataSettings { dirty_budget_bytes: 4 * MIB, ..DataSettings::default() };
    let bench = Bench::with(3, settings).await;
    let writers: Vec<_> = (0..8)
        .map(|i| {
            let file = bench.create(20 + i as u64);
            tokio::spawn(async move {
                for step in 0..40 {
                    write(&file, step * 100_000, &pattern(100_000, i)).await;
                }
                file.flush().await.unwrap();
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    for i in 0..8 {
        let expected: Vec<u8> = (0..40).flat_map(|_| pattern(100_000, i)).collect();
        assert!(bench.read_elsewhere(20 + i as u64).await == expected);
    }
}

#[tokio::test]
async fn scattered_small_writes_are_one_flush_and_read_back() {
    let bench = Bench::new(3).await;
    let file = bench.create(7);
    for i in 0..8192usize {
        let at = i * 7919 % 8192 * 12_288;
        write(&file, at, &[(i % 251) as u8 + 1; 4096]).await;
    }
    file.flush().await.unwrap();
    assert!(bench.meta.sealed().len() <= 6);
    let elsewhere = bench.another().open(&bench.meta.attr(7), None);
    for i in [0usize, 1, 4000, 8191] {
        let at = (i * 7919 % 8192 * 12_288) as u64;
        let bytes = elsewhere.read(at, 4096).await.unwrap();
        assert!(bytes.iter().all(|byte| *byte == (i % 251) as u8 + 1));
        if at > 0 {
            assert_eq!(elsewhere.read(at - 8, 8).await.unwrap()[..], [0; 8], "a hole before it");
        }
    }
}

#[tokio::test]
async fn appends_of_two_clients_are_all_kept_whole() {
    let moved = Arc::new(AtomicU64::new(0));
    let told = Arc::clone(&moved);
    let settings = DataSettings {
        on_stale: Arc::new(move |ino| {
            told.fetch_add(ino.0, Ordering::Relaxed);
        }),
        ..DataSettings::default()
    };
    let bench = Bench::with(3, settings).await;
    let here = bench.create(7);
    let there = bench.another().open(&bench.meta.attr(7), None);
    let append =
        async |file: &Arc<InodeData>, text: &[u8]| file.write(WriteAt::End, text, false).await.unwrap();
    append(&here, b"a1 ").await;
    append(&there, b"b1 ").await;
    append(&there, b"b2 ").await;
    there.flush().await.unwrap();
    here.flush().await.unwrap();
    assert_eq!(moved.load(Ordering::Relaxed), 7, "the kernel's cache of the file is told");
    assert_eq!(append(&here, b"a2 ").await, 9);
    assert_eq!(read_all(&here).await, b"b1 b2 a1 a2 ");
    append(&there, b"b3 ").await;
    there.flush().await.unwrap();
    here.flush().await.unwrap();
    assert_eq!(bench.read_elsewhere(7).await, b"b1 b2 a1 b3 a2 ");
}

#[tokio::test]
async fn attributes_show_what_is_dirty_here() {
    let bench = Bench::new(3).await;
    let file = bench.create(7);
    let before = Timestamp::now();
    write(&file, 10_000, &[1; 100]).await;
    file.write(WriteAt::End, &[1; 50], true).await.unwrap();
    let seen = file.overlay(bench.meta.attr(7));
    assert_eq!((seen.size, seen.allocated_bytes), (10_150, 150));
    assert_eq!(seen.mode, 0o0755, "a write by somebody else clears the set-id bits");
    assert!(Timestamp::from(seen.mtime.unwrap()) >= before && seen.ctime == seen.mtime);
    let stale = bench.meta.attr(7);
    file.flush().await.unwrap();
    let fresh = bench.meta.attr(7);
    assert_eq!((fresh.size, fresh.allocated_bytes), (10_150, 150));
    assert_eq!(fresh.mtime, seen.mtime, "committed with the time of the last write");
    assert_eq!(
        file.overlay(stale).size,
        10_150,
        "an answer overtaken by the commit does not shrink the file"
    );
}

#[tokio::test]
async fn the_largest_file_ends_where_offsets_do() {
    let bench = Bench::new(3).await;
    let file = bench.create(7);
    let end = i64::MAX as u64;
    assert!(file.try_write(WriteAt::Offset(end), b"x", false).is_none());
    assert_eq!(file.write(WriteAt::Offset(end), b"x", false).await.unwrap_err().errno(), 27, "EFBIG");
    assert!(file.write(WriteAt::Offset(u64::MAX), b"x", false).await.is_err());
    file.write(WriteAt::Offset(end - 1), b"x", false).await.unwrap();
    file.flush().await.unwrap();
    assert_eq!(file.read(end - 3, 100).await.unwrap()[..], *b"\0\0x");
}
