//! What a caller may do differently about a call that failed as a whole.

use kvhive_protocol::WireError;
use kvhive_wire::Fault;
use std::time::Duration;
use thiserror::Error;

/// Why a call failed as a whole. Single blocks that fail are in the call's report instead.
#[derive(Debug, Error)]
pub enum ClientError {
    /// No coordinator answered in time.
    #[error("no coordinator of {addresses:?} answered within {limit:.1?}; the last one said: {last}")]
    Unreachable {
        /// Who was asked.
        addresses: Vec<String>,
        /// How long.
        limit: Duration,
        /// The last failure.
        last: String,
    },
    /// The other end refused, for a reason that a repeat does not change. The message says what to do, where that is known.
    #[error("{0}{advice}", advice = advice(.0))]
    Refused(WireError),
    /// The call's arguments do not fit together.
    #[error("{0}")]
    Misuse(String),
    /// No such tenant in the cluster.
    #[error("tenant {0:?} does not exist; create it first")]
    UnknownTenant(String),
    /// One connection failed.
    #[error("{0}")]
    Connection(#[from] Fault),
}

fn advice(error: &WireError) -> &'static str {
    match error {
        WireError::Unauthorized => "; give this process the token of the cluster's token file",
        WireError::WrongCluster => "; compare the addresses with the cluster's file",
        WireError::Version { .. } => "; upgrade the older end",
        _ => "",
    }
}
