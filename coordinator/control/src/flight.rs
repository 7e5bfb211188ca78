//! Slots on their way: read off the map and where its slots belong, for people. Decides nothing; what a slot's next step is, `moves`
//! says, and when it may be taken, the planner.

use kvhive_protocol::control::{MoveCause, MoveStage, MovesReport, SlotMove};
use kvhive_protocol::{ClusterMap, DeviceId, ReplicaSet, Slot};
use std::time::Duration;

/// Says of every slot that is not where it belongs, or of which a replica lacks blocks, from where it goes to whom, and why. `since` says
/// for how long a slot has been placed as it is, as far as that is known.
pub(crate) fn report(
    map: &ClusterMap,
    wanted: &[ReplicaSet],
    since: impl Fn(Slot) -> Option<Duration>,
) -> MovesReport {
    let moves = Slot::all().zip(wanted).filter_map(|(slot, wanted)| {
        let for_ms = since(slot).unwrap_or_default().as_millis();
        let for_ms = u64::try_from(for_ms).unwrap_or(u64::MAX);
        Some(SlotMove { for_ms, ..one(map, slot, &wanted.0)? })
    });
    MovesReport { epoch: map.epoch, moves: moves.collect() }
}

fn one(map: &ClusterMap, slot: Slot, wanted: &[DeviceId]) -> Option<SlotMove> {
    let (set, filling) = (&map.replicas(slot).0, map.filling.get(&slot));
    // Nowhere to go while nobody is up.
    if filling.is_none() && (set == wanted || wanted.is_empty()) {
        return None;
    }
    let missing: Vec<DeviceId> = wanted.iter().filter(|device| !set.contains(device)).copied().collect();
    let leaves: Vec<DeviceId> = set.iter().filter(|device| !wanted.contains(device)).copied().collect();
    let mut to: Vec<DeviceId> = filling.map_or(Vec::new(), |filling| filling.devices.clone());
    to.extend(&missing);
    if to.is_empty() && leaves.is_empty() {
        // Each is a replica and lacks nothing: the order is another.
        to.extend(wanted.first());
    }
    let drains = |device: &DeviceId| map.members.get(&device.member).is_some_and(|member| member.drains);
    let cause = if let Some(emptied) = leaves.iter().find(|device| drains(device)) {
        MoveCause::Drain(emptied.member)
    } else if map.balanced.get(&slot).is_some_and(|set| set.0 == wanted) {
        MoveCause::Balance
    } else if !leaves.is_empty() {
        MoveCause::Hash
    } else if filling.is_none() && missing.is_empty() {
        MoveCause::Primary
    } else {
        MoveCause::Repair
    };
    let stage = match filling {
        Some(filling) if filling.streams => MoveStage::Copying,
        Some(_) => MoveStage::Waiting,
        None => MoveStage::Planned,
    };
    Some(SlotMove { slot, from: set.first().copied(), to, leaves, stage, cause, for_ms: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planner::Planner;
    use crate::planner::tests::goes_on;
    use crate::registry::tests::Cluster;
    use kvhive_protocol::MemberId;
    use kvhive_protocol::control::Command;
    use std::collections::BTreeMap;

    fn settled(names: &[&str]) -> (Cluster, Planner) {
        let mut cluster = Cluster::with_replicas(2);
        for name in names {
            cluster.register(name, 1);
        }
        let mut planner = Planner::new(4096);
        while let Some(command) = planner.plan(&cluster.map(), &goes_on()) {
            cluster.apply(command);
        }
        (cluster, planner)
    }

    fn moves(cluster: &Cluster, planner: &mut Planner) -> Vec<SlotMove> {
        let map = cluster.map();
        let found = report(&map, planner.places(&map).wanted, |_| Some(Duration::from_millis(7)));
        assert_eq!(found.moves.len(), planner.unsettled(&map), "each slot that is on its way is told");
        assert!(found.moves.iter().all(|one| one.for_ms == 7 && one.from.is_some()));
        found.moves
    }

    fn causes(moves: &[SlotMove]) -> BTreeMap<String, usize> {
        moves.iter().fold(BTreeMap::new(), |mut all, one| {
            *all.entry(format!("{:?}", one.cause)).or_default() += 1;
            all
        })
    }

    #[test]
    fn nothing_is_on_its_way_in_a_cluster_that_is_settled() {
        let (cluster, mut planner) = settled(&["a", "b", "c"]);
        assert_eq!(moves(&cluster, &mut planner), []);
    }

    #[test]
    fn a_slot_of_a_member_that_is_emptied_goes_from_its_primary_to_who_is_to_have_it() {
        let (mut cluster, mut planner) = settled(&["a", "b", "c"]);
        let a = MemberId(1);
        cluster.apply(Command::SetDrains { member: a, drains: true });
        let planned = moves(&cluster, &mut planner);
        let leave = planned.iter().filter(|one| one.leaves.iter().any(|device| device.member == a));
        assert!(leave.clone().count() > 1000);
        assert!(leave.clone().all(|one| one.cause == MoveCause::Drain(a) && one.stage == MoveStage::Planned));
        assert!(leave.clone().all(|one| !one.to.is_empty() && one.to.iter().all(|to| to.member != a)));
        cluster.apply(planner.plan(&cluster.map(), &goes_on()).expect("it begins"));
        let under_way = moves(&cluster, &mut planner);
        assert!(under_way.iter().any(|one| one.stage == MoveStage::Copying));
    }

    #[test]
    fn what_was_lost_is_repaired_and_what_a_newcomer_is_given_goes_by_its_hash() {
        let (mut cluster, mut planner) = settled(&["a", "b", "c"]);
        cluster.mark_down(MemberId(3));
        let lost = moves(&cluster, &mut planner);
        assert!(lost.iter().all(|one| one.leaves.is_empty()));
        assert!(lost.iter().any(|one| one.cause == MoveCause::Repair && one.stage == MoveStage::Waiting));
        let (mut cluster, mut planner) = settled(&["a", "b", "c"]);
        cluster.register("d", 1);
        let given = causes(&moves(&cluster, &mut planner));
        assert!(given["Hash"] > 1000 && !given.contains_key("Repair"), "{given:?}");
    }
}
