//! What was measured of one way: bytes a second, by the size of transfers, recent ones more than older ones.

use crate::choice::health::millis;
use kvhive_protocol::Moment;
use kvhive_protocol::links::RateReport;
use std::time::Duration;

/// Where a class of sizes ends and the next begins: small ones cost their latency, large ones what the wire takes.
const BOUNDS: [u64; 3] = [64 << 10, 1 << 20, 16 << 20];
pub(super) const CLASSES: usize = BOUNDS.len() + 1;
/// Of a mean, one part in so many is the newest measurement.
const NEWEST_ONE_IN: u128 = 8;

/// Returns the class of transfers of so many bytes.
pub(super) fn class(bytes: u64) -> usize {
    BOUNDS.iter().take_while(|bound| **bound <= bytes).count()
}

/// One measured rate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    pub(super) bytes_per_s: u64,
    pub(super) samples: u64,
    /// When the last was measured.
    pub(super) at: Moment,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Rates([Option<Rate>; CLASSES]);

impl Rates {
    pub(super) fn of(&self, class: usize) -> Option<Rate> {
        self.0[class]
    }

    pub(super) fn measured(&mut self, now: Moment, bytes: u64, took: Duration) {
        let nanos = took.as_nanos().max(1);
        let new = u64::try_from(u128::from(bytes) * 1_000_000_000 / nanos).unwrap_or(u64::MAX);
        let place = &mut self.0[class(bytes)];
        let (old, samples) = place.map_or((new, 0), |rate| (rate.bytes_per_s, rate.samples));
        // The first ones count alike: the very first was slow where it had to connect.
        let parts = NEWEST_ONE_IN.min(u128::from(samples) + 1);
        let mean = (u128::from(old) * (parts - 1) + u128::from(new)) / parts;
        let bytes_per_s = u64::try_from(mean).unwrap_or(u64::MAX);
        *place = Some(Rate { bytes_per_s, samples: samples + 1, at: now });
    }

    pub(super) fn report(&self, now: Moment) -> Vec<RateReport> {
        let report = |(class, rate): (usize, &Option<Rate>)| {
            rate.map(|rate| RateReport {
                below_bytes: BOUNDS.get(class).copied(),
                bytes_per_s: rate.bytes_per_s,
                samples: rate.samples,
                ago_ms: millis(now.since(rate.at)),
            })
        };
        self.0.iter().enumerate().filter_map(report).collect()
    }
}
