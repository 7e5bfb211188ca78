//! How blocks of an engine's own cache are named: by the engine's hash, and by a hash of ours over the tokens from the first on,
//! so that a prompt can be looked up without knowing how the engine hashes. Neither decides more than where a request goes.

use kvhive_protocol::routing::Prompt;
use xxhash_rust::xxh3::xxh3_128;

/// An engine's hash of a block: its last eight bytes. vLLM publishes either all of a hash or these.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct EngineHash(pub u64);

impl EngineHash {
    /// Takes the last eight bytes of a hash.
    pub fn of(bytes: &[u8]) -> EngineHash {
        let mut tail = [0; 8];
        let count = bytes.len().min(8);
        tail[8 - count..].copy_from_slice(&bytes[bytes.len() - count..]);
        EngineHash(u64::from_be_bytes(tail))
    }
}

/// What one block is made of: its own tokens, the adapter, and what else changes its tensors.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Content(u128);

/// A block by everything from the first token to its last.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Local(u128);

impl Local {
    /// Names the block of this content after `parent`; none for the first.
    pub(crate) fn of(parent: Option<Local>, content: Content) -> Local {
        let mut bytes = [0; 33];
        bytes[0] = u8::from(parent.is_some());
        bytes[1..17].copy_from_slice(&parent.map_or(0, |parent| parent.0).to_le_bytes());
        bytes[17..].copy_from_slice(&content.0.to_le_bytes());
        Local(xxh3_128(&bytes))
    }
}

/// Names what one block is made of. Lengths go in too, so no two inputs run together.
pub fn content<'a>(
    tokens: &[u32],
    adapter: Option<&str>,
    extras: impl IntoIterator<Item = &'a [u8]>,
) -> Content {
    let mut bytes = Vec::with_capacity(tokens.len() * 4 + 64);
    bytes.extend_from_slice(&(tokens.len() as u64).to_le_bytes());
    for token in tokens {
        bytes.extend_from_slice(&token.to_le_bytes());
    }
    let mut put = |piece: &[u8]| {
        bytes.extend_from_slice(&(piece.len() as u64).to_le_bytes());
        bytes.extend_from_slice(piece);
    };
    adapter.map(str::as_bytes).into_iter().for_each(&mut put);
    extras.into_iter().for_each(put);
    Content(xxh3_128(&bytes))
}

/// Where an engine keeps a block.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Medium {
    /// In its device's memory.
    Device,
    /// In its host's memory.
    Host,
    /// On its disk, or in a storage of its own elsewhere.
    Disk,
}

/// One block that an engine stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StoredBlock {
    /// What the engine calls it.
    pub hash: EngineHash,
    /// What it is made of; none where the event does not say.
    pub content: Option<Content>,
}

/// Something that happened to an engine's cache.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CacheEvent {
    /// Blocks that follow one another are there now.
    Stored {
        /// The block before the first of them; none where that begins a prompt.
        parent: Option<EngineHash>,
        /// The blocks.
        blocks: Vec<StoredBlock>,
        /// Where.
        medium: Medium,
        /// For which group of layers.
        group: u8,
    },
    /// Blocks are there no longer.
    Removed {
        /// Which.
        hashes: Vec<EngineHash>,
        /// Where they were.
        medium: Medium,
        /// For which group of layers.
        group: u8,
    },
    /// Nothing is there any more.
    Cleared,
}

impl CacheEvent {
    /// Returns how many blocks it names.
    pub fn blocks(&self) -> usize {
        match self {
            CacheEvent::Stored { blocks, .. } => blocks.len(),
            CacheEvent::Removed { hashes, .. } => hashes.len(),
            CacheEvent::Cleared => 0,
        }
    }
}

/// A prompt's full blocks, named for one size of blocks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Asked {
    pub(crate) names: AskedNames,
    /// Tokens of one block.
    pub block_tokens: u32,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum AskedNames {
    Locals(Vec<Local>),
    Hashes(Vec<EngineHash>),
}

/// Says what each full block of a prompt is made of. A salt belongs to the first one, as engines have it.
pub(crate) fn contents<'a>(
    tokens: &'a [u32],
    adapter: Option<&'a str>,
    salt: Option<&'a str>,
    block_tokens: u32,
) -> impl Iterator<Item = Content> + 'a {
    tokens.chunks_exact(block_tokens.max(1) as usize).enumerate().map(move |(at, block)| {
        let salt = salt.filter(|salt| at == 0 && !salt.is_empty());
        content(block, adapter, salt.map(str::as_bytes))
    })
}

impl Asked {
    /// Names the full blocks of a prompt, `block_tokens` tokens each.
    pub fn of(prompt: &Prompt, block_tokens: u32) -> Asked {
        let block_tokens = block_tokens.max(1);
        let names = match prompt {
            Prompt::Tokens { tokens, adapter, salt } => {
                let mut parent = None;
                let mut locals = Vec::with_capacity(tokens.len() / block_tokens as usize);
                for made_of in contents(tokens, adapter.as_deref(), salt.as_deref(), block_tokens) {
                    let local = Local::of(parent, made_of);
                    parent = Some(local);
                    locals.push(local);
                }
                AskedNames::Locals(locals)
            }
            Prompt::Hashes { hashes, .. } => {
                AskedNames::Hashes(hashes.iter().map(|hash| EngineHash::of(&hash.0)).collect())
            }
        };
        Asked { names, block_tokens }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_the_same_whole_or_cut_to_its_number() {
        let whole: Vec<u8> = (0..32).collect();
        assert_eq!(EngineHash::of(&whole), EngineHash(0x1819_1a1b_1c1d_1e1f));
        assert_eq!(EngineHash::of(&whole), EngineHash::of(&whole[24..]));
        assert_eq!(EngineHash::of(&[1, 2]), EngineHash(0x0102));
        assert_eq!(EngineHash::of(&[]), EngineHash(0));
    }

    #[test]
    fn tokens_adapter_salt_and_place_all_name_a_block() {
        let plain = |tokens: Vec<u32>| Prompt::Tokens { tokens, adapter: None, salt: None };
        let base = Asked::of(&plain((0..8).collect()), 4);
        let AskedNames::Locals(names) = &base.names else { panic!("tokens give locals") };
        assert_eq!(names.len(), 2);
        assert_eq!(Asked::of(&plain((0..11).collect()), 4), base, "a partial block has no name");
        let tokens: Vec<u32> = (0..8).collect();
        let of = |adapter: Option<&str>, salt: Option<&str>| {
            let (adapter, salt) = (adapter.map(str::to_owned), salt.map(str::to_owned));
            Asked::of(&Prompt::Tokens { tokens: tokens.clone(), adapter, salt }, 4)
        };
        let others = [
            of(Some("a"), None),
            of(None, Some("a")),
            of(Some("ab"), None),
            Asked::of(&plain(vec![4; 8]), 4),
        ];
        for other in others {
            let AskedNames::Locals(others) = other.names else { panic!("tokens give locals") };
            assert!(names.iter().all(|name| !others.contains(name)));
        }
        assert_ne!(content(&[1], None, [&b"ab"[..]]), content(&[1], None, [&b"a"[..], b"b"]));
    }
}
