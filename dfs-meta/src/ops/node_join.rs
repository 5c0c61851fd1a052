//! A chunk daemon comes to the cluster, or comes back: its disk tells which node it is, and each join begins a new
//! epoch, so that of two daemons with one disk only the later one counts.

use dfs_proto::meta::{NodeJoin, NodeJoined};
use dfs_proto::{Code, Failure, Labels, NodeId, PROTOCOL_VERSION};

use super::{Context, counters};
use crate::live::nodes::{Fill, MAX_NODES};
use crate::store::keys;
use crate::store::records::Node;

/// The longest label, version and address, in bytes.
const MAX_TEXT: usize = 255;

/// VERSION_UNKNOWN; EINVAL; NODE_REFUSED when the disk is known as another node, or not as the one it says.
pub(super) fn run(cx: &mut Context<'_, '_>, request: &NodeJoin) -> Result<NodeJoined, Failure> {
    let labels = request.labels.clone().unwrap_or_default();
    check(request, &labels)?;
    let (id, epoch) = match find_disk(cx, &request.disk)? {
        Some((id, known)) => (id, known.epoch),
        None => (NodeId(0), 0),
    };
    let id = match (id.0, request.node) {
        (0, 0) => NodeId(counters::take(cx, counters::LAST_NODE)?),
        (known, 0) => NodeId(known),
        (known, told) if known == told => NodeId(known),
        (0, told) => {
            return Err(refused(format!(
                "a disk says it is node {told} of this cluster, which does not know the disk: it may be a copy, or \
                 the metadata is older than the disk"
            )));
        }
        (known, told) => {
            return Err(refused(format!(
                "a disk says it is node {told}, but this cluster knows it as node {known}"
            )));
        }
    };
    let record = Node {
        disk: request.disk.to_vec(),
        address: request.address.clone(),
        host: labels.host,
        rack: labels.rack,
        zone: labels.zone,
        epoch: epoch + 1,
        capacity_bytes: request.capacity_bytes,
        version: request.version.clone(),
    };
    cx.tx.put(keys::node(id), &record);
    let fill = Fill {
        capacity_bytes: request.capacity_bytes,
        available_bytes: request.available_bytes,
        ..Fill::default()
    };
    cx.live.nodes.join(id, &record, fill, cx.uptime);
    Ok(NodeJoined {
        node: id.0,
        epoch: record.epoch,
        cluster: cx.settings.cluster.to_bytes(),
        heartbeat_ms: cx.settings.heartbeat.as_millis() as u64,
        timeout_ms: cx.settings.node_dead_after.as_millis() as u64,
    })
}

fn refused(message: String) -> Failure {
    Failure::new(Code::NodeRefused, message)
}

fn check(request: &NodeJoin, labels: &Labels) -> Result<(), Failure> {
    if request.protocol != PROTOCOL_VERSION {
        return Err(Failure::new(
            Code::VersionUnknown,
            format!(
                "the chunk daemon speaks protocol {}, this metadata server {PROTOCOL_VERSION}; install the same version",
                request.protocol
            ),
        ));
    }
    if request.disk.len() != 16 {
        return Err(Failure::new(Code::Invalid, "a disk's id has 16 bytes"));
    }
    let port = request.address.rsplit_once(':').map(|(host, port)| (host.is_empty(), port.parse::<u16>()));
    if !matches!(port, Some((false, Ok(1..)))) {
        let message = format!("{:?} is not an address: write host:port", request.address);
        return Err(Failure::new(Code::Invalid, message));
    }
    let texts = [&request.address, &request.version, &labels.host, &labels.rack, &labels.zone];
    if texts.iter().any(|text| text.len() > MAX_TEXT) {
        let message =
            format!("a chunk daemon's address, version and labels are at most {MAX_TEXT} bytes long");
        return Err(Failure::new(Code::Invalid, message));
    }
    Ok(())
}

/// The node that a disk is.
fn find_disk(cx: &mut Context<'_, '_>, disk: &[u8]) -> Result<Option<(NodeId, Node)>, Failure> {
    let nodes = cx.tx.scan::<Node>(&keys::nodes(), MAX_NODES)?;
    let full = nodes.len() == MAX_NODES;
    match nodes.into_iter().find(|(_, node)| node.disk == disk) {
        Some((key, node)) => Ok(Some((keys::node_id(&key), node))),
        None if full => {
            Err(Failure::new(Code::NodeRefused, format!("a cluster has at most {MAX_NODES} chunk daemons")))
        }
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use dfs_proto::meta::request;

    use super::super::testing::{Bench, answer};
    use super::*;

    fn join() -> NodeJoin {
        NodeJoin {
            disk: vec![9; 16].into(),
            address: "host:7610".into(),
            protocol: PROTOCOL_VERSION,
            ..NodeJoin::default()
        }
    }

    #[test]
    fn a_disk_is_the_same_node_for_ever() {
        let mut bench = Bench::new();
        let mut run = |join: NodeJoin| answer!(bench.run(request::Op::NodeJoin(join)), NodeJoined);
        let first = run(join()).unwrap();
        assert_eq!((first.node, first.epoch), (1, 1));
        let other = run(NodeJoin { disk: vec![8; 16].into(), ..join() }).unwrap();
        assert_eq!(other.node, 2);
        let again = run(NodeJoin { node: 1, address: "elsewhere:1".into(), ..join() }).unwrap();
        assert_eq!((again.node, again.epoch), (1, 2));
        assert_eq!(run(join()).unwrap().node, 1, "it had not yet written down who it is");
        for (node, disk) in [(2, 9), (1, 8), (3, 7), (3, 9)] {
            let confused = NodeJoin { node, disk: vec![disk; 16].into(), ..join() };
            assert_eq!(run(confused).unwrap_err().code, Code::NodeRefused, "disk {disk} as node {node}");
        }
    }

    #[test]
    fn bad_introductions_are_refused() {
        let mut bench = Bench::new();
        let labels = Labels { rack: "r".repeat(MAX_TEXT + 1), ..Labels::default() };
        for (bad, code) in [
            (NodeJoin { protocol: 99, ..join() }, Code::VersionUnknown),
            (NodeJoin { disk: vec![1; 15].into(), ..join() }, Code::Invalid),
            (NodeJoin { address: "host".into(), ..join() }, Code::Invalid),
            (NodeJoin { address: ":7610".into(), ..join() }, Code::Invalid),
            (NodeJoin { address: "host:0".into(), ..join() }, Code::Invalid),
            (NodeJoin { address: format!("{}:1", "h".repeat(300)), ..join() }, Code::Invalid),
            (NodeJoin { labels: Some(labels), ..join() }, Code::Invalid),
        ] {
            assert_eq!(bench.run(request::Op::NodeJoin(bad)).unwrap_err().code, code);
        }
        assert!(bench.run(request::Op::NodeJoin(join())).is_ok());
    }
}
