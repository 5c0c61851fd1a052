//! A metadata server in memory: inodes with extents, planned and sealed chunks; what the data plane asks of the real one.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use dfs_proto::limits::{BLOCK_SIZE, MAX_COMMIT_CHUNKS, MAX_COMMIT_EXTENTS, MAX_COMMIT_FILES};
use dfs_proto::meta::{
    Allocate, Allocated, ChunkPlan, Commit, Committed, DataKey, DataKeys, Done, Extent, FileCommit,
    FileResult, Key, KeySource, Plan, PlanReply, ReportShard, SealedChunk, ShardPlan, reply, request,
};
use dfs_proto::{Attr, Class, Code, Failure, FileKind, Ino, Redundancy, Stripe, extent, stripe};
use futures::FutureExt;
use futures::future::BoxFuture;
use sha2::{Digest, Sha256};

use super::nodes::FakeNode;
use crate::keys::{self, Keyring, MasterKey};
use crate::session::MetaCalls;

/// The fake server.
pub(crate) struct FakeMeta {
    nodes: Vec<Arc<FakeNode>>,
    state: Mutex<State>,
    /// What tells of the key "k", and a data key encrypted with it.
    key: Key,
    data_key: DataKey,
}

/// The key "k".
const KEY: [u8; 32] = [7; 32];

#[derive(Default)]
struct State {
    files: HashMap<u64, File>,
    planned: HashMap<u64, ChunkPlan>,
    sealed: HashMap<u64, ChunkPlan>,
    last_chunk: u64,
    reports: Vec<ReportShard>,
    calls: HashMap<&'static str, usize>,
    failing: HashMap<&'static str, (Failure, usize)>,
    panicking: Option<&'static str>,
    slow: Duration,
}

struct File {
    attr: Attr,
    extents: BTreeMap<u64, Extent>,
}

impl File {
    fn changed(&mut self) {
        self.attr.version += 1;
        self.attr.allocated_bytes = self.extents.values().map(|extent| extent.length).sum();
    }

    fn punch(&mut self, hole: std::ops::Range<u64>) {
        let old = std::mem::take(&mut self.extents);
        let kept = old.into_values().flat_map(|extent| extent.without(&hole)).flatten();
        self.extents = kept.map(|extent| (extent.offset, extent)).collect();
    }

    fn commit(&mut self, commit: &FileCommit) -> u64 {
        let shift = commit.append_base.map_or(0, |base| self.attr.size.wrapping_sub(base));
        for extent in &commit.extents {
            let moved = Extent { offset: extent.offset.wrapping_add(shift), ..*extent };
            self.punch(moved.range());
            self.extents.insert(moved.offset, moved);
        }
        self.attr.size = self.attr.size.max(commit.size.wrapping_add(shift));
        self.attr.mtime = commit.mtime;
        self.changed();
        shift
    }
}

impl FakeMeta {
    pub(super) fn new(nodes: Vec<Arc<FakeNode>>) -> Self {
        let (key, master) = MasterKey::create("k", KeySource::KeyFile, &KEY, 1).expect("a key");
        let fresh = keys::DataKey::random().expect("random bytes");
        let data_key = DataKey { id: 9, ..master.wrap(&fresh).expect("encrypted") };
        Self { nodes, state: Mutex::default(), key, data_key }
    }

    /// The keyring of a client that has the key "k".
    pub(crate) fn keys(self: &Arc<Self>) -> Arc<Keyring> {
        let master = MasterKey::open(&self.key, &KEY).expect("the key");
        Arc::new(Keyring::new(Arc::clone(self) as _, [("k".to_owned(), master)].into()))
    }

    /// Makes an empty file.
    pub(crate) fn create(&self, ino: u64, class: &str) -> Attr {
        let attr = Attr {
            ino,
            kind: FileKind::Regular.into(),
            mode: 0o6755,
            nlink: 1,
            version: 1,
            class: class.into(),
            data_key: if class.contains("encrypt=k") { self.data_key.id } else { 0 },
            ..Attr::default()
        };
        let file = File { attr: attr.clone(), extents: BTreeMap::new() };
        self.lock().files.insert(ino, file);
        attr
    }

    pub(crate) fn attr(&self, ino: u64) -> Attr {
        self.lock().files[&ino].attr.clone()
    }

    pub(crate) fn extents(&self, ino: u64) -> Vec<Extent> {
        self.lock().files[&ino].extents.values().copied().collect()
    }

    /// What SetAttr does to the size, by this client or another one.
    pub(crate) fn truncate(&self, ino: u64, size: u64) -> Attr {
        let mut state = self.lock();
        let file = state.files.get_mut(&ino).expect("a file of the test");
        file.punch(size..u64::MAX);
        file.attr.size = size;
        file.changed();
        file.attr.clone()
    }

    /// The file goes, with everything in it.
    pub(crate) fn remove(&self, ino: u64) {
        self.lock().files.remove(&ino);
    }

    /// The server forgets every chunk that is planned.
    pub(crate) fn forget_plans(&self) {
        self.lock().planned.clear();
    }

    /// The next `times` calls of an operation (by its lower-case name) fail.
    pub(crate) fn fail(&self, name: &'static str, code: Code, times: usize) {
        self.lock().failing.insert(name, (Failure::new(code, format!("{name} was told to fail")), times));
    }

    /// The next call of an operation panics in its caller's task.
    pub(crate) fn panic_once(&self, name: &'static str) {
        self.lock().panicking = Some(name);
    }

    /// Every call takes so long.
    pub(crate) fn slow_down(&self, by: Duration) {
        self.lock().slow = by;
    }

    /// Calls of an operation since it was asked last.
    pub(crate) fn take_calls(&self, name: &str) -> usize {
        self.lock().calls.remove(name).unwrap_or(0)
    }

    pub(crate) fn reports(&self) -> Vec<ReportShard> {
        self.lock().reports.clone()
    }

    /// Chunks sealed so far, by id, with the nodes that keep them.
    pub(crate) fn sealed(&self) -> HashMap<u64, ChunkPlan> {
        self.lock().sealed.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the fake server")
    }

    async fn call(&self, op: request::Op) -> Result<reply::Result, Failure> {
        let (name, slow) = (name_of(&op), self.lock().slow);
        // The request is on its way, is served, and its answer is on its way.
        tokio::time::sleep(slow / 2).await;
        let panics = self.lock().panicking.take_if(|panicking| *panicking == name).is_some();
        assert!(!panics, "{name} was told to panic");
        let answer = self.serve(name, op);
        tokio::time::sleep(slow / 2).await;
        answer
    }

    fn serve(&self, name: &'static str, op: request::Op) -> Result<reply::Result, Failure> {
        let mut state = self.lock();
        *state.calls.entry(name).or_default() += 1;
        if let Some((failure, times)) = state.failing.get_mut(name)
            && *times > 0
        {
            *times -= 1;
            return Err(failure.clone());
        }
        match op {
            request::Op::GetAttr(op) => Ok(reply::Result::Attr(state.file(op.ino)?.attr.clone())),
            request::Op::Plan(op) => Ok(reply::Result::Plan(state.plan(&op)?)),
            request::Op::Allocate(op) => {
                let chunks = (0..op.count).map(|_| self.allocate(&mut state, &op)).collect();
                Ok(reply::Result::Allocated(Allocated {
                    chunks: Result::from_iter::<Vec<_>>(chunks)?,
                    plan_lifetime_ms: 600_000,
                }))
            }
            request::Op::Replace(op) => self.replace(&mut state, op.chunk, &[op.failed, op.avoid].concat()),
            request::Op::Commit(op) => self.commit(&mut state, &op),
            request::Op::ReportShard(op) => {
                state.reports.push(op);
                Ok(reply::Result::Done(Done {}))
            }
            request::Op::GetDataKey(op) if op.id == self.data_key.id => {
                Ok(reply::Result::DataKeys(DataKeys { data_keys: vec![self.data_key.clone()] }))
            }
            other => panic!("the data plane does not ask for {other:?}"),
        }
    }

    fn allocate(&self, state: &mut State, op: &Allocate) -> Result<ChunkPlan, Failure> {
        let long = op.class.parse::<Class>()?.choices()[0];
        let redundancy = if op.is_short { long.as_copies() } else { long };
        state.last_chunk += 1;
        let mut order: Vec<&Arc<FakeNode>> = self.nodes.iter().collect();
        order.rotate_left(state.last_chunk as usize % self.nodes.len());
        order.sort_by_key(|node| op.avoid.contains(&node.id));
        let shards = (0..).zip(order.into_iter().take(redundancy.shards() as usize));
        let shards = shards.map(|(index, node)| ShardPlan { index, node: Some(node.place()) }).collect();
        let plan = ChunkPlan {
            chunk: state.last_chunk,
            redundancy: redundancy.to_string(),
            shards,
            ..ChunkPlan::default()
        };
        state.planned.insert(plan.chunk, plan.clone());
        Ok(plan)
    }

    fn replace(&self, state: &mut State, chunk: u64, away: &[u64]) -> Result<reply::Result, Failure> {
        let plan = state.planned.get_mut(&chunk).ok_or_else(|| Failure::from(Code::ChunkRefused))?;
        let used: Vec<u64> = plan.shards.iter().filter_map(|shard| Some(shard.node.as_ref()?.node)).collect();
        let mut free = self.nodes.iter().filter(|node| !away.contains(&node.id) && !used.contains(&node.id));
        for shard in &mut plan.shards {
            if shard.node.as_ref().is_some_and(|node| away.contains(&node.node)) {
                match free.next() {
                    Some(node) => shard.node = Some(node.place()),
                    None => return Err(Failure::new(Code::TooFewNodes, "no other node is left")),
                }
            }
        }
        Ok(reply::Result::Allocated(Allocated { chunks: vec![plan.clone()], plan_lifetime_ms: 600_000 }))
    }

    fn commit(&self, state: &mut State, op: &Commit) -> Result<reply::Result, Failure> {
        assert!(
            op.chunks.len() <= MAX_COMMIT_CHUNKS && op.files.len() <= MAX_COMMIT_FILES,
            "a commit too large"
        );
        assert!(op.files.iter().map(|file| file.extents.len()).sum::<usize>() <= MAX_COMMIT_EXTENTS);
        let mut lengths = HashMap::new();
        for sealed in &op.chunks {
            let plan = state.planned.get(&sealed.chunk).ok_or_else(|| Failure::from(Code::ChunkRefused))?;
            let kept = self.check_durable(sealed, plan);
            let encoding = sealed.encoding.clone();
            let plan = ChunkPlan { length: sealed.length, shards: kept, encoding, ..plan.clone() };
            lengths.insert(sealed.chunk, plan.content_length());
            state.sealed.insert(sealed.chunk, plan);
        }
        for sealed in &op.chunks {
            state.planned.remove(&sealed.chunk);
        }
        let files = op.files.iter().map(|commit| {
            extent::check_all(&commit.extents).expect("a commit's extents are sorted and in bounds");
            for extent in &commit.extents {
                assert!(extent.chunk_offset + extent.length <= lengths[&extent.chunk], "beyond the chunk");
            }
            match state.files.get_mut(&commit.ino) {
                None => FileResult { code: Code::Stale.into(), ..FileResult::default() },
                Some(file) => {
                    let shifted = file.commit(commit);
                    FileResult { code: Code::Ok.into(), attr: Some(file.attr.clone()), shifted }
                }
            }
        });
        Ok(reply::Result::Committed(Committed { files: files.collect() }))
    }

    /// Invariant 1: data is durable before metadata names it.
    fn check_durable(&self, sealed: &SealedChunk, plan: &ChunkPlan) -> Vec<ShardPlan> {
        let redundancy: Redundancy = plan.redundancy.parse().expect("a redundancy");
        assert!(sealed.shards.len() >= redundancy.needed_to_write() as usize, "too few shards: {sealed:?}");
        let indexes: HashSet<_> = sealed.shards.iter().map(|shard| shard.index).collect();
        let places: HashSet<_> = sealed.shards.iter().map(|shard| shard.node).collect();
        assert!(indexes.len() == sealed.shards.len() && places.len() == sealed.shards.len(), "{sealed:?}");
        let mut shards_data = HashMap::new();
        let shards = sealed.shards.iter().map(|shard| {
            let node = self.nodes.iter().find(|node| node.id == shard.node).expect("a node of the cluster");
            let stored = node.shard(sealed.chunk).expect("a shard that is named is there");
            let length = stripe::shard_length(redundancy, sealed.length, shard.index);
            assert_eq!((stored.index, stored.data.len() as u64), (shard.index, length));
            match redundancy {
                Redundancy::Replicated { .. } => {
                    assert_eq!(Sha256::digest(&stored.data)[..], sealed.sha256[..])
                }
                Redundancy::Coded { .. } => drop(shards_data.insert(shard.index, stored.data)),
            }
            ShardPlan { index: shard.index, node: Some(node.place()) }
        });
        let shards = shards.collect();
        if let Some(stripe) = Stripe::new(redundancy, sealed.length)
            && (0..stripe.data_shards()).all(|shard| shards_data.contains_key(&shard))
        {
            let mut digest = Sha256::new();
            for block in 0..stripe.cells() {
                let (shard, row) = stripe.place_of(block);
                let start = row as usize * BLOCK_SIZE;
                digest.update(&shards_data[&shard][start..start + stripe.cell_length(shard, row)]);
            }
            assert_eq!(digest.finalize()[..], sealed.sha256[..]);
        }
        shards
    }
}

impl State {
    fn file(&self, ino: u64) -> Result<&File, Failure> {
        self.files.get(&ino).ok_or_else(|| Failure::new(Code::Stale, format!("inode {} is gone", Ino(ino))))
    }

    fn plan(&self, op: &Plan) -> Result<PlanReply, Failure> {
        let file = self.file(op.ino)?;
        let range = op.offset..op.offset.saturating_add(op.length);
        let mut found = file.extents.values().filter(|extent| extent.clip(&range).is_some());
        let extents: Vec<Extent> = found.by_ref().take(op.max_extents as usize).copied().collect();
        let covered_end = found.next().map_or(range.end, |next| next.offset);
        let named: HashSet<u64> = extents.iter().map(|extent| extent.chunk).collect();
        let chunks = named.iter().map(|chunk| self.sealed[chunk].clone()).collect();
        Ok(PlanReply { attr: Some(file.attr.clone()), extents, chunks, covered_end })
    }
}

impl MetaCalls for FakeMeta {
    fn read(&self, op: request::Op) -> BoxFuture<'_, Result<reply::Result, Failure>> {
        self.call(op).boxed()
    }

    fn change(&self, op: request::Op) -> BoxFuture<'_, Result<reply::Result, Failure>> {
        self.call(op).boxed()
    }
}

fn name_of(op: &request::Op) -> &'static str {
    match op {
        request::Op::GetAttr(_) => "get_attr",
        request::Op::Plan(_) => "plan",
        request::Op::Allocate(_) => "allocate",
        request::Op::Replace(_) => "replace",
        request::Op::Commit(_) => "commit",
        request::Op::ReportShard(_) => "report_shard",
        _ => "other",
    }
}
