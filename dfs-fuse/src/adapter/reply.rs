//! The kernel's side of one mount, and how what the client library answers becomes a reply.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use dfs_client::fs::{FileSystem, NewFile};
use dfs_proto::{Attr, Failure, Ino};
use fuser::{Generation, INodeNo, ReplyAttr, ReplyEmpty, ReplyEntry, Request};

use super::convert::NodeIds;
use super::directory::Directories;
use super::file_io::ClosedOnce;
use super::hand::{Hand, Kind};
use super::notify::KernelCache;
use super::told::Told;

/// Inode numbers are never used twice, so that nothing tells generations apart.
pub(super) const GENERATION: Generation = Generation(0);

/// The kernel's side of one mount.
pub(super) struct Adapter {
    pub(super) fs: Arc<FileSystem>,
    pub(super) told: Arc<Told>,
    pub(super) cache: KernelCache,
    pub(super) closed: ClosedOnce,
    pub(super) directories: Directories,
    pub(super) hand: Hand,
}

impl Adapter {
    pub(super) fn new(
        fs: Arc<FileSystem>,
        nodes: NodeIds,
        cache: KernelCache,
        runtime: tokio::runtime::Handle,
    ) -> Self {
        Self {
            fs,
            told: Arc::new(Told::new(nodes)),
            cache,
            closed: ClosedOnce::default(),
            directories: Directories::default(),
            hand: Hand::new(runtime),
        }
    }

    pub(super) fn ino(&self, node: INodeNo) -> Ino {
        self.told.nodes.ino_of(node)
    }

    /// Answers with an entry: name and attributes, both believed for a moment.
    pub(super) fn entry(
        &self,
        kind: Kind,
        request: &Request,
        reply: ReplyEntry,
        operation: impl Future<Output = Result<Attr, Failure>> + Send + 'static,
    ) {
        let (told, asked) = (self.told.clone(), self.told.ask());
        let operation = async move { told.tell(asked, &operation.await?) };
        self.hand.on(kind, request, reply, operation, move |reply, attr| {
            reply.entry(&asked.trust(), &attr, GENERATION);
        });
    }

    /// Answers with attributes.
    pub(super) fn attributes(
        &self,
        kind: Kind,
        request: &Request,
        reply: ReplyAttr,
        operation: impl Future<Output = Result<Attr, Failure>> + Send + 'static,
    ) {
        let (told, asked) = (self.told.clone(), self.told.ask());
        let operation = async move { told.tell(asked, &operation.await?) };
        self.hand.on(kind, request, reply, operation, move |reply, attr| reply.attr(&asked.trust(), &attr));
    }

    /// Answers that it is done.
    pub(super) fn done(
        &self,
        kind: Kind,
        request: &Request,
        reply: ReplyEmpty,
        operation: impl Future<Output = Result<(), Failure>> + Send + 'static,
    ) {
        self.hand.on(kind, request, reply, operation, |reply, ()| reply.ok());
    }

    /// Makes a name without opening it.
    pub(super) fn make(
        &self,
        name: &'static str,
        request: &Request,
        parent: INodeNo,
        child: &OsStr,
        file: NewFile,
        reply: ReplyEntry,
    ) {
        let (fs, parent, child) = (self.fs.clone(), self.ino(parent), child.to_owned());
        let operation = async move { fs.create(parent, child.as_bytes(), file).await };
        self.entry(Kind::change(name), request, reply, operation);
    }
}
