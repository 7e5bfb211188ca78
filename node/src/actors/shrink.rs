//! Shrinks: a block's bytes checked, re-encoded and written to a smaller frame, off the actor's thread. What is shrunk, and
//! into which frame, is the shard's.

use crate::actors::core::{DeviceCore, Resident};
use crate::guards::{Return, Returns};
use crate::memory::Memory;
use kvhive_cache::policy::Shrink;
use kvhive_cache::{BlockId, CopyVerdict, ShrinkTicket, Tier};
use kvhive_client::codec;
use kvhive_gpu::ReadFrame;
use kvhive_protocol::block::{Codec, digest};
use kvhive_protocol::{BlockHeader, Layout};

/// How a shrink ended.
pub(crate) enum Shrunk {
    /// The block is in this frame too, under this header.
    Smaller(ReadFrame, BlockHeader),
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
    fn run(&mut self, source: &ReadFrame, memory: &Memory, tier: Tier, class: usize) {
        if self.header.check_bytes(source.bytes()).is_err() {
            self.outcome = Shrunk::Damaged;
            return;
        }
        let Some(stored) = self.re_encode(source.bytes()) else { return };
        // The shard has counted a frame of this class for it; what is larger than that gets none.
        let Some(mut frame) = memory.take_frame(tier, class, stored.len() as u64) else { return };
        frame.bytes_mut().copy_from_slice(&stored);
        let header = BlockHeader {
            codec: self.codec,
            payload_bytes: stored.len() as u64,
            digest: digest(&stored),
            ..self.header
        };
        self.outcome = Shrunk::Smaller(frame.seal(), header);
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
    source: ReadFrame,
    header: BlockHeader,
    layout: Layout,
    codec: Codec,
}

impl DeviceCore {
    /// Has a block re-encoded, as the shard asks.
    pub(super) fn shrink(&mut self, ticket: ShrinkTicket, id: BlockId, how: Shrink) {
        let Some(Plan { source, header, layout, codec }) = self.plan(id, how) else {
            self.shard.shrunk(ticket, None);
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

    /// Says what is re-encoded and how; none when nobody has told the block's layout, or it
    /// is as dense already.
    fn plan(&self, id: BlockId, how: Shrink) -> Option<Plan> {
        let Resident { header, frame, .. } = self.resident[id.index()].as_ref()?;
        let layout = self.view.layouts.get(header.fingerprint)?;
        let codec = match how {
            Shrink::Lossless => Codec::Lossless,
            Shrink::Quantize => codec::quantized(&self.view.serving()?.map, header.tenant, &layout),
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
            CopyVerdict::Adopt(id) => self.keep(id, frame, header),
            CopyVerdict::Discard => drop(frame),
        }
    }
}
