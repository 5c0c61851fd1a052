//! Looks for secrets where they must not be: in the bytes of files.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// What is looked for is cut into pieces of so many bytes, so that a part of it is found too.
const WINDOW: usize = 8;

/// Things to look for, all in one pass.
#[derive(Debug, Default)]
pub struct Search {
    /// Pieces by their first bytes, with the name of what they are from.
    pieces: HashMap<[u8; 2], Vec<(Vec<u8>, String)>>,
}

impl Search {
    /// Looks for any 8 bytes of this in a row.
    ///
    /// # Panics
    /// When it is shorter.
    pub fn bytes(mut self, name: &str, bytes: &[u8]) -> Self {
        assert!(bytes.len() >= WINDOW, "{name} is too short to be looked for");
        for piece in bytes.windows(WINDOW) {
            self.add(name, piece.to_vec());
        }
        self
    }

    /// Looks for them also as a program might print them: in hexadecimal, and as numbers in a list.
    pub fn secret(mut self, name: &str, bytes: &[u8]) -> Self {
        self = self.bytes(name, bytes);
        for piece in bytes.windows(WINDOW) {
            let join = |separator: &str, number: &dyn Fn(&u8) -> String| {
                piece.iter().map(number).collect::<Vec<_>>().join(separator).into_bytes()
            };
            self.add(name, join("", &|byte| format!("{byte:02x}")));
            self.add(name, join("", &|byte| format!("{byte:02X}")));
            self.add(name, join(", ", &|byte| byte.to_string()));
            // As `Bytes` is printed.
            self.add(name, piece.escape_ascii().to_string().into_bytes());
        }
        self
    }

    fn add(&mut self, name: &str, piece: Vec<u8>) {
        self.pieces.entry([piece[0], piece[1]]).or_default().push((piece, name.to_owned()));
    }

    /// What was found first in some bytes, and where.
    pub fn find(&self, bytes: &[u8]) -> Option<(&str, usize)> {
        let mut known = vec![false; 1 << 16];
        self.pieces.keys().for_each(|start| known[usize::from(u16::from_le_bytes(*start))] = true);
        let starts = bytes.windows(2).enumerate().map(|(at, pair)| (at, [pair[0], pair[1]]));
        starts.filter(|(_, start)| known[usize::from(u16::from_le_bytes(*start))]).find_map(|(at, start)| {
            let piece = self.pieces[&start].iter().find(|(piece, _)| bytes[at..].starts_with(piece));
            piece.map(|(_, name)| (name.as_str(), at))
        })
    }

    /// Those files in which something was found, with a sentence about each.
    pub fn find_in(&self, files: &[PathBuf]) -> Vec<String> {
        let found = |path: &PathBuf| {
            // A daemon may have removed it meanwhile.
            let bytes = fs::read(path).ok()?;
            self.find(&bytes).map(|(name, at)| format!("{name} is in {} at {at}", path.display()))
        };
        files.iter().filter_map(found).collect()
    }
}

/// Files directly in a directory with this ending.
pub fn files_ending(directory: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("list a directory");
    let paths = entries.map(|entry| entry.expect("list a directory").path());
    paths.filter(|path| path.to_string_lossy().ends_with(ending)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_found_in_every_guise() {
        let secret: Vec<u8> = (100..132).collect();
        let search = Search::default().secret("the secret", &secret);
        let part = &secret[9..20];
        let hexadecimal: String = part.iter().map(|byte| format!("{byte:02x}")).collect();
        let escaped = bytes_debug(part);
        for guise in [
            part.to_vec(),
            hexadecimal.clone().into_bytes(),
            hexadecimal.to_uppercase().into_bytes(),
            format!("{part:?}").into(),
            escaped.into(),
        ] {
            let hidden = [&b"noise"[..], &guise, b"noise"].concat();
            assert!(search.find(&hidden).is_some(), "{}", String::from_utf8_lossy(&guise));
        }
        assert_eq!(search.find(&[part, b"x"].concat()), Some(("the secret", 0)));
        let seven = [&secret[..7], b"x", &secret[8..15]].concat();
        assert_eq!(search.find(&seven), None, "less than a piece");
        assert_eq!(search.find(b""), None);
    }

    fn bytes_debug(bytes: &[u8]) -> String {
        format!("b\"{}\"", bytes.escape_ascii())
    }
}
