//! Tenant and key → record. The table holds record numbers only; keys are compared where they lie. A block of one tenant is not
//! found for another, whatever the other knows: to it the key is nobody's.

use crate::block::{Life, NIL, Record};
use foldhash::fast::FixedState;
use hashbrown::HashTable;
use kvhive_protocol::{BlockKey, TenantId};
use std::hash::BuildHasher;

/// Records and the table that finds them by key. Both are as large as the frames allow from the start.
pub(crate) struct Index {
    pub(crate) records: Vec<Record>,
    table: HashTable<u32>,
    free: Vec<u32>,
    hasher: FixedState,
}

impl Index {
    pub(crate) fn new(records: usize, seed: u64) -> Index {
        Index {
            records: vec![Record::EMPTY; records],
            table: HashTable::with_capacity(records),
            free: (0..records as u32).rev().collect(),
            hasher: FixedState::with_seed(seed),
        }
    }

    /// Finds the tenant's record of `key`, filling or resident.
    pub(crate) fn find(&self, tenant: TenantId, key: &BlockKey) -> Option<u32> {
        let hash = self.hasher.hash_one(key);
        let is_it = |record: &Record| record.key == *key && record.tenant == tenant;
        self.table.find(hash, |at| is_it(&self.records[*at as usize])).copied()
    }

    /// Takes a free record for a tenant's key, which must not be in the table.
    pub(crate) fn insert(&mut self, record: Record) -> Option<u32> {
        let at = self.free.pop()?;
        let generation = self.records[at as usize].generation.wrapping_add(1);
        let hash = self.hasher.hash_one(record.key);
        self.records[at as usize] = Record { generation, ..record };
        let (records, hasher) = (&self.records, &self.hasher);
        self.table.insert_unique(hash, at, |other| hasher.hash_one(records[*other as usize].key));
        Some(at)
    }

    /// Makes a record unfindable; it stays taken.
    pub(crate) fn hide(&mut self, at: u32) {
        let hash = self.hasher.hash_one(self.records[at as usize].key);
        if let Ok(entry) = self.table.find_entry(hash, |other| *other == at) {
            entry.remove();
        }
    }

    /// Gives a hidden record back.
    pub(crate) fn free(&mut self, at: u32) {
        let record = &mut self.records[at as usize];
        debug_assert!(record.life != Life::Free, "a record is freed once");
        *record = Record { generation: record.generation, ..Record::EMPTY };
        self.free.push(at);
    }

    /// Returns the record that `index` and `generation` name, if it is still that one.
    pub(crate) fn named(&self, index: u32, generation: u32) -> Option<u32> {
        let record = self.records.get(index as usize)?;
        (index != NIL && record.generation == generation && record.life != Life::Free).then_some(index)
    }

    /// Returns how many records are taken.
    pub(crate) fn taken(&self) -> usize {
        self.records.len() - self.free.len()
    }

    /// Returns how many keys can be found.
    pub(crate) fn findable(&self) -> usize {
        self.table.len()
    }
}
