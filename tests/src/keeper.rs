//! One thread that starts every child process of the tests and lives as long as they do.
//!
//! The kernel sends a child its parent-death signal when the *thread* that made it ends. Test threads end with their
//! test, and helpers earlier; a daemon that another test still uses must not go with them.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock};

use anyhow::Result;
use dfs_admin::daemon::{Daemon, Program};

type Job = Box<dyn FnOnce() + Send>;

/// Starts `program` on the keeper's thread.
pub fn start(program: &Program) -> Result<Daemon> {
    static KEEPER: OnceLock<Mutex<Sender<Job>>> = OnceLock::new();
    let keeper = KEEPER.get_or_init(|| {
        let (sender, jobs) = channel::<Job>();
        let run = move || jobs.into_iter().for_each(|job| job());
        std::thread::Builder::new().name("keeper".into()).spawn(run).expect("start the keeper's thread");
        Mutex::new(sender)
    });
    let (answer, answers) = channel();
    let program = program.clone();
    let job = move || {
        // Nobody waits any more only when the asking thread panicked meanwhile.
        let _ = answer.send(program.start());
    };
    keeper.lock().expect("no job panics").send(Box::new(job)).expect("the keeper never ends");
    answers.recv().expect("the keeper answers")
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
    }
}
