//! What is kept, brought up and let go ahead of need: hints, collections and sessions that come back, as stories and under random
//! use with every invariant checked after each step.

use kvhive_cache::policy::Strategy;
use kvhive_cache::{
    BlockId, Collected, Effect, Reason, Reserve, Rules, Shard, ShardConfig, Tier, TierCapacity,
};
use kvhive_protocol::block::Codec;
use kvhive_protocol::data::{About, Hint, Run, StoreBlock};
use kvhive_protocol::{BlockHeader, BlockKey, Era, KeyList, LayoutFingerprint, Moment, Slot, TenantId};
use proptest::prelude::{Just, TestCaseError, any, prop_assert, prop_oneof, proptest};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::time::Duration;

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
}

impl Scenario {
    /// Frames per tier; a collection begins beyond `gc_per_mille`.
    fn of(frames: [u32; 3], strategy: Strategy, gc_per_mille: Option<u16>) -> Scenario {
        let [device, host, disk] = frames.map(|frames| TierCapacity { frames: vec![frames] });
        let mut shard = Shard::new(ShardConfig {
            classes: vec![FRAME],
            device,
            host,
            disk,
            rules: Rules::new(strategy),
            unused_to_disk: true,
            prefetch: 8,
            gc_per_mille,
            max_hold: Duration::from_secs(60),
            max_writes: 8,
            low_water_per_mille: 0,
            hash_seed: 9,
        });
        shard.set_tenants(BTreeMap::from([(TENANT, Era(1))]));
        Scenario { shard, effects: Vec::new(), now: 1000, era: 1, hint: Hint::None }
    }

    fn now(&self) -> Moment {
        Moment::from_millis(self.now)
    }

    fn block(&self, number: u64, depth: u32) -> StoreBlock {
        let header = BlockHeader {
            key: key(number),
            fingerprint: LayoutFingerprint::default(),
            tenant: TENANT,
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
        let block = self.block(number, depth);
        let about = About { hint: self.hint, ..About::default() };
        match self.shard.reserve(self.now(), TENANT, &block, Slot(1), about, &mut self.effects) {
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
        self.shard.match_runs(self.now(), TENANT, &[run], &keys, Duration::from_millis(hold_ms))[0]
    }

    fn release(&mut self, session: Range<u64>, hint: Hint) -> u32 {
        let keys: KeyList = session.map(key).collect();
        self.shard.release(self.now(), TENANT, &keys, hint)
    }

    fn read(&mut self, number: u64) -> Option<BlockId> {
        self.shard.read(self.now(), TENANT, &[key(number)].iter().collect())[0]
    }

    /// One piece of what can wait; copies end at once and well. Says whether anything was done.
    fn tend(&mut self) -> bool {
        self.shard.tend(self.now(), &mut self.effects);
        let effects = std::mem::take(&mut self.effects);
        for effect in &effects {
            if let Effect::Copy { ticket, .. } = effect {
                self.shard.copied(*ticket, true);
            }
        }
        self.check();
        !effects.is_empty()
    }

    fn settle(&mut self) {
        while self.tend() {}
    }

    /// Which blocks are here; it uses them.
    fn resident(&mut self, numbers: Range<u64>) -> Vec<u64> {
        numbers.filter(|number| self.covered(*number..number + 1) == 1).collect()
    }

    fn restore(&mut self, session: Range<u64>) {
        for (depth, number) in (0..).zip(session) {
            let block = self.block(number, depth);
            self.shard.restore(TENANT, &block, Slot(1), 0).expect("there is a place");
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

#[test]
fn a_session_that_is_over_is_collected_first_and_from_its_end() {
    for by_store in [false, true] {
        let mut scene = Scenario::of([20, 0, 0], Strategy::Lru, Some(500));
        scene.serve(0..4);
        scene.serve(10..14);
        scene.hint = if by_store { Hint::Over } else { Hint::None };
        scene.serve(20..24);
        if !by_store {
            assert_eq!(scene.release(20..24, Hint::Over), 4);
        }
        scene.settle();
        assert_eq!((scene.collected(Reason::Over), scene.collected(Reason::Evicted)), (3, 0));
        assert_eq!(scene.resident(0..30), [0, 1, 2, 3, 10, 11, 12, 13, 20], "told by store: {by_store}");
        assert_eq!(scene.shard.stats().collections, 1);
    }
}

#[test]
fn what_another_has_used_since_is_not_collected_with_a_session() {
    let mut scene = Scenario::of([10, 0, 0], Strategy::Lru, Some(700));
    scene.serve(0..4);
    scene.serve(10..14);
    assert_eq!(scene.covered(0..2), 2);
    scene.release(0..4, Hint::Over);
    scene.settle();
    assert_eq!(scene.collected(Reason::Over), 2);
    assert_eq!(scene.resident(0..20), [0, 1, 10, 11, 12, 13]);
}

#[test]
fn who_comes_back_after_all_is_not_collected() {
    let mut scene = Scenario::of([10, 0, 0], Strategy::Lru, Some(700));
    scene.serve(0..4);
    scene.serve(10..14);
    scene.release(10..14, Hint::Over);
    assert_eq!(scene.covered(10..14), 4);
    scene.settle();
    assert_eq!((scene.collected(Reason::Over), scene.collected(Reason::Evicted)), (0, 2));
    assert_eq!(scene.resident(0..20), [0, 1, 10, 11, 12, 13]);
}

#[test]
fn a_release_ends_no_hold_and_what_is_held_or_read_is_not_collected() {
    let mut scene = Scenario::of([4, 0, 0], Strategy::Lru, Some(250));
    scene.serve(0..1);
    scene.serve(10..11);
    assert_eq!(scene.matched(0..1, 5000), 1);
    let reader = scene.read(10).expect("it is here");
    scene.release(0..1, Hint::Over);
    scene.release(10..11, Hint::Over);
    scene.settle();
    assert_eq!(scene.tiers(), [2, 0, 0]);
    scene.shard.unread(reader);
    scene.settle();
    assert_eq!(scene.tiers(), [1, 0, 0], "the one that was read");
    // Now below the threshold: the next one begins another collection.
    scene.now += 5001;
    scene.serve(20..21);
    scene.settle();
    assert_eq!(scene.resident(0..30), [] as [u64; 0], "the hold has ended");
}

#[test]
fn blocks_go_to_the_disk_before_any_is_lost() {
    let mut scene = Scenario::of([8, 0, 16], Strategy::Lru, Some(500));
    (0..6).for_each(|session| scene.serve(10 * session..10 * session + 1));
    scene.settle();
    assert_eq!((scene.tiers(), scene.collected(Reason::Demoted)), ([3, 0, 3], 3));
    assert_eq!(scene.shard.stats().evicted, 0);
}

#[test]
fn the_strategy_says_what_goes_where_there_is_no_room_below() {
    let mut scene = Scenario::of([8, 0, 0], Strategy::Lru, Some(500));
    scene.serve(0..3);
    scene.serve(10..13);
    assert_eq!(scene.covered(0..3), 3);
    scene.settle();
    assert_eq!(scene.collected(Reason::Evicted), 3);
    assert_eq!(scene.resident(0..20), [0, 1, 2]);

    let mut scene = Scenario::of([8, 0, 2], Strategy::Lru, Some(500));
    (0..6).for_each(|session| scene.serve(10 * session..10 * session + 1));
    scene.settle();
    assert_eq!(scene.tiers(), [3, 0, 2], "the disk is full");
    assert_eq!(scene.collected(Reason::Evicted), 1);
}

#[test]
fn a_collection_loses_nothing_to_a_disk_that_is_closed_for_now() {
    let mut scene = Scenario::of([8, 0, 8], Strategy::Lru, Some(500));
    scene.shard.set_open(Tier::Disk, false);
    (0..6).for_each(|session| scene.serve(10 * session..10 * session + 1));
    scene.settle();
    assert_eq!(scene.tiers(), [6, 0, 0]);
    scene.shard.set_open(Tier::Disk, true);
    scene.settle();
    assert_eq!(scene.tiers(), [3, 0, 3]);
}

#[test]
fn what_a_clear_has_ended_is_collected_before_all_else() {
    let mut scene = Scenario::of([8, 0, 0], Strategy::Lru, Some(500));
    scene.serve(0..5);
    scene.era = 2;
    scene.shard.set_tenants(BTreeMap::from([(TENANT, Era(2))]));
    scene.serve(10..12);
    scene.release(10..12, Hint::Over);
    scene.settle();
    assert_eq!((scene.collected(Reason::Cleared), scene.collected(Reason::Over)), (5, 0));
    assert_eq!(scene.tiers(), [2, 0, 0]);
}

#[test]
fn one_piece_of_a_collection_is_bounded_and_without_a_threshold_there_is_none() {
    let mut scene = Scenario::of([1000, 0, 0], Strategy::Lru, Some(100));
    scene.serve(0..900);
    scene.tend();
    assert_eq!(scene.tiers(), [644, 0, 0]);
    scene.settle();
    assert_eq!(scene.tiers(), [50, 0, 0]);
    let mut scene = Scenario::of([1000, 0, 0], Strategy::Lru, None);
    scene.serve(0..1000);
    scene.release(0..1000, Hint::Over);
    scene.settle();
    assert_eq!(scene.tiers(), [1000, 0, 0]);
}

#[test]
fn whatever_the_strategy_a_collection_goes_to_its_end_and_never_takes_a_parent_first() {
    for strategy in Strategy::ALL {
        let mut scene = Scenario::of([40, 0, 0], strategy, Some(500));
        for session in 0..7 {
            scene.serve(100 * session..100 * session + 5);
        }
        scene.settle();
        assert_eq!(scene.tiers(), [18, 0, 0], "{strategy}");
        for session in 0..7 {
            let all = scene.resident(100 * session..100 * session + 5);
            let from_head: Vec<u64> = (100 * session..).take(all.len()).collect();
            assert_eq!(all, from_head, "{strategy}");
        }
    }
}

#[test]
fn a_session_is_brought_up_before_it_is_due() {
    let mut scene = Scenario::of([4, 0, 8], Strategy::Lru, None);
    scene.restore(0..3);
    scene.release(0..3, Hint::Returns(40));
    scene.now += 34_900;
    scene.settle();
    assert_eq!(scene.tiers(), [0, 0, 3]);
    scene.now += 200;
    scene.settle();
    assert_eq!(scene.tiers(), [3, 0, 0]);
    let reader = scene.read(0).expect("it is here");
    scene.shard.unread(reader);
    let stats = scene.shard.stats();
    assert_eq!((stats.prefetched, stats.prefetch_useful, stats.prefetch_late), (3, 1, 0));
}

#[test]
fn a_session_that_is_awaited_pushes_nothing_out() {
    let mut scene = Scenario::of([4, 0, 8], Strategy::Lru, None);
    scene.restore(0..3);
    scene.serve(10..13);
    scene.release(0..3, Hint::Returns(1));
    scene.now += 1000;
    scene.settle();
    assert_eq!(scene.tiers(), [4, 0, 2], "one frame was free");
    let stats = scene.shard.stats();
    assert_eq!((stats.prefetched, stats.prefetch_cancelled, stats.evicted), (3, 2, 0));
}

#[test]
fn a_session_that_does_not_come_is_collected_as_one_that_is_over() {
    let mut scene = Scenario::of([8, 0, 0], Strategy::Lru, Some(750));
    scene.serve(0..3);
    scene.release(0..3, Hint::Returns(10));
    scene.now += 60_001;
    scene.tend();
    scene.serve(10..14);
    scene.settle();
    assert_eq!((scene.collected(Reason::Overdue), scene.collected(Reason::Evicted)), (2, 0));
    assert_eq!(scene.resident(0..20), [0, 10, 11, 12, 13]);
}

#[test]
fn a_match_that_finds_all_brings_up_what_follows_too() {
    let mut scene = Scenario::of([8, 0, 8], Strategy::Lru, None);
    scene.restore(0..6);
    assert_eq!(scene.covered(0..3), 3);
    scene.settle();
    assert_eq!(scene.tiers(), [6, 0, 0]);

    let mut scene = Scenario::of([8, 0, 8], Strategy::Lru, None);
    scene.restore(0..6);
    let run = Run { slot: Slot(1), keys: 4 };
    let keys: KeyList = [0, 1, 2, 77].into_iter().map(key).collect();
    let now = scene.now();
    assert_eq!(scene.shard.match_runs(now, TENANT, &[run], &keys, Duration::ZERO), [3]);
    scene.settle();
    assert_eq!(scene.tiers(), [3, 0, 3], "it goes on otherwise than what is here");
}

#[test]
fn moves_up_from_the_host_are_told_apart_by_what_became_of_them_too() {
    let mut scene = Scenario::of([2, 4, 0], Strategy::Lru, None);
    let first: Vec<BlockId> = (0..2).map(|number| scene.try_store(number, 0).expect("room")).collect();
    scene.serve(10..12);
    assert_eq!(scene.tiers(), [2, 2, 0]);
    first.into_iter().for_each(|id| scene.shard.lost(id, &mut scene.effects));
    assert_eq!(scene.covered(10..11), 1);
    scene.settle();
    // Its continuation came with it.
    assert_eq!(scene.tiers(), [2, 0, 0]);
    for number in 10..12 {
        let id = scene.read(number).expect("it is here");
        scene.shard.unread(id);
    }
    let stats = scene.shard.stats();
    assert_eq!((stats.prefetched, stats.prefetch_useful), (2, 2));

    let mut scene = Scenario::of([2, 4, 0], Strategy::Lru, None);
    for number in 0..2 {
        scene.try_store(number, 0).expect("there is room");
    }
    scene.serve(10..11);
    assert_eq!(scene.covered(10..11), 1);
    scene.shard.tend(scene.now(), &mut scene.effects);
    let id = scene.read(10).expect("it is here");
    scene.shard.unread(id);
    let stats = scene.shard.stats();
    assert_eq!(
        (stats.prefetched, stats.prefetch_cancelled, stats.prefetch_useful),
        (1, 1, 0),
        "no frame was free"
    );
}

#[test]
fn what_is_read_before_it_has_come_up_is_late() {
    let mut scene = Scenario::of([2, 0, 4], Strategy::Lru, None);
    scene.restore(0..2);
    assert_eq!(scene.covered(0..2), 2);
    scene.shard.tend(scene.now(), &mut scene.effects);
    let id = scene.read(0).expect("it is here");
    scene.settle();
    scene.shard.unread(id);
    let stats = scene.shard.stats();
    assert_eq!((stats.prefetched, stats.prefetch_late, stats.prefetch_useful), (2, 1, 0));
}

#[derive(Clone, Debug)]
enum Step {
    Serve { session: u8, blocks: u8, hint: u8 },
    Match { session: u8, blocks: u8, hold_ms: u64 },
    Release { session: u8, blocks: u8, hint: u8 },
    Read(u8, u8),
    Unread(usize),
    Tend,
    Copied(usize, bool),
    Open(bool),
    Clear,
    Wait(u64),
}

fn steps() -> impl proptest::strategy::Strategy<Value = Vec<Step>> {
    use proptest::strategy::Strategy as _;
    let session = || (0u8..5, 1u8..6);
    let step = prop_oneof![
        4 => (session(), 0u8..4).prop_map(|((session, blocks), hint)| Step::Serve { session, blocks, hint }),
        3 => (session(), 0u64..5000).prop_map(|((session, blocks), hold_ms)| Step::Match { session, blocks, hold_ms }),
        3 => (session(), 0u8..4).prop_map(|((session, blocks), hint)| Step::Release { session, blocks, hint }),
        2 => session().prop_map(|(session, block)| Step::Read(session, block - 1)),
        2 => any::<usize>().prop_map(Step::Unread),
        4 => Just(Step::Tend),
        3 => (any::<usize>(), any::<bool>()).prop_map(|(at, done)| Step::Copied(at, done)),
        1 => any::<bool>().prop_map(Step::Open),
        1 => Just(Step::Clear),
        2 => (0u64..70_000).prop_map(Step::Wait),
    ];
    proptest::collection::vec(step, 1..150)
}

fn hint(number: u8) -> Hint {
    [Hint::None, Hint::Over, Hint::Pending, Hint::Returns(3)][usize::from(number)]
}

proptest! {
    /// Nothing that is held leaves but by a clear, every invariant holds after each step, and in the end the memory is no fuller
    /// than its threshold.
    #[test]
    fn any_use_keeps_every_invariant_and_the_threshold(strategy in 0usize..12, steps in steps()) {
        let mut scene = Scenario::of([6, 4, 6], Strategy::ALL[strategy], Some(600));
        let (mut readers, mut copies): (Vec<BlockId>, Vec<_>) = (Vec::new(), Vec::new());
        let mut numbers: HashMap<BlockId, u64> = HashMap::new();
        let mut held: HashMap<u64, u64> = HashMap::new();
        for step in steps {
            let of = |session: u8, blocks: u8| u64::from(session) * 10..u64::from(session) * 10 + u64::from(blocks);
            match step {
                Step::Serve { session, blocks, hint: number } => {
                    scene.hint = hint(number);
                    for (depth, number) in (0..).zip(of(session, blocks)) {
                        if let Some(id) = scene.try_store(number, depth) {
                            numbers.insert(id, number);
                        }
                    }
                }
                Step::Match { session, blocks, hold_ms } => {
                    let numbers = of(session, blocks);
                    let covered = scene.matched(numbers.clone(), hold_ms);
                    if covered > 0 {
                        let until = held.entry(numbers.start + u64::from(covered) - 1).or_default();
                        *until = (*until).max(scene.now + hold_ms);
                    }
                }
                Step::Release { session, blocks, hint: number } => {
                    scene.release(of(session, blocks), hint(number));
                }
                Step::Read(session, block) => readers.extend(scene.read(of(session, block).end)),
                Step::Unread(at) if !readers.is_empty() => {
                    scene.shard.unread(readers.swap_remove(at % readers.len()));
                }
                Step::Tend => scene.shard.tend(scene.now(), &mut scene.effects),
                Step::Copied(at, done) if !copies.is_empty() => {
                    scene.shard.copied(copies.swap_remove(at % copies.len()), done);
                }
                Step::Open(open) => scene.shard.set_open(Tier::Disk, open),
                Step::Clear => {
                    scene.era += 1;
                    held.clear();
                    scene.shard.set_tenants(BTreeMap::from([(TENANT, Era(scene.era))]));
                }
                Step::Wait(ms) => scene.now += ms,
                _ => {}
            }
            for effect in scene.effects.drain(..) {
                match effect {
                    Effect::Drop { id } => {
                        let until = numbers.remove(&id).and_then(|number| held.get(&number));
                        prop_assert!(until.is_none_or(|until| *until <= scene.now), "{:?} was held", id);
                    }
                    Effect::Copy { ticket, .. } => copies.push(ticket),
                    Effect::Shrink { .. } => prop_assert!(false, "there are no smaller frames"),
                }
            }
            if let Err(broken) = scene.shard.invariants() {
                return Err(TestCaseError::fail(broken));
            }
        }
        readers.into_iter().for_each(|id| scene.shard.unread(id));
        for ticket in copies {
            scene.shard.copied(ticket, true);
        }
        scene.shard.set_open(Tier::Disk, true);
        scene.now += 100_000;
        scene.settle();
        let [device, host, _] = scene.tiers();
        prop_assert!(device + host <= 6, "{} of 10 frames are in use", device + host);
    }
}
