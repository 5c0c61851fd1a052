//! Coherence with other clients, caching, reading ahead.

use dfs_proto::Code;
use dfs_proto::meta::{Plan, reply, request};

use super::*;
use crate::session::MetaCalls;

/// A file of another client, cold here.
async fn cold_file(bench: &Bench, ino: u64, bytes: &[u8]) -> Arc<InodeData> {
    let elsewhere = bench.another();
    let file = elsewhere.open(&bench.meta.create(ino, "replicated:3"), None);
    write(&file, 0, bytes).await;
    file.flush().await.unwrap();
    for node in &bench.nodes {
        node.take_counts();
    }
    bench.meta.take_calls("plan");
    bench.plane.open(&bench.meta.attr(ino), None)
}

/// Blocks that the nodes served; `None` when a busy machine made reads be hedged, so that some were served twice.
fn blocks_read(bench: &Bench) -> Option<usize> {
    let blocks = bench.nodes.iter().map(|node| node.take_counts().1).sum();
    (bench.plane.io.hedges() == 0).then_some(blocks)
}

#[tokio::test]
async fn a_small_random_read_fetches_its_block_and_nothing_else() {
    let bench = Bench::new(3).await;
    let bytes = pattern(30 * MIB, 3);
    let file = cold_file(&bench, 7, &bytes).await;
    for at in [5 * MIB + 100, 20 * MIB, 11 * MIB - 2000] {
        assert!(file.read(at as u64, 4096).await.unwrap() == bytes[at..at + 4096]);
    }
    assert!(blocks_read(&bench).is_none_or(|blocks| blocks == 4), "the last one lies in two blocks");
    assert_eq!(bench.meta.take_calls("plan"), 1);
    assert!(file.try_read((20 * MIB + 5000) as u64, 4096).unwrap() == bytes[20 * MIB + 5000..][..4096]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sequential_reader_finds_most_of_it_read_ahead_and_nothing_twice() {
    let bench = Bench::new(3).await;
    let bytes = pattern(24 * MIB, 3);
    let file = cold_file(&bench, 7, &bytes).await;
    let mut at_once = 0;
    for at in (0..bytes.len()).step_by(128 * KIB) {
        let piece = match file.try_read(at as u64, 128 * KIB) {
            Some(piece) => {
                at_once += 1;
                piece
            }
            None => file.read(at as u64, 128 * KIB).await.unwrap(),
        };
        assert!(piece == bytes[at..at + 128 * KIB]);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(blocks_read(&bench).is_none_or(|blocks| blocks == 24 * MIB / (64 * KIB)));
    assert!(at_once > 100, "only {at_once} of 192 reads were answered at once");
    assert_eq!(bench.meta.take_calls("plan"), 1);
}

#[tokio::test]
async fn a_small_file_is_on_its_way_as_soon_as_it_is_opened() {
    let bench = Bench::new(3).await;
    for (ino, length, comes) in [(7, 5_000, true), (8, 100_000, false)] {
        let bytes = pattern(length, 3);
        drop(cold_file(&bench, ino, &bytes).await);
        let plan = Plan { ino, offset: 0, length: 1 << 30, max_extents: 16 };
        let reply::Result::Plan(head) = bench.meta.read(request::Op::Plan(plan)).await.unwrap() else {
            panic!("a plan is answered with a plan")
        };
        let file = bench.plane.open(&bench.meta.attr(ino), Some(head));
        file.fetch_if_small();
        let mut here = None;
        for _ in 0..if comes { 1000 } else { 20 } {
            here = here.or_else(|| file.try_read(0, length));
            if here.is_some() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(here.is_some_and(|here| here == bytes), comes, "{length} bytes");
    }
}

#[tokio::test]
async fn readers_of_the_same_block_share_one_fetch() {
    let bench = Bench::new(3).await;
    let file = cold_file(&bench, 7, &pattern(MIB, 3)).await;
    bench
        .nodes
        .iter()
        .for_each(|node| node.break_with(crate::testing::Fault::Slow(Duration::from_millis(20))));
    let reads = (0..50).map(|_| file.read(300_000, 1000));
    for bytes in futures::future::join_all(reads).await {
        assert_eq!(bytes.unwrap().len(), 1000);
    }
    assert!(blocks_read(&bench).is_none_or(|blocks| blocks == 1));
}

#[tokio::test]
async fn the_head_that_came_with_the_open_saves_the_plan() {
    let bench = Bench::new(3).await;
    let bytes = pattern(5000, 3);
    cold_file(&bench, 7, &bytes).await;
    let op = Plan { ino: 7, offset: 0, length: 1 << 20, max_extents: 100 };
    let Ok(reply::Result::Plan(head)) = bench.meta.read(request::Op::Plan(op)).await else { panic!() };
    bench.meta.take_calls("plan");
    let file = bench.plane.open(&bench.meta.attr(7), Some(head.clone()));
    assert!(read_all(&file).await == bytes);
    assert_eq!(bench.meta.take_calls("plan"), 0);
    // A head that was overtaken is not believed.
    let attr = bench.meta.truncate(7, 100);
    file.refresh(&attr, None);
    file.refresh(&attr, Some(head));
    assert!(read_all(&file).await == bytes[..100]);
}

#[tokio::test]
async fn what_another_client_changed_is_seen_at_open_and_after_a_second() {
    let bench = Bench::new(3).await;
    let file = cold_file(&bench, 7, &pattern(100_000, 1)).await;
    assert!(read_all(&file).await == pattern(100_000, 1));
    let elsewhere = bench.another().open(&bench.meta.attr(7), None);
    write(&elsewhere, 50_000, b"changed").await;
    elsewhere.flush().await.unwrap();
    tokio::time::sleep(super::super::plan::PLAN_VALID_FOR).await;
    assert_eq!(file.read(50_000, 7).await.unwrap()[..], *b"changed");
    write(&elsewhere, 50_000, b"again!!").await;
    elsewhere.flush().await.unwrap();
    let opened = bench.plane.open(&bench.meta.attr(7), None);
    assert!(Arc::ptr_eq(&file, &opened));
    assert_eq!(file.read(50_000, 7).await.unwrap()[..], *b"again!!");
}

#[tokio::test]
async fn a_file_that_did_not_change_is_validated_by_one_small_call() {
    let bench = Bench::new(3).await;
    let file = cold_file(&bench, 7, &pattern(100_000, 1)).await;
    read_all(&file).await;
    tokio::time::sleep(super::super::plan::PLAN_VALID_FOR).await;
    bench.meta.take_calls("plan");
    assert!(file.try_read(0, 100).is_none(), "too old to be believed unasked");
    file.read(0, 100).await.unwrap();
    assert_eq!((bench.meta.take_calls("plan"), bench.meta.take_calls("get_attr")), (0, 1));
    assert!(file.try_read(0, 100).is_some());
}

#[tokio::test]
async fn files_with_more_extents_than_one_plan_are_read_whole() {
    let bench = Bench::new(3).await;
    let file = bench.create(7);
    for i in (0..3000).rev() {
        write(&file, i * 20, &[(i % 250) as u8 + 1; 10]).await;
    }
    file.flush().await.unwrap();
    let elsewhere = bench.another().open(&bench.meta.attr(7), None);
    let bytes = elsewhere.read(0, MIB).await.unwrap();
    assert_eq!(bytes.len(), 2999 * 20 + 10);
    for (i, byte) in bytes.iter().enumerate() {
        assert_eq!(*byte, if i % 20 < 10 { (i / 20 % 250) as u8 + 1 } else { 0 }, "at {i}");
    }
}

#[tokio::test]
async fn a_file_that_is_gone_is_stale_and_its_dirty_bytes_are_nobodys_error() {
    let bench = Bench::new(3).await;
    let (gone, kept) = (bench.create(7), bench.create(8));
    write(&gone, 0, b"gone").await;
    write(&kept, 0, b"kept").await;
    bench.meta.remove(7);
    bench.plane.flush_all().await.unwrap();
    assert!(!gone.is_dirty());
    assert_eq!(gone.read(0, 10).await.unwrap_err().code, Code::Stale);
    assert_eq!(bench.read_elsewhere(8).await, b"kept");
}
