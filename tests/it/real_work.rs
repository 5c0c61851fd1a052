//! What people do with a disk all day, done on a mount and compared with the same on the local one.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use dfs_tests::cluster::Cluster;
use dfs_tests::commands::{self, shell, succeed};
use dfs_tests::tree::Tree;
use dfs_tests::{programs, sources};
use tempfile::TempDir;

/// The source tree on the local disk, only read.
fn source_tree() -> &'static Path {
    static TREE: OnceLock<PathBuf> = OnceLock::new();
    TREE.get_or_init(sources::tree)
}

/// A scratch directory on the disk that holds the target directory.
fn local_directory() -> TempDir {
    tempfile::Builder::new()
        .prefix("dfs-tests-")
        .tempdir_in(programs::target_directory())
        .expect("make a directory")
}

/// Fails when two trees differ in anything but what `ls` of a directory can't keep.
fn assert_same(expected: &Path, found: &Path) {
    if let Some(difference) = Tree::read(expected).difference(&Tree::read(found)) {
        panic!("{} and {}: {difference}", expected.display(), found.display());
    }
}

#[test]
fn a_tree_copied_and_compared() {
    let cluster = Cluster::start();
    let mut mount = cluster.mount();
    let copy = mount.join("copy");
    succeed(Command::new("cp").arg("-a").arg(source_tree()).arg(&copy));
    succeed(Command::new("diff").args(["-r", "--no-dereference"]).arg(source_tree()).arg(&copy));
    assert_same(source_tree(), &copy);
    // Again with nothing cached, and copied within the mount.
    mount.unmount();
    mount.remount();
    assert_same(source_tree(), &copy);
    succeed(Command::new("cp").arg("-a").arg(&copy).arg(mount.join("second")));
    assert_same(source_tree(), &mount.join("second"));
    succeed(Command::new("rm").arg("-r").arg(&copy).arg(mount.join("second")));
    assert_eq!(std::fs::read_dir(mount.path()).unwrap().count(), 0);
}

#[test]
fn an_archive_unpacked_and_packed_again_is_the_same() {
    const PACK: &str = "tar --create --sort=name --format=gnu --numeric-owner --directory=$1 --file=$2 .";
    let cluster = Cluster::start();
    let mount = cluster.mount();
    let local = local_directory();
    let (archive, again) = (local.path().join("archive.tar"), local.path().join("again.tar"));
    shell(local.path(), PACK, &[source_tree(), &archive]);
    std::fs::create_dir(mount.join("unpacked")).unwrap();
    let unpack = "tar --extract --xattrs --directory=$1 --file=$2";
    shell(local.path(), unpack, &[&mount.join("unpacked"), &archive]);
    shell(local.path(), PACK, &[&mount.join("unpacked"), &again]);
    succeed(Command::new("cmp").arg(&archive).arg(&again));
    // And an archive that lies on the mount itself.
    shell(local.path(), PACK, &[source_tree(), &mount.join("archive.tar")]);
    succeed(Command::new("cmp").arg(&archive).arg(mount.join("archive.tar")));
}

#[test]
fn rsync_moves_everything_once() {
    commands::require("rsync");
    let cluster = Cluster::start();
    let mount = cluster.mount();
    let rsync = |from: &Path, to: &Path| {
        let script = "rsync -aHAX --itemize-changes --numeric-ids $1/ $2/";
        shell(Path::new("/"), script, &[from, to])
    };
    let copy = mount.join("copy");
    let moved = rsync(source_tree(), &copy);
    assert!(moved.lines().count() > sources::FILES, "the first run moves everything");
    assert_same(source_tree(), &copy);
    assert_eq!(rsync(source_tree(), &copy), "", "the second run moves nothing");
    assert_eq!(rsync(&copy, source_tree()), "", "nor does the way back");
}

#[test]
fn a_repository_cloned_and_checked() {
    let cluster = Cluster::start();
    let mount = cluster.mount();
    let local = local_directory();
    let origin = local.path().join("origin");
    let make = "cp -a $1 $2 && cd $2 && git init -q && git add -A --force && \
                git -c user.name=Tester -c user.email=tester@localhost commit -qm 'All of it'";
    shell(local.path(), make, &[source_tree(), &origin]);
    let clone = mount.join("clone");
    shell(local.path(), "git clone -q --no-hardlinks $1 $2", &[&origin, &clone]);
    let fsck = shell(&clone, "git fsck --strict --full --no-progress 2>&1; git status --porcelain", &[]);
    assert_eq!(fsck, "", "fsck and status have nothing to say");
    let work = "git checkout -qb other && git rm -rq 'odd things' && \
                git -c user.name=Tester -c user.email=tester@localhost commit -qm 'Less of it' && \
                git checkout -q - && git merge -q --ff-only other && git gc -q && git fsck --strict --no-progress 2>&1";
    assert_eq!(shell(&clone, work, &[]), "");
    let compare = "diff -r --no-dereference --exclude=.git --exclude='odd things' $1 $2";
    assert_eq!(shell(&clone, compare, &[&origin, &clone]), "");
}

#[test]
fn a_program_built_and_run() {
    let cluster = Cluster::start();
    let mount = cluster.mount();
    let local = local_directory();
    let build = |directory: &Path| {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let sources = directory.join("src");
        std::fs::create_dir_all(&sources).unwrap();
        let manifest = "[package]\nname = \"small\"\nversion = \"0.1.0\"\nedition = \"2024\"\n[workspace]\n";
        std::fs::write(directory.join("Cargo.toml"), manifest).unwrap();
        let main = "mod other;\nfn main() { println!(\"{}\", other::answer(6)); }\n";
        std::fs::write(sources.join("main.rs"), main).unwrap();
        let other = "pub fn answer(n: u64) -> u64 { (1..=n).product() }\n\
                     #[test]\nfn six() { assert_eq!(answer(6), 720); }\n";
        std::fs::write(sources.join("other.rs"), other).unwrap();
        for verb in ["build", "test"] {
            let mut command = Command::new(&cargo);
            // The environment of the test that runs this is not its own.
            command.env_remove("CARGO_TARGET_DIR").env_remove("RUSTFLAGS");
            succeed(command.current_dir(directory).args([verb, "--quiet", "--offline"]));
        }
        succeed(&mut Command::new(directory.join("target/debug/small")))
    };
    let on_mount = mount.join("small");
    assert_eq!(build(&on_mount), "720\n");
    assert_eq!(build(&local.path().join("small")), "720\n");
    // A change is noticed by its time, as on the local disk.
    let other = "pub fn answer(n: u64) -> u64 { n + 1 }\n";
    std::fs::write(on_mount.join("src/other.rs"), other).unwrap();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut run = Command::new(cargo);
    run.env_remove("CARGO_TARGET_DIR").env_remove("RUSTFLAGS");
    assert_eq!(succeed(run.current_dir(&on_mount).args(["run", "--quiet", "--offline"])), "7\n");
}

/// Two processes insert into one database; every row must be there once and the file sound.
fn write_database(first: &Path, second: &Path, journal: &str) {
    const ROWS: usize = 60;
    commands::require("sqlite3");
    let setup =
        format!("sqlite3 $1 'PRAGMA journal_mode={journal}; CREATE TABLE t(who INT, n INT, text TEXT);'");
    shell(Path::new("/"), &setup, &[first]);
    let insert = format!(
        "for n in $(seq {ROWS}); do
           sqlite3 -cmd '.timeout 60000' $1 \"INSERT INTO t VALUES($2, $n, hex(randomblob(2000)));\"
         done"
    );
    std::thread::scope(|scope| {
        let insert = &insert;
        let writer = |path, who: &'static str| {
            scope.spawn(move || shell(Path::new("/"), insert, &[path, Path::new(who)]))
        };
        let writers = [writer(first, "1"), writer(second, "2")];
        writers.into_iter().for_each(|writer| drop(writer.join().expect("a writer failed")));
    });
    let check =
        "sqlite3 $1 'PRAGMA integrity_check; SELECT who, count(DISTINCT n), count(*) FROM t GROUP BY who;'";
    for path in [first, second] {
        let found = shell(Path::new("/"), check, &[path]);
        assert_eq!(found, format!("ok\n1|{ROWS}|{ROWS}\n2|{ROWS}|{ROWS}\n"), "{journal}");
    }
}

#[test]
fn a_database_written_by_two_processes() {
    let cluster = Cluster::start();
    let mount = cluster.mount();
    for journal in ["DELETE", "TRUNCATE", "WAL"] {
        let path = mount.join(format!("{journal}.db"));
        write_database(&path, &path, journal);
    }
}

#[test]
fn a_database_written_by_processes_on_two_mounts() {
    let cluster = Cluster::start();
    let (one, two) = (cluster.mount(), cluster.mount());
    write_database(&one.join("shared.db"), &two.join("shared.db"), "DELETE");
}
