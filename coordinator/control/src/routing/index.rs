//! What one engine's own cache holds. Blocks are known by the engine's hash at once, by tokens as soon as every block before them
//! was heard of. Bounded: beyond its room it forgets what was stored longest ago, which only makes it promise less.

use super::names::{Asked, AskedNames, CacheEvent, Content, EngineHash, Local, Medium, StoredBlock};
use foldhash::quality::FixedState;
use hashbrown::HashMap;
use std::collections::{BTreeSet, VecDeque};

/// The most blocks of one engine that are known.
pub const MAX_KNOWN_BLOCKS: usize = 262_144;
/// The most blocks of all engines together that are known.
pub const MAX_INDEXED_BLOCKS: usize = 4_194_304;
/// The most groups of layers that are told apart.
pub const MAX_GROUPS: u8 = 8;

/// Returns how many blocks of each engine are known where there are so many engines.
pub fn room(engines: usize) -> usize {
    (MAX_INDEXED_BLOCKS / engines.max(1)).min(MAX_KNOWN_BLOCKS)
}

/// How far an engine's own cache covers a prompt: blocks from the first on, by where the slowest part of each is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Own {
    /// In device memory.
    pub device: u64,
    /// In host memory.
    pub host: u64,
    /// On disk.
    pub disk: u64,
}

impl Own {
    /// Returns all of them.
    pub fn blocks(self) -> u64 {
        self.device + self.host + self.disk
    }
}

/// One bit for each medium and group.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Presence(u32);

impl Presence {
    fn bit(medium: Medium, group: u8) -> u32 {
        1 << (medium as u32 * u32::from(MAX_GROUPS) + u32::from(group))
    }

    /// Returns where the slowest of these groups is; none where one of them is nowhere.
    fn covers(self, groups: u32) -> Option<Medium> {
        let [device, host, disk] = [0, 1, 2].map(|medium| self.0 >> (medium * u32::from(MAX_GROUPS)));
        let has = |some: u32| groups != 0 && some & groups == groups;
        if has(device) {
            Some(Medium::Device)
        } else if has(device | host) {
            Some(Medium::Host)
        } else if has(device | host | disk) {
            Some(Medium::Disk)
        } else {
            None
        }
    }
}

#[derive(Clone, Debug)]
struct Entry {
    presence: Presence,
    content: Option<Content>,
    parent: Option<EngineHash>,
    /// None until every block before it was heard of.
    local: Option<Local>,
    stored: u64,
}

/// What one engine's own cache holds.
#[derive(Clone)]
pub struct Index {
    entries: HashMap<EngineHash, Entry, FixedState>,
    by_local: HashMap<Local, EngineHash, FixedState>,
    /// Blocks whose parent was not heard of: (parent, block).
    orphans: BTreeSet<(EngineHash, EngineHash)>,
    /// Blocks in the order in which they were stored; some are there no longer, or were stored again.
    order: VecDeque<(u64, EngineHash)>,
    groups: u32,
    room: usize,
    stores: u64,
    dropped: u64,
}

impl Index {
    /// Makes an index of an empty cache, of which at most `room` blocks are known.
    pub fn new(room: usize) -> Index {
        Index {
            entries: HashMap::with_hasher(FixedState::with_seed(1)),
            by_local: HashMap::with_hasher(FixedState::with_seed(2)),
            orphans: BTreeSet::new(),
            order: VecDeque::new(),
            groups: 0,
            room,
            stores: 0,
            dropped: 0,
        }
    }

    /// Takes in what happened.
    pub fn apply(&mut self, event: &CacheEvent) {
        match event {
            CacheEvent::Stored { parent, blocks, medium, group } => {
                if *group >= MAX_GROUPS {
                    return;
                }
                self.groups |= 1 << group;
                let mut parent = *parent;
                for block in blocks {
                    self.store(parent, block, Presence::bit(*medium, *group));
                    parent = Some(block.hash);
                }
                self.shrink();
            }
            CacheEvent::Removed { hashes, medium, group } if *group < MAX_GROUPS => {
                for hash in hashes {
                    self.remove(*hash, Presence::bit(*medium, *group));
                }
            }
            CacheEvent::Removed { .. } => {}
            CacheEvent::Cleared => self.clear(),
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.by_local.clear();
        self.orphans.clear();
        self.order.clear();
        self.groups = 0;
    }

    /// Sets how many blocks may be known from now on.
    pub fn set_room(&mut self, room: usize) {
        self.room = room;
        self.shrink();
    }

    /// Returns how many blocks are known.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Says whether none is.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns how many blocks were forgotten because they were too many.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Says whether the engine's cache has the block of this hash, for every group of layers.
    pub fn has(&self, hash: EngineHash) -> bool {
        self.entries.get(&hash).is_some_and(|entry| entry.presence.covers(self.groups).is_some())
    }

    /// Says how far the engine's cache covers a prompt without a gap.
    pub fn covers(&self, asked: &Asked) -> Own {
        match &asked.names {
            AskedNames::Locals(locals) => {
                self.walk(locals.iter().map(|local| self.by_local.get(local).copied()))
            }
            AskedNames::Hashes(hashes) => self.walk(hashes.iter().map(|hash| Some(*hash))),
        }
    }

    fn walk(&self, hashes: impl Iterator<Item = Option<EngineHash>>) -> Own {
        let mut own = Own::default();
        for hash in hashes {
            let entry = hash.and_then(|hash| self.entries.get(&hash));
            match entry.and_then(|entry| entry.presence.covers(self.groups)) {
                Some(Medium::Device) => own.device += 1,
                Some(Medium::Host) => own.host += 1,
                Some(Medium::Disk) => own.disk += 1,
                None => break,
            }
        }
        own
    }

    fn store(&mut self, parent: Option<EngineHash>, block: &StoredBlock, bit: u32) {
        self.stores += 1;
        let stored = self.stores;
        let hash = block.hash;
        self.order.push_back((stored, hash));
        if let Some(known) = self.entries.get_mut(&hash) {
            known.presence.0 |= bit;
            known.stored = stored;
            if block.content.is_none() || block.content == known.content && parent == known.parent {
                return;
            }
            // Only now it is said what it is made of, or something else has the same hash: the last word counts.
            let entry = self.unlink(hash).expect("it is known");
            self.entries.insert(hash, Entry { content: block.content, parent, local: None, ..entry });
        } else {
            let presence = Presence(bit);
            let content = block.content;
            self.entries.insert(hash, Entry { presence, content, parent, local: None, stored });
        }
        self.link(hash);
    }

    /// Names a block by its tokens, and all that wait for it, if the block before it is named.
    fn link(&mut self, first: EngineHash) {
        let mut open = vec![first];
        while let Some(hash) = open.pop() {
            let Some(entry) = self.entries.get(&hash) else { continue };
            let (Some(content), parent) = (entry.content, entry.parent) else { continue };
            let before = match parent {
                None => None,
                Some(parent) => match self.entries.get(&parent).and_then(|parent| parent.local) {
                    Some(local) => Some(local),
                    None => {
                        self.orphans.insert((parent, hash));
                        continue;
                    }
                },
            };
            let local = Local::of(before, content);
            if let Some(entry) = self.entries.get_mut(&hash) {
                entry.local = Some(local);
            }
            self.by_local.insert(local, hash);
            let children: Vec<EngineHash> = self
                .orphans
                .range((hash, EngineHash(0))..=(hash, EngineHash(u64::MAX)))
                .map(|(_, child)| *child)
                .collect();
            for child in children {
                self.orphans.remove(&(hash, child));
                open.push(child);
            }
        }
    }

    fn remove(&mut self, hash: EngineHash, bit: u32) {
        let Some(entry) = self.entries.get_mut(&hash) else { return };
        entry.presence.0 &= !bit;
        if entry.presence.0 == 0 {
            self.unlink(hash);
        }
    }

    /// Takes a block out. What follows it keeps its name: that says what it is made of, not what is there.
    fn unlink(&mut self, hash: EngineHash) -> Option<Entry> {
        let entry = self.entries.remove(&hash)?;
        if let Some(local) = entry.local
            && self.by_local.get(&local) == Some(&hash)
        {
            self.by_local.remove(&local);
        }
        if let Some(parent) = entry.parent {
            self.orphans.remove(&(parent, hash));
        }
        Some(entry)
    }

    /// Forgets what was stored longest ago until everything has room.
    fn shrink(&mut self) {
        while self.entries.len() > self.room {
            let Some((stored, hash)) = self.order.pop_front() else { break };
            if self.entries.get(&hash).is_some_and(|entry| entry.stored == stored) {
                self.unlink(hash);
                self.dropped += 1;
            }
        }
        if self.order.len() > 2 * self.entries.len() + 1024 {
            let entries = &self.entries;
            self.order
                .retain(|(stored, hash)| entries.get(hash).is_some_and(|entry| entry.stored == *stored));
        }
    }

    /// Says what does not hold.
    ///
    /// # Errors
    /// A sentence.
    pub fn invariants(&self) -> Result<(), String> {
        if self.entries.len() > self.room || self.order.len() > 2 * self.room + 1024 + MAX_KNOWN_BLOCKS {
            return Err(format!("{} blocks, {} in order", self.entries.len(), self.order.len()));
        }
        for (local, hash) in &self.by_local {
            if self.entries.get(hash).and_then(|entry| entry.local) != Some(*local) {
                return Err(format!("{hash:?} is found by a name that is not its own"));
            }
        }
        for (parent, child) in &self.orphans {
            let entry = self.entries.get(child).ok_or_else(|| format!("{child:?} waits and is not there"))?;
            if entry.local.is_some() || entry.parent != Some(*parent) {
                return Err(format!("{child:?} waits for {parent:?} in vain"));
            }
        }
        match self.entries.iter().find(|(_, entry)| entry.presence.0 == 0) {
            Some((hash, _)) => Err(format!("{hash:?} is nowhere")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
#[path = "index_test.rs"]
mod tests;
