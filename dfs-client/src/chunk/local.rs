//! Shards on this machine: their chunk daemon hands over the open file, and blocks are read from it and verified here
//! (`dfs_proto::local`). It saves two sockets and most copies of the bytes, and goes on when the daemon is busy or gone.
//!
//! This is a shorter way to the same bytes, never the only one: whatever is wrong with it, the daemon is asked through
//! the network, and that answer counts.

use std::fs::{File, Metadata};
use std::io::{self, IoSliceMut};
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

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

/// Files kept open.
const MAX_OPEN_FILES: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");
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
    open: Mutex<LruCache<ShardName, Arc<LocalShard>>>,
    reads: Arc<Semaphore>,
}

/// One of them.
struct LocalShard {
    file: File,
    place: ShardPlace,
}

impl LocalShards {
    pub(super) fn new(cluster: ClusterId) -> Self {
        let reads = Arc::new(Semaphore::new(MAX_READS));
        Self { cluster, open: Mutex::new(LruCache::new(MAX_OPEN_FILES)), reads }
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
        let shard = self.open_files().get(&name).cloned();
        if length <= MAX_AT_ONCE
            && let Some(data) =
                shard.as_ref().and_then(|shard| shard.read(offset, length, ReadWriteFlags::NOWAIT).ok())
        {
            return Some(data);
        }
        let (this, place) = (Arc::clone(self), Arc::clone(&self.reads).try_acquire_owned().ok()?);
        let read = tokio::task::spawn_blocking(move || {
            // For as long as the thread is taken, whoever still waits for it.
            let _place = place;
            let shard = match shard {
                Some(shard) => shard,
                None => this.open(name, shard_length)?,
            };
            let read = shard.read(offset, length, ReadWriteFlags::empty());
            if read.is_err() {
                this.open_files().pop(&name);
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

    /// Asks for a file. Blocking, within bounds.
    fn open(&self, name: ShardName, length: u64) -> io::Result<Arc<LocalShard>> {
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
                self.open_files().put(name, shard.clone());
                Ok(shard)
            }
            _ => Err(io::Error::from(io::ErrorKind::NotFound)),
        }
    }

    fn open_files(&self) -> MutexGuard<'_, LruCache<ShardName, Arc<LocalShard>>> {
        self.open.lock().expect("nothing panics while it holds the open files")
    }
}

impl LocalShard {
    /// Reads and verifies.
    fn read(&self, offset: u64, length: u64, flags: ReadWriteFlags) -> io::Result<Bytes> {
        let mut data = Vec::with_capacity(length as usize);
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
mod tests {
    use std::io::{IoSlice, Write};
    use std::time::{Duration, Instant};

    use nix::sys::socket::{
        Backlog, ControlMessage, Shutdown, accept, bind, listen, recv, sendmsg, shutdown,
    };

    use super::*;

    const CLUSTER: ClusterId = ClusterId([8; 16]);
    const DATA_AT: u32 = 100;

    /// A door that hands one file to everybody who asks, with what it says of it.
    struct Door(OwnedFd, Option<std::thread::JoinHandle<usize>>);

    impl Door {
        fn open(node: u64, file: File, place: ShardPlace) -> Self {
            let listener =
                socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
            let name = local::door_name(CLUSTER, NodeId(node));
            bind(listener.as_raw_fd(), &UnixAddr::new_abstract(name.as_bytes()).unwrap()).unwrap();
            listen(&listener, Backlog::new(8).unwrap()).unwrap();
            let listening = listener.as_raw_fd();
            let thread = std::thread::spawn(move || {
                let mut handed = 0;
                while let Ok(client) = accept(listening) {
                    // SAFETY: accept has just made it.
                    let client = unsafe { OwnedFd::from_raw_fd(client) };
                    let mut request = [0; 64];
                    // Who only looks whether the door is there says nothing.
                    let Ok(local::REQUEST_LENGTH) = recv(client.as_raw_fd(), &mut request, MsgFlags::empty())
                    else {
                        continue;
                    };
                    let answer = local::encode_answer(Some((place.offset, place.length, &place.table)));
                    let (answer, rights) = ([IoSlice::new(&answer)], [file.as_raw_fd()]);
                    let rights = [ControlMessage::ScmRights(&rights)];
                    sendmsg::<()>(client.as_raw_fd(), &answer, &rights, MsgFlags::empty(), None).unwrap();
                    handed += 1;
                }
                handed
            });
            Self(listener, Some(thread))
        }

        /// How often it handed the file over.
        fn close(mut self) -> usize {
            shutdown(self.0.as_raw_fd(), Shutdown::Both).unwrap();
            self.1.take().unwrap().join().unwrap()
        }
    }

    fn shard(data: &[u8]) -> (File, ShardPlace) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; DATA_AT as usize]).unwrap();
        file.write_all(data).unwrap();
        let table = data.chunks(BLOCK_SIZE).map(crc32c::crc32c).collect();
        (file, ShardPlace { offset: DATA_AT, length: data.len() as u32, table })
    }

    #[tokio::test]
    async fn ranges_are_read_from_one_file_and_verified() {
        let data: Vec<u8> = (0..5 * BLOCK_SIZE + 77).map(|i| (i * 13 % 255) as u8).collect();
        let (file, place) = shard(&data);
        let door = Door::open(1, file.try_clone().unwrap(), place);
        assert!(is_here(CLUSTER, 1) && !is_here(CLUSTER, 4));
        let shards = Arc::new(LocalShards::new(CLUSTER));
        let name = ShardName { node: 1, chunk: 5, index: 2 };
        let length = data.len() as u64;
        let read = async |from: usize, to: usize| {
            shards
                .read(name, length, from as u64, (to - from) as u64)
                .await
                .map(|read| read == data[from..to])
        };
        for (from, to) in [(0, 1), (1, 3), (0, 5), (4, 6), (5, 6), (0, 6)] {
            let (from, to) = (from * BLOCK_SIZE, (to * BLOCK_SIZE).min(data.len()));
            assert_eq!(read(from, to).await, Some(true), "{from}..{to}");
        }
        // A block that goes bad is not returned; the others are, as soon as the file is asked for again.
        std::os::unix::fs::FileExt::write_all_at(&file, b"bad", u64::from(DATA_AT) + 2 * BLOCK_SIZE as u64)
            .unwrap();
        assert_eq!(read(BLOCK_SIZE, 3 * BLOCK_SIZE).await, None);
        assert_eq!(read(0, BLOCK_SIZE).await, Some(true));
        file.set_len(u64::from(DATA_AT) + BLOCK_SIZE as u64).unwrap();
        assert_eq!(read(4 * BLOCK_SIZE, 5 * BLOCK_SIZE).await, None, "the file is too short");
        assert_eq!(read(0, BLOCK_SIZE).await, Some(true));
        // Another length than the plan tells, and a shard of one block: not this way.
        let other = ShardName { chunk: 6, ..name };
        assert_eq!(shards.read(other, length + 1, 0, BLOCK_SIZE as u64).await, None);
        assert_eq!(shards.read(other, BLOCK_SIZE as u64, 0, BLOCK_SIZE as u64).await, None);
        assert_eq!(door.close(), 4, "once, once after each that was bad, and once in vain");
        let gone = ShardName { chunk: 7, ..name };
        assert_eq!(shards.read(gone, length, 0, BLOCK_SIZE as u64).await, None);
        assert_eq!(read(0, BLOCK_SIZE).await, Some(true), "what is open is read without its daemon");
    }

    #[tokio::test]
    async fn a_daemon_that_does_not_answer_is_not_waited_for() {
        let listener =
            socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        let name = local::door_name(CLUSTER, NodeId(9));
        bind(listener.as_raw_fd(), &UnixAddr::new_abstract(name.as_bytes()).unwrap()).unwrap();
        listen(&listener, Backlog::new(1).unwrap()).unwrap();
        let shards = Arc::new(LocalShards::new(CLUSTER));
        let started = Instant::now();
        // More than there are threads for, or room before the door.
        const EXCESS: usize = 8;
        let reads = (0..(MAX_READS + EXCESS) as u64).map(|chunk| {
            let (shards, name) = (shards.clone(), ShardName { node: 9, chunk, index: 0 });
            async move {
                assert_eq!(shards.read(name, 1 << 20, 0, 1 << 20).await, None);
                started.elapsed()
            }
        });
        let ended = futures::future::join_all(reads).await;
        let at_once = |after: &&Duration| **after < Duration::from_millis(PATIENCE_MS as u64) / 2;
        assert!(ended.iter().filter(at_once).count() >= EXCESS, "{ended:?}");
        is_here(CLUSTER, 9);
        assert!(started.elapsed() < 3 * Duration::from_millis(PATIENCE_MS as u64), "{:?}", started.elapsed());
    }
}
