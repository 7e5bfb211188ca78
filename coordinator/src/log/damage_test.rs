//! The log under cut-short writes and damage: the one is dropped, the other never passed over.

use super::super::error::LogError;
use super::super::sector::{DATA_BYTES, SECTOR_BYTES};
use super::super::segment::{HEADER_SECTORS, SEGMENT_BYTES, path_of};
use super::LogStore;
use super::tests::{
    entries, entry, large, model, reopen, snapshot, some_batches, voted, write_each, written,
};
use kvhive_consensus::{LogBatch, Restored};
use kvhive_control::STATE_VERSION;
use std::fs;
use std::ops::Range;
use std::path::Path;
use tempfile::TempDir;

/// A log with one segment, and where in it the last write lies.
struct Log {
    folder: TempDir,
    bytes: Vec<u8>,
    last: Range<usize>,
    /// Without the last write, and with it.
    before: Restored,
    after: Restored,
}

impl Log {
    fn new() -> Log {
        let mut batches = some_batches();
        let before = model(&batches);
        let folder = written(&batches);
        let (mut store, _) = LogStore::open(folder.path()).expect("it opens");
        let start = store.current.next as usize * SECTOR_BYTES;
        let batch = LogBatch { hard_state: Some(vec![9; 5]), ..large(6, 3 * DATA_BYTES) };
        store.write(std::slice::from_ref(&batch)).expect("room on disk");
        batches.push(batch);
        let last = start..store.current.next as usize * SECTOR_BYTES;
        assert_eq!(last.len(), 4 * SECTOR_BYTES);
        let bytes = fs::read(&store.current.path).expect("it is there");
        Log { folder, bytes, last, before, after: model(&batches) }
    }

    fn put(&self, bytes: &[u8]) {
        fs::write(self.path(), bytes).expect("room on disk");
    }

    fn path(&self) -> std::path::PathBuf {
        path_of(self.folder.path(), 1)
    }
}

fn is_corrupt(folder: &Path) -> bool {
    matches!(reopen(folder), Err(LogError::Corrupt { .. }))
}

#[test]
fn a_write_that_missed_any_of_its_sectors_never_happened() {
    let log = Log::new();
    assert_eq!(reopen(log.folder.path()).expect("it opens"), log.after);
    for missing in 1..16u32 {
        let mut torn = log.bytes.clone();
        for (at, sector) in torn[log.last.clone()].chunks_mut(SECTOR_BYTES).enumerate() {
            if missing & (1 << at) != 0 {
                sector.fill(0);
            }
        }
        log.put(&torn);
        let (mut store, held) = LogStore::open(log.folder.path()).expect("a cut-short write is no damage");
        assert_eq!(held, log.before, "missing {missing:04b}");
        // Gone for good: what is written in its place is read back.
        store.write(&[entries(6..7, 3)]).expect("room on disk");
        drop(store);
        let again = reopen(log.folder.path()).expect("it opens");
        assert_eq!(again.entries.last(), Some(&entry(6, 3)), "missing {missing:04b}");
    }
}

#[test]
fn a_write_cut_short_at_any_byte_never_happened() {
    let log = Log::new();
    for cut in log.last.clone() {
        let mut torn = log.bytes.clone();
        torn[cut..].fill(0);
        log.put(&torn);
        let held = reopen(log.folder.path()).unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
        assert_eq!(held, log.before, "cut at {cut}");
    }
}

#[test]
fn garbage_in_place_of_a_write_is_refused_and_left_as_it_is() {
    let log = Log::new();
    for cut in log.last.clone().step_by(7) {
        let mut garbage = log.bytes.clone();
        garbage[cut..log.last.end].fill(0xA5);
        log.put(&garbage);
        assert!(is_corrupt(log.folder.path()), "garbage from byte {cut} on");
        assert_eq!(fs::read(log.path()).expect("it is there"), garbage);
    }
}

#[test]
fn a_flipped_bit_anywhere_in_what_was_written_is_refused() {
    let log = Log::new();
    for at in 0..log.last.end {
        // The last write too: nothing behind it says that it was synced, and still it is not taken for cut short.
        let mut flipped = log.bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        log.put(&flipped);
        assert!(is_corrupt(log.folder.path()), "byte {at}");
    }
}

#[test]
fn a_lost_write_before_the_last_is_refused() {
    let log = Log::new();
    for sector in (HEADER_SECTORS as usize..log.last.start / SECTOR_BYTES).rev() {
        let mut lost = log.bytes.clone();
        lost[sector * SECTOR_BYTES..][..SECTOR_BYTES].fill(0);
        log.put(&lost);
        assert!(is_corrupt(log.folder.path()), "sector {sector}");
    }
    // All of them: a segment has its anchor before it has its name.
    let mut none = log.bytes.clone();
    none[HEADER_SECTORS as usize * SECTOR_BYTES..].fill(0);
    log.put(&none);
    assert!(is_corrupt(log.folder.path()));
}

#[test]
fn a_shortened_or_lengthened_segment_is_refused() {
    let log = Log::new();
    for length in [0, 1, 63, 64, 4095, 4096, log.last.start, log.last.end, log.bytes.len() - 1] {
        log.put(&log.bytes[..length]);
        assert!(is_corrupt(log.folder.path()), "{length} bytes");
    }
    let mut longer = log.bytes.clone();
    longer.push(0);
    log.put(&longer);
    assert!(is_corrupt(log.folder.path()));
}

#[test]
fn another_format_is_named_and_not_called_damage() {
    let log = Log::new();
    let mut newer = log.bytes.clone();
    newer[8] = 77;
    let sum = crc32fast::hash(&newer[..60]);
    newer[60..64].copy_from_slice(&sum.to_le_bytes());
    log.put(&newer);
    let refused = reopen(log.folder.path()).expect_err("it is of the future");
    assert!(refused.to_string().contains("has log format 77, this build reads 3"), "{refused}");
}

#[test]
fn state_of_another_build_is_refused_with_what_to_do_before_any_of_it_is_read() {
    let log = Log::new();
    // 0 is what stood there before versions were written down.
    for version in [0, STATE_VERSION - 1, STATE_VERSION + 1] {
        let mut other = log.bytes.clone();
        other[12..16].copy_from_slice(&version.to_le_bytes());
        let sum = crc32fast::hash(&other[..60]);
        other[60..64].copy_from_slice(&sum.to_le_bytes());
        log.put(&other);
        let refused = reopen(log.folder.path()).expect_err("it is of another build").to_string();
        let said = format!("state of version {version}, this build has version {STATE_VERSION}");
        assert!(refused.contains(&said) && refused.contains("start the build that wrote it"), "{refused}");
        assert_eq!(fs::read(log.path()).expect("readable"), other, "it is left as it is");
    }
}

/// A log of several segments.
fn long() -> TempDir {
    let folder = TempDir::new().expect("a temporary folder");
    let (mut store, _) = LogStore::open(folder.path()).expect("a fresh log");
    let each = SEGMENT_BYTES as usize / 3;
    write_each(&mut store, &(1..=9).map(|index| large(index, each)).collect::<Vec<_>>());
    assert!(store.older.len() >= 3);
    folder
}

#[test]
fn a_missing_segment_or_one_of_another_log_is_refused() {
    let (folder, other) = (long(), long());
    for number in 1..=3 {
        let path = path_of(folder.path(), number);
        let bytes = fs::read(&path).expect("it is there");
        fs::remove_file(&path).expect("it is there");
        assert!(is_corrupt(folder.path()), "segment {number} is missing");
        fs::copy(path_of(other.path(), number), &path).expect("room on disk");
        assert!(is_corrupt(folder.path()), "segment {number} is of another log");
        fs::copy(path_of(folder.path(), number + 1), &path).expect("room on disk");
        assert!(is_corrupt(folder.path()), "segment {number} is its neighbour");
        fs::write(&path, bytes).expect("room on disk");
        reopen(folder.path()).expect("whole again");
    }
}

#[test]
fn a_write_cut_short_before_the_last_segment_is_refused() {
    let folder = long();
    let path = path_of(folder.path(), 2);
    let mut bytes = fs::read(&path).expect("it is there");
    let end = bytes.chunks(SECTOR_BYTES).rposition(|sector| sector.iter().any(|byte| *byte != 0));
    let end = end.expect("it holds records");
    let mut stray = bytes.clone();
    stray[(end + 1) * SECTOR_BYTES] = 1;
    fs::write(&path, stray).expect("room on disk");
    assert!(is_corrupt(folder.path()), "something was begun behind the last record");
    bytes[end * SECTOR_BYTES..][..SECTOR_BYTES].fill(0);
    fs::write(&path, bytes).expect("room on disk");
    assert!(is_corrupt(folder.path()), "the last record is not whole");
}

#[test]
fn a_damaged_or_missing_snapshot_is_refused() {
    let folder = written(&[voted(1), entries(1..20, 1), snapshot(10, false)]);
    let file = folder.path().join(format!("snapshot-{:016x}", 10));
    let bytes = fs::read(&file).expect("it is there");
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        fs::write(&file, &flipped).expect("room on disk");
        assert!(is_corrupt(folder.path()), "byte {at}");
    }
    for length in [0, 47, 48, bytes.len() - 1] {
        fs::write(&file, &bytes[..length]).expect("room on disk");
        assert!(is_corrupt(folder.path()), "{length} bytes");
    }
    fs::remove_file(&file).expect("it is there");
    assert!(is_corrupt(folder.path()));
}

#[test]
fn a_folder_with_snapshots_and_no_log_is_not_taken_for_a_new_one() {
    let folder = written(&[voted(1), entries(1..20, 1), snapshot(10, false)]);
    fs::remove_file(path_of(folder.path(), 1)).expect("it is there");
    assert!(is_corrupt(folder.path()));
}
