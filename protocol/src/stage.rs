//! Stages: how a client lends a node of its host memory of a GPU's, over which blocks go from one to the other without passing the host's.
//!
//! Over the data plane a client asks whether it may lend ([`LendRequest`]) and is offered a door and a pass, as for shared memory. At the
//! door it shows the pass and what it lends ([`StageLoan`]), and stays: the stage is lent for as long as it does. From then on it has blocks
//! be taken from there ([`StagedStore`]) and put there ([`StagedFetch`]), and names the stage by the pass.

use crate::data::{FetchRequest, StoreRequest};
use crate::ids::{DeviceId, Epoch};
use crate::share::{HostId, Pass};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Bytes of a [`StageLoan`] as it is shown at a door.
pub const STAGE_LOAN_BYTES: usize = 80;
/// The most bytes of one stage.
pub const MAX_STAGE_BYTES: u64 = 4 << 30;
/// The most stages that are lent to one node at a time.
pub const MAX_STAGES: usize = 64;

/// See [`crate::data::DataRequest::Lend`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LendRequest {
    /// The asker's map.
    pub epoch: Epoch,
    /// The device whose blocks are to go over the stage.
    pub device: DeviceId,
    /// Where the asker is.
    pub host: HostId,
}

/// By what a node finds a stage.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct StageLoan {
    /// CUDA's handle of the allocation that it lies in.
    pub handle: [u8; 64],
    /// Where in the allocation it begins.
    pub offset: u64,
    /// Its size.
    pub bytes: u64,
}

impl StageLoan {
    /// Returns it as it is shown at a door.
    pub fn to_bytes(&self) -> [u8; STAGE_LOAN_BYTES] {
        let mut bytes = [0; STAGE_LOAN_BYTES];
        bytes[..64].copy_from_slice(&self.handle);
        bytes[64..72].copy_from_slice(&self.offset.to_le_bytes());
        bytes[72..].copy_from_slice(&self.bytes.to_le_bytes());
        bytes
    }

    /// Reads it. None where it says more bytes than any stage has, or none.
    pub fn of_bytes(bytes: &[u8; STAGE_LOAN_BYTES]) -> Option<StageLoan> {
        let (handle, numbers) = bytes.split_first_chunk::<64>()?;
        let (offset, size) = numbers.split_first_chunk::<8>()?;
        let (offset, bytes) = (u64::from_le_bytes(*offset), u64::from_le_bytes(*size.first_chunk()?));
        let is_possible = (1..=MAX_STAGE_BYTES).contains(&bytes);
        is_possible.then_some(StageLoan { handle: *handle, offset, bytes })
    }
}

impl fmt::Debug for StageLoan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The handle opens the memory.
        f.debug_struct("StageLoan").field("offset", &self.offset).field("bytes", &self.bytes).finish()
    }
}

/// See [`crate::data::DataRequest::Gather`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StagedStore {
    /// By which pass the stage was lent.
    pub stage: Pass,
    /// Where on it each block begins, as it is before it is encoded; at a multiple of its size.
    pub at: Vec<u64>,
    /// The store, without a payload. It is no copy and says a layout; digests in headers mean nothing: the node takes them.
    pub store: StoreRequest,
}

/// See [`crate::data::DataRequest::Scatter`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StagedFetch {
    /// By which pass the stage was lent.
    pub stage: Pass,
    /// Where on it each block is to begin; at a multiple of its size.
    pub at: Vec<u64>,
    /// The fetch; it accepts raw blocks of a layout.
    pub fetch: FetchRequest,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loan_is_read_as_it_was_shown_and_no_larger_than_any_is() {
        let loan = StageLoan { handle: [7; 64], offset: 1, bytes: MAX_STAGE_BYTES };
        assert_eq!(StageLoan::of_bytes(&loan.to_bytes()), Some(loan));
        for bytes in [0, MAX_STAGE_BYTES + 1] {
            assert_eq!(StageLoan::of_bytes(&StageLoan { bytes, ..loan }.to_bytes()), None);
        }
        assert!(!format!("{loan:?}").contains("7, 7"), "who reads a log does not open it");
    }
}
