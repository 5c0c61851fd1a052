//! The dfs metadata server: namespace, extents, chunk plans, locks, cluster membership.
