//! What engines' hashes are in full. kvhive's blocks are named by all of a hash; who asks about a prompt knows its tokens, or the last eight
//! bytes of each hash. Bounded: beyond its room it forgets what was told longest ago, which is a miss and no more.

use super::names::{Content, EngineHash, contents};
use foldhash::quality::FixedState;
use hashbrown::HashMap;
use kvhive_protocol::routing::{BlockHash, MAX_HASH_BYTES, Prompt};
use std::collections::VecDeque;

/// Bytes of a hash that is cut to a number.
const CUT: usize = size_of::<u64>();

/// A block by the one before it, none for a prompt's first, and what itself is made of.
type Step = (Option<EngineHash>, Content);

/// One hash in full.
#[derive(Clone, Copy, Debug)]
struct Entry {
    bytes: [u8; MAX_HASH_BYTES],
    length: u8,
    /// How a prompt comes to it, as it was told last.
    step: Option<Step>,
    told: u64,
}

impl Entry {
    fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

/// Hashes in full, of engines that hash alike.
pub struct Hashes {
    entries: HashMap<EngineHash, Entry, FixedState>,
    steps: HashMap<Step, EngineHash, FixedState>,
    /// In the order in which they were told; some were told again since.
    order: VecDeque<(u64, EngineHash)>,
    room: usize,
    told: u64,
    dropped: u64,
}

impl Hashes {
    /// Makes an empty list of at most `room` hashes.
    pub fn new(room: usize) -> Hashes {
        Hashes {
            entries: HashMap::with_hasher(FixedState::with_seed(3)),
            steps: HashMap::with_hasher(FixedState::with_seed(4)),
            order: VecDeque::new(),
            room,
            told: 0,
            dropped: 0,
        }
    }

    /// Sets how many may be known from now on.
    pub fn set_room(&mut self, room: usize) {
        self.room = room;
        self.shrink();
    }

    /// Returns how many are known.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Says whether none is.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns how many may be known.
    pub fn room(&self) -> usize {
        self.room
    }

    /// Returns how many were forgotten because no more may be known.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Takes in hashes of blocks that follow one another, the first one `parent`, and what each is made of where that is known.
    pub fn learn<'a>(
        &mut self,
        parent: Option<EngineHash>,
        blocks: impl IntoIterator<Item = (&'a [u8], Option<Content>)>,
    ) {
        let mut before = parent;
        for (bytes, content) in blocks {
            let hash = EngineHash::of(bytes);
            self.keep(hash, bytes, content.map(|content| (before, content)));
            before = Some(hash);
        }
        self.shrink();
    }

    fn keep(&mut self, hash: EngineHash, bytes: &[u8], step: Option<Step>) {
        // One that is longer than any engine's names nothing that is asked for.
        let Ok(length) = u8::try_from(bytes.len()) else { return };
        let mut whole = [0; MAX_HASH_BYTES];
        let Some(part) = whole.get_mut(..bytes.len()) else { return };
        part.copy_from_slice(bytes);
        self.told += 1;
        let mut entry = Entry { bytes: whole, length, step, told: self.told };
        if let Some(known) = self.entries.get(&hash).copied() {
            // Another engine's, that says less of it.
            if known.length > length {
                (entry.bytes, entry.length) = (known.bytes, known.length);
            }
            entry.step = entry.step.or(known.step);
            if entry.step != known.step {
                self.leave(hash, known.step);
            }
        }
        if let Some(step) = entry.step {
            self.steps.insert(step, hash);
        }
        self.entries.insert(hash, entry);
        self.order.push_back((entry.told, hash));
    }

    fn leave(&mut self, hash: EngineHash, step: Option<Step>) {
        if let Some(step) = step
            && self.steps.get(&step) == Some(&hash)
        {
            self.steps.remove(&step);
        }
    }

    /// Returns the hashes of a prompt's blocks as far as they are known, from its first on: those of its tokens in full, of those that are
    /// given each in full where it is known and otherwise as it is.
    pub fn of(&self, prompt: &Prompt, block_tokens: u32) -> Vec<BlockHash> {
        match prompt {
            Prompt::Hashes { hashes, .. } => hashes.iter().map(|hash| self.in_full(hash)).collect(),
            Prompt::Tokens { tokens, adapter, salt } => {
                let mut found = Vec::new();
                let mut before = None;
                for content in contents(tokens, adapter.as_deref(), salt.as_deref(), block_tokens) {
                    let Some(hash) = self.steps.get(&(before, content)) else { break };
                    let Some(entry) = self.entries.get(hash) else { break };
                    found.push(BlockHash(entry.bytes().to_vec()));
                    before = Some(*hash);
                }
                found
            }
        }
    }

    fn in_full(&self, hash: &BlockHash) -> BlockHash {
        let known = self.entries.get(&EngineHash::of(&hash.0)).filter(|_| hash.0.len() == CUT);
        known.map_or_else(|| hash.clone(), |known| BlockHash(known.bytes().to_vec()))
    }

    /// Forgets what was told longest ago until everything has room.
    fn shrink(&mut self) {
        while self.entries.len() > self.room {
            let Some((told, hash)) = self.order.pop_front() else { break };
            if self.entries.get(&hash).is_some_and(|entry| entry.told == told)
                && let Some(entry) = self.entries.remove(&hash)
            {
                self.dropped += 1;
                self.leave(hash, entry.step);
            }
        }
        if self.order.len() > 2 * self.entries.len() + 1024 {
            let entries = &self.entries;
            self.order.retain(|(told, hash)| entries.get(hash).is_some_and(|entry| entry.told == *told));
        }
    }

    /// Says what does not hold.
    ///
    /// # Errors
    /// A sentence.
    pub fn invariants(&self) -> Result<(), String> {
        if self.entries.len() > self.room || self.order.len() > 2 * self.entries.len() + 1024 {
            return Err(format!("{} hashes, {} in order", self.entries.len(), self.order.len()));
        }
        for (step, hash) in &self.steps {
            if self.entries.get(hash).and_then(|entry| entry.step) != Some(*step) {
                return Err(format!("{hash:?} is found by {step:?}, which is not its own"));
            }
        }
        match self.entries.iter().find(|(hash, entry)| EngineHash::of(entry.bytes()) != **hash) {
            Some((hash, entry)) => Err(format!("{hash:?} stands for {entry:?}")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
#[path = "hashes_test.rs"]
mod tests;
