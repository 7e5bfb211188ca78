//! What is read from disks: logs, states, backups, records and snapshots, each with its checksum made good.

use crate::{same_again, summed};
use kvhive_control::Registry;
use kvhive_coordinator::fuzz as coordinator;
use kvhive_node::fuzz as node;
use kvhive_protocol::block::HEADER_BYTES;

/// A record of the coordinators' log.
pub(crate) fn log_record(bytes: &[u8]) -> bool {
    same_again(bytes, coordinator::log_record)
}

/// A segment of it; it has no more records than sectors.
pub(crate) fn log_segment(bytes: &[u8]) -> bool {
    let Some(records) = coordinator::log_segment(bytes) else { return false };
    assert!(records <= bytes.len() / 512, "{records} records in {} bytes", bytes.len());
    records > 0
}

/// Where a record's page has its block's header.
const BLOCK_AT: usize = 88;

/// The state that a snapshot of the log holds.
pub(crate) fn state(bytes: &[u8]) -> bool {
    same_again(bytes, |bytes| {
        let mut bytes = bytes.to_vec();
        summed(&mut bytes)?;
        Registry::restore(&bytes).ok().map(|state| state.snapshot())
    })
}

/// A backup; the state in it has a sum of its own.
pub(crate) fn backup(bytes: &[u8]) -> bool {
    same_again(bytes, |bytes| {
        let mut bytes = bytes.to_vec();
        let (rest, _) = bytes.split_last_chunk_mut::<32>()?;
        let (front, rest) = rest.split_first_chunk_mut::<16>()?;
        let head = front.last_chunk::<4>().map(|length| u32::from_le_bytes(*length))?;
        summed(rest.get_mut(head as usize..)?)?;
        coordinator::backup(&bytes)
    })
}

/// The page of a record of the disk tier.
pub(crate) fn disk_record(bytes: &[u8]) -> bool {
    same_again(bytes, |bytes| {
        let mut bytes = bytes.to_vec();
        summed(bytes.get_mut(BLOCK_AT..BLOCK_AT + HEADER_BYTES)?)?;
        node::disk_record(&bytes)
    })
}

/// What stands before a block in a node's snapshot.
pub(crate) fn snapshot_block(bytes: &[u8]) -> bool {
    same_again(bytes, |bytes| {
        let mut bytes = bytes.to_vec();
        summed(bytes.get_mut(..HEADER_BYTES)?)?;
        node::snapshot_block(&bytes)
    })
}

/// The manifest of one.
pub(crate) fn snapshot_manifest(bytes: &[u8]) -> bool {
    same_again(bytes, node::snapshot_manifest)
}
