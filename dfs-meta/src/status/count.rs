//! Chunks counted by what they are kept as and by how many shards they can still lose.

use std::collections::{BTreeMap, BTreeSet};

use dfs_proto::meta::ClassStatus;
use dfs_proto::{ChunkId, Class, Failure, NodeId, Redundancy};

use crate::store::records::{Chunk, ChunkState, Record};
use crate::store::{Store, keys};

/// Chunk records read at a time.
const PAGE: usize = 4096;

/// Chunks, counted.
#[derive(Clone, Debug, Default)]
pub(super) struct Chunks {
    pub(super) planned: u64,
    pub(super) garbage: u64,
    pub(super) classes: BTreeMap<String, ClassStatus>,
}

/// Reads all chunk records. A shard counts when it is not lost and its node is one of `serving`.
pub(super) fn count(store: &dyn Store, serving: &BTreeSet<NodeId>) -> Result<Chunks, Failure> {
    let mut chunks = Chunks::default();
    let mut range = keys::chunks(ChunkId(0), ChunkId(u64::MAX));
    loop {
        let page = store.scan(&range.start, &range.end, PAGE)?;
        for (key, value) in &page {
            let chunk = Chunk::from_value(key, value)?;
            match chunk.state() {
                ChunkState::Planned => chunks.planned += 1,
                ChunkState::Garbage | ChunkState::Removing => chunks.garbage += 1,
                ChunkState::Sealed => {
                    let status = chunks.classes.entry(chunk.redundancy.clone()).or_default();
                    add(status, &chunk, serving)?;
                }
            }
        }
        match page.last() {
            Some((key, _)) if page.len() == PAGE => {
                range.start = key.clone();
                range.start.push(0);
            }
            _ => return Ok(chunks),
        }
    }
}

/// Counts a sealed chunk.
fn add(status: &mut ClassStatus, chunk: &Chunk, serving: &BTreeSet<NodeId>) -> Result<(), Failure> {
    let redundancy: Redundancy = chunk.redundancy.parse()?;
    status.class.clone_from(&chunk.redundancy);
    status.chunks += 1;
    status.short +=
        u64::from(redundancy == redundancy.as_copies() && chunk.class.parse::<Class>()?.is_coded());
    status.bytes += chunk.length;
    status.live_bytes += chunk.live_bytes;
    let present =
        chunk.shards.iter().filter(|shard| !shard.lost && serving.contains(&NodeId(shard.node))).count();
    if present < redundancy.shards() as usize {
        status.degraded += 1;
    }
    match present.checked_sub(redundancy.needed_to_read() as usize) {
        None => status.missing += 1,
        Some(spare) => {
            if status.by_spare.len() <= spare {
                status.by_spare.resize(spare + 1, 0);
            }
            status.by_spare[spare] += 1;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Batch;
    use crate::store::memory::MemoryStore;
    use crate::store::records::Shard;

    #[test]
    fn a_shard_counts_where_somebody_serves_it() {
        let store = MemoryStore::default();
        let mut batch = Batch::new();
        let class = Class::default().to_string();
        let mut put = |id, state: ChunkState, redundancy: &str, shards: &[(u64, bool)]| {
            let shard = |&(node, lost)| Shard { node, lost, ..Shard::default() };
            let chunk = Chunk {
                state: state.into(),
                redundancy: redundancy.into(),
                class: if id == 4 { "ec:2+1".into() } else { class.clone() },
                length: 10,
                live_bytes: 7,
                shards: shards.iter().map(shard).collect(),
                ..Chunk::default()
            };
            batch.insert(keys::chunk(ChunkId(id)), Some(chunk.to_value()));
        };
        let sealed = ChunkState::Sealed;
        put(1, sealed, "replicated:3", &[(1, false), (2, false), (3, false)]);
        put(2, sealed, "replicated:3", &[(1, false), (2, true), (3, false)]);
        put(3, sealed, "replicated:3", &[(1, true), (9, false), (8, false)]);
        put(4, sealed, "replicated:2", &[(1, false), (9, false)]);
        put(5, ChunkState::Planned, "replicated:2", &[]);
        put(6, ChunkState::Garbage, "replicated:2", &[]);
        // So many that they are read in pages.
        for id in 0..PAGE as u64 + 1 {
            put(100 + id, sealed, "replicated:1", &[(2, false)]);
        }
        store.commit(&batch, &mut || ()).unwrap();
        let counted = count(&store, &[NodeId(1), NodeId(2), NodeId(3)].into()).unwrap();
        assert_eq!((counted.planned, counted.garbage), (1, 1));
        let three = &counted.classes["replicated:3"];
        assert_eq!((three.chunks, three.bytes, three.live_bytes), (3, 30, 21));
        assert_eq!((three.degraded, three.missing, &three.by_spare[..]), (2, 1, &[0, 1, 1][..]));
        let two = &counted.classes["replicated:2"];
        assert_eq!((two.degraded, two.missing, &two.by_spare[..]), (1, 0, &[1][..]));
        assert_eq!((two.short, three.short), (1, 0));
        assert_eq!(counted.classes["replicated:1"].by_spare, [PAGE as u64 + 1]);
    }
}
