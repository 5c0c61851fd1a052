//! A metadata server for tests: knows nodes by their disks, hands out what orders a test gives it, remembers what it
//! was told.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use dfs_proto::limits::MAX_DELETE_ORDERS;
use dfs_proto::meta::meta_server::{Meta, MetaServer};
use dfs_proto::meta::reply::Result as Answer;
use dfs_proto::meta::request::Op;
use dfs_proto::meta::{
    Done, Event, NodeHeartbeat, NodeInventory, NodeJoin, NodeJoined, NodeOrders, Reply, Request, TaggedReply,
    TaggedRequest, WatchRequest,
};
use dfs_proto::{ClusterId, Code, Failure};
use futures::Stream;
use tokio::sync::oneshot;
use tonic::{Response, Status, Streaming};

pub(crate) const CLUSTER: ClusterId = ClusterId(*b"cluster of tests");

/// What the server says and has heard.
pub(crate) struct State {
    pub(crate) cluster: ClusterId,
    pub(crate) boot: u64,
    pub(crate) heartbeat: Duration,
    pub(crate) timeout: Duration,
    /// Chunks to be deleted, until confirmed.
    pub(crate) delete: BTreeSet<u64>,
    pub(crate) want_inventory: bool,
    /// Answer nothing: connections that stand would go on being served.
    pub(crate) away: bool,
    /// Refuse heartbeats until the next join.
    pub(crate) refuse: bool,
    pub(crate) joins: Vec<NodeJoin>,
    pub(crate) heartbeats: VecDeque<NodeHeartbeat>,
    pub(crate) pages: Vec<NodeInventory>,
    nodes: BTreeMap<Vec<u8>, u64>,
    epoch: u64,
}

/// The server; it ends when dropped.
pub(crate) struct FakeMeta {
    pub(crate) state: Arc<Mutex<State>>,
    pub(crate) address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
}

impl FakeMeta {
    pub(crate) async fn start() -> Self {
        let state = State {
            cluster: CLUSTER,
            boot: 1,
            heartbeat: Duration::from_millis(100),
            timeout: Duration::from_secs(20),
            delete: BTreeSet::new(),
            want_inventory: false,
            away: false,
            refuse: false,
            joins: Vec::new(),
            heartbeats: VecDeque::new(),
            pages: Vec::new(),
            nodes: BTreeMap::new(),
            epoch: 0,
        };
        let mut meta =
            Self { state: Arc::new(Mutex::new(state)), address: ([127, 0, 0, 1], 0).into(), stop: None };
        meta.go_on().await;
        meta
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Goes away: nobody answers, nobody listens.
    pub(crate) fn go_away(&mut self) {
        self.state().away = true;
        self.stop = None;
    }

    /// Listens again, on the same port as before.
    pub(crate) async fn go_on(&mut self) {
        let mut tries = 0;
        let listener = loop {
            // The kernel lets go of a port some moments after the last listener has.
            match tokio::net::TcpListener::bind(self.address).await {
                Ok(listener) => break listener,
                Err(error) if tries == 200 => panic!("cannot listen on {}: {error}", self.address),
                Err(_) => tries += 1,
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        self.address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let service = MetaServer::new(Service(self.state.clone()));
        let serving = tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener));
        tokio::spawn(async move {
            tokio::select! {
                ended = serving => ended.expect("serve the fake metadata server"),
                _ = stopped => {}
            }
        });
        self.stop = Some(stop);
        self.state().away = false;
    }

    /// Waits until what was heard is as the test wants it.
    pub(crate) async fn until(&self, what: &str, mut is: impl FnMut(&State) -> bool) {
        for _ in 0..1000 {
            if is(&self.state()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never: {what}");
    }

    /// Waits for a heartbeat sent from now on.
    pub(crate) async fn next_heartbeat(&self) -> NodeHeartbeat {
        self.state().heartbeats.clear();
        // The first may have been under way.
        self.until("two heartbeats", |state| state.heartbeats.len() >= 2).await;
        self.state().heartbeats.back().unwrap().clone()
    }
}

struct Service(Arc<Mutex<State>>);

impl State {
    fn answer(&mut self, request: Request) -> Result<Answer, Failure> {
        match request.op {
            Some(Op::NodeJoin(join)) => {
                if !request.cluster.is_empty() && request.cluster != self.cluster.to_bytes() {
                    return Err(Failure::new(Code::WrongCluster, "the disk is of another cluster"));
                }
                if join.node != 0 && self.nodes.get(&join.disk.to_vec()) != Some(&join.node) {
                    return Err(Failure::new(Code::NodeRefused, "the disk is not that node"));
                }
                let next = self.nodes.len() as u64 + 1;
                let node = *self.nodes.entry(join.disk.to_vec()).or_insert(next);
                self.epoch += 1;
                self.refuse = false;
                self.joins.push(join);
                Ok(Answer::NodeJoined(NodeJoined {
                    node,
                    epoch: self.epoch,
                    cluster: self.cluster.to_bytes(),
                    heartbeat_ms: self.heartbeat.as_millis() as u64,
                    timeout_ms: self.timeout.as_millis() as u64,
                }))
            }
            Some(Op::NodeHeartbeat(heartbeat)) => {
                if self.refuse {
                    return Err(Failure::new(Code::NodeRefused, "an old epoch"));
                }
                for chunk in &heartbeat.deleted {
                    self.delete.remove(chunk);
                }
                self.heartbeats.push_back(heartbeat);
                let delete: Vec<_> = self.delete.iter().copied().take(MAX_DELETE_ORDERS).collect();
                let more = self.delete.len() > delete.len();
                let send_inventory = std::mem::take(&mut self.want_inventory);
                Ok(Answer::NodeOrders(NodeOrders { delete, more, send_inventory }))
            }
            Some(Op::NodeInventory(page)) => {
                self.pages.push(page);
                Ok(Answer::Done(Done {}))
            }
            other => Err(Failure::new(Code::NotSupported, format!("{other:?}"))),
        }
    }
}

#[tonic::async_trait]
impl Meta for Service {
    async fn call(&self, request: tonic::Request<Request>) -> Result<Response<Reply>, Status> {
        let mut state = self.0.lock().unwrap();
        if state.away {
            return Err(Status::unavailable("away"));
        }
        let boot = state.boot;
        let answer = state.answer(request.into_inner());
        let result = Some(answer.unwrap_or_else(|failure| Answer::Error(failure.into())));
        Ok(Response::new(Reply { boot, result }))
    }

    type CallsStream = Pin<Box<dyn Stream<Item = Result<TaggedReply, Status>> + Send>>;

    async fn calls(
        &self,
        _: tonic::Request<Streaming<TaggedRequest>>,
    ) -> Result<Response<Self::CallsStream>, Status> {
        Err(Status::unimplemented("chunk daemons call one by one"))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<Event, Status>> + Send>>;

    async fn watch(&self, _: tonic::Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("chunk daemons watch nothing"))
    }
}
