//! What a directory asks for: how what is made below it is to be kept. Parsed from what people write
//! (`ec:4+2,zone=north`), printed back the same: the rule first, then options.

use std::fmt;
use std::str::FromStr;

use crate::common::Code;
use crate::error::Failure;
use crate::meta::Compression;
use crate::redundancy::Redundancy;

/// The longest text of a class, in bytes.
pub const MAX_TEXT: usize = 255;
/// The longest name of a key, in bytes.
pub const MAX_KEY_NAME: usize = 64;
/// What a class says in a key's place.
const NO_KEY: &str = "none";
/// With [`Rule::Auto`], chunks below this are kept as copies.
const AUTO_CODED_FROM: u64 = 1024 * 1024;
/// What [`Rule::Auto`] chooses from. Each stands the loss of two chunk daemons at least, as the default does.
const AUTO_CHOICES: [Redundancy; 4] = [
    Redundancy::Coded { data: 8, parity: 3 },
    Redundancy::Coded { data: 4, parity: 2 },
    Redundancy::Coded { data: 2, parity: 2 },
    Redundancy::Replicated { copies: 3 },
];

/// A class.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Class {
    /// What redundancy its chunks get.
    pub rule: Rule,
    /// How blocks are compressed, where that pays.
    pub compression: Compression,
    /// The name of the key that its data is encrypted with.
    pub key: Option<String>,
    /// The zones that its chunks may be in, sorted; empty: anywhere.
    pub zones: Vec<String>,
}

/// How the redundancy of a chunk is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// This one, or as many copies for chunks that are too short for it.
    Fixed(Redundancy),
    /// Coded where a chunk is long, as wide as the cluster allows; copies where it is short.
    Auto,
}

impl Class {
    /// The name of the extended attribute that shows and sets a directory's class.
    pub const XATTR: &'static str = "dfs.class";

    /// Whether long chunks are coded, or may be.
    pub fn is_coded(&self) -> bool {
        !matches!(self.rule, Rule::Fixed(Redundancy::Replicated { .. }))
    }

    /// Whether a chunk of `length` bytes is kept as copies although the class codes: it would be shards of nearly nothing.
    pub fn is_short(&self, length: u64) -> bool {
        match self.rule {
            Rule::Fixed(redundancy) => !redundancy.takes(length),
            Rule::Auto => length < AUTO_CODED_FROM,
        }
    }

    /// What a long chunk may be kept as: the first of these that the cluster can hold, or the last. Not empty.
    pub fn choices(&self) -> &[Redundancy] {
        match &self.rule {
            Rule::Fixed(redundancy) => std::slice::from_ref(redundancy),
            Rule::Auto => &AUTO_CHOICES,
        }
    }

    /// Whether shards may be in this zone.
    pub fn allows_zone(&self, zone: &str) -> bool {
        self.zones.is_empty() || self.zones.iter().any(|allowed| allowed == zone)
    }
}

impl Default for Rule {
    fn default() -> Self {
        Self::Fixed(Redundancy::default())
    }
}

impl From<Redundancy> for Class {
    fn from(redundancy: Redundancy) -> Self {
        Self { rule: Rule::Fixed(redundancy), ..Self::default() }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rule {
            Rule::Fixed(redundancy) => write!(f, "{redundancy}")?,
            Rule::Auto => f.write_str("auto")?,
        }
        match self.compression {
            Compression::Uncompressed => {}
            Compression::Lz4 => f.write_str(",compress=lz4")?,
            Compression::Zstd => f.write_str(",compress=zstd")?,
        }
        if let Some(key) = &self.key {
            write!(f, ",encrypt={key}")?;
        }
        self.zones.iter().try_for_each(|zone| write!(f, ",zone={zone}"))
    }
}

impl FromStr for Class {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        let invalid = |message: String| Failure::new(Code::Invalid, message);
        if text.len() > MAX_TEXT {
            return Err(invalid(format!("a class is at most {MAX_TEXT} bytes of text")));
        }
        let mut parts = text.split(',');
        let rule = match parts.next().unwrap_or_default() {
            "auto" => Rule::Auto,
            redundancy => Rule::Fixed(redundancy.parse().map_err(|_| {
                invalid(format!(
                    "{text:?} is not a class: write replicated:N with N from 1 to 5, ec:K+M with K from 2 to 16 and M from \
                     1 to 4, or auto; then options as ,zone=NAME"
                ))
            })?),
        };
        let mut class = Self { rule, ..Self::default() };
        let (mut compression, mut key) = (None, None);
        for option in parts {
            let again = match option.split_once('=') {
                Some(("compress", value)) => compression.replace(parse_compression(value)?).is_some(),
                Some(("encrypt", value)) => key.replace(parse_key(value)?).is_some(),
                Some(("zone", zone)) if !zone.is_empty() => {
                    let again = class.zones.iter().any(|known| known == zone);
                    class.zones.push(zone.to_owned());
                    again
                }
                _ => {
                    return Err(invalid(format!(
                        "{option:?} in the class {text:?} is not an option: there are compress=lz4, zstd or none, encrypt=KEY \
                         or none, and zone=NAME, once for each zone"
                    )));
                }
            };
            if again {
                return Err(invalid(format!("{option:?} is one too many in the class {text:?}")));
            }
        }
        class.compression = compression.unwrap_or_default();
        class.key = key.flatten();
        class.zones.sort_unstable();
        Ok(class)
    }
}

fn parse_compression(text: &str) -> Result<Compression, Failure> {
    match text {
        "none" => Ok(Compression::Uncompressed),
        "lz4" => Ok(Compression::Lz4),
        "zstd" => Ok(Compression::Zstd),
        _ => Err(Failure::new(Code::Invalid, format!("compress={text}: there are lz4, zstd and none"))),
    }
}

fn parse_key(text: &str) -> Result<Option<String>, Failure> {
    if text == NO_KEY {
        return Ok(None);
    }
    check_key_name(text)?;
    Ok(Some(text.to_owned()))
}

/// A key's name is a file's name, too, and part of a class: letters, digits, `.`, `_` and `-`, neither `.` nor `-` at first,
/// at most [`MAX_KEY_NAME`]. INVALID.
pub fn check_key_name(name: &str) -> Result<(), Failure> {
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let begins_well = name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
    if begins_well && name.chars().all(known) && name.len() <= MAX_KEY_NAME && name != NO_KEY {
        return Ok(());
    }
    let message = format!(
        "{name:?} can't be the name of a key: it has 1 to {MAX_KEY_NAME} letters, digits, '.', '_' and '-', begins with a \
         letter, a digit or '_', and is not {NO_KEY:?}"
    );
    Err(Failure::new(Code::Invalid, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(text: &str) -> Class {
        text.parse().unwrap()
    }

    #[test]
    fn classes_are_printed_as_written() {
        for text in [
            "replicated:3",
            "ec:4+2",
            "auto",
            "auto,zone=a",
            "ec:8+3,zone=fra-1,zone=m b",
            "replicated:2,compress=lz4",
            "ec:4+2,compress=zstd,encrypt=team-1.2_b,zone=a",
        ] {
            assert_eq!(class(text).to_string(), text);
        }
        assert_eq!(
            class("auto,zone=a,encrypt=k,compress=zstd").to_string(),
            "auto,compress=zstd,encrypt=k,zone=a"
        );
        assert_eq!(class("auto,encrypt=none,compress=none").to_string(), "auto");
        assert_eq!(class("ec:4+2,zone=b,zone=a").to_string(), "ec:4+2,zone=a,zone=b");
        let long = format!("auto,zone={}", "z".repeat(MAX_TEXT));
        for bad in [
            "",
            "zone=a",
            "Auto",
            "auto,",
            "auto,zone",
            "auto,zone=",
            "auto,zone=a,zone=a",
            "auto,speed=9",
            "auto,compress=gzip",
            "auto,compress=",
            "auto,compress=none,compress=none",
            "auto,encrypt=",
            "auto,encrypt=.k",
            "auto,encrypt=a/b",
            "auto,encrypt=k,encrypt=k",
            &long,
        ] {
            assert_eq!(bad.parse::<Class>().unwrap_err().code, Code::Invalid, "{bad}");
        }
        assert_eq!(Class::default().to_string(), "replicated:3");
    }

    #[test]
    fn long_chunks_are_coded_and_short_ones_are_not() {
        let coded = class("ec:4+2");
        assert_eq!((coded.is_short(256 * 1024), coded.is_short(256 * 1024 - 1)), (false, true));
        assert_eq!(coded.choices(), ["ec:4+2".parse().unwrap()]);
        let auto = class("auto");
        assert_eq!((auto.is_short(1 << 20), auto.is_short((1 << 20) - 1)), (false, true));
        assert!(auto.choices().iter().all(|choice| choice.takes(1 << 20)));
        assert!(auto.choices().iter().all(|choice| choice.shards() - choice.needed_to_read() >= 2));
        let copies = class("replicated:2");
        assert!(!copies.is_short(1) && !copies.is_coded() && coded.is_coded() && auto.is_coded());
    }

    #[test]
    fn zones_are_where_chunks_may_be() {
        assert!(class("auto").allows_zone("a") && class("auto").allows_zone(""));
        let here = class("auto,zone=a,zone=b");
        assert_eq!(["a", "b", "c", ""].map(|zone| here.allows_zone(zone)), [true, true, false, false]);
    }
}
