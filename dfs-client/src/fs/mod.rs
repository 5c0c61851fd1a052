//! The face of the library: a POSIX filesystem as async functions on inodes and open handles, free of FUSE and Linux.
//!
//! Coherence is close-to-open, and by locks: an open fetches fresh attributes, a close flushes, acquiring a lock
//! revalidates the inode and releasing one flushes it first. Permission checks are the caller's (the kernel's, with
//! `default_permissions`); everything else that POSIX asks of a call happens here or at the metadata server.
//! Every function is cancelled by dropping its future; changes that were sent by then still take effect once.
//!
//! Lock order: `Inodes::table`, then `OpenInode::latest`, then whatever `data` locks. None is held across an await.

mod answers;
mod attributes;
mod file_io;
mod handles;
mod inodes;
mod kernel;
mod locks;
mod namespace;
mod observer;
mod open;
mod ranges;
#[cfg(test)]
mod tests;
mod versions;
mod xattr;

use std::sync::Arc;

use dfs_proto::meta::{FsStats, Lookup, StatFs, request};
use dfs_proto::{Attr, Code, Failure, FileKind, Ino};
use futures::future::BoxFuture;

use crate::data::{DataPlane, DataSettings};
use crate::keys::{KeyFiles, Keyring};
use crate::session::{MetaCalls, Session, SessionSettings};

pub use handles::HandleId;
pub use namespace::NewFile;
pub use open::OpenOptions;

use handles::Handles;
use observer::{Mounted, Observed};

/// Drops the kernel's cached pages and attributes of an inode; resolves when they are gone. It is awaited by tasks,
/// never by a thread that serves the kernel's requests.
pub type Invalidate = Arc<dyn Fn(Ino) -> BoxFuture<'static, ()> + Send + Sync>;

/// When reading a file changes its access time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AtimePolicy {
    /// When it is not newer than the last change, or older than a day.
    #[default]
    Relative,
    /// At every read.
    Strict,
    /// Never.
    Never,
}

/// How to mount a cluster.
#[derive(Clone, Default)]
pub struct Settings {
    /// How to reach the metadata server.
    pub session: SessionSettings,
    /// How data is cached, buffered and moved. Its timeout is the session's, and the kernel is told by `invalidate`.
    pub data: DataSettings,
    /// The directory to take for the root, a path from the cluster's root; empty: that root itself.
    pub subdir: Vec<u8>,
    /// The keys that it has.
    pub keys: KeyFiles,
    /// Refuse every change with EROFS.
    pub read_only: bool,
    /// Every write is durable when it returns.
    pub sync: bool,
    /// When reading changes the access time.
    pub atime: AtimePolicy,
    /// Where there is a kernel with a cache.
    pub invalidate: Option<Invalidate>,
}

/// A mounted cluster.
pub struct FileSystem {
    session: Arc<Session>,
    keys: Arc<Keyring>,
    plane: Arc<DataPlane>,
    mounted: Arc<Mounted>,
    handles: Handles,
    root: Ino,
    read_only: bool,
    sync: bool,
    atime: AtimePolicy,
}

impl FileSystem {
    /// Opens a session and resolves the root. Waits for the metadata server as long as the timeout says.
    pub async fn connect(settings: Settings) -> Result<Arc<Self>, Failure> {
        let timeout = settings.session.timeout.unwrap_or_default();
        let session = Arc::new(Session::connect(settings.session).await?);
        let mounted = Mounted::new(settings.invalidate);
        session.attach(Arc::downgrade(&mounted) as _);
        let observed = Arc::new(Observed::new(session.clone(), mounted.clone()));
        let stale = Arc::downgrade(&mounted);
        let on_stale = Arc::new(move |ino| {
            if let Some(mounted) = stale.upgrade() {
                mounted.drop_pages(ino);
            }
        });
        let data = DataSettings { timeout, on_stale, ..settings.data };
        let keys = Arc::new(Keyring::open(session.clone(), &settings.keys).await?);
        let plane = DataPlane::new(observed, session.cluster(), keys.clone(), data);
        mounted.inodes.start_closer(session.clone());
        let root = resolve(&*session, &settings.subdir).await?;
        Ok(Arc::new(Self {
            session,
            keys,
            plane,
            mounted,
            handles: Handles::default(),
            root,
            read_only: settings.read_only,
            sync: settings.sync,
            atime: settings.atime,
        }))
    }

    /// Makes everything durable, gives up locks and open files, ends the session. The first failure is returned, but
    /// nothing is left out for it.
    pub async fn shutdown(&self) -> Result<(), Failure> {
        let flushed = self.plane.flush_all().await;
        self.handles.clear();
        self.mounted.inodes.close_all().await;
        flushed.and(self.session.close().await)
    }

    /// The root directory of this mount.
    pub fn root(&self) -> Ino {
        self.root
    }

    /// Space and number of files of the whole cluster.
    pub async fn statfs(&self) -> Result<FsStats, Failure> {
        answers::fs_stats(self.session.read(request::Op::StatFs(StatFs {})).await?)
    }

    /// EROFS on a mount that is read only.
    fn writable(&self) -> Result<(), Failure> {
        match self.read_only {
            true => Err(Failure::new(Code::ReadOnly, "the filesystem is mounted read only")),
            false => Ok(()),
        }
    }

    /// Attributes after a change of our own, as they are shown.
    fn changed(&self, attr: Attr) -> Attr {
        self.mounted.changed(attr)
    }

    /// Attributes from the server, as they are shown.
    fn seen(&self, attr: Attr) -> Attr {
        self.mounted.seen(attr, None)
    }
}

/// Walks down from the cluster's root. Symbolic links on the way are not followed.
async fn resolve(meta: &dyn MetaCalls, subdir: &[u8]) -> Result<Ino, Failure> {
    let mut ino = Ino::ROOT;
    for name in subdir.split(|&byte| byte == b'/').filter(|name| !name.is_empty()) {
        let op = request::Op::Lookup(Lookup { parent: ino.0, name: name.to_vec().into() });
        let path = String::from_utf8_lossy(subdir);
        let name = String::from_utf8_lossy(name);
        let attr = match meta.read(op).await {
            Ok(result) => answers::attr(result)?,
            Err(failure) if failure.code == Code::NotFound => {
                let message = format!("the directory {path:?} to mount does not exist: there is no {name:?}");
                return Err(Failure::new(Code::NotFound, message));
            }
            Err(failure) => return Err(failure),
        };
        if attr.kind() != FileKind::Directory {
            let message = format!("{path:?} cannot be mounted: {name:?} is not a directory");
            return Err(Failure::new(Code::NotADirectory, message));
        }
        ino = Ino(attr.ino);
    }
    Ok(ino)
}
