//! The network, its peers and their disks. What must hold at all times is asserted with every step.

use kvhive_consensus::{
    Consensus, ConsensusConfig, Effect, Event, Group, GroupChange, LogBatch, PeerId, RefuseReason, Restored,
    Role, Standing, Status, Ticket, WriteId,
};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ (word >> 31)
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.next().is_multiple_of(n)
    }
}

/// A disk: what is synced, and what was asked for and is not yet.
#[derive(Default, Clone)]
pub(crate) struct Disk {
    pub(crate) synced: Restored,
    pub(crate) queued: Vec<(WriteId, LogBatch)>,
}

impl Disk {
    pub(crate) fn sync_one(&mut self) -> Option<WriteId> {
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

#[derive(Default)]
pub(crate) struct Peer {
    pub(crate) machine: Option<Consensus>,
    pub(crate) disk: Disk,
    /// The state machine: every applied entry, in order; a snapshot is its encoding.
    pub(crate) applied: Vec<(u64, Vec<u8>)>,
    pub(crate) readable: Vec<(Ticket, usize)>,
    pub(crate) starts: u64,
}

pub(crate) struct Net {
    pub(crate) peers: BTreeMap<PeerId, Peer>,
    pub(crate) flying: Vec<(PeerId, PeerId, Vec<u8>)>,
    /// Peers that nobody hears and that hear nobody.
    pub(crate) cut: BTreeSet<PeerId>,
    /// Ways, from and to, on which nothing arrives.
    pub(crate) one_way_cut: BTreeSet<(PeerId, PeerId)>,
    /// Peers whose disks finish nothing.
    pub(crate) stalled: BTreeSet<PeerId>,
    pub(crate) random: Random,
    pub(crate) chaos: bool,
    next_ticket: u64,
    pub(crate) acknowledged: Vec<Vec<u8>>,
    pub(crate) refused: BTreeMap<Ticket, RefuseReason>,
    /// Who led when a handing over was through.
    pub(crate) handed_over: BTreeMap<Ticket, PeerId>,
    /// What was proposed under each ticket.
    proposed: BTreeMap<Ticket, Vec<u8>>,
    /// What was acknowledged, as a number, when each read began.
    reads: BTreeMap<Ticket, usize>,
    /// Proposals and reads that were answered.
    answered: BTreeSet<Ticket>,
    pub(crate) leaders: BTreeMap<u64, PeerId>,
    longest: Vec<(u64, Vec<u8>)>,
    pub(crate) trace: u64,
    pub(crate) snapshot_every: u64,
    /// Whom those name that found the group, and that start before it has begun.
    founders: Vec<PeerId>,
    /// Changes of the group that are through.
    pub(crate) settled: BTreeSet<Ticket>,
    /// The group at each index, as the first that was there had it.
    groups: BTreeMap<u64, Group>,
    /// Snapshots are larger than a message.
    pub(crate) is_oversized: bool,
}

/// What the others know of a peer.
pub(crate) fn about(id: PeerId) -> Vec<u8> {
    format!("peer {}", id.0).into_bytes()
}

impl Net {
    pub(crate) fn new(peers: u64, seed: u64) -> Net {
        let founders: Vec<PeerId> = (1..=peers).map(PeerId).collect();
        let mut net = Net {
            peers: founders.iter().map(|id| (*id, Peer::default())).collect(),
            flying: Vec::new(),
            cut: BTreeSet::new(),
            one_way_cut: BTreeSet::new(),
            stalled: BTreeSet::new(),
            random: Random(seed),
            chaos: false,
            next_ticket: 1,
            acknowledged: Vec::new(),
            refused: BTreeMap::new(),
            handed_over: BTreeMap::new(),
            proposed: BTreeMap::new(),
            reads: BTreeMap::new(),
            answered: BTreeSet::new(),
            leaders: BTreeMap::new(),
            longest: Vec::new(),
            trace: seed,
            snapshot_every: 30,
            founders,
            settled: BTreeSet::new(),
            groups: BTreeMap::new(),
            is_oversized: false,
        };
        for id in net.ids() {
            net.start(id);
        }
        net
    }

    pub(crate) fn ids(&self) -> Vec<PeerId> {
        self.peers.keys().copied().collect()
    }

    pub(crate) fn start(&mut self, id: PeerId) {
        // Once there is a group, a host names those that are of it.
        let group = self.groups.last_key_value().map(|(_, group)| group);
        let named = group.map_or(&self.founders, |group| &group.voters);
        let peers = named.iter().copied().chain([id]).map(|peer| (peer, about(peer))).collect();
        let peer = self.peers.get_mut(&id).expect("a known peer");
        peer.starts += 1;
        let config = ConsensusConfig {
            id,
            peers,
            election_ticks: 10,
            heartbeat_ticks: 2,
            max_inflight: 64,
            max_proposal_bytes: 1024,
            snapshot_every: self.snapshot_every,
            seed: 42,
            start: peer.starts,
        };
        peer.applied = peer
            .disk
            .synced
            .snapshot
            .as_ref()
            .map_or(Vec::new(), |snapshot| decode(snapshot.state().expect("whole")));
        peer.machine =
            Some(Consensus::new(config, peer.disk.synced.clone()).expect("what was synced can be restored"));
    }

    /// Starts a peer that may not be of the group.
    pub(crate) fn join(&mut self, id: PeerId) {
        self.peers.entry(id).or_default();
        self.start(id);
    }

    pub(crate) fn group(&self, id: PeerId) -> Group {
        self.peers[&id].machine.as_ref().expect("it runs").group()
    }

    pub(crate) fn change(&mut self, at: PeerId, change: GroupChange) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.step(at, Event::ChangeGroup { ticket, change });
        ticket
    }

    pub(crate) fn crash(&mut self, id: PeerId) {
        let peer = self.peers.get_mut(&id).expect("a known peer");
        peer.machine = None;
        peer.disk.queued.clear();
        peer.readable.clear();
    }

    /// Takes away a peer's log. Its connections end with it, and what was on its way over them.
    pub(crate) fn wipe(&mut self, id: PeerId) {
        self.crash(id);
        self.peers.get_mut(&id).expect("a known peer").disk = Disk::default();
        self.flying.retain(|(from, to, _)| *from != id && *to != id);
    }

    pub(crate) fn standing(&self, id: PeerId) -> Option<Standing> {
        self.peers[&id].machine.as_ref().map(|machine| machine.status().standing)
    }

    pub(crate) fn step(&mut self, id: PeerId, event: Event) {
        let mut effects = Vec::new();
        // Some are told of before they are there.
        let Some(peer) = self.peers.get_mut(&id) else { return };
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
                    // "Nothing happened" is never said of what is applied later. Texts are unique.
                    let unique = self.proposed.iter().find(|(_, proposed)| **proposed == data);
                    let said = unique.and_then(|(ticket, _)| self.refused.get(ticket));
                    assert!(
                        data == b"many" || said.is_none_or(|reason| *reason == RefuseReason::Lost),
                        "{said:?}"
                    );
                    if let Some(ticket) = ticket {
                        assert!(self.answered.insert(ticket), "each ticket is answered once");
                        assert_eq!(
                            self.proposed.get(&ticket),
                            Some(&data),
                            "a ticket comes back with its data"
                        );
                        self.acknowledged.push(data);
                    }
                }
                Effect::Install { data, .. } => peer.applied = decode(&data),
                Effect::TakeSnapshot { index } => {
                    let mut data = encode(&peer.applied);
                    if self.is_oversized {
                        data = vec![0; kvhive_consensus::MAX_SNAPSHOT_BYTES + 1];
                    }
                    answers.push(Event::SnapshotTaken { index, data });
                }
                Effect::Readable { ticket } => {
                    assert!(self.answered.insert(ticket), "each ticket is answered once");
                    let applied: BTreeSet<&Vec<u8>> = peer.applied.iter().map(|(_, data)| data).collect();
                    let known = &self.acknowledged[..self.reads[&ticket]];
                    assert!(
                        known.iter().all(|data| applied.contains(data)),
                        "a read misses what was acknowledged"
                    );
                    peer.readable.push((ticket, peer.applied.len()));
                }
                Effect::Refused { ticket, reason } => {
                    assert!(self.answered.insert(ticket), "each ticket is answered once");
                    self.refused.insert(ticket, reason);
                }
                Effect::GroupChanged => {}
                Effect::GroupSettled { ticket } => {
                    assert!(self.answered.insert(ticket), "each ticket is answered once");
                    self.settled.insert(ticket);
                }
                Effect::HandedOver { ticket, leader } => {
                    assert!(self.answered.insert(ticket), "each ticket is answered once");
                    self.handed_over.insert(ticket, leader);
                }
                Effect::RoleChanged { role: Role::Leader, term, .. } => {
                    let before = self.leaders.insert(term, id);
                    assert!(before.is_none_or(|leader| leader == id), "one leader a term");
                }
                Effect::RoleChanged { .. } => {}
            }
        }
        let machine = self.peers[&id].machine.as_ref().expect("it runs");
        let (index, group) = (machine.status().applied, machine.group());
        // Who began with an empty log knows nobody before the founders are named in it.
        if index > 0 && !group.voters.is_empty() && !group.about.is_empty() {
            let first = self.groups.entry(index).or_insert_with(|| group.clone());
            assert_eq!(*first, group, "{id:?}: the group at {index} is the same for all");
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
    pub(crate) fn round(&mut self) {
        for id in self.ids() {
            if self.stalled.contains(&id) || (self.chaos && self.random.one_in(3)) {
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
            let cut =
                self.cut.contains(&from) || self.cut.contains(&to) || self.one_way_cut.contains(&(from, to));
            if cut || (self.chaos && self.random.one_in(10)) {
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

    pub(crate) fn tick(&mut self) {
        for id in self.ids() {
            if !(self.chaos && self.random.one_in(6)) {
                self.step(id, Event::Tick);
            }
        }
        for _ in 0..4 {
            self.round();
        }
    }

    pub(crate) fn leader(&self) -> Option<PeerId> {
        let up = self.peers.iter().filter(|(id, _)| !self.cut.contains(id));
        up.filter_map(|(id, peer)| Some((peer.machine.as_ref()?.status(), *id)))
            .filter(|(status, _)| status.role == Role::Leader)
            .max_by_key(|(status, _)| status.term)
            .map(|(_, id)| id)
    }

    /// Lets time pass until something holds.
    pub(crate) fn wait_until(&mut self, holds: impl Fn(&Net) -> bool) {
        for _ in 0..300 {
            if holds(self) {
                return;
            }
            self.tick();
        }
        panic!("waited 300 ticks in vain");
    }

    pub(crate) fn elect(&mut self) -> PeerId {
        for _ in 0..300 {
            self.tick();
            if let Some(leader) = self.leader() {
                return leader;
            }
        }
        panic!("no leader after 300 ticks");
    }

    pub(crate) fn propose(&mut self, at: PeerId, what: &str) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.proposed.insert(ticket, what.as_bytes().to_vec());
        self.step(at, Event::Propose { ticket, data: what.as_bytes().to_vec() });
        ticket
    }

    pub(crate) fn read(&mut self, at: PeerId) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.reads.insert(ticket, self.acknowledged.len());
        self.step(at, Event::Read { ticket });
        ticket
    }

    pub(crate) fn transfer(&mut self, at: PeerId, to: Option<PeerId>) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.step(at, Event::Transfer { ticket, to });
        ticket
    }

    /// Returns some peer that does not lead.
    pub(crate) fn follower(&self) -> PeerId {
        let leader = self.leader();
        self.ids().into_iter().find(|id| Some(*id) != leader).expect("a leader is one of several")
    }

    pub(crate) fn status(&self, id: PeerId) -> Status {
        self.peers[&id].machine.as_ref().expect("it runs").status()
    }

    pub(crate) fn term(&self, id: PeerId) -> u64 {
        self.peers[&id].machine.as_ref().expect("it runs").status().term
    }

    pub(crate) fn has_applied(&self, id: PeerId, what: &str) -> bool {
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
