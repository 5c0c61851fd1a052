//! How the content of a chunk is stored where the class compresses or encrypts.
//!
//! The content is cut into blocks, and each is stored by itself, so that reading a few bytes takes one block:
//!
//! ```text
//! stored chunk:  block 0 | block 1 | ... | block n-1 | entry 0 | entry 1 | ... | entry n-1
//! entry:         [stored length, 4 bytes, little-endian: where blocks are compressed] [tag, 16 bytes: where encrypted]
//! ```
//!
//! A block is compressed, then encrypted. It is compressed where that makes it shorter than it is, and only then. Without
//! compression a block is stored where it is in the content, so that what is aligned stays aligned.
//!
//! How long the content is, and what it takes to read it, is in the chunk's record ([`Encoding`]), so that chunks can be copied,
//! moved and checked as they are.

use std::ops::Range;

use crate::common::Code;
use crate::error::Failure;
use crate::limits::{BLOCK_SIZE, MAX_CHUNK_LENGTH, MAX_CONTENT_LENGTH};
use crate::meta::{ChunkPlan, Compression, Encoding};

/// Bytes of a salt.
pub const SALT_LENGTH: usize = 16;
/// Bytes of an authentication tag.
pub const TAG_LENGTH: usize = 16;
/// Bytes of a wrapped data key: nonce, ciphertext, tag.
pub const WRAPPED_LENGTH: usize = 12 + 32 + TAG_LENGTH;
/// Bytes of a stored length.
const LENGTH_FIELD: usize = 4;

/// The layout of one encoded chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    content: u64,
    stored: u64,
    is_compressed: bool,
    is_encrypted: bool,
}

/// Where the blocks of one chunk are, and their tags: its index, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// For each block its end in the stored chunk.
    ends: Vec<u32>,
    /// One behind the other; empty where nothing is encrypted.
    tags: Vec<u8>,
}

/// A block as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredBlock {
    /// Its bytes in the stored chunk; shorter than the block where it is compressed.
    pub range: Range<u64>,
    /// Where it is encrypted.
    pub tag: Option<[u8; TAG_LENGTH]>,
}

impl Encoding {
    /// The layout of a chunk of `stored` bytes. INVALID when there is none: on what comes from the wire.
    pub fn layout(&self, stored: u64) -> Result<Layout, Failure> {
        let compression = Compression::try_from(self.compression);
        let layout = Layout {
            content: self.length,
            stored,
            is_compressed: compression.is_ok_and(|known| known != Compression::Uncompressed),
            is_encrypted: self.data_key != 0,
        };
        let salt = if layout.is_encrypted { SALT_LENGTH } else { 0 };
        let sizes = (1..=MAX_CONTENT_LENGTH).contains(&self.length) && stored <= MAX_CHUNK_LENGTH;
        if compression.is_err() || !sizes || self.salt.len() != salt || layout.entry_length() == 0 {
            return Err(Failure::new(Code::Invalid, "an encoding that says nothing, or is not known"));
        }
        let body = stored.checked_sub(layout.index_length());
        // Nothing is stored longer than it is.
        if body
            .is_none_or(|body| body > self.length || body == 0 || !layout.is_compressed && body < self.length)
        {
            let message = format!("{stored} bytes cannot hold a content of {} so encoded", self.length);
            return Err(Failure::new(Code::Invalid, message));
        }
        Ok(layout)
    }
}

impl ChunkPlan {
    /// The bytes that extents may point to.
    pub fn content_length(&self) -> u64 {
        self.encoding.as_ref().map_or(self.length, |encoding| encoding.length)
    }
}

impl Layout {
    /// Blocks of the content.
    pub fn blocks(&self) -> u32 {
        self.content.div_ceil(BLOCK_SIZE as u64) as u32
    }

    /// The bytes of a block of the content.
    pub fn block_length(&self, block: u32) -> usize {
        let before = u64::from(block) * BLOCK_SIZE as u64;
        self.content.saturating_sub(before).min(BLOCK_SIZE as u64) as usize
    }

    /// Where the index is in the stored chunk: at its end.
    pub fn index(&self) -> Range<u64> {
        self.stored - self.index_length()..self.stored
    }

    fn index_length(&self) -> u64 {
        u64::from(self.blocks()) * self.entry_length() as u64
    }

    fn entry_length(&self) -> usize {
        LENGTH_FIELD * usize::from(self.is_compressed) + TAG_LENGTH * usize::from(self.is_encrypted)
    }

    /// Reads an index. CORRUPT when it doesn't fit.
    pub fn parse(&self, index: &[u8]) -> Result<Index, Failure> {
        let corrupt = || Failure::new(Code::Corrupt, "the index of a chunk does not fit its blocks");
        if index.len() as u64 != self.index_length() {
            return Err(corrupt());
        }
        let (mut ends, mut tags) = (Vec::with_capacity(self.blocks() as usize), Vec::new());
        let mut end = 0;
        for (block, entry) in (0..).zip(index.chunks_exact(self.entry_length())) {
            let length = self.block_length(block) as u32;
            let (stored, tag) = match self.is_compressed {
                true => {
                    let (field, tag) = entry.split_first_chunk::<LENGTH_FIELD>().ok_or_else(corrupt)?;
                    (u32::from_le_bytes(*field), tag)
                }
                false => (length, entry),
            };
            if stored == 0 || stored > length {
                return Err(corrupt());
            }
            // At most the content's length: no overflow.
            end += stored;
            ends.push(end);
            tags.extend_from_slice(tag);
        }
        (u64::from(end) == self.index().start).then_some(Index { ends, tags }).ok_or_else(corrupt)
    }
}

impl Index {
    /// A block, one that the content has.
    pub fn block(&self, block: u32) -> StoredBlock {
        let at = block as usize;
        let start = at.checked_sub(1).map_or(0, |before| self.ends[before]);
        let tag = self.tags.as_chunks::<TAG_LENGTH>().0.get(at).copied();
        StoredBlock { range: u64::from(start)..u64::from(self.ends[at]), tag }
    }

    /// Where some blocks are stored, which the content has.
    pub fn range(&self, blocks: &Range<u32>) -> Range<u64> {
        match blocks.is_empty() {
            true => 0..0,
            false => self.block(blocks.start).range.start..self.block(blocks.end - 1).range.end,
        }
    }
}

/// Appends the entry of a block to an index that is being written: its stored length where blocks are compressed, its tag
/// where they are encrypted.
pub fn put_entry(index: &mut Vec<u8>, stored: Option<u32>, tag: Option<[u8; TAG_LENGTH]>) {
    index.extend(stored.map(u32::to_le_bytes).into_iter().flatten());
    index.extend(tag.into_iter().flatten());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoding(length: u64, compression: Compression, is_encrypted: bool) -> Encoding {
        Encoding {
            length,
            compression: compression.into(),
            data_key: u64::from(is_encrypted) * 7,
            salt: vec![1; if is_encrypted { SALT_LENGTH } else { 0 }].into(),
        }
    }

    proptest! {
        #[test]
        fn what_an_index_says_is_what_was_put(
            length in 1..40 * BLOCK_SIZE as u64,
            is_compressed: bool,
            is_encrypted: bool,
            shares in proptest::collection::vec(1..=100_usize, 40),
            cut in any::<prop::sample::Index>(),
        ) {
            prop_assume!(is_compressed || is_encrypted);
            let compression = if is_compressed { Compression::Zstd } else { Compression::Uncompressed };
            let encoding = encoding(length, compression, is_encrypted);
            let blocks = length.div_ceil(BLOCK_SIZE as u64) as u32;
            let (mut index, mut expected, mut at) = (Vec::new(), Vec::new(), 0);
            for block in 0..blocks {
                let whole = (length - u64::from(block) * BLOCK_SIZE as u64).min(BLOCK_SIZE as u64);
                let stored = if is_compressed { (whole * shares[block as usize] as u64).div_ceil(100) } else { whole };
                let tag = is_encrypted.then_some([block as u8; TAG_LENGTH]);
                put_entry(&mut index, is_compressed.then_some(stored as u32), tag);
                expected.push(StoredBlock { range: at..at + stored, tag });
                at += stored;
            }
            let layout = encoding.layout(at + index.len() as u64).unwrap();
            prop_assert_eq!((layout.blocks(), layout.index().start), (blocks, at));
            let read = layout.parse(&index).unwrap();
            for (block, expected) in (0..).zip(&expected) {
                prop_assert_eq!(&read.block(block), expected);
            }
            prop_assert_eq!(read.range(&(0..blocks)), 0..at);
            prop_assert_eq!(layout.parse(&index[1..]).unwrap_err().code, Code::Corrupt);
            if is_compressed {
                // A length that is another by one does not go unseen.
                let entry = cut.index(blocks as usize) * layout.entry_length();
                index[entry] ^= 1;
                prop_assert_eq!(layout.parse(&index).unwrap_err().code, Code::Corrupt);
            }
        }
    }

    #[test]
    fn encodings_from_the_wire_are_checked() {
        let good = encoding(100, Compression::Uncompressed, true);
        assert!(good.layout(116).is_ok());
        for (bad, stored) in [
            (good.clone(), 115),
            (good.clone(), 117),
            (good.clone(), 0),
            (Encoding { length: 0, ..good.clone() }, 16),
            (Encoding { length: MAX_CONTENT_LENGTH + 1, ..good.clone() }, MAX_CHUNK_LENGTH),
            (Encoding { salt: vec![1; 15].into(), ..good.clone() }, 116),
            (Encoding { data_key: 0, ..good.clone() }, 116),
            (Encoding { compression: 99, ..good.clone() }, 116),
            (encoding(100, Compression::Uncompressed, false), 100),
            (encoding(100, Compression::Lz4, false), 4),
            (encoding(100, Compression::Lz4, false), 105),
        ] {
            assert_eq!(bad.layout(stored).unwrap_err().code, Code::Invalid, "{bad:?} in {stored}");
        }
        let longest = encoding(MAX_CONTENT_LENGTH, Compression::Lz4, true);
        let index = MAX_CONTENT_LENGTH.div_ceil(BLOCK_SIZE as u64) * 20;
        assert!(longest.layout(MAX_CONTENT_LENGTH + index).is_ok(), "the longest fits");
    }
}
