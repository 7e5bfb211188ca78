//! Blocks on their way between tiers: down when a tier runs short, up when they are used.

use super::Shard;
use crate::answers::{CopyVerdict, Effect};
use crate::block::{BlockId, CopyTicket, HoldClock, Life, Mark, Tier};
use crate::party::{Donors, MEMORY, Want};
use crate::stats::Reason;
use kvhive_planted::{Bug, is};
use kvhive_protocol::Moment;
use kvhive_protocol::watch::Gone;

/// A block to be brought up a tier.
pub(super) struct Wanted {
    at: u32,
    generation: u32,
    why: Why,
}

/// Why a block is to be brought up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Why {
    /// It was just used: worth more above than what is coldest there.
    Used,
    /// A use is expected: nobody makes room for it.
    Expected,
}

/// Copies between tiers under way at a time.
const MAX_COPIES: usize = 32;
/// Blocks that may wait to be brought up.
const MAX_WANTED: usize = 1024;
/// Blocks at the cold end of a list that are looked at for one that is not held.
const MAX_LOOK: usize = 256;

impl Shard {
    /// A copy between tiers has ended. The verdict says which frame is the block's from now on.
    pub fn copied(&mut self, ticket: CopyTicket, done: bool) -> CopyVerdict {
        let Some(at) = self.index.named(ticket.index, ticket.generation) else { return CopyVerdict::Discard };
        let record = &mut self.index.records[at as usize];
        let Some(to) = record.copying.take() else { return CopyVerdict::Discard };
        self.copies -= 1;
        let (from, class, party) = (record.tier, record.class, record.party);
        self.copies_between[usize::from(class)][from as usize][to as usize] -= 1;
        // Readers hold the old frame: it would not be free.
        let was_coming = record.take(Mark::COMING);
        let done = done || is(Bug::FailedCopyCounts);
        if record.life != Life::Resident || !done || record.readers > 0 || self.ledger.is_lost(to) {
            if was_coming && record.life == Life::Resident && record.take(Mark::AHEAD) {
                self.stats.prefetch_cancelled += 1;
            }
            self.give(to, class, party);
            self.finish_leaving(at);
            return CopyVerdict::Discard;
        }
        let id = BlockId { index: at, generation: record.generation };
        if to > from && record.take(Mark::AHEAD) {
            // One that was still to be brought up was not brought.
            self.stats.prefetch_cancelled += u64::from(was_coming);
            self.stats.prefetch_wasted += u64::from(!was_coming);
        }
        self.recency.remove(&mut self.index.records, at);
        self.count_resident(at, -1);
        self.index.records[at as usize].tier = to;
        self.recency.insert(&mut self.index.records, at);
        self.count_resident(at, 1);
        self.tell_moved(at);
        self.give(from, class, party);
        if to > from {
            self.stats.demoted += 1;
        } else {
            self.stats.promoted += 1;
        }
        CopyVerdict::Adopt(id)
    }

    /// Opens or closes a tier for blocks that come: a failing disk takes none, and gives what it still can.
    pub fn set_open(&mut self, tier: Tier, open: bool) {
        self.closed[tier as usize] = !open;
    }

    /// A tier is no more, as a GPU's memory after its death: what is in it is lost, and what is on its way to it or being written there
    /// comes to nothing. The other tiers go on as if it had never been.
    pub fn lose_tier(&mut self, tier: Tier, effects: &mut Vec<Effect>) {
        if !self.ledger.lose(tier) {
            return;
        }
        let records = (0..).zip(&self.index.records);
        let in_it = records.filter(|(_, record)| record.life == Life::Resident && record.tier == tier);
        let ids = in_it.map(|(index, record)| BlockId { index, generation: record.generation });
        for id in ids.collect::<Vec<_>>() {
            self.lost(id, effects);
        }
    }

    /// Asks for a block to be brought up a tier. Says whether that was news.
    pub(super) fn want(&mut self, at: u32, why: Why) -> bool {
        let record = &mut self.index.records[at as usize];
        let (tier, class, generation) = (record.tier, record.class, record.generation);
        let is_asked = record.is(Mark::AHEAD) || record.is(Mark::COMING);
        if is_asked || record.is_worked_on() || self.wanted.len() >= MAX_WANTED {
            return false;
        }
        if self.next(tier, class, Tier::above).is_none() {
            return false;
        }
        let record = &mut self.index.records[at as usize];
        record.set(Mark::AHEAD, true);
        record.set(Mark::COMING, true);
        self.stats.prefetched += 1;
        self.wanted.push_back(Wanted { at, generation, why });
        true
    }

    /// Says whether a block may take a frame above: not one that a collection would have to free again, and for a use that is
    /// only expected none of those that are kept free for what comes.
    fn may_come_up(&self, tier: Tier, to: Tier, class: u8, why: Why) -> bool {
        let kept = if why == Why::Expected { self.low_water(to, class) } else { 0 };
        self.ledger.free(to, class) > kept && (tier != Tier::Disk || self.has_room_to_collection(class))
    }

    /// Starts to bring up what was asked for, while there are free frames.
    pub(super) fn bring_up(&mut self, effects: &mut Vec<Effect>) {
        while self.copies < MAX_COPIES
            && let Some(Wanted { at, generation, why }) = self.wanted.pop_front()
        {
            let Some(at) = self.index.named(at, generation) else { continue };
            let record = &self.index.records[at as usize];
            // Moved down since, it is not asked for any more.
            if record.life != Life::Resident || !record.is(Mark::COMING) {
                continue;
            }
            let (tier, class) = (record.tier, record.class);
            // It may have been moved or shrunk meanwhile, or be on its way down.
            let is_free = !record.is_worked_on();
            let to = self.next(tier, class, Tier::above).filter(|_| is_free);
            let to = to.filter(|to| self.may_come_up(tier, *to, class, why));
            if to.is_some_and(|to| self.start_copy(at, to, effects)) {
                continue;
            }
            let record = &mut self.index.records[at as usize];
            record.set(Mark::COMING, false);
            if record.take(Mark::AHEAD) {
                self.stats.prefetch_cancelled += 1;
            }
        }
    }

    /// Starts to move the coldest blocks down where a tier runs short.
    pub(super) fn move_down(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        for tier in [Tier::Host, Tier::Device] {
            for class in 0..self.config.classes.len() as u8 {
                self.relieve(now, tier, class, self.low_water(tier, class), None, effects);
            }
        }
    }

    /// Starts to move blocks down to an open disk as soon as a store has taken a frame: a burst does not wait for
    /// [`Shard::tend`], and less of it pushes blocks out of memory that the disk has room for.
    pub(super) fn move_down_early(&mut self, now: Moment, class: u8, effects: &mut Vec<Effect>) {
        if !self.has_disk(class) {
            return;
        }
        for tier in [Tier::Host, Tier::Device] {
            self.relieve(now, tier, class, self.low_water(tier, class), None, effects);
        }
    }

    /// Starts to move the coldest blocks of a tier down until `wanted` of its frames are free or about to be. A collection counts
    /// them by its reason, and leaves those that are held.
    pub(super) fn relieve(
        &mut self,
        now: Moment,
        tier: Tier,
        class: u8,
        wanted: u32,
        collects: Option<Reason>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(to) = self.next(tier, class, Tier::below) else { return };
        let clock = self.hold_clock(now);
        while self.copies < MAX_COPIES && self.ledger.free(tier, class) + self.leaving(tier, class) < wanted {
            let from: &[Tier] = match tier {
                Tier::Device => &[Tier::Device],
                _ => &[Tier::Host],
            };
            // What leaves memory for the disk is a matter of memory as a whole: what was promised in the device is kept also
            // after it has moved to the host.
            let by = if to == Tier::Disk { MEMORY } else { from };
            let want = Want { by, from, capacity: self.capacity_bytes(), coming: None };
            let mut donors = Donors::among(&self.parties, &want);
            let mut coldest = None;
            while coldest.is_none()
                && let Some(donor) =
                    donors.next(self.stats.demoted, |donor| self.age(donor.party, class, donor.from))
            {
                coldest = self.recency.coldest(&mut self.index.records, tier, donor.party, class);
                if collects.is_some()
                    && coldest.is_some_and(|at| self.index.records[at as usize].is_held(clock))
                {
                    coldest = self.coldest_unheld(tier, donor.party, class, clock);
                }
            }
            let Some(at) = coldest else { return };
            let record = &self.index.records[at as usize];
            if to == Tier::Disk
                && !self.config.unused_to_disk
                && !record.is(Mark::REUSED)
                && record.is_evictable(clock)
            {
                self.let_go(at, Gone::NotAdmitted, effects);
                self.stats.not_admitted += 1;
                if collects.is_some() {
                    self.count_collected(class, Reason::NotAdmitted);
                }
                continue;
            }
            if !self.start_copy(at, to, effects) {
                return;
            }
            // A move within memory frees none of it.
            if let Some(reason) = collects.filter(|_| to == Tier::Disk) {
                self.count_collected(class, reason);
            }
        }
    }

    /// Returns the coldest block of a list that may move and is not held.
    fn coldest_unheld(&self, tier: Tier, party: u16, class: u8, clock: HoldClock) -> Option<u32> {
        let records = &self.index.records;
        self.recency.of(records, tier, party, class).take(MAX_LOOK).find(|at| {
            let record = &records[*at as usize];
            record.is_movable() && !record.is_held(clock)
        })
    }

    /// Returns how many frames of a tier are free when the copies down that are under way have ended.
    fn leaving(&self, tier: Tier, class: u8) -> u32 {
        self.copies_between[usize::from(class)][tier as usize][tier as usize + 1..].iter().sum()
    }

    /// Returns how many frames of memory are free when the copies to disk that are under way have ended.
    pub(super) fn leaving_memory(&self, class: u8) -> u32 {
        let of_class = &self.copies_between[usize::from(class)];
        MEMORY.iter().map(|tier| of_class[*tier as usize][Tier::Disk as usize]).sum()
    }

    fn start_copy(&mut self, at: u32, to: Tier, effects: &mut Vec<Effect>) -> bool {
        let record = &self.index.records[at as usize];
        let (from, class, party, generation) = (record.tier, record.class, record.party, record.generation);
        if !self.take(to, class, party) {
            return false;
        }
        self.index.records[at as usize].copying = Some(to);
        self.copies += 1;
        self.copies_between[usize::from(class)][from as usize][to as usize] += 1;
        effects.push(Effect::Copy {
            ticket: CopyTicket { index: at, generation },
            id: BlockId { index: at, generation },
            to,
            class: usize::from(class),
        });
        true
    }

    /// Returns the next tier in a direction that has frames of the class and takes blocks.
    pub(super) fn next(&self, tier: Tier, class: u8, step: impl Fn(Tier) -> Option<Tier>) -> Option<Tier> {
        let usable = |to: &Tier| self.ledger.capacity(*to, class) > 0 && !self.closed[*to as usize];
        std::iter::successors(step(tier), |tier| step(*tier)).find(usable)
    }

    /// Returns how many frames of a tier are kept free.
    pub(super) fn low_water(&self, tier: Tier, class: u8) -> u32 {
        if self.next(tier, class, Tier::below).is_none() {
            return 0;
        }
        let share = u64::from(self.ledger.capacity(tier, class)) * u64::from(self.config.low_water_per_mille);
        share.div_ceil(1000) as u32
    }

    /// Returns the bytes of each tier.
    pub(super) fn capacity_bytes(&self) -> [u64; 3] {
        Tier::ALL.map(|tier| {
            let classes = self.config.classes.iter().enumerate();
            classes.map(|(class, bytes)| bytes * u64::from(self.ledger.capacity(tier, class as u8))).sum()
        })
    }
}
