//! What crosses crates: the cluster harness and the means to find out whether a filesystem does what it should.
//!
//! | file | what it is |
//! |---|---|
//! | [`cluster`] | real daemons as child processes: start, kill, start again |
//! | [`mounted`] | a real mount that is always taken down |
//! | [`programs`] | the binaries, built once, and tools from crates.io |
//! | [`keeper`] | the thread that all child processes belong to |

pub mod cluster;
pub mod keeper;
pub mod mounted;
pub mod programs;
