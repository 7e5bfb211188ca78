//! The log over time: writing, reopening, snapshots, and random batches against a model.

use super::super::error::LogError;
use super::super::record::MAX_RECORD_BYTES;
use super::super::sector::SECTOR_BYTES;
use super::super::segment::{SEGMENT_BYTES, path_of};
use super::LogStore;
use kvhive_consensus::{LogBatch, LogEntry, Restored, SnapshotRecord};
use std::fs::{self, File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use tempfile::TempDir;

pub(super) fn entry(index: u64, term: u64) -> LogEntry {
    LogEntry { index, term, bytes: format!("entry {index} of term {term}").into_bytes() }
}

pub(super) fn entries(range: Range<u64>, term: u64) -> LogBatch {
    LogBatch { entries: range.map(|index| entry(index, term)).collect(), ..LogBatch::default() }
}

/// One entry of `bytes` bytes.
pub(super) fn large(index: u64, bytes: usize) -> LogBatch {
    let entry = LogEntry { index, term: 1, bytes: vec![index as u8; bytes] };
    LogBatch { entries: vec![entry], ..LogBatch::default() }
}

pub(super) fn voted(term: u8) -> LogBatch {
    LogBatch { hard_state: Some(vec![term; 5]), ..LogBatch::default() }
}

pub(super) fn snapshot(index: u64, reset: bool) -> LogBatch {
    let record = SnapshotRecord { index, term: 1, data: vec![index as u8; 1000] };
    LogBatch { snapshot: Some(record), reset, ..LogBatch::default() }
}

/// What a log must hold after these batches.
pub(super) fn model(batches: &[LogBatch]) -> Restored {
    let mut held = Restored::default();
    for batch in batches {
        if let Some(snapshot) = &batch.snapshot {
            held.entries.retain(|entry| !batch.reset && entry.index > snapshot.index);
            held.snapshot = Some(snapshot.clone());
        }
        if let Some(first) = batch.entries.first() {
            held.entries.retain(|entry| entry.index < first.index);
            held.entries.extend(batch.entries.clone());
        }
        if batch.hard_state.is_some() {
            held.hard_state = batch.hard_state.clone();
        }
    }
    held
}

pub(super) fn write_each(store: &mut LogStore, batches: &[LogBatch]) {
    for batch in batches {
        store.write(std::slice::from_ref(batch)).expect("room on disk");
    }
}

pub(super) fn written(batches: &[LogBatch]) -> TempDir {
    let folder = TempDir::new().expect("a temporary folder");
    let (mut store, empty) = LogStore::open(folder.path()).expect("a fresh log");
    assert_eq!(empty, Restored::default());
    write_each(&mut store, batches);
    folder
}

pub(super) fn reopen(folder: &Path) -> Result<Restored, LogError> {
    LogStore::open(folder).map(|(_, restored)| restored)
}

pub(super) fn some_batches() -> Vec<LogBatch> {
    vec![voted(1), entries(1..4, 1), entries(4..5, 1), voted(2), entries(3..6, 2)]
}

#[test]
fn what_was_written_is_read_back_and_written_on() {
    let mut batches = some_batches();
    let folder = written(&batches);
    for round in 0..3 {
        let (mut store, restored) = LogStore::open(folder.path()).expect("it opens");
        assert_eq!(restored, model(&batches));
        let more = [entries(6 + round..7 + round, 2), voted(3)];
        store.write(&more).expect("room on disk");
        batches.extend(more);
    }
    assert_eq!(reopen(folder.path()).expect("it opens"), model(&batches));
}

#[test]
fn entries_at_a_lower_index_replace_those_from_there_on() {
    let folder = written(&[entries(1..9, 1), entries(4..6, 2)]);
    let held = reopen(folder.path()).expect("it opens").entries;
    assert_eq!(held, [entry(1, 1), entry(2, 1), entry(3, 1), entry(4, 2), entry(5, 2)]);
}

#[test]
fn a_log_is_one_processs() {
    let folder = written(&some_batches());
    let held = LogStore::open(folder.path()).expect("it opens");
    assert!(matches!(reopen(folder.path()), Err(LogError::InUse { .. })));
    drop(held);
    reopen(folder.path()).expect("it is free again");
}

#[test]
fn a_failed_sync_ends_all_writing() {
    let folder = written(&some_batches());
    let (mut store, before) = LogStore::open(folder.path()).expect("it opens");
    // It takes every byte and cannot be synced.
    store.current.file = OpenOptions::new().write(true).open("/dev/null").expect("a null device");
    assert!(matches!(store.write(&[entries(6..7, 2)]), Err(LogError::Sync { .. })));
    store.current.file = File::options().write(true).open(&store.current.path).expect("it is there");
    assert!(matches!(store.write(&[entries(6..7, 2)]), Err(LogError::Poisoned)), "it is not tried again");
    drop(store);
    assert_eq!(reopen(folder.path()).expect("it opens"), before);
}

#[test]
fn a_batch_that_does_not_follow_or_fit_is_refused_whole() {
    let batches = [entries(1..9, 1), snapshot(4, false)];
    let folder = written(&batches);
    let (mut store, _) = LogStore::open(folder.path()).expect("it opens");
    let mut holey = entries(9..12, 1);
    holey.entries.remove(1);
    for wrong in [entries(10..11, 1), entries(4..5, 2), snapshot(9, false), snapshot(3, true), holey] {
        let refused = store.write(&[voted(7), wrong]);
        assert!(matches!(refused, Err(LogError::Gap { .. })), "{refused:?}");
    }
    let refused = store.write(&[voted(7), large(9, MAX_RECORD_BYTES as usize)]);
    assert!(matches!(refused, Err(LogError::TooLarge { .. })), "{refused:?}");
    drop(store);
    assert_eq!(reopen(folder.path()).expect("it opens"), model(&batches));
}

#[test]
fn many_batches_go_under_one_sync_and_more_than_a_record_holds_under_several() {
    let folder = TempDir::new().expect("a temporary folder");
    let (mut store, _) = LogStore::open(folder.path()).expect("a fresh log");
    let before = store.sequence.0;
    let small: Vec<LogBatch> = (1..=20).map(|index| large(index, 10)).collect();
    store.write(&small).expect("room on disk");
    assert_eq!(store.sequence.0, before + 1);
    let third = MAX_RECORD_BYTES as usize / 3;
    let mut batches = small;
    let big: Vec<LogBatch> = (21..=23).map(|index| large(index, third)).collect();
    store.write(&big).expect("room on disk");
    batches.extend(big);
    drop(store);
    assert_eq!(reopen(folder.path()).expect("it opens"), model(&batches));
}

#[test]
fn a_snapshot_lets_old_segments_go_and_keeps_the_vote() {
    let folder = TempDir::new().expect("a temporary folder");
    let (mut store, _) = LogStore::open(folder.path()).expect("a fresh log");
    let each = SEGMENT_BYTES as usize / 3;
    let mut batches = vec![voted(1)];
    batches.extend((1..=12).map(|index| large(index, each)));
    batches.push(snapshot(9, false));
    write_each(&mut store, &batches);
    assert!(!path_of(folder.path(), 1).exists(), "the first segment is gone");
    assert!(store.older.len() <= 2, "{} older segments are left", store.older.len());
    drop(store);
    // Nothing but the later segments says who was voted for.
    assert_eq!(reopen(folder.path()).expect("it opens"), model(&batches));
}

#[test]
fn a_leaders_snapshot_replaces_the_whole_log() {
    let batches = [voted(1), entries(1..20, 1), snapshot(10, true), entries(11..13, 2)];
    let folder = written(&batches);
    let held = reopen(folder.path()).expect("it opens");
    assert_eq!(held, model(&batches));
    assert_eq!(held.entries, [entry(11, 2), entry(12, 2)]);
}

#[test]
fn a_crash_while_a_segment_is_made_leaves_no_trace() {
    let folder = TempDir::new().expect("a temporary folder");
    fs::write(folder.path().join("log.next"), b"half a segm").expect("room on disk");
    let (mut store, empty) = LogStore::open(folder.path()).expect("nothing was written yet");
    assert_eq!(empty, Restored::default());
    let batches = some_batches();
    write_each(&mut store, &batches);
    drop(store);
    fs::write(folder.path().join("log.next"), b"half a segm").expect("room on disk");
    assert_eq!(reopen(folder.path()).expect("it opens"), model(&batches));
    assert!(!folder.path().join("log.next").exists());
}

#[test]
fn random_batches_crashes_and_reopening_agree_with_a_model() {
    for seed in 0..8 {
        let mut word = seed;
        let mut random = move |below: u64| {
            word = u64::wrapping_mul(word, 6364136223846793005).wrapping_add(1442695040888963407);
            (word >> 33) % below
        };
        let folder = TempDir::new().expect("a temporary folder");
        let mut batches: Vec<LogBatch> = Vec::new();
        let (mut store, _) = LogStore::open(folder.path()).expect("a fresh log");
        for step in 0..80 {
            let held = model(&batches);
            let base = held.snapshot.as_ref().map_or(0, |snapshot| snapshot.index);
            let last = held.entries.last().map_or(base, |entry| entry.index);
            let batch = match random(8) {
                0 => voted(random(9) as u8),
                1 if last > base => snapshot(base + 1 + random(last - base), false),
                2 if random(3) == 0 => snapshot(last + 1 + random(3), true),
                3 => large(last + 1, random(9000) as usize),
                _ => {
                    let from = base + 1 + random(last - base + 1);
                    entries(from..from + 1 + random(30), 1 + random(4))
                }
            };
            let (path, from) = (store.current.path.clone(), store.current.next);
            store.write(std::slice::from_ref(&batch)).expect("room on disk");
            let sectors = from..store.current.next;
            let same_segment = store.current.path == path;
            if random(4) == 0 && same_segment && batch.snapshot.is_none() {
                // The crash came before the sync: some of its sectors never reached the disk.
                let lost = sectors.start + random(sectors.end - sectors.start);
                for sector in sectors {
                    if sector == lost || random(2) == 0 {
                        let zeros = [0; SECTOR_BYTES];
                        let at = sector * SECTOR_BYTES as u64;
                        store.current.file.write_all_at(&zeros, at).expect("room on disk");
                    }
                }
            } else {
                batches.push(batch);
                if random(6) != 0 {
                    continue;
                }
            }
            drop(store);
            let (again, restored) = LogStore::open(folder.path()).expect("it opens");
            assert_eq!(restored, model(&batches), "seed {seed} step {step}");
            store = again;
        }
    }
}
