//! Moves slots toward where they belong, and has replicas given what they lack: the steps of [`crate::moves`] for every slot,
//! bounded. Runs on the leader; what it plans is an ordinary command, refused if the map has moved on.

use crate::cordon;
use crate::moves::{self, Present};
use crate::pins;
use crate::placement::{self, Candidate};
use crate::wanted;
use kvhive_protocol::control::Command;
use kvhive_protocol::{ClusterMap, DeviceId, Filling, ReplicaSet, Slot};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Whom slots can be placed on, and where they belong.
#[derive(Clone, Copy)]
pub(crate) struct Places<'a> {
    pub(crate) candidates: &'a [Candidate],
    /// By their hash.
    pub(crate) hashed: &'a [ReplicaSet],
    /// As work is spread more evenly.
    pub(crate) wanted: &'a [ReplicaSet],
}

/// What members have reported, as far as the planner asks.
pub(crate) trait Reports {
    /// Says whether a device holds any block of a slot, as of a report made since the slot was placed as it is now; none if it
    /// has not reported so.
    fn occupied(&self, device: DeviceId, slot: Slot) -> Option<bool>;

    /// Says whether the slot's primary has reported, since the slot was placed as it is now, that `device` was given all it has.
    fn is_filled(&self, slot: Slot, device: DeviceId) -> bool;

    /// Returns devices that did not answer those who were to give them blocks.
    fn avoided(&self) -> &BTreeSet<DeviceId>;

    /// Says whether every member that is down has had the time to come back, so that others are to get what it held.
    fn is_due(&self) -> bool;

    /// Says whether a device may lack blocks of slots that it has: it has let some go, or not taken some in.
    fn may_lack(&self, device: DeviceId) -> bool;
}

/// Plans moves. Remembers only the last wanted map, which takes milliseconds to find.
#[derive(Clone)]
pub(crate) struct Planner {
    /// The most slots that one device gives away at a time.
    streams: usize,
    wanted: Option<Wanted>,
}

#[derive(Clone)]
struct Wanted {
    candidates: Vec<Candidate>,
    replicas: usize,
    balanced: Arc<BTreeMap<Slot, ReplicaSet>>,
    /// By their hash.
    hashed: Arc<Vec<ReplicaSet>>,
    /// As work is spread more evenly.
    sets: Arc<Vec<ReplicaSet>>,
    /// Both as members that are cordoned make them; none while none is.
    cordoned: Option<Cordoned>,
}

/// Where slots belong while members are cordoned: that depends on where they are.
#[derive(Clone)]
struct Cordoned {
    slots: Arc<Vec<ReplicaSet>>,
    filling: Arc<BTreeMap<Slot, Filling>>,
    hashed: Vec<ReplicaSet>,
    sets: Vec<ReplicaSet>,
}

impl Wanted {
    fn heed_cordons(&mut self, map: &ClusterMap) {
        if self.candidates.iter().all(|candidate| candidate.takes) {
            self.cordoned = None;
            return;
        }
        let is_it = |known: &Cordoned| {
            Arc::ptr_eq(&known.slots, &map.slots) && Arc::ptr_eq(&known.filling, &map.filling)
        };
        if self.cordoned.as_ref().is_some_and(is_it) {
            return;
        }
        let (mut hashed, mut sets) = (self.hashed.to_vec(), self.sets.to_vec());
        cordon::heed(map, &self.candidates, &mut hashed);
        cordon::heed(map, &self.candidates, &mut sets);
        let (slots, filling) = (map.slots.clone(), map.filling.clone());
        self.cordoned = Some(Cordoned { slots, filling, hashed, sets });
    }
}

impl Planner {
    /// Makes a planner that has a device give away the blocks of at most so many slots at a time.
    pub(crate) fn new(streams: usize) -> Self {
        Planner { streams, wanted: None }
    }

    /// Plans the next step of every slot that has one; none if every slot is where it belongs or reports are awaited.
    pub(crate) fn plan(&mut self, map: &ClusterMap, reports: &impl Reports) -> Option<Command> {
        let most = self.streams;
        let wanted = self.wanted(map);
        let mut streaming: BTreeMap<DeviceId, usize> = BTreeMap::new();
        for (slot, _) in map.filling.iter().filter(|(_, filling)| filling.streams) {
            if let Some(primary) = map.replicas(*slot).primary() {
                *streaming.entry(primary).or_default() += 1;
            }
        }
        let replicas = usize::from(map.settings.replicas);
        let (is_due, avoided) = (reports.is_due(), reports.avoided());
        let mut changes = Vec::new();
        // What is pinned is to be whole first.
        let pinned = pins::slots(map);
        let others = Slot::all().filter(|slot| !pinned.contains(slot));
        for slot in pinned.iter().copied().chain(others) {
            let (set, wanted) = (map.replicas(slot), &wanted[usize::from(slot.0)].0);
            let filling = map.filling.get(&slot);
            let Some(primary) = set.primary().filter(|_| filling.is_some() || set.0 != *wanted) else {
                continue;
            };
            let Some(is_occupied) = reports.occupied(primary, slot) else { continue };
            let given = filling.filter(|filling| filling.streams).map(|filling| filling.devices[0]);
            let present = Present {
                slot,
                set,
                filling,
                wanted,
                is_empty: !is_occupied,
                is_filled: given.is_some_and(|device| reports.is_filled(slot, device)),
                is_due,
                may_start: given.is_some() || streaming.get(&primary).is_none_or(|count| *count < most),
                avoided,
                replicas,
            };
            if let Some(from) = gives_first(map, &present, reports) {
                let may_start = streaming.get(&from).is_none_or(|count| *count < most);
                match reports.occupied(from, slot) {
                    Some(false) => {}
                    Some(true) if may_start && !avoided.contains(&primary) => {
                        *streaming.entry(primary).or_default() -= usize::from(given.is_some());
                        *streaming.entry(from).or_default() += 1;
                        changes.extend(moves::turned(&present, from));
                        continue;
                    }
                    // Its turn comes: nobody lets go of it before.
                    None | Some(true) => continue,
                }
            }
            let under_way = streaming.entry(primary).or_default();
            let next = moves::next(&present);
            if let Some(placing) = next {
                *under_way -= usize::from(given.is_some());
                *under_way += usize::from(placing.filling.streams && is_occupied);
                changes.push(placing);
            }
        }
        (!changes.is_empty()).then_some(Command::PlaceSlots { based_on: map.epoch, changes })
    }

    /// Returns how many slots are not where they belong.
    pub(crate) fn unsettled(&mut self, map: &ClusterMap) -> usize {
        let places = self.wanted(map).iter().zip(map.slots.iter()).zip(Slot::all());
        let is_settled = |(wanted, now): (&ReplicaSet, &ReplicaSet), slot| {
            (wanted == now || wanted.0.is_empty()) && !map.filling.contains_key(&slot)
        };
        places.filter(|(sets, slot)| !is_settled(*sets, *slot)).count()
    }

    /// Returns whom slots can be placed on, and where they belong.
    pub(crate) fn places(&mut self, map: &ClusterMap) -> Places<'_> {
        let candidates = placement::candidates(map);
        let replicas = usize::from(map.settings.replicas);
        let is_hashed = |wanted: &Wanted| wanted.replicas == replicas && wanted.candidates == candidates;
        let is_it = |wanted: &Wanted| is_hashed(wanted) && wanted.balanced == map.balanced;
        if !self.wanted.as_ref().is_some_and(is_it) {
            let known = self.wanted.take().filter(is_hashed).map(|wanted| wanted.hashed);
            let hashed = known.unwrap_or_else(|| wanted::map(&candidates, replicas));
            let mut sets = hashed.clone();
            if !map.balanced.is_empty() {
                placement::balance(map, &candidates, Arc::make_mut(&mut sets).as_mut_slice());
            }
            let balanced = map.balanced.clone();
            self.wanted = Some(Wanted { candidates, replicas, balanced, hashed, sets, cordoned: None });
        }
        let Some(wanted) = self.wanted.as_mut() else {
            return Places { candidates: &[], hashed: &[], wanted: &[] };
        };
        wanted.heed_cordons(map);
        let (hashed, sets) = match &wanted.cordoned {
            Some(heeded) => (&heeded.hashed[..], &heeded.sets[..]),
            None => (&wanted.hashed[..], &wanted.sets[..]),
        };
        Places { candidates: &wanted.candidates, hashed, wanted: sets }
    }

    fn wanted(&mut self, map: &ClusterMap) -> &[ReplicaSet] {
        self.places(map).wanted
    }
}

/// Returns a replica that is being emptied and may have blocks that nobody has who stays; none where somebody stays who lacks nothing.
fn gives_first(map: &ClusterMap, now: &Present<'_>, reports: &impl Reports) -> Option<DeviceId> {
    let (primary, others) = now.set.0.split_first()?;
    let is_whole = |device: &DeviceId| !map.is_filling(now.slot, *device);
    let goes = |device: &DeviceId| map.is_emptied(device.member) && !now.wanted.contains(device);
    let is_sure =
        |device: &DeviceId| now.wanted.contains(device) && is_whole(device) && !reports.may_lack(*device);
    if goes(primary) {
        return None;
    }
    let from = others.iter().copied().find(|device| goes(device) && is_whole(device))?;
    (!now.set.0.iter().any(is_sure)).then_some(from)
}

#[cfg(test)]
#[path = "planner_crowd_test.rs"]
mod crowd;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::registry::Registry;
    use crate::registry::tests::Cluster;
    use kvhive_protocol::control::CommandReply;
    use kvhive_protocol::{BlockKey, Pin, PinMode, Reason, TenantId};

    /// What devices report: which of them hold blocks of which slots, and who was given all.
    struct Told<O, F>(O, F, bool);

    impl<O: Fn(DeviceId, Slot) -> Option<bool>, F: Fn(Slot, DeviceId) -> bool> Reports for Told<O, F> {
        fn occupied(&self, device: DeviceId, slot: Slot) -> Option<bool> {
            self.0(device, slot)
        }

        fn is_filled(&self, slot: Slot, device: DeviceId) -> bool {
            self.1(slot, device)
        }

        fn is_due(&self) -> bool {
            true
        }

        fn may_lack(&self, _: DeviceId) -> bool {
            self.2
        }

        fn avoided(&self) -> &BTreeSet<DeviceId> {
            static NOBODY: BTreeSet<DeviceId> = BTreeSet::new();
            &NOBODY
        }
    }

    /// Returns the greatest deviation of a device's primaries from its capacity's share of them, as a fraction of that
    /// share: 0.05 means that the worst device has 5 % more or fewer than it should. 0 while nothing is placed.
    fn imbalance(map: &ClusterMap) -> f64 {
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

    /// Every slot has blocks, and whoever is given them has them by the next plan.
    pub(crate) fn goes_on() -> impl Reports {
        Told(|_, _| Some(true), |_, _| true, false)
    }

    fn map(registry: &Registry) -> std::sync::Arc<ClusterMap> {
        registry.map().expect("bootstrapped")
    }

    fn streaming(map: &ClusterMap) -> usize {
        map.filling.values().filter(|filling| filling.streams).count()
    }

    #[test]
    fn an_empty_cluster_is_brought_into_balance_in_two_plans() {
        let mut cluster = Cluster::with_replicas(1);
        for name in ["a", "b", "c", "d"] {
            cluster.register(name, 1);
        }
        let mut planner = Planner::new(4);
        assert!(imbalance(&map(&cluster.registry)) > 0.9);
        let mut plans = 0;
        let nothing = Told(|_, _| Some(false), |_, _| false, false);
        while let Some(command) = planner.plan(&map(&cluster.registry), &nothing) {
            cluster.apply(command);
            plans += 1;
        }
        assert_eq!(plans, 2);
        assert!(map(&cluster.registry).filling.is_empty());
        assert_eq!(planner.unsettled(&map(&cluster.registry)), 0);
        assert!(imbalance(&map(&cluster.registry)) < 0.01);
    }

    #[test]
    fn a_slot_may_go_to_another_device_of_its_own_member() {
        for is_occupied in [false, true] {
            let mut cluster = Cluster::with_replicas(2);
            for (name, devices) in [("a", 2), ("b", 3), ("c", 2)] {
                cluster.register(name, devices);
            }
            let mut planner = Planner::new(5000);
            let mut within = 0;
            let goes_on = Told(|_, _| Some(is_occupied), |_, _| true, false);
            while let Some(command) = planner.plan(&map(&cluster.registry), &goes_on) {
                let reply = cluster.apply(command);
                assert!(matches!(reply, CommandReply::Applied { .. }), "{reply:?}");
                let map = map(&cluster.registry);
                within += map
                    .filling
                    .iter()
                    .filter(|(slot, filling)| {
                        let set = &map.replicas(**slot).0;
                        set.iter()
                            .any(|one| *one != filling.devices[0] && one.member == filling.devices[0].member)
                    })
                    .count();
            }
            assert_eq!(planner.unsettled(&map(&cluster.registry)), 0);
            assert!(within > 0);
        }
    }

    #[test]
    fn slots_with_blocks_are_given_away_a_few_at_a_time_and_nobody_lacks_any_in_the_end() {
        let mut cluster = Cluster::with_replicas(2);
        for name in ["a", "b", "c"] {
            cluster.register(name, 1);
        }
        let mut planner = Planner::new(40);
        let waits = Told(|_, _| Some(true), |_, _| false, false);
        cluster.apply(planner.plan(&map(&cluster.registry), &waits).expect("some begin"));
        let before = map(&cluster.registry);
        assert_eq!(streaming(&before), 40);
        assert_eq!(planner.plan(&before, &waits), None, "they are awaited");
        let mut plans = 0;
        while let Some(command) = planner.plan(&map(&cluster.registry), &goes_on()) {
            cluster.apply(command);
            assert!(streaming(&map(&cluster.registry)) <= 3 * 40);
            plans += 1;
        }
        assert!(plans > 10, "{plans}");
        assert_eq!(planner.unsettled(&map(&cluster.registry)), 0);
        assert!(imbalance(&map(&cluster.registry)) < 0.01);
    }

    #[test]
    fn slots_of_pinned_blocks_come_first() {
        let mut cluster = Cluster::with_replicas(1);
        cluster.register("a", 1);
        // Of each segment the first key says the slot.
        let keys: Vec<BlockKey> = (0..64).map(|at| BlockKey::from_bytes([at * 3 + 1; 32])).collect();
        let pin = Pin {
            tenant: TenantId(1),
            keys: keys.iter().collect(),
            mode: PinMode::Hard,
            reason: Reason::default(),
        };
        let pinned = pin.slots(map(&cluster.registry).settings.segment_blocks);
        cluster.register("b", 1);
        let moved_first = |cluster: &Cluster| {
            let waits = Told(|_, _| Some(true), |_, _| false, false);
            let planned = Planner::new(8).plan(&map(&cluster.registry), &waits);
            let Some(Command::PlaceSlots { changes, .. }) = planned else { panic!("{planned:?}") };
            changes.into_iter().map(|one| one.slot).collect::<Vec<_>>()
        };
        let mut planner = Planner::new(8);
        let wanted = planner.wanted(&map(&cluster.registry)).to_vec();
        let moves = |slot: &&Slot| wanted[usize::from(slot.0)].0 != map(&cluster.registry).replicas(**slot).0;
        let first: Vec<Slot> = pinned.iter().filter(moves).copied().take(8).collect();
        assert!(!first.is_empty());
        assert_ne!(moved_first(&cluster)[..first.len()], first[..]);
        cluster.apply(Command::SetPin { name: "system".into(), pin: Box::new(pin) });
        assert_eq!(moved_first(&cluster)[..first.len()], first[..]);
    }

    #[test]
    fn what_a_lost_member_held_is_given_again_where_it_is_pinned_first() {
        let mut cluster = Cluster::with_replicas(2);
        let members: Vec<_> = ["a", "b", "c"].map(|name| cluster.register(name, 1)).to_vec();
        let mut planner = Planner::new(4096);
        while let Some(command) = planner.plan(&map(&cluster.registry), &goes_on()) {
            cluster.apply(command);
        }
        cluster.mark_down(members[0]);
        let given_first = |cluster: &Cluster| {
            let planned = Planner::new(8).plan(&map(&cluster.registry), &goes_on());
            let Some(Command::PlaceSlots { changes, .. }) = planned else { panic!("{planned:?}") };
            assert!(changes.iter().all(|one| one.filling.streams), "each is a replica's copy");
            changes.into_iter().map(|one| one.slot).collect::<BTreeSet<_>>()
        };
        // The last of those that lack a replica: by their order they would wait longest.
        let lacking: BTreeSet<Slot> = map(&cluster.registry).filling.keys().copied().collect();
        let last: BTreeSet<Slot> = lacking.iter().rev().take(4).copied().collect();
        assert_eq!(last.len(), 4);
        assert!(given_first(&cluster).is_disjoint(&last));
        for slot in &last {
            let mut key = [7; 32];
            key[24..].copy_from_slice(&u64::from(slot.0).to_le_bytes());
            let keys = [BlockKey::from_bytes(key)].iter().collect();
            let pin = Pin {
                tenant: TenantId(1),
                keys,
                mode: PinMode::Soft { until_ms: 9 },
                reason: Reason::default(),
            };
            cluster.apply(Command::SetPin { name: format!("slot-{}", slot.0), pin: Box::new(pin) });
        }
        assert!(given_first(&cluster).is_superset(&last));
    }

    #[test]
    fn nothing_moves_from_a_device_that_has_not_reported() {
        let mut cluster = Cluster::with_replicas(1);
        let a = cluster.register("a", 1);
        cluster.register("b", 1);
        let silent = Told(|device: DeviceId, _| (device.member != a).then_some(false), |_, _| true, false);
        assert_eq!(Planner::new(9).plan(&map(&cluster.registry), &silent), None);
    }

    #[test]
    fn a_member_that_drains_is_emptied_and_gets_nothing() {
        let mut cluster = Cluster::with_replicas(2);
        let members: Vec<_> = ["a", "b", "c"].map(|name| cluster.register(name, 1)).to_vec();
        let mut planner = Planner::new(5000);
        let settle = |cluster: &mut Cluster, planner: &mut Planner| {
            while let Some(command) = planner.plan(&map(&cluster.registry), &goes_on()) {
                cluster.apply(command);
            }
            assert_eq!(planner.unsettled(&map(&cluster.registry)), 0);
        };
        let holds = |cluster: &Cluster, member| {
            let holds = |set: &&ReplicaSet| set.0.iter().any(|device| device.member == member);
            map(&cluster.registry).slots.iter().filter(holds).count()
        };
        settle(&mut cluster, &mut planner);
        assert!(holds(&cluster, members[0]) > 2000);
        cluster.apply(Command::SetDrains { member: members[0], drains: true });
        settle(&mut cluster, &mut planner);
        assert_eq!(holds(&cluster, members[0]), 0);
        // Started anew, it still is being emptied.
        cluster.register("a", 1);
        settle(&mut cluster, &mut planner);
        assert_eq!(holds(&cluster, members[0]), 0);
        cluster.apply(Command::SetDrains { member: members[0], drains: false });
        settle(&mut cluster, &mut planner);
        assert!(holds(&cluster, members[0]) > 2000);
    }

    #[test]
    fn what_a_replica_holds_that_is_emptied_is_given_where_others_may_have_let_it_go() {
        for (members, may_lack) in [(2, true), (3, true), (3, false)] {
            let mut cluster = Cluster::with_replicas(2);
            let ids: Vec<_> =
                ["a", "b", "c"][..members].iter().map(|name| cluster.register(name, 1)).collect();
            let mut planner = Planner::new(5000);
            let reports = Told(|_, _| Some(true), |_, _| true, may_lack);
            while let Some(command) = planner.plan(&map(&cluster.registry), &reports) {
                cluster.apply(command);
            }
            let leaves = DeviceId::new(ids[0], 0);
            let before = map(&cluster.registry);
            let had: Vec<Slot> = Slot::all().filter(|slot| before.replicas(*slot).contains(leaves)).collect();
            cluster.apply(Command::SetDrains { member: ids[0], drains: true });
            // Whom it has given all that it had, slot by slot.
            let mut given: BTreeMap<Slot, BTreeSet<DeviceId>> = BTreeMap::new();
            while let Some(command) = planner.plan(&map(&cluster.registry), &reports) {
                let reply = cluster.apply(command);
                assert!(matches!(reply, CommandReply::Applied { .. }), "{reply:?}");
                let now = map(&cluster.registry);
                for slot in &had {
                    if let Some(target) = now.given_to(*slot)
                        && now.replicas(*slot).primary() == Some(leaves)
                    {
                        given.entry(*slot).or_default().insert(target);
                    }
                }
            }
            let now = map(&cluster.registry);
            assert_eq!(planner.unsettled(&now), 0);
            assert!(Slot::all().all(|slot| !now.replicas(slot).contains(leaves)));
            let all_given = had.iter().all(|slot| {
                let to = given.get(slot);
                to.is_some_and(|to| now.replicas(*slot).0.iter().any(|device| to.contains(device)))
            });
            assert_eq!(all_given, may_lack, "{members}");
        }
    }
}
