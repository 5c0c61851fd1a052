//! The chunk daemon: settings → daemon, until SIGTERM or SIGINT.
//!
//! Exits with 0 after a clean stop, 2 when the settings are wrong, 1 when anything else is.

use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use dfs_chunk::config::{Config, Flags};
use dfs_chunk::daemon;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

/// Disk operations that hang must not keep a stopped daemon alive: what they write was not acknowledged.
const THREADS_DEADLINE: Duration = Duration::from_secs(1);
/// Threads that serve connections, at most; disks have their own. Half as many as there are processors: each more is
/// woken only to find that another one has taken the work.
const MAX_NETWORK_THREADS: usize = 4;

fn main() -> ExitCode {
    let config = match Config::load(Flags::parse()) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("dfs-chunk: {error:#}");
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
            eprintln!("dfs-chunk: cannot start threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(run(config));
    runtime.shutdown_timeout(THREADS_DEADLINE);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dfs-chunk: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the whole daemon; returns when it was asked to stop and has.
async fn run(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("waiting for SIGINT")?;
    raise_open_files();
    let mut running = tokio::select! {
        running = daemon::start(&config) => running?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    daemon::announce(&running, config.ready_file.as_deref()).context("telling that the daemon is ready")?;
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
        _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
        failure = running.ended() => return Err(failure.into()),
    }
    // Only systemd listens, and it does not need to know.
    drop(sd_notify::notify(&[sd_notify::NotifyState::Stopping]));
    running.stop().await;
    Ok(())
}

/// As many open files as the system allows: shard files are kept open, and every connection is one.
fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}
