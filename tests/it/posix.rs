//! What POSIX and Linux promise, by others' suites and by tests of what those leave out, on a mount.

use std::fs::{self, File, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use dfs_tests::cluster::Cluster;
use dfs_tests::commands::{self, run, shell};
use dfs_tests::fsx;
use dfs_tests::operation::Data;
use dfs_tests::programs;
use nix::errno::Errno;
use nix::unistd::Whence;

/// The suite of POSIX file systems, with two ordinary users.
#[test]
fn pjdfstest_has_no_failures() {
    const CONFIGURATION: &str = r#"
        [features]
        posix_fallocate = {}
        rename_ctime = {}
        utime_now = {}
        utimensat = {}
        [settings]
        naptime = 0.01
        [dummy_auth]
        entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
    "#;
    let tool = programs::tool("pjdfstest", "0.2.2");
    let cluster = Cluster::start();
    // Its devices and set-id programs are part of the suite.
    let mount = cluster.mount_with("/", "dev,suid");
    let configuration = cluster.directory().join("pjdfstest.toml");
    fs::write(&configuration, CONFIGURATION).unwrap();
    // Ordinary users must reach the mount through the directories above it.
    fs::set_permissions(cluster.directory(), fs::Permissions::from_mode(0o755)).unwrap();
    // At the root: the address of a socket is at most 107 bytes long.
    let mut command = Command::new(tool);
    command.current_dir(mount.path()).arg("-c").arg(&configuration).arg("-p").arg(mount.path());
    let output = run(command.arg("-s").arg(cluster.directory()), commands::PATIENCE);
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    let summary = said.lines().find(|line| line.starts_with("Summary: ")).unwrap_or_else(|| panic!("{said}"));
    let failed: Vec<&str> = said.lines().filter(|line| line.contains("FAILED")).collect();
    assert!(
        output.status.success() && summary.starts_with("Summary: 0 failed"),
        "{summary}\n{}",
        failed.join("\n")
    );
    let count = |what: &str| -> u32 {
        let part =
            summary.split(&[',', ':']).find(|part| part.ends_with(what)).expect("the summary tells it");
        part.split_whitespace().next().and_then(|count| count.parse().ok()).expect("a number")
    };
    // What is left out needs a remount of the file system.
    assert!(count("passed") >= 383, "{summary}");
}

#[test]
fn fsx_finds_nothing_with_four_seeds() {
    let cluster = Cluster::start();
    let mount = cluster.mount();
    let files = [1, 2, 3, 4].map(|seed| (mount.join(format!("fsx-{seed}")), seed));
    fsx::run_on(&cluster, &files, 20_000);
}

#[test]
fn a_sparse_file_beyond_a_terabyte() {
    const FAR: u64 = (1 << 40) + 12_345;
    let cluster = Cluster::start();
    let mut mount = cluster.mount();
    let path = mount.join("sparse");
    let file = File::create(&path).unwrap();
    file.write_all_at(b"start", 0).unwrap();
    file.write_all_at(b"far", FAR).unwrap();
    file.sync_all().unwrap();
    drop(file);
    mount.unmount();
    mount.remount();
    let file = File::open(&path).unwrap();
    let metadata = file.metadata().unwrap();
    assert_eq!(metadata.size(), FAR + 3);
    assert!(metadata.blocks() <= 2 * 128, "{} blocks for eight bytes", metadata.blocks());
    let mut bytes = [1; 8];
    file.read_exact_at(&mut bytes, FAR - 5).unwrap();
    assert_eq!(&bytes, b"\0\0\0\0\0far");
    let seek = |offset: i64, whence| nix::unistd::lseek(&file, offset, whence);
    let hole = seek(0, Whence::SeekHole).unwrap();
    assert!((5..=65_536).contains(&hole), "{hole}");
    let data = seek(hole, Whence::SeekData).unwrap() as u64;
    assert!(data <= FAR && data > FAR - 65_536, "{data}");
    assert_eq!(seek(FAR as i64 + 3, Whence::SeekData), Err(Errno::ENXIO));
    assert_eq!(seek(FAR as i64 + 1, Whence::SeekHole), Ok(FAR as i64 + 3));
}

#[test]
fn copies_share_their_bytes() {
    let cluster = Cluster::start();
    let mount = cluster.mount();
    let data = Data { seed: 1, length: 5_000_000 }.bytes();
    let source = mount.join("source");
    fs::write(&source, &data).unwrap();
    let chunk_bytes = || {
        // What the server counted is good for a second.
        std::thread::sleep(Duration::from_millis(1500));
        cluster.status().classes.iter().map(|class| class.bytes).sum::<u64>()
    };
    let before = chunk_bytes();
    let from = File::open(&source).unwrap();
    let to = File::create(mount.join("target")).unwrap();
    let (mut start, mut target) = (0, 0);
    while start < data.len() as i64 {
        let left = data.len() - start as usize;
        let copied =
            nix::fcntl::copy_file_range(&from, Some(&mut start), &to, Some(&mut target), left).unwrap();
        assert!(copied > 0);
    }
    drop(to);
    assert!(fs::read(mount.join("target")).unwrap() == data);
    assert_eq!(chunk_bytes(), before, "no byte was stored again");
    fs::remove_file(&source).unwrap();
    assert!(fs::read(mount.join("target")).unwrap() == data, "the copy does not need its source");
}

#[test]
fn an_unlinked_file_lives_until_it_is_closed() {
    let cluster = Cluster::start();
    let mount = cluster.mount();
    let path = mount.join("file");
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    file.write_all_at(b"still here", 0).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, "another").unwrap();
    cluster.meta().crash();
    file.write_all_at(b"STILL", 0).unwrap();
    file.sync_all().unwrap();
    let mut bytes = [0; 10];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"STILL here");
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    assert_eq!(fs::read_to_string(&path).unwrap(), "another");
    drop(file);
    // Only the root and the new file are left.
    cluster.wait_for("rid of the unlinked file", Duration::from_secs(30), |status| status.files == 2);
}

#[test]
fn a_large_directory_is_listed_whole_while_it_changes() {
    const STAY: usize = 6000;
    let cluster = Cluster::start();
    let mount = cluster.mount();
    let directory = mount.join("many");
    fs::create_dir(&directory).unwrap();
    for number in 0..STAY {
        File::create(directory.join(format!("stays-{number}"))).unwrap();
    }
    std::thread::scope(|scope| {
        let churn = scope.spawn(|| {
            for number in 0..1500 {
                let path = directory.join(format!("comes-and-goes-{number}"));
                File::create(&path).unwrap();
                fs::remove_file(&path).unwrap();
            }
        });
        while !churn.is_finished() {
            let names: Vec<_> =
                fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            let stayed: std::collections::BTreeSet<_> =
                names.iter().filter(|name| name.as_bytes().starts_with(b"stays-")).collect();
            let listed = names.iter().filter(|name| name.as_bytes().starts_with(b"stays-")).count();
            assert_eq!((stayed.len(), listed), (STAY, STAY), "each name that stays is listed once");
        }
    });
    // Removing what one lists, as rm -r does, leaves nothing behind.
    fs::remove_dir_all(&directory).unwrap();
    assert!(!directory.exists());
}

#[test]
fn a_mapping_is_shared_and_survives() {
    let cluster = Cluster::start();
    let mut mount = cluster.mount();
    let path = mount.join("mapped");
    // A tool that is everywhere writes through a shared mapping and reads it back: dd does not, so sqlite's WAL and fsx
    // do the rest; here a mapping is changed after the descriptor is closed.
    let length = 300_000;
    fs::write(&path, vec![7; length]).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let protection = nix::sys::mman::ProtFlags::PROT_READ | nix::sys::mman::ProtFlags::PROT_WRITE;
    let size = std::num::NonZeroUsize::new(length).unwrap();
    // SAFETY: the mapping is of a regular file of that length and is only touched inside it, until it is unmapped.
    unsafe {
        let map =
            nix::sys::mman::mmap(None, size, protection, nix::sys::mman::MapFlags::MAP_SHARED, &file, 0)
                .unwrap();
        drop(file);
        let bytes = std::slice::from_raw_parts_mut(map.as_ptr().cast::<u8>(), length);
        assert!(bytes.iter().all(|byte| *byte == 7));
        bytes[200_000] = 8;
        assert_eq!(fs::read(&path).unwrap()[200_000], 8, "a reader sees the mapping's change at once");
        nix::sys::mman::msync(map, length, nix::sys::mman::MsFlags::MS_SYNC).unwrap();
        bytes[100_000] = 9;
        nix::sys::mman::munmap(map, length).unwrap();
    }
    mount.unmount();
    mount.remount();
    let found = fs::read(&path).unwrap();
    assert_eq!((found.len(), found[200_000], found[100_000], found[1]), (length, 8, 9, 7));
}

#[test]
fn appends_of_two_mounts_are_all_kept() {
    const LINES: usize = 100;
    let cluster = Cluster::start();
    let mounts = [cluster.mount(), cluster.mount()];
    std::thread::scope(|scope| {
        for (index, mount) in mounts.iter().enumerate() {
            let path = mount.join("log");
            scope.spawn(move || {
                use std::io::Write;
                let open = OpenOptions::new().append(true).create(true).custom_flags(libc::O_SYNC).open(path);
                let mut file = open.unwrap();
                for number in 0..LINES {
                    file.write_all(format!("{index} {number:04}\n").as_bytes()).unwrap();
                }
            });
        }
    });
    let fresh = cluster.mount();
    let text = fs::read_to_string(fresh.join("log")).unwrap();
    for index in 0..2 {
        let of_one: Vec<&str> = text.lines().filter(|line| line.starts_with(&format!("{index} "))).collect();
        let expected: Vec<String> = (0..LINES).map(|number| format!("{index} {number:04}")).collect();
        assert_eq!(of_one, expected, "all lines of mount {index}, in order");
    }
    assert_eq!(text.lines().count(), 2 * LINES);
}

#[test]
fn acls_are_enforced_and_inherited() {
    for tool in ["setfacl", "getfacl"] {
        commands::require(tool);
    }
    let cluster = Cluster::start();
    let mount = cluster.mount();
    fs::set_permissions(cluster.directory(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(mount.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let script = "
        mkdir private && chmod 700 private && echo secret > private/file && chmod 600 private/file
        as_daemon() { setpriv --reuid=daemon --regid=daemon --clear-groups -- \"$@\"; }
        ! as_daemon cat private/file 2>/dev/null
        setfacl -m u:daemon:rx private && setfacl -m u:daemon:r private/file
        test \"$(as_daemon cat private/file)\" = secret
        ! as_daemon sh -c 'echo no > private/file' 2>/dev/null
        setfacl -d -m u:daemon:rwx -m m::rwx private
        echo inherited > private/new && mkdir private/sub
        getfacl -p private/new | grep -q '^user:daemon:rwx'
        getfacl -p private/sub | grep -q '^default:user:daemon:rwx'
        test \"$(as_daemon cat private/new)\" = inherited
        chmod 600 private/new
        ! as_daemon cat private/new 2>/dev/null
        setfacl -b private/file
        ! as_daemon cat private/file 2>/dev/null";
    shell(mount.path(), script, &[]);
}

#[test]
fn the_numbers_of_the_filesystem_are_true() {
    let cluster = Cluster::start();
    let mount = cluster.mount();
    let numbers = |path: &Path| nix::sys::statvfs::statvfs(path).unwrap();
    let before = numbers(mount.path());
    assert!(before.blocks() > 0 && before.blocks_available() <= before.blocks());
    assert_eq!(before.name_max(), 255);
    fs::write(mount.join("file"), Data { seed: 1, length: 20_000_000 }.bytes()).unwrap();
    fs::create_dir(mount.join("directory")).unwrap();
    let used = |numbers: &nix::sys::statvfs::Statvfs| numbers.files() - numbers.files_free();
    let after = cluster.mount();
    let after = numbers(after.path());
    assert_eq!(used(&after), used(&before) + 2);
}
