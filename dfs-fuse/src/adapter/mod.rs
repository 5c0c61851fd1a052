//! The kernel's requests, handed to the client library: the only folder that names fuser.
//!
//! `filesystem` has one method for each kind of request and no more sense than to translate. What is at hand is answered
//! on the event loop; everything else goes through `hand` to the runtime, and back to the kernel through `reply`. `opening`,
//! `file_io`, `xattrs` and `listing` are the requests that take more than that, over the open directories that
//! `directory` keeps. `notify` drops what the kernel caches, `told`
//! remembers what it was told, `init` settles what both sides can, `convert` and `lock` translate types, and
//! `raw_request` reads what fuser keeps to itself.
//!
//! Invariants: the event loop never waits for a server and never calls back into the kernel; every request is answered
//! exactly once; requests in flight, and the bytes they hold, are bounded.

mod convert;
mod directory;
mod file_io;
mod filesystem;
mod hand;
mod init;
mod listing;
mod lock;
mod notify;
mod opening;
mod raw_request;
mod reply;
mod told;
mod xattrs;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;

use dfs_client::fs::FileSystem;
use fuser::{Config, Session, SessionACL};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

pub(crate) use notify::KernelCache;

use convert::NodeIds;
use reply::Adapter;

/// Threads that read requests from the kernel. Two make small files slower (wake-ups across cores cost more than they
/// win), and sequential I/O is bounded by copying, not by this thread.
const EVENT_LOOPS: usize = 1;

/// Resolves when the kernel has let go of the mount: with an error where the connection broke.
pub(crate) type Ended = oneshot::Receiver<io::Result<()>>;

/// Greets the kernel at the other end of an open /dev/fuse and serves it on threads of their own.
pub(crate) fn serve(
    fs: Arc<FileSystem>,
    kernel: OwnedFd,
    cache: &KernelCache,
    runtime: Handle,
) -> io::Result<Ended> {
    let nodes = NodeIds::new(fs.root());
    let mut config = Config::default();
    config.n_threads = Some(EVENT_LOOPS);
    // Whom the kernel lets in is a mount option; all who get here are answered.
    let adapter = Adapter::new(fs, nodes, cache.clone(), runtime);
    let session = Session::from_fd(adapter, kernel, SessionACL::All, config)?;
    cache.connect(session.notifier(), nodes);
    let (end, ended) = oneshot::channel();
    thread::Builder::new().name("fuse".to_owned()).spawn(move || {
        // Nobody listens any more where the process is on its way out already.
        let _ = end.send(session.run());
    })?;
    Ok(ended)
}
