//! The bytes of a segment. Its file is full of zeros at first, is overwritten from front to end, once, and never changes
//! its length; what is deleted becomes zeros again.
//!
//! Integers are little-endian.
//!
//! ```text
//! HEADER, 4096 bytes
//!      0   8  magic "DFSSEGMT"
//!      8   4  format version: 1
//!     12   4  zeros
//!     16  16  mark: random, another one for each segment
//!     32  16  cluster id
//!     48 4044 zeros
//!   4092   4  CRC32C of bytes 0..4092
//! RECORDS from 4096 on, each padded with zeros to a multiple of 4096
//!      0   4  magic "DFSR"
//!      4   4  zeros
//!      8  16  the segment's mark
//!     24   8  chunk id
//!     32   4  shard index
//!     36   4  data length: 1..=64 KiB
//!     40   4  CRC32C of the data
//!     44   4  length of the redundancy's text: 1..=64
//!     48  64  redundancy as text, then zeros
//!    112   8  when it was written, in milliseconds since 1970
//!    120   4  zeros
//!    124   4  CRC32C of bytes 0..124
//!    128 len  data
//! ```
//!
//! A record counts when it is whole and bears its segment's mark: no data can pass for one. A record that is not whole was
//! being written when the machine went down, or is damaged.

use bytes::Bytes;
use dfs_proto::limits::BLOCK_SIZE;
use dfs_proto::{ChunkId, ClusterId, Code, Failure, ShardIndex};

use crate::store::index;
use crate::store::shard_file::{ShardHeader, ShardKey};

/// The unit of a segment: a torn write never reaches into a neighbour's, and each can be given back to the disk.
pub(super) const PAGE: usize = index::PAGE as usize;
/// The longest data that a record bears: one block, so that one checksum is enough.
pub(super) const MAX_DATA: usize = BLOCK_SIZE;
/// What the data of a record follows.
pub(super) const RECORD_HEADER: usize = 128;
const MAGIC: [u8; 8] = *b"DFSSEGMT";
const RECORD_MAGIC: [u8; 4] = *b"DFSR";
const FORMAT_VERSION: u32 = 1;
const MAX_REDUNDANCY: usize = 64;
const RECORD_CRC_AT: usize = RECORD_HEADER - 4;

/// Which segment a record belongs to.
pub(super) type Mark = [u8; 16];

/// What a record says before its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) header: ShardHeader,
    pub(super) crc32c: u32,
    pub(super) written_ms: u64,
}

/// A shard as it was read from a segment, verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub(super) head: Head,
    data: Bytes,
}

impl Record {
    /// The record of a shard in the bytes that should be its.
    pub(super) fn decode(bytes: Vec<u8>, cluster: ClusterId, key: ShardKey) -> Option<Self> {
        let (_, head) = decode(&bytes, cluster)?;
        let data = Bytes::from(bytes).slice(RECORD_HEADER..);
        (head.header.key == key && head.header.length as usize == data.len()).then_some(Self { head, data })
    }

    /// What the shard says of itself.
    pub fn header(&self) -> &ShardHeader {
        &self.head.header
    }

    /// All of its data: one block.
    pub(in crate::store) fn data(&self) -> &Bytes {
        &self.data
    }

    /// The checksum of its block.
    pub(in crate::store) fn table(&self) -> &[u32] {
        std::slice::from_ref(&self.head.crc32c)
    }
}

/// Bytes that a record with so much data takes.
pub(super) fn padded_length(data_length: usize) -> usize {
    (RECORD_HEADER + data_length).next_multiple_of(PAGE)
}

/// Writes a record to the start of `bytes`, padded. Returns its length.
pub(super) fn encode(mark: &Mark, head: &Head, data: &[u8], bytes: &mut [u8]) -> usize {
    let redundancy = head.header.redundancy.to_string();
    assert!(redundancy.len() <= MAX_REDUNDANCY, "every redundancy's text fits a record");
    assert!(data.len() <= MAX_DATA && !data.is_empty(), "a record bears one block");
    let (record, _) = bytes.split_at_mut(padded_length(data.len()));
    record[..RECORD_HEADER].fill(0);
    record[..4].copy_from_slice(&RECORD_MAGIC);
    record[8..24].copy_from_slice(mark);
    record[24..32].copy_from_slice(&head.header.key.chunk.0.to_le_bytes());
    record[32..36].copy_from_slice(&head.header.key.index.0.to_le_bytes());
    record[36..40].copy_from_slice(&(data.len() as u32).to_le_bytes());
    record[40..44].copy_from_slice(&head.crc32c.to_le_bytes());
    record[44..48].copy_from_slice(&(redundancy.len() as u32).to_le_bytes());
    record[48..48 + redundancy.len()].copy_from_slice(redundancy.as_bytes());
    record[112..120].copy_from_slice(&head.written_ms.to_le_bytes());
    let crc = crc32c::crc32c(&record[..RECORD_CRC_AT]);
    record[RECORD_CRC_AT..RECORD_HEADER].copy_from_slice(&crc.to_le_bytes());
    record[RECORD_HEADER..RECORD_HEADER + data.len()].copy_from_slice(data);
    record[RECORD_HEADER + data.len()..].fill(0);
    record.len()
}

/// The record at the start of `bytes`, if it and its data are whole.
fn decode(bytes: &[u8], cluster: ClusterId) -> Option<(Mark, Head)> {
    let head = bytes.get(..RECORD_HEADER)?;
    let u32_at = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("4 bytes"));
    let u64_at = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("8 bytes"));
    if head[..4] != RECORD_MAGIC || u32_at(RECORD_CRC_AT) != crc32c::crc32c(&head[..RECORD_CRC_AT]) {
        return None;
    }
    let (length, crc32c) = (u32_at(36), u32_at(40));
    let data = bytes[RECORD_HEADER..].get(..length as usize)?;
    if data.is_empty() || data.len() > MAX_DATA || crc32c::crc32c(data) != crc32c {
        return None;
    }
    let redundancy = head[48..48 + MAX_REDUNDANCY].get(..u32_at(44) as usize)?;
    let redundancy = std::str::from_utf8(redundancy).ok()?.parse().ok()?;
    let key = ShardKey { chunk: ChunkId(u64_at(24)), index: ShardIndex(u32_at(32)) };
    let header = ShardHeader { cluster, key, redundancy, length };
    let mark = head[8..24].try_into().expect("16 bytes");
    Some((mark, Head { header, crc32c, written_ms: u64_at(112) }))
}

/// The header of a segment.
pub(super) fn encode_header(cluster: ClusterId, mark: &Mark) -> Vec<u8> {
    let mut bytes = vec![0; PAGE];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes[16..32].copy_from_slice(mark);
    bytes[32..48].copy_from_slice(&cluster.0);
    let crc = crc32c::crc32c(&bytes[..PAGE - 4]);
    bytes[PAGE - 4..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// What a segment holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Content {
    /// Every whole record with the page where it begins. What was acknowledged and not deleted is among them, whatever was
    /// being written when the process or the machine went down.
    pub(super) records: Vec<(u32, Head)>,
    /// Pages that hold something, but no record that is whole.
    pub(super) damaged_pages: usize,
    /// The page behind the last one that holds anything.
    pub(super) end: u32,
}

/// Finds the records in a whole segment. VERSION_UNKNOWN, WRONG_CLUSTER.
pub(super) fn scan(bytes: &[u8], cluster: ClusterId) -> Result<Content, Failure> {
    let mut mark = read_header(bytes, cluster)?;
    let mut content = Content { end: 1, ..Content::default() };
    let mut page = 1;
    while let Some(rest) = bytes.get(page * PAGE..).filter(|rest| rest.len() >= PAGE) {
        let found = decode(rest, cluster).filter(|(found, _)| *mark.get_or_insert(*found) == *found);
        let pages = match found {
            Some((_, head)) => {
                content.records.push((page as u32, head));
                padded_length(head.header.length as usize) / PAGE
            }
            None if rest[..PAGE].iter().all(|&byte| byte == 0) => {
                page += 1;
                continue;
            }
            // Look on: behind a damaged record there may be whole ones, which were acknowledged.
            None => {
                content.damaged_pages += 1;
                1
            }
        };
        page += pages;
        content.end = page as u32;
    }
    Ok(content)
}

/// The segment's mark; `None` where its header is damaged: then the first record tells it.
fn read_header(bytes: &[u8], cluster: ClusterId) -> Result<Option<Mark>, Failure> {
    let damaged = || {
        tracing::error!("the header of a segment is damaged; going by its first record");
        Ok(None)
    };
    let Some(head) = bytes.get(..PAGE) else { return damaged() };
    let (covered, crc) = head.split_at(PAGE - 4);
    if head[..8] != MAGIC || crc32c::crc32c(covered).to_le_bytes() != crc {
        return damaged();
    }
    let version = u32::from_le_bytes(head[8..12].try_into().expect("4 bytes"));
    if version != FORMAT_VERSION {
        return Err(Failure::new(
            Code::VersionUnknown,
            format!("a segment has format {version}, this program knows {FORMAT_VERSION}"),
        ));
    }
    if head[32..48] != cluster.0 {
        return Err(Failure::new(Code::WrongCluster, "a segment belongs to another cluster"));
    }
    Ok(Some(head[16..32].try_into().expect("16 bytes")))
}
