//! The machine itself.

use crate::group::{Group, MAX_ABOUT_BYTES, MAX_PEERS};
use crate::memory::{MemoryLog, encode_entry};
use crate::messages::{Expected, MAX_APPEND_BYTES, MAX_PROPOSAL_BYTES, decode};
use crate::reads::Reads;
use crate::standing::{Heard, Held, Standing, is_word};
use crate::transfer::Transfer;
use crate::types::{
    ConsensusConfig, ConsensusError, Effect, Event, LogBatch, PeerId, RefuseReason, Restored, Role,
    SnapshotRecord, Status, Ticket, WriteId,
};
use kvhive_planted::{Bug, is};
use protobuf::Message as _;
use raft::eraftpb::{Entry, EntryType, Message, MessageType};
use raft::prelude::{Config, RawNode};
use raft::{ReadOnlyOption, Ready, StateRole};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Append messages under way to one peer.
const MAX_INFLIGHT_APPENDS: usize = 64;
/// Entries handed over for applying at a time, in bytes.
const MAX_APPLY_BYTES: u64 = 4 << 20;
/// A peer of the raft group.
pub struct Consensus {
    pub(crate) config: ConsensusConfig,
    pub(crate) raw: RawNode<MemoryLog>,
    pub(crate) ticks: u64,
    pub(crate) role: (Role, u64, Option<PeerId>),
    pub(crate) applied: u64,
    /// Proposals of this start that were appended here while leading and are not applied.
    pub(crate) proposed: BTreeSet<Ticket>,
    pub(crate) reads: Reads,
    next_write: u64,
    /// Writes that were asked for, each with the readies it finishes and what may be sent then.
    pub(crate) unpersisted: VecDeque<(WriteId, u64, Vec<Message>)>,
    /// Term, vote and standing that were asked to be durable last.
    pub(crate) persisted_hard_state: (u64, u64, Standing),
    /// The write that says that this peer is settled, while it is not durable.
    pub(crate) settling: Option<WriteId>,
    /// Peers that have told this leader that they are settled: only on those can it count for a vote.
    pub(crate) fit: BTreeSet<PeerId>,
    pub(crate) standing: Standing,
    /// Who voted when the log began; nobody where it began as a copy of others'.
    pub(crate) founders: Vec<PeerId>,
    /// What is known of each peer of the group.
    pub(crate) about: BTreeMap<PeerId, Vec<u8>>,
    /// Whether votes are joint: looked at with every step.
    pub(crate) is_joint: bool,
    /// The change of the group that is under way: its votes are joint.
    pub(crate) changing: Option<Ticket>,
    /// A leader has said that this peer is not of its group.
    pub(crate) told_to_leave: bool,
    pub(crate) heard: Heard,
    /// The write that makes this peer a founder, while it is not durable.
    pub(crate) founding: Option<WriteId>,
    /// The write that brings a leader's snapshot, while it is not durable.
    pub(crate) installing: Option<WriteId>,
    /// Where a snapshot was asked for that has not come, and the group there.
    pub(crate) snapshot_asked: Option<(u64, Group)>,
    /// Where a snapshot was last asked for.
    pub(crate) snapshot_tried: u64,
    pub(crate) snapshots_sent: BTreeMap<PeerId, u64>,
    /// The tick at which each peer was last heard.
    pub(crate) heard_at: BTreeMap<PeerId, u64>,
    /// Leadership is being handed over.
    pub(crate) transfer: Option<Transfer>,
    /// Elections that were due here; each gets another timeout.
    pub(crate) elections: u64,
    pub(crate) ignored_messages: u64,
    pub(crate) oversized_snapshots: u64,
}

impl Consensus {
    /// Makes a peer from what its log held. The state machine must stand where the restored snapshot does, if there is one;
    /// what is committed after it is given out again as [`Effect::Apply`].
    ///
    /// # Errors
    /// When the setup or the log makes no sense.
    pub fn new(config: ConsensusConfig, restored: Restored) -> Result<Consensus, ConsensusError> {
        let fail = |what: String| Err(ConsensusError::Config(what));
        if config.peers.keys().next().is_none_or(|lowest| lowest.0 == 0) {
            return fail("peers are numbered from 1".to_owned());
        }
        if !config.peers.contains_key(&config.id) {
            return fail(format!("peer {} is not among those that are named", config.id.0));
        }
        if config.peers.len() > MAX_PEERS {
            return fail(format!("{} peers are over the limit of {MAX_PEERS}", config.peers.len()));
        }
        if let Some((peer, about)) = config.peers.iter().find(|(_, about)| about.len() > MAX_ABOUT_BYTES) {
            let (found, limit) = (about.len(), MAX_ABOUT_BYTES);
            return fail(format!("what is known of peer {} has {found} bytes, allowed are {limit}", peer.0));
        }
        if config.max_proposal_bytes > MAX_PROPOSAL_BYTES {
            let (found, limit) = (config.max_proposal_bytes, MAX_PROPOSAL_BYTES);
            return fail(format!("proposals of {found} bytes are over the limit of {limit}"));
        }
        if config.max_inflight == 0 || config.snapshot_every == 0 {
            return fail("max_inflight and snapshot_every must be at least 1".to_owned());
        }
        let named: Vec<PeerId> = config.peers.keys().copied().collect();
        let (standing, founders) = Standing::of(&restored, &named)?;
        if standing == Standing::Founder && founders != named {
            let ids =
                |peers: &[PeerId]| peers.iter().map(|peer| peer.0.to_string()).collect::<Vec<_>>().join(", ");
            return fail(format!(
                "the log began with peers {}, and peers {} are named: name the same until the group has begun, or begin anew \
                 with an empty log",
                ids(&founders),
                ids(&named)
            ));
        }
        let log = MemoryLog::new(&founders, restored)?;
        let about = log.about().clone();
        let applied = log.snapshot_index();
        let persisted_hard_state = (log.hard_state.term, log.hard_state.vote, standing);
        let setup = Config {
            id: config.id.0,
            election_tick: config.election_ticks as usize,
            heartbeat_tick: config.heartbeat_ticks as usize,
            applied,
            max_size_per_msg: MAX_APPEND_BYTES,
            max_inflight_msgs: MAX_INFLIGHT_APPENDS,
            check_quorum: true,
            pre_vote: true,
            read_only_option: ReadOnlyOption::Safe,
            max_committed_size_per_ready: MAX_APPLY_BYTES,
            ..Default::default()
        };
        let logger = slog::Logger::root(tracing_slog::TracingSlogDrain, slog::o!("peer" => config.id.0));
        let raw =
            RawNode::new(&setup, log, &logger).map_err(|error| ConsensusError::Config(error.to_string()))?;
        let mut machine = Consensus {
            ticks: 0,
            role: (Role::Follower, raw.raft.term, None),
            applied,
            proposed: BTreeSet::new(),
            reads: Reads::default(),
            next_write: 1,
            unpersisted: VecDeque::new(),
            persisted_hard_state,
            settling: None,
            fit: BTreeSet::new(),
            standing,
            founders,
            about,
            is_joint: false,
            changing: None,
            told_to_leave: false,
            heard: Heard::default(),
            founding: None,
            installing: None,
            snapshot_asked: None,
            snapshot_tried: applied,
            snapshots_sent: BTreeMap::new(),
            heard_at: BTreeMap::new(),
            transfer: None,
            elections: 0,
            ignored_messages: 0,
            oversized_snapshots: 0,
            config,
            raw,
        };
        machine.note_joint();
        machine.own_timeout();
        Ok(machine)
    }

    /// Tells the machine what happened; what it asks for is added to `effects`, in order.
    pub fn step(&mut self, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Tick => self.on_tick(effects),
            Event::Received { from, bytes } if is_word(&bytes) => self.on_word(from, &bytes, effects),
            Event::Received { from, bytes } => self.on_received(from, &bytes, effects),
            Event::Propose { ticket, data } => self.on_propose(ticket, data, effects),
            Event::Read { ticket } => self.on_read(ticket, effects),
            Event::ChangeGroup { ticket, change } => self.on_change(ticket, change, effects),
            Event::Transfer { ticket, to } => self.on_transfer(ticket, to, effects),
            Event::Persisted { write } => self.on_persisted(write, effects),
            Event::SnapshotTaken { index, data } => self.on_snapshot_taken(index, data, effects),
            Event::PeerUnreachable { peer } => self.raw.report_unreachable(peer.0),
        }
        self.own_timeout();
        self.drain(effects);
    }

    /// Returns the machine at a glance.
    pub fn status(&self) -> Status {
        let log = &self.raw.raft.raft_log;
        let (role, term, leader) = self.role;
        Status {
            role,
            term,
            leader,
            standing: if self.is_removed() { Standing::Removed } else { self.standing },
            committed: log.committed,
            applied: self.applied,
            last_index: log.last_index(),
            ignored_messages: self.ignored_messages,
            oversized_snapshots: self.oversized_snapshots,
        }
    }

    fn on_tick(&mut self, effects: &mut Vec<Effect>) {
        self.ticks += 1;
        self.ask_peers(effects);
        // Nobody can be elected whose log is not durable, and raft would look for entries that the snapshot has replaced.
        if self.installing.is_none() && self.may_campaign() && !(is(Bug::ElectionsEnd) && self.elections > 1)
        {
            let waited = self.raw.raft.election_elapsed;
            self.raw.tick();
            let raft = &self.raw.raft;
            self.elections += u64::from(raft.state != StateRole::Leader && raft.election_elapsed <= waited);
        }
        self.repeat_snapshots();
    }

    fn on_received(&mut self, from: PeerId, bytes: &[u8], effects: &mut Vec<Effect>) {
        let is_known = self.is_of_group(from);
        let log = &self.raw.raft.raft_log;
        let expected = Expected {
            us: self.config.id,
            from,
            is_known,
            term: self.raw.raft.term,
            last_index: log.last_index(),
            is_durable: log.persisted == log.last_index(),
            is_installing: self.installing.is_some(),
        };
        // Raft's own refusals (an answer from a peer it does not track, say) concern nobody.
        let standing = self.standing;
        let message = decode(bytes, &expected).filter(|message| standing.heeds(message.get_msg_type()));
        let kind = message.as_ref().map(Message::get_msg_type);
        let heard = message.is_some_and(|message| self.raw.step(message).is_ok());
        let raft = &self.raw.raft;
        if !is_known && heard && raft.state == StateRole::Leader && raft.commit_to_current_term() {
            self.say_farewell(from, effects);
        }
        let leads = matches!(kind, Some(MessageType::MsgAppend | MessageType::MsgHeartbeat));
        if heard && leads && self.raw.raft.leader_id == from.0 {
            self.told_to_leave = false;
        }
        if heard {
            self.heard_at.insert(from, self.ticks);
        } else {
            self.ignored_messages += 1;
        }
    }

    fn on_propose(&mut self, ticket: Ticket, data: Vec<u8>, effects: &mut Vec<Effect>) {
        let mut refuse = |reason| effects.push(Effect::Refused { ticket, reason });
        if self.raw.raft.state != StateRole::Leader {
            return refuse(RefuseReason::NotLeader { leader: self.leader() });
        }
        if data.len() > self.config.max_proposal_bytes {
            return refuse(RefuseReason::TooLarge);
        }
        if self.proposed.len() >= self.config.max_inflight || self.proposed.contains(&ticket) {
            return refuse(RefuseReason::Overloaded);
        }
        match self.raw.propose(self.context(ticket), data) {
            Ok(()) => {
                self.proposed.insert(ticket);
            }
            // Leadership is being handed over, or too much is uncommitted.
            Err(_) => refuse(RefuseReason::Overloaded),
        }
    }

    fn on_read(&mut self, ticket: Ticket, effects: &mut Vec<Effect>) {
        let mut refuse = |reason| effects.push(Effect::Refused { ticket, reason });
        if self.raw.raft.state != StateRole::Leader {
            return refuse(RefuseReason::NotLeader { leader: self.leader() });
        }
        if self.reads.len() >= self.config.max_inflight {
            return refuse(RefuseReason::Overloaded);
        }
        if is(Bug::ReadsWithoutAsking) {
            return effects.push(Effect::Readable { ticket });
        }
        self.reads.gather(ticket);
    }

    fn on_persisted(&mut self, write: WriteId, effects: &mut Vec<Effect>) {
        while let Some((id, _, _)) = self.unpersisted.front()
            && *id <= write
        {
            let (id, ready, messages) = self.unpersisted.pop_front().expect("its front was just looked at");
            self.installing.take_if(|installing| *installing == id);
            self.settling.take_if(|settling| *settling == id);
            if self.founding.take_if(|founding| *founding == id).is_some() {
                self.found();
            }
            self.raw.on_persist_ready(ready);
            self.note_applied();
            self.send(messages, effects);
        }
    }

    /// Takes out of raft whatever it has ready, until nothing is left.
    fn drain(&mut self, effects: &mut Vec<Effect>) {
        loop {
            // Whoever has voted, or follows a leader, has a past.
            if self.standing == Standing::Founder && self.raw.raft.term > 0 {
                self.standing = Standing::Settled;
            }
            self.note_role(effects);
            self.propose_own();
            if self.raw.raft.state == StateRole::Leader
                && self.raw.raft.commit_to_current_term()
                && let Some(round) = self.reads.begin()
            {
                self.raw.read_index(round.to_le_bytes().to_vec());
            }
            if !self.raw.has_ready() {
                break;
            }
            let ready = self.raw.ready();
            self.perform(ready, effects);
        }
        for ticket in self.reads.take_readable(self.applied) {
            effects.push(Effect::Readable { ticket });
        }
        self.follow_transfer(effects);
        self.ask_for_snapshot(effects);
    }

    fn perform(&mut self, mut ready: Ready, effects: &mut Vec<Effect>) {
        let messages = ready.take_messages();
        self.send(messages, effects);
        for state in ready.take_read_states() {
            if let Ok(round) = <[u8; 8]>::try_from(state.request_ctx.as_slice()) {
                self.reads.confirm(u64::from_le_bytes(round), state.index);
            }
        }
        let mut batch = LogBatch::default();
        if !ready.snapshot().is_empty() {
            let metadata = ready.snapshot().get_metadata();
            let record = SnapshotRecord {
                index: metadata.index,
                term: metadata.term,
                data: ready.snapshot().get_data().to_vec(),
            };
            assert!(record.index >= self.applied, "a snapshot never takes back what is applied");
            let (group, state) = Group::unwrap(&record.data).expect("it was looked at when it came");
            effects.push(Effect::Install { index: record.index, data: state.to_vec() });
            self.adopt(group.about.clone(), effects);
            self.raw.mut_store().install(record.clone(), group);
            self.applied = record.index;
            self.snapshot_asked = None;
            batch.snapshot = Some(record);
            batch.reset = true;
        }
        let rewritten = ready.entries().first().is_some_and(|first| first.index <= self.applied);
        assert!(!rewritten, "raft never rewrites what is applied");
        self.raw.mut_store().append(ready.entries());
        batch.entries = ready.entries().iter().map(encode_entry).collect();
        if let Some(state) = ready.hs() {
            self.raw.mut_store().hard_state = state.clone();
        }
        let state = &self.raw.store().hard_state;
        let mut settles = false;
        let vouched = (state.term, state.vote, self.standing);
        if vouched != self.persisted_hard_state || !batch.entries.is_empty() || batch.snapshot.is_some() {
            // The commit index alone needs no write: it is learnt again.
            let (founders, state) = (self.founders.clone(), state.clone());
            batch.hard_state = Some(Held { standing: self.standing, founders, state }.encode());
            settles = vouched.2 == Standing::Settled && self.persisted_hard_state.2 != Standing::Settled;
            self.persisted_hard_state = vouched;
        }
        self.apply(ready.take_committed_entries(), effects);
        let number = ready.number();
        let mut after_write = ready.take_persisted_messages();
        if is(Bug::AnswersBeforeSync) {
            self.send(std::mem::take(&mut after_write), effects);
        }
        self.raw.advance_append_async(ready);
        if batch != LogBatch::default() {
            let write = self.next_write();
            if batch.reset {
                self.installing = Some(write);
            }
            if settles {
                self.settling = Some(write);
            }
            self.unpersisted.push_back((write, number, after_write));
            effects.push(Effect::Persist { write, batch });
        } else if let Some((_, last, messages)) = self.unpersisted.back_mut() {
            // These may vouch for what an earlier write brings.
            *last = number;
            messages.extend(after_write);
        } else {
            self.raw.on_persist_ready(number);
            self.send(after_write, effects);
        }
    }

    fn apply(&mut self, entries: Vec<Entry>, effects: &mut Vec<Effect>) {
        for mut entry in entries {
            self.applied = entry.index;
            if entry.get_entry_type() == EntryType::EntryConfChangeV2 {
                self.apply_change(&entry, effects);
                continue;
            }
            // A new leader's first entry is nobody's.
            if entry.get_context().is_empty() {
                continue;
            }
            let ticket = self.own_ticket(entry.get_context()).filter(|ticket| self.proposed.remove(ticket));
            let data = entry.take_data().to_vec();
            effects.push(Effect::Apply { index: entry.index, term: entry.term, data, ticket });
        }
        self.note_applied();
    }

    /// Tells raft what is applied, as far as it is durable here: an installed snapshot may not be yet.
    fn note_applied(&mut self) {
        let log = &self.raw.raft.raft_log;
        let applied = self.applied.min(log.committed).min(log.persisted);
        if applied > log.applied {
            self.raw.advance_apply_to(applied);
        }
    }

    fn send(&mut self, messages: Vec<Message>, effects: &mut Vec<Effect>) {
        for message in messages {
            let to = PeerId(message.to);
            if message.get_msg_type() == MessageType::MsgSnapshot {
                self.snapshots_sent.insert(to, self.ticks);
            }
            let bytes = message.write_to_bytes().expect("a message in memory always encodes");
            effects.push(Effect::Send { to, bytes });
        }
    }

    fn note_role(&mut self, effects: &mut Vec<Effect>) {
        let role = match self.raw.raft.state {
            StateRole::Follower => Role::Follower,
            StateRole::PreCandidate => Role::PreCandidate,
            StateRole::Candidate => Role::Candidate,
            StateRole::Leader => Role::Leader,
        };
        let now = (role, self.raw.raft.term, self.leader());
        if now == self.role {
            return;
        }
        if role == Role::Leader {
            self.fit.clear();
        }
        let led = self.role.0 == Role::Leader && (role != Role::Leader || now.1 != self.role.1);
        self.role = now;
        if led {
            self.snapshots_sent.clear();
            let reads = self.reads.take_all().into_iter().filter(|_| !is(Bug::LostReadsAreSilent));
            let waiting = std::mem::take(&mut self.proposed).into_iter().chain(reads);
            let waiting = waiting.chain(self.changing.take());
            for ticket in waiting {
                let reason = match is(Bug::LostIsNotApplied) {
                    true => RefuseReason::NotLeader { leader: None },
                    false => RefuseReason::Lost,
                };
                effects.push(Effect::Refused { ticket, reason });
            }
        }
        effects.push(Effect::RoleChanged { role: now.0, term: now.1, leader: now.2 });
    }

    pub(crate) fn leader(&self) -> Option<PeerId> {
        Some(PeerId(self.raw.raft.leader_id)).filter(|leader| leader.0 != 0)
    }

    pub(crate) fn next_write(&mut self) -> WriteId {
        let write = WriteId(self.next_write);
        self.next_write += 1;
        write
    }

    pub(crate) fn context(&self, ticket: Ticket) -> Vec<u8> {
        [self.config.id.0, self.config.start, ticket.0].iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    pub(crate) fn own_ticket(&self, context: &[u8]) -> Option<Ticket> {
        let (head, ticket) = context.split_at_checked(16)?;
        let ticket = u64::from_le_bytes(ticket.try_into().ok()?);
        (self.context(Ticket(ticket))[..16] == *head).then_some(Ticket(ticket))
    }
}
