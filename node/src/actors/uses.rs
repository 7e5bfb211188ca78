//! How much of what a device holds is stored by which codec.

use crate::layouts::Layouts;
use kvhive_protocol::BlockHeader;
use kvhive_protocol::block::Codec;

/// Blocks and bytes of one codec.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct CodecUse {
    pub(crate) blocks: u64,
    pub(crate) stored_bytes: u64,
    /// Bytes of the blocks before they were encoded; where their layout was never told, as they are stored.
    pub(crate) raw_bytes: u64,
}

/// Blocks and bytes of every codec, in the order of [`Codec::ALL`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct CodecUses(pub(crate) [CodecUse; Codec::ALL.len()]);

impl CodecUses {
    /// Counts a block, and returns its bytes before it was encoded.
    pub(crate) fn add(&mut self, header: &BlockHeader, layouts: &Layouts) -> u64 {
        let raw = match header.codec {
            Codec::Raw => None,
            _ => layouts.get(header.fingerprint).and_then(|layout| layout.block_bytes()),
        };
        let raw_bytes = raw.unwrap_or(header.payload_bytes);
        let one = &mut self.0[header.codec as usize];
        one.blocks += 1;
        one.stored_bytes += header.payload_bytes;
        one.raw_bytes += raw_bytes;
        raw_bytes
    }

    /// Adds what another device holds.
    pub(crate) fn merge(&mut self, other: &CodecUses) {
        for (one, other) in self.0.iter_mut().zip(&other.0) {
            one.blocks += other.blocks;
            one.stored_bytes += other.stored_bytes;
            one.raw_bytes += other.raw_bytes;
        }
    }

    /// Takes off what [`CodecUses::add`] has added and returned.
    pub(crate) fn remove(&mut self, header: &BlockHeader, raw_bytes: u64) {
        let one = &mut self.0[header.codec as usize];
        one.blocks -= 1;
        one.stored_bytes -= header.payload_bytes;
        one.raw_bytes -= raw_bytes;
    }
}
