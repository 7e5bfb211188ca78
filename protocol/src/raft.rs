//! What operators ask of the coordinators' raft group, through the admin API of any of them.

use serde::{Deserialize, Serialize};

/// What the coordinators know of one of them: part of their log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Seat {
    /// Its name in the cluster file.
    pub name: String,
    /// `host:port` of its raft and control plane.
    pub raft_address: String,
    /// `host:port` of its admin API.
    pub admin_address: String,
}

/// What is asked of the leader.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum RaftRequest {
    /// Hand leadership over; answered when another leads.
    Transfer {
        /// To the coordinator of this name; to the one that has most of the log when none.
        to: Option<String>,
    },
    /// How does the group stand?
    Status {
        /// Whoever is asked may answer, not the leader alone.
        stale: bool,
    },
    /// A coordinator follows, without a vote.
    Add {
        /// Its peer number.
        peer: u64,
        /// What the others are to know of it.
        seat: Seat,
    },
    /// One that follows and has caught up gets a vote.
    Promote {
        /// Its name.
        name: String,
        /// Whose place it takes, in one step.
        replaces: Option<String>,
    },
    /// One leaves the group.
    Remove {
        /// Its name.
        name: String,
    },
}

/// The raft group, as its leader knows it; or, after a handing over or where that is enough, as whoever was asked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RaftReport {
    /// The leader's name.
    pub leader: Option<String>,
    /// Raft's term.
    pub term: u64,
    /// Raft's committed index.
    pub committed: u64,
    /// Raft's applied index.
    pub applied: u64,
    /// Everybody in the group, by number.
    pub coordinators: Vec<RaftMember>,
}

/// One of the group.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RaftMember {
    /// Its peer number.
    pub peer: u64,
    /// What is known of it.
    pub seat: Seat,
    /// Whether it votes.
    pub vote: Vote,
    /// The last entry that it is known to have; none where somebody else than the leader answers.
    pub matched: Option<u64>,
    /// Entries that it lacks.
    pub lag: Option<u64>,
    /// It is being sent the whole state.
    pub takes_snapshot: bool,
    /// The leader has heard it within an election timeout.
    pub is_heard: bool,
}

/// Whether a coordinator votes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Vote {
    /// It does.
    Voter,
    /// It follows without a vote.
    Learner,
    /// It does until the change that is under way is through.
    Leaving,
}
