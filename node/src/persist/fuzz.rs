//! What a snapshot says, its checksums made good. For `kvhive-fuzz` alone.

use super::folder::Manifest;
use super::segment::Meta;

/// What stands before a block's bytes.
pub fn snapshot_block(bytes: &[u8]) -> Option<Vec<u8>> {
    Meta::read_good(bytes).map(|meta| meta.encode().to_vec())
}

/// The manifest of a snapshot.
pub fn snapshot_manifest(bytes: &[u8]) -> Option<Vec<u8>> {
    Manifest::read_good(bytes)?.to_text().ok()
}
