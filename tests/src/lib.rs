//! What crosses crates: the cluster harness and the means to find out whether a filesystem does what it should.
//!
//! | file | what it is |
//! |---|---|
//! | [`cluster`] | real daemons as child processes: start, kill, start again |
//! | [`mounted`] | a real mount that is always taken down |
//! | [`programs`] | the binaries, built once, and tools from crates.io |
//! | [`operation`] | what random tests do to a filesystem, and the trait of what they do it to |
//! | [`model`] | a reference filesystem in memory |
//! | [`tree`] | a whole filesystem as a value, compared |
//! | [`random`] | random operations on a target beside the model |
//! | [`library_target`] | the client library as a target |
//! | [`posix_target`] | a directory as a target: a mount, or the local disk to check the model |
//! | [`commands`] | other programs, bounded |
//! | [`journal`] | a writer that remembers what was acknowledged |
//! | [`disks`] | small disks, and damage to what lies on them |
//! | [`invariants`] | what must hold of a cluster at any quiet moment |
//! | [`sources`] | a source tree to do real work on |
//! | [`search`] | secrets looked for where they must not be |
//! | [`terminal`] | a program that asks people |
//! | [`watchdog`] | the bound on a whole test |
//! | [`keeper`] | the thread that all child processes belong to |

pub mod cluster;
pub mod commands;
pub mod disks;
pub mod fsx;
pub mod invariants;
pub mod journal;
pub mod keeper;
pub mod library_target;
pub mod model;
pub mod mounted;
pub mod operation;
pub mod posix_target;
pub mod programs;
pub mod random;
pub mod search;
pub mod sources;
pub mod terminal;
pub mod tree;
pub mod watchdog;

/// How much of something a test does: `quick`, or `full` where `DFS_TESTS_FULL` is set, for those that would take most
/// of an hour together.
pub fn amount(quick: u32, full: u32) -> u32 {
    if std::env::var_os("DFS_TESTS_FULL").is_some() { full } else { quick }
}
