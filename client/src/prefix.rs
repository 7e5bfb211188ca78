//! A prefix: ordered block keys from token 0, and which of them are home keys.

use kvhive_protocol::BlockKey;

/// Ordered block keys. Every [`segment_blocks`](kvhive_protocol::map::Settings::segment_blocks) of them live together,
/// where their first one's slot is placed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Prefix {
    keys: Vec<BlockKey>,
    loose: bool,
    named_by: Option<NamesMark>,
}

/// Tells the secret by which a namespace has named keys from any other; says nothing of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct NamesMark(pub(crate) u64);

impl Prefix {
    /// Makes a prefix of keys that are chained from token 0.
    pub fn chained(keys: Vec<BlockKey>) -> Prefix {
        Prefix { keys, loose: false, named_by: None }
    }

    /// Makes a prefix of chained keys that are good as long as the tenant has the secret of this mark.
    pub(crate) fn named(keys: Vec<BlockKey>, by: NamesMark) -> Prefix {
        Prefix { keys, loose: false, named_by: Some(by) }
    }

    /// Makes a set of keys without order that are good as long as the tenant has the secret of this mark.
    pub(crate) fn named_loose(keys: Vec<BlockKey>, by: NamesMark) -> Prefix {
        Prefix { keys, loose: true, named_by: Some(by) }
    }

    /// Returns by which secret a namespace has named the keys; none where the caller has.
    pub(crate) fn named_by(&self) -> Option<NamesMark> {
        self.named_by
    }

    /// Makes a set of keys without order: each is its own home key. Its blocks must be stored that way too.
    pub fn loose(keys: Vec<BlockKey>) -> Prefix {
        Prefix { keys, loose: true, named_by: None }
    }

    /// Returns the keys.
    pub fn keys(&self) -> &[BlockKey] {
        &self.keys
    }

    /// Returns the first `blocks` of them; all, where they are fewer.
    pub fn first(&self, blocks: usize) -> Prefix {
        Prefix { keys: self.keys[..blocks.min(self.keys.len())].to_vec(), ..*self }
    }

    /// Returns the number of blocks.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Says whether it is a set without order.
    pub(crate) fn is_loose(&self) -> bool {
        self.loose
    }

    /// Says whether there are no blocks.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Returns the position of the home key of block `at`.
    pub(crate) fn home(&self, at: usize, segment_blocks: usize) -> usize {
        if self.loose { at } else { at - at % segment_blocks.max(1) }
    }

    /// Returns how many blocks are before `at`: none in a set without order.
    pub(crate) fn depth(&self, at: usize) -> u32 {
        if self.loose { 0 } else { u32::try_from(at).unwrap_or(u32::MAX) }
    }

    /// Returns the key of the block before `at`.
    pub(crate) fn parent(&self, at: usize) -> BlockKey {
        if self.loose || at == 0 { BlockKey::NONE } else { self.keys[at - 1] }
    }
}
