//! How much of what a device holds is stored by which codec, and how densely each tenant's.

use crate::layouts::Layouts;
use kvhive_protocol::block::Codec;
use kvhive_protocol::{BlockHeader, TenantId};
use std::collections::BTreeMap;

/// Blocks and bytes of one codec.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct CodecUse {
    pub(crate) blocks: u64,
    pub(crate) stored_bytes: u64,
    /// Bytes of the blocks before they were encoded; where their layout was never told, as they are stored.
    pub(crate) raw_bytes: u64,
}

/// Stored and raw bytes of what each tenant has here.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct TenantUses(BTreeMap<TenantId, (u64, u64)>);

impl TenantUses {
    /// Counts a block of so many bytes before it was encoded.
    pub(crate) fn add(&mut self, header: &BlockHeader, raw_bytes: u64) {
        let (stored, raw) = self.0.entry(header.tenant).or_default();
        *stored += header.payload_bytes;
        *raw += raw_bytes;
    }

    /// Takes off what [`TenantUses::add`] has added.
    pub(crate) fn remove(&mut self, header: &BlockHeader, raw_bytes: u64) {
        let Some((stored, raw)) = self.0.get_mut(&header.tenant) else { return };
        *stored -= header.payload_bytes;
        *raw -= raw_bytes;
        if *raw == 0 {
            self.0.remove(&header.tenant);
        }
    }

    /// Returns a tenant's stored and raw bytes.
    pub(crate) fn of(&self, tenant: TenantId) -> (u64, u64) {
        self.0.get(&tenant).copied().unwrap_or_default()
    }
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
