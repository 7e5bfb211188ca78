//! Chains that are true again after a block has gone before its children. Which blocks come after it nobody has written down, so all
//! chains are doubted: each is looked at when a match needs it, together with those before it that are doubted too, or when
//! its turn comes. Losses are numbered, and a chain says after which it was looked at: once for each loss at most, and a match waits
//! for no more than its own prefix. Only when more are lost than there are numbers, before every record had its turn, do matches go
//! from block to block until it had.

use super::Shard;
use crate::block::{Life, Record};

/// How far it is.
#[derive(Default)]
pub(super) struct Mending {
    /// Number of the last loss; as [`Record::after_loss`] is in records whose chain is true.
    last: u8,
    /// No resident record was looked at after an earlier loss than this.
    oldest: u8,
    /// The record whose turn is next, while there are some that are doubted, and the last loss when the first had its turn.
    next: Option<usize>,
    begun: u8,
    /// Records that were looked at.
    looked_at: usize,
    /// A loss has no number: what was looked at is doubted once more.
    again: bool,
    /// Kept to reuse its memory.
    path: Vec<u32>,
}

impl Shard {
    /// A block has gone before its children.
    pub(super) fn begin_to_mend(&mut self) {
        let mending = &mut self.mending;
        let number = mending.last.wrapping_add(1);
        mending.again = number == mending.oldest;
        if mending.again {
            return;
        }
        mending.last = number;
        if mending.next.is_none() {
            (mending.next, mending.begun, mending.looked_at) = (Some(0), number, 0);
        }
    }

    /// Says whether chains can be relied on; if not, a match goes from block to block.
    pub(super) fn has_sound_chains(&self) -> bool {
        !self.mending.again
    }

    /// Says whether a record's chain is known to be true.
    pub(super) fn is_sound(&self, record: &Record) -> bool {
        self.has_sound_chains() && record.after_loss == self.mending.last
    }

    /// Returns how many blocks before a resident one are resident without a gap, at most.
    pub(super) fn chain_of(&mut self, at: u32) -> u16 {
        if self.index.records[at as usize].after_loss != self.mending.last {
            self.chain_anew(at);
        }
        self.index.records[at as usize].chain
    }

    /// Finds a resident block's chain by those before it. Those that are doubted are found on the way.
    pub(super) fn chain_anew(&mut self, at: u32) {
        let last = self.mending.last;
        let mut path = std::mem::take(&mut self.mending.path);
        path.clear();
        path.push(at);
        let mut one = at;
        let before = loop {
            let parent = self.linked(self.index.records[one as usize].parent);
            let Some(parent) = parent.filter(|at| self.index.records[*at as usize].life == Life::Resident)
            else {
                break None;
            };
            let record = &self.index.records[parent as usize];
            if record.after_loss == last {
                break Some(record.chain);
            }
            path.push(parent);
            one = parent;
        };
        let mut chain = before.map_or(0, |chain| chain.saturating_add(1));
        for at in path.iter().rev() {
            let record = &mut self.index.records[*at as usize];
            record.chain = chain;
            record.after_loss = last;
            chain = chain.saturating_add(1);
        }
        self.mending.looked_at += path.len();
        self.mending.path = path;
    }

    /// Goes on with so many records, if there are any whose chains are doubted.
    pub(super) fn mend(&mut self, records: usize) {
        let Some(from) = self.mending.next else { return };
        let until = self.index.records.len().min(from + records);
        for at in from..until {
            if self.index.records[at].life == Life::Resident {
                self.chain_of(at as u32);
                if !self.torn.is_empty() {
                    self.look_for_torn(at as u32);
                }
            }
        }
        let mending = &mut self.mending;
        mending.next = (until < self.index.records.len()).then_some(until);
        if mending.next.is_some() {
            return;
        }
        self.end_torn_round();
        let mending = &mut self.mending;
        mending.oldest = mending.begun;
        if mending.again {
            self.begin_to_mend();
        } else if mending.last != mending.begun {
            (mending.next, mending.begun) = (Some(0), mending.last);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ShardConfig;
    use crate::block::BlockId;
    use crate::frames::TierCapacity;
    use crate::party::Rules;
    use crate::policy::Strategy;
    use kvhive_protocol::block::Codec;
    use kvhive_protocol::data::StoreBlock;
    use kvhive_protocol::{
        BlockHeader, BlockKey, Era, KeyList, LayoutFingerprint, Moment, Slot, TenantId, data::Run,
    };
    use std::collections::BTreeMap;
    use std::time::Duration;

    const TENANT: TenantId = TenantId(1);

    fn key(number: u32) -> BlockKey {
        let mut bytes = [1; 32];
        bytes[..4].copy_from_slice(&number.to_le_bytes());
        BlockKey::from_bytes(bytes)
    }

    /// A shard of blocks on disk: each number's parent, which comes before it.
    fn shard(parents: &[Option<u32>]) -> (Shard, Vec<BlockId>) {
        let frames = |frames: u32| TierCapacity { frames: vec![frames] };
        let mut shard = Shard::new(ShardConfig {
            classes: vec![100],
            device: frames(2),
            host: frames(0),
            disk: frames(parents.len() as u32),
            rules: Rules::new(Strategy::Lru),
            max_hold: Duration::from_secs(1),
            max_writes: 8,
            low_water_per_mille: 0,
            gc_per_mille: None,
            pinned_per_mille: 500,
            unused_to_disk: true,
            prefetch: 0,
            hash_seed: 7,
        });
        shard.set_tenants(BTreeMap::from([(TENANT, Era(1))]));
        let mut depths: Vec<u32> = Vec::new();
        let mut ids = Vec::new();
        for (number, parent) in parents.iter().enumerate() {
            depths.push(parent.map_or(0, |parent| depths[parent as usize] + 1));
            let header = BlockHeader {
                key: key(number as u32),
                fingerprint: LayoutFingerprint([0; 16]),
                tenant: TENANT,
                era: Era(1),
                depth: depths[number],
                codec: Codec::Raw,
                payload_bytes: 100,
                digest: 0,
            };
            let block = StoreBlock { header, parent: parent.map_or(BlockKey::NONE, key) };
            ids.push(shard.restore(TENANT, &block, Slot(1), 0).expect("it has a place"));
        }
        (shard, ids)
    }

    fn covered(shard: &mut Shard, numbers: &[u32]) -> u32 {
        let keys: KeyList = numbers.iter().map(|number| key(*number)).collect();
        let run = [Run { slot: Slot(1), keys: numbers.len() as u32 }];
        shard.match_runs(Moment::from_millis(1), TENANT, &run, &keys, Duration::ZERO)[0]
    }

    /// Returns how many records have been looked at since the last block was lost.
    fn looked_at(shard: &Shard) -> usize {
        shard.mending.looked_at
    }

    #[test]
    fn a_lost_block_costs_its_prefix_a_look_and_the_index_one_bit_by_bit() {
        // Ten thousand others, and a prefix of ten.
        let prefix = |at: u32| if at == 0 { None } else { Some(9_999 + at) };
        let parents: Vec<Option<u32>> = (0..10_000).map(|_| None).chain((0..10).map(prefix)).collect();
        let (mut shard, ids) = shard(&parents);
        let prefix: Vec<u32> = (10_000..10_010).collect();
        assert_eq!(covered(&mut shard, &prefix), 10);
        shard.lost(ids[10_004], &mut Vec::new());
        assert_eq!(looked_at(&shard), 0, "who hears of it goes on");
        assert_eq!(covered(&mut shard, &prefix), 4);
        assert_eq!(covered(&mut shard, &prefix[5..]), 5, "what comes after it is there still");
        assert!(looked_at(&shard) <= 10, "{}", looked_at(&shard));
        shard.invariants().expect("all hold");
        let mut steps = 0;
        while shard.mending.next.is_some() {
            let before = looked_at(&shard);
            shard.mend(500);
            assert!(looked_at(&shard) - before <= 500);
            steps += 1;
            shard.invariants().expect("all hold");
        }
        assert!((20..=22).contains(&steps) && looked_at(&shard) == 10_009, "{steps}, {}", looked_at(&shard));
        assert_eq!(covered(&mut shard, &prefix), 4);
    }

    #[test]
    fn many_losses_while_chains_are_mended_cost_a_match_no_more_than_its_prefix() {
        const RUN: u32 = 600;
        // A prefix from the end of which blocks are lost, and another.
        let parent = |at: u32| (!at.is_multiple_of(RUN)).then(|| at - 1);
        let parents: Vec<Option<u32>> = (0..2 * RUN).map(parent).collect();
        let (mut shard, ids) = shard(&parents);
        let other: Vec<u32> = (RUN..2 * RUN).collect();
        for lost in RUN - 256..RUN - 1 {
            shard.lost(ids[lost as usize], &mut Vec::new());
            assert!(shard.has_sound_chains(), "block {lost} was lost");
            let before = looked_at(&shard);
            for _ in 0..3 {
                assert_eq!(covered(&mut shard, &other), RUN);
            }
            assert!(looked_at(&shard) - before <= RUN as usize);
            shard.mend(1);
        }
        shard.invariants().expect("all hold");
        // There are no more numbers.
        for lost in 100..110 {
            shard.lost(ids[lost as usize], &mut Vec::new());
            assert!(!shard.has_sound_chains());
            let all: Vec<u32> = (0..RUN).collect();
            assert_eq!((covered(&mut shard, &all), covered(&mut shard, &other)), (100, RUN));
        }
        while shard.mending.next.is_some() {
            shard.mend(100);
            shard.invariants().expect("all hold");
        }
        assert!(shard.has_sound_chains() && shard.mending.oldest == shard.mending.last);
        assert_eq!(covered(&mut shard, &other), RUN);
    }

    #[test]
    fn matches_are_right_when_one_block_after_another_is_lost_while_chains_are_mended() {
        let parent = |at: u32| (!at.is_multiple_of(50)).then(|| at - 1);
        let parents: Vec<Option<u32>> = (0..1000).map(parent).collect();
        let (mut shard, ids) = shard(&parents);
        let runs: Vec<Vec<u32>> = (0..20).map(|run| (run * 50..run * 50 + 50).collect()).collect();
        let mut true_cover = [50; 20];
        for (round, lost) in [25u32, 24, 740, 741, 0, 999, 310].into_iter().enumerate() {
            shard.lost(ids[lost as usize], &mut Vec::new());
            true_cover[lost as usize / 50] = true_cover[lost as usize / 50].min(lost % 50);
            for (run, cover) in runs.iter().zip(true_cover) {
                assert_eq!(covered(&mut shard, run), cover, "after block {lost} was lost");
            }
            shard.mend(100 * round);
            shard.invariants().expect("all hold");
        }
        while shard.mending.next.is_some() {
            shard.mend(100);
        }
        assert!(shard.has_sound_chains());
        shard.invariants().expect("all hold");
        assert_eq!(covered(&mut shard, &runs[0]), 0);
    }
}
