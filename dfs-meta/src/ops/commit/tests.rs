use super::super::testing::Bench;
use super::*;

fn extent(offset: u64, length: u64, chunk: u64, chunk_offset: u64) -> Extent {
    Extent { offset, length, chunk, chunk_offset }
}

#[test]
fn what_is_written_is_found_again_with_its_nodes() {
    let mut bench = Bench::with_nodes(4);
    let ino = bench.file(10);
    let chunk = bench.write(ino, &[(0, 100), (100, 50), (4096, 10)]);
    let plan = bench.plan(ino);
    assert_eq!(plan.extents, [extent(0, 150, chunk, 0), extent(4096, 10, chunk, 150)], "neighbours are one");
    let attr = plan.attr.unwrap();
    assert_eq!((attr.size, attr.allocated_bytes, attr.version), (4106, 160, 2));
    let [found] = &plan.chunks[..] else { panic!("one chunk, not {:?}", plan.chunks) };
    assert_eq!((found.chunk, found.length, found.shards.len()), (chunk, 160, 3));
    let nodes: HashSet<_> = found.shards.iter().map(|shard| shard.node.clone().unwrap().node).collect();
    assert_eq!(nodes.len(), 3);
    assert!(found.shards.iter().all(|shard| shard.node.as_ref().unwrap().address.ends_with(":7610")));
}
