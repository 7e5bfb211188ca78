//! Why a block is not here: each way out leaves its own word, with the time and the strategy that there was then.

use super::{FRAME, Scenario, TENANT, key};
use kvhive_cache::policy::Strategy;
use kvhive_cache::{Known, Reserve, Rules};
use kvhive_protocol::data::{About, Hint, StoreBlock};
use kvhive_protocol::explain::{Departure, Explained, Since};
use kvhive_protocol::watch::{BlockTier, Gone};
use kvhive_protocol::{BlockHeader, Era, Slot, TenantId};
use std::collections::BTreeMap;

fn why(scene: &Scenario, number: u64) -> Known {
    scene.shard.explain(scene.now(), TENANT, &key(number))
}

fn gone(why: Gone, from: Option<BlockTier>, strategy: Strategy, ago_s: u32) -> Known {
    Known::Not(Explained::Gone(Departure { why, from, strategy, ago_s }))
}

#[test]
fn an_evicted_block_is_told_with_its_tier_its_strategy_and_its_time() {
    let mut scene = Scenario::of([2, 0, 0], Strategy::Lru, None);
    scene.serve(0..1);
    scene.serve(10..11);
    scene.now += 5_000;
    scene.serve(20..21);
    scene.now += 61_000;
    let device = Some(BlockTier::Device);
    assert_eq!(why(&scene, 0), gone(Gone::Evicted, device, Strategy::Lru, 61));
    assert!(matches!(why(&scene, 10), Known::Here { tier: BlockTier::Device, slot: Slot(1), .. }));
    assert_eq!(why(&scene, 99), Known::Not(Explained::Unknown { since: Since::Began, for_s: 66 }));
    scene.shard.set_rules(Rules::new(Strategy::Sieve), &BTreeMap::new());
    assert_eq!(why(&scene, 0), gone(Gone::Evicted, device, Strategy::Lru, 61), "it was another strategy");
    scene.serve(30..31);
    assert_eq!(why(&scene, 10), gone(Gone::Evicted, device, Strategy::Sieve, 0));
}

#[test]
fn a_block_that_never_came_is_told_with_why_it_was_refused() {
    let mut scene = Scenario::of([2, 0, 0], Strategy::Lru, None);
    scene.serve(0..2);
    assert_eq!(scene.matched(0..2, 50_000), 2, "both are held");
    assert_eq!(scene.try_store(10, 0), None);
    assert_eq!(why(&scene, 10), gone(Gone::NoRoom, None, Strategy::Lru, 0));
    let mut large = scene.block(20, 0);
    large.header.payload_bytes = FRAME + 1;
    let now = scene.now();
    scene.shard.reserve(now, TENANT, &large, Slot(1), About::default(), &mut scene.effects);
    assert_eq!(why(&scene, 20), gone(Gone::TooLarge, None, Strategy::Lru, 0));
}

#[test]
fn what_a_strategy_declines_and_what_comes_after_that_are_told_as_declined() {
    let mut scene = Scenario::of([40, 0, 0], Strategy::WTinyLfu, None);
    for round in 0..200u64 {
        scene.serve(0..30);
        // Strangers that come once.
        let session = 1000 + 10 * round;
        for (depth, number) in (0..).zip(session..session + 2) {
            scene.try_store(number, depth);
        }
    }
    let declined = (1000..3000)
        .filter(|number| why(&scene, *number) == gone(Gone::Declined, None, Strategy::WTinyLfu, 0));
    assert!(declined.count() > 8, "{:?}", scene.shard.stats());
    let declined = scene.shard.stats().declined;
    assert!(declined > 8);
    // A value under a name comes once too, and is not for a strategy to decline.
    for number in 5000..5100 {
        let mut value = scene.block(number, 0);
        value.header.fingerprint = kvhive_protocol::Layout::ANY_LENGTH.fingerprint();
        let now = scene.now();
        let reserve = scene.shard.reserve(now, TENANT, &value, Slot(1), About::default(), &mut scene.effects);
        let Reserve::Take { ticket, .. } = reserve else { panic!("{number}: {reserve:?}") };
        scene.shard.abandon(ticket);
        scene.serve(0..30);
    }
    assert_eq!(scene.shard.stats().declined, declined);
}

#[test]
fn a_write_that_ends_early_is_coming_until_then() {
    let mut scene = Scenario::of([2, 0, 0], Strategy::Lru, None);
    let (now, block) = (scene.now(), scene.block(1, 0));
    let reserve = scene.shard.reserve(now, TENANT, &block, Slot(1), About::default(), &mut scene.effects);
    let Reserve::Take { ticket, .. } = reserve else { panic!("there is room") };
    assert_eq!(why(&scene, 1), Known::Not(Explained::Coming));
    scene.shard.abandon(ticket);
    assert_eq!(why(&scene, 1), gone(Gone::Unwritten, None, Strategy::Lru, 0));
}

#[test]
fn what_was_lost_taken_back_over_or_cleared_is_told_as_that() {
    let mut scene = Scenario::of([8, 0, 0], Strategy::Lru, Some(500));
    let device = Some(BlockTier::Device);
    let ids: Vec<_> = (0..3).map(|number| scene.try_store(10 * number, 0).expect("there is room")).collect();
    scene.shard.lost(ids[0], &mut scene.effects);
    scene.shard.take_back(ids[1], &mut scene.effects);
    assert_eq!(why(&scene, 0), gone(Gone::Lost, device, Strategy::Lru, 0));
    assert_eq!(why(&scene, 10), gone(Gone::TakenBack, device, Strategy::Lru, 0));
    scene.serve(100..104);
    scene.release(100..104, Hint::Over);
    scene.settle();
    assert_eq!(why(&scene, 103), gone(Gone::Over, device, Strategy::Lru, 0));
    scene.shard.set_tenants(BTreeMap::from([(TENANT, Era(2))]));
    scene.now += 3_000;
    assert_eq!(why(&scene, 20), gone(Gone::Cleared, device, Strategy::Lru, 0), "before the sweep");
    scene.settle();
    assert_eq!(why(&scene, 20), gone(Gone::Cleared, device, Strategy::Lru, 0));
    assert_eq!(why(&scene, 0), gone(Gone::Lost, device, Strategy::Lru, 3), "it went before");
}

#[test]
fn a_block_that_went_to_disk_and_left_it_is_told_from_there() {
    let mut scene = Scenario::of([4, 0, 4], Strategy::Lru, Some(500));
    (0..20).for_each(|session| {
        scene.serve(10 * session..10 * session + 1);
        scene.settle();
    });
    assert_eq!(why(&scene, 0), gone(Gone::Evicted, Some(BlockTier::Disk), Strategy::Lru, 0));
}

#[test]
fn the_same_key_of_another_tenant_is_nobodys() {
    const OTHER: TenantId = TenantId(2);
    let mut scene = Scenario::of([2, 0, 0], Strategy::Lru, None);
    scene.shard.set_tenants(BTreeMap::from([(TENANT, Era(1)), (OTHER, Era(1))]));
    scene.serve(0..1);
    scene.serve(10..11);
    scene.serve(20..21);
    let theirs = |scene: &Scenario, number| scene.shard.explain(scene.now(), OTHER, &key(number));
    let never = Known::Not(Explained::Unknown { since: Since::Began, for_s: 0 });
    assert_eq!([0, 10, 20].map(|number| theirs(&scene, number)), [never; 3]);
    let block = scene.block(0, 0);
    let block = StoreBlock { header: BlockHeader { tenant: OTHER, ..block.header }, ..block };
    let now = scene.now();
    scene.shard.reserve(now, OTHER, &block, Slot(1), About::default(), &mut scene.effects);
    assert_eq!(theirs(&scene, 0), Known::Not(Explained::Coming));
    assert_eq!(why(&scene, 0), gone(Gone::Evicted, Some(BlockTier::Device), Strategy::Lru, 0));
}
