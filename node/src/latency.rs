//! Latencies in buckets that add up across nodes: every octave of microseconds is parted in four (log-linear, as in HDR
//! histograms: Tene, 2012), and a quantile is told as the end of its bucket, so it is too high by a quarter at most. What takes
//! longer than all buckets counts in the last. Recording is one atomic addition.

use serde::Serialize;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets per octave.
const PARTS: usize = 4;
/// Octaves: from 1 µs to 134 s.
const OCTAVES: usize = 27;
const BUCKETS: usize = OCTAVES * PARTS;

/// What is recorded into, from any thread.
#[derive(Debug)]
pub(crate) struct LatencyRecorder {
    counts: [AtomicU64; BUCKETS],
    sum_us: AtomicU64,
}

impl Default for LatencyRecorder {
    fn default() -> Self {
        LatencyRecorder { counts: [const { AtomicU64::new(0) }; BUCKETS], sum_us: AtomicU64::new(0) }
    }
}

/// Returns the bucket of a latency: its octave, and the two bits after the leading one.
fn bucket(us: u64) -> usize {
    let us = us.max(1);
    let octave = us.ilog2() as usize;
    let part = if octave >= 2 { us >> (octave - 2) & 3 } else { us << (2 - octave) & 3 };
    (octave * PARTS + part as usize).min(BUCKETS - 1)
}

/// Returns the microseconds below which a bucket's latencies are.
fn upper(bucket: usize) -> f64 {
    let (octave, part) = (bucket / PARTS, bucket % PARTS);
    (1u64 << octave) as f64 * (1.0 + (part + 1) as f64 / PARTS as f64)
}

impl LatencyRecorder {
    pub(crate) fn record(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.counts[bucket(us)].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> Latencies {
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        Latencies { counts, sum_us: self.sum_us.load(Ordering::Relaxed) }
    }
}

/// Latencies of one kind of request. Those of several nodes add up by [`Latencies::merge`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Latencies {
    counts: Vec<u64>,
    sum_us: u64,
}

impl Default for Latencies {
    fn default() -> Self {
        Latencies { counts: vec![0; BUCKETS], sum_us: 0 }
    }
}

/// Latencies in short, in milliseconds; zeros when there were none.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct LatencySummary {
    /// The mean.
    pub avg: f64,
    /// Half of the requests stayed within this.
    pub p50: f64,
    /// 95 of 100 requests.
    pub p95: f64,
    /// 99 of 100 requests.
    pub p99: f64,
}

impl Latencies {
    /// Returns how many requests there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Adds another node's.
    pub fn merge(&mut self, other: &Latencies) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(own, other)| *own += other);
        self.sum_us = self.sum_us.saturating_add(other.sum_us);
    }

    /// Has each count for half from now on.
    pub(crate) fn halve(&mut self) {
        self.counts.iter_mut().for_each(|count| *count = count.div_ceil(2));
        self.sum_us /= 2;
    }

    /// Returns those that came after `earlier` was read of the same recorder.
    pub(crate) fn since(&self, earlier: &Latencies) -> Latencies {
        let counts = self.counts.iter().zip(&earlier.counts).map(|(all, before)| all.saturating_sub(*before));
        Latencies { counts: counts.collect(), sum_us: self.sum_us.saturating_sub(earlier.sum_us) }
    }

    /// Returns the time that this share of the requests stayed within; none when there were no requests.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let wanted = (self.count() as f64 * share.clamp(0.0, 1.0)).ceil().max(1.0) as u64;
        let mut seen = 0;
        let within = |count: &u64| {
            seen += count;
            seen >= wanted
        };
        self.counts.iter().position(within).map(|bucket| Duration::from_secs_f64(upper(bucket) / 1e6))
    }

    /// Returns them in short.
    pub fn summary(&self) -> LatencySummary {
        let ms = |share| self.quantile(share).map_or(0.0, |within| within.as_secs_f64() * 1e3);
        let avg = self.sum_us as f64 / 1e3 / self.count().max(1) as f64;
        LatencySummary { avg, p50: ms(0.5), p95: ms(0.95), p99: ms(0.99) }
    }

    /// Writes them as one labelled histogram of Prometheus' text format, one bucket an octave, in seconds.
    pub(crate) fn render(&self, name: &str, label: &str, out: &mut String) {
        let mut below = 0;
        // The last octave also has all that took longer: it has no end to tell but infinity.
        for octave in 0..OCTAVES - 1 {
            below += self.counts[octave * PARTS..(octave + 1) * PARTS].iter().sum::<u64>();
            let le = upper(octave * PARTS + PARTS - 1) / 1e6;
            writeln!(out, "{name}_bucket{{{label},le=\"{le}\"}} {below}").expect("a String takes all");
        }
        let (count, sum) = (self.count(), self.sum_us as f64 / 1e6);
        writeln!(
            out,
            "{name}_bucket{{{label},le=\"+Inf\"}} {count}\n{name}_sum{{{label}}} {sum}\n{name}_count{{{label}}} {count}"
        )
        .expect("a String takes all");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_what_its_bounds_say() {
        for us in (1..5000).chain([65_535, 65_536, 1 << 26, (1 << 27) - 1]) {
            let at = bucket(us);
            assert!((us as f64) < upper(at), "{us} µs is in bucket {at}, below {}", upper(at));
            assert!(at == 0 || us as f64 >= upper(at - 1) || us < 4, "{us} µs is not in the bucket before");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        assert_eq!(bucket(0), 0);
    }

    #[test]
    fn quantiles_of_two_nodes_are_those_of_all_their_requests() {
        let (fast, slow) = (LatencyRecorder::default(), LatencyRecorder::default());
        (0..900).for_each(|_| fast.record(Duration::from_micros(100)));
        (0..100).for_each(|_| slow.record(Duration::from_millis(50)));
        let mut both = fast.read();
        both.merge(&slow.read());
        let near = |share: f64, ms: f64| {
            let found = both.quantile(share).expect("there are some").as_secs_f64() * 1e3;
            assert!(found >= ms && found <= ms * 1.26, "{share}: {found} instead of {ms} ms");
        };
        near(0.5, 0.1);
        near(0.9, 0.1);
        near(0.95, 50.0);
        assert_eq!(both.count(), 1000);
        assert!((both.summary().avg - 5.09).abs() < 1e-9);
        assert_eq!(Latencies::default().summary(), LatencySummary::default());
    }

    #[test]
    fn the_text_has_growing_buckets_and_ends_with_all() {
        let recorder = LatencyRecorder::default();
        [3, 70, 70, 9000].into_iter().for_each(|us| recorder.record(Duration::from_micros(us)));
        let mut text = String::new();
        recorder.read().render("x_seconds", "verb=\"fetch\"", &mut text);
        let counts: Vec<u64> = text
            .lines()
            .filter(|line| line.contains("_bucket"))
            .map(|line| line.rsplit(' ').next().and_then(|count| count.parse().ok()).expect("a count"))
            .collect();
        assert!(counts.is_sorted() && counts.last() == Some(&4));
        let long = LatencyRecorder::default();
        long.record(Duration::from_secs(1000));
        let mut of_long = String::new();
        long.read().render("y_seconds", "verb=\"fetch\"", &mut of_long);
        let counted: Vec<&str> = of_long.lines().filter(|line| line.ends_with(" 1")).collect();
        assert_eq!(
            counted,
            ["y_seconds_bucket{verb=\"fetch\",le=\"+Inf\"} 1", "y_seconds_count{verb=\"fetch\"} 1"]
        );
        assert!(text.contains("x_seconds_bucket{verb=\"fetch\",le=\"0.000004\"} 1\n"), "{text}");
        assert!(text.ends_with("x_seconds_count{verb=\"fetch\"} 4\n"));
    }
}
