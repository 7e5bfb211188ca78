//! Stories of clears: for whom they wait, and for whom they need not.

use super::*;
use crate::clears::MAX_CLEARS;
use kvhive_protocol::Lingering;

#[test]
fn a_clear_is_done_when_every_member_has_its_map() {
    let mut scene = Scene::with(&["a", "b"]);
    scene.beat(1);
    let ticket = scene.clear();
    assert!(!scene.is_done(ticket));
    scene.beat(1);
    assert!(!scene.is_done(ticket));
    scene.beat(2);
    assert!(scene.is_done(ticket));
    assert_eq!(scene.overseer.counters().clears_done, 1);
}

#[test]
fn a_clear_waits_out_the_lease_of_a_silent_member() {
    let mut scene = Scene::with(&["a", "b"]);
    scene.beat(2);
    let ticket = scene.clear();
    scene.beat(1);
    scene.pass(1000);
    scene.beat(1);
    scene.pass(GRACE_MS - 1000 - 1);
    assert!(!scene.is_done(ticket));
    scene.pass(1);
    assert!(scene.is_done(ticket));
}

/// Two members that have heard this leader, which serve for 10 s from then on; now it is 900 ms later.
fn serving_long() -> Scene {
    let mut scene = Scene::of(Cluster::serving_for(10_000));
    for name in ["a", "b"] {
        scene.cluster.register(name, 1);
    }
    scene.lead();
    scene.pass_with(11_000, &[1, 2]);
    scene.pass_with(900, &[2]);
    scene.effects.clear();
    scene
}

/// What a serving lease of 10 s is to its grantor.
const SERVING_MS: u64 = 10_150;

#[test]
fn a_clear_waits_for_whoever_may_be_serving_on_and_says_so_once_nothing_is_heard_of_it() {
    let mut scene = serving_long();
    let ticket = scene.clear();
    scene.beat(2);
    assert_eq!(scene.waits_for(ticket), None, "it may yet be heard");
    scene.pass(GRACE_MS - 900);
    let until = Moment::from_millis(scene.now + SERVING_MS - GRACE_MS);
    let silent = Server { member: Some(MemberId(1)), until, is_silent: true };
    assert_eq!(scene.waits_for(ticket), Some(vec![silent]));
    assert_eq!(scene.overseer.counters().clears_waiting, 1);
    // It is declared down meanwhile, and that changes nothing.
    scene.cluster.mark_down(MemberId(1));
    scene.ask_again(ticket);
    assert_eq!(scene.waits_for(ticket), Some(vec![silent]));
    scene.pass_with(SERVING_MS - GRACE_MS - 1, &[2]);
    scene.ask_again(ticket);
    assert_eq!(scene.waits_for(ticket), Some(vec![silent]));
    scene.pass(1);
    scene.ask_again(ticket);
    assert!(scene.is_done(ticket));
}

#[test]
fn a_clear_does_not_wait_for_whom_something_says_has_ended() {
    let leaves = |scene: &mut Scene| {
        scene.cluster.apply(Command::Leave { member: MemberId(1), generation: Generation(1) });
    };
    let starts_anew = |scene: &mut Scene| {
        scene.cluster.register("a", 1);
        scene.beat(1);
    };
    let lost_and_starts_anew = |scene: &mut Scene| {
        scene.cluster.mark_down(MemberId(1));
        scene.cluster.register("a", 1);
        scene.beat(1);
    };
    let removed = |scene: &mut Scene| {
        scene.cluster.mark_down(MemberId(1));
        scene.cluster.apply(Command::RemoveMember { member: MemberId(1) });
    };
    for says in [leaves as fn(&mut Scene), starts_anew, lost_and_starts_anew, removed] {
        let mut scene = serving_long();
        let ticket = scene.clear();
        assert!(!scene.is_done(ticket));
        says(&mut scene);
        scene.beat(2);
        if scene.cluster.map().members.get(&MemberId(1)).is_some_and(|one| one.state == MemberState::Up) {
            scene.beat(1);
        }
        assert!(scene.is_done(ticket));
    }
}

#[test]
fn a_start_elsewhere_says_nothing_of_the_process_before_it() {
    let mut scene = serving_long();
    let ticket = scene.clear();
    scene.cluster.register_at("a", "10.0.0.9:7810");
    scene.beat(1);
    scene.beat(2);
    assert_eq!(scene.waits_for(ticket).expect("it may be there").len(), 1);
    // Nor does one more at the new place.
    scene.cluster.register_at("a", "10.0.0.9:7810");
    scene.beat(1);
    scene.ask_again(ticket);
    assert_eq!(scene.waits_for(ticket).expect("it may be there").len(), 1);
    scene.cluster.mark_down(MemberId(1));
    scene.cluster.apply(Command::RemoveMember { member: MemberId(1) });
    scene.ask_again(ticket);
    assert!(scene.is_done(ticket));
}

#[test]
fn a_new_leader_takes_whoever_lingers_to_serve_for_a_whole_serving_lease() {
    let mut scene = serving_long();
    scene.cluster.mark_down(MemberId(1));
    scene.lead();
    let ticket = scene.clear();
    scene.beat(2);
    let until = Moment::from_millis(scene.now + SERVING_MS);
    let silent = Server { member: Some(MemberId(1)), until, is_silent: true };
    assert_eq!(scene.waits_for(ticket), Some(vec![silent]));
    scene.pass_with(SERVING_MS, &[2]);
    scene.ask_again(ticket);
    assert!(scene.is_done(ticket));
}

#[test]
fn what_has_ended_is_noted_so_that_no_later_leader_waits_for_it() {
    let mut scene = serving_long();
    scene.cluster.mark_down(MemberId(1));
    scene.pass_with(SERVING_MS - 900 - 1, &[2]);
    assert_eq!(scene.ended(), []);
    scene.pass(1);
    let start = Some((MemberId(1), Generation(1)));
    assert_eq!(scene.ended(), [start]);
    assert_eq!(scene.pass(450).ended(), [], "not every time");
    assert_eq!(scene.pass(50).ended(), [start], "but until it is applied");
    scene.cluster.apply(Command::MarkEnded { start });
    assert_eq!(scene.pass(60_000).ended(), []);
    scene.lead();
    let ticket = scene.clear();
    scene.beat(2);
    assert!(scene.is_done(ticket));
}

#[test]
fn an_end_that_was_noted_late_ends_no_later_start() {
    let mut scene = serving_long();
    scene.cluster.mark_down(MemberId(1));
    scene.cluster.register_at("a", "10.0.0.9:7810");
    scene.cluster.mark_down(MemberId(1));
    scene.cluster.apply(Command::MarkEnded { start: Some((MemberId(1), Generation(1))) });
    let lingers = scene.cluster.map().members[&MemberId(1)].lingers;
    assert_eq!(lingers, Some(Lingering { generation: Generation(2), moved: true }));
}

#[test]
fn a_restored_state_waits_for_those_whom_it_does_not_know() {
    use crate::again::Cleared;
    let mut scene = serving_long();
    let origin = kvhive_protocol::Origin { at_ms: 5, reason: Default::default() };
    scene.cluster.registry.go_on(Cleared::Tenants(&[]), origin).expect("there is a cluster");
    scene.lead();
    let ticket = scene.clear();
    scene.beat(1);
    scene.beat(2);
    let until = Moment::from_millis(scene.now + SERVING_MS);
    assert_eq!(scene.waits_for(ticket), Some(vec![Server { member: None, until, is_silent: true }]));
    scene.pass_with(SERVING_MS, &[1, 2]);
    assert_eq!(scene.pass(1).ended(), [None]);
    scene.cluster.apply(Command::MarkEnded { start: None });
    scene.beat(1);
    scene.beat(2);
    scene.ask_again(ticket);
    assert!(scene.is_done(ticket));
}

#[test]
fn a_new_leader_does_not_wait_for_whom_the_map_has_ended() {
    let mut scene = Scene::with(&["a", "b"]);
    scene.cluster.apply(Command::Leave { member: MemberId(1), generation: Generation(1) });
    scene.lead();
    let ticket = scene.clear();
    scene.beat(2);
    assert!(scene.is_done(ticket));
}

#[test]
fn a_leader_elected_before_it_has_applied_the_map_knows_of_no_lease_and_waits_for_all() {
    let mut scene = Scene::with(&["a"]);
    scene.overseer.became_leader(Moment::from_millis(scene.now), None);
    let ticket = scene.clear();
    scene.pass(GRACE_MS - 1);
    assert!(!scene.is_done(ticket));
    assert_eq!(scene.declared_down(), []);
    scene.pass(1);
    assert!(scene.is_done(ticket));
}

#[test]
fn an_overtaken_heartbeat_unsays_nothing() {
    let mut scene = Scene::with(&["a"]);
    let old = scene.cluster.map().epoch;
    let ticket = scene.clear();
    let load = DeviceLoad { blocks: 3, ..DeviceLoad::default() };
    let newest = scene.cluster.map().epoch;
    scene.beat_as(1, 1, newest, vec![load.clone()]);
    scene.beat_as(1, 1, old, vec![DeviceLoad::default()]);
    assert!(scene.is_done(ticket));
    assert_eq!(scene.overseer.loads().collect::<Vec<_>>(), [(DeviceId::new(MemberId(1), 0), &load)]);
}

#[test]
fn clears_that_wait_are_bounded() {
    let mut scene = Scene::with(&["a"]);
    let start = |scene: &mut Scene, at| {
        scene.overseer.clear_started(Moment::ZERO, ClearTicket(at), TenantId(1), Epoch(99))
    };
    for at in 0..MAX_CLEARS as u64 {
        assert_eq!(start(&mut scene, at), Ok(()));
    }
    assert!(matches!(start(&mut scene, MAX_CLEARS as u64), Err(WireError::Busy { .. })));
    assert_eq!(start(&mut scene, 0), Ok(()));
    scene.overseer.clear_abandoned(ClearTicket(0));
    assert_eq!(start(&mut scene, MAX_CLEARS as u64), Ok(()));
}
