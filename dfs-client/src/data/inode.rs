//! One file's data on this client: dirty layers, known extents, readers to be read ahead of, write-back errors.
//!
//! Everything is under one short lock, never held across an await. Lock order: the flusher's queue → this state → the
//! plane's table of dirty inodes. The metadata server's answers are ordered by their version: an older one is ignored,
//! so that a reply overtaken by another never brings an old size or old extents back.

use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Instant;

use dfs_proto::limits::MAX_FILE_SIZE;
use dfs_proto::meta::{ChunkPlan, Extent, FileCommit, FileResult, PlanReply};
use dfs_proto::{Attr, Class, Code, Failure, Ino, Timestamp};
use tokio::sync::watch;

use super::DataPlane;
use super::flusher::Urgency;
use super::layers::{Layers, Take, WriteAt};
use super::packer::Placement;
use super::plan::{KnownExtents, PlanAnswer};
use super::readahead::Readahead;
use super::segments::MAX_RUN;

/// Dirty bytes of one inode that are cut and uploaded in the background without waiting for more.
pub(super) const STREAM_CUT_BYTES: usize = 32 * 1024 * 1024;
/// Runs likewise: scattered small writes.
const STREAM_CUT_RUNS: usize = 4096;

/// A file's data, shared by all its handles on this client.
pub struct InodeData {
    pub(super) ino: Ino,
    pub(super) plane: Arc<DataPlane>,
    me: Weak<InodeData>,
    state: Mutex<State>,
    /// The number of the last layer that was settled: committed, or failed and told.
    settled: watch::Sender<u64>,
    /// One plan at a time is asked for.
    pub(super) planning: tokio::sync::Mutex<()>,
}

/// What the lock protects.
pub(super) struct State {
    /// The newest that the server told.
    pub(super) attr: Attr,
    pub(super) layers: Layers,
    pub(super) known: Option<KnownExtents>,
    pub(super) readahead: Readahead,
    failures: Failures,
}

/// How the data of a file is kept: what is packed together has this in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Keeping {
    pub(super) class: Class,
    /// 0: not encrypted.
    pub(super) data_key: u64,
}

/// Layers that could not be committed: their bytes are lost, and everybody concerned is told once.
#[derive(Debug, Default)]
struct Failures {
    count: u64,
    last: Option<Failure>,
    /// Told by a write or a flush.
    told: u64,
}

impl Failures {
    /// The last failure, if there was one after `seen`.
    fn since(&self, seen: u64) -> Option<Failure> {
        if self.count > seen { self.last.clone() } else { None }
    }
}

impl State {
    /// The end of the file as this client sees it.
    pub(super) fn size(&self) -> u64 {
        self.attr.size.max(self.layers.end())
    }

    /// Takes in attributes that were asked for at `asked`, unless they are older than what is known.
    pub(super) fn learn(&mut self, attr: &Attr, asked: Instant) {
        if attr.version < self.attr.version {
            return;
        }
        self.attr = attr.clone();
        match &mut self.known {
            Some(known) if known.version() == attr.version => known.validate(asked),
            // All holes: that needs no asking.
            known => *known = (attr.allocated_bytes == 0).then(|| KnownExtents::empty(attr, asked)),
        }
    }

    /// Takes in an answer to a plan likewise.
    pub(super) fn learn_plan(&mut self, answer: &PlanAnswer, asked: Instant) {
        self.learn(&answer.attr, asked);
        if answer.attr.version != self.attr.version {
            return;
        }
        match &mut self.known {
            Some(known) => known.merge(answer, asked),
            None => self.known = Some(KnownExtents::new(answer, asked)),
        }
    }
}

impl InodeData {
    pub(super) fn new(plane: Arc<DataPlane>, attr: &Attr) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            ino: Ino(attr.ino),
            plane,
            me: me.clone(),
            state: Mutex::new(State {
                attr: attr.clone(),
                layers: Layers::default(),
                known: None,
                readahead: Readahead::default(),
                failures: Failures::default(),
            }),
            settled: watch::Sender::new(0),
            planning: tokio::sync::Mutex::new(()),
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds an inode's data")
    }

    /// The inode number.
    pub fn ino(&self) -> Ino {
        self.ino
    }

    /// Takes in fresh attributes from the server, and with them the head of the extents if it came along. Extents of
    /// another version are dropped; an answer older than what is known is ignored.
    pub fn refresh(&self, attr: &Attr, head: Option<PlanReply>) {
        let now = Instant::now();
        let answer = head.and_then(|head| match PlanAnswer::check(head, 0) {
            Ok(answer) => answer,
            Err(failure) => {
                tracing::warn!(ino = %self.ino, %failure, "the head of the extents is refused");
                None
            }
        });
        let mut state = self.lock();
        state.learn(attr, now);
        if let Some(answer) = answer {
            state.learn_plan(&answer, now);
        }
    }

    /// `attr` as this client's processes must see it: with what is dirty here. Attributes older than what this client
    /// knows already are replaced by those.
    pub fn overlay(&self, attr: Attr) -> Attr {
        let state = self.lock();
        let mut seen = attr;
        if seen.version < state.attr.version {
            let atime = seen.atime.map(Timestamp::from).max(state.attr.atime.map(Timestamp::from));
            seen = Attr { atime: atime.map(Into::into), ..state.attr.clone() };
        }
        if state.layers.is_clean() {
            return seen;
        }
        seen.size = seen.size.max(state.layers.end());
        // How much of it covers what has extents already is not known: never more than the file is long.
        let most = seen.size.max(seen.allocated_bytes);
        seen.allocated_bytes = (seen.allocated_bytes + state.layers.bytes()).min(most);
        if let Some(mtime) = state.layers.mtime() {
            let changed = seen.ctime.map(Timestamp::from).unwrap_or_default().max(mtime);
            seen.mtime = Some(mtime.into());
            seen.ctime = Some(changed.into());
        }
        if state.layers.kills_set_id() {
            seen.mode &= !0o4000;
            if seen.mode & 0o010 != 0 {
                seen.mode &= !0o2000;
            }
        }
        seen
    }

    /// Writes without waiting: the offset used, or `None` when the budget is full or there is something to report; then
    /// call [`Self::write`]. May be called outside the runtime.
    pub fn try_write(&self, at: WriteAt, data: &[u8], kill_set_id: bool) -> Option<u64> {
        if data.len() > MAX_RUN {
            return None;
        }
        let written = {
            let mut state = self.lock();
            let offset = self.check_write(&mut state, at, data.len()).ok()?;
            let worst = state.layers.worst_cost(offset, data.len());
            let reserved = self.plane.budget.try_reserve(worst)?;
            let spent = self.put(&mut state, at, offset, data, kill_set_id);
            reserved.spend(spent);
            (offset, self.wants_flush(&state))
        };
        self.after_write(written.1);
        Some(written.0)
    }

    /// Writes; waits while the budget is full. Fails when an earlier write-back of this file failed and nobody was told
    /// yet, with EFBIG beyond the largest file, and after the mount's timeout when nothing can be written back.
    pub async fn write(&self, at: WriteAt, data: &[u8], kill_set_id: bool) -> Result<u64, Failure> {
        let mut first = None;
        let mut rest = data;
        loop {
            let (piece, more) = rest.split_at(rest.len().min(MAX_RUN));
            let at = match (at, first) {
                (WriteAt::Offset(offset), _) => {
                    WriteAt::Offset(offset.saturating_add((data.len() - rest.len()) as u64))
                }
                (WriteAt::End, _) => WriteAt::End,
            };
            let offset = self.write_piece(at, piece, kill_set_id).await?;
            first.get_or_insert(offset);
            rest = more;
            if rest.is_empty() {
                return Ok(first.unwrap_or(offset));
            }
        }
    }

    async fn write_piece(&self, at: WriteAt, data: &[u8], kill_set_id: bool) -> Result<u64, Failure> {
        let mut reserved = None;
        loop {
            let worst = {
                let mut state = self.lock();
                let offset = self.check_write(&mut state, at, data.len())?;
                let worst = state.layers.worst_cost(offset, data.len());
                let enough =
                    reserved.take().filter(|reserved: &super::budget::Reserved| reserved.bytes() >= worst);
                if let Some(reserved) = enough.or_else(|| self.plane.budget.try_reserve(worst)) {
                    reserved.spend(self.put(&mut state, at, offset, data, kill_set_id));
                    let wants_flush = self.wants_flush(&state);
                    drop(state);
                    self.after_write(wants_flush);
                    return Ok(offset);
                }
                worst
            };
            self.plane.write_back(|_| true);
            reserved = Some(self.plane.budget.reserve(worst).await);
        }
    }

    /// Where the write goes, if it may.
    fn check_write(&self, state: &mut State, at: WriteAt, length: usize) -> Result<u64, Failure> {
        if let Some(failure) = state.failures.since(state.failures.told) {
            state.failures.told = state.failures.count;
            return Err(failure);
        }
        let offset = match at {
            WriteAt::Offset(offset) => offset,
            WriteAt::End => state.size(),
        };
        match offset.checked_add(length as u64) {
            Some(end) if end <= MAX_FILE_SIZE => Ok(offset),
            _ => Err(Failure::new(Code::TooBig, "a file is at most 2^63 - 1 bytes long")),
        }
    }

    /// Copies the bytes in; what they cost.
    fn put(&self, state: &mut State, at: WriteAt, offset: u64, data: &[u8], kill_set_id: bool) -> usize {
        if data.is_empty() {
            return 0;
        }
        if state.layers.is_clean()
            && let Some(me) = self.me.upgrade()
        {
            self.plane.became_dirty(me, class_of(&state.attr).ok());
        }
        state.layers.write(at, offset, data, kill_set_id, (Instant::now(), Timestamp::now()))
    }

    fn wants_flush(&self, state: &State) -> bool {
        state.layers.waiting_bytes() >= STREAM_CUT_BYTES || state.layers.active_runs() >= STREAM_CUT_RUNS
    }

    fn after_write(&self, wants_flush: bool) {
        if wants_flush && let Some(me) = self.me.upgrade() {
            self.plane.flusher.submit(&self.plane, [me], Urgency::Background);
        }
        if self.plane.budget.is_tight() && !self.plane.flusher.is_busy() {
            self.plane.write_back(|_| true);
        }
    }

    /// Makes everything that was written up to now durable on the nodes and commits it at the metadata server. When the
    /// future is dropped, the flush goes on.
    pub async fn flush(&self) -> Result<(), Failure> {
        let (last, failures) = {
            let state = self.lock();
            (state.layers.last_number(), state.failures.count)
        };
        if *self.settled.borrow() < last
            && let Some(me) = self.me.upgrade()
        {
            self.plane.flusher.submit(&self.plane, [me], Urgency::Waited);
            self.wait_settled(last).await;
        }
        let mut state = self.lock();
        match state.failures.since(failures) {
            None => Ok(()),
            Some(failure) => {
                state.failures.told = state.failures.count;
                Err(failure)
            }
        }
    }

    /// Whether something here is not committed yet.
    pub fn is_dirty(&self) -> bool {
        !self.lock().layers.is_clean()
    }

    /// Forgets dirty bytes at and beyond `size`, for a file about to be truncated. What is already on its way to the
    /// server is not called back: flush before the truncation is sent.
    pub fn discard_from(&self, size: u64) {
        let mut state = self.lock();
        let freed = state.layers.discard_from(size);
        self.plane.budget.release(freed);
        if freed > 0 && state.layers.is_clean() {
            self.plane.became_clean(self.ino);
        }
    }

    /// How many write-backs of this file failed so far: where a new handle's `seen` begins.
    pub fn errors_seen_by_now(&self) -> u64 {
        self.lock().failures.count
    }

    /// The last failure of a write-back that happened since `seen`, which then has seen it.
    pub fn errors_since(&self, seen: &mut u64) -> Option<Failure> {
        let mut state = self.lock();
        let failure = state.failures.since(*seen);
        *seen = state.failures.count;
        state.failures.told = state.failures.count;
        failure
    }

    // ---- For the flusher ----

    /// How the file's data is kept.
    pub(super) fn keeping(&self) -> Result<Keeping, Failure> {
        let state = self.lock();
        Ok(Keeping { class: class_of(&state.attr)?, data_key: state.attr.data_key })
    }

    /// Takes the next layer to flush, if it is small enough.
    pub(super) fn take_layer(&self, most_bytes: usize, most_extents: usize) -> Take {
        self.lock().layers.take(most_bytes, most_extents)
    }

    /// Whether a flush would still find something to take.
    pub(super) fn is_waiting(&self) -> bool {
        self.lock().layers.is_waiting()
    }

    /// When the oldest byte that no flush has taken was written.
    pub(super) fn waiting_since(&self) -> Option<Instant> {
        self.lock().layers.waiting_since()
    }

    /// What to commit of a layer.
    pub(super) fn commit_of(&self, number: u64, chunk: u64, placement: &Placement) -> Option<FileCommit> {
        self.lock().layers.commit(self.ino, number, chunk, placement)
    }

    /// Waits until the layer `number` and all before it are settled.
    pub(super) async fn wait_settled(&self, number: u64) {
        let settled = self.settled.subscribe().wait_for(|settled| *settled >= number).await.map(drop);
        settled.expect("the sender lives as long as the inode");
    }

    /// A layer was committed, or never will be. The extents known are of the commit's version before the layer goes, so
    /// that a reader sees its bytes in one of them.
    pub(super) fn settle(&self, number: u64, outcome: Result<Settled, Failure>) {
        let mut stale = false;
        {
            let mut state = self.lock();
            let shifted = match outcome.and_then(|settled| self.committed(&mut state, settled)) {
                Ok(shifted) => shifted,
                Err(failure) => {
                    tracing::error!(ino = %self.ino, %failure, "what was written is lost");
                    state.failures.count += 1;
                    state.failures.last = Some(failure);
                    stale = true;
                    0
                }
            };
            let cost = state.layers.settle(number);
            if shifted != 0 {
                state.layers.shift(shifted);
                stale = true;
            }
            self.plane.budget.release(cost);
            if state.layers.is_clean() {
                self.plane.became_clean(self.ino);
            }
        }
        self.settled.send_replace(number);
        if stale {
            (self.plane.settings.on_stale)(self.ino);
        }
    }
}

impl InodeData {
    /// Takes in what the server says of a commit; how far it moved the layer's bytes.
    fn committed(&self, state: &mut State, settled: Settled) -> Result<u64, Failure> {
        let Settled { result, extents, chunk, asked } = settled;
        match (Code::try_from(result.code), result.attr) {
            (Ok(Code::Ok), Some(attr)) => {
                let known = state.known.as_mut().filter(|_| result.shifted == 0);
                let followed = known.is_some_and(|known| known.committed(&attr, &extents, &chunk, asked));
                if !followed {
                    state.known = None;
                }
                state.learn(&attr, asked);
                Ok(result.shifted)
            }
            // The file is gone, and with it these bytes.
            (Ok(Code::Stale), _) => {
                state.known = None;
                Ok(0)
            }
            _ => {
                let message = format!("the metadata server refused what was written to inode {}", self.ino);
                Err(dfs_proto::Error { code: result.code, message }.into())
            }
        }
    }
}

/// A layer's commit, answered.
#[derive(Debug)]
pub(super) struct Settled {
    pub(super) result: FileResult,
    /// As they were committed, in `chunk`.
    pub(super) extents: Vec<Extent>,
    pub(super) chunk: Arc<ChunkPlan>,
    /// When the commit was sent.
    pub(super) asked: Instant,
}

impl Drop for InodeData {
    fn drop(&mut self) {
        self.plane.closed(self.ino);
    }
}

fn class_of(attr: &Attr) -> Result<Class, Failure> {
    attr.class.parse().map_err(|_| {
        let text =
            format!("inode {} has the class {:?}, which this program does not know", attr.ino, attr.class);
        Failure::new(Code::VersionUnknown, text)
    })
}
