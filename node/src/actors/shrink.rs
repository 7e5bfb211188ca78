//! Shrinks: a block's bytes checked, re-encoded and written to a smaller frame, off the actor's thread. What is shrunk, and
//! into which frame, is the shard's.

use crate::actors::core::{DeviceCore, Resident};
use crate::frames::Frame;
use crate::guards::{Rest, Return, Returns};
use crate::memory::Memory;
use kvhive_cache::policy::Shrink;
use kvhive_cache::{BlockId, CopyVerdict, ShrinkTicket, Tier};
use kvhive_client::codec;
use kvhive_protocol::block::{Codec, digest};
use kvhive_protocol::{BlockHeader, Layout};

/// How a shrink ended.
pub(crate) enum Shrunk {
    /// The block is in this frame too, under this header.
    Smaller(Frame, BlockHeader),
    /// It does not get small enough, or is not for its codec.
    Unfit,
    /// Its bytes are not those that were stored.
    Damaged,
}

/// One shrink on its way. Dropped without an outcome, by a panic, it ends all the same.
struct Job {
    header: BlockHeader,
    layout: Layout,
    codec: Codec,
    outcome: Shrunk,
    ticket: ShrinkTicket,
    id: BlockId,
    returns: Returns,
}

impl Drop for Job {
    fn drop(&mut self) {
        let outcome = std::mem::replace(&mut self.outcome, Shrunk::Unfit);
        self.returns.push(Return::Shrunk(self.ticket, self.id, outcome));
    }
}

impl Job {
    fn run(&mut self, source: &Frame, memory: &Memory, tier: Tier, class: usize) {
        let Ok(bytes) = source.read() else { return };
        if self.header.check_bytes(&bytes).is_err() {
            self.outcome = Shrunk::Damaged;
            return;
        }
        let Some(stored) = self.re_encode(&bytes) else { return };
        // The shard has counted a frame of this class for it; what is larger than that gets none.
        let frame = memory.take_frame(tier, class, stored.len() as u64);
        let Some(frame) = frame.and_then(|frame| frame.filled(&stored)) else { return };
        let header = BlockHeader {
            codec: self.codec,
            payload_bytes: stored.len() as u64,
            digest: digest(&stored),
            ..self.header
        };
        self.outcome = Shrunk::Smaller(frame, header);
    }

    fn re_encode(&self, source: &[u8]) -> Option<Vec<u8>> {
        let mut stored = Vec::new();
        if self.header.codec == Codec::Raw {
            codec::encode(self.codec, &self.layout, source, &mut stored).ok()?;
        } else {
            let mut raw = vec![0; self.layout.block_bytes()? as usize];
            codec::decode(self.header.codec, &self.layout, source, &mut raw).ok()?;
            codec::encode(self.codec, &self.layout, &raw, &mut stored).ok()?;
        }
        (stored.len() < source.len()).then_some(stored)
    }
}

/// What a shrink begins with.
struct Plan {
    source: Frame,
    header: BlockHeader,
    layout: Layout,
    codec: Codec,
}

impl DeviceCore {
    /// Has a block re-encoded, as the shard asks.
    pub(super) fn shrink(&mut self, ticket: ShrinkTicket, id: BlockId, how: Shrink) {
        let Some(Plan { source, header, layout, codec }) = self.plan(id, how) else {
            self.shard.forgo(ticket);
            return;
        };
        let bytes = codec::stored_bytes(codec, &layout);
        let mut leaving = Vec::new();
        let taken = self.shard.shrink_into(self.view.now(), ticket, bytes, &mut leaving);
        // The frame that another block leaves is free before anybody takes it.
        leaving.into_iter().for_each(|effect| self.perform(effect));
        let Some((tier, class)) = taken else { return };
        let (memory, returns) = (self.memory.clone(), self.returns.clone());
        let mut job = Job { header, layout, codec, outcome: Shrunk::Unfit, ticket, id, returns };
        self.blocking.spawn_blocking(move || {
            job.run(&source, &memory, tier, class);
            // The old frame first: the shard counts it free when it hears of the new one.
            drop(source);
            drop(job);
        });
    }

    /// Says what is re-encoded and how; none when nobody has told the block's layout, or it is as dense already as its tenant's
    /// rules of now allow.
    fn plan(&self, id: BlockId, how: Shrink) -> Option<Plan> {
        let Resident { header, rest: Rest::Frame(frame), .. } = self.resident[id.index()].as_ref()? else {
            return None;
        };
        let layout = self.view.layouts.get(header.fingerprint)?;
        let codec = match how {
            Shrink::Lossless => Codec::Lossless,
            Shrink::Quantize => {
                let (rules, of_node) = self.view.rules_of(header.tenant);
                codec::quantized(&layout, &rules, of_node)
            }
        };
        if codec <= header.codec {
            return None;
        }
        Some(Plan { source: frame.clone(), header: *header, layout, codec })
    }

    /// Takes a shrink back that has ended.
    pub(super) fn take_shrunk(&mut self, ticket: ShrinkTicket, id: BlockId, outcome: Shrunk) {
        let (frame, header) = match outcome {
            Shrunk::Smaller(frame, header) => (frame, header),
            Shrunk::Unfit => {
                self.shard.shrunk(ticket, None);
                return;
            }
            Shrunk::Damaged => {
                self.shard.shrunk(ticket, None);
                self.shard.lost(id, &mut self.effects);
                return;
            }
        };
        match self.shard.shrunk(ticket, Some(header.codec)) {
            CopyVerdict::Adopt(id) => self.keep(id, Rest::Frame(frame), header),
            // Its block may be of an era that has ended before it was taken.
            CopyVerdict::Discard => frame.call_stale(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ClassConfig, DeviceConfig, DeviceMemory};
    use kvhive_cache::policy::Strategy;
    use kvhive_cache::{Effect, Reserve, Rules, Shard, ShardConfig, TierCapacity};
    use kvhive_gpu::cuda::Patience;
    use kvhive_protocol::data::{About, StoreBlock};
    use kvhive_protocol::{AxisOrder, BlockKey, Dtype, Era, Moment, Slot, TenantId};
    use std::time::Duration;

    /// Blocks of 1 KiB.
    const LAYOUT: Layout = Layout {
        layers: 1,
        kv_heads: 1,
        head_dim: 8,
        tokens: 16,
        dtype: Dtype::F32,
        order: AxisOrder::LayersFirst,
    };

    /// Shrinks these bytes, stored by `codec` under a header with their digest less `off_by`; returns how that ended.
    fn shrunk(bytes: &[u8], codec: Codec, to: Codec, off_by: u64) -> Shrunk {
        let classes = [512, 4096].map(|frame_bytes| ClassConfig { frame_bytes, share: 1 }).to_vec();
        let config = DeviceConfig {
            memory: DeviceMemory::Host,
            device_bytes: 1 << 16,
            host_bytes: 0,
            disk_bytes: 0,
            classes,
        };
        let (memory, _) = Memory::take(0, &config, false, (Patience::default(), 0)).expect("a little memory");
        let frame = memory.take_frame(Tier::Device, 1, bytes.len() as u64).expect("a free frame");
        let frame = frame.filled(bytes).expect("the host takes it");
        let header = BlockHeader {
            key: BlockKey::from_bytes([1; 32]),
            fingerprint: LAYOUT.fingerprint(),
            tenant: TenantId(1),
            era: Era(1),
            depth: 0,
            codec,
            payload_bytes: bytes.len() as u64,
            digest: digest(bytes).wrapping_sub(off_by),
        };
        let mut cold = Shard::new(ShardConfig {
            classes: vec![512, 4096],
            device: memory.capacity(Tier::Device),
            host: memory.capacity(Tier::Host),
            disk: TierCapacity::default(),
            rules: Rules::new(Strategy::Quantized),
            max_hold: Duration::ZERO,
            max_writes: 64,
            low_water_per_mille: 1000,
            unused_to_disk: true,
            prefetch: 0,
            gc_per_mille: None,
            pinned_per_mille: 500,
            hash_seed: 1,
        });
        let (ticket, id) = asked(&mut cold, header);
        let returns = Returns::default();
        let mut job = Job {
            header,
            layout: LAYOUT,
            codec: to,
            outcome: Shrunk::Unfit,
            ticket,
            id,
            returns: returns.clone(),
        };
        job.run(&frame, &memory, Tier::Device, 0);
        drop(job);
        let mut back = Vec::new();
        returns.take(&mut back);
        match back.pop() {
            Some(Return::Shrunk(_, _, outcome)) => outcome,
            _ => panic!("a job returns once"),
        }
    }

    /// Has a shard ask for a shrink, for the names that it gives.
    fn asked(shard: &mut Shard, header: BlockHeader) -> (ShrinkTicket, BlockId) {
        shard.set_tenants([(TenantId(1), Era(1))].into());
        let block = StoreBlock {
            header: BlockHeader { codec: Codec::Raw, payload_bytes: 1024, ..header },
            parent: BlockKey::NONE,
        };
        let mut effects = Vec::new();
        let taken = shard.reserve(Moment::ZERO, TenantId(1), &block, Slot(1), About::default(), &mut effects);
        let Reserve::Take { ticket, .. } = taken else { panic!("{taken:?}") };
        shard.seal(ticket).expect("its era stands");
        shard.tend(Moment::ZERO, &mut effects);
        match effects.pop() {
            Some(Effect::Shrink { ticket, id, .. }) => (ticket, id),
            other => panic!("{other:?}"),
        }
    }

    fn raw() -> Vec<u8> {
        (0..256).flat_map(|at| ((at % 11) as f32).to_le_bytes()).collect()
    }

    #[test]
    fn a_shrunk_block_decodes_to_what_it_was_and_its_header_is_of_its_new_bytes() {
        let mut lossless = Vec::new();
        let rough: Vec<u8> = (0..256).flat_map(|at| (at as f32).sin().to_le_bytes()).collect();
        codec::encode(Codec::Lossless, &LAYOUT, &rough, &mut lossless).expect("a block");
        for (bytes, from, to) in
            [(raw(), Codec::Raw, Codec::Lossless), (lossless, Codec::Lossless, Codec::Int8)]
        {
            let Shrunk::Smaller(frame, header) = shrunk(&bytes, from, to, 0) else {
                panic!("{from:?} to {to:?}")
            };
            let stored = frame.read().expect("it is the host's");
            assert_eq!((header.codec, header.check_bytes(&stored)), (to, Ok(())));
            let mut back = vec![0; 1024];
            codec::decode(to, &LAYOUT, &stored, &mut back).expect("what was encoded");
            assert!(to != Codec::Lossless || back == raw());
        }
    }

    #[test]
    fn a_damaged_block_is_not_given_a_header_that_vouches_for_it() {
        assert!(matches!(shrunk(&raw(), Codec::Raw, Codec::Int8, 1), Shrunk::Damaged));
    }

    #[test]
    fn what_does_not_get_small_enough_or_is_no_block_is_left() {
        let noise: Vec<u8> = (0..1024u32).map(|at| (at.wrapping_mul(0x9E37_79B9) >> 13) as u8).collect();
        assert!(matches!(shrunk(&noise, Codec::Raw, Codec::Lossless, 0), Shrunk::Unfit));
        assert!(matches!(shrunk(&raw()[..1000], Codec::Raw, Codec::Int8, 0), Shrunk::Unfit));
        assert!(matches!(shrunk(&[7; 100], Codec::Lossless, Codec::Int8, 0), Shrunk::Unfit));
    }
}
