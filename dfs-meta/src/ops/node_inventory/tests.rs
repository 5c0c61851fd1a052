use std::time::Duration;

use dfs_proto::meta::{NodeHeartbeat, ReportShard, request};

use super::super::testing::{Bench, answer};
use super::*;

const OLD: u64 = 3_600_000;

fn shard(chunk: u64, index: u32, length: u64, age_ms: u64) -> HeldShard {
    HeldShard { chunk, index, length, age_ms }
}

/// A page of node 1's list.
fn page(bench: &mut Bench, first: u64, last: u64, shards: &[HeldShard]) -> Result<Done, Failure> {
    let op = NodeInventory { node: 1, epoch: 1, first, last, shards: shards.to_vec() };
    answer!(bench.run(request::Op::NodeInventory(op)), Done)
}

/// Three nodes, a file in three chunks, and what node 1 should hold of it.
fn written() -> (Bench, Vec<HeldShard>) {
    let mut bench = Bench::with_nodes(3);
    let ino = bench.file("f");
    let chunks: Vec<u64> = (0..3).map(|at| bench.write(ino, &[(at * 100, 100)])).collect();
    let held = chunks.iter().map(|&chunk| {
        let record = bench.chunk(chunk).unwrap();
        let mine = record.shards.iter().find(|shard| shard.node == 1).unwrap();
        shard(chunk, mine.index, 100, OLD)
    });
    let held = held.collect();
    (bench, held)
}

/// Which of the chunks are lost on node 1.
fn lost(bench: &Bench, held: &[HeldShard]) -> Vec<bool> {
    let lost =
        |chunk: u64| bench.chunk(chunk).unwrap().shards.iter().any(|shard| shard.node == 1 && shard.lost);
    held.iter().map(|shard| lost(shard.chunk)).collect()
}

fn asked(bench: &mut Bench) {
    assert!(bench.beat(1, 1 << 40).send_inventory);
}

fn orders(bench: &mut Bench) -> Vec<u64> {
    bench.beat(1, 1 << 40).delete
}

#[test]
fn what_a_list_lacks_is_lost_until_it_turns_up() {
    let (mut bench, held) = written();
    asked(&mut bench);
    page(&mut bench, 0, held[0].chunk, &[]).unwrap();
    assert_eq!(lost(&bench, &held), [true, false, false], "a page says nothing about what is outside of it");
    page(&mut bench, held[0].chunk + 1, u64::MAX, &held[1..2]).unwrap();
    assert_eq!(lost(&bench, &held), [true, false, true]);
    bench.check();
    assert!(!bench.beat(1, 1 << 40).send_inventory, "the list is complete");
    let plan = bench.plan_of("f");
    let shards: Vec<usize> = plan.chunks.iter().map(|chunk| chunk.shards.len()).collect();
    assert_eq!(shards, [2, 3, 2], "readers are not sent to lost shards");

    page(&mut bench, 0, u64::MAX, &held).unwrap();
    assert_eq!(lost(&bench, &held), [true, false, true], "nobody asked: the list may be old");
    bench.uptime += bench.settings.inventory_interval;
    asked(&mut bench);
    page(&mut bench, 0, u64::MAX, &held).unwrap();
    assert_eq!(lost(&bench, &held), [false; 3]);
    bench.check();
}

#[test]
fn what_was_written_after_the_list_was_asked_for_is_not_missing() {
    let (mut bench, held) = written();
    asked(&mut bench);
    let ino = bench.file("later");
    let later = bench.write(ino, &[(0, 100)]);
    page(&mut bench, 0, u64::MAX, &held).unwrap();
    assert_eq!(lost(&bench, &[shard(later, 0, 100, 0)]), [false]);
    assert_eq!(lost(&bench, &held), [false; 3]);
}

#[test]
fn a_corrupt_or_short_shard_is_not_healed_by_being_listed() {
    let (mut bench, held) = written();
    let beat = NodeHeartbeat { node: 1, epoch: 1, corrupt: vec![held[0].chunk], ..NodeHeartbeat::default() };
    bench.run(request::Op::NodeHeartbeat(beat)).unwrap();
    assert_eq!(lost(&bench, &held), [true, false, false]);
    page(&mut bench, 0, u64::MAX, &[held[0], shard(held[1].chunk, held[1].index, 99, OLD), held[2]]).unwrap();
    assert_eq!(lost(&bench, &held), [true, true, false]);
    bench.uptime += bench.settings.inventory_interval;
    asked(&mut bench);
    page(&mut bench, 0, u64::MAX, &held).unwrap();
    assert_eq!(lost(&bench, &held), [true, true, false]);
    bench.check();
}

#[test]
fn a_readers_report_asks_the_node_for_its_list() {
    let (mut bench, held) = written();
    asked(&mut bench);
    page(&mut bench, 0, u64::MAX, &held).unwrap();
    let report =
        |chunk, node, code: Code| request::Op::ReportShard(ReportShard { chunk, node, code: code.into() });
    bench.run(report(held[0].chunk, 1, Code::NotFound)).unwrap();
    assert_eq!(lost(&bench, &held), [true, false, false]);
    asked(&mut bench);
    page(&mut bench, 0, u64::MAX, &held).unwrap();
    assert_eq!(lost(&bench, &held), [false; 3]);
    bench.run(report(held[0].chunk, 77, Code::NotFound)).unwrap();
    bench.run(report(777, 1, Code::Corrupt)).unwrap();
    assert_eq!(bench.run(report(held[0].chunk, 1, Code::Busy)).unwrap_err().code, Code::Invalid);
    for node in 1..=3 {
        bench.run(report(held[1].chunk, node, Code::Corrupt)).unwrap();
    }
    let plan = bench.plan_of("f");
    assert_eq!(plan.chunks[1].shards.len(), 3, "where all are bad, any may have a good block");
    bench.check();
}

#[test]
fn only_what_no_metadata_can_name_is_removed() {
    let (mut bench, held) = written();
    let ino = bench.file("short-lived");
    let gone = bench.write(ino, &[(0, 100)]);
    bench.write(ino, &[(0, 100)]);
    let planned = bench.allocate(1).unwrap().chunks[0].chunk;
    bench.now.seconds += 1200;
    bench.finish(super::super::Internal::CollectGarbage);
    for node in 1..=3 {
        let deleted = bench.beat(node, 1 << 40).delete;
        assert_eq!(deleted, [gone, planned]);
        let beat = NodeHeartbeat { node, epoch: 1, deleted, ..NodeHeartbeat::default() };
        bench.run(request::Op::NodeHeartbeat(beat)).unwrap();
        bench.beat(node, 1 << 40);
    }
    let still_planned = bench.allocate(1).unwrap().chunks[0].chunk;
    let listed = |age_ms| {
        let mut list = held.clone();
        list.extend([gone, planned, still_planned, still_planned + 1].map(|id| shard(id, 0, 100, age_ms)));
        list.sort_by_key(|shard| shard.chunk);
        list
    };
    let grace_ms = bench.settings.garbage_grace.as_millis() as u64;
    let list = listed(grace_ms);
    let last = list.last().unwrap().chunk;
    page(&mut bench, 0, last, &list).unwrap();
    assert!(orders(&mut bench).is_empty(), "young ones are never garbage");
    let list = listed(grace_ms + 1);
    page(&mut bench, 0, last, &list).unwrap();
    assert_eq!(orders(&mut bench), [gone, planned], "neither what is planned nor what is from the future");
    bench.check();
}

#[test]
fn bad_pages_and_strangers_are_refused() {
    let (mut bench, held) = written();
    asked(&mut bench);
    let mut unsorted = held.clone();
    unsorted.reverse();
    for (first, last, shards) in [
        (0, u64::MAX, &unsorted[..]),
        (0, held[0].chunk, &held[..]),
        (2, 1, &[]),
        (0, u64::MAX, &vec![held[0]; 2][..]),
    ] {
        assert_eq!(page(&mut bench, first, last, shards).unwrap_err().code, Code::Invalid);
    }
    let old = NodeInventory { node: 1, epoch: 0, first: 0, last: u64::MAX, shards: vec![] };
    assert_eq!(bench.run(request::Op::NodeInventory(old)).unwrap_err().code, Code::NodeRefused);
    bench.live = crate::live::Live::default();
    page(&mut bench, 0, u64::MAX, &[]).unwrap();
    assert_eq!(lost(&bench, &held), [false; 3], "a restarted server asked for nothing");
    bench.uptime += Duration::from_secs(1);
    asked(&mut bench);
}

#[test]
fn a_second_shard_of_a_chunk_does_not_spoil_the_list() {
    let (mut bench, held) = written();
    let other = shard(held[1].chunk, held[1].index + 1, 70, OLD);
    let with_other = [held[0], held[1], other, held[2]];
    asked(&mut bench);
    page(&mut bench, 0, u64::MAX, &with_other).unwrap();
    assert_eq!(lost(&bench, &held), [false; 3]);
    assert!(orders(&mut bench).is_empty(), "the chunk is needed");
    bench.check();

    bench.uptime += bench.settings.inventory_interval;
    asked(&mut bench);
    let alone = [held[0], other, held[2]];
    page(&mut bench, 0, u64::MAX, &alone).unwrap();
    assert_eq!(lost(&bench, &held), [false, true, false], "another shard is not the one");
    bench.uptime += bench.settings.inventory_interval;
    asked(&mut bench);
    let twice = [held[0], held[0], held[1], held[2]];
    assert_eq!(page(&mut bench, 0, u64::MAX, &twice).unwrap_err().code, Code::Invalid);
}
