//! Pinned blocks stay, and leave room for others.

use super::*;
use kvhive_cache::{Known, Pinned};
use kvhive_protocol::data::Refusal;

fn pin(scene: &mut Scenario, numbers: Range<u64>) {
    let keys = numbers.map(|number| (TENANT, key(number))).collect();
    scene.shard.set_pinned(Pinned { keys, slots: [Slot(1)].into() });
    scene.check();
}

fn pinned(scene: &Scenario) -> u64 {
    scene.shard.stats().pinned_blocks
}

#[test]
fn what_is_pinned_stays_under_any_pressure_whatever_the_strategy() {
    for strategy in Strategy::ALL {
        let mut scene = Scenario::of([16, 0, 0], strategy, None);
        // The second half comes after the pin.
        scene.serve(0..3);
        pin(&mut scene, 0..6);
        scene.serve(0..6);
        assert_eq!(pinned(&scene), 6, "{strategy}");
        for session in 0..200 {
            scene.now += 10;
            for (depth, number) in (0..).zip(1000 + session * 10..1004 + session * 10) {
                scene.try_store(number, depth);
            }
            scene.tend();
        }
        assert!((0..6).all(|number| scene.is_here(number)), "{strategy}");
        pin(&mut scene, 0..0);
        assert_eq!(pinned(&scene), 0);
        for session in 0..200 {
            scene.now += 10;
            for (depth, number) in (0..).zip(9000 + session * 10..9004 + session * 10) {
                scene.try_store(number, depth);
            }
        }
        assert!(scene.shard.stats().evicted > 0);
    }
    // Recency alone: once it is released it is oldest.
    let mut scene = Scenario::of([16, 0, 0], Strategy::Lru, None);
    scene.serve(0..6);
    pin(&mut scene, 0..6);
    (0..10).for_each(|session| scene.serve(100 + session * 10..104 + session * 10));
    pin(&mut scene, 3..6);
    (0..10).for_each(|session| scene.serve(300 + session * 10..304 + session * 10));
    assert!((0..6).all(|number| scene.is_here(number)), "a prefix does not lose its head before its end");
    pin(&mut scene, 0..2);
    (0..10).for_each(|session| scene.serve(500 + session * 10..504 + session * 10));
    assert_eq!((0..6).filter(|number| scene.is_here(*number)).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn half_of_the_frames_are_pinned_at_most_and_what_is_refused_is_counted() {
    let mut scene = Scenario::of([16, 0, 0], Strategy::Lru, None);
    pin(&mut scene, 0..12);
    scene.serve(0..12);
    let stats = scene.shard.stats();
    assert_eq!((stats.pinned_blocks, stats.pinned_bytes, stats.pins_refused), (8, 8 * FRAME, 4));
    for session in 0..20 {
        scene.serve(100 + session * 10..104 + session * 10);
    }
    assert_eq!((0..12).filter(|number| scene.is_here(*number)).count(), 8);
}

#[test]
fn a_tenant_with_a_promise_pins_half_of_that() {
    let mut scene = Scenario::of([16, 0, 0], Strategy::Lru, None);
    let rules = Rules { quota: [Some(8 * FRAME), None, None], ..Rules::new(Strategy::Lru) };
    scene.shard.set_rules(Rules::new(Strategy::Lru), &BTreeMap::from([(TENANT, rules)]));
    pin(&mut scene, 0..8);
    scene.serve(0..8);
    assert_eq!((pinned(&scene), scene.shard.stats().pins_refused), (4, 4));
}

#[test]
fn a_shard_full_of_pins_says_that_it_has_no_room() {
    let mut config = Scenario::of([4, 0, 0], Strategy::Lru, None).shard.config().clone();
    config.pinned_per_mille = 1000;
    let mut scene = Scenario::of([4, 0, 0], Strategy::Lru, None);
    scene.shard = Shard::new(config);
    scene.shard.set_tenants(BTreeMap::from([(TENANT, Era(1))]));
    pin(&mut scene, 0..4);
    scene.serve(0..4);
    let block = scene.block(100, 0);
    let now = scene.now();
    let reserve = scene.shard.reserve(now, TENANT, &block, Slot(1), About::default(), &mut scene.effects);
    assert_eq!(reserve, Reserve::Refused(Refusal::NoRoom));
    assert_eq!(scene.shard.stats().refused_no_room, 1);
    scene.check();
}

#[test]
fn a_clear_ends_what_was_pinned_and_a_pin_outlives_a_change_of_strategy() {
    let mut scene = Scenario::of([16, 0, 0], Strategy::Lru, None);
    pin(&mut scene, 0..4);
    scene.serve(0..4);
    for strategy in [Strategy::Sieve, Strategy::Adaptive, Strategy::Lru] {
        scene.shard.set_rules(Rules::new(strategy), &BTreeMap::new());
        (0..20).for_each(|at| {
            scene.try_store(100 + at * 10, 0);
        });
        scene.check();
        assert!((0..4).all(|number| scene.is_here(number)), "{strategy}");
    }
    scene.shard.set_tenants(BTreeMap::from([(TENANT, Era(2))]));
    pin(&mut scene, 0..0);
    scene.settle();
    assert_eq!((pinned(&scene), scene.shard.stats().device.blocks), (0, 0));
}

#[test]
fn what_is_pinned_moves_between_tiers_and_is_kept_over_a_collection() {
    let mut scene = Scenario::of([8, 0, 16], Strategy::Lru, Some(500));
    pin(&mut scene, 0..4);
    scene.serve(0..4);
    scene.release(0..4, Hint::Over);
    for session in 0..30 {
        scene.now += 10;
        for (depth, number) in (0..).zip(100 + session * 10..103 + session * 10) {
            scene.try_store(number, depth);
        }
        scene.settle();
    }
    assert_eq!((0..4).filter(|number| scene.is_here(*number)).count(), 4);
    let known = scene.shard.explain(scene.now(), TENANT, &key(0));
    assert!(matches!(known, Known::Here { pinned: true, .. }), "{known:?}");
}

#[test]
fn what_a_disk_kept_over_a_restart_is_pinned_again_and_stays() {
    for pinned_first in [true, false] {
        let mut scene = Scenario::of([8, 0, 16], Strategy::Lru, None);
        if pinned_first {
            pin(&mut scene, 0..4);
        }
        scene.restore(0..4);
        pin(&mut scene, 0..4);
        assert_eq!(pinned(&scene), 4);
        for session in 0..30 {
            scene.now += 10;
            for (depth, number) in (0..).zip(100 + session * 10..103 + session * 10) {
                scene.try_store(number, depth);
            }
            scene.settle();
        }
        assert!((0..4).all(|number| scene.is_here(number)));
        assert!(scene.shard.stats().evicted > 0, "others left");
    }
}

#[test]
fn what_is_pinned_comes_although_nothing_is_free_and_only_where_its_slot_is() {
    let mut scene = Scenario::of([4, 0, 0], Strategy::Lru, None);
    scene.serve(100..104);
    let block = scene.block(0, 0);
    assert!(!scene.shard.has_spare(TENANT, &block, Slot(1)));
    pin(&mut scene, 0..1);
    assert!(scene.shard.has_spare(TENANT, &block, Slot(1)));
    assert!(!scene.shard.has_spare(TENANT, &block, Slot(2)), "that slot is another device's");
    scene.try_store(0, 0).expect("another leaves for it");
    assert_eq!(pinned(&scene), 1);
    let keys = [(TENANT, key(0))].into();
    scene.shard.set_pinned(Pinned { keys, slots: [Slot(2)].into() });
    assert_eq!(pinned(&scene), 0, "its slot went, and it may too");
    scene.check();
}
