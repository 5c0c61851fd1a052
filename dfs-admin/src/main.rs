//! Looks after a dfs cluster.

fn main() {}
