//! The process behind a request: whether it is being killed, and which groups it belongs to.
//!
//! The kernel tells a FUSE daemon that a caller was interrupted by a request of its own, which fuser answers with ENOSYS;
//! from then on a killed process stays in an uninterruptible wait until its request is answered. So requests that take
//! long look at the caller's signals in /proc from time to time, and are given up when it is on its way out. Requests
//! that are answered at once pay nothing for it.

use std::fs;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use tokio::time::timeout;

/// A request that is answered sooner is never looked at.
const PATIENCE: Duration = Duration::from_millis(100);
/// How often a waiting caller is looked at; grows to the maximum, so that a thousand waiting processes cost little.
const FIRST_LOOK: Duration = Duration::from_millis(50);
const LONGEST_LOOK: Duration = Duration::from_millis(250);

/// PF_EXITING of the task flags in /proc/PID/stat: the task is inside exit(2).
const EXITING: u64 = 0x4;

/// What may end a wait before its answer is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Only death: as on a local disk, a signal that the caller handles does not break a read.
    Operation,
    /// Any signal that is handled: waiting for a lock is interruptible.
    Lock,
    /// Death, also when the caller is already inside exit(2) and closes its files.
    Close,
}

/// The thread that made a request; 0: nobody waits for the answer, or somebody outside this PID namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    /// The thread's id.
    pub(crate) thread: u32,
}

impl Caller {
    /// Runs an operation for as long as its caller stays. `None`: the caller is on its way out and wants no answer but
    /// EINTR; the operation is where it was, and the one who owns it drops it or goes on.
    pub(crate) async fn stays<F: Future>(self, wait: Wait, mut operation: Pin<&mut F>) -> Option<F::Output> {
        if self.thread == 0 {
            return Some(operation.await);
        }
        if let Ok(output) = timeout(PATIENCE, operation.as_mut()).await {
            return Some(output);
        }
        let mut look = FIRST_LOOK;
        while !self.leaves(wait) {
            if let Ok(output) = timeout(look, operation.as_mut()).await {
                return Some(output);
            }
            look = (look * 2).min(LONGEST_LOOK);
        }
        None
    }

    /// Whether the caller no longer waits, or should not.
    fn leaves(self, wait: Wait) -> bool {
        let Ok(status) = fs::read_to_string(format!("/proc/{}/status", self.thread)) else { return true };
        let Some(signals) = Signals::parse(&status) else { return true };
        match wait {
            Wait::Operation => signals.kill(),
            Wait::Lock => signals.kill() || signals.interrupt(),
            Wait::Close => signals.kill() || (has_no_memory(&status) && self.dies()),
        }
    }

    /// Whether the caller is inside exit(2) because a signal killed it.
    ///
    /// Reading /proc/PID/stat waits while the process is inside execve(2), which may be waiting for the very answer
    /// that this is about: only to be asked of one that has no memory any more.
    fn dies(self) -> bool {
        fs::read_to_string(format!("/proc/{}/stat", self.thread))
            .is_ok_and(|stat| killed_while_exiting(&stat))
    }

    /// Whether the caller is in a group, by its credentials in /proc. A caller that is gone is in none.
    pub(crate) fn is_in_group(self, group: u32) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/status", self.thread)).unwrap_or_default();
        let groups = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default();
        groups.split_whitespace().any(|member| member.parse() == Ok(group))
    }
}

/// Sets of signals, one bit each, from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Signals {
    pending: u64,
    blocked: u64,
    ignored: u64,
    caught: u64,
}

impl Signals {
    fn parse(status: &str) -> Option<Self> {
        let mut signals = Self::default();
        let mut seen = 0;
        for line in status.lines() {
            let Some((name, value)) = line.split_once(":\t") else { continue };
            let set = match name {
                "SigPnd" | "ShdPnd" => &mut signals.pending,
                "SigBlk" => &mut signals.blocked,
                "SigIgn" => &mut signals.ignored,
                "SigCgt" => &mut signals.caught,
                _ => continue,
            };
            *set |= u64::from_str_radix(value.trim(), 16).ok()?;
            seen += 1;
        }
        (seen == 5).then_some(signals)
    }

    /// Signals that would be delivered now.
    fn deliverable(self) -> u64 {
        let kill = bit(libc::SIGKILL);
        self.pending & (kill | !(self.blocked | self.ignored))
    }

    /// One of them ends the process.
    fn kill(self) -> bool {
        self.deliverable() & !self.caught & !harmless() != 0
    }

    /// One of them runs a handler.
    fn interrupt(self) -> bool {
        self.deliverable() & self.caught != 0
    }
}

fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// Signals that do not end a process which neither catches nor ignores them: it is stopped, goes on, or sees nothing.
fn harmless() -> u64 {
    [
        libc::SIGCHLD,
        libc::SIGCONT,
        libc::SIGURG,
        libc::SIGWINCH,
        libc::SIGSTOP,
        libc::SIGTSTP,
        libc::SIGTTIN,
        libc::SIGTTOU,
    ]
    .into_iter()
    .fold(0, |all, signal| all | bit(signal))
}

/// By /proc/PID/status: the task has left its address space, as exit(2) does before it closes files.
fn has_no_memory(status: &str) -> bool {
    !status.contains("\nVmSize:")
}

/// Reads /proc/PID/stat: the flags are the 9th field, the exit code the 52nd; the 2nd is a name that may hold anything.
fn killed_while_exiting(stat: &str) -> bool {
    let Some((_, fields)) = stat.rsplit_once(") ") else { return false };
    let number = |field: usize| -> Option<u64> { fields.split_whitespace().nth(field - 3)?.parse().ok() };
    matches!((number(9), number(52)), (Some(flags), Some(code)) if flags & EXITING != 0 && code & 0x7f != 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::pin::pin;
    use std::process::{Command, Stdio};
    use std::time::Instant;

    use super::*;

    fn signals(pending: i32, blocked: u64, ignored: u64, caught: u64) -> Signals {
        Signals { pending: bit(pending), blocked, ignored, caught }
    }

    #[test]
    fn only_deadly_signals_end_an_operation() {
        let all = u64::MAX;
        assert!(signals(libc::SIGKILL, all, all, 0).kill(), "nothing holds SIGKILL back");
        assert!(signals(libc::SIGTERM, 0, 0, 0).kill());
        assert!(signals(libc::SIGQUIT, 0, 0, 0).kill());
        assert!(!signals(libc::SIGTERM, bit(libc::SIGTERM), 0, 0).kill(), "blocked");
        assert!(!signals(libc::SIGTERM, 0, bit(libc::SIGTERM), 0).kill(), "ignored");
        assert!(!signals(libc::SIGTERM, 0, 0, bit(libc::SIGTERM)).kill(), "handled");
        assert!(!signals(libc::SIGCHLD, 0, 0, 0).kill());
        assert!(!signals(libc::SIGTSTP, 0, 0, 0).kill());
        assert!(!Signals::default().kill());
    }

    #[test]
    fn a_handled_signal_interrupts_a_lock() {
        assert!(signals(libc::SIGALRM, 0, 0, bit(libc::SIGALRM)).interrupt());
        assert!(!signals(libc::SIGALRM, bit(libc::SIGALRM), 0, bit(libc::SIGALRM)).interrupt());
        assert!(!signals(libc::SIGCHLD, 0, 0, 0).interrupt());
    }

    #[test]
    fn the_kernels_text_is_parsed() {
        let status = "Name:\tx\nSigQ:\t0/1\nSigPnd:\t0000000000000100\nShdPnd:\t0000000000004000\n\
                      SigBlk:\t0000000000000002\nSigIgn:\t0000000000000004\nSigCgt:\t0000000180000008\n";
        let parsed = Signals::parse(status).unwrap();
        assert_eq!(parsed.pending, 0x4100);
        assert_eq!((parsed.blocked, parsed.ignored, parsed.caught), (2, 4, 0x1_8000_0008));
        assert_eq!(Signals::parse("Name:\tx\n"), None);
        let own = fs::read_to_string("/proc/self/status").unwrap();
        assert!(Signals::parse(&own).is_some());
        assert!(!has_no_memory(&own));
        // A thread of the kernel never had any.
        assert!(has_no_memory(&fs::read_to_string("/proc/2/status").unwrap()));
    }

    #[test]
    fn a_death_while_exiting_is_told_from_an_exit() {
        let line = |flags: u64, code: u64| {
            let zeros = |count| " 0".repeat(count);
            format!("7 (a) b) (c) S{} {flags}{} {code}\n", zeros(5), zeros(42))
        };
        assert!(killed_while_exiting(&line(0x40_0004, 9)));
        assert!(!killed_while_exiting(&line(0x40_0004, 0)));
        assert!(!killed_while_exiting(&line(0x40_0004, 256)), "exit(1)");
        assert!(!killed_while_exiting(&line(0x40_0000, 9)));
        assert!(!killed_while_exiting("7 (x) S 1"));
        let own = fs::read_to_string("/proc/self/stat").unwrap();
        assert!(!killed_while_exiting(&own));
        assert_eq!(own.rsplit_once(") ").unwrap().1.split_whitespace().count(), 50, "field 52 is the last");
    }

    #[tokio::test]
    async fn fast_operations_are_not_looked_at() {
        let nobody = Caller { thread: u32::MAX };
        let done = nobody.stays(Wait::Operation, pin!(async { 7 })).await;
        assert_eq!(done, Some(7), "though the caller does not exist");
    }

    #[tokio::test]
    async fn slow_operations_end_with_their_caller() {
        let forever = || std::future::pending::<()>();
        let gone = Caller { thread: u32::MAX };
        assert_eq!(gone.stays(Wait::Operation, pin!(forever())).await, None);

        // A child that ignores SIGTERM and sleeps: alive, so the operation goes on; it ends when the child is killed.
        let mut command = Command::new("sleep");
        command.arg("600").stdout(Stdio::null());
        // SAFETY: signal(2) is async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                libc::signal(libc::SIGTERM, libc::SIG_IGN);
                Ok(())
            });
        }
        let mut child = command.spawn().unwrap();
        let caller = Caller { thread: child.id() };
        // SAFETY: a signal to a child that was not waited for.
        unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
        let waited = timeout(Duration::from_millis(600), caller.stays(Wait::Lock, pin!(forever()))).await;
        assert!(waited.is_err(), "an ignored signal ends nothing");
        let start = Instant::now();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(caller.stays(Wait::Operation, pin!(forever())).await, None);
        assert!(start.elapsed() < Duration::from_secs(5));
        assert_eq!(
            Caller { thread: 0 }.stays(Wait::Lock, pin!(async { 1 })).await,
            Some(1),
            "nobody's request runs to its end"
        );
    }

    #[test]
    fn groups_are_those_of_the_caller() {
        let me = Caller { thread: std::process::id() };
        let groups = nix::unistd::getgroups().unwrap();
        for group in groups {
            assert!(me.is_in_group(group.as_raw()));
        }
        assert!(!me.is_in_group(4_000_000_000));
        assert!(!Caller { thread: u32::MAX }.is_in_group(0));
    }
}
