//! The bound on a whole test: a system call that hangs in the kernel can't be given up by the thread that made it, so
//! the process ends with a sentence, and the daemons with it, which lets everything go.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// Watches until it is dropped.
#[derive(Debug)]
pub struct Watchdog {
    _alive: Sender<()>,
}

impl Watchdog {
    /// Aborts the process when it is still there after `patience`.
    pub fn new(patience: Duration) -> Self {
        let (alive, watch) = channel::<()>();
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        std::thread::spawn(move || {
            if watch.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
                // Not by eprintln!, which is captured with the test's output, and that is lost.
                use std::io::Write;
                let sentence =
                    format!("{test} hangs: it has been running for {patience:?}; everything is given up");
                let _ = writeln!(std::io::stderr(), "{sentence}");
                std::process::abort();
            }
        });
        Self { _alive: alive }
    }
}
