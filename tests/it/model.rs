//! Random operations on a mounted cluster beside the model, with restarts, crashes and remounts among the steps.

use std::time::{Duration, Instant};

use dfs_tests::cluster::Cluster;
use dfs_tests::invariants;
use dfs_tests::mounted::Mount;
use dfs_tests::posix_target::PosixTarget;
use dfs_tests::random::{Run, seed};

/// Operations between two comparisons of the whole tree.
const BATCH: usize = 60;
/// Batches of one run, unless the time is over before.
const BATCHES: usize = 25;
/// How long a run may go on; slow machines do fewer batches.
const TIME: Duration = Duration::from_secs(60);

/// One step between two batches.
fn disturb(cluster: &Cluster, mount: &mut Mount, run: &mut Run<PosixTarget>) {
    match run.choose(8) {
        0 => {
            run.note("remount");
            run.close_all();
            mount.unmount();
            mount.remount();
        }
        1 => {
            run.note("kill the metadata server");
            cluster.meta().crash();
        }
        2 => {
            run.note("restart the metadata server");
            let ending = cluster.meta().stop().expect("it runs");
            assert!(ending.is_clean(), "the metadata server {ending}");
            cluster.meta().start_again();
        }
        3 => {
            let index = run.choose(cluster.chunks().len());
            run.note(&format!("kill chunk daemon {index}"));
            cluster.chunk(index).crash();
        }
        4 => {
            let index = run.choose(cluster.chunks().len());
            run.note(&format!("restart chunk daemon {index}"));
            let ending = cluster.chunk(index).stop().expect("it runs");
            assert!(ending.is_clean(), "a chunk daemon {ending}");
            cluster.chunk(index).start_again();
        }
        5 => {
            run.note("kill every daemon of the cluster at once");
            cluster.chunks().iter().for_each(|chunk| chunk.kill());
            cluster.meta().kill();
            cluster.meta().start_again();
            cluster.chunks().iter().for_each(|chunk| chunk.start_again());
        }
        _ => {}
    }
}

#[test]
fn a_mount_agrees_with_the_model_through_restarts_and_remounts() {
    let cluster = Cluster::start();
    let mut mount = cluster.mount();
    let mut run = Run::new(PosixTarget::new(mount.path()), seed());
    let start = Instant::now();
    for _ in 0..BATCHES {
        run.batch(BATCH);
        disturb(&cluster, &mut mount, &mut run);
        // What the daemons' memory held is not needed to find everything again.
        run.compare();
        if start.elapsed() > TIME {
            break;
        }
    }
    run.close_all();
    cluster.wait_for_nodes(3);
    invariants::check(&cluster, mount.path());
    mount.unmount();
    mount.remount();
    run.compare();
}

#[test]
fn a_second_mount_sees_what_the_first_closed() {
    let cluster = Cluster::start();
    let writer = cluster.mount();
    let reader = cluster.mount();
    let mut run = Run::new(PosixTarget::new(writer.path()), seed());
    for _ in 0..8 {
        run.batch(BATCH);
        // Handles that stay open may keep data to themselves; entries and attributes are good for a second.
        run.close_all();
        std::thread::sleep(Duration::from_millis(1100));
        run.compare_with(&mut PosixTarget::new(reader.path()));
    }
}
