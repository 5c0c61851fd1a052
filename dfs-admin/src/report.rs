//! A cluster's state judged: how healthy it is and why not, as one value that is printed or given to programs.
//!
//! The JSON's field names are an interface: they are only ever added to.

use dfs_proto::Redundancy;
use dfs_proto::meta::{ClassStatus, ClusterStatus, NodeState, NodeStatus, SessionStatus};
use serde::Serialize;

use crate::server::cluster_name;

/// One word for the whole cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Everything is as it should be.
    Healthy,
    /// Something is away or has less redundancy than its class says; all data can be read, and one more loss borne.
    Degraded,
    /// Data can't be read, or one more loss would take some.
    AtRisk,
}

/// The whole cluster.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The verdict.
    pub health: Health,
    /// Why it is not healthy: one sentence each.
    pub reasons: Vec<String>,
    /// The cluster's id.
    pub cluster: String,
    /// The metadata server that answered.
    pub server: String,
    /// Its version.
    pub version: String,
    /// Since it started.
    pub uptime_ms: u64,
    /// Inodes with a name.
    pub files: u64,
    /// Space.
    pub capacity: Capacity,
    /// The metadata server's own store.
    pub store: Store,
    /// Chunk daemons.
    pub nodes: Vec<Node>,
    /// What they hold.
    pub chunks: Chunks,
    /// Clients.
    pub sessions: Vec<Session>,
}

/// Space, in bytes that files can have.
#[derive(Clone, Debug, Serialize)]
pub struct Capacity {
    /// After the redundancy of the root's class.
    pub total_bytes: u64,
    /// What files cover.
    pub used_bytes: u64,
    /// What can still be written.
    pub available_bytes: u64,
}

/// The metadata store.
#[derive(Clone, Debug, Serialize)]
pub struct Store {
    /// On disk.
    pub bytes: u64,
    /// Only what frees space is accepted.
    pub full: bool,
}

/// One chunk daemon.
#[derive(Clone, Debug, Serialize)]
pub struct Node {
    /// Its number.
    pub node: u64,
    /// "up", "suspect", "down" or "read_only".
    pub state: &'static str,
    /// host:port.
    pub address: String,
    /// Labels: what fails together with it.
    pub host: String,
    /// See `host`.
    pub rack: String,
    /// See `host`.
    pub zone: String,
    /// Of its disk.
    pub capacity_bytes: u64,
    /// Free on its disk.
    pub available_bytes: u64,
    /// Used part of its disk, 0 to 1.
    pub fill: f64,
    /// Held.
    pub shards: u64,
    /// Of its program.
    pub version: String,
    /// Since it was last heard of.
    pub heartbeat_age_ms: u64,
}

/// Chunks of all classes.
#[derive(Clone, Debug, Serialize)]
pub struct Chunks {
    /// Sealed.
    pub total: u64,
    /// Some shard is not where it can be read.
    pub degraded: u64,
    /// Can't be read at all.
    pub missing: u64,
    /// Handed out to be written, not named by any file yet.
    pub planned: u64,
    /// Waiting to be deleted.
    pub garbage: u64,
    /// For each class.
    pub by_class: Vec<ClassChunks>,
}

/// Chunks of one class.
#[derive(Clone, Debug, Serialize)]
pub struct ClassChunks {
    /// "replicated:3".
    pub class: String,
    /// Sealed.
    pub chunks: u64,
    /// Their lengths, each stored once.
    pub bytes: u64,
    /// Bytes of them that files still name.
    pub live_bytes: u64,
    /// Copies for now: their class codes, but they were too short for it.
    pub short: u64,
    /// Chunks by redundancy left: first those that bear no further loss.
    pub by_spare: Vec<u64>,
    /// See [`Chunks::degraded`].
    pub degraded: u64,
    /// See [`Chunks::missing`].
    pub missing: u64,
}

/// One client.
#[derive(Clone, Debug, Serialize)]
pub struct Session {
    /// Its number.
    pub session: u64,
    /// Host, process and mount point.
    pub client: String,
    /// Of its program.
    pub version: String,
    /// Since it was last heard of.
    pub heartbeat_age_ms: u64,
    /// Inodes it has open.
    pub open_files: u64,
    /// Locks it holds.
    pub locks: u64,
}

impl Health {
    /// The program's exit code: 0, 1 or 2.
    pub fn exit_code(self) -> u8 {
        self as u8
    }

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::AtRisk => "at risk",
        }
    }
}

impl Report {
    /// Judges what the server at `server` said.
    pub fn new(status: &ClusterStatus, server: &str) -> Self {
        let (health, reasons) = judge(status);
        let sum = |field: fn(&ClassStatus) -> u64| status.classes.iter().map(field).sum();
        Self {
            health,
            reasons,
            cluster: cluster_name(&status.cluster),
            server: server.to_owned(),
            version: status.version.clone(),
            uptime_ms: status.uptime_ms,
            files: status.files,
            capacity: Capacity {
                total_bytes: status.total_bytes,
                used_bytes: status.used_bytes,
                available_bytes: status.available_bytes,
            },
            store: Store { bytes: status.store_bytes, full: status.store_full },
            nodes: status.nodes.iter().map(Node::from).collect(),
            chunks: Chunks {
                total: sum(|class| class.chunks),
                degraded: sum(|class| class.degraded),
                missing: sum(|class| class.missing),
                planned: status.chunks_planned,
                garbage: status.chunks_garbage,
                by_class: status.classes.iter().map(ClassChunks::from).collect(),
            },
            sessions: status.sessions.iter().map(Session::from).collect(),
        }
    }
}

/// The verdict and its reasons, the worst first.
fn judge(status: &ClusterStatus) -> (Health, Vec<String>) {
    let mut reasons = Vec::new();
    let mut because = |health: Health, reason: String| reasons.push((health, reason));
    for class in &status.classes {
        let name = &class.class;
        if class.missing > 0 {
            because(Health::AtRisk, format!("{} chunks of class {name} can't be read", class.missing));
        }
        let exposed = class.by_spare.first().copied().unwrap_or(0);
        // A class without redundancy is always exposed: that was chosen.
        let tolerates = name.parse::<Redundancy>().map_or(0, |class| class.shards() - class.needed_to_read());
        if exposed > 0 && tolerates > 0 {
            because(
                Health::AtRisk,
                format!("{exposed} chunks of class {name} would not survive one more loss"),
            );
        }
        if class.degraded > 0 {
            because(Health::Degraded, format!("{} chunks of class {name} lack redundancy", class.degraded));
        }
    }
    if status.store_full {
        because(
            Health::Degraded,
            "the metadata server's disk is full: only what frees space is accepted".into(),
        );
    }
    if status.nodes.is_empty() {
        because(Health::Degraded, "no chunk daemon has joined: nothing can be written".into());
    }
    for node in &status.nodes {
        let state = state_name(node);
        if state != "up" {
            let id = node.node.as_ref().map_or(0, |node| node.node);
            because(Health::Degraded, format!("chunk daemon {id} is {}", state.replace('_', "-")));
        }
    }
    reasons.sort_by_key(|(health, _)| std::cmp::Reverse(*health));
    let health = reasons.first().map_or(Health::Healthy, |(health, _)| *health);
    (health, reasons.into_iter().map(|(_, reason)| reason).collect())
}

fn state_name(node: &NodeStatus) -> &'static str {
    match node.state() {
        NodeState::Up => "up",
        NodeState::Suspect => "suspect",
        NodeState::Down => "down",
        NodeState::NodeReadOnly => "read_only",
    }
}

impl From<&NodeStatus> for Node {
    fn from(status: &NodeStatus) -> Self {
        let address = status.node.clone().unwrap_or_default();
        let labels = address.labels.unwrap_or_default();
        let used = status.capacity_bytes.saturating_sub(status.available_bytes);
        Self {
            node: address.node,
            state: state_name(status),
            address: address.address,
            host: labels.host,
            rack: labels.rack,
            zone: labels.zone,
            capacity_bytes: status.capacity_bytes,
            available_bytes: status.available_bytes,
            fill: used as f64 / status.capacity_bytes.max(1) as f64,
            shards: status.shards,
            version: status.version.clone(),
            heartbeat_age_ms: status.heartbeat_age_ms,
        }
    }
}

impl From<&ClassStatus> for ClassChunks {
    fn from(status: &ClassStatus) -> Self {
        Self {
            class: status.class.clone(),
            chunks: status.chunks,
            bytes: status.bytes,
            live_bytes: status.live_bytes,
            by_spare: status.by_spare.clone(),
            short: status.short,
            degraded: status.degraded,
            missing: status.missing,
        }
    }
}

impl From<&SessionStatus> for Session {
    fn from(status: &SessionStatus) -> Self {
        Self {
            session: status.session,
            client: status.client.clone(),
            version: status.version.clone(),
            heartbeat_age_ms: status.heartbeat_age_ms,
            open_files: status.open_files,
            locks: status.locks,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(class: ClassStatus, states: &[NodeState]) -> ClusterStatus {
        let node = |state: &NodeState| NodeStatus { state: (*state).into(), ..NodeStatus::default() };
        let nodes = states.iter().map(node).collect();
        ClusterStatus { classes: vec![class], nodes, ..ClusterStatus::default() }
    }

    #[test]
    fn the_verdict_is_the_worst_of_its_reasons() {
        let class = |class: &str, by_spare: &[u64], degraded, missing| ClassStatus {
            class: class.into(),
            chunks: 10,
            by_spare: by_spare.to_vec(),
            degraded,
            missing,
            ..ClassStatus::default()
        };
        let up = [NodeState::Up];
        let verdict = |class, states: &[NodeState]| {
            let report = Report::new(&status(class, states), "here");
            assert_eq!(report.reasons.is_empty(), report.health == Health::Healthy, "{:?}", report.reasons);
            report.health
        };
        assert_eq!(verdict(class("replicated:3", &[0, 0, 10], 0, 0), &up), Health::Healthy);
        assert_eq!(verdict(class("replicated:1", &[10], 0, 0), &up), Health::Healthy, "as was chosen");
        assert_eq!(verdict(class("replicated:3", &[0, 1, 9], 1, 0), &up), Health::Degraded);
        assert_eq!(verdict(class("replicated:3", &[1, 0, 9], 1, 0), &up), Health::AtRisk);
        assert_eq!(verdict(class("replicated:1", &[9], 1, 1), &up), Health::AtRisk);
        let down = [NodeState::Up, NodeState::Down];
        assert_eq!(verdict(class("replicated:3", &[0, 0, 10], 0, 0), &down), Health::Degraded);
        assert_eq!(verdict(class("replicated:3", &[0, 0, 10], 0, 0), &[]), Health::Degraded);
    }

    #[test]
    fn programs_find_what_they_were_promised() {
        let class =
            ClassStatus { class: "replicated:3".into(), chunks: 4, degraded: 1, ..ClassStatus::default() };
        let report = Report::new(&status(class, &[NodeState::Up]), "here");
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["health"], "degraded");
        assert_eq!((&json["chunks"]["total"], &json["chunks"]["degraded"]), (&4.into(), &1.into()));
        assert_eq!(json["chunks"]["missing"], 0);
        assert_eq!(json["nodes"][0]["state"], "up");
        assert!(json["sessions"].is_array());
        assert_eq!(report.health.exit_code(), 1);
    }
}
