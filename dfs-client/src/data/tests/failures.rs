//! Nodes that are dead, slow, full or lie; a server that refuses.

use std::time::Instant;

use dfs_proto::Code;

use super::*;
use crate::testing::Fault;

fn impatient() -> DataSettings {
    DataSettings { timeout: Duration::from_millis(1500), ..DataSettings::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_node_is_replaced_while_writing_small_and_large() {
    for length in [5000, 5 * MIB] {
        for dead in 0..4 {
            let bench = Bench::new(4).await;
            let file = bench.create(7);
            bench.nodes[dead].kill();
            let begun = Instant::now();
            write(&file, 0, &pattern(length, dead)).await;
            file.flush().await.unwrap();
            assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
            for plan in bench.meta.sealed().values() {
                assert_eq!(plan.shards.len(), 3, "another node took the shard");
            }
            assert!(bench.read_elsewhere(7).await == pattern(length, dead));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_copies_will_do_when_no_other_node_is_left_and_one_will_not() {
    for length in [5000, 5 * MIB] {
        for dead in 0..3 {
            let bench = Bench::with(3, impatient()).await;
            bench.nodes[dead].kill();
            let file = bench.create(7);
            write(&file, 0, &pattern(length, 1)).await;
            file.flush().await.unwrap();
            assert!(bench.meta.sealed().values().all(|plan| plan.shards.len() == 2));
            assert!(bench.read_elsewhere(7).await == pattern(length, 1));
            bench.nodes[(dead + 1) % 3].kill();
            write(&file, 0, &pattern(length, 2)).await;
            let begun = Instant::now();
            assert_eq!(file.flush().await.unwrap_err().errno(), 5, "EIO");
            assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
            assert!(!file.is_dirty(), "what cannot be written does not fill the memory for ever");
            assert!(
                bench.read_elsewhere(7).await == pattern(length, 1),
                "what was there before is there still"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_fails_behind_the_first_one_breaks_only_its_own_shard() {
    let bench = Bench::new(5).await;
    let file = bench.create(7);
    for (i, fault) in [Fault::Broken, Fault::Full].into_iter().enumerate() {
        bench.nodes.iter().for_each(|node| node.break_with(Fault::None));
        bench.nodes[2 * i].break_with(fault);
        for round in 0..4 {
            write(&file, 0, &pattern(3 * MIB, round)).await;
            file.flush().await.unwrap();
        }
        assert!(bench.read_elsewhere(7).await == pattern(3 * MIB, 3));
        assert!(bench.meta.sealed().values().all(|plan| plan.shards.len() == 3));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_cluster_says_so_promptly_and_to_each_who_wrote() {
    let bench = Bench::new(3).await;
    bench.nodes.iter().for_each(|node| node.break_with(Fault::Full));
    let file = bench.create(7);
    let (mut early, mut late) = (file.errors_seen_by_now(), 0);
    write(&file, 0, b"abc").await;
    let begun = Instant::now();
    assert_eq!(file.flush().await.unwrap_err().code, Code::NoSpace);
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert_eq!(file.errors_since(&mut early).unwrap().code, Code::NoSpace, "once for each handle");
    assert!(file.errors_since(&mut early).is_none());
    assert_eq!(file.errors_since(&mut late).unwrap().code, Code::NoSpace);
    let mut opened_later = file.errors_seen_by_now();
    assert!(file.errors_since(&mut opened_later).is_none());
    assert_eq!(bench.meta.attr(7).size, 0);
    bench.nodes.iter().for_each(|node| node.break_with(Fault::None));
    write(&file, 0, b"def").await;
    file.flush().await.unwrap();
    assert_eq!(bench.read_elsewhere(7).await, b"def");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_while_writing_back_is_told_and_blocks_nothing() {
    let bench = Bench::new(3).await;
    let file = bench.create(7);
    // More often than there are slots for uploads.
    for _ in 0..12 {
        bench.meta.panic_once("commit");
        write(&file, 0, b"lost").await;
        let told = tokio::time::timeout(Duration::from_secs(5), file.flush()).await;
        assert_eq!(told.expect("whoever waits is told").unwrap_err().errno(), 5, "EIO");
    }
    write(&file, 0, b"kept").await;
    file.flush().await.unwrap();
    assert_eq!(bench.read_elsewhere(7).await, b"kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_hears_of_a_full_cluster_before_it_closes() {
    let settings = DataSettings { dirty_budget_bytes: 8 * MIB, ..DataSettings::default() };
    let bench = Bench::with(3, settings).await;
    bench.meta.fail("allocate", Code::NoSpace, usize::MAX);
    let file = bench.create(7);
    let mut written = 0;
    let failure = loop {
        match file.write(WriteAt::End, &[1; 256 * KIB], false).await {
            Ok(_) => written += 256 * KIB,
            Err(failure) => break failure,
        }
        assert!(written < 64 * MIB, "the writer never hears");
    };
    assert_eq!(failure.code, Code::NoSpace);
}

#[tokio::test]
async fn refused_chunks_are_written_again_under_fresh_ids() {
    let bench = Bench::new(3).await;
    let file = bench.create(7);
    write(&file, 0, b"first").await;
    file.flush().await.unwrap();
    bench.meta.forget_plans();
    write(&file, 0, b"second").await;
    file.flush().await.unwrap();
    bench.meta.fail("commit", Code::ChunkRefused, 2);
    write(&file, 6, b" third").await;
    file.flush().await.unwrap();
    assert_eq!(bench.read_elsewhere(7).await, b"second third");
    bench.meta.fail("commit", Code::ChunkRefused, usize::MAX);
    write(&file, 0, b"never").await;
    assert_eq!(file.flush().await.unwrap_err().errno(), 5, "but not for ever");
}

#[tokio::test]
async fn a_server_that_is_away_for_a_moment_is_waited_for() {
    let bench = Bench::new(3).await;
    bench.meta.fail("allocate", Code::Unavailable, 2);
    bench.meta.fail("commit", Code::Grace, 2);
    bench.meta.fail("plan", Code::Unavailable, 2);
    let file = bench.create(7);
    write(&file, 0, b"patience").await;
    file.flush().await.unwrap();
    assert_eq!(bench.read_elsewhere(7).await, b"patience");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_go_to_another_copy_whatever_is_wrong_with_the_first() {
    let bytes = pattern(3 * MIB, 5);
    for fault in [Fault::Corrupt, Fault::Forgets, Fault::Hangs, Fault::Slow(Duration::from_secs(20))] {
        let bench = Bench::new(3).await;
        let file = bench.create(7);
        write(&file, 0, &bytes).await;
        file.flush().await.unwrap();
        for bad in 0..2 {
            bench.nodes[bad].break_with(fault);
            let begun = Instant::now();
            assert!(bench.read_elsewhere(7).await == bytes, "{fault:?}");
            assert!(begun.elapsed() < Duration::from_secs(5), "{fault:?}: {:?}", begun.elapsed());
        }
        let reported = |code| bench.meta.reports().iter().filter(|report| report.code() == code).count();
        match fault {
            Fault::Corrupt => assert!(reported(Code::Corrupt) > 0),
            Fault::Forgets => assert!(reported(Code::NotFound) > 0),
            _ => assert!(bench.meta.reports().is_empty(), "slow is not bad"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_hangs_is_soon_not_asked_any_more() {
    let bench = Bench::new(3).await;
    let file = bench.create(7);
    let bytes = pattern(48 * MIB, 3);
    write(&file, 0, &bytes).await;
    file.flush().await.unwrap();
    for hanging in 0..3 {
        bench.nodes.iter().for_each(|node| node.break_with(Fault::None));
        bench.nodes[hanging].break_with(Fault::Hangs);
        let reader = bench.another();
        let file = reader.open(&bench.meta.attr(7), None);
        let begun = Instant::now();
        // A third of the places would be asked of that node. Backwards, so that nothing is read ahead.
        for at in (0..bytes.len()).step_by(MIB).rev() {
            assert!(file.read(at as u64, 4096).await.unwrap() == bytes[at..at + 4096]);
        }
        let hedges = reader.io.hedges();
        assert!((1..=4).contains(&hedges), "{hedges} of 48 reads had to be hedged");
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_survive_dead_nodes_and_fail_when_the_last_is_gone() {
    let bench = Bench::with(3, impatient()).await;
    let file = bench.create(7);
    let bytes = pattern(MIB, 5);
    write(&file, 0, &bytes).await;
    file.flush().await.unwrap();
    for node in &bench.nodes[..2] {
        node.kill();
        assert!(bench.read_elsewhere(7).await == bytes);
    }
    bench.nodes[2].kill();
    let elsewhere = DataPlane::new(Arc::clone(&bench.meta) as _, CLUSTER, bench.meta.keys(), impatient());
    let cold = elsewhere.open(&bench.meta.attr(7), None);
    let begun = Instant::now();
    assert_eq!(cold.read(0, 100).await.unwrap_err().errno(), 5, "EIO, never zeros");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_every_copy_lost_are_an_error_at_once() {
    let bench = Bench::new(3).await;
    let file = bench.create(7);
    write(&file, 0, &pattern(2 * MIB, 5)).await;
    file.flush().await.unwrap();
    for fault in [Fault::Corrupt, Fault::Forgets] {
        bench.nodes.iter().for_each(|node| node.break_with(fault));
        let cold = bench.another().open(&bench.meta.attr(7), None);
        let begun = Instant::now();
        assert_eq!(cold.read(0, 100).await.unwrap_err().errno(), 5);
        assert!(begun.elapsed() < Duration::from_secs(2));
    }
}
