//! The world: time, network, processes, and what happens in which order.

use crate::Random;
use crate::breach::{Breach, Broken, Holds, breach};
use crate::coordinator::{Coordinator, Disk, Out, PEERS, TICK_MS};
use crate::node::Node;
use checks::Touched;
use event::{Asker, AtNode, Event, What};
use kvhive_cache::MemberEvent;
use kvhive_protocol::control::Proposal;
use kvhive_protocol::{ClusterMap, Moment, Reason};
use oracle::Oracle;
use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

mod asks;
mod checks;
mod event;
mod oracle;
mod outcome;
mod trouble;
mod users;

pub use outcome::Outcome;

/// Nodes of the simulated cluster.
const NODES: usize = 3;
/// Simulated milliseconds of trouble, and of quiet after it.
const TROUBLE_MS: u64 = 12_000;
/// Enough for every slot to be copied to a node that has come back, and for what was wanted meanwhile to be taken back.
const QUIET_MS: u64 = 16_000;
/// Of the quiet, how long blocks are read much.
const BUSY_MS: u64 = 4000;
/// A request without an answer for this long has failed.
const ASK_LIMIT_MS: u64 = 700;
/// A replica that has not answered for this long is not waited for.
const COPY_LIMIT_MS: u64 = 250;
/// Clocks go this much faster or slower at most, in millionths: two of them differ by less than leases allow for.
const DRIFT_PPM: u64 = 4500;

/// A process of the world: coordinators first, nodes after them, and a client.
type Host = usize;

const CLIENT: Host = PEERS as usize + NODES;

struct Machine<T> {
    running: Option<T>,
    starts: u64,
}

/// What is changed of a seed to see what its failure needs.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Muted {
    /// Faults that do not happen, by their numbers.
    pub faults: BTreeSet<u64>,
    /// Nothing is lost, late or repeated, and no copy fails, but by a fault.
    pub weather: bool,
}

/// Returns what a panic has said.
fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked").to_owned()
}

/// A simulated cluster.
pub struct World {
    random: Random,
    muted: Muted,
    now: u64,
    next: u64,
    heap: BTreeMap<(u64, u64), Event>,
    coordinators: Vec<(Machine<Coordinator>, Disk)>,
    nodes: Vec<Machine<Node>>,
    /// How much faster each host's clock goes, in millionths.
    drifts: Vec<i64>,
    /// Whom each node asks next.
    targets: Vec<Host>,
    /// When each node has adopted the maps that it was told of.
    adopted_at: Vec<u64>,
    asks: BTreeMap<u64, Asker>,
    requests: u64,
    cut: BTreeSet<(Host, Host)>,
    /// Hosts that do nothing until then.
    paused: BTreeMap<Host, u64>,
    /// Coordinators whose disks do nothing until then.
    stalled: BTreeMap<Host, u64>,
    /// The coordinator that has lost its disk and is not settled again.
    diskless: Option<Host>,
    /// No coordinator is started before.
    outage_until: u64,
    /// What carries blocks between nodes is late until then.
    slow_until: u64,
    trouble: trouble::Faults,
    /// The clear that was asked for last.
    last_clear: Option<Proposal>,
    /// A client's map, as old as it happens to be.
    map: Option<Arc<ClusterMap>>,
    oracle: Oracle,
    seen: checks::Seen,
    outcome: Outcome,
}

impl World {
    /// Makes the world of this seed and lets it run: trouble first, then quiet.
    ///
    /// # Errors
    /// What did not hold, and when.
    pub fn run(seed: u64) -> Result<Outcome, Broken> {
        World::run_without(seed, &Muted::default())
    }

    /// Does the same without some of what happens.
    ///
    /// # Errors
    /// What did not hold, and when.
    pub fn run_without(seed: u64, muted: &Muted) -> Result<Outcome, Broken> {
        let mut world = World::new(seed, muted.clone());
        // What a machine asserts of itself is a rule as well. Of a world that stopped so, only when and after what is looked at.
        let lived = catch_unwind(AssertUnwindSafe(|| world.live()));
        let lived = lived.unwrap_or_else(|panic| breach("assertion", words(&*panic)));
        let Err(Breach { rule, what }) = lived else { return Ok(world.outcome) };
        Err(Broken { seed, at_ms: world.now, rule, what, faults: world.trouble.told })
    }

    fn new(seed: u64, muted: Muted) -> World {
        let mut random = Random(seed);
        let drift = |_| random.below(2 * DRIFT_PPM) as i64 - DRIFT_PPM as i64;
        let drifts = (0..=CLIENT).map(drift).collect();
        World {
            trouble: trouble::Faults::of(seed),
            random,
            muted,
            now: 1000,
            next: 0,
            heap: BTreeMap::new(),
            coordinators: (0..PEERS)
                .map(|_| (Machine { running: None, starts: 0 }, Disk::default()))
                .collect(),
            nodes: (0..NODES).map(|_| Machine { running: None, starts: 0 }).collect(),
            drifts,
            targets: vec![0; NODES],
            adopted_at: vec![0; NODES],
            asks: BTreeMap::new(),
            requests: 0,
            cut: BTreeSet::new(),
            paused: BTreeMap::new(),
            stalled: BTreeMap::new(),
            diskless: None,
            outage_until: 0,
            slow_until: 0,
            last_clear: None,
            map: None,
            oracle: Oracle::default(),
            seen: checks::Seen::default(),
            outcome: Outcome { trace: seed, ..Outcome::default() },
        }
    }

    fn live(&mut self) -> Holds {
        self.start_all();
        for host in 0..PEERS as usize {
            self.at(host as u64 * 3, Event::CoordinatorTick(host));
        }
        self.at(500, Event::Client);
        self.at(2000, Event::Trouble);
        self.until(1000 + TROUBLE_MS)?;
        self.cut.clear();
        self.stalled.clear();
        (self.outage_until, self.slow_until) = (0, 0);
        self.start_all();
        self.heap.retain(|_, event| !matches!(event, Event::Trouble));
        self.until(1000 + TROUBLE_MS + QUIET_MS)?;
        self.check_liveness()?;
        self.outcome.leaders = self.seen.leaders.len();
        Ok(())
    }

    /// Returns the time by a host's own clock.
    fn clock(&self, host: Host) -> Moment {
        let now = self.now as i64;
        Moment::from_millis((now + now * self.drifts[host] / 1_000_000) as u64)
    }

    fn is_quiet(&self) -> bool {
        self.now >= 1000 + TROUBLE_MS
    }

    fn at(&mut self, delay: u64, event: Event) {
        self.next += 1;
        self.heap.insert((self.now + delay, self.next), event);
    }

    /// Has something happen at a node later, unless it has started anew by then.
    fn at_node(&mut self, delay: u64, node: usize, what: AtNode) {
        let start = self.nodes[node].starts;
        self.at(delay, Event::Node(node, start, what));
    }

    /// Sends something over the network once: late, or not at all over a cut link.
    fn send_once(&mut self, from: Host, to: Host, event: Event) {
        let storm = !self.is_quiet();
        let is_lost = self.random.one_in(50) && storm;
        let spread = if self.random.one_in(20) && storm && !self.muted.weather { 150 } else { 4 };
        let delay = 1 + self.random.below(spread);
        if self.cut.contains(&(from, to)) || (is_lost && !self.muted.weather) {
            return;
        }
        self.at(delay, event);
    }

    /// Sends something that the network may bring twice.
    fn send(&mut self, from: Host, to: Host, event: impl Fn() -> Event) {
        self.send_once(from, to, event());
        let again = self.random.one_in(60) && !self.is_quiet() && !self.muted.weather;
        let delay = 1 + self.random.below(200);
        if again && !self.cut.contains(&(from, to)) {
            self.at(delay, event());
        }
    }

    /// Sends blocks from node to node: late, while such links are slow.
    fn send_blocks(&mut self, from: Host, to: Host, event: impl Fn() -> Event) {
        if self.now >= self.slow_until {
            return self.send(from, to, event);
        }
        let delay = 1 + self.random.below(900);
        if !self.cut.contains(&(from, to)) {
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
                self.seen.forget(at);
            }
        }
        for node in 0..NODES {
            if self.nodes[node].running.is_none() {
                self.nodes[node].starts += 1;
                self.nodes[node].running = Some(Node::start());
                self.adopted_at[node] = 0;
                self.at_node(5 * node as u64, node, AtNode::Tick);
            }
        }
    }

    fn until(&mut self, end: u64) -> Holds {
        while let Some(entry) = self.heap.first_entry() {
            if entry.key().0 > end {
                break;
            }
            let ((time, number), event) = entry.remove_entry();
            self.now = time;
            let paused = self.host_of(&event).and_then(|host| self.paused.get(&host).copied());
            if let Some(until) = paused.filter(|until| *until > time) {
                // In the order in which it came.
                self.heap.insert((until, number), event);
                continue;
            }
            self.outcome.events += 1;
            self.outcome.trace =
                self.outcome.trace.rotate_left(7).wrapping_mul(0x100_0000_01b3) ^ (time << 4) ^ event.tag();
            let touched = self.happen(event)?;
            self.check(touched)?;
        }
        self.now = end;
        self.check_all()
    }

    /// Returns the host at which an event happens.
    fn host_of(&self, event: &Event) -> Option<Host> {
        match event {
            Event::Raft { to, .. } | Event::Ask { to, .. } => Some(*to),
            Event::CoordinatorTick(host) | Event::Sync(host) => Some(*host),
            Event::Answer { ask, .. } | Event::AskLimit { ask } => Some(self.asker_host(*ask)),
            Event::Node(node, ..) => Some(PEERS as usize + node),
            Event::Client | Event::Trouble => None,
        }
    }

    /// Lets an event happen; returns whom it may have changed.
    fn happen(&mut self, event: Event) -> Result<Touched, Breach> {
        let mut out = Vec::new();
        match event {
            Event::CoordinatorTick(host) => {
                let now = self.clock(host);
                let (machine, disk) = &mut self.coordinators[host];
                if let Some(coordinator) = &mut machine.running {
                    coordinator.tick(now, disk, &mut out);
                    coordinator.check_waiting(now)?;
                }
                self.give(host, out)?;
                self.at(TICK_MS, Event::CoordinatorTick(host));
                Ok(Touched::Coordinator(host))
            }
            Event::Raft { from, to, bytes } => {
                let now = self.clock(to);
                let (machine, disk) = &mut self.coordinators[to];
                if let Some(coordinator) = &mut machine.running {
                    coordinator.receive(now, from as u64 + 1, bytes, disk, &mut out);
                }
                self.give(to, out)?;
                Ok(Touched::Coordinator(to))
            }
            Event::Sync(host) => {
                if let Some(until) = self.stalled.get(&host).filter(|until| **until > self.now) {
                    let left = until - self.now;
                    self.at(left, Event::Sync(host));
                    return Ok(Touched::Nobody);
                }
                let now = self.clock(host);
                let (machine, disk) = &mut self.coordinators[host];
                if let Some(coordinator) = &mut machine.running {
                    coordinator.synced(now, disk, &mut out);
                }
                self.give(host, out)?;
                Ok(Touched::Coordinator(host))
            }
            Event::Ask { to, ask, what } => {
                let now = self.clock(to);
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
                self.give(to, out)?;
                Ok(Touched::Coordinator(to))
            }
            Event::Answer { ask, reply } => self.answered(ask, Some(reply)),
            Event::AskLimit { ask } => self.answered(ask, None),
            Event::Node(node, start, what) => {
                if start != self.nodes[node].starts {
                    return Ok(Touched::Nobody);
                }
                self.at_a_node(node, what)?;
                Ok(Touched::Node(node))
            }
            Event::Client => self.client().map(|()| Touched::Nobody),
            Event::Trouble => self.trouble().map(|()| Touched::Anybody),
        }
    }

    fn give(&mut self, host: Host, out: Vec<Out>) -> Holds {
        for one in out {
            match one {
                Out::Raft(to, bytes) => {
                    let to = to.0 as usize - 1;
                    self.send(host, to, || Event::Raft { from: host, to, bytes: bytes.clone() });
                }
                Out::Reply(ask, reply) => {
                    let asker = self.asker_host(ask);
                    self.send_once(host, asker, Event::Answer { ask, reply });
                }
                Out::Sync => {
                    let delay = 1 + self.random.below(8);
                    self.at(delay, Event::Sync(host));
                }
                Out::Leads(term) => {
                    let before = self.seen.leaders.insert(term, host);
                    if before.is_some_and(|leader| leader != host) {
                        return breach("M8", format!("two leaders in term {term}"));
                    }
                }
                Out::Applied(applied) => self.oracle.applied(&applied)?,
                Out::Broken(broken) => return Err(broken),
            }
        }
        Ok(())
    }

    fn at_a_node(&mut self, node: usize, what: AtNode) -> Holds {
        let (now, host) = (self.clock(PEERS as usize + node), PEERS as usize + node);
        let Some(running) = &mut self.nodes[node].running else { return Ok(()) };
        match what {
            AtNode::Tick => {
                running.tend(now)?;
                let gift = running.give(now)?;
                let asks = running.member_event(now, MemberEvent::Tick);
                self.perform(node, asks);
                self.give_blocks(node, gift);
                self.at_node(15, node, AtNode::Tick);
            }
            AtNode::Adopt(map) => {
                let asks = running.adopt(now, map);
                self.perform(node, asks);
            }
            AtNode::Store { block, word } => self.store(node, block, word)?,
            AtNode::Copy { block, word, source: (source, start, store) } => {
                let said = running.be_given(now, &[(block, word)])?.and_then(|said| said.first().copied());
                if let Some(device) = running.us() {
                    let copied = AtNode::Copied { store, device, said };
                    let to = PEERS as usize + source;
                    self.send(host, to, || Event::Node(source, start, copied.clone()));
                }
            }
            AtNode::Copied { store, device, said } => running.answered(now, store, device, said),
            AtNode::CopyLimit { store } => running.give_up(now, store),
            AtNode::Moved { copy, done } => running.copied(copy, done)?,
            AtNode::Give { source: (source, start, round), blocks } => {
                let said = running.be_given(now, &blocks)?;
                if said.is_some() && running.is_leased(now) {
                    self.outcome.given += blocks.len() as u64;
                    let to = PEERS as usize + source;
                    self.send(host, to, || Event::Node(source, start, AtNode::Given { round }));
                }
            }
            AtNode::Given { round } => running.given(round),
            AtNode::Fetch { tenant, numbers, oldest } => {
                if let Some(reading) = running.fetch(now, tenant, &numbers)? {
                    let delay = if self.random.one_in(4) { self.random.below(300) } else { 1 };
                    self.at_node(delay, node, AtNode::Read { reading, oldest });
                }
            }
            AtNode::Read { reading, oldest } => {
                let is_alone = !running.is_leased(now);
                for (number, word) in running.read(now, &reading)? {
                    self.outcome.hits += 1;
                    self.outcome.hits_alone += u64::from(is_alone);
                    self.oracle.hit(reading.tenant, number, oldest, word)?;
                }
            }
        }
        self.end_copies_later(node);
        Ok(())
    }

    /// Lets copies between tiers end later, some of them badly.
    fn end_copies_later(&mut self, node: usize) {
        let Some(running) = &mut self.nodes[node].running else { return };
        for copy in running.copies() {
            let fails = self.random.one_in(12) && !self.is_quiet() && !self.muted.weather;
            let delay = 1 + self.random.below(30);
            self.outcome.failed_copies += u64::from(fails);
            self.at_node(delay, node, AtNode::Moved { copy, done: !fails });
        }
    }
}
