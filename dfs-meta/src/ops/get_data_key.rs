//! One data key, encrypted.

use dfs_proto::Failure;
use dfs_proto::meta::{DataKey, DataKeys, GetDataKey};

use super::{Context, data_keys};

/// NOT_FOUND.
pub(super) fn run(cx: &mut Context<'_, '_>, request: &GetDataKey) -> Result<DataKeys, Failure> {
    let record = data_keys::load(cx, request.id)?;
    let generation = data_keys::load_master(cx, &record.key)?.generation;
    let data_key = DataKey { id: request.id, key: record.key, generation, wrapped: record.wrapped.into() };
    Ok(DataKeys { data_keys: vec![data_key] })
}
