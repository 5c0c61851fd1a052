//! Classes through the mount: coded chunks are read whatever is lost within their parity, and never wrong beyond it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use dfs_tests::cluster::Cluster;
use dfs_tests::commands::succeed;
use dfs_tests::disks::{files_below, flip_bit};
use dfs_tests::mounted::Mount;
use dfs_tests::operation::Data;
use dfs_tests::posix_target::PosixTarget;
use dfs_tests::random::{Run, seed};

const BLOCK: usize = 64 * 1024;

fn bytes(seed: u32, length: usize) -> Vec<u8> {
    Data { seed, length }.bytes()
}

fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Sets the class of a directory with the tool that people use.
fn set_class(directory: &Path, class: &str) {
    succeed(Command::new("setfattr").args(["-n", "dfs.class", "-v", class]).arg(directory));
}

/// Six chunk daemons, and a mount whose root is of the class.
fn cluster_of(class: &str) -> (Cluster, Mount) {
    let cluster = Cluster::with().chunks(6).start();
    let mount = cluster.mount();
    set_class(mount.path(), class);
    (cluster, mount)
}

#[test]
fn a_class_is_inherited_and_shown_and_unknown_ones_are_refused() {
    let (cluster, mount) = cluster_of("ec:4+2");
    fs::create_dir(mount.join("d")).unwrap();
    write_durably(&mount.join("d/large"), &bytes(1, 3_000_000)).unwrap();
    write_durably(&mount.join("d/small"), &bytes(2, 3_000)).unwrap();
    let class = |name: &str| {
        succeed(Command::new("getfattr").args(["--only-values", "-n", "dfs.class"]).arg(mount.join(name)))
    };
    assert_eq!((class("d"), class("d/large")), ("ec:4+2".into(), "ec:4+2".into()));
    for bad in ["ec:1+1", "ec:17+2", "ec:4+5", "ec:4", "raid5"] {
        let output = Command::new("setfattr").args(["-n", "dfs.class", "-v", bad]).arg(mount.path()).output();
        let output = output.unwrap();
        assert!(!output.status.success(), "{bad}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("Invalid argument"), "{bad}: {output:?}");
    }
    let status = cluster.status();
    let chunks = |class: &str| {
        status.classes.iter().find(|status| status.class == class).map_or(0, |status| status.chunks)
    };
    assert_eq!((chunks("ec:4+2"), chunks("replicated:3")), (1, 1), "{status:?}");
    // A shard of the large file lies on each daemon, a quarter of it long, and no more.
    for daemon in cluster.chunks() {
        let held: u64 = files_below(&daemon.data().join("shards")).iter().map(|(_, length)| length).sum();
        assert!((700_000..900_000).contains(&held), "{held} bytes");
    }
}

#[test]
fn as_many_daemons_as_there_is_parity_die_while_files_are_written_and_read() {
    let (cluster, mount) = cluster_of("ec:4+2");
    let file = |number: u32| mount.join(format!("file-{number}"));
    let length = |number: u32| [3_000, 900_000, 2_500_001][number as usize % 3];
    for number in 0..12 {
        write_durably(&file(number), &bytes(number, length(number))).unwrap();
    }
    let done = AtomicBool::new(false);
    let written = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut number = 12;
            while !done.load(Ordering::Relaxed) || number < 30 {
                write_durably(&file(number), &bytes(number, length(number))).expect("written all the same");
                number += 1;
            }
            number
        });
        let reader = scope.spawn(|| {
            let mut rounds = 0;
            while !done.load(Ordering::Relaxed) || rounds < 3 {
                let fresh = cluster.mount();
                for number in 0..12 {
                    let read = fs::read(fresh.join(format!("file-{number}"))).expect("read all the same");
                    assert!(read == bytes(number, length(number)), "file {number}");
                }
                rounds += 1;
            }
        });
        std::thread::sleep(std::time::Duration::from_millis(500));
        cluster.chunk(1).kill();
        std::thread::sleep(std::time::Duration::from_millis(1500));
        cluster.chunk(4).kill();
        std::thread::sleep(std::time::Duration::from_millis(1500));
        done.store(true, Ordering::Relaxed);
        reader.join().expect("the reader");
        writer.join().expect("the writer")
    });
    drop(mount);
    let fresh = cluster.mount();
    for number in 0..written {
        let read = fs::read(fresh.join(format!("file-{number}"))).unwrap();
        assert!(read == bytes(number, length(number)), "file {number} with two daemons gone");
    }
}

#[test]
fn corrupt_shards_give_the_right_bytes_or_an_error() {
    const ROUNDS: usize = 12;
    let (cluster, _) = cluster_of("ec:4+2");
    let data = bytes(5, 40 * BLOCK + 777);
    write_durably(&cluster.mount().join("file"), &data).unwrap();
    let mut run = Random(seed());
    let (mut wrong, mut failed) = (0, 0);
    for _ in 0..ROUNDS {
        // A bit anywhere in a shard file: header, data, table. What a daemon has open it verifies all the same.
        let daemon = &cluster.chunks()[run.below(cluster.chunks().len())];
        let (path, length) = files_below(&daemon.data().join("shards")).swap_remove(0);
        let at = run.below(length as usize) as u64;
        flip_bit(&path, at);
        let mount = cluster.mount();
        let file = File::open(mount.join("file")).unwrap();
        for start in (0..data.len()).step_by(BLOCK) {
            let mut read = vec![0; BLOCK.min(data.len() - start)];
            match file.read_exact_at(&mut read, start as u64) {
                Ok(()) => wrong += usize::from(read != data[start..start + read.len()]),
                Err(error) => {
                    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
                    failed += 1;
                }
            }
        }
        // The same bit again mends it, so that there is never more than one bad shard.
        flip_bit(&path, at);
        cluster.chunks().iter().for_each(|chunk| chunk.crash());
    }
    assert_eq!((wrong, failed), (0, 0), "one bad shard at a time: seed {}", run.0);
}

#[test]
fn a_mount_of_coded_files_agrees_with_the_model() {
    let (_cluster, mut mount) = cluster_of("ec:4+2");
    let mut run = Run::new(PosixTarget::new(mount.path()), seed());
    for _ in 0..6 {
        run.batch(60);
        run.close_all();
        mount.unmount();
        mount.remount();
        run.compare();
    }
}

/// Numbers from a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}
