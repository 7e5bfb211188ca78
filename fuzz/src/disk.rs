//! What is read from disks: logs, states, backups, records and snapshots, each with its checksum made good.

use crate::same_again;
use kvhive_control::Registry;
use kvhive_coordinator::fuzz as coordinator;
use kvhive_node::fuzz as node;

/// A record of the coordinators' log.
pub(crate) fn log_record(bytes: &[u8]) {
    same_again(bytes, coordinator::log_record);
}

/// A segment of it; it has no more records than sectors.
pub(crate) fn log_segment(bytes: &[u8]) {
    if let Some(records) = coordinator::log_segment(bytes) {
        assert!(records <= bytes.len() / 512, "{records} records in {} bytes", bytes.len());
    }
}

/// The state that a snapshot of the log holds.
pub(crate) fn state(bytes: &[u8]) {
    same_again(bytes, |bytes| Registry::restore(bytes).ok().map(|state| state.snapshot()));
}

/// A backup.
pub(crate) fn backup(bytes: &[u8]) {
    same_again(bytes, coordinator::backup);
}

/// The page of a record of the disk tier.
pub(crate) fn disk_record(bytes: &[u8]) {
    same_again(bytes, node::disk_record);
}

/// What stands before a block in a node's snapshot.
pub(crate) fn snapshot_block(bytes: &[u8]) {
    same_again(bytes, node::snapshot_block);
}

/// The manifest of one.
pub(crate) fn snapshot_manifest(bytes: &[u8]) {
    same_again(bytes, node::snapshot_manifest);
}
