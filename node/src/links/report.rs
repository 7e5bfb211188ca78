//! What is told of links: to operators, and as metrics.

use super::{Links, lock};
use crate::stats::TransportUse;
use kvhive_protocol::DeviceId;
use kvhive_protocol::links::{RateReport, SetReport, TransportKind, TransportReport};
use kvhive_protocol::pairs::PairsReport;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

/// How a device of this node reaches another.
#[derive(Serialize, Debug)]
pub(crate) struct LinkFrom {
    /// `member/index` of this node's.
    source: String,
    /// `member/index` of the other.
    target: String,
    /// The other's node.
    node: String,
    /// By what the last batch went.
    transport: TransportKind,
    /// Why, in words.
    reason: String,
    /// What is known of each way that was taken.
    transports: Vec<TransportReport>,
}

/// How a device of this node gives several others the same.
#[derive(Serialize, Debug)]
pub(crate) struct SetFrom {
    /// `member/index` of this node's.
    source: String,
    /// `member/index` of the others.
    targets: Vec<String>,
    /// Whether the last batch went to all of them at once; else it went to each by its own way.
    at_once: bool,
    /// Why, in words.
    reason: String,
    /// Batches that all of them got at once, their bytes, counted once, and those that failed so.
    transfers: u64,
    bytes: u64,
    failures: u64,
    /// What was measured of them.
    rates: Vec<RateReport>,
    /// For how long it is not tried, in milliseconds, where it rests after failures.
    rests_ms: Option<u64>,
}

impl Links {
    /// Reports every set of devices that one of this node's has given the same.
    pub(crate) fn sets(&self) -> Vec<SetFrom> {
        let Some(serving) = self.view.serving() else { return Vec::new() };
        let now = self.view.now();
        let mut sets = Vec::new();
        for (choices, index) in self.choices.iter().zip(0..) {
            let source = DeviceId::new(serving.member, index);
            let told = lock(choices).report_sets(now);
            sets.extend(told.into_iter().map(|set| {
                let SetReport { targets, at_once, reason, transfers, bytes, failures, rates, rests_ms } = set;
                let targets = targets.iter().map(ToString::to_string).collect();
                let source = source.to_string();
                SetFrom { source, targets, at_once, reason, transfers, bytes, failures, rates, rests_ms }
            }));
        }
        sets
    }

    /// Reports every link from this node's devices that was used since the other end started.
    pub(crate) fn report(&self) -> Vec<LinkFrom> {
        let Some(serving) = self.view.serving() else { return Vec::new() };
        let now = self.view.now();
        let mut links = Vec::new();
        for (choices, index) in self.choices.iter().zip(0..) {
            let source = DeviceId::new(serving.member, index);
            let told = lock(choices).report(now);
            links.extend(told.into_iter().map(|link| LinkFrom {
                source: source.to_string(),
                target: link.target.to_string(),
                node: serving.map.owner(link.target).map(|owner| owner.name.clone()).unwrap_or_default(),
                transport: link.transport,
                reason: link.reason,
                transports: link.transports,
            }));
        }
        links
    }

    /// Returns what went by each way.
    pub(crate) fn used(&self) -> Vec<TransportUse> {
        let ways = TransportKind::ALL.iter().zip(&self.figures);
        ways.map(|(transport, figures)| TransportUse {
            transport: *transport,
            batches: figures.batches.load(Ordering::Relaxed),
            failures: figures.failures.load(Ordering::Relaxed),
            bytes: figures.bytes.load(Ordering::Relaxed),
        })
        .collect()
    }

    /// Reports what this node's GPUs do with NCCL.
    pub(crate) fn pairs(&self) -> Vec<PairsReport> {
        self.nccl.as_ref().map(|nccl| nccl.report()).unwrap_or_default()
    }

    /// Records what went by each way.
    pub(crate) fn record(&self) {
        for (kind, figures) in TransportKind::ALL.iter().zip(&self.figures) {
            for (outcome, counter) in [("carried", &figures.batches), ("failed", &figures.failures)] {
                let labels = [("transport", kind.as_str()), ("outcome", outcome)];
                metrics::counter!("kvhive_node_link_batches_total", &labels)
                    .absolute(counter.load(Ordering::Relaxed));
            }
            metrics::counter!("kvhive_node_link_bytes_total", "transport" => kind.as_str())
                .absolute(figures.bytes.load(Ordering::Relaxed));
        }
        for (choices, index) in self.choices.iter().zip(0u16..) {
            let mut taken: BTreeMap<(TransportKind, &str), u32> = BTreeMap::new();
            for (_, choice) in lock(choices).chosen() {
                *taken.entry((choice.transport, choice.reason.as_str())).or_default() += 1;
            }
            for ((kind, reason), links) in taken {
                let labels = [
                    ("device", index.to_string()),
                    ("transport", kind.as_str().to_owned()),
                    ("reason", reason.to_owned()),
                ];
                metrics::gauge!("kvhive_node_links", &labels).set(f64::from(links));
            }
        }
        if let Some(nccl) = &self.nccl {
            nccl.record();
        }
    }
}
