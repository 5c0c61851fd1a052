//! What the state machine does alone, without the network: creates and lookups per second, one at a time and many at
//! once, and what a store full of files takes in memory and on disk.
//!
//! ```text
//! cargo bench -p dfs-meta -- [--files 1000000] [--seconds 5] [--callers 64] [--cache 256] [--dir DIR]
//! ```

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use dfs_meta::machine::{End, Handle, Machine, startup};
use dfs_meta::ops::Settings;
use dfs_meta::store::Store;
use dfs_meta::store::embedded::EmbeddedStore;
use dfs_meta::store::space::Space;
use dfs_proto::meta::{Create, GetAttr, Lookup, OpenSession, Request, SessionOpened, reply, request};
use dfs_proto::{Class, ClusterId, FileKind, PROTOCOL_VERSION, Timestamp, limits};

/// Files in one directory.
const PER_DIRECTORY: u64 = 1000;

#[derive(Parser)]
struct Options {
    /// Make so many files first, and say what they take
    #[arg(long, default_value_t = 100_000)]
    files: u64,
    /// Measure each number for so long
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Callers at once where many call; at most as many as a session has slots
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=i64::from(limits::SESSION_SLOTS)))]
    callers: u32,
    /// The store's cache in MiB
    #[arg(long, default_value_t = 256)]
    cache: u64,
    /// Where to make the store; a temporary directory otherwise
    #[arg(long)]
    dir: Option<PathBuf>,
    /// cargo gives it to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

/// A machine with one session.
struct Rig {
    machine: Machine,
    session: SessionOpened,
    /// Of each slot: its last number.
    numbers: Vec<AtomicU64>,
    store: Arc<dyn Store>,
}

#[tokio::main]
async fn main() {
    let options = Options::parse();
    let temporary = tempfile::tempdir().expect("make a temporary directory");
    let directory = options.dir.clone().unwrap_or_else(|| temporary.path().to_owned()).join("store");
    let rig = Arc::new(Rig::open(&directory, options.cache << 20).await);
    let duration = Duration::from_secs(options.seconds);

    let started = Instant::now();
    let directories = options.files.div_ceil(PER_DIRECTORY).max(1);
    let inos = rig.clone().make_tree(directories, options.files, options.callers).await;
    println!("{} files made in {:.1} s", options.files, started.elapsed().as_secs_f64());
    rig.report();

    let callers = options.callers;
    let create = |rig: Arc<Rig>, caller: u32, turn: u64, inos: Arc<Vec<u64>>| async move {
        let parent = inos[(turn % inos.len() as u64) as usize];
        rig.create(caller, parent, &format!("bench-{caller}-{turn}"), FileKind::Regular).await;
    };
    let files = options.files;
    let lookup = move |rig: Arc<Rig>, caller: u32, turn: u64, inos: Arc<Vec<u64>>| async move {
        // Far apart, so that each is in another part of the store.
        let file = (turn * 7919 + u64::from(caller) * 104_729) % files.max(1);
        rig.lookup(inos[(file / PER_DIRECTORY) as usize], &file.to_string()).await;
    };
    let inos = Arc::new(inos);
    for (name, callers) in [("single", 1), ("grouped", callers)] {
        let (rate, median) = measure(&rig, &inos, callers, duration, create).await;
        println!("creates {name:8} {callers:3} callers {rate:10.0} /s  median {median:6.0} µs");
    }
    if files > 0 {
        for (name, callers) in [("single", 1), ("grouped", callers)] {
            let (rate, median) = measure(&rig, &inos, callers, duration, lookup).await;
            println!("lookups {name:8} {callers:3} callers {rate:10.0} /s  median {median:6.0} µs");
        }
    }
    rig.report();

    let rig = Arc::into_inner(rig).expect("all callers are done");
    assert_eq!(rig.machine.stop(), End::Stopped);
    drop(rig.store);
    let started = Instant::now();
    let rig = Rig::open(&directory, options.cache << 20).await;
    rig.attr(1).await;
    println!("opened again in {:.2} s", started.elapsed().as_secs_f64());
    rig.machine.stop();
}

impl Rig {
    async fn open(directory: &std::path::Path, cache_bytes: u64) -> Self {
        let store: Arc<dyn Store> =
            Arc::new(EmbeddedStore::open(directory, cache_bytes).expect("open the store"));
        let mut settings = Settings::default();
        let cluster = ClusterId([1; 16]);
        let live = startup::prepare(&*store, &mut settings, cluster, &Class::default(), Timestamp::now())
            .expect("prepare the store");
        let space = Arc::new(Space::set_aside(store.clone(), 0).expect("nothing is asked for"));
        let machine = Machine::start(store.clone(), live, settings, space).expect("start the machine");
        let op = OpenSession { protocol: PROTOCOL_VERSION, ..OpenSession::default() };
        let session = match call(&machine.handle(), request::Op::OpenSession(op), Request::default()).await {
            reply::Result::SessionOpened(opened) => opened,
            other => panic!("{other:?}"),
        };
        let numbers = (0..limits::SESSION_SLOTS).map(|_| AtomicU64::new(0)).collect();
        Self { machine, session, numbers, store }
    }

    async fn create(&self, slot: u32, parent: u64, name: &str, kind: FileKind) -> u64 {
        let number = self.numbers[slot as usize].fetch_add(1, Ordering::Relaxed) + 1;
        let (session, epoch) = (self.session.session, self.session.epoch);
        let op = Create {
            parent,
            name: name.to_owned().into(),
            kind: kind.into(),
            mode: 0o755,
            exclusive: true,
            ..Create::default()
        };
        let envelope = Request { session, epoch, slot, number, ..Request::default() };
        match call(&self.machine.handle(), request::Op::Create(op), envelope).await {
            reply::Result::Attr(attr) => attr.ino,
            reply::Result::Opened(opened) => opened.attr.expect("a created file has attributes").ino,
            other => panic!("{other:?}"),
        }
    }

    async fn lookup(&self, parent: u64, name: &str) {
        let op = Lookup { parent, name: name.to_owned().into() };
        call(&self.machine.handle(), request::Op::Lookup(op), Request::default()).await;
    }

    async fn attr(&self, ino: u64) {
        call(&self.machine.handle(), request::Op::GetAttr(GetAttr { ino }), Request::default()).await;
    }

    /// Directories with files named by their numbers. The directories' inode numbers.
    async fn make_tree(self: Arc<Self>, directories: u64, files: u64, callers: u32) -> Vec<u64> {
        let mut inos = Vec::new();
        for directory in 0..directories {
            inos.push(self.create(0, 1, &format!("directory-{directory}"), FileKind::Directory).await);
        }
        let shared = Arc::new(inos.clone());
        let tasks = (0..callers).map(|caller| {
            let (rig, inos) = (self.clone(), shared.clone());
            tokio::spawn(async move {
                for file in (u64::from(caller)..files).step_by(callers as usize) {
                    let parent = inos[(file / PER_DIRECTORY) as usize];
                    rig.create(caller, parent, &file.to_string(), FileKind::Regular).await;
                }
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.expect("make files");
        }
        inos
    }

    fn report(&self) {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024
        };
        let disk = self.store.size_bytes().expect("ask the store for its size") >> 20;
        println!("resident {} MiB (at most {} MiB), on disk {disk} MiB", field("VmRSS"), field("VmHWM"));
    }
}

async fn call(handle: &Handle, op: request::Op, envelope: Request) -> reply::Result {
    let reply = handle.call(Request { op: Some(op), ..envelope }).await.expect("the machine runs");
    match reply.result.expect("a reply has a result") {
        reply::Result::Error(error) => panic!("{error:?}"),
        result => result,
    }
}

/// Lets `callers` do the same over and over. How often a second all of them did it, and how long once takes.
async fn measure<F: Future<Output = ()> + Send + 'static>(
    rig: &Arc<Rig>,
    inos: &Arc<Vec<u64>>,
    callers: u32,
    duration: Duration,
    once: impl Fn(Arc<Rig>, u32, u64, Arc<Vec<u64>>) -> F + Copy + Send + 'static,
) -> (f64, f64) {
    // Names differ from those of earlier measurements.
    let first = u64::from(callers) << 32;
    let started = Instant::now();
    let tasks = (0..callers).map(|caller| {
        let (rig, inos) = (rig.clone(), inos.clone());
        tokio::spawn(async move {
            let mut times = Vec::new();
            while started.elapsed() < duration {
                let begin = Instant::now();
                once(rig.clone(), caller, first + times.len() as u64, inos.clone()).await;
                times.push(begin.elapsed());
            }
            times
        })
    });
    let mut times = Vec::new();
    for task in tasks.collect::<Vec<_>>() {
        times.extend(task.await.expect("call the machine"));
    }
    let rate = times.len() as f64 / started.elapsed().as_secs_f64();
    times.sort_unstable();
    (rate, times[times.len() / 2].as_secs_f64() * 1e6)
}
