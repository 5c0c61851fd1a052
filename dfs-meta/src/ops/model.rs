//! Random operations on the state machine beside a reference that knows nothing of its records: every answer is
//! compared, now and then the whole tree, and the checker walks the store. Sessions come and go and the server starts
//! again in between.
//!
//! A failure prints the seed; `DFS_MODEL_SEED` runs that seed alone.

mod reference;

use std::time::Duration;

use dfs_proto::meta::*;
use dfs_proto::{Attr, Code, Failure, FileKind, Ino, SessionId, Time};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::Internal;
use super::shorthand::{ROOT, new};
use super::testing::{Bench, on_every_store};
use crate::live::Live;
use crate::live::sessions::SessionTable;
use crate::store::records;
use reference::{Outcome, Reference};

const NAMES: [&str; 7] = ["a", "b", "c", "d", "e", "f", "g"];
const SESSIONS: [u64; 3] = [1, 2, 3];
/// Files are some pages of this many bytes long, so that the reference can count bytes one by one.
const PAGE: u64 = 16;
const PAGES: u64 = 12;
const FOR_EVER: Duration = Duration::from_secs(1 << 32);

struct Run<'b> {
    bench: &'b mut Bench,
    reference: Reference,
    random: StdRng,
    /// Sessions that have not come back since the server started again.
    missing: Vec<u64>,
}

impl Run<'_> {
    fn name(&mut self) -> &'static str {
        NAMES.choose(&mut self.random).expect("there are names")
    }

    fn session(&mut self) -> u64 {
        loop {
            let session = *SESSIONS.choose(&mut self.random).expect("there are sessions");
            if !self.missing.contains(&session) {
                return session;
            }
        }
    }

    /// Mostly an inode that is there; sometimes one that is gone, unless it may live on unseen until the grace ends.
    fn ino(&mut self) -> u64 {
        if self.missing.is_empty() && self.random.random_ratio(1, 12) {
            return self.random.random_range(1..=self.reference.last_ino + 1);
        }
        let inos: Vec<u64> = self.reference.nodes.keys().copied().collect();
        *inos.choose(&mut self.random).expect("the root is always there")
    }

    /// Mostly a directory.
    fn parent(&mut self) -> u64 {
        if self.random.random_ratio(1, 10) {
            return self.ino();
        }
        let directories = self.reference.nodes.iter().filter(|(_, node)| node.kind == FileKind::Directory);
        let directories: Vec<u64> = directories.map(|(&ino, _)| ino).collect();
        *directories.choose(&mut self.random).expect("the root is always there")
    }

    fn time(&mut self) -> Time {
        Time { seconds: self.random.random_range(-9..9_000_000), nanos: self.random.random_range(0..1 << 29) }
    }

    /// What the operation after this one finds on the clock.
    fn next_time(&self) -> Time {
        Time { seconds: self.bench.now.seconds + 1, nanos: 0 }
    }

    /// Runs an operation and compares its answer with the reference's.
    fn compare(&mut self, session: u64, op: request::Op, expected: Outcome) {
        let shown = format!("{op:?}");
        let answer = self.bench.run_as(SessionId(session), op);
        let got = match answer {
            Ok(reply::Result::Attr(attr)) => Ok(Some(attr)),
            Ok(reply::Result::Opened(opened)) => Ok(opened.attr),
            Ok(reply::Result::Done(_)) => Ok(None),
            Ok(other) => panic!("{shown}: answered with {other:?}"),
            Err(Failure { code, .. }) => Err(code),
        };
        let expected: Result<Option<Attr>, Code> =
            expected.map(|ino| ino.map(|ino| self.reference.attr(ino)));
        assert_eq!(got, expected, "{shown} as session {session}");
    }

    fn step(&mut self) {
        self.reference.now = self.next_time();
        match self.random.random_range(0..100) {
            0..30 => self.create(),
            30..38 => {
                let (ino, parent, name) = (self.ino(), self.parent(), self.name());
                let expected = self.reference.link(ino, parent, name);
                self.compare(1, request::Op::Link(Link { ino, parent, name: name.into() }), expected);
            }
            38..48 => {
                let (parent, name) = (self.parent(), self.name());
                let expected = self.reference.unlink(parent, name);
                self.compare(1, request::Op::Unlink(Unlink { parent, name: name.into() }), expected);
            }
            48..53 => {
                let (parent, name) = (self.parent(), self.name());
                let expected = self.reference.rmdir(parent, name);
                self.compare(1, request::Op::Rmdir(Rmdir { parent, name: name.into() }), expected);
            }
            53..68 => self.rename(),
            68..76 => self.set_attr(),
            76..80 => self.set_xattr(),
            80..88 => self.open(),
            88..93 => self.close(),
            93..99 => self.write(),
            _ => self.restart(),
        }
    }

    fn create(&mut self) {
        let kinds = [FileKind::Regular, FileKind::Regular, FileKind::Directory, FileKind::Directory];
        let kind = match self.random.random_ratio(1, 6) {
            true => FileKind::try_from(self.random.random_range(1..=7)).expect("there are seven kinds"),
            false => *kinds.choose(&mut self.random).expect("there are kinds"),
        };
        let (parent, name, session) = (self.parent(), self.name(), self.session());
        let create = Create {
            mode: self.random.random_range(0..=0o7777),
            umask: self.random.random_range(0..=0o777),
            uid: self.random.random_range(0..3),
            gid: self.random.random_range(0..3),
            target: if kind == FileKind::Symlink { NAMES[0].repeat(9).into() } else { "".into() },
            rdev: if kind == FileKind::CharDevice { 0x0501 } else { 0 },
            open: kind == FileKind::Regular && self.random.random_bool(0.3),
            exclusive: self.random.random_bool(0.5),
            ..new(parent, name, kind)
        };
        let expected = self.reference.create(session, &create, name);
        self.compare(session, request::Op::Create(create), expected);
    }

    fn rename(&mut self) {
        let (from, to) = ((self.parent(), self.name()), (self.parent(), self.name()));
        let mode = match self.random.random_range(0..4) {
            0 => RenameMode::NoReplace,
            1 => RenameMode::Exchange,
            _ => RenameMode::Replace,
        };
        let expected = self.reference.rename(from, to, mode);
        let rename = Rename {
            parent: from.0,
            name: from.1.into(),
            new_parent: to.0,
            new_name: to.1.into(),
            mode: mode.into(),
        };
        self.compare(1, request::Op::Rename(rename), expected);
    }

    fn set_attr(&mut self) {
        let ino = self.ino();
        let mut change = SetAttr { ino, ..SetAttr::default() };
        let expected = match self.random.random_range(0..4) {
            0 => {
                let mode = self.random.random_range(0..=0o7777);
                change.mode = Some(mode);
                self.reference.chmod(ino, mode)
            }
            1 => {
                let (uid, gid) = (self.random.random_range(0..3), self.random.random_range(0..3));
                (change.uid, change.gid) = (Some(uid), Some(gid));
                self.reference.chown(ino, uid, gid)
            }
            2 => {
                let (atime, mtime) = (self.time(), self.time());
                let value = |value| Some(TimeChange { now: false, value: Some(value) });
                (change.atime, change.mtime) = (value(atime), value(mtime));
                self.reference.utimens(ino, atime, mtime)
            }
            _ => {
                let size = self.random.random_range(0..PAGES * PAGE);
                change.size = Some(size);
                self.reference.truncate(ino, size)
            }
        };
        self.compare(1, request::Op::SetAttr(change), expected);
    }

    fn set_xattr(&mut self) {
        let ino = self.ino();
        let name = *["user.x", "user.y", "trusted.z"].choose(&mut self.random).expect("there are names");
        if self.random.random_ratio(1, 3) {
            let expected = self.reference.remove_xattr(ino, name);
            self.compare(1, request::Op::RemoveXattr(RemoveXattr { ino, name: name.into() }), expected);
            return;
        }
        let mut set = SetXattr { ino, name: name.into(), ..SetXattr::default() };
        let expected = if self.random.random_ratio(1, 4) {
            (set.name, set.value) = ("dfs.class".into(), "replicated:2".into());
            self.reference.set_class(ino, "replicated:2")
        } else {
            set.value = vec![self.random.random(); self.random.random_range(0..9)].into();
            self.reference.set_xattr(ino, name, &set.value.clone())
        };
        self.compare(1, request::Op::SetXattr(set), expected);
    }

    fn open(&mut self) {
        let (ino, session, truncate) = (self.ino(), self.session(), self.random.random_ratio(1, 5));
        let expected = self.reference.open(session, ino, truncate);
        let open = Open { ino, truncate, ..Open::default() };
        self.compare(session, request::Op::Open(open), expected);
    }

    fn close(&mut self) {
        let session = self.session();
        let mut inos = self.reference.open_in(session);
        inos.truncate(self.random.random_range(0..4));
        inos.push(self.ino());
        inos.dedup();
        for &ino in &inos {
            self.reference.close(session, ino);
        }
        let files = inos.into_iter().map(|ino| ClosedFile { ino, atime: None }).collect();
        self.compare(session, request::Op::Close(Close { files }), Ok(None));
    }

    /// Writes some pages of some regular file.
    fn write(&mut self) {
        let files = self.reference.nodes.iter().filter(|(_, node)| node.kind == FileKind::Regular);
        let files: Vec<u64> = files.map(|(&ino, _)| ino).collect();
        let Some(&ino) = files.choose(&mut self.random) else { return };
        let mut pages: Vec<u64> = (0..PAGES).filter(|_| self.random.random_bool(0.2)).collect();
        pages.truncate(4);
        if pages.is_empty() {
            return;
        }
        let places: Vec<u64> = pages.iter().map(|page| page * PAGE).collect();
        let ranges: Vec<(u64, u64)> = places.iter().map(|&place| (place, PAGE)).collect();
        self.bench.write(Ino(ino), &ranges);
        // Allocating took the second before.
        self.reference.now = self.bench.now.into();
        self.reference.write(ino, &places, PAGE);
        assert_eq!(self.bench.get_attr(ino), Ok(self.reference.attr(ino)));
    }

    /// The server starts again: the sessions come back one by one, with what they had open, or never.
    fn restart(&mut self) {
        self.everybody_comes_back();
        let nodes = std::mem::take(&mut self.bench.live.nodes);
        self.bench.live = Live { nodes, ..Live::default() };
        let sessions = SESSIONS.map(|id| (SessionId(id), records::Session::default()));
        self.bench.live.sessions = SessionTable::load(2, sessions, FOR_EVER);
        self.missing = SESSIONS.to_vec();
        // Operations are sent by those that are back: one at least.
        self.comes_back(1);
        if self.random.random_bool(0.5) {
            self.everybody_comes_back();
        }
    }

    fn comes_back(&mut self, session: u64) {
        let open_inos = self.reference.open_in(session);
        let reclaim = Reclaim { open_inos, complete: true, ..Reclaim::default() };
        match self.bench.run_as(SessionId(session), request::Op::Reclaim(reclaim)) {
            Ok(reply::Result::Reclaimed(reclaimed)) => assert!(reclaimed.stale_inos.is_empty()),
            other => panic!("reclaim: {other:?}"),
        }
        self.missing.retain(|&missing| missing != session);
    }

    fn everybody_comes_back(&mut self) {
        for session in self.missing.clone() {
            match self.random.random_ratio(1, 4) {
                false => self.comes_back(session),
                true => self.dies(session),
            }
        }
        self.bench.finish(Internal::AdoptOrphans);
        self.bench.finish(Internal::PurgeOrphans);
    }

    /// The session is over, and another one takes its name for the rest of the test.
    fn dies(&mut self, session: u64) {
        for ino in self.reference.open_in(session) {
            self.reference.close(session, ino);
        }
        self.bench.live.opens.remove_session(SessionId(session));
        self.bench.live.sessions.remove(SessionId(session), "test");
        self.bench.finish(Internal::AdoptOrphans);
        self.bench.live.sessions.add(SessionId(session), &records::Session::default(), self.bench.uptime);
        self.missing.retain(|&missing| missing != session);
    }

    /// The whole tree, name by name, and the store.
    fn compare_all(&mut self) {
        self.everybody_comes_back();
        let mut next = vec![ROOT];
        let mut reached = 0;
        while let Some(ino) = next.pop() {
            reached += 1;
            let node = self.reference.nodes[&ino].clone();
            assert_eq!(self.bench.get_attr(ino), Ok(self.reference.attr(ino)));
            let xattrs: Vec<_> = node.xattrs.keys().cloned().collect();
            assert_eq!(self.bench.list_xattr(ino), xattrs);
            for (name, value) in &node.xattrs {
                assert_eq!(self.bench.get_xattr(ino, name).as_ref(), Ok(value));
            }
            if node.kind == FileKind::Symlink {
                let target =
                    self.bench.value(request::Op::ReadLink(ReadLink { ino })).map(|value| value.value);
                assert_eq!(target, Ok(node.target.into()));
            }
            if node.kind == FileKind::Directory {
                let names: Vec<_> = node.entries.keys().cloned().collect();
                let page = self.random.random_range(1..9);
                assert_eq!(self.bench.names(ino, page), names);
            }
            for (name, &child) in &node.entries {
                assert_eq!(self.bench.lookup(ino, name), Ok(self.reference.attr(child)));
                if self.reference.nodes[&child].kind == FileKind::Directory {
                    assert_eq!(self.bench.lookup(child, "..").map(|attr| attr.ino), Ok(ino));
                }
                next.push(child);
            }
        }
        assert!(reached > 0);
        for ino in 1..=self.reference.last_ino {
            let got = self.bench.get_attr(ino).map_err(|failure| failure.code);
            let there = self.reference.nodes.contains_key(&ino);
            assert_eq!(got, if there { Ok(self.reference.attr(ino)) } else { Err(Code::Stale) });
        }
        match self.bench.run(request::Op::StatFs(StatFs {})) {
            Ok(reply::Result::FsStats(stats)) => {
                assert_eq!(stats.files, self.reference.nodes.len() as u64);
                assert_eq!(stats.used_bytes, self.reference.used_bytes());
            }
            other => panic!("statfs: {other:?}"),
        }
        self.bench.check();
    }
}

/// Runs the operations that `seed` stands for.
fn run(bench: &mut Bench, seed: u64, steps: usize) {
    eprintln!("seed {seed}, {steps} operations: repeat with DFS_MODEL_SEED={seed}");
    (bench.settings.node_suspect_after, bench.settings.node_dead_after) = (FOR_EVER, FOR_EVER);
    for node in 1..=3 {
        bench.join(node, &format!("host{node}"));
    }
    for session in SESSIONS {
        bench.live.sessions.add(SessionId(session), &records::Session::default(), bench.uptime);
    }
    let reference = Reference::new(Time { seconds: 1_000_000, nanos: 0 });
    let mut run = Run { bench, reference, random: StdRng::seed_from_u64(seed), missing: Vec::new() };
    for step in 0..steps {
        run.step();
        if step % 50 == 49 {
            run.bench.check();
        }
        if step % 250 == 249 {
            run.compare_all();
        }
    }
    run.compare_all();
}

/// The seeds to run: a fresh one, and those given.
fn seeds(fixed: &[u64]) -> Vec<u64> {
    match std::env::var("DFS_MODEL_SEED") {
        Ok(seed) => vec![seed.parse().expect("DFS_MODEL_SEED is a number")],
        Err(_) => fixed.iter().copied().chain([rand::random()]).collect(),
    }
}

#[test]
fn random_operations_do_what_the_reference_does() {
    for seed in seeds(&[1, 2, 3, 4]) {
        run(&mut Bench::new(), seed, 3000);
    }
}

#[test]
fn they_do_so_over_every_store() {
    for seed in seeds(&[5]) {
        on_every_store(|bench| run(bench, seed, 400));
    }
}
