//! The order in which blocks leave. A *cell* is a class at an age; its rank is quantized to a level, and a bitmap finds the
//! lowest level that holds a leaf. A cell's blocks leave oldest request first, deepest block first.

use super::ages::BUCKETS;

/// The end of a list, and no place in one.
pub(super) const NONE: u32 = u32::MAX;

/// Levels of rank, 48 to the octave: neighbours differ by 1.5 %.
const LEVELS: usize = 1920;
const LEVELS_PER_OCTAVE: f32 = 48.0;

/// Octaves below one that levels span.
const OCTAVES: f32 = 40.0;

/// Quantized rank; the lowest leaves first.
pub(super) type Level = u16;

/// Returns the level of a place on a scale from 0, leaves first, to 1.
pub(super) fn level_on_scale(place: f32) -> Level {
    (place * (LEVELS - 1) as f32).clamp(0.0, (LEVELS - 1) as f32) as Level
}

/// Returns the level of a rank between 0 and 1.
pub(super) fn level(rank: f32) -> Level {
    ((rank.max(f32::MIN_POSITIVE).log2() + OCTAVES) * LEVELS_PER_OCTAVE).clamp(0.0, (LEVELS - 1) as f32)
        as Level
}

#[derive(Clone, Copy, Debug)]
struct Cell {
    /// By who is in charge.
    level: Level,
    /// By what was learnt.
    learnt: Level,
    /// First and last cohort of the cell that has resident leaves; the list is threaded through the cohorts.
    head: u32,
    tail: u32,
    previous: u32,
    next: u32,
}

/// All cells, and those that hold leaves by level.
pub(super) struct Ranking {
    cells: Vec<Cell>,
    heads: Vec<u32>,
    filled: [u64; LEVELS / 64],
}

/// Number of a cell.
pub(super) fn cell(row: u16, bucket: u8) -> u32 {
    u32::from(row) * BUCKETS as u32 + u32::from(bucket)
}

impl Ranking {
    pub(super) fn new() -> Ranking {
        Ranking { cells: Vec::new(), heads: vec![NONE; LEVELS], filled: [0; LEVELS / 64] }
    }

    /// Adds a class, ranked lowest until [`Ranking::rerank`].
    pub(super) fn add_row(&mut self) {
        let cell = Cell { level: 0, learnt: 0, head: NONE, tail: NONE, previous: NONE, next: NONE };
        self.cells.resize(self.cells.len() + BUCKETS, cell);
    }

    /// Gives a class new ranks: what was learnt, and what counts now.
    pub(super) fn rerank(&mut self, row: u16, learnt: &[Level; BUCKETS], levels: &[Level; BUCKETS]) {
        for bucket in 0..BUCKETS {
            let at = cell(row, bucket as u8);
            let cell = &mut self.cells[at as usize];
            cell.learnt = learnt[bucket];
            if cell.level == levels[bucket] {
                continue;
            }
            let is_listed = cell.head != NONE;
            if is_listed {
                self.unlist(at);
            }
            self.cells[at as usize].level = levels[bucket];
            if is_listed {
                self.list(at);
            }
        }
    }

    /// Returns the levels of a class by what was learnt, as they were told last.
    pub(super) fn learnt_of(&self, row: u16) -> [Level; BUCKETS] {
        std::array::from_fn(|bucket| self.learnt_level(cell(row, bucket as u8)))
    }

    /// Returns the level of a cell by what was learnt, whoever is in charge.
    pub(super) fn learnt_level(&self, cell: u32) -> Level {
        self.cells[cell as usize].learnt
    }

    pub(super) fn level_of(&self, cell: u32) -> Level {
        self.cells[cell as usize].level
    }

    pub(super) fn head(&self, cell: u32) -> u32 {
        self.cells[cell as usize].head
    }

    pub(super) fn tail(&self, cell: u32) -> u32 {
        self.cells[cell as usize].tail
    }

    /// Sets the ends of a cell's list of cohorts and lists the cell by its level while it is not empty.
    pub(super) fn set_ends(&mut self, at: u32, head: u32, tail: u32) {
        let cell = &mut self.cells[at as usize];
        let was_listed = cell.head != NONE;
        cell.head = head;
        cell.tail = tail;
        if was_listed && head == NONE {
            self.unlist(at);
        } else if !was_listed && head != NONE {
            self.list(at);
        }
    }

    /// Returns the first cell of the lowest filled level at or above `from`.
    pub(super) fn lowest(&self, from: Level) -> Option<u32> {
        let from = usize::from(from);
        let mut word = from / 64;
        let mut bits = self.filled.get(word)? & (u64::MAX << (from % 64));
        while bits == 0 {
            word += 1;
            bits = *self.filled.get(word)?;
        }
        Some(self.heads[word * 64 + bits.trailing_zeros() as usize])
    }

    /// Returns the cell that leaves after this one on the same or a higher level.
    pub(super) fn after(&self, at: u32) -> Option<u32> {
        let cell = &self.cells[at as usize];
        if cell.next != NONE {
            return Some(cell.next);
        }
        self.lowest(cell.level + 1)
    }

    /// Puts a listed cell before the others of its level.
    pub(super) fn put_first(&mut self, at: u32) {
        if self.cells[at as usize].previous != NONE {
            self.unlist(at);
            self.list(at);
        }
    }

    fn list(&mut self, at: u32) {
        let level = usize::from(self.cells[at as usize].level);
        let next = std::mem::replace(&mut self.heads[level], at);
        self.cells[at as usize].previous = NONE;
        self.cells[at as usize].next = next;
        if next != NONE {
            self.cells[next as usize].previous = at;
        }
        self.filled[level / 64] |= 1 << (level % 64);
    }

    fn unlist(&mut self, at: u32) {
        let Cell { level, previous, next, .. } = self.cells[at as usize];
        let level = usize::from(level);
        if next != NONE {
            self.cells[next as usize].previous = previous;
        }
        if previous != NONE {
            self.cells[previous as usize].next = next;
        } else {
            self.heads[level] = next;
            if next == NONE {
                self.filled[level / 64] &= !(1 << (level % 64));
            }
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.cells.capacity() * size_of::<Cell>() + self.heads.capacity() * size_of::<u32>()
    }
}
