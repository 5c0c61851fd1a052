//! A dfs cluster as a library: POSIX semantics without FUSE.
//!
//! Arrows go one way: `fs` (the face: inodes, handles, locks) → `data` (dirty buffers, extents, reader, writer) →
//! `chunk` (one chunk to and from its nodes) and `session` (calls to the metadata server, exactly once).

mod chunk;
pub mod data;
#[cfg(test)]
mod fake;
pub mod fs;
pub mod session;
#[cfg(test)]
mod testing;
