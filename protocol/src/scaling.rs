//! What the cluster agrees on about its size: the load that it has seen, and what may be made of it.

use serde::{Deserialize, Serialize};

/// How long one observation lasts, in seconds.
pub const OBSERVATION_SECONDS: u64 = 300;
/// The most observations that are remembered: two weeks of them.
pub const MAX_OBSERVATIONS: usize = 4032;

/// The whole cluster's load during one stretch of time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Observation {
    /// Which stretch: seconds since 1970 by [`OBSERVATION_SECONDS`].
    pub bucket: u64,
    /// Keys asked by match.
    pub asked: u64,
    /// Keys of those that were covered.
    pub covered: u64,
    /// Bytes of blocks taken in that were not there: what the working set grew by.
    pub new_bytes: u64,
}
