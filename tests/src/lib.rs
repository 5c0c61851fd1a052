//! What crosses crates: the cluster harness, the reference model, fault injection.
