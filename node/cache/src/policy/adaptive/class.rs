//! Which blocks are taken to be alike. A block's class is settled by what was known when it was last used: how often it was
//! used, how long it had waited, whether it is a partial tail, what the engine said, and how its request scored.

use super::ages::Tick;
use crate::policy::Hint;

/// Levels of the request's score within a class; classes that differ by it alone share a parent.
pub(super) const OCTILES: usize = 8;

/// Least uses of each level of them, fine and coarse.
const USES: [u8; 12] = [0, 2, 3, 4, 5, 7, 10, 14, 20, 32, 60, 120];
const COARSE_USES: [u8; 8] = [0, 2, 3, 6, 10, 18, 36, 81];

/// Least buckets of age of each level of the last gap; before them is the level of blocks that had none.
const GAPS: [u8; 7] = [0, 5, 8, 11, 13, 15, 17];
const COARSE_GAPS: [u8; 3] = [0, 5, 11];

const TAILS: usize = 2;
const HINTS: usize = 4;

/// Classes but for the score.
pub(super) const FAMILIES: usize = USES.len() * (GAPS.len() + 1) * TAILS * HINTS;

/// The same with coarse levels.
pub(super) const KINDS: usize = COARSE_USES.len() * (COARSE_GAPS.len() + 1) * TAILS * HINTS;

/// What is remembered of one block from use to use, resident or ghost.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(super) struct Past {
    /// Request that used it last.
    pub(super) last: Tick,
    /// Times it was used, as far as it was remembered.
    pub(super) uses: u8,
    /// Turn of the conversation that brought it, as far as that can be told from prefixes.
    pub(super) turn: u8,
    /// One more than the bucket of the time between its last two uses, 0 if it was used once; and its branches.
    gap: u8,
    /// Span of its last request, and marks.
    marks: u8,
}

impl Past {
    /// Nothing is known.
    pub(super) const EMPTY: Past = Past { last: 0, uses: 0, turn: 0, gap: 0, marks: 0 };
}

const GAP: u8 = 0b0011_1111;
const BRANCHES: u8 = 0b1100_0000;
const BRANCH: u8 = 0b0100_0000;
const SPAN: u8 = 0b0001_1111;
const PARTIAL: u8 = 0b0010_0000;
const WATCHED: u8 = 0b0100_0000;
const SAMPLED: u8 = 0b1000_0000;

/// Blocks that a sampled one stands for.
pub(super) const SAMPLE: u32 = 8;

/// Returns the last level that begins at or before a value.
fn level(begins: &[u8], value: u8) -> usize {
    begins.partition_point(|begin| *begin <= value) - 1
}

impl Past {
    /// Notes that its last two uses lay an age of this bucket apart.
    pub(super) fn set_gap(&mut self, bucket: usize) {
        self.gap = self.gap & !GAP | (bucket as u8 + 1) & GAP;
    }

    /// Returns the bucket of the time between its last two uses, none if it was used once.
    pub(super) fn gap(self) -> Option<u8> {
        (self.gap & GAP).checked_sub(1)
    }

    /// Level of its last gap, 0 for one use only.
    fn gap_level(self, begins: &[u8]) -> usize {
        self.gap().map_or(0, |bucket| level(begins, bucket) + 1)
    }

    /// Binary logarithm in half steps of the number of blocks of its last request: long requests must not outvote short ones.
    pub(super) fn set_span(&mut self, span: u8) {
        self.marks = self.marks & !SPAN | span & SPAN;
    }

    /// Whether three or more different blocks followed it: a shared prefix rather than a conversation.
    pub(super) fn is_fork(self) -> bool {
        self.gap & BRANCHES == BRANCHES
    }

    pub(super) fn add_branch(&mut self) {
        if !self.is_fork() {
            self.gap += BRANCH;
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
        let levels = (level(&USES, self.uses), self.gap_level(&GAPS));
        ((self.side(hint) * USES.len()) + levels.0) * (GAPS.len() + 1) + levels.1
    }

    /// Returns the class by coarse levels but for the score.
    pub(super) fn kind(self, hint: Hint) -> usize {
        let levels = (level(&COARSE_USES, self.uses), self.gap_level(&COARSE_GAPS));
        ((self.side(hint) * COARSE_USES.len()) + levels.0) * (COARSE_GAPS.len() + 1) + levels.1
    }

    fn side(self, hint: Hint) -> usize {
        let hint = match hint {
            Hint::None => 0,
            Hint::Over => 1,
            Hint::Pending => 2,
            Hint::Returns(_) => 3,
        };
        hint * TAILS + usize::from(self.is_partial())
    }

    /// Returns how much the block weighs in what is learnt: 1/sqrt(blocks of its request), in 1/256.
    pub(super) fn weight(self) -> u32 {
        const WEIGHT: [u32; 17] = [256, 215, 181, 152, 128, 108, 91, 76, 64, 54, 45, 38, 32, 27, 23, 19, 16];
        WEIGHT[usize::from(self.marks & SPAN).min(16)] * if self.is_sampled() { SAMPLE } else { 1 }
    }
}

/// Returns the first bucket of the last gap of the blocks of a family, none for those used once.
pub(super) fn gap_of(family: usize) -> Option<usize> {
    (family % (GAPS.len() + 1)).checked_sub(1).map(|level| usize::from(GAPS[level]))
}

/// Returns about how often the blocks of a family were used.
pub(super) fn uses_of(family: usize) -> u8 {
    [1, 2, 3, 4, 5, 8, 11, 16, 25, 42, 80, 150][family / (GAPS.len() + 1) % USES.len()]
}

/// Returns the binary logarithm of a request's length in half steps, for [`Past::set_span`].
pub(super) fn span(blocks: u32) -> u8 {
    (f64::from(blocks.max(1)).log2() * 2.0).round().min(16.0) as u8
}
