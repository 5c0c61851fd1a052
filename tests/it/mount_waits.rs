//! Waiting through a mount: for locks and for servers that are away. Killed processes go at once, time limits hold, and
//! what is waited for comes through.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use dfs_tests::cluster::Cluster;
use dfs_tests::commands::{PATIENCE, Running};
use nix::sys::signal::Signal;

/// A killed process is gone within this time, with all that the machine does beside.
const AT_ONCE: Duration = Duration::from_secs(3);

/// fcntl(2)'s whole-file lock; returns the errno.
fn fcntl_lock(file: &File, kind: i32, wait: bool) -> Result<(), i32> {
    let lock = libc::flock { l_type: kind as i16, l_whence: 0, l_start: 0, l_len: 0, l_pid: 0 };
    let command = if wait { libc::F_SETLKW } else { libc::F_SETLK };
    // SAFETY: an open descriptor and a whole struct flock.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, &raw const lock) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error().raw_os_error().expect("fcntl set errno")),
    }
}

/// flock(2); returns the errno.
fn flock(file: &File, operation: i32) -> Result<(), i32> {
    // SAFETY: an open descriptor.
    match unsafe { libc::flock(file.as_raw_fd(), operation) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error().raw_os_error().expect("flock set errno")),
    }
}

fn open(path: &Path) -> File {
    File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

/// Kills a process that waits in the mount and tells how long it took to be gone.
fn kill_takes(child: &mut Running, signal: Signal) -> Duration {
    assert_eq!(child.ended(), None, "it waits");
    let start = Instant::now();
    child.signal(signal);
    child.wait(PATIENCE).expect("a killed process ends");
    start.elapsed()
}

/// A process of its own that makes system calls; perl is on every Debian.
fn perl(script: &str, path: &Path) -> Running {
    let script = format!("use Fcntl qw(:DEFAULT :flock :seek); $| = 1; {LOCKF} {script}");
    Running::start(Command::new("perl").args(["-we", &script]).arg(path))
}

/// fcntl(2)'s lock of a whole file, which perl leaves to be packed by hand.
const LOCKF: &str = "sub lockf {
    my $lock = pack('s s x4 q q l x4', F_WRLCK, SEEK_SET, 0, 0, 0);
    fcntl($_[0], F_SETLKW, $lock) or die $!;
}";
const WAIT_FCNTL: &str = "open(my $f, '+<', $ARGV[0]) or die $!; lockf($f);";
const WAIT_FLOCK: &str = "open(my $f, '+<', $ARGV[0]) or die $!; flock($f, LOCK_EX) or die $!;";
const HOLD: &str = "print \"held\\n\"; sleep 600;";

#[test]
fn who_waits_for_a_lock_dies_at_once_and_gets_no_lock_afterwards() {
    let cluster = Cluster::start();
    let mount = cluster.mount();
    let path = mount.join("file");
    let holder = open(&path);
    for (take, give, script) in [
        (
            (|file| fcntl_lock(file, libc::F_WRLCK, false)) as fn(&File) -> Result<(), i32>,
            (|file| fcntl_lock(file, libc::F_UNLCK, false)) as fn(&File) -> Result<(), i32>,
            WAIT_FCNTL,
        ),
        (|file| flock(file, libc::LOCK_EX | libc::LOCK_NB), |file| flock(file, libc::LOCK_UN), WAIT_FLOCK),
    ] {
        for signal in [Signal::SIGKILL, Signal::SIGTERM] {
            take(&holder).unwrap();
            let mut waiting = perl(script, &path);
            std::thread::sleep(Duration::from_millis(1500));
            let took = kill_takes(&mut waiting, signal);
            assert!(took < AT_ONCE, "{signal} took {took:?}");
            give(&holder).unwrap();
            // Free for a third party: the dead waiter was not given it.
            let third = cluster.mount();
            take(&open(&third.join("file"))).unwrap();
        }
    }
}

/// A signal with a handler breaks the wait for a lock: fcntl(2)'s EINTR.
#[test]
fn a_handled_signal_interrupts_the_wait_for_a_lock() {
    let cluster = Cluster::start();
    let mount = cluster.mount();
    let path = mount.join("file");
    let holder = open(&path);
    fcntl_lock(&holder, libc::F_WRLCK, false).unwrap();
    let script = "
        $SIG{ALRM} = sub { print 'interrupted'; exit };
        open(my $f, '+<', $ARGV[0]) or die $!;
        alarm 1;
        lockf($f);
        print 'locked';
    ";
    let start = Instant::now();
    let mut waiting = perl(script, &path);
    waiting.wait(PATIENCE).expect("it is woken");
    assert_eq!(String::from_utf8_lossy(&waiting.stdout()).trim(), "interrupted");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

/// The two kinds of locks don't know each other, across mounts as on one.
#[test]
fn flock_and_fcntl_locks_are_apart() {
    let cluster = Cluster::start();
    let (here, there) = (cluster.mount(), cluster.mount());
    let mine = open(&here.join("file"));
    flock(&mine, libc::LOCK_EX).unwrap();
    for mount in [&here, &there] {
        let theirs = open(&mount.join("file"));
        assert_eq!(flock(&theirs, libc::LOCK_SH | libc::LOCK_NB), Err(libc::EWOULDBLOCK));
    }
    let theirs = open(&there.join("file"));
    fcntl_lock(&theirs, libc::F_WRLCK, false).unwrap();
    flock(&mine, libc::LOCK_UN).unwrap();
    flock(&theirs, libc::LOCK_EX | libc::LOCK_NB).unwrap();
    // Held by another process as far as fcntl(2) is concerned: the other mount's.
    assert_eq!(fcntl_lock(&mine, libc::F_WRLCK, false), Err(libc::EAGAIN));
    drop(theirs);
    fcntl_lock(&mine, libc::F_WRLCK, true).unwrap();
    flock(&mine, libc::LOCK_EX).unwrap();
}

/// A lock goes with the process that held it, and who waits for it on another mount gets it.
#[test]
fn a_waiter_gets_the_lock_of_a_killed_process() {
    let cluster = Cluster::start();
    let (here, there) = (cluster.mount(), cluster.mount());
    open(&here.join("file"));
    for (lock, is_fcntl) in [(WAIT_FCNTL, true), (WAIT_FLOCK, false)] {
        let mut holder = perl(&format!("{lock} {HOLD}"), &here.join("file"));
        holder.wait_for("held");
        let file = open(&there.join("file"));
        assert_eq!(fcntl_lock(&file, libc::F_WRLCK, false).is_err(), is_fcntl);
        let waiting = std::thread::spawn(move || {
            fcntl_lock(&file, libc::F_WRLCK, true).and_then(|()| flock(&file, libc::LOCK_EX))
        });
        std::thread::sleep(Duration::from_millis(300));
        assert!(kill_takes(&mut holder, Signal::SIGKILL) < AT_ONCE);
        let start = Instant::now();
        waiting.join().unwrap().unwrap();
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }
}

/// Servers that are away: every kind of call waits, and its process can be killed at once, also while it closes.
#[test]
fn who_waits_for_servers_dies_at_once() {
    let cluster = Cluster::start();
    let mount = cluster.mount_with("/", "timeout=0");
    fs::write(mount.join("file"), vec![7; 3 << 20]).unwrap();
    fs::create_dir(mount.join("directory")).unwrap();
    for script in [
        "stat(\"$ARGV[0]/other\")",
        "mkdir(\"$ARGV[0]/new\")",
        "opendir(my $d, \"$ARGV[0]/directory\"); readdir($d)",
        "open(my $f, '<', \"$ARGV[0]/file\"); <$f>",
    ] {
        cluster.meta().freeze(true);
        let mut waiting = perl(script, mount.path());
        std::thread::sleep(Duration::from_millis(1500));
        let took = kill_takes(&mut waiting, Signal::SIGKILL);
        cluster.meta().freeze(false);
        assert!(took < AT_ONCE, "{script} took {took:?}");
    }
    // A process with dirty data: the data outlives it.
    let script = "
        sysopen(my $f, \"$ARGV[0]/dirty\", O_WRONLY | O_CREAT) or die $!;
        syswrite($f, 'x' x 100000) == 100000 or die $!;
        print \"written\\n\";
        $SIG{USR1} = sub { close($f) };
        sleep 600;
    ";
    let mut writer = perl(script, mount.path());
    writer.wait_for("written");
    cluster.meta().freeze(true);
    writer.signal(Signal::SIGUSR1);
    std::thread::sleep(Duration::from_millis(1500));
    let took = kill_takes(&mut writer, Signal::SIGKILL);
    cluster.meta().freeze(false);
    assert!(took < AT_ONCE, "closing took {took:?}");
    let deadline = Instant::now() + Duration::from_secs(20);
    while fs::read(mount.join("dirty")).unwrap() != vec![b'x'; 100_000] {
        assert!(Instant::now() < deadline, "what a killed process wrote is lost");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// execve(2) closes files, and waits for that while it keeps others from looking at the process.
#[test]
fn a_close_in_exec_is_waited_for_and_answered() {
    let cluster = Cluster::start();
    let mount = cluster.mount_with("/", "timeout=0");
    let script = "
        sysopen(my $f, \"$ARGV[0]/dirty\", O_WRONLY | O_CREAT) or die $!;
        syswrite($f, 'x' x 100000) == 100000 or die $!;
        $SIG{USR1} = sub { exec('echo', 'executed') };
        print \"written\\n\";
        sleep 600;
    ";
    let mut writer = perl(script, mount.path());
    writer.wait_for("written");
    cluster.meta().freeze(true);
    writer.signal(Signal::SIGUSR1);
    assert_eq!(writer.wait(Duration::from_millis(1500)), None, "it waits");
    cluster.meta().freeze(false);
    writer.wait(Duration::from_secs(20)).expect("the answer came through");
    writer.wait_for("executed");
    assert_eq!(fs::read(mount.join("dirty")).unwrap(), vec![b'x'; 100_000]);
}

/// `timeout=`: EIO in time, and back to work when the server is.
#[test]
fn the_time_limit_holds() {
    let cluster = Cluster::start();
    let mount = cluster.mount_with("/", "timeout=3");
    fs::write(mount.join("file"), "before").unwrap();
    cluster.meta().freeze(true);
    let start = Instant::now();
    let refused = fs::create_dir(mount.join("directory")).unwrap_err();
    let took = start.elapsed();
    cluster.meta().freeze(false);
    assert_eq!(refused.raw_os_error(), Some(libc::EIO));
    assert!((Duration::from_secs(2)..Duration::from_secs(12)).contains(&took), "{took:?}");
    assert_eq!(fs::read_to_string(mount.join("file")).unwrap(), "before");
    fs::create_dir_all(mount.join("directory")).unwrap();
}
