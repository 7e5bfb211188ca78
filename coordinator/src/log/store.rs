//! The store: opens a log and appends batches to it.

use super::error::LogError;
use super::record::{self, Body, MAX_BODY};
use super::recover::{Recovered, recover, restore};
use super::segment::{Header, Segment, fail, sync_folder};
use super::snapshot;
use kvhive_consensus::{LogBatch, Restored};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A durable raft log. Calls block; give it a thread of its own.
pub struct LogStore {
    folder: PathBuf,
    log: u128,
    last_seq: u64,
    synced: u64,
    current: Segment,
    /// Older segments, with the highest entry index in each.
    older: Vec<(PathBuf, u64)>,
    highest: u64,
    hard_state: Option<Vec<u8>>,
    snapshot: Option<(u64, u64)>,
    poisoned: bool,
    _lock: File,
}

impl LogStore {
    /// Opens the log in `folder`, making both if they are not there, and returns what it held.
    ///
    /// # Errors
    /// See [`LogError`]. What was synced and cannot be read back is an error, never left out.
    pub fn open(folder: &Path) -> Result<(LogStore, Restored), LogError> {
        std::fs::create_dir_all(folder).map_err(fail(folder))?;
        let lock_path = folder.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(fail(&lock_path))?;
        match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(LogError::InUse { path: folder.to_owned() }),
            Err(error) => return Err(LogError::Io { path: lock_path, source: error.into() }),
        }
        let found = Segment::list(folder)?;
        if found.is_empty() {
            let mut id = [0; 16];
            getrandom::fill(&mut id).map_err(|error| {
                let source = std::io::Error::other(error.to_string());
                LogError::Io { path: folder.to_owned(), source }
            })?;
            let log = u128::from_le_bytes(id);
            let current = Segment::create(folder, Header { log, number: 1, first_seq: 1 }, 0)?;
            let store = LogStore {
                folder: folder.to_owned(),
                log,
                last_seq: 0,
                synced: 0,
                current,
                older: Vec::new(),
                highest: 0,
                hard_state: None,
                snapshot: None,
                poisoned: false,
                _lock: lock,
            };
            return Ok((store, Restored::default()));
        }
        let Recovered { log, state, last_seq, mut segments, last } = recover(folder, &found)?;
        let restored = restore(folder, log, &state)?;
        snapshot::remove_others(folder, state.snapshot.map_or(0, |(index, _)| index))?;
        let (_, highest) = segments.pop().unwrap_or_default();
        let store = LogStore {
            folder: folder.to_owned(),
            log,
            last_seq,
            // What was read back is on disk, as far as anything is.
            synced: last_seq,
            current: last,
            older: segments,
            highest,
            hard_state: state.hard_state,
            snapshot: state.snapshot,
            poisoned: false,
            _lock: lock,
        };
        // Read from the page cache is not read from the disk: sync before vouching for it.
        store.current.file.sync_data().map_err(fail(&store.current.path))?;
        Ok((store, restored))
    }

    /// Appends batches, in order, under one sync; durable when this returns.
    ///
    /// # Errors
    /// Any error poisons the store: nothing is written after it, and the process should end.
    pub fn write(&mut self, batches: &[LogBatch]) -> Result<(), LogError> {
        if self.poisoned {
            return Err(LogError::Poisoned);
        }
        self.poisoned = true;
        let mut bodies = Vec::new();
        for batch in batches {
            if let Some(record) = &batch.snapshot {
                snapshot::write(&self.folder, self.log, record)?;
                bodies.push(Body::Snapshot { index: record.index, term: record.term, reset: batch.reset });
            }
            bodies.extend(batch.entries.iter().cloned().map(Body::Entry));
            bodies.extend(batch.hard_state.clone().map(Body::HardState));
        }
        self.append(&bodies)?;
        if batches.iter().any(|batch| batch.snapshot.is_some()) {
            self.compact()?;
        }
        self.poisoned = false;
        Ok(())
    }

    fn append(&mut self, bodies: &[Body]) -> Result<(), LogError> {
        let mut out = Vec::new();
        let mut seq = self.last_seq;
        for body in bodies {
            let bytes = match body {
                Body::Entry(entry) => entry.bytes.len() + 16,
                Body::HardState(bytes) => bytes.len(),
                Body::Snapshot { .. } => 17,
            };
            if bytes > MAX_BODY {
                return Err(LogError::TooLarge { bytes, limit: MAX_BODY });
            }
            seq += 1;
            record::encode(self.log, seq, self.synced, body, &mut out);
        }
        if self.current.end + out.len() as u64 > self.current.length {
            self.roll(out.len() as u64)?;
            return self.append(bodies);
        }
        let fail = fail(&self.current.path);
        self.current.file.write_all_at(&out, self.current.end).map_err(&fail)?;
        self.current.file.sync_data().map_err(&fail)?;
        self.current.end += out.len() as u64;
        self.last_seq = seq;
        self.synced = seq;
        for body in bodies {
            match body {
                Body::Entry(entry) => self.highest = self.highest.max(entry.index),
                Body::HardState(bytes) => self.hard_state = Some(bytes.clone()),
                Body::Snapshot { index, term, .. } => self.snapshot = Some((*index, *term)),
            }
        }
        Ok(())
    }

    /// Begins a segment with room for `room` bytes more than what every segment begins with: the hard state and the
    /// snapshot, so that older segments can go.
    fn roll(&mut self, room: u64) -> Result<(), LogError> {
        let mut bodies = Vec::new();
        bodies.extend(self.snapshot.map(|(index, term)| Body::Snapshot { index, term, reset: false }));
        bodies.extend(self.hard_state.clone().map(Body::HardState));
        let header = Header { log: self.log, number: self.current.number + 1, first_seq: self.last_seq + 1 };
        let begin: u64 = 256 + self.hard_state.as_ref().map_or(0, |bytes| bytes.len() as u64);
        let next = Segment::create(&self.folder, header, room + begin)?;
        let old = std::mem::replace(&mut self.current, next);
        self.older.push((old.path, std::mem::take(&mut self.highest)));
        if bodies.is_empty() { Ok(()) } else { self.append(&bodies) }
    }

    /// Removes segments and snapshots that the newest snapshot makes needless.
    fn compact(&mut self) -> Result<(), LogError> {
        let Some((index, _)) = self.snapshot else { return Ok(()) };
        // From the oldest on, so that what is left has no gap. What every segment begins with is in the next one too.
        while let Some((path, highest)) = self.older.first()
            && *highest <= index
        {
            std::fs::remove_file(path).map_err(fail(path))?;
            self.older.remove(0);
        }
        snapshot::remove_others(&self.folder, index)?;
        sync_folder(&self.folder)
    }
}

#[cfg(test)]
#[path = "store_test.rs"]
mod tests;
