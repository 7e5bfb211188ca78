//! Records: what the log is made of.
//!
//! ```text
//! 0     4      8     16       24     28   32
//! size  kind   seq   synced   crc    0    body …  padded to 8
//! ```

use kvhive_consensus::LogEntry;

/// Bytes before a record's body.
pub(super) const RECORD_HEADER: usize = 32;
/// The largest body.
pub(super) const MAX_BODY: usize = 32 << 20;

/// What a record says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Body {
    /// An entry; replaces those with the same and higher indices.
    Entry(LogEntry),
    /// Vote, term and commit.
    HardState(Vec<u8>),
    /// The snapshot file of this index is complete; with `reset`, entries after it are void too.
    Snapshot { index: u64, term: u64, reset: bool },
}

/// A record as it was read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Record {
    pub(super) seq: u64,
    /// Every record up to this one was durable when this was written.
    pub(super) synced: u64,
    pub(super) body: Body,
}

/// Appends a record to `out`.
pub(super) fn encode(log: u128, seq: u64, synced: u64, body: &Body, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; RECORD_HEADER]);
    let kind: u32 = match body {
        Body::Entry(entry) => {
            out.extend_from_slice(&entry.index.to_le_bytes());
            out.extend_from_slice(&entry.term.to_le_bytes());
            out.extend_from_slice(&entry.bytes);
            1
        }
        Body::HardState(bytes) => {
            out.extend_from_slice(bytes);
            2
        }
        Body::Snapshot { index, term, reset } => {
            out.extend_from_slice(&index.to_le_bytes());
            out.extend_from_slice(&term.to_le_bytes());
            out.push(u8::from(*reset));
            3
        }
    };
    // One more than the body, so that an empty body is not a zero header.
    let size = (out.len() - start - RECORD_HEADER) as u32 + 1;
    let head = &mut out[start..start + RECORD_HEADER];
    head[0..4].copy_from_slice(&size.to_le_bytes());
    head[4..8].copy_from_slice(&kind.to_le_bytes());
    head[8..16].copy_from_slice(&seq.to_le_bytes());
    head[16..24].copy_from_slice(&synced.to_le_bytes());
    let crc = checksum(log, &out[start..start + 24], &out[start + RECORD_HEADER..]);
    out[start + 24..start + 28].copy_from_slice(&crc.to_le_bytes());
    out.resize(start + (out.len() - start).next_multiple_of(8), 0);
}

/// Decodes the record at the beginning of `bytes` and returns it with its padded length; none when there is no valid one.
pub(super) fn decode(log: u128, bytes: &[u8]) -> Option<(Record, usize)> {
    let head = bytes.get(..RECORD_HEADER)?;
    let number = |at: usize| -> u64 { u64::from_le_bytes(head[at..at + 8].try_into().expect("eight bytes")) };
    let size = u32::from_le_bytes(head[0..4].try_into().ok()?) as usize;
    let length = size.checked_sub(1).filter(|length| *length <= MAX_BODY)?;
    let body = bytes.get(RECORD_HEADER..RECORD_HEADER + length)?;
    let crc = u32::from_le_bytes(head[24..28].try_into().ok()?);
    if head[28..32] != [0; 4] || crc != checksum(log, &head[..24], body) {
        return None;
    }
    let word = |at: usize| Some(u64::from_le_bytes(body.get(at..at + 8)?.try_into().ok()?));
    let decoded = match u32::from_le_bytes(head[4..8].try_into().ok()?) {
        1 => Body::Entry(LogEntry { index: word(0)?, term: word(8)?, bytes: body[16..].to_vec() }),
        2 => Body::HardState(body.to_vec()),
        3 => Body::Snapshot { index: word(0)?, term: word(8)?, reset: *body.get(16)? == 1 },
        _ => return None,
    };
    let record = Record { seq: number(8), synced: number(16), body: decoded };
    Some((record, (RECORD_HEADER + length).next_multiple_of(8)))
}

fn checksum(log: u128, head: &[u8], body: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    // The log's identity keeps bytes of another log from passing as this one's.
    crc.update(&log.to_le_bytes());
    crc.update(head);
    crc.update(body);
    crc.finalize()
}
