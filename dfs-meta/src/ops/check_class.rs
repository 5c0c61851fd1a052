//! Whether a class can be had in this cluster.

use dfs_proto::meta::{CheckClass, Done};
use dfs_proto::{Class, Failure};

use super::{Context, data_keys};
use crate::cluster;
use crate::live::nodes::{self, MAX_NODES};
use crate::store::keys::{self, Key};
use crate::store::records::Node;

/// INVALID or NO_KEY, with the reason.
pub(super) fn run(cx: &mut Context<'_, '_>, request: &CheckClass) -> Result<Done, Failure> {
    check(cx, &request.class).map(|_| Done {})
}

/// The class that a text means, if the cluster can hold it. INVALID; NO_KEY when its key is not there.
pub(super) fn check(cx: &mut Context<'_, '_>, text: &str) -> Result<Class, Failure> {
    let class: Class = text.parse()?;
    let nodes = cx.tx.scan::<Node>(&keys::nodes(), MAX_NODES)?;
    let place = |(key, node): &(Key, Node)| {
        let id = keys::node_id(key);
        (id, nodes::address(id, node).labels.unwrap_or_default())
    };
    let places: Vec<_> = nodes.iter().map(place).collect();
    cluster::check_can_hold(&class, &places)?;
    if let Some(key) = &class.key {
        data_keys::load_master(cx, key)?;
    }
    Ok(class)
}

#[cfg(test)]
mod tests {
    use dfs_proto::Code;
    use dfs_proto::meta::request;

    use super::super::testing::Bench;
    use super::*;

    #[test]
    fn what_cannot_be_had_is_told_with_the_reason() {
        let mut bench = Bench::with_nodes(3);
        let mut check =
            |class: &str| bench.run(request::Op::CheckClass(CheckClass { class: class.into() })).map(|_| ());
        assert_eq!([check("replicated:3"), check("ec:2+1"), check("auto")], [Ok(()), Ok(()), Ok(())]);
        for (bad, reason) in
            [("ec:4+2", "needs 6 chunk daemons"), ("raid5", "is not a class"), ("auto,zone=z", "zone")]
        {
            let failure = check(bad).unwrap_err();
            assert!(failure.code == Code::Invalid && failure.message.contains(reason), "{failure}");
        }
    }
}
