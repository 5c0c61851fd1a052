//! The metadata server.

fn main() {}
