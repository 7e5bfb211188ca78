//! What became of one GPU's pairs, transfers and workers, since its node started.

use crate::data::count;
use kvhive_links::pairs::{Counted, Effect, Why};
use kvhive_protocol::links::PairState;
use kvhive_protocol::pairs::PairsReport;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counters by what became of something: that it went well, then each reason why it did not.
#[derive(Default)]
struct Outcomes {
    done: AtomicU64,
    not: [AtomicU64; Why::ALL.len()],
}

impl Outcomes {
    fn not(&self, why: Why) {
        count(&self.not[why as usize]);
    }

    fn named(&self) -> impl Iterator<Item = (&'static str, &AtomicU64)> {
        let not = Why::ALL.iter().map(|why| why.as_str()).zip(&self.not);
        std::iter::once(("done", &self.done)).chain(not)
    }
}

/// The counters of one GPU.
#[derive(Default)]
pub(super) struct Figures {
    pairs: Outcomes,
    groups: Outcomes,
    sent: Outcomes,
    received: Outcomes,
    starts: AtomicU64,
    deaths: AtomicU64,
}

impl Figures {
    /// Counts what an effect tells of.
    pub(super) fn note(&self, effect: &Effect) {
        match effect {
            Effect::Count(Counted::Made) => count(&self.pairs.done),
            Effect::Count(Counted::GivenUp(why)) => self.pairs.not(*why),
            Effect::Count(Counted::GroupMade) => count(&self.groups.done),
            Effect::Count(Counted::GroupGivenUp(why)) => self.groups.not(*why),
            Effect::Carried { .. } => count(&self.sent.done),
            Effect::UseTcp { why, .. } => self.sent.not(*why),
            Effect::Arrived { .. } => count(&self.received.done),
            Effect::NotArrived { why, .. } => self.received.not(*why),
            _ => {}
        }
    }

    /// Counts a worker that is started.
    pub(super) fn started(&self) {
        count(&self.starts);
    }

    /// Counts one that has ended, or was killed.
    pub(super) fn died(&self) {
        count(&self.deaths);
    }

    /// Records all of it, and how far the pairs are.
    pub(super) fn record(&self, device: &str, report: Option<&PairsReport>) {
        let device = || ("device", device.to_owned());
        let pairs = report.map(|report| &report.pairs[..]).unwrap_or_default();
        let groups = report.map(|report| &report.groups[..]).unwrap_or_default();
        for state in PairState::ALL {
            let labels = [device(), ("state", state.as_str().to_owned())];
            let so_far = pairs.iter().filter(|pair| pair.state == state).count();
            metrics::gauge!("kvhive_node_nccl_pairs", &labels).set(so_far as f64);
            let so_far = groups.iter().filter(|group| group.state == state).count();
            metrics::gauge!("kvhive_node_nccl_groups", &labels).set(so_far as f64);
        }
        let told = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        for (made, given_up, outcomes) in [
            ("kvhive_node_nccl_pairs_made_total", "kvhive_node_nccl_pairs_given_up_total", &self.pairs),
            ("kvhive_node_nccl_groups_made_total", "kvhive_node_nccl_groups_given_up_total", &self.groups),
        ] {
            metrics::counter!(made, &[device()]).absolute(told(&outcomes.done));
            for (why, counter) in Why::ALL.iter().zip(&outcomes.not) {
                let labels = [device(), ("reason", why.as_str().to_owned())];
                metrics::counter!(given_up, &labels).absolute(told(counter));
            }
        }
        for (direction, outcomes) in [("sent", &self.sent), ("received", &self.received)] {
            for (outcome, counter) in outcomes.named() {
                let labels = [device(), ("direction", direction.to_owned()), ("outcome", outcome.to_owned())];
                metrics::counter!("kvhive_node_nccl_transfers_total", &labels).absolute(told(counter));
            }
        }
        for (name, counter) in [
            ("kvhive_node_nccl_worker_starts_total", &self.starts),
            ("kvhive_node_nccl_worker_deaths_total", &self.deaths),
        ] {
            metrics::counter!(name, &[device()]).absolute(told(counter));
        }
    }
}
