//! Which memory calls of this process read and write at the moment: what one call writes, no other uses.

use crate::errors::{Failure, Kind};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};

/// What a call does with the memory that it is lent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Use {
    /// Reads it.
    Read,
    /// Writes it.
    Write,
}

/// All memory that calls under way use.
pub(crate) struct Regions {
    next: u64,
    claims: BTreeMap<u64, (Use, Vec<Range<usize>>)>,
}

static REGIONS: Mutex<Regions> = Mutex::new(Regions { next: 0, claims: BTreeMap::new() });

/// One call's memory, until it is dropped.
#[derive(Debug)]
pub(crate) struct Claim(u64);

impl Regions {
    /// Claims these addresses for one call.
    ///
    /// # Errors
    /// When it would write what it lists twice, or what another call uses, or read what another writes.
    pub(crate) fn claim(mut ranges: Vec<Range<usize>>, how: Use) -> Result<Claim, Failure> {
        ranges.sort_unstable_by_key(|range| range.start);
        if how == Use::Write && ranges.windows(2).any(|two| two[0].end > two[1].start) {
            return Err(Failure::new(
                Kind::BadBuffer,
                "two of the buffers overlap, and each is to be written".to_owned(),
            ));
        }
        let mut regions = lock();
        for (other, theirs) in regions.claims.values() {
            if (how, *other) != (Use::Read, Use::Read) && overlap(&ranges, theirs) {
                let does = if *other == Use::Write { "writes" } else { "reads" };
                let what = format!("another call {does} this memory: wait until it is done");
                return Err(Failure::new(Kind::BufferInUse, what));
            }
        }
        let id = regions.next;
        regions.next += 1;
        regions.claims.insert(id, (how, ranges));
        Ok(Claim(id))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        lock().claims.remove(&self.0);
    }
}

fn lock() -> MutexGuard<'static, Regions> {
    // Nothing is left half-done under this lock.
    REGIONS.lock().unwrap_or_else(|poison| poison.into_inner())
}

/// Says whether any of these ranges, sorted by their starts, meets any of those.
fn overlap(these: &[Range<usize>], those: &[Range<usize>]) -> bool {
    // Ranges that are read may overlap each other, so the furthest end so far counts.
    let mut all: Vec<(usize, usize, bool)> = Vec::with_capacity(these.len() + those.len());
    all.extend(these.iter().map(|range| (range.start, range.end, true)));
    all.extend(those.iter().map(|range| (range.start, range.end, false)));
    all.sort_unstable();
    let (mut end_of_these, mut end_of_those) = (0, 0);
    for (start, end, is_of_these) in all {
        let (own, other) =
            if is_of_these { (&mut end_of_these, end_of_those) } else { (&mut end_of_those, end_of_these) };
        if start < other {
            return true;
        }
        *own = end.max(*own);
    }
    false
}
