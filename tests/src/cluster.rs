//! A whole dfs cluster of real daemons as child processes, on ports that the kernel picks and in a directory of its own.
//!
//! Each daemon can be stopped, killed with SIGKILL and started again on the same port and data. Nothing outlives the
//! test process. When a test panics, the ends of all logs are printed, and everything is taken down all the same.
//! Errors of the harness itself are panics with a sentence: in a test there is nobody to handle them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use dfs_admin::daemon::{Daemon, Ending, Program, listening_address};
use dfs_admin::server::Server;
use dfs_proto::meta::{ClusterStatus, NodeState};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::mounted::Mount;
use crate::watchdog::Watchdog;
use crate::{keeper, programs};

/// How long a daemon may take to say that it is ready.
const READY: Duration = Duration::from_secs(60);
/// How long a daemon may take to stop when asked.
pub const STOP: Duration = Duration::from_secs(20);
/// How long a test with a cluster may take, unless it says otherwise.
const PATIENCE: Duration = Duration::from_secs(300);
/// Environment variable: keep the clusters' directories.
const KEEP: &str = "DFS_TESTS_KEEP";

/// What to start. Made by [`Cluster::with`].
#[derive(Debug)]
pub struct Builder {
    chunks: usize,
    meta_args: Vec<OsString>,
    chunk_args: Vec<OsString>,
    meta_data: Option<PathBuf>,
    chunk_data: Vec<Option<PathBuf>>,
    patience: Duration,
}

/// One metadata server and some chunk daemons.
#[derive(Debug)]
pub struct Cluster {
    meta: Member,
    chunks: Vec<Member>,
    directory: Option<TempDir>,
    _watchdog: Watchdog,
}

/// One daemon that may be running or not.
#[derive(Debug)]
pub struct Member {
    program: Program,
    /// Where it answers, the same over restarts.
    address: String,
    data: PathBuf,
    daemon: Mutex<Option<Daemon>>,
}

impl Cluster {
    /// One metadata server and three chunk daemons, all ready.
    pub fn start() -> Self {
        Self::with().start()
    }

    /// A cluster with other sizes or settings.
    pub fn with() -> Builder {
        Builder {
            chunks: 3,
            meta_args: Vec::new(),
            chunk_args: Vec::new(),
            meta_data: None,
            chunk_data: Vec::new(),
            patience: PATIENCE,
        }
    }

    /// The metadata server's address.
    pub fn address(&self) -> &str {
        &self.meta.address
    }

    /// The metadata server.
    pub fn meta(&self) -> &Member {
        &self.meta
    }

    /// A chunk daemon, from 0.
    pub fn chunk(&self, index: usize) -> &Member {
        &self.chunks[index]
    }

    /// All chunk daemons.
    pub fn chunks(&self) -> &[Member] {
        &self.chunks
    }

    /// A scratch directory on the local disk that goes with the cluster.
    pub fn directory(&self) -> &Path {
        self.directory.as_ref().expect("there until dropped").path()
    }

    /// Mounts the root with the default options.
    pub fn mount(&self) -> Mount {
        self.mount_with("/", "")
    }

    /// Mounts a directory of the filesystem with more options ("sync,ro").
    pub fn mount_with(&self, inside: &str, options: &str) -> Mount {
        Mount::new(self.address(), inside, options, self.directory())
    }

    /// What the metadata server says of the cluster.
    pub fn status(&self) -> ClusterStatus {
        self.try_status().expect("the metadata server tells the cluster's status")
    }

    /// As [`Cluster::status`], for a server that may be away.
    pub fn try_status(&self) -> Result<ClusterStatus, dfs_proto::Failure> {
        block_on(async { Server::connect(&[self.address().to_owned()]).await?.status().await })
    }

    /// Waits until the status satisfies `condition` and returns it.
    ///
    /// # Panics
    /// When it does not in time; the last status is told.
    pub fn wait_for(
        &self,
        what: &str,
        timeout: Duration,
        condition: impl Fn(&ClusterStatus) -> bool,
    ) -> ClusterStatus {
        let deadline = Instant::now() + timeout;
        loop {
            let status = self.try_status();
            match status {
                Ok(status) if condition(&status) => return status,
                last if Instant::now() >= deadline => {
                    panic!("after {timeout:?} still not {what}: {last:#?}")
                }
                _ => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// Waits until so many chunk daemons are up.
    pub fn wait_for_nodes(&self, count: usize) {
        self.wait_for("all chunk daemons up", READY, |status| {
            status.nodes.iter().filter(|node| node.state() == NodeState::Up).count() >= count
        });
    }

    fn members(&self) -> impl Iterator<Item = &Member> {
        std::iter::once(&self.meta).chain(&self.chunks)
    }
}

impl Builder {
    /// So many chunk daemons.
    pub fn chunks(mut self, count: usize) -> Self {
        self.chunks = count;
        self
    }

    /// More arguments for the metadata server.
    pub fn meta_args<I: IntoIterator<Item = S>, S: Into<OsString>>(mut self, args: I) -> Self {
        self.meta_args.extend(args.into_iter().map(Into::into));
        self
    }

    /// More arguments for every chunk daemon.
    pub fn chunk_args<I: IntoIterator<Item = S>, S: Into<OsString>>(mut self, args: I) -> Self {
        self.chunk_args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Where the metadata server keeps its store, instead of the cluster's own directory.
    pub fn meta_data(mut self, directory: impl Into<PathBuf>) -> Self {
        self.meta_data = Some(directory.into());
        self
    }

    /// Where a chunk daemon keeps its shards, instead of the cluster's own directory.
    pub fn chunk_data(mut self, index: usize, directory: impl Into<PathBuf>) -> Self {
        self.chunk_data.resize(self.chunk_data.len().max(index + 1), None);
        self.chunk_data[index] = Some(directory.into());
        self
    }

    /// How long the whole test may take.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Starts everything and waits until all of it is ready.
    pub fn start(self) -> Cluster {
        let watchdog = Watchdog::new(self.patience);
        let directory =
            tempfile::Builder::new().prefix("dfs-tests-").tempdir().expect("make a temporary directory");
        let root = directory.path();
        let data = self.meta_data.unwrap_or_else(|| root.join("meta"));
        let meta = Member::start("dfs-meta", "dfs-meta", root, data, &self.meta_args);
        let mut chunks = Vec::new();
        for index in 0..self.chunks {
            let name = format!("dfs-chunk-{index}");
            let data = self.chunk_data.get(index).cloned().flatten();
            let data = data.unwrap_or_else(|| root.join(format!("chunk-{index}")));
            // A small disk shared by all of them: the reserve of a real one would be most of it.
            let mut args: Vec<OsString> = vec!["--meta".into(), meta.address.clone().into()];
            args.extend(["--host".into(), format!("host{index}").into(), "--reserve".into(), "1MiB".into()]);
            args.extend(self.chunk_args.iter().cloned());
            chunks.push(Member::start(&name, "dfs-chunk", root, data, &args));
        }
        let count = chunks.len();
        let cluster = Cluster { meta, chunks, directory: Some(directory), _watchdog: watchdog };
        cluster.wait_for_nodes(count);
        cluster
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for member in self.members() {
                member.print_log();
            }
        }
        for member in self.chunks.iter().chain(std::iter::once(&self.meta)) {
            member.kill();
        }
        if std::env::var_os(KEEP).is_some()
            && let Some(directory) = self.directory.take()
        {
            eprintln!("the cluster's files are kept in {}", directory.keep().display());
        }
    }
}

impl Member {
    /// Starts one daemon for the first time: the kernel picks the port, which it keeps from then on.
    fn start(name: &str, binary: &str, root: &Path, data: PathBuf, args: &[OsString]) -> Self {
        std::fs::create_dir_all(&data).expect("make a daemon's data directory");
        let mut all: Vec<OsString> = vec!["--data".into(), data.clone().into()];
        all.extend(args.iter().cloned());
        let mut program = Program {
            name: name.to_owned(),
            path: programs::program(binary),
            args: all.clone(),
            log: root.join(format!("{name}.log")),
            parent_death_signal: Signal::SIGKILL,
        };
        program.args.extend(["--listen".into(), "127.0.0.1:0".into()]);
        let mut daemon = keeper::start(&program).expect("start a daemon");
        let address =
            daemon.wait_for_line(READY, listening_address).unwrap_or_else(|error| panic!("{error:#}"));
        all.extend(["--listen".into(), address.clone().into()]);
        program.args = all;
        Self { program, address, data, daemon: Mutex::new(Some(daemon)) }
    }

    /// Where it answers.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Where it keeps its data.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// How it is started; for running it with other arguments.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Whether it is running.
    pub fn is_running(&self) -> bool {
        self.lock().as_mut().is_some_and(|daemon| daemon.ended().is_none())
    }

    /// Its process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.lock().as_mut().and_then(|daemon| daemon.ended().is_none().then(|| daemon.pid()))
    }

    /// Kills it with SIGKILL: nothing of it runs when this returns.
    pub fn kill(&self) {
        if let Some(mut daemon) = self.lock().take() {
            daemon.kill();
        }
    }

    /// Asks it to stop and waits. `None` when it was not running.
    pub fn stop(&self) -> Option<Ending> {
        self.lock().take().map(|mut daemon| daemon.stop(STOP))
    }

    /// Stops it as a machine that hangs would (SIGSTOP), or lets it go on (SIGCONT).
    pub fn freeze(&self, frozen: bool) {
        let signal = if frozen { Signal::SIGSTOP } else { Signal::SIGCONT };
        if let Some(daemon) = self.lock().as_mut() {
            daemon.signal(signal);
        }
    }

    /// Starts it again on the same data and port and waits until it is ready.
    pub fn start_again(&self) {
        self.try_start().unwrap_or_else(|error| panic!("{error:#}"));
    }

    /// As [`Member::start_again`], for one that may refuse to start.
    pub fn try_start(&self) -> anyhow::Result<()> {
        let mut slot = self.lock();
        assert!(slot.as_mut().is_none_or(|daemon| daemon.ended().is_some()), "{} runs", self.program.name);
        let mut daemon = keeper::start(&self.program)?;
        daemon.wait_for_line(READY, listening_address)?;
        *slot = Some(daemon);
        Ok(())
    }

    /// Kills it and starts it again.
    pub fn crash(&self) {
        self.kill();
        self.start_again();
    }

    /// Everything it has written to its log.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(&self.program.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn print_log(&self) {
        print_log_tail(&self.program.name, &self.log());
    }

    fn lock(&self) -> MutexGuard<'_, Option<Daemon>> {
        // A panic while it was held can't have left a half-changed daemon behind.
        self.daemon.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Runs a future to its end on a runtime of its own.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("start a runtime");
    runtime.block_on(future)
}

/// Prints the last lines of a log, for a test that failed.
pub(crate) fn print_log_tail(name: &str, log: &str) {
    let lines: Vec<&str> = log.lines().collect();
    eprintln!("---- the end of the log of {name} ----");
    for line in &lines[lines.len().saturating_sub(40)..] {
        eprintln!("{line}");
    }
}
