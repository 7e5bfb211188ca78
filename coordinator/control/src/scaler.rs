//! The leader's own knowledge of load and size: sums up what devices report, has it written into the log once each stretch of
//! time, and recommends a size then. Nothing of it is replicated but those sums, and what sizes would have covered over a day: a new leader
//! foresees as much and aims as high from them, and knows how devices would do with other room a few minutes later.

use crate::autoscaler::{Autoscaler, Cluster, Recommendation, Why};
use crate::predictor::{Figure, Predictor};
use crate::room;
use crate::scaling::Scaling;
use kvhive_protocol::control::{Command, DeviceLoad};
use kvhive_protocol::scaling::{
    Advice, ForecastReport, OBSERVATION_SECONDS, Observation, ScalingMode, ScalingReport,
};
use kvhive_protocol::{ClusterMap, DeviceId, EventKind, Level, MemberState, Note, Reason, Subject};
use std::collections::BTreeMap;

/// Observations that one tick learns: a new leader has two weeks of them to go through, and heartbeats do not wait for that.
const LEARNT_AT_ONCE: usize = 64;
/// How far ahead forecasts are reported: the next stretch of time, an hour, a day.
const AHEAD: [u32; 3] = [1, 12, 288];

/// What a device has counted when it was last looked at.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    asked: u64,
    covered: u64,
    stored: u64,
}

/// The machine.
#[derive(Clone, Debug, Default)]
pub struct Scaler {
    predictor: Predictor,
    /// The newest observation that was learnt from.
    learnt: Option<u64>,
    autoscaler: Autoscaler,
    /// It has taken over the day that was written down before it led.
    has_recalled: bool,
    counted: BTreeMap<DeviceId, Counted>,
    /// What adds up in the stretch of time at hand.
    now: Observation,
    waits: (u64, u64),
    said: Option<Recommendation>,
}

/// What the scaler asks for: a change to be proposed, and why.
pub type Proposed = (Command, Reason);

impl Scaler {
    /// Makes one that knows nothing.
    pub fn new() -> Scaler {
        Scaler::default()
    }

    /// Another coordinator leads: what devices counted is its to know.
    pub fn lost_leadership(&mut self) {
        let Scaler { predictor, learnt, .. } = std::mem::take(self);
        *self = Scaler { predictor, learnt, ..Scaler::default() };
    }

    /// Takes what devices reported last. `seconds` is the leader's wall clock, since 1970.
    pub fn tick<'a>(
        &mut self,
        seconds: u64,
        map: &ClusterMap,
        loads: impl Iterator<Item = (DeviceId, &'a DeviceLoad)>,
        scaling: &Scaling,
    ) -> Vec<Proposed> {
        self.learn(scaling);
        let (members, cordoned) = members(map);
        let loads: BTreeMap<DeviceId, &DeviceLoad> = loads.collect();
        for (device, load) in &loads {
            self.count(members, *device, load);
        }
        let bucket = seconds / OBSERVATION_SECONDS;
        if self.now.bucket == 0 || bucket < self.now.bucket {
            self.now = Observation { bucket, ..self.now };
        }
        if bucket == self.now.bucket {
            return Vec::new();
        }
        let observation = std::mem::replace(&mut self.now, Observation { bucket, ..Observation::default() });
        self.autoscaler.keep_only(|device| map.members.contains_key(&device.member));
        self.counted.retain(|device, _| map.members.contains_key(&device.member));
        // While it is not known what is held, nothing of it is to be let go.
        self.autoscaler.must_hold(room::fewest(map, &loads).unwrap_or(members));
        if !std::mem::replace(&mut self.has_recalled, true) {
            self.autoscaler.recall(observation.bucket, scaling.stretches());
        }
        let mut proposed = vec![(Command::RecordLoad { observation }, Reason::default())];
        proposed.extend(self.decide(seconds, (members, cordoned), scaling));
        // Whoever speaks an older level could not read it.
        if let Some(stretch) = self.autoscaler.newest(observation.bucket).filter(|_| map.level >= Level::DAYS)
        {
            proposed.push((Command::RecordStretch { stretch }, Reason::default()));
        }
        proposed
    }

    fn learn(&mut self, scaling: &Scaling) {
        let learnt = self.learnt;
        let is_new = |one: &&Observation| learnt.is_none_or(|learnt| one.bucket > learnt);
        for observation in scaling.observations().filter(is_new).take(LEARNT_AT_ONCE) {
            self.predictor.update_pattern(observation);
            self.learnt = Some(observation.bucket);
        }
    }

    fn count(&mut self, members: u32, device: DeviceId, load: &DeviceLoad) {
        let now =
            Counted { asked: load.matched_keys, covered: load.covered_keys, stored: load.stored_blocks };
        // What it counted before this leader looked first, or before it began anew, was another time's.
        if let Some(before) = self.counted.insert(device, now).filter(|before| before.asked <= now.asked) {
            let block_bytes = load.used_bytes / load.blocks.max(1);
            self.now.asked += now.asked - before.asked;
            self.now.covered += now.covered.saturating_sub(before.covered);
            let stored = now.stored.saturating_sub(before.stored);
            self.now.new_bytes = self.now.new_bytes.saturating_add(stored.saturating_mul(block_bytes));
        }
        self.waits = (self.waits.0.saturating_add(load.queue_us), self.waits.1 + 1);
        self.autoscaler.learn(members, device, &load.reuse);
    }

    fn decide(
        &mut self,
        seconds: u64,
        (members, cordoned): (u32, u32),
        scaling: &Scaling,
    ) -> Option<Proposed> {
        let (sum, count) = std::mem::take(&mut self.waits);
        let queue_us = sum / count.max(1);
        let cluster = Cluster { members, cordoned, queue_us };
        let said = self.autoscaler.decide(seconds, cluster, scaling.policy(), &self.predictor);
        let before = self.said.replace(said);
        let is_news = said.size != members && before.is_none_or(|before| before.size != said.size);
        if scaling.policy().mode == ScalingMode::Off || !is_news {
            return None;
        }
        let note = Note::new(EventKind::SizeRecommended, Subject::default())
            .with("members", members.into())
            .with("size", said.size.into())
            .with("needed", said.needed.into())
            .with("queue_us", said.queue_us)
            .with("growth_ppm", ppm(said.growth).into())
            .with("hit_rate_ppm", ppm(said.hit_rate).into())
            .with("hit_rate_expected_ppm", ppm(said.hit_rate_expected).into());
        Some((Command::Record(Box::new(note)), Reason::new(said)))
    }

    /// Returns what is made of the cluster's size.
    pub fn report(&self, map: Option<&ClusterMap>, scaling: &Scaling) -> ScalingReport {
        let forecasts = Figure::ALL.into_iter().flat_map(|figure| {
            AHEAD.into_iter().filter_map(move |steps| {
                let forecast = self.predictor.forecast(figure, steps)?;
                let score = self.predictor.score(figure, steps);
                let is_measured = self.predictor.is_measured(figure);
                let milli = |value: f64| (value * 1000.0).round() as u64;
                let bounds = is_measured.then(|| (milli(forecast.low), milli(forecast.high)));
                let (low_milli, high_milli) = ForecastReport::told(milli(forecast.value), bounds);
                Some(ForecastReport {
                    figure: figure.name().to_owned(),
                    ahead_s: steps * OBSERVATION_SECONDS as u32,
                    value_milli: milli(forecast.value),
                    low_milli,
                    high_milli,
                    mase_ppm: ForecastReport::figure_of(score.is_compared.then(|| ppm(score.mase))),
                    coverage_ppm: ForecastReport::figure_of(score.is_known.then(|| ppm(score.coverage))),
                    season_s: self.predictor.season_seconds(figure) as u32,
                })
            })
        });
        ScalingReport {
            policy: *scaling.policy(),
            members: map.map_or(0, |map| members(map).0),
            // What was said while nothing was to be recommended is no advice once something is.
            advice: self
                .said
                .as_ref()
                .filter(|said| said.why != Why::Off || scaling.policy().mode == ScalingMode::Off)
                .map(advice),
            forecasts: forecasts.collect(),
            observations: scaling.observations().len() as u32,
        }
    }
}

/// Returns how many members serve and stay, and how many of those are cordoned.
fn members(map: &ClusterMap) -> (u32, u32) {
    let stays = map.members.values().filter(|one| one.state == MemberState::Up && !one.drains);
    stays.fold((0, 0), |(all, cordoned), one| (all + 1, cordoned + u32::from(one.cordoned)))
}

fn advice(said: &Recommendation) -> Advice {
    Advice {
        size: said.size,
        needed: said.needed,
        why: said.why.name().to_owned(),
        reason: Reason::new(said).to_string(),
        hit_rate_half_ppm: ppm(said.hit_rate_half),
        hit_rate_ppm: ppm(said.hit_rate),
        hit_rate_double_ppm: ppm(said.hit_rate_double),
        hit_rate_expected_ppm: ppm(said.hit_rate_expected),
        hit_rate_ceiling_ppm: ppm(said.hit_rate_ceiling),
        growth_ppm: ppm(said.growth),
        queue_us: said.queue_us,
    }
}

/// Returns a share in millionths; what is beyond any stays at the greatest.
fn ppm(share: f64) -> u32 {
    (share * 1e6).round() as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvhive_protocol::emptying::FrameLoad;
    use kvhive_protocol::map::DeviceDescription;
    use kvhive_protocol::scaling::{Reuse, ScalingChange, ScalingPolicy, reuse_bucket};
    use kvhive_protocol::{ClusterId, Generation, Member, MemberId};

    fn map(members: u32) -> ClusterMap {
        let settings = kvhive_protocol::map::Settings {
            replicas: 1,
            segment_blocks: 16,
            ack: kvhive_protocol::data::Ack::Primary,
            lease_ms: 2000,
            heartbeat_ms: 500,
            serving_lease_ms: 2000,
        };
        let member = |id: u32| Member {
            name: format!("n{id}"),
            generation: Generation(1),
            state: MemberState::Up,
            data_address: String::new(),
            metrics_address: String::new(),
            labels: BTreeMap::new(),
            devices: Vec::new(),
            drains: false,
            cordoned: false,
            lingers: None,
            drains_since: Default::default(),
            speaks: kvhive_protocol::Level::NEWEST,
            codec: kvhive_protocol::block::Codec::Raw,
        };
        let members = (1..=members).map(|id| (MemberId(id), member(id))).collect();
        ClusterMap { members, ..ClusterMap::founded(ClusterId(1), "test", settings) }
    }

    fn acting() -> Scaling {
        let mut scaling = Scaling::default();
        let change = kvhive_protocol::scaling::ScalingChange {
            mode: Some(ScalingMode::Act),
            up_cooldown_s: Some(0),
            ..Default::default()
        };
        scaling.change(&change, true).expect("it is allowed");
        scaling
    }

    /// What a device reports that uses twice its room all over again, `keys` at a time.
    fn report(asked: u64) -> DeviceLoad {
        let mut reuse = Reuse { capacity_blocks: 100, asked, ..Reuse::default() };
        reuse.counts[reuse_bucket(200)] = asked;
        let counted = DeviceLoad { matched_keys: asked, covered_keys: asked / 4, ..DeviceLoad::default() };
        DeviceLoad { stored_blocks: asked, blocks: 10, used_bytes: 640, reuse, queue_us: 7, ..counted }
    }

    #[test]
    fn each_stretch_of_time_is_written_down_once_and_a_size_is_recommended() {
        let (mut scaler, map, scaling) = (Scaler::new(), map(1), acting());
        let device = DeviceId::new(MemberId(1), 0);
        let start = 1000 * OBSERVATION_SECONDS;
        let mut proposed = Vec::new();
        for second in 0..=OBSERVATION_SECONDS {
            let load = report(1000 + 100 * second);
            proposed.extend(scaler.tick(start + second, &map, [(device, &load)].into_iter(), &scaling));
        }
        let asked = 100 * OBSERVATION_SECONDS;
        let observation = Observation { bucket: 1000, asked, covered: asked / 4, new_bytes: asked * 64 };
        assert_eq!(proposed[0].0, Command::RecordLoad { observation });
        let Command::Record(note) = &proposed[1].0 else { panic!("{proposed:?}") };
        assert_eq!((note.kind, note.check()), (EventKind::SizeRecommended, Ok(())));
        let said = scaler.report(Some(&map), &scaling).advice.expect("it was decided");
        assert_eq!((said.why.as_str(), said.queue_us), ("capacity", 7));
        assert!((2..=3).contains(&said.size), "{said:?}");
        let Command::RecordStretch { stretch } = &proposed[2].0 else { panic!("{proposed:?}") };
        assert_eq!((stretch.bucket, stretch.check()), (1000, Ok(())));
        assert_eq!(proposed.len(), 3);
    }

    #[test]
    fn what_was_said_while_it_was_off_is_no_advice_when_it_is_on() {
        let (mut scaler, map, off) = (Scaler::new(), map(1), Scaling::default());
        let device = DeviceId::new(MemberId(1), 0);
        for second in 0..=OBSERVATION_SECONDS {
            let at = 1000 * OBSERVATION_SECONDS + second;
            scaler.tick(at, &map, [(device, &report(100 * second))].into_iter(), &off);
        }
        let said = scaler.report(Some(&map), &off).advice.expect("it was looked at");
        assert_eq!(said.why, "off");
        assert_eq!(scaler.report(Some(&map), &acting()).advice, None, "nothing was looked at since");
    }

    #[test]
    fn an_interval_is_told_once_enough_has_come_of_what_was_foreseen() {
        let (mut scaler, mut scaling) = (Scaler::new(), acting());
        let mut learn = |scaler: &mut Scaler, buckets: std::ops::Range<u64>| {
            for bucket in buckets {
                let asked = 30_000 + bucket % 7 * 3_000;
                scaling.record(Observation { bucket, asked, covered: asked / 2, new_bytes: asked * 64 });
            }
            scaler.tick(1000 * OBSERVATION_SECONDS, &map(1), std::iter::empty(), &scaling);
            scaler.report(None, &scaling).forecasts
        };
        let two = learn(&mut scaler, 10..12);
        assert!(!two.is_empty());
        for one in &two {
            assert_eq!(one.bounds(), None, "two stretches were seen: {one:?}");
            assert_eq!(one.coverage().is_some(), one.ahead_s == 300, "one forecast has come: {one:?}");
        }
        let more = learn(&mut scaler, 12..60);
        for one in more.iter().filter(|one| one.ahead_s <= 3600) {
            assert!(one.bounds().is_some() && one.coverage().is_some(), "{one:?}");
            // As much is covered all the time: there is nothing to compare with.
            assert_eq!(one.mase().is_some(), one.figure != "reuse", "{one:?}");
            assert!((one.low_milli..=one.high_milli).contains(&one.value_milli), "{one:?}");
        }
    }

    #[test]
    fn what_is_always_the_same_is_scored_and_has_nothing_to_be_compared_with() {
        let (mut scaler, mut scaling) = (Scaler::new(), acting());
        for bucket in 10..60 {
            scaling.record(Observation { bucket, asked: 30_000, covered: 15_000, new_bytes: 1 << 20 });
        }
        scaler.tick(1000 * OBSERVATION_SECONDS, &map(1), std::iter::empty(), &scaling);
        let told = scaler.report(None, &scaling).forecasts;
        assert!(!told.is_empty());
        for one in told.iter().filter(|one| one.ahead_s <= 3600) {
            assert_eq!((one.mase(), one.coverage().is_some()), (None, true), "{one:?}");
        }
    }

    #[test]
    fn a_day_is_written_down_for_who_leads_next_where_all_can_read_it() {
        let (mut map, mut scaling) = (map(1), acting());
        let device = DeviceId::new(MemberId(1), 0);
        let mut asked = 0;
        let mut lead =
            |scaler: &mut Scaler, map: &ClusterMap, scaling: &mut Scaling, buckets: std::ops::Range<u64>| {
                let mut stretches = Vec::new();
                for second in buckets.start * OBSERVATION_SECONDS..=buckets.end * OBSERVATION_SECONDS {
                    asked += 100;
                    let load = report(asked);
                    for (command, _) in scaler.tick(second, map, [(device, &load)].into_iter(), scaling) {
                        match command {
                            Command::RecordLoad { observation } => scaling.record(observation),
                            Command::RecordStretch { stretch } => {
                                scaling.remember(stretch).expect("it is sound");
                                stretches.push(stretch.bucket);
                            }
                            _ => {}
                        }
                    }
                }
                stretches
            };
        let mut old = Scaler::new();
        map.level = Level::LINKS;
        assert_eq!(lead(&mut old, &map, &mut scaling, 100..102), [0_u64; 0], "some could not read it");
        map.level = Level::DAYS;
        assert_eq!(lead(&mut old, &map, &mut scaling, 102..110), [102, 103, 104, 105, 106, 107, 108, 109]);
        assert_eq!(old.autoscaler.known(), 10);
        // Another leads.
        let mut new = Scaler::new();
        assert_eq!(lead(&mut new, &map, &mut scaling, 110..111), [110]);
        assert_eq!(new.autoscaler.known(), 9, "those that were written down, and its own");
        assert_eq!(scaling.stretches().len(), 9);
        // A day later nothing of it counts.
        let mut late = Scaler::new();
        assert_eq!(lead(&mut late, &map, &mut scaling, 500..501), [500]);
        assert_eq!(late.autoscaler.known(), 1);
    }

    #[test]
    fn a_size_is_recommended_that_what_is_held_has_room_in() {
        let mut four = map(4);
        for member in four.members.values_mut() {
            let bytes = 6400;
            member.devices = vec![DeviceDescription {
                kind: "host".into(),
                device_bytes: bytes,
                host_bytes: 0,
                disk_bytes: 0,
            }];
        }
        let mut scaling = acting();
        let change = ScalingChange { down_cooldown_s: Some(0), ..Default::default() };
        scaling.change(&change, true).expect("it is allowed");
        // At most half of them leave at a time.
        for (used, known, size) in [(60, 4, 3), (20, 4, 2), (20, 3, 4), (100, 4, 2)] {
            let mut scaler = Scaler::new();
            for second in 0..=3 * OBSERVATION_SECONDS {
                // What is asked for again needs next to no room.
                let mut load = report(100 * second);
                load.reuse.counts = vec![0; load.reuse.counts.len()];
                load.reuse.counts[reuse_bucket(2)] = load.reuse.asked;
                load.held_blocks = load.blocks;
                load.frames = vec![FrameLoad { bytes: 64, used, spare: 100 - used }];
                let device = |id| DeviceId::new(MemberId(id), 0);
                let loads = (1..=known).map(|id| (device(id), &load));
                scaler.tick(1000 * OBSERVATION_SECONDS + second, &four, loads, &scaling);
            }
            let said = scaler.report(Some(&four), &scaling).advice.expect("it was decided");
            assert_eq!(said.size, size, "{used} of 100 frames used, {known} of 4 have told: {}", said.reason);
        }
    }

    #[test]
    fn a_cordoned_member_counts_as_one_that_serves_and_not_as_one_that_is_enough() {
        let mut four = map(4);
        assert_eq!(members(&four), (4, 0));
        let said = |map: &ClusterMap| {
            let mut scaler = Scaler::new();
            for second in 0..=OBSERVATION_SECONDS {
                let mut load = report(100 * second);
                load.reuse.counts = vec![0; load.reuse.counts.len()];
                load.reuse.counts[reuse_bucket(80)] = load.reuse.asked;
                let loads = (1..=4).map(|id| (DeviceId::new(MemberId(id), 0), &load));
                scaler.tick(1000 * OBSERVATION_SECONDS + second, map, loads, &acting());
            }
            scaler.report(Some(map), &Scaling::default()).advice.expect("it was decided")
        };
        let before = said(&four);
        four.members.get_mut(&MemberId(2)).expect("it is there").cordoned = true;
        let after = said(&four);
        assert_eq!((members(&four), after.needed), ((4, 1), before.needed + 1), "{}", after.reason);
        // What one device sees is still a fourth of all that is asked.
        assert_eq!(after.hit_rate_ppm, before.hit_rate_ppm);
    }

    #[test]
    fn a_new_leader_learns_two_weeks_in_slices_and_knows_as_much() {
        let (map, mut scaling) = (map(1), Scaling::default());
        for bucket in 1..300 {
            scaling.record(Observation { bucket, asked: 3000, covered: 10, new_bytes: 5 });
        }
        let mut scaler = Scaler::new();
        for second in 0..4 {
            scaler.tick(300 * OBSERVATION_SECONDS + second, &map, std::iter::empty(), &scaling);
        }
        assert_eq!(scaler.learnt, Some(256));
        scaler.lost_leadership();
        scaler.tick(300 * OBSERVATION_SECONDS + 5, &map, std::iter::empty(), &scaling);
        let report = scaler.report(Some(&map), &scaling);
        assert_eq!(
            (scaler.learnt, report.observations, report.policy),
            (Some(299), 299, ScalingPolicy::default())
        );
        let rate = &report.forecasts[0];
        assert!((9_900..10_100).contains(&rate.value_milli), "{rate:?}");
    }
}
