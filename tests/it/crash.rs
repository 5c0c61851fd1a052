//! kill -9 of each daemon in the middle of writing, again and again: what fsync acknowledged is there and whole, the rest
//! is absent or a whole prefix, and nobody waits longer than the mount's timeout.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use dfs_tests::cluster::Cluster;
use dfs_tests::journal::Journal;
use dfs_tests::random::seed;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Crashes in each test: quickly, and with `DFS_TESTS_FULL`.
const CRASHES: (u32, u32) = (10, 50);
/// No system call takes longer: the mount's `timeout=` is 60 s by default.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The full loops need their time.
fn cluster() -> Cluster {
    Cluster::with().patience(Duration::from_secs(1200)).start()
}

fn crashes() -> u32 {
    dfs_tests::amount(CRASHES.0, CRASHES.1)
}

/// Ends the writers when it is dropped, also by a panic: they would be waited for.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Writes on two mounts while `crash` is called again and again, and checks everything afterwards. The mounts live on,
/// so no writer sees an error.
fn write_through(cluster: &Cluster, crash: impl Fn(u32)) {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let mounts = [cluster.mount(), cluster.mount()];
    let stop = AtomicBool::new(false);
    let written = [const { AtomicU32::new(0) }; 2];
    let mut journals: Vec<Journal> = std::thread::scope(|scope| {
        let write = |(index, mount): (usize, &dfs_tests::mounted::Mount)| {
            let mut journal = Journal::new(&mount.join(format!("writer-{index}")), seed + index as u64)
                .expect("start writing");
            let (stop, written) = (&stop, &written[index]);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    journal.write_one().expect("writing goes on while a daemon is restarted");
                    written.fetch_add(1, Ordering::Relaxed);
                }
                journal
            })
        };
        let writers: Vec<_> = mounts.iter().enumerate().map(write).collect();
        let stopping = Stop(&stop);
        for round in 0..crashes() {
            std::thread::sleep(Duration::from_millis(random.random_range(10..200)));
            crash(round);
            // However busy the machine is, both get something done between two crashes.
            for written in &written {
                let before = written.load(Ordering::Relaxed);
                let crashed = Instant::now();
                while written.load(Ordering::Relaxed) == before {
                    let ended = writers.iter().any(|writer| writer.is_finished());
                    assert!(!ended, "a writer ended, see above");
                    assert!(
                        crashed.elapsed() < TIMEOUT,
                        "nothing was written for {TIMEOUT:?} after crash {round}"
                    );
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
        drop(stopping);
        writers.into_iter().map(|writer| writer.join().expect("a writer failed")).collect()
    });
    drop(mounts);
    let fresh = cluster.mount();
    for (index, journal) in journals.iter_mut().enumerate() {
        journal.check(&fresh.join(format!("writer-{index}")));
        assert!(journal.acknowledged() > 0, "nothing was acknowledged");
        assert!(journal.slowest < TIMEOUT, "a call took {:?}", journal.slowest);
    }
}

#[test]
fn the_metadata_server_killed_in_the_middle_of_writing_loses_nothing() {
    let cluster = cluster();
    write_through(&cluster, |_| cluster.meta().crash());
}

#[test]
fn chunk_daemons_killed_in_the_middle_of_writing_lose_nothing() {
    let cluster = cluster();
    write_through(&cluster, |round| cluster.chunk(round as usize % 3).crash());
}

#[test]
fn a_mount_killed_in_the_middle_of_writing_keeps_what_was_acknowledged() {
    let cluster = cluster();
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let mut mount = cluster.mount();
    for round in 0..crashes() {
        let directory = mount.join(format!("round-{round}"));
        let mut journal = Journal::new(&directory, seed + u64::from(round)).expect("start writing");
        let time = Duration::from_millis(random.random_range(20..300));
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| journal.write_until_error());
            std::thread::sleep(time);
            mount.kill();
            let error = writer.join().expect("a writer failed");
            // The mount is gone, or already detached from the tree.
            let expected = [libc::ENOTCONN, libc::ECONNABORTED, libc::EIO, libc::ENOENT, libc::EINTR];
            assert!(error.raw_os_error().is_some_and(|errno| expected.contains(&errno)), "{error}");
        });
        mount.remount();
        journal.check(&directory);
    }
}

#[test]
fn everything_killed_at_once_keeps_what_was_acknowledged() {
    let cluster = cluster();
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let mut mount = cluster.mount();
    for round in 0..crashes() / 5 {
        let directory = mount.join(format!("round-{round}"));
        let mut journal = Journal::new(&directory, seed + u64::from(round)).expect("start writing");
        let time = Duration::from_millis(random.random_range(20..500));
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| journal.write_until_error());
            std::thread::sleep(time);
            cluster.chunks().iter().for_each(|chunk| chunk.kill());
            cluster.meta().kill();
            mount.kill();
            writer.join().expect("a writer failed");
        });
        cluster.meta().start_again();
        cluster.chunks().iter().for_each(|chunk| chunk.start_again());
        mount.remount();
        journal.check(&directory);
    }
}
