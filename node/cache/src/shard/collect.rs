//! Collection: memory is freed before it is full, a piece at a time, off any request's path. It goes on from the threshold to
//! a little below: first what is dead, then what nobody is expected to use, then by moves to a tier below, and only where there is
//! no room below by letting go what the strategies would let go next. No block goes that is held or read, and none before its child.

use super::Shard;
use crate::answers::Effect;
use crate::block::{Mark, Tier};
use crate::party::{Donor, Donors, MEMORY, Want};
use crate::stats::Reason;
use kvhive_protocol::Moment;
use kvhive_protocol::watch::Gone;
use std::collections::VecDeque;

/// How far below its threshold a collection ends, in thousandths of the memory.
const SPAN_PER_MILLE: u64 = 50;
/// Blocks of one size class that one [`Shard::tend`] lets go.
const STEP: u32 = 256;
/// Ends of sessions that are remembered of each class; of more, the oldest are forgotten.
const MAX_ENDED: usize = 4096;

/// Blocks on disk that one [`Shard::tend`] looks at, of the sessions of one size class, for some in memory before them.
const LOOKS: u32 = 4096;

/// A session that is over.
#[derive(Clone, Copy)]
struct Ended {
    /// The block that it left off at: record and generation.
    last: (u32, u32),
    why: Reason,
    /// As far as this it was found to have nothing in memory, from the end on.
    looked: (u32, u32),
}

/// What a session that is over has in memory.
enum Kept {
    /// This block.
    Block(u32),
    Nothing,
    /// Nothing up to this block, and there are more before it.
    NotUpTo(u32),
}

/// What a collection goes by.
pub(super) struct Garbage {
    /// By class.
    ended: Vec<VecDeque<Ended>>,
    collecting: Vec<bool>,
}

impl Garbage {
    pub(super) fn new(classes: usize) -> Garbage {
        Garbage { ended: vec![VecDeque::new(); classes], collecting: vec![false; classes] }
    }

    /// Notes the end of a session that is over; it goes on from `parent`, if that was taken for its end until now.
    pub(super) fn end(&mut self, class: u8, last: (u32, u32), why: Reason, parent: Option<u32>) {
        let ended = &mut self.ended[usize::from(class)];
        if ended.back().is_some_and(|before| Some(before.last.0) == parent) {
            ended.pop_back();
        }
        self.put(class, Ended { last, why, looked: last });
    }

    fn put(&mut self, class: u8, session: Ended) {
        let ended = &mut self.ended[usize::from(class)];
        if ended.len() >= MAX_ENDED {
            ended.pop_front();
        }
        ended.push_back(session);
    }

    /// Says whether blocks of this class are being collected.
    pub(super) fn is_collecting(&self, class: u8) -> bool {
        self.collecting[usize::from(class)]
    }
}

impl Shard {
    /// Begins a collection of each class whose memory is fuller than the threshold. The sweep for what is dead comes next.
    pub(super) fn begin_collections(&mut self) {
        let Some(threshold) = self.config.gc_per_mille else { return };
        for class in 0..self.config.classes.len() as u8 {
            let (used, capacity) = self.memory_of(class);
            if !self.garbage.is_collecting(class) && used * 1000 > capacity * u64::from(threshold) {
                self.garbage.collecting[usize::from(class)] = true;
                self.stats.collections += 1;
            }
        }
    }

    /// Does a piece of each collection that has begun, when the sweep for what is dead is through.
    pub(super) fn collect(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        let Some(threshold) = self.config.gc_per_mille.filter(|_| self.sweep.is_none()) else { return };
        let end = u64::from(threshold).saturating_sub(SPAN_PER_MILLE);
        for class in 0..self.config.classes.len() as u8 {
            if !self.garbage.is_collecting(class) {
                continue;
            }
            let (used, capacity) = self.memory_of(class);
            let excess = used.saturating_sub(capacity * end / 1000);
            if excess == 0 {
                self.garbage.collecting[usize::from(class)] = false;
            } else {
                self.collect_class(now, class, excess.min(STEP.into()) as u32, end, effects);
            }
        }
    }

    /// Returns how many frames of a class are in use in memory, and how many there are. Those that are being written do not count
    /// yet: what is said of their sessions is heeded when they are there.
    fn memory_of(&self, class: u8) -> (u64, u64) {
        let capacity = self.over_memory(|tier| self.ledger.capacity(tier, class));
        // Of a tier that is lost there are none, whatever is written to it yet.
        let used = self.over_memory(|tier| {
            let taken = self.ledger.capacity(tier, class) - self.ledger.free(tier, class);
            taken.saturating_sub(self.writes_of[tier as usize][usize::from(class)])
        });
        (used, capacity)
    }

    fn over_memory(&self, of: impl Fn(Tier) -> u32) -> u64 {
        MEMORY.iter().map(|tier| u64::from(of(*tier))).sum()
    }

    fn collect_class(
        &mut self,
        now: Moment,
        class: u8,
        excess: u32,
        end_per_mille: u64,
        effects: &mut Vec<Effect>,
    ) {
        let (freed, is_through) = self.collect_ended(now, class, excess, effects);
        if freed >= excess || !is_through {
            return;
        }
        for tier in [Tier::Host, Tier::Device] {
            let share = u64::from(self.ledger.capacity(tier, class)) * (1000 - end_per_mille);
            self.relieve(now, tier, class, share.div_ceil(1000) as u32, Some(Reason::Demoted), effects);
        }
        let has_disk = self.ledger.capacity(Tier::Disk, class) > 0;
        let room_below = self.ledger.free(Tier::Disk, class);
        // A disk that is closed opens again, or the memory runs full: then stores push out what is worth least.
        if has_disk && (self.closed[Tier::Disk as usize] || room_below > 0) {
            return;
        }
        // What moves down frees its frame when it has come.
        for _ in freed + self.leaving_memory(class)..excess {
            let Some(at) = self.next_to_leave(now, class, has_disk) else { return };
            if self.index.records[at as usize].tier != Tier::Disk {
                self.count_collected(class, Reason::Evicted);
            }
            self.evict(at, effects);
        }
    }

    /// Lets go blocks of sessions that are over, each from its end; returns how many frames of the class in memory that has freed, and
    /// whether all of them were looked at.
    fn collect_ended(
        &mut self,
        now: Moment,
        class: u8,
        excess: u32,
        effects: &mut Vec<Effect>,
    ) -> (u32, bool) {
        let (clock, mut freed, mut left, mut looks) = (self.hold_clock(now), 0, STEP, LOOKS);
        for _ in 0..self.garbage.ended[usize::from(class)].len() {
            let Some(ended) = self.garbage.ended[usize::from(class)].pop_front() else { break };
            let Some(last) = self.index.named(ended.last.0, ended.last.1) else { continue };
            let from = self.index.named(ended.looked.0, ended.looked.1).unwrap_or(last);
            let kept = self.kept_in_memory(from, &mut looks);
            let (Kept::Block(looked) | Kept::NotUpTo(looked)) = kept else { continue };
            let looked = (looked, self.index.records[looked as usize].generation);
            if matches!(kept, Kept::NotUpTo(_)) {
                self.garbage.put(class, Ended { looked, ..ended });
                return (freed, false);
            }
            let mut next = Some(last);
            while let Some(at) = next {
                let record = self.index.records[at as usize];
                if !record.is(Mark::OVER) || record.children > 0 {
                    break;
                }
                if record.is(Mark::PINNED) {
                    break;
                }
                if !record.is_evictable(clock) || freed >= excess || left == 0 {
                    // Read, held or moved for now, or enough for now: the session's end is here from now on.
                    self.garbage.put(class, Ended { last: (at, record.generation), looked, ..ended });
                    break;
                }
                next = self.linked(record.parent);
                left -= 1;
                if record.tier != Tier::Disk {
                    freed += u32::from(record.class == class);
                    self.count_collected(record.class, ended.why);
                }
                self.stats.evicted_over += 1;
                self.let_go(at, Gone::Over, effects);
            }
            if freed >= excess || left == 0 {
                break;
            }
        }
        (freed, left > 0)
    }

    /// Looks for what a session that is over has of its own in memory, from one of its blocks on towards its head: what lies on disk
    /// alone is in nobody's way. Stops when all `looks` are taken.
    fn kept_in_memory(&self, from: u32, looks: &mut u32) -> Kept {
        let mut next = Some(from);
        while let Some(at) = next {
            let record = &self.index.records[at as usize];
            if !record.is(Mark::OVER) {
                return Kept::Nothing;
            }
            if record.tier != Tier::Disk {
                return Kept::Block(at);
            }
            if *looks == 0 {
                return Kept::NotUpTo(at);
            }
            *looks -= 1;
            next = self.linked(record.parent);
        }
        Kept::Nothing
    }

    /// Returns the block that the strategy of whoever owes most would let go next.
    fn next_to_leave(&mut self, now: Moment, class: u8, has_disk: bool) -> Option<u32> {
        let (request, clock, turn) = (self.request, self.hold_clock(now), self.stats.evicted);
        let mut donors = self.donors(class, has_disk)?;
        while let Some(Donor { party, from: tiers, .. }) =
            donors.next(turn, |donor| self.age(donor.party, class, donor.from))
        {
            let records = &self.index.records;
            let mut may_go = |at: u32| {
                let record = &records[at as usize];
                record.is_evictable(clock) && tiers.contains(&record.tier)
            };
            let ranking = self.parties[usize::from(party)].ranking(class);
            ranking.begin(&request);
            let found = ranking.next_to_leave(&mut may_go).or_else(|| {
                let recency = &self.recency;
                let mut coldest = tiers
                    .iter()
                    .rev()
                    .flat_map(|tier| recency.of(records, *tier, party, class).take(STEP as usize));
                coldest.find(|at| may_go(*at))
            });
            if found.is_some() {
                return found;
            }
        }
        None
    }

    /// Finds who may give: from memory where nothing is below it, else by what memory would move to a disk that is full.
    fn donors(&self, class: u8, has_disk: bool) -> Option<Donors> {
        let capacity = self.capacity_bytes();
        let want = Want { by: MEMORY, from: MEMORY, capacity, coming: None };
        let mut donors = Donors::among(&self.parties, &want);
        if !has_disk {
            return Some(donors);
        }
        let turn = self.stats.evicted;
        let mover = donors.next(turn, |donor| self.age(donor.party, class, donor.from))?;
        let bytes = self.config.classes[usize::from(class)];
        Some(Donors::below(&self.parties, &capacity, (mover.party, bytes)))
    }

    /// Says whether a block more in memory begins no collection, and none is under way.
    pub(super) fn has_room_to_collection(&self, class: u8) -> bool {
        let (used, capacity) = self.memory_of(class);
        let is_below = |threshold: u16| (used + 1) * 1000 <= capacity * u64::from(threshold);
        !self.garbage.is_collecting(class) && self.config.gc_per_mille.is_none_or(is_below)
    }

    /// Counts a block that a collection has made leave memory.
    pub(super) fn count_collected(&mut self, class: u8, why: Reason) {
        let collected = &mut self.stats.collected[why as usize];
        collected.blocks += 1;
        collected.bytes += self.config.classes[usize::from(class)];
    }
}
