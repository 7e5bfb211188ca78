//! The memory that a fetch's blocks are meant for. Whoever begins to receive a block claims its place, so that two replicas
//! may be asked for one block and only one writes.

use crate::fetch::{FetchOutcome, MissReason};
use std::sync::{Mutex, MutexGuard};

/// One place a block.
pub(crate) struct Targets<'a> {
    /// The position of the first place in its prefix.
    start: usize,
    places: Mutex<Vec<Place<'a>>>,
}

struct Place<'a> {
    /// None while it is claimed.
    memory: Option<&'a mut [u8]>,
    outcome: Option<FetchOutcome>,
    /// A replica that need not have every block does not have this one.
    is_doubted: bool,
}

/// One block's memory, for whoever receives it. Dropped unsettled, it is free again.
pub(crate) struct Claim<'t, 'a> {
    targets: &'t Targets<'a>,
    at: usize,
    memory: Option<&'a mut [u8]>,
}

impl<'a> Targets<'a> {
    pub(crate) fn new(start: usize, memory: &'a mut [&mut [u8]]) -> Targets<'a> {
        let places = memory
            .iter_mut()
            .map(|memory| Place { memory: Some(&mut **memory), outcome: None, is_doubted: false })
            .collect();
        Targets { start, places: Mutex::new(places) }
    }

    /// Takes the place of block `at`; none when it is claimed or settled.
    pub(crate) fn claim(&self, at: usize) -> Option<Claim<'_, 'a>> {
        let mut places = self.lock();
        let place = places.get_mut(at - self.start)?;
        let memory = if place.outcome.is_none() { place.memory.take() } else { None };
        memory.map(|memory| Claim { targets: self, at, memory: Some(memory) })
    }

    /// Says that a replica does not have block `at`. Whether that settles it is `is_final`'s to say.
    pub(crate) fn absent(&self, at: usize, is_final: bool) {
        if let Some(place) = self.lock().get_mut(at - self.start) {
            place.is_doubted = true;
            if is_final && place.outcome.is_none() && place.memory.is_some() {
                place.outcome = Some(FetchOutcome::Missed(MissReason::Absent));
            }
        }
    }

    /// Says that nobody is left to be asked for block `at`.
    pub(crate) fn give_up(&self, at: usize) {
        if let Some(place) = self.lock().get_mut(at - self.start)
            && place.outcome.is_none()
        {
            place.outcome = Some(place.missed());
        }
    }

    /// Says whether all of these blocks are settled.
    pub(crate) fn are_settled(&self, positions: &[usize]) -> bool {
        let places = self.lock();
        positions.iter().all(|at| places.get(at - self.start).is_none_or(|place| place.outcome.is_some()))
    }

    /// Returns the blocks that are not settled, ascending.
    pub(crate) fn open(&self) -> Vec<usize> {
        let places = self.lock();
        let open = places.iter().enumerate().filter(|(_, place)| place.outcome.is_none());
        open.map(|(at, _)| at + self.start).collect()
    }

    /// Returns what became of each block.
    pub(crate) fn into_outcomes(self) -> Vec<FetchOutcome> {
        let places = self.places.into_inner().unwrap_or_else(|poison| poison.into_inner());
        places.into_iter().map(|place| place.outcome.unwrap_or(place.missed())).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Place<'a>>> {
        // Nothing is left half-done under this lock.
        self.places.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}

impl Place<'_> {
    fn missed(&self) -> FetchOutcome {
        let reason = if self.is_doubted { MissReason::Absent } else { MissReason::Unreachable };
        FetchOutcome::Missed(reason)
    }
}

impl Claim<'_, '_> {
    /// Returns the memory.
    pub(crate) fn memory(&mut self) -> &mut [u8] {
        self.memory.as_deref_mut().unwrap_or_default()
    }

    /// Says what became of the block.
    pub(crate) fn settle(self, outcome: FetchOutcome) {
        if let Some(place) = self.targets.lock().get_mut(self.at - self.targets.start) {
            place.outcome = Some(outcome);
        }
    }
}

impl Drop for Claim<'_, '_> {
    fn drop(&mut self) {
        if let Some(place) = self.targets.lock().get_mut(self.at - self.targets.start) {
            place.memory = self.memory.take();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CORRUPT: FetchOutcome =
        FetchOutcome::Missed(MissReason::Corrupt(kvhive_protocol::HeaderError::Digest));
    const ABSENT: FetchOutcome = FetchOutcome::Missed(MissReason::Absent);
    const UNREACHABLE: FetchOutcome = FetchOutcome::Missed(MissReason::Unreachable);

    #[test]
    fn a_place_is_one_receivers_at_a_time() {
        let mut memory = vec![vec![0; 4]; 3];
        let mut pieces: Vec<&mut [u8]> = memory.iter_mut().map(Vec::as_mut_slice).collect();
        let targets = Targets::new(7, &mut pieces);
        let mut first = targets.claim(8).expect("it is free");
        first.memory().fill(1);
        assert!(targets.claim(8).is_none());
        drop(first);
        let again = targets.claim(8).expect("it is free again");
        again.settle(CORRUPT);
        assert!(targets.claim(8).is_none(), "it is settled");
        assert!(targets.claim(10).is_none(), "there is no such place");
        assert_eq!(targets.open(), [7, 9]);
        assert!(targets.are_settled(&[8]) && !targets.are_settled(&[8, 9]));
        assert_eq!(targets.into_outcomes(), [UNREACHABLE, CORRUPT, UNREACHABLE]);
    }

    #[test]
    fn what_one_replica_lacks_is_open_until_somebody_knows() {
        let mut memory = vec![vec![0; 4]; 3];
        let mut pieces: Vec<&mut [u8]> = memory.iter_mut().map(Vec::as_mut_slice).collect();
        let targets = Targets::new(0, &mut pieces);
        targets.absent(0, false);
        targets.absent(1, false);
        assert_eq!(targets.open(), [0, 1, 2]);
        targets.absent(1, true);
        let claim = targets.claim(2).expect("it is free");
        targets.absent(2, true);
        assert_eq!(targets.open(), [0, 2], "who receives it knows better");
        claim.settle(CORRUPT);
        targets.give_up(2);
        targets.give_up(0);
        assert_eq!(targets.into_outcomes(), [ABSENT, ABSENT, CORRUPT]);
    }
}
