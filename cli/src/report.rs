//! Reports: numbers for people as a table, the same numbers for machines as JSON.

use comfy_table::{ColumnConstraint, Width};
pub(crate) use kvhive_protocol::{counted, counted_are};
use serde::Serialize;
use std::fmt::Write;
use std::io::{self, StdoutLock};

/// How the system words that whoever was to read has gone.
pub(crate) const NOBODY_READS: &str = "Broken pipe";

/// Standard output for whoever writes much of it: as with printing, the command ends without a fuss when nobody reads any further.
pub(crate) struct Output(StdoutLock<'static>);

impl Output {
    /// Takes standard output.
    pub(crate) fn lock() -> Output {
        Output(io::stdout().lock())
    }
}

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        io::Write::write(&mut self.0, bytes).inspect_err(leave_quietly)
    }

    fn flush(&mut self) -> io::Result<()> {
        io::Write::flush(&mut self.0).inspect_err(leave_quietly)
    }
}

/// Ends the command if nobody reads any further.
fn leave_quietly(error: &io::Error) {
    if error.kind() == io::ErrorKind::BrokenPipe {
        std::process::exit(0);
    }
}

/// Prints `value` as one JSON document.
///
/// # Errors
/// When standard output is closed.
pub(crate) fn print_json<T: Serialize>(value: &T) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Makes a table with these column names, in the house's plain style.
pub(crate) fn table(columns: &[&str]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    table.set_header(columns);
    table
}

/// Has a table break the lines of these columns before they are longer than `width`.
pub(crate) fn narrow(table: &mut comfy_table::Table, columns: &[usize], width: u16) {
    for at in columns {
        if let Some(column) = table.column_mut(*at) {
            column.set_constraint(ColumnConstraint::UpperBoundary(Width::Fixed(width)));
        }
    }
}

/// Prints a table without the spaces that pad its last column.
pub(crate) fn print_table(table: &comfy_table::Table) {
    let mut text = String::new();
    for line in table.lines() {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}", line.trim_end());
    }
    print!("{text}");
}

/// Writes a number of bytes in the unit that fits it.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// Writes a time of day, given in milliseconds since 1970, in universal time.
pub(crate) fn utc(at_ms: u64) -> String {
    let at = std::time::UNIX_EPOCH.checked_add(std::time::Duration::from_millis(at_ms));
    // The year 9999 ends what the format can say.
    let at = at.filter(|_| at_ms < 253_402_300_800_000).unwrap_or(std::time::UNIX_EPOCH);
    humantime::format_rfc3339_millis(at).to_string().replace('T', " ")
}

/// Writes nanoseconds in the unit that fits them.
pub(crate) fn duration(nanos: u64) -> String {
    match nanos {
        0..10_000 => format!("{nanos} ns"),
        10_000..10_000_000 => format!("{:.0} µs", nanos as f64 / 1e3),
        10_000_000..10_000_000_000 => format!("{:.1} ms", nanos as f64 / 1e6),
        _ => format!("{:.2} s", nanos as f64 / 1e9),
    }
}

/// Latencies of one kind of call, in nanoseconds; three significant digits.
pub(crate) struct Latencies(hdrhistogram::Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        Latencies::new()
    }
}

impl Latencies {
    /// Makes an empty record of calls up to ten minutes.
    pub(crate) fn new() -> Self {
        const TEN_MINUTES_NS: u64 = 600_000_000_000;
        Latencies(
            hdrhistogram::Histogram::new_with_bounds(1, TEN_MINUTES_NS, 3).expect("the bounds are in order"),
        )
    }

    /// Records one call.
    pub(crate) fn record(&mut self, took: std::time::Duration) {
        self.0.saturating_record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1));
    }

    /// Adds another record's calls.
    pub(crate) fn merge(&mut self, other: &Latencies) {
        self.0.add(&other.0).expect("all records have the same bounds");
    }

    /// Says whether there were no calls.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the latency that this share of calls stayed within, in nanoseconds; 0 when there were none.
    pub(crate) fn quantile(&self, share: f64) -> u64 {
        if self.0.is_empty() { 0 } else { self.0.value_at_quantile(share) }
    }

    /// Returns p50, p95 and p99 in milliseconds.
    pub(crate) fn summary(&self) -> Summary {
        let ms = |share| self.quantile(share) as f64 / 1e6;
        Summary { p50: ms(0.50), p95: ms(0.95), p99: ms(0.99) }
    }
}

/// Latencies as reports give them, in milliseconds.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub(crate) struct Summary {
    /// Half of the calls stayed within this.
    pub(crate) p50: f64,
    /// 95 of 100 calls.
    pub(crate) p95: f64,
    /// 99 of 100 calls.
    pub(crate) p99: f64,
}

impl Summary {
    /// Writes the three for a person.
    pub(crate) fn line(&self) -> String {
        let show = |ms: f64| duration((ms * 1e6) as u64);
        format!("p50 {}   p95 {}   p99 {}", show(self.p50), show(self.p95), show(self.p99))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn units_fit_their_numbers() {
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1 << 20), "1.0 MiB");
        assert_eq!(duration(1_500), "1500 ns");
        assert_eq!(duration(2_500_000), "2500 µs");
        assert_eq!(duration(25_000_000), "25.0 ms");
    }

    #[test]
    fn quantiles_of_nothing_are_zero_and_of_something_are_close() {
        let mut latencies = Latencies::new();
        assert_eq!(latencies.summary(), Summary { p50: 0.0, p95: 0.0, p99: 0.0 });
        for ms in 1..=100 {
            latencies.record(Duration::from_millis(ms));
        }
        let summary = latencies.summary();
        assert!((summary.p50 - 50.0).abs() < 0.5 && (summary.p99 - 99.0).abs() < 0.5, "{summary:?}");
    }
}
