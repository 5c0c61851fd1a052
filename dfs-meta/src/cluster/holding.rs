//! What a cluster can hold: whether a class can be had in it at all, and what `auto` comes to.

use std::collections::BTreeSet;

use dfs_proto::class::Rule;
use dfs_proto::{Class, Code, Failure, Labels, NodeId, Redundancy};

use super::domain::{Domain, LEVELS, Level, domains};

/// A chunk daemon and where it is.
pub type NodePlace = (NodeId, Labels);

/// What a long chunk of this class is kept as on these nodes.
pub fn redundancy_of(class: &Class, nodes: impl Iterator<Item = NodePlace>) -> Redundancy {
    match class.choices() {
        [only] => *only,
        choices => {
            let nodes: Vec<_> = nodes.filter(|(_, labels)| class.allows_zone(&labels.zone)).collect();
            let can = choices.iter().find(|choice| missing(**choice, &nodes).is_none());
            *can.or(choices.last()).expect("a class has choices")
        }
    }
}

/// INVALID, with what is missing: nodes in the zones that are allowed, or so many hosts that none of them holds more shards
/// than a chunk can lose. Asked when a directory is given the class; `nodes` are those that are away, too: it is about what
/// the cluster is made of. A cluster without any node can hold everything: its first ones are still to come.
pub fn check_can_hold(class: &Class, nodes: &[NodePlace]) -> Result<(), Failure> {
    let refused = |why: String| {
        Failure::new(Code::Invalid, format!("this cluster cannot hold the class {class}: {why}"))
    };
    if nodes.is_empty() {
        return Ok(());
    }
    if let Some(zone) = class.zones.iter().find(|zone| nodes.iter().all(|(_, labels)| labels.zone != **zone))
    {
        return Err(refused(format!("no chunk daemon is in the zone {zone:?}")));
    }
    let allowed = nodes.iter().filter(|(_, labels)| class.allows_zone(&labels.zone)).cloned();
    match class.rule {
        Rule::Fixed(redundancy) => match missing(redundancy, &allowed.collect::<Vec<_>>()) {
            None => Ok(()),
            Some(why) => Err(refused(why)),
        },
        Rule::Auto => Ok(()),
    }
}

/// Why these nodes cannot hold chunks that are kept so, if they can't.
fn missing(redundancy: Redundancy, nodes: &[NodePlace]) -> Option<String> {
    let shards = redundancy.shards() as usize;
    if nodes.len() < shards {
        return Some(format!("it needs {shards} chunk daemons, and there are {}", nodes.len()));
    }
    let level = LEVELS.iter().position(|level| *level == Level::Host).expect("a level");
    let hosts: BTreeSet<Domain> =
        nodes.iter().map(|(id, labels)| domains(*id, labels)[level].clone()).collect();
    let spare = shards - redundancy.needed_to_read() as usize;
    let on_one = shards.div_ceil(hosts.len());
    // A single host is taken for what it is: more could not be had of it.
    (spare > 0 && hosts.len() > 1 && on_one > spare).then(|| {
        format!(
            "of its {shards} shards {on_one} would be on one of the {} hosts, and no more than {spare} may be lost: it needs \
             {} hosts",
            hosts.len(),
            shards.div_ceil(spare),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the class can be held by nodes with these hosts and zones, and if not, why.
    fn check(class: &str, places: &[(&str, &str)]) -> Result<(), String> {
        let labels = |&(host, zone): &(&str, &str)| Labels {
            host: host.into(),
            zone: zone.into(),
            rack: String::new(),
        };
        let nodes: Vec<_> = (1..).map(NodeId).zip(places.iter().map(labels)).collect();
        check_can_hold(&class.parse().unwrap(), &nodes).map_err(|failure| failure.message)
    }

    #[test]
    fn there_must_be_a_node_for_each_shard() {
        let six = [("", ""); 6];
        for class in ["ec:4+2", "replicated:5", "ec:2+1", "auto"] {
            assert_eq!(check(class, &six), Ok(()), "{class}");
        }
        let why = check("ec:6+3", &six).unwrap_err();
        assert_eq!(
            why,
            "this cluster cannot hold the class ec:6+3: it needs 9 chunk daemons, and there are 6"
        );
        assert_eq!(check("ec:6+3", &[]), Ok(()), "the first nodes are still to come");
        assert_eq!(check("auto", &six[..1]), Ok(()));
    }

    #[test]
    fn no_host_may_hold_more_than_a_chunk_can_lose() {
        let hosts = |count: usize, each: usize| -> Vec<(&str, &str)> {
            ["a", "b", "c", "d"][..count].iter().flat_map(|host| vec![(*host, ""); each]).collect()
        };
        assert_eq!(check("ec:4+2", &hosts(3, 2)), Ok(()));
        assert!(check("ec:4+2", &hosts(2, 3)).unwrap_err().ends_with("it needs 3 hosts"));
        assert_eq!(check("ec:4+2", &hosts(1, 6)), Ok(()), "one machine is all there is");
        assert_eq!(check("replicated:3", &hosts(2, 3)), Ok(()), "either may go");
        assert_eq!(check("replicated:1", &hosts(2, 3)), Ok(()));
    }

    #[test]
    fn auto_codes_as_wide_as_the_nodes_and_hosts_allow() {
        let on = |hosts: &[&str]| {
            let labels = |host: &&str| Labels { host: (*host).into(), ..Labels::default() };
            let nodes = (1..).map(NodeId).zip(hosts.iter().map(labels));
            redundancy_of(&"auto".parse().unwrap(), nodes).to_string()
        };
        let unlabelled = |count: usize| on(&vec![""; count]);
        assert_eq!(
            [11, 10, 6, 5, 4, 3, 1].map(unlabelled),
            ["ec:8+3", "ec:4+2", "ec:4+2", "ec:2+2", "ec:2+2", "replicated:3", "replicated:3"]
        );
        assert_eq!(on(&["a", "a", "a", "b", "b", "b"]), "ec:2+2", "either host may go");
        assert_eq!(on(&["a"; 6]), "ec:4+2");
    }

    #[test]
    fn zones_must_have_enough() {
        let places = [("a", "x"), ("b", "x"), ("c", "y"), ("d", "y")];
        assert_eq!(check("replicated:2,zone=x", &places), Ok(()));
        assert_eq!(check("replicated:3,zone=x,zone=y", &places), Ok(()));
        assert!(check("replicated:3,zone=x", &places).unwrap_err().contains("there are 2"));
        assert!(check("auto,zone=z", &places).unwrap_err().contains("no chunk daemon is in the zone \"z\""));
    }
}
