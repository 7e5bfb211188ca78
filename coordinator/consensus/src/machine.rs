//! The machine itself.

use crate::memory::{MemoryLog, encode_entry};
use crate::messages::{Expected, MAX_APPEND_BYTES, MAX_PROPOSAL_BYTES, MAX_SNAPSHOT_BYTES, decode};
use crate::reads::Reads;
use crate::standing::{Heard, Standing, encode_hard_state, is_word};
use crate::transfer::Transfer;
use crate::types::{
    ConsensusConfig, ConsensusError, Effect, Event, LogBatch, PeerId, RefuseReason, Restored, Role,
    SnapshotRecord, Status, Ticket, WriteId,
};
use protobuf::Message as _;
use raft::eraftpb::{Entry, Message, MessageType};
use raft::prelude::{Config, RawNode};
use raft::{ProgressState, ReadOnlyOption, Ready, SnapshotStatus, StateRole};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Append messages under way to one peer.
const MAX_INFLIGHT_APPENDS: usize = 64;
/// Entries handed over for applying at a time, in bytes.
const MAX_APPLY_BYTES: u64 = 4 << 20;
/// A snapshot that a peer has not confirmed after this many election timeouts is sent again.
const SNAPSHOT_PATIENCE: u64 = 8;

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
    persisted_hard_state: (u64, u64, Standing),
    pub(crate) standing: Standing,
    pub(crate) heard: Heard,
    /// The write that makes this peer a founder, while it is not durable.
    pub(crate) founding: Option<WriteId>,
    /// The write that brings a leader's snapshot, while it is not durable.
    pub(crate) installing: Option<WriteId>,
    snapshot_asked: bool,
    /// Where a snapshot was last asked for.
    snapshot_tried: u64,
    pub(crate) snapshots_sent: BTreeMap<PeerId, u64>,
    /// The tick at which each peer was last heard.
    pub(crate) heard_at: BTreeMap<PeerId, u64>,
    /// Leadership is being handed over.
    pub(crate) transfer: Option<Transfer>,
    /// Elections that were due here; each gets another timeout.
    elections: u64,
    pub(crate) ignored_messages: u64,
    oversized_snapshots: u64,
}

impl Consensus {
    /// Makes a peer from what its log held. The state machine must stand where the restored snapshot does, if there is one;
    /// what is committed after it is given out again as [`Effect::Apply`].
    ///
    /// # Errors
    /// When the setup or the log makes no sense.
    pub fn new(mut config: ConsensusConfig, restored: Restored) -> Result<Consensus, ConsensusError> {
        config.voters.sort_unstable();
        let fail = |what: String| Err(ConsensusError::Config(what));
        if config.voters.first().is_none_or(|lowest| lowest.0 == 0) {
            return fail("peers are numbered from 1".to_owned());
        }
        if !config.voters.contains(&config.id) {
            return fail(format!("peer {} is not among the voters", config.id.0));
        }
        if config.voters.windows(2).any(|pair| pair[0] == pair[1]) {
            return fail("two voters have the same number".to_owned());
        }
        if config.max_proposal_bytes > MAX_PROPOSAL_BYTES {
            let (found, limit) = (config.max_proposal_bytes, MAX_PROPOSAL_BYTES);
            return fail(format!("proposals of {found} bytes are over the limit of {limit}"));
        }
        if config.max_inflight == 0 || config.snapshot_every == 0 {
            return fail("max_inflight and snapshot_every must be at least 1".to_owned());
        }
        let standing = Standing::of(&restored, config.voters.len())?;
        let log = MemoryLog::new(config.voters.iter().map(|voter| voter.0).collect(), restored)?;
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
            standing,
            heard: Heard::default(),
            founding: None,
            installing: None,
            snapshot_asked: false,
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
        machine.own_timeout();
        Ok(machine)
    }

    /// Tells the machine what happened; what it asks for is added to `effects`, in order.
    pub fn step(&mut self, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Tick => self.on_tick(effects),
            Event::Received { from, bytes } if is_word(&bytes) => self.on_word(from, &bytes, effects),
            Event::Received { from, bytes } => self.on_received(from, &bytes),
            Event::Propose { ticket, data } => self.on_propose(ticket, data, effects),
            Event::Read { ticket } => self.on_read(ticket, effects),
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
            standing: self.standing,
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
        if self.installing.is_none() && self.may_campaign() {
            let waited = self.raw.raft.election_elapsed;
            self.raw.tick();
            let raft = &self.raw.raft;
            self.elections += u64::from(raft.state != StateRole::Leader && raft.election_elapsed <= waited);
        }
        let patience = u64::from(self.config.election_ticks) * SNAPSHOT_PATIENCE;
        let overdue: Vec<PeerId> = self
            .snapshots_sent
            .iter()
            .filter(|(_, sent)| self.ticks - **sent > patience)
            .map(|(peer, _)| *peer)
            .collect();
        for peer in overdue {
            self.snapshots_sent.remove(&peer);
            let waits = self.raw.raft.prs().get(peer.0).is_some_and(|pr| pr.state == ProgressState::Snapshot);
            if waits {
                self.raw.report_snapshot(peer.0, SnapshotStatus::Failure);
            }
        }
    }

    fn on_received(&mut self, from: PeerId, bytes: &[u8]) {
        let log = &self.raw.raft.raft_log;
        let expected = Expected {
            us: self.config.id,
            from,
            voters: &self.config.voters,
            term: self.raw.raft.term,
            last_index: log.last_index(),
            is_durable: log.persisted == log.last_index(),
            is_installing: self.installing.is_some(),
        };
        // Raft's own refusals (an answer from a peer it does not track, say) concern nobody.
        let standing = self.standing;
        let heard = decode(bytes, &expected)
            .filter(|message| standing.heeds(message.get_msg_type()))
            .is_some_and(|message| self.raw.step(message).is_ok());
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
        self.reads.gather(ticket);
    }

    fn on_persisted(&mut self, write: WriteId, effects: &mut Vec<Effect>) {
        while let Some((id, _, _)) = self.unpersisted.front()
            && *id <= write
        {
            let (id, ready, messages) = self.unpersisted.pop_front().expect("its front was just looked at");
            self.installing.take_if(|installing| *installing == id);
            if self.founding.take_if(|founding| *founding == id).is_some() {
                self.standing = Standing::Founder;
            }
            self.raw.on_persist_ready(ready);
            self.note_applied();
            self.send(messages, effects);
        }
    }

    fn on_snapshot_taken(&mut self, index: u64, data: Vec<u8>, effects: &mut Vec<Effect>) {
        self.snapshot_asked = false;
        if index > self.applied {
            return;
        }
        if data.len() > MAX_SNAPSHOT_BYTES {
            // No peer could be sent it, and without its entries none could catch up.
            self.oversized_snapshots += 1;
            return;
        }
        // A peer that lags less than this gets entries instead of the whole state.
        let keep = self.config.snapshot_every / 2;
        if let Some(snapshot) = self.raw.mut_store().compact(index, data, keep) {
            let batch = LogBatch { snapshot: Some(snapshot), ..LogBatch::default() };
            let write = self.next_write();
            // No ready waits for it: the entries that it replaces are durable already.
            self.unpersisted.push_back((write, 0, Vec::new()));
            effects.push(Effect::Persist { write, batch });
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
        let behind = self.applied - self.raw.store().snapshot_index().max(self.snapshot_tried);
        if behind >= self.config.snapshot_every && !self.snapshot_asked {
            self.snapshot_asked = true;
            self.snapshot_tried = self.applied;
            effects.push(Effect::TakeSnapshot { index: self.applied });
        }
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
            self.raw.mut_store().install(record.clone());
            self.applied = record.index;
            effects.push(Effect::Install { index: record.index, data: record.data.clone() });
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
        let vouched = (state.term, state.vote, self.standing);
        if vouched != self.persisted_hard_state || !batch.entries.is_empty() || batch.snapshot.is_some() {
            // The commit index alone needs no write: it is learnt again.
            batch.hard_state = Some(encode_hard_state(self.standing, state));
            self.persisted_hard_state = vouched;
        }
        self.apply(ready.take_committed_entries(), effects);
        let number = ready.number();
        let after_write = ready.take_persisted_messages();
        self.raw.advance_append_async(ready);
        if batch != LogBatch::default() {
            let write = self.next_write();
            if batch.reset {
                self.installing = Some(write);
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
        let led = self.role.0 == Role::Leader && (role != Role::Leader || now.1 != self.role.1);
        self.role = now;
        if led {
            self.snapshots_sent.clear();
            let waiting = std::mem::take(&mut self.proposed).into_iter().chain(self.reads.take_all());
            for ticket in waiting {
                effects.push(Effect::Refused { ticket, reason: RefuseReason::Lost });
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

    /// Raft draws election timeouts from the thread's randomness. They are replaced before they are ever compared, by one
    /// that follows from seed, peer, term, role and the elections so far: candidates that collide draw anew.
    fn own_timeout(&mut self) {
        let raft = &mut self.raw.raft;
        // SplitMix64 (Steele, Lea and Flood 2014).
        let mut word = self.config.seed;
        for part in [self.config.id.0, raft.term, raft.state as u64, self.elections] {
            word = (word ^ part).wrapping_add(0x9E37_79B9_7F4A_7C15);
            word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            word ^= word >> 31;
        }
        let base = self.config.election_ticks as usize;
        raft.set_randomized_election_timeout(base + (word % base as u64) as usize);
    }

    fn context(&self, ticket: Ticket) -> Vec<u8> {
        [self.config.id.0, self.config.start, ticket.0].iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn own_ticket(&self, context: &[u8]) -> Option<Ticket> {
        let (head, ticket) = context.split_at_checked(16)?;
        let ticket = u64::from_le_bytes(ticket.try_into().ok()?);
        (self.context(Ticket(ticket))[..16] == *head).then_some(Ticket(ticket))
    }
}
