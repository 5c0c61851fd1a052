//! Looking after a dfs cluster: what `dfs-admin` is made of. Nothing here changes a cluster's state behind the metadata
//! server's back.
//!
//! | file | what it does |
//! |---|---|
//! | [`dev`] | a whole cluster on one machine |
//! | [`status`] | the cluster's health, printed |
//! | [`report`] | the cluster's health, judged |
//! | [`info`] | where one file's bytes are |
//! | [`class`] | how directories are kept |
//! | [`key`] | keys that directories are encrypted with |
//! | [`verify`] | whether all shards are what was written; the digest of a tree |
//! | `locate` | which inode a path means |
//! | [`find`] | finds the metadata server |
//! | [`server`] | calls to the metadata server without a session |
//! | [`mounts`] | the kernel's table of mounts |
//! | [`daemon`] | one dfs program as a child process |
//! | [`print`] | numbers and tables for people |

pub mod class;
pub mod daemon;
pub mod dev;
pub mod find;
pub mod info;
pub mod key;
mod locate;
pub mod mounts;
pub mod print;
pub mod report;
pub mod server;
pub mod status;
pub mod verify;
