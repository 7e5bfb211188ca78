//! Whose blocks there are: each pair of a tenant and an era that has records goes by a number, so that a record need not
//! name both. And a salt for each tenant, so that a key hashed for one says nothing of the same key hashed for another.

use foldhash::fast::FixedState;
use kvhive_protocol::{BlockKey, Era, TenantId};
use std::collections::BTreeMap;
use std::hash::BuildHasher;

/// What a tenant's keys are mixed with where only a hash of them is looked at. Nobody outside knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Salt(u64);

impl Salt {
    /// Returns a tenant's hash of a key for that of anybody.
    pub(crate) fn hash(self, hash: u64) -> u64 {
        hash ^ self.0
    }

    /// Returns a number of a key that nobody outside can choose.
    pub(crate) fn print(self, key: &BlockKey) -> u64 {
        let bytes = key.as_bytes();
        u64::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7]])
            ^ self.0
    }

    /// Returns a key in the place of a tenant's: another for each tenant, and the same each time.
    pub(crate) fn key(self, key: &BlockKey) -> BlockKey {
        let mut bytes = *key.as_bytes();
        // Some policies look at the first eight bytes, some at those after them.
        for (byte, salt) in bytes[..16].iter_mut().zip(self.0.to_le_bytes().into_iter().cycle()) {
            *byte ^= salt;
        }
        BlockKey::from_bytes(bytes)
    }
}

struct Owner {
    tenant: TenantId,
    era: Era,
    salt: Salt,
    records: u32,
}

/// The owners that have records.
pub(crate) struct Owners {
    slots: Vec<Owner>,
    numbers: BTreeMap<(TenantId, Era), u16>,
    free: Vec<u16>,
    salts: FixedState,
}

impl Owners {
    /// Makes nobody; the secret `seed` decides the salts.
    pub(crate) fn new(seed: u64) -> Owners {
        let salts = FixedState::with_seed(seed);
        Owners { slots: Vec::new(), numbers: BTreeMap::new(), free: Vec::new(), salts }
    }

    /// Returns a tenant's salt.
    pub(crate) fn salt(&self, tenant: TenantId) -> Salt {
        Salt(self.salts.hash_one(u64::from(tenant.0)))
    }

    /// Returns the salt of who goes by a number.
    pub(crate) fn salt_of(&self, number: u16) -> Salt {
        self.slots[usize::from(number)].salt
    }

    /// Counts a record more of an owner. Returns its number; none if there are no more numbers.
    pub(crate) fn enter(&mut self, tenant: TenantId, era: Era) -> Option<u16> {
        if let Some(number) = self.numbers.get(&(tenant, era)) {
            self.slots[usize::from(*number)].records += 1;
            return Some(*number);
        }
        let owner = Owner { tenant, era, salt: self.salt(tenant), records: 1 };
        let number = match self.free.pop() {
            Some(number) => {
                self.slots[usize::from(number)] = owner;
                number
            }
            None => {
                let number = u16::try_from(self.slots.len()).ok()?;
                self.slots.push(owner);
                number
            }
        };
        self.numbers.insert((tenant, era), number);
        Some(number)
    }

    /// Counts a record less.
    pub(crate) fn leave(&mut self, number: u16) {
        let owner = &mut self.slots[usize::from(number)];
        debug_assert!(owner.records > 0, "a record leaves its own owner");
        owner.records -= 1;
        if owner.records == 0 {
            self.numbers.remove(&(owner.tenant, owner.era));
            self.free.push(number);
        }
    }

    /// Returns who goes by a number.
    pub(crate) fn of(&self, number: u16) -> (TenantId, Era) {
        let owner = &self.slots[usize::from(number)];
        (owner.tenant, owner.era)
    }

    /// Returns how many records are counted.
    pub(crate) fn records(&self) -> usize {
        self.numbers.values().map(|number| self.slots[usize::from(*number)].records as usize).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_given_again_when_the_last_record_has_left() {
        let mut owners = Owners::new(1);
        let enter = |owners: &mut Owners, tenant, era| owners.enter(TenantId(tenant), Era(era)).expect("few");
        let numbers = [(1, 1), (1, 2), (1, 1), (2, 1)].map(|(tenant, era)| enter(&mut owners, tenant, era));
        assert_eq!((numbers, owners.of(1), owners.records()), ([0, 1, 0, 2], (TenantId(1), Era(2)), 4));
        owners.leave(0);
        assert_eq!(enter(&mut owners, 3, 1), 3, "one record is left");
        owners.leave(0);
        assert_eq!((enter(&mut owners, 4, 1), owners.records()), (0, 4));
    }

    #[test]
    fn one_key_is_another_for_each_tenant_in_all_that_a_policy_looks_at() {
        let mut owners = Owners::new(1);
        let key = BlockKey::from_bytes([5; 32]);
        let salted = [1, 2, 3].map(|tenant| owners.salt(TenantId(tenant)).key(&key));
        for (one, other) in [(0, 1), (0, 2), (1, 2)] {
            for part in [0..8, 8..16] {
                assert_ne!(salted[one].as_bytes()[part.clone()], salted[other].as_bytes()[part]);
            }
        }
        let number = owners.enter(TenantId(2), Era(9)).expect("few");
        assert_eq!(owners.salt_of(number), owners.salt(TenantId(2)), "whatever the era");
        assert_ne!(Owners::new(2).salt(TenantId(2)), owners.salt(TenantId(2)), "each shard has its own");
    }

    #[test]
    fn who_comes_when_all_numbers_are_taken_gets_none() {
        let mut owners = Owners::new(1);
        assert!((0..1 << 16).all(|tenant| owners.enter(TenantId(tenant), Era(0)).is_some()));
        assert_eq!(owners.enter(TenantId(1 << 16), Era(0)), None);
        owners.leave(7);
        assert_eq!(owners.enter(TenantId(1 << 16), Era(0)), Some(7));
    }
}
