//! Collections: what goes first, what stays, and when they end.

use super::{Scenario, TENANT};
use kvhive_cache::policy::Strategy;
use kvhive_cache::{Reason, ShardConfig, Tier};
use kvhive_protocol::data::Hint;
use kvhive_protocol::{Era, Slot};
use std::collections::BTreeMap;

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
fn a_store_of_what_is_here_already_says_as_much_of_its_session() {
    let mut scene = Scenario::of([10, 0, 0], Strategy::Lru, Some(700));
    scene.serve(0..4);
    scene.serve(10..14);
    scene.hint = Hint::Over;
    for (depth, number) in (0..).zip(0..4) {
        assert_eq!(scene.try_store(number, depth), None, "it is here");
    }
    scene.settle();
    assert_eq!(scene.collected(Reason::Over), 2);
    assert_eq!(scene.resident(0..20), [0, 1, 10, 11, 12, 13]);
}

#[test]
fn a_session_that_is_over_leaves_the_disk_only_for_what_it_has_in_memory() {
    let mut scene = Scenario::of([8, 0, 16], Strategy::Lru, Some(500));
    scene.restore(100..103);
    scene.release(100..103, Hint::Over);
    (0..6).for_each(|session| scene.serve(10 * session..10 * session + 1));
    scene.settle();
    assert_eq!((scene.collected(Reason::Over), scene.tiers()), (0, [3, 0, 6]));

    let mut scene = Scenario::of([8, 0, 16], Strategy::Lru, Some(500));
    scene.serve(0..5);
    scene.settle();
    assert_eq!(scene.tiers(), [3, 0, 2], "its end is on disk");
    scene.release(0..5, Hint::Over);
    (1..4).for_each(|session| scene.serve(10 * session..10 * session + 1));
    scene.settle();
    assert_eq!((scene.collected(Reason::Over), scene.tiers()), (3, [3, 0, 0]), "three left memory");
    assert_eq!(scene.shard.stats().evicted_over, 5);
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
fn what_is_read_is_not_taken_for_room() {
    let mut scene = Scenario::of([10, 0, 0], Strategy::Lru, Some(500));
    scene.serve(0..4);
    scene.serve(10..13);
    let reader = scene.read(12).expect("it is here");
    scene.release(10..13, Hint::Over);
    scene.settle();
    assert_eq!((scene.tiers(), scene.collected(Reason::Evicted)), ([4, 0, 0], 3));
    scene.shard.unread(reader);
}

#[test]
fn blocks_that_are_held_keep_no_others_in_memory() {
    let mut scene = Scenario::of([8, 0, 16], Strategy::Lru, Some(500));
    (0..6).for_each(|session| scene.serve(10 * session..10 * session + 1));
    assert_eq!(scene.matched(0..1, 20_000), 1);
    (1..6).for_each(|session| assert_eq!(scene.covered(10 * session..10 * session + 1), 1));
    scene.settle();
    assert_eq!((scene.tiers(), scene.collected(Reason::Demoted)), ([3, 0, 3], 3));
}

#[test]
fn one_piece_of_a_collection_is_bounded_wherever_sessions_lie() {
    let mut scene = Scenario::of([10, 0, 700], Strategy::Lru, Some(1));
    for first in [0, 1000, 2000] {
        scene.serve(first..first + 1);
        for depth in 1..201 {
            let block = scene.block(first + u64::from(depth), depth);
            scene.shard.restore(TENANT, &block, Slot(1), 0).expect("there is a place");
        }
        assert_eq!(scene.covered(first..first + 201), 201);
        scene.release(first..first + 201, Hint::Over);
    }
    scene.tend();
    assert_eq!(scene.shard.stats().evicted, 256);
    scene.settle();
    assert_eq!((scene.tiers(), scene.collected(Reason::Over)), ([0, 0, 0], 3));
}

#[test]
fn a_session_that_is_over_is_collected_however_much_of_its_tail_is_on_disk() {
    // More than one piece of work looks at, and more than one collection lets go.
    for blocks in [300, 10_000] {
        let config = Scenario::config([8, 0, blocks + 8], Strategy::Lru);
        let mut scene = Scenario::with(ShardConfig { gc_per_mille: Some(500), prefetch: 0, ..config });
        scene.serve(0..3);
        for number in 3..u64::from(blocks) {
            let block = scene.block(number, number as u32);
            scene.shard.restore(TENANT, &block, Slot(1), 0).expect("there is a place");
        }
        assert_eq!(scene.covered(0..blocks.into()), blocks);
        assert_eq!(scene.release(0..blocks.into(), Hint::Over), blocks);
        (1..4).for_each(|session| scene.serve(100_000 * session..100_000 * session + 1));
        (0..100).for_each(|_| _ = scene.tend_unchecked());
        scene.check();
        assert_eq!((scene.collected(Reason::Over), scene.tiers()), (3, [3, 0, 0]), "of {blocks} blocks");
        assert_eq!(scene.shard.stats().evicted_over, u64::from(blocks));
    }
}
