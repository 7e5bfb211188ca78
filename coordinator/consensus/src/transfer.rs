//! Handing leadership over, so that a leader that stops, or goes, leaves no gap of an election timeout behind (Ongaro 2014,
//! §3.10). Raft takes no proposals meanwhile, and goes on leading when the other does not take over in time.

use crate::machine::Consensus;
use crate::types::{Effect, PeerId, RefuseReason, Ticket};
use raft::StateRole;

/// Election timeouts after which an asker whose leadership is lost, without another leader being known, is told so.
const PATIENCE: u64 = 2;

/// Leadership that is being handed over.
#[derive(Clone, Copy)]
pub(crate) struct Transfer {
    ticket: Ticket,
    /// The term that ends with it.
    term: u64,
    /// The tick at which it was asked for.
    begun: u64,
}

impl Consensus {
    pub(crate) fn on_transfer(&mut self, ticket: Ticket, to: Option<PeerId>, effects: &mut Vec<Effect>) {
        match self.successor(to) {
            Ok(to) if to == self.config.id => effects.push(Effect::HandedOver { ticket, leader: to }),
            Ok(to) => {
                self.raw.transfer_leader(to.0);
                self.transfer = Some(Transfer { ticket, term: self.raw.raft.term, begun: self.ticks });
            }
            Err(reason) => effects.push(Effect::Refused { ticket, reason }),
        }
    }

    /// Answers who asked for a handing over, once it has come to something.
    pub(crate) fn follow_transfer(&mut self, effects: &mut Vec<Effect>) {
        let Some(Transfer { ticket, term, begun }) = self.transfer else { return };
        let raft = &self.raw.raft;
        let effect = match self.leader() {
            Some(leader)
                if leader == self.config.id && raft.term == term && raft.lead_transferee.is_some() =>
            {
                return;
            }
            // It went on leading, or was elected once more.
            Some(leader) if leader == self.config.id => {
                Effect::Refused { ticket, reason: RefuseReason::NoSuccessor }
            }
            Some(leader) => Effect::HandedOver { ticket, leader },
            None if self.ticks - begun > PATIENCE * u64::from(self.config.election_ticks) => {
                Effect::Refused { ticket, reason: RefuseReason::Lost }
            }
            None => return,
        };
        self.transfer = None;
        effects.push(effect);
    }

    /// Says whether a peer was heard within an election timeout. A peer always hears itself.
    pub(crate) fn hears(&self, peer: PeerId) -> bool {
        let patience = u64::from(self.config.election_ticks);
        peer == self.config.id || self.heard_at.get(&peer).is_some_and(|at| self.ticks - at <= patience)
    }

    fn successor(&self, to: Option<PeerId>) -> Result<PeerId, RefuseReason> {
        let raft = &self.raw.raft;
        if raft.state != StateRole::Leader {
            return Err(RefuseReason::NotLeader { leader: self.leader() });
        }
        if self.transfer.is_some() {
            return Err(RefuseReason::Overloaded);
        }
        let progress = raft.prs();
        let votes = |peer: PeerId| progress.conf().voters().contains(peer.0);
        match to {
            Some(peer) if !votes(peer) => Err(RefuseReason::NotAVoter { peer }),
            Some(peer) if !self.hears(peer) => Err(RefuseReason::Silent { peer }),
            Some(peer) => Ok(peer),
            None => {
                let others = progress.iter().map(|(id, progress)| (progress.matched, PeerId(*id)));
                let able =
                    others.filter(|(_, peer)| *peer != self.config.id && votes(*peer) && self.hears(*peer));
                // The progress is kept in a hash map: of equals the lowest number, so that one seed gives one run.
                let best = able.max_by_key(|(matched, peer)| (*matched, std::cmp::Reverse(*peer)));
                best.map(|(_, peer)| peer).ok_or(RefuseReason::NoSuccessor)
            }
        }
    }
}
