//! One thread that starts every child process of the tests and lives as long as they do.
//!
//! The kernel sends a child its parent-death signal when the *thread* that made it ends. Test threads end with their
//! test, and helpers earlier; a daemon that another test still uses must not go with them.
//!
//! It has a table of descriptors of its own: a child starts with a copy of its parent's, and closing that copy at exec
//! flushes every file that some test has open on a mount, which may wait for the very daemon that is to be started.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock};

use anyhow::Result;
use dfs_admin::daemon::{Daemon, Program};

type Job = Box<dyn FnOnce() + Send>;

/// Starts `program` on the keeper's thread.
pub fn start(program: &Program) -> Result<Daemon> {
    let program = program.clone();
    run(move || program.start())
}

/// Runs `job` on the keeper's thread. It must neither panic nor take long: everybody's children wait for it.
pub fn run<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> T {
    static KEEPER: OnceLock<Mutex<Sender<Job>>> = OnceLock::new();
    let keeper = KEEPER.get_or_init(|| {
        let (sender, jobs) = channel::<Job>();
        let run = move || {
            leave_descriptors();
            jobs.into_iter().for_each(|job| job());
        };
        std::thread::Builder::new().name("keeper".into()).spawn(run).expect("start the keeper's thread");
        Mutex::new(sender)
    });
    let (answer, answers) = channel();
    let job = move || {
        // Nobody waits any more only when the asking thread panicked meanwhile.
        let _ = answer.send(job());
    };
    keeper.lock().expect("sending does not panic").send(Box::new(job)).expect("the keeper never ends");
    answers.recv().expect("the keeper answers")
}

/// Gives the calling thread a table of descriptors of its own, with nothing but the three standard ones.
fn leave_descriptors() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_FILES)
        .expect("part with the other threads' descriptors");
    // SAFETY: the descriptors are copies in this thread's own table, which nothing else knows of.
    let closed = unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
    nix::errno::Errno::result(closed).expect("close the copies of the other threads' descriptors");
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use dfs_admin::daemon::arguments;

    #[test]
    fn a_child_survives_the_thread_that_asked_for_it() {
        let directory = tempfile::tempdir().unwrap();
        let program = dfs_admin::daemon::Program {
            name: "a sleeper".into(),
            path: "/bin/sleep".into(),
            args: arguments([&"60"]),
            log: directory.path().join("log"),
            parent_death_signal: nix::sys::signal::Signal::SIGKILL,
        };
        let mut daemon = std::thread::spawn(move || super::start(&program).unwrap()).join().unwrap();
        assert_eq!(daemon.wait(Duration::from_millis(300)), None, "still running");
        // And it has none of this process's files open.
        let _file = std::fs::File::open(directory.path()).unwrap();
        let open = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap();
        let targets: Vec<_> = open.map(|entry| std::fs::read_link(entry.unwrap().path()).unwrap()).collect();
        assert_eq!(targets.len(), 3, "{targets:?}");
    }
}
