//! Tenant and key → record. The table holds record numbers only; keys are compared where they lie. A block of one tenant is not
//! found for another, whatever the other knows: to it the key is nobody's. Hashes are salted by tenant, so that a search for a
//! key looks at the same places whether another tenant holds it or not.

use crate::block::{Life, NIL, Record};
use crate::owners::{Owners, Salt};
use crate::table::Table;
use foldhash::fast::FixedState;
use kvhive_protocol::{BlockKey, TenantId};
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

    /// Finds the record of a tenant's key, filling or resident.
    pub(crate) fn find(&self, owners: &Owners, tenant: TenantId, key: &BlockKey) -> Option<u32> {
        self.table.find(self.hash_for(owners, tenant, key), |at| {
            let record = &self.records[at as usize];
            record.key == *key && owners.of(record.owner).0 == tenant
        })
    }

    fn hash_of(hasher: &FixedState, owners: &Owners, record: &Record) -> u64 {
        Index::hash(hasher, owners.salt_of(record.owner), &record.key)
    }

    /// All of the key, whose hash elsewhere is of its first bytes alone: who makes keys that begin alike, and are not derived
    /// from anything, must not make the table grow.
    fn hash(hasher: &FixedState, salt: Salt, key: &BlockKey) -> u64 {
        salt.hash(hasher.hash_one(key.as_bytes()))
    }

    /// Returns a number of an owner's key that nobody outside can foresee.
    pub(crate) fn print(&self, owners: &Owners, owner: u16, key: &BlockKey) -> u64 {
        Index::hash(&self.hasher, owners.salt_of(owner), key)
    }

    /// Takes a free record for a tenant's key, which must not be in the table.
    pub(crate) fn insert(&mut self, owners: &Owners, record: Record) -> Option<u32> {
        let at = self.free;
        self.free = self.records.get(at as usize)?.older;
        self.taken += 1;
        let generation = self.records[at as usize].generation.wrapping_add(1);
        self.records[at as usize] = Record { generation, ..record };
        let (records, hasher) = (&self.records, &self.hasher);
        let hash_of = |at: u32| Index::hash_of(hasher, owners, &records[at as usize]);
        self.table.insert(hash_of(at), at, hash_of);
        Some(at)
    }

    /// Makes a record unfindable; it stays taken. Returns its hash.
    pub(crate) fn hide(&mut self, owners: &Owners, at: u32) -> u64 {
        let hash = Index::hash_of(&self.hasher, owners, &self.records[at as usize]);
        self.table.remove(hash, at);
        hash
    }

    /// Returns the hash that a record of a tenant's key would have.
    pub(crate) fn hash_for(&self, owners: &Owners, tenant: TenantId, key: &BlockKey) -> u64 {
        Index::hash(&self.hasher, owners.salt(tenant), key)
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
