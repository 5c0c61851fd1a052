//! One method for each kind of request: its arguments to the client library's, its outcome to a reply.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::SystemTime;

use bytes::Bytes;
use dfs_client::fs::{HandleId, NewFile};
use dfs_proto::FileKind;
use dfs_proto::meta::{LockRange, SetAttr};
use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, INodeNo, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::hand::{Kind, refuse};
use super::reply::Adapter;
use super::{convert, init, lock, raw_request};

/// What a caller makes: it belongs to the caller.
fn new_file(request: &Request, kind: FileKind, mode: u32, umask: u32) -> NewFile {
    NewFile {
        kind,
        mode: mode & 0o7777,
        umask,
        uid: request.uid(),
        gid: request.gid(),
        rdev: 0,
        target: Bytes::new(),
    }
}

/// Whether a change of the content clears the set-id bits, where the kernel leaves the question to us: always but for
/// root, who has CAP_FSETID.
fn kills_set_id(request: &Request) -> bool {
    request.uid() != 0
}

fn handle(fh: FileHandle) -> HandleId {
    HandleId(fh.0)
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        init::negotiate(config)
    }

    // ---- Names ----

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (fs, parent, name) = (self.fs.clone(), self.ino(parent), name.to_owned());
        self.entry(
            Kind::read("lookup"),
            request,
            reply,
            async move { fs.lookup(parent, name.as_bytes()).await },
        );
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let kind = dfs_proto::attr::kind_of_mode(mode);
        let file = NewFile { rdev: rdev.into(), ..new_file(request, kind, mode, umask) };
        self.make("mknod", request, parent, name, file, reply);
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let file = new_file(request, FileKind::Directory, mode, umask);
        self.make("mkdir", request, parent, name, file, reply);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let target = Bytes::copy_from_slice(target.as_os_str().as_bytes());
        let file = NewFile { target, ..new_file(request, FileKind::Symlink, 0o777, 0) };
        self.make("symlink", request, parent, name, file, reply);
    }

    fn readlink(&self, request: &Request, node: INodeNo, reply: ReplyData) {
        let (fs, ino) = (self.fs.clone(), self.ino(node));
        let operation = async move { fs.readlink(ino).await };
        self.hand.on(Kind::read("readlink"), request, reply, operation, |reply, target| reply.data(&target));
    }

    fn link(&self, request: &Request, node: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (fs, ino, parent, name) = (self.fs.clone(), self.ino(node), self.ino(parent), name.to_owned());
        let operation = async move { fs.link(ino, parent, name.as_bytes()).await };
        self.entry(Kind::change("link"), request, reply, operation);
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (fs, parent, name) = (self.fs.clone(), self.ino(parent), name.to_owned());
        let told = self.told.clone();
        self.done(Kind::change("unlink"), request, reply, async move {
            let done = fs.unlink(parent, name.as_bytes()).await;
            told.name_taken();
            done
        });
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (fs, parent, name) = (self.fs.clone(), self.ino(parent), name.to_owned());
        self.done(
            Kind::change("rmdir"),
            request,
            reply,
            async move { fs.rmdir(parent, name.as_bytes()).await },
        );
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let Some(mode) = convert::rename_mode(flags) else { return reply.error(Errno::EINVAL) };
        let (fs, parent, new_parent) = (self.fs.clone(), self.ino(parent), self.ino(new_parent));
        let (name, new_name) = (name.to_owned(), new_name.to_owned());
        let told = self.told.clone();
        let operation = async move {
            let done = fs.rename(parent, name.as_bytes(), new_parent, new_name.as_bytes(), mode).await;
            told.name_taken();
            done
        };
        self.done(Kind::change("rename"), request, reply, operation);
    }

    // ---- Attributes ----

    fn getattr(&self, request: &Request, node: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let (fs, ino) = (self.fs.clone(), self.ino(node));
        if let Some(trust) = self.told.trust(ino)
            && let Some(known) = fs.known(ino)
        {
            return match self.told.nodes.attr(&known) {
                Ok(attr) => reply.attr(&trust, &attr),
                Err(failure) => refuse(reply, "getattr", &failure),
            };
        }
        self.attributes(Kind::read("getattr"), request, reply, async move { fs.getattr(ino).await });
    }

    fn setattr(
        &self,
        request: &Request,
        node: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let raw = raw_request::setattr(request);
        let (fs, ino) = (self.fs.clone(), self.ino(node));
        let set = SetAttr {
            ino: ino.0,
            mode: mode.map(|mode| mode & 0o7777),
            uid,
            gid,
            size,
            atime: raw.atime.map(convert::time_change),
            mtime: raw.mtime.map(convert::time_change),
            ctime: raw.ctime.map(Into::into),
            kill_set_id: raw.kill_set_id,
        };
        self.attributes(Kind::change("setattr"), request, reply, async move { fs.setattr(set).await });
    }

    fn statfs(&self, request: &Request, _node: INodeNo, reply: ReplyStatfs) {
        let fs = self.fs.clone();
        let operation = async move { fs.statfs().await };
        self.hand.on(Kind::read("statfs"), request, reply, operation, |reply, stats| {
            convert::statfs(reply, &stats)
        });
    }

    fn setxattr(
        &self,
        request: &Request,
        node: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        self.set_xattr(request, node, name, value, flags, reply);
    }

    fn getxattr(&self, request: &Request, node: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.get_xattr(request, node, name, size, reply);
    }

    fn listxattr(&self, request: &Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        self.list_xattrs(request, node, size, reply);
    }

    fn removexattr(&self, request: &Request, node: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.remove_xattr(request, node, name, reply);
    }

    // ---- Files ----

    fn open(&self, request: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.open_file(request, node, flags, reply);
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let file = new_file(request, FileKind::Regular, mode, umask);
        self.create_file(request, parent, name, file, flags, reply);
    }

    fn read(
        &self,
        request: &Request,
        _node: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.read_file(request, handle(fh), offset, size as usize, reply);
    }

    fn write(
        &self,
        request: &Request,
        _node: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        if write_flags.contains(WriteFlags::FUSE_WRITE_CACHE) {
            self.write_mapped(request, handle(fh), offset, data, reply);
        } else {
            let kill_set_id = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
            self.write_file(request, handle(fh), offset, data, kill_set_id, reply);
        }
    }

    fn flush(&self, request: &Request, _node: INodeNo, fh: FileHandle, owner: LockOwner, reply: ReplyEmpty) {
        self.close_file(request, handle(fh), owner.0, reply);
    }

    fn release(
        &self,
        request: &Request,
        _node: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        flock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.release_file(request, handle(fh), flock_owner.map(|owner| owner.0), reply);
    }

    fn fsync(&self, request: &Request, _node: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        let (fs, handle) = (self.fs.clone(), handle(fh));
        self.done(Kind::change("fsync"), request, reply, async move { fs.fsync(handle, datasync).await });
    }

    fn fallocate(
        &self,
        request: &Request,
        _node: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let Some(mode) = convert::fallocate_mode(mode) else { return reply.error(Errno::EOPNOTSUPP) };
        let (fs, handle, kill) = (self.fs.clone(), handle(fh), kills_set_id(request));
        let operation = async move { fs.fallocate(handle, offset, length, mode, kill).await };
        self.done(Kind::change("fallocate"), request, reply, operation);
    }

    fn lseek(
        &self,
        request: &Request,
        _node: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let hole = match whence {
            libc::SEEK_DATA => false,
            libc::SEEK_HOLE => true,
            _ => return reply.error(Errno::EINVAL),
        };
        // Before the start there is nothing: lseek(2) has ENXIO for it.
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        let (fs, handle) = (self.fs.clone(), handle(fh));
        let operation = async move { fs.seek(handle, offset, hole).await };
        self.hand
            .on(Kind::read("lseek"), request, reply, operation, |reply, found| reply.offset(found as i64));
    }

    fn copy_file_range(
        &self,
        request: &Request,
        _source_node: INodeNo,
        source: FileHandle,
        source_offset: u64,
        _target_node: INodeNo,
        target: FileHandle,
        target_offset: u64,
        length: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let (fs, source, target, kill) =
            (self.fs.clone(), handle(source), handle(target), kills_set_id(request));
        // The reply counts in 32 bits.
        let length = length.min(convert::MAX_COPY);
        let operation =
            async move { fs.copy_range(source, source_offset, target, target_offset, length, kill).await };
        self.hand.on(Kind::change("copy_file_range"), request, reply, operation, |reply, copied| {
            reply.written(copied as u32);
        });
    }

    fn ioctl(
        &self,
        _request: &Request,
        _node: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _command: u32,
        _data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    // ---- Locks ----

    fn getlk(
        &self,
        request: &Request,
        node: INodeNo,
        _fh: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        let range = (start, end);
        let Some(asked) = lock::range(request, owner.0, range, typ, pid) else {
            return reply.error(Errno::EINVAL);
        };
        let (fs, ino) = (self.fs.clone(), self.ino(node));
        let operation = async move { fs.get_lock(ino, asked).await };
        self.hand.on(Kind::read("getlk"), request, reply, operation, move |reply, conflict| match conflict {
            Some(LockRange { start, end, pid, .. }) => {
                let typ = conflict.as_ref().map_or(libc::F_UNLCK, lock::type_of);
                reply.locked(start, end, typ, pid);
            }
            None => reply.locked(range.0, range.1, libc::F_UNLCK, 0),
        });
    }

    fn setlk(
        &self,
        request: &Request,
        _node: INodeNo,
        fh: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        let Some(asked) = lock::range(request, owner.0, (start, end), typ, pid) else {
            return reply.error(Errno::EINVAL);
        };
        let (fs, handle) = (self.fs.clone(), handle(fh));
        let waits = sleep && typ != libc::F_UNLCK;
        let kind = if waits { Kind::lock("setlkw") } else { Kind::change("setlk") };
        self.done(kind, request, reply, async move { fs.set_lock(handle, asked, waits).await });
    }

    // ---- Directories ----

    fn opendir(&self, _request: &Request, node: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.directories.open(self.ino(node)) {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
            Err(failure) => refuse(reply, "opendir", &failure),
        }
    }

    fn readdir(&self, request: &Request, _node: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        self.list(request, fh.0, offset, reply);
    }

    fn readdirplus(
        &self,
        request: &Request,
        _node: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        self.list_with_attributes(request, fh.0, offset, reply);
    }

    fn releasedir(
        &self,
        _request: &Request,
        _node: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.directories.close(fh.0);
        reply.ok();
    }

    fn fsyncdir(
        &self,
        request: &Request,
        node: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        let (fs, ino) = (self.fs.clone(), self.ino(node));
        self.done(Kind::change("fsyncdir"), request, reply, async move { fs.fsyncdir(ino).await });
    }
}
