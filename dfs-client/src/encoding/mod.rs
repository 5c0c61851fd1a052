//! The content of chunks as it is stored: compressed, then encrypted, each block by itself. [`dfs_proto::encoding`] draws the
//! layout. Pure: bytes in, bytes out.

mod cipher;
mod compress;

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use dfs_proto::encoding::{Index, Layout, put_entry};
use dfs_proto::limits::{BLOCK_SIZE, MAX_FRAME_DATA};
use dfs_proto::meta::{Compression, Encoding};
use dfs_proto::{Code, Failure};

use crate::buffers::{Buffer, Buffers};
use crate::keys::DataKey;
use cipher::{Cipher, Place, Sealer};
use compress::Compressor;

/// How a content is to be stored.
#[derive(Clone, Debug, Default)]
pub struct Manner {
    /// Of blocks where it pays.
    pub compression: Compression,
    /// With its id.
    pub data_key: Option<(u64, Arc<DataKey>)>,
}

impl Manner {
    /// Whether a content is stored as it is.
    pub fn is_plain(&self) -> bool {
        self.compression == Compression::Uncompressed && self.data_key.is_none()
    }

    /// Encodes a content, at most [`dfs_proto::limits::MAX_CONTENT_LENGTH`] bytes in frames of whole blocks but for the last;
    /// to frames of [`MAX_FRAME_DATA`] but for the last.
    pub fn encode(&self, frames: &[Bytes], buffers: &Buffers) -> Result<(Vec<Bytes>, Encoding), Failure> {
        let length: u64 = frames.iter().map(|frame| frame.len() as u64).sum();
        let mut compressor = Compressor::new(self.compression)?;
        let mut sealer = match &self.data_key {
            Some((_, data_key)) => Some(Sealer::new(data_key, length)?),
            None => None,
        };
        let mut compressed =
            vec![0; compressor.as_ref().map_or(0, |compressor| compressor.bound(BLOCK_SIZE))];
        let (mut index, mut stored) = (Vec::new(), Stored::new(buffers));
        for block in frames.iter().flat_map(|frame| frame.chunks(BLOCK_SIZE)) {
            let bytes = match compressor.as_mut().and_then(|by| by.compress(block, &mut compressed)) {
                Some(length) => &compressed[..length],
                None => block,
            };
            let field = compressor.is_some().then_some(bytes.len() as u32);
            let tag = stored.put(bytes, |bytes| {
                sealer.as_mut().map(|sealer| sealer.seal(block.len(), bytes)).transpose()
            })?;
            put_entry(&mut index, field, tag);
        }
        stored.put(&index, |_| Ok(()))?;
        let encoding = Encoding {
            length,
            compression: self.compression.into(),
            data_key: self.data_key.as_ref().map_or(0, |(id, _)| *id),
            salt: sealer.map(|sealer| sealer.salt().to_vec()).unwrap_or_default().into(),
        };
        Ok((stored.done(), encoding))
    }
}

/// A chunk that is being put together, in frames.
struct Stored<'a> {
    buffers: &'a Buffers,
    frames: Vec<Bytes>,
    open: Buffer,
}

impl<'a> Stored<'a> {
    fn new(buffers: &'a Buffers) -> Self {
        Self { buffers, frames: Vec::new(), open: buffers.take(MAX_FRAME_DATA) }
    }

    /// Appends bytes after `change` was made to them.
    fn put<T>(
        &mut self,
        bytes: &[u8],
        change: impl FnOnce(&mut [u8]) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        if bytes.len() <= MAX_FRAME_DATA - self.open.length() {
            let done = change(self.open.put(bytes))?;
            self.end_full_frame();
            return Ok(done);
        }
        let mut bytes = bytes.to_vec();
        let done = change(&mut bytes)?;
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (part, more) = rest.split_at(rest.len().min(MAX_FRAME_DATA - self.open.length()));
            self.open.put(part);
            self.end_full_frame();
            rest = more;
        }
        Ok(done)
    }

    fn end_full_frame(&mut self) {
        if self.open.length() == MAX_FRAME_DATA {
            let full = std::mem::replace(&mut self.open, self.buffers.take(MAX_FRAME_DATA));
            self.frames.push(full.freeze());
        }
    }

    fn done(mut self) -> Vec<Bytes> {
        if self.open.length() > 0 {
            self.frames.push(self.open.freeze());
        }
        self.frames
    }
}

/// Reads the content of one encoded chunk.
pub struct Decoder {
    layout: Layout,
    compression: Compression,
    cipher: Option<Cipher>,
}

impl Decoder {
    /// Of a chunk of `stored` bytes. `data_key` is the one that the encoding names; CORRUPT when the encoding says nothing that
    /// could be.
    pub fn new(encoding: &Encoding, stored: u64, data_key: Option<&DataKey>) -> Result<Self, Failure> {
        let corrupt = |failure: Failure| Failure::new(Code::Corrupt, failure.message);
        let layout = encoding.layout(stored).map_err(corrupt)?;
        let cipher = match (encoding.data_key, data_key, encoding.salt[..].try_into()) {
            (0, _, _) => None,
            (_, Some(data_key), Ok(salt)) => Some(Cipher::new(data_key, salt, encoding.length)?),
            _ => return Err(Failure::from(Code::NoKey)),
        };
        Ok(Self { layout, compression: encoding.compression(), cipher })
    }

    /// The layout.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Some blocks of the content, from their bytes as they are stored: those at `index.range(&blocks)`. CORRUPT when they are
    /// not what was encoded.
    pub fn decode(&self, index: &Index, blocks: Range<u32>, stored: &[u8]) -> Result<Bytes, Failure> {
        let start = index.range(&blocks).start;
        let length = blocks.clone().map(|block| self.layout.block_length(block)).sum();
        let mut content = BytesMut::zeroed(length);
        let mut rest = &mut content[..];
        let mut plain = Vec::new();
        for block in blocks {
            let (out, behind) = rest.split_at_mut(self.layout.block_length(block));
            rest = behind;
            let at = index.block(block);
            let range = (at.range.start - start) as usize..(at.range.end - start) as usize;
            let bytes = stored
                .get(range)
                .ok_or_else(|| Failure::new(Code::Corrupt, "a chunk is shorter than its index says"))?;
            let is_compressed = bytes.len() < out.len();
            let bytes = match (&self.cipher, &at.tag) {
                (Some(cipher), Some(tag)) => {
                    let place = Place { block, length: out.len(), stored: bytes.len() };
                    if !is_compressed {
                        cipher.open(place, bytes, tag, out)?;
                        continue;
                    }
                    plain.resize(bytes.len(), 0);
                    cipher.open(place, bytes, tag, &mut plain)?;
                    &plain
                }
                _ => bytes,
            };
            match is_compressed {
                true => compress::decompress(self.compression, bytes, out)?,
                false => out.copy_from_slice(bytes),
            }
        }
        Ok(content.freeze())
    }
}

#[cfg(test)]
mod tests;
