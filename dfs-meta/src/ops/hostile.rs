//! Requests with numbers that no honest client or daemon would send: each is refused or done, none panics, and none
//! damages the store. Tests only.

use dfs_proto::meta::*;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::testing::Bench;
use dfs_proto::limits::{MAX_CHUNK_LENGTH, MAX_FILE_SIZE};

struct Hostile {
    random: SmallRng,
}

impl Hostile {
    /// A number that something may trip over.
    fn number(&mut self) -> u64 {
        let edges = [0, 1, 2, 3, 4, 100, 4096, MAX_CHUNK_LENGTH, MAX_FILE_SIZE, 1 << 63, u64::MAX];
        let edge = *edges.choose(&mut self.random).expect("there are some");
        match self.random.random_range(0..4) {
            0 => edge.wrapping_sub(1),
            1 => edge.wrapping_add(1),
            _ => edge,
        }
    }

    /// An id that may well exist.
    fn id(&mut self) -> u64 {
        if self.random.random_bool(0.9) { self.random.random_range(0..8) } else { self.number() }
    }

    fn small(&mut self) -> i32 {
        self.random.random_range(-1..7)
    }

    fn many<T>(&mut self, mut one: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.random.random_range(0..4)).map(|_| one(self)).collect()
    }

    fn extent(&mut self) -> Extent {
        Extent { offset: self.number(), length: self.number(), chunk: self.id(), chunk_offset: self.number() }
    }

    fn sealed(&mut self) -> SealedChunk {
        let shards = self.many(|this| SealedShard { index: this.id() as u32, node: this.id() });
        SealedChunk {
            chunk: self.id(),
            length: self.number(),
            sha256: vec![1; 32].into(),
            shards,
            encoding: self.encoding(),
        }
    }

    fn encoding(&mut self) -> Option<Encoding> {
        self.random.random_bool(0.5).then(|| Encoding {
            length: self.number(),
            compression: self.small(),
            data_key: self.id(),
            salt: vec![1; [0, 16][self.id() as usize % 2]].into(),
        })
    }

    fn key(&mut self) -> Key {
        let passphrase = self.random.random_bool(0.5);
        Key {
            name: self.key_name(),
            source: if passphrase { 1 } else { self.small() },
            salt: vec![1; if passphrase { 16 } else { 0 }].into(),
            rounds: if passphrase { 600_000 } else { 0 },
            check: vec![self.id() as u8; 32].into(),
            generation: self.id() as u32,
            data_keys: self.number(),
        }
    }

    fn key_name(&mut self) -> String {
        ["a", "b", "/"][self.id() as usize % 3].into()
    }

    fn data_key(&mut self) -> DataKey {
        DataKey {
            id: self.id(),
            key: self.key_name(),
            generation: self.id() as u32,
            wrapped: vec![1; 60].into(),
        }
    }

    fn file(&mut self) -> FileCommit {
        FileCommit {
            ino: self.id(),
            extents: self.many(Self::extent),
            size: self.number(),
            mtime: Some(dfs_proto::Time { seconds: self.number() as i64, nanos: self.number() as u32 }),
            append_base: self.random.random_bool(0.3).then(|| self.number()),
            kill_set_id: true,
        }
    }

    fn lock(&mut self) -> LockRange {
        LockRange {
            space: self.small(),
            kind: self.small(),
            owner: self.id(),
            start: self.number(),
            end: self.number(),
            pid: 1,
        }
    }

    fn op(&mut self) -> request::Op {
        use request::Op;
        match self.random.random_range(0..20) {
            0 => Op::Plan(Plan {
                ino: self.id(),
                offset: self.number(),
                length: self.number(),
                max_extents: self.number() as u32,
            }),
            1 => Op::Allocate(Allocate {
                class: ["replicated:3", "ec:4+2", "auto", "auto,zone=z"][self.id() as usize % 4].into(),
                is_short: self.id().is_multiple_of(2),
                count: self.id() as u32,
                avoid: self.many(Self::id),
                client: None,
            }),
            2 => Op::Replace(Replace {
                chunk: self.id(),
                failed: self.many(Self::id),
                avoid: self.many(Self::id),
            }),
            3 => Op::Commit(Commit { chunks: self.many(Self::sealed), files: self.many(Self::file) }),
            4 => Op::Fallocate(Fallocate {
                ino: self.id(),
                offset: self.number(),
                length: self.number(),
                mode: self.small(),
                kill_set_id: true,
            }),
            5 => Op::CopyRange(CopyRange {
                source: self.id(),
                source_offset: self.number(),
                target: self.id(),
                target_offset: self.number(),
                length: self.number(),
                kill_set_id: false,
            }),
            6 => Op::Seek(Seek { ino: self.id(), offset: self.number(), hole: self.random.random_bool(0.5) }),
            7 => Op::SetLock(SetLock { ino: self.id(), lock: Some(self.lock()), wait: true }),
            8 => Op::GetLock(GetLock { ino: self.id(), lock: Some(self.lock()) }),
            9 => Op::NodeHeartbeat(NodeHeartbeat {
                node: self.id(),
                epoch: 1,
                capacity_bytes: self.number(),
                available_bytes: self.number(),
                shards: self.number(),
                deleted: self.many(Self::id),
                corrupt: self.many(Self::id),
                read_only: false,
            }),
            10 => {
                let shards = self.many(|this| HeldShard {
                    chunk: this.id(),
                    index: this.id() as u32,
                    length: this.number(),
                    age_ms: this.number(),
                });
                Op::NodeInventory(NodeInventory {
                    node: self.id(),
                    epoch: 1,
                    first: self.id(),
                    last: self.number(),
                    shards,
                })
            }
            11 => Op::ReportShard(ReportShard { chunk: self.id(), node: self.id(), code: self.small() }),
            12 => Op::SetAttr(SetAttr { ino: self.id(), size: Some(self.number()), ..SetAttr::default() }),
            13 => Op::CreateKey(CreateKey { key: Some(self.key()) }),
            14 => Op::RotateKey(RotateKey { key: Some(self.key()), data_keys: self.many(Self::data_key) }),
            15 => Op::RemoveKey(RemoveKey { name: self.key_name() }),
            16 => Op::ListDataKeys(ListDataKeys { key: self.key_name(), after: self.number() }),
            17 => Op::SetXattr(SetXattr {
                ino: 1,
                name: "dfs.class".into(),
                value: ["replicated:3,encrypt=a", "replicated:3,encrypt=b", "replicated:3"]
                    [self.id() as usize % 3]
                    .into(),
                data_key: Some(self.data_key()),
                ..SetXattr::default()
            }),
            18 => Op::ListChunks(ListChunks { after: self.number(), limit: self.number() as u32 }),
            _ => Op::NodeJoin(NodeJoin {
                disk: vec![self.id() as u8; 16].into(),
                node: self.id(),
                address: "host:1".into(),
                protocol: dfs_proto::PROTOCOL_VERSION,
                capacity_bytes: self.number(),
                available_bytes: self.number(),
                ..NodeJoin::default()
            }),
        }
    }
}

#[test]
fn no_number_does_harm() {
    let seed = std::env::var("DFS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("DFS_SEED={seed}");
    let mut hostile = Hostile { random: SmallRng::seed_from_u64(seed) };
    for _ in 0..20 {
        let mut bench = Bench::with_nodes(4);
        let ino = bench.file("f");
        bench.write(ino, &[(0, 4096), (8192, 100)]);
        bench.file("g");
        let mut done = 0;
        for _ in 0..300 {
            let op = hostile.op();
            done += usize::from(bench.run(op).is_ok());
            if hostile.random.random_bool(0.02) {
                bench.now.seconds += 700;
                bench.finish(super::Internal::CollectGarbage);
            }
        }
        assert!(done > 20, "nearly all was refused: {done}");
        bench.check();
    }
}
