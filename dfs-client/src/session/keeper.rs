//! Keeps a session alive: heartbeats, the stream of events, reclaim after a restart of the server, a new session
//! after the old one was fenced.
//!
//! Guarantees that no request goes on between the moment a restart or a fence is noticed and the moment everything
//! held is reclaimed. Mending never takes a slot, since requests that wait for it may hold all of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dfs_proto::limits::{HEARTBEAT, MAX_RECLAIM_ITEMS, SESSION_SLOTS};
use dfs_proto::meta::{
    Event, Heartbeat, OpenSession, Reclaim, Reply, Request, SessionOpened, WatchRequest, event, reply,
    request,
};
use dfs_proto::{ClusterId, Code, Failure, Ino, PROTOCOL_VERSION};
use tokio::sync::{Notify, watch as channel};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::calls::pauses;
use super::door::{Door, Missed, is_foreign};
use super::slots::Slots;
use super::{Core, Holdings, SessionSettings};

/// Whatever the server says, heartbeats are between these apart.
const HEARTBEAT_BOUNDS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(60));
/// After a heartbeat that failed, the next one comes sooner.
const HURRY: u32 = 5;

/// One session as the server knows it.
pub(super) struct Incarnation {
    pub(super) session: u64,
    pub(super) epoch: u64,
    pub(super) slots: Arc<Slots>,
    heartbeat: Duration,
}

pub(super) struct State {
    pub(super) incarnation: Arc<Incarnation>,
    pub(super) phase: Phase,
    boot: u64,
    /// The server says that the incarnation is over.
    expired: bool,
}

pub(super) enum Phase {
    Ready,
    /// Requests wait.
    Mending,
    /// No request can succeed; the keeper still tries to mend it.
    Broken(Failure),
}

/// Opens the first session, and with it the core.
pub(super) async fn open(settings: SessionSettings) -> Result<Arc<Core>, Failure> {
    let door = Door::new(&settings.metas)?;
    let deadline = settings.timeout.map(|timeout| Instant::now() + timeout);
    let mut pauses = pauses();
    let (opened, boot) = loop {
        let failure = match open_session(&door, &settings.client, None).await {
            Ok(opened) => break opened,
            Err(failure) => failure,
        };
        let pause = pauses.next().unwrap_or(HEARTBEAT);
        if !failure.is_transient() || deadline.is_some_and(|deadline| Instant::now() + pause >= deadline) {
            let names = door.names();
            let message = format!("no session with the metadata server ({names}): {failure}");
            return Err(Failure::new(failure.code, message));
        }
        sleep(pause).await;
    };
    let cluster = ClusterId::from_slice(&opened.cluster).ok_or_else(|| {
        Failure::new(Code::VersionUnknown, "the metadata server does not say which cluster it has")
    })?;
    let state = State { incarnation: incarnation(&opened), phase: Phase::Ready, boot, expired: false };
    Ok(Arc::new(Core {
        settings,
        door,
        cluster,
        state: channel::Sender::new(state),
        mend: Notify::new(),
        generation: AtomicU64::new(0),
        holdings: Default::default(),
        stop: CancellationToken::new(),
    }))
}

/// Heartbeats and mends until the session is stopped.
pub(super) async fn keep(core: Arc<Core>) {
    let mut silent = false;
    loop {
        let interval = core.state.borrow().incarnation.heartbeat;
        let pause = if silent { interval / HURRY } else { interval };
        tokio::select! {
            () = core.stop.cancelled() => return,
            () = core.mend.notified() => {}
            () = sleep(pause) => match core.heartbeat(interval).await {
                Ok(()) if silent => {
                    tracing::info!("the metadata server answers again");
                    silent = false;
                }
                Ok(()) => {}
                Err(missed) if silent => tracing::debug!("no answer to a heartbeat: {}", missed.failure()),
                Err(missed) => {
                    let (names, failure) = (core.door.names(), missed.failure());
                    tracing::warn!("the metadata server ({names}) does not answer: {failure}; operations wait for it");
                    silent = true;
                }
            },
        }
        if !matches!(core.state.borrow().phase, Phase::Ready) {
            tokio::select! {
                () = core.stop.cancelled() => return,
                () = core.mend() => {}
            }
        }
    }
}

/// Keeps the stream of events open until the session is stopped.
pub(super) async fn watch(core: Arc<Core>) {
    let mut pauses = pauses();
    loop {
        let incarnation = core.state.borrow().incarnation.clone();
        let mut state = core.state.subscribe();
        let replaced = async {
            let _ = state.wait_for(|state| !Arc::ptr_eq(&state.incarnation, &incarnation)).await;
        };
        let ended = tokio::select! {
            () = core.stop.cancelled() => return,
            () = replaced => Ok(()),
            ended = core.follow(&incarnation) => ended,
        };
        let pause = match ended {
            Ok(()) => {
                pauses = self::pauses();
                Duration::ZERO
            }
            Err(failure) => {
                tracing::debug!("the stream of events ended: {failure}");
                pauses.next().unwrap_or(HEARTBEAT)
            }
        };
        tokio::select! {
            () = core.stop.cancelled() => return,
            () = sleep(pause) => {}
        }
    }
}

impl Core {
    /// A server that started after the one known so far has lost what this session holds.
    pub(super) fn note_answer(&self, reply: &Reply) {
        if !is_foreign(reply) {
            self.note_boot(reply.boot);
        }
    }

    fn note_boot(&self, boot: u64) {
        let restarted = self.state.send_if_modified(|state| {
            let restarted = boot > state.boot;
            if restarted {
                state.boot = boot;
                state.phase = Phase::Mending;
            }
            restarted
        });
        if restarted {
            tracing::info!("the metadata server was restarted; reclaiming what is open and locked");
            self.mend.notify_one();
        }
    }

    /// The server says that this session is over.
    pub(super) fn note_expired(&self, (session, epoch): (u64, u64)) {
        let news = self.state.send_if_modified(|state| {
            let current = (state.incarnation.session, state.incarnation.epoch) == (session, epoch);
            let news = current && !state.expired;
            if news {
                state.expired = true;
                state.phase = Phase::Mending;
            }
            news
        });
        if news {
            tracing::warn!("the session with the metadata server is over; opening a new one");
            self.mend.notify_one();
        }
    }

    async fn heartbeat(&self, deadline: Duration) -> Result<(), Missed> {
        let incarnation = self.state.borrow().incarnation.clone();
        let request = self.request(&incarnation, request::Op::Heartbeat(Heartbeat {}));
        let reply = self.door.call_within(request, deadline).await?;
        self.note_answer(&reply);
        if let Some(reply::Result::Error(error)) = reply.result {
            match Failure::from(error) {
                failure if failure.code == Code::SessionExpired => {
                    self.note_expired((incarnation.session, incarnation.epoch));
                }
                failure => tracing::warn!("the metadata server refused a heartbeat: {failure}"),
            }
        }
        Ok(())
    }

    /// Until everything held is reclaimed under a session that lives.
    async fn mend(&self) {
        let mut pauses = pauses();
        let mut told = false;
        while let Err(failure) = self.try_mend().await {
            let broken = !failure.is_transient() && failure.code != Code::SessionExpired;
            if !told && broken {
                tracing::error!("the session with the metadata server cannot be mended: {failure}");
                told = true;
            }
            if broken {
                self.state.send_modify(|state| state.phase = Phase::Broken(failure));
            }
            sleep(pauses.next().unwrap_or(HEARTBEAT)).await;
        }
        tracing::info!("the session with the metadata server is whole again");
    }

    async fn try_mend(&self) -> Result<(), Failure> {
        let holdings = self.holdings.get().and_then(std::sync::Weak::upgrade);
        if self.state.borrow().expired {
            let (opened, boot) = open_session(&self.door, &self.settings.client, Some(self.cluster)).await?;
            self.state.send_modify(|state| {
                state.incarnation = incarnation(&opened);
                state.boot = boot;
                state.expired = false;
            });
            if let Some(holdings) = &holdings {
                holdings.session_lost();
            }
        }
        let (incarnation, boot) = {
            let state = self.state.borrow();
            (state.incarnation.clone(), state.boot)
        };
        self.generation.fetch_add(1, Ordering::SeqCst);
        if let Some(holdings) = &holdings {
            self.reclaim(&incarnation, boot, &**holdings).await?;
        }
        self.state.send_if_modified(|state| {
            let whole = state.boot == boot && !state.expired;
            if whole {
                state.phase = Phase::Ready;
            }
            whole
        });
        match self.state.borrow().phase {
            Phase::Ready => Ok(()),
            _ => Err(Failure::new(Code::Unavailable, "the server was restarted again")),
        }
    }

    async fn reclaim(
        &self,
        incarnation: &Incarnation,
        boot: u64,
        holdings: &dyn Holdings,
    ) -> Result<(), Failure> {
        let open_inos: Vec<u64> = holdings.open_inos().into_iter().map(|ino| ino.0).collect();
        let locks = holdings.locks();
        let mut pages: Vec<Reclaim> = Vec::new();
        for inos in open_inos.chunks(MAX_RECLAIM_ITEMS) {
            pages.push(Reclaim { open_inos: inos.to_vec(), ..Default::default() });
        }
        for locks in locks.chunks(MAX_RECLAIM_ITEMS) {
            pages.push(Reclaim { locks: locks.to_vec(), ..Default::default() });
        }
        // Also with nothing to reclaim: the server waits for the word.
        pages.push(Reclaim { complete: true, ..Default::default() });
        for page in pages {
            let request = self.request(incarnation, request::Op::Reclaim(page));
            let reply = self.door.call(request).await.map_err(|missed| missed.failure().clone())?;
            self.note_answer(&reply);
            if reply.boot != boot && !is_foreign(&reply) {
                return Err(Failure::new(Code::Unavailable, "the server was restarted while reclaiming"));
            }
            match reply.result {
                Some(reply::Result::Reclaimed(reclaimed)) => {
                    let gone: Vec<Ino> = reclaimed.stale_inos.into_iter().map(Ino).collect();
                    if !gone.is_empty() || !reclaimed.lost_locks.is_empty() {
                        holdings.not_reclaimed(&gone, &reclaimed.lost_locks);
                    }
                }
                Some(reply::Result::Error(error)) => {
                    let failure = Failure::from(error);
                    if failure.code == Code::SessionExpired {
                        self.note_expired((incarnation.session, incarnation.epoch));
                    }
                    return Err(failure);
                }
                _ => return Err(unexpected("reclaim")),
            }
        }
        Ok(())
    }

    /// Passes events on until the stream ends.
    async fn follow(&self, incarnation: &Incarnation) -> Result<(), Failure> {
        let request = WatchRequest { session: incarnation.session, epoch: incarnation.epoch };
        let mut stream = self.door.watch(request).await?;
        while let Some(event) = stream.message().await? {
            if self.stop.is_cancelled() {
                break;
            }
            self.heed(incarnation, event);
        }
        Err(Failure::new(Code::Unavailable, "the server closed the stream"))
    }

    fn heed(&self, incarnation: &Incarnation, event: Event) {
        self.note_boot(event.boot);
        let holdings = self.holdings.get().and_then(std::sync::Weak::upgrade);
        match event.event {
            Some(event::Event::Fenced(fenced)) => {
                tracing::warn!("the metadata server ended the session: {}", fenced.reason);
                self.note_expired((incarnation.session, incarnation.epoch));
            }
            // Whoever waited while no stream stood may have missed its event.
            Some(event::Event::Hello(_)) => holdings.iter().for_each(|holdings| holdings.unlocked(None)),
            Some(event::Event::Unlocked(unlocked)) => {
                holdings.iter().for_each(|holdings| holdings.unlocked(Some(Ino(unlocked.ino))));
            }
            None => tracing::debug!("an event this program does not know"),
        }
    }
}

/// One attempt. With a cluster: only a session there will do.
async fn open_session(
    door: &Door,
    client: &str,
    cluster: Option<ClusterId>,
) -> Result<(SessionOpened, u64), Failure> {
    let op = request::Op::OpenSession(OpenSession {
        client: client.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        protocol: PROTOCOL_VERSION,
    });
    let known = cluster.map_or_else(Default::default, ClusterId::to_bytes);
    let request = Request { cluster: known.clone(), op: Some(op), ..Default::default() };
    let reply = door.call(request).await.map_err(|missed| missed.failure().clone())?;
    match reply.result {
        Some(reply::Result::SessionOpened(opened)) if cluster.is_none() || opened.cluster == known => {
            Ok((opened, reply.boot))
        }
        Some(reply::Result::SessionOpened(_)) => {
            Err(Failure::new(Code::WrongCluster, "this address now belongs to another cluster"))
        }
        Some(reply::Result::Error(error)) => Err(error.into()),
        _ => Err(unexpected("opening a session")),
    }
}

fn incarnation(opened: &SessionOpened) -> Arc<Incarnation> {
    let heartbeat = match opened.heartbeat_ms {
        0 => HEARTBEAT,
        ms => Duration::from_millis(ms).clamp(HEARTBEAT_BOUNDS.0, HEARTBEAT_BOUNDS.1),
    };
    Arc::new(Incarnation {
        session: opened.session,
        epoch: opened.epoch,
        slots: Slots::new(opened.slots.clamp(1, SESSION_SLOTS)),
        heartbeat,
    })
}

fn unexpected(what: &str) -> Failure {
    Failure::new(Code::VersionUnknown, format!("an answer this program does not know to {what}"))
}
