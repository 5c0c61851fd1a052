//! Classes through the mount: coded chunks are read whatever is lost within their parity, and never wrong beyond it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dfs_tests::cluster::Cluster;
use dfs_tests::commands::succeed;
use dfs_tests::disks::{files_below, flip_bit, write_durably};
use dfs_tests::fsx;
use dfs_tests::mounted::Mount;
use dfs_tests::operation::Data;
use dfs_tests::posix_target::PosixTarget;
use dfs_tests::programs;
use dfs_tests::random::{Run, seed};

const BLOCK: usize = 64 * 1024;

fn bytes(seed: u32, length: usize) -> Vec<u8> {
    Data { seed, length }.bytes()
}

/// Sets the class of a directory with the tool that people use.
fn set_class(directory: &Path, class: &str) {
    succeed(Command::new("setfattr").args(["-n", "dfs.class", "-v", class]).arg(directory));
}

/// Six chunk daemons and a key, which all mounts have, and a mount whose root is of the class.
fn cluster_of(class: &str) -> (Cluster, Mount) {
    let cluster = Cluster::with().chunks(6).start();
    let create = ["key", "create", "k", "--meta", cluster.address(), "--file"];
    succeed(Command::new(programs::program("dfs-admin")).args(create).arg(key_of(&cluster)));
    let mount = mount(&cluster);
    set_class(mount.path(), class);
    (cluster, mount)
}

fn key_of(cluster: &Cluster) -> PathBuf {
    cluster.directory().join("k.key")
}

fn mount(cluster: &Cluster) -> Mount {
    cluster.mount_with("/", &format!("key=k:{}", key_of(cluster).display()))
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
    // The large one is coded, the small one is copied for now.
    cluster.wait_for("the chunks are counted", Duration::from_secs(5), |status| {
        let chunks = |class: &str| {
            status
                .classes
                .iter()
                .find(|status| status.class == class)
                .map_or((0, 0), |status| (status.chunks, status.short))
        };
        (chunks("ec:4+2"), chunks("replicated:3")) == ((1, 0), (1, 1))
    });
    // A shard of the large file lies on each daemon, a quarter of it long, and no more.
    for daemon in cluster.chunks() {
        let held: u64 = files_below(&daemon.data().join("shards")).iter().map(|(_, length)| length).sum();
        assert!((700_000..900_000).contains(&held), "{held} bytes");
    }
}

#[test]
fn as_many_daemons_as_there_is_parity_die_while_files_are_written_and_read() {
    for class in ["ec:4+2", ENCODED] {
        die_while_files_are_written_and_read(class);
    }
}

fn die_while_files_are_written_and_read(class: &str) {
    let (cluster, mounted) = cluster_of(class);
    let file = |number: u32| mounted.join(format!("file-{number}"));
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
                let fresh = mount(&cluster);
                for number in 0..12 {
                    let read = fs::read(fresh.join(format!("file-{number}"))).expect("read all the same");
                    assert!(read == bytes(number, length(number)), "file {number}");
                }
                rounds += 1;
            }
        });
        std::thread::sleep(Duration::from_millis(500));
        cluster.chunk(1).kill();
        std::thread::sleep(Duration::from_millis(1500));
        cluster.chunk(4).kill();
        std::thread::sleep(Duration::from_millis(1500));
        done.store(true, Ordering::Relaxed);
        reader.join().expect("the reader");
        writer.join().expect("the writer")
    });
    drop(mounted);
    let fresh = mount(&cluster);
    for number in 0..written {
        let read = fs::read(fresh.join(format!("file-{number}"))).unwrap();
        assert!(read == bytes(number, length(number)), "file {number} with two daemons gone");
    }
}

/// How a shard file is damaged.
#[derive(Clone, Copy, Debug)]
enum Damage {
    FlippedBit,
    Zeroed,
    Truncated,
    /// A shard of another chunk, or of an older one of the same file.
    Another,
    Gone,
}

const DAMAGES: [Damage; 5] =
    [Damage::FlippedBit, Damage::Zeroed, Damage::Truncated, Damage::Another, Damage::Gone];

/// Damages a file in place, as its daemon may have it open.
fn damage(path: &Path, kind: Damage, other: &Path, run: &mut Random) {
    let length = fs::metadata(path).unwrap().len() as usize;
    let file = OpenOptions::new().write(true).open(path).unwrap();
    match kind {
        Damage::FlippedBit => flip_bit(path, run.below(length) as u64),
        Damage::Zeroed => {
            let start = run.below(length);
            file.write_all_at(&vec![0; 1 + run.below(length - start)], start as u64).unwrap();
        }
        Damage::Truncated => file.set_len(run.below(length) as u64).unwrap(),
        Damage::Another => {
            let content = fs::read(other).unwrap();
            file.write_all_at(&content, 0).unwrap();
            file.set_len(content.len() as u64).unwrap();
        }
        Damage::Gone => fs::remove_file(path).unwrap(),
    }
}

/// The shard files of a cluster by chunk.
fn shard_files(cluster: &Cluster) -> BTreeMap<String, Vec<PathBuf>> {
    let mut chunks: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for daemon in cluster.chunks() {
        for (path, _) in files_below(&daemon.data().join("shards")) {
            let chunk = path.file_stem().unwrap().to_string_lossy().into_owned();
            chunks.entry(chunk).or_default().push(path);
        }
    }
    chunks
}

#[test]
fn two_thousand_damaged_shards_give_the_right_bytes_or_an_error() {
    let damaged: usize = ["ec:4+2", ENCODED].map(damage_shards).iter().sum();
    assert!(damaged >= 2000, "{damaged}");
}

/// How many shards were damaged.
fn damage_shards(class: &str) -> usize {
    const ROUNDS: usize = 10;
    const FILES: usize = 50;
    let (cluster, mounted) = cluster_of(class);
    let mut run = Random(seed());
    let first_seed = run.0;
    let (mut damaged, mut beyond, mut failed) = (0, 0, 0);
    let mut known = BTreeSet::new();
    for round in 0..ROUNDS {
        // Two rows and more: each shard has a file of its own.
        let length = |number: usize| 8 * BLOCK + (round * 7919 + number * 104_729) % (6 * BLOCK);
        let content = |number: usize| bytes((round * FILES + number) as u32, length(number));
        let name = |number: usize| format!("{round}-{number}");
        for number in 0..FILES {
            write_durably(&mounted.join(name(number)), &content(number)).unwrap();
        }
        let chunks = shard_files(&cluster);
        let mut fresh: Vec<_> = chunks.iter().filter(|(chunk, _)| known.insert((*chunk).clone())).collect();
        assert_eq!(fresh.len(), FILES, "a chunk for each file");
        // Up to the parity, and once in a while beyond it.
        let too_many = fresh.len() / 10;
        for (position, (_, shards)) in fresh.iter_mut().enumerate() {
            let other = chunks.values().nth(run.below(chunks.len())).unwrap();
            let count = if position < too_many { 3 + run.below(4) } else { 2 };
            beyond += usize::from(count > 2);
            let mut left = shards.clone();
            for _ in 0..count {
                let shard = left.swap_remove(run.below(left.len()));
                let other = &other[run.below(other.len())];
                let kind = DAMAGES[run.below(DAMAGES.len())];
                let kind = if *other == shard || !other.exists() { Damage::Truncated } else { kind };
                damage(&shard, kind, other, &mut run);
                damaged += 1;
            }
        }
        let reader = mount(&cluster);
        for number in 0..FILES {
            match fs::read(reader.join(name(number))) {
                Ok(read) => {
                    assert!(read == content(number), "wrong bytes in {}: seed {first_seed}", name(number))
                }
                Err(error) => {
                    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
                    failed += 1;
                }
            }
        }
    }
    println!("{class}: {damaged} shards damaged, {failed} of {beyond} files with too many could not be read");
    assert!(failed <= beyond, "{damaged} damaged, {failed} failed: seed {first_seed}");
    assert!(failed > 0, "what is beyond repair is told so");
    damaged
}

/// A class that does everything to what it stores.
const ENCODED: &str = "ec:4+2,compress=zstd,encrypt=k";
/// The classes that everything is tried with.
const CLASSES: [&str; 4] = ["replicated:2", "ec:4+2", "auto", ENCODED];

#[test]
fn a_mount_of_each_class_agrees_with_the_model() {
    for class in CLASSES {
        let (_cluster, mut mount) = cluster_of(class);
        let mut run = Run::new(PosixTarget::new(mount.path()), seed());
        run.note(class);
        for _ in 0..4 {
            run.batch(60);
            run.close_all();
            mount.unmount();
            mount.remount();
            run.compare();
        }
    }
}

#[test]
fn fsx_finds_nothing_in_any_class() {
    let (cluster, mount) = cluster_of("replicated:3");
    let files = CLASSES.map(|class| {
        let directory = mount.join(class);
        fs::create_dir(&directory).unwrap();
        set_class(&directory, class);
        (directory.join("fsx"), 5)
    });
    fsx::run_on(&cluster, &files, 10_000);
}

/// Numbers from a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}
