//! The one thread that runs operations, and what it runs them on.

pub mod transaction;
