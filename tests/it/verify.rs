//! `dfs-admin verify` on real mounts: digests of trees that are kept in different ways, and damaged shards that are found.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use dfs_tests::cluster::Cluster;
use dfs_tests::commands::{run, shell, succeed};
use dfs_tests::disks::{SmallDisk, files_below, flip_bit};
use dfs_tests::mounted::Mount;
use dfs_tests::operation::Data;
use dfs_tests::programs;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(120);

fn bytes(seed: u32, length: usize) -> Vec<u8> {
    Data { seed, length }.bytes()
}

fn admin(arguments: &[&str]) -> Output {
    run(Command::new(programs::program("dfs-admin")).args(arguments).env_remove("DFS_META"), PATIENCE)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// The exit code, and what is told to programs.
fn verify(arguments: &[&str]) -> (i32, Value) {
    let output = admin(&[&["verify", "--json"], arguments].concat());
    let json = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)));
    (output.status.code().expect("an exit code"), json)
}

fn verify_path(path: &Path) -> (i32, Value) {
    verify(&[path.to_str().expect("a path in UTF-8")])
}

fn digest(path: &Path) -> String {
    let (code, json) = verify_path(path);
    assert_eq!((code, &json["result"]), (0, &"good".into()), "{json:#}");
    assert!(json["chunks"]["total"].as_u64() > Some(0), "{json:#}");
    json["tree"]["digest"].as_str().expect("a digest").to_owned()
}

fn make_directory(mount: &Mount, name: &str, class: &str) -> PathBuf {
    let path = mount.join(name);
    fs::create_dir(&path).unwrap();
    xattr::set(&path, "dfs.class", class.as_bytes()).expect("set the class of a directory");
    path
}

/// A tree on the local disk with something of each kind.
fn make_source(root: &Path) {
    fs::create_dir_all(root.join("d/e")).unwrap();
    for (number, length) in [0, 1, 5_000, 300_000, 3_000_000].into_iter().enumerate() {
        fs::write(root.join(format!("d/file-{number}")), bytes(number as u32, length)).unwrap();
    }
    fs::write(root.join("d/e/script"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(root.join("d/e/script"), Permissions::from_mode(0o4750)).unwrap();
    fs::hard_link(root.join("d/file-2"), root.join("linked")).unwrap();
    symlink("d/file-4", root.join("link")).unwrap();
    symlink("/nowhere", root.join("d/dangling")).unwrap();
    fs::set_permissions(root, Permissions::from_mode(0o2751)).unwrap();
}

#[test]
fn a_tree_has_one_digest_however_it_is_kept_and_any_change_gives_another() {
    let cluster = Cluster::with().chunks(6).start();
    let mount = cluster.mount();
    let source = cluster.directory().join("source");
    make_source(&source);
    let copies = make_directory(&mount, "copies", "replicated:2");
    let coded = make_directory(&mount, "coded", "ec:4+2");
    succeed(Command::new("cp").arg("-a").arg(source.join(".")).arg(&copies));
    shell(&source, "tar -c . | tar -x -p -C \"$1\"", &[&coded]);
    let before = digest(&copies);
    assert_eq!(digest(&coded), before);
    let part = cluster.mount_with("/coded", "");
    assert_eq!(digest(part.path()), before, "seen as the root of another mount");
    let text = said(&admin(&["verify", coded.to_str().unwrap()]));
    assert!(text.starts_with("good: ") && text.contains(&format!("digest {before}\n")), "{text}");

    let file = OpenOptions::new().write(true).open(copies.join("d/file-4")).unwrap();
    let old = bytes(4, 3_000_000)[1_234_567];
    file.write_all_at(&[old ^ 1], 1_234_567).unwrap();
    file.sync_all().unwrap();
    assert_ne!(digest(&copies), before);
    file.write_all_at(&[old], 1_234_567).unwrap();
    drop(file);
    assert_eq!(digest(&copies), before, "the same bytes, in other chunks");
    fs::set_permissions(copies.join("d/e"), Permissions::from_mode(0o700)).unwrap();
    assert_ne!(digest(&copies), before);

    // What is mounted inside is left out, and told.
    let disk = SmallDisk::new(&coded.join("d"), "other", 8);
    fs::set_permissions(disk.path(), Permissions::from_mode(0o711)).unwrap();
    fs::write(disk.path().join("not in the digest"), "x").unwrap();
    let (code, json) = verify_path(&coded);
    assert_eq!((code, &json["tree"]["other_mounts"][0]), (0, &disk.path().to_str().unwrap().into()));
    drop(disk);
    fs::set_permissions(coded.join("d/other"), Permissions::from_mode(0o711)).unwrap();
    assert_eq!(verify_path(&coded).1["tree"]["digest"], json["tree"]["digest"]);

    let (code, all) = verify(&["--all", "--meta", cluster.address()]);
    assert_eq!((code, &all["result"], &all["tree"]), (0, &"good".into(), &Value::Null), "{all:#}");
    cluster.wait_for("as many chunks are counted", Duration::from_secs(5), |status| {
        let total: u64 = status.classes.iter().map(|class| class.chunks).sum();
        all["chunks"]["total"].as_u64() == Some(total)
    });

    // Who does not answer is not called bad.
    cluster.chunk(0).kill();
    let (code, away) = verify(&["--all", "--meta", cluster.address()]);
    assert_eq!((code, &away["result"]), (2, &"failed".into()), "{away:#}");
    let shards = &away["shards"];
    assert!(shards["not_asked"].as_u64() > Some(0) && shards["missing"] == 0 && shards["corrupt"] == 0);
    assert_eq!(away["chunks"]["unreadable"], 0, "{away:#}");
}

#[test]
fn what_cannot_be_verified_is_refused_with_a_sentence() {
    let cluster = Cluster::start();
    let mount = cluster.mount();
    symlink("nowhere", mount.join("link")).unwrap();
    let link = mount.join("link");
    for (arguments, why) in [
        (vec!["--meta", cluster.address(), "dfs:/"], "read through a mount"),
        (vec![link.to_str().unwrap()], "symbolic link"),
        (vec!["/etc"], "not dfs"),
        (vec!["/dev/null"], "neither a file nor a directory"),
        (vec![], "--all"),
        (vec!["--all", "/etc"], "cannot be used with"),
        (vec!["--all", "--meta", "127.0.0.1:1"], "no metadata server answers"),
    ] {
        let refused = admin(&[&["verify"], &arguments[..]].concat());
        assert_eq!(refused.status.code(), Some(2), "{arguments:?}: {}", said(&refused));
        assert!(said(&refused).contains(why), "{arguments:?}: {}", said(&refused));
    }
    let (code, empty) = verify_path(mount.path());
    assert_eq!((code, &empty["chunks"]["total"], &empty["tree"]["symlinks"]), (0, &0.into(), &1.into()));
}

#[test]
fn what_the_timer_starts_verifies_everything() {
    let unit = concat!(env!("CARGO_MANIFEST_DIR"), "/../systemd/dfs-scrub.service");
    let unit = fs::read_to_string(unit).unwrap();
    let command = unit.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/local/bin/dfs-admin "));
    let cluster = Cluster::start();
    let mount = cluster.mount();
    for number in 0..20 {
        fs::write(mount.join(format!("file-{number}")), bytes(number, 5000)).unwrap();
    }
    let arguments: Vec<&str> = command.expect("it starts dfs-admin").split(' ').collect();
    let output = admin(&[&arguments[..], &["--meta", cluster.address()]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(said(&output).starts_with("good: 20 chunks verified"), "{}", said(&output));
    // A rate is kept to.
    fs::write(mount.join("large"), bytes(99, 3 << 20)).unwrap();
    let begun = Instant::now();
    let slow = admin(&["verify", "--all", "--rate", "2", "--meta", cluster.address()]);
    fs::write(mount.join("last"), b"x").unwrap();
    assert_eq!(slow.status.code(), Some(0), "{}", said(&slow));
    let again = admin(&["verify", "--all", "--rate", "2", "--meta", cluster.address()]);
    assert_eq!(again.status.code(), Some(0), "{}", said(&again));
    assert!(
        begun.elapsed() >= Duration::from_millis(1400),
        "3 MiB, and then one chunk more: {:?}",
        begun.elapsed()
    );
}

/// A shard: its chunk, its index, and the number of the daemon that has it.
type Shard = (u64, u32, usize);

/// All shards that have files of their own, by chunk.
fn shards(cluster: &Cluster) -> BTreeMap<u64, Vec<(Shard, PathBuf)>> {
    let mut chunks: BTreeMap<u64, Vec<(Shard, PathBuf)>> = BTreeMap::new();
    for (daemon, member) in cluster.chunks().iter().enumerate() {
        for (path, _) in files_below(&member.data().join("shards")) {
            let name = path.file_name().unwrap().to_str().unwrap();
            let (chunk, index) = name.split_once('.').expect("a shard file is named CHUNK.INDEX");
            let chunk = u64::from_str_radix(chunk, 16).unwrap();
            chunks.entry(chunk).or_default().push(((chunk, index.parse().unwrap(), daemon), path));
        }
    }
    chunks
}

/// The bad shards that were found: chunk, shard and the daemon's address.
fn found(json: &Value) -> BTreeSet<(u64, u32, String)> {
    let number = |finding: &Value, name: &str| finding[name].as_u64().expect("a number");
    let one = |finding: &Value| {
        assert!(["missing", "corrupt", "known_lost"].contains(&finding["what"].as_str().unwrap()));
        let address = finding["address"].as_str().expect("an address").to_owned();
        (number(finding, "chunk"), number(finding, "shard") as u32, address)
    };
    json["findings"].as_array().expect("findings").iter().map(one).collect()
}

/// Damages one shard of each of four chunks that have so many shards, in four ways.
fn damage_some(
    cluster: &Cluster,
    chunks: &BTreeMap<u64, Vec<(Shard, PathBuf)>>,
    shards: usize,
) -> Vec<Shard> {
    let mut whole: Vec<_> = chunks.values().filter(|chunk| chunk.len() == shards).collect();
    assert!(whole.len() >= 5, "a chunk for each file: {whole:?}");
    let other = &whole.pop().unwrap()[0].1;
    let open = |path: &Path| OpenOptions::new().write(true).open(path).unwrap();
    let [flipped, truncated, another, gone] =
        [&whole[0][1], &whole[1][0], &whole[2][1], &whole[3][0]].map(|(shard, path)| (*shard, path));
    flip_bit(flipped.1, 4096 + 123_456);
    open(truncated.1).set_len(100_000).unwrap();
    let content = fs::read(other).unwrap();
    let file = open(another.1);
    file.write_all_at(&content, 0).unwrap();
    file.set_len(content.len() as u64).unwrap();
    fs::remove_file(gone.1).unwrap();
    // It may have the file open, and would not notice.
    cluster.chunk(gone.0.2).crash();
    [flipped, truncated, another, gone].map(|(shard, _)| shard).into()
}

#[test]
fn damaged_shards_are_named_reported_and_read_around() {
    const FILES: u32 = 5;
    let cluster = Cluster::with().chunks(6).start();
    let mount = cluster.mount();
    let content = |class: usize, number: u32| bytes(number * 10 + class as u32, 2_000_000 + class);
    let directories = [("copies", "replicated:2"), ("coded", "ec:4+2")]
        .map(|(name, class)| make_directory(&mount, name, class));
    for (class, directory) in directories.iter().enumerate() {
        for number in 0..FILES {
            let mut file = File::create(directory.join(number.to_string())).unwrap();
            file.write_all(&content(class, number)).unwrap();
            file.sync_all().unwrap();
        }
    }
    let (code, before) = verify_path(mount.path());
    assert_eq!(code, 0, "{before:#}");
    let chunks = shards(&cluster);
    let damaged = [2, 6].map(|shards| damage_some(&cluster, &chunks, shards)).concat();
    let named =
        |(chunk, shard, daemon): &Shard| (*chunk, *shard, cluster.chunk(*daemon).address().to_owned());
    let expected: BTreeSet<_> = damaged.iter().map(named).collect();
    cluster.wait_for_nodes(6);
    let (code, json) = verify_path(mount.path());
    assert_eq!((code, &json["result"]), (1, &"bad_shards".into()), "{json:#}");
    assert_eq!(found(&json), expected, "{json:#}");
    assert_eq!(json["chunks"]["unreadable"], 0, "{json:#}");
    assert_eq!(json["tree"]["digest"], before["tree"]["digest"], "what is read is still right");
    let shards = &json["shards"];
    let sum = |names: &[&str]| names.iter().map(|name| shards[*name].as_u64().unwrap()).sum::<u64>();
    assert_eq!(sum(&["missing", "corrupt", "known_lost"]), 8, "{json:#}");
    assert_eq!(sum(&["reported"]), sum(&["missing", "corrupt"]), "{json:#}");
    cluster.wait_for("the metadata knows of all of it", Duration::from_secs(10), |status| {
        status.classes.iter().map(|class| (class.degraded, class.missing)).eq([(4, 0), (4, 0)])
    });
    let fresh = cluster.mount();
    for (class, name) in ["copies", "coded"].into_iter().enumerate() {
        for number in 0..FILES {
            let read = fs::read(fresh.join(name).join(number.to_string())).unwrap();
            assert!(read == content(class, number), "{name}/{number}");
        }
    }
    let (code, again) = verify(&["--all", "--meta", cluster.address()]);
    assert_eq!((code, found(&again)), (1, expected), "{again:#}");
    assert_eq!(again["shards"]["known_lost"], 8, "nothing of it is news any more: {again:#}");

    // More than can be borne, in one chunk of each class.
    let mut beyond = BTreeSet::new();
    for (shards, damaged) in [(2, 2), (6, 3)] {
        let (chunk, shards) = chunks.iter().rfind(|(_, chunk)| chunk.len() == shards).unwrap();
        shards[..damaged].iter().for_each(|(_, path)| flip_bit(path, 4096 + 5));
        beyond.insert(*chunk);
    }
    let output = admin(&["verify", "--all", "--meta", cluster.address()]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    for chunk in &beyond {
        assert!(said(&output).contains(&format!("chunk {chunk} cannot be read")), "{}", said(&output));
    }
    let (code, json) = verify_path(cluster.mount().path());
    assert_eq!((code, &json["chunks"]["unreadable"]), (2, &2.into()), "{json:#}");
    assert_eq!((&json["tree"]["digest"], &json["tree"]["failed"]), (&Value::Null, &2.into()), "{json:#}");
}
