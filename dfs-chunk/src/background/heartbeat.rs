//! Joining the cluster and staying in it.
//!
//! A join says where this node answers and brings its id and epoch; heartbeats keep it up, confirm what was deleted,
//! report damage, and bring orders back. When the server refuses the node, or has started afresh, it joins again. The
//! time that counts for "heard of" is when the answered request was sent: the server can't have forgotten us earlier.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dfs_proto::common::Labels;
use dfs_proto::meta::reply::Result as Answer;
use dfs_proto::meta::request::Op;
use dfs_proto::meta::{NodeHeartbeat, NodeJoin, NodeJoined, NodeOrders};
use dfs_proto::{ChunkId, ClusterId, Code, Epoch, Failure, NodeId, PROTOCOL_VERSION};
use tokio::task::JoinHandle;

use super::deletions::Deletions;
use super::inventory;
use crate::meta_link::MetaLink;
use crate::node::{Member, Node};
use crate::store::{Room, Store};

/// Between tries while the server is away: doubled from the first to the last.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(2);
/// What the server may ask for; a mistake there is no reason to drown it or to go silent.
const MIN_INTERVAL: Duration = Duration::from_millis(50);
const MAX_INTERVAL: Duration = Duration::from_secs(60);

/// What a join says of this daemon.
#[derive(Clone, Debug)]
pub(crate) struct Introduction {
    /// Of the disk.
    pub(crate) disk: [u8; 16],
    /// Where clients and other nodes reach it: host:port.
    pub(crate) address: String,
    /// What fails together with it.
    pub(crate) labels: Labels,
}

/// A join's answer, checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Joined {
    /// The cluster.
    pub(crate) cluster: ClusterId,
    /// Our id in it.
    pub(crate) node: NodeId,
    epoch: Epoch,
    boot: u64,
    interval: Duration,
    timeout: Duration,
    /// When the join was sent.
    sent: Instant,
}

impl Introduction {
    /// Joins, trying until the server answers. Fails for what waiting does not heal: WRONG_CLUSTER, NODE_REFUSED when the
    /// disk is not the node that it says it is, VERSION_UNKNOWN, INVALID.
    pub(crate) async fn join(
        &self,
        link: &MetaLink,
        known: Option<(ClusterId, NodeId)>,
        room: impl Fn() -> Result<Room, Failure>,
    ) -> Result<Joined, Failure> {
        let mut retry = FIRST_RETRY;
        let mut told = None;
        loop {
            match self.try_join(link, known, room()?).await {
                Ok(joined) => return Ok(joined),
                Err(failure) => {
                    let hopeless = matches!(
                        failure.code,
                        Code::WrongCluster | Code::NodeRefused | Code::VersionUnknown | Code::Invalid
                    );
                    if hopeless {
                        return Err(failure);
                    }
                    // Once for each reason, not once for each try.
                    if told.as_ref() != Some(&failure) {
                        tracing::warn!(%failure, "cannot join the cluster yet; trying on");
                        told = Some(failure);
                    }
                }
            }
            tokio::time::sleep(retry).await;
            retry = (retry * 2).min(LAST_RETRY);
        }
    }

    async fn try_join(
        &self,
        link: &MetaLink,
        known: Option<(ClusterId, NodeId)>,
        room: Room,
    ) -> Result<Joined, Failure> {
        let sent = Instant::now();
        let join = NodeJoin {
            disk: self.disk.to_vec().into(),
            node: known.map_or(0, |(_, node)| node.0),
            address: self.address.clone(),
            labels: Some(self.labels.clone()),
            capacity_bytes: room.capacity_bytes,
            available_bytes: room.available_bytes,
            version: env!("CARGO_PKG_VERSION").into(),
            protocol: PROTOCOL_VERSION,
        };
        let (boot, answer) = link.call(known.map(|(cluster, _)| cluster), Op::NodeJoin(join)).await?;
        let Answer::NodeJoined(NodeJoined { node, epoch, cluster, heartbeat_ms, timeout_ms }) = answer else {
            return Err(unexpected("a join"));
        };
        let cluster = ClusterId::from_slice(&cluster)
            .ok_or_else(|| Failure::new(Code::Invalid, "the metadata server tells a malformed cluster id"))?;
        match known {
            Some((known, _)) if known != cluster => {
                return Err(Failure::new(
                    Code::WrongCluster,
                    format!("this disk belongs to cluster {known}, the metadata server to {cluster}"),
                ));
            }
            Some((_, known)) if known.0 != node => {
                return Err(Failure::new(
                    Code::Invalid,
                    format!("this disk is node {known}, the metadata server calls it {node}"),
                ));
            }
            _ if node == 0 => {
                return Err(Failure::new(Code::Invalid, "the metadata server gives no node id"));
            }
            _ => {}
        }
        let interval = Duration::from_millis(heartbeat_ms).clamp(MIN_INTERVAL, MAX_INTERVAL);
        let timeout = Duration::from_millis(timeout_ms).clamp(interval, 20 * MAX_INTERVAL);
        Ok(Joined { cluster, node: NodeId(node), epoch: Epoch(epoch), boot, interval, timeout, sent })
    }
}

fn unexpected(to: &str) -> Failure {
    Failure::new(Code::VersionUnknown, format!("the metadata server answers {to} with something else"))
}

impl Joined {
    /// Lets writes be taken from now on.
    pub(crate) fn apply(&self, node: &Node) {
        node.heard(self.sent, self.timeout);
    }
}

/// Keeps a member in its cluster, for ever.
pub(crate) struct Heartbeats {
    link: MetaLink,
    introduction: Introduction,
    node: Arc<Node>,
    joined: Joined,
    store: Arc<Store>,
    deletions: Arc<Deletions>,
    inventory: Option<JoinHandle<()>>,
}

/// When to send the next heartbeat.
enum Next {
    AfterInterval,
    /// As soon as the present orders are carried out.
    WhenDone,
    Soon(Duration),
}

impl Heartbeats {
    /// For a node that has joined.
    pub(crate) fn new(
        link: MetaLink,
        introduction: Introduction,
        node: Arc<Node>,
        joined: Joined,
        member: &Member,
    ) -> Self {
        let store = member.store.clone();
        Self { link, introduction, node, joined, store, deletions: Arc::default(), inventory: None }
    }

    /// Sends heartbeats until dropped.
    pub(crate) async fn run(mut self) {
        let deleting = AbortOnDrop(tokio::spawn(self.deletions.clone().run(self.store.clone())));
        let mut retry = FIRST_RETRY;
        let mut told = None;
        loop {
            let next = match self.beat().await {
                Ok(next) => {
                    if told.take().is_some() {
                        tracing::info!("the metadata server answers again");
                    }
                    retry = FIRST_RETRY;
                    next
                }
                Err(failure) => {
                    if told.as_ref() != Some(&failure) {
                        tracing::warn!(%failure, "a heartbeat failed; trying on");
                        told = Some(failure);
                    }
                    retry = (retry * 2).min(LAST_RETRY).min(self.joined.interval);
                    Next::Soon(retry)
                }
            };
            debug_assert!(!deleting.0.is_finished(), "the deleting task never ends");
            let interval = tokio::time::sleep(match next {
                Next::Soon(soon) => soon,
                Next::AfterInterval | Next::WhenDone => self.joined.interval,
            });
            tokio::select! {
                () = interval => {}
                () = self.store.news(), if !matches!(next, Next::Soon(_)) => {}
                () = self.orders_done(), if matches!(next, Next::WhenDone) => {}
            }
        }
    }

    /// When the present orders are carried out; not at once, so that orders which fail don't turn in a circle.
    async fn orders_done(&self) {
        self.deletions.wait().await;
        tokio::time::sleep(MIN_INTERVAL).await;
    }

    /// One heartbeat, and a join where one is due.
    async fn beat(&mut self) -> Result<Next, Failure> {
        let room = self.store.room()?;
        let deleted = self.deletions.deleted();
        let corrupt = self.store.corrupt();
        let numbers = |chunks: &[ChunkId]| chunks.iter().map(|chunk| chunk.0).collect();
        let heartbeat = NodeHeartbeat {
            node: self.joined.node.0,
            epoch: self.joined.epoch.0,
            capacity_bytes: room.capacity_bytes,
            available_bytes: room.available_bytes,
            shards: self.store.shards(),
            deleted: numbers(&deleted),
            corrupt: numbers(&corrupt),
            read_only: self.store.is_fenced(),
        };
        let sent = Instant::now();
        let answer = self.link.call(Some(self.joined.cluster), Op::NodeHeartbeat(heartbeat)).await;
        let (boot, answer) = match answer {
            Err(failure) if failure.code == Code::NodeRefused => {
                tracing::info!(%failure, "joining again");
                return self.join_again().await;
            }
            answer => answer?,
        };
        let Answer::NodeOrders(orders) = answer else { return Err(unexpected("a heartbeat")) };
        self.node.heard(sent, self.joined.timeout);
        self.deletions.told(&deleted);
        self.store.forget_corrupt(&corrupt);
        let next = self.obey(orders);
        if boot != self.joined.boot {
            tracing::info!("the metadata server has started afresh; joining again");
            return self.join_again().await;
        }
        Ok(next)
    }

    fn obey(&mut self, orders: NodeOrders) -> Next {
        self.deletions.order(orders.delete.into_iter().map(ChunkId));
        let listing = self.inventory.as_ref().is_some_and(|task| !task.is_finished());
        if orders.send_inventory && !listing {
            let (link, joined, store) = (self.link.clone(), self.joined, self.store.clone());
            self.inventory = Some(tokio::spawn(async move {
                match inventory::send(&link, joined.cluster, joined.node, joined.epoch, &store).await {
                    Ok(shards) => tracing::info!(shards, "the inventory is sent"),
                    Err(failure) => {
                        tracing::warn!(%failure, "the inventory broke off; it will be asked for again")
                    }
                }
            }));
        }
        if orders.more { Next::WhenDone } else { Next::AfterInterval }
    }

    /// One try; the next heartbeat makes the next.
    async fn join_again(&mut self) -> Result<Next, Failure> {
        let known = Some((self.joined.cluster, self.joined.node));
        self.joined = self.introduction.try_join(&self.link, known, self.store.room()?).await?;
        self.joined.apply(&self.node);
        // So that the server's wishes, an inventory first of all, are heard at once.
        Ok(Next::Soon(Duration::ZERO))
    }
}

impl Drop for Heartbeats {
    fn drop(&mut self) {
        if let Some(inventory) = &self.inventory {
            inventory.abort();
        }
    }
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
