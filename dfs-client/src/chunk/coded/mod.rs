//! Chunks whose redundancy is `ec:K+M`: encoded while they are sent, one shard to each node; read from the data shards, and
//! rebuilt from any K where some of those are missing or slow.

mod read;
mod send;

pub(super) use self::send::send;
