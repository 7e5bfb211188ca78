//! Names for changes: coordinators remember an asker's last outcomes alone, so changes that are under way side by side are
//! asked under names of askers of their own. None is ever overtaken by so many others that its outcome is forgotten.

use kvhive_protocol::RequestId;
use std::sync::{Mutex, MutexGuard};

/// The askers that this process can be.
pub(super) struct Lanes(Mutex<Known>);

struct Known {
    /// Free askers, each with its next request.
    free: Vec<RequestId>,
    /// The next asker that was never used.
    next: u128,
}

impl Lanes {
    /// Begins with a random asker; those after it count up from there.
    pub(super) fn new(first: u128) -> Lanes {
        Lanes(Mutex::new(Known { free: Vec::new(), next: first }))
    }

    /// Takes a name that no other change under way shares its asker with.
    pub(super) fn take(&self) -> RequestId {
        let mut known = self.known();
        known.free.pop().unwrap_or_else(|| {
            let client = known.next;
            known.next = client.wrapping_add(1);
            RequestId { client, sequence: 1 }
        })
    }

    /// Says that the change of this name is through.
    pub(super) fn give_back(&self, request: RequestId) {
        self.known().free.push(RequestId { sequence: request.sequence + 1, ..request });
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Nothing is left half-done under this lock.
        self.0.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn changes_side_by_side_share_no_asker_and_later_ones_use_the_same() {
        let lanes = Lanes::new(u128::MAX - 1);
        let taken: Vec<RequestId> = (0..200).map(|_| lanes.take()).collect();
        let askers: BTreeSet<u128> = taken.iter().map(|request| request.client).collect();
        assert_eq!(askers.len(), 200);
        for request in &taken {
            lanes.give_back(*request);
        }
        let again: Vec<RequestId> = (0..200).map(|_| lanes.take()).collect();
        assert!(again.iter().all(|request| request.sequence == 2 && askers.contains(&request.client)));
    }
}
