//! `dfs-admin verify`: whether every shard is what was written, and the digest of a tree.
//!
//! | file | what it does |
//! |---|---|
//! | `chunks` | goes over chunks, reports what is bad |
//! | `tree` | walks a tree and reads its files |
//! | `digest` | how the digest of a tree is made up |
//! | `pace` | keeps it to a rate |
//! | `chunk_set` | which chunks the files of a tree name |
//! | `report` | what was found: counted, judged, printed |
//! | `progress` | the bar on a terminal |

mod chunk_set;
mod chunks;
mod digest;
mod pace;
mod progress;
mod report;
mod tree;

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail};
use dfs_proto::limits::{MAX_FILE_SIZE, MAX_PLAN_EXTENTS};
use dfs_proto::meta::{Plan, reply, request};
use dfs_proto::{ClusterId, Code};
use rustix::fs::FileType;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use self::chunk_set::ChunkSet;
use self::pace::Pace;
use self::progress::Progress;
use self::report::{Outcome, Report, Tree};
use crate::find;
use crate::locate::locate;
use crate::server::{Server, unexpected};

/// Files whose chunks are asked for at a time.
const PARALLEL_FILES: usize = 16;
/// What the walk may be ahead of that.
const QUEUE: usize = 1024;
/// How often a file that changes is asked for anew.
const MAX_CHANGES: u32 = 5;

/// What to verify.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Verify every chunk of the cluster
    #[arg(long, conflicts_with = "path", required_unless_present = "path")]
    all: bool,
    /// At most so many MiB of chunks per second; of each, all copies or shards are read
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..))]
    rate: Option<u64>,
    /// For programs
    #[arg(long)]
    json: bool,
    /// A file or a directory on a mount: its chunks are verified, and its digest is told
    path: Option<PathBuf>,
}

/// Does it. The exit code says how it went; when nothing could be verified, it is that of what could not be checked.
pub async fn run(meta: Option<&str>, options: &Options) -> ExitCode {
    let progress = Progress::new(!options.json);
    let verified = verify(meta, options, &progress).await;
    progress.end();
    let verified = verified.and_then(|report| {
        match options.json {
            true => println!("{}", serde_json::to_string_pretty(&report)?),
            false => print!("{}", report.text()),
        }
        Ok(report.result)
    });
    let outcome = verified.unwrap_or_else(|error| {
        match options.json {
            true => println!("{}", json!({ "result": Outcome::Failed, "error": format!("{error:#}") })),
            false => eprintln!("dfs-admin: {error:#}"),
        }
        Outcome::Failed
    });
    ExitCode::from(match outcome {
        Outcome::Good => 0,
        Outcome::BadShards => 1,
        Outcome::Failed => 2,
    })
}

async fn verify(meta: Option<&str>, options: &Options, progress: &Progress) -> Result<Report> {
    let server = match &options.path {
        None => find::server(meta).await?,
        Some(path) => {
            check(path)?;
            locate(meta, path).await?.0
        }
    };
    let status = server.status().await?;
    let cluster =
        ClusterId::from_slice(&status.cluster).context("the metadata server tells no cluster's id")?;
    let mut report = Report::new();
    match &options.path {
        None => {
            progress.start_chunks(status.classes.iter().map(|class| class.chunks).sum());
            chunks::verify(&server, cluster, None, Pace::new(options.rate), progress, &mut report).await?;
        }
        Some(path) => {
            progress.start_tree();
            let (tree, named) = read_tree(&server, path, progress).await?;
            report.tree = Some(tree);
            progress.start_chunks(named.len());
            let pace = Pace::new(options.rate);
            chunks::verify(&server, cluster, Some(&named), pace, progress, &mut report).await?;
        }
    }
    report.judge();
    Ok(report)
}

/// Whether a path can have a digest.
fn check(path: &Path) -> Result<()> {
    if path.as_os_str().as_bytes().starts_with(b"dfs:") {
        bail!(
            "the contents of files are read through a mount: name a path on one in place of {}",
            path.display()
        );
    }
    let kind = path.symlink_metadata().with_context(|| format!("look at {}", path.display()))?.file_type();
    if kind.is_symlink() {
        bail!("{} is a symbolic link: name what it points to", path.display());
    }
    if !kind.is_file() && !kind.is_dir() {
        bail!("{} is neither a file nor a directory", path.display());
    }
    Ok(())
}

/// What the walk of a tree tells.
enum Event {
    File(u64),
    Failed(PathBuf, String),
    OtherMount(PathBuf),
}

/// Counts, and hands on what has to be asked for.
struct Walker {
    events: mpsc::Sender<Event>,
    progress: Progress,
    counted: Tree,
}

impl Walker {
    fn send(&self, event: Event) {
        // Who listens has given up, and the walk's result is of no use any more.
        let _ = self.events.blocking_send(event);
    }
}

impl tree::Observer for Walker {
    fn file(&mut self, ino: u64) {
        self.send(Event::File(ino));
    }

    fn read(&mut self, bytes: u64) {
        self.counted.bytes += bytes;
    }

    fn object(&mut self, kind: FileType) {
        *match kind {
            FileType::RegularFile => &mut self.counted.files,
            FileType::Directory => &mut self.counted.directories,
            FileType::Symlink => &mut self.counted.symlinks,
            _ => &mut self.counted.others,
        } += 1;
        if kind == FileType::RegularFile {
            self.progress.file();
        }
    }

    fn failed(&mut self, path: &Path, error: &io::Error) {
        self.send(Event::Failed(path.to_owned(), error.to_string()));
    }

    fn other_mount(&mut self, path: &Path) {
        self.send(Event::OtherMount(path.to_owned()));
    }
}

/// Reads a tree through its mount: its digest, and the chunks that its files name.
async fn read_tree(server: &Server, path: &Path, progress: &Progress) -> Result<(Tree, ChunkSet)> {
    let (events, mut told) = mpsc::channel(QUEUE);
    let mut walker = Walker { events, progress: progress.clone(), counted: Tree::default() };
    let root = path.to_owned();
    let walk = tokio::task::spawn_blocking(move || {
        let digest = tree::digest(&root, &mut walker);
        (digest, walker.counted)
    });
    let named: Arc<Mutex<ChunkSet>> = Arc::default();
    let mut asking: JoinSet<(u64, Result<()>)> = JoinSet::new();
    let mut found = Tree::default();
    let note = |found: &mut Tree, path: PathBuf, error: String| {
        progress.say(&format!("{} cannot be read: {error}", path.display()));
        found.add_failure(path, error);
    };
    let asked = |found: &mut Tree, (ino, result): (u64, Result<()>)| {
        if let Err(error) = result {
            note(found, format!("inode {ino}").into(), format!("ask for its chunks: {error:#}"));
        }
    };
    while let Some(event) = told.recv().await {
        match event {
            Event::Failed(path, error) => note(&mut found, path, error),
            Event::OtherMount(path) => {
                progress.warn(&format!("{} is another filesystem: left out", path.display()));
                found.add_mount(path);
            }
            Event::File(ino) => {
                if asking.len() >= PARALLEL_FILES
                    && let Some(answer) = asking.join_next().await
                {
                    asked(&mut found, answer?);
                }
                let (server, named) = (server.clone(), Arc::clone(&named));
                asking.spawn(async move { (ino, ask_chunks(&server, ino, &named).await) });
            }
        }
    }
    while let Some(answer) = asking.join_next().await {
        asked(&mut found, answer?);
    }
    let (digest, counted) = walk.await.context("walk the tree")?;
    let tree = Tree {
        path: path.to_owned(),
        digest: digest.as_ref().map(digest::hex),
        failed: found.failed,
        failures: found.failures,
        other_mounts: found.other_mounts,
        ..counted
    };
    let named = std::mem::take(&mut *named.lock().expect(POISONED));
    Ok((tree, named))
}

const POISONED: &str = "nothing panics while it holds the set of chunks";

/// Notes every chunk that a file's extents name. One that changes meanwhile is asked for again from its start: then some
/// chunks may be noted that it names no more.
async fn ask_chunks(server: &Server, ino: u64, named: &Mutex<ChunkSet>) -> Result<()> {
    let (mut offset, mut version, mut changes) = (0, None, 0);
    loop {
        let plan = Plan { ino, offset, length: MAX_FILE_SIZE - offset, max_extents: MAX_PLAN_EXTENTS };
        let page = match chunks::call(server, request::Op::Plan(plan)).await {
            Ok(reply::Result::Plan(page)) => page,
            Ok(other) => bail!(unexpected(&other)),
            // Removed since it was read.
            Err(failure) if failure.code == Code::Stale => return Ok(()),
            Err(failure) => return Err(failure.into()),
        };
        let attr = page.attr.context("a plan came without attributes")?;
        {
            let mut named = named.lock().expect(POISONED);
            for extent in &page.extents {
                if named.insert(extent.chunk).is_err() {
                    bail!(
                        "the tree names more chunks than are kept in memory: verify --all, or parts of the tree"
                    );
                }
            }
        }
        if version.is_some_and(|version| version != attr.version) {
            changes += 1;
            if changes > MAX_CHANGES {
                bail!("the file changes faster than its extents can be read: try again");
            }
            (offset, version) = (0, None);
            continue;
        }
        if page.covered_end >= attr.size || page.covered_end <= offset {
            return Ok(());
        }
        (offset, version) = (page.covered_end, Some(attr.version));
    }
}
