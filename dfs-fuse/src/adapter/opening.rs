//! Opening files, and making them on the way: what the kernel was told before, and who may open what, must still be true
//! when the file is open.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use dfs_client::fs::NewFile;
use dfs_proto::{Code, Failure};
use fuser::{FileHandle, FopenFlags, INodeNo, OpenFlags, ReplyCreate, ReplyOpen, Request};

use super::hand::Kind;
use super::reply::{Adapter, GENERATION};
use super::{convert, raw_request};

impl Adapter {
    pub(super) fn open_file(&self, request: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let options = convert::open_options(flags.0, raw_request::open_kills_set_id(request));
        let (fs, ino, told, cache) = (self.fs.clone(), self.ino(node), self.told.clone(), self.cache.clone());
        let operation = async move {
            let (handle, keep_cache) = fs.open(ino, options).await?;
            // A reader must not go by a size that it was told before somebody else wrote.
            if fs.known(ino).is_some_and(|attr| told.differs(&attr)) {
                cache.forget_attributes(ino);
            }
            Ok((handle, keep_cache))
        };
        let kind = if options.truncate { Kind::change("open") } else { Kind::read("open") };
        self.hand.on(kind, request, reply, operation, |reply, (handle, keep_cache)| {
            reply.opened(FileHandle(handle.0), keep(keep_cache));
        });
    }

    pub(super) fn create_file(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        file: NewFile,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let options = convert::open_options(flags, raw_request::create_kills_set_id(request));
        let (fs, parent, name) = (self.fs.clone(), self.ino(parent), name.to_owned());
        let (told, asked) = (self.told.clone(), self.told.ask());
        let operation = async move {
            // A file that somebody else made since the kernel looked: whether the caller may open it is for the kernel to
            // say, which looks again when told ESTALE. root may.
            let (asked_exclusive, look_again) = (flags & libc::O_EXCL != 0, file.uid != 0);
            let opened =
                fs.create_open(parent, name.as_bytes(), file, options, asked_exclusive || look_again);
            let (attr, handle, keep_cache) = opened.await.map_err(|failure| match failure.code {
                Code::Exists if !asked_exclusive => Failure::new(Code::Stale, failure.message),
                _ => failure,
            })?;
            Ok((told.tell(asked, &attr)?, handle, keep_cache))
        };
        self.hand.on(
            Kind::change("create"),
            request,
            reply,
            operation,
            move |reply, (attr, handle, keep_cache)| {
                let trust = asked.trust();
                reply.created(&trust, &attr, GENERATION, FileHandle(handle.0), keep(keep_cache));
            },
        );
    }
}

fn keep(keep_cache: bool) -> FopenFlags {
    if keep_cache { FopenFlags::FOPEN_KEEP_CACHE } else { FopenFlags::empty() }
}
