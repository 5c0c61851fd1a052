//! The door of a chunk daemon to clients on the same machine: a client asks for a shard's open file, and then reads it
//! itself. Bytes that are on this machine need not go through two sockets.
//!
//! The door is a socket of sequenced packets with a name in the abstract namespace, which no file outlives. Each
//! connection bears one request and one answer; the file comes with the answer (`SCM_RIGHTS`). A shard without a file
//! of its own is read through the network's door, as is everything when this one is not there.
//!
//! ```text
//! REQUEST, 16 bytes                       ANSWER, 12 bytes and the table
//!      0   4  magic "dfL1"                     0   4  magic "dfL1"
//!      4   4  shard index                      4   4  offset of the data in the file; 0: no file, and nothing follows
//!      8   8  chunk id                         8   4  length of the data
//!                                             12  4·n CRC32C of each block of 64 KiB of data
//! ```
//!
//! Numbers are little-endian.

use crate::ids::{ChunkId, ClusterId, NodeId, ShardIndex};
use crate::limits::{BLOCK_SIZE, MAX_CHUNK_LENGTH};

const MAGIC: [u8; 4] = *b"dfL1";
/// A request's length.
pub const REQUEST_LENGTH: usize = 16;
const HEADER_LENGTH: usize = 12;
/// The longest answer.
pub const MAX_ANSWER_LENGTH: usize = HEADER_LENGTH + 4 * (MAX_CHUNK_LENGTH as usize / BLOCK_SIZE);

/// The name of a node's door in the abstract namespace.
pub fn door_name(cluster: ClusterId, node: NodeId) -> String {
    format!("dfs-chunk/{cluster}/{node}")
}

/// Where a shard's bytes lie in the file that came with the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardPlace {
    /// The data's offset in the file: not 0.
    pub offset: u32,
    /// Bytes of data: 1..=64 MiB.
    pub length: u32,
    /// One for each block.
    pub table: Box<[u32]>,
}

/// Asks for a shard.
pub fn encode_request(chunk: ChunkId, index: ShardIndex) -> [u8; REQUEST_LENGTH] {
    let mut bytes = [0; REQUEST_LENGTH];
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4..8].copy_from_slice(&index.0.to_le_bytes());
    bytes[8..].copy_from_slice(&chunk.0.to_le_bytes());
    bytes
}

/// What is asked for, or `None` when this is no request of this version.
pub fn decode_request(bytes: &[u8]) -> Option<(ChunkId, ShardIndex)> {
    let bytes: &[u8; REQUEST_LENGTH] = bytes.try_into().ok()?;
    let chunk = u64::from_le_bytes(bytes[8..].try_into().ok()?);
    (bytes[..4] == MAGIC).then_some((ChunkId(chunk), ShardIndex(number(bytes, 4)?)))
}

/// An answer; `None`: there is no file.
pub fn encode_answer(place: Option<(u32, u32, &[u32])>) -> Vec<u8> {
    let (offset, length, table) = place.unwrap_or_default();
    let mut bytes = Vec::with_capacity(HEADER_LENGTH + 4 * table.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&offset.to_le_bytes());
    bytes.extend_from_slice(&length.to_le_bytes());
    table.iter().for_each(|crc| bytes.extend_from_slice(&crc.to_le_bytes()));
    bytes
}

/// What an answer says; `None` when there is no file, or when it is no answer of this version.
pub fn decode_answer(bytes: &[u8]) -> Option<ShardPlace> {
    let (offset, length) = (number(bytes, 4)?, number(bytes, 8)?);
    let table = bytes.get(HEADER_LENGTH..)?;
    let fits = (1..=MAX_CHUNK_LENGTH).contains(&u64::from(length))
        && table.len() == 4 * (length as usize).div_ceil(BLOCK_SIZE);
    let table = table.chunks_exact(4).filter_map(|crc| number(crc, 0)).collect();
    (bytes[..4] == MAGIC && offset > 0 && fits).then_some(ShardPlace { offset, length, table })
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded_and_nothing_else() {
        let request = encode_request(ChunkId(0x0102_0304_0506), ShardIndex(5));
        assert_eq!(decode_request(&request), Some((ChunkId(0x0102_0304_0506), ShardIndex(5))));
        assert_eq!(decode_request(&request[1..]), None);
        let table = [1, 2, 3];
        let length = 2 * BLOCK_SIZE as u32 + 1;
        let answer = encode_answer(Some((4096, length, &table)));
        let place = ShardPlace { offset: 4096, length, table: table.into() };
        assert_eq!(decode_answer(&answer), Some(place));
        assert_eq!(decode_answer(&encode_answer(None)), None);
        for end in 0..answer.len() {
            assert_eq!(decode_answer(&answer[..end]), None, "{end} bytes of it");
        }
        assert_eq!(decode_answer(&[&answer[..], &[0]].concat()), None);
        let longest = vec![0; MAX_CHUNK_LENGTH as usize / BLOCK_SIZE];
        assert_eq!(encode_answer(Some((1, MAX_CHUNK_LENGTH as u32, &longest))).len(), MAX_ANSWER_LENGTH);
        for (bytes, at) in [(&request[..], 0), (&answer[..], 1)] {
            let mut bad = bytes.to_vec();
            bad[at] ^= 1;
            assert_eq!((decode_request(&bad), decode_answer(&bad)), (None, None));
        }
    }
}
