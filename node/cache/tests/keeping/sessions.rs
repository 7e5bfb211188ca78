//! Sessions that come back: what is brought up ahead of them, and what became of it.

use super::{Scenario, TENANT, key};
use kvhive_cache::policy::Strategy;
use kvhive_cache::{BlockId, Effect, Reason, Tier};
use kvhive_protocol::data::{Hint, Run};
use kvhive_protocol::{KeyList, Slot};
use std::time::Duration;

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

#[test]
fn a_session_that_is_awaited_takes_no_frame_that_is_kept_free_or_that_a_collection_would_free() {
    for (low_water, gc) in [(250, None), (0, Some(750))] {
        let mut scene = Scenario::keeping_free(low_water, [8, 0, 8], Strategy::Lru, gc);
        scene.serve(10..14);
        scene.restore(0..4);
        scene.release(0..4, Hint::Returns(1));
        scene.now += 1000;
        scene.settle();
        assert_eq!(scene.tiers(), [6, 0, 2]);
        let stats = scene.shard.stats();
        assert_eq!((stats.promoted, stats.demoted, stats.evicted, stats.collections), (2, 0, 0, 0));
    }
}

#[test]
fn what_is_on_its_way_up_is_no_frame_about_to_be_free() {
    let mut scene = Scenario::keeping_free(100, [40, 0, 80], Strategy::Lru, None);
    scene.restore(100..104);
    (0..36).for_each(|session| scene.serve(10_000 + 10 * session..10_001 + 10 * session));
    scene.settle();
    assert_eq!((scene.tiers(), scene.covered(100..104)), ([36, 0, 4], 4));
    scene.shard.tend(scene.now(), &mut scene.effects);
    let to = |tier| {
        scene.effects.iter().filter(|one| matches!(one, Effect::Copy { to, .. } if *to == tier)).count()
    };
    assert_eq!((to(Tier::Device), to(Tier::Disk)), (4, 4), "four are to be free");
}

#[test]
fn a_match_looks_no_farther_than_it_brings_up() {
    let mut scene = Scenario::of([40, 0, 40], Strategy::Lru, None);
    scene.restore(0..30);
    for asked in [8, 9] {
        assert_eq!(scene.covered(0..1), 1);
        scene.shard.tend(scene.now(), &mut scene.effects);
        // Those that were asked for before are among the eight that follow.
        assert_eq!(scene.shard.stats().prefetched, asked);
    }
}

#[test]
fn what_is_late_is_not_asked_for_again_before_it_comes() {
    let mut scene = Scenario::of([4, 0, 4], Strategy::Lru, None);
    scene.restore(0..1);
    for _ in 0..2 {
        assert_eq!(scene.covered(0..1), 1);
        // It tells of the use, and copies nothing yet.
        scene.release(77..78, Hint::None);
        let id = scene.read(0).expect("it is here");
        scene.shard.unread(id);
    }
    scene.settle();
    let stats = scene.shard.stats();
    assert_eq!((stats.prefetched, stats.prefetch_late, stats.prefetch_cancelled), (1, 1, 0));
    assert_eq!(scene.tiers(), [1, 0, 0]);
}
