//! What a machine does while its log may have been lost: it asks its peers what they know, and takes part again when it may.

use crate::group::Group;
use crate::machine::Consensus;
use crate::standing::{Held, Standing, Word, digest};
use crate::types::{Effect, LogBatch, PeerId};
use raft::StateRole;
use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2, HardState};
use std::collections::BTreeSet;

impl Consensus {
    /// Says whether an election may be held here when one is due.
    pub(crate) fn may_campaign(&self) -> bool {
        match self.standing {
            Standing::Settled => !self.told_to_leave,
            // Nobody votes before all know that the group is being founded: a peer that misses it could not tell a vote that
            // it gave and lost from one that it never gave.
            Standing::Founder => self.heard.is_founded(self.config.peers.len()),
            Standing::Newborn | Standing::Rejoining | Standing::Removed => false,
        }
    }

    /// Asks every other peer what it knows, as often as a leader sends heartbeats, until this one is settled. A leader asks those
    /// of its group that have not said that they are.
    pub(crate) fn ask_peers(&mut self, effects: &mut Vec<Effect>) {
        let due = (self.ticks - 1).is_multiple_of(u64::from(self.config.heartbeat_ticks));
        let leads = self.raw.raft.state == StateRole::Leader;
        if !due || (self.standing == Standing::Settled && !leads) {
            return;
        }
        let bytes = self.word(true, self.config.start).encode();
        // Whom the host names, and whoever has turned out to be of the group since.
        let raft = &self.raw.raft;
        let group = raft.prs().iter().map(|(peer, _)| PeerId(*peer)).chain(self.leader());
        let asked: BTreeSet<PeerId> = self.config.peers.keys().copied().chain(group).collect();
        let asked =
            asked.into_iter().filter(|peer| !leads || (self.is_of_group(*peer) && !self.fit.contains(peer)));
        for peer in asked.filter(|peer| *peer != self.config.id) {
            effects.push(Effect::Send { to: peer, bytes: bytes.clone() });
        }
    }

    /// Takes in what a peer says of itself.
    pub(crate) fn on_word(&mut self, from: PeerId, bytes: &[u8], effects: &mut Vec<Effect>) {
        let named = self.config.peers.contains_key(&from) && self.standing != Standing::Settled;
        let known = named || self.leader() == Some(from) || self.is_of_group(from);
        let Some(word) = Word::decode(bytes).filter(|_| known && from != self.config.id) else {
            self.ignored_messages += 1;
            return;
        };
        if word.is_farewell {
            self.told_to_leave |= word.committed.is_some() && word.term >= self.raw.raft.term;
        } else if word.asks {
            if word.standing != Standing::Settled {
                self.fit.remove(&from);
            }
            self.forget_what_was_lost(from, word.last_index);
            let answer = self.word(false, word.start);
            effects.push(Effect::Send { to: from, bytes: answer.encode() });
        } else if word.start == self.config.start {
            if word.standing == Standing::Settled {
                self.fit.insert(from);
            }
            // Others found another group, or none with us.
            if word.standing.has_past() || word.founders == self.founders_digest() {
                self.heard.note(from, word.clone());
                self.follow_peers(from, &word, effects);
            }
        }
    }

    fn founders_digest(&self) -> u64 {
        digest(self.config.peers.keys().copied())
    }

    fn is_settled_for_good(&self) -> bool {
        self.persisted_hard_state.2 == Standing::Settled && self.settling.is_none()
    }

    pub(crate) fn is_of_group(&self, peer: PeerId) -> bool {
        self.raw.raft.prs().get(peer.0).is_some()
    }

    pub(crate) fn word(&self, asks: bool, start: u64) -> Word {
        let raft = &self.raw.raft;
        let leads = raft.state == StateRole::Leader && raft.commit_to_current_term();
        let group = if self.standing.has_past() { self.group() } else { Group::default() };
        Word {
            asks,
            is_farewell: false,
            // Others count on it: it must outlast this start.
            standing: match self.standing {
                Standing::Settled if !self.is_settled_for_good() => Standing::Rejoining,
                standing => standing,
            },
            start,
            term: raft.term,
            last_index: raft.raft_log.persisted,
            committed: leads.then_some(raft.raft_log.committed),
            founders: self.founders_digest(),
            voters: group.voters,
            outgoing: group.outgoing,
        }
    }

    /// A leader that believes a peer to have more than it has met it before its log was lost. Raft would take every refusal
    /// of such a peer for a late one, and never send it anything that it can use.
    fn forget_what_was_lost(&mut self, peer: PeerId, last_index: u64) {
        if self.raw.raft.state != StateRole::Leader {
            return;
        }
        if let Some(progress) = self.raw.raft.mut_prs().get_mut(peer.0)
            && progress.matched > last_index
        {
            progress.matched = 0;
            progress.become_probe();
            self.snapshots_sent.remove(&peer);
        }
    }

    fn follow_peers(&mut self, from: PeerId, word: &Word, effects: &mut Vec<Effect>) {
        let peers = self.config.peers.len();
        match self.standing {
            Standing::Newborn if self.founding.is_some() => {}
            Standing::Newborn if self.heard.is_beginning(peers) => {
                let founders = self.config.peers.keys().copied().collect();
                let held = Held { standing: Standing::Founder, founders, state: HardState::default() };
                let hard_state = Some(held.encode());
                let write = self.next_write();
                // No ready waits for it: raft has said nothing yet.
                self.unpersisted.push_back((write, 0, Vec::new()));
                self.founding = Some(write);
                effects
                    .push(Effect::Persist { write, batch: LogBatch { hard_state, ..LogBatch::default() } });
            }
            Standing::Newborn => {
                if let Some(term) = self.heard.floor() {
                    // Leaders of earlier terms may miss what this peer once took from a later one.
                    self.standing = Standing::Rejoining;
                    self.raw.raft.become_follower(term, 0);
                }
            }
            Standing::Rejoining => {
                let raft = &mut self.raw.raft;
                let leads = raft.leader_id == from.0 && raft.term == word.term;
                let log = &raft.raft_log;
                let has_all =
                    word.committed.is_some_and(|index| log.committed >= index && log.persisted >= index);
                if leads && has_all {
                    self.standing = Standing::Settled;
                    // It may have voted in this term before: whoever won is the only one that it can have voted for and
                    // that still matters.
                    if raft.vote == 0 {
                        raft.vote = from.0;
                    }
                }
            }
            Standing::Founder | Standing::Settled | Standing::Removed => {}
        }
    }

    /// Begins to vote with those whom the host names: that it does is durable.
    pub(crate) fn found(&mut self) {
        self.standing = Standing::Founder;
        self.founders = self.config.peers.keys().copied().collect();
        for peer in self.founders.clone() {
            let mut single = ConfChangeSingle { node_id: peer.0, ..ConfChangeSingle::default() };
            single.set_change_type(ConfChangeType::AddNode);
            let alone = ConfChangeV2 { changes: vec![single].into(), ..ConfChangeV2::default() };
            self.raw.apply_conf_change(&alone).expect("a group of nobody takes one voter after the other");
        }
    }
}
