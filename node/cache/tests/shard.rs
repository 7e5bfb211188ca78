//! The shard's rules as stories, and under random use with every invariant checked after each step.

use kvhive_cache::policy::Strategy;
use kvhive_cache::{
    BlockId, CopyVerdict, Effect, Reserve, Rules, Shard, ShardConfig, Tier, TierCapacity, WriteTicket,
};
use kvhive_protocol::block::Codec;
use kvhive_protocol::data::{About, Refusal, Run, StoreBlock};
use kvhive_protocol::{
    BlockHeader, BlockKey, Era, KeyList, LayoutFingerprint, Moment, SLOTS, Slot, TenantId,
};
use proptest::prelude::{Just, TestCaseError, any, prop_assert, prop_assert_eq, prop_oneof, proptest};
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

const TENANT: TenantId = TenantId(1);

fn key(number: u64) -> BlockKey {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&(number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
    bytes[8..16].copy_from_slice(&number.to_le_bytes());
    BlockKey::from_bytes(bytes)
}

fn block(number: u64, parent: Option<u64>, depth: u32, bytes: u64, era: u64) -> StoreBlock {
    let header = BlockHeader {
        key: key(number),
        fingerprint: LayoutFingerprint::default(),
        tenant: TENANT,
        era: Era(era),
        depth,
        codec: Codec::Raw,
        payload_bytes: bytes,
        digest: 0,
    };
    StoreBlock { header, parent: parent.map_or(BlockKey::NONE, key) }
}

/// A shard with its effects and a clock in milliseconds.
struct Scenario {
    shard: Shard,
    config: ShardConfig,
    effects: Vec<Effect>,
    now: u64,
}

impl Scenario {
    fn with(device: &[u32], host: &[u32], low_water_per_mille: u16) -> Scenario {
        Scenario::over(device, host, &[], low_water_per_mille)
    }

    fn over(device: &[u32], host: &[u32], disk: &[u32], low_water_per_mille: u16) -> Scenario {
        let config = ShardConfig {
            classes: (0..device.len()).map(|class| 100 << class).collect(),
            device: TierCapacity { frames: device.to_vec() },
            host: TierCapacity { frames: host.to_vec() },
            disk: TierCapacity { frames: disk.to_vec() },
            rules: Rules::new(Strategy::Lru),
            unused_to_disk: true,
            prefetch: 8,
            gc_per_mille: None,
            pinned_per_mille: 500,
            max_hold: Duration::from_millis(50),
            max_writes: 8,
            low_water_per_mille,
            hash_seed: 9,
        };
        let mut shard = Shard::new(config.clone());
        shard.set_tenants(BTreeMap::from([(TENANT, Era(1))]));
        Scenario { shard, config, effects: Vec::new(), now: 1000 }
    }

    /// Tends until nothing moves any more; copies end at once and well.
    fn settle(&mut self) {
        loop {
            self.shard.tend(self.now(), &mut self.effects);
            let effects = std::mem::take(&mut self.effects);
            let copies = effects.iter().filter_map(|effect| match effect {
                Effect::Copy { ticket, .. } => Some(*ticket),
                Effect::Drop { .. } | Effect::Shrink { .. } => None,
            });
            let adopted = copies.map(|ticket| self.shard.copied(ticket, true)).count();
            if adopted == 0 {
                return;
            }
        }
    }

    fn now(&self) -> Moment {
        Moment::from_millis(self.now)
    }

    fn reserve(&mut self, number: u64, parent: Option<u64>, depth: u32) -> Reserve {
        let block = block(number, parent, depth, 100, 1);
        self.shard.reserve(
            self.now(),
            TENANT,
            &block,
            Slot((number % u64::from(SLOTS)) as u16),
            About::default(),
            &mut self.effects,
        )
    }

    fn store(&mut self, number: u64, parent: Option<u64>, depth: u32) -> BlockId {
        match self.reserve(number, parent, depth) {
            Reserve::Take { ticket, .. } => self.shard.seal(ticket).expect("its era stands"),
            other => panic!("block {number}: {other:?}"),
        }
    }

    fn ticket(&mut self, number: u64) -> WriteTicket {
        match self.reserve(number, None, 0) {
            Reserve::Take { ticket, .. } => ticket,
            other => panic!("block {number}: {other:?}"),
        }
    }

    fn covered(&mut self, numbers: &[u64], hold_ms: u64) -> u32 {
        let keys: KeyList = numbers.iter().map(|number| key(*number)).collect();
        let run = Run { slot: Slot(0), keys: numbers.len() as u32 };
        self.shard.match_runs(self.now(), TENANT, &[run], &keys, Duration::from_millis(hold_ms))[0]
    }

    fn read(&mut self, number: u64) -> Option<BlockId> {
        self.shard.read(self.now(), TENANT, &[key(number)].iter().collect())[0]
    }

    fn resident(&mut self, numbers: std::ops::Range<u64>) -> Vec<u64> {
        numbers.filter(|number| self.covered(&[*number], 0) == 1).collect()
    }
}

#[test]
fn the_index_of_a_million_blocks_takes_160_bytes_a_block_whatever_the_strategy() {
    const BLOCKS: u32 = 1_000_000;
    for strategy in Strategy::ALL {
        let bytes = Shard::index_bytes(BLOCKS, 1, strategy) as f64 / f64::from(BLOCKS);
        println!("{strategy}: {bytes:.1}");
        assert!(bytes <= 160.0, "{strategy}: {bytes}");
    }
}

#[test]
fn a_block_is_seen_only_when_it_is_sealed() {
    let mut scene = Scenario::with(&[2], &[0], 0);
    let ticket = scene.ticket(1);
    assert_eq!((scene.covered(&[1], 0), scene.read(1)), (0, None));
    assert_eq!(scene.reserve(1, None, 0), Reserve::Refused(Refusal::InFlight));
    scene.shard.abandon(ticket);
    assert_eq!(scene.covered(&[1], 0), 0, "an abandoned write is never seen");
    assert_eq!(scene.shard.seal(ticket), None, "nor sealed later");
    let ticket = scene.ticket(1);
    let id = scene.shard.seal(ticket).expect("its era stands");
    assert_eq!(scene.covered(&[1], 0), 1);
    assert_eq!(scene.reserve(1, None, 0), Reserve::Present(id), "the first writer wins");
    scene.shard.invariants().expect("all hold");
}

#[test]
fn a_write_that_is_given_up_keeps_its_frame_and_not_its_key() {
    let mut scene = Scenario::with(&[3], &[0], 0);
    scene.store(1, None, 0);
    let given_up = [scene.ticket(2), scene.ticket(3)];
    given_up.iter().for_each(|ticket| scene.shard.give_up(*ticket));
    scene.shard.invariants().expect("all hold");
    let stats = scene.shard.stats();
    assert_eq!((stats.given_up, stats.filling, stats.leaving, stats.device.used_bytes), (2, 0, 0, 300));
    // Nothing but the frame that is left is stored into, block after block.
    for number in [2, 3, 4, 2] {
        scene.store(number, None, 0);
        assert_eq!(scene.resident(0..9), [number]);
        scene.shard.invariants().expect("all hold");
    }
    assert_eq!(given_up.map(|ticket| scene.shard.seal(ticket)), [None; 2], "none of them is ever seen");
    given_up.iter().for_each(|ticket| scene.shard.abandon(*ticket));
    given_up.iter().for_each(|ticket| scene.shard.abandon(*ticket));
    let stats = scene.shard.stats();
    assert_eq!((stats.given_up, stats.device.used_bytes), (0, 100), "each comes back once");
    for number in 5..7 {
        scene.store(number, None, 0);
    }
    assert_eq!(scene.resident(0..9), [2, 5, 6]);
    scene.shard.invariants().expect("all hold");
}

#[test]
fn a_prefix_loses_its_tail_before_its_head() {
    let mut scene = Scenario::with(&[4], &[0], 0);
    for at in 0..4 {
        scene.store(at, at.checked_sub(1), at as u32);
    }
    for other in 10..13 {
        scene.store(other, None, 0);
        scene.shard.invariants().expect("all hold");
    }
    assert_eq!(scene.resident(0..20), [0, 10, 11, 12]);
}

#[test]
fn the_least_recently_used_leaf_goes_first_whichever_tier_it_is_in() {
    let mut scene = Scenario::with(&[2], &[2], 0);
    for at in 0..4 {
        scene.store(at, None, 0);
    }
    assert_eq!(scene.covered(&[0], 0), 1);
    scene.store(4, None, 0);
    assert_eq!(scene.resident(0..9), [0, 2, 3, 4]);
}

#[test]
fn a_reader_keeps_a_block_and_a_hold_keeps_it_for_a_while() {
    let mut scene = Scenario::with(&[2], &[0], 0);
    scene.store(0, None, 0);
    scene.store(1, None, 0);
    let read = scene.read(0).expect("it is there");
    assert_eq!(scene.covered(&[1], 10_000), 1);
    assert_eq!(scene.reserve(2, None, 0), Reserve::Refused(Refusal::NoRoom));
    scene.now += 51;
    scene.store(2, None, 0);
    assert_eq!(scene.resident(0..3), [0, 2], "the hold is bounded and has ended");
    scene.shard.unread(read);
    scene.store(3, None, 0);
    assert_eq!(scene.resident(0..4), [2, 3]);
}

#[test]
fn a_hold_ends_when_all_who_asked_have_read_the_block() {
    let mut scene = Scenario::with(&[1], &[0], 0);
    scene.store(0, None, 0);
    assert_eq!([0, 0].map(|number| scene.covered(&[number], 50)), [1, 1]);
    for readers in 0..2 {
        assert_eq!(scene.reserve(1, None, 0), Reserve::Refused(Refusal::NoRoom), "{readers} of 2 have read");
        let read = scene.read(0).expect("it is there");
        scene.shard.unread(read);
    }
    scene.store(1, None, 0);
    assert_eq!(scene.resident(0..2), [1]);
}

#[test]
fn what_a_request_goes_on_from_is_held_until_it_has() {
    let mut scene = Scenario::with(&[2], &[0], 0);
    scene.store(0, None, 0);
    // The request's second block is to be stored when what was found has been read.
    assert_eq!(scene.covered(&[0, 9], 50), 1);
    let read = scene.read(0).expect("it is there");
    scene.shard.unread(read);
    for number in 1..4 {
        scene.store(number, None, 0);
    }
    scene.store(9, Some(0), 1);
    for number in 4..6 {
        scene.store(number, None, 0);
    }
    assert_eq!(scene.resident(1..10), [4, 5], "it went when its child had gone");
}

#[test]
fn what_a_match_has_named_is_not_used_again_by_being_read() {
    let mut scene = Scenario::with(&[3], &[0], 0);
    scene.store(0, None, 0);
    scene.store(1, Some(0), 1);
    scene.store(2, None, 0);
    assert_eq!(scene.covered(&[0, 1], 50), 2);
    // Another request comes between: these two were used before it.
    assert_eq!(scene.covered(&[2], 50), 1);
    let keys: KeyList = [0, 1, 2].map(key).iter().collect();
    for read in scene.shard.read(scene.now(), TENANT, &keys).into_iter().flatten() {
        scene.shard.unread(read);
    }
    scene.store(3, None, 0);
    assert_eq!(scene.resident(0..4), [0, 2, 3]);
}

#[test]
fn a_block_never_pushes_out_its_own_parent() {
    let mut scene = Scenario::with(&[2], &[0], 0);
    scene.store(0, None, 0);
    scene.store(1, Some(0), 1);
    assert_eq!(scene.reserve(2, Some(1), 2), Reserve::Refused(Refusal::NoRoom));
    assert_eq!(scene.resident(0..3), [0, 1]);
}

#[test]
fn a_clear_ends_every_older_block_at_once() {
    let mut scene = Scenario::with(&[4], &[0], 0);
    scene.store(0, None, 0);
    let under_way = scene.ticket(1);
    let read = scene.read(0).expect("it is there");
    scene.shard.set_tenants(BTreeMap::from([(TENANT, Era(2))]));
    assert_eq!((scene.covered(&[0], 0), scene.read(0)), (0, None));
    assert_eq!(scene.shard.seal(under_way), None, "a write of an older era is never seen");
    assert_eq!(scene.reserve(5, None, 0), Reserve::Refused(Refusal::WrongEra));
    scene.shard.tend(scene.now(), &mut scene.effects);
    assert_eq!(scene.shard.stats().leaving, 1, "its frame is still being read");
    scene.shard.unread(read);
    let stats = scene.shard.stats();
    assert_eq!((stats.leaving, stats.device.used_bytes, stats.cleared), (0, 0, 1));
    scene.shard.invariants().expect("all hold");
}

#[test]
fn blocks_that_do_not_fit_are_refused_with_the_reason() {
    let mut scene = Scenario::with(&[1, 1], &[0, 0], 0);
    let ask = |scene: &mut Scenario, number, bytes| {
        let now = scene.now();
        scene.shard.reserve(
            now,
            TENANT,
            &block(number, None, 0, bytes, 1),
            Slot(1),
            About::default(),
            &mut scene.effects,
        )
    };
    assert_eq!(ask(&mut scene, 1, 201), Reserve::Refused(Refusal::TooLarge));
    assert!(matches!(ask(&mut scene, 1, 100), Reserve::Take { class: 0, .. }));
    assert!(matches!(ask(&mut scene, 2, 100), Reserve::Take { class: 1, .. }), "the next size up is free");
    assert_eq!(ask(&mut scene, 3, 100), Reserve::Refused(Refusal::NoRoom), "writes are not victims");
}

#[test]
fn demotion_makes_room_on_the_device_and_loses_nothing() {
    let mut scene = Scenario::with(&[4], &[4], 500);
    for at in 0..4 {
        scene.store(at, None, 0);
    }
    scene.shard.tend(scene.now(), &mut scene.effects);
    let copies: Vec<Effect> = scene.effects.drain(..).collect();
    assert_eq!(copies.len(), 2, "half of the device is to be free");
    let reader = scene.read(0).expect("readable while it is copied");
    for (at, copy) in copies.into_iter().enumerate() {
        let Effect::Copy { ticket, id, to: Tier::Host, .. } = copy else { panic!("{copy:?}") };
        let verdict = scene.shard.copied(ticket, true);
        // The block that is being read keeps its frame.
        assert_eq!(verdict, if at == 0 { CopyVerdict::Discard } else { CopyVerdict::Adopt(id) });
        assert_eq!(scene.shard.copied(ticket, true), CopyVerdict::Discard, "a copy ends once");
    }
    scene.shard.unread(reader);
    assert_eq!(scene.resident(0..4), [0, 1, 2, 3]);
    let stats = scene.shard.stats();
    assert_eq!((stats.device.blocks, stats.host.blocks, stats.demoted), (3, 1, 1));
    scene.shard.invariants().expect("all hold");
}

#[test]
fn occupied_slots_are_those_with_blocks() {
    let mut scene = Scenario::with(&[2], &[0], 0);
    scene.store(5, None, 0);
    scene.store(4095, None, 0);
    let bits = scene.shard.occupied();
    let set: Vec<usize> =
        (0..usize::from(SLOTS)).filter(|slot| bits[slot / 8] >> (slot % 8) & 1 == 1).collect();
    assert_eq!(set, [5, 4095]);
}

#[test]
fn a_tenant_that_knows_anothers_key_is_answered_as_if_nobody_held_it() {
    let other = TenantId(2);
    let mut scene = Scenario::with(&[4], &[0], 0);
    scene.shard.set_tenants(BTreeMap::from([(TENANT, Era(1)), (other, Era(1))]));
    scene.store(1, None, 0);
    let filling = scene.ticket(2);
    for number in [1, 2, 3] {
        let keys: KeyList = [key(number)].iter().collect();
        let run = Run { slot: Slot(0), keys: 1 };
        let now = scene.now();
        assert_eq!(scene.shard.match_runs(now, other, &[run], &keys, Duration::ZERO), [0], "{number}");
        assert_eq!(scene.shard.read(now, other, &keys), [None], "{number}");
        let mut foreign = block(number, None, 0, 100, 1);
        foreign.header.tenant = other;
        let answer = scene.shard.reserve(now, other, &foreign, Slot(1), About::default(), &mut scene.effects);
        let Reserve::Take { ticket, .. } = answer else { panic!("{number}: {answer:?}") };
        scene.shard.abandon(ticket);
    }
    scene.shard.seal(filling).expect("its era stands");
    assert_eq!(scene.resident(1..4), [1, 2], "their owner has them still");
    scene.shard.invariants().expect("all hold");
}

#[test]
fn two_tenants_blocks_under_one_key_are_two_blocks() {
    let other = TenantId(2);
    let mut scene = Scenario::with(&[4], &[0], 0);
    scene.shard.set_tenants(BTreeMap::from([(TENANT, Era(1)), (other, Era(1))]));
    let own = scene.store(1, None, 0);
    let mut foreign = block(1, None, 0, 100, 1);
    foreign.header.tenant = other;
    let now = scene.now();
    let taken = scene.shard.reserve(now, other, &foreign, Slot(1), About::default(), &mut scene.effects);
    let Reserve::Take { ticket, .. } = taken else { panic!("{taken:?}") };
    let foreign = scene.shard.seal(ticket).expect("its era stands");
    assert_ne!(own, foreign);
    let keys: KeyList = [key(1)].iter().collect();
    assert_eq!(scene.shard.read(now, TENANT, &keys), [Some(own)]);
    assert_eq!(scene.shard.read(now, other, &keys), [Some(foreign)]);
    // One of them ends without the other.
    scene.shard.set_tenants(BTreeMap::from([(TENANT, Era(2)), (other, Era(1))]));
    scene.settle();
    assert_eq!(scene.shard.read(now, TENANT, &keys), [None]);
    assert_eq!(scene.shard.read(now, other, &keys), [Some(foreign)]);
    scene.shard.invariants().expect("all hold");
}

#[test]
fn what_a_match_finds_on_disk_is_brought_up_before_it_is_read() {
    let mut scene = Scenario::over(&[2], &[2], &[8], 500);
    for number in 0..8 {
        scene.store(number, number.checked_sub(1), number as u32);
        scene.settle();
    }
    assert_eq!(scene.covered(&[0, 1, 2, 3, 4, 5, 6, 7], 0), 8, "nothing was lost on the way down");
    let before = scene.shard.stats();
    assert!(before.disk.blocks >= 4, "{before:?}");
    scene.settle();
    let brought = scene.shard.stats();
    assert!(brought.prefetched > 0 && brought.promoted > before.promoted, "{brought:?}");
    assert_eq!(brought.blocks(), 8);
    for number in 0..8 {
        let id = scene.read(number).expect("it is here");
        scene.shard.unread(id);
    }
    let read = scene.shard.stats();
    let told = read.prefetch_useful + read.prefetch_late + read.prefetch_cancelled + read.prefetch_wasted;
    assert_eq!(told, read.prefetched, "each one brought ahead is accounted for: {read:?}");
    scene.shard.invariants().expect("all hold");
}

#[test]
fn a_closed_disk_takes_nothing_and_gives_what_it_has() {
    let mut scene = Scenario::over(&[2], &[0], &[4], 500);
    scene.store(0, None, 0);
    scene.store(1, None, 0);
    scene.settle();
    assert_eq!(scene.shard.stats().disk.blocks, 1);
    scene.shard.set_open(Tier::Disk, false);
    for number in 2..6 {
        scene.store(number, None, 0);
        scene.settle();
    }
    let stats = scene.shard.stats();
    assert_eq!((stats.disk.blocks, stats.device.blocks), (1, 2), "memory alone goes on: {stats:?}");
    scene.shard.set_open(Tier::Disk, true);
    scene.store(6, None, 0);
    scene.settle();
    assert!(scene.shard.stats().disk.blocks > 1, "it is used again");
}

#[test]
fn what_is_in_a_tier_that_is_lost_goes_and_the_others_go_on_as_if_it_had_never_been() {
    let mut scene = Scenario::with(&[4], &[4], 250);
    for number in 0..6 {
        scene.store(number, None, 0);
        scene.settle();
    }
    let before = scene.shard.stats();
    assert!(before.device.blocks > 0 && before.host.blocks > 0, "{before:?}");
    let read = (0..6).find_map(|number| scene.read(number)).expect("they are there");
    let ticket = scene.ticket(6);
    scene.shard.lose_tier(Tier::Device, &mut scene.effects);
    let dropped = scene.effects.iter().filter(|effect| matches!(effect, Effect::Drop { .. })).count();
    assert_eq!(dropped as u64, before.device.blocks, "what was in it, and no more");
    assert_eq!(scene.shard.seal(ticket), None, "what was written there comes to nothing");
    scene.shard.unread(read);
    scene.shard.lose_tier(Tier::Device, &mut scene.effects);
    scene.shard.invariants().expect("all hold");
    for number in 10..20 {
        scene.store(number, None, 0);
        scene.settle();
    }
    let after = scene.shard.stats();
    assert_eq!((after.device.blocks, after.device.capacity_bytes, after.host.blocks), (0, 0, 4), "{after:?}");
    assert_eq!(after.lost, before.device.blocks);
    scene.shard.invariants().expect("all hold");
}

#[test]
fn a_block_that_was_never_used_does_not_go_to_a_disk_that_wants_used_ones() {
    let mut scene = Scenario::over(&[4], &[0], &[8], 250);
    scene.shard = {
        let mut shard = Shard::new(ShardConfig { unused_to_disk: false, ..scene.config.clone() });
        shard.set_tenants(BTreeMap::from([(TENANT, Era(1))]));
        shard
    };
    for number in 0..3 {
        scene.store(number, None, 0);
    }
    scene.covered(&[0], 0);
    for number in 3..8 {
        scene.store(number, None, 0);
        scene.settle();
    }
    let stats = scene.shard.stats();
    assert_eq!((stats.disk.blocks, scene.resident(0..4)), (1, vec![0]), "{stats:?}");
    assert!(stats.not_admitted >= 3);
}

#[test]
fn a_store_does_not_push_out_the_block_that_it_follows() {
    let mut scene = Scenario::over(&[4], &[0], &[8], 750);
    scene.shard = {
        let mut shard = Shard::new(ShardConfig { unused_to_disk: false, ..scene.config.clone() });
        shard.set_tenants(BTreeMap::from([(TENANT, Era(1))]));
        shard
    };
    // Never used again, so the coldest and not admitted to the disk, when its child comes.
    scene.store(1, None, 0);
    scene.store(2, Some(1), 1);
    scene.shard.invariants().expect("a block is no child of its own");
    assert_eq!(scene.resident(1..3), vec![1, 2]);
}

#[test]
fn blocks_come_back_from_disk_with_their_prefixes() {
    let mut scene = Scenario::over(&[2], &[0], &[4], 0);
    for number in 0..3 {
        let block = block(number, number.checked_sub(1), number as u32, 100, 1);
        assert!(scene.shard.restore(TENANT, &block, Slot(1), 0).is_some());
    }
    assert_eq!(scene.shard.restore(TENANT, &block(1, Some(0), 1, 100, 1), Slot(1), 0), None, "once");
    assert_eq!(scene.shard.restore(TENANT, &block(7, None, 0, 100, 0), Slot(1), 0), None, "an ended era");
    assert_eq!(scene.covered(&[0, 1, 2], 0), 3);
    assert_eq!(scene.shard.stats().disk.blocks, 3);
    scene.shard.invariants().expect("all hold");
}

#[test]
fn a_record_stays_in_the_class_of_its_file() {
    let config = Scenario::over(&[1, 1], &[0, 0], &[2, 2], 0).config;
    let (small, large) = (config.classes[0], config.classes[1]);
    let mut shard = Shard::new(config);
    shard.set_tenants(BTreeMap::from([(TENANT, Era(1))]));
    let mut restore = |number: u64, bytes: u64, class: usize| {
        let block = block(number, None, 0, bytes, 1);
        shard.restore(TENANT, &block, Slot(1), class).is_some()
    };
    // A small block that came when only large frames were free.
    assert!(restore(0, small, 1) && restore(1, large, 1));
    assert!(!restore(2, large, 0) && !restore(2, small, 2), "too large for its class, no such class");
    assert!(!restore(2, small, 1) && restore(2, small, 0), "as many as there are records of each");
    assert_eq!(shard.stats().disk.used_bytes, small + 2 * large);
    shard.invariants().expect("all hold");
}

#[test]
fn a_block_on_disk_is_a_hit_when_its_bytes_have_come() {
    let mut scene = Scenario::over(&[2], &[0], &[4], 0);
    for number in 0..2 {
        assert!(scene.shard.restore(TENANT, &block(number, None, 0, 100, 1), Slot(1), 0).is_some());
    }
    let found = [0, 1].map(|number| scene.read(number).expect("it is on disk"));
    assert_eq!((scene.shard.stats().hits, scene.shard.stats().misses), (0, 0));
    scene.shard.brought(found[0], true);
    scene.shard.brought(found[1], false);
    let stats = scene.shard.stats();
    assert_eq!((stats.hits, stats.misses), (1, 1));
    assert_eq!([stats.device, stats.host, stats.disk].map(|tier| tier.hits), [0, 0, 1]);
    let of_tenant = &scene.shard.tenant_loads(8)[0].1;
    assert_eq!((of_tenant.fetched_blocks, of_tenant.missed_blocks), (1, 1), "a tenant's too");
    let listed = scene.shard.listed(found[0]).expect("it is here");
    assert_eq!((listed.parent, listed.slot), (BlockKey::NONE, Slot(1)));
    let mut effects = Vec::new();
    scene.shard.lost(found[0], &mut effects);
    found.into_iter().for_each(|id| scene.shard.unread(id));
    assert_eq!(scene.shard.listed(found[0]), None);
    assert_eq!((scene.shard.stats().lost, scene.shard.stats().disk.used_bytes), (1, 100));
}

#[test]
fn a_tenant_keeps_what_it_was_promised_while_another_floods_the_shard() {
    let other = TenantId(2);
    let mut scene = Scenario::with(&[8], &[0], 0);
    scene.shard.set_tenants(BTreeMap::from([(TENANT, Era(1)), (other, Era(1))]));
    let promised = Rules { strategy: Strategy::Lru, quota: [Some(400), None, None] };
    scene.shard.set_rules(Rules::new(Strategy::Lru), &BTreeMap::from([(TENANT, promised)]));
    for number in 0..6 {
        scene.store(number, None, 0);
    }
    let flood = |scene: &mut Scenario, numbers: std::ops::Range<u64>| {
        for number in numbers {
            let mut block = block(number, None, 0, 100, 1);
            block.header.tenant = other;
            let now = scene.now();
            let taken =
                scene.shard.reserve(now, other, &block, Slot(1), About::default(), &mut scene.effects);
            let Reserve::Take { ticket, .. } = taken else { panic!("{taken:?}") };
            scene.shard.seal(ticket).expect("its era stands");
        }
    };
    flood(&mut scene, 100..120);
    assert_eq!(scene.resident(0..6), [2, 3, 4, 5], "what it had borrowed went, what it was promised stayed");
    // Idle room is lent: the one without a promise filled the rest.
    assert_eq!(scene.shard.stats().blocks(), 8);
    for number in 200..204 {
        scene.store(number, None, 0);
    }
    assert_eq!(scene.shard.stats().blocks(), 8);
    scene.shard.invariants().expect("all hold");
}

#[test]
fn what_is_being_written_to_a_lost_tier_is_in_nobodys_way() {
    let mut scene = Scenario::over(&[4], &[3], &[5], 0);
    let written = block(1, None, 0, 100, 1);
    let now = scene.now();
    let taken = scene.shard.reserve(now, TENANT, &written, Slot(1), About::default(), &mut scene.effects);
    let Reserve::Take { ticket, .. } = taken else { panic!("{taken:?}") };
    scene.shard.lose_tier(Tier::Device, &mut scene.effects);
    // What is read on the disk comes up if that fills memory too little for a collection.
    scene.shard.restore(TENANT, &block(2, None, 0, 100, 1), Slot(2), 0).expect("the disk has room");
    let read = scene.read(2).expect("it is there");
    scene.shard.unread(read);
    scene.settle();
    assert_eq!(scene.shard.stats().host.used_bytes, 100, "it came up");
    assert_eq!(scene.shard.seal(ticket), None);
    scene.shard.invariants().expect("all hold");
}

#[derive(Clone, Debug)]
enum Step {
    Reserve { number: u64, linked: bool, large: bool },
    Seal(usize),
    Abandon(usize),
    GiveUp(usize),
    Match { first: u64, count: u64, hold: u64 },
    Read(u64),
    Unread(usize),
    Copied(usize, bool),
    Lost(u64),
    Restore(u64, bool),
    Open(bool),
    LoseTier(bool),
    Tend,
    Clear,
    Rules(bool, bool),
    Wait(u64),
}

fn steps() -> impl proptest::strategy::Strategy<Value = Vec<Step>> {
    use proptest::strategy::Strategy as _;
    let number = 0..24u64;
    let step = prop_oneof![
        4 => (number.clone(), any::<bool>(), any::<bool>())
            .prop_map(|(number, linked, large)| Step::Reserve { number, linked, large }),
        3 => any::<usize>().prop_map(Step::Seal),
        1 => any::<usize>().prop_map(Step::Abandon),
        1 => any::<usize>().prop_map(Step::GiveUp),
        2 => (number.clone(), 1..6u64, 0..30u64).prop_map(|(first, count, hold)| Step::Match { first, count, hold }),
        2 => number.prop_map(Step::Read),
        2 => any::<usize>().prop_map(Step::Unread),
        1 => (any::<usize>(), any::<bool>()).prop_map(|(at, done)| Step::Copied(at, done)),
        1 => (0..24u64).prop_map(Step::Lost),
        1 => (0..24u64, any::<bool>()).prop_map(|(number, large)| Step::Restore(number, large)),
        1 => any::<bool>().prop_map(Step::Open),
        1 => (0..40u8).prop_map(|chance| if chance < 2 { Step::LoseTier(chance == 0) } else { Step::Tend }),
        2 => Just(Step::Tend),
        1 => any::<(bool, bool)>().prop_map(|(own, quota)| Step::Rules(own, quota)),
        1 => Just(Step::Clear),
        1 => (0..40u64).prop_map(Step::Wait),
    ];
    proptest::collection::vec(step, 1..250)
}

proptest! {
    /// What the host would hold: a frame for each block, from seal to drop. Nothing is seen without one, nothing that is
    /// read is dropped, and the ledger balances after every step.
    #[test]
    fn any_use_keeps_every_invariant(steps in steps()) {
        let mut scene = Scenario::over(&[4, 2], &[3, 1], &[5, 2], 300);
        let mut era = 1u64;
        let (mut writes, mut readers, mut copies) = (Vec::new(), Vec::new(), Vec::new());
        let mut frames: HashMap<BlockId, BlockKey> = HashMap::new();
        let mut alive: BTreeMap<u64, BlockId> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Reserve { number, linked, large } => {
                    let bytes = if large { 200 } else { 100 };
                    let block = block(number, number.checked_sub(1).filter(|_| linked), number as u32, bytes, era);
                    let now = scene.now();
                    let slot = Slot(number as u16);
                    match scene.shard.reserve(now, TENANT, &block, slot, About::default(), &mut scene.effects) {
                        Reserve::Take { ticket, .. } => writes.push((ticket, number)),
                        Reserve::Present(id) => prop_assert_eq!(frames.get(&id), Some(&key(number))),
                        Reserve::Refused(_) => {}
                    }
                }
                Step::Seal(at) if !writes.is_empty() => {
                    let (ticket, number) = writes.swap_remove(at % writes.len());
                    match scene.shard.seal(ticket) {
                        Some(id) => {
                            prop_assert!(frames.insert(id, key(number)).is_none());
                            alive.insert(number, id);
                        }
                        // Whoever wrote lets go of the frame.
                        None => scene.shard.abandon(ticket),
                    }
                }
                Step::Abandon(at) if !writes.is_empty() => {
                    scene.shard.abandon(writes.swap_remove(at % writes.len()).0);
                }
                Step::GiveUp(at) if !writes.is_empty() => {
                    // Its ticket is good for nothing but to say that its frame is free.
                    let (ticket, _) = writes[at % writes.len()];
                    scene.shard.give_up(ticket);
                    prop_assert_eq!(scene.shard.seal(ticket), None);
                }
                Step::Match { first, count, hold } => {
                    let numbers: Vec<u64> = (first..first + count).collect();
                    let there = numbers.iter().take_while(|number| alive.contains_key(number)).count();
                    prop_assert_eq!(scene.covered(&numbers, hold), there as u32, "of {:?}", numbers);
                }
                Step::Read(number) => {
                    if let Some(id) = scene.read(number) {
                        prop_assert_eq!(frames.get(&id), Some(&key(number)), "what is read has a frame");
                        readers.push(id);
                    }
                }
                Step::Unread(at) if !readers.is_empty() => scene.shard.unread(readers.swap_remove(at % readers.len())),
                Step::Copied(at, done) if !copies.is_empty() => {
                    let ticket = copies.swap_remove(at % copies.len());
                    if let CopyVerdict::Adopt(id) = scene.shard.copied(ticket, done) {
                        prop_assert!(frames.contains_key(&id) && !readers.contains(&id));
                    }
                }
                Step::Tend => {
                    scene.shard.tend(scene.now(), &mut scene.effects);
                }
                Step::Lost(number) => {
                    if let Some(id) = alive.get(&number) {
                        scene.shard.lost(*id, &mut scene.effects);
                    }
                }
                Step::Restore(number, large) => {
                    let block = block(number, number.checked_sub(1), number as u32, 100, era);
                    if let Some(id) = scene.shard.restore(TENANT, &block, Slot(number as u16), usize::from(large)) {
                        prop_assert!(frames.insert(id, key(number)).is_none());
                        prop_assert!(alive.insert(number, id).is_none());
                    }
                }
                Step::Open(open) => scene.shard.set_open(Tier::Disk, open),
                Step::LoseTier(device) => {
                    let tier = if device { Tier::Device } else { Tier::Host };
                    scene.shard.lose_tier(tier, &mut scene.effects);
                }
                Step::Rules(own, quota) => {
                    let quota = [quota.then_some(200), None, quota.then_some(100)];
                    let rules = Rules { strategy: Strategy::Lru, quota };
                    let own = own.then_some((TENANT, rules)).into_iter().collect();
                    scene.shard.set_rules(Rules::new(Strategy::Lru), &own);
                    prop_assert_eq!(scene.shard.rules().1, own);
                }
                Step::Clear => {
                    era += 1;
                    alive.clear();
                    scene.shard.set_tenants(BTreeMap::from([(TENANT, Era(era))]));
                }
                Step::Wait(ms) => scene.now += ms,
                _ => {}
            }
            for effect in scene.effects.drain(..) {
                match effect {
                    // A clear may drop what is still read: it is leaving. Eviction never does.
                    Effect::Drop { id, .. } => {
                        alive.retain(|_, other| *other != id);
                        prop_assert!(frames.remove(&id).is_some());
                    }
                    Effect::Copy { ticket, .. } => copies.push(ticket),
                    Effect::Shrink { .. } => prop_assert!(false, "lru shrinks nothing"),
                }
            }
            if let Err(broken) = scene.shard.invariants() {
                return Err(TestCaseError::fail(broken));
            }
        }
    }
}
