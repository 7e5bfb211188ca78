//! Caches without bytes, run over a trace as fast as they go: a whole shard ([`Simulation`]), one policy by itself
//! ([`replay`]), and the best that any could have done ([`optimum`]).

mod optimum;
mod replay;
mod trace;

pub use optimum::{Future, optimum};
pub use replay::{Outcome, Rules, Setting, found_by_each, replay, replay_resized};
pub use trace::{Trace, TraceFull, Turn};

use crate::answers::{Reserve, ShardConfig};
use crate::frames::TierCapacity;
use crate::policy::Strategy;
use crate::shard::Shard;
use kvhive_protocol::block::Codec;
use kvhive_protocol::data::{About, Run, StoreBlock};
use kvhive_protocol::{BlockHeader, BlockKey, Era, KeyList, LayoutFingerprint, Moment, Slot, TenantId};
use std::collections::BTreeMap;
use std::time::Duration;

const TENANT: TenantId = TenantId(1);

/// What a simulation came to so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// Requests.
    pub requests: u64,
    /// Their blocks.
    pub blocks: u64,
    /// Blocks that were covered together with every block before them in their request.
    pub hits: u64,
}

/// One shard of so many blocks, one request after the other.
pub struct Simulation {
    shard: Shard,
    totals: Totals,
}

impl Simulation {
    /// Makes an empty shard with room for `blocks` blocks.
    pub fn new(blocks: u32) -> Simulation {
        let mut shard = Shard::new(ShardConfig {
            classes: vec![1],
            device: TierCapacity { frames: vec![blocks] },
            host: TierCapacity::default(),
            disk: TierCapacity::default(),
            rules: crate::party::Rules::new(Strategy::Lru),
            unused_to_disk: true,
            prefetch: 0,
            gc_per_mille: None,
            pinned_per_mille: 500,
            max_hold: Duration::ZERO,
            max_writes: 1,
            low_water_per_mille: 0,
            hash_seed: 0,
        });
        shard.set_tenants(BTreeMap::from([(TENANT, Era(0))]));
        Simulation { shard, totals: Totals::default() }
    }

    /// Serves one request as a serving process would: match, read what is covered, store the rest in order. Returns the
    /// blocks that were covered.
    pub fn request(&mut self, prefix: &[BlockKey]) -> usize {
        let keys: KeyList = prefix.iter().collect();
        let run = Run { slot: Slot(0), keys: prefix.len() as u32 };
        let hits = self.shard.match_runs(Moment::ZERO, TENANT, &[run], &keys, Duration::ZERO)[0] as usize;
        // A device tells its policies within milliseconds: sooner than the engine has computed what is missing.
        while self.shard.untold() > 0 {
            self.shard.tell_some();
        }
        let mut effects = Vec::new();
        for at in hits..prefix.len() {
            let header = BlockHeader {
                key: prefix[at],
                fingerprint: LayoutFingerprint::default(),
                tenant: TENANT,
                era: Era(0),
                depth: at as u32,
                codec: Codec::Raw,
                payload_bytes: 1,
                digest: 0,
            };
            let parent = if at == 0 { BlockKey::NONE } else { prefix[at - 1] };
            let block = StoreBlock { header, parent };
            match self.shard.reserve(Moment::ZERO, TENANT, &block, Slot(0), About::default(), &mut effects) {
                Reserve::Take { ticket, .. } => {
                    self.shard.seal(ticket).expect("its era stands");
                }
                Reserve::Present(_) => {}
                // Larger than the whole shard: the rest would only push out its own head.
                Reserve::Refused(_) => break,
            }
            effects.clear();
        }
        self.totals.requests += 1;
        self.totals.blocks += prefix.len() as u64;
        self.totals.hits += hits as u64;
        hits
    }

    /// Returns what it came to so far.
    pub fn totals(&self) -> Totals {
        self.totals
    }
}
