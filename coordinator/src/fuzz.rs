//! Doors for `kvhive-fuzz`: what a coordinator reads from disks, engines and operators, below its checksums. Not for anybody else.

use crate::actors::directory;
use crate::backup::Backup;
use crate::engines::format;
use crate::peers;

pub use crate::engines::zmtp::fuzz_publisher as zmtp;

pub use crate::admin::fuzz::{admin_body, admin_query};
pub use crate::log::fuzz::{log_record, log_segment};

/// A backup, its checksum made good.
pub fn backup(bytes: &[u8]) -> Option<Vec<u8>> {
    let at = bytes.len().checked_sub(blake3::OUT_LEN)?;
    let mut bytes = bytes.to_vec();
    let sum = blake3::hash(&bytes[..at]);
    bytes[at..].copy_from_slice(sum.as_bytes());
    Backup::decode(&bytes).ok().map(|backup| backup.encode())
}

/// What the log says of a coordinator.
pub fn seat(bytes: &[u8]) -> Option<Vec<u8>> {
    directory::decode(bytes).map(|seat| directory::encode(&seat))
}

/// Raft messages of one frame.
pub fn raft_frame(bytes: &[u8]) -> Option<Vec<u8>> {
    let messages = peers::split(bytes)?;
    let mut out = Vec::with_capacity(bytes.len());
    for message in messages {
        peers::append(&mut out, message);
    }
    Some(out)
}

/// An engine's cache events; how many there are, and of how many blocks names are told.
pub fn cache_events(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut blocks = 0;
    let stored = format::stored(bytes, 16, |one| {
        for at in 0..one.hashes.len() {
            blocks += usize::from(one.tokens_of(at).is_some() || one.extras_of(at).next().is_some());
        }
    });
    let (batch, _) = format::batch(7, bytes, 16).ok()?;
    // What tells a batch's blocks stops at its events; what reads it goes on behind them.
    stored.expect("a batch that can be read can be told");
    Some((batch.events.len(), blocks))
}
