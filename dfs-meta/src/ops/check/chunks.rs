//! Walks the tables of chunks and says what does not fit together: chunk records with what nodes should hold (`H`) and
//! remove (`R`), with the garbage queue (`G`) and with the nodes (`N`). The part of the check of a whole store that is
//! about where data is; it changes nothing.
//!
//! It keeps a few numbers of every shard in memory.

use std::collections::{BTreeMap, BTreeSet};

use dfs_proto::{ChunkId, NodeId, Redundancy, stripe};

use super::super::counters;
use super::each;
use crate::machine::transaction::Transaction;
use crate::store::StoreError;
use crate::store::keys::{self, Key};
use crate::store::records::{Chunk, ChunkState, Held, Marker, Node};

/// Says what is wrong, one sentence each, at most `limit` of them.
pub(super) fn check(tx: &mut Transaction<'_>, limit: usize) -> Result<Vec<String>, StoreError> {
    let mut walk = Walk { limit, ..Walk::default() };
    each(tx, keys::nodes(), |key, _: Node| {
        walk.nodes.insert(keys::node_id(key));
    })?;
    for &node in &walk.nodes.clone() {
        each(tx, keys::held_by(node, ChunkId(0), ChunkId(u64::MAX)), |key, held: Held| {
            walk.held.insert((keys::shard_chunk(key), node), held);
        })?;
        each(tx, keys::removals(node), |key, _: Marker| {
            walk.removals.insert((keys::shard_chunk(key), node));
        })?;
    }
    each(tx, keys::garbage_due(u64::MAX), |key, _: Marker| walk.queued(key))?;
    let all = keys::chunks(ChunkId(0), ChunkId(u64::MAX));
    each(tx, all, |key, chunk: Chunk| walk.chunk(keys::chunk_id(key), &chunk))?;
    walk.rest();
    if counters::get(tx, counters::LAST_CHUNK)? < walk.last_chunk {
        walk.problem(format!("chunk {} is there but was never handed out", walk.last_chunk));
    }
    let last_node = walk.nodes.last().map_or(0, |node| node.0);
    if counters::get(tx, counters::LAST_NODE)? < last_node {
        walk.problem(format!("node {last_node} is there but was never handed out"));
    }
    Ok(walk.problems)
}

#[derive(Default)]
struct Walk {
    nodes: BTreeSet<NodeId>,
    /// What nodes should hold, until its chunk is found.
    held: BTreeMap<(ChunkId, NodeId), Held>,
    removals: BTreeSet<(ChunkId, NodeId)>,
    /// When chunks are due, until they are found.
    due: BTreeMap<ChunkId, u64>,
    last_chunk: u64,
    problems: Vec<String>,
    limit: usize,
}

impl Walk {
    fn problem(&mut self, problem: String) {
        if self.problems.len() < self.limit {
            self.problems.push(problem);
        }
    }

    fn queued(&mut self, key: &Key) {
        let (due_ms, chunk) = keys::garbage_parts(key);
        if self.due.insert(chunk, due_ms).is_some() {
            self.problem(format!("chunk {chunk} is in the garbage queue twice"));
        }
    }

    fn chunk(&mut self, id: ChunkId, chunk: &Chunk) {
        self.last_chunk = id.0;
        let mut wrong = Vec::new();
        let redundancy = chunk.redundancy.parse::<Redundancy>();
        if redundancy.is_err() {
            wrong.push(format!("is of no redundancy: {:?}", chunk.redundancy));
        }
        let shard_length = |index| match &redundancy {
            Ok(redundancy) => stripe::shard_length(*redundancy, chunk.length, index),
            Err(_) => chunk.length,
        };
        let state = chunk.state();
        let waits = matches!(state, ChunkState::Planned | ChunkState::Garbage);
        let due = self.due.remove(&id);
        if due != waits.then_some(chunk.due_ms) {
            wrong.push(format!("is {state:?} and due at {}, in the queue at {due:?}", chunk.due_ms));
        }
        let sealed = matches!(state, ChunkState::Sealed | ChunkState::Garbage);
        if sealed && (chunk.length == 0 || chunk.sha256.len() != 32) {
            wrong.push("is sealed without a length and a SHA-256".into());
        }
        if chunk.shards.is_empty() {
            wrong.push("is nowhere".into());
        }
        let (mut nodes, mut indices) = (BTreeSet::new(), BTreeSet::new());
        for shard in &chunk.shards {
            let node = NodeId(shard.node);
            let held = self.held.remove(&(id, node));
            let removal = self.removals.remove(&(id, node));
            if !self.nodes.contains(&node) || !nodes.insert(node) {
                wrong.push(format!("names node {node} twice, or it is not there"));
            }
            if sealed && !indices.insert(shard.index) {
                wrong.push(format!("has shard {} twice", shard.index));
            }
            let fits = held.is_some_and(|held| {
                (held.index, held.length, held.lost) == (shard.index, shard_length(shard.index), shard.lost)
            });
            if sealed && !fits || state == ChunkState::Planned && held.is_some() {
                wrong.push(format!("is {state:?}, but node {node} should hold {held:?}"));
            }
            if removal != (state == ChunkState::Removing) {
                wrong.push(format!("is {state:?}; node {node} is to remove it: {removal}"));
            }
        }
        for what in wrong {
            self.problem(format!("chunk {id} {what}"));
        }
    }

    /// What no chunk has claimed. Orders to remove what no chunk names are as they should be.
    fn rest(&mut self) {
        for (chunk, node) in std::mem::take(&mut self.held).into_keys() {
            self.problem(format!("node {node} should hold chunk {chunk}, which does not name it"));
        }
        for chunk in std::mem::take(&mut self.due).into_keys() {
            self.problem(format!("chunk {chunk} is in the garbage queue, but not there"));
        }
    }
}
