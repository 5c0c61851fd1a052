//! The only file that encodes keys. One letter, then fixed-width big-endian numbers, then a name where there is one,
//! so that keys sort as their fields do.
//!
//! | key | value |
//! |---|---|
//! | `I ino` | inode |
//! | `D parent cookie name` | dentry; the cookie is `Name::cookie()` |
//! | `P ino parent name` | back-pointer of a dentry |
//! | `E ino offset` | extent |
//! | `X ino name` | extended attribute |
//! | `C chunk` | chunk |
//! | `B chunk ino offset` | an extent that points into the chunk |
//! | `H node chunk` | a shard that a node should hold |
//! | `R node chunk` | a shard that a node is to remove |
//! | `G due chunk` | chunks to look at for garbage, by time (ms since 1970) |
//! | `N node` | chunk daemon |
//! | `S session` | session |
//! | `T session slot` | the slot's last number and reply |
//! | `O session ino` | unlinked, but open in that session (0: waiting to be purged) |
//! | `K name` | a key of the cluster |
//! | `W key` | a data key, encrypted with one |
//! | `M name` | counters and settings of the whole filesystem |

use dfs_proto::{ChunkId, Ino, Name, NodeId, SessionId};

/// An encoded key.
pub type Key = Vec<u8>;

/// `start..end`, both encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    /// Inclusive.
    pub start: Key,
    /// Exclusive.
    pub end: Key,
}

fn build(tag: u8, numbers: &[u64], tail: &[u8]) -> Key {
    let mut key = Vec::with_capacity(1 + numbers.len() * 8 + tail.len());
    key.push(tag);
    for number in numbers {
        key.extend_from_slice(&number.to_be_bytes());
    }
    key.extend_from_slice(tail);
    key
}

/// All keys that begin with `prefix`.
fn prefix(prefix: Key) -> KeyRange {
    let mut end = prefix.clone();
    while end.last() == Some(&0xff) {
        end.pop();
    }
    // The first byte is a letter, so something is left to increment.
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    KeyRange { start: prefix, end }
}

fn number_at(key: &[u8], index: usize) -> u64 {
    let at = 1 + index * 8;
    let bytes = key.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
    u64::from_be_bytes(bytes.expect("a key from a scan of its own table has all its numbers"))
}

/// An inode.
pub fn inode(ino: Ino) -> Key {
    build(b'I', &[ino.0], &[])
}

/// All inodes.
pub fn inodes() -> KeyRange {
    prefix(vec![b'I'])
}

/// The number in an inode's key.
pub fn inode_number(key: &[u8]) -> Ino {
    Ino(number_at(key, 0))
}

/// A directory entry.
pub fn dentry(parent: Ino, name: &Name) -> Key {
    build(b'D', &[parent.0, name.cookie()], name.as_bytes())
}

/// The entries of a directory whose cookie is greater than `cookie`.
pub fn dentries_after(parent: Ino, cookie: u64) -> KeyRange {
    KeyRange {
        start: build(b'D', &[parent.0, cookie.saturating_add(1)], &[]),
        end: prefix(build(b'D', &[parent.0], &[])).end,
    }
}

/// The cookie and the name in a dentry's key.
pub fn dentry_parts(key: &[u8]) -> (u64, &[u8]) {
    (number_at(key, 1), &key[17..])
}

/// The entries of all directories.
pub fn all_dentries() -> KeyRange {
    prefix(vec![b'D'])
}

/// The directory in a dentry's key.
pub fn dentry_parent(key: &[u8]) -> Ino {
    Ino(number_at(key, 0))
}

/// The back-pointer of a directory entry.
pub fn back_pointer(ino: Ino, parent: Ino, name: &Name) -> Key {
    build(b'P', &[ino.0, parent.0], name.as_bytes())
}

/// All names of an inode.
pub fn back_pointers(ino: Ino) -> KeyRange {
    prefix(build(b'P', &[ino.0], &[]))
}

/// The parent and the name in a back-pointer's key.
pub fn back_pointer_parts(key: &[u8]) -> (Ino, &[u8]) {
    (Ino(number_at(key, 1)), &key[17..])
}

/// The back-pointers of all inodes.
pub fn all_back_pointers() -> KeyRange {
    prefix(vec![b'P'])
}

/// The inode in a back-pointer's key.
pub fn back_pointer_inode(key: &[u8]) -> Ino {
    Ino(number_at(key, 0))
}

/// An extent.
pub fn extent(ino: Ino, offset: u64) -> Key {
    build(b'E', &[ino.0, offset], &[])
}

/// The extents of an inode that start in `start..end`.
pub fn extents(ino: Ino, start: u64, end: u64) -> KeyRange {
    KeyRange { start: extent(ino, start), end: extent(ino, end) }
}

/// The file offset in an extent's key.
pub fn extent_offset(key: &[u8]) -> u64 {
    number_at(key, 1)
}

/// The extents of all inodes.
pub fn all_extents() -> KeyRange {
    prefix(vec![b'E'])
}

/// The inode in an extent's key.
pub fn extent_inode(key: &[u8]) -> Ino {
    Ino(number_at(key, 0))
}

/// An extended attribute.
pub fn xattr(ino: Ino, name: &[u8]) -> Key {
    build(b'X', &[ino.0], name)
}

/// All extended attributes of an inode.
pub fn xattrs(ino: Ino) -> KeyRange {
    prefix(build(b'X', &[ino.0], &[]))
}

/// The name in an extended attribute's key.
pub fn xattr_name(key: &[u8]) -> &[u8] {
    &key[9..]
}

/// The extended attributes of all inodes.
pub fn all_xattrs() -> KeyRange {
    prefix(vec![b'X'])
}

/// The inode in an extended attribute's key.
pub fn xattr_inode(key: &[u8]) -> Ino {
    Ino(number_at(key, 0))
}

/// A chunk.
pub fn chunk(chunk: ChunkId) -> Key {
    build(b'C', &[chunk.0], &[])
}

/// The chunks with `first <= id <= last`.
pub fn chunks(first: ChunkId, last: ChunkId) -> KeyRange {
    let mut end = build(b'C', &[last.0], &[]);
    end.push(0);
    KeyRange { start: build(b'C', &[first.0], &[]), end }
}

/// The id in a chunk's key.
pub fn chunk_id(key: &[u8]) -> ChunkId {
    ChunkId(number_at(key, 0))
}

/// That an extent points into a chunk.
pub fn chunk_user(chunk: ChunkId, ino: Ino, offset: u64) -> Key {
    build(b'B', &[chunk.0, ino.0, offset], &[])
}

/// All extents that point into a chunk.
pub fn chunk_users(chunk: ChunkId) -> KeyRange {
    prefix(build(b'B', &[chunk.0], &[]))
}

/// The inode and the file offset in a chunk user's key.
pub fn chunk_user_parts(key: &[u8]) -> (Ino, u64) {
    (Ino(number_at(key, 1)), number_at(key, 2))
}

/// The users of all chunks.
pub fn all_chunk_users() -> KeyRange {
    prefix(vec![b'B'])
}

/// The chunk in a chunk user's key.
pub fn chunk_user_chunk(key: &[u8]) -> ChunkId {
    ChunkId(number_at(key, 0))
}

/// A shard that a node should hold.
pub fn held(node: NodeId, chunk: ChunkId) -> Key {
    build(b'H', &[node.0, chunk.0], &[])
}

/// The shards that a node should hold, of chunks `first..=last`.
pub fn held_by(node: NodeId, first: ChunkId, last: ChunkId) -> KeyRange {
    let mut end = held(node, last);
    end.push(0);
    KeyRange { start: held(node, first), end }
}

/// A shard that a node is to remove.
pub fn removal(node: NodeId, chunk: ChunkId) -> Key {
    build(b'R', &[node.0, chunk.0], &[])
}

/// All shards that a node is to remove.
pub fn removals(node: NodeId) -> KeyRange {
    prefix(build(b'R', &[node.0], &[]))
}

/// The chunk in the key of a held shard or of a removal.
pub fn shard_chunk(key: &[u8]) -> ChunkId {
    ChunkId(number_at(key, 1))
}

/// A chunk to look at when `due_ms` has come.
pub fn garbage(due_ms: u64, chunk: ChunkId) -> Key {
    build(b'G', &[due_ms, chunk.0], &[])
}

/// What is due up to and with `now_ms`.
pub fn garbage_due(now_ms: u64) -> KeyRange {
    KeyRange { start: build(b'G', &[], &[]), end: build(b'G', &[now_ms.saturating_add(1)], &[]) }
}

/// The due time and the chunk in a garbage key.
pub fn garbage_parts(key: &[u8]) -> (u64, ChunkId) {
    (number_at(key, 0), ChunkId(number_at(key, 1)))
}

/// A chunk daemon.
pub fn node(node: NodeId) -> Key {
    build(b'N', &[node.0], &[])
}

/// All chunk daemons.
pub fn nodes() -> KeyRange {
    prefix(vec![b'N'])
}

/// The id in a node's key.
pub fn node_id(key: &[u8]) -> NodeId {
    NodeId(number_at(key, 0))
}

/// A session.
pub fn session(session: SessionId) -> Key {
    build(b'S', &[session.0], &[])
}

/// All sessions.
pub fn sessions() -> KeyRange {
    prefix(vec![b'S'])
}

/// The id in a session's key.
pub fn session_id(key: &[u8]) -> SessionId {
    SessionId(number_at(key, 0))
}

/// A session's slot.
pub fn slot(session: SessionId, slot: u32) -> Key {
    build(b'T', &[session.0, slot.into()], &[])
}

/// All slots of a session.
pub fn slots(session: SessionId) -> KeyRange {
    prefix(build(b'T', &[session.0], &[]))
}

/// An inode without a name that a session has open; session 0: nobody any more, to be purged.
pub fn orphan(session: SessionId, ino: Ino) -> Key {
    build(b'O', &[session.0, ino.0], &[])
}

/// All unnamed inodes of a session.
pub fn orphans(session: SessionId) -> KeyRange {
    prefix(build(b'O', &[session.0], &[]))
}

/// The unnamed inodes of this session and all later ones.
pub fn orphans_from(session: SessionId) -> KeyRange {
    KeyRange { start: build(b'O', &[session.0], &[]), end: prefix(vec![b'O']).end }
}

/// The session and the inode in an orphan's key.
pub fn orphan_parts(key: &[u8]) -> (SessionId, Ino) {
    (SessionId(number_at(key, 0)), Ino(number_at(key, 1)))
}

/// A key of the cluster.
pub fn master_key(name: &str) -> Key {
    build(b'K', &[], name.as_bytes())
}

/// All keys of the cluster.
pub fn master_keys() -> KeyRange {
    prefix(vec![b'K'])
}

/// The name in the record of a key.
pub fn master_key_name(key: &[u8]) -> String {
    String::from_utf8_lossy(&key[1..]).into_owned()
}

/// A data key.
pub fn data_key(id: u64) -> Key {
    build(b'W', &[id], &[])
}

/// The data keys after `id`.
pub fn data_keys_after(id: u64) -> KeyRange {
    KeyRange { start: data_key(id.saturating_add(1)), end: prefix(vec![b'W']).end }
}

/// The id of a data key.
pub fn data_key_id(key: &[u8]) -> u64 {
    number_at(key, 0)
}

/// A counter or setting of the whole filesystem.
pub fn setting(name: &str) -> Key {
    build(b'M', &[], name.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_sort_as_their_numbers_do() {
        assert!(extent(Ino(1), 255) < extent(Ino(1), 256));
        assert!(extent(Ino(1), u64::MAX) < extent(Ino(2), 0));
        assert_eq!(extent_offset(&extent(Ino(1), 77)), 77);
        let name = Name::parse(&b"n"[..]).expect("a good name");
        let key = dentry(Ino(9), &name);
        assert_eq!(dentry_parts(&key), (name.cookie(), &b"n"[..]));
        let all = dentries_after(Ino(9), 0);
        assert!(all.start <= key && key < all.end);
        assert!(key < dentries_after(Ino(9), name.cookie()).start);
    }

    #[test]
    fn a_prefix_covers_its_keys_and_no_others() {
        let range = orphans(SessionId(u64::MAX));
        assert!(range.start <= orphan(SessionId(u64::MAX), Ino(u64::MAX)));
        assert!(orphan(SessionId(u64::MAX), Ino(u64::MAX)) < range.end);
        assert!(range.end <= node(NodeId(0)) || range.end <= vec![b'P']);
    }
}
