//! The state machine itself: runs one job after another on the store and what is not durable yet, and gathers their
//! writes and answers into groups. Exactly one thread is in here at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dfs_proto::meta::{Reply, Request, reply, request};
use dfs_proto::{ClusterId, Code, Epoch, Failure, SessionId, Timestamp, limits};
use prost::Message;

use super::admission;
use super::inbox::Gathered;
use super::job::{Answer, Content, Job, Work};
use super::transaction::{Overlay, Transaction};
use crate::live::Live;
use crate::ops::{self, Context, Settings};
use crate::store::records::Slot;
use crate::store::space::Space;
use crate::store::{Batch, Store, keys};

/// Answers in one group.
const GROUP_ANSWERS: usize = 1024;
/// Keys written by one group, but for what its last operation adds.
const GROUP_KEYS: usize = 32 * 1024;

/// The state and what operations need beside it.
pub(super) struct Core {
    store: Arc<dyn Store>,
    live: Live,
    settings: Settings,
    clock: Clock,
    pub(super) in_flight: Option<Arc<InFlight>>,
    space: Arc<Space>,
}

/// What ran since the last commit: one atomic batch, and who waits for it.
#[derive(Default)]
pub(super) struct Group {
    pub(super) batch: Batch,
    pub(super) answers: Vec<Answer>,
    /// Jobs run since it began.
    ran: usize,
}

/// A group that is being committed. Its writes hide the store's until they are there.
pub(super) struct InFlight {
    pub(super) batch: Batch,
    /// It would survive a power cut: answers that rest on it may leave.
    pub(super) durable: AtomicBool,
    /// The store shows it to everybody.
    pub(super) in_store: AtomicBool,
}

impl Group {
    pub(super) fn gathered(&self) -> Gathered {
        Gathered {
            pending: !self.answers.is_empty(),
            full: self.answers.len() >= GROUP_ANSWERS || self.batch.len() >= GROUP_KEYS,
            ran: self.ran,
        }
    }
}

impl Core {
    pub(super) fn new(store: Arc<dyn Store>, live: Live, settings: Settings, space: Arc<Space>) -> Self {
        Self { store, live, settings, clock: Clock::start(), in_flight: None, space }
    }

    /// Runs one job. Its answer joins the group when it must wait for the group's commit, and leaves at once otherwise.
    pub(super) fn run(&mut self, job: Job, group: &mut Group) {
        self.forget_what_is_in_store();
        group.ran += 1;
        let Job { work, permit } = job;
        let (content, wait) = match work {
            Work::Call(request, to) => {
                let (reply, wait) = self.answer(&request, group);
                (Content::Reply(Box::new(reply), to), wait)
            }
            Work::Internal(op, to) => {
                let (result, wait) = self.run_in(group, SessionId(0), |cx| ops::run_internal(cx, op));
                (Content::Progress(result, to), wait)
            }
            Work::Inspect(look) => return look(&mut self.live, self.clock.uptime()),
        };
        let answer = Answer { content, permit };
        match wait {
            true => group.answers.push(answer),
            false => answer.send(),
        }
    }

    /// Answers a request that only reads, if everything that it may read is durable.
    pub(super) fn run_now(&mut self, request: &Request, group: &mut Group) -> Option<Reply> {
        self.forget_what_is_in_store();
        let is_durable = |group: &Arc<InFlight>| group.durable.load(Ordering::Acquire);
        if !group.batch.is_empty() || !self.in_flight.as_ref().is_none_or(is_durable) {
            return None;
        }
        let (reply, wait) = self.answer(request, group);
        debug_assert!(!wait, "it reads what is durable, and writes nothing");
        (!wait).then_some(reply)
    }

    fn forget_what_is_in_store(&mut self) {
        if self.in_flight.as_ref().is_some_and(|group| group.in_store.load(Ordering::Acquire)) {
            self.in_flight = None;
        }
    }

    /// The reply to a request, and whether it rests on what is not durable yet.
    fn answer(&mut self, request: &Request, group: &mut Group) -> (Reply, bool) {
        let (result, wait) = self.call(request, group);
        if let Err(failure) = &result {
            tell(failure);
        }
        let result = result.unwrap_or_else(|failure| reply::Result::Error(failure.into()));
        (Reply { boot: self.live.sessions.boot(), result: Some(result) }, wait)
    }

    /// From now on `group` is being committed; the next one starts empty above it.
    pub(super) fn hand_over(&mut self, batch: Batch) -> Arc<InFlight> {
        let in_flight =
            Arc::new(InFlight { batch, durable: AtomicBool::new(false), in_store: AtomicBool::new(false) });
        self.in_flight = Some(in_flight.clone());
        in_flight
    }

    /// A request: who may send it, whether it was sent before, then the operation. The result, and whether it rests on
    /// what is not durable yet.
    fn call(&mut self, request: &Request, group: &mut Group) -> (Result<reply::Result, Failure>, bool) {
        let op = match self.admit(request) {
            Ok(op) => op,
            Err(failure) => return (Err(failure), false),
        };
        let session = SessionId(request.session);
        self.run_in(group, session, |cx| {
            if request.number == 0 {
                return ops::run(cx, op);
            }
            if let Some(result) = repeated(cx, request)? {
                ops::repeat(cx, op, &result)?;
                return Ok(result);
            }
            let result = ops::run(cx, op)?;
            let reply = Reply { boot: 0, result: Some(result.clone()) };
            let slot = Slot { number: request.number, reply: reply.encode_to_vec() };
            cx.tx.put(keys::slot(session, request.slot), &slot);
            Ok(result)
        })
    }

    /// Checks everything about a request that is not the operation's own business.
    fn admit<'r>(&mut self, request: &'r Request) -> Result<&'r request::Op, Failure> {
        let Some(op) = &request.op else {
            let message =
                "the metadata server does not know the operation; install the same version everywhere";
            return Err(Failure::new(Code::VersionUnknown, message));
        };
        if !request.cluster.is_empty() && request.cluster[..] != self.settings.cluster.0 {
            let told = ClusterId::from_slice(&request.cluster);
            let told =
                told.map_or_else(|| "something that is no cluster's id".to_owned(), |id| id.to_string());
            let message =
                format!("this metadata server serves cluster {}, not {told}", self.settings.cluster);
            return Err(Failure::new(Code::WrongCluster, message));
        }
        let rules = admission::rules(op);
        let invalid = |message: &str| Err(Failure::new(Code::Invalid, message));
        if request.session != 0 {
            let session = SessionId(request.session);
            self.live.sessions.check(session, Epoch(request.epoch))?;
            self.live.sessions.heard(session, self.clock.uptime());
            if request.number != 0 && request.slot >= limits::SESSION_SLOTS {
                return invalid("the request names a slot that its session does not have");
            }
        } else if rules.session {
            return invalid("the operation needs a session");
        } else if request.number != 0 {
            return invalid("a numbered request needs a session");
        }
        if rules.number && request.number == 0 {
            return invalid("a changing request needs a number");
        }
        if rules.grows && self.space.is_nearly_full() {
            let message = "the metadata server's disk is nearly full: only what frees space is accepted";
            return Err(Failure::new(Code::NoSpace, message));
        }
        Ok(op)
    }

    /// Runs something in a transaction of its own; its writes join the group unless it fails. Also says whether the
    /// result must wait for a commit.
    fn run_in<T>(
        &mut self,
        group: &mut Group,
        session: SessionId,
        run: impl FnOnce(&mut Context<'_, '_>) -> Result<T, Failure>,
    ) -> (Result<T, Failure>, bool) {
        let mut overlays = vec![Overlay { batch: &group.batch, durable: false }];
        overlays.extend(self.in_flight.as_deref().map(|InFlight { batch, durable, .. }| Overlay {
            batch,
            durable: durable.load(Ordering::Acquire),
        }));
        let mut tx = Transaction::new(&*self.store, overlays);
        let mut cx = Context {
            tx: &mut tx,
            live: &mut self.live,
            now: self.clock.now(),
            uptime: self.clock.uptime(),
            session,
            settings: &self.settings,
        };
        let result = run(&mut cx);
        let (mut writes, read_uncommitted) = tx.finish();
        let mut wait = read_uncommitted;
        if result.is_ok() {
            wait |= !writes.is_empty();
            group.batch.append(&mut writes);
        }
        (result, wait)
    }
}

/// The stored reply when this request is the last one of its slot again; a failure when it is an older one.
fn repeated(cx: &mut Context<'_, '_>, request: &Request) -> Result<Option<reply::Result>, Failure> {
    let Some(slot) = cx.tx.get::<Slot>(&keys::slot(cx.session, request.slot))? else { return Ok(None) };
    if request.number > slot.number {
        return Ok(None);
    }
    if request.number < slot.number {
        let message = format!("request {} came after request {} of its slot", request.number, slot.number);
        return Err(Failure::new(Code::Invalid, message));
    }
    let bad = || Failure::new(Code::Corrupt, "the metadata store holds a bad reply for a repeated request");
    let reply = Reply::decode(&slot.reply[..]).map_err(|_| bad())?;
    reply.result.map(Some).ok_or_else(bad)
}

/// Failures of the store itself are an operator's business; the others are the caller's.
fn tell(failure: &Failure) {
    if matches!(failure.code, Code::InputOutput | Code::Corrupt) {
        tracing::error!(%failure, "an operation failed on the store");
    }
}

/// The time that operations are given.
struct Clock {
    started: Instant,
    latest: Timestamp,
}

impl Clock {
    fn start() -> Self {
        Self { started: Instant::now(), latest: Timestamp::now() }
    }

    /// The wall clock, but never before what it said last.
    fn now(&mut self) -> Timestamp {
        self.latest = self.latest.max(Timestamp::now());
        self.latest
    }

    fn uptime(&self) -> Duration {
        self.started.elapsed()
    }
}
