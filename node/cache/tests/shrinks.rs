//! Evict last, shrink first: as stories, and under random use with every invariant checked after each step.

use kvhive_cache::policy::{Shrink, Strategy};
use kvhive_cache::{
    BlockId, CopyVerdict, Effect, Reserve, Rules, Shard, ShardConfig, ShardStats, ShrinkTicket, Tier,
    TierCapacity,
};
use kvhive_protocol::block::Codec;
use kvhive_protocol::data::{About, Run, StoreBlock};
use kvhive_protocol::{BlockHeader, BlockKey, Era, KeyList, LayoutFingerprint, Moment, Slot, TenantId};
use proptest::prelude::{Just, TestCaseError, any, prop_assert, prop_assert_eq, prop_oneof, proptest};
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

const TENANT: TenantId = TenantId(1);
const SMALL: u64 = 100;
const LARGE: u64 = 200;

fn key(number: u64) -> BlockKey {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&(number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
    bytes[8..16].copy_from_slice(&number.to_le_bytes());
    BlockKey::from_bytes(bytes)
}

/// A shard of small and large frames, its effects, and a clock in milliseconds.
struct Scenario {
    shard: Shard,
    effects: Vec<Effect>,
    era: u64,
    now: u64,
}

impl Scenario {
    fn new(strategy: Strategy, device: [u32; 2], host: [u32; 2]) -> Scenario {
        Scenario::keeping(strategy, device, host, 0)
    }

    /// One that keeps a share of its frames free.
    fn keeping(strategy: Strategy, device: [u32; 2], host: [u32; 2], low_water_per_mille: u16) -> Scenario {
        let mut shard = Shard::new(ShardConfig {
            classes: vec![SMALL, LARGE],
            device: TierCapacity { frames: device.to_vec() },
            host: TierCapacity { frames: host.to_vec() },
            disk: TierCapacity::default(),
            rules: Rules::new(strategy),
            unused_to_disk: true,
            prefetch: 4,
            gc_per_mille: None,
            pinned_per_mille: 500,
            max_hold: Duration::from_millis(50),
            max_writes: 8,
            low_water_per_mille,
            hash_seed: 9,
        });
        shard.set_tenants(BTreeMap::from([(TENANT, Era(1))]));
        Scenario { shard, effects: Vec::new(), era: 1, now: 1000 }
    }

    fn now(&self) -> Moment {
        Moment::from_millis(self.now)
    }

    fn reserve(&mut self, number: u64, parent: Option<u64>, bytes: u64, codec: Codec) -> Reserve {
        let header = BlockHeader {
            key: key(number),
            fingerprint: LayoutFingerprint::default(),
            tenant: TENANT,
            era: Era(self.era),
            depth: number as u32,
            codec,
            payload_bytes: bytes,
            digest: 0,
        };
        let block = StoreBlock { header, parent: parent.map_or(BlockKey::NONE, key) };
        let now = self.now();
        self.shard.reserve(now, TENANT, &block, Slot(1), About::default(), &mut self.effects)
    }

    fn store(&mut self, number: u64, bytes: u64, codec: Codec) {
        match self.reserve(number, None, bytes, codec) {
            Reserve::Take { ticket, .. } => {
                self.shard.seal(ticket).expect("its era stands");
            }
            other => panic!("block {number}: {other:?}"),
        }
    }

    /// Takes the shrinks that were asked for since the last call.
    fn shrinks(&mut self) -> Vec<(ShrinkTicket, BlockId, Shrink)> {
        let asked = self.effects.drain(..).filter_map(|effect| match effect {
            Effect::Shrink { ticket, id, how } => Some((ticket, id, how)),
            Effect::Drop { .. } | Effect::Copy { .. } => None,
        });
        asked.collect()
    }

    /// Has every shrink that is asked for done at once, to blocks of so many bytes.
    fn shrink_all(&mut self, bytes: u64, codec: Codec) -> usize {
        let shrinks = self.shrinks();
        let mut adopted = 0;
        for (ticket, id, _) in shrinks {
            let now = self.now();
            if self.shard.shrink_into(now, ticket, Some(bytes), &mut self.effects).is_some() {
                adopted += usize::from(self.shard.shrunk(ticket, Some(codec)) == CopyVerdict::Adopt(id));
            }
        }
        adopted
    }

    fn covered(&mut self, numbers: &[u64]) -> u32 {
        let keys: KeyList = numbers.iter().map(|number| key(*number)).collect();
        let run = Run { slot: Slot(1), keys: numbers.len() as u32 };
        self.shard.match_runs(self.now(), TENANT, &[run], &keys, Duration::ZERO)[0]
    }

    fn resident(&mut self, numbers: std::ops::Range<u64>) -> Vec<u64> {
        numbers.filter(|number| self.covered(&[*number]) == 1).collect()
    }

    fn stats(&self) -> ShardStats {
        self.shard.invariants().expect("all hold");
        self.shard.stats()
    }
}

#[test]
fn a_full_shard_shrinks_its_coldest_before_it_lets_any_go() {
    let mut scene = Scenario::new(Strategy::Compressed, [6, 3], [0, 0]);
    for number in 0..8 {
        scene.store(number, LARGE, Codec::Raw);
        scene.shrink_all(90, Codec::Lossless);
    }
    let stats = scene.stats();
    assert_eq!((stats.blocks(), stats.evicted, stats.shrunk), (8, 0, 6), "three large frames, eight blocks");
    scene.store(8, LARGE, Codec::Raw);
    scene.shrink_all(90, Codec::Lossless);
    scene.store(9, LARGE, Codec::Raw);
    scene.shrink_all(90, Codec::Lossless);
    assert_eq!(scene.resident(0..10), [2, 3, 4, 5, 6, 7, 8, 9], "then the coldest of the small go");
    assert_eq!(scene.stats().evicted, 2);
}

#[test]
fn what_a_tier_keeps_free_is_kept_free_by_shrinking_too() {
    let mut scene = Scenario::keeping(Strategy::Compressed, [6, 4], [4, 4], 250);
    for number in 0..14 {
        scene.store(number, LARGE, Codec::Raw);
        scene.shard.tend(scene.now(), &mut scene.effects);
        let copies = scene.effects.iter().filter_map(|effect| match effect {
            Effect::Copy { ticket, .. } => Some(*ticket),
            Effect::Drop { .. } | Effect::Shrink { .. } => None,
        });
        let copies: Vec<_> = copies.collect();
        scene.shrink_all(90, Codec::Lossless);
        copies
            .into_iter()
            .for_each(|ticket| assert_ne!(scene.shard.copied(ticket, true), CopyVerdict::Discard));
    }
    let stats = scene.stats();
    assert_eq!((stats.blocks(), stats.evicted), (14, 0), "{stats:?}");
}

#[test]
fn other_strategies_shrink_nothing_and_nor_does_a_shard_of_one_size() {
    let mut scene = Scenario::new(Strategy::Lru, [6, 3], [0, 0]);
    for number in 0..5 {
        scene.store(number, LARGE, Codec::Raw);
    }
    assert_eq!(scene.shrinks(), []);
    let mut scene = Scenario::new(Strategy::Compressed, [0, 3], [0, 0]);
    for number in 0..5 {
        scene.store(number, LARGE, Codec::Raw);
    }
    assert_eq!(scene.shrinks(), []);
}

#[test]
fn a_tenants_own_strategy_shrinks_its_blocks_alone_and_from_the_day_it_is_set() {
    let other = TenantId(2);
    let mut scene = Scenario::new(Strategy::Lru, [6, 3], [0, 0]);
    scene.shard.set_tenants(BTreeMap::from([(TENANT, Era(1)), (other, Era(1))]));
    for number in 0..3 {
        scene.store(number, LARGE, Codec::Raw);
    }
    scene.shard.tend(scene.now(), &mut scene.effects);
    assert_eq!(scene.shrinks(), [], "lru shrinks nothing");
    let compressed = Rules::new(Strategy::Compressed);
    scene.shard.set_rules(Rules::new(Strategy::Lru), &BTreeMap::from([(other, compressed)]));
    scene.shard.tend(scene.now(), &mut scene.effects);
    assert_eq!(scene.shrinks(), [], "these are not the other's");
    scene.shard.set_rules(Rules::new(Strategy::Lru), &BTreeMap::from([(TENANT, compressed)]));
    scene.shard.tend(scene.now(), &mut scene.effects);
    assert_eq!(scene.shrink_all(90, Codec::Lossless), 1);
    let stats = scene.stats();
    assert_eq!((stats.blocks(), stats.shrunk, stats.evicted), (3, 1, 0));
}

#[test]
fn nothing_is_shrunk_twice_to_one_codec() {
    let asked = |strategy, codec| {
        let mut scene = Scenario::new(strategy, [6, 2], [0, 0]);
        for number in 0..2 {
            scene.store(number, LARGE, codec);
        }
        scene.shrinks().into_iter().map(|(_, _, how)| how).collect::<Vec<_>>()
    };
    assert_eq!(asked(Strategy::Compressed, Codec::Raw), [Shrink::Lossless]);
    for codec in [Codec::Lossless, Codec::Int8, Codec::Fp8, Codec::Int4] {
        assert_eq!(asked(Strategy::Compressed, codec), [], "{codec:?}");
    }
    assert_eq!(asked(Strategy::Quantized, Codec::Raw), [Shrink::Quantize]);
    assert_eq!(asked(Strategy::Quantized, Codec::Lossless), [Shrink::Quantize]);
    for codec in [Codec::Int8, Codec::Fp8, Codec::Int4] {
        assert_eq!(asked(Strategy::Quantized, codec), [], "bits that are lost are not lost twice: {codec:?}");
    }
}

#[test]
fn a_block_that_stays_too_large_is_left_as_it_is_and_not_tried_again() {
    let mut scene = Scenario::new(Strategy::Compressed, [6, 2], [0, 0]);
    scene.store(0, LARGE, Codec::Raw);
    scene.store(1, LARGE, Codec::Raw);
    assert_eq!(scene.shrink_all(101, Codec::Lossless), 0);
    assert_eq!(scene.covered(&[0]), 1);
    assert_eq!(scene.covered(&[1]), 1);
    scene.shard.tend(scene.now(), &mut scene.effects);
    let again: Vec<BlockId> = scene.shrinks().into_iter().map(|(_, id, _)| id).collect();
    assert_eq!(again.len(), 1, "the other one: {again:?}");
    let stats = scene.stats();
    assert_eq!((stats.shrink_unfit, stats.shrinking, stats.evicted), (1, 1, 0));
}

#[test]
fn a_block_that_may_not_be_smaller_now_is_tried_again_after_its_next_use() {
    let mut scene = Scenario::new(Strategy::Quantized, [6, 2], [0, 0]);
    scene.store(0, LARGE, Codec::Lossless);
    scene.store(1, LARGE, Codec::Lossless);
    let (ticket, id, _) = scene.shrinks()[0];
    scene.shard.forgo(ticket);
    scene.shard.forgo(ticket);
    assert_eq!((scene.stats().shrink_dropped, scene.stats().shrinking), (1, 0), "it ends once");
    scene.shard.tend(scene.now(), &mut scene.effects);
    let others = scene.shrinks();
    assert!(others.iter().all(|(_, other, _)| *other != id), "not at once: {others:?}");
    others.into_iter().for_each(|(ticket, _, _)| scene.shard.forgo(ticket));
    assert_eq!(scene.covered(&[0]), 1);
    scene.shard.tend(scene.now(), &mut scene.effects);
    let again: Vec<BlockId> = scene.shrinks().into_iter().map(|(_, id, _)| id).collect();
    assert_eq!(again, [id]);
}

#[test]
fn a_block_that_is_read_when_its_shrink_is_done_keeps_its_frame() {
    let mut scene = Scenario::new(Strategy::Quantized, [6, 2], [0, 0]);
    scene.store(0, LARGE, Codec::Raw);
    scene.store(1, LARGE, Codec::Raw);
    let (ticket, id, _) = scene.shrinks()[0];
    let now = scene.now();
    assert_eq!(scene.shard.shrink_into(now, ticket, Some(60), &mut scene.effects), Some((Tier::Device, 0)));
    let reader = scene.shard.read(now, TENANT, &[key(0)].iter().collect())[0];
    assert_eq!(reader, Some(id), "readable meanwhile");
    assert_eq!(scene.shard.shrunk(ticket, Some(Codec::Int8)), CopyVerdict::Discard);
    assert_eq!(scene.shard.shrunk(ticket, Some(Codec::Int8)), CopyVerdict::Discard, "it ends once");
    scene.shard.unread(id);
    let stats = scene.stats();
    assert_eq!((stats.shrunk, stats.shrink_dropped, stats.device.used_bytes), (0, 1, 2 * LARGE));
}

#[test]
fn a_clear_while_a_block_is_shrunk_gives_both_frames_back_when_the_shrink_ends() {
    let mut scene = Scenario::new(Strategy::Compressed, [6, 2], [0, 0]);
    scene.store(0, LARGE, Codec::Raw);
    scene.store(1, LARGE, Codec::Raw);
    let (ticket, _, _) = scene.shrinks()[0];
    let now = scene.now();
    assert!(scene.shard.shrink_into(now, ticket, None, &mut scene.effects).is_some());
    scene.shard.set_tenants(BTreeMap::from([(TENANT, Era(2))]));
    scene.shard.tend(now, &mut scene.effects);
    let stats = scene.stats();
    assert_eq!((stats.blocks(), stats.leaving, stats.device.used_bytes), (0, 1, LARGE + SMALL));
    assert_eq!(scene.shard.shrunk(ticket, Some(Codec::Lossless)), CopyVerdict::Discard);
    let stats = scene.stats();
    assert_eq!((stats.leaving, stats.device.used_bytes), (0, 0));
}

#[derive(Clone, Debug)]
enum Step {
    Store { number: u64, linked: bool, large: bool, codec: Codec },
    Match(u64),
    Read(u64),
    Unread(usize),
    Copied(usize, bool),
    Into(usize, Option<u64>),
    Shrunk(usize, Option<Codec>),
    Lost(u64),
    Tend,
    Clear,
    Rules(Strategy, bool),
    Wait(u64),
}

fn steps() -> impl proptest::strategy::Strategy<Value = Vec<Step>> {
    use proptest::strategy::Strategy as _;
    let number = 0..24u64;
    let codec = prop_oneof![3 => Just(Codec::Raw), 1 => Just(Codec::Lossless), 1 => Just(Codec::Int8)];
    let becomes =
        prop_oneof![1 => Just(None), 2 => Just(Some(Codec::Lossless)), 2 => Just(Some(Codec::Int4))];
    let strategy = prop_oneof![Just(Strategy::Compressed), Just(Strategy::Quantized), Just(Strategy::Lru)];
    let step = prop_oneof![
        8 => (number.clone(), any::<bool>(), any::<bool>(), codec)
            .prop_map(|(number, linked, large, codec)| Step::Store { number, linked, large, codec }),
        3 => number.clone().prop_map(Step::Match),
        2 => number.clone().prop_map(Step::Read),
        2 => any::<usize>().prop_map(Step::Unread),
        1 => (any::<usize>(), any::<bool>()).prop_map(|(at, done)| Step::Copied(at, done)),
        4 => (any::<usize>(), proptest::option::of(40..140u64)).prop_map(|(at, bytes)| Step::Into(at, bytes)),
        4 => (any::<usize>(), becomes).prop_map(|(at, codec)| Step::Shrunk(at, codec)),
        1 => number.prop_map(Step::Lost),
        2 => Just(Step::Tend),
        1 => (strategy, any::<bool>()).prop_map(|(strategy, own)| Step::Rules(strategy, own)),
        1 => Just(Step::Clear),
        1 => (0..40u64).prop_map(Step::Wait),
    ];
    proptest::collection::vec(step, 1..250)
}

proptest! {
    /// Shrinks end well, badly, late, or while their block is read, cleared, lost or given to another party: the ledger
    /// balances after every step, what is read has bytes, and when the last shrink has ended no frame is missing.
    #[test]
    fn any_shrink_keeps_every_invariant(steps in steps()) {
        let mut scene = Scenario::new(Strategy::Compressed, [3, 4], [2, 2]);
        let (mut readers, mut copies, mut shrinks) = (Vec::new(), Vec::new(), Vec::new());
        let mut bytes: HashMap<BlockId, (BlockKey, Codec)> = HashMap::new();
        let mut alive: BTreeMap<u64, BlockId> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Store { number, linked, large, codec } => {
                    let size = if large { LARGE } else { SMALL };
                    let parent = number.checked_sub(1).filter(|_| linked);
                    if let Reserve::Take { ticket, .. } = scene.reserve(number, parent, size, codec) {
                        let id = scene.shard.seal(ticket).expect("its era stands");
                        bytes.insert(id, (key(number), codec));
                        alive.insert(number, id);
                    }
                }
                Step::Match(number) => {
                    prop_assert_eq!(scene.covered(&[number]) == 1, alive.contains_key(&number), "{}", number);
                }
                Step::Read(number) => {
                    let found = scene.shard.read(scene.now(), TENANT, &[key(number)].iter().collect())[0];
                    if let Some(id) = found {
                        prop_assert_eq!(bytes.get(&id).map(|(key, _)| *key), Some(key(number)));
                        readers.push(id);
                    }
                }
                Step::Unread(at) if !readers.is_empty() => scene.shard.unread(readers.swap_remove(at % readers.len())),
                Step::Copied(at, done) if !copies.is_empty() => {
                    scene.shard.copied(copies.swap_remove(at % copies.len()), done);
                }
                Step::Into(at, size) if !shrinks.is_empty() => {
                    let at = at % shrinks.len();
                    let (ticket, _, into) = shrinks[at];
                    let now = scene.now();
                    let taken = scene.shard.shrink_into(now, ticket, size, &mut scene.effects);
                    if into {
                        prop_assert_eq!(taken, None, "one frame a shrink");
                    } else if taken.is_some() {
                        shrinks[at].2 = true;
                    } else {
                        shrinks.swap_remove(at);
                    }
                }
                Step::Shrunk(at, codec) if !shrinks.is_empty() => {
                    let (ticket, how, into) = shrinks.swap_remove(at % shrinks.len());
                    if let CopyVerdict::Adopt(id) = scene.shard.shrunk(ticket, codec) {
                        let codec = codec.expect("it has shrunk");
                        prop_assert!(into && !readers.contains(&id));
                        let (_, was) = bytes[&id];
                        let allowed = if how == Shrink::Lossless { was == Codec::Raw } else { was.is_exact() };
                        prop_assert!(allowed, "{:?} {:?}", how, was);
                        bytes.get_mut(&id).expect("it is there").1 = codec;
                    }
                }
                Step::Lost(number) => {
                    if let Some(id) = alive.get(&number) {
                        scene.shard.lost(*id, &mut scene.effects);
                    }
                }
                Step::Tend => scene.shard.tend(scene.now(), &mut scene.effects),
                Step::Clear => {
                    scene.era += 1;
                    alive.clear();
                    scene.shard.set_tenants(BTreeMap::from([(TENANT, Era(scene.era))]));
                }
                Step::Rules(strategy, own) => {
                    let own = own.then_some((TENANT, Rules::new(strategy))).into_iter().collect();
                    scene.shard.set_rules(Rules::new(strategy), &own);
                }
                Step::Wait(ms) => scene.now += ms,
                _ => {}
            }
            for effect in scene.effects.drain(..) {
                match effect {
                    Effect::Drop { id, .. } => {
                        alive.retain(|_, other| *other != id);
                        prop_assert!(bytes.remove(&id).is_some(), "dropped once");
                    }
                    Effect::Copy { ticket, .. } => copies.push(ticket),
                    Effect::Shrink { ticket, id, how } => {
                        prop_assert!(bytes.contains_key(&id));
                        shrinks.push((ticket, how, false));
                    }
                }
            }
            if let Err(broken) = scene.shard.invariants() {
                return Err(TestCaseError::fail(broken));
            }
            prop_assert_eq!(scene.shard.stats().shrinking, shrinks.len() as u64);
        }
        // Everything ends.
        for (ticket, _, _) in shrinks {
            prop_assert_eq!(scene.shard.shrunk(ticket, None), CopyVerdict::Discard);
        }
        for ticket in copies {
            prop_assert_eq!(scene.shard.copied(ticket, false), CopyVerdict::Discard);
        }
        readers.into_iter().for_each(|id| scene.shard.unread(id));
        scene.shard.set_tenants(BTreeMap::new());
        scene.shard.tend(scene.now(), &mut scene.effects);
        let stats = scene.stats();
        prop_assert_eq!((stats.blocks(), stats.leaving, stats.shrinking), (0, 0, 0));
        prop_assert_eq!((stats.device.used_bytes, stats.host.used_bytes), (0, 0));
    }
}
