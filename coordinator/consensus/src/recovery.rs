//! Logs that are written by hand, while no peer runs: one that begins with a state from elsewhere, and what is left in one whose
//! group has lost its majority for good.

use crate::group::{Group, decode_change};
use crate::standing::{Held, Standing, decode_hard_state};
use crate::types::{ConsensusError, LogBatch, PeerId, Restored, SnapshotRecord};
use protobuf::Message as _;
use raft::eraftpb::{Entry, EntryType, HardState};
use std::collections::BTreeMap;

/// Returns what makes an empty log begin with this state: as if `group` had come as far as entry `index` in `term`. Its voters
/// count on it, so each of them must begin so, with the same bytes; others of the group begin with nothing.
pub fn beginning(group: &Group, (index, term): (u64, u64), state: &[u8]) -> LogBatch {
    let state_of_vote = HardState { term, vote: 0, commit: index, ..HardState::default() };
    let held = Held { standing: Standing::Settled, founders: Vec::new(), state: state_of_vote };
    LogBatch {
        snapshot: Some(SnapshotRecord { index, term, data: group.wrap(state) }),
        reset: true,
        entries: Vec::new(),
        hard_state: Some(held.encode()),
    }
}

/// What one peer's log holds, for it to go on alone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Survivor {
    /// What its log is worth: who follows, or was never whole again, may lack more than the last entries.
    pub standing: Standing,
    /// The term that it was in.
    pub term: u64,
    /// The last entry that it knew to be committed.
    pub committed: u64,
    /// The last entry.
    pub last: u64,
    /// The last entry's term.
    pub last_term: u64,
    /// Proposals behind the snapshot, each with its index. Those after `committed` may have been decided by others, or by nobody.
    pub proposals: Vec<(u64, Vec<u8>)>,
    /// Everybody that its log has named, and what is known of each.
    pub named: BTreeMap<PeerId, Vec<u8>>,
}

impl Survivor {
    /// Reads what a log held.
    ///
    /// # Errors
    /// When it is empty, or makes no sense.
    pub fn of(restored: &Restored) -> Result<Survivor, ConsensusError> {
        let fail = |what: String| ConsensusError::Log(what);
        let held = restored.hard_state.as_ref().ok_or_else(|| fail("it has never voted".to_owned()))?;
        let held = decode_hard_state(held)?;
        let (mut last, mut last_term, mut named) = (0, 0, BTreeMap::new());
        if let Some(snapshot) = &restored.snapshot {
            let (group, _) = Group::unwrap(&snapshot.data)
                .ok_or_else(|| fail(format!("snapshot {} does not say whose it is", snapshot.index)))?;
            (last, last_term, named) = (snapshot.index, snapshot.term, group.about);
        }
        let from = last;
        let mut proposals = Vec::new();
        for entry in &restored.entries {
            let mut decoded = Entry::parse_from_bytes(&entry.bytes)
                .map_err(|error| fail(format!("entry {}: {error}", entry.index)))?;
            (last, last_term) = (entry.index, entry.term);
            // Entries are kept for peers that lag a while after the snapshot has them.
            if entry.index <= from {
                continue;
            }
            if decoded.get_entry_type() == EntryType::EntryConfChangeV2 {
                let (_, update) = decode_change(decoded.get_data())
                    .ok_or_else(|| fail(format!("entry {} changes the group to none", entry.index)))?;
                named.extend(update.about);
            } else if !decoded.get_context().is_empty() {
                proposals.push((entry.index, decoded.take_data().to_vec()));
            }
        }
        if last == 0 {
            return Err(fail("it is empty".to_owned()));
        }
        Ok(Survivor {
            standing: held.standing,
            term: held.state.term,
            committed: held.state.commit.max(from),
            last,
            last_term,
            proposals,
            named,
        })
    }

    /// Returns what makes `peer` go on alone with `state`, which holds all of [`Survivor::proposals`]: in a later term, and
    /// nobody else is of its group. Whoever else has the old log must never start again with it.
    pub fn alone(&self, peer: PeerId, about: Vec<u8>, state: &[u8]) -> LogBatch {
        let group = Group { voters: vec![peer], about: [(peer, about)].into(), ..Group::default() };
        beginning(&group, (self.last, self.term.max(self.last_term) + 1), state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Consensus;
    use crate::types::{ConsensusConfig, Effect, Event, LogEntry, Role, Ticket};

    fn config(id: u64, peers: &[u64]) -> ConsensusConfig {
        ConsensusConfig {
            id: PeerId(id),
            peers: peers.iter().map(|peer| (PeerId(*peer), vec![*peer as u8])).collect(),
            election_ticks: 10,
            heartbeat_ticks: 2,
            max_inflight: 8,
            max_proposal_bytes: 1 << 10,
            snapshot_every: 100,
            seed: 3,
            start: 9,
        }
    }

    fn restored(batch: LogBatch) -> Restored {
        Restored { snapshot: batch.snapshot, entries: batch.entries, hard_state: batch.hard_state }
    }

    /// Lets a machine run alone, its writes durable at once; returns what it applied.
    fn run(machine: &mut Consensus, event: Event) -> Vec<(u64, Vec<u8>)> {
        let (mut events, mut applied) = (std::collections::VecDeque::from([event]), Vec::new());
        while let Some(event) = events.pop_front() {
            let mut effects = Vec::new();
            machine.step(event, &mut effects);
            for effect in effects {
                match effect {
                    Effect::Persist { write, .. } => events.push_back(Event::Persisted { write }),
                    Effect::Apply { index, data, .. } => applied.push((index, data)),
                    _ => {}
                }
            }
        }
        applied
    }

    fn elected(machine: &mut Consensus) {
        for _ in 0..100 {
            run(machine, Event::Tick);
            if machine.status().role == Role::Leader {
                return;
            }
        }
        panic!("nobody leads: {:?}", machine.status());
    }

    fn entry(index: u64, term: u64, data: &[u8]) -> LogEntry {
        let mut entry = Entry { index, term, ..Entry::default() };
        if !data.is_empty() {
            entry.context = vec![1].into();
            entry.data = data.to_vec().into();
        }
        LogEntry { index, term, bytes: entry.write_to_bytes().expect("it encodes") }
    }

    #[test]
    fn who_begins_with_a_state_leads_alone_and_those_who_follow_wait_for_their_vote() {
        let about = [(PeerId(1), vec![1]), (PeerId(2), vec![2])].into();
        let group = Group { voters: vec![PeerId(1)], learners: vec![PeerId(2)], about, ..Group::default() };
        let begun = restored(beginning(&group, (40, 7), b"state"));
        assert_eq!(begun.snapshot.as_ref().and_then(SnapshotRecord::state), Some(&b"state"[..]));
        let mut machine = Consensus::new(config(1, &[1, 2]), begun).expect("it makes sense");
        elected(&mut machine);
        assert_eq!((machine.status().term, machine.group()), (8, group));
        let applied = run(&mut machine, Event::Propose { ticket: Ticket(1), data: b"next".to_vec() });
        assert_eq!(applied, [(42, b"next".to_vec())], "behind the leader's own first entry");
    }

    #[test]
    fn one_of_three_goes_on_alone_with_all_that_it_has() {
        let about: BTreeMap<PeerId, Vec<u8>> = (1..=3).map(|peer| (PeerId(peer), vec![peer as u8])).collect();
        let group =
            Group { voters: vec![PeerId(1), PeerId(2), PeerId(3)], about: about.clone(), ..Group::default() };
        let mut held = restored(beginning(&group, (10, 2), b"state"));
        // The second is not known to be committed; the first of the third term is a leader's own.
        held.entries = vec![entry(11, 2, b"sure"), entry(12, 2, b"perhaps"), entry(13, 3, b"")];
        let state = HardState { term: 5, vote: 3, commit: 11, ..HardState::default() };
        held.hard_state = Some(Held { standing: Standing::Settled, founders: Vec::new(), state }.encode());

        let mut alone = Consensus::new(config(1, &[1, 2, 3]), held.clone()).expect("it makes sense");
        for _ in 0..100 {
            run(&mut alone, Event::Tick);
        }
        assert_ne!(alone.status().role, Role::Leader, "one of three decides nothing");

        let survivor = Survivor::of(&held).expect("it makes sense");
        let (sure, perhaps) = ((11, b"sure".to_vec()), (12, b"perhaps".to_vec()));
        let expected = Survivor {
            standing: Standing::Settled,
            term: 5,
            committed: 11,
            last: 13,
            last_term: 3,
            proposals: vec![sure, perhaps],
            named: about,
        };
        assert_eq!(survivor, expected);
        let recovered = restored(survivor.alone(PeerId(1), vec![1], b"state, sure, perhaps"));
        let mut machine = Consensus::new(config(1, &[1, 2, 3]), recovered).expect("it makes sense");
        elected(&mut machine);
        assert_eq!(machine.status().term, 7);
        assert_eq!(machine.group().voters, [PeerId(1)]);
        let applied = run(&mut machine, Event::Propose { ticket: Ticket(1), data: b"next".to_vec() });
        assert_eq!(applied, [(15, b"next".to_vec())]);
    }

    #[test]
    fn nothing_goes_on_from_an_empty_log() {
        let error = Survivor::of(&Restored::default()).expect_err("there is nothing");
        assert_eq!(error.to_string(), "raft log: it has never voted");
        let state = HardState { term: 1, vote: 1, ..HardState::default() };
        let held = Held { standing: Standing::Founder, founders: vec![PeerId(1)], state }.encode();
        let error = Survivor::of(&Restored { hard_state: Some(held), ..Restored::default() });
        assert_eq!(error.expect_err("there is nothing").to_string(), "raft log: it is empty");
    }
}
