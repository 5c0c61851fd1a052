//! The block cache: 64 KiB blocks of chunks, by (chunk, block). Chunks never change, so a block here is never stale.
//!
//! Each block has a buffer of exactly its size, so that the cache's weight is the memory it takes. The least recently
//! used go first: what was read ahead must stay until its reader comes.

use bytes::Bytes;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

/// What an entry takes besides its bytes.
const ENTRY_OVERHEAD: usize = 256;

/// A chunk and the number of a block in it.
pub(super) type BlockKey = (u64, u32);

/// Blocks that were read or written lately.
#[derive(Debug)]
pub(super) struct BlockCache {
    blocks: Cache<BlockKey, Bytes>,
}

impl BlockCache {
    /// A cache that takes about `capacity_bytes` of memory.
    pub(super) fn new(capacity_bytes: usize) -> Self {
        let blocks = Cache::builder()
            .max_capacity(capacity_bytes as u64)
            .weigher(|_: &BlockKey, block: &Bytes| (block.len() + ENTRY_OVERHEAD) as u32)
            .eviction_policy(EvictionPolicy::lru())
            .build();
        Self { blocks }
    }

    /// The block, if it is here.
    pub(super) fn get(&self, key: BlockKey) -> Option<Bytes> {
        self.blocks.get(&key)
    }

    /// Keeps a block, whose buffer is its own.
    pub(super) fn insert(&self, key: BlockKey, block: Bytes) {
        self.blocks.insert(key, block);
    }
}
