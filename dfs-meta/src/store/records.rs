//! What the store's values are: a version byte, then a protobuf message. A version this program does not know is
//! refused, never guessed. Fields may be added (absent ones read as zero); a change of meaning takes a new version.

use dfs_proto::meta::{Encoding, KeySource};
use dfs_proto::{FileKind, Timestamp};
use prost::Message;

use super::StoreError;

/// A value that says which version its bytes are.
pub trait Record: Message + Default {
    /// The version written; readers accept it only.
    const VERSION: u8 = 1;

    /// For the store.
    fn to_value(&self) -> Vec<u8> {
        let mut value = Vec::with_capacity(1 + self.encoded_len());
        value.push(Self::VERSION);
        self.encode_raw(&mut value);
        value
    }

    /// From the store.
    fn from_value(key: &[u8], value: &[u8]) -> Result<Self, StoreError> {
        let bad =
            |reason: String| StoreError::BadRecord { key: String::from_utf8_lossy(key).into_owned(), reason };
        match value.split_first() {
            Some((&version, body)) if version == Self::VERSION => {
                Self::decode(body).map_err(|error| bad(error.to_string()))
            }
            Some((version, _)) => Err(bad(format!("version {version} is not known to this program"))),
            None => Err(bad("it is empty".into())),
        }
    }
}

/// `I`: an inode.
#[derive(Clone, PartialEq, Message)]
pub struct Inode {
    /// A `FileKind`.
    #[prost(enumeration = "FileKind", tag = "1")]
    pub kind: i32,
    /// 07777
    #[prost(uint32, tag = "2")]
    pub mode: u32,
    /// Owner.
    #[prost(uint32, tag = "3")]
    pub uid: u32,
    /// Group.
    #[prost(uint32, tag = "4")]
    pub gid: u32,
    /// Dentries that name it; directories: 2 + subdirectories. 0: unlinked, kept while open.
    #[prost(uint32, tag = "5")]
    pub nlink: u32,
    /// Device number of device files.
    #[prost(uint64, tag = "6")]
    pub rdev: u64,
    /// Bytes.
    #[prost(uint64, tag = "7")]
    pub size: u64,
    /// Bytes covered by extents.
    #[prost(uint64, tag = "8")]
    pub allocated_bytes: u64,
    /// Last access.
    #[prost(message, required, tag = "9")]
    pub atime: StoredTime,
    /// Last change of contents.
    #[prost(message, required, tag = "10")]
    pub mtime: StoredTime,
    /// Last change of anything.
    #[prost(message, required, tag = "11")]
    pub ctime: StoredTime,
    /// Grows with every change of size, extents or attributes but atime.
    #[prost(uint64, tag = "12")]
    pub version: u64,
    /// A `Class`, as text.
    #[prost(string, tag = "13")]
    pub class: String,
    /// Of a symlink.
    #[prost(bytes = "vec", tag = "14")]
    pub target: Vec<u8>,
    /// Of a directory: its parent (the root's is itself). Files have back-pointers.
    #[prost(uint64, tag = "15")]
    pub parent: u64,
    /// Whether it has extended attributes at all, so that most files need no look.
    #[prost(bool, tag = "16")]
    pub has_xattrs: bool,
    /// What its data is encrypted with, a `W`; of a directory: that of what is made in it. 0: nothing.
    #[prost(uint64, tag = "17")]
    pub data_key: u64,
}

/// A `Timestamp` in a record.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct StoredTime {
    /// Since 1970; may be negative.
    #[prost(sint64, tag = "1")]
    pub seconds: i64,
    /// 0..1_000_000_000
    #[prost(uint32, tag = "2")]
    pub nanos: u32,
}

impl From<Timestamp> for StoredTime {
    fn from(time: Timestamp) -> Self {
        Self { seconds: time.seconds, nanos: time.nanos }
    }
}

impl From<StoredTime> for Timestamp {
    fn from(time: StoredTime) -> Self {
        Self { seconds: time.seconds, nanos: time.nanos }
    }
}

/// `D`: a directory entry.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Dentry {
    /// What it names.
    #[prost(uint64, tag = "1")]
    pub ino: u64,
    /// Of that inode.
    #[prost(enumeration = "FileKind", tag = "2")]
    pub kind: i32,
}

/// `P`, `B`, `R`, `G`, `O`: the key says it all.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Marker {}

/// `E`: an extent; its file offset is in the key.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct StoredExtent {
    /// Bytes, at least 1.
    #[prost(uint64, tag = "1")]
    pub length: u64,
    /// Where they are.
    #[prost(uint64, tag = "2")]
    pub chunk: u64,
    /// From here on.
    #[prost(uint64, tag = "3")]
    pub chunk_offset: u64,
}

/// `X`: an extended attribute's value.
#[derive(Clone, PartialEq, Message)]
pub struct XattrValue {
    /// Raw bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub value: Vec<u8>,
}

/// A chunk's life: planned → sealed → garbage → (its record goes when its last shard is removed).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum ChunkState {
    /// Ids handed out; shards may be being written.
    Planned = 0,
    /// Committed: durable on its shards' nodes.
    Sealed = 1,
    /// Nothing points to it; its shards go after the grace.
    Garbage = 2,
    /// Its shards are being removed.
    Removing = 3,
}

/// `C`: a chunk.
#[derive(Clone, PartialEq, Message)]
pub struct Chunk {
    /// Where in its life it is.
    #[prost(enumeration = "ChunkState", tag = "1")]
    pub state: i32,
    /// What it is kept as: a `Redundancy`, as text.
    #[prost(string, tag = "2")]
    pub redundancy: String,
    /// Bytes; 0 while planned.
    #[prost(uint64, tag = "3")]
    pub length: u64,
    /// Of the whole chunk.
    #[prost(bytes = "vec", tag = "4")]
    pub sha256: Vec<u8>,
    /// Bytes that extents point to, counted once for each extent.
    #[prost(uint64, tag = "5")]
    pub live_bytes: u64,
    /// Where its shards are.
    #[prost(message, repeated, tag = "6")]
    pub shards: Vec<Shard>,
    /// When it becomes due in the garbage queue (planned, garbage), ms since 1970.
    #[prost(uint64, tag = "7")]
    pub due_ms: u64,
    /// What its writer asked for: a `Class`, as text. Where that codes and the chunk is kept as copies, compaction may merge
    /// it into a coded one.
    #[prost(string, tag = "8")]
    pub class: String,
    /// How its content is stored; absent: as it is.
    #[prost(message, optional, tag = "9")]
    pub encoding: Option<Encoding>,
}

impl Chunk {
    /// The bytes that extents may point to.
    pub fn content_length(&self) -> u64 {
        self.encoding.as_ref().map_or(self.length, |encoding| encoding.length)
    }

    /// What it is encrypted with; 0: nothing.
    pub fn data_key(&self) -> u64 {
        self.encoding.as_ref().map_or(0, |encoding| encoding.data_key)
    }
}

/// A shard of a chunk on a node.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Shard {
    /// Which piece.
    #[prost(uint32, tag = "1")]
    pub index: u32,
    /// Where.
    #[prost(uint64, tag = "2")]
    pub node: u64,
    /// Reported missing or corrupt there: not counted, not read, to be repaired. While planned: failed to be written.
    #[prost(bool, tag = "3")]
    pub lost: bool,
    /// Lost because it is corrupt: that its node still lists it does not find it again.
    #[prost(bool, tag = "4")]
    pub corrupt: bool,
}

/// `H`: a shard that a node should hold.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Held {
    /// Which piece.
    #[prost(uint32, tag = "1")]
    pub index: u32,
    /// Bytes of it.
    #[prost(uint64, tag = "2")]
    pub length: u64,
    /// When it was sealed, ms since 1970: lists made before need not have it.
    #[prost(uint64, tag = "3")]
    pub since_ms: u64,
    /// As its chunk's record says of the shard.
    #[prost(bool, tag = "4")]
    pub lost: bool,
}

/// `N`: a chunk daemon's disk.
#[derive(Clone, PartialEq, Message)]
pub struct Node {
    /// 16 bytes made when it was formatted.
    #[prost(bytes = "vec", tag = "1")]
    pub disk: Vec<u8>,
    /// host:port
    #[prost(string, tag = "2")]
    pub address: String,
    /// Label.
    #[prost(string, tag = "3")]
    pub host: String,
    /// Label.
    #[prost(string, tag = "4")]
    pub rack: String,
    /// Label.
    #[prost(string, tag = "5")]
    pub zone: String,
    /// Grows with each join.
    #[prost(uint64, tag = "6")]
    pub epoch: u64,
    /// As told when it joined.
    #[prost(uint64, tag = "7")]
    pub capacity_bytes: u64,
    /// Of its program.
    #[prost(string, tag = "8")]
    pub version: String,
}

/// `S`: a session.
#[derive(Clone, PartialEq, Message)]
pub struct Session {
    /// Grows when it is taken over.
    #[prost(uint64, tag = "1")]
    pub epoch: u64,
    /// For people.
    #[prost(string, tag = "2")]
    pub client: String,
    /// Of its program.
    #[prost(string, tag = "3")]
    pub version: String,
}

/// `T`: the last request on a slot and what was answered.
#[derive(Clone, PartialEq, Message)]
pub struct Slot {
    /// Its number.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// An encoded `reply::Result`'s `Reply`.
    #[prost(bytes = "vec", tag = "2")]
    pub reply: Vec<u8>,
}

/// `K`: what tells whether a key is the right one. Its name is in the key of the record.
#[derive(Clone, PartialEq, Message)]
pub struct MasterKey {
    /// A `KeySource`.
    #[prost(enumeration = "KeySource", tag = "1")]
    pub source: i32,
    /// Of a passphrase.
    #[prost(bytes = "vec", tag = "2")]
    pub salt: Vec<u8>,
    /// Of a passphrase.
    #[prost(uint32, tag = "3")]
    pub rounds: u32,
    /// Computed from the key.
    #[prost(bytes = "vec", tag = "4")]
    pub check: Vec<u8>,
    /// Grows with each rotation, from 1 on.
    #[prost(uint32, tag = "5")]
    pub generation: u32,
    /// Data keys that are encrypted with it.
    #[prost(uint64, tag = "6")]
    pub data_keys: u64,
}

/// `W`: a data key, encrypted.
#[derive(Clone, PartialEq, Message)]
pub struct DataKey {
    /// The name of the key that it is encrypted with, in its present generation.
    #[prost(string, tag = "1")]
    pub key: String,
    /// Nonce, ciphertext, tag.
    #[prost(bytes = "vec", tag = "2")]
    pub wrapped: Vec<u8>,
    /// Inodes and chunks that name it. It goes with the last of them.
    #[prost(uint64, tag = "3")]
    pub users: u64,
}

/// `M`: a counter.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Counter {
    /// Its value.
    #[prost(uint64, tag = "1")]
    pub value: u64,
}

/// `M`: bytes, such as the cluster's id.
#[derive(Clone, PartialEq, Message)]
pub struct Blob {
    /// Raw bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub value: Vec<u8>,
}

impl Record for Inode {}
impl Record for Dentry {}
impl Record for Marker {}
impl Record for StoredExtent {}
impl Record for XattrValue {}
impl Record for Chunk {}
impl Record for Held {}
impl Record for Node {}
impl Record for Session {}
impl Record for Slot {}
impl Record for MasterKey {}
impl Record for DataKey {}
impl Record for Counter {}
impl Record for Blob {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_version_is_refused() {
        let mut value = Counter { value: 7 }.to_value();
        assert_eq!(Counter::from_value(b"Mx", &value).expect("just written").value, 7);
        value[0] = 99;
        assert!(matches!(Counter::from_value(b"Mx", &value), Err(StoreError::BadRecord { .. })));
        assert!(Counter::from_value(b"Mx", &[]).is_err());
        assert!(Inode::from_value(b"I", &[1, 0xff, 0xff]).is_err());
    }
}
