//! flock(2) and fcntl(2) locks: between mounts, waiting for them, and what becomes of them when their holder closes,
//! dies, or loses its mount.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use dfs_tests::cluster::Cluster;
use dfs_tests::keeper;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork};

/// A waiter is woken within this after a release.
const WAKE: Duration = Duration::from_secs(3);

/// The two ways of locking a whole file.
#[derive(Clone, Copy, Debug)]
enum Way {
    Flock,
    Fcntl,
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
enum Want {
    Shared,
    Exclusive,
    Nothing,
}

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

fn record(kind: i32, start: i64, length: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: length,
        l_pid: 0,
    }
}

/// One fcntl(2) lock call on a range; a length of 0 means to the end.
fn lock_range(file: &File, want: Want, start: i64, length: i64, wait: bool) -> Result<(), Errno> {
    let kind = match want {
        Want::Shared => libc::F_RDLCK,
        Want::Exclusive => libc::F_WRLCK,
        Want::Nothing => libc::F_UNLCK,
    };
    let record = record(kind, start, length);
    let command = if wait { libc::F_SETLKW } else { libc::F_SETLK };
    // SAFETY: the descriptor is open and the record lives during the call.
    Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), command, &record) }).map(drop)
}

fn lock(way: Way, file: &File, want: Want, wait: bool) -> Result<(), Errno> {
    match way {
        Way::Fcntl => lock_range(file, want, 0, 0, wait),
        Way::Flock => {
            let operation = match want {
                Want::Shared => libc::LOCK_SH,
                Want::Exclusive => libc::LOCK_EX,
                Want::Nothing => libc::LOCK_UN,
            };
            let operation = if wait { operation } else { operation | libc::LOCK_NB };
            // SAFETY: the descriptor is open.
            Errno::result(unsafe { libc::flock(file.as_raw_fd(), operation) }).map(drop)
        }
    }
}

/// Runs `hold` in a child process that then sleeps until it is killed. Only system calls are made there: a child of a
/// process with threads may do no more.
fn child(hold: impl FnOnce() -> Result<(), Errno> + Send + 'static) -> Pid {
    // A child of the keeper has no copies of other tests' files, on mounts that are to be unmounted.
    keeper::run(move || {
        // SAFETY: the child makes system calls only, and never returns from here.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => Ok(child),
            ForkResult::Child => {
                let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
                let code = if hold().is_ok() { 0 } else { 1 };
                if code == 0 {
                    nix::unistd::pause();
                }
                // SAFETY: ends the process without running what belongs to its parent.
                unsafe { libc::_exit(code) }
            }
        }
    })
    .unwrap_or_else(|error: Errno| panic!("fork: {error}"))
}

fn kill_child(child: Pid) {
    kill(child, Signal::SIGKILL).expect("kill a child");
    waitpid(child, None).expect("wait for a child");
}

/// Waits until a lock is refused, or granted.
fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "still not {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn locks_exclude_across_mounts_and_wake_who_waits() {
    let cluster = Cluster::start();
    let (one, two) = (cluster.mount(), cluster.mount());
    for way in [Way::Flock, Way::Fcntl] {
        let name = format!("{way:?}");
        let (here, there) = (open(&one.join(&name)), open(&two.join(&name)));
        lock(way, &here, Want::Shared, false).unwrap();
        lock(way, &there, Want::Shared, false).unwrap();
        assert_eq!(
            lock(way, &there, Want::Exclusive, false),
            Err(Errno::EAGAIN),
            "{way:?}: the other shares it"
        );
        lock(way, &there, Want::Nothing, false).unwrap();
        lock(way, &here, Want::Exclusive, false).unwrap();
        assert_eq!(lock(way, &there, Want::Shared, false), Err(Errno::EAGAIN), "{way:?}");

        // What is written under a lock is seen by the next who gets it.
        std::os::unix::fs::FileExt::write_all_at(&here, b"under the lock", 0).unwrap();
        let (granted, wait) = channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                lock(way, &there, Want::Exclusive, true).unwrap();
                let mut bytes = [0; 14];
                std::os::unix::fs::FileExt::read_exact_at(&there, &mut bytes, 0).unwrap();
                assert_eq!(&bytes, b"under the lock");
                granted.send(Instant::now()).unwrap();
            });
            assert!(wait.recv_timeout(Duration::from_millis(500)).is_err(), "{way:?}: it waits");
            let released = Instant::now();
            lock(way, &here, Want::Nothing, false).unwrap();
            let woken = wait.recv_timeout(WAKE).expect("woken in time");
            assert!(woken >= released);
        });
        // Closing gives back what is still held.
        drop(there);
        until("free after close", || lock(way, &here, Want::Exclusive, false).is_ok());
    }
}

#[test]
fn ranges_are_locked_apart() {
    let cluster = Cluster::start();
    let (one, two) = (cluster.mount(), cluster.mount());
    let (here, there) = (open(&one.join("file")), open(&two.join("file")));
    lock_range(&here, Want::Exclusive, 0, 100, false).unwrap();
    lock_range(&there, Want::Exclusive, 100, 100, false).unwrap();
    assert_eq!(lock_range(&there, Want::Shared, 99, 1, false), Err(Errno::EAGAIN));
    assert_eq!(lock_range(&here, Want::Exclusive, 0, 0, false), Err(Errno::EAGAIN));
    // A hole in the middle of what is held.
    lock_range(&here, Want::Nothing, 40, 20, false).unwrap();
    lock_range(&there, Want::Exclusive, 40, 20, false).unwrap();
    assert_eq!(lock_range(&there, Want::Exclusive, 60, 1, false), Err(Errno::EAGAIN));
    // Who stands in the way is told.
    let mut asked = record(libc::F_WRLCK, 0, 10);
    // SAFETY: the descriptor is open and the record lives during the call.
    Errno::result(unsafe { libc::fcntl(there.as_raw_fd(), libc::F_GETLK, &mut asked) }).unwrap();
    assert_eq!((asked.l_type, asked.l_start, asked.l_len), (libc::F_WRLCK as i16, 0, 40));
}

#[test]
fn a_process_that_dies_gives_its_locks_back() {
    let cluster = Cluster::start();
    let (one, two) = (cluster.mount(), cluster.mount());
    for way in [Way::Flock, Way::Fcntl] {
        let name = format!("{way:?}");
        let (here, there) = (open(&one.join(&name)), open(&two.join(&name)));
        // The child has the only descriptor of its own open file: a lock of flock(2) lives as long as that.
        let path = one.join(&name);
        let holder = child(move || {
            let path = nix::fcntl::open(&path, nix::fcntl::OFlag::O_RDWR, nix::sys::stat::Mode::empty())?;
            let file = File::from(path);
            // It waits: who looks below whether it is held holds it for a moment.
            let result = lock(way, &file, Want::Exclusive, true);
            std::mem::forget(file);
            result
        });
        until("held by the child", || {
            let result = lock(way, &there, Want::Exclusive, false);
            if result.is_ok() {
                lock(way, &there, Want::Nothing, false).unwrap();
            }
            result == Err(Errno::EAGAIN)
        });
        // On the same mount it is refused as well.
        assert_eq!(lock(way, &here, Want::Exclusive, false), Err(Errno::EAGAIN), "{way:?}");
        kill_child(holder);
        until("free after the holder's death", || lock(way, &there, Want::Exclusive, false).is_ok());
    }
}

#[test]
fn a_waiter_that_is_killed_waits_no_more() {
    let cluster = Cluster::start();
    let (one, two) = (cluster.mount(), cluster.mount());
    for way in [Way::Flock, Way::Fcntl] {
        let name = format!("{way:?}");
        let (here, path) = (open(&one.join(&name)), two.join(&name));
        lock(way, &here, Want::Exclusive, false).unwrap();
        let waiter = child(move || {
            let file = nix::fcntl::open(&path, nix::fcntl::OFlag::O_RDWR, nix::sys::stat::Mode::empty())?;
            let file = File::from(file);
            let result = lock(way, &file, Want::Exclusive, true);
            std::mem::forget(file);
            result
        });
        std::thread::sleep(Duration::from_millis(500));
        let start = Instant::now();
        kill_child(waiter);
        assert!(start.elapsed() < Duration::from_secs(5), "{way:?}: a killed waiter goes away at once");
        // The lock is not handed to the dead one.
        lock(way, &here, Want::Nothing, false).unwrap();
        let there = open(&two.join(&name));
        until("free", || lock(way, &there, Want::Exclusive, false).is_ok());
    }
}

#[test]
fn locks_survive_the_metadata_server_and_end_with_their_mount() {
    let cluster = Cluster::start();
    let mut one = cluster.mount();
    let two = cluster.mount();
    let (here, there) = (open(&one.join("file")), open(&two.join("file")));
    lock(Way::Fcntl, &here, Want::Exclusive, false).unwrap();
    cluster.meta().crash();
    // While locks are reclaimed nothing is granted; afterwards the holder still has it.
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline {
        let refused = lock(Way::Fcntl, &there, Want::Exclusive, false).unwrap_err();
        assert_eq!(refused, Errno::EAGAIN);
        std::thread::sleep(Duration::from_millis(100));
    }
    one.kill();
    let start = Instant::now();
    lock(Way::Fcntl, &there, Want::Exclusive, true).unwrap();
    assert!(start.elapsed() < Duration::from_secs(40), "a dead mount's locks end with its session");
    drop(here);
}
