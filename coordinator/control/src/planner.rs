//! Moves slots toward where they belong, only where nothing is lost by it. Runs on the leader; what it plans is an
//! ordinary command, refused if the map has moved on. Moving slots that hold blocks is not its business.
//!
//! A move takes two plans. The first has the slot held: who serves by that map takes no new block of it. The second moves it,
//! if everybody who holds it has reported, serving by that map, that nothing is there; else it is let go.

use crate::placement::{self, Candidate};
use kvhive_protocol::control::Command;
use kvhive_protocol::{ClusterMap, DeviceId, ReplicaSet, Slot};
use std::collections::BTreeMap;

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

    /// Plans the next step; none if every slot is where it belongs or has to stay, or reports are awaited.
    ///
    /// `occupied` says whether a device holds any block of a slot, as of a report made under the present placement and hold;
    /// `None` if it has not reported so. While slots are held and a report is missing, that is awaited, unless `is_over`: then
    /// what is still unknown is let go.
    pub fn plan(
        &mut self,
        map: &ClusterMap,
        occupied: impl Fn(DeviceId, Slot) -> Option<bool>,
        is_over: bool,
    ) -> Option<Command> {
        let wanted = self.wanted(map);
        let (mut changes, mut held) = (Vec::new(), Vec::new());
        for slot in Slot::all() {
            let (now, then) = (map.replicas(slot), &wanted[usize::from(slot.0)]);
            if now == then || then.0.is_empty() {
                continue;
            }
            let is_held = map.held.contains(&slot);
            let mut holders = now.0.iter().map(|device| occupied(*device, slot));
            if holders.clone().any(|there| there == Some(true)) {
                continue;
            }
            let is_empty = holders.all(|there| there == Some(false));
            let is_known = is_empty && then.0.iter().all(|device| occupied(*device, slot).is_some());
            match (is_held, is_known) {
                (true, true) => changes.push((slot, then.0.clone())),
                (false, true) => held.push(slot),
                (true, false) if !is_over => return None,
                (_, false) => {}
            }
        }
        let lets_go = !map.held.is_empty();
        let is_step = lets_go || !held.is_empty();
        is_step.then_some(Command::PlaceSlots { based_on: map.epoch, changes, held })
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

    fn changes(command: &Command) -> &[(Slot, Vec<DeviceId>)] {
        match command {
            Command::PlaceSlots { changes, .. } => changes,
            other => panic!("planned {other:?}"),
        }
    }

    fn held(command: &Option<Command>) -> &[Slot] {
        match command {
            Some(Command::PlaceSlots { held, .. }) => held,
            other => panic!("planned {other:?}"),
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
        while let Some(command) = planner.plan(&map(&cluster.registry), |_, _| Some(false), false) {
            cluster.apply(command);
            plans += 1;
        }
        // All that are to move are held, then they move.
        assert_eq!(plans, 2);
        assert!(map(&cluster.registry).held.is_empty());
        assert_eq!(planner.unsettled(&map(&cluster.registry)), 0);
        assert!(imbalance(&map(&cluster.registry)) < 0.01);
    }

    #[test]
    fn a_slot_with_a_block_anywhere_stays() {
        let mut cluster = Cluster::with_replicas(2);
        for name in ["a", "b", "c"] {
            cluster.register(name, 1);
        }
        let mut planner = Planner::new();
        let plan = planner.plan(&map(&cluster.registry), |_, _| Some(false), false);
        let kept = *held(&plan).first().expect("c holds nothing yet");
        let secondary = map(&cluster.registry).replicas(kept).0[1];
        let report = |device: DeviceId, slot| Some(slot == kept && device == secondary);
        let others = planner.plan(&map(&cluster.registry), report, false);
        assert!(!held(&others).contains(&kept) && !held(&others).is_empty());
        // A block that came before the hold was known keeps its slot, and the slot is let go.
        cluster.apply(plan.expect("slots to hold"));
        let moves = planner.plan(&map(&cluster.registry), report, false).expect("slots to move");
        assert!(!changes(&moves).is_empty() && changes(&moves).iter().all(|(slot, _)| *slot != kept));
        cluster.apply(moves);
        assert!(map(&cluster.registry).held.is_empty());
        assert!(map(&cluster.registry).replicas(kept).contains(secondary));
    }

    #[test]
    fn a_hold_waits_for_reports_and_not_for_ever() {
        let mut cluster = Cluster::with_replicas(1);
        for name in ["a", "b"] {
            cluster.register(name, 1);
        }
        let mut planner = Planner::new();
        let plan = planner.plan(&map(&cluster.registry), |_, _| Some(false), false);
        cluster.apply(plan.expect("slots to hold"));
        let map = map(&cluster.registry);
        assert_eq!(planner.plan(&map, |_, _| None, false), None);
        let over = planner.plan(&map, |_, _| None, true);
        assert_eq!(over, Some(Command::PlaceSlots { based_on: map.epoch, changes: vec![], held: vec![] }));
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
            assert!(planner.plan(&map, report, false).is_none());
        }
    }
}
