//! Extended attributes. What is told of them is remembered, so that the kernel's questions about labels and ACLs that no
//! file has are answered on the event loop; a change makes what is remembered void.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use dfs_proto::meta::XattrMode;
use fuser::{Errno, INodeNo, ReplyEmpty, ReplyXattr, Request};

use super::convert;
use super::hand::Kind;
use super::reply::Adapter;
use crate::caller::Caller;

impl Adapter {
    pub(super) fn set_xattr(
        &self,
        request: &Request,
        node: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        reply: ReplyEmpty,
    ) {
        let mode = match flags {
            0 => XattrMode::Set,
            libc::XATTR_CREATE => XattrMode::Create,
            libc::XATTR_REPLACE => XattrMode::ReplaceOnly,
            _ => return reply.error(Errno::EINVAL),
        };
        let (fs, ino) = (self.fs.clone(), self.ino(node));
        let (name, value) = (name.to_owned(), value.to_vec());
        let (uid, gid, caller) = (request.uid(), request.gid(), Caller { thread: request.pid() });
        let told = self.told.clone();
        let operation = async move {
            let access_acl = name.as_bytes() == b"system.posix_acl_access";
            let kill_set_gid = access_acl && uid != 0 && {
                let group = fs.getattr(ino).await?.gid;
                group != gid && !caller.is_in_group(group)
            };
            told.xattrs_change(ino);
            let set = fs.setxattr(ino, name.as_bytes(), &value, mode, kill_set_gid).await;
            told.xattrs_change(ino);
            set
        };
        self.done(Kind::change("setxattr"), request, reply, operation);
    }

    pub(super) fn get_xattr(
        &self,
        request: &Request,
        node: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        let (fs, ino, name) = (self.fs.clone(), self.ino(node), name.to_owned());
        if self.told.has_no_xattr(ino, name.as_bytes()) {
            return reply.error(Errno::ENODATA);
        }
        let operation = async move { fs.getxattr(ino, name.as_bytes()).await };
        self.hand.on(Kind::read("getxattr"), request, reply, operation, move |reply, value| {
            convert::xattr(reply, size, &value);
        });
    }

    pub(super) fn list_xattrs(&self, request: &Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        let (fs, ino, root) = (self.fs.clone(), self.ino(node), request.uid() == 0);
        let operation = async move {
            let names = fs.listxattr(ino).await?;
            // As everywhere on Linux, what only root may read is not shown to others.
            let shown = names.iter().filter(|name| root || !name.starts_with(b"trusted."));
            Ok(shown.flat_map(|name| name.iter().copied().chain([0])).collect::<Vec<u8>>())
        };
        self.hand.on(Kind::read("listxattr"), request, reply, operation, move |reply, names| {
            convert::xattr(reply, size, &names);
        });
    }

    pub(super) fn remove_xattr(&self, request: &Request, node: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (fs, ino, name) = (self.fs.clone(), self.ino(node), name.to_owned());
        let told = self.told.clone();
        let operation = async move {
            told.xattrs_change(ino);
            let removed = fs.removexattr(ino, name.as_bytes()).await;
            told.xattrs_change(ino);
            removed
        };
        self.done(Kind::change("removexattr"), request, reply, operation);
    }
}
