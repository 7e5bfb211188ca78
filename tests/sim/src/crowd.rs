//! A thousand members and the coordinator that leads them: leases, moves and balance by what each member reports of what it is read,
//! in steps of a few seconds. Members hold no blocks here, only slots: what is checked is where those are, and that nobody is taken to have
//! a slot's blocks before it was given them.

use crate::Random;
use kvhive_control::{BalanceTuning, BeatVerdict, Effect, MAX_REPLICAS, Overseer, Registry, Tuning};
use kvhive_protocol::control::{Command, CommandReply, DeviceLoad, Heartbeat, Proposal, Registration};
use kvhive_protocol::data::Ack;
use kvhive_protocol::load::{MAX_HOT_SLOTS, Work};
use kvhive_protocol::map::{DeviceDescription, Settings};
use kvhive_protocol::{
    ClusterId, ClusterMap, DeviceId, Epoch, Filling, Generation, LogEntry, MemberId, MemberState, Moment,
    Origin, Reason, ReplicaSet, RequestId, SLOTS, Slot,
};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Failure domains.
const ZONES: u64 = 4;
/// Copies of each slot that is not read much.
const REPLICAS: u8 = 2;
/// Seconds between two heartbeats of a member.
const HEARTBEAT_S: u64 = 20;
/// Seconds of a step: the leader looks at everything once.
const STEP_S: u64 = 5;
/// What all members together are read, in bytes a second for each.
const MEAN_RATE: u64 = 100 << 20;
/// One proposal of so many is lost.
const LOST: u64 = 20;
/// What a report is off by at most, in per cent.
const NOISE_PERCENT: u64 = 5;

/// One member.
struct One {
    id: MemberId,
    generation: Generation,
    epoch: Epoch,
    /// The map that it serves by.
    map: Arc<ClusterMap>,
    runs: bool,
}

/// A crowd of members, one device each, and their leader.
pub struct Crowd {
    registry: Registry,
    overseer: Overseer,
    random: Random,
    now: u64,
    asked: u64,
    members: Vec<One>,
    /// What each slot is read, in bytes a second.
    rates: Vec<u64>,
    /// Who has been given a slot's blocks by its primary, as reported.
    given: BTreeSet<(Slot, DeviceId)>,
    /// Slots that were to belong elsewhere because of how much they are read.
    balanced: u64,
    /// Where each of them was to belong since what is read last changed.
    tried: BTreeMap<Slot, Vec<Vec<DeviceId>>>,
    /// How often a slot was to belong where it was before.
    swings: u64,
}

impl Crowd {
    /// Makes a cluster of so many members whose slots are where they belong. Nothing is read yet.
    ///
    /// # Errors
    /// What did not hold.
    pub fn of(members: u64, seed: u64) -> Result<Crowd, String> {
        let balance = BalanceTuning { continuous: true, ..BalanceTuning::default() };
        let tuning = Tuning { streams: usize::from(SLOTS), balance, ..Tuning::default() };
        let mut crowd = Crowd {
            registry: Registry::new(),
            overseer: Overseer::new(tuning),
            random: Random(seed),
            now: STEP_S,
            asked: 0,
            members: Vec::new(),
            rates: vec![0; usize::from(SLOTS)],
            given: BTreeSet::new(),
            balanced: 0,
            tried: BTreeMap::new(),
            swings: 0,
        };
        let settings = Settings {
            replicas: REPLICAS,
            segment_blocks: 16,
            ack: Ack::All,
            lease_ms: 60_000,
            heartbeat_ms: HEARTBEAT_S * 1000,
            serving_lease_ms: 60_000,
        };
        crowd.apply(Command::Bootstrap {
            cluster: ClusterId(5),
            name: "crowd".to_owned(),
            settings,
            default_secret: [1; 32],
            scaling: Default::default(),
            coordinators: Vec::new(),
            level: kvhive_protocol::Level::NEWEST,
        })?;
        for number in 0..members {
            crowd.register(number)?;
        }
        crowd.change_leader();
        crowd.settle()?;
        Ok(crowd)
    }

    fn register(&mut self, number: u64) -> Result<(), String> {
        let device =
            DeviceDescription { kind: "host".into(), device_bytes: 1 << 34, host_bytes: 0, disk_bytes: 0 };
        let reply = self.apply(Command::Register(Registration {
            request: RequestId { client: 2, sequence: number + 1 },
            name: format!("node-{number}"),
            data_address: format!("10.0.{}.{}:7810", number / 250, number % 250),
            metrics_address: format!("10.0.{}.{}:7811", number / 250, number % 250),
            labels: BTreeMap::from([("zone".to_owned(), format!("z{}", number % ZONES))]),
            devices: vec![device],
            codec: Default::default(),
            speaks: kvhive_protocol::Level::NEWEST,
        }))?;
        let CommandReply::Registered { member, generation, epoch } = reply else {
            return Err(format!("{number} was not registered: {reply:?}"));
        };
        self.members.push(One { id: member, generation, epoch, map: self.map(), runs: true });
        Ok(())
    }

    /// Returns the map.
    pub fn map(&self) -> Arc<ClusterMap> {
        self.registry.map().expect("it was started")
    }

    /// Has keys be read by Zipf's law of this exponent, the first one most; which slot a key is of follows from `salt`.
    pub fn read_by_zipf(&mut self, keys: u64, exponent: f64, salt: u64) {
        let weights: Vec<f64> = (1..=keys).map(|rank| (rank as f64).powf(-exponent)).collect();
        let (sum, all): (f64, u64) = (weights.iter().sum(), MEAN_RATE * self.members.len() as u64);
        let mut random = Random(salt);
        self.read_nothing();
        for weight in weights {
            self.rates[random.below(u64::from(SLOTS)) as usize] += (weight / sum * all as f64) as u64;
        }
    }

    /// Has nothing be read.
    pub fn read_nothing(&mut self) {
        self.rates.fill(0);
        self.tried.clear();
    }

    /// Ends the processes of so many members without a word; returns which.
    pub fn lose(&mut self, count: usize) -> Vec<MemberId> {
        let mut lost = Vec::new();
        while lost.len() < count {
            let at = self.random.below(self.members.len() as u64) as usize;
            if std::mem::take(&mut self.members[at].runs) {
                lost.push(self.members[at].id);
            }
        }
        lost
    }

    /// Has another coordinator lead, which knows nothing but the map.
    pub fn change_leader(&mut self) {
        self.overseer.lost_leadership();
        let map = self.map();
        self.overseer.became_leader(Moment::from_millis(self.now * 1000), Some(&map));
    }

    /// Lets seconds pass; returns how many slots were to belong elsewhere because of what they are read.
    ///
    /// # Errors
    /// What did not hold, and when.
    pub fn pass(&mut self, seconds: u64) -> Result<u64, String> {
        let before = self.balanced;
        for _ in 0..seconds / STEP_S {
            self.now += STEP_S;
            self.step().map_err(|broken| format!("at {} s: {broken}", self.now))?;
        }
        Ok(self.balanced - before)
    }

    /// Lets time pass until every slot is where it belongs.
    ///
    /// # Errors
    /// What did not hold, or that it is so never.
    pub fn settle(&mut self) -> Result<(), String> {
        for _ in 0..120 {
            self.pass(HEARTBEAT_S)?;
            let map = self.map();
            if self.overseer.unsettled(&map) == 0 && map.filling.is_empty() {
                return Ok(());
            }
        }
        Err(format!(
            "{} slots are not where they belong after 10 minutes",
            self.overseer.unsettled(&self.map())
        ))
    }

    /// Returns what the busiest member is read, in per cent of the mean, and what the busiest is of those that hold no slot which has
    /// as many replicas as there can be.
    pub fn skew(&self) -> (u64, u64) {
        let (carried, map) = (self.carried(), self.map());
        let mean = (carried.values().sum::<u64>() / carried.len().max(1) as u64).max(1);
        let full = map.slots.iter().filter(|set| set.0.len() >= usize::from(MAX_REPLICAS));
        let full: BTreeSet<DeviceId> = full.flat_map(|set| set.0.iter().copied()).collect();
        let others = carried.iter().filter(|(device, _)| !full.contains(device));
        let percent = |most: Option<&u64>| most.map_or(0, |most| most * 100 / mean);
        (percent(carried.values().max()), percent(others.map(|(_, rate)| rate).max()))
    }

    /// Returns the slots that are read most, hottest first.
    pub fn hottest(&self, count: usize) -> Vec<Slot> {
        let mut slots: Vec<Slot> = Slot::all().collect();
        slots.sort_by_key(|slot| (Reverse(self.rates[usize::from(slot.0)]), *slot));
        slots.truncate(count);
        slots
    }

    /// Returns how often a slot was to belong where it was before, since what is read last changed.
    pub fn swings(&mut self) -> u64 {
        std::mem::take(&mut self.swings)
    }

    fn carried(&self) -> BTreeMap<DeviceId, u64> {
        let map = self.map();
        let mut carried: BTreeMap<DeviceId, u64> = map.devices_up().map(|(device, _)| (device, 0)).collect();
        for (slot, set) in map.slots.iter().enumerate() {
            for device in &set.0 {
                *carried.entry(*device).or_default() += asked(set, *device, self.rates[slot]);
            }
        }
        carried
    }

    fn step(&mut self) -> Result<(), String> {
        let (now, map) = (Moment::from_millis(self.now * 1000), self.map());
        let held = self.held();
        for at in 0..self.members.len() {
            if !self.members[at].runs
                || at as u64 % (HEARTBEAT_S / STEP_S) != self.now / STEP_S % (HEARTBEAT_S / STEP_S)
            {
                continue;
            }
            let beat = self.beat(at, &held);
            if let BeatVerdict::Renew { send_map: true } = self.overseer.heartbeat_confirmed(now, beat, &map)
            {
                self.members[at].epoch = map.epoch;
                self.members[at].map = map.clone();
            }
        }
        let mut effects = Vec::new();
        self.overseer.tick(now, &map, &mut effects);
        drop(map);
        for effect in effects {
            let Effect::Propose(command, _) = effect else { continue };
            if !self.random.one_in(LOST) {
                self.decided(command)?;
            }
        }
        Ok(())
    }

    /// Returns the slots of each member, by the newest map.
    fn held(&self) -> BTreeMap<MemberId, Vec<Slot>> {
        let mut held: BTreeMap<MemberId, Vec<Slot>> = BTreeMap::new();
        for (slot, set) in Slot::all().zip(self.map().slots.iter()) {
            set.0.iter().for_each(|device| held.entry(device.member).or_default().push(slot));
        }
        held
    }

    /// What a member says: what it holds and is read, and whom it has given all of a slot since it said so last.
    fn beat(&mut self, at: usize, held: &BTreeMap<MemberId, Vec<Slot>>) -> Heartbeat {
        let One { id, generation, epoch, ref map, .. } = self.members[at];
        let device = DeviceId::new(id, 0);
        let mut load = DeviceLoad { occupied: vec![0; usize::from(SLOTS / 8)], ..DeviceLoad::default() };
        let mut work = Work::default();
        for slot in held.get(&id).into_iter().flatten() {
            load.occupied[usize::from(slot.0 / 8)] |= 1 << (slot.0 % 8);
            let set = map.replicas(*slot);
            if let Some(to) = map.given_to(*slot).filter(|_| set.primary() == Some(device)) {
                load.filled.push((*slot, to));
                self.given.insert((*slot, to));
            }
            if set.contains(device) {
                let rate = asked(set, device, self.rates[usize::from(slot.0)]);
                let noise = 100 - NOISE_PERCENT + self.random.below(2 * NOISE_PERCENT + 1);
                work.hot.push((*slot, rate * noise / 100));
            }
        }
        work.read_rate = work.hot.iter().map(|(_, rate)| rate).sum();
        work.hot.retain(|(_, rate)| *rate > 0);
        work.hot.sort_by_key(|(slot, rate)| (Reverse(*rate), *slot));
        work.hot.truncate(MAX_HOT_SLOTS);
        work.hot.sort_unstable();
        load.work = work;
        Heartbeat { member: id, generation, epoch, devices: vec![load] }
    }

    /// Applies what the leader has decided, and checks what it did to the map.
    fn decided(&mut self, command: Command) -> Result<(), String> {
        let before = self.map();
        if let Command::Balance { changes, .. } = &command {
            for one in changes {
                let tried = self.tried.entry(one.slot).or_default();
                self.swings += u64::from(tried.contains(&one.set));
                tried.push(one.set.clone());
                self.balanced += 1;
            }
        }
        if let CommandReply::Rejected(error) = self.apply(command)? {
            return Err(format!("the leader's own decision was refused: {error}"));
        }
        let after = self.map();
        after.check()?;
        let none = Filling::default();
        for (slot, set) in Slot::all().zip(after.slots.iter()) {
            let (old, lacked) = (before.replicas(slot), before.filling.get(&slot).unwrap_or(&none));
            let lacks = after.filling.get(&slot).unwrap_or(&none);
            let is_up =
                |device: &DeviceId| after.owner(*device).is_some_and(|owner| owner.state == MemberState::Up);
            let mut had_all = old.0.iter().filter(|device| !lacked.devices.contains(device));
            if !had_all.any(is_up) {
                // What it had is lost: it begins anew.
                continue;
            }
            let has_now = set.0.iter().filter(|device| !lacks.devices.contains(device));
            for device in has_now {
                let had = old.contains(*device) && !lacked.devices.contains(device);
                if !had && !self.given.remove(&(slot, *device)) {
                    return Err(format!(
                        "slot {slot} is taken to be on {device}, which was not given its blocks"
                    ));
                }
            }
        }
        Ok(())
    }

    fn apply(&mut self, command: Command) -> Result<CommandReply, String> {
        self.asked += 1;
        let request = RequestId { client: 1, sequence: self.asked };
        let proposal = Proposal { request, command };
        let origin = Origin { at_ms: self.now * 1000, reason: Reason::default() };
        Ok(self.registry.apply(self.asked, LogEntry { proposal, origin }))
    }
}

/// Returns what of a slot's rate clients ask of one of its replicas: they ask the primary, and where there are more replicas than all slots
/// have, each its own choice of them.
fn asked(set: &ReplicaSet, device: DeviceId, rate: u64) -> u64 {
    match set.0.len() > usize::from(REPLICAS) {
        true => rate / set.0.len() as u64,
        false if set.primary() == Some(device) => rate,
        false => 0,
    }
}
