//! Work is spread as far as it should be, no farther, and does not swing.

use super::*;
use crate::planner::Planner;
use crate::planner::tests::goes_on;
use crate::registry::tests::Cluster;
use kvhive_protocol::control::{Command, CommandReply, MAX_BALANCED};
use kvhive_protocol::load::MAX_HOT_SLOTS;
use kvhive_protocol::{ClusterMap, Reason, SLOTS};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

const MIB: u64 = 1 << 20;

/// SplitMix64, so that a failure replays.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ mixed >> 31
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn below(&mut self, end: usize) -> usize {
        (self.unit() * end as f64) as usize
    }
}

/// A cluster whose readers ask for keys by Zipf's law, as clients do: the primary, and where a slot has more replicas than the cluster's
/// `replicas`, any of them.
struct World {
    cluster: Cluster,
    planner: Planner,
    balancer: Balancer,
    tuning: BalanceTuning,
    now: Moment,
    random: Random,
    /// The slot of each key, the one read most first, and how often a key up to it is read, from 0 to 1.
    keys: Vec<(Slot, f64)>,
    decisions: Vec<Balancing>,
    /// A device that can do less than the others' 500 reads a second.
    slow: Option<(DeviceId, u64)>,
}

impl World {
    fn new(members: usize, replicas: u8, keys: usize, exponent: f64, seed: u64) -> World {
        let mut cluster = Cluster::with_replicas(replicas);
        for at in 0..members {
            cluster.register(&format!("n{at}"), 1);
        }
        let mut world = World {
            cluster,
            planner: Planner::new(5000),
            balancer: Balancer::default(),
            tuning: BalanceTuning { continuous: true, ..BalanceTuning::default() },
            now: Moment::ZERO,
            random: Random(seed),
            keys: Vec::new(),
            decisions: Vec::new(),
            slow: None,
        };
        world.keys_by_zipf(keys, exponent);
        world.move_slots();
        world
    }

    fn keys_by_zipf(&mut self, keys: usize, exponent: f64) {
        let weights: Vec<f64> = (1..=keys).map(|rank| (rank as f64).powf(-exponent)).collect();
        let sum: f64 = weights.iter().sum();
        let mut up_to = 0.0;
        self.keys.clear();
        for weight in weights {
            up_to += weight / sum;
            let slot = Slot(self.random.below(usize::from(SLOTS)) as u16);
            self.keys.push((slot, up_to));
        }
    }

    fn map(&self) -> Arc<ClusterMap> {
        self.cluster.registry.map().expect("bootstrapped")
    }

    fn move_slots(&mut self) {
        while let Some(command) = self.planner.plan(&self.map(), &goes_on()) {
            let reply = self.cluster.apply(command);
            assert!(matches!(reply, CommandReply::Applied { .. }), "{reply:?}");
        }
        assert_eq!(self.planner.unsettled(&self.map()), 0);
    }

    /// Reads for a while and returns what each device reports; each read is of 1 MiB, and there are 1000 a second.
    fn read(&mut self) -> BTreeMap<DeviceId, Work> {
        const READS: u64 = 16_000;
        let map = self.map();
        let mut carried: BTreeMap<DeviceId, BTreeMap<Slot, u64>> =
            map.devices_up().map(|(device, _)| (device, BTreeMap::new())).collect();
        for _ in 0..READS {
            let draw = self.random.unit();
            let key = self.keys.partition_point(|(_, up_to)| *up_to < draw).min(self.keys.len() - 1);
            let slot = self.keys[key].0;
            let set = &map.replicas(slot).0;
            let are_all_asked = set.len() > usize::from(map.settings.replicas);
            let device = set[if are_all_asked { self.random.below(set.len()) } else { 0 }];
            *carried.entry(device).or_default().entry(slot).or_default() += 1;
        }
        let rate = |reads: u64| reads * 1000 * MIB / READS;
        let report = |(device, slots): (DeviceId, BTreeMap<Slot, u64>)| {
            let mut hot: Vec<(Slot, u64)> = slots.iter().map(|(slot, reads)| (*slot, rate(*reads))).collect();
            hot.sort_unstable_by_key(|(slot, rate)| (std::cmp::Reverse(*rate), *slot));
            hot.truncate(MAX_HOT_SLOTS);
            hot.sort_unstable();
            let read_rate = rate(slots.values().sum());
            (device, Work { read_rate, hot, wait_us: self.wait_us(device, read_rate), ..Work::default() })
        };
        carried.into_iter().map(report).collect()
    }

    /// How long requests wait for a device: as in a queue with one server, half a millisecond when it is idle.
    fn wait_us(&self, device: DeviceId, rate: u64) -> u32 {
        let can = self.slow.filter(|(slow, _)| *slow == device).map_or(500, |(_, can)| can) * MIB;
        let busy = (rate as f64 / can as f64).min(0.99);
        (500.0 * (500 * MIB) as f64 / can as f64 / (1.0 - busy)) as u32
    }

    /// Lets time pass, and the balancer do what it does; says how many slots it changed.
    fn pass(&mut self, seconds: u64) -> usize {
        let mut changed = 0;
        for _ in 0..seconds / 10 {
            self.now = self.now + Duration::from_secs(10);
            let work = self.read();
            let map = self.map();
            let seen = Seen::of(&map, self.planner.places(&map), &work);
            if !self.balancer.is_due(self.now, &self.tuning, true) {
                continue;
            }
            let changes = self.balancer.step(self.now, &self.tuning, &seen);
            if changes.is_empty() {
                continue;
            }
            changed += changes.len();
            self.decisions.extend(changes.iter().cloned());
            let reply = self.cluster.apply(Command::Balance { based_on: map.epoch, changes });
            assert!(matches!(reply, CommandReply::Applied { .. }), "{reply:?}");
            self.move_slots();
        }
        changed
    }

    /// Returns what the busiest device carries, in per cent of the mean.
    fn skew(&mut self) -> u64 {
        let work = self.read();
        let rates = work.values().map(|work| work.read_rate);
        rates.clone().max().unwrap_or(0) * 100 * work.len() as u64 / rates.sum::<u64>().max(1)
    }
}

#[test]
fn work_by_zipfs_law_on_eight_devices_is_spread_to_within_a_quarter_of_the_mean() {
    let mut skewed = 0;
    for seed in 1..=3 {
        for replicas in [1, 2] {
            let mut world = World::new(8, replicas, 1000, 1.1, seed);
            let before = world.skew();
            skewed += usize::from(before >= 200);
            world.pass(300);
            let after = world.skew();
            println!("seed {seed}, {replicas} replicas: {before} % before, {after} % after");
            assert!(after <= 125, "seed {seed}, {replicas} replicas: {before} % before, {after} % after");
            let all = world.map();
            assert!(
                all.balanced.len() <= 64 && all.balanced.values().all(|set| set.0.len() <= 8),
                "{:?}",
                all.balanced
            );
            // Once it is even, nothing is done any more.
            let changed = world.pass(300);
            assert!(changed <= 4, "seed {seed}: {changed} slots changed under a load that did not");
            for decision in &world.decisions {
                assert!(
                    decision.reason.as_str().contains("MiB/s")
                        && decision.reason.as_str().contains("replica"),
                    "{decision:?}"
                );
            }
        }
    }
    assert!(skewed >= 2, "{skewed} of 6 clusters were twice over the mean before");
}

#[test]
fn who_is_asked_first_is_changed_where_all_have_everything_already() {
    let mut world = World::new(2, 2, 1000, 1.1, 2);
    // Every hot key is of a slot that the same device is the primary of.
    let map = world.map();
    let is_its = |slot: &Slot| map.replicas(*slot).0[0] == device(1);
    let mut its = Slot::all().filter(is_its);
    world.keys[..100].iter_mut().for_each(|(slot, _)| *slot = its.next().expect("half of them are"));
    let before = world.skew();
    world.pass(300);
    let (after, map) = (world.skew(), world.map());
    assert!(before >= 150 && after <= 125, "{before} % before, {after} % after");
    assert!(map.slots.iter().all(|set| set.0.len() == 2), "nothing more is held");
    let told = |one: &Balancing| one.reason.as_str().ends_with("2 replicas, 2/0 is asked first");
    assert!(world.decisions.iter().any(told), "{:?}", world.decisions);
    let changed = world.pass(300);
    assert!(changed <= 4, "{changed} slots changed under a load that did not");
}

/// Has so many slots that nobody reads ask their other replica first; says which.
fn turn_round(world: &mut World, count: usize) -> BTreeSet<Slot> {
    let map = world.map();
    let read: BTreeSet<Slot> = world.keys.iter().map(|(slot, _)| *slot).collect();
    let turned: BTreeSet<Slot> = Slot::all().filter(|slot| !read.contains(slot)).take(count).collect();
    let change = |slot: &Slot| Balancing {
        slot: *slot,
        set: map.replicas(*slot).0.iter().rev().copied().collect(),
        reason: Reason::new("it was read much"),
    };
    let changes = turned.iter().map(change).collect();
    let reply = world.cluster.apply(Command::Balance { based_on: map.epoch, changes });
    assert!(matches!(reply, CommandReply::Applied { .. }), "{reply:?}");
    world.move_slots();
    assert_eq!(world.map().balanced.len(), count);
    turned
}

#[test]
fn a_slot_that_is_read_much_takes_the_place_of_one_that_is_not_where_no_more_can_be_placed() {
    let mut world = World::new(8, 2, 1000, 1.1, 4);
    turn_round(&mut world, MAX_BALANCED);
    let before = world.skew();
    // Nothing has cooled for long enough yet.
    world.pass(100);
    let (after, map) = (world.skew(), world.map());
    assert!(before >= 150 && after <= 125, "{before} % before, {after} % after");
    assert!(map.balanced.contains_key(&world.keys[0].0) && map.balanced.len() <= MAX_BALANCED);
    let told = |one: &Balancing| {
        one.set.is_empty() && one.reason.as_str().contains("no more than 1024 slots can go elsewhere")
    };
    assert!(world.decisions.iter().any(told), "{:?}", world.decisions);
}

#[test]
fn what_has_cooled_holds_up_nobodys_relief() {
    let mut world = World::new(8, 2, 1000, 1.1, 4);
    let turned = turn_round(&mut world, 500);
    let spreads = world.tuning.beyond_percent;
    world.tuning.beyond_percent = 10_000;
    world.pass(130);
    world.tuning.beyond_percent = spreads;
    assert_eq!(world.decisions, [], "nothing has cooled for long enough yet");
    while world.decisions.is_empty() {
        world.pass(10);
    }
    let cooled = world.decisions.iter().filter(|one| turned.contains(&one.slot)).count();
    assert!(cooled <= 32 && world.decisions.len() > cooled, "{cooled} of {}", world.decisions.len());
    assert!(world.decisions.iter().any(|one| one.slot == world.keys[0].0), "{:?}", world.decisions);
}

#[test]
fn what_is_not_read_any_more_goes_back_to_where_its_hash_says() {
    let mut world = World::new(8, 1, 1000, 1.1, 3);
    world.pass(300);
    assert!(!world.map().balanced.is_empty());
    // The same readers, of other keys, all alike.
    world.keys_by_zipf(4000, 0.0);
    world.pass(900);
    assert!(world.map().balanced.is_empty(), "{:?}", world.map().balanced);
    assert!(world.skew() <= 120);
    let places = world.planner.places(&world.cluster.registry.map().expect("bootstrapped"));
    assert_eq!(places.hashed, places.wanted);
}

#[test]
fn nothing_is_done_for_a_load_that_is_even_or_small() {
    let mut world = World::new(4, 1, 4000, 0.0, 1);
    assert_eq!(world.pass(300), 0);
    let mut world = World::new(4, 1, 1000, 1.3, 1);
    world.tuning.least_rate = 1 << 40;
    assert_eq!(world.pass(300), 0);
}

#[test]
fn what_is_told_to_come_of_it_is_what_the_changes_come_to_and_no_more() {
    let mut world = World::new(8, 1, 4000, 1.1, 1);
    let work = world.read();
    let map = world.map();
    for at_once in [0, 1, 64] {
        let tuning = BalanceTuning { at_once, ..world.tuning };
        let seen = Seen::of(&map, world.planner.places(&map), &work);
        let decided = decide(&tuning, &seen, world.balancer.handicaps(), |_, is_cold| is_cold);
        assert!(decided.changes.len() <= at_once && decided.changes.is_empty() == (at_once == 0));
        let moved: BTreeSet<DeviceId> = decided
            .changes
            .iter()
            .flat_map(|change| map.replicas(change.slot).0.iter().chain(&change.set).copied())
            .collect();
        for (device, before, after) in &decided.rates {
            assert!(before == after || moved.contains(device), "{device} of {at_once}");
        }
    }
}

fn device(number: u32) -> DeviceId {
    DeviceId::new(kvhive_protocol::MemberId(number), 0)
}

#[test]
fn nothing_is_decided_while_slots_move_or_reports_have_not_followed() {
    let mut world = World::new(2, 1, 100, 1.1, 5);
    let map = world.map();
    let work = world.read();
    let seen = Seen::of(&map, world.planner.places(&map), &work);
    let tuning = BalanceTuning { beyond_percent: 100, aim_percent: 100, ..world.tuning };
    let balancer = &mut world.balancer;
    let mut step = |seconds, is_settled| {
        let now = Moment::ZERO + Duration::from_secs(seconds);
        match balancer.is_due(now, &tuning, is_settled) {
            true => balancer.step(now, &tuning, &seen),
            false => Vec::new(),
        }
    };
    assert_eq!(step(0, true), []);
    assert_eq!(step(29, true), []);
    assert_eq!(step(30, false), []);
    assert_eq!(step(31, true), []);
    assert_ne!(step(61, true), []);
    assert_eq!(step(62, true), [], "the next begins anew");
}

#[test]
fn a_device_that_requests_wait_for_is_given_less_until_they_do_not_and_nothing_swings() {
    let mut world = World::new(4, 1, 100, 0.3, 4);
    world.pass(600);
    world.decisions.clear();
    let slow = device(1);
    world.slow = Some((slow, 270));
    let carried = |world: &mut World| {
        let work = world.read();
        let rates: u64 = work.values().map(|work| work.read_rate).sum();
        (
            work[&slow].read_rate * 100 * work.len() as u64 / rates,
            work[&slow].wait_us,
            work[&device(2)].wait_us,
        )
    };
    let (share, wait, usual) = carried(&mut world);
    assert!((90..110).contains(&share) && wait > 5 * usual, "{share} % of the mean, {wait} and {usual} us");
    world.pass(1500);
    let (less, wait, usual) = carried(&mut world);
    assert!((40..80).contains(&less) && wait < 4 * usual, "{less} % of the mean, {wait} and {usual} us");
    let told = |one: &Balancing| one.reason.as_str().contains("requests wait for it longer than for others");
    assert!(world.decisions.iter().any(told), "{:?}", world.decisions);
    let changed = world.pass(1200);
    assert!(changed <= 8, "{changed} slots changed in 20 minutes under a load that did not");
    // As fast as the others again: what it counts for more is forgotten, and it takes its share.
    world.slow = None;
    world.pass(3600);
    let (share, ..) = carried(&mut world);
    assert!(share > less && share >= 80, "{less} and then {share} % of the mean");
}

#[test]
fn what_requests_wait_for_is_learned_though_nothing_is_done_unasked() {
    let mut world = World::new(4, 1, 4000, 0.0, 1);
    world.slow = Some((device(1), 270));
    world.tuning.continuous = false;
    assert_eq!(world.pass(300), 0);
    assert!(world.balancer.handicaps().of(device(1)) > 150);
    assert_eq!(world.balancer.handicaps().of(device(2)), 100);
}

#[test]
fn a_slot_on_a_device_that_is_gone_goes_by_its_hash_again() {
    let mut world = World::new(4, 1, 1000, 1.1, 3);
    world.pass(300);
    let map = world.map();
    let gone = map.balanced.values().flat_map(|set| &set.0).next().copied().expect("some are balanced");
    world.cluster.apply(Command::Leave { member: gone.member, generation: kvhive_protocol::Generation(1) });
    world.move_slots();
    world.pass(60);
    assert!(world.map().balanced.values().all(|set| !set.contains(gone)));
    let told = |one: &Balancing| one.reason.as_str().contains("is not there to hold it any more");
    assert!(world.decisions.iter().any(told));
}

#[test]
fn who_is_cordoned_is_relieved_by_copies_and_what_is_decided_comes_true() {
    for (replicas, seed) in [(1, 1), (1, 3), (2, 2), (2, 3)] {
        let mut world = World::new(8, replicas, 1000, 1.1, seed);
        let work = world.read();
        let busiest = work.iter().max_by_key(|(_, work)| work.read_rate).map(|(device, _)| *device);
        let cordoned = busiest.expect("there are devices");
        let of = |map: &ClusterMap| -> Vec<Slot> {
            Slot::all().filter(|slot| map.replicas(*slot).contains(cordoned)).collect()
        };
        let held = of(&world.map());
        world.cluster.apply(Command::SetCordon { member: cordoned.member, cordoned: true });
        world.move_slots();
        let before = world.skew();
        world.pass(300);
        let map = world.map();
        assert_eq!(of(&map), held, "it keeps what it had, and is given nothing");
        for (slot, set) in map.balanced.iter() {
            assert_eq!(map.replicas(*slot), set, "{slot}: what was decided is where it is");
        }
        let after = world.skew();
        assert!(after <= 130, "seed {seed}, {replicas} replicas: {before} % before, {after} % after");
        let changed = world.pass(300);
        assert!(changed <= 4, "seed {seed}: {changed} slots changed under a load that did not");
    }
}

#[test]
fn a_slot_that_was_to_leave_who_is_cordoned_since_is_taken_to_be_where_it_stays() {
    let mut world = World::new(4, 1, 1000, 1.1, 3);
    let map = world.map();
    let (slot, from) = (world.keys[0].0, map.replicas(world.keys[0].0).0[0]);
    let to = map.devices_up().map(|(device, _)| device).find(|device| *device != from).expect("of four");
    let reason = Reason::new("it is read much");
    let change = Balancing { slot, set: vec![to], reason };
    world.cluster.apply(Command::Balance { based_on: map.epoch, changes: vec![change] });
    world.cluster.apply(Command::SetCordon { member: from.member, cordoned: true });
    let (map, work) = (world.map(), world.read());
    assert_eq!(map.balanced[&slot].0, [to]);
    let seen = Seen::of(&map, world.planner.places(&map), &work);
    let model = Model::of(&seen, &Handicaps::default());
    assert_eq!(model.asked[&slot].set, [from]);
}

#[test]
fn impossible_places_are_refused_and_a_new_leader_finds_those_that_were_taken() {
    let mut cluster = Cluster::with_replicas(2);
    for name in ["a", "b", "c"] {
        cluster.register(name, 1);
    }
    let change = |slot: u16, set: &[u32]| Balancing {
        slot: Slot(slot),
        set: set.iter().map(|number| device(*number)).collect(),
        reason: Reason::new("it is read much"),
    };
    let balance = |cluster: &mut Cluster, changes: &[Balancing]| {
        let based_on = cluster.registry.epoch();
        cluster.apply(Command::Balance { based_on, changes: changes.to_vec() })
    };
    for wrong in [
        vec![change(7, &[1])],
        vec![change(7, &[1, 1])],
        vec![change(7, &[1, 9])],
        vec![change(4096, &[1, 2])],
        vec![change(7, &[1, 2]), change(7, &[2, 1])],
    ] {
        let reply = balance(&mut cluster, &wrong);
        assert!(matches!(reply, CommandReply::Rejected(_)), "{wrong:?}: {reply:?}");
    }
    let stale = cluster.registry.epoch();
    let reply = balance(&mut cluster, &[change(7, &[3, 1, 2]), change(9, &[2, 3])]);
    assert!(matches!(reply, CommandReply::Applied { .. }), "{reply:?}");
    let again = cluster.apply(Command::Balance { based_on: stale, changes: vec![change(8, &[1, 2])] });
    assert!(
        matches!(again, CommandReply::Rejected(kvhive_protocol::WireError::StaleEpoch { .. })),
        "{again:?}"
    );
    let restored = crate::Registry::restore(&cluster.registry.snapshot()).expect("what it wrote");
    assert_eq!(restored.map(), cluster.registry.map());
    let map = restored.map().expect("bootstrapped");
    let mut planner = Planner::new(5000);
    assert_eq!(planner.places(&map).wanted[7].0, [device(3), device(1), device(2)]);
    // One without its device is where its hash says.
    cluster.apply(Command::SetDrains { member: kvhive_protocol::MemberId(3), drains: true });
    let map = cluster.registry.map().expect("bootstrapped");
    let places = planner.places(&map);
    assert_eq!(places.hashed, places.wanted);
    balance(&mut cluster, &[change(7, &[]), change(9, &[])]);
    assert!(cluster.registry.map().expect("bootstrapped").balanced.is_empty());
}
