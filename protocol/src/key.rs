//! Block keys: who a block is. A key is a chained BLAKE3 hash over the parent's key and the block's own tokens, keyed by
//! the namespace's secret, so keys of two namespaces never meet and cannot be guessed from tokens without the secret.

use crate::layout::Layout;
use crate::{SLOTS, Slot};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::hash::{Hash, Hasher};

/// Bytes of a block key.
pub const KEY_BYTES: usize = 32;

/// The 32-byte name of a block. All zeroes means "no block" (the parent of a prefix's first block).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
#[repr(transparent)]
pub struct BlockKey([u8; KEY_BYTES]);

impl BlockKey {
    /// The parent of a prefix's first block.
    pub const NONE: BlockKey = BlockKey([0; KEY_BYTES]);

    /// Takes 32 bytes as a key.
    pub const fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        BlockKey(bytes)
    }

    /// Returns the key's bytes.
    pub const fn as_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// Says whether this is [`BlockKey::NONE`].
    pub fn is_none(&self) -> bool {
        *self == BlockKey::NONE
    }

    /// Returns the slot of the segment whose home key this is.
    ///
    /// The last eight bytes decide, so that an index hashing the first ones stays independent of placement.
    pub fn slot(&self) -> Slot {
        let tail: [u8; 8] = self.0[24..].try_into().expect("a key has 32 bytes");
        Slot((u64::from_le_bytes(tail) % u64::from(SLOTS)) as u16)
    }

    /// Parses 64 hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        // A sign before a digit is a number to what reads numbers, and no digit.
        if text.len() != KEY_BYTES * 2 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let mut bytes = [0; KEY_BYTES];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[at * 2..at * 2 + 2], 16).ok()?;
        }
        Some(BlockKey(bytes))
    }
}

// Keys are already uniform hashes: eight bytes of one are as good as all of them.
impl Hash for BlockKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let head: [u8; 8] = self.0[..8].try_into().expect("a key has 32 bytes");
        state.write_u64(u64::from_le_bytes(head));
    }
}

impl fmt::Display for BlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for BlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in &self.0[..6] {
            write!(f, "{byte:02x}")?;
        }
        write!(f, "…")
    }
}

impl Serialize for BlockKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for BlockKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = serde_bytes::ByteArray::<KEY_BYTES>::deserialize(deserializer)?;
        Ok(BlockKey(bytes.into_array()))
    }
}

/// Keys laid end to end: one copy to encode and one to decode, whatever their number.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct KeyList(Vec<u8>);

impl KeyList {
    /// Makes a list with room for `keys` keys.
    pub fn with_capacity(keys: usize) -> Self {
        KeyList(Vec::with_capacity(keys * KEY_BYTES))
    }

    /// Adds a key at the end.
    pub fn push(&mut self, key: &BlockKey) {
        self.0.extend_from_slice(&key.0);
    }

    /// Returns the number of keys.
    pub fn len(&self) -> usize {
        self.0.len() / KEY_BYTES
    }

    /// Says whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the key at `at`, if there is one.
    pub fn get(&self, at: usize) -> Option<BlockKey> {
        let start = at.checked_mul(KEY_BYTES)?;
        let bytes = self.0.get(start..start.checked_add(KEY_BYTES)?)?;
        Some(BlockKey(bytes.try_into().ok()?))
    }

    /// Walks over the keys in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = BlockKey> + '_ {
        self.0.chunks_exact(KEY_BYTES).map(|bytes| BlockKey(bytes.try_into().expect("chunks of 32 bytes")))
    }
}

impl FromIterator<BlockKey> for KeyList {
    fn from_iter<I: IntoIterator<Item = BlockKey>>(keys: I) -> Self {
        let mut list = KeyList::default();
        for key in keys {
            list.push(&key);
        }
        list
    }
}

impl<'a> FromIterator<&'a BlockKey> for KeyList {
    fn from_iter<I: IntoIterator<Item = &'a BlockKey>>(keys: I) -> Self {
        keys.into_iter().copied().collect()
    }
}

impl fmt::Debug for KeyList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl Serialize for KeyList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for KeyList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes: Vec<u8> = serde_bytes::deserialize(deserializer)?;
        if !bytes.len().is_multiple_of(KEY_BYTES) {
            return Err(serde::de::Error::invalid_length(
                bytes.len(),
                &"a multiple of 32 bytes of block keys",
            ));
        }
        Ok(KeyList(bytes))
    }
}

/// (tenant, model, layout, rank): blocks of two namespaces never match. Everything that changes what a block's bytes
/// mean belongs here: weights revision and tokenizer in `model`, shape and axis order in `layout`, the shard of the
/// model in `rank`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// The tenant's secret, as the cluster map gives it.
    pub tenant_secret: [u8; 32],
    /// The model's name and revision, as the serving side calls it.
    pub model: String,
    /// What a block's bytes mean.
    pub layout: Layout,
    /// Which part of the model this is (tensor- and pipeline-parallel rank), 0 when it is whole.
    pub rank: u32,
}

impl Namespace {
    /// Derives the key under which this namespace's tokens are hashed (BLAKE3 `derive_key`).
    pub fn key(&self) -> NamespaceKey {
        let mut hasher = blake3::Hasher::new_derive_key("kvhive 2026-11 namespace key v1");
        hasher.update(&self.tenant_secret);
        hasher.update(&(self.model.len() as u64).to_le_bytes());
        hasher.update(self.model.as_bytes());
        hasher.update(&self.layout.fingerprint().0);
        hasher.update(&self.rank.to_le_bytes());
        NamespaceKey(*hasher.finalize().as_bytes())
    }
}

/// The secret under which a namespace's blocks are named.
#[derive(Clone)]
pub struct NamespaceKey([u8; 32]);

impl NamespaceKey {
    /// Names the block of `tokens` that follows `parent` ([`BlockKey::NONE`] for the first). `extras` are what else
    /// changes the tensors: adapter id, hashes of media. Lengths go in too, so no two inputs run together.
    ///
    /// ```
    /// use kvhive_protocol::{AxisOrder, BlockKey, Dtype, Layout, Namespace};
    /// let layout = Layout { layers: 4, kv_heads: 2, head_dim: 64, tokens: 4, dtype: Dtype::F16, order: AxisOrder::LayersFirst };
    /// let key = Namespace { tenant_secret: [7; 32], model: "tiny@1".into(), layout, rank: 0 }.key();
    /// let first = key.block(&BlockKey::NONE, &[1, 2, 3, 4], &[]);
    /// let second = key.block(&first, &[5, 6, 7, 8], &[]);
    /// assert_ne!(second, key.block(&BlockKey::NONE, &[5, 6, 7, 8], &[]));
    /// ```
    pub fn block(&self, parent: &BlockKey, tokens: &[u32], extras: &[&[u8]]) -> BlockKey {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(b"tokens");
        hasher.update(&parent.0);
        hasher.update(&(tokens.len() as u64).to_le_bytes());
        let mut piece = [0u8; 1024];
        for some in tokens.chunks(piece.len() / 4) {
            for (token, place) in some.iter().zip(piece.chunks_exact_mut(4)) {
                place.copy_from_slice(&token.to_le_bytes());
            }
            hasher.update(&piece[..some.len() * 4]);
        }
        for extra in extras {
            hasher.update(&(extra.len() as u64).to_le_bytes());
            hasher.update(extra);
        }
        BlockKey(*hasher.finalize().as_bytes())
    }

    /// Re-keys a block that an engine has already named (its own hash, or a trace's id) into this namespace.
    pub fn rekey(&self, parent: &BlockKey, engine_hash: &[u8]) -> BlockKey {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(b"rekeyed");
        hasher.update(&parent.0);
        hasher.update(&(engine_hash.len() as u64).to_le_bytes());
        hasher.update(engine_hash);
        BlockKey(*hasher.finalize().as_bytes())
    }

    /// Names every full block of `tokens` as one prefix; a partial block at the end has no key.
    ///
    /// # Panics
    /// When `block_tokens` is 0; a checked [`Layout`] never has that.
    pub fn prefix(&self, tokens: &[u32], block_tokens: u32, extras: &[&[u8]]) -> Vec<BlockKey> {
        let mut parent = BlockKey::NONE;
        let mut keys = Vec::with_capacity(tokens.len() / block_tokens as usize);
        for some in tokens.chunks_exact(block_tokens as usize) {
            parent = self.block(&parent, some, extras);
            keys.push(parent);
        }
        keys
    }
}

impl fmt::Debug for NamespaceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NamespaceKey(secret)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_hexadecimal_digits_alone() {
        let digits = "0A".repeat(KEY_BYTES);
        assert_eq!(BlockKey::from_hex(&digits), Some(BlockKey::from_bytes([10; KEY_BYTES])));
        for wrong in
            ["+a".repeat(KEY_BYTES), "-0".repeat(KEY_BYTES), " 1".repeat(KEY_BYTES), digits[1..].to_owned()]
        {
            assert_eq!(BlockKey::from_hex(&wrong), None, "{wrong}");
        }
    }
}
