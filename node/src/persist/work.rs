//! The workshop where a snapshot is made: whole segments, one that is being written, and which run they are of. What an
//! interrupted run has left is gone on with only where every block of it may still be told by today's tenants.

use super::blocking::Waited;
use super::folder::{self, RUN, SegmentMark, secret_check};
use super::lock::Lock;
use super::segment::{Meta, SegmentReader, SegmentWriter};
use crate::guards::ReadGuard;
use kvhive_protocol::{BlockHeader, BlockKey, ClusterMap, LayoutFingerprint, Slot};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_128;

/// Bytes of a segment's blocks, about.
const SEGMENT_BYTES: u64 = 256 << 20;
/// Blocks that an interrupted run has written and that are remembered; what is more is written anew.
const MAX_KNOWN: usize = 4 << 20;
/// Layouts that are kept track of: as many as a node ever knows, and some that it has forgotten.
const MAX_LAYOUTS: usize = 4096;

/// Which run makes a snapshot: one under another of these does not go on with it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Run {
    cluster: String,
    frame_bytes: u64,
    /// Era and secret of each tenant, by its id.
    tenants: BTreeMap<u32, (u64, String)>,
}

impl Run {
    pub(super) fn new(map: &ClusterMap, frame_bytes: u64) -> Run {
        let tenants = map.tenants.iter();
        Run {
            cluster: format!("{:?}", map.cluster),
            frame_bytes,
            tenants: tenants.map(|(id, tenant)| (id.0, (tenant.era.0, secret_check(tenant)))).collect(),
        }
    }

    /// Says whether what `earlier` has written may go into this run's snapshot.
    fn goes_on_with(&self, earlier: &Run) -> bool {
        self.cluster == earlier.cluster
            && self.frame_bytes == earlier.frame_bytes
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
    /// Blocks that an interrupted run has written.
    known: HashSet<u128>,
    /// Layouts of the blocks.
    pub(super) layouts: HashSet<LayoutFingerprint>,
    pub(super) largest: u64,
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
    /// Goes on with the whole segments of an interrupted run of this kind, unless `anew`; what is not whole is deleted.
    pub(super) fn begin(
        shop: PathBuf,
        run: &Run,
        anew: bool,
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
            known: HashSet::new(),
            layouts: HashSet::new(),
            largest: 0,
            shop,
            _lock: lock,
        };
        if goes_on {
            work.resume(waited)?;
        } else {
            // There before any segment is: one without it is never gone on with.
            folder::write_file(&work.shop.join(RUN), &serde_json::to_vec_pretty(run)?)?;
        }
        Ok(work)
    }

    fn resume(&mut self, waited: &Waited) -> io::Result<()> {
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
            while let Some((meta, _)) = reader.next_meta() {
                waited.check()?;
                blocks += 1;
                bytes += meta.header.payload_bytes;
                headers.push(meta.header);
            }
            let name = path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
            match name {
                Some(file) if !reader.is_damaged() && self.known.len() + headers.len() <= MAX_KNOWN => {
                    headers.iter().for_each(|header| self.note(header));
                    self.known.extend(headers.iter().map(name_of));
                    let number = file.split('.').next().and_then(|number| number.parse::<u32>().ok());
                    self.next = self.next.max(number.map_or(0, |number| number.saturating_add(1)));
                    self.segments.push(SegmentMark { file, blocks, bytes });
                }
                _ => fs::remove_file(&path)?,
            }
        }
        Ok(())
    }

    /// Returns how many blocks an interrupted run has written.
    pub(super) fn resumed(&self) -> u64 {
        self.known.len() as u64
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
            if self.known.contains(&name_of(&header)) {
                continue;
            }
            if self.writer.as_ref().is_some_and(|(writer, _)| writer.bytes >= SEGMENT_BYTES) {
                self.close()?;
            }
            let writer = match &mut self.writer {
                Some((writer, _)) => writer,
                none => {
                    let name = format!("{:06}.seg", self.next);
                    self.next += 1;
                    &mut none.insert((SegmentWriter::create(self.shop.join(&name))?, name)).0
                }
            };
            writer.push(&Meta { header, parent, slot }, guard.bytes())?;
            self.note(&header);
        }
        Ok(())
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
