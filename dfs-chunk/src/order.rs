//! What a writer asks for, parsed and checked before any memory is taken for it.

use dfs_proto::chunk::{ForwardTo, PutHeader, ReadRequest};
use dfs_proto::limits::{BLOCK_SIZE, MAX_CHUNK_LENGTH, MAX_FRAME_DATA};
use dfs_proto::{ChunkId, ClusterId, Code, Failure, NodeId, Redundancy, ShardIndex};

use crate::store::shard_file::{ShardHeader, ShardKey};
use crate::store::{Blocks, first_bad_block};

/// The longest host:port.
const MAX_ADDRESS: usize = 255 + 6;

/// One more node of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Next {
    pub(crate) node: NodeId,
    pub(crate) address: String,
    pub(crate) index: ShardIndex,
}

/// A checked `PutHeader`.
#[derive(Clone, Debug)]
pub(crate) struct PutOrder {
    pub(crate) header: ShardHeader,
    pub(crate) chain: Vec<Next>,
    /// Bytes of data that have been taken.
    taken: u64,
}

fn invalid(message: impl Into<String>) -> Failure {
    Failure::new(Code::Invalid, message)
}

/// WRONG_CLUSTER unless it is this one.
pub(crate) fn check_cluster(told: &[u8], cluster: ClusterId) -> Result<(), Failure> {
    match ClusterId::from_slice(told) {
        Some(told) if told == cluster => Ok(()),
        Some(told) => Err(Failure::new(
            Code::WrongCluster,
            format!("this node belongs to cluster {cluster}, the request to {told}"),
        )),
        None => Err(Failure::new(Code::WrongCluster, "a cluster id has 16 bytes")),
    }
}

impl PutOrder {
    /// Checks a header. INVALID, WRONG_CLUSTER.
    pub(crate) fn parse(header: PutHeader, cluster: ClusterId, this: NodeId) -> Result<Self, Failure> {
        check_cluster(&header.cluster, cluster)?;
        let redundancy: Redundancy = header.redundancy.parse()?;
        let check_index = |index: u32| match index < redundancy.shards() {
            true => Ok(ShardIndex(index)),
            false => Err(invalid(format!("a chunk of redundancy {redundancy} has no shard {index}"))),
        };
        if header.length == 0 || header.length > MAX_CHUNK_LENGTH {
            return Err(invalid(format!(
                "a shard has 1 to {MAX_CHUNK_LENGTH} bytes, this one {}",
                header.length
            )));
        }
        if header.chunk == 0 {
            return Err(invalid("0 is not a chunk"));
        }
        if header.forward.len() >= redundancy.shards() as usize {
            return Err(invalid(format!(
                "a chunk of redundancy {redundancy} has no {} shards",
                header.forward.len() + 1
            )));
        }
        let mut chain: Vec<Next> = Vec::with_capacity(header.forward.len());
        for ForwardTo { node, index } in header.forward {
            let node = node.ok_or_else(|| invalid("a node of the chain has no address"))?;
            let next = Next { node: NodeId(node.node), address: node.address, index: check_index(index)? };
            if next.address.is_empty() || next.address.len() > MAX_ADDRESS {
                return Err(invalid(format!("node {} of the chain has no usable address", next.node)));
            }
            if next.node == this || chain.iter().any(|other| other.node == next.node) {
                return Err(invalid(format!("node {} is in the chain twice", next.node)));
            }
            chain.push(next);
        }
        let key = ShardKey { chunk: ChunkId(header.chunk), index: check_index(header.index)? };
        let header = ShardHeader { cluster, key, redundancy, length: header.length as u32 };
        Ok(Self { header, chain, taken: 0 })
    }

    /// Whether all data has been taken.
    pub(crate) fn is_complete(&self) -> bool {
        self.taken == u64::from(self.header.length)
    }

    /// Checks the next frame's data against the order and its checksums. INVALID, CORRUPT.
    pub(crate) fn take(&mut self, blocks: &Blocks) -> Result<(), Failure> {
        let data = &blocks.data;
        let end = self.taken + data.len() as u64;
        let length = u64::from(self.header.length);
        if data.is_empty() || data.len() > MAX_FRAME_DATA {
            return Err(invalid(format!(
                "a frame bears 1 to {MAX_FRAME_DATA} bytes, this one {}",
                data.len()
            )));
        }
        if end > length {
            return Err(invalid(format!("more data than the {length} bytes that the header told")));
        }
        if end != length && !data.len().is_multiple_of(BLOCK_SIZE) {
            return Err(invalid("only the last frame of a shard may end inside a block"));
        }
        if blocks.crc32c.len() != data.len().div_ceil(BLOCK_SIZE) {
            return Err(invalid("a frame bears one checksum for each of its blocks"));
        }
        if let Some(bad) = first_bad_block(data, &blocks.crc32c) {
            let block = self.taken / BLOCK_SIZE as u64 + bad as u64;
            return Err(Failure::new(
                Code::Corrupt,
                format!(
                    "block {block} of {} came with another checksum than its bytes have",
                    self.header.key
                ),
            ));
        }
        self.taken = end;
        Ok(())
    }
}

/// A checked `ReadRequest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReadOrder {
    pub(crate) key: ShardKey,
    pub(crate) offset: u64,
    length: u64,
}

impl ReadOrder {
    /// Checks a request without knowing the shard. INVALID, WRONG_CLUSTER.
    pub(crate) fn parse(request: &ReadRequest, cluster: ClusterId) -> Result<Self, Failure> {
        check_cluster(&request.cluster, cluster)?;
        if request.length == 0 || request.length > MAX_FRAME_DATA as u64 {
            return Err(invalid(format!("a read asks for 1 to {MAX_FRAME_DATA} bytes")));
        }
        if !request.offset.is_multiple_of(BLOCK_SIZE as u64) || request.offset >= MAX_CHUNK_LENGTH {
            return Err(invalid("a read starts at a block inside the shard"));
        }
        let key = ShardKey { chunk: ChunkId(request.chunk), index: ShardIndex(request.index) };
        Ok(Self { key, offset: request.offset, length: request.length })
    }

    /// Where to end in a shard of this length: whole blocks, the last one as long as it is. INVALID.
    pub(crate) fn end(&self, shard_length: u32) -> Result<u64, Failure> {
        let length = u64::from(shard_length);
        let end = self.offset + self.length;
        if end > length.next_multiple_of(BLOCK_SIZE as u64) || self.offset >= length {
            return Err(invalid(format!("{} has {length} bytes: the read goes beyond them", self.key)));
        }
        let end = end.min(length);
        if end != length && !end.is_multiple_of(BLOCK_SIZE as u64) {
            return Err(invalid("a read ends with a block or with the shard"));
        }
        Ok(end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use dfs_proto::NodeAddress;

    const CLUSTER: ClusterId = ClusterId([1; 16]);
    const BLOCK: u64 = BLOCK_SIZE as u64;

    fn header(length: u64, nodes: &[u64]) -> PutHeader {
        let forward = nodes.iter().map(|&node| ForwardTo {
            node: Some(NodeAddress { node, address: "h:1".into(), labels: None }),
            index: 1,
        });
        PutHeader {
            cluster: CLUSTER.to_bytes(),
            chunk: 5,
            index: 0,
            redundancy: "replicated:3".into(),
            length,
            forward: forward.collect(),
        }
    }

    fn blocks(length: usize) -> Blocks {
        let data = Bytes::from(vec![9; length]);
        let crc32c = data.chunks(BLOCK_SIZE).map(crc32c::crc32c).collect();
        Blocks { data, crc32c, held: None }
    }

    #[test]
    fn headers_are_checked() {
        let parse = |header| PutOrder::parse(header, CLUSTER, NodeId(1)).map(|order| order.chain.len());
        assert_eq!(parse(header(1, &[2, 3])).unwrap(), 2);
        assert_eq!(parse(header(MAX_CHUNK_LENGTH, &[])).unwrap(), 0);
        let code = |header| parse(header).unwrap_err().code;
        assert_eq!(code(header(0, &[])), Code::Invalid);
        assert_eq!(code(header(MAX_CHUNK_LENGTH + 1, &[])), Code::Invalid);
        assert_eq!(code(header(u64::MAX, &[])), Code::Invalid);
        assert_eq!(code(header(1, &[2, 3, 4])), Code::Invalid, "more shards than the redundancy has");
        assert_eq!(code(header(1, &[2, 2])), Code::Invalid);
        assert_eq!(code(header(1, &[1])), Code::Invalid, "this node");
        assert_eq!(code(PutHeader { index: 3, ..header(1, &[]) }), Code::Invalid);
        assert_eq!(code(PutHeader { chunk: 0, ..header(1, &[]) }), Code::Invalid);
        assert_eq!(code(PutHeader { redundancy: "raid5".into(), ..header(1, &[]) }), Code::Invalid);
        assert_eq!(
            code(PutHeader { cluster: Bytes::from_static(&[2; 16]), ..header(1, &[]) }),
            Code::WrongCluster
        );
        assert_eq!(code(PutHeader { cluster: Bytes::new(), ..header(1, &[]) }), Code::WrongCluster);
        let mut nameless = header(1, &[2]);
        nameless.forward[0].node = None;
        assert_eq!(code(nameless), Code::Invalid);
        let mut endless = header(1, &[2]);
        endless.forward[0].node.as_mut().unwrap().address = "x".repeat(10_000);
        assert_eq!(code(endless), Code::Invalid);
    }

    #[test]
    fn frames_are_checked() {
        let order = PutOrder::parse(header(2 * BLOCK + 10, &[]), CLUSTER, NodeId(1)).unwrap();
        let mut good = order.clone();
        good.take(&blocks(BLOCK_SIZE)).unwrap();
        assert!(!good.is_complete());
        good.take(&blocks(BLOCK_SIZE + 10)).unwrap();
        assert!(good.is_complete());
        assert_eq!(good.take(&blocks(1)).unwrap_err().code, Code::Invalid);

        let code = |blocks: Blocks| order.clone().take(&blocks).unwrap_err().code;
        assert_eq!(code(blocks(0)), Code::Invalid);
        assert_eq!(code(blocks(10)), Code::Invalid, "a part of a block before the end");
        assert_eq!(code(blocks(3 * BLOCK_SIZE)), Code::Invalid);
        assert_eq!(code(blocks(MAX_FRAME_DATA + BLOCK_SIZE)), Code::Invalid);
        assert_eq!(code(Blocks { crc32c: vec![], ..blocks(BLOCK_SIZE) }), Code::Invalid);
        assert_eq!(code(Blocks { crc32c: vec![1], ..blocks(BLOCK_SIZE) }), Code::Corrupt);
    }

    #[test]
    fn reads_end_with_a_block_or_with_the_shard() {
        let request =
            |offset, length| ReadRequest { cluster: CLUSTER.to_bytes(), chunk: 5, index: 0, offset, length };
        let end = |offset, length, shard| ReadOrder::parse(&request(offset, length), CLUSTER)?.end(shard);
        assert_eq!(end(0, 10, 10).unwrap(), 10);
        assert_eq!(end(0, BLOCK, 10).unwrap(), 10, "a whole block is asked for, its part is all there is");
        assert_eq!(end(BLOCK, BLOCK, 3 * BLOCK as u32).unwrap(), 2 * BLOCK);
        for (offset, length, shard) in [
            (0, 0, 10),
            (0, 5, 10),
            (0, BLOCK + 1, 10),
            (1, BLOCK, 10),
            (BLOCK, BLOCK, 10),
            (0, u64::MAX, 10),
        ] {
            assert_eq!(
                end(offset, length, shard).unwrap_err().code,
                Code::Invalid,
                "{offset} {length} {shard}"
            );
        }
        assert_eq!(end(u64::MAX - 65_535, BLOCK, 10).unwrap_err().code, Code::Invalid);
    }
}
