//! The raft actor: the thin hand around consensus, registry and overseer. It performs their effects and remembers who
//! waits for what.

use super::directory::Directory;
use super::founding::Bootstrap;
use super::levels::Belonging;
use super::mailbox::RaftMessage;
use super::vitals::Vitals;
use crate::engines::Agreed;
use crate::log_thread::Write;
use kvhive_consensus::{Consensus, Effect, Event, PeerId, RefuseReason, Role, Standing, Ticket};
use kvhive_control::{ClearTicket, Counters, Drains, Effect as Oversight, Overseer, Registry, Scaler};
use kvhive_protocol::control::{Command, CommandReply, ControlReply, Heartbeat, Proposal};
use kvhive_protocol::{
    Epoch, Level, LogEntry, MemberId, Moment, Origin, Reason, RequestId, TenantId, WireError, codec,
};
use kvhive_runtime::{Actor, Clock, Context, Reply};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;
use tokio::sync::watch;
use tracing::{debug, info, warn};

/// What the raft actor has counted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) proposals: u64,
    /// Read indexes asked for: heartbeats, and whoever wants the newest map.
    pub(crate) reads: u64,
    pub(crate) refused: u64,
    pub(crate) waiting: u64,
    pub(crate) elections: u64,
    pub(crate) dropped_sends: u64,
    pub(crate) ignored_messages: u64,
    pub(crate) lost_slots: u64,
    pub(crate) oversight: Counters,
}

/// What the actor is made of.
pub(crate) struct Parts {
    pub(crate) consensus: Consensus,
    pub(crate) registry: Registry,
    pub(crate) overseer: Overseer,
    pub(crate) us: PeerId,
    pub(crate) directory: Directory,
    pub(crate) log: SyncSender<Write>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) tick: Duration,
    pub(crate) bootstrap: Bootstrap,
    /// Told why this coordinator must end.
    pub(crate) failed: watch::Sender<Option<String>>,
    /// The newest level that it speaks.
    pub(crate) speaks: Level,
    /// Told the cluster's id once it is known, and its level, for handshakes.
    pub(crate) cluster: watch::Sender<Belonging>,
    /// Told the number of the newest event.
    pub(crate) events: watch::Sender<u64>,
    /// Told the engines that are followed.
    pub(crate) engines: watch::Sender<Agreed>,
    /// Told what it knows of itself.
    pub(crate) vitals: watch::Sender<Vitals>,
    /// This start's identity in request ids.
    pub(crate) client: u128,
}

/// Who waits for what.
pub(super) enum Waiting {
    Proposal {
        register: bool,
        clears: Option<TenantId>,
        empties: Option<MemberId>,
        reply: Option<Reply<ControlReply>>,
    },
    Map {
        have: Epoch,
        reply: Reply<ControlReply>,
    },
    Beat {
        received: Moment,
        beat: Heartbeat,
        reply: Reply<ControlReply>,
    },
    Overview {
        reply: Reply<ControlReply>,
    },
    Group {
        reply: Reply<ControlReply>,
    },
    Report {
        reply: Reply<ControlReply>,
    },
}

/// One coordinator's raft actor.
pub(crate) struct RaftActor {
    pub(super) parts: Parts,
    pub(super) waiting: BTreeMap<Ticket, Waiting>,
    clears: BTreeMap<ClearTicket, (Reply<ControlReply>, CommandReply)>,
    next_ticket: u64,
    next_sequence: u64,
    bootstrapping: bool,
    /// It leads in this term, which is not in the journal yet.
    pub(super) elected: Option<u64>,
    /// Something was lost that must not be: nothing more is taken in, done or answered. A restart reads the disk.
    pub(super) has_failed: bool,
    /// As it was last told in the log.
    pub(super) standing: Standing,
    effects: Vec<Effect>,
    oversight: Vec<Oversight>,
    pub(super) figures: Figures,
    pub(super) scaler: Scaler,
    pub(super) drains: Drains,
    /// When load is looked at next.
    pub(super) next_look: Moment,
    /// When it may be said next where the coordinators are.
    pub(super) next_seats: Moment,
    /// The newest levels that others of the group speak, as far as they were heard.
    pub(super) heard: BTreeMap<PeerId, Level>,
    /// When it is looked next whether the cluster's level can rise.
    pub(super) next_rise: Moment,
}

impl RaftActor {
    pub(crate) fn new(parts: Parts) -> RaftActor {
        RaftActor {
            parts,
            waiting: BTreeMap::new(),
            clears: BTreeMap::new(),
            next_ticket: 1,
            next_sequence: 1,
            bootstrapping: false,
            elected: None,
            has_failed: false,
            standing: Standing::Settled,
            effects: Vec::new(),
            oversight: Vec::new(),
            figures: Figures::default(),
            scaler: Scaler::new(),
            drains: Drains::default(),
            next_look: Moment::ZERO,
            next_seats: Moment::ZERO,
            heard: BTreeMap::new(),
            next_rise: Moment::ZERO,
        }
    }

    pub(super) fn step(&mut self, event: Event) {
        if self.has_failed {
            return;
        }
        let mut effects = std::mem::take(&mut self.effects);
        self.parts.consensus.step(event, &mut effects);
        for effect in effects.drain(..) {
            self.perform(effect);
        }
        self.effects = effects;
        self.tell_vitals();
    }

    fn perform(&mut self, effect: Effect) {
        // What follows a failure would build on what did not happen: a write behind one that was dropped vouches for both,
        // and a snapshot of a state that misses an entry would make that last.
        if self.has_failed {
            return;
        }
        match effect {
            Effect::Send { to, bytes } => {
                let sent = self.parts.directory.send(to, bytes);
                // Raft repeats what matters.
                self.figures.dropped_sends += u64::from(!sent);
            }
            Effect::Persist { write, batch } => {
                if self.parts.log.try_send((write, batch)).is_err() {
                    self.fail("the log takes no more writes".to_owned());
                }
            }
            Effect::Apply { index, data, ticket, .. } => self.apply(index, &data, ticket),
            Effect::Install { index, data } => match Registry::restore(&data) {
                Ok(registry) => {
                    info!(index, "took over the leader's snapshot");
                    self.parts.registry = registry;
                    self.tell_cluster();
                    if self.is_left_behind() {
                        return;
                    }
                    self.tell_events();
                    self.tell_engines();
                }
                Err(error) => self.fail(format!("a leader's snapshot cannot be used: {error}")),
            },
            Effect::TakeSnapshot { index } => {
                let data = self.parts.registry.snapshot();
                let mut effects = Vec::new();
                self.parts.consensus.step(Event::SnapshotTaken { index, data }, &mut effects);
                for effect in effects {
                    self.perform(effect);
                }
            }
            Effect::Readable { ticket } => self.serve_read(ticket),
            Effect::GroupChanged => self.group_changed(),
            Effect::GroupSettled { ticket } | Effect::HandedOver { ticket, .. } => self.group_settled(ticket),
            Effect::Refused { ticket, reason } => {
                self.figures.refused += 1;
                let error = self.refusal(reason);
                self.answer(ticket, ControlReply::Failed(error));
            }
            Effect::RoleChanged { role, term, leader } => self.role_changed(role, term, leader),
        }
    }

    fn role_changed(&mut self, role: Role, term: u64, leader: Option<PeerId>) {
        let leader = leader.map_or_else(|| "none".to_owned(), |leader| self.parts.directory.name(leader));
        info!(?role, term, leader, "role changed");
        if role == Role::Leader {
            self.figures.elections += 1;
            self.elected = Some(term);
            let map = self.parts.registry.map();
            self.parts.overseer.became_leader(self.parts.clock.now(), map.as_deref());
        } else {
            self.parts.overseer.lost_leadership();
            self.forget_loads();
            self.bootstrapping = false;
            self.elected = None;
            for (_, (reply, _)) in std::mem::take(&mut self.clears) {
                // It is applied; whether everybody knows is the next leader's to say.
                reply.send(ControlReply::Failed(WireError::OutcomeUnknown));
            }
        }
    }

    fn apply(&mut self, index: u64, data: &[u8], ticket: Option<Ticket>) {
        let entry: LogEntry = match codec::decode(data) {
            Ok(entry) => entry,
            // Written by a build that knows more: going on would leave this coordinator with another state.
            Err(error) => return self.fail(format!("entry {index} cannot be applied: {error}")),
        };
        let name = entry.proposal.command.name();
        let reply = self.parts.registry.apply(index, entry);
        debug!(index, command = name, ?reply, "applied");
        if let Some(repair) = self.parts.registry.last_repair()
            && repair.lost > 0
        {
            self.figures.lost_slots += u64::from(repair.lost);
            warn!(command = name, ?repair, "slots lost their last replica; their blocks are misses");
        }
        self.tell_cluster();
        if self.is_left_behind() {
            return;
        }
        self.tell_events();
        self.tell_engines();
        let Some(ticket) = ticket else { return };
        let Some(Waiting::Proposal { register, clears, empties, reply: asker }) =
            self.waiting.remove(&ticket)
        else {
            return;
        };
        let Some(asker) = asker else {
            // The map may have moved on meanwhile; anything else would be refused again.
            if let CommandReply::Rejected(error) = &reply
                && !matches!(error, WireError::StaleEpoch { .. })
            {
                warn!(command = name, %error, "a change of this coordinator's own was refused");
            }
            return;
        };
        let clears = clears.and_then(|tenant| Some((tenant, reply.ended_blocks_at()?)));
        match (reply, clears) {
            (CommandReply::Registered { member, generation, .. }, _) if register => {
                match self.parts.registry.map() {
                    Some(map) => {
                        asker.send(ControlReply::Registered {
                            member,
                            generation,
                            map: Box::new((*map).clone()),
                        });
                    }
                    None => {
                        asker.send(ControlReply::Failed(WireError::busy("the cluster has not started yet")))
                    }
                }
            }
            (reply, Some((tenant, epoch))) => {
                let ticket = ClearTicket(ticket.0);
                match self.parts.overseer.clear_started(self.parts.clock.now(), ticket, tenant, epoch) {
                    Ok(()) => {
                        self.clears.insert(ticket, (asker, reply));
                    }
                    Err(error) => asker.send(ControlReply::Failed(error)),
                }
            }
            (CommandReply::Rejected(WireError::StaleEpoch { .. }), _) if empties.is_some() => {
                asker.send(ControlReply::Failed(super::emptying::weighed_with_others()));
            }
            (CommandReply::Rejected(error), _) if register => asker.send(ControlReply::Failed(error)),
            (reply, _) => asker.send(ControlReply::Done(reply)),
        }
    }

    pub(super) fn ticket(&mut self, waiting: Waiting) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.waiting.insert(ticket, waiting);
        ticket
    }

    pub(super) fn read(&mut self, waiting: Waiting) {
        self.figures.reads += 1;
        let ticket = self.ticket(waiting);
        self.step(Event::Read { ticket });
    }

    fn propose(&mut self, proposal: Proposal, reason: Reason, reply: Option<Reply<ControlReply>>) {
        let entry = LogEntry { proposal, origin: Origin { at_ms: kvhive_runtime::wall_ms(), reason } };
        let data = match codec::encode(&entry) {
            Ok(data) => data,
            Err(error) => {
                if let Some(reply) = reply {
                    reply.send(ControlReply::Failed(error));
                }
                return;
            }
        };
        self.figures.proposals += 1;
        let register = matches!(entry.proposal.command, Command::Register(_));
        let clears = entry.proposal.command.ends_blocks_of();
        let empties = super::emptying::empties(&entry.proposal.command);
        let ticket = self.ticket(Waiting::Proposal { register, clears, empties, reply });
        self.step(Event::Propose { ticket, data });
    }

    /// Proposes a change of the coordinator's own.
    pub(super) fn propose_own(&mut self, command: Command, reason: Reason) {
        info!(command = command.name(), %reason, "proposing");
        let request = RequestId { client: self.parts.client, sequence: self.next_sequence };
        self.next_sequence += 1;
        self.propose(Proposal { request, command }, reason, None);
    }

    fn tick(&mut self) {
        self.step(Event::Tick);
        if self.has_failed {
            return;
        }
        self.tell_standing();
        self.tell_election();
        let leads = self.parts.consensus.status().role == Role::Leader;
        match self.parts.registry.map() {
            Some(map) => {
                let mut oversight = std::mem::take(&mut self.oversight);
                self.parts.overseer.tick(self.parts.clock.now(), &map, &mut oversight);
                // The map must not be held while changes are applied: each would copy it.
                drop(map);
                for effect in oversight.drain(..) {
                    match effect {
                        Oversight::Propose(command, reason) => self.propose_own(command, reason),
                        Oversight::ClearDone(ticket) => {
                            if let Some((reply, done)) = self.clears.remove(&ticket) {
                                reply.send(ControlReply::Done(done));
                            }
                        }
                        Oversight::ClearWaits(ticket, servers) => {
                            if let Some((reply, _)) = self.clears.remove(&ticket) {
                                reply.send(ControlReply::Failed(self.still_served(&servers)));
                            }
                        }
                    }
                }
                self.oversight = oversight;
            }
            None if leads && !self.bootstrapping => {
                self.bootstrapping = true;
                self.found();
            }
            None => {}
        }
        self.look_at_level();
        if leads {
            self.look_at_load();
            self.tell_seats();
        }
        // Askers that went away wait for nothing; what they proposed goes on.
        if self.clears.len() > 64 {
            let gone: Vec<ClearTicket> = self
                .clears
                .iter()
                .filter(|(_, (reply, _))| reply.is_abandoned())
                .map(|(ticket, _)| *ticket)
                .collect();
            for ticket in gone {
                self.clears.remove(&ticket);
                self.parts.overseer.clear_abandoned(ticket);
            }
        }
    }

    pub(super) fn fail(&mut self, reason: String) {
        tracing::error!(%reason, "this coordinator cannot go on");
        self.has_failed = true;
        // Dropped, so that their askers hear at once that the outcome is unknown.
        self.waiting.clear();
        self.clears.clear();
        self.tell_vitals();
        self.parts.failed.send_replace(Some(reason));
    }
}

impl Actor for RaftActor {
    type Message = RaftMessage;

    fn started(&mut self, ctx: &mut Context<'_, Self>) {
        self.tell_cluster();
        self.group_changed();
        self.tell_events();
        self.tell_engines();
        self.tell_vitals();
        ctx.run_interval(self.parts.tick, || RaftMessage::Tick);
    }

    fn handle(&mut self, message: RaftMessage, _ctx: &mut Context<'_, Self>) {
        if self.has_failed {
            return;
        }
        match message {
            RaftMessage::Tick => self.tick(),
            RaftMessage::Received { from, speaks, bytes, room } => {
                self.hear_level(from, speaks);
                self.step(Event::Received { from, bytes });
                drop(room);
            }
            RaftMessage::Unreachable { peer } => self.step(Event::PeerUnreachable { peer }),
            RaftMessage::Persisted { write } => self.step(Event::Persisted { write }),
            RaftMessage::LogFailed { reason } => self.fail(reason),
            RaftMessage::Propose { proposal, reason, reply } => {
                // A rejection would stick to the request's id.
                let leads = self.parts.consensus.status().role == Role::Leader;
                if self.parts.registry.map().is_none() {
                    let error = if leads {
                        WireError::busy("the cluster has not started yet")
                    } else {
                        self.refusal(RefuseReason::NotLeader { leader: None })
                    };
                    return reply.send(ControlReply::Failed(error));
                }
                let proposal = match self.weighed(proposal) {
                    Ok(proposal) => proposal,
                    Err(error) => return reply.send(ControlReply::Failed(error)),
                };
                // Written down, it would end every member that does not know it.
                let level = self.parts.registry.level();
                let sound = kvhive_control::check_level(&proposal.command, level)
                    .and_then(|()| self.parts.registry.check_newcomer(&proposal.command));
                match sound {
                    Err(error) if leads => reply.send(ControlReply::Failed(error)),
                    _ => self.propose(proposal, reason, Some(reply)),
                }
            }
            // One that was removed hears of no change any more.
            RaftMessage::FetchMap { have: _, linearizable: false, reply } if self.is_removed() => {
                let error = self.refusal(RefuseReason::NotLeader { leader: None });
                reply.send(ControlReply::Failed(error));
            }
            RaftMessage::FetchMap { have, linearizable: false, reply } => {
                reply.send(self.own_map_reply(have))
            }
            RaftMessage::FetchMap { have, linearizable: true, reply } => {
                self.read(Waiting::Map { have, reply })
            }
            RaftMessage::Heartbeat { beat, reply } => {
                self.read(Waiting::Beat { received: self.parts.clock.now(), beat, reply });
            }
            RaftMessage::Status { reply } => reply.send(self.status()),
            RaftMessage::Overview { linearizable: false, reply } => reply.send(self.overview()),
            RaftMessage::Overview { linearizable: true, reply } => self.read(Waiting::Overview { reply }),
            RaftMessage::Events { after, limit, reply } => {
                reply.send(self.parts.registry.events(after, limit));
            }
            RaftMessage::Admin { request, reply } => self.administer(request, reply),
            RaftMessage::State { reply } => {
                let status = self.parts.consensus.status();
                reply.send((self.parts.registry.clone(), status.applied, status.term));
            }
            RaftMessage::Asked { requests, reply } => reply.send(self.asked(&requests)),
            RaftMessage::Balance { reply } => reply.send(self.balance()),
            RaftMessage::Moves { reply } => reply.send(self.moves()),
            RaftMessage::Observations { reply } => {
                reply.send(self.parts.registry.scaling().observations().copied().collect());
            }
            RaftMessage::Figures { reply } => reply.send(self.counted()),
        }
    }
}

#[cfg(test)]
#[path = "raft_test.rs"]
mod tests;
