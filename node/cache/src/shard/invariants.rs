//! What always holds of a shard, looked at from scratch.

use super::Shard;
use crate::block::{Life, Mark, Shrinking, Tier};
use kvhive_protocol::TenantId;
use std::collections::BTreeMap;

impl Shard {
    /// Checks what always holds.
    ///
    /// # Errors
    /// A sentence that says what does not.
    pub fn invariants(&self) -> Result<(), String> {
        let classes = self.config.classes.len();
        let mut used = [vec![0u32; classes], vec![0u32; classes], vec![0u32; classes]];
        let mut bytes = vec![[0u64; 3]; self.parties.len()];
        let mut children = vec![0u32; self.index.records.len()];
        let (mut shrinks, mut listed, mut writes, mut copies) = (0, 0, 0, 0);
        let mut slots = Vec::new();
        let mut given_up = 0;
        for (at, record) in self.index.records.iter().enumerate() {
            if record.life == Life::Free {
                continue;
            }
            for tier in std::iter::once(record.tier).chain(record.copying) {
                used[tier as usize][usize::from(record.class)] += 1;
                bytes[usize::from(record.party)][tier as usize] +=
                    self.config.classes[usize::from(record.class)];
            }
            let shrink = self.shrinks.get(&(at as u32));
            if shrink.is_some() != (record.shrinking() == Shrinking::UnderWay) {
                return Err(format!(
                    "record {at} is {:?}, its shrink {}",
                    record.shrinking(),
                    shrink.is_some()
                ));
            }
            if let Some((tier, class)) = shrink.and_then(|shrink| shrink.into) {
                if class >= record.class || record.copying.is_some() {
                    return Err(format!("record {at} of class {} shrinks into class {class}", record.class));
                }
                used[tier as usize][usize::from(class)] += 1;
                bytes[usize::from(record.party)][tier as usize] += self.config.classes[usize::from(class)];
            }
            shrinks += usize::from(shrink.is_some());
            copies += usize::from(record.copying.is_some());
            if let Some(parent) = self.linked(record.parent) {
                children[parent as usize] += 1;
            }
            match record.life {
                Life::Filling => {
                    writes += 1;
                    slots.push(record.slot);
                }
                Life::Resident => slots.push(record.slot),
                Life::GivenUp if record.readers > 0 || record.is_worked_on() || record.children > 0 => {
                    return Err(format!("record {at} was given up and somebody has to do with it"));
                }
                Life::GivenUp => given_up += 1,
                Life::Leaving if record.readers == 0 && !record.is_worked_on() => {
                    return Err(format!("record {at} is leaving but nobody holds it"));
                }
                _ => {}
            }
            let is_listed = record.is(Mark::LISTED);
            if record.life == Life::Resident && self.ledger.is_lost(record.tier) {
                return Err(format!("record {at} is in a tier that is lost"));
            }
            if is_listed != (record.life == Life::Resident) {
                return Err(format!("record {at} is {:?}, listed {}", record.life, is_listed));
            }
            listed += usize::from(is_listed);
            let counts = self.stands(record) && self.is_sound(record);
            if counts && record.life == Life::Resident && u32::from(record.chain) > self.true_chain(at) {
                return Err(format!("record {at} claims {} before it", record.chain));
            }
            let found = self.find(self.owners.of(record.owner).0, &record.key);
            if (found == Some(at as u32)) != !matches!(record.life, Life::Leaving | Life::GivenUp) {
                return Err(format!("record {at} is {:?} and found as {found:?}", record.life));
            }
        }
        if let Some(at) =
            self.expected.awaited().find(|at| self.index.records[*at as usize].life == Life::Free)
        {
            return Err(format!("a session is awaited at record {at}, which is free"));
        }
        for tier in Tier::ALL.into_iter().filter(|tier| !self.ledger.is_lost(*tier)) {
            for class in 0..classes as u8 {
                let used = used[tier as usize][usize::from(class)];
                if used + self.ledger.free(tier, class) != self.ledger.capacity(tier, class) {
                    return Err(format!(
                        "{tier:?} class {class}: {used} used, {} free",
                        self.ledger.free(tier, class)
                    ));
                }
            }
        }
        for (at, record) in self.index.records.iter().enumerate() {
            if record.children != children[at] {
                return Err(format!("record {at} has {} children, counts {}", children[at], record.children));
            }
        }
        if self.writes_of.iter().flatten().map(|of| *of as usize).sum::<usize>() != writes {
            return Err(format!("{writes} writes are under way, by tier and class {:?}", self.writes_of));
        }
        let between: u32 = self.copies_between.iter().flatten().flatten().sum();
        if between as usize != copies {
            return Err(format!("{copies} copies are under way, counted by their tiers are {between}"));
        }
        if (listed, writes, copies) != (self.recency.listed(), self.writes, self.copies)
            || !self.are_occupied(slots)
            || shrinks != self.shrinks.len()
            || given_up != self.given_up
            || self.owners.records() != self.index.taken()
        {
            return Err(
                "listed blocks, writes, those given up, copies, shrinks, owners or occupied slots are miscounted".to_owned()
            );
        }
        self.check_loads()?;
        self.check_pins()?;
        if bytes.iter().zip(&self.parties).any(|(bytes, party)| *bytes != party.used) {
            return Err("a party's bytes are miscounted".to_owned());
        }
        for tier in Tier::ALL {
            for party in 0..self.parties.len() as u16 {
                for class in 0..classes as u8 {
                    let walked = self.recency.of(&self.index.records, tier, party, class).count();
                    if walked != self.recency.len(tier, party, class) as usize {
                        return Err(format!("the list of {tier:?}, party {party} is broken"));
                    }
                }
            }
        }
        for (at, party) in (0..).zip(&self.parties) {
            for class in 0..classes as u8 {
                let ranked: u32 = Tier::ALL.into_iter().map(|tier| self.recency.len(tier, at, class)).sum();
                if party.numbered(class).is_some_and(|numbered| numbered != ranked as usize) {
                    return Err(format!(
                        "party {at} has {ranked} blocks and {:?} numbers",
                        party.numbered(class)
                    ));
                }
            }
        }
        Ok(())
    }

    /// Says whether these are the slots of all blocks, one for each. A shard has few beside the slots that there are.
    fn are_occupied(&self, mut slots: Vec<u16>) -> bool {
        slots.sort_unstable();
        let counts_as = |of: &[u16]| self.occupied[usize::from(of[0])] as usize == of.len();
        let all: u64 = self.occupied.iter().map(|count| u64::from(*count)).sum();
        all == slots.len() as u64 && slots.chunk_by(u16::eq).all(counts_as)
    }

    fn check_loads(&self) -> Result<(), String> {
        let mut held: BTreeMap<TenantId, ([u64; 3], [u64; 3])> = BTreeMap::new();
        for record in self.index.records.iter().filter(|record| record.life == Life::Resident) {
            let (blocks, bytes) = held.entry(self.owners.of(record.owner).0).or_default();
            blocks[record.tier as usize] += 1;
            bytes[record.tier as usize] += self.config.classes[usize::from(record.class)];
        }
        for (tenant, load) in &self.loads {
            let held = held.remove(tenant).unwrap_or_default();
            if held != (load.blocks, load.used_bytes) {
                return Err(format!("tenant {tenant} holds {held:?}, counted is {load:?}"));
            }
        }
        if held.is_empty() { Ok(()) } else { Err(format!("{held:?} are counted nowhere")) }
    }

    /// Counts the blocks before one that are resident without a gap.
    fn true_chain(&self, mut at: usize) -> u32 {
        let mut chain = 0;
        while let Some(parent) = self.linked(self.index.records[at].parent) {
            if self.index.records[parent as usize].life != Life::Resident {
                break;
            }
            chain += 1;
            at = parent as usize;
        }
        chain
    }
}
