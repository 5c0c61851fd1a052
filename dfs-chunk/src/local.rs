//! The door to clients on this machine: hands them open shard files, which they read and verify themselves
//! (`dfs_proto::local`).
//!
//! Only root and this daemon's own user get any: a file is all of a shard, whoever's data that is. One thread answers one
//! connection after the other: a client asks once for each shard, and goes to the network's door when this one is slow.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

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
            // Ends when the socket is shut down.
            loop {
                match accept4(listening.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
                    // SAFETY: accept4 has just made it, and nobody else has it.
                    Ok(client) => answer(unsafe { std::os::fd::FromRawFd::from_raw_fd(client) }, &store),
                    Err(nix::Error::EINVAL) => return,
                    Err(nix::Error::EINTR | nix::Error::ECONNABORTED) => {}
                    Err(error) => {
                        tracing::warn!(%error, "clients on this machine read through the network from now on");
                        return;
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
        // In memory only, not here, or damaged: the network's door has the words for it.
        Ok(OpenShard::Logged(_)) | Err(_) => None,
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
