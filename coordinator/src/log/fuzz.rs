//! The log's records and segments, their checksums made good. For `kvhive-fuzz` alone.

use super::record::{self, Batch, Record, encode_anchor, encode_batches};
use super::recover;
use super::sector::{self, Place, SECTOR_BYTES};
use super::segment::{HEADER_SECTORS, Header};
use kvhive_consensus::{LogBatch, SnapshotRecord};
use std::path::Path;

/// One record.
pub fn log_record(bytes: &[u8]) -> Option<Vec<u8>> {
    Some(match record::decode(bytes)? {
        Record::Anchor(standing) => encode_anchor(&standing),
        Record::Batches(batches) => encode_batches(&batches.into_iter().map(whole).collect::<Vec<_>>()),
    })
}

fn whole(batch: Batch) -> LogBatch {
    let Batch { snapshot, reset, entries, hard_state } = batch;
    let snapshot =
        snapshot.map(|name| SnapshotRecord { index: name.index, term: name.term, data: Vec::new() });
    LogBatch { snapshot, reset, entries, hard_state }
}

/// A whole segment: every sector that says it is sealed is sealed. Says how many records it has.
pub fn log_segment(bytes: &[u8]) -> Option<usize> {
    let path = Path::new("log-fuzz");
    let mut bytes = bytes.to_vec();
    let sectors = bytes.len() / SECTOR_BYTES;
    bytes.truncate(sectors * SECTOR_BYTES);
    let page = bytes.get_mut(..HEADER_SECTORS as usize * SECTOR_BYTES)?;
    Header::make_good(page, sectors as u64);
    let header = Header::decode(path, &bytes).ok()?;
    for (at, one) in bytes.chunks_exact_mut(SECTOR_BYTES).enumerate().skip(HEADER_SECTORS as usize) {
        if one[SECTOR_BYTES - 1] != 0 {
            sector::make_good(one, Place { log: header.log, segment: header.number, sector: at as u64 });
        }
    }
    recover::read_whole(path, &bytes, &header).ok()
}
