//! How a chunk is kept. Parsed from what people write (`replicated:3`, `ec:4+2`), printed back the same.

use std::fmt;
use std::str::FromStr;

use crate::common::Code;
use crate::error::Failure;
use crate::limits::{BLOCK_SIZE, MAX_CHUNK_LENGTH};

/// How many shards a chunk is made into, and how many of them it takes to read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Redundancy {
    /// Whole copies on so many nodes.
    Replicated {
        /// 1..=5
        copies: u32,
    },
    /// Erasure coded: data shards, and parity shards any of which replaces any lost one.
    Coded {
        /// 2..=16
        data: u32,
        /// 1..=4
        parity: u32,
    },
}

impl Redundancy {
    /// Shards that a chunk of this redundancy has when nothing is missing: 1..=20.
    pub fn shards(self) -> u32 {
        match self {
            Self::Replicated { copies } => copies,
            Self::Coded { data, parity } => data + parity,
        }
    }

    /// Shards without which a chunk can't be read.
    pub fn needed_to_read(self) -> u32 {
        match self {
            Self::Replicated { .. } => 1,
            Self::Coded { data, .. } => data,
        }
    }

    /// Shards without which a commit is refused: one to spare, where the redundancy has any.
    pub fn needed_to_write(self) -> u32 {
        (self.needed_to_read() + 1).min(self.shards())
    }

    /// Whether a chunk of `length` bytes can be kept so. One that does not fill a row of cells would make more shards than
    /// it has cells: see [`Self::as_copies`].
    pub fn takes(self, length: u64) -> bool {
        match self {
            Self::Replicated { .. } => true,
            Self::Coded { data, .. } => length >= u64::from(data) * BLOCK_SIZE as u64,
        }
    }

    /// The longest shard that a chunk kept so may have.
    pub fn max_shard_length(self) -> u64 {
        MAX_CHUNK_LENGTH.div_ceil(u64::from(self.needed_to_read())).next_multiple_of(BLOCK_SIZE as u64)
    }

    /// The redundancy of copies that stands the loss of as many nodes, and needs fewer of them.
    pub fn as_copies(self) -> Self {
        match self {
            Self::Coded { parity, .. } => Self::Replicated { copies: parity + 1 },
            redundancy => redundancy,
        }
    }
}

impl Default for Redundancy {
    fn default() -> Self {
        Self::Replicated { copies: 3 }
    }
}

impl fmt::Display for Redundancy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Replicated { copies } => write!(f, "replicated:{copies}"),
            Self::Coded { data, parity } => write!(f, "ec:{data}+{parity}"),
        }
    }
}

impl FromStr for Redundancy {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        let parsed = match text.split_once(':') {
            Some(("replicated", copies)) => number(copies, 1..=5).map(|copies| Self::Replicated { copies }),
            Some(("ec", shards)) => shards.split_once('+').and_then(|(data, parity)| {
                Some(Self::Coded { data: number(data, 2..=16)?, parity: number(parity, 1..=4)? })
            }),
            _ => None,
        };
        parsed.ok_or_else(|| {
            Failure::new(
                Code::Invalid,
                format!("{text:?} does not say how chunks are kept, as replicated:N or ec:K+M do"),
            )
        })
    }
}

/// A number as it is printed, in a range.
fn number(text: &str, range: std::ops::RangeInclusive<u32>) -> Option<u32> {
    let number = text.parse().ok().filter(|number| range.contains(number))?;
    (number.to_string() == text).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_printed_as_written() {
        for text in ["replicated:1", "replicated:3", "replicated:5", "ec:2+1", "ec:4+2", "ec:16+4"] {
            assert_eq!(text.parse::<Redundancy>().unwrap().to_string(), text);
        }
        for bad in [
            "",
            "replicated",
            "replicated:",
            "replicated:0",
            "replicated:6",
            "replicated:03",
            "raid5",
            "Replicated:3",
            "replicated:+3",
            "ec:",
            "ec:4",
            "ec:4+",
            "ec:1+1",
            "ec:17+1",
            "ec:4+0",
            "ec:4+5",
            "ec:04+2",
            "ec:4+2+1",
            "ec:4-2",
        ] {
            assert_eq!(bad.parse::<Redundancy>().unwrap_err().code, Code::Invalid, "{bad}");
        }
    }

    #[test]
    fn a_write_needs_one_to_spare_where_there_is_one() {
        let needed = |copies| Redundancy::Replicated { copies }.needed_to_write();
        assert_eq!((needed(1), needed(2), needed(3), needed(5)), (1, 2, 2, 2));
        assert_eq!(Redundancy::Coded { data: 4, parity: 2 }.needed_to_write(), 5);
        assert_eq!(Redundancy::Coded { data: 2, parity: 1 }.needed_to_write(), 3);
    }

    #[test]
    fn what_does_not_fill_a_row_is_not_coded() {
        let coded = Redundancy::Coded { data: 4, parity: 2 };
        let row = 4 * BLOCK_SIZE as u64;
        assert_eq!((coded.takes(row), coded.takes(row - 1)), (true, false));
        assert_eq!(coded.as_copies(), Redundancy::Replicated { copies: 3 });
        let copies = Redundancy::Replicated { copies: 2 };
        assert!(copies.takes(1) && copies.as_copies() == copies);
        assert_eq!(
            (copies.max_shard_length(), coded.max_shard_length()),
            (MAX_CHUNK_LENGTH, MAX_CHUNK_LENGTH / 4)
        );
    }
}
