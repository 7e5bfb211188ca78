//! Who is of the group, changed while everything goes on.

use super::net::{Net, about};
use kvhive_consensus::{GroupChange, PeerId, RefuseReason, Role, Standing, Status, Survivor, Ticket};
use std::collections::BTreeSet;

const D: PeerId = PeerId(4);

fn ticks(net: &mut Net, count: usize) {
    for _ in 0..count {
        net.tick();
    }
}

fn ids(numbers: &[u64]) -> Vec<PeerId> {
    numbers.iter().copied().map(PeerId).collect()
}

fn add(net: &mut Net, peer: PeerId) -> Ticket {
    let leader = net.leader().expect("somebody leads");
    net.change(leader, GroupChange::Add { peer, about: about(peer) })
}

fn promote(net: &mut Net, peer: PeerId, replaces: Option<PeerId>) -> Ticket {
    let leader = net.leader().expect("somebody leads");
    net.change(leader, GroupChange::Promote { peer, replaces })
}

fn remove(net: &mut Net, peer: PeerId) -> Ticket {
    let leader = net.leader().expect("somebody leads");
    net.change(leader, GroupChange::Remove { peer })
}

/// A group of three with `changes` applied, and its leader.
fn group(seed: u64, changes: u64) -> (Net, PeerId) {
    let mut net = Net::new(3, seed);
    let leader = net.elect();
    ticks(&mut net, 5);
    for at in 0..changes {
        net.propose(leader, &format!("change {at}"));
        if at % 20 == 0 {
            net.tick();
        }
    }
    ticks(&mut net, 5);
    (net, leader)
}

#[test]
fn what_is_known_of_the_founders_is_in_the_log() {
    let (net, leader) = group(1, 1);
    let known = net.group(leader);
    assert_eq!((&known.voters, known.learners.len()), (&ids(&[1, 2, 3]), 0));
    assert_eq!(known.about.get(&PeerId(2)), Some(&about(PeerId(2))));
}

#[test]
fn a_new_peer_follows_without_a_vote_and_gets_one_when_it_has_caught_up() {
    // By entries, and by a snapshot of a group that it is of, though the one that was there does not know it.
    for (seed, changes) in [(1, 10), (2, 300)] {
        let (mut net, _) = group(seed, changes);
        net.join(D);
        ticks(&mut net, 30);
        assert_eq!(net.standing(D), Some(Standing::Newborn), "nobody answers who was not added");
        let early = promote(&mut net, D, None);
        assert_eq!(net.refused[&early], RefuseReason::NotThere { peer: D });
        let added = add(&mut net, D);
        ticks(&mut net, 40);
        let leader = net.leader().expect("it goes on");
        assert!(net.settled.contains(&added));
        assert_eq!((net.group(D), net.standing(D)), (net.group(leader), Some(Standing::Settled)));
        assert_eq!(net.peers[&D].applied, net.peers[&leader].applied, "{changes} changes");
        assert_eq!(net.peers[&D].disk.synced.snapshot.is_some(), changes > 100);
        let promoted = promote(&mut net, D, None);
        ticks(&mut net, 5);
        assert!(net.settled.contains(&promoted));
        assert_eq!(net.group(D).voters, ids(&[1, 2, 3, 4]));
        // From its own log it knows as much.
        net.crash(D);
        net.start(D);
        ticks(&mut net, 5);
        assert_eq!(net.group(D), net.group(leader));
    }
}

#[test]
fn one_is_replaced_in_one_step_and_the_old_one_disturbs_nobody() {
    let (mut net, leader) = group(3, 20);
    net.join(D);
    add(&mut net, D);
    ticks(&mut net, 30);
    let old = net.follower();
    let replaced = promote(&mut net, D, Some(old));
    ticks(&mut net, 5);
    assert!(net.settled.contains(&replaced));
    let voters = net.group(leader).voters;
    assert!(voters.contains(&D) && !voters.contains(&old) && voters.len() == 3, "{voters:?}");
    assert_eq!(net.standing(old), Some(Standing::Removed), "it was told");
    // Also when it forgets that, and while the others elect.
    let term = net.term(leader);
    net.crash(old);
    net.start(old);
    ticks(&mut net, 100);
    assert_eq!((net.leader(), net.term(leader)), (Some(leader), term));
    net.crash(leader);
    let next = net.elect();
    assert_ne!(next, old);
    net.propose(next, "after");
    ticks(&mut net, 3);
    assert!(net.has_applied(D, "after") && !net.has_applied(old, "after"));
    let refused = net.propose(old, "of one that is gone");
    assert!(matches!(net.refused[&refused], RefuseReason::NotLeader { .. }));
}

#[test]
fn what_would_cost_the_majority_or_is_not_caught_up_is_refused() {
    let (mut net, leader) = group(4, 20);
    let others: Vec<PeerId> = net.ids().into_iter().filter(|id| *id != leader).collect();
    let refused = remove(&mut net, leader);
    assert_eq!(net.refused[&refused], RefuseReason::Leads);
    let refused = remove(&mut net, D);
    assert_eq!(net.refused[&refused], RefuseReason::NotThere { peer: D });
    // One is dead: to remove the other would leave two of which one is there.
    net.crash(others[0]);
    ticks(&mut net, 12);
    let refused = remove(&mut net, others[1]);
    assert_eq!(net.refused[&refused], RefuseReason::LosesMajority { heard: 1, needed: 2, of: 2 });
    add(&mut net, D);
    ticks(&mut net, 3);
    let other = net.change(leader, GroupChange::Add { peer: D, about: b"elsewhere".to_vec() });
    assert_eq!(net.refused[&other], RefuseReason::AlreadyThere { peer: D });
    let again = add(&mut net, D);
    assert!(net.settled.contains(&again), "it is so already");
    let shrinks = promote(&mut net, others[1], Some(others[0]));
    assert_eq!(net.refused[&shrinks], RefuseReason::Votes { peer: others[1] }, "three would become two");
    let own = promote(&mut net, others[1], Some(others[1]));
    assert_eq!(net.refused[&own], RefuseReason::OwnPlace { peer: others[1] });
    let silent = promote(&mut net, D, None);
    assert_eq!(net.refused[&silent], RefuseReason::Silent { peer: D });
    // It runs, and misses much at once.
    net.join(D);
    ticks(&mut net, 40);
    net.cut.insert(D);
    for at in 0..200 {
        net.propose(leader, &format!("more {at}"));
        if at % 40 == 0 {
            net.tick();
        }
    }
    let lags = promote(&mut net, D, None);
    assert!(
        matches!(net.refused[&lags], RefuseReason::NotCaughtUp { peer: D, .. }),
        "{:?}",
        net.refused[&lags]
    );
    net.cut.clear();
    ticks(&mut net, 60);
    // The dead one goes as the new one comes.
    let replaced = promote(&mut net, D, Some(others[0]));
    ticks(&mut net, 5);
    assert!(net.settled.contains(&replaced));
    let gone = remove(&mut net, D);
    ticks(&mut net, 5);
    assert!(net.settled.contains(&gone));
    assert_eq!(net.group(leader).voters.len(), 2);
}

#[test]
fn one_change_at_a_time_and_a_new_leader_ends_what_its_predecessor_began() {
    for seed in 0..40 {
        let (mut net, leader) = group(seed, 5);
        net.join(D);
        add(&mut net, D);
        ticks(&mut net, 30);
        let old = net.follower();
        promote(&mut net, D, Some(old));
        let second = remove(&mut net, D);
        assert_eq!(net.refused[&second], RefuseReason::ChangeUnderway);
        for _ in 0..seed % 4 {
            net.round();
        }
        net.crash(leader);
        ticks(&mut net, 60);
        let next = net.leader().expect("three of four are there, or two of three");
        ticks(&mut net, 10);
        let now = net.group(next);
        assert!(now.outgoing.is_empty(), "seed {seed}: {now:?}");
        net.start(leader);
        ticks(&mut net, 40);
        assert_eq!(net.group(leader), net.group(net.leader().expect("it goes on")), "seed {seed}");
    }
}

#[test]
fn a_lone_survivor_of_all_founders_leads_those_that_came_later() {
    let (mut net, _) = group(6, 50);
    for (new, old) in [(4, 1), (5, 2), (6, 3)] {
        let (new, old) = (PeerId(new), PeerId(old));
        net.join(new);
        add(&mut net, new);
        ticks(&mut net, 40);
        if net.leader() == Some(old) {
            let leader = net.leader().expect("it leads");
            net.transfer(leader, None);
            ticks(&mut net, 5);
        }
        let replaced = promote(&mut net, new, Some(old));
        ticks(&mut net, 5);
        assert!(net.settled.contains(&replaced), "{:?}", net.refused.get(&replaced));
        net.crash(old);
    }
    let leader = net.elect();
    assert_eq!(net.group(leader).voters, ids(&[4, 5, 6]));
    net.propose(leader, "all new");
    ticks(&mut net, 5);
    assert!(ids(&[4, 5, 6]).into_iter().all(|id| net.has_applied(id, "all new")));
}

/// Random changes of the group among crashes, cuts and lost logs; then quiet. Returns how many changes came through.
fn run(seed: u64) -> usize {
    let mut net = Net::new(3, seed);
    net.elect();
    ticks(&mut net, 5);
    net.chaos = true;
    let mut lost = BTreeSet::new();
    for round in 0..400 {
        net.tick();
        let all: Vec<PeerId> = (1..=6).map(PeerId).collect();
        let some = all[net.random.next() as usize % all.len()];
        let other = all[net.random.next() as usize % all.len()];
        let leader = net.leader();
        lost.retain(|id| net.standing(*id) != Some(Standing::Settled));
        match (net.random.next() % 26, leader) {
            (0, _) if net.peers.contains_key(&some) => net.crash(some),
            (1..=3, _) => {
                for id in net.ids() {
                    if net.peers[&id].machine.is_none() {
                        net.start(id);
                    }
                }
            }
            (4, _) => {
                net.cut.insert(some);
            }
            (5..=8, _) => {
                net.cut.clear();
                net.one_way_cut.clear();
                net.stalled.clear();
            }
            (9, _) => {
                net.one_way_cut.insert((some, other));
            }
            (10, _) => {
                net.stalled.insert(some);
            }
            (11..=14, Some(leader)) => {
                net.propose(leader, &format!("seed {seed} round {round}"));
            }
            (15, Some(leader)) => {
                net.read(leader);
            }
            (16, Some(leader)) => {
                net.transfer(leader, None);
            }
            (17..=18, Some(_)) => {
                if net.peers.get(&some).is_none_or(|peer| peer.machine.is_none()) {
                    net.join(some);
                }
                add(&mut net, some);
            }
            (19..=21, Some(leader)) if lost.is_empty() => {
                let learners = net.group(leader).learners;
                if let Some(learner) = learners.first() {
                    let voters = net.group(leader).voters;
                    let old = net.random.one_in(2).then(|| voters[net.random.next() as usize % voters.len()]);
                    promote(&mut net, *learner, old);
                }
            }
            (22, Some(_)) if lost.is_empty() => {
                remove(&mut net, some);
            }
            (23, Some(leader)) => {
                // Raft bears the loss of one log at a time, and the next once that one is back.
                let group = net.group(leader);
                // Of two none may lose its log, and a change that is under way may leave two.
                let end = net.status(leader).last_index;
                let is_one = |id: &PeerId| {
                    let is_quiet = |status: Status| {
                        status.standing == Standing::Settled
                            && (status.applied, status.last_index) == (end, end)
                    };
                    net.peers[id].machine.as_ref().is_some_and(|machine| is_quiet(machine.status()))
                };
                let all = lost.is_empty() && group.voters.iter().chain(&group.learners).all(is_one);
                if all && group.outgoing.is_empty() && group.voters.len() > 2 && group.voters.contains(&some)
                {
                    net.wipe(some);
                    lost.insert(some);
                }
            }
            _ => {}
        }
    }
    net.chaos = false;
    net.cut.clear();
    net.one_way_cut.clear();
    net.stalled.clear();
    for id in net.ids() {
        // Whoever still asks may ask those who have gone since it was started: it is told who is there now.
        if net.standing(id).is_none_or(|standing| standing == Standing::Newborn) {
            net.start(id);
        }
    }
    ticks(&mut net, 60);
    let leader = net.elect();
    net.propose(leader, "the end");
    ticks(&mut net, 80);
    let leader = net.leader().expect("it goes on");
    let group = net.group(leader);
    assert!(group.outgoing.is_empty(), "seed {seed}: {group:?}");
    for id in group.voters.iter().chain(&group.learners) {
        assert!(net.has_applied(*id, "the end"), "seed {seed}: {id:?} of {group:?} makes progress");
        // Whoever was left alone would give up these and nobody else.
        let survivor = Survivor::of(&net.peers[id].disk.synced).expect("its log makes sense");
        assert_eq!(survivor.named, group.about, "seed {seed}: by the log of {id:?}");
        for data in &net.acknowledged {
            let kept = net.peers[id].applied.iter().any(|(_, applied)| applied == data);
            assert!(kept, "seed {seed}: lost {data:?}");
        }
    }
    for id in net.ids() {
        let machine = net.peers[&id].machine.as_ref().expect("it runs");
        assert!(
            group.contains(id) || machine.status().role != Role::Leader,
            "seed {seed}: {id:?} leads nobody"
        );
    }
    net.settled.len()
}

#[test]
fn changes_of_the_group_lose_nothing_in_chaos() {
    let settled: usize = (0..60).map(run).sum();
    assert!(settled > 300, "{settled} changes of the group came through");
}
