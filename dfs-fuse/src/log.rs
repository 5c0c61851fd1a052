//! Where the log goes: standard error in the foreground, else a file of the user's choice or syslog (which systemd's
//! journal reads). A machine without a syslog socket loses the log and nothing else.

use std::fs::OpenOptions;
use std::io::IsTerminal;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Mutex;

use syslog_tracing::{Facility, Options, Syslog};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::layer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::options::Mount;

/// Starts logging as the mount's options say. Must come after the fork: syslog remembers the process. The error is a
/// sentence.
pub(crate) fn start(mount: &Mount) -> Result<(), String> {
    let filter = EnvFilter::try_new(&mount.log_level)
        .map_err(|error| format!("log_level={}: {error}", mount.log_level))?;
    let registry = tracing_subscriber::registry().with(filter);
    let started = if let Some(path) = &mount.log {
        let file = OpenOptions::new().append(true).create(true).mode(0o640).open(path);
        let file = file.map_err(|error| format!("open the log {}: {error}", path.display()))?;
        registry.with(layer().with_ansi(false).with_writer(Mutex::new(file))).try_init()
    } else if mount.foreground {
        registry
            .with(layer().with_ansi(std::io::stderr().is_terminal()).with_writer(std::io::stderr))
            .try_init()
    } else {
        // syslog adds the time, the host and the severity.
        let Some(syslog) = Syslog::new(c"dfs-fuse", Options::LOG_PID, Facility::Daemon) else {
            return Ok(());
        };
        let plain = layer().with_ansi(false).without_time().with_level(false).with_target(false);
        registry.with(plain.with_writer(syslog)).try_init()
    };
    started.map_err(|error| format!("start logging: {error}"))
}
