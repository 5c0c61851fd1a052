//! Chunk daemons and where to put shards on them. Pure: candidates in, nodes out; no store, no clock, no randomness.
//!
//! - `domain`     what fails together, as labels tell it
//! - `policy`     in which order nodes are liked: one trait, four policies
//! - `holding`    whether a class can be held at all
//! - `placement`  who gets the shards of a chunk: the policy's order under the rule that no two shards share a domain

pub mod domain;
pub mod holding;
pub mod placement;
pub mod policy;

pub use holding::{check_can_hold, redundancy_of};
pub use placement::{Candidate, Wanted, place};
pub use policy::{Placement, Policy};
