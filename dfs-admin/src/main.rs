//! Looks after a dfs cluster: one subcommand per file of the library.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use dfs_admin::{class, dev, info, key, status, verify};
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
    #[arg(long, env = "DFS_META", value_name = "ADDRESS", global = true)]
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
    /// Make, see and change the keys that directories are encrypted with
    Key {
        #[command(flatten)]
        meta: Meta,
        #[command(subcommand)]
        verb: key::Verb,
    },
    /// Verify every shard, and tell the digest of a tree: exit code 0 good, 1 some shard is bad or lost but every chunk can
    /// be read, 2 something can't be read or could not be checked
    ///
    /// Every shard is read and compared with the SHA-256 that the chunk's writer computed; what is found bad is reported to
    /// the metadata server. The digest of a tree (SHA-256) is the same wherever the tree is and however it is kept: it
    /// covers the bytes of files, names, kinds, permission bits and the targets of symbolic links. Owners, times and extended
    /// attributes are not in it, and hard links count as files. What is mounted inside the tree counts as an empty directory.
    Verify {
        #[command(flatten)]
        meta: Meta,
        #[command(flatten)]
        options: verify::Options,
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
    // Nearly everything runs on this thread: the children of `dev` are bound to the thread that starts them.
    let mut builder = match arguments.verb {
        // Many chunks are read and hashed at a time.
        Verb::Verify { .. } => tokio::runtime::Builder::new_multi_thread(),
        _ => tokio::runtime::Builder::new_current_thread(),
    };
    let runtime = builder.enable_all().build().context("start a runtime")?;
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
        Verb::Key { meta, verb } => {
            runtime.block_on(key::run(meta.meta.as_deref(), &verb))?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Verify { meta, options } => Ok(runtime.block_on(verify::run(meta.meta.as_deref(), &options))),
    }
}
