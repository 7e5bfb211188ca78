//! Where slots belong by their hash, as it was found lately. [`placement::wanted_map`] takes milliseconds, and is asked for the same
//! candidates again and again: by the registry when a member goes and when it comes back, by the planner after each of them. What
//! is kept is what would be found anew, so nothing depends on it.

use crate::placement::{self, Candidate};
use kvhive_protocol::ReplicaSet;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;

/// How many of the last maps each thread keeps: those of a member that goes and comes, with others that drain or are cordoned.
const KEPT: usize = 8;
/// More candidates than this are not kept, so that what is stays below a few MiB.
const MAX_CANDIDATES: usize = 1024;

struct Found {
    candidates: Vec<Candidate>,
    replicas: usize,
    sets: Arc<Vec<ReplicaSet>>,
}

thread_local! {
    /// The one that was asked for last is first.
    static FOUND: RefCell<VecDeque<Found>> = const { RefCell::new(VecDeque::new()) };
}

/// Returns what [`placement::wanted_map`] does.
pub(crate) fn map(candidates: &[Candidate], replicas: usize) -> Arc<Vec<ReplicaSet>> {
    FOUND.with_borrow_mut(|found| {
        let is_it = |one: &Found| one.replicas == replicas && one.candidates == candidates;
        if let Some(known) = found.iter().position(is_it).and_then(|at| found.remove(at)) {
            let sets = known.sets.clone();
            found.push_front(known);
            return sets;
        }
        let sets = Arc::new(placement::wanted_map(candidates, replicas));
        if candidates.len() <= MAX_CANDIDATES {
            found.truncate(KEPT - 1);
            found.push_front(Found { candidates: candidates.to_vec(), replicas, sets: sets.clone() });
        }
        sets
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::tests::Cluster;

    #[test]
    fn what_was_found_lately_is_what_is_found_anew() {
        let mut cluster = Cluster::with_replicas(2);
        let mut asked = Vec::new();
        for name in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"] {
            cluster.register(name, 1);
            let map = cluster.registry.map().expect("it was started");
            asked.push(placement::candidates(&map));
        }
        for candidates in asked.iter().chain(asked.iter().rev()) {
            for replicas in [1, 2] {
                assert_eq!(*map(candidates, replicas), placement::wanted_map(candidates, replicas));
            }
        }
        FOUND.with_borrow(|found| assert_eq!(found.len(), KEPT));
        let again = map(&asked[0], 2);
        assert!(Arc::ptr_eq(&again, &map(&asked[0], 2)), "it is not looked for twice");
    }
}
