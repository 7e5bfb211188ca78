//! Stories of a member, and random ones.

use super::*;
use crate::test_map::founded;
use kvhive_protocol::Slot;
use kvhive_protocol::map::ReplicaSet;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn map(epoch: u64) -> Arc<ClusterMap> {
    Arc::new(ClusterMap { epoch: Epoch(epoch), ..founded() })
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

fn serve(lease: u64, serving: u64) -> MemberEffect {
    MemberEffect::ServeUntil(Tenancy { lease: at(lease), serving: at(serving) })
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
    assert_eq!(effects, [serve(2010, 2010)]);
    assert!(member.may_serve(at(2009)) && !member.may_serve(at(2010)));
    assert_eq!(step(&mut member, 210, MemberEvent::Tick), [heartbeat(4)]);
}

#[test]
fn who_is_refused_for_good_at_its_start_asks_no_more_and_whoever_waits_for_a_name_asks_on() {
    let rejected = || MemberEvent::Refused(WireError::rejected(format_args!("name: bad")));
    let mut member = Member::new(MemberTuning::default());
    step(&mut member, 0, MemberEvent::Tick);
    let taken = WireError::NameTaken { name: "one".into(), address: "10.0.0.1:7810".into() };
    step(&mut member, 10, MemberEvent::Refused(taken));
    assert_eq!(member.refused(), None, "the name may be free soon");
    assert_eq!(step(&mut member, 60, MemberEvent::Tick), [MemberEffect::Register]);
    step(&mut member, 70, rejected());
    assert_eq!(member.refused(), Some(&WireError::rejected(format_args!("name: bad"))));
    assert_eq!(step(&mut member, 60_000, MemberEvent::Tick), []);

    let mut member = serving_long();
    step(&mut member, 3000, MemberEvent::Fenced);
    step(&mut member, 3010, rejected());
    assert_eq!(member.refused(), None, "it was a member");
    assert_eq!(step(&mut member, 5000, MemberEvent::Tick), [MemberEffect::Register]);
}

/// A map by which members serve for 9 s.
fn long(epoch: u64) -> Arc<ClusterMap> {
    let mut map = (*map(epoch)).clone();
    map.settings.serving_lease_ms = 9000;
    Arc::new(map)
}

/// A member that serves by epoch 4 for 9 s from 1 ms on.
fn serving_long() -> Member {
    let mut member = Member::new(MemberTuning::default());
    let map = long(4);
    step(&mut member, 0, MemberEvent::Registered { member: MemberId(3), generation: Generation(1), map });
    step(&mut member, 1, MemberEvent::Adopted { cluster: ClusterId(1), epoch: Epoch(4) });
    assert_eq!(step(&mut member, 2, MemberEvent::Beat { sent: at(1), map: None }), [serve(2001, 9001)]);
    member
}

#[test]
fn who_is_not_heard_serves_on_for_its_serving_lease_and_no_longer() {
    let mut member = serving_long();
    step(&mut member, 3000, MemberEvent::Failed);
    assert_eq!(member.tenancy(), Tenancy { lease: at(2001), serving: at(9001) });
    assert!(member.may_serve(at(9000)) && !member.may_serve(at(9001)));
    // Heard again in time, by the very map it serves by: as if nothing had been.
    step(&mut member, 5000, MemberEvent::Beat { sent: at(4990), map: None });
    assert_eq!(member.tenancy(), Tenancy { lease: at(6990), serving: at(13_990) });
}

#[test]
fn who_is_told_that_it_is_a_member_no_more_serves_nothing_at_once() {
    for told in [MemberEvent::Fenced, MemberEvent::Emptied] {
        let mut member = serving_long();
        step(&mut member, 3000, told);
        assert!(!member.may_serve(at(3001)), "its serving lease is over too");
    }
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
    assert_eq!(effects, [serve(2001, 2001)]);
}

#[test]
fn who_takes_over_no_map_for_a_lease_is_silent_until_it_has() {
    let adopted = |epoch| MemberEvent::Adopted { cluster: ClusterId(1), epoch: Epoch(epoch) };
    let beat = |sent, map| MemberEvent::Beat { sent: at(sent), map };
    let mut member = Member::new(MemberTuning::default());
    step(&mut member, 0, registered(4));
    step(&mut member, 1, adopted(4));
    step(&mut member, 10, beat(0, Some(map(5))));
    // A newer map that comes meanwhile does not begin the wait anew; one that is taken over does.
    assert_eq!(step(&mut member, 1000, MemberEvent::Tick), [heartbeat(4)]);
    assert_eq!(step(&mut member, 1010, beat(1000, Some(map(6)))), [MemberEffect::Adopt { map: map(6) }]);
    step(&mut member, 1500, adopted(5));
    assert_eq!(step(&mut member, 3499, beat(1500, None)), [heartbeat(5)]);
    assert_eq!(step(&mut member, 3500, MemberEvent::Failed), []);
    assert_eq!(step(&mut member, 60_000, MemberEvent::Tick), []);
    assert!(!member.may_serve(at(60_000)));
    let effects = step(&mut member, 60_001, adopted(6));
    assert_eq!(effects.last(), Some(&heartbeat(6)));
    // It was declared down meanwhile.
    let effects = step(&mut member, 60_002, MemberEvent::Fenced);
    assert_eq!(effects.last(), Some(&MemberEffect::Register));
}

#[test]
fn a_fenced_member_serves_nothing_and_registers_anew() {
    let mut member = Member::new(MemberTuning::default());
    step(&mut member, 0, registered(4));
    step(&mut member, 1, MemberEvent::Adopted { cluster: ClusterId(1), epoch: Epoch(4) });
    step(&mut member, 2, MemberEvent::Beat { sent: at(1), map: None });
    let effects = step(&mut member, 300, MemberEvent::Fenced);
    assert_eq!(effects, [MemberEffect::ServeUntil(Tenancy::NONE), MemberEffect::Register]);
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
            lingers: None,
            drains_since: Default::default(),
            cordoned: false,
        },
    );
    let device = DeviceId::new(MemberId(3), 0);
    Arc::make_mut(&mut map.slots)[5] = ReplicaSet(vec![device]);
    let run = |slot| [Run { slot: Slot(slot), keys: 1 }];
    assert_eq!(admits(&map, MemberId(3), device, &run(5)), Ok(()));
    assert_eq!(admits(&map, MemberId(3), device, &run(6)), Err(WireError::StaleEpoch { epoch: Epoch(7) }));
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
            .prop_map(|(sent, epoch)| MemberEvent::Beat { sent: at(sent), map: epoch.map(long) }),
    ];
    (0..400u64, event)
}

proptest! {
    #[test]
    fn a_lease_only_comes_from_a_beat_and_the_epoch_never_goes_back(
        events in proptest::collection::vec(events(), 0..200),
    ) {
        let mut member = Member::new(MemberTuning::default());
        let (mut now, mut newest, mut granted) = (0, Epoch(0), Tenancy::NONE);
        for (pause, event) in events {
            now += pause;
            if let MemberEvent::Beat { sent, .. } = &event {
                let lease = granted.lease.max(*sent + Duration::from_millis(2000));
                granted = Tenancy { lease, serving: granted.serving.max(*sent + Duration::from_millis(9000)) };
            }
            let is_end = matches!(event, MemberEvent::Fenced);
            let effects = step(&mut member, now, event);
            let Tenancy { lease, serving } = member.tenancy();
            prop_assert!(lease <= granted.lease && lease <= serving && serving <= granted.serving);
            prop_assert!(!is_end || member.tenancy() == Tenancy::NONE);
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
