//! Other programs run by tests: each within a bound, and with a sentence when it fails, hangs or is not installed.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::keeper;

/// What a command that a test runs may take at most, unless told otherwise.
pub const PATIENCE: Duration = Duration::from_secs(300);
/// How often a program is looked at.
const POLL: Duration = Duration::from_millis(10);
/// Files with what a program printed.
const STDOUT: &str = "stdout";
const STDERR: &str = "stderr";

/// Runs a command that must succeed, and returns what it printed.
///
/// # Panics
/// When it fails, takes longer than [`PATIENCE`], or is not installed.
pub fn succeed(command: &mut Command) -> String {
    let output = run(command, PATIENCE);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        panic!("{command:?} failed ({}): {errors}{}", output.status, last_lines(&printed));
    }
    printed
}

/// Runs a shell script with `set -e` in a directory; it must succeed. `$1`… are `arguments`.
pub fn shell(directory: &Path, script: &str, arguments: &[&Path]) -> String {
    let mut command = Command::new("bash");
    command.current_dir(directory).args(["-euo", "pipefail", "-c", script, "bash"]).args(arguments);
    succeed(&mut command)
}

/// Runs a command to its end, whatever that is.
///
/// # Panics
/// When it takes longer than `patience` (it is killed) or is not installed.
pub fn run(command: &mut Command, patience: Duration) -> Output {
    let mut running = Running::start(command);
    let Some(status) = running.wait(patience) else {
        panic!("{command:?} was still running after {patience:?}")
    };
    Output { status, stdout: running.stdout(), stderr: running.stderr() }
}

/// A program in the background, its output in files. Killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    directory: TempDir,
}

impl Running {
    /// Starts a command with nothing to read; it is asked to stop when this process dies.
    ///
    /// # Panics
    /// When it is not installed, or can't be started.
    pub fn start(command: &mut Command) -> Self {
        Self::try_start(command).unwrap_or_else(|error| match error.kind() {
            ErrorKind::NotFound => {
                let name = command.get_program().to_string_lossy().into_owned();
                panic!("this test needs {name}: install it (on Debian: apt-get install {})", package(&name))
            }
            _ => panic!("start {command:?}: {error}"),
        })
    }

    /// As [`Running::start`], for what may be refused.
    pub fn try_start(command: &mut Command) -> io::Result<Self> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().to_owned();
        let mut taken = std::mem::replace(command, Command::new("taken"));
        // Started there, it has copies of nobody's descriptors. It opens its own.
        let (taken, child) = keeper::run(move || {
            let child = Self::spawn(&mut taken, &path);
            (taken, child)
        });
        *command = taken;
        Ok(Self { child: child?, directory })
    }

    fn spawn(command: &mut Command, directory: &Path) -> io::Result<Child> {
        let create = |name| File::create(directory.join(name));
        command.stdin(Stdio::null()).stdout(create(STDOUT)?).stderr(create(STDERR)?);
        // SAFETY: the closure runs between fork and exec and makes one system call, which is safe there.
        unsafe { command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGTERM)?)) };
        let child = command.spawn();
        // The files are the keeper's: they are closed on its thread.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        child
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// What it has printed so far.
    pub fn stdout(&self) -> Vec<u8> {
        self.read(STDOUT)
    }

    /// What it has said on standard error so far.
    pub fn stderr(&self) -> Vec<u8> {
        self.read(STDERR)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.directory.path().join(name)).expect("read what a program printed")
    }

    /// How it ended, or `None` while it runs.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("wait for a child")
    }

    /// Waits for its end. `None`: it still runs.
    pub fn wait(&mut self, patience: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            let ended = self.ended();
            if ended.is_some() || Instant::now() >= deadline {
                return ended;
            }
            std::thread::sleep(POLL);
        }
    }

    /// Waits until it has printed `text`.
    ///
    /// # Panics
    /// When it ends before, or takes longer than [`PATIENCE`].
    pub fn wait_for(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ended = self.ended();
            let printed = String::from_utf8_lossy(&self.stdout()).into_owned();
            if printed.contains(text) {
                return;
            }
            let errors = self.stderr();
            let errors = String::from_utf8_lossy(&errors);
            assert!(ended.is_none(), "it ended without {text:?}: {printed}{errors}");
            assert!(Instant::now() < deadline, "not yet {text:?}: {printed}{errors}");
            std::thread::sleep(POLL);
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("send a signal to a child");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
        }
    }
}

/// Fails the test unless a program is installed.
pub fn require(program: &str) {
    run(Command::new(program).arg("--version"), PATIENCE);
}

/// The Debian package that a program comes in, where its name is another.
fn package(program: &str) -> &str {
    match program {
        "setfacl" | "getfacl" => "acl",
        "setfattr" | "getfattr" => "attr",
        "mount" | "umount" | "unshare" | "flock" => "util-linux",
        "diff" | "cmp" => "diffutils",
        other => other,
    }
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_returned() {
        assert_eq!(shell(Path::new("/"), "echo $1", &[Path::new("x")]), "x\n");
    }

    #[test]
    #[should_panic(expected = "apt-get install no-such-program")]
    fn what_is_missing_is_named() {
        require("no-such-program");
    }

    #[test]
    #[should_panic(expected = "still running")]
    fn what_hangs_is_killed() {
        run(Command::new("sleep").arg("60"), Duration::from_millis(100));
    }
}
