//! Snapshot files: written beside, synced, renamed; a file under its name is complete.

use super::error::LogError;
use super::segment::{fail, sync_folder};
use kvhive_consensus::SnapshotRecord;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

const MAGIC: [u8; 8] = *b"KVHSNAP1";
const HEADER: usize = 48;

fn path_of(folder: &Path, index: u64) -> PathBuf {
    folder.join(format!("snapshot-{index:016x}"))
}

/// Writes a snapshot; durable when this returns.
pub(super) fn write(folder: &Path, log: u128, snapshot: &SnapshotRecord) -> Result<(), LogError> {
    let next = folder.join("snapshot.next");
    let mut head = [0u8; HEADER];
    head[0..8].copy_from_slice(&MAGIC);
    head[8..24].copy_from_slice(&log.to_le_bytes());
    head[24..32].copy_from_slice(&snapshot.index.to_le_bytes());
    head[32..40].copy_from_slice(&snapshot.term.to_le_bytes());
    let crc = checksum(&head, &snapshot.data);
    head[40..44].copy_from_slice(&crc.to_le_bytes());
    let written = File::create(&next).and_then(|mut file| {
        file.write_all(&head)?;
        file.write_all(&snapshot.data)?;
        file.sync_all()
    });
    written.map_err(fail(&next))?;
    std::fs::rename(&next, path_of(folder, snapshot.index)).map_err(fail(&next))?;
    sync_folder(folder)
}

/// Reads the snapshot of this index and term.
pub(super) fn read(folder: &Path, log: u128, index: u64, term: u64) -> Result<SnapshotRecord, LogError> {
    let path = path_of(folder, index);
    let bytes = std::fs::read(&path).map_err(fail(&path))?;
    let corrupt =
        |reason: &str| LogError::Corrupt { path: path.clone(), offset: 0, reason: reason.to_owned() };
    let Some((head, data)) = bytes.split_at_checked(HEADER) else {
        return Err(corrupt("shorter than its header"));
    };
    let crc = u32::from_le_bytes([head[40], head[41], head[42], head[43]]);
    let word = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("eight bytes"));
    if head[0..8] != MAGIC || crc != checksum(head, data) {
        return Err(corrupt("the snapshot does not match its checksum"));
    }
    if head[8..24] != log.to_le_bytes() || (word(24), word(32)) != (index, term) {
        return Err(corrupt("the snapshot is of another log, index or term"));
    }
    Ok(SnapshotRecord { index, term, data: data.to_vec() })
}

/// Removes every snapshot but the one of this index, and what an interrupted write left.
pub(super) fn remove_others(folder: &Path, keep: u64) -> Result<(), LogError> {
    for entry in std::fs::read_dir(folder).map_err(fail(folder))? {
        let path = entry.map_err(fail(folder))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if (name.starts_with("snapshot-") && path != path_of(folder, keep)) || name.ends_with(".next") {
            std::fs::remove_file(&path).map_err(fail(&path))?;
        }
    }
    Ok(())
}

fn checksum(head: &[u8], data: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&head[..40]);
    crc.update(data);
    crc.finalize()
}
