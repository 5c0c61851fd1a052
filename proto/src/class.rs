//! How a chunk is kept. Parsed from what people write (`replicated:3`), printed back the same.

use std::fmt;
use std::str::FromStr;

use crate::common::Code;
use crate::error::Failure;

/// A class of redundancy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Whole copies on so many nodes.
    Replicated {
        /// 1..=5
        copies: u32,
    },
}

impl Class {
    /// The name of the extended attribute that shows and sets a directory's class.
    pub const XATTR: &'static str = "dfs.class";

    /// Shards that a chunk of this class has when nothing is missing.
    pub fn shards(self) -> u32 {
        match self {
            Self::Replicated { copies } => copies,
        }
    }

    /// Shards without which a chunk can't be read.
    pub fn needed_to_read(self) -> u32 {
        match self {
            Self::Replicated { .. } => 1,
        }
    }

    /// Shards without which a commit is refused: one to spare, where the class has any.
    pub fn needed_to_write(self) -> u32 {
        (self.needed_to_read() + 1).min(self.shards())
    }

    /// Stored bytes for each byte of data, as a fraction (stored, data).
    pub fn overhead(self) -> (u64, u64) {
        match self {
            Self::Replicated { copies } => (copies.into(), 1),
        }
    }
}

impl Default for Class {
    fn default() -> Self {
        Self::Replicated { copies: 3 }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Replicated { copies } => write!(f, "replicated:{copies}"),
        }
    }
}

impl FromStr for Class {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        let bad = || {
            Failure::new(
                Code::Invalid,
                format!("{text:?} is not a class: write replicated:N with N from 1 to 5"),
            )
        };
        let copies = text.strip_prefix("replicated:").ok_or_else(bad)?;
        match copies.as_bytes() {
            [digit @ b'1'..=b'5'] => Ok(Self::Replicated { copies: u32::from(digit - b'0') }),
            _ => Err(bad()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_printed_as_written() {
        for text in ["replicated:1", "replicated:3", "replicated:5"] {
            assert_eq!(text.parse::<Class>().unwrap().to_string(), text);
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
        ] {
            assert_eq!(bad.parse::<Class>().unwrap_err().code, Code::Invalid, "{bad}");
        }
    }

    #[test]
    fn a_write_needs_one_to_spare_where_there_is_one() {
        let needed = |copies| Class::Replicated { copies }.needed_to_write();
        assert_eq!((needed(1), needed(2), needed(3), needed(5)), (1, 2, 2, 2));
    }
}
