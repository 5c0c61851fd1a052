use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::super::Policy;
use super::*;

const TIB: u64 = 1 << 40;
const ALL: [Policy; 4] = [Policy::Spread, Policy::LeastLoaded, Policy::RoundRobin, Policy::HashRing];

fn labels(host: u64, rack: u64, zone: u64) -> Labels {
    let label = |name: &str, number: u64| if number == 0 { String::new() } else { format!("{name}{number}") };
    Labels { host: label("h", host), rack: label("r", rack), zone: label("z", zone) }
}

fn candidate(node: u64, labels: &Labels, free_bytes: u64) -> Candidate {
    Candidate::new(NodeId(node), labels, TIB, free_bytes)
}

/// Nodes that each are a host.
fn hosts(count: u64) -> Vec<Candidate> {
    (1..=count).map(|node| candidate(node, &labels(node, 0, 0), TIB)).collect()
}

fn wanted(chunk: u64, shards: usize) -> Wanted<'static> {
    Wanted { chunk: ChunkId(chunk), shards, taken: &[], near: "" }
}

/// How often each node is chosen for the first `chunks` chunks of three shards.
fn shares(policy: Policy, candidates: &[Candidate], chunks: u64) -> HashMap<NodeId, u64> {
    let mut shares = HashMap::new();
    for chunk in 1..=chunks {
        for node in place(&policy, wanted(chunk, 3), candidates) {
            *shares.entry(node).or_default() += 1;
        }
    }
    shares
}

/// Nodes with labels as they may be: a host is in one rack and a rack in one zone, and any of them may not be told.
/// And the positions of some of them, where shards are already.
fn clusters() -> impl Strategy<Value = (Vec<(Labels, u64)>, Vec<usize>)> {
    let racks = proptest::collection::vec(0u64..4, 6);
    let zones = proptest::collection::vec(0u64..3, 6);
    let nodes = proptest::collection::vec((0usize..6, 1..TIB), 1..14);
    let clusters = (racks, zones, nodes).prop_map(|(racks, zones, nodes)| {
        let place = |host: usize| match racks[host] {
            0 => labels(host as u64, 0, zones[host]),
            rack => labels(host as u64, rack, zones[rack as usize]),
        };
        nodes.into_iter().map(|(host, free)| (place(host), free)).collect::<Vec<_>>()
    });
    clusters.prop_flat_map(|nodes| {
        let count = nodes.len();
        let taken = proptest::collection::hash_set(0..count, 0..count.min(4));
        (Just(nodes), taken.prop_map(|taken| taken.into_iter().collect()))
    })
}

proptest! {
    #[test]
    fn no_domain_gets_two_shards_while_there_are_enough(
        (nodes, taken) in clusters(), policy in proptest::sample::select(ALL.to_vec()), shards in 1usize..6, chunk in any::<u64>(),
    ) {
        let all: Vec<Candidate> =
            nodes.iter().zip(1..).map(|((labels, free), node)| candidate(node, labels, *free)).collect();
        let taken: Vec<_> = taken.iter().map(|&at| (all[at].node, nodes[at].0.clone())).collect();
        let wanted = Wanted { chunk: ChunkId(chunk), shards, taken: &taken, near: "" };
        let chosen = place(&policy, wanted, &all);

        let free = all.iter().filter(|node| taken.iter().all(|(id, _)| *id != node.node));
        prop_assert_eq!(chosen.len(), shards.min(free.clone().count()), "as many as there are");
        prop_assert_eq!(place(&policy, wanted, &all), chosen.clone(), "the same again");
        let used: Vec<[Domain; 4]> = taken.iter().map(|(id, labels)| domains(*id, labels)).collect();
        for level in 0..4 {
            let fresh: HashSet<&Domain> = free.clone().map(|node| &node.domains[level])
                .filter(|domain| used.iter().all(|used| used[level] != **domain)).collect();
            if fresh.len() >= chosen.len() {
                let mut seen: HashSet<Domain> = used.iter().map(|domains| domains[level].clone()).collect();
                for id in &chosen {
                    let node = all.iter().find(|node| node.node == *id).unwrap();
                    prop_assert!(seen.insert(node.domains[level].clone()), "{:?} share a domain at level {}", &chosen, level);
                }
            }
        }
    }
}

#[test]
fn two_zones_get_their_part_of_three_shards_on_three_racks() {
    let nodes: Vec<Candidate> =
        (1..=8).map(|node| candidate(node, &labels(node, 1 + node % 4, 1 + node % 2), TIB)).collect();
    for policy in ALL {
        for chunk in 1..200 {
            let chosen = place(&policy, wanted(chunk, 3), &nodes);
            let zones: HashSet<u64> = chosen.iter().map(|node| node.0 % 2).collect();
            let racks: HashSet<u64> = chosen.iter().map(|node| node.0 % 4).collect();
            assert_eq!((zones.len(), racks.len()), (2, 3), "{policy}: {chosen:?}");
        }
    }
}

#[test]
fn shares_are_even_within_a_few_percent() {
    const CHUNKS: u64 = 20_000;
    let nodes = hosts(10);
    let even = CHUNKS * 3 / 10;
    // A ring's shares differ as its points happen to lie: by an eighth with 150 of them, half of that for three shards.
    for (policy, percent) in
        [(Policy::Spread, 4), (Policy::LeastLoaded, 4), (Policy::RoundRobin, 1), (Policy::HashRing, 16)]
    {
        for (node, share) in shares(policy, &nodes, CHUNKS) {
            let off = share.abs_diff(even) * 100 / even;
            assert!(off <= percent, "{policy}: node {node} has {share} of {even}, {off} % off");
        }
    }
}

#[test]
fn spread_follows_the_free_space() {
    let mut nodes = hosts(10);
    for node in &mut nodes[5..] {
        node.free_bytes = TIB / 4;
    }
    let mut first: HashMap<NodeId, u64> = HashMap::new();
    for chunk in 1..=20_000 {
        *first.entry(place(&Policy::Spread, wanted(chunk, 1), &nodes)[0]).or_default() += 1;
    }
    for (node, share) in first {
        let expected = if node.0 <= 5 { 3200 } else { 800 };
        assert!(share.abs_diff(expected) * 100 / expected <= 12, "node {node}: {share} of {expected}");
    }
    let emptiest = Candidate { free_bytes: TIB / 2, ..nodes[3].clone() };
    let fuller = nodes.iter().map(|node| Candidate { free_bytes: TIB / 3, ..node.clone() });
    let nodes: Vec<_> =
        fuller.map(|node| if node.node == emptiest.node { emptiest.clone() } else { node }).collect();
    assert_eq!(place(&Policy::LeastLoaded, wanted(7, 1), &nodes), [emptiest.node]);
}

#[test]
fn a_ring_moves_little_when_a_node_leaves() {
    const CHUNKS: u64 = 5000;
    let nodes = hosts(10);
    let fewer: Vec<_> = nodes.iter().filter(|node| node.node != NodeId(4)).cloned().collect();
    let moved = |policy: Policy| {
        let mut moved = 0;
        for chunk in 1..=CHUNKS {
            let before = place(&policy, wanted(chunk, 3), &nodes);
            let after = place(&policy, wanted(chunk, 3), &fewer);
            moved += before.iter().filter(|node| **node != NodeId(4) && !after.contains(node)).count();
        }
        moved
    };
    assert_eq!(moved(Policy::HashRing), 0, "who stays keeps all it has");
    assert!(moved(Policy::RoundRobin) > CHUNKS as usize, "and that is not a matter of course");
}

#[test]
fn the_first_shard_can_be_near_the_writer() {
    let nodes: Vec<Candidate> =
        (1..=9).map(|node| candidate(node, &labels(1 + node % 3, 0, 0), TIB)).collect();
    for chunk in 1..100 {
        let chosen = place(&Policy::Spread, Wanted { near: "h2", ..wanted(chunk, 3) }, &nodes);
        assert_eq!(chosen[0].0 % 3, 1, "h2 first: {chosen:?}");
        assert_eq!(chosen.iter().map(|node| node.0 % 3).collect::<HashSet<_>>().len(), 3);
    }
    assert_eq!(place(&Policy::Spread, Wanted { near: "far", ..wanted(1, 3) }, &nodes).len(), 3);
}

#[test]
fn policies_are_printed_as_written() {
    for policy in ALL {
        assert_eq!(policy.to_string().parse::<Policy>().unwrap(), policy);
    }
    assert!("random".parse::<Policy>().is_err());
}
