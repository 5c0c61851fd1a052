//! The chunk daemon.

fn main() {}
