//! Which nodes get the shards of a chunk: those that the policy likes best, under the rule that no two shards of a
//! chunk are in one failure domain while there are enough domains. The domain is the widest that has enough of them;
//! within that rule, wider ones are used evenly too.

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
    /// Its label; empty when it has none.
    pub zone: String,
    domains: [Domain; 4],
}

impl Candidate {
    /// A node with its labels.
    pub fn new(node: NodeId, labels: &Labels, capacity_bytes: u64, free_bytes: u64) -> Self {
        Self { node, capacity_bytes, free_bytes, zone: labels.zone.clone(), domains: domains(node, labels) }
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
    let taken: Vec<[Domain; 4]> = wanted.taken.iter().map(|(node, labels)| domains(*node, labels)).collect();
    let mut order = policy.order(wanted.chunk, candidates);
    order.retain(|&at| taken.iter().all(|domains| domains[3] != candidates[at].domains[3]));
    if !wanted.near.is_empty() {
        let near = Domain::Host(wanted.near.to_owned());
        order.sort_by_key(|&at| candidates[at].domains[2] != near);
    }
    let liked: Vec<&Candidate> = order.into_iter().map(|at| &candidates[at]).collect();
    let enough = wanted.shards.min(liked.len());
    let at_level = |level| apart(level, &taken, liked.clone(), enough);
    // At the last level a domain is a node, of which there are enough.
    (0..LEVELS.len()).map(at_level).find(|chosen| chosen.len() == enough).unwrap_or_default()
}

/// Up to `enough` of the candidates, best liked first, of which no two share a domain of this level or a narrower one,
/// with each other or with what is `taken`. Wider domains get as few of them as the rest allows.
fn apart(level: usize, taken: &[[Domain; 4]], mut liked: Vec<&Candidate>, enough: usize) -> Vec<NodeId> {
    let mut used: Vec<&[Domain; 4]> = taken.iter().collect();
    let mut chosen = Vec::with_capacity(enough);
    while chosen.len() < enough {
        liked.retain(|candidate| {
            used.iter().all(|used| (level..LEVELS.len()).all(|at| used[at] != candidate.domains[at]))
        });
        let crowds = |candidate: &Candidate| -> [usize; 4] {
            std::array::from_fn(|at| match at < level {
                true => used.iter().filter(|used| used[at] == candidate.domains[at]).count(),
                false => 0,
            })
        };
        // The first of equals is the best liked.
        let Some(best) = liked.iter().copied().min_by_key(|candidate| crowds(candidate)) else { break };
        used.push(&best.domains);
        chosen.push(best.node);
    }
    chosen
}

#[cfg(test)]
mod tests;
