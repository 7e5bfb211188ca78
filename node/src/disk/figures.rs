//! What a device's disk has done, for metrics.

use super::place::ReadError;
use super::store::Store;
use std::sync::atomic::{AtomicU64, Ordering};

/// Why a record was not served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Bad {
    /// The disk did not give it.
    Io,
    /// Nothing is written where it should be.
    Missing,
    /// Its page is damaged.
    Damaged,
    /// It is another block's, of another record or secret, or of a key that is not here.
    Foreign,
    /// Its bytes are not those that its page vouches for.
    Torn,
    /// It is whole, and not what this node wrote there.
    Forged,
}

impl Bad {
    /// All of them.
    pub(crate) const ALL: [Bad; 6] =
        [Bad::Io, Bad::Missing, Bad::Damaged, Bad::Foreign, Bad::Torn, Bad::Forged];

    const fn name(self) -> &'static str {
        match self {
            Bad::Io => "io",
            Bad::Missing => "missing",
            Bad::Damaged => "damaged",
            Bad::Foreign => "foreign",
            Bad::Torn => "torn",
            Bad::Forged => "forged",
        }
    }
}

/// Counters since the node started.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    pub(super) reads: AtomicU64,
    pub(super) read_bytes: AtomicU64,
    pub(super) writes: AtomicU64,
    pub(super) written_bytes: AtomicU64,
    pub(super) write_failures: AtomicU64,
    pub(super) bad: [AtomicU64; Bad::ALL.len()],
    /// Reads that were misses for want of room or time.
    pub(super) late: AtomicU64,
    pub(super) closed: AtomicU64,
    pub(super) probes: AtomicU64,
    /// Records whose blocks were there again after a start.
    pub(super) restored: AtomicU64,
    /// Whole records of tenants or eras that are no more, or of blocks that a later record has.
    pub(super) ended: AtomicU64,
}

pub(super) fn add(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

impl Figures {
    pub(super) fn count_bad(&self, error: &ReadError) {
        match error {
            ReadError::Bad(bad, _) => add(&self.bad[*bad as usize], 1),
            ReadError::Late => add(&self.late, 1),
        }
    }

    /// Returns how often a closed disk was tried.
    #[cfg(test)]
    pub(crate) fn probes(&self) -> u64 {
        self.probes.load(Ordering::Relaxed)
    }

    /// Returns how many records were not served, for one reason.
    #[cfg(test)]
    pub(crate) fn bad(&self, bad: Bad) -> u64 {
        self.bad[bad as usize].load(Ordering::Relaxed)
    }

    /// Returns how many blocks were read.
    #[cfg(test)]
    pub(crate) fn blocks_read(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// Returns how many blocks were there again after a start.
    #[cfg(test)]
    pub(crate) fn restored(&self) -> u64 {
        self.restored.load(Ordering::Relaxed)
    }
}

/// Tells a device's disk to whoever collects metrics.
pub(crate) fn record(device: &str, store: &Store) {
    let figures = &store.figures;
    let is_direct = if store.is_direct() { "true" } else { "false" };
    let labels = [
        ("device", device.to_owned()),
        ("backend", store.backend_name().to_owned()),
        ("direct", is_direct.to_owned()),
    ];
    metrics::gauge!("kvhive_node_disk_info", &labels).set(1.0);
    for (name, value) in [
        ("kvhive_node_disk_open", u64::from(store.takes_blocks())),
        ("kvhive_node_disk_waiting_transfers", store.waiting() as u64),
    ] {
        metrics::gauge!(name, "device" => device.to_owned()).set(value as f64);
    }
    for (name, counter) in [
        ("kvhive_node_disk_closed_total", &figures.closed),
        ("kvhive_node_disk_probes_total", &figures.probes),
        ("kvhive_node_disk_write_failures_total", &figures.write_failures),
        ("kvhive_node_disk_late_reads_total", &figures.late),
        ("kvhive_node_disk_restored_blocks_total", &figures.restored),
        ("kvhive_node_disk_ended_records_total", &figures.ended),
    ] {
        metrics::counter!(name, "device" => device.to_owned()).absolute(counter.load(Ordering::Relaxed));
    }
    for (way, blocks, bytes) in
        [("read", &figures.reads, &figures.read_bytes), ("write", &figures.writes, &figures.written_bytes)]
    {
        let labels = [("device", device.to_owned()), ("way", way.to_owned())];
        metrics::counter!("kvhive_node_disk_blocks_total", &labels).absolute(blocks.load(Ordering::Relaxed));
        metrics::counter!("kvhive_node_disk_bytes_total", &labels).absolute(bytes.load(Ordering::Relaxed));
    }
    for bad in Bad::ALL {
        let labels = [("device", device.to_owned()), ("reason", bad.name().to_owned())];
        let total = figures.bad[bad as usize].load(Ordering::Relaxed);
        metrics::counter!("kvhive_node_disk_bad_records_total", &labels).absolute(total);
    }
}
