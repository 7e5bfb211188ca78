//! Blocks of which something is promised: they are stored until every replica has acknowledged them, and looked for. The cluster's map is
//! followed meanwhile, as a promise ends where everybody has left who had the block, by a fault or not.

use super::holders::Claim;
use super::load::{AGAIN, DEPTH, KEPT, LOOK_LIMIT, Load, PREFIXES};
use super::shared::Shared;
use kvhive_client::ClientError;
use kvhive_protocol::data::Ack;
use kvhive_protocol::{ClusterMap, Slot};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often the map is followed and what is not promised any more is kept anew.
const EVERY: Duration = Duration::from_millis(200);

impl Load {
    /// Stores what is not promised of a kept prefix, each block by itself: another's loss is not to be covered by it. Says
    /// whether all of it is promised.
    pub(super) async fn keep(&self, name: u32) -> bool {
        for at in 0..DEPTH {
            let may_be = self.shared.oracle().may_promise(KEPT, name, at as u16);
            if may_be {
                self.store(KEPT, name, at..at + 1, Ack::All).await;
            }
        }
        let oracle = self.shared.oracle();
        (0..DEPTH).all(|at| oracle.is_promised(KEPT, name, at as u16))
    }

    /// Returns what the promises go by that a store of these blocks makes; none of a tenant whose blocks are not kept.
    pub(super) fn claims(&self, tenant: u16, name: u32, places: &Range<usize>) -> Vec<Option<Claim>> {
        if tenant != KEPT {
            return Vec::new();
        }
        let holders = self.shared.holders();
        let home = |at: usize| self.homes.get(&(name, at as u16)).copied();
        places.clone().map(|at| home(at).and_then(|slot| holders.claim(slot))).collect()
    }

    /// Keeps what was promised and is no more, because too much was broken at a time.
    pub(super) async fn keeps(self) {
        while !self.shared.is_ending() {
            for name in 0..PREFIXES[usize::from(KEPT)] {
                self.keep(name).await;
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    /// Follows the map until the run ends.
    pub(super) async fn follows(self) {
        while !self.shared.is_ending() {
            if let Err(error) = self.follow().await {
                tracing::debug!(%error, "the map could not be followed");
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    /// Fetches the newest map, and ends the promises of which everybody has left who had the block. What the run goes by has gone
    /// through here.
    ///
    /// # Errors
    /// When no coordinator answers.
    pub(super) async fn follow(&self) -> Result<Arc<ClusterMap>, ClientError> {
        let map = self.client().refresh().await?;
        go_on_by(&self.shared, &self.homes, &map);
        Ok(map)
    }

    /// Looks for every promised block. What is promised has all of its copies.
    pub(super) async fn check_promises(&self) {
        let mut names: Vec<u32> = self.shared.oracle().promised().iter().map(|(_, name, _)| *name).collect();
        names.dedup();
        for name in names {
            let promises = self.promises_of(name);
            let (begun, mut came) = (Instant::now(), self.fetch(KEPT, name).await);
            while self.is_short(name, &came) && begun.elapsed() < LOOK_LIMIT {
                tokio::time::sleep(AGAIN * 10).await;
                came = self.fetch(KEPT, name).await;
            }
            if self.is_short(name, &came) {
                self.catch_up().await;
            }
            let now = self.promises_of(name);
            for (at, (promise, now)) in promises.into_iter().zip(now).enumerate() {
                // One that was ended meanwhile, and maybe made anew, says nothing of what came.
                if promise.is_none() || promise != now {
                    continue;
                }
                self.shared.figures().promises_checked += 1;
                if !came[at] {
                    self.shared.figures().lost += 1;
                    self.shared.oracle().loses(KEPT, name, at as u16);
                    self.shared.found(format!(
                        "block {at} of prefix {name} was acknowledged by every replica and is gone, and by the map somebody has it"
                    ));
                }
            }
        }
    }

    /// Returns which promise stands of each block of a prefix.
    fn promises_of(&self, name: u32) -> Vec<Option<u64>> {
        let oracle = self.shared.oracle();
        (0..DEPTH).map(|at| oracle.number_of(KEPT, name, at as u16)).collect()
    }

    /// Follows the map to what holds by now: a loss is judged by what is known of who had the block. Where no coordinator answers it is
    /// judged by what was known before.
    pub(super) async fn catch_up(&self) {
        let begun = Instant::now();
        while self.follow().await.is_err() && begun.elapsed() < LOOK_LIMIT {
            tokio::time::sleep(AGAIN * 10).await;
        }
    }
}

/// Goes on by a map: promises end of which everybody has left who had the block, and are counted.
fn go_on_by(shared: &Shared, homes: &BTreeMap<(u32, u16), Slot>, map: &ClusterMap) {
    let mut holders = shared.holders();
    let seen = holders.sees(map);
    let mut oracle = shared.oracle();
    let mut ended = 0;
    for ((name, at), _) in homes.iter().filter(|(_, slot)| seen.emptied.contains(slot)) {
        ended += usize::from(oracle.lapses(KEPT, *name, *at));
    }
    drop((holders, oracle));
    shared.figures().leases_lapsed += seen.lapsed.len() as u64;
    for id in seen.lapsed {
        shared.say(&format!("{id} has left the map, and no fault was to end its lease"));
    }
    if ended > 0 {
        shared.say(&format!("{ended} promises end: everybody has left who had those blocks"));
    }
}

#[cfg(test)]
mod tests {
    use super::super::holders::Holders;
    use super::super::holders::tests::{Cluster, SLOT};
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn promises_end_and_are_counted_where_everybody_has_left_and_stand_elsewhere() {
        let mut cluster = Cluster::begin();
        let (first, second) = (cluster.set()[0], cluster.set()[1]);
        let stays = Slot(8);
        cluster.give_away(stays);
        let homes = BTreeMap::from([((0, 0), SLOT), ((0, 1), stays)]);
        let shared = Shared::new(1, 1);
        shared.know(1, 2, Holders::of(&cluster.map(), &BTreeSet::from([SLOT, stays])));
        for at in 0..2 {
            shared.oracle().promise(KEPT, 0, at, 2);
        }
        let promised = |shared: &Shared| [0, 1].map(|at| shared.oracle().is_promised(KEPT, 0, at));
        cluster.lapse(first);
        go_on_by(&shared, &homes, &cluster.map());
        assert_eq!(promised(&shared), [true, true], "the second has it");
        cluster.lapse(second);
        go_on_by(&shared, &homes, &cluster.map());
        assert_eq!(promised(&shared), [false, true]);
        assert_eq!(shared.oracle().lapsed(), 1);
        assert_eq!(shared.oracle().voided(), 0);
        assert_eq!(shared.figures().leases_lapsed, 2);
    }
}
