//! The bytes of an intake log. Its file is overwritten in place again and again and never changes its length.
//!
//! Integers are little-endian.
//!
//! ```text
//! SEGMENT HEADER, 4096 bytes
//!      0   8  magic "DFSINTAK"
//!      8   4  format version: 1
//!     12   4  zeros
//!     16  16  round: random, new each time the log is used from its start again
//!     32  16  cluster id
//!     48 4044 zeros
//!   4092   4  CRC32C of bytes 0..4092
//! RECORDS, one after the other from 4096 on, each padded with zeros to a multiple of 4096
//!      0   4  magic "DFSR"
//!      4   4  number of the record in its round, from 0
//!      8  16  round
//!     24   8  chunk id
//!     32   4  shard index
//!     36   4  data length: 1..=64 KiB
//!     40   4  CRC32C of the data
//!     44   4  length of the class's text: 1..=64
//!     48  64  class as text, then zeros
//!    112  12  zeros
//!    124   4  CRC32C of bytes 0..124
//!    128 len  data
//! ```
//!
//! A record counts when it is whole and of the header's round; whatever else lies behind is of rounds that are over. The
//! header of a new round is written without waiting for the disk: the first record of the round waits for both.

use bytes::Bytes;
use dfs_proto::limits::BLOCK_SIZE;
use dfs_proto::{ChunkId, ClusterId, Code, Failure, ShardIndex};

use crate::store::disk::Log;
use crate::store::shard_file::{ShardHeader, ShardKey};

/// The unit of the log: a torn write never reaches into a neighbour's.
pub(super) const PAGE: usize = 4096;
/// The longest data that a record bears: one block, so that one checksum is enough.
pub(super) const MAX_DATA: usize = BLOCK_SIZE;
/// What the data of a record follows.
const RECORD_HEADER: usize = 128;
const SEGMENT_MAGIC: [u8; 8] = *b"DFSINTAK";
const RECORD_MAGIC: [u8; 4] = *b"DFSR";
const FORMAT_VERSION: u32 = 1;
const MAX_CLASS: usize = 64;
const RECORD_CRC_AT: usize = RECORD_HEADER - 4;

/// Which use of the log a record belongs to. Random, so that no data can pass for a record.
pub(super) type Round = [u8; 16];

/// A shard as it lies in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) header: ShardHeader,
    pub(super) data: Bytes,
    pub(super) crc32c: u32,
}

impl Record {
    /// Bytes that a record with so much data takes in the log.
    pub(super) fn padded_length(data_length: usize) -> usize {
        (RECORD_HEADER + data_length).next_multiple_of(PAGE)
    }

    /// Adds the record, padded, at the end of `bytes`.
    pub(super) fn encode(&self, round: &Round, number: u32, bytes: &mut Vec<u8>) {
        let class = self.header.class.to_string();
        assert!(class.len() <= MAX_CLASS, "every class's text fits a record");
        assert!(self.data.len() <= MAX_DATA && !self.data.is_empty(), "a record bears one block");
        let start = bytes.len();
        let end = start + Self::padded_length(self.data.len());
        bytes.extend_from_slice(&RECORD_MAGIC);
        bytes.extend_from_slice(&number.to_le_bytes());
        bytes.extend_from_slice(round);
        bytes.extend_from_slice(&self.header.key.chunk.0.to_le_bytes());
        bytes.extend_from_slice(&self.header.key.index.0.to_le_bytes());
        bytes.extend_from_slice(&(self.data.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&self.crc32c.to_le_bytes());
        bytes.extend_from_slice(&(class.len() as u32).to_le_bytes());
        bytes.extend_from_slice(class.as_bytes());
        bytes.resize(start + RECORD_CRC_AT, 0);
        let crc = crc32c::crc32c(&bytes[start..]);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes.extend_from_slice(&self.data);
        bytes.resize(end, 0);
    }

    /// The record at the start of `bytes` with its number, if it is whole and of this round (any when `None`).
    fn decode(bytes: &[u8], cluster: ClusterId, round: Option<&Round>) -> Option<(Round, u32, Self)> {
        let head = bytes.get(..RECORD_HEADER)?;
        let u32_at = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("4 bytes"));
        let found: Round = head[8..24].try_into().expect("16 bytes");
        let current = round.is_none_or(|round| *round == found);
        if head[..4] != RECORD_MAGIC
            || !current
            || u32_at(RECORD_CRC_AT) != crc32c::crc32c(&head[..RECORD_CRC_AT])
        {
            return None;
        }
        let length = u32_at(36) as usize;
        let data = bytes.get(RECORD_HEADER..)?.get(..length)?;
        if length == 0 || length > MAX_DATA || crc32c::crc32c(data) != u32_at(40) {
            return None;
        }
        let class = head[48..48 + MAX_CLASS].get(..u32_at(44) as usize)?;
        let class = std::str::from_utf8(class).ok()?.parse().ok()?;
        let chunk = ChunkId(u64::from_le_bytes(head[24..32].try_into().expect("8 bytes")));
        let key = ShardKey { chunk, index: ShardIndex(u32_at(32)) };
        let header = ShardHeader { cluster, key, class, length: length as u32 };
        Some((found, u32_at(4), Self { header, data: Bytes::copy_from_slice(data), crc32c: u32_at(40) }))
    }
}

/// The header that starts a round.
pub(super) fn encode_header(cluster: ClusterId, round: &Round) -> Vec<u8> {
    let mut bytes = vec![0; PAGE];
    bytes[..8].copy_from_slice(&SEGMENT_MAGIC);
    bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes[16..32].copy_from_slice(round);
    bytes[32..48].copy_from_slice(&cluster.0);
    let crc = crc32c::crc32c(&bytes[..PAGE - 4]);
    bytes[PAGE - 4..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Every whole record of a log's round. What was acknowledged is among them, whatever was being written when the
/// process or the machine went down. VERSION_UNKNOWN, WRONG_CLUSTER, INPUT_OUTPUT.
pub(super) fn replay(log: &dyn Log, length: u64, cluster: ClusterId) -> Result<Vec<Record>, Failure> {
    let mut bytes = vec![0; length as usize];
    log.read_at(&mut bytes, 0).map_err(|error| {
        Failure::new(Code::InputOutput, format!("the intake log cannot be read: {error}"))
    })?;
    let mut round = match read_header(&bytes, cluster)? {
        Header::Fresh => return Ok(Vec::new()),
        Header::Of(round) => Some(round),
        Header::Damaged => {
            tracing::error!("the header of an intake log is damaged; going by its first record");
            None
        }
    };
    let mut records = Vec::new();
    let mut next_number = 0;
    let mut offset = PAGE;
    while let Some(rest) = bytes.get(offset..).filter(|rest| rest.len() >= PAGE) {
        let Some((found, number, record)) = Record::decode(rest, cluster, round.as_ref()) else {
            if round.is_none() {
                break;
            }
            // The end, or a damaged record with whole ones behind it: those were acknowledged, so look on.
            offset += PAGE;
            continue;
        };
        if number < next_number {
            break;
        }
        if number > next_number {
            let lost = number - next_number;
            tracing::error!(lost, "records of an intake log are damaged: these shards are not on this node");
        }
        next_number = number + 1;
        round = Some(found);
        offset += Record::padded_length(record.data.len());
        records.push(record);
    }
    Ok(records)
}

enum Header {
    /// Never used.
    Fresh,
    Of(Round),
    Damaged,
}

fn read_header(bytes: &[u8], cluster: ClusterId) -> Result<Header, Failure> {
    let Some(head) = bytes.get(..PAGE) else { return Ok(Header::Damaged) };
    if head.iter().all(|&byte| byte == 0) {
        return Ok(Header::Fresh);
    }
    let (covered, crc) = head.split_at(PAGE - 4);
    if head[..8] != SEGMENT_MAGIC || crc32c::crc32c(covered).to_le_bytes() != crc {
        return Ok(Header::Damaged);
    }
    let version = u32::from_le_bytes(head[8..12].try_into().expect("4 bytes"));
    if version != FORMAT_VERSION {
        return Err(Failure::new(
            Code::VersionUnknown,
            format!("the intake log has format {version}, this program knows {FORMAT_VERSION}"),
        ));
    }
    if head[32..48] != cluster.0 {
        return Err(Failure::new(Code::WrongCluster, "the intake log belongs to another cluster"));
    }
    Ok(Header::Of(head[16..32].try_into().expect("16 bytes")))
}
