//! What engines say of blocks, as they say it: hashes whole or cut, tokens, and what else names a block.

use kvhive_control::routing::{Content, EngineHash, content};
use std::borrow::Cow;

/// A hash as an engine publishes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum RawHash<'a> {
    /// A number.
    Number(u64),
    /// All of it.
    Bytes(&'a [u8]),
}

impl RawHash<'_> {
    pub(crate) fn engine(&self) -> EngineHash {
        match self {
            RawHash::Number(number) => EngineHash(*number),
            RawHash::Bytes(bytes) => EngineHash::of(bytes),
        }
    }

    /// Returns the bytes that an engine hands to kvhive for a hash that it publishes so.
    pub(crate) fn bytes(&self) -> Cow<'_, [u8]> {
        match self {
            RawHash::Number(number) => Cow::Owned(number.to_be_bytes().to_vec()),
            RawHash::Bytes(bytes) => Cow::Borrowed(bytes),
        }
    }
}

/// Blocks that follow one another, as an engine says them.
pub(crate) struct RawBlocks<'a> {
    pub(crate) parent: Option<RawHash<'a>>,
    pub(crate) hashes: Vec<RawHash<'a>>,
    pub(crate) adapter: Option<&'a [u8]>,
    pub(super) adapter_number: Option<u64>,
    pub(super) tokens: Vec<u32>,
    pub(super) size: usize,
    pub(super) extras: Vec<Vec<&'a [u8]>>,
}

impl<'a> RawBlocks<'a> {
    /// Returns the tokens of one of them, if the event has those of all.
    pub(crate) fn tokens_of(&self, at: usize) -> Option<&[u32]> {
        let is_whole = self.size.checked_mul(self.hashes.len()) == Some(self.tokens.len());
        self.tokens.get(at * self.size..(at + 1) * self.size).filter(|_| is_whole)
    }

    /// Walks over what else names one of them.
    pub(crate) fn extras_of(&self, at: usize) -> impl Iterator<Item = &'a [u8]> + '_ {
        self.extras.get(at).into_iter().flatten().copied()
    }

    /// Returns what each of them is made of, where the event says it.
    pub(crate) fn contents(&self) -> impl Iterator<Item = Option<Content>> + '_ {
        let adapter = adapter_of(self.adapter, self.adapter_number);
        (0..self.hashes.len())
            .map(move |at| self.tokens_of(at).map(|own| made_of(own, adapter.as_deref(), self.extras_of(at))))
    }
}

/// Older releases number adapters and do not name them.
pub(super) fn adapter_of(name: Option<&[u8]>, number: Option<u64>) -> Option<String> {
    match name {
        Some(name) => Some(String::from_utf8_lossy(name).into_owned()),
        None => number.map(|number| number.to_string()),
    }
}

/// Names what a block is made of. The adapter is among an engine's extra keys too.
pub(super) fn made_of<'a>(
    own: &[u32],
    adapter: Option<&str>,
    extras: impl Iterator<Item = &'a [u8]>,
) -> Content {
    content(own, adapter, extras.filter(|key| Some(*key) != adapter.map(str::as_bytes)))
}
