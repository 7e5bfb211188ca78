//! What is excused and what is not, by maps of a real registry: stories, and random ones beside what nodes really have.

use super::*;
use kvhive_control::Registry;
use kvhive_oracle::Random;
use kvhive_protocol::control::{Command, CommandReply, Placing, Proposal, Registration};
use kvhive_protocol::data::Ack;
use kvhive_protocol::map::{DeviceDescription, Settings};
use kvhive_protocol::{ClusterId, DeviceId, Filling, Level, RequestId};
use std::sync::Arc;

pub(in crate::torture) const SLOT: Slot = Slot(7);

/// A cluster of four nodes and two replicas, and who is watched in it.
pub(in crate::torture) struct Cluster {
    registry: Registry,
    holders: Holders,
}

impl Cluster {
    pub(in crate::torture) fn begin() -> Cluster {
        let mut cluster = Cluster { registry: Registry::new(), holders: Holders::default() };
        let settings = Settings {
            replicas: 2,
            segment_blocks: 16,
            ack: Ack::Primary,
            lease_ms: 1000,
            heartbeat_ms: 200,
            serving_lease_ms: 1000,
        };
        cluster.apply(Command::Bootstrap {
            cluster: ClusterId(42),
            name: "torture".to_owned(),
            settings,
            default_secret: [7; 32],
            scaling: Default::default(),
            coordinators: Vec::new(),
            level: Level::NEWEST,
        });
        for node in 1..=4 {
            cluster.register(node);
            cluster.fill();
        }
        cluster.holders = Holders::of(&cluster.map(), &BTreeSet::from([SLOT]));
        cluster
    }

    fn apply(&mut self, command: Command) {
        let index = self.registry.applied() + 1;
        let request = RequestId { client: 1, sequence: index };
        let reply = self.registry.apply(index, Proposal { request, command });
        assert!(!matches!(reply, CommandReply::Rejected(_)), "{reply:?}");
    }

    pub(in crate::torture) fn map(&self) -> Arc<ClusterMap> {
        self.registry.map().expect("it was started")
    }

    fn register(&mut self, node: u32) {
        let device = DeviceDescription {
            kind: "host".to_owned(),
            device_bytes: 1 << 20,
            host_bytes: 1 << 20,
            disk_bytes: 0,
        };
        self.apply(Command::Register(Registration {
            request: RequestId { client: 5, sequence: 5 },
            name: format!("node-{node}"),
            data_address: format!("127.0.0.{node}:7810"),
            metrics_address: format!("127.0.0.{node}:7811"),
            labels: BTreeMap::new(),
            devices: vec![device],
            codec: Default::default(),
            speaks: Level::NEWEST,
        }));
    }

    /// Ends a node's lease.
    pub(in crate::torture) fn lapse(&mut self, node: MemberId) {
        let generation = self.map().members[&node].generation;
        self.apply(Command::MarkDown { member: node, generation });
    }

    /// A fault ends a node; nobody else knows yet.
    fn hit(&mut self, node: MemberId) {
        let generation = self.map().members[&node].generation;
        self.holders.hits(node, generation);
    }

    fn place(&mut self, changes: Vec<Placing>) {
        let based_on = self.map().epoch;
        self.apply(Command::PlaceSlots { based_on, changes });
    }

    /// Has every replica be given what it lacks.
    fn fill(&mut self) {
        let map = self.map();
        let whole = |slot: &Slot| Placing {
            slot: *slot,
            set: map.replicas(*slot).0.clone(),
            filling: Filling::default(),
        };
        let changes: Vec<Placing> = map.filling.keys().map(whole).collect();
        if !changes.is_empty() {
            self.place(changes);
        }
    }

    /// The slot's replicas, the primary first.
    pub(in crate::torture) fn set(&self) -> Vec<MemberId> {
        self.map().replicas(SLOT).0.iter().map(|device| device.member).collect()
    }

    /// Has a slot be given to the two that do not have it, in the steps that moves take.
    pub(in crate::torture) fn give_away(&mut self, slot: Slot) {
        let map = self.map();
        let have = map.replicas(slot).0.clone();
        let is_other = |id: &&MemberId| have.iter().all(|device| device.member != **id);
        let others: Vec<DeviceId> =
            map.members.keys().filter(is_other).map(|id| DeviceId::new(*id, 0)).collect();
        let all = [have, others.clone()].concat();
        let lacks = Filling { devices: others.clone(), streams: true };
        self.place(vec![Placing { slot, set: all.clone(), filling: lacks }]);
        self.place(vec![Placing { slot, set: all, filling: Filling::default() }]);
        self.place(vec![Placing { slot, set: others, filling: Filling::default() }]);
    }

    /// One that does not have it.
    fn other(&self) -> MemberId {
        let set = self.set();
        *self.map().members.keys().find(|id| !set.contains(id)).expect("two of four have it")
    }

    fn look(&mut self) -> Seen {
        let map = self.map();
        self.holders.sees(&map)
    }

    fn name(node: MemberId) -> String {
        format!("node-{}", node.0)
    }
}

fn lapsed(nodes: &[MemberId]) -> Seen {
    Seen { lapsed: nodes.iter().map(|node| Cluster::name(*node)).collect(), emptied: Vec::new() }
}

#[test]
fn while_one_stays_who_had_it_nothing_is_excused() {
    let mut cluster = Cluster::begin();
    let claim = cluster.holders.claim(SLOT).expect("both have it");
    for _ in 0..8 {
        let primary = cluster.set()[0];
        cluster.lapse(primary);
        assert_eq!(cluster.look(), lapsed(&[primary]));
        assert_eq!(cluster.holders.claim(SLOT), None, "one alone has all of it: the next may be too many");
        assert!(cluster.holders.stands(claim));
        cluster.register(primary.0);
        cluster.fill();
        assert_eq!(cluster.look(), Seen::default());
        assert!(cluster.holders.claim(SLOT).is_some(), "it was given to another");
    }
    assert!(cluster.holders.stands(claim), "at no time has everybody left");
}

#[test]
fn a_lease_that_ends_while_another_was_hit_ends_what_both_had() {
    let mut cluster = Cluster::begin();
    let claim = cluster.holders.claim(SLOT).expect("both have it");
    let (first, second) = (cluster.set()[0], cluster.set()[1]);
    cluster.hit(second);
    assert_eq!(cluster.holders.claim(SLOT), None, "the map has not heard of it");
    assert_eq!(cluster.look(), Seen::default());
    cluster.lapse(first);
    let seen = Seen { lapsed: vec![Cluster::name(first)], emptied: vec![SLOT] };
    assert_eq!(cluster.look(), seen);
    assert!(!cluster.holders.stands(claim));
    assert_eq!(cluster.holders.take_lapsed().into_keys().collect::<Vec<_>>(), [Cluster::name(first)]);
    assert!(cluster.holders.take_lapsed().is_empty(), "it is told once");
}

#[test]
fn whoever_comes_back_in_another_start_has_nothing() {
    let mut cluster = Cluster::begin();
    let both = cluster.set();
    // Between two looks: every node is up in both maps.
    for node in &both {
        cluster.lapse(*node);
        cluster.register(node.0);
    }
    let mut seen = cluster.look();
    seen.lapsed.sort();
    let mut names: Vec<String> = both.iter().map(|node| Cluster::name(*node)).collect();
    names.sort();
    assert_eq!(seen, Seen { lapsed: names, emptied: vec![SLOT] });
    assert_eq!(cluster.look(), Seen::default(), "it is told once");
    cluster.fill();
    cluster.look();
    let next = cluster.holders.claim(SLOT).expect("the next promise goes by who has it now");
    assert!(cluster.holders.stands(next));
}

#[test]
fn who_has_given_a_slot_away_takes_no_block_with_it() {
    let mut cluster = Cluster::begin();
    let claim = cluster.holders.claim(SLOT).expect("both have it");
    let device = |node| DeviceId::new(node, 0);
    let placing = |set: Vec<DeviceId>, devices: Vec<DeviceId>| {
        let streams = !devices.is_empty();
        vec![Placing { slot: SLOT, set, filling: Filling { devices, streams } }]
    };
    let (stays, goes, comes) = (cluster.set()[0], cluster.set()[1], cluster.other());
    let all = [stays, goes, comes].map(device).to_vec();
    cluster.place(placing(all, vec![device(comes)]));
    cluster.place(placing(vec![device(stays), device(comes)], Vec::new()));
    assert_eq!(cluster.look(), Seen::default());
    cluster.lapse(goes);
    assert_eq!(cluster.look(), lapsed(&[goes]), "it had given it away");
    cluster.lapse(stays);
    assert_eq!(cluster.look(), lapsed(&[stays]), "the third has it");
    assert!(cluster.holders.stands(claim));
    cluster.lapse(comes);
    assert_eq!(cluster.look().emptied, [SLOT]);
}

#[test]
fn one_that_is_given_anew_what_it_has_has_it_still() {
    let mut cluster = Cluster::begin();
    let (first, second) = (cluster.set()[0], cluster.set()[1]);
    let set = vec![DeviceId::new(first, 0), DeviceId::new(second, 0)];
    let filling = Filling { devices: vec![DeviceId::new(second, 0)], streams: true };
    cluster.place(vec![Placing { slot: SLOT, set, filling }]);
    assert_eq!(cluster.look(), Seen::default());
    cluster.lapse(first);
    assert_eq!(cluster.look(), lapsed(&[first]), "one of two is lost, and two acknowledged");
}

#[test]
fn a_fault_that_ended_nothing_leaves_a_node_what_it_has() {
    let mut cluster = Cluster::begin();
    let (first, second) = (cluster.set()[0], cluster.set()[1]);
    cluster.hit(second);
    cluster.look();
    cluster.holders.spares(second);
    cluster.look();
    assert!(cluster.holders.claim(SLOT).is_some());
    cluster.lapse(first);
    assert_eq!(cluster.look(), lapsed(&[first]));
}

#[test]
fn an_older_map_says_nothing() {
    let mut cluster = Cluster::begin();
    let before = cluster.map();
    let first = cluster.set()[0];
    cluster.lapse(first);
    cluster.look();
    cluster.register(first.0);
    assert_eq!(cluster.holders.sees(&before), Seen::default());
    assert_eq!(cluster.look(), Seen::default());
}

/// A cluster whose blocks are known: who really has the one that is promised.
struct Truth {
    cluster: Cluster,
    has: BTreeSet<Start>,
    /// Nodes that a fault has ended and that the map takes to be up.
    gone: BTreeSet<MemberId>,
    claim: Option<Claim>,
    ended: usize,
    stood: usize,
}

impl Truth {
    fn start(&self, node: MemberId) -> Start {
        (node, self.cluster.map().members[&node].generation)
    }

    fn is_up(&self, node: MemberId) -> bool {
        self.cluster.map().members[&node].state == MemberState::Up
    }

    /// Does something that may happen.
    fn happens(&mut self, random: &mut Random) {
        let node = MemberId(1 + random.below(4) as u32);
        match random.below(10) {
            0 if self.is_up(node) => {
                self.has.remove(&self.start(node));
                self.gone.remove(&node);
                self.cluster.lapse(node);
            }
            // Killed, and nobody else has heard of it.
            1 if self.is_up(node) && self.gone.insert(node) => {
                self.has.remove(&self.start(node));
                self.cluster.hit(node);
            }
            2..=5 if !self.is_up(node) || self.gone.contains(&node) => {
                self.gone.remove(&node);
                self.cluster.register(node.0);
            }
            6 | 7 => self.fills(),
            8 | 9 => self.promises(),
            _ => {}
        }
    }

    /// The primary gives what it has to whoever lacks it.
    fn fills(&mut self) {
        let set = self.cluster.set();
        let Some(primary) = set.first().filter(|primary| !self.gone.contains(primary)) else { return };
        if set.iter().any(|node| self.gone.contains(node)) {
            return;
        }
        let map = self.cluster.map();
        if self.has.contains(&self.start(*primary)) {
            let lacks = |node: &&MemberId| map.is_filling(SLOT, DeviceId::new(**node, 0));
            let given: Vec<Start> = set.iter().filter(lacks).map(|node| self.start(*node)).collect();
            self.has.extend(given);
        }
        self.cluster.fill();
    }

    /// Somebody stores the block until all replicas have acknowledged it.
    fn promises(&mut self) {
        let set = self.cluster.set();
        if self.claim.is_some() || set.len() < 2 || set.iter().any(|node| self.gone.contains(node)) {
            return;
        }
        let claim = self.cluster.holders.claim(SLOT);
        if claim.is_some() {
            self.has = set.iter().map(|node| self.start(*node)).collect();
            self.claim = claim;
        }
    }

    /// Looks at the map, as a run does now and then.
    fn looks(&mut self, misses_nothing: bool, seed: u64) {
        self.cluster.look();
        let Some(claim) = self.claim else { return };
        if self.cluster.holders.stands(claim) {
            self.stood += 1;
            assert!(
                !self.has.is_empty(),
                "seed {seed}: a loss that would be told, and nobody was to keep it"
            );
        } else {
            self.ended += 1;
            self.claim = None;
            assert!(
                !misses_nothing || self.has.is_empty(),
                "seed {seed}: excused, and {:?} has it",
                self.has
            );
        }
    }
}

#[test]
fn a_loss_is_told_where_somebody_stayed_and_only_there() {
    for misses_nothing in [true, false] {
        let (mut ended, mut stood) = (0, 0);
        for seed in 0..12 {
            let mut random = Random::new(seed);
            let cluster = Cluster::begin();
            let mut truth = Truth {
                cluster,
                has: BTreeSet::new(),
                gone: BTreeSet::new(),
                claim: None,
                ended: 0,
                stood: 0,
            };
            for _ in 0..120 {
                truth.happens(&mut random);
                if misses_nothing || random.below(3) == 0 {
                    truth.looks(misses_nothing, seed);
                }
            }
            ended += truth.ended;
            stood += truth.stood;
        }
        assert!(ended > 10 && stood > 100, "{ended} were ended, {stood} times one stood");
    }
}
