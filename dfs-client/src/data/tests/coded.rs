//! Coded classes: what is lost is rebuilt, and only that; short chunks are copied; nodes fail while they are written.

use std::time::Instant;

use dfs_proto::limits::BLOCK_SIZE;

use super::*;
use crate::testing::Fault;

const CLASS: &str = "ec:4+2";

/// Forgets what was counted so far.
fn reset(bench: &Bench) {
    bench.nodes.iter().for_each(|node| {
        node.take_counts();
    });
}

/// Blocks read since [`reset`], by node.
fn blocks_read(bench: &Bench) -> Vec<usize> {
    bench.nodes.iter().map(|node| node.take_counts().1).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_two_shards_may_be_lost_of_chunks_of_any_length() {
    let lengths =
        [1, 5000, 4 * BLOCK_SIZE - 1, 4 * BLOCK_SIZE, 4 * BLOCK_SIZE + 1, MIB + 777, 3 * MIB + 100_000];
    let bench = Bench::new(6).await;
    for (ino, length) in (10..).zip(lengths) {
        let file = bench.create_as(ino, CLASS);
        write(&file, 0, &pattern(length, ino as usize)).await;
        file.flush().await.unwrap();
        let expected = if length < 4 * BLOCK_SIZE { "replicated:3" } else { CLASS };
        let chunk = bench.meta.extents(ino)[0].chunk;
        assert_eq!(bench.meta.sealed()[&chunk].redundancy, expected, "{length} bytes");
    }
    for fault in [Fault::None, Fault::Corrupt, Fault::Forgets] {
        for (first, second) in [(0, 1), (0, 5), (1, 3), (2, 4), (3, 5), (4, 5)] {
            bench.nodes.iter().for_each(|node| node.break_with(Fault::None));
            bench.nodes[first].break_with(fault);
            bench.nodes[second].break_with(fault);
            for (ino, length) in (10..).zip(lengths) {
                let read = bench.read_elsewhere(ino).await;
                assert!(
                    read == pattern(length, ino as usize),
                    "{length} bytes, {fault:?} on {first} and {second}"
                );
            }
        }
    }
    assert!(!bench.meta.reports().is_empty(), "what was found bad was told");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_the_parity_lost_is_an_error_and_never_other_bytes() {
    let bench =
        Bench::with(6, DataSettings { timeout: Duration::from_millis(500), ..DataSettings::default() }).await;
    let file = bench.create_as(7, CLASS);
    let bytes = pattern(2 * MIB, 1);
    write(&file, 0, &bytes).await;
    file.flush().await.unwrap();
    for lost in 1..=5 {
        bench.nodes[..lost].iter().for_each(|node| node.break_with(Fault::Forgets));
        let cold = bench.another().open(&bench.meta.attr(7), None);
        for block in 0..32 {
            match cold.read((block * BLOCK_SIZE) as u64, BLOCK_SIZE).await {
                Ok(read) => assert!(read == bytes[block * BLOCK_SIZE..(block + 1) * BLOCK_SIZE]),
                Err(failure) => assert!(lost > 2 && failure.errno() == 5, "{lost} lost: {failure}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_read_asks_one_shard_and_a_degraded_one_as_many_as_it_needs() {
    let bench = Bench::new(6).await;
    let file = bench.create_as(7, CLASS);
    let bytes = pattern(4 * MIB, 1);
    write(&file, 0, &bytes).await;
    file.flush().await.unwrap();
    let at = 17 * BLOCK_SIZE + 300;
    let expected = &bytes[at..at + 4096];
    let read = async || {
        for _ in 0..50 {
            let plane = bench.another();
            let cold = plane.open(&bench.meta.attr(7), None);
            reset(&bench);
            assert!(cold.read(at as u64, 4096).await.unwrap() == expected);
            // On a busy machine an answer may take so long that others are asked, too.
            if plane.io.hedges() == 0 {
                return blocks_read(&bench);
            }
        }
        panic!("every read was hedged");
    };
    let healthy = read().await;
    assert_eq!(healthy.iter().sum::<usize>(), 1, "{healthy:?}");
    let holder = healthy.iter().position(|blocks| *blocks > 0).unwrap();
    bench.nodes[holder].break_with(Fault::Forgets);
    let degraded = read().await;
    assert_eq!(degraded.iter().sum::<usize>(), 4, "one row of four: {degraded:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_and_hanging_shards_are_raced() {
    let bench = Bench::new(6).await;
    let file = bench.create_as(7, CLASS);
    let bytes = pattern(2 * MIB, 1);
    write(&file, 0, &bytes).await;
    file.flush().await.unwrap();
    for fault in [Fault::Slow(Duration::from_secs(20)), Fault::Hangs] {
        for slow in [[0, 3], [1, 5]] {
            bench.nodes.iter().for_each(|node| node.break_with(Fault::None));
            slow.iter().for_each(|&node| bench.nodes[node].break_with(fault));
            let begun = Instant::now();
            assert!(bench.read_elsewhere(7).await == bytes, "{fault:?} on {slow:?}");
            assert!(begun.elapsed() < Duration::from_secs(5), "{fault:?}: {:?}", begun.elapsed());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_fail_while_they_are_written_are_replaced_or_done_without() {
    for (nodes, dead, shards, class) in [(8, 2, 6, CLASS), (6, 1, 5, CLASS), (6, 2, 3, "replicated:3")] {
        for fault in [None, Some(Fault::Full), Some(Fault::Broken)] {
            let bench = Bench::new(nodes).await;
            let file = bench.create_as(7, CLASS);
            for node in &bench.nodes[1..=dead] {
                match fault {
                    None => node.kill(),
                    Some(fault) => node.break_with(fault),
                }
            }
            let bytes = pattern(3 * MIB + 1, dead);
            write(&file, 0, &bytes).await;
            file.flush().await.unwrap();
            for plan in bench.meta.sealed().values() {
                assert_eq!(
                    (plan.shards.len(), &plan.redundancy[..]),
                    (shards, class),
                    "{dead} of {nodes}, {fault:?}"
                );
            }
            assert!(bench.read_elsewhere(7).await == bytes, "{dead} of {nodes}, {fault:?}");
        }
    }
}
