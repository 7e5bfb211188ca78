//! The store: opens a log and appends batches to it.

use super::error::LogError;
use super::record::{self, MAX_RECORD_BYTES, Standing, encode_anchor, encode_batches, snapshot_of};
use super::recover::{Recovered, recover};
use super::sector::{LogId, Sequence};
use super::segment::{self, Segment, sync_folder};
use super::snapshot::{self, MAX_SNAPSHOT_BYTES};
use kvhive_consensus::{LogBatch, Restored};
use kvhive_steps::step;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

/// A folder for a log, made and locked, so that one process at a time looks into it.
pub struct LogFolder {
    path: PathBuf,
    lock: File,
}

impl LogFolder {
    /// Makes the folder if it is not there, and locks it until this, or the store opened from it, is dropped.
    ///
    /// # Errors
    /// [`LogError::InUse`] while another process has it, [`LogError::Io`] when the system refuses.
    pub fn lock(path: &Path) -> Result<LogFolder, LogError> {
        std::fs::create_dir_all(path).map_err(LogError::io(path))?;
        Ok(LogFolder { path: path.to_owned(), lock: lock(path)? })
    }

    /// Says whether there is a log, or part of one.
    ///
    /// # Errors
    /// [`LogError::Io`] when the system refuses.
    pub fn holds_log(&self) -> Result<bool, LogError> {
        Ok(!segment::list(&self.path)?.is_empty() || holds_snapshots(&self.path)?)
    }

    /// Opens the log, making it if it is not there, and returns what it held.
    ///
    /// # Errors
    /// See [`LogError`]. What was synced and cannot be read back is an error, never left out.
    pub fn open(self) -> Result<(LogStore, Restored), LogError> {
        let LogFolder { path: folder, lock } = self;
        let found = segment::list(&folder)?;
        if found.is_empty() {
            return Ok((LogStore::make(&folder, lock)?, Restored::default()));
        }
        let Recovered { log, standing, entries, sequence, older, last, highest } = recover(&folder, &found)?;
        let snapshot = standing.snapshot.map(|name| snapshot::read(&folder, log, name)).transpose()?;
        snapshot::remove_others(&folder, standing.snapshot.map(|name| name.index))?;
        let restored = Restored { snapshot, entries, hard_state: standing.hard_state.clone() };
        let store = LogStore {
            folder,
            log,
            sequence,
            standing,
            current: last,
            highest,
            older,
            poisoned: false,
            _lock: lock,
        };
        Ok((store, restored))
    }
}

/// A durable raft log. Calls block; give it a thread of its own.
pub struct LogStore {
    folder: PathBuf,
    log: LogId,
    /// The last record that is durable.
    sequence: Sequence,
    standing: Standing,
    current: Segment,
    /// The highest entry index in the current segment.
    highest: u64,
    /// Older segments from the oldest on, with the highest entry index in each.
    older: Vec<(PathBuf, u64)>,
    poisoned: bool,
    _lock: File,
}

impl LogStore {
    /// Opens the log in `folder`, making both if they are not there, and returns what it held.
    ///
    /// # Errors
    /// See [`LogError`]. What was synced and cannot be read back is an error, never left out.
    pub fn open(folder: &Path) -> Result<(LogStore, Restored), LogError> {
        LogFolder::lock(folder)?.open()
    }

    /// Appends batches, in order, under one sync as long as they fit into one record; durable when this returns.
    ///
    /// # Errors
    /// See [`LogError`]. After [`LogError::TooLarge`] and [`LogError::Gap`] the log is as it was; any other error poisons
    /// the store: nothing is written after it, and the process must end.
    pub fn write(&mut self, batches: &[LogBatch]) -> Result<(), LogError> {
        if self.poisoned {
            return Err(LogError::Poisoned);
        }
        self.check(batches)?;
        self.poisoned = true;
        for snapshot in batches.iter().filter_map(|batch| batch.snapshot.as_ref()) {
            snapshot::write(&self.folder, self.log, snapshot)?;
        }
        let mut rest = batches;
        while !rest.is_empty() {
            let (group, later) = rest.split_at(group_length(rest));
            self.append(group)?;
            rest = later;
        }
        if batches.iter().any(|batch| batch.snapshot.is_some()) {
            self.compact()?;
        }
        self.poisoned = false;
        Ok(())
    }

    fn make(folder: &Path, lock: File) -> Result<LogStore, LogError> {
        if holds_snapshots(folder)? {
            return Err(LogError::corrupt(folder, 0, "there are snapshots and no log"));
        }
        let mut id = [0; 16];
        getrandom::fill(&mut id)
            .map_err(|error| LogError::io(folder)(std::io::Error::other(error.to_string())))?;
        let (log, sequence, standing) = (LogId(id), Sequence(1), Standing::default());
        let current = Segment::create(folder, (log, 1, sequence), &encode_anchor(&standing), 0)?;
        // The folder's own name must last as well.
        if let Some(parent) = folder.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            step("log: sync parent").map_err(LogError::io(parent))?;
            sync_folder(parent)?;
        }
        Ok(LogStore {
            folder: folder.to_owned(),
            log,
            sequence,
            standing,
            current,
            highest: 0,
            older: Vec::new(),
            poisoned: false,
            _lock: lock,
        })
    }

    /// Checks that every batch can be written and read back, before anything is written.
    fn check(&self, batches: &[LogBatch]) -> Result<(), LogError> {
        let mut standing = self.standing.clone();
        for batch in batches {
            let snapshot = batch.snapshot.as_ref().map_or(0, |record| record.data.len() as u64);
            let sizes = [(record::bytes_of(batch), MAX_RECORD_BYTES), (snapshot, MAX_SNAPSHOT_BYTES)];
            for (bytes, limit) in sizes {
                if bytes > limit {
                    return Err(LogError::TooLarge { bytes, limit });
                }
            }
            follow(&mut standing, batch)?;
        }
        Ok(())
    }

    /// Appends batches as one record.
    fn append(&mut self, batches: &[LogBatch]) -> Result<(), LogError> {
        let record = encode_batches(batches);
        if !self.current.fits(record.len() as u64) {
            self.roll(record.len() as u64)?;
        }
        self.current.append(self.sequence.next(), &record)?;
        self.sequence = self.sequence.next();
        for batch in batches {
            follow(&mut self.standing, batch)?;
            self.highest = batch.entries.last().map_or(self.highest, |entry| self.highest.max(entry.index));
        }
        Ok(())
    }

    /// Begins a segment with room for a record of `room_bytes` bytes.
    fn roll(&mut self, room_bytes: u64) -> Result<(), LogError> {
        let place = (self.log, self.current.header.number + 1, self.sequence.next());
        let next = Segment::create(&self.folder, place, &encode_anchor(&self.standing), room_bytes)?;
        let old = std::mem::replace(&mut self.current, next);
        self.older.push((old.path, std::mem::take(&mut self.highest)));
        self.sequence = self.sequence.next();
        Ok(())
    }

    /// Removes segments and snapshots that the newest snapshot makes needless.
    fn compact(&mut self) -> Result<(), LogError> {
        let index = self.standing.snapshot.map(|name| name.index);
        while let Some((path, highest)) = self.older.first()
            && Some(*highest) <= index
        {
            step("log: remove segment").map_err(LogError::io(path))?;
            std::fs::remove_file(path).map_err(LogError::io(path))?;
            self.older.remove(0);
            // Each before the next, so that what is left never has a gap.
            step("log: sync removal").map_err(LogError::io(&self.folder))?;
            sync_folder(&self.folder)?;
        }
        snapshot::remove_others(&self.folder, index)
    }
}

/// Says whether there are snapshots that were complete.
fn holds_snapshots(folder: &Path) -> Result<bool, LogError> {
    Ok(snapshot::others(folder, None)?.iter().any(|path| path.extension().is_none()))
}

/// Locks the folder for as long as the file is open.
fn lock(folder: &Path) -> Result<File, LogError> {
    let path = folder.join("lock");
    let mut options = OpenOptions::new();
    let lock = options.create(true).truncate(false).write(true).open(&path).map_err(LogError::io(&path))?;
    match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(LogError::InUse { path: folder.to_owned() }),
        Err(errno) => Err(LogError::Io { path, source: errno.into() }),
    }
}

fn follow(standing: &mut Standing, batch: &LogBatch) -> Result<(), LogError> {
    standing.follow(snapshot_of(batch), batch.reset, &batch.entries, batch.hard_state.as_deref())
}

/// Returns how many of the batches, at least one, fit into one record.
fn group_length(batches: &[LogBatch]) -> usize {
    let mut bytes = 0;
    let over = batches.iter().position(|batch| {
        bytes += record::bytes_of(batch);
        bytes > MAX_RECORD_BYTES
    });
    over.unwrap_or(batches.len()).max(1)
}

#[cfg(test)]
#[path = "crash_test.rs"]
mod crash_tests;
#[cfg(test)]
#[path = "damage_test.rs"]
mod damage_tests;
#[cfg(test)]
#[path = "store_test.rs"]
mod tests;
