//! The leader's own machine: renews leases, declares members down, lets the planner move slots, and knows when a clear
//! is complete. Nothing of it is replicated; a new leader starts with nothing and waits a full lease before it judges.

use crate::balance::{self, BalanceTuning, Balancer, Seen};
use crate::clears::{ClearTicket, Clears, PendingClear};
use crate::counters::Counters;
use crate::flight;
use crate::leases::{Leases, Server};
use crate::planner::{Planner, Reports};
use crate::room;
use crate::why;
use kvhive_planted::{Bug, is};
use kvhive_protocol::control::{BalanceReport, Command, DeviceLoad, Heartbeat, MovesReport};
use kvhive_protocol::load::Work;
use kvhive_protocol::{
    ClusterMap, DeviceId, Epoch, Filling, MemberId, MemberState, Moment, Reason, ReplicaSet, SLOTS, Slot,
    TenantId, WireError, counted_are,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// The most members that one tick declares down; the others follow at the next.
const MAX_VERDICTS_PER_TICK: usize = 64;

/// How often the overseer does what it does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tuning {
    /// How long after a proposal that was not applied it is first made again.
    pub repropose_after: Duration,
    /// How long at most, after doubling each time.
    pub repropose_at_most: Duration,
    /// How long between two plans.
    pub plan_every: Duration,
    /// The same for each member, if that is longer: each plan is a map for everybody.
    pub plan_every_by_member: Duration,
    /// How long replicas that were lost may come back before others are given their blocks.
    pub repair_after: Duration,
    /// The most slots that one device gives away at a time.
    pub streams: usize,
    /// How long a device that did not answer is not given anything.
    pub avoid_for: Duration,
    /// How work is spread.
    pub balance: BalanceTuning,
}

impl Default for Tuning {
    fn default() -> Self {
        Tuning {
            repropose_after: Duration::from_millis(500),
            repropose_at_most: Duration::from_secs(8),
            plan_every: Duration::from_millis(250),
            plan_every_by_member: Duration::from_millis(2),
            repair_after: Duration::from_secs(30),
            streams: 64,
            avoid_for: Duration::from_secs(30),
            balance: BalanceTuning::default(),
        }
    }
}

/// What the overseer asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Propose this to raft for this reason, under a request id of its own.
    Propose(Command, Reason),
    /// Nobody serves the tenant's older blocks any more: answer the asker.
    ClearDone(ClearTicket),
    /// These may be serving the tenant's older blocks, and nothing is heard of them: answer the asker so. It is not waited for any
    /// more; who asks again waits anew.
    ClearWaits(ClearTicket, Vec<Server>),
}

/// What to answer a heartbeat.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BeatVerdict {
    /// The lease is renewed.
    Renew {
        /// The member's map is older than the one given: send it along.
        send_map: bool,
    },
    /// The member is none in this generation, or is being declared down: it must serve nothing and register anew.
    Fenced,
    /// This coordinator does not lead, so nobody's lease is its to renew.
    NotLeading,
}

/// The leader's machine; idle while another coordinator leads.
///
/// Call [`Overseer::tick`] at least every 100 ms. Time that passes unheard beyond a quarter of a lease is taken for a
/// pause of this process and does not count against members.
#[derive(Clone)]
pub struct Overseer {
    tuning: Tuning,
    planner: Planner,
    counters: Counters,
    reign: Option<Reign>,
}

/// What is known only while leading.
#[derive(Clone)]
struct Reign {
    leases: Leases,
    clears: Clears,
    next_plan: Moment,
    /// The epoch last planned on, and until when that plan may be under way.
    planned: Option<(Epoch, Moment)>,
    placement: Option<Placement>,
    /// Since when members are known to be down.
    down: BTreeMap<MemberId, Moment>,
    /// Devices that did not answer those who were to give them blocks, and until when nobody tries again.
    avoided: BTreeMap<DeviceId, Moment>,
    /// The epoch up to which that follows the map.
    followed: Epoch,
    balancer: Balancer,
}

/// Where slots are placed and which replicas lack blocks, as last seen.
#[derive(Clone)]
struct Placement {
    slots: Arc<Vec<ReplicaSet>>,
    filling: Arc<BTreeMap<Slot, Filling>>,
    /// For each slot: since which epoch it is placed so, of which older reports say nothing, and since when.
    since: Vec<(Epoch, Moment)>,
}

impl Overseer {
    /// Makes an overseer that does not lead.
    pub fn new(tuning: Tuning) -> Self {
        Overseer { tuning, planner: Planner::new(tuning.streams), counters: Counters::default(), reign: None }
    }

    /// Starts to lead: every member that is up may hold a lease granted by the leader before, so none is declared down
    /// within a full grace from now. `map` is what this coordinator has applied so far, if any; it may be behind.
    pub fn became_leader(&mut self, now: Moment, map: Option<&ClusterMap>) {
        let leases = Leases::new(now);
        let mut reign = Reign {
            leases,
            clears: Clears::default(),
            next_plan: now,
            planned: None,
            placement: None,
            down: BTreeMap::new(),
            avoided: BTreeMap::new(),
            followed: Epoch(0),
            balancer: Balancer::default(),
        };
        if let Some(map) = map {
            reign.follow(map);
        }
        self.reign = Some(reign);
    }

    /// Stops to lead and forgets everybody. Askers of pending clears must be told that the outcome is unknown.
    pub fn lost_leadership(&mut self) {
        self.reign = None;
    }

    /// Takes a heartbeat that was received at `received`.
    ///
    /// To be called only after a read index, asked for **after** the receipt, has confirmed that this coordinator still
    /// leads, and with the map as applied up to that index: a deposed leader must renew nothing.
    pub fn heartbeat_confirmed(
        &mut self,
        received: Moment,
        beat: Heartbeat,
        map: &ClusterMap,
    ) -> BeatVerdict {
        let Some(reign) = &mut self.reign else { return BeatVerdict::NotLeading };
        self.counters.pauses += u64::from(reign.leases.advance(received, &map.settings));
        reign.follow(map);
        let known = reign.leases.get(beat.member).filter(|record| record.generation == beat.generation);
        // One that is being declared down is not renewed: it must not hold a lease when that is applied.
        if known.is_none_or(|record| record.condemned.is_some() && !is(Bug::RenewsTheCondemned)) {
            self.counters.fenced += 1;
            return BeatVerdict::Fenced;
        }
        let send_map = beat.epoch < map.epoch;
        let sound = reign.leases.renew(received, beat, map);
        self.counters.renewed += 1;
        self.counters.unsound_reports += u64::from(!sound);
        BeatVerdict::Renew { send_map }
    }

    /// Lets time pass: asks to declare silent members down, to move slots, and to answer clears that are complete.
    pub fn tick(&mut self, now: Moment, map: &ClusterMap, effects: &mut Vec<Effect>) {
        let Some(reign) = &mut self.reign else { return };
        self.counters.pauses += u64::from(reign.leases.advance(now, &map.settings));
        reign.follow(map);
        reign.declare_down(&self.tuning, map, &mut self.counters, effects);
        reign.bury(&self.tuning, effects);
        reign.clears.finish(&reign.leases, &mut self.counters, effects);
        reign.plan(&self.tuning, map, &mut self.planner, &mut self.counters, effects);
    }

    /// Waits until nobody serves the blocks that a clear of `tenant`, applied at `epoch`, has ended; then a tick asks
    /// to answer `ticket`. A ticket that is given again waits for its newest clear. Where nothing but silent members keep it from
    /// being complete, a tick says so and it is forgotten; the asker's deadline is the caller's.
    ///
    /// # Errors
    /// [`WireError::Busy`] when [`MAX_CLEARS`](crate::MAX_CLEARS) wait, [`WireError::OutcomeUnknown`] when this coordinator does not lead.
    pub fn clear_started(
        &mut self,
        now: Moment,
        ticket: ClearTicket,
        tenant: TenantId,
        epoch: Epoch,
    ) -> Result<(), WireError> {
        let Some(reign) = &mut self.reign else { return Err(WireError::OutcomeUnknown) };
        reign.clears.wait(PendingClear { ticket, tenant, epoch, since: now })
    }

    /// Forgets a clear whose asker has gone.
    pub fn clear_abandoned(&mut self, ticket: ClearTicket) {
        if let Some(reign) = &mut self.reign {
            reign.clears.abandon(ticket);
        }
    }

    /// Returns the clears that wait for members.
    pub fn pending_clears(&self) -> impl Iterator<Item = &PendingClear> {
        self.reign.iter().flat_map(|reign| reign.clears.pending())
    }

    /// Returns the newest report of each device of each member that is up, as far as there is one.
    pub fn loads(&self) -> impl Iterator<Item = (DeviceId, &DeviceLoad)> {
        self.reign.iter().flat_map(|reign| reign.leases.records()).flat_map(|(member, record)| {
            let loads = record.loads.iter().flat_map(|(_, loads)| loads.iter().zip(0_u16..));
            loads.map(|(load, index)| (DeviceId::new(*member, index), load))
        })
    }

    /// Returns the epoch by which a member served when it reported last, if it has.
    pub fn reported(&self, member: MemberId) -> Option<Epoch> {
        self.reign.as_ref()?.leases.get(member)?.loads.as_ref().map(|(epoch, _)| *epoch)
    }

    /// Says how evenly work is spread, and what would make it more even; nothing is changed by it.
    pub fn balance(&mut self, map: &ClusterMap) -> BalanceReport {
        let Some(reign) = &self.reign else { return BalanceReport::default() };
        let work = reign.work();
        let unsettled = self.planner.unsettled(map);
        let seen = Seen::of(map, self.planner.places(map), &work);
        let mut decided =
            balance::decide(&self.tuning.balance, &seen, reign.balancer.handicaps(), |_, is_cold| is_cold);
        if unsettled > 0 {
            decided.changes.clear();
            decided.because = format!(
                "{} not where they belong yet: ask again when that is over",
                counted_are(unsettled as u64, "slot")
            );
        }
        let balance::Decided { rates, changes, because } = decided;
        BalanceReport { epoch: map.epoch, rates, changes, because }
    }

    /// Says which slots are on their way to where they belong, from where and why.
    pub fn moves(&mut self, map: &ClusterMap) -> MovesReport {
        let wanted = self.planner.places(map).wanted;
        let reign = self.reign.as_ref();
        let since = |slot: Slot| {
            let reign = reign?;
            let (_, since) = reign.placement.as_ref()?.since.get(usize::from(slot.0))?;
            Some(reign.leases.now().since(*since))
        };
        flight::report(map, wanted, since)
    }

    /// Returns how many slots are not where they belong.
    pub fn unsettled(&mut self, map: &ClusterMap) -> usize {
        self.planner.unsettled(map)
    }

    /// Returns what happened so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }
}

impl Reign {
    fn follow(&mut self, map: &ClusterMap) {
        self.leases.sync(map);
        self.follow_down(map);
        let is_this = |known: &Placement| {
            Arc::ptr_eq(&known.slots, &map.slots) && Arc::ptr_eq(&known.filling, &map.filling)
        };
        if self.placement.as_ref().is_some_and(is_this) {
            return;
        }
        let now = (map.epoch, self.leases.now());
        let since = match self.placement.take() {
            None => vec![now; usize::from(SLOTS)],
            Some(mut known) => {
                for (slot, since) in Slot::all().zip(&mut known.since) {
                    let at = usize::from(slot.0);
                    if known.slots.get(at) != map.slots.get(at)
                        || known.filling.get(&slot) != map.filling.get(&slot)
                    {
                        *since = now;
                    }
                }
                known.since
            }
        };
        let (slots, filling) = (map.slots.clone(), map.filling.clone());
        self.placement = Some(Placement { slots, filling, since });
    }

    fn follow_down(&mut self, map: &ClusterMap) {
        if self.followed == map.epoch {
            return;
        }
        self.followed = map.epoch;
        let is_down =
            |id: &MemberId| map.members.get(id).is_some_and(|member| member.state == MemberState::Down);
        self.down.retain(|id, _| is_down(id));
        for id in map.members.keys().filter(|id| is_down(id)) {
            self.down.entry(*id).or_insert(self.leases.now());
        }
    }

    fn declare_down(
        &mut self,
        tuning: &Tuning,
        map: &ClusterMap,
        counters: &mut Counters,
        effects: &mut Vec<Effect>,
    ) {
        for _ in 0..MAX_VERDICTS_PER_TICK {
            let due = self.leases.condemn(tuning.repropose_after, tuning.repropose_at_most);
            let Some((member, generation, repeated)) = due else { return };
            counters.expired += u64::from(!repeated);
            counters.reproposed += u64::from(repeated);
            let now = self.leases.now();
            let why = |record| why::silent(now, record, &map.settings);
            let reason = self.leases.get(member).map(why).unwrap_or_default();
            effects.push(Effect::Propose(Command::MarkDown { member, generation }, reason));
        }
    }

    /// Asks to note that what was over has ended.
    fn bury(&mut self, tuning: &Tuning, effects: &mut Vec<Effect>) {
        for _ in 0..MAX_VERDICTS_PER_TICK {
            let due = self.leases.outlived(tuning.repropose_after, tuning.repropose_at_most);
            let Some(start) = due else { return };
            let reason = Reason::new("its serving lease has run out");
            effects.push(Effect::Propose(Command::MarkEnded { start }, reason));
        }
    }

    fn plan(
        &mut self,
        tuning: &Tuning,
        map: &ClusterMap,
        planner: &mut Planner,
        counters: &mut Counters,
        effects: &mut Vec<Effect>,
    ) {
        let now = self.leases.now();
        // The same map gives the same plan: it is proposed again only if it seems to have got lost.
        let under_way = self.planned.is_some_and(|(epoch, until)| epoch == map.epoch && now < until);
        if now < self.next_plan || under_way || self.leases.anyone_condemned() {
            return;
        }
        let members = u32::try_from(map.members.len()).unwrap_or(u32::MAX);
        self.next_plan = now + tuning.plan_every.max(tuning.plan_every_by_member * members);
        self.avoided.retain(|_, until| *until > now);
        for (_, record) in self.leases.records() {
            for load in record.loads.iter().flat_map(|(_, loads)| loads) {
                for device in &load.unreached {
                    self.avoided.entry(*device).or_insert(now + tuning.avoid_for);
                }
            }
        }
        let (repair_after, avoided) = (tuning.repair_after, self.avoided.keys().copied().collect());
        // Whoever may be serving by an older map might still take blocks where a slot was before.
        let confirmed = self.leases.confirmed(map);
        let told = Told { reign: self, map, confirmed, repair_after, avoided };
        let command = planner.plan(map, &told);
        let planned = command.map(|command| (why::plan(map, &command, &told.avoided), command));
        counters.plans += u64::from(planned.is_some());
        let planned = planned.or_else(|| self.balance(&tuning.balance, map, planner, counters));
        if let Some((reason, command)) = planned {
            self.planned = Some((map.epoch, now + tuning.repropose_after));
            effects.push(Effect::Propose(command, reason));
        }
    }

    /// Spreads work when slots are where they belong.
    fn balance(
        &mut self,
        tuning: &BalanceTuning,
        map: &ClusterMap,
        planner: &mut Planner,
        counters: &mut Counters,
    ) -> Option<(Reason, Command)> {
        let now = self.leases.now();
        if !self.balancer.is_due(now, tuning, planner.unsettled(map) == 0) {
            return None;
        }
        let work = self.work();
        let seen = Seen::of(map, planner.places(map), &work);
        let changes = self.balancer.step(now, tuning, &seen);
        counters.balanced += changes.len() as u64;
        let reason = why::balance_reason(&changes);
        (!changes.is_empty()).then_some((reason, Command::Balance { based_on: map.epoch, changes }))
    }

    /// Returns what each device said last of how much is asked of it.
    fn work(&self) -> BTreeMap<DeviceId, Work> {
        let mut work = BTreeMap::new();
        for (member, record) in self.leases.records() {
            for (load, index) in record.loads.iter().flat_map(|(_, loads)| loads).zip(0..) {
                work.insert(DeviceId::new(*member, index), load.work.clone());
            }
        }
        work
    }
}

/// What members have told this leader.
struct Told<'a> {
    reign: &'a Reign,
    map: &'a ClusterMap,
    /// The epoch that everybody who may be serving has confirmed; none if nobody may be.
    confirmed: Option<Epoch>,
    repair_after: Duration,
    avoided: BTreeSet<DeviceId>,
}

impl Told<'_> {
    /// Returns what a device has reported since everybody serves the slot as it is placed now.
    fn report(&self, device: DeviceId, slot: Slot) -> Option<&DeviceLoad> {
        let (placed_at, _) = self.reign.placement.as_ref()?.since.get(usize::from(slot.0))?;
        let (epoch, loads) = self.reign.leases.get(device.member)?.loads.as_ref()?;
        let is_known = self.confirmed.is_none_or(|confirmed| confirmed >= *placed_at);
        (is_known && epoch >= placed_at).then(|| loads.get(usize::from(device.index)))?
    }
}

impl Reports for Told<'_> {
    fn occupied(&self, device: DeviceId, slot: Slot) -> Option<bool> {
        self.report(device, slot).map(|load| load.occupies(slot))
    }

    fn is_filled(&self, slot: Slot, device: DeviceId) -> bool {
        let primary = self.map.replicas(slot).primary();
        let load = primary.and_then(|primary| self.report(primary, slot));
        load.is_some_and(|load| load.filled.binary_search(&(slot, device)).is_ok())
    }

    fn avoided(&self) -> &BTreeSet<DeviceId> {
        &self.avoided
    }

    fn is_due(&self) -> bool {
        let now = self.reign.leases.now();
        self.reign.down.values().all(|since| now.since(*since) >= self.repair_after)
    }

    fn may_lack(&self, device: DeviceId) -> bool {
        let loads = self.reign.leases.get(device.member).and_then(|record| record.loads.as_ref());
        let load = loads.and_then(|(_, loads)| loads.get(usize::from(device.index)));
        load.is_none_or(|load| room::may_lack(load) > 0)
    }
}

#[cfg(test)]
#[path = "overseer_test.rs"]
mod tests;

#[cfg(test)]
#[path = "overseer_model_test.rs"]
mod model_tests;
