//! kill -9 in the middle of writing, again and again: what was acknowledged is there and whole, and nothing that is torn
//! is ever served or listed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dfs_proto::Code;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::client::{connect, content, frames, header, read};
use crate::meta::FakeMeta;
use crate::program::Process;

const ROUNDS: u64 = 20;
const WRITERS: u64 = 4;
const CHUNKS_OF_A_ROUND: u64 = 1_000_000;

/// What the writers did.
#[derive(Clone, Default)]
struct Written {
    /// Length by chunk, of all puts and of those acknowledged.
    begun: BTreeMap<u64, usize>,
    acknowledged: BTreeMap<u64, usize>,
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_kill_9() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let meta = FakeMeta::start().await;
    let directory = tempfile::tempdir().unwrap();
    let written: Arc<Mutex<Written>> = Arc::default();
    for round in 0..ROUNDS {
        let daemon = Process::start(&meta, directory.path()).await;
        let so_far = written.lock().unwrap().clone();
        check(&meta, &daemon, &so_far, round.saturating_sub(1) * CHUNKS_OF_A_ROUND).await;
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let first = 1 + round * CHUNKS_OF_A_ROUND + writer;
                tokio::spawn(write(daemon.address.clone(), first, random.random(), written.clone()))
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(random.random_range(20..400))).await;
        daemon.kill();
        for writer in writers {
            writer.await.unwrap();
        }
    }
    let all = written.lock().unwrap().clone();
    assert!(all.acknowledged.len() as u64 > ROUNDS, "the test wrote something");
    let daemon = Process::start(&meta, directory.path()).await;
    check(&meta, &daemon, &all, 0).await;
    assert_eq!(std::fs::read_dir(directory.path().join("tmp")).unwrap().count(), 0);
}

/// Puts chunks, half of them on the way of small shards, until the daemon is gone.
async fn write(address: String, first: u64, seed: u64, written: Arc<Mutex<Written>>) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut client = connect(address);
    for chunk in (first..).step_by(WRITERS as usize) {
        let longest = if random.random_bool(0.5) { 65_536 } else { 3_000_000 };
        let length = random.random_range(1..=longest);
        written.lock().unwrap().begun.insert(chunk, length);
        let frames = frames(header(chunk, length, vec![]), &content(chunk, length));
        let Ok(reply) = client.put(tokio_stream::iter(frames)).await else { return };
        assert!(reply.into_inner().results[0].error.is_none());
        written.lock().unwrap().acknowledged.insert(chunk, length);
    }
}

/// Compares what is listed with all that was written, and what is served with what was written from chunk `from` on.
async fn check(meta: &FakeMeta, daemon: &Process, written: &Written, from: u64) {
    let client = connect(&daemon.address);
    {
        let mut state = meta.state();
        state.pages.clear();
        state.want_inventory = true;
    }
    meta.until("the inventory", |state| state.pages.iter().any(|page| page.last == u64::MAX)).await;
    let held: BTreeMap<u64, u64> = {
        let state = meta.state();
        state.pages.iter().flat_map(|page| &page.shards).map(|shard| (shard.chunk, shard.length)).collect()
    };
    for (chunk, &length) in &written.acknowledged {
        assert_eq!(held.get(chunk), Some(&(length as u64)), "chunk {chunk} was acknowledged");
    }
    for (&chunk, &length) in written.begun.range(from..) {
        match read(client.clone(), chunk, 0, 0, length as u64).await {
            Ok(data) => {
                assert!(data == content(chunk, length), "chunk {chunk} is whole");
                assert!(held.contains_key(&chunk), "chunk {chunk} is served, so it is listed");
            }
            Err(failure) => {
                assert_eq!(failure.code, Code::NotFound, "chunk {chunk}: {failure}");
                assert!(!held.contains_key(&chunk), "chunk {chunk} is listed, so it is served");
            }
        }
    }
}
