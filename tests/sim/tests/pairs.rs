//! NCCL pairs: every interleaving of two and three GPUs up to a bound.

use kvhive_sim::pairs::{Bounds, Explored, Flaw, Scenario, explore};

const NONE: Bounds = Bounds { losses: 0, repeats: 0, deaths: 0, early: 0 };
const LOSS: Bounds = Bounds { losses: 1, ..NONE };
const REPEAT: Bounds = Bounds { repeats: 1, ..NONE };
const DEATH: Bounds = Bounds { deaths: 1, ..NONE };
const EARLY: Bounds = Bounds { early: 1, ..NONE };

fn holds(scenario: &Scenario, bounds: Bounds) -> Explored {
    let explored =
        explore(scenario, bounds).unwrap_or_else(|broken| panic!("{scenario:?} {bounds:?}: {broken}"));
    println!("{bounds:?}: {explored:?}");
    explored
}

/// Two that want something of each other and have no communicator.
fn two() -> Scenario {
    Scenario::of(2, &[(0, 1), (1, 0)])
}

/// Three in a ring, each with a communicator with both others.
fn ring() -> Scenario {
    Scenario::of(3, &[(0, 1), (1, 2), (2, 0)]).standing()
}

#[test]
fn two_that_make_a_pair_and_send_to_each_other() {
    for bounds in [NONE, LOSS, REPEAT, DEATH, EARLY] {
        let explored = holds(&two(), bounds);
        assert_eq!(explored.carried, 2);
    }
}

#[test]
fn two_whose_sends_leave_before_they_are_received() {
    let scenario = Scenario { is_eager: true, ..Scenario::of(2, &[(0, 1), (0, 1), (1, 0)]).standing() };
    for bounds in [NONE, LOSS, REPEAT] {
        holds(&scenario, bounds);
    }
}

#[test]
fn three_in_a_ring_that_all_send_at_once() {
    for bounds in [NONE, LOSS] {
        holds(&ring(), bounds);
    }
}

/// Says that a rule is missed which is left out.
fn is_found(scenario: Scenario, flaw: Flaw, bounds: Bounds, broken: &str) {
    let found = explore(&Scenario { flaw: Some(flaw), ..scenario }, bounds);
    assert!(found.as_ref().is_err_and(|found| found.contains(broken)), "{flaw:?}: {found:?}");
}

#[test]
fn every_rule_is_missed_when_it_is_left_out() {
    is_found(ring(), Flaw::NoWoundWait, NONE, "nothing helps but time");
    is_found(two(), Flaw::EnqueuesEarly, NONE, "which nobody has promised to send");
    is_found(two(), Flaw::AnyIncarnation, DEATH, "which the other end has not joined");
}
