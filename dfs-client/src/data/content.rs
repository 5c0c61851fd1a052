//! The content of chunks: their bytes where they are stored as they are, else decompressed and decrypted.
//!
//! The index of an encoded chunk is read once and kept. A chunk that fits a frame is read whole as long as its index is not
//! known, so that reading a small file takes one request.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::{Bytes, BytesMut};
use dfs_proto::encoding::Index;
use dfs_proto::limits::{BLOCK_SIZE, MAX_FRAME_DATA};
use dfs_proto::meta::{ChunkPlan, Encoding, ShardPlan};
use dfs_proto::{Code, Failure, Redundancy};
use futures::future::try_join_all;
use lru::LruCache;

use crate::chunk::ChunkIo;
use crate::encoding::Decoder;
use crate::keys::Keyring;

/// Indexes kept: of at most 20 KiB each.
const MAX_INDEXES: NonZeroUsize = NonZeroUsize::new(512).unwrap();
/// Decompressing more than this is not done on a thread that others wait for.
const INLINE_DECODE_BYTES: usize = 128 * 1024;
/// Shards of a chunk: 16 + 4.
const MAX_SHARDS: usize = 20;
/// Choices of shards tried when some hold what they should not: all that there are for up to 4+2.
const MAX_TRIES: usize = 64;

/// Reads the content of chunks.
pub(super) struct Contents {
    io: Arc<ChunkIo>,
    keys: Arc<Keyring>,
    indexes: Mutex<LruCache<u64, Arc<Index>>>,
}

/// Some blocks of a chunk as they are stored, from some byte on.
struct Stored {
    start: u64,
    bytes: Bytes,
}

impl Contents {
    pub(super) fn new(io: Arc<ChunkIo>, keys: Arc<Keyring>) -> Self {
        Self { io, keys, indexes: Mutex::new(LruCache::new(MAX_INDEXES)) }
    }

    /// The blocks `range` of a chunk's content, of one frame, in a buffer of their own. NO_KEY; NOT_FOUND or CORRUPT as
    /// [`ChunkIo::read`].
    pub(super) async fn read(&self, plan: &ChunkPlan, range: Range<u32>) -> Result<Bytes, Failure> {
        let Some(encoding) = &plan.encoding else { return self.io.read(plan, range).await };
        let data_key = match encoding.data_key {
            0 => None,
            id => Some(self.keys.data_key(id).await?),
        };
        let decoder = Arc::new(Decoder::new(encoding, plan.length, data_key.as_deref())?);
        match self.decoded(plan, encoding, &decoder, &range).await {
            Err(failure) if failure.code == Code::Corrupt => {
                self.without_some(plan, encoding, &decoder, &range, failure).await
            }
            decoded => decoded,
        }
    }

    /// Bytes with good checksums are not what was encoded: some shard holds what it should not. Tries what is left without
    /// each of them, then without two, and so on. A copy that fails alone is told to the metadata server.
    async fn without_some(
        &self,
        plan: &ChunkPlan,
        encoding: &Encoding,
        decoder: &Arc<Decoder>,
        range: &Range<u32>,
        failure: Failure,
    ) -> Result<Bytes, Failure> {
        tracing::error!(chunk = plan.chunk, %failure, "a shard is not what was written: trying others");
        let redundancy: Redundancy = plan.redundancy.parse()?;
        let mut content = Err(failure);
        for shards in choices(&plan.shards, redundancy.needed_to_read() as usize).take(MAX_TRIES) {
            self.indexes().pop(&plan.chunk);
            let some = ChunkPlan { shards, ..plan.clone() };
            match self.decoded(&some, encoding, decoder, range).await {
                Ok(decoded) => {
                    content = Ok(decoded);
                    // Of copies all are looked at, so that all bad ones are told.
                    if some.shards.len() > 1 {
                        break;
                    }
                }
                Err(failure) if failure.code == Code::Corrupt => {
                    if let [ShardPlan { node: Some(node), .. }] = &some.shards[..] {
                        self.io.report(plan.chunk, node.node, Code::Corrupt);
                    }
                }
                Err(_) => {}
            }
        }
        self.indexes().pop(&plan.chunk);
        content
    }

    async fn decoded(
        &self,
        plan: &ChunkPlan,
        encoding: &Encoding,
        decoder: &Arc<Decoder>,
        range: &Range<u32>,
    ) -> Result<Bytes, Failure> {
        let known = self.indexes().get(&plan.chunk).cloned();
        let (index, stored) = match known {
            Some(index) => {
                let stored = self.stored(plan, index.range(range)).await?;
                (index, stored)
            }
            None if plan.length <= MAX_FRAME_DATA as u64 => {
                let stored = self.stored(plan, 0..plan.length).await?;
                (self.learn(plan, decoder, &stored)?, stored)
            }
            None => {
                let stored = self.stored(plan, decoder.layout().index()).await?;
                let index = self.learn(plan, decoder, &stored)?;
                let stored = self.stored(plan, index.range(range)).await?;
                (index, stored)
            }
        };
        let bytes = stored.within(&index.range(range))?;
        let (decoder, range) = (Arc::clone(decoder), range.clone());
        let is_slow = encoding.compression != 0 && range.len() * BLOCK_SIZE > INLINE_DECODE_BYTES;
        if !is_slow {
            return decoder.decode(&index, range, &bytes);
        }
        let decoding = tokio::task::spawn_blocking(move || decoder.decode(&index, range, &bytes));
        decoding
            .await
            .map_err(|error| Failure::new(Code::InputOutput, format!("decoding failed: {error}")))?
    }

    /// Reads the index from bytes that have it, and keeps it.
    fn learn(&self, plan: &ChunkPlan, decoder: &Decoder, stored: &Stored) -> Result<Arc<Index>, Failure> {
        let layout = decoder.layout();
        let index = Arc::new(layout.parse(&stored.within(&layout.index())?)?);
        self.indexes().put(plan.chunk, Arc::clone(&index));
        Ok(index)
    }

    /// The blocks that have these bytes of the stored chunk.
    async fn stored(&self, plan: &ChunkPlan, bytes: Range<u64>) -> Result<Stored, Failure> {
        const FRAME_BLOCKS: u32 = (MAX_FRAME_DATA / BLOCK_SIZE) as u32;
        let block = BLOCK_SIZE as u64;
        let blocks = (bytes.start / block) as u32..bytes.end.div_ceil(block) as u32;
        let start = u64::from(blocks.start) * block;
        let ends = (blocks.start..blocks.end).step_by(FRAME_BLOCKS as usize);
        let reads = ends.map(|first| self.io.read(plan, first..(first + FRAME_BLOCKS).min(blocks.end)));
        let mut parts = try_join_all(reads).await?;
        let bytes = match parts.len() {
            1 => parts.remove(0),
            _ => parts
                .iter()
                .fold(BytesMut::new(), |mut all, part| {
                    all.extend_from_slice(part);
                    all
                })
                .freeze(),
        };
        Ok(Stored { start, bytes })
    }

    fn indexes(&self) -> MutexGuard<'_, LruCache<u64, Arc<Index>>> {
        self.indexes.lock().expect("nothing panics while it holds the indexes")
    }
}

/// The shards that a chunk may be read from: copies each by itself, of coded ones all but one, all but two, and so on while
/// there are enough.
fn choices(shards: &[ShardPlan], needed: usize) -> impl Iterator<Item = Vec<ShardPlan>> {
    let most = shards.len().saturating_sub(needed);
    let sizes = if needed == 1 { most..=most } else { 1..=most };
    let masks = sizes.flat_map(|left_out: usize| {
        (1_u32..1 << shards.len().min(MAX_SHARDS)).filter(move |mask| mask.count_ones() as usize == left_out)
    });
    masks.map(|mask| {
        let kept = shards.iter().enumerate().filter(|(at, _)| mask & (1 << at) == 0);
        kept.map(|(_, shard)| shard.clone()).collect()
    })
}

impl Stored {
    /// Some bytes of the stored chunk. CORRUPT when they are not here.
    fn within(&self, range: &Range<u64>) -> Result<Bytes, Failure> {
        let from = range.start.checked_sub(self.start).map(|from| from as usize);
        let to = range.end.checked_sub(self.start).map(|to| to as usize);
        match (from, to) {
            (Some(from), Some(to)) if from <= to && to <= self.bytes.len() => Ok(self.bytes.slice(from..to)),
            _ => Err(Failure::new(Code::Corrupt, "a chunk is shorter than its record says")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shards(count: u32) -> Vec<ShardPlan> {
        (0..count).map(|index| ShardPlan { index, node: None }).collect()
    }

    fn indexes(choice: &[ShardPlan]) -> Vec<u32> {
        choice.iter().map(|shard| shard.index).collect()
    }

    #[test]
    fn copies_are_tried_alone_and_coded_shards_without_ever_more() {
        let copies: Vec<_> = choices(&shards(3), 1).collect();
        assert_eq!(copies.iter().map(|choice| indexes(choice)).collect::<Vec<_>>(), [[2], [1], [0]]);
        let coded: Vec<_> = choices(&shards(6), 4).collect();
        assert_eq!(coded.len(), 6 + 15);
        assert!(coded.len() <= MAX_TRIES);
        assert_eq!((indexes(&coded[0]), indexes(&coded[6])), (vec![1, 2, 3, 4, 5], vec![2, 3, 4, 5]));
        assert_eq!(
            choices(&shards(4), 4).count() + choices(&shards(1), 1).count(),
            0,
            "nothing to leave out"
        );
    }
}
