//! Peers on a network that loses, repeats, delays and reorders, with disks that finish late and forget what was not
//! synced. Everything follows from one seed.

use kvhive_consensus::{
    Consensus, ConsensusConfig, Effect, Event, LogBatch, LogEntry, PeerId, RefuseReason, Restored, Role,
    Ticket, WriteId,
};
use std::collections::{BTreeMap, BTreeSet};

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ (word >> 31)
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.next().is_multiple_of(n)
    }
}

/// A disk: what is synced, and what was asked for and is not yet.
#[derive(Default, Clone)]
struct Disk {
    synced: Restored,
    queued: Vec<(WriteId, LogBatch)>,
}

impl Disk {
    fn sync_one(&mut self) -> Option<WriteId> {
        if self.queued.is_empty() {
            return None;
        }
        let (write, batch) = self.queued.remove(0);
        if let Some(snapshot) = batch.snapshot {
            self.synced.entries.retain(|entry| !batch.reset && entry.index > snapshot.index);
            self.synced.snapshot = Some(snapshot);
        }
        if let Some(first) = batch.entries.first() {
            self.synced.entries.retain(|entry| entry.index < first.index);
            self.synced.entries.extend(batch.entries);
        }
        if batch.hard_state.is_some() {
            self.synced.hard_state = batch.hard_state;
        }
        Some(write)
    }
}

struct Peer {
    machine: Option<Consensus>,
    disk: Disk,
    /// The state machine: every applied entry, in order; a snapshot is its encoding.
    applied: Vec<(u64, Vec<u8>)>,
    readable: Vec<(Ticket, usize)>,
    starts: u64,
}

struct Net {
    peers: BTreeMap<PeerId, Peer>,
    flying: Vec<(PeerId, PeerId, Vec<u8>)>,
    cut: BTreeSet<PeerId>,
    random: Random,
    chaos: bool,
    next_ticket: u64,
    acknowledged: Vec<Vec<u8>>,
    refused: BTreeMap<Ticket, RefuseReason>,
    leaders: BTreeMap<u64, PeerId>,
    longest: Vec<(u64, Vec<u8>)>,
    trace: u64,
    snapshot_every: u64,
}

impl Net {
    fn new(peers: u64, seed: u64) -> Net {
        let mut net = Net {
            peers: (1..=peers)
                .map(|id| {
                    let peer = Peer {
                        machine: None,
                        disk: Disk::default(),
                        applied: Vec::new(),
                        readable: Vec::new(),
                        starts: 0,
                    };
                    (PeerId(id), peer)
                })
                .collect(),
            flying: Vec::new(),
            cut: BTreeSet::new(),
            random: Random(seed),
            chaos: false,
            next_ticket: 1,
            acknowledged: Vec::new(),
            refused: BTreeMap::new(),
            leaders: BTreeMap::new(),
            longest: Vec::new(),
            trace: seed,
            snapshot_every: 30,
        };
        for id in net.ids() {
            net.start(id);
        }
        net
    }

    fn ids(&self) -> Vec<PeerId> {
        self.peers.keys().copied().collect()
    }

    fn start(&mut self, id: PeerId) {
        let voters = self.ids();
        let peer = self.peers.get_mut(&id).expect("a known peer");
        peer.starts += 1;
        let config = ConsensusConfig {
            id,
            voters,
            election_ticks: 10,
            heartbeat_ticks: 2,
            max_inflight: 64,
            max_proposal_bytes: 1024,
            snapshot_every: self.snapshot_every,
            seed: 42,
            start: peer.starts,
        };
        peer.applied =
            peer.disk.synced.snapshot.as_ref().map_or(Vec::new(), |snapshot| decode(&snapshot.data));
        peer.machine =
            Some(Consensus::new(config, peer.disk.synced.clone()).expect("what was synced can be restored"));
    }

    fn crash(&mut self, id: PeerId) {
        let peer = self.peers.get_mut(&id).expect("a known peer");
        peer.machine = None;
        peer.disk.queued.clear();
        peer.readable.clear();
    }

    fn step(&mut self, id: PeerId, event: Event) {
        let mut effects = Vec::new();
        let peer = self.peers.get_mut(&id).expect("a known peer");
        let Some(machine) = &mut peer.machine else { return };
        machine.step(event, &mut effects);
        machine.invariants().expect("invariants hold after every event");
        let mut answers = Vec::new();
        for effect in effects {
            self.trace = self.trace.rotate_left(5) ^ hash(&format!("{id:?} {effect:?}"));
            match effect {
                Effect::Send { to, bytes } => self.flying.push((id, to, bytes)),
                Effect::Persist { write, batch } => peer.disk.queued.push((write, batch)),
                Effect::Apply { index, data, ticket, .. } => {
                    assert!(
                        peer.applied.last().is_none_or(|(last, _)| *last < index),
                        "entries apply in order"
                    );
                    peer.applied.push((index, data.clone()));
                    if ticket.is_some() {
                        self.acknowledged.push(data);
                    }
                }
                Effect::Install { data, .. } => peer.applied = decode(&data),
                Effect::TakeSnapshot { index } => {
                    answers.push(Event::SnapshotTaken { index, data: encode(&peer.applied) });
                }
                Effect::Readable { ticket } => peer.readable.push((ticket, peer.applied.len())),
                Effect::Refused { ticket, reason } => {
                    assert!(self.refused.insert(ticket, reason).is_none(), "each ticket is answered once");
                }
                Effect::RoleChanged { role: Role::Leader, term, .. } => {
                    let before = self.leaders.insert(term, id);
                    assert!(before.is_none_or(|leader| leader == id), "one leader a term");
                }
                Effect::RoleChanged { .. } => {}
            }
        }
        let applied = &self.peers[&id].applied;
        let common = applied.len().min(self.longest.len());
        assert_eq!(
            applied[..common],
            self.longest[..common],
            "applied sequences are prefixes of one another"
        );
        if applied.len() > common {
            self.longest = applied.clone();
        }
        for answer in answers {
            self.step(id, answer);
        }
    }

    /// One round: disks sync, messages fly, timers tick.
    fn round(&mut self) {
        for id in self.ids() {
            if self.chaos && self.random.one_in(3) {
                continue;
            }
            while let Some(write) = self.peers.get_mut(&id).expect("a known peer").disk.sync_one() {
                self.step(id, Event::Persisted { write });
            }
        }
        let mut flying = std::mem::take(&mut self.flying);
        if self.chaos {
            for at in (1..flying.len()).rev() {
                let other = self.random.next() as usize % (at + 1);
                flying.swap(at, other);
            }
        }
        for (from, to, bytes) in flying {
            if self.cut.contains(&from) || self.cut.contains(&to) || (self.chaos && self.random.one_in(10)) {
                continue;
            }
            if self.chaos && self.random.one_in(20) {
                self.flying.push((from, to, bytes.clone()));
            }
            if self.chaos && self.random.one_in(8) {
                self.flying.push((from, to, bytes));
                continue;
            }
            self.step(to, Event::Received { from, bytes });
        }
    }

    fn tick(&mut self) {
        for id in self.ids() {
            if !(self.chaos && self.random.one_in(6)) {
                self.step(id, Event::Tick);
            }
        }
        for _ in 0..4 {
            self.round();
        }
    }

    fn leader(&self) -> Option<PeerId> {
        let up = self.peers.iter().filter(|(id, _)| !self.cut.contains(id));
        up.filter_map(|(id, peer)| Some((peer.machine.as_ref()?.status(), *id)))
            .filter(|(status, _)| status.role == Role::Leader)
            .max_by_key(|(status, _)| status.term)
            .map(|(_, id)| id)
    }

    fn elect(&mut self) -> PeerId {
        for _ in 0..300 {
            self.tick();
            if let Some(leader) = self.leader() {
                return leader;
            }
        }
        panic!("no leader after 300 ticks");
    }

    fn propose(&mut self, at: PeerId, what: &str) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.step(at, Event::Propose { ticket, data: what.as_bytes().to_vec() });
        ticket
    }

    fn read(&mut self, at: PeerId) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.step(at, Event::Read { ticket });
        ticket
    }

    fn has_applied(&self, id: PeerId, what: &str) -> bool {
        self.peers[&id].applied.iter().any(|(_, data)| data == what.as_bytes())
    }
}

fn hash(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

fn encode(applied: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (index, data) in applied {
        out.extend(index.to_le_bytes());
        out.extend((data.len() as u64).to_le_bytes());
        out.extend(data);
    }
    out
}

fn decode(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let mut applied = Vec::new();
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
    while !bytes.is_empty() {
        let (index, length) = (number(bytes), number(&bytes[8..]) as usize);
        applied.push((index, bytes[16..16 + length].to_vec()));
        bytes = &bytes[16 + length..];
    }
    applied
}

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
    let follower = net.ids().into_iter().find(|id| *id != leader).expect("three peers");
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
    let term = |net: &Net| net.peers[&leader].machine.as_ref().expect("it runs").status().term;
    let before = term(&net);
    let follower = net.ids().into_iter().find(|id| *id != leader).expect("three peers");
    net.cut.insert(follower);
    for _ in 0..60 {
        net.tick();
    }
    net.cut.clear();
    for _ in 0..30 {
        net.tick();
    }
    assert_eq!((net.leader(), term(&net)), (Some(leader), before));
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
    let slow = net.ids().into_iter().find(|id| *id != leader).expect("three peers");
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
fn leadership_can_be_handed_over() {
    let mut net = Net::new(3, 8);
    let leader = net.elect();
    let heir = net.ids().into_iter().find(|id| *id != leader).expect("three peers");
    net.step(leader, Event::TransferLeadership { to: heir });
    for _ in 0..8 {
        net.tick();
    }
    assert_eq!(net.leader(), Some(heir));
}

#[test]
fn a_damaged_or_senseless_message_is_ignored() {
    let mut net = Net::new(3, 9);
    let leader = net.elect();
    net.propose(leader, "x");
    let (from, to, bytes) =
        net.flying.iter().find(|(from, ..)| *from == leader).expect("an append flies").clone();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << bit;
            let mut fork = Net::new(3, 9);
            fork.elect();
            // Whatever it decodes to, nothing panics.
            fork.step(to, Event::Received { from, bytes: damaged });
        }
        if at > 24 {
            break;
        }
    }
    for cut in 0..bytes.len() {
        net.step(to, Event::Received { from, bytes: bytes[..cut].to_vec() });
    }
    net.step(to, Event::Received { from: to, bytes: bytes.clone() });
    net.step(to, Event::Received { from: PeerId(77), bytes });
    assert!(net.peers[&to].machine.as_ref().expect("it runs").status().ignored_messages > 2);
}

#[test]
fn a_log_with_a_gap_or_a_false_commit_is_refused() {
    let config = ConsensusConfig {
        id: PeerId(1),
        voters: vec![PeerId(1)],
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
    let damaged = Restored { hard_state: Some(vec![0xFF; 3]), ..Restored::default() };
    assert!(Consensus::new(config.clone(), damaged).is_err());
    assert!(Consensus::new(ConsensusConfig { id: PeerId(2), ..config }, Restored::default()).is_err());
}

/// A whole run under chaos, then quiet: returns the trace of everything that happened.
fn chaos(seed: u64, peers: u64) -> u64 {
    let mut net = Net::new(peers, seed);
    net.chaos = true;
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
            5..=7 => net.cut.clear(),
            8..=14 => {
                if let Some(leader) = net.leader() {
                    net.propose(leader, &format!("seed {seed} round {round}"));
                }
            }
            15 => {
                net.read(some);
            }
            16 => net.step(some, Event::TransferLeadership { to: ids[0] }),
            _ => {}
        }
    }
    net.chaos = false;
    net.cut.clear();
    for id in net.ids() {
        if net.peers[&id].machine.is_none() {
            net.start(id);
        }
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
    net.trace
}

#[test]
fn acknowledged_changes_survive_chaos() {
    for seed in 100..140 {
        chaos(seed, if seed % 3 == 0 { 5 } else { 3 });
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [7, 8] {
        assert_eq!(chaos(seed, 3), chaos(seed, 3));
    }
}
