//! The door to clients on this machine: hands them open shard files, which they read and verify themselves
//! (`dfs_proto::local`).
//!
//! Only root and this daemon's own user get any: a file is all of a shard, whoever's data that is. One thread answers one
//! connection after the other: a client asks once for each shard, and goes to the network's door when this one is slow.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use dfs_proto::{ClusterId, NodeId, local};
use nix::sys::socket::sockopt::{PeerCredentials, ReceiveTimeout, SendTimeout};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, Shutdown, SockFlag, SockType, UnixAddr, accept4, bind,
    getsockopt, listen, recv, sendmsg, setsockopt, shutdown, socket,
};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::geteuid;

use crate::store::shard_file::{HEADER_LENGTH, ShardKey};
use crate::store::{OpenShard, Store};

/// Connections waiting for their turn.
const BACKLOG: i32 = 128;
/// The wait after a client could not be let in, for want of file descriptors perhaps.
const PAUSE: Duration = Duration::from_millis(500);
/// How long a client may take to ask, and to take its answer.
const PATIENCE_MS: i64 = 200;

/// The open door; closed when dropped.
pub(crate) struct LocalDoor {
    listener: Arc<OwnedFd>,
}

impl LocalDoor {
    /// Opens the door of a node.
    pub(crate) fn open(cluster: ClusterId, node: NodeId, store: Arc<Store>) -> io::Result<Self> {
        let kind = (AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC);
        let listener = socket(kind.0, kind.1, kind.2, None)?;
        bind(listener.as_raw_fd(), &UnixAddr::new_abstract(local::door_name(cluster, node).as_bytes())?)?;
        listen(&listener, Backlog::new(BACKLOG)?)?;
        let listener = Arc::new(listener);
        let listening = listener.clone();
        std::thread::Builder::new().name("local".into()).spawn(move || {
            // However the thread ends, nobody waits before a door behind which nobody is.
            let listening = LocalDoor { listener: listening };
            loop {
                match accept4(listening.listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
                    // SAFETY: accept4 has just made it, and nobody else has it.
                    Ok(client) => answer(unsafe { std::os::fd::FromRawFd::from_raw_fd(client) }, &store),
                    // It was shut down.
                    Err(nix::Error::EINVAL) => return,
                    Err(nix::Error::EINTR | nix::Error::ECONNABORTED) => {}
                    Err(error) => {
                        tracing::warn!(%error, "a client on this machine could not be let in");
                        std::thread::sleep(PAUSE);
                    }
                }
            }
        })?;
        Ok(Self { listener })
    }
}

impl Drop for LocalDoor {
    fn drop(&mut self) {
        // The thread ends by it, and is not waited for: it may be at a disk that hangs. A listening socket can be shut down.
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
    }
}

/// Serves one connection. Whoever gets no answer asks the network's door.
fn answer(client: OwnedFd, store: &Store) {
    if let Err(error) = try_answer(&client, store) {
        tracing::debug!(%error, "a client on this machine got no answer");
    }
}

fn try_answer(client: &OwnedFd, store: &Store) -> nix::Result<()> {
    let peer = getsockopt(client, PeerCredentials)?.uid();
    if peer != 0 && peer != geteuid().as_raw() {
        return Err(nix::Error::EPERM);
    }
    let patience = TimeVal::milliseconds(PATIENCE_MS);
    setsockopt(client, ReceiveTimeout, &patience)?;
    setsockopt(client, SendTimeout, &patience)?;
    let mut request = [0; local::REQUEST_LENGTH];
    let received = recv(client.as_raw_fd(), &mut request, MsgFlags::empty())?;
    let (chunk, index) = local::decode_request(&request[..received]).ok_or(nix::Error::EPROTO)?;
    let shard = match store.open(ShardKey { chunk, index }) {
        Ok(OpenShard::File(file)) => Some(file),
        // Small, not here, or damaged: the network's door has the words for it.
        Ok(OpenShard::Record(_)) | Err(_) => None,
    };
    let file = shard.as_ref().and_then(|file| Some((file, file.handle()?)));
    let place = file.map(|(file, _)| (HEADER_LENGTH as u32, file.header().length, file.table()));
    let answer = local::encode_answer(place);
    let handles: Vec<_> = file.iter().map(|(_, handle)| handle.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&handles)];
    let rights = if handles.is_empty() { &rights[..0] } else { &rights[..] };
    sendmsg::<()>(client.as_raw_fd(), &[IoSlice::new(&answer)], rights, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::IoSliceMut;
    use std::os::fd::FromRawFd;
    use std::os::unix::fs::FileExt;

    use bytes::Bytes;
    use dfs_proto::limits::BLOCK_SIZE;
    use dfs_proto::local::{REQUEST_LENGTH, ShardPlace};
    use dfs_proto::{ChunkId, Redundancy, ShardIndex};
    use nix::sys::socket::{ControlMessageOwned, connect, recvmsg, send};
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};

    use super::*;
    use crate::store::shard_file::ShardHeader;
    use crate::store::{Blocks, Buffers, LocalDisk, Reserve};

    const CLUSTER: ClusterId = ClusterId([9; 16]);

    /// A store with shard 3 of each of these chunks, the chunk's number of times 1000 bytes long.
    async fn store(directory: &std::path::Path, chunks: &[u64]) -> Arc<Store> {
        let buffers = Buffers::default();
        let disk = Arc::new(LocalDisk::open(directory, buffers.clone()).unwrap());
        let store = Store::start(disk, CLUSTER, Reserve::Bytes(0), buffers).unwrap();
        for &chunk in chunks {
            let data = content(chunk);
            let key = ShardKey { chunk: ChunkId(chunk), index: ShardIndex(3) };
            let redundancy = Redundancy::Replicated { copies: 5 };
            let header = ShardHeader { cluster: CLUSTER, key, redundancy, length: data.len() as u32 };
            let mut incoming = store.receive(header).await.unwrap();
            let crc32c = data.chunks(BLOCK_SIZE).map(crc32c::crc32c).collect();
            incoming.append(Blocks { data: Bytes::from(data), crc32c, held: None }).await;
            incoming.finish().await.unwrap();
        }
        store
    }

    fn content(chunk: u64) -> Vec<u8> {
        (0..chunk * 1000).map(|i| (i * chunk % 251) as u8).collect()
    }

    fn visit(node: u64) -> nix::Result<OwnedFd> {
        let door = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        let name = local::door_name(CLUSTER, NodeId(node));
        connect(door.as_raw_fd(), &UnixAddr::new_abstract(name.as_bytes())?)?;
        Ok(door)
    }

    /// What a client gets for a request; `None` when the connection is closed on it.
    fn ask(node: u64, request: &[u8]) -> Option<(Option<ShardPlace>, Vec<File>)> {
        let door = visit(node).expect("the door is open");
        send(door.as_raw_fd(), request, MsgFlags::MSG_NOSIGNAL).ok()?;
        let mut answer = vec![0; local::MAX_ANSWER_LENGTH];
        let mut space = nix::cmsg_space!([std::os::fd::RawFd; 4]);
        let mut parts = [IoSliceMut::new(&mut answer)];
        let message =
            recvmsg::<()>(door.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty()).ok()?;
        let files = message.cmsgs().unwrap().flat_map(|control| match control {
            ControlMessageOwned::ScmRights(files) => files,
            other => panic!("{other:?}"),
        });
        // SAFETY: the kernel has just made them for this process.
        let files: Vec<File> = files.map(|file| unsafe { File::from_raw_fd(file) }).collect();
        let received = message.bytes;
        (received > 0).then(|| (local::decode_answer(&answer[..received]), files))
    }

    #[tokio::test]
    async fn who_may_gets_the_file_and_where_its_bytes_are() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path(), &[20, 400]).await;
        let door = LocalDoor::open(CLUSTER, NodeId(1), store.clone()).unwrap();
        let request = |chunk, index| local::encode_request(ChunkId(chunk), ShardIndex(index));
        let (place, files) = ask(1, &request(400, 3)).unwrap();
        let (place, data) = (place.unwrap(), content(400));
        let mut read = vec![0; place.length as usize];
        files[0].read_exact_at(&mut read, place.offset.into()).unwrap();
        assert!(files.len() == 1 && read == data);
        let table: Vec<u32> = data.chunks(BLOCK_SIZE).map(crc32c::crc32c).collect();
        assert_eq!(*place.table, table);
        assert!(files[0].write_at(b"x", 0).is_err(), "it is open for reading");
        for (chunk, index, what) in
            [(20, 3, "in memory still"), (400, 2, "another shard"), (7, 3, "not here")]
        {
            let (place, files) = ask(1, &request(chunk, index)).unwrap();
            assert!(place.is_none() && files.is_empty(), "{what}");
        }
        assert!(ask(1, &[0; REQUEST_LENGTH]).is_none() && ask(1, b"hello").is_none(), "not a request");
        assert!(LocalDoor::open(CLUSTER, NodeId(1), store).is_err(), "a name is taken once");
        drop(door);
        assert_eq!(visit(1).unwrap_err(), nix::Error::ECONNREFUSED);
    }

    #[tokio::test]
    async fn strangers_get_nothing_and_hold_nobody_up() {
        assert!(geteuid().is_root(), "this test changes its user, which needs root");
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path(), &[400]).await;
        let _door = LocalDoor::open(CLUSTER, NodeId(2), store).unwrap();
        let request = local::encode_request(ChunkId(400), ShardIndex(3));
        let name = local::door_name(CLUSTER, NodeId(2));
        let address = UnixAddr::new_abstract(name.as_bytes()).unwrap();
        // SAFETY: the child makes system calls only, and never returns from here.
        let child = match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => child,
            ForkResult::Child => {
                let nobody = nix::libc::uid_t::from(65_534_u16);
                // SAFETY: system calls. The C library's function would stop other threads, which are not here.
                let code = unsafe {
                    let changed = nix::libc::syscall(nix::libc::SYS_setresuid, nobody, nobody, nobody);
                    let door = nix::libc::socket(nix::libc::AF_UNIX, nix::libc::SOCK_SEQPACKET, 0);
                    let connected = connect(door, &address).is_ok();
                    let _ = send(door, &request, MsgFlags::MSG_NOSIGNAL);
                    let mut answer = [0_u8; 64];
                    let received = nix::libc::recv(door, answer.as_mut_ptr().cast(), answer.len(), 0);
                    i32::from(!(changed == 0 && connected && received <= 0))
                };
                // SAFETY: ends the child without running what belongs to its parent.
                unsafe { nix::libc::_exit(code) }
            }
        };
        assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0), "nobody got an answer");
        // Who comes and says nothing does not keep others waiting for long.
        let silent = visit(2).unwrap();
        let started = std::time::Instant::now();
        assert!(ask(2, &request).unwrap().0.is_some());
        assert!(started.elapsed() < std::time::Duration::from_millis(10 * PATIENCE_MS as u64));
        drop(silent);
    }
}
