//! What of a snapshot may come in: every block is told by its meta, segment by segment, and kept in few bytes. No more are kept
//! than a device has frames for, those nearest to the beginnings of their prefixes.

use super::blocking::Waited;
use super::folder::{Manifest, secret_check};
use super::segment::{Meta, SegmentReader};
use super::{Loaded, PersistError};
use crate::view::Serving;
use kvhive_protocol::{DeviceId, LayoutFingerprint, TenantId};
use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, BinaryHeap, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};

/// Layouts that a refusal names.
const MAX_NAMED: usize = 8;
/// Segments that are open at a time.
const OPEN_SEGMENTS: usize = 16;

/// A block that may be taken in. Those of small depth come first: parents before their children.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Candidate {
    depth: u32,
    segment: u32,
    at: u64,
}

/// Returns the bytes that a survey takes for so many frames, at most.
pub(super) fn survey_bytes(frames: u32) -> u64 {
    (u64::from(frames) + 1) * size_of::<Candidate>() as u64
}

/// What a snapshot has for this node.
pub(super) struct Survey {
    /// For each device, in the order in which they are taken in.
    pub(super) wanted: Vec<Vec<Candidate>>,
    pub(super) loaded: Loaded,
    /// The name of a tenant of another secret.
    other_secret: Option<String>,
    largest: u64,
    /// Some layouts that were not asked for.
    other_layouts: BTreeSet<LayoutFingerprint>,
}

/// By what a survey judges blocks.
pub(super) struct Judge {
    pub(super) serving: Serving,
    /// The layout that is asked for; none for any.
    pub(super) only: Option<LayoutFingerprint>,
    pub(super) frame_bytes: u64,
    /// Of each device.
    pub(super) frames: Vec<u32>,
}

impl Survey {
    /// Reads what every block is, without its bytes.
    pub(super) fn of(path: &Path, manifest: &Manifest, judge: &Judge, waited: &Waited) -> io::Result<Survey> {
        let then = Then {
            vouched: vouched(manifest, &judge.serving),
            manifest,
            is_own: manifest.is_of(&judge.serving.map),
        };
        // As large as they can become from the start: grown, they would take up to twice that.
        let all: u64 = manifest.segments.iter().map(|mark| mark.blocks).fold(0, u64::saturating_add);
        let most = |frames: &u32| (u64::from(*frames).min(all) + 1) as usize;
        let mut wanted: Vec<BinaryHeap<Candidate>> =
            judge.frames.iter().map(|frames| BinaryHeap::with_capacity(most(frames))).collect();
        let mut survey = Survey {
            wanted: Vec::new(),
            loaded: Loaded::default(),
            other_secret: None,
            largest: 0,
            other_layouts: BTreeSet::new(),
        };
        for (segment, mark) in (0u32..).zip(&manifest.segments) {
            let mut read = 0;
            let mut reader = match SegmentReader::open(&path.join(&mark.file)) {
                Ok(reader) => reader,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    survey.loaded.damaged += mark.blocks;
                    continue;
                }
                Err(error) => return Err(error),
            };
            if reader.is_sealed() != manifest.is_sealed() {
                // Somebody has put it there.
                survey.loaded.damaged += mark.blocks;
                continue;
            }
            while let Some((meta, at)) = reader.next_meta()? {
                waited.check()?;
                read += 1;
                let Some(device) = survey.judge(&meta, judge, &then) else { continue };
                let Some(heap) = wanted.get_mut(device) else { continue };
                if heap.len() == heap.capacity() {
                    // More than its manifest tells of.
                    survey.loaded.no_room += 1;
                    continue;
                }
                heap.push(Candidate { depth: meta.header.depth, segment, at });
                if heap.len() > judge.frames[device] as usize {
                    heap.pop();
                    survey.loaded.no_room += 1;
                }
            }
            let missing = mark.blocks.saturating_sub(read);
            survey.loaded.damaged += missing.max(u64::from(reader.is_damaged()));
        }
        survey.wanted = wanted.into_iter().map(BinaryHeap::into_sorted_vec).collect();
        Ok(survey)
    }

    /// Returns the device that takes a block; none, and why is counted, when none does.
    fn judge(&mut self, meta: &Meta, judge: &Judge, then: &Then<'_>) -> Option<usize> {
        let header = &meta.header;
        let Judge { serving, only, frame_bytes, .. } = judge;
        let tenant = serving.map.tenants.get(&header.tenant);
        let has_ended = tenant.is_none_or(|tenant| tenant.era != header.era);
        let is_vouched = then.vouched.contains(&header.tenant);
        // Another cluster's tenants may go by these numbers too: only of one's own does a number that is not there mean its end.
        if has_ended && (then.is_own || is_vouched) {
            self.loaded.ended += 1;
            return None;
        }
        if !is_vouched {
            self.loaded.other_secret += 1;
            if self.other_secret.is_none() {
                self.other_secret = Some(then.name(header.tenant));
            }
            return None;
        }
        if only.is_some_and(|only| only != header.fingerprint) {
            self.loaded.other_layout += 1;
            if self.other_layouts.len() < MAX_NAMED {
                self.other_layouts.insert(header.fingerprint);
            }
            return None;
        }
        if header.payload_bytes > *frame_bytes {
            self.loaded.too_large += 1;
            self.largest = self.largest.max(header.payload_bytes);
            return None;
        }
        let own = |device: &&DeviceId| device.member == serving.member;
        let device = serving.map.replicas(meta.slot).0.iter().find(own);
        if device.is_none() {
            self.loaded.elsewhere += 1;
        }
        device.map(|device| usize::from(device.index))
    }

    /// Refuses a snapshot of which nothing can ever be of use here.
    pub(super) fn check(&self, judge: &Judge) -> Result<(), PersistError> {
        if self.wanted.iter().any(|wanted| !wanted.is_empty()) || self.loaded.elsewhere > 0 {
            return Ok(());
        }
        if let Some(tenant) = &self.other_secret {
            return Err(PersistError::OtherSecret { tenant: tenant.clone() });
        }
        if let Some(wanted) = judge.only.filter(|_| self.loaded.other_layout > 0) {
            let found: Vec<String> = self.other_layouts.iter().map(ToString::to_string).collect();
            return Err(PersistError::ForeignLayout { wanted, found: found.join(", ") });
        }
        if self.largest > 0 {
            return Err(PersistError::OtherLayout { bytes: self.largest, largest: judge.frame_bytes });
        }
        Ok(())
    }
}

/// What a manifest says of the tenants of then.
struct Then<'a> {
    manifest: &'a Manifest,
    /// Those whose secret is the same now.
    vouched: HashSet<TenantId>,
    /// Whether it is of the cluster that this node is of.
    is_own: bool,
}

impl Then<'_> {
    fn name(&self, tenant: TenantId) -> String {
        let mark = self.manifest.tenants.iter().find(|mark| mark.id == tenant.0);
        mark.map_or_else(|| tenant.to_string(), |mark| mark.name.clone())
    }
}

/// Returns the tenants whose secret is the one that the snapshot was written under.
fn vouched(manifest: &Manifest, serving: &Serving) -> HashSet<TenantId> {
    let marks = manifest.tenants.iter().map(|mark| (TenantId(mark.id), mark));
    let stands = |(id, mark): &(TenantId, &super::folder::TenantMark)| {
        serving.map.tenants.get(id).is_some_and(|tenant| secret_check(tenant) == mark.secret_check)
    };
    marks.filter(stands).map(|(id, _)| id).collect()
}

/// A snapshot's segments, few of them open at a time.
pub(super) struct Segments {
    paths: Vec<PathBuf>,
    open: HashMap<u32, SegmentReader>,
}

impl Segments {
    pub(super) fn of(path: &Path, manifest: &Manifest) -> Segments {
        let paths = manifest.segments.iter().map(|mark| path.join(&mark.file)).collect();
        Segments { paths, open: HashMap::new() }
    }

    /// Reads a candidate's meta; none when it is damaged.
    pub(super) fn meta(&mut self, one: &Candidate) -> io::Result<Option<Meta>> {
        self.reader(one.segment)?.meta_at(one.at)
    }

    /// Reads a candidate's bytes; says whether they are all there.
    pub(super) fn read(&mut self, one: &Candidate, into: &mut [u8]) -> io::Result<bool> {
        self.reader(one.segment)?.read_block(one.at, into)
    }

    fn reader(&mut self, segment: u32) -> io::Result<&SegmentReader> {
        if !self.open.contains_key(&segment) && self.open.len() >= OPEN_SEGMENTS {
            // Depths are spread over all of them: none is more likely to be next than another.
            self.open.clear();
        }
        match self.open.entry(segment) {
            Entry::Occupied(open) => Ok(open.into_mut()),
            Entry::Vacant(place) => {
                let path = self.paths.get(segment as usize).ok_or(io::ErrorKind::NotFound)?;
                Ok(place.insert(SegmentReader::open(path)?))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::folder::SegmentMark;
    use super::super::segment::SegmentWriter;
    use super::*;
    use kvhive_protocol::block::{Codec, digest};
    use kvhive_protocol::{BlockHeader, BlockKey, Era, Slot};

    #[test]
    fn a_segment_that_cannot_be_opened_is_no_damaged_one() {
        let folder = tempfile::tempdir().expect("a folder");
        // As with too many open files: it is there and is not to be had.
        let path = folder.path().join("000000.seg");
        std::os::unix::fs::symlink(&path, &path).expect("writable");
        let mut segments = Segments { paths: vec![path], open: HashMap::new() };
        let one = Candidate { depth: 0, segment: 0, at: 0 };
        assert!(segments.meta(&one).is_err() && segments.read(&one, &mut []).is_err());
    }

    #[test]
    fn few_segments_are_open_however_many_there_are() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut marks = Vec::new();
        for number in 0..3 * OPEN_SEGMENTS as u8 {
            let payload = [number; 10];
            let header = BlockHeader {
                key: BlockKey::from_bytes([number; 32]),
                fingerprint: LayoutFingerprint::default(),
                tenant: TenantId(1),
                era: Era(1),
                depth: 0,
                codec: Codec::Raw,
                payload_bytes: payload.len() as u64,
                digest: digest(&payload),
            };
            let file = format!("{number:06}.seg");
            let mut writer = SegmentWriter::create(folder.path().join(&file), false).expect("a file");
            let meta = Meta { header, parent: BlockKey::NONE, slot: Slot(0), sealed: None };
            writer.push(&meta, &payload).expect("room");
            writer.finish().expect("room");
            marks.push(SegmentMark { file, blocks: 1, bytes: 10 });
        }
        let paths = marks.iter().map(|mark| folder.path().join(&mark.file)).collect();
        let mut segments = Segments { paths, open: HashMap::new() };
        for turn in 0..2 {
            for segment in 0..marks.len() as u32 {
                let (one, mut bytes) = (Candidate { depth: 0, segment, at: 0 }, [0; 10]);
                assert!(segments.meta(&one).expect("readable").is_some());
                assert!(segments.read(&one, &mut bytes).expect("readable"));
                assert_eq!(bytes, [segment as u8; 10], "turn {turn}");
                assert!(segments.open.len() <= OPEN_SEGMENTS);
            }
        }
    }
}
