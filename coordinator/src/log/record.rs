//! Records: what the log says, as bytes. What goes under one sync is one record, so a crash leaves all of it or nothing,
//! and a record that exists proves that every record before it was synced.

use super::sector::{read_u32, read_u64};
use kvhive_consensus::{LogBatch, LogEntry, MAX_APPEND_MESSAGE_BYTES, MAX_ENTRIES};

/// The largest record, in bytes.
pub(super) const MAX_RECORD_BYTES: u64 = 32 << 20;

// Whatever raft accepts can be written: an append's entries, each behind its index, term and length.
const _: () = assert!(
    (MAX_APPEND_MESSAGE_BYTES + MAX_ENTRIES * ENTRY_HEAD_BYTES as usize + 4096) as u64 <= MAX_RECORD_BYTES,
    "an append fits into a record"
);

/// Bytes before an entry's own.
const ENTRY_HEAD_BYTES: u64 = 21;
/// Bytes before a record's first batch: its length, its kind and how many batches follow.
const HEAD_BYTES: u64 = 9;
const ANCHOR: u8 = 1;
const BATCHES: u8 = 2;

/// Which snapshot the log builds on; the bytes are in a file of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SnapshotName {
    pub(super) index: u64,
    pub(super) term: u64,
}

/// A batch as the log holds it: without the snapshot's bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Batch {
    pub(super) snapshot: Option<SnapshotName>,
    /// The snapshot replaces every entry.
    pub(super) reset: bool,
    pub(super) entries: Vec<LogEntry>,
    pub(super) hard_state: Option<Vec<u8>>,
}

/// Where a log stands, whatever its entries are.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Standing {
    pub(super) snapshot: Option<SnapshotName>,
    pub(super) hard_state: Option<Vec<u8>>,
    pub(super) last_index: u64,
}

/// One thing that the log says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Record {
    /// Opens each segment and says where the log stood, so that older segments can go.
    Anchor(Standing),
    Batches(Vec<Batch>),
}

/// Returns the name of a batch's snapshot.
pub(super) fn snapshot_of(batch: &LogBatch) -> Option<SnapshotName> {
    batch.snapshot.as_ref().map(|record| SnapshotName { index: record.index, term: record.term })
}

/// Returns what a record of this batch alone would take, in bytes.
pub(super) fn bytes_of(batch: &LogBatch) -> u64 {
    let entries: u64 = batch.entries.iter().map(|entry| ENTRY_HEAD_BYTES + entry.bytes.len() as u64).sum();
    HEAD_BYTES + 17 + 1 + 5 + batch.hard_state.as_ref().map_or(0, |bytes| bytes.len() as u64) + 4 + entries
}

/// Returns the bytes of a record of these batches, which must be within [`MAX_RECORD_BYTES`].
pub(super) fn encode_batches(batches: &[LogBatch]) -> Vec<u8> {
    let mut out = begin(BATCHES);
    out.extend((batches.len() as u32).to_le_bytes());
    for batch in batches {
        put_snapshot(&mut out, snapshot_of(batch));
        out.push(u8::from(batch.reset));
        put_bytes(&mut out, batch.hard_state.as_deref());
        out.extend((batch.entries.len() as u32).to_le_bytes());
        for entry in &batch.entries {
            out.extend(entry.index.to_le_bytes());
            out.extend(entry.term.to_le_bytes());
            put_bytes(&mut out, Some(&entry.bytes));
        }
    }
    finish(out)
}

/// Returns the bytes of an anchor.
pub(super) fn encode_anchor(standing: &Standing) -> Vec<u8> {
    let mut out = begin(ANCHOR);
    put_snapshot(&mut out, standing.snapshot);
    put_bytes(&mut out, standing.hard_state.as_deref());
    out.extend(standing.last_index.to_le_bytes());
    finish(out)
}

/// Returns the length in bytes that a record claims for itself at its front.
pub(super) fn claimed_bytes(front: &[u8]) -> u64 {
    u64::from(read_u32(front))
}

/// Decodes a whole record; none when it makes no sense.
pub(super) fn decode(record: &[u8]) -> Option<Record> {
    let mut input = Input(record.get(4..)?);
    let decoded = match input.byte()? {
        ANCHOR => Record::Anchor(Standing {
            snapshot: input.snapshot()?,
            hard_state: input.bytes()?.map(<[u8]>::to_vec),
            last_index: input.word()?,
        }),
        BATCHES => {
            let count = input.count()?;
            // Grown as batches are met: a false count allocates nothing.
            let mut batches = Vec::new();
            for _ in 0..count {
                batches.push(input.batch()?);
            }
            Record::Batches(batches)
        }
        _ => return None,
    };
    input.0.is_empty().then_some(decoded)
}

fn begin(kind: u8) -> Vec<u8> {
    vec![0, 0, 0, 0, kind]
}

fn finish(mut out: Vec<u8>) -> Vec<u8> {
    let length = u32::try_from(out.len()).expect("no record is larger than MAX_RECORD_BYTES");
    out[..4].copy_from_slice(&length.to_le_bytes());
    out
}

fn put_snapshot(out: &mut Vec<u8>, snapshot: Option<SnapshotName>) {
    out.push(u8::from(snapshot.is_some()));
    if let Some(name) = snapshot {
        out.extend(name.index.to_le_bytes());
        out.extend(name.term.to_le_bytes());
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    out.push(u8::from(bytes.is_some()));
    if let Some(bytes) = bytes {
        out.extend((bytes.len() as u32).to_le_bytes());
        out.extend_from_slice(bytes);
    }
}

/// What is left to decode. Each part is none when there is too little.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn count(&mut self) -> Option<u32> {
        self.take(4).map(read_u32)
    }

    fn word(&mut self) -> Option<u64> {
        self.take(8).map(read_u64)
    }

    fn snapshot(&mut self) -> Option<Option<SnapshotName>> {
        if self.byte()? == 0 {
            return Some(None);
        }
        Some(Some(SnapshotName { index: self.word()?, term: self.word()? }))
    }

    fn bytes(&mut self) -> Option<Option<&'a [u8]>> {
        if self.byte()? == 0 {
            return Some(None);
        }
        let length = self.count()? as usize;
        self.take(length).map(Some)
    }

    fn batch(&mut self) -> Option<Batch> {
        let (snapshot, reset) = (self.snapshot()?, self.byte()? != 0);
        let hard_state = self.bytes()?.map(<[u8]>::to_vec);
        let count = self.count()?;
        let mut entries = Vec::new();
        for _ in 0..count {
            let (index, term) = (self.word()?, self.word()?);
            entries.push(LogEntry { index, term, bytes: self.bytes()??.to_vec() });
        }
        Some(Batch { snapshot, reset, entries, hard_state })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvhive_consensus::SnapshotRecord;

    #[test]
    fn a_record_reads_back_and_every_shortened_one_is_refused() {
        let batch = LogBatch {
            snapshot: Some(SnapshotRecord { index: 4, term: 2, data: b"not here".to_vec() }),
            reset: true,
            entries: vec![LogEntry { index: 5, term: 3, bytes: b"five".to_vec() }],
            hard_state: Some(b"vote".to_vec()),
        };
        let name = SnapshotName { index: 4, term: 2 };
        let held = Batch {
            snapshot: Some(name),
            reset: true,
            entries: batch.entries.clone(),
            hard_state: batch.hard_state.clone(),
        };
        let two = encode_batches(&[batch.clone(), batch.clone()]);
        assert_eq!(decode(&two), Some(Record::Batches(vec![held.clone(), held])));
        assert_eq!(claimed_bytes(&two), two.len() as u64);
        assert_eq!(encode_batches(std::slice::from_ref(&batch)).len() as u64, bytes_of(&batch));
        let standing = Standing { snapshot: Some(name), hard_state: Some(b"vote".to_vec()), last_index: 9 };
        let anchor = encode_anchor(&standing);
        assert_eq!(decode(&anchor), Some(Record::Anchor(standing)));
        for whole in [two, anchor] {
            for length in 0..whole.len() {
                assert_eq!(decode(&whole[..length]), None, "{length} bytes");
            }
        }
    }
}
