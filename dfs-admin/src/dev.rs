//! `dfs-admin dev`: a whole cluster on one machine, for trying and developing: one metadata server, some chunk daemons
//! and a mount, each a child process of its own binary, so that each can be killed and watched.
//!
//! A daemon that dies is told and not restarted. At SIGINT, SIGTERM or SIGHUP everything is taken down in order: the
//! mount, the chunk daemons, the metadata server; every wait has a bound. Nothing outlives this process, even killed.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use dfs_proto::limits::DEFAULT_META_PORT;
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::daemon::{Daemon, Program, arguments, listening_address};
use crate::find::Announcement;
use crate::mounts;

/// How long each daemon may take to be ready.
const READY: Duration = Duration::from_secs(60);
/// How long each daemon may take to stop.
const STOP: Duration = Duration::from_secs(20);
/// How long a mount that is in use is waited for before it is detached.
const BUSY: Duration = Duration::from_secs(3);
/// How often the children are looked at.
const WATCH: Duration = Duration::from_millis(100);
/// Where clusters live whose directory nobody chose.
const DEFAULT_PARENT: &str = "/var/lib/dfs-dev";
/// Space that each chunk daemon leaves free: the disk is shared with everything else.
const RESERVE: &str = "256MiB";
/// The most chunk daemons: more is a mistake on one machine.
const MAX_CHUNKS: u16 = 64;

/// What to start.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Where to mount the filesystem; made when it is not there
    pub mountpoint: PathBuf,
    /// Where to keep everything; with the same directory again, the files are there
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// How many chunk daemons
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_CHUNKS)))]
    pub chunks: u16,
    /// Mount options, as for mount(8)
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub options: Option<String>,
    /// A directory with keys in files named after them, for the mount
    #[arg(long, value_name = "DIR")]
    pub keys: Option<PathBuf>,
}

/// Prints a line. Who closed our output does not stop the cluster.
macro_rules! say {
    ($($argument:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stdout(), $($argument)*);
    }};
}

/// Set by the first signal that asks to stop.
static STOPPING: AtomicBool = AtomicBool::new(false);

/// Runs a cluster until a signal. It must be called on the main thread, which the children are bound to.
pub fn run(options: &Options) -> Result<ExitCode> {
    if !nix::unistd::geteuid().is_root() {
        bail!("mounting needs root: run dfs-admin dev as root");
    }
    catch_signals()?;
    let mut cluster = Cluster::prepare(options)?;
    match cluster.start(options) {
        Ok(()) => {
            cluster.introduce();
            cluster.watch();
        }
        Err(_) if STOPPING.load(Ordering::Relaxed) => {}
        Err(error) => {
            cluster.take_down();
            return Err(error);
        }
    }
    say!("stopping");
    let clean = cluster.take_down();
    say!("the files are kept in {0}: run again with --data {0} to have them back", cluster.data.display());
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The children, in the order in which they were started.
#[derive(Debug)]
struct Cluster {
    mountpoint: PathBuf,
    data: PathBuf,
    binaries: PathBuf,
    meta: Option<Child>,
    chunks: Vec<Child>,
    mount: Option<Child>,
    announcement: Option<Announcement>,
}

/// One daemon and what is told of it.
#[derive(Debug)]
struct Child {
    daemon: Daemon,
    /// Where it answers, or what it is mounted on.
    place: String,
    data: Option<PathBuf>,
    told: bool,
}

impl Cluster {
    /// Makes the directories.
    fn prepare(options: &Options) -> Result<Self> {
        let executable = std::env::current_exe().context("find this program's own file")?;
        let binaries = executable.parent().context("find this program's directory")?.to_owned();
        let data = match &options.data {
            Some(data) => data.clone(),
            None => fresh_directory(Path::new(DEFAULT_PARENT))?,
        };
        fs::create_dir_all(data.join("log")).with_context(|| format!("make {}", data.display()))?;
        let data = data.canonicalize().with_context(|| format!("find {}", data.display()))?;
        let mountpoint = prepare_mountpoint(&options.mountpoint)?;
        if data.starts_with(&mountpoint) {
            bail!("{} lies below the mount point: choose another --data", data.display());
        }
        let (meta, chunks, mount, announcement) = (None, Vec::new(), None, None);
        Ok(Self { mountpoint, data, binaries, meta, chunks, mount, announcement })
    }

    fn start(&mut self, options: &Options) -> Result<()> {
        let data = self.data.join("meta");
        let listen = format!("127.0.0.1:{}", free_port());
        let args = arguments([&"--data", &data, &"--listen", &listen]);
        let meta = self.start_one("dfs-meta", "dfs-meta", args, Some(data), listening_address)?;
        let address = meta.place.clone();
        self.meta = Some(meta);
        self.announcement = Some(Announcement::new(&address)?);

        for number in 1..=options.chunks {
            let data = self.data.join(format!("chunk-{number}"));
            // Each is its own failure domain, so that replicas spread as they would over machines.
            let host = format!("dev{number}");
            let listen = "127.0.0.1:0";
            let args = arguments([
                &"--data",
                &data,
                &"--meta",
                &address,
                &"--listen",
                &listen,
                &"--host",
                &host,
                &"--reserve",
                &RESERVE,
            ]);
            let name = format!("dfs-chunk-{number}");
            let chunk = self.start_one(&name, "dfs-chunk", args, Some(data), listening_address)?;
            self.chunks.push(chunk);
        }

        let source = format!("{address}:/");
        let all = mount_options(options)?;
        let args = arguments([&source, &self.mountpoint, &"-o", &all]);
        let point = self.mountpoint.display().to_string();
        let is_mounted = |line: &str| line.contains("mounted").then(|| point.clone());
        self.mount = Some(self.start_one("dfs-fuse", "dfs-fuse", args, None, is_mounted)?);
        Ok(())
    }

    /// Starts one daemon and waits until `ready` finds its place in a line of its output.
    fn start_one(
        &self,
        name: &str,
        binary: &str,
        args: Vec<OsString>,
        data: Option<PathBuf>,
        ready: impl Fn(&str) -> Option<String>,
    ) -> Result<Child> {
        if let Some(data) = &data {
            fs::create_dir_all(data).with_context(|| format!("make {}", data.display()))?;
        }
        let program = Program {
            name: name.to_owned(),
            path: self.binaries.join(binary),
            args,
            log: self.data.join("log").join(format!("{name}.log")),
            // Each stops cleanly when this process is killed.
            parent_death_signal: Signal::SIGTERM,
        };
        if !program.path.exists() {
            bail!("{} is missing: build all of dfs with cargo build --workspace", program.path.display());
        }
        let mut daemon = program.start()?;
        let deadline = Instant::now() + READY;
        loop {
            if let Some(place) = daemon.look_for_line(&ready)? {
                return Ok(Child { daemon, place, data, told: false });
            }
            if STOPPING.load(Ordering::Relaxed) {
                daemon.stop(STOP);
                bail!("interrupted");
            }
            if Instant::now() >= deadline {
                bail!("{name} was not ready after {} s; {}", READY.as_secs(), daemon.last_words(20));
            }
            std::thread::sleep(WATCH / 10);
        }
    }

    fn children(&mut self) -> impl Iterator<Item = &mut Child> {
        self.meta.iter_mut().chain(&mut self.chunks).chain(&mut self.mount)
    }

    /// Tells what runs where, and something to try.
    fn introduce(&mut self) {
        say!("a dfs cluster is running; its state is in {}", self.data.display());
        let logs = self.data.join("log");
        for child in self.children() {
            let pid = child.daemon.pid();
            let name = &child.daemon.program().name;
            let data = child.data.as_ref().map_or(String::new(), |data| format!("  {}", data.display()));
            say!("  {name:<12} pid {pid:<8} {:<21}{data}", child.place);
        }
        say!("logs are in {}", logs.display());
        let mountpoint = self.mountpoint.display();
        let admin = self.binaries.join("dfs-admin");
        let admin = admin.display();
        let address = self.meta.as_ref().map_or("", |meta| meta.place.as_str());
        // Another cluster has the default port, and would be found first.
        let meta = match address == format!("127.0.0.1:{DEFAULT_META_PORT}") {
            true => String::new(),
            false => format!(" --meta {address}"),
        };
        say!("try:  echo hello > {mountpoint}/hello && cat {mountpoint}/hello && {admin} status{meta}");
        say!("Ctrl-C takes it all down");
    }

    /// Returns when a signal asks to stop. Who dies before is told, once.
    fn watch(&mut self) {
        while !STOPPING.load(Ordering::Relaxed) {
            for child in self.children().filter(|child| !child.told) {
                let Some(ending) = child.daemon.ended() else { continue };
                child.told = true;
                let Program { name, log, .. } = child.daemon.program();
                let pid = child.daemon.pid();
                eprintln!("{name} (pid {pid}) {ending}; it is not restarted; its log is {}", log.display());
            }
            std::thread::sleep(WATCH);
        }
    }

    /// Stops everything, the mount first so that its last writes find their servers. Whether all of it ended well.
    fn take_down(&mut self) -> bool {
        self.announcement = None;
        let mut clean = true;
        if let Some(mut mount) = self.mount.take() {
            clean &= unmount(&self.mountpoint, &mut mount);
        }
        // All are asked before the first is waited for.
        for chunk in &mut self.chunks {
            chunk.daemon.signal(Signal::SIGTERM);
        }
        for mut child in self.chunks.drain(..).chain(self.meta.take()) {
            clean &= child.stop();
        }
        clean
    }
}

impl Child {
    fn stop(&mut self) -> bool {
        if self.told {
            // It ended before it was asked to, and that was said.
            return true;
        }
        let ending = self.daemon.stop(STOP);
        if !ending.is_clean() {
            let Program { name, log, .. } = self.daemon.program();
            eprintln!("{name} {ending}; its log is {}", log.display());
        }
        ending.is_clean()
    }
}

fn mount_options(options: &Options) -> Result<String> {
    let mut all = "foreground".to_owned();
    if let Some(directory) = &options.keys {
        let directory =
            directory.canonicalize().with_context(|| format!("find the keys in {}", directory.display()))?;
        // In quotes a comma is part of a name.
        let directory = directory.to_str().filter(|path| !path.contains('"'));
        let directory = directory
            .context("the name of the directory with the keys has characters that an option can't")?;
        all += &format!(",\"keys={directory}\"");
    }
    if let Some(more) = options.options.as_deref().filter(|more| !more.is_empty()) {
        all += &format!(",{more}");
    }
    Ok(all)
}

/// Unmounts, or detaches a mount that is in use, and waits for its daemon.
fn unmount(mountpoint: &Path, mount: &mut Child) -> bool {
    let deadline = Instant::now() + BUSY;
    let result = loop {
        match umount2(mountpoint, MntFlags::empty()) {
            Err(Errno::EBUSY) if Instant::now() < deadline => std::thread::sleep(WATCH),
            result => break result,
        }
    };
    if result == Err(Errno::EBUSY) {
        eprintln!("{} is in use: it is detached, and programs that use it get errors", mountpoint.display());
        if let Err(error) = umount2(mountpoint, MntFlags::MNT_DETACH) {
            eprintln!("{} can't be detached: {error}", mountpoint.display());
        }
        // Its daemon would wait for the last of those programs.
        return mount.stop();
    }
    match mount.daemon.wait(STOP) {
        Some(_) => mount.stop(),
        None => {
            eprintln!("the mount's daemon goes on after {} s; it is told to stop", STOP.as_secs());
            mount.stop()
        }
    }
}

/// Makes the mount point where it is missing, and frees it of a mount whose daemon died.
fn prepare_mountpoint(path: &Path) -> Result<PathBuf> {
    if let Err(Errno::ENOTCONN) = nix::sys::statvfs::statvfs(path)
        && let Some(dead) = mounts::at(path)?
        && dead.kind == mounts::KIND
    {
        umount2(path, MntFlags::MNT_DETACH)
            .with_context(|| format!("detach the dead mount {}", path.display()))?;
    }
    fs::create_dir_all(path).with_context(|| format!("make the mount point {}", path.display()))?;
    let path = path.canonicalize().with_context(|| format!("find the mount point {}", path.display()))?;
    if let Some(mounted) = mounts::at(&path)? {
        bail!("{} has a {} filesystem mounted on it already: unmount it first", path.display(), mounted.kind);
    }
    Ok(path)
}

/// A new directory below `parent`, told from others by the time.
fn fresh_directory(parent: &Path) -> Result<PathBuf> {
    fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
    let now = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
    let name = now.replace(['-', ':'], "");
    for attempt in 0..100 {
        let path = match attempt {
            0 => parent.join(&name),
            _ => parent.join(format!("{name}-{attempt}")),
        };
        match fs::create_dir(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            made => {
                made.with_context(|| format!("make {}", path.display()))?;
                return Ok(path);
            }
        }
    }
    bail!("{} is full of clusters: choose a directory with --data", parent.display())
}

/// The default port of the metadata server when it is free, else 0: the kernel picks another.
fn free_port() -> u16 {
    match std::net::TcpListener::bind(("127.0.0.1", DEFAULT_META_PORT)) {
        Ok(_) => DEFAULT_META_PORT,
        Err(_) => 0,
    }
}

extern "C" fn stop(_signal: i32) {
    STOPPING.store(true, Ordering::Relaxed);
}

fn catch_signals() -> Result<()> {
    let action = SigAction::new(SigHandler::Handler(stop), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler only stores to an atomic, which is safe in a signal handler.
        unsafe { sigaction(signal, &action) }.with_context(|| format!("catch {signal}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fresh_directories_are_never_shared() {
        let parent = tempfile::tempdir().unwrap();
        let made: std::collections::BTreeSet<PathBuf> =
            (0..5).map(|_| fresh_directory(parent.path()).unwrap()).collect();
        assert_eq!(made.len(), 5);
    }

    #[test]
    fn the_mount_is_told_its_options() {
        let directory = tempfile::Builder::new().prefix("a,b").tempdir().unwrap();
        let plain = Options { mountpoint: "/mnt".into(), data: None, chunks: 3, options: None, keys: None };
        assert_eq!(mount_options(&plain).unwrap(), "foreground");
        let all = Options {
            keys: Some(directory.path().into()),
            options: Some("ro,noatime".into()),
            ..plain.clone()
        };
        let path = directory.path().canonicalize().unwrap();
        let expected = format!("foreground,\"keys={}\",ro,noatime", path.display());
        assert_eq!(mount_options(&all).unwrap(), expected);
        let missing = Options { keys: Some(directory.path().join("none")), ..plain };
        assert!(mount_options(&missing).unwrap_err().to_string().contains("find the keys"));
    }

    #[test]
    fn a_mount_point_in_use_is_refused() {
        let error = prepare_mountpoint(Path::new("/proc")).unwrap_err().to_string();
        assert!(error.contains("mounted on it already"), "{error}");
        let parent = tempfile::tempdir().unwrap();
        assert!(prepare_mountpoint(&parent.path().join("a/b")).unwrap().is_dir());
    }
}
