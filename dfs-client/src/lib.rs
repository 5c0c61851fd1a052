//! A dfs cluster as a library: POSIX semantics without FUSE.
