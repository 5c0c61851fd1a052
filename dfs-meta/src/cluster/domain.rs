//! Failure domains: node < host < rack < zone. A label that was not told is that of the next narrower level, so that
//! three disks of one unlabelled host are one host, one rack and one zone.

use dfs_proto::{Labels, NodeId};

/// How wide a domain is, from the widest to the narrowest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// A site or a room.
    Zone,
    /// A rack.
    Rack,
    /// A machine.
    Host,
    /// A single chunk daemon's disk.
    Node,
}

/// From the widest to the narrowest.
pub const LEVELS: [Level; 4] = [Level::Zone, Level::Rack, Level::Host, Level::Node];

/// A domain; equal ones fail together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Domain {
    /// By its zone's label.
    Zone(String),
    /// By its rack's label.
    Rack(String),
    /// By its host's label.
    Host(String),
    /// By itself.
    Node(NodeId),
}

/// The domains of a node at each of [`LEVELS`].
pub fn domains(node: NodeId, labels: &Labels) -> [Domain; 4] {
    let own = Domain::Node(node);
    let or = |label: &str, domain: fn(String) -> Domain, narrower: &Domain| match label {
        "" => narrower.clone(),
        label => domain(label.to_owned()),
    };
    let host = or(&labels.host, Domain::Host, &own);
    let rack = or(&labels.rack, Domain::Rack, &host);
    let zone = or(&labels.zone, Domain::Zone, &rack);
    [zone, rack, host, own]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_told_is_as_wide_as_what_was() {
        let labels = |host: &str, rack: &str, zone: &str| Labels {
            host: host.into(),
            rack: rack.into(),
            zone: zone.into(),
        };
        let [zone, rack, host, own] = domains(NodeId(7), &labels("h", "", ""));
        assert_eq!((zone, rack, host.clone()), (host.clone(), host.clone(), Domain::Host("h".into())));
        assert_eq!(own, Domain::Node(NodeId(7)));
        let [zone, rack, host, _] = domains(NodeId(7), &labels("", "", "z"));
        assert_eq!(
            (zone, rack, host),
            (Domain::Zone("z".into()), Domain::Node(NodeId(7)), Domain::Node(NodeId(7)))
        );
    }
}
