//! What always holds of a shard, looked at from scratch.

use super::{Shard, other};
use crate::block::{Life, Tier};
use kvhive_protocol::SLOTS;

impl Shard {
    /// Checks what always holds.
    ///
    /// # Errors
    /// A sentence that says what does not.
    pub fn invariants(&self) -> Result<(), String> {
        let classes = self.config.classes.len();
        let mut used = [vec![0u32; classes], vec![0u32; classes]];
        let mut children = vec![0u32; self.index.records.len()];
        let (mut leaves, mut writes, mut copies, mut occupied) = (0, 0, 0, vec![0u32; usize::from(SLOTS)]);
        for (at, record) in self.index.records.iter().enumerate() {
            if record.life == Life::Free {
                continue;
            }
            used[record.tier as usize][usize::from(record.class)] += 1;
            if record.copying {
                used[other(record.tier) as usize][usize::from(record.class)] += 1;
                copies += 1;
            }
            if let Some(parent) = self.linked(record.parent) {
                children[parent as usize] += 1;
            }
            match record.life {
                Life::Filling => writes += 1,
                Life::Resident => occupied[usize::from(record.slot)] += 1,
                Life::Leaving if record.readers == 0 && !record.copying => {
                    return Err(format!("record {at} is leaving but nobody holds it"));
                }
                _ => {}
            }
            let is_leaf = record.life == Life::Resident && record.children == 0;
            if is_leaf != record.is_ranked {
                return Err(format!("record {at}: leaf {is_leaf}, ranked {}", record.is_ranked));
            }
            leaves += usize::from(is_leaf);
            let found = self.index.find(&record.key);
            if (found == Some(at as u32)) != (record.life != Life::Leaving) {
                return Err(format!("record {at} is {:?} and found as {found:?}", record.life));
            }
        }
        for tier in [Tier::Device, Tier::Host] {
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
        if (leaves, writes, copies) != (self.order.len(), self.writes, self.copies)
            || occupied != self.occupied
        {
            return Err("leaves, writes, copies or occupied slots are miscounted".to_owned());
        }
        Ok(())
    }
}
