//! One reading of all shards of a chunk from front to end: what can be read of each, what the chunk comes to, and which
//! shards are not as they must be for that.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dfs_proto::meta::ShardPlan;
use dfs_proto::{ClusterId, Code, Failure, NodeAddress};
use futures::future::join_all;
use sha2::{Digest, Sha256};

use super::super::nodes::{Node, Nodes};
use super::super::read::fetch;
use super::layout::Layout;
use super::{Finding, Trouble};

/// How often a node that fails is asked for the same frame,
const ATTEMPTS: u32 = 3;
/// and how long it is left alone in between.
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(300);

/// A shard where it should be, and what is known of it so far.
pub(super) struct Slot {
    pub(super) shard: u32,
    address: Option<NodeAddress>,
    node: Option<Arc<Node>>,
    known_lost: bool,
    trouble: Option<(Trouble, String)>,
}

impl Slot {
    pub(super) fn new(nodes: &Nodes, layout: &Layout, plan: &ShardPlan, lost: &[u64]) -> Self {
        let address = plan.node.clone();
        let known_lost = address.as_ref().is_some_and(|address| lost.contains(&address.node));
        let mut slot = Self { shard: plan.index, address, node: None, known_lost, trouble: None };
        let node = slot.address.as_ref().map(|address| nodes.get(address));
        match node {
            _ if !layout.is_copies() && plan.index >= layout.shards() => {
                slot.found(Trouble::NotAsked, "the chunk's class has no shard of this number");
            }
            Some(Ok(node)) => slot.node = Some(node),
            Some(Err(failure)) => slot.found(Trouble::NotAsked, &failure.message),
            None => slot.found(Trouble::NotAsked, "the metadata does not say where it is"),
        }
        slot
    }

    pub(super) fn is_known_lost(&self) -> bool {
        self.known_lost
    }

    /// Something is wrong with it. What is found first stays, but for what is known better by now.
    pub(super) fn found(&mut self, trouble: Trouble, detail: &str) {
        let is_better = |(known, _): &(Trouble, String)| *known == Trouble::NotAsked && trouble != *known;
        if self.trouble.as_ref().is_none_or(is_better) {
            self.trouble = Some((trouble, detail.to_owned()));
        }
    }

    /// `None`: it is good.
    pub(super) fn finding(self) -> Option<Finding> {
        let (trouble, detail) = match (self.known_lost, self.trouble) {
            (false, None) => return None,
            (false, Some(trouble)) => trouble,
            (true, None) => (Trouble::KnownLost, "reported lost before; it can be read by now".into()),
            (true, Some((_, detail))) => (Trouble::KnownLost, format!("reported lost before: {detail}")),
        };
        Some(Finding { shard: self.shard, node: self.address, trouble, detail })
    }

    /// Its part of a frame, if it has one.
    async fn read(&self, cluster: ClusterId, chunk: u64, part: (u64, u64)) -> Result<Bytes, Failure> {
        let Some(node) = &self.node else {
            return Err(Failure::new(Code::Unavailable, "its node is not known"));
        };
        if node.is_suspect(Instant::now()) {
            // Who hangs would hold up every chunk.
            let text = format!("{} has failed a moment ago and is not asked again yet", node.name());
            return Err(Failure::new(Code::Unavailable, text));
        }
        let mut attempt = 1;
        loop {
            let failure = match fetch(cluster, node, chunk, self.shard, part).await {
                Ok(data) => {
                    node.succeeded();
                    return Ok(data);
                }
                Err(failure) => failure,
            };
            match failure.code {
                Code::NotFound | Code::Corrupt => return Err(failure),
                // The daemon says that there is less of it than there must be.
                Code::Invalid => return Err(Failure::new(Code::Corrupt, failure.message)),
                _ if attempt == ATTEMPTS => {
                    node.failed(&failure, cluster);
                    return Err(failure);
                }
                _ => tokio::time::sleep(BETWEEN_ATTEMPTS).await,
            }
            attempt += 1;
        }
    }
}

/// What one reading came to.
pub(super) struct Pass {
    /// Of the chunk's bytes; `None` when there was a frame that too few shards have.
    sha256: Option<[u8; 32]>,
    /// By slot: what was read is not what must be there.
    differs: Vec<bool>,
}

impl Pass {
    /// Reads everything. The chunk is put together from the slots that are not `distrusted`; the others are compared, too.
    pub(super) async fn run(
        cluster: ClusterId,
        chunk: u64,
        layout: &Layout,
        slots: &mut [Slot],
        distrusted: &BTreeSet<usize>,
    ) -> Self {
        let mut differs = vec![false; slots.len()];
        // Not asked for any more: gone, or its node does not answer.
        let mut given_up: Vec<bool> = slots.iter().map(|slot| slot.node.is_none()).collect();
        let mut hash = Some(Sha256::new());
        let mut encoder = None;
        for frame in 0..layout.frames() {
            let asked: Vec<usize> = (0..slots.len())
                .filter(|&slot| !given_up[slot] && layout.part(slots[slot].shard, frame).1 > 0)
                .collect();
            let reads = asked.iter().map(|&slot| {
                let slot = &slots[slot];
                slot.read(cluster, chunk, layout.part(slot.shard, frame))
            });
            let answers = join_all(reads).await;
            let mut read: Vec<(usize, Bytes)> = Vec::with_capacity(asked.len());
            for (slot, answer) in asked.into_iter().zip(answers) {
                match answer {
                    Ok(data) => read.push((slot, data)),
                    Err(failure) => {
                        let trouble = match failure.code {
                            Code::NotFound => Trouble::Missing,
                            Code::Corrupt => Trouble::Corrupt,
                            _ => Trouble::NotAsked,
                        };
                        // Other blocks of a damaged shard may be good, and needed.
                        given_up[slot] = trouble != Trouble::Corrupt;
                        slots[slot].found(trouble, &failure.message);
                    }
                }
            }
            let mut sources: BTreeMap<u32, Bytes> = BTreeMap::new();
            for (slot, data) in read.iter().filter(|(slot, _)| !distrusted.contains(slot)) {
                sources.entry(slots[*slot].shard).or_insert_with(|| data.clone());
            }
            let truth = match layout.assemble(&mut encoder, frame, &sources) {
                Ok(Some(truth)) => truth,
                Ok(None) => {
                    hash = None;
                    continue;
                }
                Err(failure) => {
                    tracing::warn!(chunk, %failure, "a chunk could not be put together");
                    hash = None;
                    continue;
                }
            };
            if let Some(hash) = &mut hash {
                layout.data(frame, &truth).iter().for_each(|data| hash.update(data));
            }
            for (slot, data) in &read {
                differs[*slot] |= data != truth.of(layout, slots[*slot].shard);
            }
        }
        Self { sha256: hash.map(|hash| hash.finalize().into()), differs }
    }

    /// Whether the whole chunk could be put together.
    pub(super) fn is_complete(&self) -> bool {
        self.sha256.is_some()
    }

    /// Whether that came to what was written.
    pub(super) fn gave(&self, sha256: &[u8]) -> bool {
        self.sha256.as_ref().is_some_and(|computed| computed[..] == *sha256)
    }

    /// By slot: whether it is another than the chunk that was put together wants it to be.
    pub(super) fn differs(&self) -> &[bool] {
        &self.differs
    }
}
