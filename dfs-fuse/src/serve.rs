//! One mount from its first connection to its end: connect, mount, wait until it answers, serve, flush, leave.
//!
//! Until the mount answers, every failure leaves nothing mounted. Afterwards the process ends when the filesystem is
//! unmounted or when it is told to stop; either way everything is durable before it is gone, or the log says what was
//! not.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use dfs_client::data::DataSettings;
use dfs_client::fs::{AtimePolicy, FileSystem, Settings};
use dfs_client::session::SessionSettings;
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::adapter::{self, Ended, KernelCache};
use crate::daemon::Refusal;
use crate::mount;
use crate::options::{Atime, DEFAULT_TIMEOUT, Mount};

/// Threads for what is not answered at once, at most; they mostly wait. Half as many as there are processors: each
/// more is woken only to find that another one has taken the work.
const MAX_WORKERS: usize = 4;
/// How long a fresh mount may take to answer its first request, whatever `timeout=` says.
const FIRST_ANSWER: Duration = Duration::from_secs(60);
/// How much longer than `timeout=` the first connection may take before it is given up without the library's own word.
const CONNECT_GRACE: Duration = Duration::from_secs(10);
/// How long the kernel may take to let go of a mount that was unmounted: longer only where it was busy.
const LAST_REQUESTS: Duration = Duration::from_secs(1);

/// Serves a mount until its end. `ready` is called when it answers; when that fails, nobody waits for the mount any
/// more and it is taken back.
pub(crate) fn run(
    request: &Mount,
    target: &Path,
    ready: impl FnOnce() -> io::Result<()>,
) -> Result<(), Refusal> {
    let workers = thread::available_parallelism().map_or(1, usize::from) / 2;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers.clamp(1, MAX_WORKERS))
        .thread_name("dfs-worker")
        .enable_all()
        .build()
        .map_err(|error| Refusal::system("start threads", error))?;
    let outcome = runtime.block_on(async {
        let mut stop = Stop::listen().map_err(|error| Refusal::system("listen for signals", error))?;
        let cache = KernelCache::default();
        let fs = connect(request, target, &cache, &mut stop).await.map_err(Refusal::mount)?;
        let live = match start(request, target, &cache, &fs, ready).await {
            Ok(live) => live,
            Err(reason) => {
                end_session(&fs, &mut stop).await.unwrap_or_else(|reason| tracing::warn!("{reason}"));
                return Err(Refusal::mount(reason));
            }
        };
        tracing::info!("{} is mounted on {}", request.source.text, target.display());
        until_unmounted(target, live, &mut stop).await;
        tracing::info!("{} is unmounted, flushing", target.display());
        end_session(&fs, &mut stop).await.map_err(|reason| {
            tracing::error!("what was written last may be lost: {reason}");
            Refusal::mount(format!("flush after unmounting {}: {reason}", target.display()))
        })
    });
    // A thread that hangs in a system call must not keep the process.
    runtime.shutdown_background();
    outcome
}

/// Opens the session, within the mount's timeout.
async fn connect(
    request: &Mount,
    target: &Path,
    cache: &KernelCache,
    stop: &mut Stop,
) -> Result<Arc<FileSystem>, String> {
    let connecting = FileSystem::connect(settings(request, target, cache));
    // A mount that will wait for ever later does not now: the machine's boot may wait for it.
    let patience = request.timeout.map_or(DEFAULT_TIMEOUT, |timeout| timeout + CONNECT_GRACE);
    let connected = tokio::select! {
        connected = timeout(patience, connecting) => match connected {
            Ok(connected) => connected.map_err(|failure| failure.to_string()),
            Err(_) => Err(format!("no metadata server answered within {} s", patience.as_secs())),
        },
        signal = stop.asked() => Err(format!("stopped by {signal}")),
    };
    connected.map_err(|reason| format!("mount {}: {reason}", request.source.text))
}

/// What the client library has to know.
fn settings(request: &Mount, target: &Path, cache: &KernelCache) -> Settings {
    let host = nix::unistd::gethostname().unwrap_or_default();
    let client = format!("{} pid {} {}", host.to_string_lossy(), std::process::id(), target.display());
    let mut labels = request.labels.clone();
    if labels.host.is_empty() {
        labels.host = host.to_string_lossy().into_owned();
    }
    let mut data = DataSettings { labels, ..DataSettings::default() };
    if let Some(bytes) = request.cache_bytes {
        data.cache_bytes = bytes as usize;
    }
    if let Some(bytes) = request.dirty_bytes {
        data.dirty_budget_bytes = bytes as usize;
    }
    let cache = cache.clone();
    Settings {
        session: SessionSettings { metas: request.source.servers.clone(), client, timeout: request.timeout },
        data,
        subdir: request.source.subdirectory_path(),
        keys: request.keys.clone(),
        // `ro` is the kernel's to enforce, so that a remount can change it.
        read_only: false,
        sync: request.flags.sync,
        atime: match request.atime {
            _ if request.flags.read_only => AtimePolicy::Never,
            Atime::Relative => AtimePolicy::Relative,
            Atime::Strict => AtimePolicy::Strict,
            Atime::Never => AtimePolicy::Never,
        },
        invalidate: Some(Arc::new(move |ino| cache.invalidate(ino))),
    }
}

/// A mount that answers.
struct Live {
    ended: Ended,
    device: u64,
}

/// Mounts, waits for the first answer and tells that it came. A failure leaves nothing mounted.
async fn start(
    request: &Mount,
    target: &Path,
    cache: &KernelCache,
    fs: &Arc<FileSystem>,
    ready: impl FnOnce() -> io::Result<()>,
) -> Result<Live, String> {
    let kernel = mount::attach(request, target)?;
    let begun = async {
        let ended = adapter::serve(fs.clone(), kernel, cache, Handle::current())
            .map_err(|error| format!("greet the kernel: {error}"))?;
        let device = first_answer(target).await?;
        mount::raise_read_ahead(device);
        // EPIPE: the command that should have been told was killed.
        ready().map_err(|error| format!("tell that the mount is ready: {error}"))?;
        Ok(Live { ended, device })
    };
    begun.await.inspect_err(|_| mount::abandon(target))
}

/// Asks the mount for its root, from a thread of its own: a mount that does not answer must not hang the one who can
/// take it back.
async fn first_answer(target: &Path) -> Result<u64, String> {
    let (sender, answer) = oneshot::channel();
    let path = target.to_owned();
    thread::spawn(move || sender.send(mount::ask(&path)));
    match timeout(FIRST_ANSWER, answer).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) | Err(_) => Err(format!("the mount on {} does not answer", target.display())),
    }
}

/// Returns when the kernel has let go of the mount, or soon after a signal to stop.
async fn until_unmounted(target: &Path, live: Live, stop: &mut Stop) {
    let Live { mut ended, device } = live;
    let signal = tokio::select! {
        outcome = &mut ended => return report(target, device, outcome),
        signal = stop.asked() => signal,
    };
    tracing::info!("{signal}: unmounting {}", target.display());
    let path = target.to_owned();
    // Unmounting writes mapped pages back through this very mount, so the runtime must go on meanwhile.
    match tokio::task::spawn_blocking(move || mount::detach(&path, device)).await {
        Ok(Ok(_)) => {}
        Ok(Err(reason)) => tracing::error!("{reason}"),
        Err(panic) => tracing::error!("unmount: {panic}"),
    }
    match timeout(LAST_REQUESTS, ended).await {
        Ok(outcome) => report(target, device, outcome),
        Err(_) => tracing::warn!("{} was busy: who still uses it gets errors from now on", target.display()),
    }
}

/// A connection that did not end with an unmount leaves a dead mount: it is taken away.
fn report(target: &Path, device: u64, outcome: Result<io::Result<()>, oneshot::error::RecvError>) {
    match outcome {
        Ok(Ok(())) => return,
        Ok(Err(error)) => tracing::error!("the connection to the kernel broke: {error}"),
        Err(_) => tracing::error!("the thread that serves the kernel died"),
    }
    if let Err(reason) = mount::detach(target, device) {
        tracing::error!("{reason}");
    }
}

/// Makes everything durable and ends the session. Whoever cannot wait for servers that are away interrupts it.
async fn end_session(fs: &FileSystem, stop: &mut Stop) -> Result<(), String> {
    tokio::select! {
        ended = fs.shutdown() => ended.map_err(|failure| failure.to_string()),
        () = stop.insisted() => Err("given up at an interrupt".to_owned()),
    }
}

/// Signals that ask to stop.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Stop {
    fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for any of them and names it.
    async fn asked(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.hang_up.recv() => "SIGHUP",
        }
    }

    /// Waits for an interrupt: service managers send SIGTERM to what is ending anyway.
    async fn insisted(&mut self) {
        self.interrupt.recv().await;
    }
}
