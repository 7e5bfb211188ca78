//! Snapshot files: written beside, synced, renamed; a file under its name is complete. It counts once a record in the log
//! names it, and the one before it goes after that record is synced.

use super::error::LogError;
use super::record::SnapshotName;
use super::sector::{LogId, read_u32, read_u64};
use super::segment::sync_folder;
use kvhive_consensus::SnapshotRecord;
use kvhive_steps::step;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// The largest state, in bytes.
pub(super) const MAX_SNAPSHOT_BYTES: u64 = 256 << 20;

const MAGIC: [u8; 8] = *b"KVHSNAP\0";
/// The format of snapshot files. The header's layout stays the same in every format.
const FORMAT: u32 = 3;
const HEADER_BYTES: usize = 48;
const NEXT_NAME: &str = "snapshot.next";

fn path_of(folder: &Path, index: u64) -> PathBuf {
    folder.join(format!("snapshot-{index:016x}"))
}

/// Writes a snapshot; durable when this returns.
pub(super) fn write(folder: &Path, log: LogId, snapshot: &SnapshotRecord) -> Result<(), LogError> {
    write_beside(folder, log, snapshot)?;
    publish(folder, snapshot.index)
}

/// Writes a snapshot under a name that nobody reads.
fn write_beside(folder: &Path, log: LogId, snapshot: &SnapshotRecord) -> Result<(), LogError> {
    let next = folder.join(NEXT_NAME);
    let mut head = [0; HEADER_BYTES];
    head[..8].copy_from_slice(&MAGIC);
    head[8..24].copy_from_slice(&log.0);
    head[24..32].copy_from_slice(&snapshot.index.to_le_bytes());
    head[32..40].copy_from_slice(&snapshot.term.to_le_bytes());
    head[40..44].copy_from_slice(&FORMAT.to_le_bytes());
    let sum = sum(&head, &snapshot.data);
    head[44..].copy_from_slice(&sum.to_le_bytes());
    let fail = LogError::io(&next);
    step("snapshot: make").map_err(&fail)?;
    let mut file = File::create(&next).map_err(&fail)?;
    step("snapshot: write header").map_err(&fail)?;
    file.write_all(&head).map_err(&fail)?;
    step("snapshot: write state").map_err(&fail)?;
    file.write_all(&snapshot.data).map_err(&fail)?;
    step("snapshot: sync").map_err(&fail)?;
    file.sync_all().map_err(LogError::sync(&next))
}

/// Gives what was written beside its name.
fn publish(folder: &Path, index: u64) -> Result<(), LogError> {
    let next = folder.join(NEXT_NAME);
    step("snapshot: name").map_err(LogError::io(&next))?;
    std::fs::rename(&next, path_of(folder, index)).map_err(LogError::io(&next))?;
    step("snapshot: sync name").map_err(LogError::io(folder))?;
    sync_folder(folder)
}

/// Reads the snapshot of this name, which the log says is there.
pub(super) fn read(folder: &Path, log: LogId, name: SnapshotName) -> Result<SnapshotRecord, LogError> {
    let path = path_of(folder, name.index);
    let corrupt = |reason: &str| LogError::corrupt(&path, 0, reason);
    let mut file = match File::open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(corrupt("the log needs this snapshot and it is not there"));
        }
        opened => opened.map_err(LogError::io(&path))?,
    };
    let length = file.metadata().map_err(LogError::io(&path))?.len();
    if length > HEADER_BYTES as u64 + MAX_SNAPSHOT_BYTES {
        return Err(corrupt("the snapshot is longer than any is written"));
    }
    let mut bytes = Vec::with_capacity(length as usize);
    file.read_to_end(&mut bytes).map_err(LogError::io(&path))?;
    let Some((head, data)) = bytes.split_at_checked(HEADER_BYTES) else {
        return Err(corrupt("the snapshot is shorter than its header"));
    };
    if head[..8] != MAGIC || read_u32(&head[44..]) != sum(head, data) {
        return Err(corrupt("the snapshot does not match its checksum"));
    }
    let found = read_u32(&head[40..]);
    if found != FORMAT {
        return Err(LogError::Format { path, found, expected: FORMAT });
    }
    if head[8..24] != log.0 || (read_u64(&head[24..]), read_u64(&head[32..])) != (name.index, name.term) {
        return Err(corrupt("the snapshot is of another log, index or term"));
    }
    bytes.drain(..HEADER_BYTES);
    Ok(SnapshotRecord { index: name.index, term: name.term, data: bytes })
}

/// Returns every snapshot file in `folder` but the one of index `keep`, and what interrupted writes left.
pub(super) fn others(folder: &Path, keep: Option<u64>) -> Result<Vec<PathBuf>, LogError> {
    let kept = keep.map(|index| path_of(folder, index));
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(LogError::io(folder))? {
        let path = entry.map_err(LogError::io(folder))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is_snapshot = name.starts_with("snapshot-") && kept.as_ref() != Some(&path);
        if is_snapshot || name == NEXT_NAME || name == super::segment::NEXT_NAME {
            found.push(path);
        }
    }
    Ok(found)
}

/// Removes what [`others`] finds.
pub(super) fn remove_others(folder: &Path, keep: Option<u64>) -> Result<(), LogError> {
    for path in others(folder, keep)? {
        step("log: remove what is left over").map_err(LogError::io(&path))?;
        std::fs::remove_file(&path).map_err(LogError::io(&path))?;
    }
    Ok(())
}

fn sum(head: &[u8], data: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&head[..44]);
    hasher.update(data);
    hasher.finalize()
}
