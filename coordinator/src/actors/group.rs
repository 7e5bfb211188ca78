//! What the raft actor does about the raft group itself, for operators.

use super::directory::encode;
use super::raft::{RaftActor, Waiting};
use kvhive_consensus::{Event, GroupChange, PeerId, PeerProgress, RefuseReason, Role, Standing, Ticket};
use kvhive_protocol::control::{Command, ControlReply};
use kvhive_protocol::raft::{RaftMember, RaftReport, RaftRequest, Seat, Vote};
use kvhive_protocol::{Reason, WireError};
use kvhive_runtime::Reply;
use std::time::Duration;
use tracing::info;

/// How long it is waited before it is said again where the coordinators are.
const SEATS_EVERY: Duration = Duration::from_secs(1);

/// What the machine is asked, with numbers for names.
enum Asked {
    Question,
    Transfer(Option<PeerId>),
    Change(GroupChange),
}

impl RaftActor {
    pub(super) fn administer(&mut self, request: RaftRequest, reply: Reply<ControlReply>) {
        let leads = self.parts.consensus.status().role == Role::Leader;
        let asks = matches!(request, RaftRequest::Status { stale: true });
        // Whoever does not lead may not know the names.
        if !leads && !asks {
            let error = self.refusal(RefuseReason::NotLeader { leader: None });
            return reply.send(ControlReply::Failed(error));
        }
        match self.checked(request) {
            Ok(Asked::Question) if !asks => self.read(Waiting::Report { reply }),
            Ok(Asked::Question) => reply.send(ControlReply::Raft(self.report())),
            Ok(Asked::Transfer(to)) => {
                let ticket = self.ticket(Waiting::Group { reply });
                self.step(Event::Transfer { ticket, to });
            }
            Ok(Asked::Change(change)) => {
                info!(?change, "the coordinators are to change");
                let ticket = self.ticket(Waiting::Group { reply });
                self.step(Event::ChangeGroup { ticket, change });
            }
            Err(error) => reply.send(ControlReply::Failed(error)),
        }
    }

    /// Finds whom the names mean, and refuses what cannot be.
    fn checked(&self, request: RaftRequest) -> Result<Asked, WireError> {
        let change = match request {
            RaftRequest::Status { .. } => return Ok(Asked::Question),
            RaftRequest::Transfer { to } => {
                return Ok(Asked::Transfer(to.map(|name| self.peer(&name)).transpose()?));
            }
            RaftRequest::Add { peer, seat } => {
                kvhive_control::check_seat(peer, &seat)?;
                self.parts.directory.check_room(PeerId(peer), &seat)?;
                GroupChange::Add { peer: PeerId(peer), about: encode(&seat) }
            }
            RaftRequest::Promote { name, replaces } => {
                let replaces = replaces.map(|name| self.peer(&name)).transpose()?;
                GroupChange::Promote { peer: self.peer(&name)?, replaces }
            }
            RaftRequest::Remove { name } => GroupChange::Remove { peer: self.peer(&name)? },
        };
        Ok(Asked::Change(change))
    }

    pub(super) fn group_changed(&mut self) {
        let group = self.parts.consensus.group();
        self.parts.directory.follow(&group);
        self.forget_levels();
        let names =
            |peers: &[PeerId]| peers.iter().map(|peer| self.name(*peer)).collect::<Vec<_>>().join(", ");
        let (voters, outgoing, learners) =
            (names(&group.voters), names(&group.outgoing), names(&group.learners));
        info!(voters, outgoing, learners, "the coordinators");
    }

    /// Has nodes and clients told where the coordinators are, where the map says otherwise. Asked for again when it got lost.
    pub(super) fn tell_seats(&mut self) {
        let (Some(map), Some(voting)) = (self.parts.registry.map(), self.parts.directory.voting()) else {
            return;
        };
        let now = self.parts.clock.now();
        if *map.coordinators == voting || now < self.next_seats {
            return;
        }
        self.next_seats = now + SEATS_EVERY;
        let addresses = voting.to_vec();
        let reason = Reason::new(format_args!("the coordinators are at {}", addresses.join(", ")));
        self.propose_own(Command::SetCoordinators { addresses }, reason);
    }

    pub(super) fn is_removed(&self) -> bool {
        self.parts.consensus.status().standing == Standing::Removed
    }

    pub(super) fn group_settled(&mut self, ticket: Ticket) {
        let report = self.report();
        self.answer(ticket, ControlReply::Raft(report));
    }

    pub(super) fn report(&self) -> RaftReport {
        let status = self.parts.consensus.status();
        RaftReport {
            leader: status.leader.map(|leader| self.name(leader)),
            term: status.term,
            committed: status.committed,
            applied: status.applied,
            coordinators: self.parts.consensus.peers().into_iter().map(|peer| self.member(peer)).collect(),
        }
    }

    fn member(&self, progress: PeerProgress) -> RaftMember {
        let unknown = || Seat {
            name: self.name(progress.peer),
            raft_address: String::new(),
            admin_address: String::new(),
        };
        RaftMember {
            peer: progress.peer.0,
            seat: self.parts.directory.get(progress.peer).cloned().unwrap_or_else(unknown),
            vote: match progress {
                PeerProgress { leaves: true, .. } => Vote::Leaving,
                PeerProgress { votes: true, .. } => Vote::Voter,
                _ => Vote::Learner,
            },
            matched: progress.matched,
            lag: progress.lag,
            takes_snapshot: progress.takes_snapshot,
            is_heard: progress.is_heard,
        }
    }

    pub(super) fn is_learner(&self) -> bool {
        self.parts.consensus.group().learners.contains(&self.parts.us)
    }

    fn peer(&self, name: &str) -> Result<PeerId, WireError> {
        self.parts.directory.find(name).ok_or_else(|| {
            let known: Vec<&str> = self.parts.directory.all().values().map(|known| &*known.name).collect();
            let name: String = name.chars().take(64).collect();
            WireError::rejected(format_args!(
                "there is no coordinator {name:?}; there are {}",
                known.join(", ")
            ))
        })
    }

    /// Returns what a peer is called.
    pub(super) fn name(&self, peer: PeerId) -> String {
        self.parts.directory.name(peer)
    }
}
