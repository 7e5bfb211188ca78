//! One file of a snapshot: blocks end to end, each told by its header and a checksum before its bytes. Written under another
//! name, flushed, then renamed: a file that has its name is whole. One whose blocks are encrypted begins with a mark, and has of each, before
//! the checksum, what opens it; the digest in its header is zero.

use super::sealed::{Opens, SEALED_BYTES, Sealed};
use crate::disk::DataKey;
use kvhive_protocol::block::HEADER_BYTES;
use kvhive_protocol::key::KEY_BYTES;
use kvhive_protocol::{BlockHeader, BlockKey, Slot};
use kvhive_steps::step;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::xxh3_64;

/// What is said of a block: its header, its parent, its slot.
const SAID_BYTES: usize = HEADER_BYTES + KEY_BYTES + 2;
const SUM_BYTES: usize = 8;
/// What stands before each block's bytes: what is said of it, what opens it if it is encrypted, and a checksum over these.
const META_BYTES: usize = SAID_BYTES + SUM_BYTES;
const SEALED_META_BYTES: usize = SAID_BYTES + SEALED_BYTES + SUM_BYTES;
/// What a file begins with whose blocks are encrypted. No block's header does.
const SEALED_MARK: [u8; 8] = *b"KVSEALED";
/// Writes are gathered up to this size.
const BUFFER_BYTES: usize = 1 << 20;

/// One block of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Meta {
    pub(super) header: BlockHeader,
    /// The block before it in its prefix, [`BlockKey::NONE`] if none is known.
    pub(super) parent: BlockKey,
    pub(super) slot: Slot,
    /// What opens its bytes, and tells their digest, if they are encrypted.
    pub(super) sealed: Option<Sealed>,
}

impl Meta {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = self.said().to_vec();
        if let Some(Sealed(sealed)) = &self.sealed {
            bytes.extend_from_slice(sealed);
        }
        let sum = xxh3_64(&bytes);
        bytes.extend_from_slice(&sum.to_le_bytes());
        bytes
    }

    fn said(&self) -> [u8; SAID_BYTES] {
        let mut bytes = [0; SAID_BYTES];
        bytes[..HEADER_BYTES].copy_from_slice(&self.header.encode());
        bytes[HEADER_BYTES..HEADER_BYTES + KEY_BYTES].copy_from_slice(self.parent.as_bytes());
        bytes[SAID_BYTES - 2..].copy_from_slice(&self.slot.0.to_le_bytes());
        bytes
    }

    /// Encrypts its bytes where they are; returns what is written of it then.
    pub(super) fn seal(&self, key: &DataKey, bytes: &mut [u8]) -> io::Result<Meta> {
        let shown = Meta { header: BlockHeader { digest: 0, ..self.header }, ..*self };
        let sealed = Sealed::of(key, &shown.said(), self.header.digest, bytes)?;
        Ok(Meta { sealed: Some(sealed), ..shown })
    }

    /// Returns what it was before it was encrypted, and what opens its bytes; none when it is not of this key, or is another's.
    pub(super) fn open(&self, key: &DataKey) -> Option<(Meta, Opens)> {
        let (digest, opens) = self.sealed?.open(key, &self.said())?;
        let header = BlockHeader { digest, ..self.header };
        Some((Meta { header, sealed: None, ..*self }, opens))
    }

    /// Reads one whose checksum is made good first. For `kvhive-fuzz` alone.
    pub(super) fn read_good(bytes: &[u8]) -> Option<Meta> {
        let body = bytes.get(..bytes.len().checked_sub(SUM_BYTES)?)?;
        let sum = xxh3_64(body).to_le_bytes();
        Meta::decode(&[body, &sum].concat())
    }

    fn decode(bytes: &[u8]) -> Option<Meta> {
        let (body, sum) = bytes.split_at_checked(bytes.len().checked_sub(SUM_BYTES)?)?;
        if xxh3_64(body).to_le_bytes() != sum {
            return None;
        }
        let (said, sealed) = body.split_at_checked(SAID_BYTES)?;
        let sealed = match sealed {
            [] => None,
            sealed => Some(Sealed(sealed.try_into().ok()?)),
        };
        let header = BlockHeader::decode(said[..HEADER_BYTES].try_into().ok()?).ok()?;
        let parent = BlockKey::from_bytes(said[HEADER_BYTES..HEADER_BYTES + KEY_BYTES].try_into().ok()?);
        let slot = Slot(u16::from_le_bytes([said[SAID_BYTES - 2], said[SAID_BYTES - 1]]));
        Some(Meta { header, parent, slot, sealed })
    }
}

/// A segment on its way to disk.
pub(super) struct SegmentWriter {
    file: BufWriter<File>,
    partial: PathBuf,
    path: PathBuf,
    is_sealed: bool,
    pub(super) blocks: u64,
    pub(super) bytes: u64,
}

impl SegmentWriter {
    pub(super) fn create(path: PathBuf, is_sealed: bool) -> io::Result<SegmentWriter> {
        let partial = path.with_extension("partial");
        // What engines computed for one user is no other's to read.
        let file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&partial)?;
        let mut file = BufWriter::with_capacity(BUFFER_BYTES, file);
        if is_sealed {
            file.write_all(&SEALED_MARK)?;
        }
        Ok(SegmentWriter { file, partial, path, is_sealed, blocks: 0, bytes: 0 })
    }

    /// Writes a block as it is: encrypted before, where those of this segment are.
    pub(super) fn push(&mut self, meta: &Meta, payload: &[u8]) -> io::Result<()> {
        debug_assert_eq!(
            meta.sealed.is_some(),
            self.is_sealed,
            "a segment's blocks are all encrypted, or none is"
        );
        self.file.write_all(&meta.encode())?;
        self.file.write_all(payload)?;
        self.blocks += 1;
        self.bytes += payload.len() as u64;
        Ok(())
    }

    /// Makes the segment durable under its own name.
    pub(super) fn finish(self) -> io::Result<()> {
        let file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        step("persist: sync segment")?;
        file.sync_all()?;
        step("persist: name segment")?;
        std::fs::rename(&self.partial, &self.path)
    }
}

/// A segment that is read.
pub(super) struct SegmentReader {
    file: File,
    length: u64,
    at: u64,
    is_sealed: bool,
}

impl SegmentReader {
    pub(super) fn open(path: &Path) -> io::Result<SegmentReader> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let mut mark = [0; SEALED_MARK.len()];
        let is_sealed = is_there(file.read_exact_at(&mut mark, 0))? && mark == SEALED_MARK;
        let at = if is_sealed { SEALED_MARK.len() as u64 } else { 0 };
        Ok(SegmentReader { file, length, at, is_sealed })
    }

    /// Says whether its blocks are encrypted.
    pub(super) fn is_sealed(&self) -> bool {
        self.is_sealed
    }

    fn meta_bytes(&self) -> usize {
        if self.is_sealed { SEALED_META_BYTES } else { META_BYTES }
    }

    /// Returns the next block's meta and where it stands. What follows a damaged meta is not searched for another: bytes of a
    /// block can look like one.
    /// None at the end, and where the rest is damaged: then [`SegmentReader::is_damaged`].
    pub(super) fn next_meta(&mut self) -> io::Result<Option<(Meta, u64)>> {
        let at = self.at;
        let Some(meta) = self.meta_at(at)? else { return Ok(None) };
        self.at = at + self.meta_bytes() as u64 + meta.header.payload_bytes;
        Ok(Some((meta, at)))
    }

    /// Reads the meta that stands at `at`; none when it is damaged or its block is not whole. A disk that does not give it says
    /// nothing of it.
    pub(super) fn meta_at(&self, at: u64) -> io::Result<Option<Meta>> {
        let wanted = self.meta_bytes();
        let left = self.length.checked_sub(at).and_then(|left| left.checked_sub(wanted as u64));
        let Some(left) = left else { return Ok(None) };
        let mut bytes = [0; SEALED_META_BYTES];
        let bytes = &mut bytes[..wanted];
        if !is_there(self.file.read_exact_at(bytes, at))? {
            return Ok(None);
        }
        Ok(Meta::decode(bytes).filter(|meta| meta.header.payload_bytes <= left))
    }

    /// Says whether something is left that could not be read.
    pub(super) fn is_damaged(&self) -> bool {
        self.at != self.length
    }

    /// Reads the bytes of the block whose meta stands at `at`; says whether they are all there.
    pub(super) fn read_block(&self, at: u64, into: &mut [u8]) -> io::Result<bool> {
        is_there(self.file.read_exact_at(into, at + self.meta_bytes() as u64))
    }
}

fn is_there(read: io::Result<()>) -> io::Result<bool> {
    match read {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvhive_protocol::block::{Codec, digest};
    use kvhive_protocol::{Era, LayoutFingerprint, TenantId};
    use kvhive_steps::at_each;

    fn meta(number: u8, payload: &[u8]) -> Meta {
        let header = BlockHeader {
            key: BlockKey::from_bytes([number; KEY_BYTES]),
            fingerprint: LayoutFingerprint::default(),
            tenant: TenantId(1),
            era: Era(2),
            depth: u32::from(number),
            codec: Codec::Raw,
            payload_bytes: payload.len() as u64,
            digest: digest(payload),
        };
        let parent = BlockKey::from_bytes([number.wrapping_sub(1); KEY_BYTES]);
        Meta { header, parent, slot: Slot(7), sealed: None }
    }

    #[test]
    fn a_segment_whose_making_ends_anywhere_has_no_name() {
        at_each(&["persist: sync segment", "persist: name segment"], |ends| {
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("0.seg");
            let mut writer = SegmentWriter::create(path.clone(), false).expect("a file");
            writer.push(&meta(1, b"bytes"), b"bytes").expect("room");
            let finished = ends.run(|| writer.finish());
            assert_eq!((finished.is_ok(), path.exists()), (ends.before().is_none(), ends.before().is_none()));
            if finished.is_err() {
                assert!(SegmentReader::open(&segment(folder.path())).is_ok(), "it is made again");
            }
        });
    }

    fn segment(folder: &Path) -> PathBuf {
        let path = folder.join("0.seg");
        let mut writer = SegmentWriter::create(path.clone(), false).expect("a file");
        for number in 1..4u8 {
            let payload = vec![number; 100 * usize::from(number)];
            writer.push(&meta(number, &payload), &payload).expect("room");
        }
        assert!(!path.exists(), "half a segment has no name");
        writer.finish().expect("room");
        path
    }

    fn metas(path: &Path) -> (Vec<Meta>, bool) {
        let mut reader = SegmentReader::open(path).expect("it is there");
        let mut metas = Vec::new();
        while let Some((meta, at)) = reader.next_meta().expect("readable") {
            let mut bytes = vec![0; meta.header.payload_bytes as usize];
            assert!(reader.read_block(at, &mut bytes).expect("readable"));
            if digest(&bytes) == meta.header.digest {
                metas.push(meta);
            }
        }
        (metas, reader.is_damaged())
    }

    #[test]
    fn what_was_written_comes_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = segment(folder.path());
        let wanted: Vec<Meta> =
            (1..4u8).map(|number| meta(number, &vec![number; 100 * usize::from(number)])).collect();
        assert_eq!(metas(&path), (wanted, false));
    }

    #[test]
    fn a_disk_that_gives_nothing_is_told_from_a_damaged_segment() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = segment(folder.path());
        let whole = SegmentReader::open(&path).expect("it is there");
        // No process has memory there: the kernel answers with an input error.
        let file = File::open("/proc/self/mem").expect("Linux has it");
        let mut broken = SegmentReader { file, ..whole };
        assert!(broken.next_meta().is_err() && broken.read_block(0, &mut [0; 10]).is_err());
        let file = File::open(&path).expect("it is there");
        let mut longer = SegmentReader { file, length: u64::MAX, at: broken.length, is_sealed: false };
        assert_eq!(longer.next_meta().expect("the file ends"), None);
        assert!(!longer.read_block(broken.length, &mut [0; 10]).expect("the file ends"));
    }

    #[test]
    fn an_encrypted_block_opens_by_its_key_and_as_what_it_was_written_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("0.seg");
        let (key, other) = (DataKey::random().expect("random"), DataKey::random().expect("random"));
        let payload = b"what an engine computed".to_vec();
        let wanted = meta(1, &payload);
        let mut bytes = payload.clone();
        let shown = wanted.seal(&key, &mut bytes).expect("short");
        let mut writer = SegmentWriter::create(path.clone(), true).expect("a file");
        writer.push(&shown, &bytes).expect("room");
        writer.finish().expect("room");
        let stands = std::fs::read(&path).expect("readable");
        let holds = |what: &[u8]| stands.windows(what.len()).any(|part| part == what);
        assert!(!holds(&payload[..8]) && !holds(&wanted.header.digest.to_le_bytes()));

        let mut reader = SegmentReader::open(&path).expect("it is there");
        let (found, at) = reader.next_meta().expect("readable").expect("a block");
        assert!(reader.is_sealed() && found == shown && !reader.is_damaged());
        let (opened, opens) = found.open(&key).expect("it is its key");
        assert_eq!(opened, wanted);
        let mut read = vec![0; payload.len()];
        assert!(reader.read_block(at, &mut read).expect("readable") && opens.open(&mut read));
        assert_eq!(read, payload);
        read[3] ^= 1;
        assert!(!opens.open(&mut read), "these are other bytes");
        assert!(found.open(&other).is_none(), "it is another tenant's key");
        assert!(Meta { slot: Slot(8), ..found }.open(&key).is_none(), "it was written for another slot");
        let header = BlockHeader { tenant: TenantId(2), ..found.header };
        assert!(Meta { header, ..found }.open(&key).is_none(), "it was another tenant's");
        assert!(wanted.open(&key).is_none(), "a plain block opens by no key");
    }

    #[test]
    fn no_flipped_or_missing_byte_gets_a_block_through_that_was_not_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = segment(folder.path());
        let whole = std::fs::read(&path).expect("readable");
        let all = metas(&path).0;
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            std::fs::write(&path, &bytes).expect("writable");
            let (found, _) = metas(&path);
            assert!(
                found.len() < all.len() && found.iter().all(|meta| all.contains(meta)),
                "byte {at} flipped"
            );
            if at % 37 == 0 {
                std::fs::write(&path, &whole[..at]).expect("writable");
                let (found, damaged) = metas(&path);
                assert!(all.starts_with(&found) && found.len() < all.len());
                assert!(
                    damaged
                        || found
                            .iter()
                            .map(|one| one.header.payload_bytes as usize + META_BYTES)
                            .sum::<usize>()
                            == at
                );
            }
        }
    }
}
