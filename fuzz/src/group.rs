//! What coordinators tell each other.

use crate::same_again;
use kvhive_consensus::fuzz;

/// A raft message, by a peer that stands anywhere.
pub(crate) fn message(bytes: &[u8]) -> bool {
    same_again(bytes, fuzz::message)
}

/// The messages of one frame.
pub(crate) fn frame(bytes: &[u8]) -> bool {
    same_again(bytes, kvhive_coordinator::fuzz::raft_frame)
}

/// What is not raft's own: words of who stands where, hard states, changes of the group, groups before snapshots, seats.
pub(crate) fn words(bytes: &[u8]) -> bool {
    same_again(bytes, |bytes| {
        let (which, bytes) = bytes.split_first()?;
        let read = match which % 5 {
            0 => fuzz::word,
            1 => fuzz::hard_state,
            2 => fuzz::group_change,
            3 => fuzz::group,
            _ => kvhive_coordinator::fuzz::seat,
        };
        Some([&[*which], read(bytes)?.as_slice()].concat())
    })
}
