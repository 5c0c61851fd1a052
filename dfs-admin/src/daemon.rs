//! One dfs program run as a child process: started with its output in a log file, waited for until it says that it is
//! ready, stopped within a bound, and told apart by how it ended.
//!
//! A child is in a process group of its own, so that a terminal's Ctrl-C reaches only its parent, and has a parent-death
//! signal, so that it never outlives a parent that was killed. Nothing here restarts anything.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid, getppid};

/// How often a child is looked at while it is waited for.
const POLL: Duration = Duration::from_millis(10);
/// The most of a log that is searched for a line or shown, from its end.
const MAX_LOG_READ: u64 = 1024 * 1024;

/// What to run and where its output goes.
#[derive(Clone, Debug)]
pub struct Program {
    /// For people: "dfs-chunk 2".
    pub name: String,
    /// The executable.
    pub path: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Standard output and error are appended here.
    pub log: PathBuf,
    /// What the child gets when the thread that started it ends.
    pub parent_death_signal: Signal,
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It exited with this code.
    Exited(i32),
    /// This signal killed it.
    Killed(i32),
    /// It did not stop in time when asked, and was killed.
    Overdue,
}

impl Ending {
    fn of(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Exited(code),
            (None, signal) => Self::Killed(signal.unwrap_or(0)),
        }
    }

    /// Whether it stopped by itself, with success.
    pub fn is_clean(self) -> bool {
        self == Self::Exited(0)
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exited with code {code}"),
            Self::Killed(number) => match Signal::try_from(*number) {
                Ok(signal) => write!(f, "was killed by {signal}"),
                Err(_) => write!(f, "was killed by signal {number}"),
            },
            Self::Overdue => f.write_str("did not stop in time and was killed"),
        }
    }
}

/// A started child. Dropping it kills it.
#[derive(Debug)]
pub struct Daemon {
    program: Program,
    child: Child,
    ended: Option<Ending>,
    /// Where this run's output starts in the log.
    log_start: u64,
}

impl Program {
    /// Starts it. The calling thread must live as long as the child: its end is the parent's death to the kernel.
    pub fn start(&self) -> Result<Daemon> {
        let open = || OpenOptions::new().create(true).append(true).open(&self.log);
        let log = open().with_context(|| format!("open the log file {}", self.log.display()))?;
        let log_start = log.metadata().context("read the log file's length")?.len();
        let errors = log.try_clone().context("share the log file")?;
        let mut command = Command::new(&self.path);
        command.args(&self.args).stdin(Stdio::null()).stdout(log).stderr(errors).process_group(0);
        let parent = getpid();
        let signal = self.parent_death_signal;
        // SAFETY: the closure runs between fork and exec and makes only system calls, which are safe there.
        unsafe {
            command.pre_exec(move || {
                nix::sys::prctl::set_pdeathsig(signal)?;
                // The parent may have died before the signal was set.
                if getppid() == parent { Ok(()) } else { Err(std::io::ErrorKind::BrokenPipe.into()) }
            });
        }
        let child =
            command.spawn().with_context(|| format!("start {} ({})", self.name, self.path.display()))?;
        Ok(Daemon { program: self.clone(), child, ended: None, log_start })
    }
}

impl Daemon {
    /// What it runs.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, or `None` while it runs.
    pub fn ended(&mut self) -> Option<Ending> {
        if self.ended.is_none()
            && let Ok(Some(status)) = self.child.try_wait()
        {
            self.ended = Some(Ending::of(status));
        }
        self.ended
    }

    /// Looks once for a line of its output that satisfies `find`; `None` when there is none yet. Fails when the child
    /// has ended without it; then the error carries the end of its log.
    pub fn look_for_line<T>(&mut self, find: impl Fn(&str) -> Option<T>) -> Result<Option<T>> {
        // Looked at before the log, so that what a child said last is not overlooked.
        let ended = self.ended();
        let output = self.output()?;
        // A line without its newline may still grow.
        let whole = output.rfind('\n').map_or("", |end| &output[..end]);
        match (whole.lines().find_map(find), ended) {
            (None, Some(ended)) => {
                bail!("{} {ended} before it was ready; {}", self.program.name, self.last_words(20))
            }
            (found, _) => Ok(found),
        }
    }

    /// Waits until a line of its output satisfies `find` and returns what that made of it. Fails when the child ends
    /// first or says nothing in time.
    pub fn wait_for_line<T>(&mut self, timeout: Duration, find: impl Fn(&str) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(found) = self.look_for_line(&find)? {
                return Ok(found);
            }
            if Instant::now() >= deadline {
                let waited = timeout.as_secs();
                bail!("{} was not ready after {waited} s; {}", self.program.name, self.last_words(20));
            }
            std::thread::sleep(POLL);
        }
    }

    /// Waits until it ends by itself; `None` when it has not in time.
    pub fn wait(&mut self, timeout: Duration) -> Option<Ending> {
        let deadline = Instant::now() + timeout;
        loop {
            let ended = self.ended();
            if ended.is_some() || Instant::now() >= deadline {
                return ended;
            }
            std::thread::sleep(POLL);
        }
    }

    /// Asks it to stop (SIGTERM), and kills it when it has not after `timeout`.
    pub fn stop(&mut self, timeout: Duration) -> Ending {
        if let Some(ended) = self.ended() {
            return ended;
        }
        self.signal(Signal::SIGTERM);
        match self.wait(timeout) {
            Some(ended) => ended,
            None => {
                self.kill();
                self.ended = Some(Ending::Overdue);
                Ending::Overdue
            }
        }
    }

    /// Kills it with SIGKILL and waits until it is gone. Nothing happens to one that has ended.
    pub fn kill(&mut self) {
        if self.ended().is_some() {
            return;
        }
        self.signal(Signal::SIGKILL);
        match self.child.wait() {
            Ok(status) => self.ended = Some(Ending::of(status)),
            Err(_) => self.ended = Some(Ending::Killed(Signal::SIGKILL as i32)),
        }
    }

    /// Sends it a signal. It has not been waited for, so its process id is still its own.
    pub fn signal(&mut self, signal: Signal) {
        if self.ended().is_none() {
            // It can only fail because the child has just ended.
            let _ = kill(Pid::from_raw(self.child.id() as i32), signal);
        }
    }

    /// "LOG ends with:" and the last lines of its log, for an error message.
    pub fn last_words(&self, lines: usize) -> String {
        let output = self.output().unwrap_or_default();
        let all: Vec<&str> = output.lines().collect();
        let tail = all[all.len().saturating_sub(lines)..].join("\n    ");
        match tail.is_empty() {
            true => format!("{} is empty", self.program.log.display()),
            false => format!("{} ends with:\n    {tail}", self.program.log.display()),
        }
    }

    /// What this run has written so far, or its last part where that is long.
    fn output(&self) -> Result<String> {
        read_tail(&self.program.log, self.log_start)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The text of a log from `start` on, or its last [`MAX_LOG_READ`] bytes.
fn read_tail(path: &Path, start: u64) -> Result<String> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(start.max(length.saturating_sub(MAX_LOG_READ))))?;
        let mut bytes = Vec::new();
        file.take(MAX_LOG_READ).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().with_context(|| format!("read the log file {}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The address in a daemon's line of readiness: "dfs-meta: … listening on ADDRESS".
pub fn listening_address(line: &str) -> Option<String> {
    if !(line.starts_with("dfs-meta: ") || line.starts_with("dfs-chunk: ")) {
        return None;
    }
    let address = line.split_once("listening on ")?.1.split_whitespace().next()?;
    Some(address.to_owned())
}

/// Builds an argument list from things of several types.
pub fn arguments<const N: usize>(list: [&dyn AsRef<OsStr>; N]) -> Vec<OsString> {
    list.iter().map(|argument| argument.as_ref().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(directory: &Path, script: &str) -> Program {
        Program {
            name: "a shell".into(),
            path: "/bin/sh".into(),
            args: arguments([&"-c", &script]),
            log: directory.join("log"),
            parent_death_signal: Signal::SIGKILL,
        }
    }

    #[test]
    fn a_line_is_found_and_a_stop_is_clean() {
        let directory = tempfile::tempdir().unwrap();
        let script = "trap 'exit 0' TERM; echo noise; echo 'dfs-meta: cluster x listening on 127.0.0.1:7'; \
                      while :; do sleep 0.01; done";
        let mut daemon = shell(directory.path(), script).start().unwrap();
        let address = daemon.wait_for_line(Duration::from_secs(10), listening_address).unwrap();
        assert_eq!(address, "127.0.0.1:7");
        assert_eq!(daemon.ended(), None);
        assert_eq!(daemon.stop(Duration::from_secs(10)), Ending::Exited(0));
        assert_eq!(daemon.stop(Duration::ZERO), Ending::Exited(0), "a second stop changes nothing");
    }

    #[test]
    fn who_ends_early_or_is_silent_is_told_with_its_log() {
        let directory = tempfile::tempdir().unwrap();
        let mut daemon = shell(directory.path(), "echo 'disk is full'; exit 3").start().unwrap();
        let error = daemon.wait_for_line(Duration::from_secs(10), listening_address).unwrap_err().to_string();
        assert!(error.contains("exited with code 3") && error.contains("disk is full"), "{error}");

        let mut daemon = shell(directory.path(), "trap '' TERM; echo ready; while :; do sleep 1; done");
        daemon.name = "a deaf shell".into();
        let mut daemon = daemon.start().unwrap();
        let error = daemon.wait_for_line(Duration::ZERO, listening_address).unwrap_err().to_string();
        assert!(error.contains("a deaf shell was not ready") && !error.contains("disk is full"), "{error}");
        daemon.wait_for_line(Duration::from_secs(10), |line| (line == "ready").then_some(())).unwrap();
        assert_eq!(daemon.stop(Duration::from_millis(200)), Ending::Overdue);
    }

    #[test]
    fn a_killed_child_is_told_by_its_signal() {
        let directory = tempfile::tempdir().unwrap();
        let mut daemon = shell(directory.path(), "kill -9 $$").start().unwrap();
        let ending = daemon.wait(Duration::from_secs(10)).unwrap();
        assert_eq!(ending.to_string(), "was killed by SIGKILL");
    }
}
