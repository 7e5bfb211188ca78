//! The world: time, network, crashes, clients, and what must hold after every event.

use crate::coordinator::{Coordinator, Disk, Out, PEERS, TICK_MS};
use crate::node::{Node, labels};
use crate::random::Random;
use kvhive_cache::{MemberEffect, MemberEvent};
use kvhive_protocol::control::{Command, CommandReply, ControlReply, Heartbeat, Proposal, Registration};
use kvhive_protocol::map::DeviceDescription;
use kvhive_protocol::{BlockKey, ClusterMap, Epoch, Era, MemberId, Moment, Reason, RequestId, WireError};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

mod checks;
mod outcome;
mod users;

pub use outcome::Outcome;

/// Nodes of the simulated cluster.
const NODES: usize = 3;
/// Keys that clients use: more than the shards hold.
const KEYS: u64 = 80;
/// Simulated milliseconds of trouble, and of quiet after it.
const TROUBLE_MS: u64 = 12_000;
/// Enough for every slot to be copied to a node that has come back, and for what was wanted meanwhile to be taken back.
const QUIET_MS: u64 = 16_000;
/// A request without an answer for this long has failed.
const ASK_LIMIT_MS: u64 = 700;

/// A process of the world: coordinators first.
type Host = usize;

enum Event {
    Raft {
        from: Host,
        to: Host,
        bytes: Vec<u8>,
    },
    CoordinatorTick(Host),
    Sync(Host),
    NodeTick(Host),
    Ask {
        to: Host,
        ask: u64,
        what: What,
    },
    Answer {
        ask: u64,
        reply: ControlReply,
    },
    AskLimit {
        ask: u64,
    },
    Store {
        to: Host,
        key: BlockKey,
        era: Era,
    },
    /// `source` awaits that this arrives, if it is given.
    Copy {
        to: Host,
        key: BlockKey,
        era: Era,
        source: Option<(Host, u64)>,
    },
    Give {
        from: Host,
        start: u64,
        to: Host,
        round: u64,
        blocks: Vec<(BlockKey, Era)>,
    },
    Given {
        to: Host,
        start: u64,
        round: u64,
    },
    Fetch {
        to: Host,
        key: BlockKey,
        oldest: Era,
    },
    Client,
    Trouble,
}

#[derive(Clone)]
enum What {
    Submit(Proposal),
    Beat(Heartbeat),
    Map(Epoch),
}

/// Who asked.
enum Asker {
    Register { node: Host, start: u64 },
    Beat { node: Host, start: u64, sent: Moment },
    Clear,
    Map,
}

struct Machine<T> {
    running: Option<T>,
    starts: u64,
}

/// A simulated cluster.
pub struct World {
    seed: u64,
    random: Random,
    now: u64,
    next: u64,
    heap: BTreeMap<(u64, u64), Event>,
    coordinators: Vec<(Machine<Coordinator>, Disk)>,
    nodes: Vec<Machine<Node>>,
    /// Whom each node asks next.
    targets: Vec<Host>,
    asks: BTreeMap<u64, Asker>,
    cut: BTreeSet<(Host, Host)>,
    /// No coordinator is started before.
    outage_until: u64,
    /// The clear that was asked for last.
    last_clear: Option<Proposal>,
    /// A client's map, as old as it happens to be.
    map: Option<Arc<ClusterMap>>,
    /// The newest era whose clear was acknowledged.
    cleared: Era,
    leaders: BTreeMap<u64, Host>,
    hashes: BTreeMap<u64, u64>,
    epochs: BTreeMap<Host, Epoch>,
    /// The newest epoch that any coordinator has applied, and since when.
    newest: (Epoch, u64),
    /// The newest map that any coordinator has applied.
    placed: Option<Arc<ClusterMap>>,
    outcome: Outcome,
}

fn key(number: u64) -> BlockKey {
    let mut bytes = [0; 32];
    let mut random = Random(number + 1);
    for piece in bytes.chunks_exact_mut(8) {
        piece.copy_from_slice(&random.word().to_le_bytes());
    }
    BlockKey::from_bytes(bytes)
}

/// The bytes of a block: they say whose they are and of which era.
fn content(key: &BlockKey, era: Era) -> u64 {
    let word = u64::from_le_bytes(key.as_bytes()[..8].try_into().expect("eight bytes"));
    (word & !0xFFFF) | (era.0 & 0xFFFF)
}

impl World {
    /// Makes the world of this seed and lets it run: trouble first, then quiet.
    ///
    /// # Errors
    /// What did not hold, and when.
    pub fn run(seed: u64) -> Result<Outcome, String> {
        let outcome = Outcome { trace: seed, ..Outcome::default() };
        let mut world = World {
            seed,
            random: Random(seed),
            now: 1000,
            next: 0,
            heap: BTreeMap::new(),
            coordinators: (0..PEERS)
                .map(|_| (Machine { running: None, starts: 0 }, Disk::default()))
                .collect(),
            nodes: (0..NODES).map(|_| Machine { running: None, starts: 0 }).collect(),
            targets: vec![0; NODES],
            asks: BTreeMap::new(),
            cut: BTreeSet::new(),
            outage_until: 0,
            last_clear: None,
            map: None,
            cleared: Era(0),
            leaders: BTreeMap::new(),
            hashes: BTreeMap::new(),
            epochs: BTreeMap::new(),
            newest: (Epoch(0), 0),
            placed: None,
            outcome,
        };
        world.start_all();
        for host in 0..PEERS as usize {
            world.at(host as u64 * 3, Event::CoordinatorTick(host));
        }
        for node in 0..NODES {
            world.at(node as u64 * 5, Event::NodeTick(node));
        }
        world.at(500, Event::Client);
        world.at(2000, Event::Trouble);
        world.until(1000 + TROUBLE_MS)?;
        world.cut.clear();
        world.outage_until = 0;
        world.start_all();
        world.heap.retain(|_, event| !matches!(event, Event::Trouble));
        world.until(1000 + TROUBLE_MS + QUIET_MS)?;
        world.check_liveness()?;
        world.outcome.leaders = world.leaders.len();
        Ok(world.outcome)
    }

    fn moment(&self) -> Moment {
        Moment::from_millis(self.now)
    }

    fn at(&mut self, delay: u64, event: Event) {
        self.next += 1;
        self.heap.insert((self.now + delay, self.next), event);
    }

    /// Sends something over the network: late, lost, twice, or not at all over a cut link.
    fn send(&mut self, from: Host, to: Host, event: impl Fn() -> Event) {
        let trouble = self.now < 1000 + TROUBLE_MS;
        if self.cut.contains(&(from, to)) || (trouble && self.random.one_in(50)) {
            return;
        }
        let spread = if trouble && self.random.one_in(20) { 150 } else { 4 };
        let delay = 1 + self.random.below(spread);
        self.at(delay, event());
        if trouble && self.random.one_in(60) {
            let delay = 1 + self.random.below(200);
            self.at(delay, event());
        }
    }

    fn start_all(&mut self) {
        let is_outage = self.now < self.outage_until;
        for at in (0..PEERS as usize).filter(|_| !is_outage) {
            let (machine, disk) = &mut self.coordinators[at];
            if machine.running.is_none() {
                machine.starts += 1;
                machine.running = Some(Coordinator::start(at as u64 + 1, disk));
                self.epochs.remove(&at);
            }
        }
        for node in &mut self.nodes {
            if node.running.is_none() {
                node.starts += 1;
                node.running = Some(Node::start());
            }
        }
    }

    fn until(&mut self, end: u64) -> Result<(), String> {
        while let Some(entry) = self.heap.first_entry() {
            if entry.key().0 > end {
                break;
            }
            let ((time, _), event) = entry.remove_entry();
            self.now = time;
            self.outcome.events += 1;
            self.outcome.trace =
                self.outcome.trace.rotate_left(7).wrapping_mul(0x100_0000_01b3) ^ (time << 4) ^ event.tag();
            let touched = self.happen(event);
            self.check(touched)
                .map_err(|broken| format!("seed {} at {} ms: {broken}", self.seed, self.now))?;
        }
        self.now = end;
        Ok(())
    }

    /// Lets an event happen; returns the node it concerned, if any.
    fn happen(&mut self, event: Event) -> Option<Host> {
        let now = self.moment();
        let mut out = Vec::new();
        match event {
            Event::CoordinatorTick(host) => {
                let (machine, disk) = &mut self.coordinators[host];
                if let Some(coordinator) = &mut machine.running {
                    coordinator.tick(now, disk, &mut out);
                }
                self.give(host, out);
                self.at(TICK_MS, Event::CoordinatorTick(host));
            }
            Event::Raft { from, to, bytes } => {
                let (machine, disk) = &mut self.coordinators[to];
                if let Some(coordinator) = &mut machine.running {
                    coordinator.receive(now, from as u64 + 1, bytes, disk, &mut out);
                }
                self.give(to, out);
            }
            Event::Sync(host) => {
                let (machine, disk) = &mut self.coordinators[host];
                if let Some(coordinator) = &mut machine.running {
                    coordinator.synced(now, disk, &mut out);
                }
                self.give(host, out);
            }
            Event::Ask { to, ask, what } => {
                let (machine, disk) = &mut self.coordinators[to];
                if let Some(coordinator) = &mut machine.running {
                    match what {
                        What::Submit(proposal) => {
                            coordinator.propose(now, proposal, Reason::default(), Some(ask), disk, &mut out)
                        }
                        What::Beat(beat) => coordinator.heartbeat(now, beat, ask, disk, &mut out),
                        What::Map(have) => coordinator.fetch_map(now, have, ask, disk, &mut out),
                    }
                }
                self.give(to, out);
            }
            Event::Answer { ask, reply } => return self.answered(ask, Some(reply)),
            Event::AskLimit { ask } => return self.answered(ask, None),
            Event::NodeTick(node) => {
                if let Some(running) = &mut self.nodes[node].running {
                    running.tend(now);
                    let gives = running.give(now);
                    let asks = running.member_event(now, MemberEvent::Tick);
                    self.perform(node, asks);
                    self.give_blocks(node, gives);
                }
                self.at(10, Event::NodeTick(node));
                return Some(node);
            }
            Event::Store { to, key, era } => return self.store(to, key, era),
            Event::Copy { to, key, era, source } => return self.copy(to, key, era, source),
            Event::Fetch { to, key, oldest } => return self.fetch(to, key, oldest),
            Event::Give { from, start, to, round, blocks } => {
                return self.be_given(from, start, to, round, blocks);
            }
            Event::Given { to, start, round } => {
                let node = &mut self.nodes[to];
                if node.starts == start
                    && let Some(running) = &mut node.running
                {
                    running.given(round);
                }
                return Some(to);
            }
            Event::Client => self.client(),
            Event::Trouble => self.trouble(),
        }
        None
    }

    fn give(&mut self, host: Host, out: Vec<Out>) {
        for one in out {
            match one {
                Out::Raft(to, bytes) => {
                    let to = to.0 as usize - 1;
                    self.send(host, to, || Event::Raft { from: host, to, bytes: bytes.clone() });
                }
                Out::Reply(ask, reply) => {
                    let asker = self.asker_host(ask);
                    self.send(host, asker, || Event::Answer { ask, reply: reply.clone() });
                }
                Out::Sync => {
                    let delay = 1 + self.random.below(8);
                    self.at(delay, Event::Sync(host));
                }
                Out::Leads(term) => {
                    let before = self.leaders.insert(term, host);
                    assert!(
                        before.is_none_or(|leader| leader == host),
                        "seed {}: two leaders in term {term}",
                        self.seed
                    );
                }
            }
        }
    }

    fn asker_host(&self, ask: u64) -> Host {
        match self.asks.get(&ask) {
            Some(Asker::Register { node, .. } | Asker::Beat { node, .. }) => PEERS as usize + node,
            _ => PEERS as usize + NODES,
        }
    }

    fn ask(&mut self, from: Host, to: Host, asker: Asker, what: &What) {
        self.next += 1;
        let ask = self.next;
        self.asks.insert(ask, asker);
        self.send(from, to, || Event::Ask { to, ask, what: what.clone() });
        self.at(ASK_LIMIT_MS, Event::AskLimit { ask });
    }

    fn perform(&mut self, node: Host, effects: Vec<MemberEffect>) {
        let (start, host, to) = (self.nodes[node].starts, PEERS as usize + node, self.targets[node]);
        for effect in effects {
            match effect {
                MemberEffect::Register => {
                    self.next += 1;
                    let registration = Registration {
                        request: RequestId { client: 1000 + node as u128, sequence: self.next },
                        name: format!("node-{node}"),
                        data_address: format!("10.0.0.{node}:7810"),
                        metrics_address: format!("10.0.0.{node}:7811"),
                        labels: labels(),
                        devices: vec![DeviceDescription {
                            kind: "host".into(),
                            device_bytes: 16,
                            host_bytes: 8,
                            disk_bytes: 8,
                        }],
                        codec: Default::default(),
                        speaks: kvhive_protocol::Level::NEWEST,
                    };
                    let request = registration.request;
                    let what = What::Submit(Proposal { request, command: Command::Register(registration) });
                    self.ask(host, to, Asker::Register { node, start }, &what);
                }
                MemberEffect::SendHeartbeat { member, generation, epoch } => {
                    let is_quiet = self.now > 1000 + TROUBLE_MS;
                    let devices = vec![self.nodes[node].running.as_ref().expect("it asks").load(is_quiet)];
                    let beat = Heartbeat { member, generation, epoch, devices };
                    let sent = self.moment();
                    self.ask(host, to, Asker::Beat { node, start, sent }, &What::Beat(beat));
                }
                MemberEffect::Adopt { .. } | MemberEffect::ServeUntil { .. } => {}
            }
        }
    }

    fn answered(&mut self, ask: u64, reply: Option<ControlReply>) -> Option<Host> {
        let (node, start, event) = match (self.asks.remove(&ask)?, reply) {
            (Asker::Register { node, start }, Some(ControlReply::Registered { member, generation, map })) => {
                (node, start, MemberEvent::Registered { member, generation, map: Arc::new(*map) })
            }
            (Asker::Beat { node, start, sent }, Some(ControlReply::Beat { map })) => {
                (node, start, MemberEvent::Beat { sent, map: map.map(|map| Arc::new(*map)) })
            }
            (Asker::Beat { node, start, .. }, Some(ControlReply::Fenced)) => {
                (node, start, MemberEvent::Fenced)
            }
            (Asker::Register { node, start } | Asker::Beat { node, start, .. }, _) => {
                (node, start, MemberEvent::Failed)
            }
            (Asker::Clear, Some(ControlReply::Done(CommandReply::TenantCleared { era, .. }))) => {
                self.cleared = self.cleared.max(era);
                self.outcome.clears += 1;
                return None;
            }
            (Asker::Map, Some(ControlReply::Map(Some(map)))) => {
                if self.map.as_ref().is_none_or(|known| known.epoch < map.epoch) {
                    self.map = Some(Arc::new(*map));
                }
                return None;
            }
            (Asker::Clear, Some(ControlReply::Failed(WireError::StillServed { .. }))) => {
                self.outcome.clears_waiting += 1;
                return None;
            }
            (Asker::Clear | Asker::Map, _) => return None,
        };
        if start != self.nodes[node].starts {
            return None;
        }
        if event == MemberEvent::Failed {
            self.targets[node] = (self.targets[node] + 1) % PEERS as usize;
        }
        let now = self.moment();
        let asks = self.nodes[node].running.as_mut()?.member_event(now, event);
        self.perform(node, asks);
        Some(node)
    }

    fn node_of(&self, member: MemberId) -> Option<Host> {
        let map = self.map.as_ref()?;
        map.members.get(&member)?.name.strip_prefix("node-")?.parse().ok()
    }
}

impl Event {
    fn tag(&self) -> u64 {
        match self {
            Event::Raft { from, to, bytes } => {
                1 + (*from as u64) * 16 + (*to as u64) * 256 + ((bytes.len() as u64) << 12)
            }
            Event::CoordinatorTick(host) => 2 + (*host as u64) * 16,
            Event::Sync(host) => 3 + (*host as u64) * 16,
            Event::NodeTick(node) => 4 + (*node as u64) * 16,
            Event::Ask { to, ask, .. } => 5 + (*to as u64) * 16 + ask * 256,
            Event::Answer { ask, .. } => 6 + ask * 256,
            Event::AskLimit { ask } => 7 + ask * 256,
            Event::Store { to, .. } => 8 + (*to as u64) * 16,
            Event::Fetch { to, .. } => 9 + (*to as u64) * 16,
            Event::Give { to, blocks, .. } => 12 + (*to as u64) * 16 + blocks.len() as u64 * 256,
            Event::Given { to, round, .. } => 13 + (*to as u64) * 16 + round * 256,
            Event::Copy { to, .. } => 14 + (*to as u64) * 16,
            Event::Client => 10,
            Event::Trouble => 11,
        }
    }
}
