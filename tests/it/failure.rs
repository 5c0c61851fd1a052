//! Parts that are dead, hung, full, damaged or of another cluster: what the rest does then.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::{Duration, Instant};

use dfs_tests::cluster::Cluster;
use dfs_tests::commands::{self, Running};
use dfs_tests::disks::{SmallDisk, files_below, flip_bit, write_durably};
use dfs_tests::operation::Data;
use nix::sys::signal::Signal;

/// A dead chunk daemon stops nobody for longer.
const FAILOVER: Duration = Duration::from_secs(5);
/// A full disk is told within this.
const PROMPTLY: Duration = Duration::from_secs(10);

fn bytes(seed: u32, length: usize) -> Vec<u8> {
    Data { seed, length }.bytes()
}

/// Runs `call` and fails when it takes longer than `limit`.
fn within<T>(limit: Duration, what: &str, call: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = call();
    assert!(start.elapsed() <= limit, "to {what} took {:?}, more than {limit:?}", start.elapsed());
    result
}

/// Reads and writes go on while a daemon is made useless by `disable`, with open files handed to clients and without.
fn survive(disable: impl Fn(&Cluster)) {
    for local_reads in ["false", "true"] {
        let cluster = Cluster::with().chunks(4).chunk_args(["--local-reads", local_reads]).start();
        survive_in(&cluster, &disable);
    }
}

fn survive_in(cluster: &Cluster, disable: impl Fn(&Cluster)) {
    let mount = cluster.mount();
    for number in 0..20 {
        write_durably(&mount.join(format!("before-{number}")), &bytes(number, 300_000)).unwrap();
    }
    let open = File::open(mount.join("before-0")).unwrap();
    disable(cluster);
    // A mount of its own has nothing cached, and learns of the dead one by itself.
    let fresh = cluster.mount();
    for number in 0..20 {
        let path = format!("before-{number}");
        let read = within(FAILOVER, "read", || fs::read(fresh.join(&path)).unwrap());
        assert!(read == bytes(number, 300_000), "{path}");
        let path = format!("after-{number}");
        within(FAILOVER, "write", || write_durably(&mount.join(&path), &bytes(number, 300_000)).unwrap());
        let read = within(FAILOVER, "read", || fs::read(fresh.join(&path)).unwrap());
        assert!(read == bytes(number, 300_000), "{path}");
    }
    drop(open);
}

#[test]
fn a_dead_chunk_daemon_stops_neither_reads_nor_writes() {
    survive(|cluster| cluster.chunk(0).kill());
}

#[test]
fn a_hung_chunk_daemon_stops_neither_reads_nor_writes() {
    survive(|cluster| cluster.chunk(0).freeze(true));
}

#[test]
fn with_two_of_three_nodes_writes_go_on_with_less_redundancy() {
    let cluster = Cluster::start();
    let mount = cluster.mount();
    cluster.chunk(1).kill();
    for number in 0..5 {
        let path = mount.join(format!("{number}"));
        within(FAILOVER, "write", || write_durably(&path, &bytes(number, 100_000)).unwrap());
    }
    let status = cluster.wait_for("degraded", Duration::from_secs(5), |status| {
        status.classes.iter().any(|class| class.degraded > 0)
    });
    assert!(status.classes.iter().all(|class| class.missing == 0));
    cluster.chunk(1).start_again();
    for number in 0..5 {
        assert!(fs::read(mount.join(format!("{number}"))).unwrap() == bytes(number, 100_000));
    }
}

#[test]
fn a_full_chunk_disk_is_told_promptly_and_deleting_frees_it() {
    let scratch = tempfile::tempdir().unwrap();
    let disks: Vec<SmallDisk> =
        (0..3).map(|index| SmallDisk::new(scratch.path(), &format!("disk-{index}"), 200)).collect();
    let mut builder = Cluster::with().meta_args(["--garbage-grace", "1s"]);
    for (index, disk) in disks.iter().enumerate() {
        builder = builder.chunk_data(index, disk.path());
    }
    let cluster = builder.start();
    let mount = cluster.mount();
    let mut written = Vec::new();
    let error = loop {
        assert!(written.len() < 100, "300 MB on a disk of 200 MB");
        let path = mount.join(format!("file-{}", written.len()));
        let data = bytes(written.len() as u32, 3_000_000);
        match within(PROMPTLY, "write or be refused", || write_durably(&path, &data)) {
            Ok(()) => written.push(path),
            Err(error) => break error,
        }
    };
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
    assert!(written.len() > 20, "only {} files of 3 MB on a disk of 200 MB", written.len());
    // A file without its bytes is there now; what was acknowledged is whole.
    for (number, path) in written.iter().enumerate() {
        assert!(fs::read(path).unwrap() == bytes(number as u32, 3_000_000), "{}", path.display());
    }
    for entry in fs::read_dir(mount.path()).unwrap() {
        within(PROMPTLY, "delete", || fs::remove_file(entry.unwrap().path()).unwrap());
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    while let Err(error) = write_durably(&mount.join("again"), &bytes(1, 10_000_000)) {
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
        assert!(Instant::now() < deadline, "the space of deleted files does not come back");
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(fs::read(mount.join("again")).unwrap() == bytes(1, 10_000_000));
}

#[test]
fn a_full_metadata_disk_is_told_and_deleting_still_works() {
    let scratch = tempfile::tempdir().unwrap();
    let disk = SmallDisk::new(scratch.path(), "disk", 64);
    let cluster = Cluster::with().meta_data(disk.path()).meta_args(["--reserve", "16MiB"]).start();
    let mount = cluster.mount();
    // Long symbolic links fill a metadata disk the quickest.
    let target = "t".repeat(4000);
    let mut made = 0;
    let error = loop {
        assert!(made < 40_000, "160 MB on a disk of 64 MB");
        let path = mount.join(format!("link-{made}"));
        match within(PROMPTLY, "make a link or be refused", || std::os::unix::fs::symlink(&target, path)) {
            Ok(()) => made += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
    assert!(made > 500, "only {made} links on a disk of 64 MB");
    assert!(cluster.status().store_full);
    for number in 0..made {
        fs::remove_file(mount.join(format!("link-{number}"))).unwrap();
    }
    // It is still a working server, and one that starts again.
    cluster.meta().crash();
    assert_eq!(fs::read_dir(mount.path()).unwrap().count(), 0);
}

#[test]
fn what_is_on_this_machine_is_read_without_its_daemons() {
    for (local_reads, goes_on) in [("true", true), ("false", false)] {
        let cluster = Cluster::with().chunk_args(["--local-reads", local_reads]).start();
        let mount = cluster.mount_with("/", "timeout=3");
        let data = bytes(4, 24 << 20);
        write_durably(&mount.join("file"), &data).unwrap();
        let mount = cluster.mount_with("/", "timeout=3");
        let file = File::open(mount.join("file")).unwrap();
        // Each place of 4 MiB is read from one node: a block of each opens them all.
        let mut block = vec![0; 4096];
        for at in (0..data.len()).step_by(1 << 20) {
            file.read_exact_at(&mut block, at as u64).unwrap();
        }
        cluster.chunks().iter().for_each(|chunk| chunk.freeze(true));
        let start = Instant::now();
        let read = fs::read(mount.join("file"));
        cluster.chunks().iter().for_each(|chunk| chunk.freeze(false));
        match goes_on {
            true => assert!(read.unwrap() == data && start.elapsed() < FAILOVER, "{:?}", start.elapsed()),
            false => assert_eq!(read.unwrap_err().raw_os_error(), Some(libc::EIO)),
        }
    }
}

#[test]
fn a_corrupt_replica_is_passed_over_and_told() {
    ["true", "false"].iter().for_each(|local_reads| corrupt_replicas_are_passed_over(local_reads));
}

fn corrupt_replicas_are_passed_over(local_reads: &str) {
    let cluster = Cluster::with().chunk_args(["--local-reads", local_reads]).start();
    let mount = cluster.mount();
    let data = bytes(3, 3_000_000);
    write_durably(&mount.join("file"), &data).unwrap();
    drop(mount);
    let shard = |index: usize| files_below(&cluster.chunk(index).data().join("shards")).swap_remove(0);
    let (path, length) = shard(0);
    assert!(length >= 3_000_000, "the largest file of a chunk daemon holds the shard: {path:?}");
    // Every block, so that whichever is asked of this node is corrupt.
    (0..length / 65_536).for_each(|block| flip_bit(&path, block * 65_536 + 9_000));
    // Reads are spread over the replicas, so that some of several meet the corrupt one.
    for _ in 0..8 {
        let mount = cluster.mount();
        let read = within(FAILOVER, "read past a corrupt replica", || fs::read(mount.join("file")).unwrap());
        assert!(read == data);
    }
    // The daemon verifies what it holds again when it is read there; nothing is lost meanwhile.
    let status = cluster.status();
    assert!(status.classes.iter().all(|class| class.missing == 0), "{status:?}");

    for index in 1..3 {
        let (path, length) = shard(index);
        (0..length / 65_536).for_each(|block| flip_bit(&path, block * 65_536 + 9_000));
    }
    let mount = cluster.mount();
    let error = within(Duration::from_secs(20), "fail", || fs::read(mount.join("file")).unwrap_err());
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "no copy is left: {error}");
    cluster.wait_for("told that the chunk is lost", Duration::from_secs(20), |status| {
        status.classes.iter().any(|class| class.missing > 0 || class.degraded > 0)
    });
}

#[test]
fn a_second_metadata_server_on_the_same_store_is_refused() {
    let cluster = Cluster::start();
    let mount = cluster.mount();
    fs::write(mount.join("file"), "one").unwrap();
    let program = cluster.meta().program();
    let mut second = Command::new(&program.path);
    second.arg("--data").arg(cluster.meta().data()).args(["--listen", "127.0.0.1:0"]);
    let output = commands::run(&mut second, Duration::from_secs(30));
    assert!(!output.status.success());
    let said =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    let data = cluster.meta().data().display().to_string();
    assert!(said.contains(&data), "it says which store it can't have: {said}");
    fs::write(mount.join("file"), "two").unwrap();
    assert_eq!(fs::read_to_string(mount.join("file")).unwrap(), "two");
}

#[test]
fn a_disk_of_another_cluster_is_refused() {
    let ours = Cluster::with().chunks(1).start();
    let theirs = Cluster::with().chunks(1).start();
    let stranger = theirs.chunk(0);
    assert!(stranger.stop().is_some_and(|ending| ending.is_clean()));
    let mut command = Command::new(&stranger.program().path);
    command.arg("--data").arg(stranger.data()).args(["--meta", ours.address(), "--listen", "127.0.0.1:0"]);
    let output = commands::run(&mut command, Duration::from_secs(60));
    assert!(!output.status.success());
    let said =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("cluster"), "{said}");
    assert_eq!(ours.status().nodes.len(), 1, "it has not joined");
    // Where it belongs it is welcome.
    stranger.start_again();
    theirs.wait_for_nodes(1);
}

#[test]
fn without_a_metadata_server_calls_fail_after_the_timeout_and_recover() {
    let cluster = Cluster::start();
    let mount = cluster.mount_with("/", "timeout=3");
    fs::write(mount.join("file"), "bytes").unwrap();
    cluster.meta().kill();
    std::thread::sleep(Duration::from_millis(1100));
    let start = Instant::now();
    let error = fs::write(mount.join("other"), "bytes").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
    let waited = start.elapsed();
    assert!((Duration::from_secs(2)..Duration::from_secs(15)).contains(&waited), "it waited {waited:?}");
    cluster.meta().start_again();
    assert_eq!(fs::read_to_string(mount.join("file")).unwrap(), "bytes");
    fs::write(mount.join("other"), "more").unwrap();
}

#[test]
fn a_process_that_waits_for_a_dead_server_can_be_killed() {
    let cluster = Cluster::start();
    let mount = cluster.mount_with("/", "timeout=0");
    cluster.meta().kill();
    let mut child = Running::start(Command::new("touch").arg(mount.join("file")));
    assert_eq!(child.wait(Duration::from_secs(1)), None, "timeout=0 waits for ever");
    child.signal(Signal::SIGKILL);
    assert!(child.wait(Duration::from_secs(5)).is_some(), "a killed process goes away at once");
    cluster.meta().start_again();
    within(Duration::from_secs(30), "go on", || fs::write(mount.join("file"), "bytes").unwrap());
}
