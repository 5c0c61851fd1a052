//! Mounts a dfs cluster.

fn main() {}
