//! Layouts: what a block's bytes mean, and a fingerprint of it that every block carries.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::LazyLock;

/// The version of the layout rules themselves; raised when the meaning of a field changes.
const LAYOUT_RULES: u32 = 1;

/// Number format of one element.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Dtype {
    /// IEEE 754 binary16.
    F16,
    /// bfloat16.
    Bf16,
    /// IEEE 754 binary32.
    F32,
    /// OCP FP8 E4M3.
    Fp8E4M3,
    /// Opaque bytes.
    U8,
}

impl Dtype {
    /// Returns the size of one element in bytes.
    pub const fn bytes(self) -> u64 {
        match self {
            Dtype::F16 | Dtype::Bf16 => 2,
            Dtype::F32 => 4,
            Dtype::Fp8E4M3 | Dtype::U8 => 1,
        }
    }
}

/// Order of a block's axes, outermost first.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum AxisOrder {
    /// `[layers, 2, tokens, kv_heads, head_dim]`.
    LayersFirst,
    /// `[2, layers, tokens, kv_heads, head_dim]`.
    KvFirst,
    /// `[layers, kv_heads, tokens, 2 * head_dim]`: K and V packed side by side.
    Packed,
}

/// What a block's bytes mean: its shape, its numbers and the order of its axes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Layout {
    /// Layers held by one rank.
    pub layers: u32,
    /// KV heads held by one rank.
    pub kv_heads: u32,
    /// Elements of one head.
    pub head_dim: u32,
    /// Tokens of one block.
    pub tokens: u32,
    /// Number format.
    pub dtype: Dtype,
    /// Order of axes.
    pub order: AxisOrder,
}

impl Layout {
    /// A layout of `bytes` opaque bytes a block, one token each: what benchmarks and replays use.
    pub const fn opaque(bytes: u32, tokens: u32) -> Layout {
        Layout { layers: 1, kv_heads: 1, head_dim: bytes, tokens, dtype: Dtype::U8, order: AxisOrder::Packed }
    }

    /// The layout of opaque blocks of any length: each says its own, and the layout's is 0.
    pub const ANY_LENGTH: Layout = Layout::opaque(0, 1);

    /// Returns the bytes of one block, K and V together; `None` when the product overflows.
    ///
    /// An opaque layout (dtype `U8`, packed, one layer and head) counts `head_dim` as the whole block.
    pub fn block_bytes(&self) -> Option<u64> {
        if self.is_opaque() {
            return Some(u64::from(self.head_dim));
        }
        let elements = u64::from(self.layers)
            .checked_mul(u64::from(self.kv_heads))?
            .checked_mul(u64::from(self.head_dim))?
            .checked_mul(u64::from(self.tokens))?;
        elements.checked_mul(2)?.checked_mul(self.dtype.bytes())
    }

    /// Says whether its bytes mean nothing to anybody but their owner.
    pub fn is_opaque(&self) -> bool {
        self.dtype == Dtype::U8 && self.order == AxisOrder::Packed && self.layers == 1 && self.kv_heads == 1
    }

    /// Returns the fingerprint that every block of this layout carries.
    pub fn fingerprint(&self) -> LayoutFingerprint {
        let mut hasher = blake3::Hasher::new_derive_key("kvhive 2026-11 layout fingerprint v1");
        for field in [LAYOUT_RULES, self.layers, self.kv_heads, self.head_dim, self.tokens] {
            hasher.update(&field.to_le_bytes());
        }
        hasher.update(&[self.dtype as u8, self.order as u8]);
        let mut fingerprint = [0; 16];
        fingerprint.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        LayoutFingerprint(fingerprint)
    }
}

/// 128 bits that say which layout a block has. Two different layouts never share one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct LayoutFingerprint(pub [u8; 16]);

impl LayoutFingerprint {
    /// Says whether it is that of [`Layout::ANY_LENGTH`].
    pub fn is_of_any_length(&self) -> bool {
        static ANY: LazyLock<LayoutFingerprint> = LazyLock::new(|| Layout::ANY_LENGTH.fingerprint());
        *self == *ANY
    }

    /// Reads the 32 hexadecimal digits that it is shown as; none for anything else.
    pub fn parse(text: &str) -> Option<LayoutFingerprint> {
        let is_hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = u128::from_str_radix(text, 16).ok().filter(|_| is_hex)?;
        Some(LayoutFingerprint(number.to_be_bytes()))
    }
}

impl fmt::Display for LayoutFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for LayoutFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}
