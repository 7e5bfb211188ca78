//! The log in memory: every entry since the snapshot, and the snapshot itself. Disk is written by whoever performs
//! `Effect::Persist`; raft reads from here alone.

use crate::group::Group;
use crate::standing::decode_hard_state;
use crate::types::{ConsensusError, LogEntry, PeerId, Restored, SnapshotRecord};
use protobuf::Message as _;
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};
use std::cell::Cell;
use std::collections::BTreeMap;

/// The log in memory.
pub(crate) struct MemoryLog {
    /// The group where the log begins: at the snapshot, or who founded it.
    initial: ConfState,
    pub(crate) hard_state: HardState,
    /// `entries[0]` follows this; index 0 and term 0 before the first snapshot and compaction.
    offset: (u64, u64),
    entries: Vec<Entry>,
    snapshot: Option<SnapshotRecord>,
    /// Whom that snapshot knows.
    group: Group,
    /// A newer snapshot is needed: for somebody whom this one does not know.
    wanted: Cell<bool>,
}

impl MemoryLog {
    /// Makes a log of what was restored; `founders` are the group if there is no snapshot that says it.
    pub(crate) fn new(founders: &[PeerId], restored: Restored) -> Result<MemoryLog, ConsensusError> {
        let fail = |what: String| ConsensusError::Log(what);
        let group = match &restored.snapshot {
            Some(record) => {
                let (group, _) = Group::unwrap(&record.data)
                    .ok_or_else(|| fail(format!("snapshot {} does not say whose it is", record.index)))?;
                group
            }
            None => Group { voters: founders.to_vec(), ..Group::default() },
        };
        let hard_state = match &restored.hard_state {
            Some(bytes) => decode_hard_state(bytes)?.state,
            None => HardState::default(),
        };
        let offset = restored.snapshot.as_ref().map_or((0, 0), |snapshot| (snapshot.index, snapshot.term));
        let mut entries = Vec::with_capacity(restored.entries.len());
        let mut term = offset.1;
        for entry in &restored.entries {
            let expected = offset.0 + 1 + entries.len() as u64;
            if entry.index != expected {
                return Err(fail(format!("entry {} where {expected} should be", entry.index)));
            }
            if entry.term < term {
                return Err(fail(format!("entry {expected} is of term {}, after {term}", entry.term)));
            }
            term = entry.term;
            entries.push(decode_entry(entry)?);
        }
        if term > hard_state.term {
            return Err(fail(format!("an entry is of term {term} and the vote of term {}", hard_state.term)));
        }
        let mut log = MemoryLog {
            initial: group.conf_state(),
            hard_state,
            offset,
            entries,
            snapshot: restored.snapshot,
            group,
            wanted: Cell::new(false),
        };
        let last = log.last();
        if log.hard_state.commit > last {
            return Err(fail(format!(
                "index {} is committed but the log ends at {last}",
                log.hard_state.commit
            )));
        }
        log.hard_state.commit = log.hard_state.commit.max(offset.0);
        Ok(log)
    }

    pub(crate) fn last(&self) -> u64 {
        self.offset.0 + self.entries.len() as u64
    }

    /// What is known of the peers of the group where the log begins.
    pub(crate) fn about(&self) -> &BTreeMap<PeerId, Vec<u8>> {
        &self.group.about
    }

    /// Says once whether a newer snapshot is needed.
    pub(crate) fn take_wanted(&self) -> bool {
        self.wanted.take()
    }

    pub(crate) fn snapshot_index(&self) -> u64 {
        self.snapshot.as_ref().map_or(0, |snapshot| snapshot.index)
    }

    /// Appends entries, replacing those with the same and higher indices.
    pub(crate) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        let keep =
            first.index.checked_sub(self.offset.0 + 1).expect("raft never rewrites what a snapshot holds");
        assert!(keep as usize <= self.entries.len(), "raft appends without a gap");
        self.entries.truncate(keep as usize);
        self.entries.extend_from_slice(entries);
    }

    /// Replaces everything by a leader's snapshot.
    pub(crate) fn install(&mut self, snapshot: SnapshotRecord, group: Group) {
        self.group = group;
        self.offset = (snapshot.index, snapshot.term);
        self.entries.clear();
        self.hard_state.commit = self.hard_state.commit.max(snapshot.index);
        self.snapshot = Some(snapshot);
    }

    /// Takes over this peer's own snapshot at `index` and forgets entries that are more than `keep` older. Returns the
    /// snapshot, or none when it is no newer than the last one.
    pub(crate) fn compact(
        &mut self,
        index: u64,
        state: &[u8],
        group: &Group,
        keep: u64,
    ) -> Option<SnapshotRecord> {
        if index <= self.snapshot_index() {
            return None;
        }
        let term = self.term(index).ok()?;
        let cut = index.saturating_sub(keep).max(self.offset.0);
        let cut_term = self.term(cut).ok()?;
        self.entries.drain(..(cut - self.offset.0) as usize);
        self.offset = (cut, cut_term);
        let snapshot = SnapshotRecord { index, term, data: group.wrap(state) };
        self.group = group.clone();
        self.snapshot = Some(snapshot.clone());
        Some(snapshot)
    }
}

pub(crate) fn encode_entry(entry: &Entry) -> LogEntry {
    let bytes = entry.write_to_bytes().expect("an entry in memory always encodes");
    LogEntry { index: entry.index, term: entry.term, bytes }
}

fn decode_entry(entry: &LogEntry) -> Result<Entry, ConsensusError> {
    let decoded = Entry::parse_from_bytes(&entry.bytes)
        .map_err(|error| ConsensusError::Log(format!("entry {}: {error}", entry.index)))?;
    if (decoded.index, decoded.term) != (entry.index, entry.term) {
        return Err(ConsensusError::Log(format!("entry {} holds entry {}", entry.index, decoded.index)));
    }
    Ok(decoded)
}

impl Storage for MemoryLog {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState { hard_state: self.hard_state.clone(), conf_state: self.initial.clone() })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.offset.0 {
            return Err(StorageError::Compacted.into());
        }
        if high > self.last() + 1 {
            return Err(StorageError::Unavailable.into());
        }
        let (from, to) = (low - self.offset.0 - 1, high - self.offset.0 - 1);
        let limit = max_size.into().unwrap_or(u64::MAX);
        let mut bytes = 0;
        let mut entries = Vec::new();
        // Only what fits is copied: a peer far behind asks for the whole log at every message.
        for entry in &self.entries[from as usize..to as usize] {
            bytes += u64::from(entry.compute_size());
            if bytes > limit && !entries.is_empty() {
                break;
            }
            entries.push(entry.clone());
        }
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.offset.0 {
            return Ok(self.offset.1);
        }
        if let Some(snapshot) = &self.snapshot
            && index == snapshot.index
        {
            return Ok(snapshot.term);
        }
        let Some(at) = index.checked_sub(self.offset.0 + 1) else {
            return Err(StorageError::Compacted.into());
        };
        self.entries.get(at as usize).map(|entry| entry.term).ok_or_else(|| StorageError::Unavailable.into())
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.offset.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        // Nobody takes a snapshot of a group that it is not of.
        let knows = self.group.contains(PeerId(to));
        let record = self.snapshot.as_ref().filter(|record| knows && record.index >= request_index);
        let Some(record) = record else {
            self.wanted.set(true);
            return Err(StorageError::SnapshotTemporarilyUnavailable.into());
        };
        let mut snapshot = Snapshot { data: record.data.clone().into(), ..Snapshot::default() };
        let metadata = snapshot.mut_metadata();
        metadata.index = record.index;
        metadata.term = record.term;
        metadata.set_conf_state(self.group.conf_state());
        Ok(snapshot)
    }
}
