//! What the raft actor tells its askers: maps, statuses, overviews, verdicts on heartbeats, and why something was not done.

use super::raft::{Figures, RaftActor, Waiting};
use kvhive_consensus::{PeerId, RefuseReason, Role, Standing, Ticket};
use kvhive_control::{BeatVerdict, Server};
use kvhive_protocol::control::{CommandReply, ControlReply, CoordinatorStatus, DeviceLoad, Overview};
use kvhive_protocol::error::MAX_STILL_SERVING;
use kvhive_protocol::load::{MAX_HOTTEST, MAX_TENANT_SUMS, TenantLoad, Work};
use kvhive_protocol::scaling::Reuse;
use kvhive_protocol::strategy::StrategyReport;
use kvhive_protocol::{ClusterMap, DeviceId, Epoch, MemberId, RequestId, Slot, StillServing, WireError};
use std::cmp::Reverse;

/// The most reports of strategies that an overview carries, of all devices: its frame is bounded.
const MAX_OVERVIEW_REPORTS: usize = 16_384;

/// What an asker is told to do whose change only the leadership of the one that it takes away stands against, of any build.
pub(crate) const HAND_OVER_FIRST: &str = "hand leadership over first";

impl RaftActor {
    pub(super) fn serve_read(&mut self, ticket: Ticket) {
        match self.waiting.remove(&ticket) {
            Some(Waiting::Map { have, reply }) => reply.send(self.map_reply(have)),
            Some(Waiting::Overview { reply }) => reply.send(self.overview()),
            Some(Waiting::Report { reply }) => reply.send(ControlReply::Raft(self.report())),
            Some(Waiting::Beat { received, beat, reply }) => {
                let Some(map) = self.parts.registry.map() else {
                    return reply.send(ControlReply::Fenced);
                };
                reply.send(match self.parts.overseer.heartbeat_confirmed(received, beat, &map) {
                    BeatVerdict::Renew { send_map } => {
                        ControlReply::Beat { map: send_map.then(|| Box::new((*map).clone())) }
                    }
                    BeatVerdict::Fenced => ControlReply::Fenced,
                    BeatVerdict::NotLeading => {
                        ControlReply::Failed(self.refusal(RefuseReason::NotLeader { leader: None }))
                    }
                });
            }
            Some(Waiting::Proposal { .. } | Waiting::Group { .. }) | None => {}
        }
    }

    /// Returns the map as it is known here, marked where nobody leads.
    pub(super) fn own_map_reply(&self, have: Epoch) -> ControlReply {
        let status = self.parts.consensus.status();
        match self.map_reply(have) {
            ControlReply::Map(map) if status.leader.is_none() && status.role != Role::Leader => {
                ControlReply::LeaderlessMap(map)
            }
            reply => reply,
        }
    }

    pub(super) fn map_reply(&self, have: Epoch) -> ControlReply {
        match self.parts.registry.map() {
            None => ControlReply::Failed(WireError::busy("the cluster has not started yet")),
            Some(map) if map.epoch <= have => ControlReply::Map(None),
            Some(map) => ControlReply::Map(Some(Box::new((*map).clone()))),
        }
    }

    /// Says how evenly work is spread. Whoever acts on that names the epoch, so an answer by a leader that is none any more
    /// changes nothing.
    pub(super) fn balance(&mut self) -> ControlReply {
        if self.parts.consensus.status().role != Role::Leader {
            return ControlReply::Failed(self.refusal(RefuseReason::NotLeader { leader: None }));
        }
        match self.parts.registry.map() {
            Some(map) => ControlReply::Balance(Box::new(self.parts.overseer.balance(&map))),
            None => ControlReply::Failed(WireError::busy("the cluster has not started yet")),
        }
    }

    /// Returns the last entry that is applied, and what each request came to by then; of one whose name is another's that it is refused.
    pub(super) fn asked(&self, requests: &[RequestId]) -> (u64, Vec<Option<CommandReply>>) {
        let registry = &self.parts.registry;
        let came_to = |request: &RequestId| match registry.outcome(*request) {
            None if !registry.is_new(*request) => Some(CommandReply::Rejected(WireError::AskedOtherwise)),
            outcome => outcome,
        };
        (self.parts.consensus.status().applied, requests.iter().map(came_to).collect())
    }

    pub(super) fn counted(&self) -> Figures {
        Figures {
            waiting: self.waiting.len() as u64,
            ignored_messages: self.parts.consensus.status().ignored_messages,
            oversight: self.parts.overseer.counters(),
            ..self.figures.clone()
        }
    }

    /// Says which slots are on their way.
    pub(super) fn moves(&mut self) -> ControlReply {
        if self.parts.consensus.status().role != Role::Leader {
            return ControlReply::Failed(self.refusal(RefuseReason::NotLeader { leader: None }));
        }
        match self.parts.registry.map() {
            Some(map) => ControlReply::Moves(Box::new(self.parts.overseer.moves(&map))),
            None => ControlReply::Failed(WireError::busy("the cluster has not started yet")),
        }
    }

    pub(super) fn overview(&mut self) -> ControlReply {
        let map = self.parts.registry.map();
        let unsettled = map.as_ref().map_or(0, |map| self.parts.overseer.unsettled(map) as u64);
        let reports = self.parts.overseer.loads().flat_map(|(_, load)| &load.tenants);
        let tenants = TenantLoad::sums(reports, MAX_TENANT_SUMS);
        let mut reports = MAX_OVERVIEW_REPORTS;
        let is_current = |device: DeviceId, emptied: MemberId| {
            let by = self.parts.overseer.reported(device.member);
            map.as_ref().is_none_or(|map| kvhive_control::is_of_this(map, emptied, by))
        };
        let hottest = self.hottest();
        let is_hot = |slot, of| hottest.iter().any(|(hot, device, _)| (*hot, *device) == (slot, of));
        let mut bare = |device: DeviceId, load: &DeviceLoad| {
            let strategies: Vec<StrategyReport> = load.strategies.iter().take(reports).cloned().collect();
            reports -= strategies.len();
            DeviceLoad {
                occupied: Vec::new(),
                filled: Vec::new(),
                unreached: Vec::new(),
                tenants: Vec::new(),
                // Only the scaler looks at that.
                reuse: Reuse { counts: Vec::new(), ..Reuse::default() },
                strategies,
                frames: load.frames.clone(),
                moving: load.moving.clone(),
                slot_hits: load.slot_hits.iter().filter(|hits| is_hot(hits.slot, device)).copied().collect(),
                given: load.given.iter().filter(|(of, _)| is_current(device, *of)).copied().collect(),
                displaced: load.displaced.iter().filter(|(of, _)| is_current(device, *of)).copied().collect(),
                // Only whoever sums them up looks at that.
                losses: Vec::new(),
                work: Work { hot: Vec::new(), ..load.work },
                ..*load
            }
        };
        let loads = self.parts.overseer.loads().map(|(device, load)| (device, bare(device, load))).collect();
        let scaling = self.scaler.report(map.as_deref(), self.parts.registry.scaling());
        let map = map.map(|map| ClusterMap::clone(&map));
        let status = self.status();
        ControlReply::Overview(Box::new(Overview {
            status,
            map,
            loads,
            tenants,
            unsettled,
            hottest,
            scaling,
        }))
    }

    /// Returns the slots that are read most, hottest first.
    fn hottest(&self) -> Vec<(Slot, DeviceId, u64)> {
        let hot = |(device, load): (DeviceId, &DeviceLoad)| {
            load.work.hot.iter().map(move |(slot, rate)| (*slot, device, *rate)).collect::<Vec<_>>()
        };
        let mut all: Vec<_> = self.parts.overseer.loads().flat_map(hot).collect();
        let rank = |(slot, device, rate): &(Slot, DeviceId, u64)| (Reverse(*rate), *slot, *device);
        if all.len() > MAX_HOTTEST {
            all.select_nth_unstable_by_key(MAX_HOTTEST, rank);
            all.truncate(MAX_HOTTEST);
        }
        all.sort_unstable_by_key(rank);
        all
    }

    pub(super) fn status(&self) -> CoordinatorStatus {
        let status = self.parts.consensus.status();
        CoordinatorStatus {
            name: self.name(self.parts.us),
            peer: self.parts.us.0,
            role: match status.role {
                Role::Follower if status.standing == Standing::Newborn => "newborn",
                Role::Follower if status.standing == Standing::Rejoining => "rejoining",
                _ if status.standing == Standing::Removed => "removed",
                Role::Follower if self.is_learner() => "learner",
                Role::Leader => "leader",
                Role::Follower => "follower",
                Role::Candidate => "candidate",
                Role::PreCandidate => "pre-candidate",
            }
            .to_owned(),
            term: status.term,
            leader: status.leader.map(|leader| self.name(leader)),
            committed: status.committed,
            applied: status.applied,
            epoch: self.parts.registry.epoch(),
            speaks: self.parts.speaks,
        }
    }

    /// Says who keeps a clear from being acknowledged, those first that do so longest.
    pub(super) fn still_served(&self, servers: &[Server]) -> WireError {
        let map = self.parts.registry.map();
        let now = self.parts.clock.now();
        let name =
            |id: MemberId| map.as_ref().and_then(|map| map.members.get(&id)).map(|one| one.name.clone());
        let told = |one: &Server| StillServing {
            member: one.member.and_then(name),
            for_ms: u64::try_from(one.until.since(now).as_millis()).unwrap_or(u64::MAX),
        };
        let mut servers = servers.to_vec();
        servers.sort_by_key(|one| (Reverse(one.until), one.member));
        let by: Vec<StillServing> = servers.iter().take(MAX_STILL_SERVING).map(told).collect();
        let others = u32::try_from(servers.len() - by.len()).unwrap_or(u32::MAX);
        WireError::StillServed { by, others }
    }

    pub(super) fn refusal(&self, reason: RefuseReason) -> WireError {
        match reason {
            RefuseReason::NotLeader { leader } => {
                let leader =
                    leader.or(self.parts.consensus.status().leader).filter(|leader| *leader != self.parts.us);
                let address =
                    |peer: PeerId| self.parts.directory.get(peer).map(|known| known.raft_address.clone());
                WireError::NotLeader { leader: leader.and_then(address) }
            }
            RefuseReason::Overloaded => WireError::busy("as many proposals as allowed are under way"),
            RefuseReason::TooLarge => WireError::rejected(format_args!("the change is too large")),
            RefuseReason::Lost => WireError::OutcomeUnknown,
            RefuseReason::OwnPlace { peer } => WireError::rejected(format_args!(
                "{} cannot take its own place: name another that comes",
                self.name(peer)
            )),
            RefuseReason::NotAVoter { peer } => {
                WireError::rejected(format_args!("{} has no vote among the coordinators", self.name(peer)))
            }
            RefuseReason::Silent { peer } => WireError::rejected(format_args!(
                "{} was not heard for an election timeout; see that it runs and is reached",
                self.name(peer)
            )),
            RefuseReason::NoSuccessor | RefuseReason::Leads
                if self.parts.consensus.group().voters.len() == 1 =>
            {
                WireError::rejected(format_args!(
                    "{} is the only coordinator that votes: give another its vote first (`kvhive raft add`, `kvhive raft promote`), and \
                     take this one away then",
                    self.name(self.parts.us)
                ))
            }
            RefuseReason::NoSuccessor => WireError::rejected(format_args!(
                "no other coordinator took leadership over in time; {} goes on leading",
                self.name(self.parts.us)
            )),
            RefuseReason::ChangeUnderway => WireError::busy("the coordinators are being changed already"),
            RefuseReason::AlreadyThere { peer } => WireError::rejected(format_args!(
                "number {} is {}, known otherwise than this says: give the new one another number, or remove that one first",
                peer.0,
                self.name(peer)
            )),
            RefuseReason::Votes { peer } => WireError::rejected(format_args!(
                "{} votes already and takes nobody's place: name a new one, or end the other's vote with `kvhive raft remove`",
                self.name(peer)
            )),
            RefuseReason::NotThere { peer } => WireError::rejected(format_args!(
                "{} is no coordinator of this cluster; `kvhive raft add` makes it one",
                self.name(peer)
            )),
            RefuseReason::Leads => WireError::rejected(format_args!(
                "{} leads: {HAND_OVER_FIRST}, with `kvhive raft transfer`",
                self.name(self.parts.us)
            )),
            RefuseReason::NotCaughtUp { peer, lag } => WireError::rejected(format_args!(
                "{} lacks {} of the log and gets no vote before it has them; `kvhive raft status` shows how far it is",
                self.name(peer),
                if lag == 1 { "1 entry".to_owned() } else { format!("{lag} entries") }
            )),
            RefuseReason::NotSettled { peer } => WireError::rejected(format_args!(
                "{} has not said yet that it has everything, and gets no vote before",
                self.name(peer)
            )),
            RefuseReason::LosesMajority { heard, needed, of } => WireError::rejected(format_args!(
                "of the {of} that would vote, {heard} can be counted on and {needed} are needed: nothing could be decided any \
                 more. Start those that are down, or add others, first"
            )),
        }
    }

    pub(super) fn answer(&mut self, ticket: Ticket, answer: ControlReply) {
        match self.waiting.remove(&ticket) {
            Some(Waiting::Proposal { reply: Some(reply), .. })
            | Some(
                Waiting::Map { reply, .. }
                | Waiting::Beat { reply, .. }
                | Waiting::Overview { reply }
                | Waiting::Group { reply }
                | Waiting::Report { reply },
            ) => {
                reply.send(answer);
            }
            _ => {}
        }
    }
}
