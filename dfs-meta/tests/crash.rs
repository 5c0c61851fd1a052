//! The store after kill -9: every commit that returned is there whole, the one that was under way is there whole or
//! not at all. A child process (this program again, told by an environment variable) commits batches that follow from
//! a seed and says each number it has committed; the parent kills it, opens the store, and compares all of it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use dfs_meta::store::embedded::EmbeddedStore;
use dfs_meta::store::{Batch, Store};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const CHILD: &str = "DFS_META_CRASH_TEST_CHILD";
const ROUNDS: u64 = 25;
const CACHE: u64 = 4 << 20;

fn main() {
    match std::env::var(CHILD) {
        Ok(arguments) => commit_until_killed(&arguments),
        Err(_) => kill_and_compare(),
    }
}

/// The `number`th batch: which number was last, and some changes among a few hundred keys.
fn batch(seed: u64, number: u64) -> Batch {
    let mut random = SmallRng::seed_from_u64(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut batch = Batch::from([(b"last".to_vec(), Some(number.to_be_bytes().to_vec()))]);
    for _ in 0..random.random_range(1..12) {
        let key = vec![b'k', random.random_range(0..3), random.random()];
        let length = if random.random_bool(0.02) { 100_000 } else { random.random_range(0..500) };
        let value = random.random_bool(0.8).then(|| vec![random.random(); length]);
        batch.insert(key, value);
    }
    batch
}

fn last(store: &EmbeddedStore) -> u64 {
    let value = store.get(b"last").expect("read the last number");
    value.map_or(0, |value| u64::from_be_bytes(value.try_into().expect("eight bytes")))
}

fn commit_until_killed(arguments: &str) {
    let (seed, directory) = arguments.split_once(' ').expect("a seed and a directory");
    let seed = seed.parse().expect("the seed is a number");
    let store = EmbeddedStore::open(Path::new(directory), CACHE).expect("open the store");
    let mut out = std::io::stdout();
    for number in last(&store) + 1.. {
        store.commit(&batch(seed, number), &mut || ()).expect("commit");
        writeln!(out, "{number}").and_then(|()| out.flush()).expect("say what is committed");
    }
}

fn kill_and_compare() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let directory = tempfile::tempdir().expect("make a directory");
    let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    let mut compared = 0;
    for round in 0..ROUNDS {
        let acknowledged = run_child(seed, directory.path(), random.random_range(5..400)).max(compared);
        let store = EmbeddedStore::open(directory.path(), CACHE).expect("open the store after kill -9");
        let last = last(&store);
        assert!(
            (acknowledged..=acknowledged + 1).contains(&last),
            "round {round}: {acknowledged} was acknowledged, {last} is the last in the store"
        );
        for number in compared + 1..=last {
            for (key, value) in batch(seed, number) {
                match value {
                    Some(value) => model.insert(key, value),
                    None => model.remove(&key),
                };
            }
        }
        compared = last;
        let stored = store.scan(b"", b"\xff", usize::MAX).expect("read the whole store");
        assert!(stored.into_iter().eq(model.clone()), "round {round}: the store differs after batch {last}");
    }
    println!("{ROUNDS} kills, {compared} batches: ok");
    assert!(compared > ROUNDS, "hardly anything was committed");
}

/// Lets a child commit for a while and kills it. The last number that it said.
fn run_child(seed: u64, directory: &Path, milliseconds: u64) -> u64 {
    let mut child = Command::new(std::env::current_exe().expect("this program's path"))
        .env(CHILD, format!("{seed} {}", directory.display()))
        .stdout(Stdio::piped())
        .spawn()
        .expect("start the child");
    let out = BufReader::new(child.stdout.take().expect("the child's output"));
    let reader = std::thread::spawn(move || {
        let numbers = out.lines().map_while(Result::ok).filter_map(|line| line.parse().ok());
        numbers.last().unwrap_or(0)
    });
    std::thread::sleep(Duration::from_millis(milliseconds));
    child.kill().expect("kill the child");
    let status = child.wait().expect("wait for the child");
    let said = reader.join().expect("read what the child said");
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "the child failed by itself");
    said
}
