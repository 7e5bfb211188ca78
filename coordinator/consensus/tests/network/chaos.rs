//! Whole runs under chaos, then quiet. What must hold at all times is asserted in `net`.

use super::net::Net;
use kvhive_consensus::{Consensus, PeerId, Role, Standing};

fn leads(machine: &Consensus) -> bool {
    machine.status().role == Role::Leader
}

/// A whole run under chaos, then quiet: returns the trace of everything that happened, and how many logs were lost.
fn run(seed: u64, peers: u64) -> (u64, u32) {
    let mut net = Net::new(peers, seed);
    net.chaos = true;
    let mut wiped = 0;
    for round in 0..300 {
        net.tick();
        let ids = net.ids();
        let some = ids[net.random.next() as usize % ids.len()];
        match net.random.next() % 24 {
            0 => {
                net.crash(some);
            }
            1..=3 => {
                for id in ids.iter().copied() {
                    if net.peers[&id].machine.is_none() {
                        net.start(id);
                    }
                }
            }
            4 => {
                net.cut.insert(some);
            }
            5..=7 => {
                net.cut.clear();
                net.one_way_cut.clear();
                net.stalled.clear();
            }
            17 => {
                let other = ids[net.random.next() as usize % ids.len()];
                net.one_way_cut.insert((some, other));
            }
            18 => {
                net.stalled.insert(some);
            }
            8..=14 => {
                if let Some(leader) = net.leader() {
                    net.propose(leader, &format!("seed {seed} round {round}"));
                }
            }
            15 => {
                net.read(some);
            }
            19 => {
                // A deposed leader that does not know it is asked too.
                let leads = |id: &PeerId| net.peers[id].machine.as_ref().is_some_and(leads);
                for id in ids.iter().copied().filter(leads).collect::<Vec<_>>() {
                    net.read(id);
                }
            }
            16 => {
                if let Some(leader) = net.leader() {
                    net.transfer(leader, Some(some));
                }
            }
            20 => {
                // Raft bears the loss of one log at a time, and the next once that one is back.
                let settled = |id: &PeerId| net.standing(*id) == Some(Standing::Settled);
                if ids.iter().all(settled) {
                    net.wipe(some);
                    wiped += 1;
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
        if net.peers[&id].machine.is_none() {
            net.start(id);
        }
    }
    // Leadership that is being handed over goes first: meanwhile nothing is taken.
    for _ in 0..30 {
        net.tick();
    }
    let leader = net.elect();
    net.propose(leader, "the end");
    for _ in 0..80 {
        net.tick();
    }
    for id in net.ids() {
        assert!(net.has_applied(id, "the end"), "seed {seed}: a quiet majority makes progress");
        for data in &net.acknowledged {
            assert!(
                net.peers[&id].applied.iter().any(|(_, applied)| applied == data),
                "seed {seed}: lost {data:?}"
            );
        }
    }
    (net.trace, wiped)
}

#[test]
fn acknowledged_changes_survive_chaos() {
    let wiped: u32 = (100..160).map(|seed| run(seed, if seed % 3 == 0 { 5 } else { 3 }).1).sum();
    assert!(wiped > 60, "{wiped} logs were lost");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [7, 8] {
        assert_eq!(run(seed, 3), run(seed, 3));
    }
}
