//! Which nodes get the shards of a chunk: those that the policy likes best, under the rule that no two shards of a
//! chunk are in one failure domain while there are enough domains. The domain is the widest that has enough of them;
//! within that rule, wider ones are used evenly too.

use std::collections::HashSet;

use dfs_proto::{ChunkId, Labels, NodeId};

use super::Placement;
use super::domain::{Domain, LEVELS, domains};

/// A node that may get a shard: up, writable, with room for one.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Which.
    pub node: NodeId,
    /// What it has.
    pub capacity_bytes: u64,
    /// What is left of it.
    pub free_bytes: u64,
    domains: [Domain; 4],
}

impl Candidate {
    /// A node with its labels.
    pub fn new(node: NodeId, labels: &Labels, capacity_bytes: u64, free_bytes: u64) -> Self {
        Self { node, capacity_bytes, free_bytes, domains: domains(node, labels) }
    }

    /// How full it is, in ten-thousandths.
    pub(super) fn fill_permyriad(&self) -> u64 {
        let used = u128::from(self.capacity_bytes.saturating_sub(self.free_bytes));
        (used * 10_000).checked_div(u128::from(self.capacity_bytes)).unwrap_or(10_000) as u64
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The chunk.
    pub chunk: ChunkId,
    /// So many nodes more.
    pub shards: usize,
    /// Where the chunk's other shards are.
    pub taken: &'a [(NodeId, Labels)],
    /// The host whose nodes come first, when there are any: the writer's. Empty: none.
    pub near: &'a str,
}

/// Chooses up to `wanted.shards` nodes; fewer only when there are no more candidates. `candidates` are sorted by node.
pub fn place(policy: &dyn Placement, wanted: Wanted<'_>, candidates: &[Candidate]) -> Vec<NodeId> {
    let mut used: Vec<[Domain; 4]> =
        wanted.taken.iter().map(|(node, labels)| domains(*node, labels)).collect();
    let mut order = policy.order(wanted.chunk, candidates);
    order.retain(|&at| used.iter().all(|domains| domains[3] != candidates[at].domains[3]));
    if !wanted.near.is_empty() {
        let near = Domain::Host(wanted.near.to_owned());
        order.sort_by_key(|&at| candidates[at].domains[2] != near);
    }
    let level = widest_level(&used, &order, candidates, wanted.shards);
    let mut chosen = Vec::with_capacity(wanted.shards);
    while chosen.len() < wanted.shards {
        let crowd = |at: usize, level: usize| {
            used.iter().filter(|domains| domains[level] == candidates[at].domains[level]).count()
        };
        let crowds = |at: usize, levels: usize| -> [usize; 4] {
            std::array::from_fn(|i| if i < levels { crowd(at, i) } else { 0 })
        };
        let ranked = || order.iter().copied().enumerate();
        let best = ranked()
            .filter(|&(_, at)| crowd(at, level) == 0)
            .min_by_key(|&(rank, at)| (crowds(at, level), rank))
            // The domains run out when other shards stand badly already: then the least crowded will do.
            .or_else(|| ranked().min_by_key(|&(rank, at)| (crowds(at, 4), rank)));
        let Some((rank, at)) = best else { break };
        order.remove(rank);
        used.push(candidates[at].domains.clone());
        chosen.push(candidates[at].node);
    }
    chosen
}

/// The widest level at which the candidates have enough domains that are not used yet.
fn widest_level(used: &[[Domain; 4]], order: &[usize], candidates: &[Candidate], shards: usize) -> usize {
    let enough = shards.min(order.len());
    let fresh = |level: usize| -> HashSet<&Domain> {
        let all = order.iter().map(|&at| &candidates[at].domains[level]);
        all.filter(|domain| used.iter().all(|domains| domains[level] != **domain)).collect()
    };
    (0..LEVELS.len()).find(|&level| fresh(level).len() >= enough).unwrap_or(LEVELS.len() - 1)
}
