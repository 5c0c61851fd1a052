//! Random operations on the data of a few files against a model that knows of every byte where it is.

use dfs_proto::meta::{CopyRange, Fallocate, FallocateMode, Plan, Seek, SetAttr, reply, request};
use dfs_proto::{Attr, SessionId};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::super::testing::{Bench, answer, on_every_store};
use super::*;

/// Bytes of a model file at most.
const BYTES: u64 = 240;
const FILES: usize = 3;

/// Of each byte: its chunk and where it is there, or a hole.
type ModelFile = Vec<Option<(u64, u64)>>;

struct Rig<'b> {
    bench: &'b mut Bench,
    random: SmallRng,
    inos: Vec<Ino>,
    model: Vec<ModelFile>,
}

impl Rig<'_> {
    fn new(bench: &mut Bench, seed: u64) -> Rig<'_> {
        for node in 1..=4 {
            bench.join(node, &format!("host{node}"));
        }
        bench.settings.node_suspect_after = std::time::Duration::from_secs(1 << 20);
        bench.settings.node_dead_after = std::time::Duration::from_secs(1 << 21);
        let inos = (0..FILES).map(|file| bench.file(&format!("f{file}"))).collect();
        Rig { bench, random: SmallRng::seed_from_u64(seed), inos, model: vec![Vec::new(); FILES] }
    }

    fn range(&mut self) -> (u64, u64) {
        let offset = self.random.random_range(0..BYTES);
        (offset, self.random.random_range(1..=(BYTES - offset).min(60)))
    }

    fn run(&mut self, op: request::Op) -> Result<reply::Result, Failure> {
        self.bench.run(op)
    }

    fn grow(&mut self, file: usize, size: u64) {
        let length = self.model[file].len().max(size as usize);
        self.model[file].resize(length, None);
    }

    /// One to three ranges, packed into a chunk.
    fn write(&mut self, file: usize) {
        let mut ranges = Vec::new();
        let mut from = 0;
        for _ in 0..self.random.random_range(1..=3) {
            let (offset, length) = self.range();
            if offset >= from {
                ranges.push((offset, length));
                from = offset + length;
            }
        }
        if ranges.is_empty() {
            return;
        }
        let chunk = self.bench.write(self.inos[file], &ranges);
        let mut at = 0;
        for (offset, length) in ranges {
            self.grow(file, offset + length);
            for byte in offset..offset + length {
                self.model[file][byte as usize] = Some((chunk, at));
                at += 1;
            }
        }
    }

    fn truncate(&mut self, file: usize) {
        let size = self.random.random_range(0..BYTES);
        let op = SetAttr { ino: self.inos[file].0, size: Some(size), ..SetAttr::default() };
        self.run(request::Op::SetAttr(op)).expect("truncate");
        self.model[file].resize(size as usize, None);
    }

    fn fallocate(&mut self, file: usize) {
        let (offset, length) = self.range();
        let mode = FallocateMode::try_from(self.random.random_range(0..5)).expect("a mode");
        let op = Fallocate { ino: self.inos[file].0, offset, length, mode: mode.into(), kill_set_id: false };
        self.run(request::Op::Fallocate(op)).expect("fallocate");
        if matches!(mode, FallocateMode::Allocate | FallocateMode::ZeroRange) {
            self.grow(file, offset + length);
        }
        if !matches!(mode, FallocateMode::Allocate | FallocateMode::KeepSize) {
            let model = &mut self.model[file];
            let end = model.len().min((offset + length) as usize);
            let start = end.min(offset as usize);
            model[start..end].fill(None);
        }
    }

    fn copy(&mut self, source: usize, target: usize) {
        let (source_offset, length) = self.range();
        let target_offset = self.random.random_range(0..BYTES);
        let op = CopyRange {
            source: self.inos[source].0,
            source_offset,
            target: self.inos[target].0,
            target_offset,
            length,
            kill_set_id: false,
        };
        let result = answer!(self.run(request::Op::CopyRange(op)), Copied);
        let length = length.min((self.model[source].len() as u64).saturating_sub(source_offset));
        if source == target && source_offset.abs_diff(target_offset) < length {
            assert_eq!(result.unwrap_err().code, Code::Invalid);
            return;
        }
        assert_eq!(result.expect("copy").length, length);
        if length > 0 {
            self.grow(target, target_offset + length);
            let bytes = self.model[source][source_offset as usize..][..length as usize].to_vec();
            self.model[target][target_offset as usize..][..length as usize].copy_from_slice(&bytes);
        }
    }

    fn seek(&mut self, file: usize) {
        let offset = self.random.random_range(0..BYTES);
        for hole in [false, true] {
            let op = Seek { ino: self.inos[file].0, offset, hole };
            let result = answer!(self.run(request::Op::Seek(op)), Offset);
            let model = &self.model[file];
            let found = (offset as usize..model.len()).find(|&byte| model[byte].is_none() == hole);
            let expected = match found {
                Some(byte) => Some(byte as u64),
                None if hole && offset < model.len() as u64 => Some(model.len() as u64),
                None => None,
            };
            match result {
                Ok(found) => assert_eq!(Some(found.offset), expected, "from {offset}, hole: {hole}"),
                Err(failure) => assert_eq!((failure.code, expected), (Code::NoSuchDevice, None)),
            }
        }
    }

    /// Asks for the file in plans of a few extents each and compares every byte.
    fn compare(&mut self, file: usize) {
        let ino = self.inos[file].0;
        let mut bytes: ModelFile = vec![None; self.model[file].len()];
        let (mut at, end) = (0, BYTES.max(bytes.len() as u64));
        while at < end {
            let max_extents = self.random.random_range(1..5);
            let op = Plan { ino, offset: at, length: end - at, max_extents };
            let plan = answer!(self.run(request::Op::Plan(op)), Plan).expect("plan");
            dfs_proto::extent::check_all(&plan.extents).expect("good extents");
            let attr: Attr = plan.attr.expect("attributes");
            assert_eq!(attr.size, self.model[file].len() as u64);
            let covered = self.model[file].iter().flatten().count() as u64;
            assert_eq!(attr.allocated_bytes, covered);
            assert!(plan.covered_end > at && plan.extents.len() <= max_extents as usize);
            for extent in &plan.extents {
                for byte in 0..extent.length {
                    bytes[(extent.offset + byte) as usize] = Some((extent.chunk, extent.chunk_offset + byte));
                }
                assert!(plan.chunks.iter().any(|chunk| chunk.chunk == extent.chunk));
            }
            at = plan.covered_end;
        }
        assert_eq!(bytes, self.model[file]);
    }
}

#[test]
fn files_are_what_was_done_to_them_byte_by_byte() {
    let seed = std::env::var("DFS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("DFS_SEED={seed}");
    on_every_store(|bench| {
        let mut rig = Rig::new(bench, seed);
        for step in 0..400 {
            let file = rig.random.random_range(0..FILES);
            let other = rig.random.random_range(0..FILES);
            match rig.random.random_range(0..10) {
                0..4 => rig.write(file),
                4 => rig.truncate(file),
                5..7 => rig.fallocate(file),
                7..9 => rig.copy(file, other),
                _ => rig.seek(file),
            }
            rig.compare(file);
            if step % 20 == 0 {
                rig.bench.check();
            }
        }
        (0..FILES).for_each(|file| rig.compare(file));
        rig.bench.check();
    });
}

#[test]
fn a_range_is_cut_in_pieces() {
    let mut bench = Bench::with_nodes(3);
    let ino = bench.file("f");
    let ranges: Vec<_> = (0..10).map(|at| (at * 10, 5)).collect();
    let chunk = bench.write(ino, &ranges);
    let mut remove = |start, end, limit| {
        bench
            .with(SessionId(1), |cx| {
                let mut inode = super::super::inode::load(cx, ino)?;
                let done = remove_range(cx, ino, &mut inode, start, end, limit)?;
                cx.tx.put(keys::inode(ino), &inode);
                Ok(done)
            })
            .unwrap()
    };
    assert!(!remove(12, u64::MAX, 4));
    assert!(!remove(12, u64::MAX, 4));
    assert!(remove(12, u64::MAX, 4));
    assert!(remove(12, u64::MAX, 0), "nothing is left to cut");
    let extents = bench.plan(ino).extents;
    assert_eq!(extents.iter().map(Extent::range).collect::<Vec<_>>(), [0..5, 10..12]);
    bench.check();
    assert!(
        bench.chunk(chunk).is_some_and(|chunk| chunk.live_bytes == 7 && chunk.state() == ChunkState::Sealed)
    );
}
