//! Handing leadership over.

use super::net::Net;
use kvhive_consensus::{PeerId, RefuseReason};

fn settled(seed: u64) -> (Net, PeerId) {
    let mut net = Net::new(3, seed);
    let leader = net.elect();
    for at in 0..10 {
        net.propose(leader, &format!("before {at}"));
    }
    for _ in 0..5 {
        net.tick();
    }
    (net, leader)
}

#[test]
fn leadership_goes_to_whom_it_is_handed_without_an_election_timeout() {
    for seed in 0..20 {
        let (mut net, leader) = settled(seed);
        let term = net.term(leader);
        let to = net.follower();
        let ticket = net.transfer(leader, Some(to));
        // An election timeout is ten ticks at least.
        for _ in 0..3 {
            net.tick();
        }
        assert_eq!(net.handed_over.get(&ticket), Some(&to), "seed {seed}");
        assert_eq!((net.leader(), net.term(to)), (Some(to), term + 1), "seed {seed}");
        net.propose(to, "after");
        net.tick();
        assert_eq!(net.acknowledged.len(), 11);
    }
}

#[test]
fn a_leader_that_goes_hands_over_to_whom_most_of_the_log_has_reached() {
    let (mut net, leader) = settled(3);
    let others: Vec<PeerId> = net.ids().into_iter().filter(|id| *id != leader).collect();
    // It hears the one that lags, which hears nothing.
    net.one_way_cut.insert((leader, others[0]));
    for at in 0..10 {
        net.propose(leader, &format!("missed {at}"));
        net.tick();
    }
    net.one_way_cut.clear();
    let ticket = net.transfer(leader, None);
    for _ in 0..4 {
        net.tick();
    }
    assert_eq!(net.handed_over.get(&ticket), Some(&others[1]));
}

#[test]
fn what_cannot_take_over_is_refused_and_the_leader_goes_on() {
    let (mut net, leader) = settled(4);
    let silent = net.follower();
    let ticket = net.transfer(silent, None);
    assert_eq!(net.refused[&ticket], RefuseReason::NotLeader { leader: Some(leader) });
    let stranger = PeerId(9);
    let ticket = net.transfer(leader, Some(stranger));
    assert_eq!(net.refused[&ticket], RefuseReason::NotAVoter { peer: stranger });
    let ticket = net.transfer(leader, Some(leader));
    assert_eq!(net.handed_over.get(&ticket), Some(&leader), "it leads already");
    net.crash(silent);
    for _ in 0..11 {
        net.tick();
    }
    let ticket = net.transfer(leader, Some(silent));
    assert_eq!(net.refused[&ticket], RefuseReason::Silent { peer: silent });
    // One that dies of it: proposals are refused until the leader gives up, and taken then.
    let dies = net.ids().into_iter().find(|id| ![leader, silent].contains(id)).expect("three");
    net.start(silent);
    for _ in 0..5 {
        net.tick();
    }
    let ticket = net.transfer(leader, Some(dies));
    net.crash(dies);
    let busy = net.propose(leader, "meanwhile");
    assert_eq!(net.refused[&busy], RefuseReason::Overloaded);
    for _ in 0..12 {
        net.tick();
    }
    assert_eq!(net.refused[&ticket], RefuseReason::NoSuccessor);
    net.propose(leader, "later");
    net.tick();
    assert!(net.has_applied(leader, "later"));
}
