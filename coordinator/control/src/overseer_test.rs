//! Stories of the overseer, rule by rule.

use super::*;
use crate::leases::grace;
use crate::registry::tests::Cluster;
use kvhive_protocol::control::CommandReply;
use kvhive_protocol::data::Ack;
use kvhive_protocol::load::{MAX_TENANT_LOADS, TenantLoad};
use kvhive_protocol::strategy::{ChoiceReport, MAX_LOAD_REPORTS, Reason, StrategyReport};
use kvhive_protocol::{Generation, MemberId};

#[path = "overseer_clears_test.rs"]
mod clears;

/// A lease of 1 s, one per cent, 50 ms.
const GRACE_MS: u64 = 1060;

/// A cluster and its leader; time in milliseconds.
pub(super) struct Scene {
    pub(super) cluster: Cluster,
    pub(super) overseer: Overseer,
    pub(super) now: u64,
    pub(super) effects: Vec<Effect>,
}

impl Scene {
    pub(super) fn with(names: &[&str]) -> Self {
        let mut scene = Scene::of(Cluster::with_replicas(1));
        for name in names {
            scene.cluster.register(name, 1);
        }
        scene.lead();
        scene
    }

    /// Nobody leads it yet.
    pub(super) fn of(cluster: Cluster) -> Self {
        Scene { cluster, overseer: Overseer::new(Tuning::default()), now: 10_000, effects: Vec::new() }
    }

    pub(super) fn lead(&mut self) {
        let map = self.cluster.map();
        self.overseer.became_leader(Moment::from_millis(self.now), Some(&map));
    }

    /// Ticks every 50 ms until `millis` have passed.
    fn pass(&mut self, millis: u64) -> &mut Self {
        for _ in 0..millis / 50 {
            self.jump(50);
        }
        self.jump(millis % 50)
    }

    /// Ticks once, `millis` later.
    pub(super) fn jump(&mut self, millis: u64) -> &mut Self {
        self.now += millis;
        self.overseer.tick(Moment::from_millis(self.now), &self.cluster.map(), &mut self.effects);
        self
    }

    pub(super) fn beat_as(
        &mut self,
        member: u32,
        generation: u64,
        epoch: Epoch,
        devices: Vec<DeviceLoad>,
    ) -> BeatVerdict {
        let beat = Heartbeat { member: MemberId(member), generation: Generation(generation), epoch, devices };
        self.overseer.heartbeat_confirmed(Moment::from_millis(self.now), beat, &self.cluster.map())
    }

    fn beat(&mut self, member: u32) -> BeatVerdict {
        let map = self.cluster.map();
        let generation = map.members[&MemberId(member)].generation.0;
        self.beat_as(member, generation, map.epoch, vec![DeviceLoad::default()])
    }

    fn declared_down(&mut self) -> Vec<u32> {
        let down = |effect: Effect| match effect {
            Effect::Propose(Command::MarkDown { member, .. }, _) => Some(member.0),
            _ => None,
        };
        self.effects.drain(..).filter_map(down).collect()
    }

    pub(super) fn clear(&mut self) -> ClearTicket {
        let reply = self.cluster.apply(Command::ClearTenant { tenant: TenantId(1) });
        let CommandReply::TenantCleared { epoch, .. } = reply else { panic!("not cleared: {reply:?}") };
        let ticket = ClearTicket(epoch.0);
        let now = Moment::from_millis(self.now);
        self.overseer.clear_started(now, ticket, TenantId(1), epoch).expect("there is room");
        ticket
    }

    /// Waits for a clear once more, whose asker was told who keeps it waiting.
    pub(super) fn ask_again(&mut self, ticket: ClearTicket) {
        let now = Moment::from_millis(self.now);
        let again = self.overseer.clear_started(now, ticket, TenantId(1), Epoch(ticket.0));
        again.expect("there is room");
    }

    /// Returns who keeps a clear waiting, if nothing but silent members does.
    fn waits_for(&mut self, ticket: ClearTicket) -> Option<Vec<Server>> {
        self.jump(0);
        let waits = |effect: Effect| match effect {
            Effect::ClearWaits(of, servers) if of == ticket => Some(servers),
            _ => None,
        };
        self.effects.drain(..).find_map(waits)
    }

    /// Lets time pass while some members are heard.
    fn pass_with(&mut self, millis: u64, members: &[u32]) {
        for _ in 0..millis / 50 {
            self.pass(50);
            for member in members {
                assert_eq!(self.beat(*member), RENEWED);
            }
        }
        self.pass(millis % 50);
    }

    /// Returns what is to be noted as ended.
    fn ended(&mut self) -> Vec<Option<(MemberId, Generation)>> {
        let ended = |effect: Effect| match effect {
            Effect::Propose(Command::MarkEnded { start }, _) => Some(start),
            _ => None,
        };
        self.effects.drain(..).filter_map(ended).collect()
    }

    fn is_done(&mut self, ticket: ClearTicket) -> bool {
        self.jump(0);
        let done = self.effects.contains(&Effect::ClearDone(ticket));
        assert_eq!(done, self.overseer.pending_clears().all(|clear| clear.ticket != ticket));
        done
    }
}

const RENEWED: BeatVerdict = BeatVerdict::Renew { send_map: false };

#[test]
fn a_silent_member_is_declared_down_when_its_lease_is_over_and_not_before() {
    let mut scene = Scene::with(&["a", "b"]);
    scene.beat(1);
    for _ in 0..10 {
        scene.pass(GRACE_MS / 10);
        scene.beat(2);
    }
    assert_eq!(scene.pass(1).declared_down(), [1]);
    assert_eq!(grace(&scene.cluster.map().settings), Duration::from_millis(GRACE_MS));
    assert_eq!(scene.overseer.counters().expired, 1);
}

#[test]
fn a_new_leader_gives_everybody_a_full_grace() {
    let mut scene = Scene::with(&["a"]);
    scene.now += 60_000;
    scene.lead();
    assert_eq!(scene.pass(GRACE_MS - 1).declared_down(), []);
    assert_eq!(scene.pass(1).declared_down(), [1]);
}

#[test]
fn a_member_that_registers_gets_a_full_grace() {
    let mut scene = Scene::with(&[]);
    scene.pass(5000);
    scene.cluster.register("a", 1);
    assert_eq!(scene.pass(GRACE_MS).declared_down(), []);
    assert_eq!(scene.pass(50).declared_down(), [1]);
}

#[test]
fn a_verdict_that_is_not_applied_is_proposed_again_ever_more_slowly() {
    let mut scene = Scene::with(&["a"]);
    scene.pass(GRACE_MS);
    assert_eq!(scene.declared_down(), [1]);
    assert_eq!(scene.pass(450).declared_down(), []);
    assert_eq!(scene.pass(50).declared_down(), [1]);
    assert_eq!(scene.pass(950).declared_down(), []);
    assert_eq!(scene.pass(50).declared_down(), [1]);
    scene.pass(60_000);
    assert!((8..=13).contains(&scene.declared_down().len()));
    scene.cluster.mark_down(MemberId(1));
    assert_eq!(scene.pass(60_000).declared_down(), []);
    assert_eq!(scene.overseer.counters().expired, 1);
}

#[test]
fn who_is_not_a_member_now_is_fenced() {
    let mut scene = Scene::with(&["a"]);
    let epoch = scene.cluster.map().epoch;
    assert_eq!(scene.beat_as(9, 1, epoch, vec![]), BeatVerdict::Fenced);
    assert_eq!(scene.beat_as(1, 2, epoch, vec![]), BeatVerdict::Fenced);
    scene.cluster.register("a", 1);
    assert_eq!(scene.beat_as(1, 1, epoch, vec![]), BeatVerdict::Fenced);
    assert_eq!(scene.beat(1), RENEWED);
    scene.cluster.mark_down(MemberId(1));
    assert_eq!(scene.beat(1), BeatVerdict::Fenced);
    assert_eq!((scene.overseer.counters().fenced, scene.overseer.counters().renewed), (4, 1));
}

#[test]
fn a_member_being_declared_down_gets_no_lease_any_more() {
    let mut scene = Scene::with(&["a"]);
    scene.pass(GRACE_MS);
    assert_eq!(scene.beat(1), BeatVerdict::Fenced);
    assert_eq!(scene.overseer.counters().renewed, 0);
}

#[test]
fn an_older_map_is_answered_with_the_newer() {
    let mut scene = Scene::with(&["a"]);
    let old = scene.cluster.map().epoch;
    scene.cluster.apply(Command::SetAck { ack: Ack::All });
    assert_eq!(scene.beat_as(1, 1, old, vec![]), BeatVerdict::Renew { send_map: true });
    assert_eq!(scene.beat(1), RENEWED);
}

#[test]
fn who_does_not_lead_renews_and_asks_nothing() {
    let mut scene = Scene::with(&["a"]);
    let ticket = scene.clear();
    scene.overseer.lost_leadership();
    assert_eq!(scene.beat(1), BeatVerdict::NotLeading);
    scene.pass(10_000);
    assert_eq!(scene.effects, []);
    assert_eq!(scene.overseer.pending_clears().count(), 0);
    let again = scene.overseer.clear_started(Moment::ZERO, ticket, TenantId(1), Epoch(1));
    assert_eq!(again, Err(WireError::OutcomeUnknown));
}

#[test]
fn the_leaders_own_sleep_does_not_count_against_members() {
    let mut scene = Scene::with(&["a"]);
    scene.beat(1);
    assert_eq!(scene.jump(300_000).declared_down(), []);
    assert_eq!(scene.overseer.counters().pauses, 1);
    // It had 1060 ms, a quarter of a lease of them is used up.
    assert_eq!(scene.pass(809).declared_down(), []);
    assert_eq!(scene.pass(1).declared_down(), [1]);
}

#[test]
fn a_leader_that_is_always_slow_still_declares_down() {
    let mut scene = Scene::with(&["a"]);
    for _ in 0..4 {
        assert_eq!(scene.jump(700).declared_down(), []);
    }
    assert_eq!(scene.jump(700).declared_down(), [1]);
}

#[test]
fn a_clock_that_goes_back_ends_no_lease() {
    let mut scene = Scene::with(&["a"]);
    scene.pass(500);
    scene.now -= 5000;
    scene.beat(1);
    assert_eq!(scene.pass(5000 + GRACE_MS - 50).declared_down(), []);
    assert_eq!(scene.pass(100).declared_down(), [1]);
}

#[test]
fn reports_that_do_not_fit_the_member_are_left_out() {
    let mut scene = Scene::with(&["a"]);
    let epoch = scene.cluster.map().epoch;
    let odd = DeviceLoad { occupied: vec![0; 7], ..DeviceLoad::default() };
    let tenants = vec![(TenantId(1), TenantLoad::default()); MAX_TENANT_LOADS + 1];
    let long = DeviceLoad { tenants, ..DeviceLoad::default() };
    let report = |name: &str| StrategyReport {
        tenant: None,
        frame_bytes: 1,
        strategy: kvhive_protocol::Strategy::Adaptive,
        choice: Some(ChoiceReport {
            in_charge: name.to_owned(),
            estimates: Vec::new(),
            evidence: 0,
            sampled_one_in: 1,
            switches: 0,
            reason: Reason::NoneIsBetter,
        }),
    };
    let many = DeviceLoad { strategies: vec![report("lru"); MAX_LOAD_REPORTS + 1], ..DeviceLoad::default() };
    let wordy = DeviceLoad { strategies: vec![report(&"x".repeat(33))], ..DeviceLoad::default() };
    for devices in [vec![], vec![DeviceLoad::default(); 2], vec![odd], vec![long], vec![many], vec![wordy]] {
        assert_eq!(scene.beat_as(1, 1, epoch, devices), RENEWED);
    }
    assert_eq!((scene.overseer.loads().count(), scene.overseer.counters().unsound_reports), (0, 6));
    scene.beat(1);
    assert_eq!(scene.overseer.loads().count(), 1);
    scene.cluster.mark_down(MemberId(1));
    assert_eq!(scene.jump(1).overseer.loads().count(), 0);
}

#[test]
fn slots_move_once_all_have_reported_under_the_present_placement() {
    let mut scene = Scene::with(&["a", "b"]);
    let mut plans = 0;
    for _ in 0..20 {
        scene.pass(250);
        scene.beat(1);
        scene.beat(2);
        for effect in std::mem::take(&mut scene.effects) {
            let Effect::Propose(command, _) = effect else { panic!("{effect:?}") };
            scene.cluster.apply(command);
            plans += 1;
            // Nobody has reported under the new placement yet.
            assert_eq!(scene.pass(500).effects, []);
            scene.beat(1);
            scene.beat(2);
        }
    }
    // Joined, then moved.
    assert_eq!(plans, 2);
    assert_eq!(scene.overseer.unsettled(&scene.cluster.map()), 0);
    assert_eq!(scene.overseer.counters().plans, 2);
}

#[test]
fn slots_with_blocks_move_as_their_primary_says_that_it_has_given_them() {
    let mut scene = Scene::with(&["a", "b"]);
    let full = DeviceLoad { occupied: vec![0xFF; 512], ..DeviceLoad::default() };
    let before = scene.overseer.unsettled(&scene.cluster.map());
    for says in [false, true, true, true] {
        let map = scene.cluster.map();
        let given = || map.filling.iter().map(|(slot, filling)| (*slot, filling.devices[0])).collect();
        let load = DeviceLoad { filled: if says { given() } else { Vec::new() }, ..full.clone() };
        scene.beat_as(1, 1, map.epoch, vec![load]);
        scene.beat(2);
        for effect in std::mem::take(&mut scene.pass(250).effects) {
            let Effect::Propose(command, _) = effect else { panic!("{effect:?}") };
            scene.cluster.apply(command);
        }
        assert_eq!(scene.cluster.map().filling.len(), Tuning::default().streams);
    }
    let left = scene.overseer.unsettled(&scene.cluster.map());
    assert_eq!(before - left, 3 * Tuning::default().streams);
}

#[test]
fn what_a_silent_member_held_is_given_to_others_when_it_has_had_time_to_come_back() {
    let mut scene = Scene::with(&["a", "b", "c"]);
    scene.cluster = Cluster::with_replicas(2);
    for name in ["a", "b", "c"] {
        scene.cluster.register(name, 1);
    }
    scene.cluster.mark_down(MemberId(2));
    scene.lead();
    let full = DeviceLoad { occupied: vec![0xFF; 512], ..DeviceLoad::default() };
    let begins_within = |scene: &mut Scene, millis: u64| {
        (0..millis / 500).any(|_| {
            let epoch = scene.cluster.map().epoch;
            for member in [1, 3] {
                scene.beat_as(member, 1, epoch, vec![full.clone()]);
            }
            scene
                .pass(500)
                .effects
                .drain(..)
                .any(|effect| matches!(effect, Effect::Propose(Command::PlaceSlots { .. }, _)))
        })
    };
    assert!(!begins_within(&mut scene, 29_000));
    assert!(begins_within(&mut scene, 2_000));
}
