//! Going to the background, and telling the waiting command how it went.
//!
//! The process forks before it has a second thread. The parent waits on a pipe: it returns when the child says that the
//! mount answers, or with the child's sentence and exit code, or with a sentence of its own when the child died without
//! a word. The child is a session of its own, in `/`, with /dev/null as its standard streams.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};

use nix::unistd::{ForkResult, chdir, dup2_stderr, dup2_stdin, dup2_stdout, fork, pipe2, setsid};

/// How a mount command ends: the exit codes of mount(8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// The mount answers.
    Success = 0,
    /// The command line is wrong.
    Usage = 1,
    /// The system refused a pipe, a process, a file.
    System = 2,
    /// Nothing is mounted.
    MountFailure = 32,
}

impl Exit {
    fn from_byte(byte: u8) -> Self {
        [Self::Success, Self::Usage, Self::System]
            .into_iter()
            .find(|exit| *exit as u8 == byte)
            .unwrap_or(Self::MountFailure)
    }
}

/// Why there is no mount: an exit code and a sentence for standard error.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The command's exit code.
    pub(crate) exit: Exit,
    /// What failed and what to do.
    pub(crate) sentence: String,
}

impl Refusal {
    /// A mount that failed.
    pub(crate) fn mount(sentence: impl Into<String>) -> Self {
        Self { exit: Exit::MountFailure, sentence: sentence.into() }
    }

    /// A system call that the command cannot do without.
    pub(crate) fn system(what: &str, error: impl Into<io::Error>) -> Self {
        Self { exit: Exit::System, sentence: format!("{what}: {}", error.into()) }
    }
}

/// Which process this is after the fork.
#[derive(Debug)]
pub(crate) enum Side {
    /// The command that the user waits for.
    Command(Waiting),
    /// The process that serves the mount.
    Background(Telling),
}

/// The command's end of the pipe.
#[derive(Debug)]
pub(crate) struct Waiting {
    pipe: File,
}

/// The background process's end of the pipe. Dropped without a word, the command reports a death.
#[derive(Debug)]
pub(crate) struct Telling {
    pipe: File,
}

/// Forks. Must be called while the process has one thread, and before it opens anything: the background process must not
/// keep files open that its caller left behind (a lock, a pipe somebody reads to its end).
pub(crate) fn detach() -> Result<Side, Refusal> {
    // SAFETY: nothing in this process owns a descriptor above the standard streams yet.
    if unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, 0_u32) } != 0 {
        tracing::debug!("inherited files stay open: {}", io::Error::last_os_error());
    }
    let (read_end, write_end) =
        pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|errno| Refusal::system("make a pipe", errno))?;
    // SAFETY: the process has one thread, so the child may do whatever it likes after the fork.
    match unsafe { fork() }.map_err(|errno| Refusal::system("fork", errno))? {
        ForkResult::Parent { .. } => {
            drop(write_end);
            Ok(Side::Command(Waiting { pipe: File::from(read_end) }))
        }
        ForkResult::Child => {
            drop(read_end);
            let mut telling = Telling { pipe: File::from(write_end) };
            match leave_terminal() {
                Ok(()) => Ok(Side::Background(telling)),
                Err(error) => {
                    telling.refuse(&Refusal::system("go to the background", error));
                    std::process::exit(Exit::System as i32);
                }
            }
        }
    }
}

fn leave_terminal() -> io::Result<()> {
    setsid()?;
    chdir("/")?;
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    Ok(())
}

impl Waiting {
    /// Waits until the background process has told, or is gone.
    pub(crate) fn outcome(mut self) -> Result<(), Refusal> {
        let mut code = [0];
        match self.pipe.read_exact(&mut code) {
            Ok(()) if code[0] == Exit::Success as u8 => return Ok(()),
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(Refusal::mount("the mount process died before the mount answered: see its log"));
            }
            Err(error) => return Err(Refusal::system("wait for the mount", error)),
        }
        let mut sentence = Vec::new();
        self.pipe.read_to_end(&mut sentence).map_err(|error| Refusal::system("wait for the mount", error))?;
        let sentence = String::from_utf8_lossy(&sentence).into_owned();
        Err(Refusal { exit: Exit::from_byte(code[0]), sentence })
    }
}

impl Telling {
    /// The mount answers: the command may return. EPIPE where the command was killed meanwhile.
    pub(crate) fn ready(&mut self) -> io::Result<()> {
        self.pipe.write_all(&[Exit::Success as u8])
    }

    /// There is no mount. Whatever is said after [`Self::ready`] is not heard.
    pub(crate) fn refuse(&mut self, refusal: &Refusal) {
        let mut message = vec![refusal.exit as u8];
        message.extend_from_slice(refusal.sentence.as_bytes());
        // A command that was killed needs no sentence.
        let _ = self.pipe.write_all(&message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Waiting, Telling) {
        let (read_end, write_end) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        (Waiting { pipe: File::from(read_end) }, Telling { pipe: File::from(write_end) })
    }

    #[test]
    fn readiness_reaches_the_command() {
        let (waiting, mut telling) = pair();
        telling.ready().unwrap();
        // The background process lives on with its end open.
        assert_eq!(waiting.outcome(), Ok(()));
        drop(telling);
    }

    #[test]
    fn a_refusal_keeps_its_code_and_its_sentence() {
        for exit in [Exit::Usage, Exit::System, Exit::MountFailure] {
            let (waiting, mut telling) = pair();
            let refusal = Refusal { exit, sentence: "no server answered at meta:7600".to_owned() };
            telling.refuse(&refusal);
            drop(telling);
            assert_eq!(waiting.outcome(), Err(refusal));
        }
    }

    #[test]
    fn a_command_that_was_killed_is_noticed() {
        let (waiting, mut telling) = pair();
        drop(waiting);
        assert_eq!(telling.ready().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_death_is_a_failure() {
        let (waiting, telling) = pair();
        drop(telling);
        let refusal = waiting.outcome().unwrap_err();
        assert_eq!(refusal.exit, Exit::MountFailure);
        assert!(refusal.sentence.contains("died"));
    }
}
