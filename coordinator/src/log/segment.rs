//! Segments: preallocated files that hold records, so that a sync need not update the file's size.

use super::error::LogError;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes of a segment, unless a single batch is larger.
pub(super) const SEGMENT_BYTES: u64 = 4 << 20;
/// Bytes before the first record.
pub(super) const SEGMENT_HEADER: u64 = 64;
const MAGIC: [u8; 8] = *b"KVHLOG\0\0";
const FORMAT: u32 = 1;

/// A segment's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Header {
    pub(super) log: u128,
    pub(super) number: u64,
    pub(super) first_seq: u64,
}

/// The segment that is written.
pub(super) struct Segment {
    pub(super) file: File,
    pub(super) path: PathBuf,
    pub(super) number: u64,
    pub(super) length: u64,
    pub(super) end: u64,
}

pub(super) fn fail(path: &Path) -> impl Fn(io::Error) -> LogError + use<> {
    let path = path.to_owned();
    move |source| LogError::Io { path: path.clone(), source }
}

pub(super) fn sync_folder(folder: &Path) -> Result<(), LogError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(fail(folder))
}

impl Segment {
    /// Makes a new segment with room for `room` bytes of records; durable when this returns.
    pub(super) fn create(folder: &Path, header: Header, room: u64) -> Result<Segment, LogError> {
        let path = folder.join(format!("log-{:016x}", header.number));
        let next = folder.join("log.next");
        let fail = fail(&path);
        let length = (SEGMENT_HEADER + room).max(SEGMENT_BYTES);
        let file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .read(true)
            .open(&next)
            .map_err(&fail)?;
        let zeroes = vec![0; 1 << 20];
        let mut at = 0;
        while at < length {
            let some = zeroes.len().min((length - at) as usize);
            file.write_all_at(&zeroes[..some], at).map_err(&fail)?;
            at += some as u64;
        }
        file.write_all_at(&header.encode(), 0).map_err(&fail)?;
        file.sync_all().map_err(&fail)?;
        std::fs::rename(&next, &path).map_err(&fail)?;
        sync_folder(folder)?;
        Ok(Segment { file, path, number: header.number, length, end: SEGMENT_HEADER })
    }

    /// Returns the numbers of the segments in `folder`, growing.
    pub(super) fn list(folder: &Path) -> Result<Vec<(u64, PathBuf)>, LogError> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(fail(folder))? {
            let path = entry.map_err(fail(folder))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if let Some(number) = name.strip_prefix("log-").and_then(|hex| u64::from_str_radix(hex, 16).ok())
            {
                found.push((number, path));
            }
        }
        found.sort_unstable();
        Ok(found)
    }
}

impl Header {
    fn encode(&self) -> [u8; SEGMENT_HEADER as usize] {
        let mut out = [0; SEGMENT_HEADER as usize];
        out[0..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        out[16..32].copy_from_slice(&self.log.to_le_bytes());
        out[32..40].copy_from_slice(&self.number.to_le_bytes());
        out[40..48].copy_from_slice(&self.first_seq.to_le_bytes());
        let crc = crc32fast::hash(&out[..60]);
        out[60..64].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Decodes the header of the segment at `path`.
    pub(super) fn decode(path: &Path, bytes: &[u8]) -> Result<Header, LogError> {
        let corrupt =
            |reason: &str| LogError::Corrupt { path: path.to_owned(), offset: 0, reason: reason.to_owned() };
        let head: &[u8; 64] = bytes
            .get(..64)
            .and_then(|head| head.try_into().ok())
            .ok_or_else(|| corrupt("shorter than its header"))?;
        let crc = u32::from_le_bytes([head[60], head[61], head[62], head[63]]);
        if head[0..8] != MAGIC || crc != crc32fast::hash(&head[..60]) {
            return Err(corrupt("the segment's header does not match its checksum"));
        }
        let found = u32::from_le_bytes([head[8], head[9], head[10], head[11]]);
        if found != FORMAT {
            return Err(LogError::Format { path: path.to_owned(), found, expected: FORMAT });
        }
        let word = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("eight bytes"));
        let log = u128::from_le_bytes(head[16..32].try_into().expect("sixteen bytes"));
        Ok(Header { log, number: word(32), first_seq: word(40) })
    }
}
