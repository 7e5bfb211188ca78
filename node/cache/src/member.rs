//! One node's membership: it registers, sends heartbeats, and serves only while its lease holds.
//!
//! The lease counts from when a heartbeat was **sent**, on a clock that goes on while the machine sleeps; the grantor
//! counts from when it was received and waits longer (Gray and Cheriton, "Leases", 1989). A newer map that comes with a
//! heartbeat's answer must be adopted by everything that serves before the renewed lease counts: so a clear or a move
//! that the coordinators have acknowledged is known to every member that serves.

use kvhive_protocol::data::Run;
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
    ServeUntil {
        /// When the lease ends.
        lease: Moment,
    },
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
    lease: Moment,
    /// A renewed lease that counts once the map it came with is adopted.
    pending: Option<(Epoch, Moment)>,
    /// A request is under way.
    asking: bool,
    next_ask: Moment,
    failures: u32,
}

impl Member {
    /// Makes a member that has not registered.
    pub fn new(tuning: MemberTuning) -> Member {
        Member {
            tuning,
            state: State::Outside,
            map: None,
            adopted: Epoch(0),
            lease: Moment::ZERO,
            pending: None,
            asking: false,
            next_ask: Moment::ZERO,
            failures: 0,
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
                self.learn(map, effects);
            }
            MemberEvent::Beat { sent, map } => self.on_beat(sent, map, effects),
            MemberEvent::Failed => {
                self.asking = false;
                self.failures = self.failures.saturating_add(1);
                self.next_ask = now + self.wait();
            }
            MemberEvent::Fenced => {
                self.asking = false;
                self.state = State::Outside;
                self.pending = None;
                self.next_ask = now;
                self.set_lease(Moment::ZERO, effects);
            }
            MemberEvent::Emptied => {
                // Registered anew, it is withdrawn from every slot whose blocks another holds.
                self.state = State::Outside;
                self.pending = None;
                self.next_ask = now;
                self.set_lease(Moment::ZERO, effects);
            }
            MemberEvent::Adopted { cluster, .. } if self.cluster() != Some(cluster) => {}
            MemberEvent::Adopted { epoch, .. } => {
                self.adopted = self.adopted.max(epoch);
                if let Some((_, lease)) = self.pending.take_if(|(wanted, _)| *wanted <= epoch) {
                    self.set_lease(lease, effects);
                }
            }
        }
        if !self.asking && self.next_ask <= now {
            self.ask(now, effects);
        }
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

    fn on_beat(&mut self, sent: Moment, map: Option<Arc<ClusterMap>>, effects: &mut Vec<MemberEffect>) {
        self.asking = false;
        self.failures = 0;
        if self.state == State::Outside {
            return;
        }
        if let Some(map) = map {
            self.learn(map, effects);
        }
        let Some(map) = &self.map else { return };
        let lease = sent + Duration::from_millis(map.settings.lease_ms);
        if self.adopted >= map.epoch {
            self.set_lease(lease, effects);
        } else {
            self.pending = Some((map.epoch, lease));
        }
    }

    fn learn(&mut self, map: Arc<ClusterMap>, effects: &mut Vec<MemberEffect>) {
        if self.cluster().is_some_and(|known| known != map.cluster) {
            // Coordinators that were made anew count epochs from one; nothing of before is true any more.
            (self.map, self.adopted, self.pending) = (None, Epoch(0), None);
            self.set_lease(Moment::ZERO, effects);
        }
        // An epoch never goes back, whichever coordinator answered.
        if self.map.as_ref().is_none_or(|known| known.epoch < map.epoch) {
            self.map = Some(map.clone());
            effects.push(MemberEffect::Adopt { map });
        }
    }

    fn set_lease(&mut self, lease: Moment, effects: &mut Vec<MemberEffect>) {
        if lease > self.lease || lease == Moment::ZERO {
            self.lease = lease;
            effects.push(MemberEffect::ServeUntil { lease });
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

    /// Returns when the lease ends.
    pub fn lease(&self) -> Moment {
        self.lease
    }

    /// Says whether the lease holds.
    pub fn may_serve(&self, now: Moment) -> bool {
        now < self.lease
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
mod tests {
    use super::*;
    use kvhive_protocol::Slot;
    use kvhive_protocol::data::Ack;
    use kvhive_protocol::map::{ReplicaSet, Settings};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn map(epoch: u64) -> Arc<ClusterMap> {
        let settings = Settings {
            replicas: 1,
            segment_blocks: 16,
            ack: Ack::Primary,
            lease_ms: 2000,
            heartbeat_ms: 200,
        };
        Arc::new(ClusterMap { epoch: Epoch(epoch), ..ClusterMap::founded(ClusterId(1), "test", settings) })
    }

    fn at(ms: u64) -> Moment {
        Moment::from_millis(ms)
    }

    fn step(member: &mut Member, ms: u64, event: MemberEvent) -> Vec<MemberEffect> {
        let mut effects = Vec::new();
        member.step(at(ms), event, &mut effects);
        effects
    }

    fn registered(epoch: u64) -> MemberEvent {
        MemberEvent::Registered { member: MemberId(3), generation: Generation(1), map: map(epoch) }
    }

    fn heartbeat(epoch: u64) -> MemberEffect {
        MemberEffect::SendHeartbeat { member: MemberId(3), generation: Generation(1), epoch: Epoch(epoch) }
    }

    #[test]
    fn a_node_registers_beats_and_serves_from_when_the_beat_was_sent() {
        let mut member = Member::new(MemberTuning::default());
        assert_eq!(step(&mut member, 0, MemberEvent::Tick), [MemberEffect::Register]);
        assert_eq!(step(&mut member, 5, MemberEvent::Tick), [], "one request at a time");
        assert_eq!(step(&mut member, 10, registered(4)), [MemberEffect::Adopt { map: map(4) }, heartbeat(0)]);
        step(&mut member, 12, MemberEvent::Adopted { cluster: ClusterId(1), epoch: Epoch(4) });
        let effects = step(&mut member, 50, MemberEvent::Beat { sent: at(10), map: None });
        assert_eq!(effects, [MemberEffect::ServeUntil { lease: at(2010) }]);
        assert!(member.may_serve(at(2009)) && !member.may_serve(at(2010)));
        assert_eq!(step(&mut member, 210, MemberEvent::Tick), [heartbeat(4)]);
    }

    #[test]
    fn a_renewed_lease_waits_for_the_map_it_came_with() {
        let mut member = Member::new(MemberTuning::default());
        step(&mut member, 0, registered(4));
        step(&mut member, 1, MemberEvent::Adopted { cluster: ClusterId(1), epoch: Epoch(4) });
        let effects = step(&mut member, 2, MemberEvent::Beat { sent: at(1), map: Some(map(5)) });
        assert_eq!(effects, [MemberEffect::Adopt { map: map(5) }]);
        assert!(!member.may_serve(at(3)), "the lease does not count before the map is adopted");
        let effects = step(&mut member, 4, MemberEvent::Adopted { cluster: ClusterId(1), epoch: Epoch(5) });
        assert_eq!(effects, [MemberEffect::ServeUntil { lease: at(2001) }]);
    }

    #[test]
    fn a_fenced_member_serves_nothing_and_registers_anew() {
        let mut member = Member::new(MemberTuning::default());
        step(&mut member, 0, registered(4));
        step(&mut member, 1, MemberEvent::Adopted { cluster: ClusterId(1), epoch: Epoch(4) });
        step(&mut member, 2, MemberEvent::Beat { sent: at(1), map: None });
        let effects = step(&mut member, 300, MemberEvent::Fenced);
        assert_eq!(effects, [MemberEffect::ServeUntil { lease: Moment::ZERO }, MemberEffect::Register]);
        assert!(!member.may_serve(at(301)));
        step(&mut member, 302, MemberEvent::Beat { sent: at(250), map: None });
        assert!(!member.may_serve(at(303)), "an answer from before the fence renews nothing");
    }

    #[test]
    fn an_older_map_is_never_taken_back() {
        let mut member = Member::new(MemberTuning::default());
        step(&mut member, 0, registered(9));
        assert_eq!(step(&mut member, 1, MemberEvent::Beat { sent: at(0), map: Some(map(8)) }), []);
        assert_eq!(member.map().map(|map| map.epoch), Some(Epoch(9)));
    }

    #[test]
    fn failures_back_off_but_never_past_a_heartbeat_once_inside() {
        let mut member = Member::new(MemberTuning::default());
        let mut now = 0;
        let mut waits = Vec::new();
        for _ in 0..8 {
            let asked = now;
            step(&mut member, now, MemberEvent::Failed);
            while step(&mut member, now, MemberEvent::Tick).is_empty() {
                now += 1;
            }
            waits.push(now - asked);
        }
        assert_eq!(waits, [50, 100, 200, 400, 800, 1000, 1000, 1000]);
        step(&mut member, now, registered(1));
        for _ in 0..8 {
            let asked = now;
            step(&mut member, now, MemberEvent::Failed);
            while step(&mut member, now, MemberEvent::Tick).is_empty() {
                now += 1;
            }
            assert!(now - asked <= 200);
        }
    }

    #[test]
    fn a_slot_that_is_placed_elsewhere_makes_the_asker_refresh() {
        use kvhive_protocol::map::{DeviceDescription, Member as MapMember, MemberState};
        let mut map = (*map(7)).clone();
        map.members.insert(
            MemberId(3),
            MapMember {
                name: "node-a".into(),
                generation: Generation(1),
                state: MemberState::Up,
                data_address: "127.0.0.1:1".into(),
                metrics_address: "127.0.0.1:2".into(),
                labels: BTreeMap::new(),
                devices: vec![DeviceDescription {
                    kind: "host".into(),
                    device_bytes: 1,
                    host_bytes: 0,
                    disk_bytes: 0,
                }],
                codec: Default::default(),
                speaks: kvhive_protocol::Level::NEWEST,
                drains: false,
                cordoned: false,
            },
        );
        let device = DeviceId::new(MemberId(3), 0);
        Arc::make_mut(&mut map.slots)[5] = ReplicaSet(vec![device]);
        let run = |slot| [Run { slot: Slot(slot), keys: 1 }];
        assert_eq!(admits(&map, MemberId(3), device, &run(5)), Ok(()));
        assert_eq!(
            admits(&map, MemberId(3), device, &run(6)),
            Err(WireError::StaleEpoch { epoch: Epoch(7) })
        );
        for stranger in [DeviceId::new(MemberId(3), 1), DeviceId::new(MemberId(4), 0)] {
            let refused = admits(&map, MemberId(3), stranger, &run(5));
            assert_eq!(refused, Err(WireError::WrongDevice { device: stranger }));
        }
    }

    fn events() -> impl Strategy<Value = (u64, MemberEvent)> {
        let event = prop_oneof![
            Just(MemberEvent::Tick),
            Just(MemberEvent::Failed),
            Just(MemberEvent::Fenced),
            (1..20u64).prop_map(registered),
            (1..20u64).prop_map(|epoch| MemberEvent::Adopted { cluster: ClusterId(1), epoch: Epoch(epoch) }),
            (0..5000u64, proptest::option::of(1..20u64))
                .prop_map(|(sent, epoch)| MemberEvent::Beat { sent: at(sent), map: epoch.map(map) }),
        ];
        (0..400u64, event)
    }

    proptest! {
        #[test]
        fn a_lease_only_comes_from_a_beat_and_the_epoch_never_goes_back(
            events in proptest::collection::vec(events(), 0..200),
        ) {
            let mut member = Member::new(MemberTuning::default());
            let (mut now, mut newest, mut granted) = (0, Epoch(0), Moment::ZERO);
            for (pause, event) in events {
                now += pause;
                if let MemberEvent::Beat { sent, .. } = &event {
                    granted = granted.max(*sent + Duration::from_millis(2000));
                }
                let effects = step(&mut member, now, event);
                prop_assert!(member.lease() <= granted);
                let epoch = member.map().map_or(Epoch(0), |map| map.epoch);
                prop_assert!(epoch >= newest);
                newest = epoch;
                let asks = effects
                    .iter()
                    .filter(|effect| matches!(effect, MemberEffect::Register | MemberEffect::SendHeartbeat { .. }))
                    .count();
                prop_assert!(asks <= 1);
            }
        }
    }
}
