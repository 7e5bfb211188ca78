//! Numbers found by a hash: of records, of ghosts. The keys lie elsewhere, and are compared there.
//!
//! Open addressing in the order of homes (Celis, "Robin Hood Hashing", 1986): each place knows how far its number is from home,
//! so that only numbers of one home are compared, and a removal moves those after it back instead of leaving a tombstone. So
//! it is never rebuilt but to grow, and takes five bytes for each of five places in four numbers, whatever that number is.

/// Places a number may be away from home.
const MAX_STEPS: u8 = u8::MAX - 1;
/// Places that a table has at least.
const LEAST: usize = 16;

/// A set of numbers. Where a number is put and what is the hash of one that is there is the caller's to know.
pub(crate) struct Table {
    numbers: Vec<u32>,
    /// 0 where there is no number, else one more than the places between it and its home.
    steps: Vec<u8>,
    len: usize,
    /// Places for all the numbers that there will be.
    limit: usize,
}

impl Table {
    /// Makes an empty table that takes its memory as it fills; beyond `limit` numbers it goes on growing.
    pub(crate) fn new(limit: usize) -> Table {
        let limit = Table::places(limit);
        Table { numbers: Vec::new(), steps: Vec::new(), len: 0, limit }
    }

    /// Makes an empty table that has taken its memory.
    pub(crate) fn full_size(limit: usize) -> Table {
        let mut table = Table::new(limit);
        table.resize(table.limit);
        table
    }

    /// Returns the places for so many numbers.
    const fn places(numbers: usize) -> usize {
        numbers + numbers / 4 + LEAST
    }

    /// Returns the bytes that a table of so many numbers takes at most.
    pub(crate) const fn bytes(numbers: usize) -> usize {
        Table::places(numbers) * (size_of::<u32>() + size_of::<u8>())
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Finds a number among those of this hash.
    pub(crate) fn find(&self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        self.place_of(hash, is_it).map(|place| self.numbers[place])
    }

    /// Puts `to` in the place of a number that has the same hash.
    pub(crate) fn renumber(&mut self, hash: u64, from: u32, to: u32) {
        if let Some(place) = self.place_of(hash, |number| number == from) {
            self.numbers[place] = to;
        }
    }

    /// Puts in a number that is not there. `hash_of` says the hashes of others.
    pub(crate) fn insert(&mut self, hash: u64, number: u32, hash_of: impl Fn(u32) -> u64) {
        if (self.len + 1) * 5 > self.steps.len() * 4 {
            let places = self.steps.len();
            let more = (places / 2).max(LEAST);
            // Up to its limit by half, then by an eighth.
            let wanted =
                if places < self.limit { (places + more).min(self.limit) } else { places + places / 8 };
            self.grow(wanted, &hash_of);
        }
        let mut homeless = self.settle(hash, number);
        while let Some(number) = homeless {
            let places = self.steps.len();
            self.grow(places + places / 8 + LEAST, &hash_of);
            homeless = self.settle(hash_of(number), number);
        }
        self.len += 1;
    }

    /// Takes a number out. Says whether it was there.
    pub(crate) fn remove(&mut self, hash: u64, number: u32) -> bool {
        let Some(mut place) = self.place_of(hash, |other| other == number) else { return false };
        loop {
            let after = self.after(place);
            if self.steps[after] <= 1 {
                self.steps[place] = 0;
                self.len -= 1;
                return true;
            }
            self.numbers[place] = self.numbers[after];
            self.steps[place] = self.steps[after] - 1;
            place = after;
        }
    }

    fn place_of(&self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<usize> {
        if self.len == 0 {
            return None;
        }
        let mut place = self.home(hash);
        for steps in 1..=MAX_STEPS {
            // Whoever is nearer to home than one of this hash would be came after none of them.
            if self.steps[place] < steps {
                return None;
            }
            if self.steps[place] == steps && is_it(self.numbers[place]) {
                return Some(place);
            }
            place = self.after(place);
        }
        None
    }

    /// Finds a place for a number, and for those that give way to it. Returns one that found none within reach.
    fn settle(&mut self, hash: u64, mut number: u32) -> Option<u32> {
        let (mut place, mut steps) = (self.home(hash), 1);
        while steps <= MAX_STEPS {
            let there = self.steps[place];
            if there < steps {
                std::mem::swap(&mut self.numbers[place], &mut number);
                self.steps[place] = std::mem::replace(&mut steps, there);
                if there == 0 {
                    return None;
                }
            }
            steps += 1;
            place = self.after(place);
        }
        Some(number)
    }

    fn grow(&mut self, mut places: usize, hash_of: &impl Fn(u32) -> u64) {
        let (numbers, steps) = (std::mem::take(&mut self.numbers), std::mem::take(&mut self.steps));
        loop {
            self.resize(places);
            let there = numbers.iter().zip(&steps).filter(|(_, steps)| **steps > 0);
            if there
                .map(|(number, _)| self.settle(hash_of(*number), *number))
                .all(|homeless| homeless.is_none())
            {
                return;
            }
            places += places / 8 + LEAST;
        }
    }

    /// Takes so many places, all of them empty.
    fn resize(&mut self, places: usize) {
        self.numbers = vec![0; places];
        self.steps = vec![0; places];
    }

    /// Returns a hash's place: the hash as a fraction of one, of as many places.
    fn home(&self, hash: u64) -> usize {
        ((u128::from(hash) * self.steps.len() as u128) >> 64) as usize
    }

    fn after(&self, place: usize) -> usize {
        if place + 1 < self.steps.len() { place + 1 } else { 0 }
    }

    /// Returns bytes of memory held.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.numbers.capacity() * size_of::<u32>() + self.steps.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn mix(number: u32) -> u64 {
        (u64::from(number) + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }

    fn is_right(table: &Table, model: &BTreeSet<u32>, hash_of: impl Fn(u32) -> u64) {
        assert_eq!(table.len(), model.len());
        for number in 0..60 {
            let found = table.find(hash_of(number), |other| other == number);
            assert_eq!(found, model.get(&number).copied(), "{number}");
        }
    }

    proptest! {
        #[test]
        fn what_is_in_is_found_and_nothing_else(steps in prop::collection::vec((0u32..60, any::<bool>()), 0..150), limit in 0usize..60, few_homes: bool) {
            let hash_of = |number: u32| if few_homes { u64::from(number % 3) << 62 } else { mix(number) };
            let (mut table, mut model) = (Table::new(limit), BTreeSet::new());
            for (number, comes) in steps {
                if !comes {
                    prop_assert_eq!(table.remove(hash_of(number), number), model.remove(&number));
                } else if model.insert(number) {
                    table.insert(hash_of(number), number, hash_of);
                }
                is_right(&table, &model, hash_of);
            }
        }
    }

    #[test]
    fn a_full_table_keeps_its_size_however_many_come_and_go() {
        const NUMBERS: u32 = 20_000;
        let hash_of = |number: u32| mix(number.wrapping_mul(7919));
        let mut table = Table::full_size(NUMBERS as usize);
        let size = table.memory_bytes();
        assert_eq!(size, Table::bytes(NUMBERS as usize));
        for number in 0..NUMBERS * 30 {
            if let Some(old) = number.checked_sub(NUMBERS) {
                assert!(table.remove(hash_of(old), old));
            }
            table.insert(hash_of(number), number, hash_of);
        }
        assert_eq!((table.len(), table.memory_bytes()), (NUMBERS as usize, size));
        let mut lazy = Table::new(NUMBERS as usize);
        (0..NUMBERS).for_each(|number| lazy.insert(hash_of(number), number, hash_of));
        assert!(lazy.memory_bytes() <= size, "{} of {size}", lazy.memory_bytes());
    }

    #[test]
    fn more_of_one_home_than_can_be_told_apart_make_it_grow() {
        let hash_of = |number: u32| if number < 200 { 5 } else { mix(number) };
        let mut table = Table::new(400);
        (0..400).for_each(|number| table.insert(hash_of(number), number, hash_of));
        assert!((0..400).all(|number| table.find(hash_of(number), |other| other == number).is_some()));
        table.renumber(5, 7, 1000);
        assert_eq!(table.find(5, |other| other == 1000), Some(1000));
    }
}
