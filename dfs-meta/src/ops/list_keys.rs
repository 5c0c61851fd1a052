//! All keys of the cluster: their names, and what tells whether somebody has them.

use dfs_proto::meta::Keys;
use dfs_proto::{Failure, limits};

use super::{Context, data_keys};
use crate::store::keys;
use crate::store::records::MasterKey;

pub(super) fn run(cx: &mut Context<'_, '_>) -> Result<Keys, Failure> {
    let all = cx.tx.scan::<MasterKey>(&keys::master_keys(), limits::MAX_KEYS)?;
    let shown = all.iter().map(|(key, master)| data_keys::shown(keys::master_key_name(key), master));
    Ok(Keys { keys: shown.collect() })
}
