//! Blocks of one class last used at about the same time. They age together, so that ageing costs the number of cohorts and
//! not of blocks; and ghosts need no place in any queue. What became of them in an age bucket is counted when that is over.

use super::ages::{Ages, BUCKETS, Tick};
use super::hazard::{Hazards, MAX_ROWS};
use super::ranking::{NONE, Ranking, cell};

/// A cohort. It lives until the last of its members is used again or forgotten, and that is counted.
#[derive(Clone, Debug)]
pub(super) struct Cohort {
    /// When its members were last used.
    pub(super) start: Tick,
    pub(super) row: u16,
    pub(super) bucket: u8,
    /// Its members, resident and ghost.
    members: u32,
    /// Their weight in what is learnt, in 1/256.
    weight: u32,
    /// Weight of those that were members when its bucket began, and were used since.
    used: u32,
    /// Resident leaves, the first to leave first; threaded through the records.
    pub(super) head: u32,
    pub(super) tail: u32,
    /// Cohorts of the same cell with leaves.
    previous: u32,
    pub(super) next: u32,
    /// The cohorts that age before and after this one; among free slots `behind` is the next free one.
    ahead: u32,
    behind: u32,
}

/// Bucket of a slot that holds no cohort.
const FREE: u8 = u8::MAX;

/// A first-in first-out queue of the cohorts of one age bucket.
#[derive(Clone, Copy)]
struct Queue {
    head: u32,
    tail: u32,
    /// When the head has to leave the bucket; only meaningful when there is one.
    due: Tick,
}

/// Steps that a cohort is looked for its place by age before it is put where it is.
const MAX_STEPS: usize = 16;

/// Cohorts that there may be in a small pool; in a large one, one for so many blocks of its capacity.
const FEW_COHORTS: usize = 1 << 16;
const BLOCKS_PER_COHORT: usize = 16;

/// All cohorts.
pub(super) struct Cohorts {
    ages: Ages,
    /// With more, none is made where an older one will do, and none is kept only to be counted in time.
    limit: usize,
    slots: Vec<Cohort>,
    free: u32,
    alive: u32,
    queues: [Queue; BUCKETS],
}

/// Whether `a` comes before `b`, modulo 2^32.
fn is_before(a: Tick, b: Tick) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

impl Cohorts {
    /// Makes no cohorts yet, for a pool of so many blocks.
    pub(super) fn new(ages: Ages, capacity: usize) -> Cohorts {
        let limit = Cohorts::limit(capacity);
        let queue = Queue { head: NONE, tail: NONE, due: 0 };
        Cohorts { ages, limit, slots: Vec::new(), free: NONE, alive: 0, queues: [queue; BUCKETS] }
    }

    fn limit(capacity: usize) -> usize {
        (capacity / BLOCKS_PER_COHORT).max(FEW_COHORTS)
    }

    /// Returns the bytes that they take at most.
    pub(super) fn most_bytes(capacity: usize) -> usize {
        (Cohorts::limit(capacity) + MAX_ROWS) * size_of::<Cohort>()
    }

    pub(super) fn get(&self, at: u32) -> &Cohort {
        &self.slots[at as usize]
    }

    pub(super) fn get_mut(&mut self, at: u32) -> &mut Cohort {
        &mut self.slots[at as usize]
    }

    /// Makes a cohort without members; the caller gives it at least one at once.
    pub(super) fn open(&mut self, row: u16, now: Tick) -> u32 {
        let cohort = Cohort {
            start: now,
            row,
            bucket: 0,
            members: 0,
            weight: 0,
            used: 0,
            head: NONE,
            tail: NONE,
            previous: NONE,
            next: NONE,
            ahead: NONE,
            behind: NONE,
        };
        let at = if self.free == NONE {
            // Each class may open one beyond the limit.
            super::grow(&mut self.slots, self.limit + MAX_ROWS);
            self.slots.push(cohort);
            u32::try_from(self.slots.len() - 1).expect("there are fewer cohorts than records and ghosts")
        } else {
            let at = self.free;
            self.free = self.slots[at as usize].behind;
            self.slots[at as usize] = cohort;
            at
        };
        self.alive += 1;
        self.enqueue(0, at);
        at
    }

    pub(super) fn join(&mut self, at: u32, weight: u32) {
        let cohort = &mut self.slots[at as usize];
        cohort.members += 1;
        cohort.weight += weight;
    }

    /// Lets a member weigh more or less from now on.
    pub(super) fn reweigh(&mut self, at: u32, before: u32, after: u32) {
        let cohort = &mut self.slots[at as usize];
        cohort.weight = cohort.weight - before + after;
    }

    /// Counts a member out that is forgotten, and is in no list of leaves any more.
    pub(super) fn leave(&mut self, at: u32, weight: u32) {
        let cohort = &mut self.slots[at as usize];
        debug_assert!(cohort.members > 0, "a member leaves its own cohort");
        cohort.members -= 1;
        cohort.weight -= weight;
        if cohort.members == 0 && cohort.used == 0 {
            self.close(at);
        }
    }

    /// Counts a member out that was used again, and is in no list of leaves any more.
    pub(super) fn leave_used(&mut self, at: u32, weight: u32, hazards: &mut Hazards) {
        self.slots[at as usize].used += weight;
        self.leave(at, weight);
        if self.slots[at as usize].members == 0 && self.is_crowded() {
            self.count(at, hazards);
            self.close(at);
        }
    }

    /// Says whether there are as many cohorts as there may be.
    pub(super) fn is_crowded(&self) -> bool {
        self.alive as usize >= self.limit
    }

    /// Counts what became of the members in the bucket that is over.
    fn count(&mut self, at: u32, hazards: &mut Hazards) {
        let Cohort { row, bucket, weight, ref mut used, .. } = self.slots[at as usize];
        let used = std::mem::take(used);
        hazards.count(row, bucket.into(), weight + used, used);
    }

    fn close(&mut self, at: u32) {
        debug_assert_eq!(self.slots[at as usize].head, NONE, "an empty cohort has no leaf");
        self.dequeue(self.slots[at as usize].bucket.into(), at);
        self.set_free(at);
    }

    fn set_free(&mut self, at: u32) {
        self.slots[at as usize].bucket = FREE;
        self.slots[at as usize].behind = self.free;
        self.free = at;
        self.alive -= 1;
    }

    /// Whether this slot holds the cohort that was opened for `row` at `start`.
    pub(super) fn is_open(&self, at: u32, row: u16, start: Tick) -> bool {
        self.slots
            .get(at as usize)
            .is_some_and(|cohort| cohort.bucket != FREE && cohort.row == row && cohort.start == start)
    }

    fn enqueue(&mut self, bucket: usize, at: u32) {
        let tail = self.queues[bucket].tail;
        self.slots[at as usize].ahead = tail;
        self.slots[at as usize].behind = NONE;
        if tail == NONE {
            self.queues[bucket].head = at;
            self.set_due(bucket);
        } else {
            self.slots[tail as usize].behind = at;
        }
        self.queues[bucket].tail = at;
    }

    fn dequeue(&mut self, bucket: usize, at: u32) {
        let Cohort { ahead, behind, .. } = self.slots[at as usize];
        if behind == NONE {
            self.queues[bucket].tail = ahead;
        } else {
            self.slots[behind as usize].ahead = ahead;
        }
        if ahead == NONE {
            self.queues[bucket].head = behind;
            self.set_due(bucket);
        } else {
            self.slots[ahead as usize].behind = behind;
        }
    }

    fn set_due(&mut self, bucket: usize) {
        let head = self.queues[bucket].head;
        if head != NONE {
            let age = self.ages.end(bucket).unwrap_or(u32::MAX / 2);
            self.queues[bucket].due = self.slots[head as usize].start.wrapping_add(age);
        }
    }

    /// Moves every cohort to the bucket of its age, after counting what became of its members in the one before.
    pub(super) fn age(&mut self, now: Tick, hazards: &mut Hazards, ranking: &mut Ranking) {
        for bucket in 0..BUCKETS {
            while self.queues[bucket].head != NONE && !is_before(now, self.queues[bucket].due) {
                let at = self.queues[bucket].head;
                self.dequeue(bucket, at);
                self.count(at, hazards);
                if self.slots[at as usize].members == 0 {
                    self.set_free(at);
                    continue;
                }
                self.move_on(at, (bucket + 1).min(BUCKETS - 1), now, ranking);
            }
        }
    }

    fn move_on(&mut self, at: u32, bucket: usize, now: Tick, ranking: &mut Ranking) {
        let has_leaves = self.slots[at as usize].head != NONE;
        if has_leaves {
            self.unlist(at, ranking);
        }
        let cohort = &mut self.slots[at as usize];
        if usize::from(cohort.bucket) == BUCKETS - 1 {
            // Half the range of a tick has passed: kept comparable, and as old as can be.
            cohort.start = now.wrapping_sub(u32::MAX / 4);
        }
        cohort.bucket = bucket as u8;
        if has_leaves {
            self.list(at, ranking);
        }
        self.enqueue(bucket, at);
    }

    /// Puts a cohort that has leaves into the list of its cell, by age.
    pub(super) fn list(&mut self, at: u32, ranking: &mut Ranking) {
        let Cohort { row, bucket, start, .. } = self.slots[at as usize];
        let cell = cell(row, bucket);
        let (mut head, mut tail) = (ranking.head(cell), ranking.tail(cell));
        let mut before = tail;
        if tail != NONE && is_before(start, self.slots[tail as usize].start) {
            // It has become leafy late, as a rule as one of the oldest: looked for from the old end.
            before = NONE;
            let mut after = head;
            for _ in 0..MAX_STEPS {
                if after == NONE || is_before(start, self.slots[after as usize].start) {
                    break;
                }
                before = after;
                after = self.slots[after as usize].next;
            }
        }
        let after = if before == NONE { head } else { self.slots[before as usize].next };
        self.slots[at as usize].previous = before;
        self.slots[at as usize].next = after;
        if before == NONE {
            head = at;
        } else {
            self.slots[before as usize].next = at;
        }
        if after == NONE {
            tail = at;
        } else {
            self.slots[after as usize].previous = at;
        }
        ranking.set_ends(cell, head, tail);
    }

    /// Takes a cohort out of the list of its cell.
    pub(super) fn unlist(&mut self, at: u32, ranking: &mut Ranking) {
        let Cohort { row, bucket, previous, next, .. } = self.slots[at as usize];
        let cell = cell(row, bucket);
        let (mut head, mut tail) = (ranking.head(cell), ranking.tail(cell));
        if previous == NONE {
            head = next;
        } else {
            self.slots[previous as usize].next = next;
        }
        if next == NONE {
            tail = previous;
        } else {
            self.slots[next as usize].previous = previous;
        }
        ranking.set_ends(cell, head, tail);
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.slots.capacity() * size_of::<Cohort>()
    }
}
