//! Tenant and key → record. The table holds record numbers only; keys are compared where they lie. A block of one tenant is not
//! found for another, whatever the other knows: to it the key is nobody's.

use crate::block::{Life, NIL, Record};
use crate::table::Table;
use foldhash::fast::FixedState;
use kvhive_protocol::BlockKey;
use std::hash::BuildHasher;

/// Records and the table that finds them by key. Both are as large as the frames allow from the start.
pub(crate) struct Index {
    pub(crate) records: Vec<Record>,
    table: Table,
    /// The first free record; each names the next one as its older neighbour.
    free: u32,
    taken: usize,
    hasher: FixedState,
}

impl Index {
    pub(crate) fn new(records: usize, seed: u64) -> Index {
        Index {
            table: Table::full_size(records),
            free: if records == 0 { NIL } else { 0 },
            taken: 0,
            records: (1..=records as u32)
                .map(|next| Record {
                    older: if next as usize == records { NIL } else { next },
                    ..Record::EMPTY
                })
                .collect(),
            hasher: FixedState::with_seed(seed),
        }
    }

    /// Finds the record of `key` of the owner that is meant, filling or resident.
    pub(crate) fn find(&self, key: &BlockKey, is_owner: impl Fn(u16) -> bool) -> Option<u32> {
        let hash = self.hasher.hash_one(key);
        self.table.find(hash, |at| {
            let record = &self.records[at as usize];
            record.key == *key && is_owner(record.owner)
        })
    }

    /// Takes a free record for a tenant's key, which must not be in the table.
    pub(crate) fn insert(&mut self, record: Record) -> Option<u32> {
        let at = self.free;
        self.free = self.records.get(at as usize)?.older;
        self.taken += 1;
        let generation = self.records[at as usize].generation.wrapping_add(1);
        let hash = self.hasher.hash_one(record.key);
        self.records[at as usize] = Record { generation, ..record };
        let (records, hasher) = (&self.records, &self.hasher);
        self.table.insert(hash, at, |other| hasher.hash_one(records[other as usize].key));
        Some(at)
    }

    /// Makes a record unfindable; it stays taken.
    pub(crate) fn hide(&mut self, at: u32) {
        let hash = self.hasher.hash_one(self.records[at as usize].key);
        self.table.remove(hash, at);
    }

    /// Gives a hidden record back.
    pub(crate) fn free(&mut self, at: u32) {
        let record = &mut self.records[at as usize];
        debug_assert!(record.life != Life::Free, "a record is freed once");
        *record = Record { generation: record.generation, older: self.free, ..Record::EMPTY };
        self.free = at;
        self.taken -= 1;
    }

    /// Returns the record that `index` and `generation` name, if it is still that one.
    pub(crate) fn named(&self, index: u32, generation: u32) -> Option<u32> {
        let record = self.records.get(index as usize)?;
        (index != NIL && record.generation == generation && record.life != Life::Free).then_some(index)
    }

    /// Returns how many records are taken.
    pub(crate) fn taken(&self) -> usize {
        self.taken
    }

    /// Returns how many keys can be found.
    pub(crate) fn findable(&self) -> usize {
        self.table.len()
    }
}
