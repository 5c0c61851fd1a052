//! Every test that crosses crates, as one binary: each starts a cluster of real daemons of its own.

mod classes;
mod crash;
mod failure;
mod keys;
mod library;
mod locks;
mod model;
mod mount;
mod mount_calls;
mod mount_life;
mod mount_waits;
mod operating;
mod permissions;
mod posix;
mod real_work;
mod verify;
