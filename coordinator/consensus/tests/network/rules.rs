//! The rules, one by one.

use super::net::Net;
use kvhive_consensus::{
    Consensus, ConsensusConfig, Event, LogEntry, PeerId, RefuseReason, Restored, Role, Standing, Ticket,
};

#[test]
fn what_the_leader_takes_reaches_everybody() {
    for peers in [1, 3, 5] {
        let mut net = Net::new(peers, 1);
        let leader = net.elect();
        for at in 0..20 {
            net.propose(leader, &format!("change {at}"));
        }
        for _ in 0..6 {
            net.tick();
        }
        assert_eq!(net.acknowledged.len(), 20);
        assert!(net.ids().into_iter().all(|id| net.peers[&id].applied.len() == 20), "{peers} peers");
    }
}

#[test]
fn nothing_is_acknowledged_before_a_majority_has_synced_it() {
    let mut net = Net::new(3, 2);
    let leader = net.elect();
    net.propose(leader, "slow");
    for _ in 0..5 {
        // Messages fly and timers tick, but no disk finishes.
        let flying = std::mem::take(&mut net.flying);
        for (from, to, bytes) in flying {
            net.step(to, Event::Received { from, bytes });
        }
        assert!(net.acknowledged.is_empty());
    }
    for _ in 0..4 {
        net.round();
    }
    assert_eq!(net.acknowledged, [b"slow".to_vec()]);
}

#[test]
fn followers_and_overload_refuse() {
    let mut net = Net::new(3, 3);
    let leader = net.elect();
    net.tick();
    let follower = net.follower();
    let ticket = net.propose(follower, "x");
    assert_eq!(net.refused[&ticket], RefuseReason::NotLeader { leader: Some(leader) });
    let ticket = net.read(follower);
    assert_eq!(net.refused[&ticket], RefuseReason::NotLeader { leader: Some(leader) });
    let large = "y".repeat(1025);
    let ticket = net.propose(leader, &large);
    assert_eq!(net.refused[&ticket], RefuseReason::TooLarge);
    let tickets: Vec<Ticket> = (0..70).map(|_| net.propose(leader, "many")).collect();
    let refused =
        tickets.iter().filter(|ticket| net.refused.get(ticket) == Some(&RefuseReason::Overloaded)).count();
    assert_eq!(refused, 6, "64 may wait");
}

#[test]
fn a_peer_that_was_cut_off_does_not_raise_the_term() {
    let mut net = Net::new(3, 4);
    let leader = net.elect();
    let before = net.term(leader);
    let follower = net.follower();
    net.cut.insert(follower);
    for _ in 0..60 {
        net.tick();
    }
    net.cut.clear();
    for _ in 0..30 {
        net.tick();
    }
    assert_eq!((net.leader(), net.term(leader)), (Some(leader), before));
}

#[test]
fn a_peer_that_is_heard_and_hears_nothing_does_not_stop_the_others() {
    let mut net = Net::new(3, 14);
    let leader = net.elect();
    let deaf = net.follower();
    let before = net.term(leader);
    for other in net.ids() {
        net.one_way_cut.insert((other, deaf));
    }
    for at in 0..100 {
        net.propose(leader, &format!("change {at}"));
        net.tick();
    }
    assert_eq!((net.leader(), net.term(leader)), (Some(leader), before));
    assert!(net.acknowledged.len() >= 95, "{} of 100", net.acknowledged.len());
    net.one_way_cut.clear();
    for _ in 0..40 {
        net.tick();
    }
    assert_eq!(net.peers[&deaf].applied.len(), 100);
}

#[test]
fn nobody_votes_or_is_elected_before_the_vote_is_durable() {
    let mut net = Net::new(3, 15);
    net.wait_until(|net| net.ids().into_iter().all(|id| net.standing(id) == Some(Standing::Founder)));
    net.stalled = net.ids().into_iter().collect();
    for _ in 0..100 {
        net.tick();
    }
    assert_eq!(net.leaders.len(), 0);
    let (one, other) = (net.ids()[0], net.ids()[1]);
    net.stalled.remove(&one);
    for _ in 0..100 {
        net.tick();
    }
    assert_eq!(net.leaders.len(), 0, "one durable vote of three is no majority");
    net.stalled.remove(&other);
    net.elect();
}

#[test]
fn a_leader_whose_disk_is_slow_commits_with_the_others() {
    let mut net = Net::new(3, 16);
    let leader = net.elect();
    net.tick();
    net.stalled.insert(leader);
    net.propose(leader, "overlapped");
    for _ in 0..3 {
        net.tick();
    }
    let committed =
        |id: PeerId, net: &Net| net.peers[&id].machine.as_ref().expect("it runs").status().committed;
    let last = net.peers[&leader].machine.as_ref().expect("it runs").status().last_index;
    assert_eq!(committed(leader, &net), last, "two durable copies are a majority");
    assert!(!net.has_applied(leader, "overlapped"), "what is not durable here is not applied here");
    let read = net.read(leader);
    net.tick();
    assert!(net.peers[&leader].readable.is_empty(), "what is committed and not applied would be missed");
    net.stalled.clear();
    net.tick();
    assert!(net.has_applied(leader, "overlapped"));
    assert_eq!(net.peers[&leader].readable, [(read, 1)]);
}

#[test]
fn an_empty_proposal_is_answered_like_any_other() {
    let mut net = Net::new(3, 17);
    let leader = net.elect();
    net.propose(leader, "");
    for _ in 0..4 {
        net.tick();
    }
    assert_eq!(net.acknowledged, [Vec::<u8>::new()]);
}

#[test]
fn a_leader_that_is_cut_off_steps_down_and_says_what_is_lost() {
    let mut net = Net::new(3, 5);
    let old = net.elect();
    net.cut.insert(old);
    let lost = net.propose(old, "never acknowledged");
    let read = net.read(old);
    let new = net.elect();
    assert_ne!(new, old);
    net.propose(new, "acknowledged");
    for _ in 0..40 {
        net.tick();
    }
    assert_eq!(net.refused.get(&lost), Some(&RefuseReason::Lost));
    assert_eq!(net.refused.get(&read), Some(&RefuseReason::Lost));
    assert!(net.peers[&old].readable.is_empty(), "a deposed leader serves no read");
    net.cut.clear();
    for _ in 0..40 {
        net.tick();
    }
    assert!(net.has_applied(old, "acknowledged") && !net.has_applied(old, "never acknowledged"));
}

#[test]
fn a_leader_that_slept_through_its_successors_election_serves_no_read() {
    let mut net = Net::new(3, 20);
    let old = net.elect();
    net.propose(old, "before");
    net.tick();
    net.cut.insert(old);
    // Its timer stands still, as in a paused process.
    let others: Vec<PeerId> = net.ids().into_iter().filter(|id| *id != old).collect();
    for _ in 0..60 {
        for id in others.iter().copied() {
            net.step(id, Event::Tick);
        }
        net.round();
        net.round();
    }
    let new = net.leader().expect("two of three elect one");
    net.propose(new, "after");
    for _ in 0..4 {
        net.round();
    }
    assert_eq!(net.acknowledged.last(), Some(&b"after".to_vec()));
    let role = |net: &Net| net.peers[&old].machine.as_ref().expect("it runs").status().role;
    assert_eq!(role(&net), Role::Leader, "it knows nothing yet");
    let read = net.read(old);
    for _ in 0..4 {
        net.round();
    }
    assert!(net.peers[&old].readable.is_empty());
    net.cut.clear();
    for _ in 0..10 {
        net.tick();
    }
    assert_eq!(net.refused.get(&read), Some(&RefuseReason::Lost));
    assert_eq!((role(&net), net.has_applied(old, "after")), (Role::Follower, true));
}

#[test]
fn a_read_sees_everything_acknowledged_before_it() {
    let mut net = Net::new(3, 6);
    let leader = net.elect();
    for at in 0..10 {
        net.propose(leader, &format!("{at}"));
        let acknowledged = net.acknowledged.len();
        let read = net.read(leader);
        for _ in 0..3 {
            net.tick();
        }
        let (_, seen) =
            net.peers[&leader].readable.iter().find(|(ticket, _)| *ticket == read).expect("it is served");
        assert!(*seen >= acknowledged);
    }
}

#[test]
fn a_peer_that_lags_far_behind_gets_a_snapshot() {
    let mut net = Net::new(3, 7);
    let leader = net.elect();
    let slow = net.follower();
    net.cut.insert(slow);
    for at in 0..200 {
        net.propose(leader, &format!("change {at}"));
        net.round();
        net.round();
        if at % 10 == 0 {
            net.tick();
        }
    }
    assert!(net.peers[&leader].disk.synced.snapshot.is_some());
    net.cut.clear();
    for _ in 0..60 {
        net.tick();
    }
    assert_eq!(net.peers[&slow].applied, net.peers[&leader].applied);
    assert!(net.peers[&slow].disk.synced.snapshot.is_some(), "it came as a snapshot");
}

#[test]
fn a_snapshot_that_becomes_durable_late_holds_no_election() {
    let mut net = Net::new(3, 18);
    let leader = net.elect();
    let slow = net.follower();
    net.cut.insert(slow);
    for at in 0..100 {
        net.propose(leader, &format!("change {at}"));
        net.round();
        net.round();
        if at % 10 == 0 {
            net.tick();
        }
    }
    net.cut.clear();
    net.stalled.insert(slow);
    for _ in 0..30 {
        net.tick();
    }
    assert!(net.peers[&slow].disk.synced.snapshot.is_none());
    assert!(!net.peers[&slow].applied.is_empty(), "it was installed");
    // Its election timeout passes many times over while nobody leads; and it is told to take over.
    let others: Vec<PeerId> = net.ids().into_iter().filter(|id| *id != slow).collect();
    net.cut.extend(others);
    for _ in 0..100 {
        net.tick();
    }
    let status = net.peers[&slow].machine.as_ref().expect("it runs").status();
    assert_eq!(status.role, Role::Follower);
    net.stalled.clear();
    net.cut.clear();
    net.elect();
    for _ in 0..60 {
        net.tick();
    }
    assert_eq!(net.peers[&slow].applied, net.peers[&leader].applied);
}

#[test]
fn a_snapshot_too_large_for_a_message_keeps_the_entries() {
    let mut net = Net::new(1, 19);
    let leader = net.elect();
    net.tick();
    net.is_oversized = true;
    for at in 0..30 {
        net.propose(leader, &format!("change {at}"));
        net.tick();
    }
    assert!(net.peers[&leader].disk.synced.snapshot.is_none());
    let status = net.peers[&leader].machine.as_ref().expect("it runs").status();
    assert_eq!(status.oversized_snapshots, 1);
}

#[test]
fn a_log_with_a_gap_or_a_false_commit_is_refused() {
    let config = ConsensusConfig {
        id: PeerId(1),
        peers: [(PeerId(1), Vec::new())].into(),
        election_ticks: 10,
        heartbeat_ticks: 2,
        max_inflight: 8,
        max_proposal_bytes: 64,
        snapshot_every: 10,
        seed: 1,
        start: 1,
    };
    let gap =
        Restored { entries: vec![LogEntry { index: 2, term: 1, bytes: vec![] }], ..Restored::default() };
    assert!(Consensus::new(config.clone(), gap).is_err());
    let future = Restored {
        entries: vec![LogEntry { index: 1, term: 1, bytes: vec![0x10, 1, 0x18, 1] }],
        ..Restored::default()
    };
    let error = Consensus::new(config.clone(), future).err().expect("nobody was in that term");
    assert_eq!(error.to_string(), "raft log: an entry is of term 1 and the vote of term 0");
    let damaged = Restored { hard_state: Some(vec![0xFF; 3]), ..Restored::default() };
    assert!(Consensus::new(config.clone(), damaged).is_err());
    assert!(Consensus::new(ConsensusConfig { id: PeerId(2), ..config }, Restored::default()).is_err());
}
