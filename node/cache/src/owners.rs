//! Whose blocks there are: each pair of a tenant and an era that has records goes by a number, so that a record need not
//! name both.

use kvhive_protocol::{Era, TenantId};
use std::collections::BTreeMap;

struct Owner {
    tenant: TenantId,
    era: Era,
    records: u32,
}

/// The owners that have records.
#[derive(Default)]
pub(crate) struct Owners {
    slots: Vec<Owner>,
    numbers: BTreeMap<(TenantId, Era), u16>,
    free: Vec<u16>,
}

impl Owners {
    /// Counts a record more of an owner. Returns its number; none if there are no more numbers.
    pub(crate) fn enter(&mut self, tenant: TenantId, era: Era) -> Option<u16> {
        if let Some(number) = self.numbers.get(&(tenant, era)) {
            self.slots[usize::from(*number)].records += 1;
            return Some(*number);
        }
        let owner = Owner { tenant, era, records: 1 };
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
        let mut owners = Owners::default();
        let enter = |owners: &mut Owners, tenant, era| owners.enter(TenantId(tenant), Era(era)).expect("few");
        let numbers = [(1, 1), (1, 2), (1, 1), (2, 1)].map(|(tenant, era)| enter(&mut owners, tenant, era));
        assert_eq!((numbers, owners.of(1), owners.records()), ([0, 1, 0, 2], (TenantId(1), Era(2)), 4));
        owners.leave(0);
        assert_eq!(enter(&mut owners, 3, 1), 3, "one record is left");
        owners.leave(0);
        assert_eq!((enter(&mut owners, 4, 1), owners.records()), (0, 4));
    }

    #[test]
    fn who_comes_when_all_numbers_are_taken_gets_none() {
        let mut owners = Owners::default();
        assert!((0..1 << 16).all(|tenant| owners.enter(TenantId(tenant), Era(0)).is_some()));
        assert_eq!(owners.enter(TenantId(1 << 16), Era(0)), None);
        owners.leave(7);
        assert_eq!(owners.enter(TenantId(1 << 16), Era(0)), Some(7));
    }
}
