//! Which chunk daemons were heard of when, and how full they are.

/// Chunk daemons' liveness and fill.
#[derive(Default)]
pub struct NodeTable {}
