//! How the strategies do: which of them rank what, and what those have chosen that choose.

use super::Shard;
use crate::party::COMMONS;
use kvhive_protocol::TenantId;
use kvhive_protocol::strategy::{MAX_REPORTS, StrategyReport};
use std::collections::BTreeMap;

impl Shard {
    /// Returns how each strategy does that has ranked something, party by party. With `adjust` those that choose among ways to
    /// rank choose now, by the evidence at hand.
    pub fn strategies(&mut self, adjust: bool) -> Vec<StrategyReport> {
        self.tell_uses();
        let tenants: BTreeMap<u16, TenantId> =
            self.party_of.iter().map(|(tenant, party)| (*party, *tenant)).collect();
        let mut reports = Vec::new();
        for (party, number) in self.parties.iter_mut().zip(COMMONS..) {
            let strategy = party.rules.strategy;
            for (frame_bytes, ranking) in self.config.classes.iter().zip(party.rankings()) {
                let Some(ranking) = ranking else { continue };
                if reports.len() >= MAX_REPORTS {
                    return reports;
                }
                if adjust {
                    ranking.adjust();
                }
                let tenant = tenants.get(&number).copied();
                let choice = ranking.report();
                reports.push(StrategyReport { tenant, frame_bytes: *frame_bytes, strategy, choice });
            }
        }
        reports
    }
}
