//! Which sessions were heard of when.

/// Sessions' liveness.
#[derive(Default)]
pub struct SessionTable {}
