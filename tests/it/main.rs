//! Every test that crosses crates, as one binary.

mod library;
mod mount_calls;
mod mount_life;
mod mount_waits;
