//! What verifying came to: counted, judged, and written for people and for programs.
//!
//! The JSON's field names are an interface: they are only ever added to.

use std::path::PathBuf;

use dfs_client::verify::{Finding, Readable, Trouble, Verdict};
use serde::Serialize;

use crate::print::{bytes, table};

/// Findings, and failures of each kind, that are listed in the JSON; more are counted only.
const MAX_LISTED: usize = 10_000;

/// The verdict, by exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Outcome {
    /// Everything is as it was written.
    Good,
    /// Some shard is bad or lost; every chunk can be read.
    BadShards,
    /// Something can't be read, or could not be checked.
    Failed,
}

/// Everything that was found.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    pub(super) result: Outcome,
    pub(super) chunks: Chunks,
    pub(super) shards: Shards,
    pub(super) findings: Vec<Listed>,
    /// Chunks that can't be read or could not be checked.
    pub(super) failures: Vec<ChunkFailure>,
    /// Beyond what is listed.
    pub(super) not_listed: u64,
    pub(super) tree: Option<Tree>,
}

/// Chunks, counted.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Chunks {
    pub(super) total: u64,
    pub(super) bytes: u64,
    pub(super) unreadable: u64,
    pub(super) unchecked: u64,
    /// Deleted while they were to be verified.
    pub(super) gone: u64,
}

/// Shards, counted.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Shards {
    pub(super) good: u64,
    pub(super) missing: u64,
    pub(super) corrupt: u64,
    pub(super) not_asked: u64,
    pub(super) known_lost: u64,
    pub(super) never_written: u64,
    /// Of those missing and corrupt, how many the metadata server was told of.
    pub(super) reported: u64,
}

/// A shard that is not as it should be.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Listed {
    chunk: u64,
    shard: u32,
    node: Option<u64>,
    address: Option<String>,
    what: &'static str,
    detail: String,
}

/// A chunk that can't be read, or could not be checked.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ChunkFailure {
    chunk: u64,
    unreadable: bool,
    detail: String,
}

/// The tree whose digest was asked for.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Tree {
    pub(super) path: PathBuf,
    /// SHA-256 in hexadecimal; `None` when some of the tree could not be read.
    pub(super) digest: Option<String>,
    pub(super) files: u64,
    pub(super) directories: u64,
    pub(super) symlinks: u64,
    pub(super) others: u64,
    pub(super) bytes: u64,
    pub(super) failed: u64,
    pub(super) failures: Vec<TreeFailure>,
    /// Other filesystems that are mounted in it; empty directories in the digest.
    pub(super) other_mounts: Vec<PathBuf>,
}

/// What of a tree could not be read.
#[derive(Clone, Debug, Serialize)]
pub(super) struct TreeFailure {
    pub(super) path: PathBuf,
    pub(super) error: String,
}

impl Tree {
    /// Something could not be read.
    pub(super) fn add_failure(&mut self, path: PathBuf, error: String) {
        self.failed += 1;
        if self.failures.len() < MAX_LISTED {
            self.failures.push(TreeFailure { path, error });
        }
    }

    /// Something else is mounted there.
    pub(super) fn add_mount(&mut self, path: PathBuf) {
        if self.other_mounts.len() < MAX_LISTED {
            self.other_mounts.push(path);
        }
    }
}

fn word(trouble: Trouble) -> &'static str {
    match trouble {
        Trouble::Missing => "missing",
        Trouble::Corrupt => "corrupt",
        Trouble::NotAsked => "not_asked",
        Trouble::KnownLost => "known_lost",
        Trouble::NeverWritten => "never_written",
    }
}

/// A finding in one line.
pub(super) fn line(chunk: u64, finding: &Finding) -> String {
    let Finding { shard, node, trouble, detail } = finding;
    let place = node.as_ref().map_or_else(String::new, |at| format!(" on node {} ({})", at.node, at.address));
    let what = match trouble {
        Trouble::NotAsked => "could not be asked for",
        Trouble::KnownLost => "known to be lost",
        Trouble::NeverWritten => "never written",
        other => word(*other),
    };
    format!("chunk {chunk} shard {shard}{place}: {what}: {detail}")
}

/// What is wrong with a whole chunk, in one line.
pub(super) fn chunk_line(chunk: u64, readable: &Readable) -> Option<String> {
    match readable {
        Readable::Yes => None,
        Readable::No(why) => Some(format!("chunk {chunk} cannot be read: {why}")),
        Readable::Unknown(why) => Some(format!("chunk {chunk} could not be checked: {why}")),
    }
}

impl Report {
    pub(super) fn new() -> Self {
        Self {
            result: Outcome::Good,
            chunks: Chunks::default(),
            shards: Shards::default(),
            findings: Vec::new(),
            failures: Vec::new(),
            not_listed: 0,
            tree: None,
        }
    }

    /// Counts a chunk of so many bytes.
    pub(super) fn add(&mut self, chunk: u64, length: u64, verdict: Verdict, reported: u64) {
        self.chunks.total += 1;
        self.chunks.bytes += length;
        self.shards.good += u64::from(verdict.good);
        self.shards.reported += reported;
        for finding in verdict.findings {
            *match finding.trouble {
                Trouble::Missing => &mut self.shards.missing,
                Trouble::Corrupt => &mut self.shards.corrupt,
                Trouble::NotAsked => &mut self.shards.not_asked,
                Trouble::KnownLost => &mut self.shards.known_lost,
                Trouble::NeverWritten => &mut self.shards.never_written,
            } += 1;
            let (node, address) = finding.node.map(|node| (node.node, node.address)).unzip();
            let what = word(finding.trouble);
            let listed = Listed { chunk, shard: finding.shard, node, address, what, detail: finding.detail };
            self.not_listed += u64::from(!push(&mut self.findings, listed));
        }
        let (unreadable, detail) = match verdict.readable {
            Readable::Yes => return,
            Readable::No(why) => (true, why),
            Readable::Unknown(why) => (false, why),
        };
        *(if unreadable { &mut self.chunks.unreadable } else { &mut self.chunks.unchecked }) += 1;
        let failure = ChunkFailure { chunk, unreadable, detail };
        self.not_listed += u64::from(!push(&mut self.failures, failure));
    }

    /// Judges what was counted.
    pub(super) fn judge(&mut self) -> Outcome {
        let Shards { missing, corrupt, not_asked, known_lost, never_written, .. } = self.shards;
        let failed = self.chunks.unreadable + self.chunks.unchecked + not_asked;
        self.result = if failed > 0 || self.tree.as_ref().is_some_and(|tree| tree.failed > 0) {
            Outcome::Failed
        } else if missing + corrupt + known_lost + never_written > 0 {
            Outcome::BadShards
        } else {
            Outcome::Good
        };
        self.result
    }

    /// The report for people, without the findings, which they have seen by then.
    pub(super) fn text(&self) -> String {
        let Chunks { total, unreadable, unchecked, gone, .. } = &self.chunks;
        let shards = &self.shards;
        let mut text = match self.result {
            Outcome::Good => format!("good: {total} chunks verified, {}\n", bytes(self.chunks.bytes)),
            Outcome::BadShards => {
                format!("bad shards: all of {total} chunks can be read, {}\n", bytes(self.chunks.bytes))
            }
            Outcome::Failed => {
                let unread = self.tree.as_ref().map_or(0, |tree| tree.failed);
                format!(
                    "failed: of {total} chunks, {}, {unreadable} cannot be read and {unchecked} could not be checked; \
                     {} shards could not be asked for, {unread} files and directories not be read\n",
                    bytes(self.chunks.bytes),
                    shards.not_asked,
                )
            }
        };
        let row = |name: &str, count: u64| vec![name.to_owned(), count.to_string()];
        let bad = [
            ("missing", shards.missing),
            ("corrupt", shards.corrupt),
            ("could not be asked for", shards.not_asked),
            ("known to be lost", shards.known_lost),
            ("never written", shards.never_written),
        ];
        let mut rows = vec![row("good", shards.good)];
        rows.extend(bad.iter().filter(|(_, count)| *count > 0).map(|(name, count)| row(name, *count)));
        text += &table(&["shards", "count"], &[1], rows);
        if shards.missing + shards.corrupt > 0 {
            text += &format!("{} of them were reported to the metadata server\n", shards.reported);
        }
        if *gone > 0 {
            text += &format!("{gone} chunks were deleted meanwhile\n");
        }
        if let Some(tree) = &self.tree {
            text += &format!(
                "{}: {} files, {}, {} directories, {} symbolic links, {} others\n",
                tree.path.display(),
                tree.files,
                bytes(tree.bytes),
                tree.directories,
                tree.symlinks,
                tree.others
            );
            text += &match &tree.digest {
                Some(digest) => format!("digest {digest}\n"),
                None => "no digest: some of it could not be read\n".to_owned(),
            };
        }
        text
    }
}

/// Whether there was room for it.
fn push<T>(list: &mut Vec<T>, item: T) -> bool {
    let has_room = list.len() < MAX_LISTED;
    if has_room {
        list.push(item);
    }
    has_room
}

#[cfg(test)]
mod tests {
    use dfs_proto::NodeAddress;

    use super::*;

    fn finding(trouble: Trouble) -> Finding {
        let node = NodeAddress { node: 3, address: "h:1".into(), labels: None };
        Finding { shard: 2, node: Some(node), trouble, detail: "why".into() }
    }

    fn report(readable: Readable, troubles: &[Trouble]) -> Report {
        let findings = troubles.iter().map(|trouble| finding(*trouble)).collect();
        let mut report = Report::new();
        report.add(7, 1000, Verdict { readable, findings, good: 4 }, 1);
        report.judge();
        report
    }

    #[test]
    fn the_worst_decides() {
        let judged = |readable, troubles: &[Trouble]| report(readable, troubles).result;
        assert_eq!(judged(Readable::Yes, &[]), Outcome::Good);
        for trouble in [Trouble::Missing, Trouble::Corrupt, Trouble::KnownLost, Trouble::NeverWritten] {
            assert_eq!(judged(Readable::Yes, &[trouble]), Outcome::BadShards);
        }
        assert_eq!(judged(Readable::Yes, &[Trouble::Corrupt, Trouble::NotAsked]), Outcome::Failed);
        assert_eq!(judged(Readable::No("x".into()), &[]), Outcome::Failed);
        assert_eq!(judged(Readable::Unknown("x".into()), &[]), Outcome::Failed);
        let mut unread = report(Readable::Yes, &[]);
        unread.tree = Some(Tree { failed: 1, ..Tree::default() });
        assert_eq!(unread.judge(), Outcome::Failed);
    }

    #[test]
    fn a_finding_says_what_where_and_why() {
        let text = line(7, &finding(Trouble::Corrupt));
        assert_eq!(text, "chunk 7 shard 2 on node 3 (h:1): corrupt: why");
        let report = report(Readable::Yes, &[Trouble::Corrupt]);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!((&json["result"], &json["shards"]["corrupt"]), (&"bad_shards".into(), &1.into()));
        assert_eq!(
            (&json["findings"][0]["what"], &json["findings"][0]["node"]),
            (&"corrupt".into(), &3.into())
        );
        assert!(report.text().contains("1 of them were reported"), "{}", report.text());
    }

    #[test]
    fn what_is_listed_is_bounded_and_the_rest_counted() {
        let mut report = Report::new();
        for chunk in 0..MAX_LISTED as u64 + 5 {
            let findings = vec![finding(Trouble::Missing)];
            report.add(chunk, 1, Verdict { readable: Readable::Yes, findings, good: 1 }, 0);
        }
        assert_eq!((report.findings.len(), report.not_listed), (MAX_LISTED, 5));
        assert_eq!(report.shards.missing, MAX_LISTED as u64 + 5);
    }
}
