//! Shards on this machine: their chunk daemon hands over the open file, and blocks are read from it and verified here
//! (`dfs_proto::local`). It saves two sockets and most copies of the bytes, and goes on when the daemon is busy or gone.
//!
//! This is a shorter way to the same bytes, never the only one: whatever is wrong with it, the daemon is asked through
//! the network, and that answer counts. Files are kept open while they are used, but not after their daemon deleted them:
//! the disk's space would stay taken.

use std::fs::{File, Metadata};
use std::io::{self, IoSliceMut};
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use bytes::Bytes;
use dfs_proto::limits::BLOCK_SIZE;
use dfs_proto::local::{self, ShardPlace};
use dfs_proto::{ChunkId, ClusterId, NodeId, ShardIndex};
use lru::LruCache;
use nix::sys::socket::sockopt::{PeerCredentials, ReceiveTimeout, SendTimeout};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, connect, getsockopt, recvmsg,
    send, setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::geteuid;
use rustix::buffer::spare_capacity;
use rustix::io::ReadWriteFlags;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Files kept open.
const MAX_OPEN_FILES: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");
/// How often they are looked through for those to close: what was deleted,
const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// and what nobody has read for so long.
const MAX_IDLE: Duration = Duration::from_secs(60);
/// A shard of one block is as quickly read through the network as its file is asked for, and has none at first.
const MIN_SHARD_LENGTH: u64 = BLOCK_SIZE as u64 + 1;
/// The longest read that is tried on the thread that asks, where the bytes are in memory.
const MAX_AT_ONCE: u64 = 128 * 1024;
/// Reads that wait for a disk, each with a thread of its own: beyond it the daemon is asked.
const MAX_READS: usize = 64;
/// How long a daemon may take to hand over a file.
const PATIENCE_MS: i64 = 500;
/// Made by root for the daemons' user: who owns it is trusted as root is.
const RUN_DIRECTORY: &str = "/run/dfs";

/// A shard of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ShardName {
    pub(super) node: u64,
    pub(super) chunk: u64,
    pub(super) index: u32,
}

/// The files that daemons of this machine handed over.
pub(super) struct LocalShards {
    cluster: ClusterId,
    open: Mutex<OpenFiles>,
    reads: Arc<Semaphore>,
}

/// Those that are open.
struct OpenFiles {
    shards: LruCache<ShardName, OpenFile>,
    /// A sweeper looks after them.
    swept: bool,
}

/// One of them, and when it was used last.
struct OpenFile {
    shard: Arc<LocalShard>,
    used: Instant,
}

/// A shard's file, closed with its last reader.
struct LocalShard {
    file: File,
    place: ShardPlace,
}

impl LocalShards {
    pub(super) fn new(cluster: ClusterId) -> Self {
        let open = OpenFiles { shards: LruCache::new(MAX_OPEN_FILES), swept: false };
        Self { cluster, open: Mutex::new(open), reads: Arc::new(Semaphore::new(MAX_READS)) }
    }

    /// A range of a shard that is `shard_length` bytes long, verified; `offset` and `length` are of whole blocks, but for
    /// the shard's end. `None`: ask the daemon. Sets no deadline: a disk may hang.
    pub(super) async fn read(
        self: &Arc<Self>,
        name: ShardName,
        shard_length: u64,
        offset: u64,
        length: u64,
    ) -> Option<Bytes> {
        if shard_length < MIN_SHARD_LENGTH {
            return None;
        }
        let shard = self.get(&name);
        if length <= MAX_AT_ONCE
            && let Some(data) = shard.as_ref().and_then(|shard| {
                shard.read(Vec::with_capacity(length as usize), offset, length, ReadWriteFlags::NOWAIT).ok()
            })
        {
            return Some(data);
        }
        let (this, place) = (Arc::clone(self), Arc::clone(&self.reads).try_acquire_owned().ok()?);
        // Taken here, not on one of many threads for blocking calls: each would get memory from a heap of its own.
        let buffer = Vec::with_capacity(length as usize);
        let read = tokio::task::spawn_blocking(move || {
            // For as long as the thread is taken, whoever still waits for it.
            let _place = place;
            let shard = match shard {
                Some(shard) => shard,
                None => this.open(name, shard_length)?,
            };
            let read = shard.read(buffer, offset, length, ReadWriteFlags::empty());
            if read.is_err() {
                this.open_files().shards.pop(&name);
            }
            read
        });
        match read.await.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(data) => Some(data),
            Err(error) => {
                tracing::debug!(%error, ?name, "a shard on this machine is read through the network");
                None
            }
        }
    }

    /// Asks for a file, and keeps it open. Blocking, within bounds; within the runtime.
    fn open(self: &Arc<Self>, name: ShardName, length: u64) -> io::Result<Arc<LocalShard>> {
        let door = knock(self.cluster, name.node, PATIENCE_MS)?;
        let request = local::encode_request(ChunkId(name.chunk), ShardIndex(name.index));
        send(door.as_raw_fd(), &request, MsgFlags::MSG_NOSIGNAL)?;
        let mut answer = vec![0; local::MAX_ANSWER_LENGTH + 1];
        let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
        let (received, file) = {
            let mut parts = [IoSliceMut::new(&mut answer)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let message = recvmsg::<()>(door.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
            let mut files = message.cmsgs()?.flat_map(|control| match control {
                ControlMessageOwned::ScmRights(files) => files,
                _ => Vec::new(),
            });
            // SAFETY: the kernel has just made it for this process, and nobody else has it.
            (message.bytes, files.next().map(|file| unsafe { File::from_raw_fd(file) }))
        };
        let place = local::decode_answer(&answer[..received]);
        match (place, file) {
            (Some(place), Some(file)) if u64::from(place.length) == length => {
                let shard = Arc::new(LocalShard { file, place });
                self.keep(name, shard.clone());
                Ok(shard)
            }
            _ => Err(io::Error::from(io::ErrorKind::NotFound)),
        }
    }

    /// The file, if it is open; it counts as used now.
    fn get(&self, name: &ShardName) -> Option<Arc<LocalShard>> {
        let mut open = self.open_files();
        let file = open.shards.get_mut(name)?;
        file.used = Instant::now();
        Some(file.shard.clone())
    }

    /// Keeps a file open, in the place of the one that was used least recently.
    fn keep(self: &Arc<Self>, name: ShardName, shard: Arc<LocalShard>) {
        let displaced = {
            let mut open = self.open_files();
            if !std::mem::replace(&mut open.swept, true) {
                tokio::spawn(sweeper(Arc::downgrade(self)));
            }
            open.shards.push(name, OpenFile { shard, used: Instant::now() })
        };
        // Closing may take a while: nobody waits for the lock meanwhile.
        drop(displaced);
    }

    /// Closes the files that have no name any more, and those that nobody has used for long; whether any is left. Blocking:
    /// the last close of a deleted file frees its blocks.
    fn sweep(&self) -> bool {
        let files: Vec<_> =
            self.open_files().shards.iter().map(|(name, open)| (*name, open.shard.clone())).collect();
        for (name, shard) in files {
            // Asked without the lock, since a disk may hang; for the same reason the lock is released before `shard`.
            let is_named = shard.file.metadata().is_ok_and(|file| file.nlink() > 0);
            let mut open = self.open_files();
            let is_let_go = open.shards.peek(&name).is_some_and(|file| {
                // What is being read waits for the next sweep, so that no reader has to close it.
                let is_unread = Arc::ptr_eq(&file.shard, &shard) && Arc::strong_count(&shard) == 2;
                is_unread && (!is_named || file.used.elapsed() >= MAX_IDLE)
            });
            if is_let_go {
                open.shards.pop(&name);
            }
        }
        let mut open = self.open_files();
        open.swept = !open.shards.is_empty();
        open.swept
    }

    fn open_files(&self) -> MutexGuard<'_, OpenFiles> {
        self.open.lock().expect("nothing panics while it holds the open files")
    }
}

impl LocalShard {
    /// Reads `length` bytes into an empty buffer with room for them, and verifies.
    fn read(&self, mut data: Vec<u8>, offset: u64, length: u64, flags: ReadWriteFlags) -> io::Result<Bytes> {
        while (data.len() as u64) < length {
            let at = u64::from(self.place.offset) + offset + data.len() as u64;
            if read_some(&self.file, &mut data, at, flags)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        data.truncate(length as usize);
        let table = self.place.table.get((offset / BLOCK_SIZE as u64) as usize..).unwrap_or_default();
        let blocks = data.chunks(BLOCK_SIZE);
        let good = blocks.len() <= table.len()
            && blocks.zip(table).all(|(block, &crc)| crc32c::crc32c(block) == crc);
        match good {
            true => Ok(data.into()),
            false => Err(io::Error::new(io::ErrorKind::InvalidData, "a corrupt block")),
        }
    }
}

/// Sweeps the open files until there are none.
async fn sweeper(shards: Weak<LocalShards>) {
    loop {
        tokio::time::sleep(SWEEP_EVERY).await;
        let Some(shards) = shards.upgrade() else { return };
        let sweep = tokio::task::spawn_blocking(move || shards.sweep());
        if !sweep.await.unwrap_or(false) {
            return;
        }
    }
}

/// Reads what fits into the rest of the buffer's capacity.
fn read_some(file: &File, data: &mut Vec<u8>, at: u64, flags: ReadWriteFlags) -> io::Result<usize> {
    if flags.is_empty() {
        return Ok(rustix::io::pread(file, spare_capacity(data), at)?);
    }
    // This call has no form for memory that was never written.
    let start = data.len();
    data.resize(data.capacity(), 0);
    let read = rustix::io::preadv2(file, &mut [IoSliceMut::new(&mut data[start..])], at, flags);
    data.truncate(start + *read.as_ref().unwrap_or(&0));
    Ok(read?)
}

/// Whether a node has its door on this machine.
pub(super) fn is_here(cluster: ClusterId, node: u64) -> bool {
    knock(cluster, node, 1).is_ok()
}

/// A connection to a node's door, if it is on this machine and belongs to somebody who is trusted: anybody can give a
/// socket a name.
fn knock(cluster: ClusterId, node: u64, patience_ms: i64) -> io::Result<OwnedFd> {
    let door = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    let patience = TimeVal::milliseconds(patience_ms);
    // To send is to connect, too, where many others wait before the door.
    setsockopt(&door, SendTimeout, &patience)?;
    setsockopt(&door, ReceiveTimeout, &patience)?;
    let name = local::door_name(cluster, NodeId(node));
    connect(door.as_raw_fd(), &UnixAddr::new_abstract(name.as_bytes())?)?;
    let owner = getsockopt(&door, PeerCredentials)?.uid();
    let is_trusted = |directory: Metadata| directory.uid() == owner && directory.mode() & 0o022 == 0;
    let trusted = owner == 0
        || owner == geteuid().as_raw()
        || Path::new(RUN_DIRECTORY).symlink_metadata().is_ok_and(is_trusted);
    match trusted {
        true => Ok(door),
        false => Err(io::ErrorKind::PermissionDenied.into()),
    }
}

#[cfg(test)]
mod tests;
