//! The leader's knowledge of who may still be serving: leases as their grantor counts them (B14), what members
//! confirmed, and who is past the moment at which they may be declared down.

use crate::afterlives::Afterlives;
use kvhive_planted::{Bug, is};
use kvhive_protocol::control::{DeviceLoad, Heartbeat, MAX_UNREACHED};
use kvhive_protocol::emptying::{MAX_EMPTIED_TOLD, MAX_FRAME_SIZES, MAX_LOST_NAMED};
use kvhive_protocol::load::{MAX_HOT_SLOTS, MAX_SLOTS_TOLD, MAX_TENANT_LOADS};
use kvhive_protocol::map::Settings;
use kvhive_protocol::scaling::REUSE_BUCKETS;
use kvhive_protocol::strategy::{MAX_LOAD_REPORTS, StrategyReport};
use kvhive_protocol::{ClusterMap, Epoch, Generation, Member, MemberId, MemberState, Moment, SLOTS};
use std::collections::BTreeMap;
use std::time::Duration;

/// Added to every lease for what is not the clock's rate: scheduling, rounding.
const MARGIN: Duration = Duration::from_millis(50);
/// The least time without a call that counts as a pause of the leader itself.
const LEAST_PAUSE: Duration = Duration::from_millis(100);

/// Returns how long after the receipt of a heartbeat its sender may still hold its lease: the lease, one per cent for
/// clocks of different rate, and 50 ms.
///
/// The holder counts from before it sent; so while rates differ by less, it stops first.
pub fn grace(settings: &Settings) -> Duration {
    longer(settings.lease_ms)
}

/// Returns how long after the receipt of a heartbeat its sender may still be serving, counted in the same way.
pub fn serving_grace(settings: &Settings) -> Duration {
    longer(settings.serving_lease_ms)
}

fn longer(lease_ms: u64) -> Duration {
    let lease = Duration::from_millis(lease_ms);
    lease + lease / 100 + MARGIN
}

/// What is known of one member.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) generation: Generation,
    /// Until then it may hold its lease.
    pub(crate) lease_until: Moment,
    /// Until then it may be serving.
    pub(crate) serving_until: Moment,
    /// From then on it may be declared down: the lease's end, later by what the leader itself slept.
    pub(crate) down_after: Moment,
    /// The newest map that it said it serves by.
    pub(crate) epoch: Epoch,
    /// Its devices' newest reports, and the epoch that it served by when it made them.
    pub(crate) loads: Option<(Epoch, Vec<DeviceLoad>)>,
    /// Set once it was proposed that it is down: when to propose it again, and how long to wait after that.
    pub(crate) condemned: Option<(Moment, Duration)>,
}

/// A start of a member that is over by the map, but may hold its lease.
#[derive(Clone, Copy, Debug)]
struct Ghost {
    lease_until: Moment,
    epoch: Epoch,
}

/// Somebody who may be serving by an older map than another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Server {
    /// Which member; none for those that no map has.
    pub member: Option<MemberId>,
    /// How long it may be.
    pub until: Moment,
    /// It holds no lease, so nothing is heard of it before it has registered anew.
    pub is_silent: bool,
}

/// Everything known since this coordinator leads.
#[derive(Clone)]
pub(crate) struct Leases {
    /// The latest time heard of; it never goes back, whatever the clock does.
    now: Moment,
    /// Since when this coordinator leads.
    began: Moment,
    records: BTreeMap<MemberId, Record>,
    /// At most one a member: the longest of its leases with the oldest of its epochs.
    ghosts: BTreeMap<MemberId, Ghost>,
    afterlives: Afterlives,
    /// The epoch up to which records follow the map.
    synced: Option<Epoch>,
}

impl Leases {
    pub(crate) fn new(now: Moment) -> Self {
        Leases {
            now,
            began: now,
            records: BTreeMap::new(),
            ghosts: BTreeMap::new(),
            afterlives: Afterlives::default(),
            synced: None,
        }
    }

    pub(crate) fn now(&self) -> Moment {
        self.now
    }

    pub(crate) fn records(&self) -> impl Iterator<Item = (&MemberId, &Record)> {
        self.records.iter()
    }

    pub(crate) fn get(&self, member: MemberId) -> Option<&Record> {
        self.records.get(&member)
    }

    pub(crate) fn anyone_condemned(&self) -> bool {
        self.records.values().any(|record| record.condemned.is_some())
    }

    /// Returns when every lease granted by the leader before has run out: it granted none after this one was elected.
    fn inherited_until(&self, map: &ClusterMap) -> Moment {
        self.began + grace(&map.settings)
    }

    /// Takes notice of the time; says whether the leader itself was paused.
    ///
    /// A leader that slept heard no heartbeat, so its sleep does not count against members: at most a quarter of a lease
    /// does between two calls. A leader that is merely slow therefore still declares members down, only later.
    pub(crate) fn advance(&mut self, now: Moment, settings: &Settings) -> bool {
        let passed = now.since(self.now);
        self.now = self.now.max(now);
        let counted = (Duration::from_millis(settings.lease_ms) / 4).max(LEAST_PAUSE);
        let slept = passed.saturating_sub(counted);
        if slept.is_zero() {
            return false;
        }
        for record in self.records.values_mut() {
            record.down_after = record.down_after + slept;
        }
        true
    }

    /// Follows the map: new starts of members get a full grace, ended ones become ghosts while their lease lasts.
    pub(crate) fn sync(&mut self, map: &ClusterMap) {
        if self.synced == Some(map.epoch) {
            return;
        }
        self.synced = Some(map.epoch);
        let is_current = |id: &MemberId, record: &Record| {
            map.members.get(id).is_some_and(|member| is_up(member) && member.generation == record.generation)
        };
        let mut ended = BTreeMap::new();
        self.records.retain(|id, record| {
            let current = is_current(id, record);
            if !current {
                ended.insert(*id, record.clone());
            }
            current
        });
        self.afterlives.sync(map, &ended, self.began + serving_grace(&map.settings));
        for (id, record) in ended {
            let ghost = Ghost { lease_until: record.lease_until, epoch: record.epoch };
            let known = self.ghosts.entry(id).or_insert(ghost);
            known.lease_until = known.lease_until.max(ghost.lease_until);
            known.epoch = known.epoch.min(ghost.epoch);
        }
        self.ghosts.retain(|_, ghost| ghost.lease_until > self.now);
        let (now, grace, inherited) = (self.now, grace(&map.settings), self.inherited_until(map));
        let serving_until = match is(Bug::NewLeaderForgetsLeases) {
            true => self.began,
            false => self.began + serving_grace(&map.settings),
        };
        for (id, member) in map.members.iter().filter(|(_, member)| is_up(member)) {
            self.records.entry(*id).or_insert_with(|| Record {
                generation: member.generation,
                // It was granted nothing since, though perhaps by the leader before.
                lease_until: inherited,
                serving_until,
                down_after: now + grace,
                epoch: Epoch(0),
                loads: None,
                condemned: None,
            });
        }
    }

    /// Renews a lease by a heartbeat of the record's generation; says whether its reports could be taken.
    pub(crate) fn renew(&mut self, received: Moment, beat: Heartbeat, map: &ClusterMap) -> bool {
        let until = self.now.max(received) + grace(&map.settings);
        let serving_until = self.now.max(received) + serving_grace(&map.settings);
        let devices = map.members.get(&beat.member).map_or(0, |member| member.devices.len());
        let Some(record) = self.records.get_mut(&beat.member) else { return false };
        record.lease_until = record.lease_until.max(until);
        record.serving_until = record.serving_until.max(serving_until);
        record.down_after = record.down_after.max(until);
        let overtaken = beat.epoch < record.epoch;
        record.epoch = record.epoch.max(beat.epoch);
        let sound = beat.devices.len() == devices && beat.devices.iter().all(is_sound);
        if sound && !overtaken {
            record.loads = Some((beat.epoch, beat.devices));
        }
        sound
    }

    /// Returns who may be serving by a map older than that of `epoch`.
    ///
    /// Members that are up may, until they have confirmed it; so may those that a former leader's map had up and this one's has
    /// down or in another start, as far as the map says that they linger. Who was removed does not count: whoever had it removed
    /// says that its process has ended.
    pub(crate) fn serving_before(&self, epoch: Epoch) -> impl Iterator<Item = Server> {
        let now = self.now;
        let up = self.records.iter().filter(move |(_, one)| one.epoch < epoch && one.serving_until > now);
        let up = up.map(move |(id, one)| Server {
            member: Some(*id),
            until: one.serving_until,
            is_silent: one.lease_until <= now,
        });
        let over = self.afterlives.serving_before(epoch, now);
        up.chain(over.filter(|_| !is(Bug::ClearForgetsAfterlives)))
    }

    /// Returns an afterlife that is over and for which a proposal is due, as [`Leases::condemn`] does.
    pub(crate) fn outlived(
        &mut self,
        first: Duration,
        most: Duration,
    ) -> Option<Option<(MemberId, Generation)>> {
        self.afterlives.outlived(self.now, first, most)
    }

    /// Returns the greatest epoch that everybody who may hold a lease has confirmed; none if nobody may.
    ///
    /// Until leases granted by the leader before have run out, members that went down or started anew around the change
    /// of leaders may hold one that this leader knows nothing of; then it is 0. Who was removed holds none: it has said that it
    /// serves nothing, or was declared down when its lease had run out.
    pub(crate) fn confirmed(&self, map: &ClusterMap) -> Option<Epoch> {
        let restarted = |member: &Member| !is_up(member) || member.generation > Generation(1);
        if self.now < self.inherited_until(map) && map.members.values().any(restarted) {
            return Some(Epoch(0));
        }
        let records = self.records.values().map(|record| (record.lease_until, record.epoch));
        let ghosts = self.ghosts.values().map(|ghost| (ghost.lease_until, ghost.epoch));
        records.chain(ghosts).filter(|(until, _)| *until > self.now).map(|(_, epoch)| epoch).min()
    }

    /// Returns a member whose time is over and for whom a proposal is due, and remembers that it was made: `first` is the
    /// wait until the next, doubled each time up to `most`.
    pub(crate) fn condemn(
        &mut self,
        first: Duration,
        most: Duration,
    ) -> Option<(MemberId, Generation, bool)> {
        let now = self.now;
        let due = |record: &Record| match record.condemned {
            None if is(Bug::DownTooEarly) => record.down_after <= now + Duration::from_millis(500),
            None => record.down_after <= now,
            Some((again, _)) => again <= now,
        };
        let (id, record) = self.records.iter_mut().find(|(_, record)| due(record))?;
        let repeated = record.condemned.is_some();
        record.condemned = Some(again(now, record.condemned, first, most));
        Some((*id, record.generation, repeated))
    }
}

/// Returns when a proposal is made again that is made now, and the wait after that.
pub(crate) fn again(
    now: Moment,
    before: Option<(Moment, Duration)>,
    first: Duration,
    most: Duration,
) -> (Moment, Duration) {
    let wait = before.map_or(first, |(_, wait)| wait);
    (now + wait, (wait * 2).min(most))
}

fn is_up(member: &Member) -> bool {
    member.state == MemberState::Up
}

fn is_sound(load: &DeviceLoad) -> bool {
    let slots_fit = load.occupied.is_empty() || load.occupied.len() == usize::from(SLOTS / 8);
    let reports = &load.strategies;
    let reports_fit = reports.len() <= MAX_LOAD_REPORTS && reports.iter().all(StrategyReport::is_sound);
    let slots_fit =
        slots_fit && load.filled.len() <= usize::from(SLOTS) && load.unreached.len() <= MAX_UNREACHED;
    let reuse_fits = load.reuse.counts.len() == REUSE_BUCKETS;
    let hot = &load.work.hot;
    let hot_fits = hot.len() <= MAX_HOT_SLOTS && hot.is_sorted_by(|(one, _), (next, _)| one < next);
    let emptying_fits = load.frames.len() <= MAX_FRAME_SIZES
        && load.given.len().max(load.displaced.len()).max(load.losses.len()) <= MAX_EMPTIED_TOLD
        && load.losses.iter().map(|(_, losses)| losses.named.len()).sum::<usize>() <= MAX_LOST_NAMED;
    emptying_fits
        && load.moving.len() <= MAX_SLOTS_TOLD
        && load.slot_hits.len() <= MAX_HOT_SLOTS
        && hot_fits
        && reuse_fits
        && slots_fit
        && reports_fit
        && load.tenants.len() <= MAX_TENANT_LOADS
}
