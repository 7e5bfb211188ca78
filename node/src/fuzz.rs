//! Doors for `kvhive-fuzz`: what a node reads from disks and callers, below its checksums. Not for anybody else.

pub use crate::disk::fuzz_record as disk_record;
pub use crate::persist::fuzz::{snapshot_block, snapshot_manifest};
pub use crate::redis::fuzz::redis;
