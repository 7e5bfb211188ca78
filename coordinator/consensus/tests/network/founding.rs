//! Peers whose log is empty: because there was none yet, or because it was lost.

use super::net::Net;
use kvhive_consensus::{PeerId, Standing};

const A: PeerId = PeerId(1);
const B: PeerId = PeerId(2);
const C: PeerId = PeerId(3);

fn ticks(net: &mut Net, count: usize) {
    for _ in 0..count {
        net.tick();
    }
}

/// Three peers of which one, never the leader, misses what the leader and the other have committed: returns leader, other,
/// and the one that lags.
fn with_one_that_lags(seed: u64) -> (Net, PeerId, PeerId, PeerId) {
    let mut net = Net::new(3, seed);
    let leader = net.elect();
    ticks(&mut net, 5);
    let others: Vec<PeerId> = net.ids().into_iter().filter(|id| *id != leader).collect();
    let (other, lags) = (others[0], others[1]);
    net.cut.insert(lags);
    for at in 0..20 {
        net.propose(leader, &format!("change {at}"));
    }
    ticks(&mut net, 2);
    assert_eq!(net.acknowledged.len(), 20);
    (net, leader, other, lags)
}

#[test]
fn a_wiped_peer_and_one_that_lags_elect_nobody() {
    for seed in 0..20 {
        let (mut net, leader, wiped, lags) = with_one_that_lags(seed);
        net.crash(leader);
        net.wipe(wiped);
        net.start(wiped);
        net.cut.clear();
        ticks(&mut net, 200);
        assert_eq!(net.leader(), None, "seed {seed}: it could not know what was committed");
        net.start(leader);
        assert_eq!(net.elect(), leader, "seed {seed}: nobody else has what was committed");
        ticks(&mut net, 30);
        assert_eq!(net.standing(wiped), Some(Standing::Settled));
        // From now on it is as good as any other.
        net.crash(leader);
        let next = net.elect();
        net.propose(next, "after");
        ticks(&mut net, 4);
        for id in [wiped, lags] {
            assert_eq!(net.peers[&id].applied.len(), 21, "seed {seed}: {id:?} has all that was acknowledged");
        }
    }
}

#[test]
fn a_wiped_peer_catches_up_where_nothing_happens() {
    let mut net = Net::new(3, 31);
    let leader = net.elect();
    for at in 0..50 {
        net.propose(leader, &format!("change {at}"));
    }
    ticks(&mut net, 5);
    let wiped = net.follower();
    net.wipe(wiped);
    net.start(wiped);
    // Two election timeouts without a change.
    ticks(&mut net, 20);
    assert_eq!(net.leader(), Some(leader));
    assert_eq!(net.peers[&wiped].applied, net.peers[&leader].applied);
    assert_eq!(net.standing(wiped), Some(Standing::Settled));
}

#[test]
fn a_peer_that_restarts_before_it_has_caught_up_still_elects_nobody() {
    let (mut net, leader, wiped, _) = with_one_that_lags(32);
    net.wipe(wiped);
    net.start(wiped);
    net.cut.clear();
    net.wait_until(|net| net.standing(wiped) == Some(Standing::Rejoining));
    net.crash(wiped);
    net.crash(leader);
    net.start(wiped);
    assert_eq!(net.standing(wiped), Some(Standing::Rejoining), "that it is not whole lasts");
}

#[test]
fn a_wiped_peer_helps_no_leader_that_its_peers_have_outlived() {
    let mut net = Net::new(3, 33);
    let old = net.elect();
    ticks(&mut net, 5);
    // The others elect one of them while the old leader hears nobody, and commit something.
    net.cut.insert(old);
    let new = net.elect();
    net.propose(new, "of the new term");
    ticks(&mut net, 4);
    assert_eq!(net.acknowledged.len(), 1);
    let wiped = net.ids().into_iter().find(|id| ![old, new].contains(id)).expect("there are three");
    net.wipe(wiped);
    net.start(wiped);
    // Now it hears only the old one, which still knows nothing of the new term.
    net.cut = [new].into();
    ticks(&mut net, 100);
    assert_eq!(net.leader(), None);
    net.cut.clear();
    net.elect();
    ticks(&mut net, 40);
    assert!(net.ids().into_iter().all(|id| net.has_applied(id, "of the new term")));
}

#[test]
fn a_group_begins_once_all_of_it_are_there() {
    let mut net = Net::new(3, 34);
    net.crash(C);
    ticks(&mut net, 100);
    assert_eq!(
        (net.leader(), net.standing(A), net.standing(B)),
        (None, Some(Standing::Newborn), Some(Standing::Newborn))
    );
    net.start(C);
    net.elect();
    // From then on a majority is enough, whoever restarts.
    net.crash(C);
    ticks(&mut net, 3);
    for id in [A, B] {
        net.crash(id);
        net.start(id);
    }
    net.elect();
}

#[test]
fn a_group_begins_through_crashes_at_any_moment() {
    for seed in 0..200 {
        let mut net = Net::new(3, seed);
        for at in 0..seed % 12 {
            net.round();
            if at % 3 == 0 {
                net.tick();
            }
        }
        for id in net.ids() {
            if net.random.one_in(2) {
                net.crash(id);
                net.round();
                net.start(id);
            }
        }
        net.elect();
        ticks(&mut net, 10);
        assert!(net.ids().into_iter().all(|id| net.standing(id) == Some(Standing::Settled)), "seed {seed}");
    }
}
