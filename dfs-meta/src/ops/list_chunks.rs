//! A page of all sealed chunks, by their ids, for those who verify them: where all of a chunk's shards should be, and the
//! SHA-256 that its writer computed.
//!
//! A chunk that is sealed all the time is listed, whatever is written and deleted between two pages.

use dfs_proto::limits::MAX_CHUNK_PAGE;
use dfs_proto::meta::{ChunkPage, ChunkRecord, ListChunks};
use dfs_proto::{ChunkId, Failure};
use prost::Message;

use super::Context;
use super::plan::Nodes;
use crate::store::keys;
use crate::store::records::{Chunk, ChunkState, Shard};

/// Where a page ends, in bytes: well below the largest message.
const PAGE_BYTES: usize = 2 * 1024 * 1024;
/// What a record takes on a page beside its own bytes.
const RECORD_FRAME: usize = 8;

/// Fails only with the store.
pub(super) fn run(cx: &mut Context<'_, '_>, request: &ListChunks) -> Result<ChunkPage, Failure> {
    let limit = match request.limit {
        0 => MAX_CHUNK_PAGE,
        asked => asked.min(MAX_CHUNK_PAGE),
    } as usize;
    let Some(first) = request.after.checked_add(1) else {
        return Ok(ChunkPage { chunks: Vec::new(), last: u64::MAX, end: true });
    };
    let found = cx.tx.scan::<Chunk>(&keys::chunks(ChunkId(first), ChunkId(u64::MAX)), limit)?;
    let mut page = ChunkPage { chunks: Vec::new(), last: request.after, end: found.len() < limit };
    let mut nodes = Nodes::default();
    let mut bytes = 0;
    for (key, chunk) in found {
        let id = keys::chunk_id(&key);
        if chunk.state() == ChunkState::Sealed {
            let record = record(cx, &mut nodes, id, &chunk)?;
            bytes += record.encoded_len() + RECORD_FRAME;
            if bytes > PAGE_BYTES && !page.chunks.is_empty() {
                page.end = false;
                break;
            }
            page.chunks.push(record);
        }
        page.last = id.0;
    }
    Ok(page)
}

fn record(
    cx: &mut Context<'_, '_>,
    nodes: &mut Nodes,
    id: ChunkId,
    chunk: &Chunk,
) -> Result<ChunkRecord, Failure> {
    let lost = chunk.shards.iter().filter(|shard| shard.lost).map(|shard| shard.node).collect();
    let plan = nodes.plan_of(cx, id, chunk, |_: &Shard| true)?;
    Ok(ChunkRecord { plan: Some(plan), sha256: chunk.sha256.clone().into(), lost })
}

#[cfg(test)]
mod tests {
    use dfs_proto::limits::MAX_MESSAGE;
    use dfs_proto::meta::{ReportShard, request};
    use dfs_proto::{Code, Ino, Labels};

    use super::super::testing::{Bench, answer};
    use super::*;

    fn list(bench: &mut Bench, after: u64, limit: u32) -> ChunkPage {
        answer!(bench.run(request::Op::ListChunks(ListChunks { after, limit })), ChunkPage).expect("a page")
    }

    /// The ids on all pages of a size, each of which has to go on where the last one ended.
    fn all(bench: &mut Bench, limit: u32) -> Vec<u64> {
        let (mut ids, mut after) = (Vec::new(), 0);
        loop {
            let page = list(bench, after, limit);
            ids.extend(page.chunks.iter().map(|record| record.plan.as_ref().expect("a plan").chunk));
            if page.end {
                return ids;
            }
            assert!(page.last > after, "no way forward from {after}");
            assert!(page.encoded_len() < MAX_MESSAGE, "{} bytes", page.encoded_len());
            after = page.last;
        }
    }

    #[test]
    fn pages_of_any_size_bring_every_sealed_chunk_once() {
        let mut bench = Bench::with_nodes(3);
        assert!(list(&mut bench, 0, 0).end);
        let ino = bench.file("f");
        let mut sealed = Vec::new();
        for at in 0..10 {
            sealed.push(bench.write(ino, &[(at * 1000, 100 + at)]));
            // Planned, and never sealed.
            bench.allocate(3).expect("room for chunks");
        }
        let other = bench.file("g");
        let garbage = bench.write(other, &[(0, 500)]);
        bench.unlink(Ino::ROOT.0, "g").expect("remove a file");
        assert_ne!(bench.chunk(garbage).expect("its record").state(), ChunkState::Sealed);
        for limit in [0, 1, 2, 3, 7, 1000, u32::MAX] {
            assert_eq!(all(&mut bench, limit), sealed, "pages of {limit}");
        }
        let page = list(&mut bench, sealed[4] - 1, 1);
        let plan = page.chunks[0].plan.as_ref().expect("a plan");
        assert_eq!((plan.chunk, plan.length, page.last), (sealed[4], 104, sealed[4]));
        assert_eq!((&page.chunks[0].sha256[..], plan.shards.len()), (&[7; 32][..], 3));
        assert!(list(&mut bench, u64::MAX, 5).end);
        let beyond = list(&mut bench, u64::MAX - 1, 5);
        assert!(beyond.end && beyond.chunks.is_empty());
    }

    #[test]
    fn lost_shards_are_listed_and_told_apart() {
        let mut bench = Bench::with_nodes(3);
        let ino = bench.file("f");
        let chunk = bench.write(ino, &[(0, 100)]);
        let report = ReportShard { chunk, node: 2, code: Code::Corrupt.into() };
        bench.run(request::Op::ReportShard(report)).expect("a good report");
        let page = list(&mut bench, 0, 0);
        assert_eq!(page.chunks[0].lost, [2]);
        assert_eq!(page.chunks[0].plan.as_ref().expect("a plan").shards.len(), 3);
        assert_eq!(bench.plan(ino).chunks[0].shards.len(), 2, "readers are told of two");
    }

    #[test]
    fn a_page_fits_a_message() {
        let mut bench = Bench::with_nodes(3);
        for node in 1..=3 {
            let label = || "x".repeat(250);
            bench.join_at(node, Labels { host: label(), rack: label(), zone: label() });
        }
        let ino = bench.file("f");
        let sealed: Vec<u64> = (0..1100).map(|at| bench.write(ino, &[(at * 100, 100)])).collect();
        let first = list(&mut bench, 0, 0);
        assert!(!first.end && (100..900).contains(&first.chunks.len()), "{}", first.chunks.len());
        assert_eq!(all(&mut bench, 0), sealed);
    }
}
