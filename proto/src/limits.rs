//! Every number that two processes must agree on, in one place.

use std::time::Duration;

/// The one small unit: of checksums, of the client's cache, of erasure-coding cells.
pub const BLOCK_SIZE: usize = 64 * 1024;
/// The longest chunk.
pub const MAX_CHUNK_LENGTH: u64 = 64 * 1024 * 1024;
/// The longest content of a chunk that is compressed or encrypted, and what one flush packs at most: the rest is room for
/// the chunk's index.
pub const MAX_CONTENT_LENGTH: u64 = MAX_CHUNK_LENGTH - 1024 * 1024;
/// The largest data field of one frame of chunk data.
pub const MAX_FRAME_DATA: usize = 1024 * 1024;
/// The largest message on any connection; frames and pages stay below it.
pub const MAX_MESSAGE: usize = 4 * 1024 * 1024;
/// The longest call, or answer to one, that a stream of many may carry beside its tag.
pub const MAX_TAGGED: usize = MAX_MESSAGE - 64;
/// What both ends of a connection accept as one HTTP/2 frame, so that a frame of chunk data is written and read at once
/// and not in the 16 KiB pieces that are the protocol's default.
pub const MAX_HTTP2_FRAME: u32 = 2 * 1024 * 1024;

/// The longest name of a directory entry, in bytes.
pub const MAX_NAME: usize = 255;
/// The longest symlink target, in bytes.
pub const MAX_SYMLINK: usize = 4095;
/// The longest name of an extended attribute, in bytes.
pub const MAX_XATTR_NAME: usize = 255;
/// The largest value of an extended attribute, in bytes.
pub const MAX_XATTR_VALUE: usize = 64 * 1024;
/// All names and values of one inode's extended attributes together, in bytes.
pub const MAX_XATTR_TOTAL: usize = 256 * 1024;
/// The largest file: offsets are signed in the kernel.
pub const MAX_FILE_SIZE: u64 = i64::MAX as u64;
/// Names that one inode may have.
pub const MAX_LINKS: u32 = 65_000;

/// Entries in one directory page.
pub const MAX_DIRECTORY_ENTRIES: u32 = 4096;
/// Extents in one plan.
pub const MAX_PLAN_EXTENTS: u32 = 4096;
/// Extents in one commit, over all its files.
pub const MAX_COMMIT_EXTENTS: usize = 16_384;
/// Files in one commit.
pub const MAX_COMMIT_FILES: usize = 4096;
/// Rounds of PBKDF2-HMAC-SHA256 that a passphrase's key takes at least.
pub const MIN_PASSPHRASE_ROUNDS: u32 = 600_000;
/// Data keys of one key: a rotation is one operation.
pub const MAX_DATA_KEYS: usize = 8192;
/// Data keys in one list.
pub const MAX_DATA_KEYS_PAGE: usize = 1024;
/// Keys of a cluster, and those that a client says it has.
pub const MAX_KEYS: usize = 64;
/// Chunks in one commit, and in one allocation.
pub const MAX_COMMIT_CHUNKS: usize = 256;
/// Locks in one reclaim, and open inodes in one reclaim or close.
pub const MAX_RECLAIM_ITEMS: usize = 8192;
/// Shards in one page of a node's inventory.
pub const MAX_INVENTORY_PAGE: usize = 8192;
/// Chunks to delete in one answer to a node's heartbeat.
pub const MAX_DELETE_ORDERS: usize = 1024;
/// Chunks in one page of all of them.
pub const MAX_CHUNK_PAGE: u32 = 1024;

/// Changing requests a session may have in flight, one on each slot.
pub const SESSION_SLOTS: u32 = 64;
/// A session or node that is not heard of for so long is fenced.
pub const SESSION_TIMEOUT: Duration = Duration::from_secs(20);
/// How often sessions and nodes say that they live.
pub const HEARTBEAT: Duration = Duration::from_secs(5);
/// A node is suspect after so long without a heartbeat.
pub const NODE_SUSPECT_AFTER: Duration = Duration::from_secs(10);
/// The deadline of one call, unless it streams.
pub const RPC_DEADLINE: Duration = Duration::from_secs(10);
/// How long a planned chunk may wait for its commit.
pub const PLAN_LIFETIME: Duration = Duration::from_secs(600);

/// Where a metadata server listens unless told otherwise.
pub const DEFAULT_META_PORT: u16 = 7600;
/// Where a chunk daemon listens unless told otherwise.
pub const DEFAULT_CHUNK_PORT: u16 = 7610;
