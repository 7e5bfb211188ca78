//! Uses that the policies are told of later: how many wait, who tells them, and what they come to.

use super::Scenario;
use kvhive_cache::Reason;
use kvhive_cache::policy::Strategy;
use kvhive_protocol::data::Hint;

/// What may wait, and what one call tells at most.
const MOST: u64 = 16_384;
const AT_ONCE: u64 = 1024 + 511;

impl Scenario {
    fn untold(&self) -> u64 {
        self.shard.stats().untold
    }

    fn tell_all(&mut self) {
        while self.untold() > 0 {
            self.tend();
        }
    }

    /// A shard with so many sessions of 512 blocks, all that is to be told told.
    fn with_sessions(frames: u32, strategy: Strategy, gc_per_mille: Option<u16>, sessions: u64) -> Scenario {
        let mut scene = Scenario::of([frames, 0, 0], strategy, gc_per_mille);
        for session in 0..sessions {
            for (depth, number) in (0..).zip(session * 512..(session + 1) * 512) {
                scene.try_store(number, depth).expect("there is room");
            }
        }
        scene.settle();
        assert_eq!(scene.untold(), 0);
        scene
    }
}

#[test]
fn uses_that_wait_are_bounded_in_blocks_and_told_in_pieces() {
    for strategy in [Strategy::Lru, Strategy::Adaptive] {
        let mut scene = Scenario::with_sessions(10 * 512, strategy, None, 10);
        for round in 0..100 {
            let session = round % 10 * 512;
            assert_eq!(scene.covered(session..session + 512), 512);
            assert_eq!(
                scene.untold(),
                MOST.min((round + 1) * 512),
                "a match makes room for no more than its own"
            );
        }
        let mut waited = scene.untold();
        while waited > 0 {
            scene.tend();
            let told = waited - scene.untold();
            assert!(told == waited || (1024..=AT_ONCE).contains(&told), "{told} of {waited} at once");
            waited = scene.untold();
        }
    }
}

#[test]
fn one_long_run_is_told_in_pieces_too_and_wholly() {
    let mut scene = Scenario::of([6001, 0, 0], Strategy::Lru, None);
    for number in 0..6000 {
        scene.try_store(number, number as u32).expect("there is room");
    }
    scene.try_store(9000, 0).expect("there is room");
    scene.settle();
    assert_eq!(scene.covered(0..6000), 6000);
    scene.tend();
    let waits = scene.untold();
    assert!(waits >= 6000 - AT_ONCE, "{waits} wait yet");
    scene.settle();
    scene.tell_all();
    // All of it was used after the other.
    scene.try_store(9001, 0).expect("another leaves");
    assert_eq!(scene.resident(9000..9002), [9001]);
    assert_eq!(scene.covered(0..6000), 6000);
}

#[test]
fn a_run_of_many_pieces_brings_up_no_more_than_a_run_of_one() {
    let mut scene = Scenario::of([2000, 0, 2000], Strategy::Lru, None);
    scene.restore(0..1500);
    assert_eq!(scene.covered(0..1500), 1500);
    for _ in 0..10 {
        scene.tend();
    }
    assert_eq!((scene.untold(), scene.shard.stats().promoted), (0, 8));
}

#[test]
fn stores_tell_little_of_what_others_have_used_and_all_of_what_their_own_request_has() {
    let mut scene = Scenario::with_sessions(20 * 512, Strategy::Lru, None, 10);
    (0..9).for_each(|session| assert_eq!(scene.covered(session * 512..(session + 1) * 512), 512));
    assert_eq!(scene.covered(9 * 512..10 * 512 + 40), 512);
    assert_eq!(scene.untold(), 10 * 512);
    for (depth, number) in (512..).zip(10 * 512..10 * 512 + 40) {
        scene.try_store(number, depth).expect("there is room");
    }
    assert_eq!(scene.untold(), 9 * 512, "its own, and none of the others'");
    for number in 0..300 {
        scene.try_store(90_000 + number, 0).expect("there is room");
    }
    assert_eq!(scene.untold(), 9 * 512, "they have used nothing");
    // With little to tell all of it is told at once, in its order.
    scene.tell_all();
    assert_eq!((scene.covered(0..512), scene.covered(512..1024)), (512, 512));
    scene.try_store(99_999, 0).expect("there is room");
    assert_eq!(scene.untold(), 0);
}

#[test]
fn a_session_is_whole_whoever_waits_to_be_told_before_it() {
    let mut scene = Scenario::with_sessions(10 * 512 + 100, Strategy::Lru, Some(990), 10);
    // Too much for stores to tell it: the session is known by its last block, and its end comes after its uses.
    assert_eq!(scene.covered(0..512 + 512), 1024);
    assert_eq!(scene.covered(0..512), 512);
    (1..9).for_each(|session| assert_eq!(scene.covered(session * 512..(session + 1) * 512), 512));
    scene.hint = Hint::Over;
    let stored: Vec<bool> = [(511, 70_000, 512), (70_000, 70_001, 513)]
        .map(|(parent, number, depth)| scene.store_after(parent, number, depth).is_some())
        .into();
    assert_eq!(stored, [true; 2]);
    assert!(scene.untold() > 9 * 512, "its match is not told yet");
    scene.tell_all();
    scene.hint = Hint::None;
    for number in 0..60 {
        scene.try_store(80_000 + number, 0).expect("there is room");
    }
    scene.settle();
    assert!(scene.collected(Reason::Over) > 200, "{:?}", scene.shard.stats());
    assert_eq!(scene.collected(Reason::Evicted), 0);
}

#[test]
fn the_end_of_a_session_comes_after_its_uses_however_many_wait() {
    let mut scene = Scenario::of([10 * 512, 0, 0], Strategy::Lru, Some(500));
    (0..4).for_each(|session| scene.serve(session * 512..(session + 1) * 512));
    scene.settle();
    for _ in 0..4 {
        (0..4).for_each(|session| assert_eq!(scene.covered(session * 512..(session + 1) * 512), 512));
    }
    assert!(scene.untold() > 2 * AT_ONCE);
    scene.release(0..512, Hint::Over);
    (4..6).for_each(|session| scene.serve(session * 512..(session + 1) * 512));
    scene.settle();
    assert_eq!(scene.shard.stats().evicted_over, 512, "what was told late is no use after the end");
}
