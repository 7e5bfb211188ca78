//! What the raft actor does about the raft group itself, for operators.

use super::raft::{RaftActor, Waiting};
use kvhive_consensus::{Event, PeerId, RefuseReason, Role, Ticket};
use kvhive_protocol::WireError;
use kvhive_protocol::control::ControlReply;
use kvhive_protocol::raft::{RaftReport, RaftRequest};
use kvhive_runtime::Reply;

impl RaftActor {
    pub(super) fn administer(&mut self, request: RaftRequest, reply: Reply<ControlReply>) {
        // Whoever does not lead may not know the names.
        if self.parts.consensus.status().role != Role::Leader {
            let error = self.refusal(RefuseReason::NotLeader { leader: None });
            return reply.send(ControlReply::Failed(error));
        }
        match request {
            RaftRequest::Transfer { to } => {
                let to = match to.map(|name| self.peer(&name)).transpose() {
                    Ok(to) => to,
                    Err(error) => return reply.send(ControlReply::Failed(error)),
                };
                let ticket = self.ticket(Waiting::Transfer { reply });
                self.step(Event::Transfer { ticket, to });
            }
        }
    }

    pub(super) fn handed_over(&mut self, ticket: Ticket) {
        let report = self.report();
        self.answer(ticket, ControlReply::Raft(report));
    }

    fn report(&self) -> RaftReport {
        let status = self.parts.consensus.status();
        RaftReport { leader: status.leader.map(|leader| self.name(leader)), term: status.term }
    }

    fn peer(&self, name: &str) -> Result<PeerId, WireError> {
        let found = self.parts.names.iter().find(|(_, known)| known.name == name);
        found.map(|(peer, _)| *peer).ok_or_else(|| {
            let known: Vec<&str> = self.parts.names.values().map(|known| &*known.name).collect();
            let name: String = name.chars().take(64).collect();
            WireError::rejected(format_args!(
                "there is no coordinator {name:?}; there are {}",
                known.join(", ")
            ))
        })
    }

    /// Returns what a peer is called.
    pub(super) fn name(&self, peer: PeerId) -> String {
        let known = self.parts.names.get(&peer).map(|known| known.name.clone());
        known.unwrap_or_else(|| format!("peer {}", peer.0))
    }
}
