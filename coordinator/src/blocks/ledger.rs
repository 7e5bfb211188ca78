//! What the cluster holds, as whoever reads its block events is told: a block is there once, in memory or on disk, however many
//! replicas have it. A plain struct: it is told what devices have got and lost, and says what that changes.

use super::names::{Name, Named};
use kvhive_protocol::watch::BlockTier;
use kvhive_protocol::{BlockKey, TenantId};
use std::collections::HashMap;
use std::sync::Arc;

/// Where a block is, as readers tell it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Medium {
    /// In a node's memory, of whichever tier: for whoever asks it is memory elsewhere, never its own GPU's.
    Memory,
    /// On a node's disk.
    Disk,
}

impl Medium {
    pub(super) fn of(tier: BlockTier) -> Medium {
        match tier {
            BlockTier::Device | BlockTier::Host => Medium::Memory,
            BlockTier::Disk => Medium::Disk,
        }
    }

    /// Returns what vLLM calls it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Medium::Memory => "CPU",
            Medium::Disk => "STORAGE",
        }
    }
}

/// One change for readers.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Told {
    /// A block is there now.
    Stored(Arc<Named>, Medium),
    /// It is there no longer, by the name that it was told under.
    Removed(Name, Medium),
}

/// One block's holders.
#[derive(Debug)]
struct Held {
    /// As it was told; stays what it was, so that it is known by it when it goes.
    named: Arc<Named>,
    memory: u32,
    disk: u32,
}

impl Held {
    fn count(&mut self, medium: Medium) -> &mut u32 {
        match medium {
            Medium::Memory => &mut self.memory,
            Medium::Disk => &mut self.disk,
        }
    }
}

/// What the cluster holds.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    blocks: HashMap<(TenantId, BlockKey), Held>,
}

impl Ledger {
    /// A device that had a block at `before`, if it had it, has it at `after`. `named` says how it is told of if it is new.
    pub(super) fn change(
        &mut self,
        (tenant, key): (TenantId, BlockKey),
        before: Option<BlockTier>,
        after: Option<BlockTier>,
        named: impl FnOnce() -> Arc<Named>,
        told: &mut Vec<Told>,
    ) {
        let (before, after) = (before.map(Medium::of), after.map(Medium::of));
        if before == after {
            return;
        }
        let held = self.blocks.entry((tenant, key));
        let held = held.or_insert_with(|| Held { named: named(), memory: 0, disk: 0 });
        // There before it is gone: a block that moves is never missing.
        if let Some(medium) = after {
            let count = held.count(medium);
            *count += 1;
            if *count == 1 {
                told.push(Told::Stored(held.named.clone(), medium));
            }
        }
        if let Some(medium) = before {
            let count = held.count(medium);
            let was = *count;
            *count = was.saturating_sub(1);
            if was == 1 {
                told.push(Told::Removed(held.named.hash.clone(), medium));
            }
        }
        if held.memory == 0 && held.disk == 0 {
            self.blocks.remove(&(tenant, key));
        }
    }

    /// A block that is told of by its own key alone is known by a name now: it is told of by that, and no more by the other.
    pub(super) fn name(
        &mut self,
        block: (TenantId, BlockKey),
        named: Arc<Named>,
        stored: &mut Vec<Told>,
        removed: &mut Vec<Told>,
    ) {
        let held = self.blocks.get_mut(&block).filter(|held| held.named.is_of_key(&block.1));
        let Some(held) = held.filter(|_| !named.is_of_key(&block.1)) else { return };
        let before = std::mem::replace(&mut held.named, named);
        for (medium, count) in [(Medium::Memory, held.memory), (Medium::Disk, held.disk)] {
            if count > 0 {
                stored.push(Told::Stored(held.named.clone(), medium));
                removed.push(Told::Removed(before.hash.clone(), medium));
            }
        }
    }

    /// Returns how many blocks there are.
    pub(super) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Tells of everything that is there, parents that are known before their children.
    pub(super) fn snapshot(&self) -> Vec<Told> {
        let mut all: Vec<&Held> = self.blocks.values().collect();
        all.sort_by(|one, other| {
            (one.named.depth, &one.named.hash).cmp(&(other.named.depth, &other.named.hash))
        });
        let mut told = Vec::with_capacity(all.len());
        for held in all {
            for (medium, count) in [(Medium::Memory, held.memory), (Medium::Disk, held.disk)] {
                if count > 0 {
                    told.push(Told::Stored(held.named.clone(), medium));
                }
            }
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use BlockTier::{Device, Disk, Host};

    const BLOCK: (TenantId, BlockKey) = (TenantId(1), BlockKey::NONE);

    fn changes(ledger: &mut Ledger, steps: &[(Option<BlockTier>, Option<BlockTier>)]) -> Vec<String> {
        let mut told = Vec::new();
        for (before, after) in steps {
            ledger.change(BLOCK, *before, *after, || Arc::new(Named::unknown(&BLOCK.1, 0)), &mut told);
        }
        let word = |one: &Told| match one {
            Told::Stored(_, medium) => format!("+{}", medium.name()),
            Told::Removed(_, medium) => format!("-{}", medium.name()),
        };
        told.iter().map(word).collect()
    }

    #[test]
    fn a_block_is_there_from_its_first_replica_to_its_last() {
        let mut ledger = Ledger::default();
        assert_eq!(changes(&mut ledger, &[(None, Some(Device)), (None, Some(Device))]), ["+CPU"]);
        assert_eq!(changes(&mut ledger, &[(Some(Device), None)]), [""; 0]);
        assert_eq!(changes(&mut ledger, &[(Some(Device), Some(Host)), (Some(Host), None)]), ["-CPU"]);
        assert_eq!(ledger.len(), 0);
    }

    #[test]
    fn one_that_was_told_by_its_key_is_told_by_its_name_once_that_is_known() {
        let mut ledger = Ledger::default();
        changes(&mut ledger, &[(None, Some(Host)), (None, Some(Disk))]);
        let unknown = Named::unknown(&BLOCK.1, 0);
        let name =
            |number| Arc::new(Named { hash: Name::Number(number), tokens: vec![1], ..unknown.clone() });
        let mut named = |number| {
            let (mut stored, mut removed) = (Vec::new(), Vec::new());
            ledger.name(BLOCK, name(number), &mut stored, &mut removed);
            ledger.name((TenantId(2), BLOCK.1), name(number), &mut stored, &mut removed);
            (stored, removed)
        };
        let media = [Medium::Memory, Medium::Disk];
        assert_eq!(
            named(7),
            (
                media.map(|medium| Told::Stored(name(7), medium)).to_vec(),
                media.map(|medium| Told::Removed(unknown.hash.clone(), medium)).to_vec()
            )
        );
        assert_eq!(named(8), (vec![], vec![]), "it has one");
    }

    #[test]
    fn one_that_moves_to_disk_is_never_missing() {
        let mut ledger = Ledger::default();
        let told =
            changes(&mut ledger, &[(None, Some(Host)), (Some(Host), Some(Disk)), (Some(Disk), Some(Device))]);
        assert_eq!(told, ["+CPU", "+STORAGE", "-CPU", "+CPU", "-STORAGE"]);
        assert_eq!(ledger.snapshot().len(), 1);
    }
}
