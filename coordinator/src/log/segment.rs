//! Segments: preallocated, zero-filled files that hold records, so that a sync need not update the file's metadata.

use super::error::LogError;
use super::sector::{LogId, Place, SECTOR_BYTES, Sequence, read_u32, read_u64, seal, sectors_for};
use kvhive_control::STATE_VERSION;
use kvhive_steps::step;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes of a segment, unless a single record needs more. Small in tests, so that they meet the next one.
pub(super) const SEGMENT_BYTES: u64 = if cfg!(test) { 16 << 10 } else { 8 << 20 };
/// No segment is larger, in bytes: one that seems to be is not read.
pub(super) const MAX_SEGMENT_BYTES: u64 = 64 << 20;
/// Sectors before the first record: a page of its own, never written again.
pub(super) const HEADER_SECTORS: u64 = 8;
/// Where a new segment is made before it gets its name.
pub(super) const NEXT_NAME: &str = "log.next";

const MAGIC: [u8; 8] = *b"KVHLOG\0\0";
/// The format of segments. The header's layout and checksum stay the same in every format.
const FORMAT: u32 = 3;
const HEADER_BYTES: usize = 64;

/// A segment's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Header {
    pub(super) log: LogId,
    pub(super) number: u64,
    /// The sequence number of its first record.
    pub(super) first: Sequence,
    /// The file's length, in sectors.
    pub(super) sectors: u64,
}

/// The segment that is written.
pub(super) struct Segment {
    pub(super) file: File,
    pub(super) path: PathBuf,
    pub(super) header: Header,
    /// The sector that the next record begins at.
    pub(super) next: u64,
}

impl Segment {
    /// Makes segment `number`: its first record is `anchor`, and one of `room_bytes` fits behind. Durable when this
    /// returns; until then it has no name, so a segment always begins with its anchor.
    pub(super) fn create(
        folder: &Path,
        (log, number, first): (LogId, u64, Sequence),
        anchor: &[u8],
        room_bytes: u64,
    ) -> Result<Segment, LogError> {
        let path = path_of(folder, number);
        let next = folder.join(NEXT_NAME);
        let needed = HEADER_SECTORS + sectors_for(anchor.len() as u64) + sectors_for(room_bytes);
        let sectors = needed.max(SEGMENT_BYTES / SECTOR_BYTES as u64);
        let header = Header { log, number, first, sectors };
        let fail = LogError::io(&next);
        let mut options = OpenOptions::new();
        step("log: make segment").map_err(&fail)?;
        let file = options.create(true).truncate(true).write(true).read(true).open(&next).map_err(&fail)?;
        let length = sectors * SECTOR_BYTES as u64;
        step("log: size segment").map_err(&fail)?;
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, length)
            .map_err(|errno| fail(errno.into()))?;
        // Allocated blocks still count as unwritten; writing zeros now spares each sync an update of the file's extents.
        step("log: zero segment").map_err(&fail)?;
        fill_zeros(&file, 0, length).map_err(&fail)?;
        step("log: write header").map_err(&fail)?;
        file.write_all_at(&header.encode(), 0).map_err(&fail)?;
        let place = Place { log, segment: number, sector: HEADER_SECTORS };
        let sealed = seal(anchor, place, first);
        step("log: write anchor").map_err(&fail)?;
        file.write_all_at(&sealed, HEADER_SECTORS * SECTOR_BYTES as u64).map_err(&fail)?;
        step("log: sync segment").map_err(&fail)?;
        file.sync_all().map_err(LogError::sync(&next))?;
        step("log: name segment").map_err(&fail)?;
        std::fs::rename(&next, &path).map_err(&fail)?;
        step("log: sync name").map_err(&fail)?;
        sync_folder(folder)?;
        Ok(Segment { file, path, header, next: HEADER_SECTORS + sectors_for(anchor.len() as u64) })
    }

    /// Says whether a record of `bytes` bytes fits behind what is there.
    pub(super) fn fits(&self, bytes: u64) -> bool {
        self.next + sectors_for(bytes) <= self.header.sectors
    }

    /// Appends a record that fits; durable when this returns.
    pub(super) fn append(&mut self, sequence: Sequence, record: &[u8]) -> Result<(), LogError> {
        debug_assert!(self.fits(record.len() as u64));
        let place = Place { log: self.header.log, segment: self.header.number, sector: self.next };
        let sealed = seal(record, place, sequence);
        let at = self.next * SECTOR_BYTES as u64;
        let fail = LogError::io(&self.path);
        step("log: write record").map_err(&fail)?;
        self.file.write_all_at(&sealed, at).map_err(&fail)?;
        step("log: sync record").map_err(&fail)?;
        self.file.sync_data().map_err(LogError::sync(&self.path))?;
        self.next += sectors_for(record.len() as u64);
        Ok(())
    }
}

impl Header {
    /// Decodes the header at the front of the segment at `path`.
    pub(super) fn decode(path: &Path, bytes: &[u8]) -> Result<Header, LogError> {
        let corrupt = |reason: &str| LogError::corrupt(path, 0, reason);
        let Some(page) = bytes.get(..HEADER_SECTORS as usize * SECTOR_BYTES) else {
            return Err(corrupt("the segment is shorter than its header"));
        };
        let (head, rest) = page.split_at(HEADER_BYTES);
        if head[..8] != MAGIC || read_u32(&head[60..]) != crc32fast::hash(&head[..60]) {
            return Err(corrupt("the segment's header does not match its checksum"));
        }
        let found = read_u32(&head[8..]);
        if found != FORMAT {
            return Err(LogError::Format { path: path.to_owned(), found, expected: FORMAT });
        }
        let found = read_u32(&head[12..]);
        if found != STATE_VERSION {
            return Err(LogError::State { path: path.to_owned(), found, expected: STATE_VERSION });
        }
        if rest.iter().any(|byte| *byte != 0) {
            return Err(corrupt("there is something behind the segment's header"));
        }
        let log = LogId(head[16..32].try_into().expect("sixteen bytes were cut off"));
        let first = Sequence(read_u64(&head[40..]));
        Ok(Header { log, number: read_u64(&head[32..]), first, sectors: read_u64(&head[48..]) })
    }

    /// Has a page's header be one of this format, of a file of so many sectors. For `kvhive-fuzz` alone.
    pub(super) fn make_good(page: &mut [u8], sectors: u64) {
        page[..8].copy_from_slice(&MAGIC);
        page[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        page[12..16].copy_from_slice(&STATE_VERSION.to_le_bytes());
        page[48..56].copy_from_slice(&sectors.to_le_bytes());
        let sum = crc32fast::hash(&page[..60]);
        page[60..64].copy_from_slice(&sum.to_le_bytes());
        page[HEADER_BYTES..].fill(0);
    }

    fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        out[12..16].copy_from_slice(&STATE_VERSION.to_le_bytes());
        out[16..32].copy_from_slice(&self.log.0);
        out[32..40].copy_from_slice(&self.number.to_le_bytes());
        out[40..48].copy_from_slice(&self.first.0.to_le_bytes());
        out[48..56].copy_from_slice(&self.sectors.to_le_bytes());
        let sum = crc32fast::hash(&out[..60]);
        out[60..].copy_from_slice(&sum.to_le_bytes());
        out
    }
}

/// Returns the numbers of the segments in `folder` with their paths, growing.
pub(super) fn list(folder: &Path) -> Result<Vec<(u64, PathBuf)>, LogError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(LogError::io(folder))? {
        let path = entry.map_err(LogError::io(folder))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Some(number) = name.strip_prefix("log-").and_then(|hex| u64::from_str_radix(hex, 16).ok()) {
            found.push((number, path));
        }
    }
    found.sort_unstable();
    Ok(found)
}

pub(super) fn path_of(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("log-{number:016x}"))
}

pub(super) fn sync_folder(folder: &Path) -> Result<(), LogError> {
    let opened = File::open(folder).map_err(LogError::io(folder))?;
    opened.sync_all().map_err(LogError::sync(folder))
}

/// Writes `length` zeros from byte `from` on.
pub(super) fn fill_zeros(file: &File, from: u64, length: u64) -> std::io::Result<()> {
    let zeros = vec![0; length.min(1 << 20) as usize];
    let mut done = 0;
    while done < length {
        let some = (length - done).min(zeros.len() as u64);
        file.write_all_at(&zeros[..some as usize], from + done)?;
        done += some;
    }
    Ok(())
}
