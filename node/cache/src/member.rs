//! One node's membership: it registers, sends heartbeats, and serves only while its leases hold.
//!
//! There are two, renewed together. While the lease holds, its member is one for everybody, and what it says of its blocks counts
//! for acknowledgements and moves. While the serving lease holds, which lasts longer, it answers reads by the last map it has: when
//! no coordinator answers, blocks are not worse for it. Both count from when a heartbeat was **sent**, on a clock that goes on
//! while the machine sleeps; the grantor counts from when it was received and waits longer (Gray and Cheriton, "Leases", 1989). A
//! newer map that comes with a heartbeat's answer must be adopted by everything that serves before the renewed leases count: so a
//! clear or a move that the coordinators have acknowledged is known to every member that serves. Who cannot adopt one for a whole
//! lease sends no heartbeats until it has: it is declared down, and others take over.

use kvhive_planted::{Bug, is};
use kvhive_protocol::data::Run;
use kvhive_protocol::map::Settings;
use kvhive_protocol::{ClusterId, ClusterMap, DeviceId, Epoch, Generation, MemberId, Moment, WireError};
use std::sync::Arc;
use std::time::Duration;

/// How patient a member is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemberTuning {
    /// First wait after a failed registration; doubled each time.
    pub retry_least: Duration,
    /// The longest wait after a failed registration or heartbeat.
    pub retry_most: Duration,
}

impl Default for MemberTuning {
    fn default() -> Self {
        MemberTuning { retry_least: Duration::from_millis(50), retry_most: Duration::from_secs(1) }
    }
}

/// What a member is told.
#[derive(Clone, PartialEq, Debug)]
pub enum MemberEvent {
    /// Time has passed; told at least every few milliseconds.
    Tick,
    /// The registration was accepted.
    Registered {
        /// Its id.
        member: MemberId,
        /// Its generation.
        generation: Generation,
        /// The map that has it.
        map: Arc<ClusterMap>,
    },
    /// A heartbeat was answered.
    Beat {
        /// When it was sent.
        sent: Moment,
        /// The newest map, if it came along.
        map: Option<Arc<ClusterMap>>,
    },
    /// A registration or heartbeat failed or was not answered in time.
    Failed,
    /// The coordinators refused the registration.
    Refused(WireError),
    /// The coordinators no longer know this member in this generation.
    Fenced,
    /// Everything that serves has adopted this map.
    Adopted {
        /// Whose map.
        cluster: ClusterId,
        /// Its epoch.
        epoch: Epoch,
    },
    /// A device has lost what it held, while the member lives: its replicas must take over.
    Emptied,
}

/// What a member asks for.
#[derive(Clone, PartialEq, Debug)]
pub enum MemberEffect {
    /// Register; report `Registered` or `Failed`.
    Register,
    /// Send a heartbeat; report `Beat`, `Fenced` or `Failed`.
    SendHeartbeat {
        /// Who.
        member: MemberId,
        /// Which start.
        generation: Generation,
        /// The newest map that is adopted.
        epoch: Epoch,
    },
    /// Have everything that serves adopt this map; report `Adopted`.
    Adopt {
        /// The map.
        map: Arc<ClusterMap>,
    },
    /// Serve until then; until a moment that has passed: not at all.
    ServeUntil(Tenancy),
}

/// How long a member may do what; nothing until moments that have passed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Tenancy {
    /// When its lease ends: until then it is a member for everybody.
    pub lease: Moment,
    /// When its serving lease ends, which is no earlier: until then it answers reads.
    pub serving: Moment,
}

impl Tenancy {
    /// It may do nothing.
    pub const NONE: Tenancy = Tenancy { lease: Moment::ZERO, serving: Moment::ZERO };

    /// Returns what a heartbeat grants that was sent then.
    fn from(sent: Moment, settings: &Settings) -> Tenancy {
        let lease = sent + Duration::from_millis(settings.lease_ms);
        Tenancy { lease, serving: lease.max(sent + Duration::from_millis(settings.serving_lease_ms)) }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Registers when the wait is over, or waits for the answer.
    Outside,
    Inside {
        member: MemberId,
        generation: Generation,
    },
}

/// One node's own view of its membership.
#[derive(Debug)]
pub struct Member {
    tuning: MemberTuning,
    state: State,
    /// The newest map heard of.
    map: Option<Arc<ClusterMap>>,
    adopted: Epoch,
    /// Since when a newer map than the adopted one waits, without any being adopted.
    behind_since: Option<Moment>,
    tenancy: Tenancy,
    /// Renewed leases that count once the map they came with is adopted.
    pending: Option<(Epoch, Tenancy)>,
    /// A request is under way.
    asking: bool,
    next_ask: Moment,
    failures: u32,
    /// Why it never becomes a member.
    refused: Option<WireError>,
}

impl Member {
    /// Makes a member that has not registered.
    pub fn new(tuning: MemberTuning) -> Member {
        Member {
            tuning,
            state: State::Outside,
            map: None,
            adopted: Epoch(0),
            behind_since: None,
            tenancy: Tenancy::NONE,
            pending: None,
            asking: false,
            next_ask: Moment::ZERO,
            failures: 0,
            refused: None,
        }
    }

    /// Tells the member what happened; what it asks for is added to `effects`.
    pub fn step(&mut self, now: Moment, event: MemberEvent, effects: &mut Vec<MemberEffect>) {
        match event {
            MemberEvent::Tick => {}
            MemberEvent::Registered { member, generation, map } => {
                self.asking = false;
                self.failures = 0;
                self.next_ask = now;
                self.state = State::Inside { member, generation };
                self.learn(now, map, effects);
            }
            MemberEvent::Beat { map, .. } if is(Bug::LeaseFromAnswer) => self.on_beat(now, now, map, effects),
            MemberEvent::Beat { sent, map } => self.on_beat(now, sent, map, effects),
            MemberEvent::Failed => self.try_later(now),
            MemberEvent::Refused(error) => {
                self.try_later(now);
                // One that was a member asks on: what it holds is worth more than an early end, and its owner may mend the cluster.
                if self.map.is_none() && matches!(error, WireError::Rejected { .. }) {
                    self.refused = Some(error);
                }
            }
            MemberEvent::Fenced if is(Bug::FencedStaysOut) => self.asking = false,
            MemberEvent::Fenced => {
                self.asking = false;
                self.state = State::Outside;
                self.pending = None;
                self.next_ask = now;
                self.set(Tenancy::NONE, effects);
            }
            MemberEvent::Emptied => {
                // Registered anew, it is withdrawn from every slot whose blocks another holds.
                self.state = State::Outside;
                self.pending = None;
                self.next_ask = now;
                self.set(Tenancy::NONE, effects);
            }
            MemberEvent::Adopted { cluster, .. } if self.cluster() != Some(cluster) => {}
            MemberEvent::Adopted { epoch, .. } => {
                if epoch > self.adopted {
                    self.adopted = epoch;
                    let is_behind = self.map.as_ref().is_some_and(|map| map.epoch > epoch);
                    self.behind_since = is_behind.then_some(now);
                }
                if let Some((_, tenancy)) = self.pending.take_if(|(wanted, _)| *wanted <= epoch) {
                    self.set(tenancy, effects);
                }
            }
        }
        if !self.asking && self.next_ask <= now && !self.is_stuck(now) && self.refused.is_none() {
            self.ask(now, effects);
        }
    }

    fn try_later(&mut self, now: Moment) {
        self.asking = false;
        self.failures = self.failures.saturating_add(1);
        self.next_ask = now + self.wait();
    }

    /// Says whether it has taken over no map for a whole lease, although there is a newer one: its lease has run out by that, and its
    /// heartbeats would only keep the coordinators from giving its slots to others. It is silent until it has taken one over.
    fn is_stuck(&self, now: Moment) -> bool {
        let (State::Inside { .. }, Some(since), Some(map)) = (self.state, self.behind_since, &self.map)
        else {
            return false;
        };
        since + Duration::from_millis(map.settings.lease_ms) <= now
    }

    fn ask(&mut self, now: Moment, effects: &mut Vec<MemberEffect>) {
        self.asking = true;
        match self.state {
            State::Outside => effects.push(MemberEffect::Register),
            State::Inside { member, generation } => {
                self.next_ask = now + self.heartbeat();
                effects.push(MemberEffect::SendHeartbeat { member, generation, epoch: self.adopted });
            }
        }
    }

    fn cluster(&self) -> Option<ClusterId> {
        self.map.as_ref().map(|map| map.cluster)
    }

    fn on_beat(
        &mut self,
        now: Moment,
        sent: Moment,
        map: Option<Arc<ClusterMap>>,
        effects: &mut Vec<MemberEffect>,
    ) {
        self.asking = false;
        self.failures = 0;
        if self.state == State::Outside {
            return;
        }
        if let Some(map) = map {
            self.learn(now, map, effects);
        }
        let Some(map) = &self.map else { return };
        let tenancy = Tenancy::from(sent, &map.settings);
        if self.adopted >= map.epoch || is(Bug::LeaseBeforeMap) {
            self.set(tenancy, effects);
        } else {
            self.pending = Some((map.epoch, tenancy));
        }
    }

    fn learn(&mut self, now: Moment, map: Arc<ClusterMap>, effects: &mut Vec<MemberEffect>) {
        if self.cluster().is_some_and(|known| known != map.cluster) {
            // Coordinators that were made anew count epochs from one; nothing of before is true any more.
            (self.map, self.adopted, self.pending, self.behind_since) = (None, Epoch(0), None, None);
            self.set(Tenancy::NONE, effects);
        }
        // An epoch never goes back, whichever coordinator answered.
        if self.map.as_ref().is_none_or(|known| known.epoch < map.epoch) {
            self.map = Some(map.clone());
            self.behind_since.get_or_insert(now);
            effects.push(MemberEffect::Adopt { map });
        }
    }

    fn set(&mut self, tenancy: Tenancy, effects: &mut Vec<MemberEffect>) {
        if tenancy > self.tenancy || tenancy == Tenancy::NONE {
            self.tenancy = tenancy;
            effects.push(MemberEffect::ServeUntil(tenancy));
        }
    }

    fn heartbeat(&self) -> Duration {
        self.map
            .as_ref()
            .map_or(self.tuning.retry_least, |map| Duration::from_millis(map.settings.heartbeat_ms))
    }

    fn wait(&self) -> Duration {
        let doubled = self.tuning.retry_least.saturating_mul(1 << self.failures.min(10).saturating_sub(1));
        let most = match self.state {
            State::Outside => self.tuning.retry_most,
            // A lease may depend on the next one.
            State::Inside { .. } => self.heartbeat(),
        };
        doubled.min(most)
    }

    /// Returns the newest map heard of.
    pub fn map(&self) -> Option<&Arc<ClusterMap>> {
        self.map.as_ref()
    }

    /// Returns its id and generation, while it is a member.
    pub fn identity(&self) -> Option<(MemberId, Generation)> {
        match self.state {
            State::Outside => None,
            State::Inside { member, generation } => Some((member, generation)),
        }
    }

    /// Returns why it never becomes a member, if it was never one and was refused for a reason that a repeat does not change. It asks no
    /// more then.
    pub fn refused(&self) -> Option<&WireError> {
        self.refused.as_ref()
    }

    /// Returns when its leases end.
    pub fn tenancy(&self) -> Tenancy {
        self.tenancy
    }

    /// Says whether it may answer reads.
    pub fn may_serve(&self, now: Moment) -> bool {
        now < self.tenancy.serving
    }
}

/// Says whether `member`, serving by `map`, answers for these runs of `device`.
///
/// # Errors
/// [`WireError::WrongDevice`] when the device is not this member's; [`WireError::StaleEpoch`] with the map's own epoch
/// when a slot is not placed there: whichever of the two maps is older, its owner refreshes.
pub fn admits(map: &ClusterMap, member: MemberId, device: DeviceId, runs: &[Run]) -> Result<(), WireError> {
    let ours = map.members.get(&member).map_or(0, |member| member.devices.len());
    if device.member != member || usize::from(device.index) >= ours {
        return Err(WireError::WrongDevice { device });
    }
    if runs.iter().any(|run| !map.replicas(run.slot).contains(device)) {
        return Err(WireError::StaleEpoch { epoch: map.epoch });
    }
    Ok(())
}

#[cfg(test)]
#[path = "member_test.rs"]
mod tests;
