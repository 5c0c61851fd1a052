//! Mounts a dfs cluster: `dfs-fuse META[,META2]:/[SUBDIRECTORY] MOUNTPOINT [-o OPTIONS]`, also under the name
//! `/sbin/mount.fuse.dfs`, where mount(8) finds it.
//!
//! `options` and `source` parse the command line, `mount` speaks mount(2), `daemon` goes to the background and tells how
//! it went, `serve` is one mount's life, `adapter` translates the kernel's requests for the client library, `caller`
//! looks at the processes behind them. The command returns 0 when the mount answers; else it prints a sentence, returns
//! an exit code of mount(8) and leaves nothing mounted.

mod adapter;
mod caller;
mod daemon;
mod log;
mod mount;
mod options;
mod serve;
mod source;

use std::io::Write;
use std::process::ExitCode;

use daemon::{Exit, Refusal, Side};
use dfs_client::keys::KeyFiles;
use options::{Mount, Request};

const USAGE: &str = "\
Usage: dfs-fuse META[,META2]:/[SUBDIRECTORY] MOUNTPOINT [-fnsv] [-o OPTION,...]
       mount -t fuse.dfs META[,META2]:/[SUBDIRECTORY] MOUNTPOINT [-o OPTION,...]

META is a metadata server: a host name or an address, with :PORT unless it is 7600.

Options:
  ro, rw, nodev, nosuid, noexec, relatime, noatime, strictatime, nodiratime, sync, dirsync, remount
                       as for every filesystem
  allow_other          users other than the mounting one may enter (root's default)
  default_permissions  the kernel checks permissions (root's default)
  timeout=SECONDS      how long an operation waits for servers that are away: 60; 0 for ever
  foreground           stay in the foreground, log to standard error
  log=FILE             log to FILE instead of syslog
  log_level=LEVEL      error, warn, info, debug or trace, or a tracing filter
  cache=SIZE           memory for file data that may be read again, such as 512M
  dirty=SIZE           memory for written data that waits for upload
  key=NAME:FILE        a key of the cluster and the file with it, absolute; may be repeated
  keys=DIRECTORY       keys in files named after them
  host=, rack=, zone=  where this machine is: near copies are read first

  -f  check everything, mount nothing      -s  pass over unknown options
  -h  this text                            -V  the version
";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(refusal) => {
            eprintln!("dfs-fuse: {}", refusal.sentence);
            ExitCode::from(refusal.exit as u8)
        }
    }
}

fn run() -> Result<(), Refusal> {
    let root = nix::unistd::geteuid().is_root();
    let request = options::parse(std::env::args_os().skip(1), root).map_err(|sentence| Refusal {
        exit: Exit::Usage,
        sentence: format!("{sentence} (dfs-fuse --help tells more)"),
    })?;
    match request {
        Request::Help => print(USAGE),
        Request::Version => print(concat!("dfs-fuse ", env!("CARGO_PKG_VERSION"), "\n")),
        Request::Remount { target, flags } => mount::remount(&target, flags).map_err(Refusal::mount),
        Request::Mount(request) => mount_it(&request),
    }
}

fn print(text: &str) -> Result<(), Refusal> {
    let mut out = std::io::stdout();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| Refusal::system("write to standard output", error))
}

/// Arenas of the C library's allocator.
const MALLOC_ARENAS: libc::c_int = 2;

/// Lets all threads use the same few arenas: what one frees, the next one takes. By default there are eight for each core, and
/// each keeps what it ever had, which for buffers as large as a frame is several times of what is in use.
fn share_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it only sets a number, before there is another thread.
    let is_set = unsafe { libc::mallopt(libc::M_ARENA_MAX, MALLOC_ARENAS) };
    #[cfg(target_env = "gnu")]
    debug_assert_eq!(is_set, 1, "the allocator takes the number of arenas");
}

fn mount_it(request: &Mount) -> Result<(), Refusal> {
    let target = mount::prepare(&request.target, &request.source.text).map_err(Refusal::mount)?;
    if request.fake {
        return Ok(());
    }
    share_memory();
    if request.keys != KeyFiles::default() {
        // Keys in this process's memory must not end up in a core dump. The background process inherits it; it reads them
        // before the command returns.
        nix::sys::prctl::set_dumpable(false)
            .map_err(|errno| Refusal::system("keep the keys out of core dumps", errno))?;
    }
    if request.foreground {
        log::start(request).map_err(Refusal::mount)?;
        let line = format!("mounted {} on {}\n", request.source.text, target.display());
        // Whoever waits for this line reads it from a pipe, which is not flushed by itself.
        let ready = || {
            let mut out = std::io::stdout();
            out.write_all(line.as_bytes()).and_then(|()| out.flush())
        };
        return serve::run(request, &target, ready);
    }
    match daemon::detach()? {
        Side::Command(waiting) => waiting.outcome(),
        Side::Background(mut telling) => {
            let served = log::start(request)
                .map_err(Refusal::mount)
                .and_then(|()| serve::run(request, &target, || telling.ready()));
            if let Err(refusal) = &served {
                telling.refuse(refusal);
            }
            served
        }
    }
}
