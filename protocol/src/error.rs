//! Errors as they travel: what a peer may do differently about each.

use crate::counted::{counted, counted_are};
use crate::{DeviceId, Epoch, Level, TenantId};
use serde::{Deserialize, Serialize};
use std::fmt;
use thiserror::Error;

/// The longest explanation that travels, in bytes.
const MAX_DETAIL_BYTES: usize = 256;

/// An answer that is not what was asked for.
#[derive(Clone, PartialEq, Eq, Debug, Error, Serialize, Deserialize)]
pub enum WireError {
    /// The asker's cluster map is old: fetch a newer one and ask once more.
    #[error("the cluster map has moved on to epoch {epoch}")]
    StaleEpoch {
        /// The answering member's epoch.
        epoch: Epoch,
    },
    /// The member holds no lease by which it could serve this: ask another replica, or later.
    #[error("this member holds no lease by which it could serve this")]
    NoLease,
    /// Too much is under way: back off, then repeat.
    #[error("busy: {what}")]
    Busy {
        /// What is full.
        what: String,
    },
    /// The request passes a limit: make it smaller.
    #[error("{bytes} bytes are over the limit of {limit}")]
    TooLarge {
        /// What was asked.
        bytes: u64,
        /// What is allowed.
        limit: u64,
    },
    /// The member has no such device: fetch a newer map.
    #[error("device {device} is not on this member")]
    WrongDevice {
        /// What was asked for.
        device: DeviceId,
    },
    /// No such tenant in the map.
    #[error("tenant {tenant} does not exist")]
    UnknownTenant {
        /// What was asked for.
        tenant: TenantId,
    },
    /// Bytes that are no message of this protocol: the connection is closed.
    #[error("malformed: {detail}")]
    Malformed {
        /// What is wrong with them.
        detail: String,
    },
    /// The token is missing or wrong: the connection is closed.
    #[error("authentication failed: the token is missing or wrong")]
    Unauthorized,
    /// The peer may not ask this in its role.
    #[error("a {role} may not {what}")]
    Forbidden {
        /// The asker's role.
        role: String,
        /// What it asked.
        what: String,
    },
    /// The two ends speak no common level: upgrade one.
    #[error(
        "no common level: this end speaks {ours_min} to {ours_max}, the other {theirs_min} to {theirs_max}; run builds of \
         kvhive on both that have one in common"
    )]
    Version {
        /// The oldest level that the refusing end speaks.
        ours_min: u16,
        /// The newest level that the refusing end speaks.
        ours_max: u16,
        /// The oldest level that the asker offered.
        theirs_min: u16,
        /// The newest level that the asker offered.
        theirs_max: u16,
    },
    /// The peer is of another cluster: check its address.
    #[error("this is a member of another cluster")]
    WrongCluster,
    /// This coordinator does not lead: ask the one named, or look for it.
    #[error("this coordinator does not lead")]
    NotLeader {
        /// Where the leader listens, if known.
        leader: Option<String>,
    },
    /// The deadline passed before the answer was there.
    #[error("deadline passed")]
    Deadline,
    /// The request was refused for a reason that a repeat does not change.
    #[error("refused: {detail}")]
    Rejected {
        /// Why.
        detail: String,
    },
    /// The outcome is unknown: leadership changed while it was under way. Repeat it under the same request id.
    #[error("outcome unknown: leadership changed while the request was under way")]
    OutcomeUnknown,
    /// Something broke on the answering side; it is in that process's log.
    #[error("internal error: {detail}")]
    Internal {
        /// What broke.
        detail: String,
    },
    /// The member speaks TLS alone: the connection is closed.
    #[error("this cluster speaks TLS: connect with its authorities, a certificate and the certificate's key")]
    TlsRequired,
    /// A member that does not speak its cluster's level: run a newer build there.
    #[error(
        "the cluster is at level {cluster}, from which it does not go back, and this member speaks none after {speaks}: run a newer build of \
         kvhive there, or raise its cluster.max_level"
    )]
    TooOld {
        /// The newest level that it speaks.
        speaks: Level,
        /// The cluster's.
        cluster: Level,
    },
    /// The cluster's level is too low for this: it is once all members are upgraded.
    #[error(
        "{what} needs level {needs} and the cluster is at level {cluster}, as not every member speaks a newer one yet: upgrade those that \
         `kvhive status` names"
    )]
    NotYet {
        /// What was asked.
        what: String,
        /// From which level on it can be.
        needs: Level,
        /// The cluster's.
        cluster: Level,
    },
    /// The change is made, and who may be serving by a map of before has not confirmed it: not acknowledged yet. Repeat it under the
    /// same request id to wait on.
    #[error(
        "made, but not acknowledged yet: {} may be serving older blocks. It is acknowledged when it is heard again, is started anew at its \
         address, is taken off the list (`kvhive drain NAME --forget`, once its process has ended), or its serving lease is over",
        StillServing::listed(by, *others)
    )]
    StillServed {
        /// By whom, at most [`MAX_STILL_SERVING`].
        by: Vec<StillServing>,
        /// How many more there are.
        others: u32,
    },
    /// No majority of the coordinators is there: nothing can be changed, while nodes go on serving.
    #[error(
        "no leader among the coordinators that answer: nothing can be changed before a majority of them runs and reaches one another; \
         nodes go on serving what they have"
    )]
    NoMajority,
    /// Another change was asked under this name before: this one was not made, and never will be under it.
    #[error("another change was asked under this name before: draw another name for this one")]
    AskedOtherwise,
    /// The policy's floor and ceiling stand against a size: change them, or go beyond them.
    #[error(
        "{} asked for, and the policy allows {floor} to {ceiling}: change it (`kvhive scale set`), give up the size \
         (`--automatic`), or go beyond it (`kvhive scale to {size} --beyond-policy`, `\"force\": true`)",
        counted_are(*size, "member")
    )]
    BeyondPolicy {
        /// The size that an operator asks for, or has asked for.
        size: u32,
        /// The fewest members.
        floor: u32,
        /// The most.
        ceiling: u32,
    },
    /// The others have too little room for what a member holds that is to be emptied.
    #[error(
        "{member}{} {} of {bytes} bytes that others are to take or may have let go, and these have {free_bytes} bytes free: \
         {short_bytes} bytes have no room where they would go. Start a node, or say that blocks may be lost (`may_lose`, `--yes`)",
        match beside {
            0 => " holds".to_owned(),
            1 => " and the one that is being emptied already hold together".to_owned(),
            others => format!(" and the {others} that are being emptied already hold together"),
        },
        counted(*blocks, "block")
    )]
    TooLittleRoom {
        /// Its name.
        member: String,
        /// Blocks that would go to others: its own, and of those who are being emptied.
        blocks: u64,
        /// Their bytes.
        bytes: u64,
        /// Bytes that the others can take in before anything leaves for them.
        free_bytes: u64,
        /// Bytes that have no room where they would go.
        short_bytes: u64,
        /// How many others are being emptied.
        beside: u32,
    },
    /// Blocks did not come by NCCL: send them.
    #[error("the blocks did not come by NCCL: {why}")]
    NotCarried {
        /// Why.
        why: String,
    },
    /// Another node is up under the name by which one registers: take another name, or repeat it until that one is down.
    #[error(
        "{name} is up at {address}, and no two nodes have one name: take another, or end that node first. If it has ended already, by itself or as it was killed, its name is free when its lease is over"
    )]
    NameTaken {
        /// The name.
        name: String,
        /// Where the node is that has it.
        address: String,
    },
}

/// The most members that [`WireError::StillServed`] names.
pub const MAX_STILL_SERVING: usize = 8;

/// Somebody who may be serving by a map of before.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StillServing {
    /// The member's name; none for those that registered after the state that the cluster was restored to.
    pub member: Option<String>,
    /// How long, in milliseconds, by what the leader knows: another one that comes to lead counts anew.
    pub for_ms: u64,
}

impl fmt::Display for StillServing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.member {
            Some(name) => f.write_str(name)?,
            None => f.write_str("nodes that registered after the restored state")?,
        }
        let seconds = self.for_ms.div_ceil(1000);
        match (seconds / 60, seconds % 60) {
            (0, seconds) => write!(f, " (for {seconds} s, longer if another coordinator comes to lead)"),
            (minutes, seconds) => {
                write!(f, " (for {minutes} min {seconds} s, longer if another coordinator comes to lead)")
            }
        }
    }
}

impl StillServing {
    fn listed(by: &[StillServing], others: u32) -> String {
        let mut all: Vec<String> = by.iter().map(StillServing::to_string).collect();
        if others > 0 {
            all.push(format!("{others} more"));
        }
        all.join(", ")
    }
}

impl WireError {
    /// Makes a [`WireError::Malformed`] with a bounded explanation.
    pub fn malformed(detail: fmt::Arguments<'_>) -> Self {
        WireError::Malformed { detail: bounded(detail) }
    }

    /// Makes a [`WireError::Busy`].
    pub fn busy(what: &str) -> Self {
        WireError::Busy { what: bounded(format_args!("{what}")) }
    }

    /// Makes a [`WireError::Rejected`] with a bounded explanation.
    pub fn rejected(detail: fmt::Arguments<'_>) -> Self {
        WireError::Rejected { detail: bounded(detail) }
    }

    /// Makes a [`WireError::Internal`] with a bounded explanation.
    pub fn internal(detail: fmt::Arguments<'_>) -> Self {
        WireError::Internal { detail: bounded(detail) }
    }
}

fn bounded(detail: fmt::Arguments<'_>) -> String {
    let mut text = detail.to_string();
    if text.len() > MAX_DETAIL_BYTES {
        let cut = (0..=MAX_DETAIL_BYTES).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(cut);
    }
    text
}
