//! Chunks of every layout, damaged in every way, on nodes in memory behind real connections.

use std::sync::Arc;

use dfs_proto::limits::BLOCK_SIZE;
use dfs_proto::meta::ShardPlan;
use sha2::{Digest, Sha256};

use super::*;
use crate::chunk::{ChunkIo, PackedChunk, lay_out};
use crate::testing::{CLUSTER, FakeMeta, FakeNode, Fault, cluster};

/// A chunk that was written whole.
struct Written {
    _meta: Arc<FakeMeta>,
    nodes: Vec<Arc<FakeNode>>,
    plan: ChunkPlan,
    sha256: Vec<u8>,
}

impl Written {
    async fn new(redundancy: &str, length: usize) -> Self {
        let shards = redundancy.parse::<Redundancy>().unwrap().shards();
        let (meta, nodes) = cluster(u64::from(shards));
        let data: Vec<u8> = (0..length).map(|i| (i.wrapping_mul(2_654_435_761) >> 9) as u8).collect();
        let shards = (0..).zip(&nodes).map(|(index, node)| ShardPlan { index, node: Some(node.place()) });
        let plan = ChunkPlan {
            chunk: 7,
            length: length as u64,
            redundancy: redundancy.into(),
            shards: shards.collect(),
            encoding: None,
        };
        let sha256 = Sha256::digest(&data).to_vec();
        let io = ChunkIo::new(Arc::clone(&meta) as _, CLUSTER, Labels::default());
        io.put(&PackedChunk::new(lay_out(vec![data.into()])), &plan).await.unwrap();
        Self { _meta: meta, nodes, plan, sha256 }
    }

    /// The verdict of somebody who knows nothing yet.
    async fn verdict(&self) -> Verdict {
        self.verdict_knowing(&[]).await
    }

    async fn verdict_knowing(&self, lost: &[u64]) -> Verdict {
        Verifier::new(CLUSTER).verify(&self.plan, &self.sha256, lost).await
    }

    /// Other bytes with good checksums.
    fn falsify(&self, shard: usize, at: usize) {
        self.nodes[shard].rewrite(7, |data| {
            let at = at.min(data.len() - 1);
            data[at] ^= 1;
        });
    }
}

/// What was found, by shard.
fn found(verdict: &Verdict) -> Vec<(u32, Trouble)> {
    verdict.findings.iter().map(|finding| (finding.shard, finding.trouble)).collect()
}

const LENGTHS: [usize; 4] =
    [4 * BLOCK_SIZE, 4 * BLOCK_SIZE + 100, 17 * BLOCK_SIZE + 1, 40 * BLOCK_SIZE + 777];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_whole_is_good_whatever_its_length() {
    for redundancy in ["replicated:1", "replicated:3", "ec:2+1", "ec:3+2", "ec:4+2"] {
        for length in LENGTHS.into_iter().chain([1, BLOCK_SIZE]) {
            let parsed: Redundancy = redundancy.parse().unwrap();
            if !parsed.takes(length as u64) {
                continue;
            }
            let verdict = Written::new(redundancy, length).await.verdict().await;
            let all = Verdict { readable: Readable::Yes, findings: vec![], good: parsed.shards() };
            assert_eq!(verdict, all, "{redundancy}, {length} bytes");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_bad_shard_is_named_and_what_is_left_is_verified() {
    for length in LENGTHS {
        let written = Written::new("ec:4+2", length).await;
        for first in 0..6 {
            let second = (first + 2) % 6;
            written.nodes.iter().for_each(|node| node.break_with(Fault::None));
            written.nodes[first].break_with(Fault::Forgets);
            written.nodes[second].break_with(Fault::Corrupt);
            let verdict = written.verdict().await;
            let mut expected = [(first as u32, Trouble::Missing), (second as u32, Trouble::Corrupt)];
            expected.sort();
            assert_eq!(found(&verdict), expected, "{length} bytes");
            assert_eq!((&verdict.readable, verdict.good), (&Readable::Yes, 4), "{length} bytes");
            let node = verdict.findings[0].node.as_ref().unwrap();
            assert_eq!(node.node, written.nodes[verdict.findings[0].shard as usize].id);
        }
        written.nodes[..3].iter().for_each(|node| node.break_with(Fault::Corrupt));
        written.nodes[3..].iter().for_each(|node| node.break_with(Fault::None));
        let verdict = written.verdict().await;
        assert_eq!(found(&verdict), [0, 1, 2].map(|shard| (shard, Trouble::Corrupt)));
        assert!(matches!(verdict.readable, Readable::No(_)), "{verdict:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_good_checksums_and_is_not_what_was_written_is_found_out() {
    for length in LENGTHS {
        for shard in 0..6 {
            let written = Written::new("ec:4+2", length).await;
            written.falsify(shard, shard * 17_000);
            let verdict = written.verdict().await;
            assert_eq!(found(&verdict), [(shard as u32, Trouble::Corrupt)], "{length} bytes");
            assert_eq!(verdict.readable, Readable::Yes);
            let other = (shard + 1) % 6;
            written.falsify(other, 5);
            let verdict = written.verdict().await;
            let mut both = [shard as u32, other as u32];
            both.sort_unstable();
            assert_eq!(found(&verdict), both.map(|shard| (shard, Trouble::Corrupt)), "{length} bytes");
            assert_eq!(verdict.readable, Readable::Yes);
        }
    }
    let written = Written::new("ec:4+2", 1_000_000).await;
    [0, 1, 4].into_iter().for_each(|shard| written.falsify(shard, 5));
    let verdict = written.verdict().await;
    assert!(matches!(verdict.readable, Readable::No(_)) && verdict.findings.is_empty(), "{verdict:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_that_differ_are_told_apart_by_the_sha256() {
    let written = Written::new("replicated:3", 2_500_000).await;
    written.falsify(0, 2_400_000);
    let verdict = written.verdict().await;
    assert_eq!((found(&verdict), &verdict.readable), (vec![(0, Trouble::Corrupt)], &Readable::Yes));
    written.falsify(2, 0);
    let verdict = written.verdict().await;
    let bad = [0, 2].map(|shard| (shard, Trouble::Corrupt));
    assert_eq!((found(&verdict), &verdict.readable), (bad.into(), &Readable::Yes));
    written.falsify(1, 1_000_000);
    let verdict = written.verdict().await;
    assert_eq!(found(&verdict), [0, 1, 2].map(|shard| (shard, Trouble::Corrupt)));
    assert!(matches!(verdict.readable, Readable::No(_)), "{verdict:?}");
    // Of another length than the metadata says.
    let written = Written::new("replicated:2", 2_500_000).await;
    let mut plan = written.plan.clone();
    plan.length = 16 * BLOCK_SIZE as u64;
    let verdict = Verifier::new(CLUSTER).verify(&plan, &written.sha256, &[]).await;
    assert!(matches!(verdict.readable, Readable::No(_)), "{verdict:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_cannot_be_asked_is_not_called_bad() {
    let written = Written::new("ec:2+1", 1_000_000).await;
    written.nodes[0].kill();
    let verdict = written.verdict().await;
    assert_eq!((found(&verdict), &verdict.readable), (vec![(0, Trouble::NotAsked)], &Readable::Yes));
    assert!(verdict.findings[0].detail.contains("chunk node 1 at"), "{verdict:?}");
    written.nodes[1].break_with(Fault::Forgets);
    let verdict = written.verdict().await;
    assert_eq!(found(&verdict), [(0, Trouble::NotAsked), (1, Trouble::Missing)]);
    assert!(matches!(verdict.readable, Readable::Unknown(_)), "{verdict:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_known_to_be_lost_is_used_only_where_too_little_is_left() {
    let written = Written::new("ec:2+1", 1_000_000).await;
    let lost = [written.nodes[0].id];
    written.falsify(0, 3);
    let verdict = written.verdict_knowing(&lost).await;
    assert_eq!((found(&verdict), &verdict.readable), (vec![(0, Trouble::KnownLost)], &Readable::Yes));
    written.falsify(0, 3);
    written.nodes[2].break_with(Fault::Forgets);
    let verdict = written.verdict_knowing(&lost).await;
    assert_eq!(found(&verdict), [(0, Trouble::KnownLost), (2, Trouble::Missing)]);
    assert_eq!(verdict.readable, Readable::Yes, "it can be read all the same");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metadata_that_cannot_be_right_is_told_and_not_believed() {
    let written = Written::new("ec:2+1", 1_000_000).await;
    let verify = async |change: &dyn Fn(&mut ChunkPlan), sha256: &[u8]| {
        let mut plan = written.plan.clone();
        change(&mut plan);
        Verifier::new(CLUSTER).verify(&plan, sha256, &[]).await
    };
    let sha256 = &written.sha256[..];
    for bad in [
        verify(&|plan| plan.redundancy = "raid5".into(), sha256).await,
        verify(&|plan| plan.length = 0, sha256).await,
        verify(&|plan| plan.length = u64::MAX, sha256).await,
        verify(&|plan| plan.length = 1000, sha256).await,
        verify(&|_| (), &sha256[..31]).await,
        verify(&|plan| plan.shards.clear(), sha256).await,
    ] {
        assert!(!matches!(bad.readable, Readable::Yes) && bad.good == 0, "{bad:?}");
    }
    let short = verify(&|plan| drop(plan.shards.remove(1)), sha256).await;
    assert_eq!((found(&short), &short.readable), (vec![(1, Trouble::NeverWritten)], &Readable::Yes));
    let strange = verify(
        &|plan| {
            plan.shards[1].index = 77;
            plan.shards[2].node = None;
        },
        sha256,
    );
    let strange = strange.await;
    assert!(matches!(strange.readable, Readable::Unknown(_)) && strange.good == 1, "{strange:?}");
}
