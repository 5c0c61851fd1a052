//! The one flusher of a mount: takes dirty layers of one or of many inodes, packs them into a chunk, uploads it and
//! commits all their extents in one operation.
//!
//! A request that finds a free upload slot is served at once; while the slots are busy requests gather, and the next
//! upload takes all that fit one chunk and one commit. Uploads run in parallel; commits of one inode happen in the order
//! of its cuts. Bytes are let go only when their commit is answered, or when they are given up and the failure is kept
//! for those who wrote them.

use std::collections::{HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dfs_proto::limits::{
    BLOCK_SIZE, MAX_COMMIT_EXTENTS, MAX_COMMIT_FILES, MAX_CONTENT_LENGTH, MAX_FRAME_DATA,
};
use dfs_proto::meta::{ChunkPlan, Commit, Encoding, SealedChunk, SealedShard, reply, request};
use dfs_proto::{Code, Failure};
use futures::FutureExt;

use super::DataPlane;
use super::cache::Run;
use super::ids::Kind;
use super::inode::{InodeData, Keeping, STREAM_CUT_BYTES, Settled};
use super::layers::{Take, TakenLayer};
use super::packer::{Placement, pack};
use crate::buffers::Buffers;
use crate::chunk::{PackedChunk, lay_out};
use crate::encoding::Manner;

/// Uploads that nobody waits for, at a time.
const BACKGROUND_UPLOADS: usize = 4;
/// Bytes of them from which on no further one begins. More large ones at a time are not faster: what each works on pushes the
/// others' out of the processor's cache.
const BACKGROUND_BYTES: usize = 2 * STREAM_CUT_BYTES;
/// Uploads at a time: some room is kept for those that somebody waits for.
const MAX_UPLOADS: usize = 8;
/// Packing, encoding and checksums above this are not done on a thread that others wait for.
const INLINE_PACK_BYTES: usize = 512 * 1024;
/// What is written back in chunks up to this stays in the block cache: small files are often read again soon.
const KEEP_CACHED_BYTES: usize = 4 * 1024 * 1024;
/// The wait before an upload is tried again, at first and at most.
const RETRY_AFTER: Duration = Duration::from_millis(50);
const MAX_RETRY_AFTER: Duration = Duration::from_secs(2);
/// Fresh ids tried one after the other when the server refuses chunks.
const MAX_REFUSALS: usize = 5;

/// Whether somebody waits for a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Urgency {
    /// fsync, close, a lock given up.
    Waited,
    /// Age, or much of it.
    Background,
}

/// The queue of inodes to flush.
#[derive(Default)]
pub(super) struct Flusher {
    queues: Mutex<Queues>,
}

#[derive(Default)]
struct Queues {
    waited: Queue,
    background: Queue,
    running: usize,
    running_background: usize,
    background_bytes: usize,
}

/// Inodes in order, each once.
#[derive(Default)]
struct Queue {
    order: VecDeque<u64>,
    inodes: HashMap<u64, Arc<InodeData>>,
}

/// One chunk's worth of layers.
struct Job {
    urgency: Urgency,
    keeping: Result<Keeping, Failure>,
    layers: Vec<(Arc<InodeData>, TakenLayer)>,
}

/// What a job writes.
struct Packed {
    chunk: PackedChunk,
    encoding: Option<Encoding>,
    placements: Vec<Placement>,
    /// The content, where it is kept in the block cache.
    cached: Vec<Bytes>,
}

impl Queue {
    fn push(&mut self, inode: Arc<InodeData>) {
        let ino = inode.ino().0;
        if self.inodes.insert(ino, inode).is_none() {
            self.order.push_back(ino);
        }
    }
}

impl Flusher {
    /// Flushes `inodes` as soon as there is a slot.
    pub(super) fn submit(
        &self,
        plane: &Arc<DataPlane>,
        inodes: impl IntoIterator<Item = Arc<InodeData>>,
        urgency: Urgency,
    ) {
        let mut queues = self.lock();
        for inode in inodes {
            queues.queue(urgency).push(inode);
        }
        Self::start_jobs(&mut queues, plane);
    }

    /// Whether files wait for a slot to be written back.
    pub(super) fn is_busy(&self) -> bool {
        !self.lock().background.order.is_empty()
    }

    /// Starts as many jobs as there are slots and work.
    fn start_jobs(queues: &mut Queues, plane: &Arc<DataPlane>) {
        while let Some(job) = queues.next_job() {
            let plane = Arc::clone(plane);
            plane.runtime.clone().spawn(async move {
                let (urgency, bytes) = (job.urgency, job.bytes());
                job.run(&plane).await;
                let mut queues = plane.flusher.lock();
                queues.running -= 1;
                if urgency == Urgency::Background {
                    queues.running_background -= 1;
                    queues.background_bytes -= bytes;
                }
                Self::start_jobs(&mut queues, &plane);
            });
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().expect("nothing panics while it holds the flusher's queues")
    }
}

impl Queues {
    fn queue(&mut self, urgency: Urgency) -> &mut Queue {
        match urgency {
            Urgency::Waited => &mut self.waited,
            Urgency::Background => &mut self.background,
        }
    }

    /// The next job, if there is a slot for it and something to do; it takes the slot.
    fn next_job(&mut self) -> Option<Job> {
        if self.running >= MAX_UPLOADS {
            return None;
        }
        let job = match self.gather(Urgency::Waited) {
            Some(job) => job,
            None if self.has_room_in_background() => self.gather(Urgency::Background)?,
            None => return None,
        };
        self.running += 1;
        if job.urgency == Urgency::Background {
            self.running_background += 1;
            self.background_bytes += job.bytes();
        }
        Some(job)
    }

    fn has_room_in_background(&self) -> bool {
        self.running_background < BACKGROUND_UPLOADS && self.background_bytes < BACKGROUND_BYTES
    }

    /// Takes layers of the inodes in one queue, all kept in one way, until a chunk or a commit is full.
    fn gather(&mut self, urgency: Urgency) -> Option<Job> {
        let queue = self.queue(urgency);
        let mut job: Option<Job> = None;
        let (mut bytes, mut extents) = (MAX_CONTENT_LENGTH as usize, MAX_COMMIT_EXTENTS);
        // Each inode is looked at once; those that don't fit keep their place.
        let mut kept = VecDeque::new();
        while let Some(ino) = queue.order.pop_front() {
            let Some(inode) = queue.inodes.get(&ino).cloned() else { continue };
            let keeping = inode.keeping();
            if job.as_ref().is_some_and(|job| job.keeping != keeping || job.layers.len() >= MAX_COMMIT_FILES)
            {
                kept.push_back(ino);
                continue;
            }
            match inode.take_layer(bytes, extents) {
                Take::Nothing => {
                    queue.inodes.remove(&ino);
                }
                Take::TooLarge => kept.push_back(ino),
                Take::Layer(layer) => {
                    bytes -= layer.bytes.bytes();
                    extents -= layer.bytes.extents();
                    if inode.is_waiting() {
                        kept.push_back(ino);
                    } else {
                        queue.inodes.remove(&ino);
                    }
                    job.get_or_insert_with(|| Job { urgency, keeping, layers: Vec::new() })
                        .layers
                        .push((inode, layer));
                }
            }
        }
        queue.order = kept;
        job
    }
}

impl Job {
    /// Of data, before it is encoded.
    fn bytes(&self) -> usize {
        self.layers.iter().map(|(_, layer)| layer.bytes.bytes()).sum()
    }

    /// Uploads and commits; settles every layer, one way or the other.
    async fn run(self, plane: &Arc<DataPlane>) {
        // Whoever waits for these layers must hear of a panic too, and the slot come free.
        let written = AssertUnwindSafe(self.write(plane)).catch_unwind().await;
        let panicked = |_| Err(Failure::new(Code::InputOutput, "writing back panicked: see the log"));
        let results: Vec<Result<Settled, Failure>> = match written.unwrap_or_else(panicked) {
            Ok(settled) => settled.into_iter().map(Ok).collect(),
            Err(failure) => {
                // Layers settle in order, failed ones too.
                self.wait_for_earlier().await;
                self.layers.iter().map(|_| Err(failure.clone())).collect()
            }
        };
        for ((inode, layer), result) in self.layers.iter().zip(results) {
            inode.settle(layer.number, result);
        }
    }

    async fn wait_for_earlier(&self) {
        for (inode, layer) in &self.layers {
            inode.wait_settled(layer.number - 1).await;
        }
    }

    /// Tries until it is done, refused for good, or the mount's timeout is over.
    async fn write(&self, plane: &Arc<DataPlane>) -> Result<Vec<Settled>, Failure> {
        let Keeping { class, data_key } = self.keeping.clone()?;
        let started = Instant::now();
        let data_key = match data_key {
            0 => None,
            id => Some((id, plane.keys.data_key(id).await?)),
        };
        let manner = Manner { compression: class.compression, data_key };
        let packed = self.pack(manner, plane.io.buffers().clone()).await?;
        let is_short = class.is_short(packed.chunk.length());
        let mut kind = Kind { class, is_short };
        let mut digest = None;
        let (mut refusals, mut wait) = (0, RETRY_AFTER);
        loop {
            let attempt = async {
                let plan = plane.ids.take(&kind).await?;
                let chunk = self.upload(plane, &packed, plan, &mut digest).await?;
                self.commit(plane, chunk, digest.unwrap_or_default(), &packed.placements).await
            };
            match attempt.await {
                Ok(settled) => return Ok(settled),
                Err(failure) if failure.code == Code::ChunkRefused && refusals < MAX_REFUSALS => {
                    tracing::info!(%failure, "a chunk id was refused: taking fresh ones");
                    refusals += 1;
                    plane.ids.forget(&kind);
                }
                // As copies it needs fewer nodes, and stands the loss of as many.
                Err(failure) if kind.class.is_coded() && !kind.is_short && lacks_nodes(&failure) => {
                    tracing::warn!(%failure, class = %kind.class, "too few nodes for coded shards: copies are kept");
                    kind.is_short = true;
                }
                Err(failure) if failure.is_transient() && !plane.settings.is_over(started) => {
                    tracing::warn!(%failure, "an upload failed and is tried again");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(MAX_RETRY_AFTER);
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Makes the chunk durable under the id of `plan`; where it is then. The digest is needed for the commit only: it
    /// is computed, once, while the bytes are on their way.
    async fn upload(
        &self,
        plane: &Arc<DataPlane>,
        packed: &Packed,
        plan: ChunkPlan,
        digest: &mut Option<[u8; 32]>,
    ) -> Result<Arc<ChunkPlan>, Failure> {
        // Work for the time that the bytes are on their way.
        let meanwhile = async {
            let firsts = (0..).step_by(MAX_FRAME_DATA / BLOCK_SIZE);
            for (first, frame) in firsts.zip(&packed.cached) {
                plane.cache.insert(plan.chunk, Run::new(first, Bytes::copy_from_slice(frame)));
            }
            if digest.is_none() {
                *digest = Some(digest_of(&packed.chunk).await?);
            }
            Ok::<_, Failure>(())
        };
        let (shards, meanwhile) = futures::join!(plane.io.put(&packed.chunk, &plan), meanwhile);
        let shards = meanwhile.and(shards)?;
        let (length, encoding) = (packed.chunk.length(), packed.encoding.clone());
        Ok(Arc::new(ChunkPlan { length, encoding, shards, ..plan }))
    }

    async fn pack(&self, manner: Manner, buffers: Buffers) -> Result<Packed, Failure> {
        let (pieces, placements) = pack(self.layers.iter().map(|(_, layer)| &*layer.bytes));
        let length: usize = pieces.iter().map(Bytes::len).sum();
        let packing = move || {
            let frames = lay_out(pieces);
            let cached = if length <= KEEP_CACHED_BYTES { frames.clone() } else { Vec::new() };
            if manner.is_plain() {
                return Ok(Packed { chunk: PackedChunk::new(frames), encoding: None, placements, cached });
            }
            let (stored, encoding) = manner.encode(&frames, &buffers)?;
            let chunk = PackedChunk::new(stored);
            Ok(Packed { chunk, encoding: Some(encoding), placements, cached })
        };
        if length <= INLINE_PACK_BYTES {
            return packing();
        }
        let packed = tokio::task::spawn_blocking(packing).await;
        packed.map_err(|error| Failure::new(Code::InputOutput, format!("packing failed: {error}")))?
    }

    /// Seals the chunk and points the files at it, after the earlier layers of each; what became of each.
    async fn commit(
        &self,
        plane: &Arc<DataPlane>,
        chunk: Arc<ChunkPlan>,
        sha256: [u8; 32],
        placements: &[Placement],
    ) -> Result<Vec<Settled>, Failure> {
        self.wait_for_earlier().await;
        let durable = chunk
            .shards
            .iter()
            .filter_map(|shard| Some(SealedShard { index: shard.index, node: shard.node.as_ref()?.node }));
        let sealed = SealedChunk {
            chunk: chunk.chunk,
            length: chunk.length,
            sha256: sha256.to_vec().into(),
            shards: durable.collect(),
            encoding: chunk.encoding.clone(),
        };
        let files = self.layers.iter().zip(placements);
        let files: Option<Vec<_>> = files
            .map(|((inode, layer), placement)| inode.commit_of(layer.number, chunk.chunk, placement))
            .collect();
        let files = files.expect("a layer stays until its job settles it");
        let extents: Vec<_> = files.iter().map(|file| file.extents.clone()).collect();
        let asked = Instant::now();
        match plane.meta.change(request::Op::Commit(Commit { chunks: vec![sealed], files })).await? {
            reply::Result::Committed(committed) if committed.files.len() == self.layers.len() => {
                let results = committed.files.into_iter().zip(extents);
                let settle =
                    |(result, extents)| Settled { result, extents, chunk: Arc::clone(&chunk), asked };
                Ok(results.map(settle).collect())
            }
            _ => Err(Failure::new(
                Code::InputOutput,
                "the metadata server answered a commit with something else",
            )),
        }
    }
}

/// Whether nodes were missing or full.
fn lacks_nodes(failure: &Failure) -> bool {
    matches!(failure.code, Code::TooFewNodes | Code::NoSpace | Code::Unavailable)
}

/// The chunk's SHA-256, on a thread of its own when it takes long.
async fn digest_of(packed: &PackedChunk) -> Result<[u8; 32], Failure> {
    if packed.length() <= INLINE_PACK_BYTES as u64 {
        return Ok(packed.sha256());
    }
    let packed = packed.clone();
    let digest = tokio::task::spawn_blocking(move || packed.sha256());
    digest.await.map_err(|error| Failure::new(Code::InputOutput, format!("the digest failed: {error}")))
}
