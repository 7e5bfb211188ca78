//! Reading a log back.

use super::error::LogError;
use super::record::{self, Body, Record};
use super::segment::{Header, SEGMENT_HEADER, Segment, fail};
use super::snapshot;
use kvhive_consensus::{LogEntry, Restored};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// What a log held, and where writing goes on.
pub(super) struct Recovered {
    pub(super) log: u128,
    pub(super) state: State,
    pub(super) last_seq: u64,
    /// Every segment, with the highest entry index in it.
    pub(super) segments: Vec<(PathBuf, u64)>,
    pub(super) last: Segment,
}

/// The log's content, as records build it up.
#[derive(Clone, Default)]
pub(super) struct State {
    pub(super) entries: Vec<LogEntry>,
    pub(super) hard_state: Option<Vec<u8>>,
    pub(super) snapshot: Option<(u64, u64)>,
}

impl State {
    pub(super) fn apply(&mut self, body: Body) {
        match body {
            Body::Entry(entry) => {
                let keep = self.entries.partition_point(|held| held.index < entry.index);
                self.entries.truncate(keep);
                self.entries.push(entry);
            }
            Body::HardState(bytes) => self.hard_state = Some(bytes),
            Body::Snapshot { index, term, reset } => {
                let cut = if reset {
                    self.entries.len()
                } else {
                    self.entries.partition_point(|held| held.index <= index)
                };
                self.entries.drain(..cut);
                self.snapshot = Some((index, term));
            }
        }
    }
}

/// Reads the log in `folder`, which has at least one segment.
pub(super) fn recover(folder: &Path, found: &[(u64, PathBuf)]) -> Result<Recovered, LogError> {
    let mut state = State::default();
    let mut log: Option<Header> = None;
    let mut segments = Vec::new();
    let mut next_seq = None;
    let mut last = None;
    for (at, (number, path)) in found.iter().enumerate() {
        let bytes = std::fs::read(path).map_err(fail(path))?;
        let header = Header::decode(path, &bytes)?;
        let corrupt = |offset: usize, reason: String| LogError::Corrupt {
            path: path.clone(),
            offset: offset as u64,
            reason,
        };
        let follows = log.is_none_or(|before| before.log == header.log && before.number + 1 == header.number);
        if header.number != *number || !follows || next_seq.is_some_and(|next| next != header.first_seq) {
            return Err(corrupt(0, "the segment does not follow the one before it".to_owned()));
        }
        log = Some(header);
        let mut seq = header.first_seq;
        let mut offset = SEGMENT_HEADER as usize;
        let mut highest = 0;
        while let Some((record, length)) = record::decode(header.log, &bytes[offset..]) {
            if record.seq != seq {
                return Err(corrupt(offset, format!("record {} where {seq} should be", record.seq)));
            }
            if let Body::Entry(entry) = &record.body {
                highest = highest.max(entry.index);
            }
            state.apply(record.body);
            seq += 1;
            offset += length;
        }
        let is_last = at + 1 == found.len();
        let rest = &bytes[offset..];
        let torn = rest.iter().any(|byte| *byte != 0);
        if torn {
            // Segments before the last were synced whole before the next was made.
            let witness = if is_last { find_witness(header.log, rest, seq) } else { Some(offset) };
            if let Some(at) = witness {
                return Err(corrupt(
                    offset,
                    format!("record {seq} was synced (so says the one at byte {at}) and is damaged"),
                ));
            }
        }
        next_seq = Some(seq);
        segments.push((path.clone(), highest));
        if is_last {
            let file = OpenOptions::new().read(true).write(true).open(path).map_err(fail(path))?;
            if torn {
                // The torn end was never acknowledged; gone for good before anything is written behind it.
                file.write_all_at(&vec![0; rest.len()], offset as u64).map_err(fail(path))?;
                file.sync_all().map_err(fail(path))?;
            }
            last = Some(Segment {
                file,
                path: path.clone(),
                number: *number,
                length: bytes.len() as u64,
                end: offset as u64,
            });
        }
    }
    let (Some(header), Some(last), Some(next)) = (log, last, next_seq) else {
        return Err(LogError::Corrupt {
            path: folder.to_owned(),
            offset: 0,
            reason: "no segments".to_owned(),
        });
    };
    Ok(Recovered { log: header.log, state, last_seq: next - 1, segments, last })
}

/// Looks behind a damaged record for one that says that `seq` had been synced; returns where it is.
fn find_witness(log: u128, rest: &[u8], seq: u64) -> Option<usize> {
    (8..rest.len()).step_by(8).find(|at| {
        let plausible = rest[*at..*at + 4] != [0; 4];
        plausible && record::decode(log, &rest[*at..]).is_some_and(|(Record { synced, .. }, _)| synced >= seq)
    })
}

/// Turns a log's content into what consensus starts from.
pub(super) fn restore(folder: &Path, log: u128, state: &State) -> Result<Restored, LogError> {
    let snapshot =
        state.snapshot.map(|(index, term)| snapshot::read(folder, log, index, term)).transpose()?;
    let first = snapshot.as_ref().map_or(0, |snapshot| snapshot.index) + 1;
    for (expected, entry) in (first..).zip(&state.entries) {
        if entry.index != expected {
            let reason = format!("entry {} where {expected} should be", entry.index);
            return Err(LogError::Corrupt { path: folder.to_owned(), offset: 0, reason });
        }
    }
    Ok(Restored { snapshot, entries: state.entries.clone(), hard_state: state.hard_state.clone() })
}
