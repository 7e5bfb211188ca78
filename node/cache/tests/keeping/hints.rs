//! What an engine says of a session, with a store or without one, decides what is kept of it.

use super::{Scenario, TENANT, key};
use kvhive_cache::policy::Strategy;
use kvhive_cache::{Reason, Reserve};
use kvhive_protocol::data::{About, Hint, Run};
use kvhive_protocol::{KeyList, Slot};
use std::time::Duration;

const ROUNDS: u64 = 600;
/// Rounds until a session comes back: blocks enough for all of them to have left in the order of their use.
const BACK_AFTER: u64 = 12;

/// How the shard is told.
#[derive(Clone, Copy, PartialEq, Debug)]
enum By {
    /// With a store after a match that found the session's first block.
    Store,
    /// With a store of what is here already.
    StoreAgain,
    /// With a store that another session's match came in between.
    StoreMuchLater,
    Release,
}

/// In each round one session ends in its second turn, and another will come back. Returns how many of the second half's are found.
fn found(over: Hint, pending: Hint, by: By) -> u64 {
    let mut scene = Scenario::of([32, 0, 0], Strategy::Adaptive, None);
    let mut found = 0;
    for round in 0..ROUNDS {
        for (first, hint) in [(10 * round, pending), (10 * round + 5, over)] {
            scene.try_store_of(first, 0, Hint::None);
            assert!(scene.covered(first..first + 2) <= 1);
            match by {
                By::Store => drop(scene.try_store_of(first + 1, 1, hint)),
                By::StoreAgain => {
                    scene.try_store_of(first + 1, 1, Hint::None);
                    scene.try_store_of(first + 1, 1, hint);
                }
                By::StoreMuchLater => {
                    let block = scene.block(first + 1, 1);
                    let about = About { hint, ..About::default() };
                    let now = scene.now();
                    let reserve =
                        scene.shard.reserve(now, TENANT, &block, Slot(1), about, &mut scene.effects);
                    scene.covered(9_999_999..10_000_000);
                    if let Reserve::Take { ticket, .. } = reserve {
                        scene.shard.seal(ticket);
                    }
                }
                By::Release => {
                    scene.try_store_of(first + 1, 1, Hint::None);
                    scene.release(first..first + 2, hint);
                }
            }
        }
        if let Some(back) = round.checked_sub(BACK_AFTER) {
            let all = scene.covered(10 * back..10 * back + 2) == 2;
            found += u64::from(round >= ROUNDS / 2 && all);
        }
        scene.check();
    }
    found
}

#[test]
fn sessions_of_which_something_was_found_are_kept_by_what_is_said_too() {
    let asked = ROUNDS / 2;
    for by in [By::Store, By::StoreAgain, By::StoreMuchLater, By::Release] {
        let untold = found(Hint::None, Hint::None, by);
        let told = found(Hint::Over, Hint::Pending, by);
        assert!(
            told * 10 >= asked * 9 && told >= untold + asked / 4,
            "{by:?}: of {asked} found {told} told, {untold} untold"
        );
    }
}

#[test]
fn every_segment_of_a_session_is_over_with_it() {
    let mut scene = Scenario::of([20, 0, 0], Strategy::Lru, Some(500));
    for first in [0, 100, 200] {
        scene.serve(first..first + 4);
    }
    scene.serve(10..14);
    assert_eq!(scene.release_all(&[0..4, 100..104, 200..204], Hint::Over), 12);
    scene.settle();
    assert_eq!((scene.collected(Reason::Over), scene.collected(Reason::Evicted)), (7, 0));
    assert_eq!(scene.resident(10..14), [10, 11, 12, 13]);
}

#[test]
fn every_segment_of_a_session_is_brought_up_for_it() {
    let mut scene = Scenario::of([20, 0, 20], Strategy::Lru, None);
    scene.restore(0..2);
    scene.restore(100..103);
    scene.release_all(&[0..2, 100..103], Hint::Returns(1));
    scene.now += 1000;
    scene.settle();
    assert_eq!(scene.tiers(), [5, 0, 0]);
}

#[test]
fn a_release_in_parts_takes_back_nothing_that_the_stores_or_the_part_before_said() {
    let mut scene = Scenario::of([20, 0, 0], Strategy::Lru, Some(500));
    scene.serve(10..14);
    scene.hint = Hint::Over;
    scene.serve(0..4);
    scene.serve(100..104);
    // The tail first, as clients do.
    scene.release_all(&[100..104, 2..4], Hint::Over);
    scene.release(0..2, Hint::Over);
    scene.settle();
    assert_eq!((scene.collected(Reason::Over), scene.collected(Reason::Evicted)), (3, 0));
    scene.hint = Hint::None;
    scene.serve(20..24);
    scene.settle();
    assert_eq!((scene.collected(Reason::Over), scene.collected(Reason::Evicted)), (7, 0));
}

#[test]
fn all_that_a_session_alone_used_is_over_with_it_whoever_came_between() {
    for by_store in [false, true] {
        let mut scene = Scenario::of([40, 0, 0], Strategy::Lru, Some(500));
        scene.serve(0..10);
        scene.serve(100..106);
        assert_eq!((scene.covered(0..12), scene.covered(100..108)), (10, 6));
        let said = if by_store { Hint::Over } else { Hint::None };
        for number in [10, 11] {
            scene.try_store_of(number, number as u32, said).expect("there is room");
            scene.try_store_of(number + 96, number as u32 - 4, Hint::None).expect("there is room");
        }
        scene.serve(50..52);
        if !by_store {
            assert_eq!(scene.release(0..12, Hint::Over), 12);
        }
        scene.settle();
        assert_eq!((scene.collected(Reason::Over), scene.collected(Reason::Evicted)), (4, 0));
        assert_eq!(scene.covered(0..8), 8);
        assert_eq!((scene.covered(100..108), scene.covered(50..52)), (8, 2));
    }
}

#[test]
fn what_sessions_share_is_over_with_none_of_them() {
    // A prompt of three blocks, of which only this session's continuation is left, and which it has used last.
    let mut scene = Scenario::of([16, 0, 0], Strategy::Lru, Some(500));
    scene.serve(0..6);
    let other = scene.store_after(2, 100, 3).expect("there is room");
    scene.shard.lost(other, &mut scene.effects);
    assert_eq!(scene.covered(0..6), 6);
    scene.serve(10..15);
    scene.release(0..6, Hint::Over);
    scene.settle();
    assert_eq!(scene.resident(0..20), [0, 1, 10, 11, 12, 13, 14]);
    assert_eq!((scene.collected(Reason::Over), scene.collected(Reason::Evicted)), (3, 1));

    // Another session has only asked for it, and has not stored yet what it goes on with.
    let mut scene = Scenario::of([16, 0, 0], Strategy::Lru, Some(50));
    scene.serve(0..6);
    let asked: KeyList = [0, 1, 2, 100].into_iter().map(key).collect();
    let (now, run) = (scene.now(), Run { slot: Slot(1), keys: 4 });
    assert_eq!(scene.shard.match_runs(now, TENANT, &[run], &asked, Duration::ZERO), [3]);
    assert_eq!(scene.covered(0..6), 6);
    scene.release(0..6, Hint::Over);
    scene.settle();
    assert_eq!(scene.collected(Reason::Over), 3);
}

#[test]
fn blocks_that_are_written_at_once_are_over_each_by_itself() {
    let mut scene = Scenario::of([32, 0, 0], Strategy::Lru, Some(500));
    for (numbers, hint) in [(0..8, Hint::None), (8..14, Hint::Over), (14..20, Hint::Over)] {
        let mut tickets = Vec::new();
        for number in numbers {
            let (now, block) = (scene.now(), scene.block(number * 7, 0));
            let about = About { hint, ..About::default() };
            match scene.shard.reserve(now, TENANT, &block, Slot(1), about, &mut scene.effects) {
                Reserve::Take { ticket, .. } => tickets.push(ticket),
                other => panic!("{other:?}"),
            }
        }
        // While they are being written, nothing is known of them.
        scene.tend();
        for ticket in tickets {
            assert!(scene.shard.seal(ticket).is_some());
        }
    }
    scene.settle();
    assert_eq!((scene.collected(Reason::Over), scene.collected(Reason::Evicted)), (6, 0));
}

#[test]
fn what_another_has_used_since_a_session_did_is_not_over_with_it() {
    let mut scene = Scenario::of([40, 0, 0], Strategy::Lru, Some(50));
    scene.serve(0..10);
    assert_eq!((scene.covered(0..12), scene.covered(0..5)), (10, 5));
    for number in [10, 11] {
        scene.try_store_of(number, number as u32, Hint::None).expect("there is room");
    }
    scene.release(0..12, Hint::Over);
    scene.settle();
    assert_eq!((scene.collected(Reason::Over), scene.collected(Reason::Evicted)), (7, 5));
}
