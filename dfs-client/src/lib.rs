//! A dfs cluster as a library: POSIX semantics without FUSE.
//!
//! Arrows go one way: `fs` (the face: inodes, handles, locks) → `data` (dirty buffers, extents, reader, writer) →
//! `chunk` (one chunk to and from its nodes, with `erasure` and `buffers`), `encoding` (what a chunk's content is stored as)
//! → `keys`, and `session` (calls to the metadata server, exactly once) → `line` (many calls on one stream). [`verify`]
//! checks a chunk on every node that keeps it, for administrators; it needs no session.

pub mod buffers;
mod chunk;
pub mod data;
pub mod encoding;
pub mod erasure;
#[cfg(test)]
mod fake;
pub mod fs;
pub mod keys;
mod line;
pub mod session;
#[cfg(test)]
mod testing;

pub use chunk::verify;
