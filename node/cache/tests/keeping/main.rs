//! What is kept, brought up and let go ahead of need: hints, collections and sessions that come back, as stories and under random
//! use with every invariant checked after each step.

use kvhive_cache::policy::Strategy;
use kvhive_cache::{BlockId, Collected, Effect, Reason, Reserve, Rules, Shard, ShardConfig, TierCapacity};
use kvhive_protocol::block::Codec;
use kvhive_protocol::data::{About, Hint, Run, StoreBlock};
use kvhive_protocol::{BlockHeader, BlockKey, Era, KeyList, LayoutFingerprint, Moment, Slot, TenantId};
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

mod below;
mod collections;
mod explains;
mod hints;
mod loads;
mod make_way;
mod pins;
mod random;
mod sessions;
mod surveys;
mod uses;

const TENANT: TenantId = TenantId(1);
const FRAME: u64 = 100;

fn key(number: u64) -> BlockKey {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&(number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
    bytes[8..16].copy_from_slice(&number.to_le_bytes());
    BlockKey::from_bytes(bytes)
}

/// A shard of one size of frames whose sessions are ranges of numbers: each number's parent is the one before it in its range.
struct Scenario {
    shard: Shard,
    effects: Vec<Effect>,
    now: u64,
    era: u64,
    hint: Hint,
    tenant: TenantId,
}

impl Scenario {
    /// Frames per tier; a collection begins beyond `gc_per_mille`.
    fn of(frames: [u32; 3], strategy: Strategy, gc_per_mille: Option<u16>) -> Scenario {
        Scenario::keeping_free(0, frames, strategy, gc_per_mille)
    }

    /// One that keeps so many thousandths of each tier free over the one below.
    fn keeping_free(
        low_water_per_mille: u16,
        frames: [u32; 3],
        strategy: Strategy,
        gc_per_mille: Option<u16>,
    ) -> Scenario {
        let config = Scenario::config(frames, strategy);
        Scenario::with(ShardConfig { gc_per_mille, low_water_per_mille, ..config })
    }

    fn config(frames: [u32; 3], strategy: Strategy) -> ShardConfig {
        let [device, host, disk] = frames.map(|frames| TierCapacity { frames: vec![frames] });
        ShardConfig {
            classes: vec![FRAME],
            device,
            host,
            disk,
            rules: Rules::new(strategy),
            unused_to_disk: true,
            prefetch: 8,
            gc_per_mille: None,
            pinned_per_mille: 500,
            max_hold: Duration::from_secs(60),
            max_writes: 8,
            low_water_per_mille: 0,
            hash_seed: 9,
        }
    }

    fn with(config: ShardConfig) -> Scenario {
        let mut shard = Shard::new(config);
        shard.set_tenants(BTreeMap::from([(TENANT, Era(1))]));
        Scenario { shard, effects: Vec::new(), now: 1000, era: 1, hint: Hint::None, tenant: TENANT }
    }

    fn now(&self) -> Moment {
        Moment::from_millis(self.now)
    }

    fn block(&self, number: u64, depth: u32) -> StoreBlock {
        let header = BlockHeader {
            key: key(number),
            fingerprint: LayoutFingerprint::default(),
            tenant: self.tenant,
            era: Era(self.era),
            depth,
            codec: Codec::Raw,
            payload_bytes: FRAME,
            digest: 0,
        };
        let parent = if depth == 0 { BlockKey::NONE } else { key(number - 1) };
        StoreBlock { header, parent }
    }

    fn try_store(&mut self, number: u64, depth: u32) -> Option<BlockId> {
        self.try_store_of(number, depth, self.hint)
    }

    /// Stores a block that goes on from another than the one before it.
    fn store_after(&mut self, parent: u64, number: u64, depth: u32) -> Option<BlockId> {
        let block = StoreBlock { parent: key(parent), ..self.block(number, depth) };
        let about = About { hint: self.hint, ..About::default() };
        match self.shard.reserve(self.now(), self.tenant, &block, Slot(1), about, &mut self.effects) {
            Reserve::Take { ticket, .. } => self.shard.seal(ticket),
            Reserve::Present(_) | Reserve::Refused(_) => None,
        }
    }

    /// Stores a block of a session of which something is said.
    fn try_store_of(&mut self, number: u64, depth: u32, hint: Hint) -> Option<BlockId> {
        let block = self.block(number, depth);
        let about = About { hint, ..About::default() };
        match self.shard.reserve(self.now(), self.tenant, &block, Slot(1), about, &mut self.effects) {
            Reserve::Take { ticket, .. } => self.shard.seal(ticket),
            Reserve::Present(_) | Reserve::Refused(_) => None,
        }
    }

    /// One request: a match for the session's blocks, then stores of what was not there.
    fn serve(&mut self, session: Range<u64>) {
        let covered = self.covered(session.clone());
        for (depth, number) in (0..).zip(session).skip(covered as usize) {
            self.try_store(number, depth).expect("there is room");
        }
        self.check();
    }

    fn covered(&mut self, session: Range<u64>) -> u32 {
        self.matched(session, 0)
    }

    fn matched(&mut self, session: Range<u64>, hold_ms: u64) -> u32 {
        let run = Run { slot: Slot(1), keys: (session.end - session.start) as u32 };
        let keys: KeyList = session.map(key).collect();
        self.shard.match_runs(self.now(), self.tenant, &[run], &keys, Duration::from_millis(hold_ms))[0]
    }

    fn release(&mut self, session: Range<u64>, hint: Hint) -> u32 {
        self.release_all(&[session], hint)
    }

    /// Releases a session of several segments, of which each has the block before it elsewhere.
    fn release_all(&mut self, segments: &[Range<u64>], hint: Hint) -> u32 {
        let run = |segment: &Range<u64>| Run { slot: Slot(1), keys: (segment.end - segment.start) as u32 };
        let runs: Vec<Run> = segments.iter().map(run).collect();
        let keys: KeyList = segments.iter().cloned().flatten().map(key).collect();
        self.shard.release(self.now(), self.tenant, &runs, &keys, hint)
    }

    fn read(&mut self, number: u64) -> Option<BlockId> {
        self.shard.read(self.now(), self.tenant, &[key(number)].iter().collect())[0]
    }

    /// One piece of what can wait; copies end at once and well. Says whether anything was done.
    fn tend(&mut self) -> bool {
        let is_done = self.tend_unchecked();
        self.check();
        is_done
    }

    /// The same where it is done too often to look at all that holds each time.
    fn tend_unchecked(&mut self) -> bool {
        self.shard.tend(self.now(), &mut self.effects);
        let effects = std::mem::take(&mut self.effects);
        for effect in &effects {
            if let Effect::Copy { ticket, .. } = effect {
                self.shard.copied(*ticket, true);
            }
        }
        !effects.is_empty()
    }

    fn settle(&mut self) {
        while self.tend() {}
    }

    /// Which blocks are here; it uses them.
    fn resident(&mut self, numbers: Range<u64>) -> Vec<u64> {
        numbers.filter(|number| self.covered(*number..number + 1) == 1).collect()
    }

    /// Says whether a block is here; nobody uses it.
    fn is_here(&self, number: u64) -> bool {
        let run = Run { slot: Slot(1), keys: 1 };
        self.shard.survey_runs(self.tenant, &[run], &[key(number)].iter().collect())[0].covered == 1
    }

    fn restore(&mut self, session: Range<u64>) {
        for (depth, number) in (0..).zip(session) {
            let block = self.block(number, depth);
            self.shard.restore(self.tenant, &block, Slot(1), 0).expect("there is a place");
        }
    }

    fn tiers(&self) -> [u64; 3] {
        let stats = self.shard.stats();
        [stats.device.blocks, stats.host.blocks, stats.disk.blocks]
    }

    fn collected(&self, why: Reason) -> u64 {
        let Collected { blocks, bytes } = self.shard.stats().collected[why as usize];
        assert_eq!(bytes, blocks * FRAME);
        blocks
    }

    fn check(&self) {
        self.shard.invariants().expect("all hold");
    }
}
