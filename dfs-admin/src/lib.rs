//! Looking after a dfs cluster: what `dfs-admin` is made of.
//!
//! | file | what it does |
//! |---|---|
//! | [`daemon`] | one dfs program as a child process |
//! | [`server`] | calls to the metadata server without a session |

pub mod daemon;
pub mod server;
