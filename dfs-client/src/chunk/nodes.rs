//! The chunk daemons this client talks to: connections, distance, how quick they were, who failed lately.
//!
//! A node that failed is suspect for some seconds, longer each time, or until it answers a ping when it was only out of
//! reach. A suspect is asked only when nobody else is left. A node
//! that is gone without a word is noticed by pings on the connection, within 3 s, however slow disks may be.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use dfs_proto::chunk::chunk_client::ChunkClient;
use dfs_proto::chunk::{PingRequest, SmallReply, SmallRequest, small_reply, small_request};
use dfs_proto::limits::{MAX_FRAME_DATA, MAX_HTTP2_FRAME, MAX_MESSAGE};
use dfs_proto::{ClusterId, Code, Failure, Labels, NodeAddress};
use tonic::transport::{Channel, Endpoint};

use super::latency::Latency;
use super::local;
use crate::line::{Line, Lost, Tagged};

/// A connection that is not there after so long is not coming.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1500);
/// How often a connection with requests on it is pinged, and how long an answer may take.
const PING_EVERY: Duration = Duration::from_millis(1000);
const PING_TIMEOUT: Duration = Duration::from_millis(1500);
/// HTTP/2 flow control: enough in flight for a fast network.
const STREAM_WINDOW: u32 = 8 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;
/// How long a node is suspect after its first failure; doubled with each more.
const SUSPECT_FOR: Duration = Duration::from_secs(3);
/// The longest that a node is suspect.
const MAX_SUSPECT_FOR: Duration = Duration::from_secs(30);
/// How often a suspect node that was out of reach is pinged, and how long an answer may take.
const PROBE_EVERY: Duration = Duration::from_millis(300);
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// A node that would take at most so many times as long as the quickest is about as quick.
const ABOUT_AS_QUICK: u64 = 4;
/// Requests in flight to one node that are nothing unusual: one reader in order has so many.
const USUAL_QUEUE: usize = 16;
/// The longest read that goes with what is small.
const QUICK_READ: u64 = MAX_FRAME_DATA as u64 / 4;
/// Nodes remembered; the oldest connections are dropped beyond it.
const MAX_NODES: usize = 4096;

/// All nodes that plans named so far.
pub(super) struct Nodes {
    cluster: ClusterId,
    here: Labels,
    known: Mutex<HashMap<u64, Arc<Node>>>,
}

/// One chunk daemon.
pub(super) struct Node {
    pub(super) id: u64,
    place: NodeAddress,
    distance: u8,
    /// Its door is on this machine.
    pub(super) is_here: bool,
    /// Small requests have a connection of their own, so that they don't wait behind large ones.
    quick: Connection,
    bulk: Connection,
    health: Mutex<Health>,
}

/// A connection, and the stream of requests on it.
struct Connection {
    channel: Channel,
    line: Line<SmallRequest, SmallReply>,
    latency: Latency,
    /// Requests under way, reads and puts.
    requests: AtomicUsize,
}

impl Connection {
    fn new(endpoint: &Endpoint) -> Self {
        Self {
            channel: endpoint.connect_lazy(),
            line: Line::new(),
            latency: Latency::default(),
            requests: AtomicUsize::new(0),
        }
    }
}

impl Tagged for SmallRequest {
    fn tag(&mut self) -> &mut u64 {
        &mut self.tag
    }
}

impl Tagged for SmallReply {
    fn tag(&mut self) -> &mut u64 {
        &mut self.tag
    }
}

#[derive(Debug, Default)]
struct Health {
    failures: u32,
    suspect_until: Option<Instant>,
    probed: bool,
}

/// Which connection a request goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// Small puts and reads.
    Quick,
    /// More.
    Bulk,
}

impl Lane {
    /// For a read of so many bytes.
    pub(super) fn of_read(length: u64) -> Self {
        if length <= QUICK_READ { Self::Quick } else { Self::Bulk }
    }
}

impl Nodes {
    pub(super) fn new(cluster: ClusterId, here: Labels) -> Self {
        Self { cluster, here, known: Mutex::new(HashMap::new()) }
    }

    /// The node that a plan names. Fails when its address is not one.
    pub(super) fn get(&self, address: &NodeAddress) -> Result<Arc<Node>, Failure> {
        let mut known = self.lock();
        if let Some(node) = known.get(&address.node)
            && node.place.address == address.address
        {
            return Ok(Arc::clone(node));
        }
        if known.len() >= MAX_NODES {
            known.clear();
        }
        // Answered at once: the name of a socket is there or is not.
        let is_here = local::is_here(self.cluster, address.node);
        let distance = if is_here { 0 } else { distance(&self.here, address.labels.as_ref()) };
        let node = Arc::new(Node::new(address, distance, is_here)?);
        known.insert(address.node, Arc::clone(&node));
        Ok(node)
    }

    /// The ids of nodes that are suspect now.
    pub(super) fn suspects(&self) -> Vec<u64> {
        let now = Instant::now();
        self.lock().values().filter(|node| node.is_suspect(now)).map(|node| node.id).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Node>>> {
        self.known.lock().expect("nothing panics while it holds the table of nodes")
    }
}

impl Node {
    fn new(address: &NodeAddress, distance: u8, is_here: bool) -> Result<Self, Failure> {
        let endpoint = Endpoint::from_shared(format!("http://{}", address.address))
            .map_err(|error| {
                let text =
                    format!("chunk node {} has the address {:?}: {error}", address.node, address.address);
                Failure::new(Code::Unavailable, text)
            })?
            .tcp_nodelay(true)
            .connect_timeout(CONNECT_TIMEOUT)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(MAX_HTTP2_FRAME)
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT);
        Ok(Self {
            id: address.node,
            place: address.clone(),
            distance,
            is_here,
            quick: Connection::new(&endpoint),
            bulk: Connection::new(&endpoint),
            health: Mutex::default(),
        })
    }

    /// A client on one of the node's connections.
    pub(super) fn client(&self, lane: Lane) -> ChunkClient<Channel> {
        ChunkClient::new(self.channel(lane))
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }

    /// One of the node's connections.
    pub(super) fn channel(&self, lane: Lane) -> Channel {
        self.connection(lane).channel.clone()
    }

    fn connection(&self, lane: Lane) -> &Connection {
        match lane {
            Lane::Quick => &self.quick,
            Lane::Bulk => &self.bulk,
        }
    }

    /// A request of one frame and its answer. Sets no deadline.
    pub(super) async fn exchange(
        &self,
        lane: Lane,
        op: small_request::Op,
    ) -> Result<small_reply::Result, Failure> {
        let mut client = self.client(lane);
        let request = SmallRequest { tag: 0, op: Some(op) };
        let open = async move |requests| client.exchange(requests).await;
        let result = match self.connection(lane).line.call(request, open).await {
            Ok(SmallReply { result: Some(result), .. }) => result,
            Ok(SmallReply { result: None, .. }) => {
                return Err(
                    self.explain(Failure::new(Code::VersionUnknown, "an answer this program does not know"))
                );
            }
            Err(Lost::NotSent(status) | Lost::UnderWay(status)) => return Err(self.explain(status.into())),
        };
        match result {
            small_reply::Result::Error(error) => Err(self.explain(error.into())),
            result => Ok(result),
        }
    }

    /// A failure, with the node's name.
    pub(super) fn explain(&self, failure: Failure) -> Failure {
        Failure::new(failure.code, format!("{}: {}", self.name(), failure.message))
    }

    /// For messages: who and where.
    pub(super) fn name(&self) -> String {
        format!("chunk node {} at {}", self.id, self.place.address)
    }

    /// For those who forward to it.
    pub(super) fn place(&self) -> NodeAddress {
        self.place.clone()
    }

    /// Whether it failed a short while ago.
    pub(super) fn is_suspect(&self, now: Instant) -> bool {
        self.health().suspect_until.is_some_and(|until| now < until)
    }

    /// It did not do what it was asked. Must be called within the runtime.
    pub(super) fn failed(self: &Arc<Self>, failure: &Failure, cluster: ClusterId) {
        let mut health = self.health();
        let wait = SUSPECT_FOR.saturating_mul(1 << health.failures.min(8)).min(MAX_SUSPECT_FOR);
        health.failures = health.failures.saturating_add(1);
        health.suspect_until = Some(Instant::now() + wait);
        if failure.code == Code::Unavailable && !std::mem::replace(&mut health.probed, true) {
            tokio::spawn(probe(Arc::clone(self), cluster));
        }
    }

    /// It did.
    pub(super) fn succeeded(&self) {
        let mut health = self.health();
        health.failures = 0;
        health.suspect_until = None;
    }

    /// How long its reads take, smoothed.
    pub(super) fn latency(&self, lane: Lane) -> Duration {
        self.connection(lane).latency.get(Instant::now())
    }

    /// Counts a request as under way until the guard is dropped.
    pub(super) fn begin(self: &Arc<Self>, lane: Lane) -> UnderWay {
        self.connection(lane).requests.fetch_add(1, Ordering::Relaxed);
        UnderWay(Arc::clone(self), lane)
    }

    /// The same for a read, whose time is taken.
    pub(super) fn begin_read(self: &Arc<Self>, lane: Lane) -> ReadUnderWay {
        ReadUnderWay { under_way: self.begin(lane), started: Instant::now(), ended: false }
    }

    /// Smaller is to be asked sooner: who is not suspect, near, and likely to answer soon.
    pub(super) fn rank(&self, lane: Lane, now: Instant) -> Rank {
        let Connection { latency, requests, .. } = self.connection(lane);
        let queue = (requests.load(Ordering::Relaxed) / USUAL_QUEUE) as u64 + 1;
        let wait_us = queue * (latency.get(now).as_micros() as u64).max(1);
        Rank { suspect: self.is_suspect(now), distance: self.distance, wait_us }
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().expect("nothing panics while it holds a node's health")
    }
}

/// Pings a suspect node until it answers, or is not suspect any more.
async fn probe(node: Arc<Node>, cluster: ClusterId) {
    while node.is_suspect(Instant::now()) {
        tokio::time::sleep(PROBE_EVERY).await;
        let mut client = node.client(Lane::Quick);
        let ping = client.ping(PingRequest { cluster: cluster.to_bytes() });
        if let Ok(Ok(answer)) = tokio::time::timeout(PROBE_TIMEOUT, ping).await
            && answer.get_ref().node == node.id
        {
            node.succeeded();
        }
    }
    node.health().probed = false;
}

/// In which order nodes are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    suspect: bool,
    distance: u8,
    /// How long an answer would take to begin.
    wait_us: u64,
}

/// Sorts the nodes that hold a chunk, the one to ask first in front. Of several that are as near and about as quick it is
/// the same one for each read of the same `place` in the same chunk, so that what one daemon keeps in memory isn't read
/// from the disks of three; the next one for the next place, so that who reads in order has several at work.
pub(super) fn sort_for_read<T>(place: u64, lane: Lane, candidates: &mut [(Arc<Node>, T)]) {
    let now = Instant::now();
    candidates.sort_by_cached_key(|(node, _)| node.rank(lane, now));
    let Some((first, _)) = candidates.first() else { return };
    let best = first.rank(lane, now);
    let as_good = candidates.partition_point(|(node, _)| {
        let rank = node.rank(lane, now);
        (rank.suspect, rank.distance) == (best.suspect, best.distance)
            && rank.wait_us <= best.wait_us.saturating_mul(ABOUT_AS_QUICK)
    });
    if as_good > 1 {
        candidates[..as_good].sort_by_key(|(node, _)| node.id);
        candidates[..as_good].rotate_left((place % as_good as u64) as usize);
    }
}

/// A request under way.
pub(super) struct UnderWay(Arc<Node>, Lane);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.connection(self.1).requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A read under way. One that is given up because another node was quicker tells how long this one takes at least.
pub(super) struct ReadUnderWay {
    under_way: UnderWay,
    started: Instant,
    ended: bool,
}

impl ReadUnderWay {
    /// It was answered.
    pub(super) fn answered(&mut self) {
        let UnderWay(node, lane) = &self.under_way;
        node.connection(*lane).latency.note(self.started.elapsed(), Instant::now());
        self.ended = true;
    }
}

impl Drop for ReadUnderWay {
    fn drop(&mut self) {
        if !self.ended {
            let UnderWay(node, lane) = &self.under_way;
            node.connection(*lane).latency.note_more_than(self.started.elapsed(), Instant::now());
        }
    }
}

/// 0: the same host (or machine, which is not asked here); 1: rack; 2: zone; 3: elsewhere or not told.
fn distance(here: &Labels, there: Option<&Labels>) -> u8 {
    let Some(there) = there else { return 3 };
    let same = |a: &str, b: &str| !a.is_empty() && a == b;
    if same(&here.host, &there.host) {
        0
    } else if same(&here.rack, &there.rack) && here.zone == there.zone {
        1
    } else if same(&here.zone, &there.zone) {
        2
    } else {
        3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(host: &str, rack: &str, zone: &str) -> Labels {
        Labels { host: host.into(), rack: rack.into(), zone: zone.into() }
    }

    #[test]
    fn nearness_goes_by_the_narrowest_shared_label() {
        let here = labels("h1", "r1", "z1");
        let to = |there| distance(&here, Some(&there));
        assert_eq!(to(labels("h1", "r1", "z1")), 0);
        assert_eq!(to(labels("h2", "r1", "z1")), 1);
        assert_eq!(to(labels("h2", "r1", "z2")), 3, "racks of two zones may share a name");
        assert_eq!(to(labels("h2", "r2", "z1")), 2);
        assert_eq!(distance(&Labels::default(), Some(&Labels::default())), 3, "not told is not the same");
    }

    #[tokio::test]
    async fn a_failed_node_is_suspect_for_a_while_and_the_quicker_goes_first() {
        let nodes = Nodes::new(ClusterId([0; 16]), Labels::default());
        let get = |node| {
            let address = format!("127.0.0.1:{}", 1000 + node);
            nodes.get(&NodeAddress { node, address, labels: None }).unwrap()
        };
        let (a, b) = (get(1), get(2));
        let now = Instant::now();
        let first = || match a.rank(Lane::Bulk, now) < b.rank(Lane::Bulk, now) {
            true => a.id,
            false => b.id,
        };
        a.quick.latency.note(Duration::from_millis(5), now);
        a.bulk.latency.note(Duration::from_millis(50), now);
        assert_eq!(first(), 2);
        let busy: Vec<_> = (0..20 * USUAL_QUEUE).map(|_| b.begin(Lane::Bulk)).collect();
        assert_eq!(first(), 1, "who is busy is slower");
        assert!(b.rank(Lane::Quick, now) < a.rank(Lane::Quick, now), "but not in what is small");
        drop(busy);
        b.failed(&Code::NoSpace.into(), ClusterId([0; 16]));
        assert_eq!(first(), 1);
        assert_eq!(nodes.suspects(), [2]);
        assert!(!b.is_suspect(now + MAX_SUSPECT_FOR));
        b.succeeded();
        assert!(nodes.suspects().is_empty());
        assert!(nodes.get(&NodeAddress { node: 3, address: "no address".into(), labels: None }).is_err());
    }

    #[tokio::test]
    async fn reads_of_a_place_stay_with_one_node_while_it_is_about_as_quick() {
        let nodes = Nodes::new(ClusterId([0; 16]), Labels::default());
        let node = |node| {
            let address = format!("127.0.0.1:{}", 1000 + node);
            nodes.get(&NodeAddress { node, address, labels: None }).unwrap()
        };
        let order = |place| {
            let mut candidates: Vec<_> = [3, 1, 2].map(|id| (node(id), ())).into();
            sort_for_read(place, Lane::Bulk, &mut candidates);
            candidates.iter().map(|(node, ())| node.id).collect::<Vec<_>>()
        };
        assert_eq!([order(6), order(7), order(8)], [[1, 2, 3], [2, 3, 1], [3, 1, 2]]);
        node(1).bulk.latency.note(Duration::from_millis(2), Instant::now());
        let some: Vec<_> = (0..USUAL_QUEUE - 1).map(|_| node(1).begin(Lane::Bulk)).collect();
        assert_eq!(order(6), [1, 2, 3], "twice as slow, or with some to do, is still about as quick");
        drop(some);
        let busy: Vec<_> = (0..8 * USUAL_QUEUE).map(|_| node(1).begin(Lane::Bulk)).collect();
        assert_eq!(order(6), [2, 3, 1], "the others take over what it can't do");
        drop(busy);
        node(2).failed(&Code::NoSpace.into(), ClusterId([0; 16]));
        assert_eq!((order(6), order(7)), (vec![1, 3, 2], vec![3, 1, 2]), "a suspect comes last");
    }
}
