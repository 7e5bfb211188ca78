//! The workshop where a snapshot is made: whole segments, one that is being written, and which run they are of. What an
//! interrupted run has left is gone on with only where every block of it may still be told by today's tenants, and only what is
//! still held of it goes into the snapshot.

use super::blocking::Waited;
use super::folder::{self, RUN, SegmentMark, secret_check};
use super::lock::Lock;
use super::sealed::Keys;
use super::segment::{Meta, SegmentReader, SegmentWriter};
use crate::guards::ReadGuard;
use kvhive_protocol::{BlockHeader, BlockKey, ClusterMap, LayoutFingerprint, Slot};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_128;

/// Bytes of a segment's blocks, about.
const SEGMENT_BYTES: u64 = 256 << 20;
/// Blocks that an interrupted run has written and that are remembered however many frames there are; what is more is written anew.
const MAX_KNOWN: usize = 4 << 20;
/// Blocks of which one number says whether they were seen.
const SEEN_BITS: usize = u64::BITS as usize;
/// Layouts that are kept track of: as many as a node ever knows, and some that it has forgotten.
const MAX_LAYOUTS: usize = 4096;

/// Returns how many blocks of an interrupted run are remembered by who has so many frames.
fn known_limit(frames: usize) -> usize {
    frames.min(MAX_KNOWN)
}

/// Returns the bytes that they take at most.
pub(super) fn known_bytes(frames: u32) -> u64 {
    let known = known_limit(frames as usize);
    (known * size_of::<u128>() + known.div_ceil(SEEN_BITS) * size_of::<u64>()) as u64
}

/// Which run makes a snapshot: one under another of these does not go on with it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Run {
    cluster: String,
    frame_bytes: u64,
    /// Whether its blocks are encrypted. Versions that know no such thing wrote them as they are.
    #[serde(default)]
    is_sealed: bool,
    /// Era and secret of each tenant, by its id.
    tenants: BTreeMap<u32, (u64, String)>,
}

impl Run {
    pub(super) fn new(map: &ClusterMap, frame_bytes: u64, is_sealed: bool) -> Run {
        let tenants = map.tenants.iter();
        Run {
            cluster: format!("{:?}", map.cluster),
            frame_bytes,
            is_sealed,
            tenants: tenants.map(|(id, tenant)| (id.0, (tenant.era.0, secret_check(tenant)))).collect(),
        }
    }

    /// Says whether what `earlier` has written may go into this run's snapshot.
    fn goes_on_with(&self, earlier: &Run) -> bool {
        self.cluster == earlier.cluster
            && self.frame_bytes == earlier.frame_bytes
            && self.is_sealed == earlier.is_sealed
            && earlier.tenants.iter().all(|(id, tenant)| self.tenants.get(id) == Some(tenant))
    }
}

/// The snapshot as far as it is made.
pub(super) struct Work {
    shop: PathBuf,
    pub(super) segments: Vec<SegmentMark>,
    writer: Option<(SegmentWriter, String)>,
    /// Number of the next segment.
    next: u32,
    /// Blocks that an interrupted run has written, in order.
    known: Vec<u128>,
    /// Which of them this run has come upon again, a bit each.
    seen: Vec<u64>,
    /// How many of them.
    seen_blocks: u64,
    /// How many segments are an interrupted run's: the first.
    resumed_segments: usize,
    /// Layouts of the blocks.
    pub(super) layouts: HashSet<LayoutFingerprint>,
    pub(super) largest: u64,
    /// What blocks are encrypted by, if they are.
    keys: Option<Keys>,
    /// Where that is done.
    room: Vec<u8>,
    /// Let go when nobody writes here any more, also when nobody waits for it.
    _lock: Arc<Lock>,
}

/// Tells a block: by its tenant, era and key.
fn name_of(header: &BlockHeader) -> u128 {
    let mut bytes = [0; 44];
    bytes[..4].copy_from_slice(&header.tenant.0.to_le_bytes());
    bytes[4..12].copy_from_slice(&header.era.0.to_le_bytes());
    bytes[12..].copy_from_slice(header.key.as_bytes());
    xxh3_128(&bytes)
}

impl Work {
    /// Goes on with the whole segments of an interrupted run of this kind, unless `anew`; what is not whole is deleted, and so is
    /// what is more than fits into so many frames.
    pub(super) fn begin(
        shop: PathBuf,
        run: &Run,
        anew: bool,
        frames: usize,
        keys: Option<Keys>,
        lock: Arc<Lock>,
        waited: &Waited,
    ) -> io::Result<Work> {
        let earlier =
            fs::read(shop.join(RUN)).ok().and_then(|text| serde_json::from_slice::<Run>(&text).ok());
        let goes_on = !anew && earlier.is_some_and(|earlier| run.goes_on_with(&earlier));
        if !goes_on && shop.exists() {
            folder::remove(&shop)?;
        }
        folder::make_folder(&shop)?;
        let mut work = Work {
            segments: Vec::new(),
            writer: None,
            next: 0,
            known: Vec::new(),
            seen: Vec::new(),
            seen_blocks: 0,
            resumed_segments: 0,
            layouts: HashSet::new(),
            largest: 0,
            keys,
            room: Vec::new(),
            shop,
            _lock: lock,
        };
        if goes_on {
            work.resume(known_limit(frames), waited)?;
        } else {
            // There before any segment is: one without it is never gone on with.
            folder::write_file(&work.shop.join(RUN), &serde_json::to_vec_pretty(run)?)?;
        }
        Ok(work)
    }

    fn resume(&mut self, limit: usize, waited: &Waited) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.shop)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "seg") {
                files.push(path);
            } else if path.file_name().is_some_and(|name| name != RUN) {
                fs::remove_file(&path)?;
            }
        }
        files.sort();
        for path in files {
            let mut reader = SegmentReader::open(&path)?;
            let (mut blocks, mut bytes) = (0, 0);
            let mut headers = Vec::new();
            let mut opens = true;
            while let Some((meta, _)) = reader.next_meta()? {
                waited.check()?;
                blocks += 1;
                bytes += meta.header.payload_bytes;
                opens &= self.may_be_read(&meta);
                headers.push(meta.header);
            }
            let name = path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
            match name {
                Some(file) if opens && !reader.is_damaged() && self.known.len() + headers.len() <= limit => {
                    self.known.reserve_exact(headers.len());
                    self.known.extend(headers.iter().map(name_of));
                    let number = file.split('.').next().and_then(|number| number.parse::<u32>().ok());
                    self.next = self.next.max(number.map_or(0, |number| number.saturating_add(1)));
                    self.segments.push(SegmentMark { file, blocks, bytes });
                }
                _ => fs::remove_file(&path)?,
            }
        }
        self.known.sort_unstable();
        self.seen = vec![0; self.known.len().div_ceil(SEEN_BITS)];
        self.resumed_segments = self.segments.len();
        Ok(())
    }

    /// Says whether a block that an interrupted run has written can be read: its key may be no more.
    fn may_be_read(&mut self, meta: &Meta) -> bool {
        match &mut self.keys {
            Some(keys) => keys.find(&meta.header).is_some_and(|key| meta.open(&key).is_some()),
            None => meta.sealed.is_none(),
        }
    }

    /// Says whether this run goes on with an earlier one.
    pub(super) fn has_resumed(&self) -> bool {
        !self.known.is_empty()
    }

    /// Returns how many blocks of an interrupted run are held still.
    pub(super) fn resumed(&self) -> u64 {
        self.seen_blocks
    }

    /// Says whether an interrupted run has written a block, which is held still.
    fn sees(&mut self, header: &BlockHeader) -> bool {
        let Ok(at) = self.known.binary_search(&name_of(header)) else { return false };
        let (number, bit) = (at / SEEN_BITS, 1 << (at % SEEN_BITS));
        self.seen_blocks += u64::from(self.seen[number] & bit == 0);
        self.seen[number] |= bit;
        true
    }

    fn was_seen(&self, header: &BlockHeader) -> bool {
        let at = self.known.binary_search(&name_of(header));
        at.is_ok_and(|at| self.seen[at / SEEN_BITS] & (1 << (at % SEEN_BITS)) != 0)
    }

    fn note(&mut self, header: &BlockHeader) {
        self.largest = self.largest.max(header.payload_bytes);
        if self.layouts.len() < MAX_LAYOUTS {
            self.layouts.insert(header.fingerprint);
        }
    }

    pub(super) fn write(&mut self, blocks: Vec<(ReadGuard, BlockKey, Slot)>) -> io::Result<()> {
        for (guard, parent, slot) in blocks {
            let header = *guard.header();
            if self.sees(&header) {
                self.note(&header);
                continue;
            }
            let meta = Meta { header, parent, slot, sealed: None };
            match &mut self.keys {
                Some(keys) => {
                    // One whose era has ended goes into no snapshot.
                    let Some(key) = keys.make(&header)? else { continue };
                    let mut room = std::mem::take(&mut self.room);
                    room.clear();
                    room.extend_from_slice(guard.bytes());
                    let meta = meta.seal(&key, &mut room)?;
                    self.push(&meta, &room)?;
                    self.room = room;
                }
                None => self.push(&meta, guard.bytes())?,
            }
        }
        Ok(())
    }

    fn push(&mut self, meta: &Meta, bytes: &[u8]) -> io::Result<()> {
        if self.writer.as_ref().is_some_and(|(writer, _)| writer.bytes >= SEGMENT_BYTES) {
            self.close()?;
        }
        let writer = match &mut self.writer {
            Some((writer, _)) => writer,
            none => {
                let name = format!("{:06}.seg", self.next);
                self.next += 1;
                &mut none
                    .insert((SegmentWriter::create(self.shop.join(&name), meta.sealed.is_some())?, name))
                    .0
            }
        };
        writer.push(meta, bytes)?;
        self.note(&meta.header);
        Ok(())
    }

    /// Takes out of an interrupted run's segments what nobody holds any more: it would take the place of what is held.
    pub(super) fn drop_stale(&mut self, waited: &Waited) -> io::Result<()> {
        if self.seen_blocks == self.known.len() as u64 {
            return Ok(());
        }
        let fresh = self.segments.split_off(self.resumed_segments);
        let mut payload = Vec::new();
        for mark in std::mem::replace(&mut self.segments, fresh) {
            let path = self.shop.join(&mark.file);
            if self.is_current(&path, waited)? {
                self.segments.push(mark);
                continue;
            }
            let mut reader = SegmentReader::open(&path)?;
            while let Some((meta, at)) = reader.next_meta()? {
                waited.check()?;
                if !self.was_seen(&meta.header) {
                    continue;
                }
                // No longer than what is left of the file.
                payload.resize(meta.header.payload_bytes as usize, 0);
                if reader.read_block(at, &mut payload)? {
                    self.push(&meta, &payload)?;
                }
            }
            // Until its blocks are in another they are in none but this.
            self.close()?;
            fs::remove_file(&path)?;
        }
        self.resumed_segments = 0;
        Ok(())
    }

    /// Says whether every block of a segment is held still.
    fn is_current(&self, path: &Path, waited: &Waited) -> io::Result<bool> {
        let mut reader = SegmentReader::open(path)?;
        while let Some((meta, _)) = reader.next_meta()? {
            waited.check()?;
            if !self.was_seen(&meta.header) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(super) fn close(&mut self) -> io::Result<()> {
        if let Some((writer, file)) = self.writer.take() {
            let (blocks, bytes) = (writer.blocks, writer.bytes);
            writer.finish()?;
            self.segments.push(SegmentMark { file, blocks, bytes });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::blocking::blocking;
    use super::*;
    use kvhive_protocol::block::{Codec, digest};
    use kvhive_protocol::{Era, TenantId};
    use std::time::Duration;

    #[tokio::test]
    async fn no_more_blocks_of_an_interrupted_run_are_remembered_than_there_are_frames() {
        const EACH: u8 = 10;
        const FRAMES: u32 = 25;
        let folder = tempfile::tempdir().expect("a folder");
        let shop = folder.path().join("snapshot.partial");
        let run =
            Run { cluster: "a".to_owned(), frame_bytes: 10, is_sealed: false, tenants: BTreeMap::new() };
        fs::create_dir(&shop).expect("a folder");
        fs::write(shop.join(RUN), serde_json::to_vec(&run).expect("plain data")).expect("a file");
        for segment in 0..3 {
            let path = shop.join(format!("{segment:06}.seg"));
            let mut writer = SegmentWriter::create(path, false).expect("a file");
            for block in 0..EACH {
                let header = BlockHeader {
                    key: BlockKey::from_bytes([segment * EACH + block; 32]),
                    fingerprint: LayoutFingerprint::default(),
                    tenant: TenantId(1),
                    era: Era(1),
                    depth: 0,
                    codec: Codec::Raw,
                    payload_bytes: 1,
                    digest: digest(&[0]),
                };
                let meta = Meta { header, parent: BlockKey::NONE, slot: Slot(0), sealed: None };
                writer.push(&meta, &[0]).expect("room");
            }
            writer.finish().expect("room");
        }
        let lock =
            Lock::for_writing(&folder.path().join("snapshot"), Duration::ZERO).await.expect("nobody's");
        let begin =
            move |waited: &Waited| Work::begin(shop, &run, false, FRAMES as usize, None, lock, waited);
        let work = blocking(folder.path(), begin).await.expect("it goes on");
        assert_eq!((work.known.len(), work.segments.len(), work.next), (2 * usize::from(EACH), 2, 2));
        let bytes = work.known.capacity() * size_of::<u128>() + work.seen.capacity() * size_of::<u64>();
        assert!(bytes as u64 <= known_bytes(FRAMES));
        assert!(work.known.is_sorted() && !work.shop.join("000002.seg").exists());
    }
}
