//! The daemon from outside: real connections, real processes, a real disk, and a metadata server that says what a test
//! wants it to say.

mod client;
mod cluster;
mod crash;
mod meta;
mod program;
mod transfer;
