//! The log when its process ends at any step of a change: the state of before is read back or the new one, never a part, and writing goes on.

use super::super::segment::{SEGMENT_BYTES, path_of};
use super::super::snapshot;
use super::LogStore;
use super::tests::{entries, large, model, reopen, snapshot, some_batches, voted, write_each, written};
use kvhive_consensus::{LogBatch, Restored};
use kvhive_steps::{Ends, at_each};
use std::fs;
use std::os::unix::fs::FileExt;
use tempfile::TempDir;

const SEGMENT: [&str; 8] = [
    "log: make segment",
    "log: size segment",
    "log: zero segment",
    "log: write header",
    "log: write anchor",
    "log: sync segment",
    "log: name segment",
    "log: sync name",
];
const RECORD: [&str; 2] = ["log: write record", "log: sync record"];
const SNAPSHOT: [&str; 6] = [
    "snapshot: make",
    "snapshot: write header",
    "snapshot: write state",
    "snapshot: sync",
    "snapshot: name",
    "snapshot: sync name",
];
const REMOVE: [&str; 2] = ["log: remove segment", "log: sync removal"];
const LEFT_OVER: [&str; 1] = ["log: remove what is left over"];

/// Writes `batch` to a log of `before` up to where it ends. What was written counts from the record on: this process' file system has it.
fn ends_at(ends: &mut Ends, before: &[LogBatch], batch: &LogBatch) {
    let (old, mut all) = (model(before), before.to_vec());
    all.push(batch.clone());
    let folder = written(before);
    let (mut store, _) = LogStore::open(folder.path()).expect("it opens");
    let outcome = ends.run(|| store.write(std::slice::from_ref(batch)));
    assert_eq!(outcome.is_ok(), ends.before().is_none(), "{ends:?}: {outcome:?}");
    if outcome.is_err() {
        assert!(store.write(&[voted(9)]).is_err(), "{ends:?}: nothing is written after a failure");
    }
    drop(store);
    let is_old = ends.is_before("log: write record");
    let expected = if is_old { old } else { model(&all) };
    let (mut store, held) = LogStore::open(folder.path()).expect("it opens");
    assert_eq!(held, expected, "{ends:?}");
    let kept = expected.snapshot.as_ref().map(|snapshot| snapshot.index);
    assert!(
        snapshot::others(folder.path(), kept).expect("a folder").is_empty(),
        "{ends:?}: nothing is left over"
    );
    // Life goes on from either, and what was cut short can be done again.
    if is_old {
        store.write(std::slice::from_ref(batch)).expect("room on disk");
    }
    let more = [voted(8), large(model(&all).entries.last().map_or(1, |entry| entry.index + 1), 700)];
    let has_entries = !model(&all).entries.is_empty();
    let more = if has_entries { &more[..] } else { &more[..1] };
    store.write(more).expect("room on disk");
    drop(store);
    all.extend_from_slice(more);
    assert_eq!(reopen(folder.path()).expect("it opens"), model(&all), "{ends:?}");
}

/// Entries over several segments, behind a snapshot.
fn long() -> Vec<LogBatch> {
    let each = SEGMENT_BYTES as usize / 3;
    let mut batches = vec![voted(1)];
    batches.extend((1..=9).map(|index| large(index, each)));
    batches.push(snapshot(2, false));
    batches
}

#[test]
fn a_log_whose_making_ends_anywhere_is_made_again() {
    at_each(&[&SEGMENT[..], &["log: sync parent"]].concat(), |ends| {
        let folder = TempDir::new().expect("a temporary folder");
        let opened = ends.run(|| LogStore::open(folder.path()).map(drop));
        assert_eq!(opened.is_ok(), ends.before().is_none());
        let (mut store, empty) = LogStore::open(folder.path()).expect("nothing was written yet");
        assert_eq!(empty, Restored::default(), "{ends:?}");
        write_each(&mut store, &some_batches());
        drop(store);
        assert_eq!(reopen(folder.path()).expect("it opens"), model(&some_batches()), "{ends:?}");
    });
}

#[test]
fn a_vote_whose_writing_ends_anywhere_is_the_one_before_or_the_new_one() {
    at_each(&RECORD, |ends| ends_at(ends, &some_batches(), &voted(7)));
}

#[test]
fn entries_whose_new_segment_ends_anywhere_are_there_or_not() {
    let each = SEGMENT_BYTES as usize / 3;
    let batches = [voted(1), large(1, each), large(2, each)];
    at_each(&[&SEGMENT[..], &RECORD].concat(), |ends| ends_at(ends, &batches, &large(3, each)));
}

#[test]
fn a_snapshot_whose_taking_ends_anywhere_leaves_the_old_state_or_the_new() {
    let steps = [&SNAPSHOT[..], &RECORD, &REMOVE, &LEFT_OVER].concat();
    at_each(&steps, |ends| ends_at(ends, &long(), &snapshot(8, false)));
}

#[test]
fn a_leaders_snapshot_whose_taking_ends_anywhere_leaves_the_old_log_or_its_own() {
    let steps = [&SNAPSHOT[..], &RECORD, &REMOVE, &LEFT_OVER].concat();
    at_each(&steps, |ends| ends_at(ends, &long(), &snapshot(40, true)));
}

#[test]
fn what_is_left_over_is_removed_after_a_start_that_ends_anywhere() {
    at_each(&LEFT_OVER, |ends| {
        let folder = written(&long());
        for name in ["log.next", "snapshot.next", "snapshot-00000000000000aa"] {
            fs::write(folder.path().join(name), b"half").expect("room on disk");
        }
        let opened = ends.run(|| LogStore::open(folder.path()).map(drop));
        assert_eq!(opened.is_ok(), ends.before().is_none());
        assert_eq!(reopen(folder.path()).expect("it opens"), model(&long()), "{ends:?}");
        assert!(snapshot::others(folder.path(), Some(2)).expect("a folder").is_empty());
    });
}

#[test]
fn a_write_that_was_cut_short_is_cleared_after_a_start_that_ends_anywhere() {
    at_each(&["log: clear torn end", "log: sync torn end"], |ends| {
        let folder = written(&some_batches());
        let (mut store, _) = LogStore::open(folder.path()).expect("it opens");
        let at = store.current.next * 512;
        store.write(&[entries(6..90, 2)]).expect("room on disk");
        assert!(store.current.next * 512 > at + 512, "it has several sectors");
        drop(store);
        let file = fs::OpenOptions::new().write(true).open(path_of(folder.path(), 1)).expect("it is there");
        file.write_all_at(&[0; 512], at).expect("room on disk");
        let opened = ends.run(|| LogStore::open(folder.path()).map(drop));
        assert_eq!(opened.is_ok(), ends.before().is_none());
        let (mut store, held) = LogStore::open(folder.path()).expect("a cut-short write is no damage");
        assert_eq!(held, model(&some_batches()), "{ends:?}");
        store.write(&[entries(6..7, 3)]).expect("room on disk");
        drop(store);
        let mut all = some_batches();
        all.push(entries(6..7, 3));
        assert_eq!(reopen(folder.path()).expect("it opens"), model(&all), "{ends:?}");
    });
}
