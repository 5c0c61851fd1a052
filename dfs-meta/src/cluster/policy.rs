//! Placement policies: each one says in which order it likes nodes for a chunk. Seeded by the chunk's id, so that the
//! same request gives the same answer on every machine that runs it.

use std::fmt;
use std::str::FromStr;

use dfs_proto::{ChunkId, Code, Failure};

use super::Candidate;

/// Virtual nodes of each node on the hash ring: enough that shares differ by a tenth or so.
pub const VIRTUAL_NODES: u64 = 150;

/// An order of preference.
pub trait Placement {
    /// The candidates as indices, the most liked first; each exactly once. The candidates are sorted by node id.
    fn order(&self, chunk: ChunkId, candidates: &[Candidate]) -> Vec<usize>;
}

/// The policies there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// At random, a node with twice the free space twice as often.
    #[default]
    Spread,
    /// The least filled first.
    LeastLoaded,
    /// One after the other.
    RoundRobin,
    /// Consistent hashing: when a node comes or goes, few chunks would be placed elsewhere.
    HashRing,
}

impl Placement for Policy {
    fn order(&self, chunk: ChunkId, candidates: &[Candidate]) -> Vec<usize> {
        let mut order: Vec<usize> = (0..candidates.len()).collect();
        let seed = mix(chunk.0);
        match self {
            Self::Spread => order.sort_by_cached_key(|&at| {
                let candidate = &candidates[at];
                weighted_draw(mix(seed ^ mix(candidate.node.0)), candidate.free_bytes)
            }),
            Self::LeastLoaded => order.sort_by_cached_key(|&at| {
                let candidate = &candidates[at];
                (candidate.fill_permyriad(), mix(seed ^ candidate.node.0))
            }),
            Self::RoundRobin => {
                let first = chunk.0.checked_rem(candidates.len() as u64).unwrap_or(0);
                order.rotate_left(first as usize);
            }
            Self::HashRing => order.sort_by_cached_key(|&at| {
                // Walking the ring clockwise from the chunk meets the nodes in the order of their nearest points.
                let node = mix(candidates[at].node.0);
                let points = (0..VIRTUAL_NODES).map(|point| mix(node.wrapping_add(mix(point))));
                points.map(|point| point.wrapping_sub(seed)).min()
            }),
        }
        order
    }
}

/// A number that is smallest among several with a chance in proportion to its weight (weighted rendezvous hashing,
/// after Efraimidis and Spirakis: the key is -ln(u) / weight), in whole numbers so that it is the same everywhere.
fn weighted_draw(random: u64, weight: u64) -> u128 {
    (u128::from(negative_log2(random)) << 64) / u128::from(weight.max(1))
}

/// -log2(x / 2^64), with 48 binary digits after the point: the classic digit by digit squaring.
fn negative_log2(x: u64) -> u64 {
    const DIGITS: u32 = 48;
    let x = x.max(1);
    let zeros = u64::from(x.leading_zeros());
    // In [2^63, 2^64): a number in [1, 2).
    let mut mantissa = x << zeros;
    let mut fraction = 0;
    for _ in 0..DIGITS {
        let square = u128::from(mantissa) * u128::from(mantissa);
        fraction <<= 1;
        mantissa = if square >> 127 == 1 {
            fraction |= 1;
            (square >> 64) as u64
        } else {
            (square >> 63) as u64
        };
    }
    ((zeros + 1) << DIGITS) - fraction
}

/// A good hash of a number (the finalizer of SplitMix64, by Steele, Lea and Flood).
pub(super) fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Spread => "spread",
            Self::LeastLoaded => "least-loaded",
            Self::RoundRobin => "round-robin",
            Self::HashRing => "hash-ring",
        })
    }
}

impl FromStr for Policy {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        let all = [Self::Spread, Self::LeastLoaded, Self::RoundRobin, Self::HashRing];
        all.into_iter().find(|policy| policy.to_string() == text).ok_or_else(|| {
            Failure::new(
                Code::Invalid,
                format!(
                    "{text:?} is not a placement policy: write spread, least-loaded, round-robin or hash-ring"
                ),
            )
        })
    }
}
