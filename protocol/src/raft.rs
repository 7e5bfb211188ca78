//! What operators ask of the coordinators' raft group, through the admin API of any of them.

use serde::{Deserialize, Serialize};

/// What is asked of the leader.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum RaftRequest {
    /// Hand leadership over; answered when another leads.
    Transfer {
        /// To the coordinator of this name; to the one that has most of the log when none.
        to: Option<String>,
    },
}

/// The raft group, as its leader or, after a handing over, its former leader knows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RaftReport {
    /// The leader's name.
    pub leader: Option<String>,
    /// Raft's term.
    pub term: u64,
}
