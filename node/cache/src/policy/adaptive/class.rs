//! Which blocks are taken to be alike. A block's class is settled by what was known when it was last used: how often it was
//! used, how long it had waited, whether it is a partial tail, what the engine said, and how its request scored.

use super::ages::Tick;
use crate::policy::Hint;

/// Levels of the request's score within a class; classes that differ by it alone share a parent.
pub(super) const OCTILES: usize = 8;

const USES: usize = 8;
const GAPS: usize = 4;
const TAILS: usize = 2;
const HINTS: usize = 4;

/// Classes but for the score.
pub(super) const FAMILIES: usize = USES * GAPS * TAILS * HINTS;

/// What is remembered of one block from use to use, resident or ghost.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(super) struct Past {
    /// Request that used it last.
    pub(super) last: Tick,
    /// Times it was used, as far as it was remembered.
    pub(super) uses: u8,
    /// Turn of the conversation that brought it, as far as that can be told from prefixes.
    pub(super) turn: u8,
    /// Binary logarithm of the number of blocks of its last request: long requests must not outvote short ones.
    pub(super) span: u8,
    marks: u8,
}

impl Past {
    /// Nothing is known.
    pub(super) const EMPTY: Past = Past { last: 0, uses: 0, turn: 0, span: 0, marks: 0 };
}

const GAP: u8 = 0b0000_0011;
const BRANCHES: u8 = 0b0000_1100;
const BRANCH: u8 = 0b0000_0100;
const PARTIAL: u8 = 0b0001_0000;
const WATCHED: u8 = 0b0010_0000;
const SAMPLED: u8 = 0b0100_0000;

/// Blocks that a sampled one stands for.
pub(super) const SAMPLE: u32 = 8;

impl Past {
    /// Level of the time between its last two uses: 0 for one use only, then 1 to 3.
    pub(super) fn gap(self) -> u8 {
        self.marks & GAP
    }

    pub(super) fn set_gap(&mut self, level: u8) {
        self.marks = self.marks & !GAP | level & GAP;
    }

    /// Whether three or more different blocks followed it: a shared prefix rather than a conversation.
    pub(super) fn is_fork(self) -> bool {
        self.marks & BRANCHES == BRANCHES
    }

    pub(super) fn add_branch(&mut self) {
        if !self.is_fork() {
            self.marks += BRANCH;
        }
    }

    pub(super) fn is_partial(self) -> bool {
        self.marks & PARTIAL != 0
    }

    pub(super) fn set_partial(&mut self, partial: bool) {
        self.marks = self.marks & !PARTIAL | if partial { PARTIAL } else { 0 };
    }

    /// Whether the score waits to see if this block comes back.
    pub(super) fn is_watched(self) -> bool {
        self.marks & WATCHED != 0
    }

    pub(super) fn set_watched(&mut self, watched: bool) {
        self.marks = self.marks & !WATCHED | if watched { WATCHED } else { 0 };
    }

    /// Whether it stands for [`SAMPLE`] blocks, as those sampled from many ghosts do until they are used again.
    pub(super) fn is_sampled(self) -> bool {
        self.marks & SAMPLED != 0
    }

    pub(super) fn set_sampled(&mut self, sampled: bool) {
        self.marks = self.marks & !SAMPLED | if sampled { SAMPLED } else { 0 };
    }

    /// Returns the class but for the score.
    pub(super) fn family(self, hint: Hint) -> usize {
        let uses = match self.uses {
            0 | 1 => 0,
            2 => 1,
            3..=5 => 2,
            6..=9 => 3,
            10..=17 => 4,
            18..=35 => 5,
            36..=80 => 6,
            _ => 7,
        };
        let hint = match hint {
            Hint::None => 0,
            Hint::Over => 1,
            Hint::Pending => 2,
            Hint::Returns(_) => 3,
        };
        ((hint * USES + uses) * TAILS + usize::from(self.is_partial())) * GAPS + usize::from(self.gap())
    }

    /// Returns how much the block weighs in what is learnt: 1/sqrt(blocks of its request), in 1/256.
    pub(super) fn weight(self) -> u32 {
        const WEIGHT: [u32; 17] = [256, 215, 181, 152, 128, 108, 91, 76, 64, 54, 45, 38, 32, 27, 23, 19, 16];
        WEIGHT[usize::from(self.span).min(16)] * if self.is_sampled() { SAMPLE } else { 1 }
    }
}

/// Returns about how often the blocks of a family were used.
pub(super) fn uses_of(family: usize) -> u8 {
    [1, 2, 4, 7, 13, 26, 56, 128][family / (TAILS * GAPS) % USES]
}

/// Returns the binary logarithm of a request's length in half steps, for [`Past::span`].
pub(super) fn span(blocks: u32) -> u8 {
    (f64::from(blocks.max(1)).log2() * 2.0).round().min(16.0) as u8
}
