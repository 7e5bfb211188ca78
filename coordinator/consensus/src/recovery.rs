//! Logs that are written by hand, while no peer runs: one that begins with a state from elsewhere, and what is left in one whose
//! group has lost its majority for good.

use crate::group::{Group, Update, change, decode_change};
use crate::standing::{Held, Standing, decode_hard_state};
use crate::types::{ConsensusError, LogBatch, PeerId, Restored, SnapshotRecord};
use protobuf::Message as _;
use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2, Entry, EntryType, HardState};
use raft::{Changer, ProgressTracker};
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
    /// Everybody who is of the group by its log, and what is known of each: of whom it does not know to be removed, others may have counted
    /// the vote since.
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
        let (mut last, mut last_term) = (0, 0);
        let mut group = Group { voters: held.founders, ..Group::default() };
        if let Some(snapshot) = &restored.snapshot {
            let (known, _) = Group::unwrap(&snapshot.data)
                .ok_or_else(|| fail(format!("snapshot {} does not say whose it is", snapshot.index)))?;
            (last, last_term, group) = (snapshot.index, snapshot.term, known);
        }
        let (from, committed) = (last, held.state.commit.max(last));
        let mut group = Followed::of(&group)
            .map_err(|error| fail(format!("the group that the log begins with is none: {error}")))?;
        let mut named = group.about.clone();
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
                let (change, update) = decode_change(decoded.get_data())
                    .ok_or_else(|| fail(format!("entry {} changes the group to none", entry.index)))?;
                group.apply(&change, update);
                // Perhaps nobody has decided what is behind that: who is removed there may be of the group still.
                if entry.index <= committed {
                    named.clear();
                }
                named.extend(group.about.clone());
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
            committed,
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

/// The group as the entries of a log change it by raft's own rules, while no peer runs.
struct Followed {
    peers: ProgressTracker,
    about: BTreeMap<PeerId, Vec<u8>>,
}

impl Followed {
    fn of(group: &Group) -> raft::Result<Followed> {
        let mut followed = Followed { peers: ProgressTracker::new(1), about: group.about.clone() };
        let none = Update::default();
        let before = if group.outgoing.is_empty() { &group.voters } else { &group.outgoing };
        let voters = before.iter().map(|peer| (ConfChangeType::AddNode, *peer));
        let learners = group.learners.iter().map(|peer| (ConfChangeType::AddLearnerNode, *peer));
        for one in voters.chain(learners) {
            followed.change(&change(&[one], false, &none))?;
        }
        if !group.outgoing.is_empty() {
            let come = group.voters.iter().filter(|peer| !before.contains(peer));
            let come = come.map(|peer| (ConfChangeType::AddNode, *peer));
            let go = before.iter().filter(|peer| !group.voters.contains(peer));
            let go = go.map(|peer| (ConfChangeType::RemoveNode, *peer));
            followed.change(&change(&come.chain(go).collect::<Vec<_>>(), true, &none))?;
        }
        Ok(followed)
    }

    /// Applies what an entry holds, as whoever runs does.
    fn apply(&mut self, change: &ConfChangeV2, update: Update) {
        if update.founding {
            for single in change.changes.iter() {
                let _ = self.change(&alone(single));
            }
        } else if self.change(change).is_err() {
            return;
        }
        self.about.extend(update.about);
        let group = Group::of(&self.peers.conf().to_conf_state(), BTreeMap::new());
        self.about.retain(|peer, _| group.contains(*peer));
    }

    fn change(&mut self, change: &ConfChangeV2) -> raft::Result<()> {
        let mut changer = Changer::new(&self.peers);
        let (conf, changes) = match change.enter_joint() {
            Some(auto_leave) => changer.enter_joint(auto_leave, &change.changes)?,
            None if change.leave_joint() => changer.leave_joint()?,
            None => changer.simple(&change.changes)?,
        };
        self.peers.apply_conf(conf, changes, 1);
        Ok(())
    }
}

fn alone(single: &ConfChangeSingle) -> ConfChangeV2 {
    ConfChangeV2 { changes: vec![single.clone()].into(), ..ConfChangeV2::default() }
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

    /// A log of three in which the third is replaced by the fourth and, in the end, the second asked to leave; entries up to this one are
    /// known to be decided.
    fn changed(commit: u64) -> Restored {
        let about: BTreeMap<PeerId, Vec<u8>> = (1..=3).map(|peer| (PeerId(peer), vec![peer as u8])).collect();
        let group = Group { voters: vec![PeerId(1), PeerId(2), PeerId(3)], about, ..Group::default() };
        let mut held = restored(beginning(&group, (10, 2), b"state"));
        let about = Update { founding: false, about: [(PeerId(4), vec![4])].into() };
        let (four, replaced) =
            (PeerId(4), [(ConfChangeType::AddNode, PeerId(4)), (ConfChangeType::RemoveNode, PeerId(3))]);
        let changes = [
            change(&[(ConfChangeType::AddLearnerNode, four)], false, &about),
            change(&replaced, true, &Update::default()),
            ConfChangeV2::default(),
            change(&[(ConfChangeType::RemoveNode, PeerId(2))], true, &Update::default()),
            ConfChangeV2::default(),
        ];
        let entry = |(change, index): (ConfChangeV2, u64)| {
            let data = change.write_to_bytes().expect("it encodes").into();
            let entry =
                Entry { index, term: 2, entry_type: EntryType::EntryConfChangeV2, data, ..Entry::default() };
            LogEntry { index, term: 2, bytes: entry.write_to_bytes().expect("it encodes") }
        };
        held.entries = changes.into_iter().zip(11..).map(entry).collect();
        let state = HardState { term: 2, vote: 1, commit, ..HardState::default() };
        held.hard_state = Some(Held { standing: Standing::Settled, founders: Vec::new(), state }.encode());
        held
    }

    #[test]
    fn who_was_removed_is_named_no_more_and_who_may_not_have_been_is() {
        let named = |commit: u64| {
            let survivor = Survivor::of(&changed(commit)).expect("it makes sense");
            survivor.named.into_keys().map(|peer| peer.0).collect::<Vec<u64>>()
        };
        assert_eq!(named(10), [1, 2, 3, 4], "nothing of it need be decided");
        assert_eq!(named(12), [1, 2, 3, 4], "both majorities are asked");
        assert_eq!(named(13), [1, 2, 4], "that the second leaves need not be decided");
        assert_eq!(named(15), [1, 4]);
        // As a machine has it that runs.
        let mut machine = Consensus::new(config(1, &[1, 2, 3]), changed(15)).expect("it makes sense");
        run(&mut machine, Event::Tick);
        assert_eq!(machine.group().about.into_keys().collect::<Vec<_>>(), [PeerId(1), PeerId(4)]);
    }

    #[test]
    fn a_group_that_is_between_two_is_followed_from_there() {
        let peers = |of: &[u64]| of.iter().copied().map(PeerId).collect::<Vec<_>>();
        let group = Group {
            voters: peers(&[1, 2, 4]),
            outgoing: peers(&[1, 2, 3]),
            learners: peers(&[7]),
            about: [1, 2, 3, 4, 7].map(|peer| (PeerId(peer), Vec::new())).into(),
        };
        let mut followed = Followed::of(&group).expect("it is one");
        assert_eq!(Group::of(&followed.peers.conf().to_conf_state(), group.about.clone()), group);
        followed.apply(&ConfChangeV2::default(), Update::default());
        assert_eq!(followed.about.into_keys().collect::<Vec<_>>(), peers(&[1, 2, 4, 7]));
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
