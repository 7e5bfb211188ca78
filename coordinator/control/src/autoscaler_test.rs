//! The autoscaler, told made-up curves and waits.

use super::*;
use kvhive_protocol::MemberId;
use kvhive_protocol::scaling::{Observation, reuse_bucket};
use proptest::prelude::*;

/// A cluster whose members have room for 1000 blocks each, and whose working set is a number of blocks that are all used in turn.
struct Scene {
    autoscaler: Autoscaler,
    predictor: Predictor,
    policy: ScalingPolicy,
    members: u32,
    cordoned: u32,
    bucket: u64,
    reuse: Reuse,
    queue_us: u64,
    /// So many thousandths of the keys are used after so many blocks, whatever the working set is.
    farther: (u64, u64),
}

impl Scene {
    fn of(members: u32) -> Scene {
        let policy = ScalingPolicy {
            mode: ScalingMode::Act,
            floor: 2,
            ceiling: 10,
            keep_per_mille: 950,
            ..ScalingPolicy::default()
        };
        Scene {
            autoscaler: Autoscaler::new(),
            predictor: Predictor::new(),
            policy,
            members,
            cordoned: 0,
            bucket: 100,
            reuse: Reuse { capacity_blocks: 1000, ..Reuse::default() },
            queue_us: 0,
            farther: (0, 1),
        }
    }

    /// One stretch of time: half of the keys are used again at once, half after the whole working set.
    fn pass(&mut self, asked: u64, working_set: u64) -> Recommendation {
        self.bucket += 1;
        let observation = Observation { bucket: self.bucket, asked, covered: asked / 2, new_bytes: 0 };
        self.predictor.update_pattern(&observation);
        self.reuse.asked += asked;
        // A device sees its part of the working set.
        self.reuse.counts[reuse_bucket(1)] += asked / 2;
        let farther = asked * self.farther.0 / 1000;
        self.reuse.counts[reuse_bucket(self.farther.1 / u64::from(self.members))] += farther;
        self.reuse.counts[reuse_bucket(working_set / u64::from(self.members))] += asked - asked / 2 - farther;
        self.autoscaler.learn(self.members, DeviceId::new(MemberId(1), 0), &self.reuse);
        let now = self.bucket * OBSERVATION_SECONDS;
        let cluster = Cluster { members: self.members, cordoned: self.cordoned, queue_us: self.queue_us };
        self.autoscaler.decide(now, cluster, &self.policy, &self.predictor)
    }

    /// So many stretches of time, each recommendation followed. Returns the sizes.
    fn follow(&mut self, steps: usize, asked: u64, working_set: u64) -> Vec<u32> {
        let mut sizes = Vec::new();
        for _ in 0..steps {
            let said = self.pass(asked, working_set);
            if said.size != self.members {
                sizes.push(said.size);
                self.members = said.size;
            }
        }
        sizes
    }
}

#[test]
fn the_size_is_what_the_working_set_needs_and_stays() {
    let mut scene = Scene::of(3);
    let sizes = scene.follow(60, 100_000, 6500);
    assert!((7..=9).contains(&scene.members), "{sizes:?}");
    assert_eq!(scene.follow(200, 100_000, 6500), [], "nothing changes any more");
}

#[test]
fn fewer_are_recommended_only_when_they_have_been_enough_for_the_whole_window() {
    let mut scene = Scene::of(8);
    scene.follow(30, 100_000, 6500);
    let before = scene.members;
    let mut waited = 0;
    while scene.members == before && waited < 100 {
        waited += 1;
        let said = scene.pass(100_000, 2200);
        assert!(said.size <= before, "{said}");
        scene.members = said.size;
    }
    assert!(waited >= 12, "the window is twelve stretches: {waited}");
    scene.follow(100, 100_000, 2200);
    assert!((3..=4).contains(&scene.members), "{}", scene.members);
}

#[test]
fn fewer_are_not_recommended_while_what_is_held_has_no_room_in_them() {
    let mut scene = Scene::of(8);
    scene.follow(30, 100_000, 6500);
    let before = scene.members;
    scene.autoscaler.must_hold(before);
    assert_eq!(scene.follow(60, 100_000, 2200), []);
    let said = scene.pass(100_000, 2200);
    assert_eq!((said.size, said.why), (before, Why::Room));
    assert!(said.to_string().contains(&format!("no room in fewer than {before}")), "{said}");
    scene.autoscaler.must_hold(before - 1);
    scene.follow(60, 100_000, 2200);
    assert_eq!(scene.members, before - 1, "as many as hold it");
    // More are recommended for load alone.
    scene.follow(60, 100_000, 9000);
    assert!(scene.members >= before, "{}", scene.members);
}

/// A night of a fifth of the load, in which a little more is used for three hours, and a morning. More are needed for longer than an hour, which
/// was once enough for a turn up, and another down later: load had neither.
#[test]
fn a_little_more_at_night_turns_nothing_and_a_morning_does() {
    let mut scene = Scene::of(8);
    let hours = |count: usize| 12 * count;
    scene.follow(hours(12), 100_000, 6500);
    scene.follow(hours(16), 20_000, 2600);
    let at_night = scene.members;
    assert!((3..=4).contains(&at_night), "{at_night}");
    assert_eq!(scene.pass(20_000, 2600).why, Why::Right);
    let mut short = 0;
    scene.farther = (200, 5200);
    for _ in 0..hours(3) {
        let said = scene.pass(20_000, 2600);
        assert_eq!(said.size, at_night, "{said}");
        short += usize::from(said.why == Why::Cooldown && said.needed > at_night);
    }
    assert!(short > hours(1), "more were needed for more than an hour: {short}");
    scene.farther = (0, 1);
    assert_eq!(scene.follow(hours(2), 20_000, 2600), [], "and less again");
    let mut waited = 0;
    while scene.members == at_night {
        waited += 1;
        assert!(waited <= hours(1), "an hour of a morning");
        scene.follow(1, 100_000, 6500);
    }
    scene.follow(hours(2), 100_000, 6500);
    assert!(scene.members >= 7, "{}", scene.members);
}

#[test]
fn who_is_cordoned_serves_and_is_not_relied_on() {
    let mut scene = Scene::of(3);
    scene.follow(60, 100_000, 4500);
    let before = scene.members;
    scene.cordoned = 1;
    let sizes = scene.follow(20, 100_000, 4500);
    assert_eq!(sizes, [before + 1], "another for the one that may go");
    let said = scene.pass(100_000, 4500);
    assert!(said.to_string().contains(", 1 of them cordoned and not relied on: "), "{said}");
    // It is emptied and ended: the others have been enough all along.
    (scene.members, scene.cordoned) = (before, 0);
    assert_eq!(scene.follow(60, 100_000, 4500), []);
    // No more than may be.
    scene.cordoned = before;
    scene.follow(60, 100_000, 90_000);
    assert_eq!(scene.members, scene.policy.ceiling);
}

#[test]
fn bounds_hold_and_an_operator_goes_beyond_them() {
    let mut scene = Scene::of(1);
    assert_eq!((scene.pass(100, 10).size, scene.pass(100, 10).why), (2, Why::Bounds));
    scene.members = 12;
    assert_eq!(scene.pass(100, 10).size, 10);
    scene.policy.manual = Some(12);
    assert_eq!((scene.pass(100, 10).size, scene.pass(100, 10).why), (12, Why::Manual));
}

#[test]
fn a_long_queue_asks_for_more_whatever_the_caches_do() {
    let mut scene = Scene::of(4);
    scene.follow(12, 100_000, 100);
    let before = scene.members;
    scene.queue_us = 30_000;
    let said = scene.pass(100_000, 100);
    assert_eq!((said.why, said.size), (Why::Queue, (f64::from(before) * 1.5).ceil() as u32));
}

#[test]
fn without_load_nothing_is_known_and_without_a_mode_nothing_is_done() {
    let mut scene = Scene::of(5);
    assert_eq!(scene.pass(0, 100).why, Why::Unknown);
    scene.policy.mode = ScalingMode::Off;
    assert_eq!(scene.follow(20, 100_000, 100), []);
}

#[test]
fn the_reason_is_told_in_numbers() {
    let mut scene = Scene::of(3);
    scene.policy.up_cooldown_s = 0;
    let said = scene.pass(100_000, 6500);
    assert_eq!(said.why, Why::Capacity);
    assert!(said.to_string().starts_with("3 members are too few: 95.0 % are aimed at; with 1.0"), "{said}");
    assert!((said.hit_rate - 0.5).abs() < 0.01 && (said.hit_rate_ceiling - 1.0).abs() < 0.01, "{said:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn whatever_comes_the_size_is_within_bounds_and_changes_are_apart(
        load in prop::collection::vec((0_u64..1 << 40, 1_u64..100_000, 0_u64..100_000), 1..120),
        members in 1_u32..20,
    ) {
        let mut scene = Scene::of(members);
        let mut last = None;
        for (asked, working_set, queue_us) in load {
            scene.queue_us = queue_us;
            let said = scene.pass(asked, working_set);
            prop_assert!((2..=10).contains(&said.size), "{:?}", said);
            prop_assert!(said.growth.is_finite() && (0.0..=1.0).contains(&said.hit_rate_expected));
            if said.size != scene.members {
                let least = if said.why == Why::Bounds { 0 } else if said.size > scene.members { 2 } else { 12 };
                prop_assert!(last.is_none_or(|at| scene.bucket - at >= least), "{:?}", said);
                last = Some(scene.bucket);
                scene.members = said.size;
            }
        }
    }
}

#[test]
fn who_recalls_a_day_aims_as_high_as_who_has_seen_it_and_who_does_not_aims_elsewhere() {
    let mut scene = Scene::of(6);
    // A busy day that the most members cover half of, and then a quiet night in which all of it can be had.
    let mut written = Vec::new();
    for step in 0..200 {
        let busy = step < 120;
        scene.pass(if busy { 400_000 } else { 20_000 }, if busy { 30_000 } else { 4_000 });
        written.push(scene.autoscaler.newest(scene.bucket).expect("it was decided"));
    }
    assert_eq!(written.iter().map(Stretch::check).collect::<Vec<_>>(), vec![Ok(()); written.len()]);
    let mut aim = |day: Option<&[Stretch]>| {
        let kept = (scene.autoscaler.clone(), scene.reuse.clone(), scene.bucket);
        if let Some(day) = day {
            scene.autoscaler.recall(scene.bucket + 1, day.iter());
        }
        let aim = scene.pass(20_000, 4_000).hit_rate_aim;
        (scene.autoscaler, scene.reuse, scene.bucket) = kept;
        aim
    };
    let (seen, recalled, knows_nothing) = (aim(None), aim(Some(&written)), aim(Some(&[])));
    assert!((seen - recalled).abs() < 1e-4, "{seen} against {recalled}");
    assert!((seen - knows_nothing).abs() > 0.005, "{seen} against {knows_nothing}");
}
