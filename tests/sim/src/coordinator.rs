//! A simulated coordinator: consensus, registry and overseer, as its actor runs them, over a disk that loses what was not
//! synced.

use crate::Random;
use crate::breach::{Breach, Holds, breach};
use kvhive_consensus::{
    Consensus, ConsensusConfig, Effect, Event, LogBatch, PeerId, RefuseReason, Restored, Role, Standing,
    Ticket, WriteId,
};
use kvhive_control::{
    BalanceTuning, BeatVerdict, ClearTicket, Effect as Oversight, Overseer, Registry, Tuning,
};
use kvhive_protocol::control::{Command, CommandReply, ControlReply, Heartbeat, Proposal};
use kvhive_protocol::data::Ack;
use kvhive_protocol::map::Settings;
use kvhive_protocol::{
    ClusterId, ClusterMap, Epoch, LogEntry, Moment, Origin, Reason, RequestId, WireError, codec,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Coordinators of a simulated cluster.
pub(crate) const PEERS: u64 = 3;
/// Nobody waits for longer than this for an answer: elections and pauses are far shorter.
const WAIT_LIMIT: Duration = Duration::from_secs(8);
/// Milliseconds of a raft tick.
pub(crate) const TICK_MS: u64 = 20;

/// The simulated cluster's settings.
pub(crate) fn settings() -> Settings {
    Settings {
        replicas: 2,
        segment_blocks: 4,
        ack: Ack::All,
        lease_ms: 1000,
        heartbeat_ms: 150,
        serving_lease_ms: 3000,
    }
}

/// What survives a crash.
#[derive(Default)]
pub(crate) struct Disk {
    synced: Restored,
    queued: Vec<(WriteId, LogBatch)>,
    starts: u64,
}

impl Disk {
    /// Power is lost: of what was not synced some of the oldest may be there.
    pub(crate) fn lose_power(&mut self, random: &mut Random) {
        let kept = random.below(self.queued.len() as u64 + 1) as usize;
        self.queued.truncate(kept);
        self.sync();
    }

    /// All that it held is gone.
    pub(crate) fn lose_all(&mut self) {
        *self = Disk { starts: self.starts, ..Disk::default() };
    }

    fn sync(&mut self) -> Option<WriteId> {
        let mut last = None;
        for (write, batch) in self.queued.drain(..) {
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
            last = Some(write);
        }
        last
    }
}

/// Who waits for a ticket.
enum Waiting {
    Proposal { asker: Option<u64>, register: bool },
    Map { asker: u64, have: Epoch },
    Beat { asker: u64, received: Moment, beat: Heartbeat },
}

/// What a coordinator gives the world.
pub(crate) enum Out {
    /// A raft message.
    Raft(PeerId, Vec<u8>),
    /// The answer to a request.
    Reply(u64, ControlReply),
    /// The disk has something to sync.
    Sync,
    /// It leads in this term.
    Leads(u64),
    /// It has applied this.
    Applied(Applied),
    /// Something does not hold.
    Broken(Breach),
}

/// What applying an entry did.
pub(crate) struct Applied {
    /// Where it stands in the log, and of which term it is.
    pub(crate) at: (u64, u64),
    pub(crate) request: RequestId,
    /// The map that it was decided by, if it says so.
    pub(crate) based_on: Option<Epoch>,
    pub(crate) before: Epoch,
    pub(crate) after: Epoch,
}

/// A coordinator that runs.
pub(crate) struct Coordinator {
    id: u64,
    consensus: Consensus,
    pub(crate) registry: Registry,
    overseer: Overseer,
    /// Who waits, and since when.
    waiting: BTreeMap<Ticket, (Moment, Waiting)>,
    clears: BTreeMap<ClearTicket, (u64, CommandReply)>,
    next: u64,
    bootstrapping: bool,
    /// The request that was applied last.
    last: Option<RequestId>,
}

impl Coordinator {
    pub(crate) fn start(id: u64, disk: &mut Disk) -> Coordinator {
        disk.starts += 1;
        let restored = disk.synced.clone();
        let registry = restored.snapshot.as_ref().map_or_else(Registry::new, |snapshot| {
            Registry::restore(snapshot.state().expect("it is whole")).expect("a synced snapshot restores")
        });
        let config = ConsensusConfig {
            id: PeerId(id),
            peers: (1..=PEERS).map(|peer| (PeerId(peer), Vec::new())).collect(),
            election_ticks: 20,
            heartbeat_ticks: 3,
            max_inflight: 64,
            max_proposal_bytes: 1 << 20,
            snapshot_every: 25,
            seed: 77,
            start: disk.starts,
        };
        let consensus = Consensus::new(config, restored).expect("a synced log restores");
        Coordinator {
            id,
            consensus,
            registry,
            overseer: Overseer::new(Tuning {
                repair_after: Duration::from_secs(1),
                avoid_for: Duration::from_secs(1),
                balance: BalanceTuning {
                    continuous: true,
                    beyond_percent: 106,
                    aim_percent: 104,
                    calm_percent: 102,
                    least_rate: 1,
                    settle: Duration::from_millis(300),
                    cool_for: Duration::from_millis(500),
                    at_once: 64,
                },
                ..Tuning::default()
            }),
            waiting: BTreeMap::new(),
            clears: BTreeMap::new(),
            next: 1,
            bootstrapping: false,
            last: None,
        }
    }

    pub(crate) fn map(&self) -> Option<Arc<ClusterMap>> {
        self.registry.map()
    }

    pub(crate) fn invariants(&self) -> Holds {
        self.consensus.invariants().map_err(|what| Breach { rule: "M2", what })
    }

    /// Checks that nobody has waited for longer than an answer can take.
    pub(crate) fn check_waiting(&self, now: Moment) -> Holds {
        match self.waiting.values().map(|(since, _)| now.since(*since)).max() {
            Some(waited) if waited > WAIT_LIMIT => {
                breach("B18", format!("somebody has waited for {waited:?} and was told nothing"))
            }
            _ => Ok(()),
        }
    }

    /// Checks that a snapshot has all that was agreed, and what the last request came to.
    fn check_snapshot(&self, data: &[u8]) -> Holds {
        let Ok(restored) = Registry::restore(data) else { return breach("M10", "a snapshot is not read") };
        let comes_to = |registry: &Registry| self.last.map(|last| registry.outcome(last));
        if restored.map() != self.registry.map() || comes_to(&restored) != comes_to(&self.registry) {
            return breach("M10", "a snapshot is not what was agreed");
        }
        Ok(())
    }

    /// Says whether others may count on its log.
    pub(crate) fn is_settled(&self) -> bool {
        self.consensus.status().standing == Standing::Settled
    }

    pub(crate) fn receive(
        &mut self,
        now: Moment,
        from: u64,
        bytes: Vec<u8>,
        disk: &mut Disk,
        out: &mut Vec<Out>,
    ) {
        self.step(now, Event::Received { from: PeerId(from), bytes }, disk, out);
    }

    pub(crate) fn synced(&mut self, now: Moment, disk: &mut Disk, out: &mut Vec<Out>) {
        if let Some(write) = disk.sync() {
            self.step(now, Event::Persisted { write }, disk, out);
        }
    }

    pub(crate) fn tick(&mut self, now: Moment, disk: &mut Disk, out: &mut Vec<Out>) {
        self.step(now, Event::Tick, disk, out);
        let leads = self.consensus.status().role == Role::Leader;
        match self.registry.map() {
            Some(map) => {
                let mut oversight = Vec::new();
                self.overseer.tick(now, &map, &mut oversight);
                drop(map);
                for effect in oversight {
                    match effect {
                        Oversight::Propose(command, reason) => {
                            self.propose_own(now, command, reason, disk, out)
                        }
                        Oversight::ClearDone(ticket) => {
                            if let Some((asker, done)) = self.clears.remove(&ticket) {
                                out.push(Out::Reply(asker, ControlReply::Done(done)));
                            }
                        }
                        Oversight::ClearWaits(ticket, servers) => {
                            if let Some((asker, _)) = self.clears.remove(&ticket) {
                                let others = servers.len() as u32;
                                let waits = WireError::StillServed { by: Vec::new(), others };
                                out.push(Out::Reply(asker, ControlReply::Failed(waits)));
                            }
                        }
                    }
                }
            }
            None if leads && !self.bootstrapping => {
                self.bootstrapping = true;
                let bootstrap = Command::Bootstrap {
                    cluster: ClusterId(5),
                    name: "sim".into(),
                    settings: settings(),
                    default_secret: [1; 32],
                    scaling: Default::default(),
                    coordinators: Vec::new(),
                    level: kvhive_protocol::Level::NEWEST,
                };
                self.propose_own(now, bootstrap, Reason::default(), disk, out);
            }
            None => {}
        }
    }

    fn propose_own(
        &mut self,
        now: Moment,
        command: Command,
        reason: Reason,
        disk: &mut Disk,
        out: &mut Vec<Out>,
    ) {
        let request =
            RequestId { client: u128::from(self.id) << 64 | u128::from(disk.starts), sequence: self.next };
        self.propose(now, Proposal { request, command }, reason, None, disk, out);
    }

    pub(crate) fn propose(
        &mut self,
        now: Moment,
        proposal: Proposal,
        reason: Reason,
        asker: Option<u64>,
        disk: &mut Disk,
        out: &mut Vec<Out>,
    ) {
        let register = matches!(proposal.command, Command::Register(_));
        if let Some(asker) = asker
            && self.registry.map().is_none()
        {
            return out.push(Out::Reply(asker, ControlReply::Failed(WireError::busy("not started"))));
        }
        let origin = Origin { at_ms: now.as_nanos() / 1_000_000, reason };
        let data = codec::encode(&LogEntry { proposal, origin }).expect("a small proposal");
        let ticket = self.ticket(now, Waiting::Proposal { asker, register });
        self.step(now, Event::Propose { ticket, data }, disk, out);
    }

    pub(crate) fn fetch_map(
        &mut self,
        now: Moment,
        have: Epoch,
        asker: u64,
        disk: &mut Disk,
        out: &mut Vec<Out>,
    ) {
        let ticket = self.ticket(now, Waiting::Map { asker, have });
        self.step(now, Event::Read { ticket }, disk, out);
    }

    pub(crate) fn heartbeat(
        &mut self,
        now: Moment,
        beat: Heartbeat,
        asker: u64,
        disk: &mut Disk,
        out: &mut Vec<Out>,
    ) {
        let ticket = self.ticket(now, Waiting::Beat { asker, received: now, beat });
        self.step(now, Event::Read { ticket }, disk, out);
    }

    fn ticket(&mut self, now: Moment, waiting: Waiting) -> Ticket {
        let ticket = Ticket(self.next);
        self.next += 1;
        self.waiting.insert(ticket, (now, waiting));
        ticket
    }

    fn step(&mut self, now: Moment, event: Event, disk: &mut Disk, out: &mut Vec<Out>) {
        let mut effects = Vec::new();
        self.consensus.step(event, &mut effects);
        for effect in effects {
            self.perform(now, effect, disk, out);
        }
    }

    fn perform(&mut self, now: Moment, effect: Effect, disk: &mut Disk, out: &mut Vec<Out>) {
        match effect {
            Effect::Send { to, bytes } => out.push(Out::Raft(to, bytes)),
            Effect::Persist { write, batch } => {
                disk.queued.push((write, batch));
                out.push(Out::Sync);
            }
            Effect::Apply { index, term, data, ticket } => {
                let entry: LogEntry = codec::decode(&data).expect("what was proposed decodes");
                let clears = entry.proposal.command.ends_blocks_of();
                let (request, before) = (entry.proposal.request, self.registry.epoch());
                let based_on = match &entry.proposal.command {
                    Command::PlaceSlots { based_on, .. } | Command::Balance { based_on, .. } => {
                        Some(*based_on)
                    }
                    _ => None,
                };
                let reply = self.registry.apply(index, entry);
                self.last = Some(request);
                let after = self.registry.epoch();
                out.push(Out::Applied(Applied { at: (index, term), request, based_on, before, after }));
                self.answer_applied(now, ticket, clears, reply, out);
            }
            Effect::Install { data, .. } => {
                self.registry = Registry::restore(&data).expect("a leader's snapshot restores");
            }
            Effect::TakeSnapshot { index } => {
                let data = self.registry.snapshot();
                if let Err(broken) = self.check_snapshot(&data) {
                    out.push(Out::Broken(broken));
                }
                self.step(now, Event::SnapshotTaken { index, data }, disk, out);
            }
            Effect::Readable { ticket } => self.serve(ticket, out),
            Effect::Refused { ticket, reason } => {
                let asker = match self.waiting.remove(&ticket).map(|(_, waiting)| waiting) {
                    Some(Waiting::Proposal { asker, .. }) => asker,
                    Some(Waiting::Map { asker, .. } | Waiting::Beat { asker, .. }) => Some(asker),
                    None => None,
                };
                if let Some(asker) = asker {
                    let error = match reason {
                        RefuseReason::Lost => WireError::OutcomeUnknown,
                        _ => WireError::NotLeader { leader: None },
                    };
                    out.push(Out::Reply(asker, ControlReply::Failed(error)));
                }
            }
            Effect::RoleChanged { role: Role::Leader, term, .. } => {
                out.push(Out::Leads(term));
                self.overseer.became_leader(now, self.registry.map().as_deref());
            }
            // Nobody here asks for it.
            Effect::HandedOver { .. } | Effect::GroupChanged | Effect::GroupSettled { .. } => {}
            Effect::RoleChanged { .. } => {
                self.overseer.lost_leadership();
                self.bootstrapping = false;
                for (_, (asker, _)) in std::mem::take(&mut self.clears) {
                    out.push(Out::Reply(asker, ControlReply::Failed(WireError::OutcomeUnknown)));
                }
            }
        }
    }

    fn answer_applied(
        &mut self,
        now: Moment,
        ticket: Option<Ticket>,
        clears: Option<kvhive_protocol::TenantId>,
        reply: CommandReply,
        out: &mut Vec<Out>,
    ) {
        let Some(ticket) = ticket else { return };
        let Some((_, Waiting::Proposal { asker: Some(asker), register })) = self.waiting.remove(&ticket)
        else {
            return;
        };
        let clears = clears.and_then(|tenant| Some((tenant, reply.ended_blocks_at()?)));
        let answer = match (reply, clears) {
            (CommandReply::Registered { member, generation, .. }, _) if register => {
                let map = self.registry.map().expect("somebody registered");
                ControlReply::Registered { member, generation, map: Box::new((*map).clone()) }
            }
            (reply, Some((tenant, epoch))) => {
                let ticket = ClearTicket(ticket.0);
                match self.overseer.clear_started(now, ticket, tenant, epoch) {
                    Ok(()) => {
                        self.clears.insert(ticket, (asker, reply));
                        return;
                    }
                    Err(error) => ControlReply::Failed(error),
                }
            }
            (reply, _) => ControlReply::Done(reply),
        };
        out.push(Out::Reply(asker, answer));
    }

    fn serve(&mut self, ticket: Ticket, out: &mut Vec<Out>) {
        match self.waiting.remove(&ticket).map(|(_, waiting)| waiting) {
            Some(Waiting::Map { asker, have }) => {
                let map = self.registry.map().filter(|map| map.epoch > have);
                out.push(Out::Reply(asker, ControlReply::Map(map.map(|map| Box::new((*map).clone())))));
            }
            Some(Waiting::Beat { asker, received, beat }) => {
                let answer = match self.registry.map() {
                    None => ControlReply::Fenced,
                    Some(map) => match self.overseer.heartbeat_confirmed(received, beat, &map) {
                        BeatVerdict::Renew { send_map } => {
                            ControlReply::Beat { map: send_map.then(|| Box::new((*map).clone())) }
                        }
                        BeatVerdict::Fenced => ControlReply::Fenced,
                        BeatVerdict::NotLeading => {
                            ControlReply::Failed(WireError::NotLeader { leader: None })
                        }
                    },
                };
                out.push(Out::Reply(asker, answer));
            }
            Some(Waiting::Proposal { .. }) | None => {}
        }
    }
}
