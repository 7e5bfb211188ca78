//! The log under crashes, damage and time.

use super::super::error::LogError;
use super::LogStore;
use kvhive_consensus::{LogBatch, LogEntry, Restored, SnapshotRecord};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn entry(index: u64, term: u64) -> LogEntry {
    LogEntry { index, term, bytes: format!("entry {index} of term {term}").into_bytes() }
}

fn entries(range: std::ops::Range<u64>, term: u64) -> LogBatch {
    LogBatch { entries: range.map(|index| entry(index, term)).collect(), ..LogBatch::default() }
}

fn voted(term: u8) -> LogBatch {
    LogBatch { hard_state: Some(vec![term; 5]), ..LogBatch::default() }
}

fn snapshot(index: u64, reset: bool) -> LogBatch {
    let record = SnapshotRecord { index, term: 1, data: vec![index as u8; 1000] };
    LogBatch { snapshot: Some(record), reset, ..LogBatch::default() }
}

/// What a log must hold after these batches.
fn model(batches: &[LogBatch]) -> Restored {
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

fn written(batches: &[LogBatch]) -> TempDir {
    let folder = TempDir::new().expect("a temporary folder");
    let (mut store, empty) = LogStore::open(folder.path()).expect("a fresh log");
    assert_eq!(empty, Restored::default());
    for batch in batches {
        store.write(std::slice::from_ref(batch)).expect("room on disk");
    }
    folder
}

fn reopen(folder: &Path) -> Result<Restored, LogError> {
    LogStore::open(folder).map(|(_, restored)| restored)
}

fn segment(folder: &Path) -> PathBuf {
    folder.join("log-0000000000000001")
}

fn some_batches() -> Vec<LogBatch> {
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
fn a_log_is_one_processs() {
    let folder = written(&some_batches());
    let held = LogStore::open(folder.path()).expect("it opens");
    assert!(matches!(reopen(folder.path()), Err(LogError::InUse { .. })));
    drop(held);
    reopen(folder.path()).expect("it is free again");
}

/// The bytes of a log before and after its last batch.
fn last_batch() -> (TempDir, Vec<LogBatch>, Vec<u8>, usize, usize) {
    let mut batches = some_batches();
    let end = |folder: &Path| {
        let bytes = fs::read(segment(folder)).expect("it is there");
        bytes.len() - bytes.iter().rev().take_while(|byte| **byte == 0).count()
    };
    let before = end(written(&batches).path()).next_multiple_of(8);
    batches.push(entries(6..9, 2));
    let folder = written(&batches);
    let after = end(folder.path());
    let bytes = fs::read(segment(folder.path())).expect("it is there");
    (folder, batches, bytes, before, after)
}

#[test]
fn a_torn_last_batch_is_lost_as_a_whole_tail_and_nothing_before_it() {
    let (folder, batches, bytes, before, after) = last_batch();
    let synced = model(&batches[..batches.len() - 1]);
    for cut in before..after {
        for garbage in [0u8, 0xA5] {
            let mut torn = bytes.clone();
            torn[cut..after].fill(garbage);
            fs::write(segment(folder.path()), &torn).expect("room on disk");
            let held = reopen(folder.path()).unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
            assert_eq!(held.hard_state, synced.hard_state);
            assert!(held.entries.starts_with(&synced.entries), "cut at {cut}");
            // The torn end is gone for good: it opens the same once more, and takes new entries.
            let (mut store, again) = LogStore::open(folder.path()).expect("it opens");
            assert_eq!(again, held);
            let next = again.entries.last().expect("entries").index + 1;
            store.write(&[entries(next..next + 1, 3)]).expect("room on disk");
            drop(store);
            assert_eq!(reopen(folder.path()).expect("it opens").entries.last(), Some(&entry(next, 3)));
        }
    }
}

#[test]
fn a_flipped_bit_in_what_was_synced_is_never_passed_over() {
    let (folder, batches, bytes, before, _) = last_batch();
    let whole = model(&batches);
    for at in 0..before {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        fs::write(segment(folder.path()), &flipped).expect("room on disk");
        match reopen(folder.path()) {
            Err(LogError::Corrupt { .. } | LogError::Format { .. }) => {}
            // A bit of padding carries nothing.
            Ok(held) => assert_eq!(held, whole, "byte {at}"),
            Err(error) => panic!("byte {at}: {error}"),
        }
    }
}

#[test]
fn a_snapshot_lets_old_segments_go() {
    let folder = TempDir::new().expect("a temporary folder");
    let (mut store, _) = LogStore::open(folder.path()).expect("a fresh log");
    let mut batches = vec![voted(1)];
    let large = |index| LogBatch {
        entries: vec![LogEntry { index, term: 1, bytes: vec![index as u8; 1 << 20] }],
        ..LogBatch::default()
    };
    batches.extend((1..=12).map(large));
    batches.push(snapshot(9, false));
    batches.extend((13..=14).map(large));
    for batch in &batches {
        store.write(std::slice::from_ref(batch)).expect("room on disk");
    }
    drop(store);
    let segments = fs::read_dir(folder.path()).expect("it is there").count();
    assert!(segments <= 6, "{segments} files are left");
    assert!(!segment(folder.path()).exists(), "the first segment is gone");
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
fn an_interrupted_snapshot_leaves_the_old_state() {
    let batches = [voted(1), entries(1..20, 1), snapshot(10, false)];
    let folder = written(&batches);
    // Cut off while writing the next one beside; and after renaming it, before the log knew.
    fs::write(folder.path().join("snapshot.next"), b"half a snaps").expect("room on disk");
    assert_eq!(reopen(folder.path()).expect("it opens"), model(&batches));
    assert!(!folder.path().join("snapshot.next").exists());
    fs::write(folder.path().join(format!("snapshot-{:016x}", 15)), b"complete, say").expect("room on disk");
    assert_eq!(reopen(folder.path()).expect("it opens"), model(&batches));
    assert!(!folder.path().join(format!("snapshot-{:016x}", 15)).exists());
}

#[test]
fn a_damaged_or_missing_snapshot_refuses_to_open() {
    let folder = written(&[voted(1), entries(1..20, 1), snapshot(10, false)]);
    let file = folder.path().join(format!("snapshot-{:016x}", 10));
    let bytes = fs::read(&file).expect("it is there");
    for at in [0, 9, 30, 41, 60, bytes.len() - 1] {
        let mut flipped = bytes.clone();
        flipped[at] ^= 4;
        fs::write(&file, &flipped).expect("room on disk");
        assert!(matches!(reopen(folder.path()), Err(LogError::Corrupt { .. })), "byte {at}");
    }
    fs::remove_file(&file).expect("it is there");
    assert!(matches!(reopen(folder.path()), Err(LogError::Io { .. })));
}

#[test]
fn a_missing_segment_or_one_of_another_log_refuses_to_open() {
    let other = written(&some_batches());
    let folder = TempDir::new().expect("a temporary folder");
    let (mut store, _) = LogStore::open(folder.path()).expect("a fresh log");
    for index in 1..=9 {
        let large = LogEntry { index, term: 1, bytes: vec![1; 1 << 20] };
        store.write(&[LogBatch { entries: vec![large], ..LogBatch::default() }]).expect("room on disk");
    }
    drop(store);
    let second = folder.path().join("log-0000000000000002");
    let bytes = fs::read(&second).expect("it rolled over");
    fs::remove_file(&second).expect("it is there");
    assert!(matches!(reopen(folder.path()), Err(LogError::Corrupt { .. })));
    fs::copy(segment(other.path()), &second).expect("room on disk");
    assert!(matches!(reopen(folder.path()), Err(LogError::Corrupt { .. })));
    fs::write(&second, bytes).expect("room on disk");
    reopen(folder.path()).expect("whole again");
}

#[test]
fn random_batches_with_reopening_agree_with_a_model() {
    let mut word = 7u64;
    let mut random = move |below: u64| {
        word = word.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (word >> 33) % below
    };
    for _ in 0..5 {
        let folder = TempDir::new().expect("a temporary folder");
        let mut batches: Vec<LogBatch> = Vec::new();
        let (mut store, _) = LogStore::open(folder.path()).expect("a fresh log");
        for _ in 0..60 {
            let held = model(&batches);
            let base = held.snapshot.as_ref().map_or(0, |snapshot| snapshot.index);
            let last = held.entries.last().map_or(base, |entry| entry.index);
            let batch = match random(8) {
                0 => voted(random(9) as u8),
                1 if last > base => snapshot(base + 1 + random(last - base), false),
                2 => snapshot(last + 1 + random(3), true),
                _ => {
                    let from = base + 1 + random(last - base + 1);
                    entries(from..from + 1 + random(5), 1 + random(4))
                }
            };
            store.write(std::slice::from_ref(&batch)).expect("room on disk");
            batches.push(batch);
            if random(10) == 0 {
                drop(store);
                let (again, restored) = LogStore::open(folder.path()).expect("it opens");
                assert_eq!(restored, model(&batches));
                store = again;
            }
        }
    }
}
