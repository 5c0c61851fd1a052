//! Forgets a key that nothing is encrypted with.

use dfs_proto::meta::{Done, RemoveKey};
use dfs_proto::{Code, Failure};

use super::{Context, data_keys};
use crate::store::keys;

/// BUSY, NO_KEY.
pub(super) fn run(cx: &mut Context<'_, '_>, request: &RemoveKey) -> Result<Done, Failure> {
    let master = data_keys::load_master(cx, &request.name)?;
    if master.data_keys > 0 {
        let message = format!(
            "the key {:?} is in use: {} data keys are encrypted with it, of directories, files, or chunks that are not \
             removed yet",
            request.name, master.data_keys
        );
        return Err(Failure::new(Code::Busy, message));
    }
    cx.tx.delete(keys::master_key(&request.name));
    Ok(Done {})
}
