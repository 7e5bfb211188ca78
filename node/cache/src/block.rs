//! A block's record within a shard, and the names by which the outside refers to it.
//!
//! The life of a block: a write ticket (*reserved*, *filling*) is invisible; sealing makes it *resident*; a resident
//! block that goes while somebody reads it is *leaving* until the last reader has gone. A write that was *given up* while something
//! may write to its frame keeps that, and nothing else. There is no way from a ticket that was abandoned or given up, or from a leaving
//! block, back to a resident one.

use kvhive_planted::{Bug, is};
use kvhive_protocol::block::Codec;
use kvhive_protocol::{BlockKey, Moment};
use std::time::Duration;

/// No record.
pub(crate) const NIL: u32 = u32::MAX;
/// No link to a parent.
pub(crate) const NO_PARENT: (u32, u32) = (NIL, 0);

/// Where a block's bytes are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Tier {
    /// The device's own memory.
    Device,
    /// Host memory over it.
    Host,
    /// Records in files.
    Disk,
}

impl Tier {
    /// All tiers, fastest first.
    pub const ALL: [Tier; 3] = [Tier::Device, Tier::Host, Tier::Disk];

    /// Returns the next slower tier.
    pub fn below(self) -> Option<Tier> {
        match self {
            Tier::Device => Some(Tier::Host),
            Tier::Host => Some(Tier::Disk),
            Tier::Disk => None,
        }
    }

    /// Returns the next faster tier.
    pub fn above(self) -> Option<Tier> {
        match self {
            Tier::Device => None,
            Tier::Host => Some(Tier::Device),
            Tier::Disk => Some(Tier::Host),
        }
    }
}

impl BlockId {
    /// Returns the number of its record: below the shard's number of frames, one block at a time.
    pub fn index(self) -> usize {
        self.index as usize
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub struct $name {
            pub(crate) index: u32,
            pub(crate) generation: u32,
        }
    };
}

name! {
    /// Names one stay of a block in a shard. Never names another block, nor another stay of the same one.
    BlockId
}
name! {
    /// Names one write under way.
    WriteTicket
}
impl WriteTicket {
    /// Of a write that is no shard's: no shard gives it, and none takes it.
    pub const OF_NONE: WriteTicket = WriteTicket { index: u32::MAX, generation: u32::MAX };
}
name! {
    /// Names one copy between tiers under way.
    CopyTicket
}
name! {
    /// Names one shrink under way.
    ShrinkTicket
}

/// What a record is in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Life {
    /// Nothing: the record is free.
    Free,
    /// A write ticket is out; invisible.
    Filling,
    /// Visible.
    Resident,
    /// Invisible; its frame is still being read or copied.
    Leaving,
    /// Nothing was written; its frame may be written to yet.
    GivenUp,
}

/// How far a record's bytes are from being fewer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shrinking {
    /// Nothing was tried in vain.
    Open,
    /// They are being re-encoded.
    UnderWay,
    /// They do not get small enough.
    Unfit,
}

/// What may be said of a record, a bit each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Mark(u16);

impl Mark {
    /// It is in its tier's recency list.
    pub(crate) const LISTED: Mark = Mark(1);
    /// It was used since it came to its place in that list.
    pub(crate) const USED: Mark = Mark(1 << 1);
    /// It was used since it was stored.
    pub(crate) const REUSED: Mark = Mark(1 << 2);
    /// It was brought up a tier ahead of its use, and has not been used since.
    pub(crate) const AHEAD: Mark = Mark(1 << 3);
    /// Its session is over, or long overdue: nobody is expected to use it.
    pub(crate) const OVER: Mark = Mark(1 << 6);
    /// It is to be brought up a tier, and has not come.
    pub(crate) const COMING: Mark = Mark(1 << 7);
    /// Several sessions have gone on from it, or one was to that found another's block after it.
    pub(crate) const SHARED: Mark = Mark(1 << 9);
    /// A pin names it: it does not leave to make room.
    pub(crate) const PINNED: Mark = Mark(1 << 8);
    const SHRINKING: Mark = Mark(1 << 4);
    const UNFIT: Mark = Mark(1 << 5);
}

/// The time in milliseconds, modulo 2^32, as ends of holds are written down; they are never farther away than `longest_ms`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HoldClock {
    now_ms: u32,
    longest_ms: u32,
}

/// The longest hold that can be written down.
pub(crate) const MAX_HOLD: Duration = Duration::from_secs(24 * 24 * 3600);

/// The marks' bits that count for how many comings a block is held.
const COMINGS_SHIFT: u32 = 10;
/// As many or more: such a hold ends by its time alone.
const MAX_COMINGS: u16 = u16::MAX >> COMINGS_SHIFT;

/// Requests after which a use is told at the latest.
const LATE: u32 = 1 << 20;

/// Nobody holds it.
const NOT_HELD: u32 = 0;

const NANOS_PER_MS: u64 = 1_000_000;

impl HoldClock {
    pub(crate) fn at(now: Moment, longest: Duration) -> HoldClock {
        let longest_ms = longest.min(MAX_HOLD).as_millis() as u32 + 1;
        HoldClock { now_ms: (now.as_nanos() / NANOS_PER_MS) as u32, longest_ms }
    }

    /// How long a hold still lasts: a hold that ended is as good as forgotten, but for a moment every 49 days.
    fn left_ms(self, held_until_ms: u32) -> u32 {
        let left = held_until_ms.wrapping_sub(self.now_ms);
        if held_until_ms == NOT_HELD || left > self.longest_ms { 0 } else { left }
    }
}

/// One record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    pub(crate) key: BlockKey,
    pub(crate) generation: u32,
    pub(crate) depth: u32,
    /// The parent's record and generation; dangles when that stay has ended.
    pub(crate) parent: (u32, u32),
    /// Records (resident or filling) that name this one as parent.
    pub(crate) children: u32,
    /// Neighbours in its tier's recency list.
    pub(crate) older: u32,
    pub(crate) newer: u32,
    /// The request that used it last (wraps).
    pub(crate) request: u32,
    /// See [`HoldClock`].
    pub(crate) held_until_ms: u32,
    /// Blocks before it in its prefix that are resident without a gap, by the links to parents; at most so many as are.
    pub(crate) chain: u16,
    pub(crate) readers: u16,
    /// Number of its tenant and era.
    pub(crate) owner: u16,
    pub(crate) party: u16,
    pub(crate) slot: u16,
    pub(crate) class: u8,
    pub(crate) tier: Tier,
    pub(crate) life: Life,
    /// Where a copy of it that is under way goes.
    pub(crate) copying: Option<Tier>,
    /// How its bytes are stored.
    pub(crate) codec: Codec,
    pub(crate) marks: u16,
    /// The last loss of a block before its children when its chain was looked at: it is true while no other came.
    pub(crate) after_loss: u8,
}

impl Record {
    pub(crate) const EMPTY: Record = Record {
        key: BlockKey::NONE,
        generation: 0,
        depth: 0,
        parent: NO_PARENT,
        children: 0,
        older: NIL,
        newer: NIL,
        request: 0,
        held_until_ms: NOT_HELD,
        chain: 0,
        readers: 0,
        owner: 0,
        party: 0,
        slot: 0,
        class: 0,
        tier: Tier::Device,
        life: Life::Free,
        copying: None,
        codec: Codec::Raw,
        marks: 0,
        after_loss: 0,
    };

    pub(crate) fn is(&self, mark: Mark) -> bool {
        self.marks & mark.0 != 0
    }

    pub(crate) fn set(&mut self, mark: Mark, is: bool) {
        self.marks = self.marks & !mark.0 | if is { mark.0 } else { 0 };
    }

    /// Says whether it had a mark, which it has no more.
    pub(crate) fn take(&mut self, mark: Mark) -> bool {
        let was = self.is(mark);
        self.set(mark, false);
        was
    }

    /// Notes a request that used it; says whether none that came later, nor this one, was known to have. Uses are told late, and
    /// not always in their order.
    pub(crate) fn used_by(&mut self, request: u32) -> bool {
        // Requests wrap: what was not used for very long must not look like what was just used.
        let is_known = self.request.wrapping_sub(request) < LATE;
        if !is_known {
            self.request = request;
        }
        !is_known
    }

    pub(crate) fn shrinking(&self) -> Shrinking {
        if self.is(Mark::SHRINKING) {
            Shrinking::UnderWay
        } else if self.is(Mark::UNFIT) {
            Shrinking::Unfit
        } else {
            Shrinking::Open
        }
    }

    pub(crate) fn set_shrinking(&mut self, shrinking: Shrinking) {
        self.set(Mark::SHRINKING, shrinking == Shrinking::UnderWay);
        self.set(Mark::UNFIT, shrinking == Shrinking::Unfit);
    }

    /// Counts a reader more. False where there are as many as can be counted.
    pub(crate) fn add_reader(&mut self) -> bool {
        let more = self.readers.checked_add(1);
        more.inspect(|readers| self.readers = *readers).is_some()
    }

    /// Holds the block for somebody who is to come for it so often, until then at most.
    pub(crate) fn hold(&mut self, clock: HoldClock, until: Moment, comings: u16) {
        let before = if self.is_held(clock) { self.comings() } else { 0 };
        let until_ms = until.as_nanos().div_ceil(NANOS_PER_MS) as u32;
        let left_ms = until_ms.wrapping_sub(clock.now_ms);
        if left_ms > clock.left_ms(self.held_until_ms) && left_ms <= clock.longest_ms {
            self.held_until_ms = if until_ms == NOT_HELD { 1 } else { until_ms };
        }
        self.set_comings(if self.is_held(clock) { before.saturating_add(comings) } else { 0 });
    }

    /// One of those for whom it is held has come; with the last the hold ends.
    pub(crate) fn came(&mut self) {
        match self.comings() {
            0 | MAX_COMINGS => {}
            1 => {
                self.set_comings(0);
                self.held_until_ms = NOT_HELD;
            }
            more => self.set_comings(more - 1),
        }
    }

    fn comings(&self) -> u16 {
        self.marks >> COMINGS_SHIFT
    }

    fn set_comings(&mut self, comings: u16) {
        let marks = self.marks & !(MAX_COMINGS << COMINGS_SHIFT);
        self.marks = marks | comings.min(MAX_COMINGS) << COMINGS_SHIFT;
    }

    pub(crate) fn is_held(&self, clock: HoldClock) -> bool {
        clock.left_ms(self.held_until_ms) > 0
    }

    /// Says whether the block's frame may be taken from it now.
    pub(crate) fn is_movable(&self) -> bool {
        self.life == Life::Resident && self.readers == 0 && !self.is_worked_on()
    }

    /// Says whether nothing needs it here: no block after it, and no pin. To policies such blocks alone are leaves.
    pub(crate) fn is_bare(&self) -> bool {
        (self.children == 0 || is(Bug::ParentsLeaveFirst)) && !self.is(Mark::PINNED)
    }

    /// Says whether its frame is being copied from or re-encoded.
    pub(crate) fn is_worked_on(&self) -> bool {
        self.copying.is_some() || self.is(Mark::SHRINKING)
    }

    /// Says whether the block may be evicted now: it is a leaf that nobody reads, holds or copies, and that no pin names.
    pub(crate) fn is_evictable(&self, clock: HoldClock) -> bool {
        self.is_movable() && self.is_bare() && !self.is_held(clock)
    }
}

const _: () = assert!(size_of::<Record>() == 88);

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_millis(5000);

    /// Says at which of the moments a block is held that was matched at `now` for so long.
    fn held(now: Moment, hold_ms: u64, later_ms: &[u64]) -> Vec<bool> {
        let mut record = Record::EMPTY;
        record.hold(HoldClock::at(now, LONGEST), now + Duration::from_millis(hold_ms), 1);
        let at = |later: &u64| HoldClock::at(now + Duration::from_millis(*later), LONGEST);
        later_ms.iter().map(|later| record.is_held(at(later))).collect()
    }

    #[test]
    fn a_hold_ends_when_it_is_over_and_not_before() {
        const DAY: u64 = 24 * 3600 * 1000;
        let wraps = u64::from(u32::MAX) + 1;
        for now_ms in [0, 1, 7 * DAY, wraps - 3, wraps, 400 * DAY] {
            let now = Moment::from_millis(now_ms);
            assert_eq!(
                held(now, 50, &[0, 49, 50, 51, 5001, DAY, 30 * DAY, 49 * DAY]),
                [true, true, false, false, false, false, false, false],
                "{now:?}"
            );
            assert_eq!(held(now, 0, &[0, 1, DAY]), [false; 3]);
            assert_eq!(held(now, 5000, &[0, 4999, 5000]), [true, true, false]);
        }
    }

    #[test]
    fn a_shorter_hold_does_not_end_a_longer_one() {
        let now = Moment::from_millis(1000);
        let clock = HoldClock::at(now, LONGEST);
        let mut record = Record::EMPTY;
        record.hold(clock, now + LONGEST, 1);
        record.hold(clock, now + Duration::from_millis(1), 1);
        assert!(record.is_held(HoldClock::at(now + Duration::from_millis(4999), LONGEST)));
    }

    #[test]
    fn a_hold_ends_with_the_last_who_comes_for_it() {
        let (now, mark) = (Moment::from_millis(1000), Mark::SHARED);
        let clock = HoldClock::at(now, LONGEST);
        let comes = |holds: &[u16], comings: usize| {
            let mut record = Record::EMPTY;
            record.set(mark, true);
            holds.iter().for_each(|count| record.hold(clock, now + LONGEST, *count));
            (0..comings).for_each(|_| record.came());
            assert!(record.is(mark), "what else is marked stays");
            record.is_held(clock)
        };
        assert_eq!([0, 1, 2].map(|comings| comes(&[1], comings)), [true, false, false]);
        assert_eq!([1, 2, 3].map(|comings| comes(&[1, 2], comings)), [true, true, false]);
        assert!(comes(&[1; 100], 100), "more than can be counted end by their time");
        let mut record = Record::EMPTY;
        record.hold(clock, now + Duration::from_millis(5), 9);
        let later = HoldClock::at(now + LONGEST, LONGEST);
        record.hold(later, now + LONGEST * 2, 1);
        record.came();
        assert!(!record.is_held(later), "who did not come in time is not waited for");
    }

    #[test]
    fn who_was_never_held_is_not_held_when_the_milliseconds_come_around() {
        let almost = Moment::from_millis(u64::from(u32::MAX) - 10);
        assert!(!Record::EMPTY.is_held(HoldClock::at(almost, LONGEST)));
    }

    #[test]
    fn readers_are_counted_as_far_as_that_goes() {
        let mut record = Record { readers: u16::MAX - 1, ..Record::EMPTY };
        assert_eq!([record.add_reader(), record.add_reader()], [true, false]);
        assert_eq!(record.readers, u16::MAX);
    }
}
