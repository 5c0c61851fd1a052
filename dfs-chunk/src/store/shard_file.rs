//! The shard file: how one shard lies on a disk. This file alone knows its bytes.
//!
//! Integers are little-endian. A file is exactly as long as its parts; nothing follows the trailer.
//!
//! ```text
//! HEADER, 4096 bytes, so that data is aligned for direct I/O
//!      0   8  magic "DFSSHARD"
//!      8   4  format version: 1
//!     12   4  shard index
//!     16  16  cluster id
//!     32   8  chunk id
//!     40   8  data length: 1..=64 MiB
//!     48   4  length of the redundancy's text: 1..=64
//!     52  64  redundancy as text ("replicated:3"), then zeros
//!    116 3976 zeros
//!   4092   4  CRC32C of bytes 0..4092
//! DATA
//!   4096  len  the shard's bytes
//! FOOTER, right after the data
//!      0  4·n  CRC32C of each block of 64 KiB of data (the last one may be shorter)
//!    4·n   8  magic "DFSTABLE"
//!         4  n
//!         4  CRC32C of: the header's CRC32C (4 bytes), the table, the magic, n
//! ```
//!
//! The footer's checksum covers the header's, so that a footer that belongs to other data is found out. Every read
//! verifies the blocks that it returns. A short, missing or corrupt part is an error, never zeros. Every later version
//! keeps magic, version and the header's checksum where they are; an unknown one is refused, never guessed.

use std::io;
use std::os::fd::BorrowedFd;

use dfs_proto::limits::{BLOCK_SIZE, MAX_CHUNK_LENGTH};
use dfs_proto::{ChunkId, ClusterId, Code, Failure, Redundancy, ShardIndex};

use super::disk::{Input, Output};

/// Where data starts.
pub const HEADER_LENGTH: usize = 4096;
const MAGIC: [u8; 8] = *b"DFSSHARD";
const FORMAT_VERSION: u32 = 1;
const MAX_REDUNDANCY: usize = 64;
const HEADER_CRC_AT: usize = HEADER_LENGTH - 4;
const TABLE_MAGIC: [u8; 8] = *b"DFSTABLE";
const TRAILER_LENGTH: usize = 16;

/// Which shard of which chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardKey {
    /// The chunk.
    pub chunk: ChunkId,
    /// The piece of it.
    pub index: ShardIndex,
}

impl std::fmt::Display for ShardKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "shard {} of chunk {}", self.index, self.chunk)
    }
}

/// What a shard file says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardHeader {
    /// The cluster that it belongs to.
    pub cluster: ClusterId,
    /// Which shard it is.
    pub key: ShardKey,
    /// How its chunk is kept.
    pub redundancy: Redundancy,
    /// Bytes of data: 1..=64 MiB.
    pub length: u32,
}

impl ShardHeader {
    /// Blocks of data, the last one perhaps shorter.
    pub fn blocks(&self) -> usize {
        blocks(self.length)
    }

    /// The length of the whole file.
    pub fn file_length(&self) -> u64 {
        file_length(self.length)
    }

    /// As the first [`HEADER_LENGTH`] bytes of the file.
    fn encode(&self) -> Box<[u8; HEADER_LENGTH]> {
        let redundancy = self.redundancy.to_string();
        assert!(
            redundancy.len() <= MAX_REDUNDANCY && !redundancy.is_empty(),
            "every redundancy's text fits a shard's header"
        );
        let mut bytes = Box::new([0; HEADER_LENGTH]);
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.key.index.0.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.cluster.0);
        bytes[32..40].copy_from_slice(&self.key.chunk.0.to_le_bytes());
        bytes[40..48].copy_from_slice(&u64::from(self.length).to_le_bytes());
        bytes[48..52].copy_from_slice(&(redundancy.len() as u32).to_le_bytes());
        bytes[52..52 + redundancy.len()].copy_from_slice(redundancy.as_bytes());
        let crc = crc32c::crc32c(&bytes[..HEADER_CRC_AT]);
        bytes[HEADER_CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// From the first bytes of a file. CORRUPT, VERSION_UNKNOWN.
    fn decode(bytes: &[u8; HEADER_LENGTH]) -> Result<Self, Failure> {
        if bytes[0..8] != MAGIC {
            return Err(corrupt("the shard file does not start with a shard's header"));
        }
        if read_u32(bytes, HEADER_CRC_AT) != crc32c::crc32c(&bytes[..HEADER_CRC_AT]) {
            return Err(corrupt("the shard file's header does not match its checksum"));
        }
        let version = read_u32(bytes, 8);
        if version != FORMAT_VERSION {
            return Err(Failure::new(
                Code::VersionUnknown,
                format!("the shard file has format {version}, this program knows {FORMAT_VERSION}"),
            ));
        }
        let redundancy_length = read_u32(bytes, 48) as usize;
        let redundancy = bytes[52..52 + MAX_REDUNDANCY].get(..redundancy_length);
        let redundancy =
            redundancy.and_then(|text| std::str::from_utf8(text).ok()).and_then(|text| text.parse().ok());
        let redundancy = redundancy.ok_or_else(|| {
            Failure::new(
                Code::VersionUnknown,
                "the shard file's redundancy is not one that this program knows",
            )
        })?;
        let length = read_u64(bytes, 40);
        if length == 0 || length > MAX_CHUNK_LENGTH {
            return Err(corrupt(format!("the shard file's header tells a length of {length} bytes")));
        }
        let cluster = ClusterId(bytes[16..32].try_into().expect("16 bytes"));
        let key = ShardKey { chunk: ChunkId(read_u64(bytes, 32)), index: ShardIndex(read_u32(bytes, 12)) };
        Ok(Self { cluster, key, redundancy, length: length as u32 })
    }
}

/// The length of a shard file with so many bytes of data.
pub fn file_length(length: u32) -> u64 {
    HEADER_LENGTH as u64 + u64::from(length) + footer_length(blocks(length)) as u64
}

/// The length of the data in a shard file of this length; `None` when no shard has such a file.
pub fn data_length(file_length: u64) -> Option<u32> {
    let fixed = (HEADER_LENGTH + TRAILER_LENGTH) as u64;
    let rest = file_length.checked_sub(fixed)?;
    // Data and table together: each block but the last takes 64 KiB and 4 bytes, the last 1 byte to 64 KiB and 4.
    let blocks = rest.div_ceil(BLOCK_SIZE as u64 + 4);
    let length = rest.checked_sub(4 * blocks)?;
    let valid =
        (1..=MAX_CHUNK_LENGTH).contains(&length) && length > (blocks.saturating_sub(1)) * BLOCK_SIZE as u64;
    valid.then_some(length as u32)
}

fn blocks(length: u32) -> usize {
    (length as usize).div_ceil(BLOCK_SIZE)
}

fn footer_length(blocks: usize) -> usize {
    4 * blocks + TRAILER_LENGTH
}

/// The footer for a table of block checksums, as it follows the data.
fn encode_footer(header_crc: [u8; 4], table: &[u32]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(footer_length(table.len()));
    for crc in table {
        bytes.extend_from_slice(&crc.to_le_bytes());
    }
    bytes.extend_from_slice(&TABLE_MAGIC);
    bytes.extend_from_slice(&(table.len() as u32).to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&header_crc), &bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

fn decode_footer(header_crc: [u8; 4], bytes: &[u8], blocks: usize) -> Result<Box<[u32]>, Failure> {
    let (covered, crc) = bytes.split_at(bytes.len() - 4);
    if crc32c::crc32c_append(crc32c::crc32c(&header_crc), covered).to_le_bytes() != crc {
        return Err(corrupt("the shard file's table of checksums does not match its own checksum"));
    }
    let (table, trailer) = covered.split_at(4 * blocks);
    if trailer[..8] != TABLE_MAGIC || read_u32(trailer, 8) as usize != blocks {
        return Err(corrupt("the shard file's table of checksums is not of this shard"));
    }
    Ok(table.chunks_exact(4).map(|crc| read_u32(crc, 0)).collect())
}

/// Writes one shard file from front to end.
pub struct ShardWriter {
    output: Box<dyn Output>,
    header: ShardHeader,
    header_crc: [u8; 4],
    table: Vec<u32>,
    written: u32,
}

impl ShardWriter {
    /// Writes the header.
    pub fn new(mut output: Box<dyn Output>, header: ShardHeader) -> io::Result<Self> {
        let bytes = header.encode();
        output.append(&bytes[..])?;
        let header_crc = bytes[HEADER_CRC_AT..].try_into().expect("4 bytes");
        Ok(Self { output, header, header_crc, table: Vec::with_capacity(header.blocks()), written: 0 })
    }

    /// Writes the next blocks, whose checksums the caller has verified.
    pub fn append(&mut self, data: &[u8], block_crc32c: &[u32]) -> io::Result<()> {
        let end = self.written as usize + data.len();
        assert_eq!(self.written as usize % BLOCK_SIZE, 0, "only the last blocks may be partial");
        assert_eq!(data.len().div_ceil(BLOCK_SIZE), block_crc32c.len(), "one checksum for each block");
        assert!(end <= self.header.length as usize, "no more data than the header tells");
        self.output.append(data)?;
        self.table.extend_from_slice(block_crc32c);
        self.written = end as u32;
        Ok(())
    }

    /// Whether all data has been appended.
    pub fn is_complete(&self) -> bool {
        self.written == self.header.length
    }

    /// Writes the footer. Nothing is durable yet.
    pub fn end(mut self) -> io::Result<WrittenShard> {
        assert!(self.is_complete(), "as much data as the header tells");
        self.output.append(&encode_footer(self.header_crc, &self.table))?;
        Ok(WrittenShard { output: self.output, header: self.header, table: self.table.into() })
    }
}

/// A shard file with all its bytes, perhaps not durable yet.
pub struct WrittenShard {
    output: Box<dyn Output>,
    header: ShardHeader,
    table: Box<[u32]>,
}

impl WrittenShard {
    /// Returns when every byte would survive a power cut.
    pub fn sync(&mut self) -> io::Result<()> {
        self.output.sync()
    }

    /// The same file, opened for reading as `input`, with the header and the table that were written to it.
    pub fn into_readable(self, input: Box<dyn Input>) -> ShardFile {
        ShardFile { input, header: self.header, table: self.table }
    }
}

/// An open shard file whose header and table have been verified, or written just now.
pub struct ShardFile {
    input: Box<dyn Input>,
    header: ShardHeader,
    table: Box<[u32]>,
}

impl ShardFile {
    /// Verifies the header, the file's length and the table of checksums, not the data. CORRUPT, WRONG_CLUSTER,
    /// VERSION_UNKNOWN, INPUT_OUTPUT.
    pub fn open(input: Box<dyn Input>, cluster: ClusterId, key: ShardKey) -> Result<Self, Failure> {
        let mut bytes = [0; HEADER_LENGTH];
        read(&*input, &mut bytes, 0)?;
        let header = ShardHeader::decode(&bytes)?;
        if header.cluster != cluster {
            return Err(Failure::new(
                Code::WrongCluster,
                format!("the shard file belongs to cluster {}, not to {cluster}", header.cluster),
            ));
        }
        if header.key != key {
            return Err(corrupt(format!("the file of {key} holds {}", header.key)));
        }
        let length = input.length().map_err(|error| unreadable(&error))?;
        if length != header.file_length() {
            return Err(corrupt(format!(
                "the shard file is {length} bytes long instead of {}",
                header.file_length()
            )));
        }
        let mut footer = vec![0; footer_length(header.blocks())];
        read(&*input, &mut footer, HEADER_LENGTH as u64 + u64::from(header.length))?;
        let header_crc = bytes[HEADER_CRC_AT..].try_into().expect("4 bytes");
        let table = decode_footer(header_crc, &footer, header.blocks())?;
        Ok(Self { input, header, table })
    }

    /// What the file says of itself.
    pub fn header(&self) -> &ShardHeader {
        &self.header
    }

    /// The open file, for others to read: data begins at [`HEADER_LENGTH`].
    pub fn handle(&self) -> Option<BorrowedFd<'_>> {
        self.input.handle()
    }

    /// The CRC32C of every block.
    pub fn table(&self) -> &[u32] {
        &self.table
    }

    /// Fills `buffer` with data from `offset` on and verifies it. `offset` is a multiple of 64 KiB; `buffer` ends at a
    /// block's end or at the shard's. Returns the checksums of the blocks. CORRUPT, INPUT_OUTPUT.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<&[u32], Failure> {
        let table = self.table_of(offset, buffer.len());
        read(&*self.input, buffer, HEADER_LENGTH as u64 + offset)?;
        match first_bad_block(buffer, table) {
            None => Ok(table),
            Some(bad) => Err(corrupt(format!(
                "block {} of {} does not match its checksum",
                offset as usize / BLOCK_SIZE + bad,
                self.header.key
            ))),
        }
    }

    /// As [`Self::read`], if that takes no wait for the disk. `None`: ask [`Self::read`], which has the reason if there is
    /// another one.
    pub fn read_now(&self, offset: u64, buffer: &mut [u8]) -> Option<&[u32]> {
        let table = self.table_of(offset, buffer.len());
        let is_read = self.input.read_now(buffer, HEADER_LENGTH as u64 + offset);
        (is_read && first_bad_block(buffer, table).is_none()).then_some(table)
    }

    /// The checksums of whole blocks.
    fn table_of(&self, offset: u64, buffer_length: usize) -> &[u32] {
        let end = offset + buffer_length as u64;
        let length = u64::from(self.header.length);
        assert!(offset.is_multiple_of(BLOCK_SIZE as u64), "reads start at a block");
        assert!(end <= length, "reads stay inside the shard");
        assert!(end.is_multiple_of(BLOCK_SIZE as u64) || end == length, "reads return whole blocks");
        let first = (offset / BLOCK_SIZE as u64) as usize;
        &self.table[first..first + buffer_length.div_ceil(BLOCK_SIZE)]
    }
}

/// The first block of `data` that does not match its checksum in `table`, which has one for each block.
pub fn first_bad_block(data: &[u8], table: &[u32]) -> Option<usize> {
    data.chunks(BLOCK_SIZE).zip(table).position(|(block, &crc)| crc32c::crc32c(block) != crc)
}

/// Reads exactly `buffer`; a file that ends before is corrupt.
fn read(input: &dyn Input, buffer: &mut [u8], offset: u64) -> Result<(), Failure> {
    input.read_at(buffer, offset).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => corrupt("the shard file ends too early"),
        _ => unreadable(&error),
    })
}

fn unreadable(error: &io::Error) -> Failure {
    Failure::new(Code::InputOutput, format!("the shard file cannot be read: {error}"))
}

fn corrupt(message: impl Into<String>) -> Failure {
    Failure::new(Code::Corrupt, message)
}

fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn read_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

#[cfg(test)]
mod tests;
