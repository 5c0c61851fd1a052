//! Looks after a dfs cluster: one subcommand per file of the library.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use dfs_admin::{class, dev, info, status};
use nix::sys::signal::{SigHandler, Signal, signal};

/// Looks after a dfs cluster
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

/// Where the metadata server is
#[derive(Debug, clap::Args)]
struct Meta {
    /// The metadata servers: HOST[:PORT][,HOST[:PORT]]. By default the one on this machine
    #[arg(long, env = "DFS_META", value_name = "ADDRESS")]
    meta: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start a whole cluster on this machine and mount it, until Ctrl-C
    Dev(dev::Options),
    /// Tell how the cluster is: exit code 0 healthy, 1 degraded, 2 data at risk or unreachable
    Status {
        #[command(flatten)]
        meta: Meta,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Tell where a file's bytes are
    Info {
        #[command(flatten)]
        meta: Meta,
        /// For programs
        #[arg(long)]
        json: bool,
        /// A path on a mount, or dfs:/PATH inside the filesystem
        path: PathBuf,
    },
    /// Say and see how what is made in a directory is kept
    Class {
        #[command(flatten)]
        meta: Meta,
        #[command(subcommand)]
        verb: class::Verb,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("dfs-admin: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    // Everything runs on this thread: the children of `dev` are bound to the thread that starts them.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
    if !matches!(arguments.verb, Verb::Dev(_)) {
        // As other programs that print: `dfs-admin status | head` ends quietly.
        // SAFETY: the default action is no handler that could do anything wrong.
        unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }.context("reset SIGPIPE")?;
    }
    match arguments.verb {
        Verb::Dev(options) => dev::run(&options),
        Verb::Status { meta, json } => runtime.block_on(status::run(meta.meta.as_deref(), json)),
        Verb::Info { meta, json, path } => {
            runtime.block_on(info::run(meta.meta.as_deref(), &path, json))?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Class { meta, verb } => {
            runtime.block_on(class::run(meta.meta.as_deref(), &verb))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
