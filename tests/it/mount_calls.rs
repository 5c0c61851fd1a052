//! What only a kernel can ask: calls whose details travel in the words of a FUSE request, caches of the kernel across
//! mounts, and listings.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use dfs_proto::Ino;
use dfs_tests::cluster::Cluster;
use dfs_tests::library_target::{LibraryTarget, regular_file};
use dfs_tests::{amount, commands};

fn c(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

fn checked(result: i64) -> Result<i64, i32> {
    match result {
        -1 => Err(std::io::Error::last_os_error().raw_os_error().expect("the call set errno")),
        value => Ok(value),
    }
}

fn utimens(path: &Path, atime: libc::timespec, mtime: libc::timespec) -> Result<i64, i32> {
    let (path, times) = (c(path), [atime, mtime]);
    // SAFETY: a C string and two timespecs.
    checked(
        unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), times.as_ptr(), libc::AT_SYMLINK_NOFOLLOW) }
            .into(),
    )
}

fn at(seconds: i64, nanos: i64) -> libc::timespec {
    libc::timespec { tv_sec: seconds, tv_nsec: nanos }
}

#[test]
fn times_are_exact_before_1970_and_far_from_it() {
    let cluster = Cluster::start();
    let mount = cluster.mount();
    let path = mount.join("file");
    fs::write(&path, "").unwrap();
    for (seconds, nanos) in
        [(0, 0), (-1, 500_000_000), (-1, 999_999_999), (-5, 1), (1 << 40, 7), (-(1 << 40), 123_456_789)]
    {
        utimens(&path, at(seconds, nanos), at(seconds + 3, nanos)).unwrap();
        let found = fs::metadata(&path).unwrap();
        assert_eq!((found.atime(), found.atime_nsec()), (seconds, nanos));
        assert_eq!((found.mtime(), found.mtime_nsec()), (seconds + 3, nanos));
    }
    utimens(&path, at(100, 5), at(0, libc::UTIME_OMIT)).unwrap();
    let before = fs::metadata(&path).unwrap();
    assert_eq!((before.atime(), before.mtime()), (100, -(1 << 40) + 3));
    utimens(&path, at(0, libc::UTIME_OMIT), at(0, libc::UTIME_NOW)).unwrap();
    let after = fs::metadata(&path).unwrap();
    assert_eq!((after.atime(), after.atime_nsec()), (100, 5));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
    assert!((now - after.mtime()).abs() < 60, "{} is now", after.mtime());
}

/// Set-id bits go when somebody without CAP_FSETID writes or truncates, stay when root does, and go with a change of
/// owner in any case.
#[test]
fn set_id_bits_go_when_they_must() {
    let cluster = Cluster::start();
    let mount = cluster.mount();
    fs::set_permissions(mount.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let path = mount.join("file");
    let nobody = |script: &str| {
        let path = path.to_str().unwrap();
        let setpriv = ["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "sh", "-c"];
        commands::succeed(Command::new("setpriv").args(setpriv).arg(script).arg("sh").arg(path));
    };
    let mode = || fs::metadata(&path).unwrap().mode() & 0o7777;
    let reset = |mode: u32| {
        let _ = fs::remove_file(&path);
        fs::write(&path, "0123456789").unwrap();
        std::os::unix::fs::chown(&path, Some(65534), Some(65534)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    };
    for script in [
        "printf x >> \"$1\"",
        ": > \"$1\"",
        "truncate -s 3 \"$1\"",
        "fallocate -l 20 \"$1\"",
        "fallocate -p -o 0 -l 4 \"$1\"",
    ] {
        reset(0o6777);
        nobody(script);
        assert_eq!(mode(), 0o777, "{script}");
        reset(0o2767);
        nobody(script);
        assert_eq!(mode(), 0o2767, "{script}: without the group's x bit this is no set-group-id");
    }
    reset(0o6777);
    let mut file = File::options().write(true).open(&path).unwrap();
    file.write_all(b"root").unwrap();
    file.set_len(2).unwrap();
    drop(file);
    assert_eq!(mode(), 0o6777, "root keeps them");
    std::os::unix::fs::chown(&path, Some(1), None).unwrap();
    assert_eq!(mode(), 0o777, "a new owner");
}

/// An access ACL set by an owner outside the file's group clears set-group-id; by a member of it, it doesn't.
#[test]
fn an_acl_from_outside_the_group_clears_set_group_id() {
    let cluster = Cluster::start();
    let mount = cluster.mount();
    let path = mount.join("file");
    // user::rwx group::r-x other::r-x, as setfacl would send it.
    let acl: Vec<u8> = [2_u32.to_le_bytes().to_vec()]
        .into_iter()
        .chain([(0x01_u16, 7_u16), (0x04, 5), (0x20, 5)].map(|(tag, bits)| {
            [tag.to_le_bytes().to_vec(), bits.to_le_bytes().to_vec(), u32::MAX.to_le_bytes().to_vec()]
                .concat()
        }))
        .flatten()
        .collect();
    let script = format!(
        "my $acl = pack('H*', $ARGV[1]); my $name = 'system.posix_acl_access'; \
         syscall({}, $ARGV[0], $name, $acl, length $acl, 0) == 0 or die $!",
        libc::SYS_setxattr
    );
    let hex: String = acl.iter().map(|byte| format!("{byte:02x}")).collect();
    for (groups, kept) in [("--groups=1", false), ("--groups=1,4242", true)] {
        let _ = fs::remove_file(&path);
        fs::write(&path, "").unwrap();
        std::os::unix::fs::chown(&path, Some(65534), Some(4242)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o2755)).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", groups, "perl", "-we", &script]).arg(&path).arg(&hex);
        commands::succeed(&mut command);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o2000 != 0, kept, "{groups}");
    }
}

/// What was set here shows here at once, also while others ask about the file all the time; on another mount within the
/// second for which attributes may be believed.
#[test]
fn extended_attributes_show_at_once_and_soon_elsewhere() {
    use std::sync::atomic::{AtomicBool, Ordering};

    let cluster = Cluster::start();
    let (here, there) = (cluster.mount(), cluster.mount());
    let path = here.join("file");
    fs::write(&path, "").unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                fs::read_dir(here.path()).unwrap().for_each(|entry| drop(entry.unwrap().metadata()));
            }
        });
        for round in 0..150 {
            assert_eq!(xattr::get(&path, "user.round").unwrap(), None, "round {round}");
            let value = round.to_string().into_bytes();
            xattr::set(&path, "user.round", &value).unwrap();
            assert_eq!(xattr::get(&path, "user.round").unwrap(), Some(value), "round {round}");
            xattr::remove(&path, "user.round").unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    let elsewhere = there.join("file");
    assert_eq!(xattr::get(&elsewhere, "user.late").unwrap(), None);
    xattr::set(&path, "user.late", b"seen").unwrap();
    std::thread::sleep(Duration::from_millis(1100));
    assert_eq!(xattr::get(&elsewhere, "user.late").unwrap(), Some(b"seen".to_vec()));
}

/// fstat(2) of an open file: our own writes at once, those of another mount within a second.
#[test]
fn an_open_files_attributes_are_never_older_than_a_second() {
    let cluster = Cluster::start();
    let (here, there) = (cluster.mount(), cluster.mount());
    let mut ours = File::create(here.join("file")).unwrap();
    let theirs = File::open(there.join("file")).unwrap();
    for round in 1..=20_u64 {
        ours.write_all(b"1234567").unwrap();
        assert_eq!(ours.metadata().unwrap().len(), round * 7);
        let mode = 0o600 + (round % 8) as u32;
        ours.set_permissions(fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(ours.metadata().unwrap().mode() & 0o777, mode);
        if round % 5 == 0 {
            ours.sync_all().unwrap();
            std::thread::sleep(Duration::from_millis(1100));
            let seen = theirs.metadata().unwrap();
            assert_eq!((seen.len(), seen.mode() & 0o777), (round * 7, mode));
        }
    }
}

/// Close-to-open: who opens a file sees what was written before on another mount, though the kernel was told of the old
/// size a moment ago.
#[test]
fn an_open_sees_what_was_closed_before() {
    let cluster = Cluster::start();
    let (here, there) = (cluster.mount(), cluster.mount());
    let (ours, theirs) = (here.join("file"), there.join("file"));
    fs::write(&ours, "0").unwrap();
    for round in 1..50_u32 {
        let before = fs::read(&theirs).unwrap();
        assert_eq!(fs::metadata(&theirs).unwrap().len(), before.len() as u64);
        let content = vec![round as u8; (round as usize * 7919) % 50_000 + 1];
        fs::write(&ours, &content).unwrap();
        assert_eq!(fs::read(&theirs).unwrap(), content, "round {round}");
    }
}

/// The same with a lock instead of open and close: both keep the file open all the time.
#[test]
fn a_lock_shows_what_was_written_under_it() {
    let cluster = Cluster::start();
    let (here, there) = (cluster.mount(), cluster.mount());
    let open =
        |path: &Path| File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap();
    let files = [open(&here.join("counter")), open(&there.join("counter"))];
    files[0].write_all_at(&0_u64.to_le_bytes(), 0).unwrap();
    let start = Instant::now();
    for round in 0..60_u64 {
        let file = &files[(round % 2) as usize];
        // SAFETY: an open descriptor.
        unsafe { assert_eq!(libc::flock(file.as_raw_fd(), libc::LOCK_EX), 0) };
        let mut counter = [0; 8];
        file.read_exact_at(&mut counter, 0).unwrap();
        assert_eq!(u64::from_le_bytes(counter), round);
        file.write_all_at(&(round + 1).to_le_bytes(), 0).unwrap();
        // SAFETY: an open descriptor.
        unsafe { assert_eq!(libc::flock(file.as_raw_fd(), libc::LOCK_UN), 0) };
    }
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
}

/// The first bytes of a file, shared.
struct Mapping {
    start: *mut libc::c_void,
    length: usize,
}

impl Mapping {
    fn new(file: &File, length: usize) -> Self {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh mapping of an open file.
        let start = unsafe {
            libc::mmap(std::ptr::null_mut(), length, protection, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        assert_ne!(start, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        Self { start, length }
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: mapped for as long as this lives, and the file is not shortened meanwhile.
        unsafe { std::slice::from_raw_parts_mut(self.start.cast(), self.length) }
    }

    fn sync(&self) {
        // SAFETY: the whole mapping.
        assert_eq!(unsafe { libc::msync(self.start, self.length, libc::MS_SYNC) }, 0);
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nothing borrows it any more.
        unsafe { libc::munmap(self.start, self.length) };
    }
}

/// Mapped pages of a file that is open for appending are written back where they are, not at the end.
#[test]
fn mapped_pages_of_an_appended_file_stay_in_place() {
    let cluster = Cluster::start();
    let mount = cluster.mount();
    let path = mount.join("file");
    fs::write(&path, vec![b'a'; 12288]).unwrap();
    let appending = File::options().read(true).append(true).open(&path).unwrap();
    {
        let mut mapping = Mapping::new(&appending, 12288);
        mapping.bytes()[4096..4100].copy_from_slice(b"here");
        mapping.sync();
        (&appending).write_all(b"end").unwrap();
        mapping.bytes()[..5].copy_from_slice(b"start");
        mapping.sync();
    }
    drop(appending);
    let found = fs::read(&path).unwrap();
    assert_eq!(found.len(), 12291);
    assert_eq!(
        (&found[..5], &found[4096..4100], &found[12288..]),
        (&b"start"[..], &b"here"[..], &b"end"[..])
    );
}

#[test]
fn direct_and_synchronous_files_work() {
    let cluster = Cluster::start();
    let mount = cluster.mount();
    let block = vec![0x5a; 1 << 20];
    for (name, flags) in [
        ("direct", libc::O_DIRECT),
        ("sync", libc::O_SYNC),
        ("dsync", libc::O_DSYNC),
        ("both", libc::O_DIRECT | libc::O_SYNC),
    ] {
        let mut options = File::options();
        let mut file =
            options.read(true).write(true).create(true).custom_flags(flags).open(mount.join(name)).unwrap();
        // O_DIRECT wants aligned memory on some filesystems; this one takes any.
        for _ in 0..3 {
            file.write_all(&block).unwrap();
        }
        file.seek(SeekFrom::Start(1 << 20)).unwrap();
        let mut back = vec![0; 1 << 20];
        file.read_exact(&mut back).unwrap();
        assert_eq!(back, block, "{name}");
        assert_eq!(file.metadata().unwrap().len(), 3 << 20);
    }
}

#[test]
fn what_is_not_offered_has_the_errno_of_its_man_page() {
    let cluster = Cluster::start();
    let mount = cluster.mount();
    let path = mount.join("file");
    fs::write(&path, vec![1; 8192]).unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let fd = file.as_raw_fd();
    // SAFETY: open descriptors and C strings all along.
    unsafe {
        for mode in
            [libc::FALLOC_FL_COLLAPSE_RANGE, libc::FALLOC_FL_INSERT_RANGE, libc::FALLOC_FL_UNSHARE_RANGE]
        {
            assert_eq!(checked(libc::fallocate(fd, mode, 0, 4096).into()), Err(libc::EOPNOTSUPP));
        }
        let directory = c(mount.path());
        let flags = libc::O_TMPFILE | libc::O_RDWR;
        assert_eq!(checked(libc::open(directory.as_ptr(), flags, 0o600).into()), Err(libc::EOPNOTSUPP));
        let whiteout = libc::RENAME_WHITEOUT;
        let (from, to) = (c(&path), c(&mount.join("to")));
        let renamed = libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), whiteout);
        assert_eq!(checked(renamed.into()), Err(libc::EINVAL));
        let mut flags: libc::c_long = 0;
        assert_eq!(checked(libc::ioctl(fd, libc::FS_IOC_GETFLAGS, &raw mut flags).into()), Err(libc::ENOTTY));
        assert_eq!(checked(libc::lseek(fd, 8192, libc::SEEK_DATA)), Err(libc::ENXIO));
        assert_eq!(checked(libc::lseek(fd, 0, libc::SEEK_HOLE)), Ok(8192));
        let name = CString::new("system.nonsense").unwrap();
        let set = libc::fsetxattr(fd, name.as_ptr(), [1_u8].as_ptr().cast(), 1, 0);
        assert_eq!(checked(set.into()), Err(libc::EOPNOTSUPP));
    }
    let found = fs::metadata(&path).unwrap();
    assert_eq!(found.blksize(), 65536);
    assert_eq!(found.blocks(), 16);
}

/// Makes `count` empty files called "stays-0" and so on, many at a time.
fn make_names(cluster: &Cluster, directory: &str, count: usize) {
    const AT_ONCE: usize = 64;
    let client = LibraryTarget::connect(cluster.address());
    let fs = client.fs();
    let parent = Ino(client.run(fs.lookup(fs.root(), directory.as_bytes())).unwrap().ino);
    let make = |first: usize| {
        let fs = fs.clone();
        async move {
            for number in (first..count).step_by(AT_ONCE) {
                fs.create(parent, format!("stays-{number}").as_bytes(), regular_file(0o644)).await.unwrap();
            }
        }
    };
    client.run(async {
        let mut makers: tokio::task::JoinSet<()> = (0..AT_ONCE).map(make).collect();
        while let Some(made) = makers.join_next().await {
            made.unwrap();
        }
    });
}

/// A large directory streams: each name once while others come and go, positions stay true, and memory stays small.
#[test]
fn listings_stream_and_positions_stay_true() {
    let names = amount(20_000, 1_000_000) as usize;
    let cluster = Cluster::start();
    let mut mount = cluster.mount();
    let directory = mount.join("directory");
    fs::create_dir(&directory).unwrap();
    make_names(&cluster, "directory", names);
    let every = names / 700;
    let mut seen = BTreeSet::new();
    for (number, entry) in fs::read_dir(&directory).unwrap().enumerate() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.starts_with("stays-") {
            assert!(seen.insert(name), "each name comes once");
        }
        if number % every == 0 {
            File::create(directory.join(format!("comes-{number}"))).unwrap();
            if number % (3 * every) == 0 {
                fs::remove_file(directory.join(format!("comes-{number}"))).unwrap();
            }
        }
    }
    assert_eq!(seen.len(), names);
    seek_in(&directory, names);
    // `ls -l` asks for attributes with the names; every one is right.
    let listed = commands::shell(&directory, "ls -l | wc -l", &[]);
    let count: usize = listed.trim().parse().unwrap();
    assert_eq!(count - 1, fs::read_dir(&directory).unwrap().count());
    let pid = mount.pid().expect("the daemon runs");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak_kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak_kib < 200 * 1024, "{peak_kib} KiB");
}

/// telldir(3), seekdir(3) and rewinddir(3): every position leads to its name again.
fn seek_in(directory: &Path, at_least: usize) {
    let path = c(directory);
    // SAFETY: one stream, used by this thread alone and not after it is closed.
    unsafe {
        let stream = libc::opendir(path.as_ptr());
        assert!(!stream.is_null());
        let next = || {
            let entry = libc::readdir(stream);
            (!entry.is_null()).then(|| std::ffi::CStr::from_ptr((*entry).d_name.as_ptr()).to_owned())
        };
        let mut places = Vec::new();
        loop {
            let place = libc::telldir(stream);
            let Some(name) = next() else { break };
            places.push((place, name));
        }
        assert!(places.len() > at_least);
        assert_eq!(places.iter().map(|(place, _)| place).collect::<BTreeSet<_>>().len(), places.len());
        for (place, name) in
            places.iter().step_by(at_least / 50).chain(places.iter().rev().step_by(at_least / 10))
        {
            libc::seekdir(stream, *place);
            assert_eq!(next().as_ref(), Some(name));
        }
        libc::rewinddir(stream);
        assert_eq!(next().as_ref(), Some(&places[0].1));
        assert_eq!(libc::closedir(stream), 0);
    }
}

/// Attributes that come with a listing never undo what this mount has just written.
#[test]
fn a_listing_shows_what_is_written_here() {
    let cluster = Cluster::start();
    let mount = cluster.mount();
    for number in 0..40 {
        fs::write(mount.join(format!("f{number}")), "x").unwrap();
    }
    let mut growing: Vec<_> = (0..40)
        .map(|number| File::options().append(true).open(mount.join(format!("f{number}"))).unwrap())
        .collect();
    for round in 2..12_u64 {
        for entry in fs::read_dir(mount.path()).unwrap() {
            let entry = entry.unwrap();
            let number: usize = entry.file_name().to_str().unwrap()[1..].parse().unwrap();
            growing[number].write_all(b"x").unwrap();
            assert_eq!(growing[number].metadata().unwrap().len(), round);
            assert_eq!(entry.metadata().unwrap().len(), round, "round {round}");
        }
    }
    for number in 0..40 {
        assert_eq!(fs::read(mount.join(format!("f{number}"))).unwrap(), b"xxxxxxxxxxx");
    }
}
