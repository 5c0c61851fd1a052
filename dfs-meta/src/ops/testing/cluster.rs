//! Chunk daemons and written files for tests of operations.

use std::time::Duration;

use dfs_proto::meta::{
    Allocate, Allocated, Commit, Committed, Extent, FileCommit, NodeHeartbeat, NodeJoin, NodeJoined,
    NodeOrders, Plan, PlanReply, SealedChunk, SealedShard, request,
};
use dfs_proto::{ChunkId, Failure, Ino, Labels, PROTOCOL_VERSION};

use super::Bench;
use crate::machine::transaction::Transaction;
use crate::store::keys;
use crate::store::records::Chunk;

/// What each daemon of a test has room for.
pub(crate) const CAPACITY: u64 = 1 << 40;

/// Unwraps the kind of reply that an operation has.
macro_rules! answer {
    ($result:expr, $kind:ident) => {
        $result.map(|result| match result {
            dfs_proto::meta::reply::Result::$kind(value) => value,
            other => panic!("not the reply to this operation: {other:?}"),
        })
    };
}

pub(crate) use answer;

impl Bench {
    /// A fresh filesystem with so many chunk daemons, each on a host of its own, that may be silent for long: every
    /// operation of a test takes a second.
    pub(crate) fn with_nodes(count: u8) -> Self {
        let mut bench = Self::new();
        bench.settings.node_suspect_after = Duration::from_secs(1 << 20);
        bench.settings.node_dead_after = Duration::from_secs(1 << 21);
        for number in 1..=count {
            bench.join(number, &format!("host{number}"));
        }
        bench
    }

    /// A chunk daemon with a disk of its own joins.
    pub(crate) fn join(&mut self, number: u8, host: &str) -> NodeJoined {
        self.join_at(number, Labels { host: host.into(), ..Labels::default() })
    }

    /// The same, with all of its labels.
    pub(crate) fn join_at(&mut self, number: u8, labels: Labels) -> NodeJoined {
        let join = NodeJoin {
            disk: vec![number; 16].into(),
            address: format!("{}:7610", labels.host),
            labels: Some(labels),
            capacity_bytes: CAPACITY,
            available_bytes: CAPACITY,
            protocol: PROTOCOL_VERSION,
            ..NodeJoin::default()
        };
        answer!(self.run(request::Op::NodeJoin(join)), NodeJoined).expect("a good join")
    }

    /// A heartbeat of a daemon in its first epoch, with nothing to tell but the space on it.
    pub(crate) fn beat(&mut self, node: u64, available_bytes: u64) -> NodeOrders {
        let beat = NodeHeartbeat {
            node,
            epoch: 1,
            capacity_bytes: CAPACITY,
            available_bytes,
            ..NodeHeartbeat::default()
        };
        answer!(self.run(request::Op::NodeHeartbeat(beat)), NodeOrders).expect("a good heartbeat")
    }

    /// A new regular file in the root directory.
    pub(crate) fn file(&mut self, name: &str) -> Ino {
        Ino(self.make_file(Ino::ROOT.0, name))
    }

    /// All extents of a file in the root directory.
    pub(crate) fn plan_of(&mut self, name: &str) -> PlanReply {
        let attr = self.lookup(Ino::ROOT.0, name).expect("a file of that name");
        self.plan(Ino(attr.ino))
    }

    /// A chunk's record.
    pub(crate) fn chunk(&self, id: u64) -> Option<Chunk> {
        let mut tx = Transaction::new(&*self.store, Vec::new());
        tx.get(&keys::chunk(ChunkId(id))).expect("a good record")
    }

    /// Allocates chunks of three copies.
    pub(crate) fn allocate(&mut self, count: u32) -> Result<Allocated, Failure> {
        let allocate = Allocate { class: "replicated:3".into(), count, ..Allocate::default() };
        answer!(self.run(request::Op::Allocate(allocate)), Allocated)
    }

    /// Seals a chunk of this length on all its planned nodes.
    pub(crate) fn sealed(plan: &dfs_proto::meta::ChunkPlan, length: u64) -> SealedChunk {
        let shards = plan.shards.iter().map(|shard| SealedShard {
            index: shard.index,
            node: shard.node.as_ref().expect("a plan names nodes").node,
        });
        SealedChunk {
            chunk: plan.chunk,
            length,
            sha256: vec![7; 32].into(),
            shards: shards.collect(),
            encoding: None,
        }
    }

    /// Runs a commit.
    pub(crate) fn commit(&mut self, commit: Commit) -> Result<Committed, Failure> {
        answer!(self.run(request::Op::Commit(commit)), Committed)
    }

    /// Writes ranges (offset, length) of a file, packed into a chunk of their own; returns the chunk.
    pub(crate) fn write(&mut self, ino: Ino, ranges: &[(u64, u64)]) -> u64 {
        let plan = self.allocate(1).expect("room for a chunk").chunks.remove(0);
        let mut chunk_offset = 0;
        let extents: Vec<Extent> = ranges
            .iter()
            .map(|&(offset, length)| {
                let extent = Extent { offset, length, chunk: plan.chunk, chunk_offset };
                chunk_offset += length;
                extent
            })
            .collect();
        let size = extents.last().map_or(0, Extent::end);
        let files = vec![FileCommit { ino: ino.0, extents, size, ..FileCommit::default() }];
        let committed = self
            .commit(Commit { chunks: vec![Self::sealed(&plan, chunk_offset)], files })
            .expect("a good commit");
        assert_eq!(committed.files[0].code, 0);
        plan.chunk
    }

    /// All of a file's extents.
    pub(crate) fn plan(&mut self, ino: Ino) -> PlanReply {
        let plan = Plan { ino: ino.0, offset: 0, length: u64::MAX, max_extents: 4096 };
        answer!(self.run(request::Op::Plan(plan)), Plan).expect("a plan")
    }
}
