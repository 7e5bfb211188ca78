//! What a machine does while its log may have been lost: it asks its peers what they know, and takes part again when it may.

use crate::machine::Consensus;
use crate::standing::{Standing, Word, encode_hard_state};
use crate::types::{Effect, LogBatch, PeerId};
use raft::StateRole;
use raft::eraftpb::HardState;

impl Consensus {
    /// Says whether an election may be held here when one is due.
    pub(crate) fn may_campaign(&self) -> bool {
        match self.standing {
            Standing::Settled => true,
            // Nobody votes before all know that the group is being founded: a peer that misses it could not tell a vote that
            // it gave and lost from one that it never gave.
            Standing::Founder => self.heard.is_founded(self.config.voters.len()),
            Standing::Newborn | Standing::Rejoining => false,
        }
    }

    /// Asks every other peer what it knows, as often as a leader sends heartbeats, until this one is settled.
    pub(crate) fn ask_peers(&mut self, effects: &mut Vec<Effect>) {
        let due = (self.ticks - 1).is_multiple_of(u64::from(self.config.heartbeat_ticks));
        if self.standing == Standing::Settled || !due {
            return;
        }
        let bytes = self.word(true, self.config.start).encode();
        for peer in self.config.voters.iter().filter(|peer| **peer != self.config.id) {
            effects.push(Effect::Send { to: *peer, bytes: bytes.clone() });
        }
    }

    /// Takes in what a peer says of itself.
    pub(crate) fn on_word(&mut self, from: PeerId, bytes: &[u8], effects: &mut Vec<Effect>) {
        let known = self.config.voters.contains(&from) && from != self.config.id;
        let Some(word) = Word::decode(bytes).filter(|_| known) else {
            self.ignored_messages += 1;
            return;
        };
        if word.asks {
            self.forget_what_was_lost(from, word.last_index);
            let answer = self.word(false, word.start);
            effects.push(Effect::Send { to: from, bytes: answer.encode() });
        } else if word.start == self.config.start {
            self.heard.note(from, word);
            self.follow_peers(from, word, effects);
        }
    }

    fn word(&self, asks: bool, start: u64) -> Word {
        let raft = &self.raw.raft;
        let leads = raft.state == StateRole::Leader && raft.commit_to_current_term();
        Word {
            asks,
            standing: self.standing,
            start,
            term: raft.term,
            last_index: raft.raft_log.persisted,
            committed: leads.then_some(raft.raft_log.committed),
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

    fn follow_peers(&mut self, from: PeerId, word: Word, effects: &mut Vec<Effect>) {
        let voters = self.config.voters.len();
        match self.standing {
            Standing::Newborn if self.founding.is_some() => {}
            Standing::Newborn if self.heard.is_beginning(voters) => {
                let hard_state = Some(encode_hard_state(Standing::Founder, &HardState::default()));
                let write = self.next_write();
                // No ready waits for it: raft has said nothing yet.
                self.unpersisted.push_back((write, 0, Vec::new()));
                self.founding = Some(write);
                effects
                    .push(Effect::Persist { write, batch: LogBatch { hard_state, ..LogBatch::default() } });
            }
            Standing::Newborn => {
                if let Some(term) = self.heard.floor(voters) {
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
            Standing::Founder | Standing::Settled => {}
        }
    }
}
