//! The cluster's memory of itself: raft actor, members, admin API.

pub mod log;
