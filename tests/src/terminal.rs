//! A program on a terminal of its own, for what is asked of people.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::pty::openpty;
use nix::unistd::ttyname;

use crate::keeper;

/// What a program may take to ask, or to end.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked at.
const POLL: Duration = Duration::from_millis(10);

/// A running program. Killed when dropped.
#[derive(Debug)]
pub struct Terminal {
    child: Child,
    screen: File,
    shown: String,
}

impl Terminal {
    /// Starts a command whose standard streams are the terminal.
    ///
    /// # Panics
    /// When it can't be started.
    pub fn start(mut command: Command) -> Self {
        let pty = openpty(None, None).expect("open a terminal");
        let path = ttyname(&pty.slave).expect("name a terminal");
        // The keeper has descriptors of its own, and opens the program's side again.
        let child = keeper::run(move || {
            let open = || OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(&path);
            let stream = || open().map(Stdio::from).expect("open a terminal");
            command.stdin(stream()).stdout(stream()).stderr(stream());
            // SAFETY: between fork and exec only two system calls are made, which are safe there.
            unsafe {
                command.pre_exec(|| {
                    nix::unistd::setsid()?;
                    nix::errno::Errno::result(libc::ioctl(0, libc::TIOCSCTTY, 0))?;
                    Ok(())
                })
            };
            command.spawn()
        });
        let child = child.expect("start a program on a terminal");
        let screen = File::from(pty.master);
        fcntl(&screen, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("not wait for a terminal");
        Self { child, screen, shown: String::new() }
    }

    /// Waits until the program shows `prompt`, and types a line then.
    ///
    /// # Panics
    /// When it does not.
    pub fn answer(&mut self, prompt: &str, line: &str) {
        let deadline = Instant::now() + PATIENCE;
        let from = self.shown.len();
        while !self.shown[from..].contains(prompt) {
            assert!(self.look() || Instant::now() < deadline, "no {prompt:?}: {}", self.shown);
            assert!(self.child.try_wait().expect("wait for a child").is_none(), "it ended: {}", self.shown);
            std::thread::sleep(POLL);
        }
        self.screen.write_all(format!("{line}\n").as_bytes()).expect("type a line");
    }

    /// Waits for the program's end: how it ended, and all that was to be seen.
    ///
    /// # Panics
    /// When it does not end.
    pub fn finish(mut self) -> (ExitStatus, String) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ended = self.child.try_wait().expect("wait for a child");
            while self.look() {}
            if let Some(status) = ended {
                return (status, std::mem::take(&mut self.shown));
            }
            assert!(Instant::now() < deadline, "it does not end: {}", self.shown);
            std::thread::sleep(POLL);
        }
    }

    /// Reads what is to be seen. Whether there was something.
    fn look(&mut self) -> bool {
        let mut buffer = [0; 4096];
        match self.screen.read(&mut buffer) {
            Ok(read) => {
                self.shown += &String::from_utf8_lossy(&buffer[..read]);
                read > 0
            }
            // Nothing now, or never again: the program has closed its side, which is EIO.
            Err(_) => false,
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
