//! A chunk daemon's door to its own machine (`dfs_proto::local`), and files to hand out there.

use std::fs::File;
use std::io::{IoSlice, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::thread::JoinHandle;

use dfs_proto::NodeId;
use dfs_proto::limits::BLOCK_SIZE;
use dfs_proto::local::{self, ShardPlace};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, Shutdown, SockFlag, SockType, UnixAddr, accept, bind,
    listen, recv, sendmsg, shutdown, socket,
};
use tempfile::NamedTempFile;

use super::CLUSTER;

/// Where a shard's data begins in its file.
pub(crate) const DATA_AT: u32 = 100;

/// A door that hands one file to everybody who asks, with what it says of it.
pub(crate) struct LocalDoor {
    listener: OwnedFd,
    thread: JoinHandle<usize>,
}

impl LocalDoor {
    pub(crate) fn open(node: u64, file: &File, place: ShardPlace) -> Self {
        let listener = listen_for(node, 8);
        let (listening, file) = (listener.as_raw_fd(), file.try_clone().unwrap());
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
        Self { listener, thread }
    }

    /// How often it handed the file over.
    pub(crate) fn close(self) -> usize {
        shutdown(self.listener.as_raw_fd(), Shutdown::Both).unwrap();
        self.thread.join().unwrap()
    }
}

/// The socket of a node's door, behind which nobody is yet.
pub(crate) fn listen_for(node: u64, backlog: i32) -> OwnedFd {
    let listener = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
    let name = local::door_name(CLUSTER, NodeId(node));
    bind(listener.as_raw_fd(), &UnixAddr::new_abstract(name.as_bytes()).unwrap()).unwrap();
    listen(&listener, Backlog::new(backlog).unwrap()).unwrap();
    listener
}

/// A number for a node with a door: doors have their names in common with every other test on this machine.
pub(crate) fn unused_node() -> u64 {
    rand::random()
}

/// A shard's file, and what its daemon says of it.
pub(crate) fn shard_file(data: &[u8]) -> (NamedTempFile, ShardPlace) {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(&[7; DATA_AT as usize]).unwrap();
    file.write_all(data).unwrap();
    let table = data.chunks(BLOCK_SIZE).map(crc32c::crc32c).collect();
    (file, ShardPlace { offset: DATA_AT, length: data.len() as u32, table })
}
