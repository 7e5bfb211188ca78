//! Changes of the group (Ongaro 2014, chapter 4): a peer is added without a vote, catches up, and gets one; votes change by
//! joint consensus alone, one change at a time, and only where the majority that is needed afterwards is there.

use crate::group::{self, Group, MAX_ABOUT_BYTES, MAX_PEERS, Update, decode_change};
use crate::machine::Consensus;
use crate::standing::Standing;
use crate::types::{Effect, GroupChange, PeerId, PeerProgress, RefuseReason, Ticket};
use raft::eraftpb::{ConfChangeType, ConfChangeV2, Entry};
use raft::{ProgressState, StateRole};
use std::collections::BTreeMap;

/// The most entries that a peer may lack when it gets a vote: until it has them it only weighs on the others.
const MAX_LAG: u64 = 128;

impl Consensus {
    /// Returns the group, as of what is applied. It has no voters while this peer does not know of any.
    pub fn group(&self) -> Group {
        Group::of(&self.raw.raft.prs().conf().to_conf_state(), self.about.clone())
    }

    /// Returns how far each peer of the group is, as the leader knows it; on others only who they are.
    pub fn peers(&self) -> Vec<PeerProgress> {
        let raft = &self.raw.raft;
        let leads = raft.state == StateRole::Leader;
        let group = self.group();
        let all: std::collections::BTreeSet<PeerId> =
            [&group.voters, &group.outgoing, &group.learners].into_iter().flatten().copied().collect();
        let progress = |peer: PeerId| {
            let known = raft.prs().get(peer.0).filter(|_| leads);
            PeerProgress {
                peer,
                votes: group.voters.contains(&peer),
                leaves: group.outgoing.contains(&peer) && !group.voters.contains(&peer),
                matched: known.map(|progress| progress.matched),
                lag: known.map(|progress| raft.raft_log.last_index().saturating_sub(progress.matched)),
                takes_snapshot: known.is_some_and(|progress| progress.state == ProgressState::Snapshot),
                is_heard: leads && self.hears(peer),
            }
        };
        all.into_iter().map(progress).collect()
    }

    pub(crate) fn on_change(&mut self, ticket: Ticket, change: GroupChange, effects: &mut Vec<Effect>) {
        let made = match self.plan(change) {
            Ok(Some(made)) => made,
            Ok(None) => return effects.push(Effect::GroupSettled { ticket }),
            Err(reason) => return effects.push(Effect::Refused { ticket, reason }),
        };
        match self.raw.propose_conf_change(self.context(ticket), made) {
            Ok(()) => {
                self.proposed.insert(ticket);
            }
            Err(_) => effects.push(Effect::Refused { ticket, reason: RefuseReason::Overloaded }),
        }
    }

    /// Makes what raft is to be asked for; nothing when it is so already.
    fn plan(&self, change: GroupChange) -> Result<Option<ConfChangeV2>, RefuseReason> {
        let raft = &self.raw.raft;
        if raft.state != StateRole::Leader {
            return Err(RefuseReason::NotLeader { leader: self.leader() });
        }
        let group = self.group();
        // A leader that has nothing of its own term committed may not know of the last change (Ongaro 2015).
        if !raft.commit_to_current_term() || self.about.is_empty() || self.transfer.is_some() {
            return Err(RefuseReason::Overloaded);
        }
        if raft.has_pending_conf() || self.is_joint || self.changing.is_some() {
            return Err(RefuseReason::ChangeUnderway);
        }
        if self.proposed.len() >= self.config.max_inflight {
            return Err(RefuseReason::Overloaded);
        }
        let none = Update::default();
        match change {
            GroupChange::Add { peer, about } => {
                if group.contains(peer) {
                    let same = group.about.get(&peer) == Some(&about);
                    return if same { Ok(None) } else { Err(RefuseReason::AlreadyThere { peer }) };
                }
                if group.about.len() >= MAX_PEERS || about.len() > MAX_ABOUT_BYTES {
                    return Err(RefuseReason::TooLarge);
                }
                let update = Update { founding: false, about: [(peer, about)].into() };
                Ok(Some(group::change(&[(ConfChangeType::AddLearnerNode, peer)], false, &update)))
            }
            GroupChange::Promote { peer, replaces } => {
                if !group.contains(peer) {
                    return Err(RefuseReason::NotThere { peer });
                }
                if let Some(old) = replaces {
                    // The group would be one fewer, and nobody have come.
                    if group.voters.contains(&peer) && group.contains(old) && old != peer {
                        return Err(RefuseReason::Votes { peer });
                    }
                    if !group.contains(old) {
                        return Err(RefuseReason::NotThere { peer: old });
                    }
                    if old == peer {
                        return Err(RefuseReason::OwnPlace { peer });
                    }
                    if !group.voters.contains(&old) {
                        return Err(RefuseReason::NotAVoter { peer: old });
                    }
                } else if group.voters.contains(&peer) {
                    return Ok(None);
                }
                if !self.hears(peer) {
                    return Err(RefuseReason::Silent { peer });
                }
                if !self.fit.contains(&peer) {
                    return Err(RefuseReason::NotSettled { peer });
                }
                let matched = raft.prs().get(peer.0).map_or(0, |progress| progress.matched);
                let lag = raft.raft_log.last_index().saturating_sub(matched);
                if lag > MAX_LAG {
                    return Err(RefuseReason::NotCaughtUp { peer, lag });
                }
                let mut kinds = vec![(ConfChangeType::AddNode, peer)];
                kinds.extend(replaces.map(|old| (ConfChangeType::RemoveNode, old)));
                let stays = |voter: &PeerId| Some(*voter) != replaces;
                self.keeps_majority(group.voters.iter().copied().filter(stays).chain([peer]).collect())?;
                replaces.map_or(Ok(()), |old| self.follows(old))?;
                Ok(Some(group::change(&kinds, true, &none)))
            }
            GroupChange::Remove { peer } => {
                if !group.contains(peer) {
                    return Err(RefuseReason::NotThere { peer });
                }
                let votes = group.voters.contains(&peer);
                if votes {
                    self.keeps_majority(
                        group.voters.iter().copied().filter(|voter| *voter != peer).collect(),
                    )?;
                }
                self.follows(peer)?;
                Ok(Some(group::change(&[(ConfChangeType::RemoveNode, peer)], votes, &none)))
            }
        }
    }

    /// Refuses to take the leader away. Looked at last: leadership is handed over for what is refused for nothing else.
    fn follows(&self, peer: PeerId) -> Result<(), RefuseReason> {
        if peer == self.config.id { Err(RefuseReason::Leads) } else { Ok(()) }
    }

    /// Refuses a set of voters of which too few are heard, or would vote, to go on.
    fn keeps_majority(&self, mut voters: Vec<PeerId>) -> Result<(), RefuseReason> {
        voters.sort_unstable();
        voters.dedup();
        let is_fit = |voter: &&PeerId| **voter == self.config.id || self.fit.contains(voter);
        let heard = voters.iter().filter(|voter| self.hears(**voter)).filter(is_fit).count();
        let needed = voters.len() / 2 + 1;
        if heard < needed {
            return Err(RefuseReason::LosesMajority { heard, needed, of: voters.len() });
        }
        Ok(())
    }

    /// Says who founded the group, and ends joint votes: a leader's own proposals.
    pub(crate) fn propose_own(&mut self) {
        let raft = &self.raw.raft;
        let may = raft.state == StateRole::Leader
            && raft.commit_to_current_term()
            && !raft.has_pending_conf()
            && self.transfer.is_none();
        if !may || (!self.is_joint && !self.about.is_empty()) {
            return;
        }
        let own = if self.is_joint {
            ConfChangeV2::default()
        } else {
            let voters = self.group().voters;
            let founders: Vec<_> = voters.iter().map(|peer| (ConfChangeType::AddNode, *peer)).collect();
            group::change(&founders, true, &Update { founding: true, about: self.config.peers.clone() })
        };
        // Dropped while too much is uncommitted; the next event tries again.
        let _ = self.raw.propose_conf_change(Vec::new(), own);
    }

    /// Applies an entry that changes the group.
    pub(crate) fn apply_change(&mut self, entry: &Entry, effects: &mut Vec<Effect>) {
        let Some((change, update)) = decode_change(entry.get_data()) else { return };
        let before = self.group();
        if update.founding {
            // One by one: founders have them all, and who began with an empty log has none to hold a joint vote with.
            for single in change.changes.iter() {
                let alone = ConfChangeV2 { changes: vec![single.clone()].into(), ..ConfChangeV2::default() };
                let _ = self.raw.apply_conf_change(&alone);
            }
        } else if self.raw.apply_conf_change(&change).is_err() {
            // Refused by all alike: it does not fit the group.
            return;
        }
        self.note_joint();
        self.about.extend(update.about);
        let group = self.group();
        self.about.retain(|peer, _| group.contains(*peer));
        self.told_to_leave &= !group.contains(self.config.id);
        if self.raw.raft.state == StateRole::Leader {
            for gone in before.outgoing.iter().chain(&before.learners) {
                if !group.contains(*gone) && *gone != self.config.id {
                    self.say_farewell(*gone, effects);
                }
            }
            // It was elected while it was on its way out, and has just committed that it is: the others elect one of theirs.
            if !group.contains(self.config.id) {
                let term = self.raw.raft.term;
                self.raw.raft.become_follower(term, 0);
            }
        }
        // After the farewells: whoever is gone is sent nothing from then on.
        effects.push(Effect::GroupChanged);
        let ticket = self.own_ticket(entry.get_context()).filter(|ticket| self.proposed.remove(ticket));
        self.changing = ticket.or(self.changing);
        if group.outgoing.is_empty()
            && let Some(ticket) = self.changing.take()
        {
            effects.push(Effect::GroupSettled { ticket });
        }
    }

    /// Takes over the group that a leader's snapshot came with; raft has done so already.
    pub(crate) fn adopt(&mut self, about: BTreeMap<PeerId, Vec<u8>>, effects: &mut Vec<Effect>) {
        self.note_joint();
        self.about = about;
        self.told_to_leave = false;
        effects.push(Effect::GroupChanged);
    }

    pub(crate) fn note_joint(&mut self) {
        self.is_joint = !self.raw.raft.prs().conf().to_conf_state().voters_outgoing.is_empty();
    }

    /// Tells a peer that is not of the group any more: what it missed is never sent to it again.
    pub(crate) fn say_farewell(&mut self, peer: PeerId, effects: &mut Vec<Effect>) {
        let word = crate::standing::Word { is_farewell: true, ..self.word(false, 0) };
        effects.push(Effect::Send { to: peer, bytes: word.encode() });
    }

    /// Says whether this peer knows a group that it is not of.
    pub(crate) fn is_removed(&self) -> bool {
        let conf = self.raw.raft.prs().conf().voters();
        let knows = conf.ids().iter().next().is_some();
        self.told_to_leave
            || (knows
                && self.raw.raft.prs().get(self.config.id.0).is_none()
                && self.standing != Standing::Rejoining)
    }
}
