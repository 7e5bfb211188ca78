//! Moves slots toward where they belong, only where nothing is lost by it. Runs on the leader; what it plans is an
//! ordinary command, refused if the map has moved on. Moving slots that hold blocks is not its business.

use crate::placement::{self, Candidate};
use kvhive_protocol::control::Command;
use kvhive_protocol::{ClusterMap, DeviceId, ReplicaSet, Slot};
use std::collections::BTreeMap;

/// The most slots that one plan moves.
pub const MAX_CHANGES_PER_PLAN: usize = 2048;

/// Plans moves. Remembers only the last wanted map, which takes milliseconds to find.
#[derive(Clone, Default)]
pub struct Planner {
    wanted: Option<Wanted>,
}

#[derive(Clone)]
struct Wanted {
    candidates: Vec<Candidate>,
    replicas: usize,
    sets: Vec<ReplicaSet>,
}

impl Planner {
    /// Makes a planner.
    pub fn new() -> Self {
        Self::default()
    }

    /// Plans the next moves, at most [`MAX_CHANGES_PER_PLAN`]; none if every slot is where it belongs or has to stay.
    ///
    /// `occupied` says whether a device holds any block of a slot, as of a report made under the present placement;
    /// `None` if it has not reported so. A slot moves only when every device that holds it reported that it is empty
    /// there, and every device that is to hold it has reported at all.
    ///
    /// A block stored between a report and the moment at which its writer learns of the move is missed afterwards.
    /// It is never served wrongly; wait for [`Planner::unsettled`] to be 0 before relying on acknowledged stores.
    pub fn plan(
        &mut self,
        map: &ClusterMap,
        occupied: impl Fn(DeviceId, Slot) -> Option<bool>,
    ) -> Option<Command> {
        let wanted = self.wanted(map);
        let mut changes = Vec::new();
        for slot in Slot::all() {
            let (now, then) = (map.replicas(slot), &wanted[usize::from(slot.0)]);
            if now == then || then.0.is_empty() {
                continue;
            }
            let empty = now.0.iter().all(|device| occupied(*device, slot) == Some(false));
            if empty && then.0.iter().all(|device| occupied(*device, slot).is_some()) {
                changes.push((slot, then.0.clone()));
            }
            if changes.len() == MAX_CHANGES_PER_PLAN {
                break;
            }
        }
        (!changes.is_empty()).then_some(Command::PlaceSlots { based_on: map.epoch, changes })
    }

    /// Returns how many slots are not where they belong.
    pub fn unsettled(&mut self, map: &ClusterMap) -> usize {
        self.wanted(map).iter().zip(map.slots.iter()).filter(|(wanted, now)| wanted != now).count()
    }

    fn wanted(&mut self, map: &ClusterMap) -> &[ReplicaSet] {
        let candidates = placement::candidates(map);
        let replicas = usize::from(map.settings.replicas);
        let fits = |wanted: &Wanted| wanted.replicas == replicas && wanted.candidates == candidates;
        if !self.wanted.as_ref().is_some_and(fits) {
            let sets = placement::wanted_map(&candidates, replicas);
            self.wanted = Some(Wanted { candidates, replicas, sets });
        }
        self.wanted.as_ref().map_or(&[], |wanted| &wanted.sets)
    }
}

/// Returns the greatest deviation of a device's primaries from its capacity's share of them, as a fraction of that
/// share: 0.05 means that the worst device has 5 % more or fewer than it should. 0 while nothing is placed.
pub fn imbalance(map: &ClusterMap) -> f64 {
    let candidates = placement::candidates(map);
    let mut primaries: BTreeMap<DeviceId, u32> = BTreeMap::new();
    for primary in map.slots.iter().filter_map(ReplicaSet::primary) {
        *primaries.entry(primary).or_default() += 1;
    }
    let placed: u32 = primaries.values().sum();
    let weights: f64 = candidates.iter().map(|candidate| candidate.weight as f64).sum();
    if placed == 0 {
        return 0.0;
    }
    let deviation = |candidate: &Candidate| {
        let share = f64::from(placed) * candidate.weight as f64 / weights;
        (f64::from(primaries.get(&candidate.device).copied().unwrap_or(0)) - share).abs() / share
    };
    candidates.iter().map(deviation).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Registry;
    use crate::registry::tests::Cluster;
    use std::collections::BTreeSet;

    fn changes(command: Option<Command>) -> Vec<(Slot, Vec<DeviceId>)> {
        match command {
            Some(Command::PlaceSlots { changes, .. }) => changes,
            Some(other) => panic!("planned {other:?}"),
            None => Vec::new(),
        }
    }

    fn map(registry: &Registry) -> std::sync::Arc<ClusterMap> {
        registry.map().expect("bootstrapped")
    }

    #[test]
    fn an_empty_cluster_is_brought_into_balance_in_a_few_plans() {
        let mut cluster = Cluster::with_replicas(1);
        for name in ["a", "b", "c", "d"] {
            cluster.register(name, 1);
        }
        let mut planner = Planner::new();
        assert!(imbalance(&map(&cluster.registry)) > 0.9);
        let mut plans = 0;
        while let Some(command) = planner.plan(&map(&cluster.registry), |_, _| Some(false)) {
            cluster.apply(command);
            plans += 1;
        }
        assert_eq!(plans, 2);
        assert_eq!(planner.unsettled(&map(&cluster.registry)), 0);
        assert!(imbalance(&map(&cluster.registry)) < 0.01);
    }

    #[test]
    fn a_slot_with_a_block_anywhere_stays() {
        let mut cluster = Cluster::with_replicas(2);
        for name in ["a", "b", "c"] {
            cluster.register(name, 1);
        }
        let map = map(&cluster.registry);
        let mut planner = Planner::new();
        let all: BTreeSet<Slot> =
            changes(planner.plan(&map, |_, _| Some(false))).into_iter().map(|(slot, _)| slot).collect();
        let kept = *all.first().expect("c holds nothing yet");
        let secondary = map.replicas(kept).0[1];
        let some = changes(planner.plan(&map, |device, slot| Some(slot == kept && device == secondary)));
        assert!(some.iter().all(|(slot, _)| *slot != kept));
        assert!(!some.is_empty());
    }

    #[test]
    fn nothing_moves_from_or_to_a_device_that_has_not_reported() {
        let mut cluster = Cluster::with_replicas(1);
        let a = cluster.register("a", 1);
        let b = cluster.register("b", 1);
        let map = map(&cluster.registry);
        let mut planner = Planner::new();
        for silent in [a, b] {
            let report = |device: DeviceId, _| (device.member != silent).then_some(false);
            assert!(planner.plan(&map, report).is_none());
        }
    }

    #[test]
    fn a_plan_has_a_limit_and_names_its_epoch() {
        let mut cluster = Cluster::with_replicas(1);
        for at in 0..8 {
            cluster.register(&format!("n{at}"), 1);
        }
        let map = map(&cluster.registry);
        let command = Planner::new().plan(&map, |_, _| Some(false));
        assert!(matches!(&command, Some(Command::PlaceSlots { based_on, .. }) if *based_on == map.epoch));
        assert_eq!(changes(command).len(), MAX_CHANGES_PER_PLAN);
    }
}
