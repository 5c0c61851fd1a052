//! A metadata server in memory, for tests: sessions, slots, a namespace, locks; and faults on demand.
//!
//! It keeps the contract of `meta.proto` as far as the session and the face of the library depend on it, and nothing
//! more: no data, no permissions.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use dfs_proto::meta::meta_server::{Meta, MetaServer};
use dfs_proto::meta::request::Op;
use dfs_proto::meta::*;
use dfs_proto::{Attr, Code, Failure, FileKind};
use futures::{Stream, StreamExt};
use tokio::sync::broadcast;
use tokio_stream::wrappers::{BroadcastStream, TcpListenerStream};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Response, Status, Streaming};

pub(crate) const CLUSTER: [u8; 16] = [7; 16];

/// What goes wrong with the next request of a kind.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Carried out, but the answer is lost.
    LoseAnswer,
    /// Never carried out, and nothing is answered but that the connection broke.
    LoseRequest,
    /// The stream of calls that it came on breaks.
    BreakStream,
    /// Answered with an error of this code.
    Answer(Code),
}

struct Node {
    attr: Attr,
    children: BTreeMap<Bytes, u64>,
    xattrs: BTreeMap<Bytes, Bytes>,
}

#[derive(Default)]
struct Client {
    epoch: u64,
    slots: HashMap<u32, (u64, reply::Result)>,
    open: HashSet<u64>,
    reclaimed: bool,
}

pub(crate) struct State {
    boot: u64,
    last_session: u64,
    last_ino: u64,
    sessions: HashMap<u64, Client>,
    nodes: HashMap<u64, Node>,
    locks: Vec<(u64, u64, LockRange)>,
    faults: VecDeque<(&'static str, Fault)>,
    grace: bool,
    /// Every operation that took effect, in order.
    pub(crate) applied: Vec<Op>,
    /// Every request that came, by its operation's name.
    pub(crate) received: Vec<&'static str>,
    pub(crate) last_requests: Vec<Request>,
}

#[derive(Clone)]
pub(crate) struct FakeMeta {
    state: Arc<Mutex<State>>,
    events: broadcast::Sender<(u64, Event)>,
    pub(crate) address: String,
    /// The server ends with its last owner.
    _stop: Arc<DropGuard>,
}

fn name_of(op: &Op) -> &'static str {
    match op {
        Op::OpenSession(_) => "open_session",
        Op::CloseSession(_) => "close_session",
        Op::Heartbeat(_) => "heartbeat",
        Op::Reclaim(_) => "reclaim",
        Op::Lookup(_) => "lookup",
        Op::GetAttr(_) => "get_attr",
        Op::SetAttr(_) => "set_attr",
        Op::Create(_) => "create",
        Op::Unlink(_) => "unlink",
        Op::Open(_) => "open",
        Op::Close(_) => "close",
        Op::SetLock(_) => "set_lock",
        _ => "other",
    }
}

fn failed<T>(code: Code) -> Result<T, Failure> {
    Err(code.into())
}

impl FakeMeta {
    pub(crate) async fn start() -> Self {
        let listener =
            tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind a port of the kernel's choice");
        let address = listener.local_addr().expect("it is bound").to_string();
        let root = Attr {
            ino: 1,
            kind: FileKind::Directory.into(),
            mode: 0o755,
            nlink: 2,
            version: 1,
            ..Default::default()
        };
        let node = Node { attr: root, children: BTreeMap::new(), xattrs: BTreeMap::new() };
        let state = State {
            boot: 1,
            last_session: 0,
            last_ino: 1,
            sessions: HashMap::new(),
            nodes: HashMap::from([(1, node)]),
            locks: Vec::new(),
            faults: VecDeque::new(),
            grace: false,
            applied: Vec::new(),
            received: Vec::new(),
            last_requests: Vec::new(),
        };
        let stop = CancellationToken::new();
        let fake = Self {
            state: Arc::new(Mutex::new(state)),
            events: broadcast::channel(64).0,
            address,
            _stop: Arc::new(stop.clone().drop_guard()),
        };
        let service = Service { state: fake.state.clone(), events: fake.events.clone() };
        let incoming = TcpListenerStream::new(listener);
        let server = tonic::transport::Server::builder();
        let (service, stopped) = (MetaServer::new(service), stop.cancelled_owned());
        tokio::spawn(server.serve_with_incoming_shutdown(service, incoming, stopped));
        fake
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic under this lock")
    }

    /// The next requests of a kind meet these faults, one each.
    pub(crate) fn break_next(&self, what: &'static str, faults: &[Fault]) {
        self.state().faults.extend(faults.iter().map(|fault| (what, *fault)));
    }

    /// As a restart of the process does: opens and locks are gone, and must be reclaimed first.
    pub(crate) fn restart(&self) {
        let mut state = self.state();
        state.boot += 1;
        state.locks.clear();
        state.grace = true;
        for client in state.sessions.values_mut() {
            client.open.clear();
            client.reclaimed = false;
        }
    }

    /// Ends every session, silently.
    pub(crate) fn expire_sessions(&self) {
        let mut state = self.state();
        state.sessions.clear();
        state.locks.clear();
    }

    pub(crate) fn fence(&self) {
        let sessions: Vec<u64> = self.state().sessions.keys().copied().collect();
        self.expire_sessions();
        let boot = self.state().boot;
        for session in sessions {
            let fenced = Fenced { reason: "a test says so".into() };
            let _ = self.events.send((session, Event { boot, event: Some(event::Event::Fenced(fenced)) }));
        }
    }

    pub(crate) fn open_inos(&self) -> Vec<u64> {
        let state = self.state();
        let mut open: Vec<u64> =
            state.sessions.values().flat_map(|client| client.open.iter().copied()).collect();
        open.sort_unstable();
        open
    }

    pub(crate) fn locks(&self) -> Vec<(u64, LockRange)> {
        self.state().locks.iter().map(|(_, ino, lock)| (*ino, *lock)).collect()
    }

    pub(crate) fn session_count(&self) -> usize {
        self.state().sessions.len()
    }

    /// How often an operation took effect.
    pub(crate) fn count_applied(&self, what: &str) -> usize {
        self.state().applied.iter().filter(|op| name_of(op) == what).count()
    }

    pub(crate) fn count_received(&self, what: &str) -> usize {
        self.state().received.iter().filter(|name| **name == what).count()
    }
}

#[derive(Clone)]
struct Service {
    state: Arc<Mutex<State>>,
    events: broadcast::Sender<(u64, Event)>,
}

impl Service {
    fn answer(&self, request: Request) -> Result<Reply, Status> {
        let mut state = self.state.lock().expect("no panic under this lock");
        let op = request.op.clone().ok_or_else(|| Status::invalid_argument("no operation"))?;
        let name = name_of(&op);
        state.received.push(name);
        state.last_requests.push(request.clone());
        let fault = state.faults.iter().position(|(what, _)| *what == name);
        let fault = fault.and_then(|at| state.faults.remove(at)).map(|(_, fault)| fault);
        let result = match fault {
            Some(Fault::BreakStream) => return Err(Status::aborted("the stream broke")),
            Some(Fault::LoseRequest) => return Err(Status::unavailable("the connection broke")),
            Some(Fault::Answer(code)) => Err(code.into()),
            _ => state.handle(&request, op, &self.events),
        };
        if fault == Some(Fault::LoseAnswer) {
            return Err(Status::unavailable("the connection broke"));
        }
        let result = result.unwrap_or_else(|failure| reply::Result::Error(failure.into()));
        Ok(Reply { boot: state.boot, result: Some(result) })
    }
}

#[tonic::async_trait]
impl Meta for Service {
    async fn call(&self, request: tonic::Request<Request>) -> Result<Response<Reply>, Status> {
        Ok(Response::new(self.answer(request.into_inner())?))
    }

    type CallsStream = Pin<Box<dyn Stream<Item = Result<TaggedReply, Status>> + Send>>;

    async fn calls(
        &self,
        requests: tonic::Request<Streaming<TaggedRequest>>,
    ) -> Result<Response<Self::CallsStream>, Status> {
        let service = self.clone();
        let answers = requests.into_inner().map(move |request| {
            let TaggedRequest { tag, request } = request?;
            Ok(match service.answer(request.unwrap_or_default()) {
                Ok(reply) => TaggedReply { tag, reply: Some(reply), error: None },
                Err(broken) if broken.code() == tonic::Code::Aborted => return Err(broken),
                Err(lost) => TaggedReply { tag, reply: None, error: Some(Failure::from(lost).into()) },
            })
        });
        Ok(Response::new(Box::pin(answers)))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<Event, Status>> + Send>>;

    async fn watch(
        &self,
        request: tonic::Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let session = request.into_inner().session;
        let boot = self.state.lock().expect("no panic under this lock").boot;
        let hello = Event { boot, event: Some(event::Event::Hello(Hello {})) };
        let events = BroadcastStream::new(self.events.subscribe()).filter_map(move |event| async move {
            event.ok().filter(|(to, _)| *to == session).map(|(_, event)| Ok(event))
        });
        Ok(Response::new(Box::pin(futures::stream::iter([Ok(hello)]).chain(events))))
    }
}

impl State {
    fn handle(
        &mut self,
        request: &Request,
        op: Op,
        events: &broadcast::Sender<(u64, Event)>,
    ) -> Result<reply::Result, Failure> {
        if !request.cluster.is_empty() && request.cluster[..] != CLUSTER {
            return failed(Code::WrongCluster);
        }
        if let Op::OpenSession(_) = op {
            self.last_session += 1;
            let client = Client { epoch: 1, reclaimed: true, ..Default::default() };
            self.sessions.insert(self.last_session, client);
            self.applied.push(op);
            return Ok(reply::Result::SessionOpened(SessionOpened {
                session: self.last_session,
                epoch: 1,
                slots: 4,
                heartbeat_ms: 100,
                timeout_ms: 1000,
                cluster: Bytes::from_static(&CLUSTER),
            }));
        }
        let session = request.session;
        let Some(client) = self.sessions.get(&session).filter(|client| client.epoch == request.epoch) else {
            return failed(Code::SessionExpired);
        };
        if request.number > 0 {
            match client.slots.get(&request.slot) {
                Some((number, _)) if *number > request.number => return failed(Code::Invalid),
                Some((number, stored)) if *number == request.number => return Ok(stored.clone()),
                _ => {}
            }
            if self.grace && !client.reclaimed {
                return failed(Code::Grace);
            }
        }
        let result = self.apply(session, op.clone(), events);
        if request.number > 0 {
            let stored = result.clone().unwrap_or_else(|failure| reply::Result::Error(failure.into()));
            if let Some(client) = self.sessions.get_mut(&session) {
                client.slots.insert(request.slot, (request.number, stored));
            }
        }
        if result.is_ok() {
            self.applied.push(op);
        }
        result
    }

    fn node(&mut self, ino: u64) -> Result<&mut Node, Failure> {
        self.nodes.get_mut(&ino).ok_or_else(|| Code::Stale.into())
    }

    fn client(&mut self, session: u64) -> &mut Client {
        self.sessions.get_mut(&session).expect("checked before")
    }

    fn apply(
        &mut self,
        session: u64,
        op: Op,
        events: &broadcast::Sender<(u64, Event)>,
    ) -> Result<reply::Result, Failure> {
        let done = Ok(reply::Result::Done(Done {}));
        match op {
            Op::Heartbeat(_) => done,
            Op::CloseSession(_) => {
                self.sessions.remove(&session);
                done
            }
            Op::Reclaim(reclaim) => {
                let known: Vec<u64> =
                    reclaim.open_inos.iter().copied().filter(|ino| self.nodes.contains_key(ino)).collect();
                let stale = reclaim.open_inos.iter().copied().filter(|ino| !known.contains(ino)).collect();
                let mut lost = Vec::new();
                for held in reclaim.locks {
                    let lock = held.lock.expect("a reclaimed lock");
                    match self.conflict(session, held.ino, &lock) {
                        Some(_) => lost.push(held),
                        None => self.locks.push((session, held.ino, lock)),
                    }
                }
                let client = self.client(session);
                client.open.extend(known);
                client.reclaimed |= reclaim.complete;
                Ok(reply::Result::Reclaimed(Reclaimed { stale_inos: stale, lost_locks: lost }))
            }
            Op::Lookup(lookup) => {
                let ino = match &lookup.name[..] {
                    b"." | b".." => lookup.parent,
                    _ => *self.node(lookup.parent)?.children.get(&lookup.name).ok_or(Code::NotFound)?,
                };
                Ok(reply::Result::Attr(self.node(ino)?.attr.clone()))
            }
            Op::GetAttr(get) => Ok(reply::Result::Attr(self.node(get.ino)?.attr.clone())),
            Op::SetAttr(set) => {
                let node = self.node(set.ino)?;
                node.attr.mode = set.mode.unwrap_or(node.attr.mode);
                node.attr.size = set.size.unwrap_or(node.attr.size);
                if let Some(time) = set.atime {
                    node.attr.atime = time.value;
                }
                node.attr.version += 1;
                Ok(reply::Result::Attr(node.attr.clone()))
            }
            Op::Create(create) => self.create(session, create),
            Op::Unlink(unlink) => {
                let ino = self.node(unlink.parent)?.children.remove(&unlink.name).ok_or(Code::NotFound)?;
                self.node(ino)?.attr.nlink = 0;
                self.collect(ino);
                done
            }
            Op::Open(open) => {
                let node = self.node(open.ino)?;
                if open.truncate {
                    node.attr.size = 0;
                    node.attr.version += 1;
                }
                let attr = node.attr.clone();
                self.client(session).open.insert(open.ino);
                Ok(reply::Result::Opened(Opened { attr: Some(attr), plan: None }))
            }
            Op::Close(close) => {
                for file in close.files {
                    self.client(session).open.remove(&file.ino);
                    if let (Some(atime), Ok(node)) = (file.atime, self.node(file.ino)) {
                        node.attr.atime = Some(atime);
                    }
                    self.collect(file.ino);
                }
                done
            }
            Op::ReadDir(read) => {
                let children = self.node(read.ino)?.children.clone();
                let mut entries: Vec<DirectoryEntry> = Vec::new();
                for (name, ino) in children {
                    let attr = self.node(ino)?.attr.clone();
                    let cookie = dfs_proto::Name::parse(name.clone())?.cookie();
                    let kind = attr.kind;
                    entries.push(DirectoryEntry {
                        name,
                        ino,
                        kind,
                        cookie,
                        attr: read.with_attrs.then_some(attr),
                    });
                }
                entries.sort_by_key(|entry| entry.cookie);
                entries.retain(|entry| entry.cookie > read.cookie);
                let end = entries.len() <= read.max_entries as usize;
                entries.truncate(read.max_entries as usize);
                Ok(reply::Result::DirectoryPage(DirectoryPage { entries, end, parent: 1 }))
            }
            Op::SetXattr(set) => {
                let node = self.node(set.ino)?;
                node.xattrs.insert(set.name, set.value);
                node.attr.version += 1;
                Ok(reply::Result::Attr(node.attr.clone()))
            }
            Op::GetXattr(get) => {
                let value = self.node(get.ino)?.xattrs.get(&get.name).cloned().ok_or(Code::NoData)?;
                Ok(reply::Result::Value(Value { value }))
            }
            Op::GetLock(get) => {
                let lock = get.lock.ok_or(Code::Invalid)?;
                Ok(reply::Result::LockState(LockState { conflict: self.conflict(session, get.ino, &lock) }))
            }
            Op::SetLock(set) => {
                let lock = set.lock.ok_or(Code::Invalid)?;
                if lock.kind() != LockKind::Unlock && self.conflict(session, set.ino, &lock).is_some() {
                    return failed(Code::Locked);
                }
                // Whole locks only: tests don't split ranges.
                self.locks.retain(|(by, ino, held)| {
                    (*by, *ino, held.space, held.owner) != (session, set.ino, lock.space, lock.owner)
                });
                if lock.kind() == LockKind::Unlock {
                    let boot = self.boot;
                    for other in self.sessions.keys() {
                        let event = event::Event::Unlocked(Unlocked { ino: set.ino });
                        let _ = events.send((*other, Event { boot, event: Some(event) }));
                    }
                    return done;
                }
                self.locks.push((session, set.ino, lock));
                Ok(reply::Result::Attr(self.node(set.ino)?.attr.clone()))
            }
            _ => failed(Code::NotSupported),
        }
    }

    fn create(&mut self, session: u64, create: Create) -> Result<reply::Result, Failure> {
        let taken = self.node(create.parent)?.children.get(&create.name).copied();
        let ino = match taken {
            Some(_) if create.exclusive => return failed(Code::Exists),
            Some(ino) => ino,
            None => {
                self.last_ino += 1;
                let ino = self.last_ino;
                let attr = Attr {
                    ino,
                    kind: create.kind,
                    mode: create.mode & !create.umask,
                    nlink: 1,
                    version: 1,
                    ..Default::default()
                };
                self.nodes.insert(ino, Node { attr, children: BTreeMap::new(), xattrs: BTreeMap::new() });
                self.node(create.parent)?.children.insert(create.name, ino);
                ino
            }
        };
        let attr = self.node(ino)?.attr.clone();
        if create.open {
            self.client(session).open.insert(ino);
            return Ok(reply::Result::Opened(Opened { attr: Some(attr), plan: None }));
        }
        Ok(reply::Result::Attr(attr))
    }

    /// Removes an inode that has neither names nor users.
    fn collect(&mut self, ino: u64) {
        let open = self.sessions.values().any(|client| client.open.contains(&ino));
        if !open && self.nodes.get(&ino).is_some_and(|node| node.attr.nlink == 0) {
            self.nodes.remove(&ino);
        }
    }

    fn conflict(&self, session: u64, ino: u64, lock: &LockRange) -> Option<LockRange> {
        let held = self.locks.iter().find(|(by, at, held)| {
            *at == ino
                && held.space == lock.space
                && (*by, held.owner) != (session, lock.owner)
                && held.start <= lock.end
                && lock.start <= held.end
                && (held.kind() == LockKind::Exclusive || lock.kind() == LockKind::Exclusive)
        });
        held.map(|(_, _, held)| *held)
    }

    /// Somebody else changes an inode.
    pub(crate) fn touch(&mut self, ino: u64) {
        self.nodes.get_mut(&ino).expect("an inode of the test").attr.version += 1;
    }

    pub(crate) fn has_inode(&self, ino: u64) -> bool {
        self.nodes.contains_key(&ino)
    }

    pub(crate) fn attr(&self, ino: u64) -> Attr {
        self.nodes[&ino].attr.clone()
    }
}
