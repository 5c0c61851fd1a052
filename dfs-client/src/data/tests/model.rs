//! Random operations on several files of two clients' caches, compared with arrays after each step.

use std::sync::atomic::{AtomicBool, Ordering};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

const FILES: usize = 3;
const SIZE: usize = 400_000;

async fn run(seed: u64, steps: usize, nodes: u64, class: &str) {
    println!("seed {seed}, {class}");
    let mut random = StdRng::seed_from_u64(seed);
    let bench = Bench::with(nodes, DataSettings { cache_bytes: 2 * MIB, ..DataSettings::default() }).await;
    let files: Vec<_> = (0..FILES).map(|i| bench.create_as(10 + i as u64, class)).collect();
    let mut model = vec![Vec::<u8>::new(); FILES];
    for step in 0..steps {
        let which = random.random_range(0..FILES);
        let (file, expected, ino) = (&files[which], &mut model[which], 10 + which as u64);
        match random.random_range(0..100) {
            0..40 => {
                let append = random.random_bool(0.2);
                let offset = if append { expected.len() } else { random.random_range(0..SIZE) };
                let most = if random.random_bool(0.1) { 200_000 } else { 9_000 };
                let data = pattern(random.random_range(1..most), step);
                let at = if append { WriteAt::End } else { WriteAt::Offset(offset as u64) };
                let used = match file.try_write(at, &data, false) {
                    Some(used) => used,
                    None => file.write(at, &data, false).await.unwrap(),
                };
                assert_eq!(used, offset as u64, "step {step}");
                expected.resize(expected.len().max(offset + data.len()), 0);
                expected[offset..offset + data.len()].copy_from_slice(&data);
            }
            40..75 => {
                let offset = random.random_range(0..SIZE + 50_000);
                let length = random.random_range(1..120_000);
                let bytes = match file.try_read(offset as u64, length) {
                    Some(bytes) => bytes,
                    None => file.read(offset as u64, length).await.unwrap(),
                };
                let end = (offset + length).min(expected.len());
                assert!(bytes[..] == expected[offset.min(end)..end], "step {step}: read {offset}+{length}");
            }
            75..85 => file.flush().await.unwrap(),
            85..88 => bench.plane.flush_all().await.unwrap(),
            88..92 => {
                // As a truncating caller does it.
                let size = random.random_range(0..SIZE);
                file.discard_from(size as u64);
                file.flush().await.unwrap();
                file.refresh(&bench.meta.truncate(ino, size as u64), None);
                expected.resize(size, 0);
            }
            92..96 => {
                let seen = file.overlay(bench.meta.attr(ino));
                assert_eq!(seen.size, expected.len() as u64, "step {step}");
            }
            _ => {
                // A flush begun and given up goes on by itself.
                let flush = file.flush();
                let _ =
                    tokio::time::timeout(Duration::from_micros(random.random_range(0..2000)), flush).await;
            }
        }
    }
    bench.plane.flush_all().await.unwrap();
    for (which, expected) in model.iter().enumerate() {
        assert!(!files[which].is_dirty());
        assert!(read_all(&files[which]).await == *expected, "file {which} here");
        assert!(bench.read_elsewhere(10 + which as u64).await == *expected, "file {which} elsewhere");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_operations_do_what_they_do_to_arrays() {
    for (nodes, class) in [
        (3, "replicated:3"),
        (3, "replicated:3,compress=lz4"),
        (3, "replicated:2,encrypt=k"),
        (6, "ec:4+2,compress=zstd,encrypt=k"),
    ] {
        run(rand::random(), 600, nodes, class).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_see_every_byte_whole_while_it_is_written_and_flushed() {
    let bench = Bench::new(3).await;
    bench.meta.slow_down(Duration::from_millis(2));
    let file = bench.create(7);
    // Every block is one number all over, which only grows; a reader never sees it shrink, and never anything else.
    const BLOCKS: usize = 64;
    const BLOCK: usize = 3000;
    write(&file, 0, &[1; BLOCKS * BLOCK]).await;
    let stop = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..4)
        .map(|salt| {
            let (file, stop) = (Arc::clone(&file), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut random = StdRng::seed_from_u64(salt);
                let (mut last, mut reads) = ([0; BLOCKS], 0);
                while !stop.load(Ordering::Relaxed) {
                    let block = random.random_range(0..BLOCKS);
                    let offset = (block * BLOCK) as u64;
                    let bytes = match file.try_read(offset, BLOCK) {
                        Some(bytes) => bytes,
                        None => file.read(offset, BLOCK).await.unwrap(),
                    };
                    assert_eq!(bytes.len(), BLOCK);
                    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a block of two writes");
                    assert!(
                        bytes[0] >= last[block],
                        "block {block} went back from {} to {}",
                        last[block],
                        bytes[0]
                    );
                    last[block] = bytes[0];
                    reads += 1;
                    tokio::task::yield_now().await;
                }
                reads
            })
        })
        .collect();
    let mut random = StdRng::seed_from_u64(99);
    for number in 2..=200u8 {
        for _ in 0..8 {
            let block = random.random_range(0..BLOCKS);
            write(&file, block * BLOCK, &[number; BLOCK]).await;
        }
        if number % 3 == 0 {
            file.flush().await.unwrap();
        }
    }
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        assert!(reader.await.unwrap() > 10, "the reader hardly ran");
    }
    file.flush().await.unwrap();
    assert!(bench.read_elsewhere(7).await == read_all(&file).await);
}
