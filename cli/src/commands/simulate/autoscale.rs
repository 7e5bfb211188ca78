//! `kvhive simulate --autoscale`: a cluster that the autoscaler gives its size, next to one that always has the largest. Both
//! run the rules of a node over the same days of load; the autoscaler and its predictor are the coordinators' own.

use super::days::{Days, Shape};
use super::ideal::{Ground, Peak};
use crate::report;
use anyhow::{Context, Result, bail};
use clap::Args;
use kvhive_cache::policy::{Strategy, build};
use kvhive_cache::reuse::ReuseCurve;
use kvhive_cache::simulate::{Outcome, Rules, Setting, Trace, replay_resized};
use kvhive_control::autoscaler::{Autoscaler, Cluster};
use kvhive_control::predictor::{Figure, Predictor, Score};
use kvhive_protocol::scaling::{MAX_SIZE, OBSERVATION_SECONDS, Observation, ScalingMode, ScalingPolicy};
use kvhive_protocol::{DeviceId, MemberId};
use serde::Serialize;
use std::fmt;
use std::str::FromStr;

/// How ghosts and counts are hashed.
const SEED: u64 = 1;

/// The options of a cluster whose size changes.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Autoscale {
    /// Let the autoscaler choose the size of a cluster, up to --members, over --days of load that comes and goes with the time of
    /// day, and compare with a cluster that always has --members; --capacity-blocks is what those hold together
    #[arg(long, requires = "how_much", conflicts_with_all = ["sizes", "plot", "hints", "flat"])]
    autoscale: bool,
    /// The most members: 2 to 1024, or `peak` for as many as the busiest hour needs, which are the fewest that lose there no more than
    /// --keep lets go of the hits that a cluster without limit has
    #[arg(long, value_name = "N", default_value = "8", requires = "autoscale")]
    members: Members,
    /// Blocks that one member holds, in place of what all hold together
    #[arg(long, value_name = "N", requires = "autoscale", group = "how_much", value_parser = clap::value_parser!(u32).range(1..))]
    member_blocks: Option<u32>,
    /// Also say what the fixed cluster has of the hits of the busiest hour, and how few member hours could have kept as much, if all load had
    /// been known beforehand: runs a cluster of each size
    #[arg(long, requires = "autoscale")]
    least: bool,
    /// Days of load
    #[arg(long, value_name = "N", default_value_t = 3, requires = "autoscale",
          value_parser = clap::value_parser!(u32).range(1..=14))]
    days: u32,
    /// Load of the quietest minute of a day, by that of the busiest (0 to 1)
    #[arg(long, value_name = "P", default_value_t = 0.2, requires = "autoscale", value_parser = super::share)]
    night: f64,
    /// How load goes between its least and its most
    #[arg(long, value_name = "SHAPE", default_value = "wave", requires = "autoscale")]
    shape: Shape,
    /// How much of what all members would cover, over a day, is to be covered (0.5 to 1)
    #[arg(long, value_name = "P", default_value_t = 0.95, requires = "autoscale", value_parser = super::share)]
    keep: f64,
}

/// The most members.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Members {
    /// As many as the busiest hour needs.
    Peak,
    /// So many.
    Count(u32),
}

impl FromStr for Members {
    type Err = String;

    fn from_str(text: &str) -> Result<Members, String> {
        if text == "peak" {
            return Ok(Members::Peak);
        }
        let count = text.parse().map_err(|_| format!("{text:?} is neither a number nor `peak`"))?;
        if (2..=MAX_SIZE).contains(&count) {
            return Ok(Members::Count(count));
        }
        Err(format!("{count} is not from 2 to {MAX_SIZE}"))
    }
}

/// What one cluster came to.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub(crate) struct Run {
    /// Share of blocks that were covered.
    pub(crate) block_hit_rate: f64,
    /// Hours of all its members.
    pub(crate) device_hours: f64,
}

/// Two clusters over the same load.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(crate) struct Comparison {
    pub(crate) strategy: String,
    pub(crate) requests: u64,
    pub(crate) blocks: u64,
    pub(crate) days: u32,
    pub(crate) members: u32,
    pub(crate) capacity_blocks: u32,
    pub(crate) fixed: Run,
    pub(crate) autoscaled: Run,
    /// The busiest hour, from 0, and the share that the fixed cluster has of the hits which one without limit has then; null unless asked for.
    pub(crate) peak_hour: Option<usize>,
    pub(crate) peak_share: Option<f64>,
    /// Hit rate by that of the fixed cluster.
    pub(crate) hit_rate_share: f64,
    /// Hours of members by those of the fixed cluster.
    pub(crate) device_hours_share: f64,
    /// No sizes that keep as much as is to be kept come to fewer hours than this, by those of the fixed cluster; null unless asked for.
    pub(crate) least_hours_share: Option<f64>,
    /// Changes of size.
    pub(crate) changes: u32,
    /// Changes to more members after one to fewer, or the other way.
    pub(crate) turns: u32,
    /// How often load turned from more to less or back.
    pub(crate) load_turns: u32,
    /// Whether the size turned more often than load did and once more: from the most members, with which it began.
    pub(crate) oscillates: bool,
    pub(crate) fewest: u32,
    pub(crate) most: u32,
    /// How good forecasts of an hour ahead were of the rate: mean error by that of the same time a day before.
    pub(crate) forecast_mase: f64,
    /// Share of intervals that held; 0.9 is meant.
    pub(crate) forecast_coverage: f64,
    /// Members at each hour.
    pub(crate) by_hour: Vec<u32>,
}

impl Autoscale {
    /// Says whether it was asked for.
    pub(super) fn is_wanted(&self) -> bool {
        self.autoscale
    }

    /// Runs both clusters over days laid over `requests` and prints the report.
    pub(super) fn run(
        &self,
        requests: Vec<crate::trace::Request>,
        capacity: Option<u32>,
        strategy: Strategy,
        seed: u64,
        block_tokens: u32,
        json: bool,
    ) -> Result<()> {
        if !(0.5..=1.0).contains(&self.keep) {
            bail!("--keep is {}, allowed is 0.5 to 1", self.keep);
        }
        let days = Days { days: self.days, night: self.night, shape: self.shape, seed, block_tokens };
        let trace = days.lay_over(requests)?;
        let comparison = self.compare(&trace, days.turns(), capacity, strategy, block_tokens)?;
        if json {
            return report::print_json(&comparison);
        }
        print!("{comparison}");
        Ok(())
    }

    /// Returns the most members, and what one of them holds. `capacity` is what all hold together, where that was given.
    fn size(&self, ground: &Ground<'_>, peak: Option<Peak>, capacity: Option<u32>) -> Result<(u32, u32)> {
        let (members, blocks) = match (self.members, peak, self.member_blocks, capacity) {
            (Members::Count(members), _, Some(blocks), _) => (members, blocks),
            (Members::Count(members), _, None, Some(all)) => (members, all / members),
            (Members::Peak, Some(peak), Some(blocks), _) => {
                let members = ground.members_for(peak, self.keep).with_context(|| {
                    format!("the busiest hour needs more than {MAX_SIZE} members of {blocks} blocks: give --member-blocks more")
                })?;
                (members, blocks)
            }
            _ => bail!("--members peak needs --member-blocks"),
        };
        if blocks == 0 {
            bail!("--capacity-blocks is too small: each of {members} members needs one at least");
        }
        if members.checked_mul(blocks).is_none() {
            bail!("{members} members of {blocks} blocks are more than there may be");
        }
        Ok((members, blocks))
    }

    /// Runs both clusters over one trace.
    pub(super) fn compare(
        &self,
        trace: &Trace,
        load_turns: u32,
        capacity: Option<u32>,
        strategy: Strategy,
        block_tokens: u32,
    ) -> Result<Comparison> {
        let mut ground = Ground { trace, strategy, block_tokens, days: self.days, member_blocks: 0 };
        ground.member_blocks = self.member_blocks.unwrap_or(0);
        let peak = (self.least || self.members == Members::Peak).then(|| ground.peak());
        let (members, member_blocks) = self.size(&ground, peak, capacity)?;
        ground.member_blocks = member_blocks;
        let capacity = members * member_blocks;
        let always = ground.fixed(capacity);
        let wanted = (self.keep * always.outcome.hits as f64).ceil() as u64;
        let least_hours = self.least.then(|| ground.least_hours(members, wanted));
        let setting = Setting { capacity, rules: Rules::Leaf, block_tokens, shrunk_per_mille: 1000 };
        let mut cluster = Scaled::new(members, member_blocks, self.keep);
        let outcome =
            replay_resized(trace, &mut *build(strategy, capacity, SEED), setting, &mut |at, so_far| {
                let (turn, blocks) = trace.request(at);
                let capacity = cluster.at(turn.now.as_nanos() / 1_000_000_000, so_far);
                cluster.curve.asked(blocks.iter().map(|block| print_of(trace, *block)));
                capacity
            });
        cluster.end(&outcome, u64::from(self.days) * 86_400);
        let hours = f64::from(self.days) * 24.0 * f64::from(members);
        let fixed = Run { block_hit_rate: always.outcome.hit_rate(), device_hours: hours };
        let device_hours = cluster.member_seconds as f64 / 3600.0;
        let autoscaled = Run { block_hit_rate: outcome.hit_rate(), device_hours };
        let score = cluster.score();
        Ok(Comparison {
            strategy: strategy.to_string(),
            requests: outcome.requests,
            blocks: outcome.blocks,
            days: self.days,
            members,
            capacity_blocks: capacity,
            peak_hour: peak.map(|peak| peak.hour),
            peak_share: peak.map(|peak| always.hits_in(peak.hour) as f64 / (peak.most as f64).max(1.0)),
            fixed,
            autoscaled,
            hit_rate_share: autoscaled.block_hit_rate / fixed.block_hit_rate.max(f64::MIN_POSITIVE),
            device_hours_share: autoscaled.device_hours / fixed.device_hours,
            least_hours_share: least_hours.map(|hours| hours / fixed.device_hours),
            changes: cluster.changes.len() as u32,
            turns: cluster.turns(),
            load_turns,
            oscillates: cluster.turns() > load_turns + 1,
            fewest: cluster.by_hour.iter().copied().min().unwrap_or(0),
            most: cluster.by_hour.iter().copied().max().unwrap_or(0),
            forecast_mase: score.mase,
            forecast_coverage: score.coverage,
            by_hour: cluster.by_hour,
        })
    }
}

fn print_of(trace: &Trace, block: u32) -> u64 {
    let key = trace.key(block);
    u64::from_le_bytes(key.as_bytes()[..8].try_into().expect("a key has more than eight bytes"))
}

/// The cluster whose size changes, as coordinators see it.
struct Scaled {
    autoscaler: Autoscaler,
    predictor: Predictor,
    policy: ScalingPolicy,
    curve: ReuseCurve,
    /// Blocks that a member holds.
    member_blocks: u32,
    members: u32,
    /// One that is started now serves from the next stretch of time on.
    serving: u32,
    bucket: u64,
    blocks: u64,
    hits: u64,
    member_seconds: u64,
    changes: Vec<i64>,
    by_hour: Vec<u32>,
}

impl Scaled {
    fn new(members: u32, member_blocks: u32, keep: f64) -> Scaled {
        let policy = ScalingPolicy {
            mode: ScalingMode::Act,
            floor: 1,
            ceiling: members,
            keep_per_mille: (keep * 1000.0).round() as u16,
            ..ScalingPolicy::default()
        };
        Scaled {
            autoscaler: Autoscaler::new(),
            predictor: Predictor::new(),
            policy,
            curve: ReuseCurve::new(u64::from(members * member_blocks)),
            member_blocks,
            members,
            serving: members,
            bucket: 0,
            blocks: 0,
            hits: 0,
            member_seconds: 0,
            changes: Vec::new(),
            by_hour: Vec::new(),
        }
    }

    /// Time has come to so many seconds. Returns how many blocks fit.
    fn at(&mut self, seconds: u64, so_far: &Outcome) -> u32 {
        while (self.bucket + 1) * OBSERVATION_SECONDS <= seconds {
            self.pass(so_far);
        }
        self.serving * self.member_blocks
    }

    fn end(&mut self, outcome: &Outcome, seconds: u64) {
        while self.bucket * OBSERVATION_SECONDS < seconds {
            self.pass(outcome);
        }
    }

    /// One stretch of time is over.
    fn pass(&mut self, so_far: &Outcome) {
        let (asked, covered) = (so_far.blocks - self.blocks, so_far.hits - self.hits);
        (self.blocks, self.hits) = (so_far.blocks, so_far.hits);
        let observation = Observation { bucket: self.bucket, asked, covered, new_bytes: asked - covered };
        self.predictor.update_pattern(&observation);
        // One curve stands for all: it was made for the most members.
        self.autoscaler.learn(self.policy.ceiling, DeviceId::new(MemberId(1), 0), self.curve.report());
        self.member_seconds += u64::from(self.members) * OBSERVATION_SECONDS;
        if (self.bucket * OBSERVATION_SECONDS).is_multiple_of(3600) {
            self.by_hour.push(self.members);
        }
        self.bucket += 1;
        self.serving = self.members;
        let now = self.bucket * OBSERVATION_SECONDS;
        let cluster = Cluster { members: self.members, ..Cluster::default() };
        let said = self.autoscaler.decide(now, cluster, &self.policy, &self.predictor);
        if said.size != self.members {
            self.changes.push(i64::from(said.size) - i64::from(self.members));
            self.members = said.size;
            self.serving = self.serving.min(said.size);
        }
    }

    fn turns(&self) -> u32 {
        self.changes.windows(2).filter(|two| two[0].signum() != two[1].signum()).count() as u32
    }

    fn score(&self) -> Score {
        self.predictor.score(Figure::Rate, 12)
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |share: f64| 100.0 * share;
        let (days, members, blocks) = (self.days, self.members, self.capacity_blocks);
        writeln!(f, "load          {} requests, {} blocks, over {days} days", self.requests, self.blocks)?;
        writeln!(
            f,
            "cluster       {}, at most {members} members of {} blocks",
            self.strategy,
            blocks / members
        )?;
        if let (Some(hour), Some(share)) = (self.peak_hour, self.peak_share) {
            let (hour, day) = (hour % 24, hour / 24 + 1);
            let share = percent(share);
            writeln!(
                f,
                "busiest hour  hour {hour} of day {day}: fixed has {share:.2} % of the hits that one without limit has"
            )?;
        }
        let (fixed, own) = (&self.fixed, &self.autoscaled);
        writeln!(
            f,
            "hit rate      {:.2} %, fixed {:.2} %: {:.2} % of it",
            percent(own.block_hit_rate),
            percent(fixed.block_hit_rate),
            percent(self.hit_rate_share)
        )?;
        writeln!(
            f,
            "member hours  {:.1}, fixed {:.1}: {:.2} % of it",
            own.device_hours,
            fixed.device_hours,
            percent(self.device_hours_share)
        )?;
        if let Some(least) = self.least_hours_share {
            writeln!(
                f,
                "least hours   none that keep as much come to less than {:.2} % of it",
                percent(least)
            )?;
        }
        writeln!(
            f,
            "size          {} to {}, {} changes, {} turns where load has {}: {}",
            self.fewest,
            self.most,
            self.changes,
            self.turns,
            self.load_turns,
            if self.oscillates { "it oscillates" } else { "no oscillation" }
        )?;
        writeln!(
            f,
            "forecast      an hour ahead: {:.2} of the error of yesterday's, {:.1} % of intervals held (90 % meant)",
            self.forecast_mase,
            percent(self.forecast_coverage)
        )?;
        for (day, hours) in self.by_hour.chunks(24).enumerate() {
            let sizes: Vec<String> = hours.iter().map(u32::to_string).collect();
            writeln!(f, "day {:<10}{}", day + 1, sizes.join(" "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "autoscale_test.rs"]
mod tests;
