//! `kvhive bench`: speed and cost side by side with a baseline measured in the same run, interleaved. The JSON form is
//! fixed by the design: `{"bench", "machine", "rows": [...]}`.

mod balance;
mod baseline;
mod codec;
mod cpu;
mod data;
mod disk;
mod gpu;
mod guests;
mod hostile;
mod join;
mod matching;
mod memory;
mod metadata;
mod overload;
mod placement;
mod policy;
mod private;
mod python;
mod resident;
mod shard;
mod slow;
mod stored;

use crate::report;
use anyhow::Result;
use clap::{Args, Subcommand};
use kvhive_config::Bytes;
use serde::Serialize;
use std::path::PathBuf;

pub(crate) use baseline::serve as serve_baseline;

/// Measure this build on this machine, next to a baseline in the same run
#[derive(Args, Debug)]
pub(crate) struct Bench {
    #[command(subcommand)]
    kind: Kind,
    /// Print the report as JSON
    #[arg(long, global = true)]
    json: bool,
    /// Interleaved runs of ours and the baseline; medians are reported
    #[arg(long, global = true, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
}

#[derive(Subcommand, Clone, Debug)]
enum Kind {
    /// Fetch and store over loopback, against a raw TCP blast (throughput, CPU per GB) and ping-pong (latency)
    Data {
        /// Encrypt ours, as `kvhive up --tls` does; the baseline stays as it is
        #[arg(long)]
        tls: bool,
    },
    /// Fetch from two replicas when one of them is slow, against the same when it is not
    Reads,
    /// Fetch the same blocks from eight ranks near one node that is no replica of most of them, against the same where each asks the
    /// replicas: bytes that leave these, and speed
    Guests,
    /// Fetch at three times the rate that a node can serve, against its peak, against four fifths of it, and afterwards
    Overload,
    /// Fetch while a node joins a cluster of two, against the same before it comes; blocks moved, against its share
    Join,
    /// Fetch by Zipf's law (1.1) from eight devices, with one and with two replicas of each slot: what the busiest gives by the mean of all
    /// after `kvhive balance`, against the same before it. A run takes minutes: what devices report must follow after each change
    Balance,
    /// Match through the network and within one shard, against raw TCP echo and a hash map; what a match leaves for later, and a
    /// shard's store with its eviction
    Match,
    /// Committed map changes on three coordinators with fsync on, against fdatasync; leader kill to next write
    Metadata {
        /// A command that commits to another system from --proposers clients for --seconds, values of --value-bytes, and prints
        /// commits a second and their 99th percentile in milliseconds: measured in turn with ours, instead of fdatasync and kills
        #[arg(long, value_name = "COMMAND", requires = "baseline_name")]
        baseline: Option<String>,
        /// What the baseline is called
        #[arg(long, value_name = "NAME", requires = "baseline")]
        baseline_name: Option<String>,
    },
    /// A node's memory after a million stores into a cache ten times too small, against its configuration
    Memory,
    /// A node's memory under 10,000 idle connections, 1,000 readers that do not read and 100,000 frames that claim 4 GiB, against its
    /// configuration
    Hostile,
    /// What each strategy costs with a million blocks, and what it hits, against the exact offline optimum
    Policy {
        /// Traces of JSON lines; without one the built-in workload is taken
        #[arg(value_name = "TRACE")]
        traces: Vec<PathBuf>,
    },
    /// A disk tier's reads, verified, against a plain sequential direct read of the same file
    Disk {
        /// Where the files are made, and deleted again [default: the folder for temporary files]
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// Bytes of each file
        #[arg(long, value_name = "SIZE", default_value = "1GiB")]
        size: Bytes,
    },
    /// How long it takes to find where every slot belongs, against rendezvous hashing over every pair of slot and device
    Placement,
    /// Fetch and store by the Python package, blocking and awaited, against the Rust client on the same cluster
    Python {
        /// The interpreter of an environment in which the package is installed
        #[arg(long, value_name = "FILE", default_value = "python3")]
        python: PathBuf,
    },
    /// A GPU's copies by the size of their pieces, an engine's pages to blocks and back by each codec, and blocks' digests, against one
    /// large copy of as many bytes; with --nccl, pairs of GPUs instead
    Gpu {
        /// Which one, as CUDA numbers them
        #[arg(long, value_name = "NUMBER", default_value_t = 0)]
        gpu: u32,
        /// Bytes of one copy, of which the GPU's memory holds two and the host's one
        #[arg(long, value_name = "SIZE", default_value = "1GiB")]
        bytes: Bytes,
        /// Draw speed against bytes of a piece, with what one large copy reaches as ceilings
        #[arg(long, value_name = "FILE.svg")]
        plot: Option<PathBuf>,
        /// Measure a pair by NCCL, with the next GPU or, where there is one alone, both ends on it: transfers by their size against TCP over
        /// loopback and against copies within the GPU, how long pairs take to come and go, and the memory that they take
        #[arg(long, conflicts_with_all = ["bytes", "plot"])]
        nccl: bool,
    },
    /// Each codec's speed on one core, against memcpy; what it stores of fp16 and does to attention's output
    Codec,
}

/// A whole report.
#[derive(Serialize, Debug)]
pub(crate) struct Report {
    bench: &'static str,
    machine: Machine,
    rows: Vec<Row>,
}

/// Where it was measured.
#[derive(Serialize, Debug)]
pub(crate) struct Machine {
    cpu: String,
    cores: usize,
    memory_bytes: u64,
    kernel: String,
    load_1m: f64,
    build: &'static str,
}

/// One case: our median, the baseline's, and their ratio.
#[derive(Serialize, Debug)]
pub(crate) struct Row {
    case: String,
    unit: &'static str,
    ours: f64,
    baseline: f64,
    baseline_name: String,
    ratio: f64,
    p50: f64,
    p99: f64,
    runs: u32,
    /// What it is to be, where that was set.
    #[serde(skip_serializing_if = "Option::is_none")]
    bar: Option<Judged>,
}

/// What a row is to come to.
#[derive(Serialize, Clone, Copy, PartialEq, Debug)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bar {
    /// The ratio.
    AtLeast(f64),
    /// The ratio.
    AtMost(f64),
    /// Our figure, whatever the baseline's.
    OursAtMost(f64),
}

/// A bar, and whether it is met.
#[derive(Serialize, Clone, Copy, Debug)]
struct Judged {
    #[serde(flatten)]
    bar: Bar,
    met: bool,
}

impl Bar {
    /// Judges a ratio or our figure; where there is none, the bar is missed.
    fn judge(self, ratio: f64, ours: f64) -> Judged {
        let met = match self {
            Bar::AtLeast(least) => ratio >= least,
            Bar::AtMost(most) => ratio <= most,
            Bar::OursAtMost(most) => ours <= most,
        };
        Judged { bar: self, met }
    }
}

impl std::fmt::Display for Judged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (word, bound) = match self.bar {
            Bar::AtLeast(least) => ("at least", least),
            Bar::AtMost(most) => ("at most", most),
            Bar::OursAtMost(most) => ("ours at most", most),
        };
        write!(f, "{word} {bound:.2}: {}", if self.met { "met" } else { "missed" })
    }
}

impl Row {
    /// Makes a row from one figure a run of ours and the baseline, taken in turn. `ratio` is our median over the
    /// baseline's.
    pub(crate) fn of_runs(
        case: &str,
        unit: &'static str,
        ours: &[f64],
        baseline: &[f64],
        baseline_name: &str,
    ) -> Row {
        let (mine, theirs) = (quantile(ours, 0.5), quantile(baseline, 0.5));
        Row {
            case: case.to_owned(),
            unit,
            ours: mine,
            baseline: theirs,
            baseline_name: baseline_name.to_owned(),
            ratio: mine / theirs,
            p50: mine,
            p99: quantile(ours, 0.99),
            runs: ours.len() as u32,
            bar: None,
        }
    }

    /// Says what it is to come to.
    pub(crate) fn with_bar(self, bar: Bar) -> Row {
        Row { bar: Some(bar.judge(self.ratio, self.ours)), ..self }
    }

    /// Makes a row whose p50 and p99 are those of single calls rather than of runs.
    pub(crate) fn with_calls(mut self, p50: f64, p99: f64) -> Row {
        (self.p50, self.p99) = (p50, p99);
        self
    }
}

/// Returns the value that this share of `values` does not exceed (nearest rank); NaN when there are none.
pub(crate) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    if sorted.is_empty() {
        return f64::NAN;
    }
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

impl Bench {
    /// Runs the benchmark and prints its report.
    ///
    /// # Errors
    /// When a private cluster cannot be started or a call fails.
    pub(crate) fn run(self) -> Result<()> {
        if cfg!(debug_assertions) {
            eprintln!("warning: this is a debug build; its figures mean nothing");
        }
        let (bench, rows) = match &self.kind {
            Kind::Data { tls } => ("data", data::run(self.runs, *tls)?),
            Kind::Reads => ("reads", vec![slow::run(self.runs)?]),
            Kind::Guests => ("guests", guests::run(self.runs)?),
            Kind::Overload => ("overload", overload::run(self.runs)?),
            Kind::Join => ("join", join::run(self.runs)?),
            Kind::Balance => ("balance", balance::run(self.runs)?),
            Kind::Match => ("match", matching::run(self.runs)?),
            Kind::Metadata { baseline: Some(command), baseline_name: Some(name) } => {
                ("metadata", metadata::against(self.runs, command, name)?)
            }
            Kind::Metadata { .. } => ("metadata", metadata::run(self.runs)?),
            Kind::Memory => ("memory", memory::run()?),
            Kind::Hostile => ("hostile", hostile::run()?),
            Kind::Policy { traces } => ("policy", policy::run(self.runs, traces)?),
            Kind::Disk { dir, size } => ("disk", disk::run(self.runs, dir.as_deref(), size.0)?),
            Kind::Placement => ("placement", placement::run(self.runs)?),
            Kind::Python { python } => ("python", python::run(self.runs, python)?),
            Kind::Gpu { gpu, nccl: true, .. } => ("gpu-nccl", gpu::nccl::run(self.runs, *gpu)?),
            Kind::Gpu { gpu, bytes, plot, .. } => {
                ("gpu", gpu::run(self.runs, *gpu, *bytes, plot.as_deref())?)
            }
            Kind::Codec => ("codec", codec::run(self.runs)?),
        };
        let report = Report { bench, machine: Machine::this(), rows };
        if self.json {
            return report::print_json(&report);
        }
        let has_bars = report.rows.iter().any(|row| row.bar.is_some());
        let bar = has_bars.then_some("RATIO IS TO BE");
        let columns = ["CASE", "OURS", "BASELINE", "UNIT", "RATIO", "P50", "P99", "BASELINE IS"];
        let mut table = report::table(&columns.into_iter().chain(bar).collect::<Vec<_>>());
        for row in &report.rows {
            let bar = row.bar.map(|bar| bar.to_string()).unwrap_or_default();
            let fields = [
                row.case.clone(),
                show(row.ours),
                show(row.baseline),
                row.unit.to_owned(),
                format!("{:.2}", row.ratio),
                show(row.p50),
                show(row.p99),
                row.baseline_name.clone(),
            ];
            table.add_row(fields.into_iter().chain(has_bars.then_some(bar)));
        }
        report::print_table(&table);
        Ok(())
    }
}

fn show(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

impl Machine {
    /// Looks at this machine.
    pub(crate) fn this() -> Machine {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpu = read("/proc/cpuinfo")
            .lines()
            .find_map(|line| {
                line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name.to_owned())
            })
            .unwrap_or_else(|| std::env::consts::ARCH.to_owned());
        let memory_kib: u64 = read("/proc/meminfo")
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok())
            .unwrap_or(0);
        Machine {
            cpu,
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory_kib * 1024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load_1m: read("/proc/loadavg")
                .split(' ')
                .next()
                .and_then(|load| load.parse().ok())
                .unwrap_or(0.0),
            build: if cfg!(debug_assertions) { "debug" } else { "release" },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_nearest_ranks() {
        let values = [5.0, 1.0, 4.0, 2.0, 3.0];
        assert_eq!(
            (quantile(&values, 0.5), quantile(&values, 0.99), quantile(&values, 0.0)),
            (3.0, 5.0, 1.0)
        );
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn a_row_has_the_fields_that_machines_read() {
        let row = Row::of_runs("fetch-1MiB", "GB/s", &[1.0, 3.0, 2.0], &[4.0, 4.0, 4.0], "raw TCP blast");
        let json = serde_json::to_value(&row).expect("plain numbers");
        let mut fields: Vec<&str> = json.as_object().expect("an object").keys().map(String::as_str).collect();
        fields.sort_unstable();
        assert_eq!(
            fields,
            ["baseline", "baseline_name", "case", "ours", "p50", "p99", "ratio", "runs", "unit"]
        );
        assert_eq!(row.ratio, 0.5);
        let json = serde_json::to_value(row.with_bar(Bar::AtMost(2.0))).expect("plain numbers");
        assert_eq!(json["bar"], serde_json::json!({"at_most": 2.0, "met": true}));
        let row = Row::of_runs("leader-kill", "s", &[0.8], &[0.4], "a timeout");
        let json = serde_json::to_value(row.with_bar(Bar::OursAtMost(0.7))).expect("plain numbers");
        assert_eq!(json["bar"], serde_json::json!({"ours_at_most": 0.7, "met": false}));
    }

    #[test]
    fn a_bar_says_whether_it_is_met_also_where_there_is_no_ratio() {
        for (bar, ratio, says) in [
            (Bar::AtLeast(0.9), 0.9, "at least 0.90: met"),
            (Bar::AtLeast(0.9), 0.89, "at least 0.90: missed"),
            (Bar::AtMost(2.0), 2.0, "at most 2.00: met"),
            (Bar::AtMost(2.0), 2.01, "at most 2.00: missed"),
            (Bar::AtMost(2.0), f64::NAN, "at most 2.00: missed"),
        ] {
            assert_eq!(bar.judge(ratio, 1.0).to_string(), says);
        }
        assert_eq!(Bar::OursAtMost(1.0).judge(3.0, 1.0).to_string(), "ours at most 1.00: met");
        assert_eq!(Bar::OursAtMost(1.0).judge(0.5, 1.01).to_string(), "ours at most 1.00: missed");
    }
}
