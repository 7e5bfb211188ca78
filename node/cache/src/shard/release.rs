//! Hints: what the engine expects of the session of some blocks, said with a store or without one.

use super::Shard;
use super::moves::Why;
use crate::block::{Life, Mark, Record, Tier};
use crate::expected::Due;
use crate::ranking::Ranking;
use crate::stats::Reason;
use kvhive_protocol::data::{Hint, Run};
use kvhive_protocol::{KeyList, Moment, TenantId};

/// Sessions that one [`Shard::tend`] brings up.
const MAX_SESSIONS: usize = 4;
/// Blocks looked at from the end of one session's prefix for those to be brought up.
const MAX_BACK: usize = 4096;

impl Shard {
    /// Takes what the engine expects of the session of these blocks, which it does not use by this; returns how many are here.
    /// The keys come in the order of their prefix, whose segments the runs are: of each, the blocks before it may be elsewhere.
    ///
    /// Holds stay: they are nobody's own, and another asker may be about to fetch the same blocks.
    pub fn release(
        &mut self,
        now: Moment,
        tenant: TenantId,
        runs: &[Run],
        keys: &KeyList,
        hint: Hint,
    ) -> u32 {
        self.tell_all();
        let (mut until, mut found) = (keys.len(), 0);
        let mut starts = Vec::with_capacity(runs.len());
        let mut from = 0;
        for run in runs {
            starts.push(from);
            from = (from + run.keys as usize).min(until);
        }
        for from in starts.into_iter().rev() {
            let path: Vec<u32> = (from..until)
                .filter_map(|at| keys.get(at))
                .filter_map(|key| self.visible(tenant, &key))
                .collect();
            until = from;
            for at in path.iter().rev() {
                if hint != Hint::Over {
                    self.index.records[*at as usize].set(Mark::OVER, false);
                }
                self.tell_hint(*at, hint);
            }
            if let Some(last) = path.last() {
                self.heed(now, *last, hint);
            }
            found += path.len() as u32;
        }
        self.stats.released += u64::from(found);
        found
    }

    /// Tells whoever ranks a block what the engine expects of its session.
    fn tell_hint(&mut self, at: u32, hint: Hint) {
        let record = &self.index.records[at as usize];
        let key = self.owners.salt_of(record.owner).key(&record.key);
        self.ranking_of(at).hinted(at, &key, hint);
    }

    fn ranking_of(&mut self, at: u32) -> &mut Ranking {
        let Record { party, class, .. } = self.index.records[at as usize];
        self.parties[usize::from(party)].ranking(class)
    }

    /// Notes what a hint says of the session that left off at this block.
    pub(super) fn heed(&mut self, now: Moment, last: u32, hint: Hint) {
        self.expect(now, last, hint);
        if hint == Hint::Over {
            self.end_session(last, Reason::Over);
        }
    }

    /// Notes what a store says of the session of a block that is here already.
    pub(super) fn heed_again(&mut self, now: Moment, at: u32, parent: Option<u32>, hint: Hint) {
        if hint == Hint::None {
            return;
        }
        let request = self.request;
        self.ranking_of(at).begin(&request);
        self.tell_hint(at, hint);
        if self.index.records[at as usize].children == 0 {
            if let Some(parent) = parent {
                self.expected.forget(parent);
            }
            self.heed(now, at, hint);
        }
    }

    /// Notes what a hint says of the session whose blocks are being written: this one goes on from `parent`.
    pub(super) fn heed_store(&mut self, now: Moment, at: u32, parent: Option<u32>, hint: Hint) {
        if hint != Hint::None {
            self.said.insert(at, hint);
        }
        match hint {
            Hint::None => {}
            // When the block is there: see [`Shard::appear`].
            Hint::Over => self.index.records[at as usize].set(Mark::OVER, true),
            Hint::Pending | Hint::Returns(_) => {
                if let Some(parent) = parent {
                    self.expected.forget(parent);
                }
                self.expect(now, at, hint);
            }
        }
    }

    fn expect(&mut self, now: Moment, at: u32, hint: Hint) {
        let Record { generation, party, .. } = self.index.records[at as usize];
        self.stats.unawaited += self.expected.expect(now, (at, generation), party, hint);
    }

    /// Marks the blocks that only the session used that left off at this one, and has the next collection take them. Blocks that
    /// others have gone on from, or used since the session did last, are theirs.
    pub(super) fn end_session(&mut self, last: u32, why: Reason) {
        let Record { request, class, .. } = self.index.records[last as usize];
        let is_others = |record: &Record| {
            // Requests wrap.
            record.is(Mark::SHARED) || (record.request.wrapping_sub(request) as i32) > 0
        };
        let (mut next, mut children) = (Some(last), 0);
        while let Some(at) = next {
            let record = &mut self.index.records[at as usize];
            // What is marked already has been looked at, up to the head.
            if is_others(record) || record.children != children || record.is(Mark::OVER) {
                break;
            }
            record.set(Mark::OVER, true);
            // Should its own use of them be told yet, it comes before its end.
            record.used_by(request);
            children = 1;
            let link = record.parent;
            next = self.linked(link);
        }
        let Record { generation, parent: link, children, .. } = self.index.records[last as usize];
        // From one with children nothing is collected: what was marked by the end of a longer session is found by that.
        if children == 0 && self.index.records[last as usize].is(Mark::OVER) {
            let parent = self.linked(link);
            self.garbage.end(class, (last, generation), why, parent);
        }
    }

    /// Brings up the sessions that are about to come back, and gives up those that are long overdue.
    pub(super) fn await_sessions(&mut self, now: Moment) {
        for _ in 0..MAX_SESSIONS {
            match self.expected.due(now) {
                None => return,
                Some(Due::Soon(at, generation)) => {
                    if let Some(at) = self.resident_still(at, generation) {
                        self.want_session(at);
                    }
                }
                Some(Due::Overdue(at, generation)) => {
                    if let Some(at) = self.resident_still(at, generation) {
                        self.end_session(at, Reason::Overdue);
                    }
                }
            }
        }
    }

    /// Asks for the blocks that follow one in its tier to be brought up, as far as they lie beside it in the order of use: a child
    /// is put on the old side of its parent. So none has to know its children.
    pub(super) fn want_continuation(&mut self, last: u32, most: u32) {
        let mut at = last;
        let Record { tier, class, .. } = self.index.records[last as usize];
        if self.next(tier, class, Tier::above).is_none() {
            return;
        }
        for _ in 0..most {
            let Record { older, generation, .. } = self.index.records[at as usize];
            let Some(next) = self.index.records.get(older as usize) else { return };
            if next.parent != (at, generation) || next.life != Life::Resident || !self.stands(next) {
                return;
            }
            self.want(older, Why::Expected);
            at = older;
        }
    }

    fn resident_still(&self, at: u32, generation: u32) -> Option<u32> {
        let at = self.index.named(at, generation)?;
        let record = &self.index.records[at as usize];
        (record.life == Life::Resident && self.stands(record)).then_some(at)
    }

    /// Asks for the prefix that ends here to be brought up a tier, from its head on: as much of it as a match might have.
    fn want_session(&mut self, last: u32) {
        let (mut path, mut next) = (Vec::new(), Some(last));
        while let Some(at) = next.filter(|_| path.len() < MAX_BACK) {
            path.push(at);
            next = self.linked(self.index.records[at as usize].parent);
        }
        let mut left = self.config.prefetch;
        for at in path.into_iter().rev() {
            if left == 0 {
                return;
            }
            left -= u32::from(
                self.index.records[at as usize].life == Life::Resident && self.want(at, Why::Expected),
            );
        }
    }
}
