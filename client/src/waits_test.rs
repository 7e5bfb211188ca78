//! Stories of waits: whom a client asks, and when it asks another one besides.

use super::*;
use kvhive_protocol::{Filling, ReplicaSet};

const MS: Duration = Duration::from_millis(1);
const US: Duration = Duration::from_micros(1);

fn device(number: u32) -> DeviceId {
    DeviceId::new(MemberId(number), 0)
}

fn home(number: u8) -> BlockKey {
    BlockKey::from_bytes([number; 32])
}

fn ask(waits: &mut Waits, set: &ReplicaSet, replicas: usize, home: &BlockKey, now: Duration) -> DeviceId {
    let segment = Segment { home, set, filling: None, avoid: &[], replicas };
    waits.choose(&segment, None, Sway::FETCH, now).expect("somebody is left")
}

/// One request after the other to `device`, each answered after `took`; returns when the last one was.
fn answers(waits: &mut Waits, device: DeviceId, from: Duration, took: Duration, times: u32) -> Duration {
    let mut now = from;
    for _ in 0..times {
        waits.begin(device, Generation(1));
        now += took;
        waits.answered(device, now, took);
        waits.end(device);
    }
    now
}

#[test]
fn the_primary_is_asked_unless_another_is_much_quicker() {
    let mut waits = Waits::new(1);
    let set = ReplicaSet(vec![device(1), device(2)]);
    assert_eq!(ask(&mut waits, &set, 2, &home(1), Duration::ZERO), device(1));
    let now = answers(&mut waits, device(1), Duration::ZERO, MS, 10);
    let now = answers(&mut waits, device(2), now, MS, 10);
    assert_eq!(ask(&mut waits, &set, 2, &home(1), now), device(1));
    let now = answers(&mut waits, device(1), now, 100 * MS, 1);
    assert_eq!(ask(&mut waits, &set, 2, &home(1), now), device(2));
    // Nothing was heard of it for long: it is tried again.
    assert_eq!(ask(&mut waits, &set, 2, &home(1), now + 60_000 * MS), device(1));
}

#[test]
fn a_replica_that_is_near_is_fetched_from_unless_it_is_slow_or_lacks_blocks() {
    let (home, set) = (home(1), ReplicaSet(vec![device(1), device(2), device(3)]));
    let near = |member| Some(Near { member: MemberId(member), host: None });
    let (other, near) = (near(9), near(3));
    let segment = |filling| Segment { home: &home, set: &set, filling, avoid: &[], replicas: 3 };
    let mut waits = Waits::new(1);
    let ask = |waits: &mut Waits, near, now| waits.choose(&segment(None), near, Sway::FETCH, now);
    assert_eq!(ask(&mut waits, near, Duration::ZERO), Some(device(3)));
    assert_eq!(ask(&mut waits, other, Duration::ZERO), Some(device(1)), "it is no replica");
    assert_eq!(waits.choose(&segment(None), near, Sway::MATCH, Duration::ZERO), Some(device(1)));
    let lacks = Filling { devices: vec![device(3)], streams: false };
    assert_eq!(waits.choose(&segment(Some(&lacks)), near, Sway::FETCH, Duration::ZERO), Some(device(1)));
    let now = (1..=3).fold(Duration::ZERO, |now, at| answers(&mut waits, device(at), now, MS, 70));
    assert_eq!(ask(&mut waits, near, now), Some(device(3)));
    let now = answers(&mut waits, device(3), now, 100 * MS, 1);
    assert_ne!(ask(&mut waits, near, now), Some(device(3)), "it is slow");
}

#[test]
fn a_node_that_is_near_is_asked_for_others_blocks_unless_it_has_just_turned_somebody_away() {
    let (home, set) = (home(1), ReplicaSet(vec![device(1)]));
    let near = |member| Some(Near { member: MemberId(member), host: Some(device(member)) });
    let segment = |filling| Segment { home: &home, set: &set, filling, avoid: &[], replicas: 1 };
    let mut waits = Waits::new(1);
    let ask = |waits: &mut Waits, near, now| waits.choose(&segment(None), near, Sway::FETCH, now);
    assert_eq!(ask(&mut waits, near(3), Duration::ZERO), Some(device(3)));
    assert_eq!(ask(&mut waits, near(1), Duration::ZERO), Some(device(1)), "it is a replica");
    assert_eq!(waits.choose(&segment(None), near(3), Sway::MATCH, Duration::ZERO), Some(device(1)));
    let lacks = Filling { devices: vec![device(1)], streams: false };
    let filled = waits.choose(&segment(Some(&lacks)), near(3), Sway::FETCH, Duration::ZERO);
    assert_eq!(filled, Some(device(1)), "it could fetch it from nobody who has it all");
    waits.begin(device(3), Generation(1));
    waits.turned_away(device(3), 5 * MS, 10 * MS);
    assert_eq!(ask(&mut waits, near(3), 14 * MS), Some(device(1)));
    assert_eq!(ask(&mut waits, near(3), 15 * MS), Some(device(3)));
    waits.turned_away(device(3), 20 * MS, 10 * MS);
    waits.begin(device(3), Generation(2));
    assert_eq!(ask(&mut waits, near(3), 21 * MS), Some(device(3)), "it was started anew");
}

#[test]
fn who_has_much_to_do_is_passed_over() {
    let mut waits = Waits::new(1);
    let set = ReplicaSet(vec![device(1), device(2)]);
    let now = answers(&mut waits, device(1), Duration::ZERO, MS, 10);
    let now = answers(&mut waits, device(2), now, MS, 10);
    for _ in 0..4 {
        waits.begin(device(1), Generation(1));
    }
    assert_eq!(ask(&mut waits, &set, 2, &home(1), now), device(2));
    let segment = Segment { home: &home(1), set: &set, filling: None, avoid: &[], replicas: 2 };
    assert_eq!(waits.choose(&segment, None, Sway::MATCH, now), Some(device(1)), "matches are more faithful");
    for _ in 0..4 {
        waits.end(device(1));
    }
    assert_eq!(ask(&mut waits, &set, 2, &home(1), now), device(1));
}

#[test]
fn clients_spread_over_the_replicas_of_a_hot_slot_and_each_stays_with_its_own() {
    let set = ReplicaSet((1..=4).map(device).collect());
    let mut asked = [0; 4];
    for seed in 0..400 {
        let mut waits = Waits::new(seed);
        let first = ask(&mut waits, &set, 2, &home(9), Duration::ZERO);
        assert_eq!(ask(&mut waits, &set, 2, &home(9), MS), first);
        asked[first.member.0 as usize - 1] += 1;
    }
    assert!(asked.iter().all(|times| (60..=140).contains(times)), "{asked:?}");
}

#[test]
fn a_replica_that_has_just_come_is_asked_little_at_first_and_as_much_as_the_others_soon() {
    let set = ReplicaSet(vec![device(1), device(2)]);
    let mut waits = Waits::new(1);
    // Nobody is known yet: nobody is spared.
    for _ in 0..10 {
        assert_eq!(ask(&mut waits, &set, 2, &home(1), Duration::ZERO), device(1));
        waits.begin(device(1), Generation(1));
    }
    let mut waits = Waits::new(1);
    let mut now = answers(&mut waits, device(2), Duration::ZERO, US, 100);
    let mut taken = Vec::new();
    for generation in [1, 2] {
        // As many requests as it is given, all under way at a time, then all are answered.
        for round in 0..7 {
            let mut to_first = 0;
            for _ in 0..200 {
                if ask(&mut waits, &set, 2, &home(1), now) == device(1) {
                    waits.begin(device(1), Generation(generation));
                    to_first += 1;
                }
            }
            now += MS;
            for _ in 0..to_first {
                waits.answered(device(1), now, US);
                waits.end(device(1));
            }
            if round == 0 && generation == 2 {
                // By its first request it is seen that it has started anew.
                assert!(to_first <= 3, "{to_first}");
            }
            taken.push(to_first);
        }
    }
    assert_eq!(taken[..6], [2, 4, 8, 16, 32, 200], "{taken:?}");
    assert_eq!(taken[7..12], [2, 4, 8, 16, 32], "{taken:?}");
}

#[test]
fn replicas_that_lack_blocks_come_last_and_avoided_ones_never() {
    let mut waits = Waits::new(1);
    let set = ReplicaSet(vec![device(1), device(2), device(3)]);
    let filling = Filling { devices: vec![device(2)], streams: true };
    let mut ask = |avoid: &[DeviceId]| {
        let segment = Segment { home: &home(1), set: &set, filling: Some(&filling), avoid, replicas: 3 };
        waits.choose(&segment, None, Sway::FETCH, MS)
    };
    assert_eq!(ask(&[device(1)]), Some(device(3)));
    assert_eq!(ask(&[device(1), device(3)]), Some(device(2)));
    assert_eq!(ask(&[device(1), device(2), device(3)]), None);
}

#[test]
fn patience_follows_what_is_usual() {
    let mut waits = Waits::new(1);
    assert_eq!(waits.patience(device(1)), 20 * MS);
    let now = answers(&mut waits, device(1), Duration::ZERO, 10 * MS, 40);
    let usual = waits.patience(device(1));
    assert!(usual >= 10 * MS && usual < 11 * MS, "{usual:?}");
    answers(&mut waits, device(1), now, Duration::from_micros(50), 80);
    assert_eq!(waits.patience(device(1)), 2 * MS);
}

#[test]
fn who_is_overtaken_again_and_again_is_tried_ever_more_rarely() {
    let mut waits = Waits::new(1);
    let now = answers(&mut waits, device(1), Duration::ZERO, MS, 4);
    for times in 1..=12 {
        waits.overtaken(device(1), now, 3 * MS);
        let expected = waits.expected(device(1), now);
        assert!(expected >= (0.003 * f64::from(1 << times)).min(0.999) && expected <= 1.0, "{expected}");
    }
}

#[test]
fn second_requests_are_a_tenth_of_all_in_the_long_run() {
    let mut waits = Waits::new(1);
    let made = (0..10_000).filter(|_| {
        waits.earn();
        waits.spend()
    });
    let made = made.count();
    assert!((1000..=1010).contains(&made), "{made}");
}

#[test]
fn busy_nodes_are_asked_again_a_hundred_times_and_then_for_a_tenth_of_what_is_answered() {
    let mut waits = Waits::new(1);
    assert_eq!((0..1000).filter(|_| waits.repeat()).count(), 100);
    let made = (0..10_000).filter(|_| {
        waits.earn_repeat();
        waits.repeat()
    });
    assert!((990..=1000).contains(&made.count()));
}

#[test]
fn the_rate_follows_what_arrives_and_hope_grows_where_nothing_does() {
    let mut waits = Waits::new(1);
    assert_eq!(waits.rate(MS), None);
    waits.arrived(1000, MS, 1000 * MS);
    assert_eq!(waits.rate(MS), Some(1000.0));
    for _ in 0..100 {
        waits.arrived(4000, MS, 1000 * MS);
    }
    assert!((3990.0..=4000.0).contains(&waits.rate(MS).expect("blocks arrived")));
    assert!((7980.0..=8000.0).contains(&waits.rate(30_001 * MS).expect("blocks arrived")));
}
