//! Match and read: what is resident of a prefix.

use super::Shard;
use crate::answers::Listed;
use crate::block::{BlockId, Life, Mark, Record, Tier};
use crate::policy::Request;
use kvhive_planted::{Bug, is};
use kvhive_protocol::data::Run;
use kvhive_protocol::survey::Surveyed;
use kvhive_protocol::{BlockKey, KeyList, Moment, Slot, TenantId};
use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

/// Records looked at by one [`Shard::list_slots`].
const LOOK: u32 = 16_384;

impl Shard {
    /// Says how far each run is covered, from its start, without a gap. Covered blocks count as used now, and are kept until they
    /// have been read once more, and the last of a run that is not covered whole until a store has gone on from it too; for
    /// `hold` at most (bounded by the configuration).
    ///
    /// A resident block knows how many blocks before it are resident without a gap, so the end of the coverage is found by
    /// bisection: a match of n keys looks up O(log n) of them.
    pub fn match_runs(
        &mut self,
        now: Moment,
        tenant: TenantId,
        runs: &[Run],
        keys: &KeyList,
        hold: Duration,
    ) -> Vec<u32> {
        let (until, clock) = (now + hold.min(self.config.max_hold), self.hold_clock(now));
        let number = self.request.number + 1;
        let mut covered = Vec::with_capacity(runs.len());
        let mut deepest = Vec::with_capacity(runs.len());
        let mut from = 0;
        for run in runs {
            let count = (run.keys as usize).min(keys.len() - from);
            let (covers, ends) = self.cover(tenant, keys, from, count);
            if let Some(at) = ends {
                let record = &mut self.index.records[at as usize];
                // What goes on from it is known by that; the policies are told later.
                record.used_by(number as u32);
                record.set(Mark::OVER, false);
                // The blocks before it are kept by being no leaves.
                record.hold(clock, until, if covers < count { 2 } else { 1 });
                // Another session goes on from it.
                if covers < count && record.children > 0 {
                    record.set(Mark::SHARED, true);
                }
            }
            deepest.push(ends);
            covered.push(covers as u32);
            self.stats.matched_keys += count as u64;
            self.stats.covered_keys += covers as u64;
            from += count;
        }
        let salt = self.owners.salt(tenant);
        self.reuse.asked(keys.iter().take(from).map(|key| salt.print(&key)));
        let total = covered.iter().sum();
        let load = self.load_of(tenant);
        load.matched_keys += from as u64;
        load.covered_keys += u64::from(total);
        let request = Request { now, number, blocks: from as u32, covered: total, ..Request::default() };
        self.begin_request(request);
        let mut from = 0;
        for ((ends, count), run) in deepest.into_iter().zip(&covered).zip(runs) {
            if let Some(at) = ends {
                let Record { generation, chain, .. } = self.index.records[at as usize];
                if u32::from(chain) + 1 >= *count {
                    self.note_run(tenant, keys, from, *count, (at, generation), request);
                } else {
                    self.note_each(tenant, keys, from..from + *count as usize, until);
                }
            }
            from += run.keys as usize;
        }
        covered
    }

    /// Says how far each run is covered, as [`Shard::match_runs`] does, and how much of that is in memory. Nothing is used, kept or
    /// counted by it.
    pub fn survey_runs(&self, tenant: TenantId, runs: &[Run], keys: &KeyList) -> Vec<Surveyed> {
        let mut from = 0;
        let survey = |run: &Run| {
            let mut found = Surveyed::default();
            let until = keys.len().min(from + run.keys as usize);
            for at in from..until {
                let Some(at) = keys.get(at).and_then(|key| self.visible(tenant, &key)) else { break };
                found.covered += 1;
                found.in_memory += u32::from(self.index.records[at as usize].tier != Tier::Disk);
            }
            from = until;
            found
        };
        runs.iter().map(survey).collect()
    }

    fn begin_request(&mut self, request: Request) {
        self.request = request;
        self.session = request.number as u32;
    }

    /// Notes the use of blocks that are not linked to one another.
    fn note_each(&mut self, tenant: TenantId, keys: &KeyList, range: Range<usize>, until: Moment) {
        let (request, clock) = (self.request, self.hold_clock(self.request.now));
        let last = range.end.saturating_sub(1);
        for (position, key) in range.filter_map(|at| Some((at, keys.get(at)?))) {
            let Some(at) = self.visible(tenant, &key) else { continue };
            let record = &mut self.index.records[at as usize];
            // The last is held already.
            if position != last {
                record.hold(clock, until, 1);
            }
            let generation = record.generation;
            self.note_one((at, generation), request);
        }
    }

    /// Returns how many of `count` keys from `from` on are covered, and the record of the last that is.
    fn cover(&mut self, tenant: TenantId, keys: &KeyList, from: usize, count: usize) -> (usize, Option<u32>) {
        // Covered: the first `low` keys. Not covered: key `high` and all after it.
        let (mut low, mut high, mut ends) = (0, count, None);
        // The whole run is the likeliest answer, none of it the second.
        let mut probe = count.saturating_sub(1);
        while low < high && self.has_sound_chains() {
            match self.resident(tenant, keys, from + probe) {
                None => high = probe,
                Some((at, chain)) if usize::from(chain) >= probe - low => (low, ends) = (probe + 1, Some(at)),
                // A gap before it, or a link that was never made: only a walk can tell.
                Some(_) => break,
            }
            probe = if low == 0 && high == count - 1 { 0 } else { low + (high - low) / 2 };
        }
        while low < high {
            match self.resident(tenant, keys, from + low) {
                None => high = low,
                Some((at, _)) => {
                    if let Some(before) = ends {
                        self.chain_on(before, at);
                    }
                    (low, ends) = (low + 1, Some(at));
                }
            }
        }
        (low, ends)
    }

    fn resident(&mut self, tenant: TenantId, keys: &KeyList, at: usize) -> Option<(u32, u16)> {
        let at = self.visible(tenant, &keys.get(at)?)?;
        Some((at, self.chain_of(at)))
    }

    /// Finds blocks for reading; each one found has one reader more until [`Shard::unread`]. One on disk is a hit when its bytes
    /// have come: see [`Shard::brought`].
    pub fn read(&mut self, now: Moment, tenant: TenantId, keys: &KeyList) -> Vec<Option<BlockId>> {
        let mut found = Vec::with_capacity(keys.len());
        let mut is_request = false;
        let mut hits = 0;
        let clock = self.hold_clock(now);
        let visible: Vec<Option<u32>> = keys.iter().map(|key| self.visible(tenant, &key)).collect();
        // What a match has just named was counted there: it holds the last block of each run.
        let is_named = visible.iter().flatten().any(|at| self.index.records[*at as usize].is_held(clock));
        for at in visible {
            let Some(at) = at else {
                self.stats.misses += 1;
                found.push(None);
                continue;
            };
            let record = &mut self.index.records[at as usize];
            if !record.add_reader() {
                self.stats.misses += 1;
                found.push(None);
                continue;
            }
            record.came();
            let was_ahead = record.take(Mark::AHEAD);
            let tier = record.tier;
            let is_on_disk = tier == Tier::Disk;
            let is_late = was_ahead && record.is(Mark::COMING);
            let id = BlockId { index: at, generation: record.generation };
            // What nobody asked for before counts here.
            if record.request != self.request.number as u32 && !is_named {
                if !is_request {
                    is_request = true;
                    let (number, blocks) = (self.request.number + 1, keys.len() as u32);
                    self.begin_request(Request {
                        now,
                        number,
                        blocks,
                        covered: blocks,
                        ..Request::default()
                    });
                }
                let request = self.request;
                self.note_one((at, id.generation), request);
            }
            self.stats.readers += 1;
            if !is_on_disk {
                self.stats.hits += 1;
                self.stats.tier(tier).hits += 1;
                hits += 1;
            }
            self.stats.prefetch_late += u64::from(is_late);
            self.stats.prefetch_useful += u64::from(was_ahead && !is_late);
            found.push(Some(id));
        }
        let misses = found.iter().filter(|id| id.is_none()).count();
        let load = self.load_of(tenant);
        load.fetched_blocks += hits;
        load.missed_blocks += misses as u64;
        found
    }

    /// The bytes of a block that [`Shard::read`] found on disk, and that is still being read, have come, or they have not: a hit
    /// or a miss.
    pub fn brought(&mut self, id: BlockId, came: bool) {
        let (hit, miss) = (u64::from(came), u64::from(!came));
        self.stats.hits += hit;
        self.stats.disk.hits += hit;
        self.stats.misses += miss;
        if let Some(at) = self.index.named(id.index, id.generation) {
            let (tenant, _) = self.owners.of(self.index.records[at as usize].owner);
            let load = self.load_of(tenant);
            load.fetched_blocks += hit;
            load.missed_blocks += miss;
        }
    }

    /// Returns what a list says of one block that is here.
    pub fn listed(&self, id: BlockId) -> Option<Listed> {
        let at = self.index.named(id.index, id.generation)?;
        let record = &self.index.records[at as usize];
        let parent = self.linked(record.parent).map(|parent| self.index.records[parent as usize].key);
        Some(Listed { id, parent: parent.unwrap_or(BlockKey::NONE), slot: Slot(record.slot) })
    }

    /// Lists up to `limit` of the blocks that may be seen, from record `from` on, and where to go on; a block that comes
    /// meanwhile may or may not be listed.
    pub fn list(&self, from: u32, limit: usize) -> (Vec<Listed>, Option<u32>) {
        let mut listed = Vec::with_capacity(limit);
        for at in from..self.index.records.len() as u32 {
            if listed.len() == limit {
                return (listed, Some(at));
            }
            let record = &self.index.records[at as usize];
            if record.life == Life::Resident && self.stands(record) {
                listed.extend(self.listed(BlockId { index: at, generation: record.generation }));
            }
        }
        (listed, None)
    }

    /// Lists the blocks of some slots that may be seen, with their depths, among a bounded number of records from `from` on,
    /// and says where to go on.
    pub fn list_slots(&self, from: u32, slots: &BTreeSet<Slot>) -> (Vec<(u32, BlockId)>, Option<u32>) {
        let all = self.index.records.len() as u32;
        let until = all.min(from.saturating_add(LOOK));
        let is_one = |record: &Record| {
            record.life == Life::Resident && slots.contains(&Slot(record.slot)) && self.stands(record)
        };
        let records = (from..until).map(|at| (at, &self.index.records[at as usize]));
        let listed = records.filter(|(_, record)| is_one(record));
        let listed =
            listed.map(|(index, record)| (record.depth, BlockId { index, generation: record.generation }));
        (listed.collect(), (until < all).then_some(until))
    }

    /// Returns the record of a block that may be seen by `tenant`.
    pub(super) fn visible(&self, tenant: TenantId, key: &BlockKey) -> Option<u32> {
        let found = match is(Bug::OthersAreFound) {
            true => self.find(tenant, key).or_else(|| self.find(TenantId(1), key)),
            false => self.find(tenant, key),
        };
        let record = &self.index.records[found? as usize];
        let stands = self.stands(record) || is(Bug::EndedEraIsFound);
        found.filter(|_| record.life == Life::Resident && stands)
    }
}
