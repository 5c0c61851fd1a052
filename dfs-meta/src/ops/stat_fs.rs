//! Space and number of files of the whole filesystem: statfs(2). Takes as long as there are chunk daemons, however many
//! files there are.

use dfs_proto::meta::{FsStats, NodeState};
use dfs_proto::{Class, Failure, Ino, Redundancy};

use super::{Context, counters, inode};
use crate::cluster;
use crate::cluster::holding::NodePlace;
use crate::live::nodes::LiveNode;

/// Space is what files may take up, by the root directory's class, on the chunk daemons that answer.
pub(super) fn run(cx: &mut Context<'_, '_>) -> Result<FsStats, Failure> {
    let class: Class = inode::load(cx, Ino::ROOT)?.class.parse()?;
    let present = |state| state != NodeState::Down;
    Ok(FsStats {
        total_bytes: usable_by(&class, &space(cx, present, |node| node.fill.capacity_bytes)),
        available_bytes: available_bytes(cx, &class),
        files: counters::get(cx.tx, counters::FILES)?,
        used_bytes: counters::get(cx.tx, counters::USED_BYTES)?,
    })
}

/// What files of this class may take up besides what is there.
pub(super) fn available_bytes(cx: &Context<'_, '_>, class: &Class) -> u64 {
    let writable = |state| matches!(state, NodeState::Up | NodeState::Suspect);
    usable_by(class, &space(cx, writable, LiveNode::free_bytes))
}

/// The nodes in some states, with some measure of their space.
fn space(
    cx: &Context<'_, '_>,
    counts: impl Fn(NodeState) -> bool,
    bytes: impl Fn(&LiveNode) -> u64,
) -> Vec<(NodePlace, u64)> {
    let patience = cx.settings.patience();
    let nodes = cx.live.nodes.iter().filter(|(_, node)| counts(node.state(cx.uptime, patience)));
    nodes.map(|(id, node)| ((id, node.labels()), bytes(node))).collect()
}

/// How many bytes of files of this class fit on nodes, which are given with their space.
fn usable_by(class: &Class, nodes: &[(NodePlace, u64)]) -> u64 {
    let redundancy = cluster::redundancy_of(class, nodes.iter().map(|(place, _)| place.clone()));
    let allowed = nodes.iter().filter(|((_, labels), _)| class.allows_zone(&labels.zone));
    let space: Vec<u64> = allowed.map(|(_, bytes)| *bytes).collect();
    // Where too few nodes are there to code, clients keep copies.
    let is_enough = space.len() >= redundancy.needed_to_write() as usize;
    usable(space, if is_enough { redundancy } else { redundancy.as_copies() })
}

/// How many bytes fit on nodes with so much space when the shards of a chunk lie on different ones: a node that has more
/// than its share of what is left to place can't use the rest.
fn usable(mut space: Vec<u64>, redundancy: Redundancy) -> u64 {
    let shards = (redundancy.shards() as usize).min(space.len());
    if shards < redundancy.needed_to_write() as usize {
        return 0;
    }
    space.sort_unstable_by_key(|&bytes| std::cmp::Reverse(bytes));
    let mut sum: u128 = space.iter().map(|&bytes| u128::from(bytes)).sum();
    let mut shards = shards as u128;
    for bytes in space {
        if shards > 1 && u128::from(bytes) * shards > sum {
            sum -= u128::from(bytes);
            shards -= 1;
        } else {
            break;
        }
    }
    // Each shard bears its part of the chunk.
    u64::try_from(sum / shards * u128::from(redundancy.needed_to_read())).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::shorthand::ROOT;
    use super::super::testing::Bench;
    use super::*;
    use crate::live::nodes::Fill;
    use crate::store::records::Node;
    use dfs_proto::NodeId;
    use dfs_proto::meta::{reply, request};

    #[test]
    fn uneven_nodes_are_not_promised_twice() {
        let class = |copies| Redundancy::Replicated { copies };
        assert_eq!(usable(vec![10, 10, 10], class(3)), 10);
        assert_eq!(usable(vec![10, 10, 10, 10], class(3)), 13);
        assert_eq!(usable(vec![100, 10, 10], class(3)), 10);
        assert_eq!(usable(vec![100, 10, 10], class(2)), 20, "one copy on the large one, one elsewhere");
        assert_eq!(usable(vec![100, 50, 0], class(1)), 150);
        assert_eq!(usable(vec![10, 7], class(3)), 7, "two copies are enough to write");
        assert_eq!(usable(vec![10], class(3)), 0);
        assert_eq!(usable(vec![], class(1)), 0);
        let coded = Redundancy::Coded { data: 4, parity: 2 };
        assert_eq!(usable(vec![10; 6], coded), 40);
        assert_eq!(usable(vec![10; 5], coded), 40, "one parity shard is enough to write");
        assert_eq!(usable(vec![10; 4], coded), 0);
        assert_eq!(usable(vec![10; 12], coded), 80);
        assert_eq!(usable(vec![u64::MAX, u64::MAX], class(1)), u64::MAX);
    }

    fn stats(bench: &mut Bench) -> FsStats {
        match bench.run(request::Op::StatFs(Default::default())).expect("statfs never fails") {
            reply::Result::FsStats(stats) => stats,
            other => panic!("not statistics: {other:?}"),
        }
    }

    #[test]
    fn files_and_space_are_counted() {
        let mut bench = Bench::new();
        assert_eq!(stats(&mut bench), FsStats { files: 1, ..FsStats::default() });
        for node in 1..=3 {
            let fill = Fill { capacity_bytes: 1000, available_bytes: 400, ..Fill::default() };
            bench.live.nodes.join(NodeId(node), &Node::default(), fill, bench.uptime);
        }
        bench.make_file(ROOT, "file");
        bench.make_dir(ROOT, "dir");
        let expected = FsStats { total_bytes: 1000, available_bytes: 400, files: 3, used_bytes: 0 };
        assert_eq!(stats(&mut bench), expected);
        bench.unlink(ROOT, "file").unwrap();
        bench.uptime += bench.settings.node_dead_after;
        let expected = FsStats { files: 2, ..FsStats::default() };
        assert_eq!(stats(&mut bench), expected, "nobody answers any more");
    }
}
