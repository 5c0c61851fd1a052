//! Verifies one chunk on every node that should keep it: each shard is read whole, frame by frame, and compared with what
//! the chunk's SHA-256 says that it must be.
//!
//! Checksums tell damage; that a shard whose checksums are good is another one than was written, only the SHA-256 tells. Which
//! one it is, is found out by leaving shards out of those that the chunk is put together from, until the SHA-256 is right.
//! Holds one frame of each shard in memory at a time. Changes nothing and reports nothing: that is the caller's.

mod layout;
mod pass;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use dfs_proto::meta::ChunkPlan;
use dfs_proto::{ClusterId, Code, Failure, Labels, NodeAddress, Redundancy};

use self::layout::Layout;
use self::pass::{Pass, Slot};
use super::nodes::Nodes;

/// How often a chunk is read anew at most, to find out which of its shards are not those that were written.
const MAX_TRIALS: usize = 32;

/// Verifies chunks of one cluster.
pub struct Verifier {
    cluster: ClusterId,
    nodes: Nodes,
}

/// What is wrong with a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Trouble {
    /// Its node does not have it.
    Missing,
    /// It is damaged, or not what was written.
    Corrupt,
    /// Whether it is good is not known: its node could not be asked, or could not read it.
    NotAsked,
    /// It was known to be lost before.
    KnownLost,
    /// The chunk was written without it, or the metadata has no place for it.
    NeverWritten,
}

impl Trouble {
    /// What the metadata server is to be told, if it does not know yet.
    pub fn report(self) -> Option<Code> {
        match self {
            Self::Missing => Some(Code::NotFound),
            Self::Corrupt => Some(Code::Corrupt),
            Self::NotAsked | Self::KnownLost | Self::NeverWritten => None,
        }
    }
}

/// A shard that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Its index in the chunk.
    pub shard: u32,
    /// Where it should be; `None` when nowhere.
    pub node: Option<NodeAddress>,
    /// What is wrong.
    pub trouble: Trouble,
    /// The same for people.
    pub detail: String,
}

/// Whether a chunk's bytes can be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readable {
    /// They are there, and are those that were written.
    Yes,
    /// They are not: why.
    No(String),
    /// Too few nodes could be asked to tell: why.
    Unknown(String),
}

/// What became of verifying one chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Of the chunk as a whole.
    pub readable: Readable,
    /// Of its shards, in order; those not named are good.
    pub findings: Vec<Finding>,
    /// How many shards are good.
    pub good: u32,
}

impl Verifier {
    /// For a cluster. Its functions must be called within a runtime.
    pub fn new(cluster: ClusterId) -> Self {
        Self { cluster, nodes: Nodes::new(cluster, Labels::default()) }
    }

    /// Verifies a chunk. `plan` names all of its shards; `lost` are nodes whose shard is known to be lost; `sha256` is what
    /// its writer computed over the chunk's bytes.
    pub async fn verify(&self, plan: &ChunkPlan, sha256: &[u8], lost: &[u64]) -> Verdict {
        let layout = match layout_of(plan, sha256) {
            Ok(layout) => layout,
            Err(failure) => {
                let readable = Readable::Unknown(failure.message);
                return Verdict { readable, findings: Vec::new(), good: 0 };
            }
        };
        let mut slots: Vec<Slot> =
            plan.shards.iter().map(|shard| Slot::new(&self.nodes, &layout, shard, lost)).collect();
        // What is lost is compared like the others, but nothing is put together from it.
        let known: BTreeSet<usize> = (0..slots.len()).filter(|slot| slots[*slot].is_known_lost()).collect();
        let mut pass = Pass::run(self.cluster, plan.chunk, &layout, &mut slots, &known).await;
        if !known.is_empty() && !pass.gave(sha256) {
            pass = Pass::run(self.cluster, plan.chunk, &layout, &mut slots, &BTreeSet::new()).await;
        }
        if pass.is_complete() && !pass.gave(sha256) {
            for distrusted in combinations(slots.len(), layout.spare()).take(MAX_TRIALS) {
                let trial = Pass::run(self.cluster, plan.chunk, &layout, &mut slots, &distrusted).await;
                if trial.gave(sha256) {
                    pass = trial;
                    break;
                }
            }
        }
        conclude(&layout, slots, &pass, sha256)
    }
}

fn layout_of(plan: &ChunkPlan, sha256: &[u8]) -> Result<Layout, Failure> {
    let redundancy: Redundancy = plan.redundancy.parse()?;
    if sha256.len() != 32 {
        let message = format!("the metadata has no SHA-256 of chunk {}", plan.chunk);
        return Err(Failure::new(Code::Corrupt, message));
    }
    Layout::new(redundancy, plan.length).ok_or_else(|| {
        let message =
            format!("the metadata says that chunk {} is {} bytes of {redundancy}", plan.chunk, plan.length);
        Failure::new(Code::Corrupt, message)
    })
}

/// What the last pass and all before it have shown.
fn conclude(layout: &Layout, mut slots: Vec<Slot>, pass: &Pass, sha256: &[u8]) -> Verdict {
    let is_right = pass.gave(sha256);
    if is_right {
        for (slot, differs) in slots.iter_mut().zip(pass.differs()) {
            if *differs {
                slot.found(Trouble::Corrupt, "its checksums are good, but it is not what was written");
            }
        }
    } else if pass.is_complete() && layout.is_copies() {
        // Each was tried alone.
        for slot in &mut slots {
            slot.found(
                Trouble::Corrupt,
                "its checksums are good, but its SHA-256 is another than was written",
            );
        }
    }
    let (mut findings, mut good) = (Vec::new(), 0);
    let named: BTreeSet<u32> = slots.iter().map(|slot| slot.shard).collect();
    for slot in slots {
        match slot.finding() {
            Some(finding) => findings.push(finding),
            None => good += 1,
        }
    }
    let absent = (0..layout.shards()).filter(|shard| !named.contains(shard)).map(|shard| Finding {
        shard,
        node: None,
        trouble: Trouble::NeverWritten,
        detail: "no node has it: the chunk was written without it".into(),
    });
    findings.extend(absent);
    findings.sort_by_key(|finding| finding.shard);
    let readable = if is_right {
        Readable::Yes
    } else if pass.is_complete() {
        Readable::No("what its shards give is not what was written: the SHA-256 is another".into())
    } else {
        let message = format!("too few of its shards can be read: it takes {}", layout.needed());
        match findings.iter().any(|finding| finding.trouble == Trouble::NotAsked) {
            true => Readable::Unknown(message + ", and some could not be asked for"),
            false => Readable::No(message),
        }
    };
    Verdict { readable, findings, good }
}

/// The sets of 1 to `most` of `count` slots, the small ones first.
fn combinations(count: usize, most: u32) -> impl Iterator<Item = BTreeSet<usize>> {
    (1..=most).flat_map(move |size| {
        // At most 20 shards.
        (0..1_u32 << count.min(20))
            .filter(move |set| set.count_ones() == size)
            .map(move |set| (0..count).filter(|slot| set >> slot & 1 == 1).collect())
    })
}
