//! The metadata server: settings → store → machine → service, until SIGTERM or SIGINT.
//!
//! Exits with 0 after a clean stop, 2 when the settings are wrong, 1 when anything else is.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use anyhow::Context;
use clap::Parser;
use dfs_meta::background;
use dfs_meta::config::{Config, Flags};
use dfs_meta::machine::{End, Machine, startup};
use dfs_meta::service::{self, Service};
use dfs_meta::status::StatusBoard;
use dfs_meta::store::Store;
use dfs_meta::store::embedded::EmbeddedStore;
use dfs_meta::store::space::Space;
use dfs_proto::{ClusterId, Timestamp};
use tokio::signal::unix::{SignalKind, signal};

/// Threads that serve connections, at most; the machine has its own. Half as many as there are processors: each more is
/// woken only to find that another one has taken the work.
const MAX_NETWORK_THREADS: usize = 4;

fn main() -> ExitCode {
    let config = match Config::load(Flags::parse()) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("dfs-meta: {error:#}");
            return ExitCode::from(2);
        }
    };
    let filter = tracing_subscriber::EnvFilter::new(&config.log_level);
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.log_json {
        true => log.json().init(),
        false => log.with_ansi(false).init(),
    }
    let threads = thread::available_parallelism().map_or(1, usize::from) / 2;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads.clamp(1, MAX_NETWORK_THREADS))
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!("cannot start threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(serve(config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the whole server; returns when it was asked to stop and has.
async fn serve(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("waiting for SIGINT")?;

    std::fs::create_dir_all(&config.data).with_context(|| format!("making {}", config.data.display()))?;
    let reserve = config.reserve_on_disk()?;
    let store: Arc<dyn Store> = Arc::new(
        EmbeddedStore::open_within(&config.data, config.cache_bytes, reserve).context("opening the store")?,
    );
    let mut settings = config.settings();
    let fresh = ClusterId(*uuid::Uuid::new_v4().as_bytes());
    let live = startup::prepare(&*store, &mut settings, fresh, &config.default_class, Timestamp::now())?;
    let boot = live.sessions.boot();

    let listener =
        service::listen(config.listen).await.with_context(|| format!("listening on {}", config.listen))?;
    let address = listener.local_addr().context("asking for the address that was bound")?;
    let space = Arc::new(Space::set_aside(store.clone(), reserve)?);
    let machine = Machine::start(store.clone(), live, settings.clone(), space.clone())
        .context("starting the machine's threads")?;
    let handle = machine.handle();
    let workers = background::start(&handle, space.clone(), settings.session_timeout);
    let status = Arc::new(StatusBoard::new(store, handle.clone(), settings.clone(), space));

    let stop = {
        let handle = handle.clone();
        async move {
            tokio::select! {
                _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
                _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
                _ = handle.ended() => {}
            }
            drop(sd_notify::notify(&[sd_notify::NotifyState::Stopping]));
        }
    };
    let mut out = std::io::stdout();
    writeln!(out, "dfs-meta: cluster {} listening on {address}", settings.cluster)?;
    out.flush()?;
    tracing::info!(cluster = %settings.cluster, %address, boot, data = %config.data.display(), "ready");
    sd_notify::notify(&[sd_notify::NotifyState::Ready])
        .context("telling systemd that the server is ready")?;

    let service = Service::new(handle, status);
    let served = service.serve(listener, stop).await;
    drop(workers);
    let end = tokio::task::spawn_blocking(move || machine.stop()).await.context("stopping the machine")?;
    served.context("serving")?;
    match end {
        End::Stopped => Ok(()),
        End::Failed(reason) => anyhow::bail!("the metadata server ended: {reason}"),
    }
}
