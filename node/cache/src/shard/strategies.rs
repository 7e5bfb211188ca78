//! How the strategies do: which of them rank what, and what those have chosen that choose.

use super::Shard;
use crate::party::{COMMONS, Party};
use crate::ranking::Ranking;
use kvhive_protocol::TenantId;
use kvhive_protocol::strategy::{MAX_REPORTS, StrategyReport};
use std::collections::BTreeMap;

impl Shard {
    /// Returns how the strategies do that have ranked something, party by party, of the first [`MAX_REPORTS`]. With `adjust` all
    /// of them that choose among ways to rank choose now, by the evidence at hand.
    pub fn strategies(&mut self, adjust: bool) -> Vec<StrategyReport> {
        if adjust {
            self.tell_all();
            self.adjust();
        }
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
                let tenant = tenants.get(&number).copied();
                let choice = ranking.report();
                reports.push(StrategyReport { tenant, frame_bytes: *frame_bytes, strategy, choice });
            }
        }
        reports
    }

    /// The same, and of each size of frames in which nothing was ranked yet what would rank there: whoever asks learns from it what sizes
    /// there are.
    pub fn strategies_of_sizes(&mut self, adjust: bool) -> Vec<StrategyReport> {
        let reports = self.strategies(adjust);
        let is_told = |bytes: &&u64| reports.iter().any(|report| report.frame_bytes == **bytes);
        let strategy = self.parties[0].rules.strategy;
        let unused = self.config.classes.iter().filter(|bytes| !is_told(bytes));
        let unused = unused.map(|frame_bytes| StrategyReport {
            tenant: None,
            frame_bytes: *frame_bytes,
            strategy,
            choice: None,
        });
        let mut all: Vec<StrategyReport> = unused.collect();
        all.extend(reports);
        all.truncate(MAX_REPORTS);
        all
    }

    /// Has every ranking choose now; returns how many there are.
    fn adjust(&mut self) -> usize {
        let rankings = self.parties.iter_mut().flat_map(Party::rankings).flatten();
        rankings.map(Ranking::adjust).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ShardConfig;
    use crate::frames::TierCapacity;
    use crate::party::Rules;
    use crate::policy::Strategy;
    use std::time::Duration;

    #[test]
    fn all_strategies_choose_when_asked_and_the_first_are_reported() {
        let frames = |frames: u32| TierCapacity { frames: vec![frames] };
        let mut shard = Shard::new(ShardConfig {
            classes: vec![100],
            device: frames(2),
            host: frames(0),
            disk: frames(0),
            rules: Rules::new(Strategy::Adaptive),
            max_hold: Duration::from_secs(1),
            max_writes: 8,
            low_water_per_mille: 0,
            gc_per_mille: None,
            pinned_per_mille: 500,
            unused_to_disk: true,
            prefetch: 0,
            hash_seed: 7,
        });
        let rules = Rules::new(Strategy::Adaptive);
        let own = (1..=MAX_REPORTS as u32 + 40).map(|tenant| (TenantId(tenant), rules)).collect();
        shard.set_rules(rules, &own);
        for party in &mut shard.parties {
            party.ranking(0);
        }
        assert_eq!(shard.adjust(), MAX_REPORTS + 41);
        let reports = shard.strategies(true);
        assert_eq!(reports.len(), MAX_REPORTS);
        assert_eq!(shard.strategies_of_sizes(false), reports, "all sizes are told");
        assert_eq!(reports.last().and_then(|report| report.tenant), Some(TenantId(MAX_REPORTS as u32 - 1)));
    }
}
