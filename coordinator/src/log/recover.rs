//! Reading a log back, and saying what is wrong with it.

use super::error::LogError;
use super::record::{Batch, MAX_RECORD_BYTES, Record, SnapshotName, Standing, claimed_bytes, decode};
use super::sector::{DATA_BYTES, Found, LogId, Place, SECTOR_BYTES, Seal, Sequence, inspect, sectors_for};
use super::segment::{HEADER_SECTORS, Header, MAX_SEGMENT_BYTES, Segment, fill_zeros};
use kvhive_consensus::LogEntry;
use kvhive_steps::step;
use rustix::fs::Advice;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::path::{Path, PathBuf};

/// What a log held, and where writing goes on.
pub(super) struct Recovered {
    pub(super) log: LogId,
    pub(super) standing: Standing,
    /// What follows the snapshot, without a gap.
    pub(super) entries: Vec<LogEntry>,
    /// The last record.
    pub(super) sequence: Sequence,
    /// Segments before the last, with the highest entry index in each.
    pub(super) older: Vec<(PathBuf, u64)>,
    pub(super) last: Segment,
    pub(super) highest: u64,
}

impl Standing {
    /// Takes in a batch of these parts.
    ///
    /// # Errors
    /// [`LogError::Gap`] when it does not follow; nothing of it is taken in then.
    pub(super) fn follow(
        &mut self,
        snapshot: Option<SnapshotName>,
        reset: bool,
        entries: &[LogEntry],
        hard_state: Option<&[u8]>,
    ) -> Result<(), LogError> {
        let mut base = self.snapshot.map_or(0, |name| name.index);
        let mut last = self.last_index;
        if let Some(name) = snapshot {
            let (lowest, highest) = if reset { (base, u64::MAX - 1) } else { (base + 1, last) };
            check(name.index, lowest, highest)?;
            base = name.index;
            last = if reset { base } else { last };
        }
        if let Some(first) = entries.first() {
            check(first.index, base + 1, last + 1)?;
            for pair in entries.windows(2) {
                check(pair[1].index, pair[0].index + 1, pair[0].index + 1)?;
            }
            last = first.index + (entries.len() as u64 - 1);
        }
        self.snapshot = snapshot.or(self.snapshot);
        self.last_index = last;
        if let Some(bytes) = hard_state {
            self.hard_state = Some(bytes.to_vec());
        }
        Ok(())
    }
}

fn check(found: u64, lowest: u64, highest: u64) -> Result<(), LogError> {
    if (lowest..=highest).contains(&found) { Ok(()) } else { Err(LogError::Gap { found, lowest, highest }) }
}

/// Reads the log in `folder`, whose segments are `found`, at least one.
pub(super) fn recover(folder: &Path, found: &[(u64, PathBuf)]) -> Result<Recovered, LogError> {
    let mut standing = Standing::default();
    let mut entries = Vec::new();
    let mut before: Option<(Header, Sequence)> = None;
    let mut older = Vec::new();
    for (at, (number, path)) in found.iter().enumerate() {
        let mut file = open(path)?;
        let bytes = read(path, &mut file)?;
        let header = Header::decode(path, &bytes)?;
        let follows = before.is_none_or(|(earlier, sequence)| {
            (header.log, header.number, header.first) == (earlier.log, earlier.number + 1, sequence.next())
        });
        if header.number != *number || !follows {
            return Err(LogError::corrupt(path, 0, "the segment does not follow the one before it"));
        }
        let Scan { records, next, torn_until } = scan(path, &bytes, &header)?;
        let is_last = at + 1 == found.len();
        if let (false, Some(_)) = (is_last, torn_until) {
            let reason = "a record was cut short, and all were synced before the next segment was made";
            return Err(LogError::corrupt(path, byte_of(next), reason));
        }
        let sequence = Sequence(header.first.0 + records.len() as u64 - 1);
        let highest = replay(path, records, before.is_none(), &mut standing, &mut entries)?;
        if !is_last {
            older.push((path.clone(), highest));
            before = Some((header, sequence));
            continue;
        }
        if let Some(until) = torn_until {
            // Never acknowledged. It goes before anything is written behind it, or it would look like damage then.
            let (from, length) = (byte_of(next), byte_of(until - next));
            step("log: clear torn end").map_err(LogError::io(path))?;
            fill_zeros(&file, from, length).map_err(LogError::io(path))?;
            step("log: sync torn end").map_err(LogError::io(path))?;
            file.sync_data().map_err(LogError::sync(path))?;
        }
        check_whole(folder, &standing, &entries)?;
        let last = Segment { file, path: path.clone(), header, next };
        return Ok(Recovered { log: header.log, standing, entries, sequence, older, last, highest });
    }
    Err(LogError::corrupt(folder, 0, "there is no segment"))
}

fn open(path: &Path) -> Result<File, LogError> {
    OpenOptions::new().read(true).write(true).open(path).map_err(LogError::io(path))
}

/// Reads a segment as it is on the disk.
///
/// A process that ended left pages that were not written: those are synced first. And a failed sync leaves pages that
/// pass for written and are not: those are dropped from the cache before reading.
fn read(path: &Path, file: &mut File) -> Result<Vec<u8>, LogError> {
    file.sync_all().map_err(LogError::sync(path))?;
    rustix::fs::fadvise(&*file, 0, None, Advice::DontNeed)
        .map_err(|errno| LogError::io(path)(errno.into()))?;
    let length = file.metadata().map_err(LogError::io(path))?.len();
    if length > MAX_SEGMENT_BYTES {
        return Err(LogError::corrupt(path, MAX_SEGMENT_BYTES, "the segment is longer than any is made"));
    }
    let mut bytes = Vec::with_capacity(length as usize);
    file.read_to_end(&mut bytes).map_err(LogError::io(path))?;
    Ok(bytes)
}

/// What a segment holds.
struct Scan {
    records: Vec<(u64, Record)>,
    /// The sector behind the last record.
    next: u64,
    /// The sector behind what a cut-short write left.
    torn_until: Option<u64>,
}

fn scan(path: &Path, bytes: &[u8], header: &Header) -> Result<Scan, LogError> {
    if header.sectors.checked_mul(SECTOR_BYTES as u64) != Some(bytes.len() as u64) {
        return Err(LogError::corrupt(path, bytes.len() as u64, "the segment's length has changed"));
    }
    let sector = |at: u64| &bytes[byte_of(at) as usize..byte_of(at + 1) as usize];
    let found = |at: u64| inspect(sector(at), Place { log: header.log, segment: header.number, sector: at });
    let mut records = Vec::new();
    let mut sequence = header.first;
    let mut next = HEADER_SECTORS;
    while next < header.sectors && found(next) == Found::Sealed(Seal { sequence, part: 0 }) {
        let claimed = claimed_bytes(sector(next));
        let count = sectors_for(claimed);
        if claimed == 0 || claimed > MAX_RECORD_BYTES || count > header.sectors - next {
            return Err(LogError::corrupt(path, byte_of(next), "a record claims a length that none has"));
        }
        let whole =
            (1..count).all(|part| found(next + part) == Found::Sealed(Seal { sequence, part: part as u32 }));
        if !whole {
            break;
        }
        let mut record = Vec::with_capacity(count as usize * DATA_BYTES);
        for part in 0..count {
            record.extend_from_slice(&sector(next + part)[..DATA_BYTES]);
        }
        let Some(decoded) = decode(&record[..claimed as usize]) else {
            return Err(LogError::corrupt(path, byte_of(next), "a record makes no sense"));
        };
        records.push((next, decoded));
        next += count;
        sequence = sequence.next();
    }
    if records.is_empty() {
        return Err(LogError::corrupt(path, byte_of(next), "the segment's first record is missing"));
    }
    // Whatever follows must be one write that was cut short: part of the record that is due, never sealed sectors of another.
    let mut torn_until = None;
    for at in next..header.sectors {
        match found(at) {
            Found::Damaged => {
                return Err(LogError::corrupt(path, byte_of(at), "a sector changed after it was written"));
            }
            Found::Sealed(seal) if seal.sequence != sequence => {
                let reason = format!(
                    "record {} is missing, and was synced before record {} behind it was written",
                    sequence.0, seal.sequence.0
                );
                return Err(LogError::corrupt(path, byte_of(next), reason));
            }
            Found::Sealed(_) => torn_until = Some(at + 1),
            Found::Unsealed if sector(at).iter().any(|byte| *byte != 0) => torn_until = Some(at + 1),
            Found::Unsealed => {}
        }
    }
    Ok(Scan { records, next, torn_until })
}

/// Reads a log of one segment; returns how many records it has. For `kvhive-fuzz` alone.
pub(super) fn read_whole(path: &Path, bytes: &[u8], header: &Header) -> Result<usize, LogError> {
    let (mut standing, mut entries) = (Standing::default(), Vec::new());
    let Scan { records, .. } = scan(path, bytes, header)?;
    let count = records.len();
    replay(path, records, true, &mut standing, &mut entries)?;
    check_whole(path, &standing, &entries)?;
    Ok(count)
}

/// Applies a segment's records and returns the highest entry index among them.
fn replay(
    path: &Path,
    records: Vec<(u64, Record)>,
    is_oldest: bool,
    standing: &mut Standing,
    entries: &mut Vec<LogEntry>,
) -> Result<u64, LogError> {
    let mut highest = 0;
    for (at, (sector, record)) in records.into_iter().enumerate() {
        let corrupt = |reason: &str| LogError::corrupt(path, byte_of(sector), reason);
        match record {
            // The oldest segment says what those before it held; every other must agree with what was read.
            Record::Anchor(anchor) if at == 0 && is_oldest => *standing = anchor,
            Record::Anchor(anchor) if at == 0 && anchor == *standing => {}
            Record::Batches(batches) if at > 0 => {
                for batch in batches {
                    let Batch { snapshot, reset, entries: new, hard_state } = batch;
                    standing
                        .follow(snapshot, reset, &new, hard_state.as_deref())
                        .map_err(|gap| corrupt(&gap.to_string()))?;
                    highest = new.last().map_or(highest, |entry| highest.max(entry.index));
                    take_in(entries, snapshot, reset, new);
                }
            }
            _ => return Err(corrupt("the record does not follow from those before it")),
        }
    }
    Ok(highest)
}

fn take_in(entries: &mut Vec<LogEntry>, snapshot: Option<SnapshotName>, reset: bool, new: Vec<LogEntry>) {
    if let Some(name) = snapshot {
        entries.retain(|entry| !reset && entry.index > name.index);
    }
    if let Some(first) = new.first() {
        let keep = entries.partition_point(|held| held.index < first.index);
        entries.truncate(keep);
        entries.extend(new);
    }
}

/// Checks that every entry after the snapshot is there.
fn check_whole(folder: &Path, standing: &Standing, entries: &[LogEntry]) -> Result<(), LogError> {
    let base = standing.snapshot.map_or(0, |name| name.index);
    let expected = base + 1..=standing.last_index;
    if entries.iter().map(|entry| entry.index).eq(expected.clone()) {
        return Ok(());
    }
    let reason = format!("entries {} to {} are not all there", expected.start(), expected.end());
    Err(LogError::corrupt(folder, 0, reason))
}

fn byte_of(sector: u64) -> u64 {
    sector * SECTOR_BYTES as u64
}
