//! How a block's bytes are stored: raw, losslessly compressed, or as fp8, int8 or int4 numbers with scales. This is the
//! host's implementation and the reference for every other: `docs/codecs.md` fixes each byte, and two implementations
//! give the same bytes. It does not know what a key or a tenant is, and does not guard bytes against damage: the block's
//! header carries a digest, checked before anything is decoded.
//!
//! What a value comes back as, where `range` and `largest` are those of the finite values that share a scale:
//!
//! | codec | what comes back |
//! | --- | --- |
//! | raw, lossless | the same bits |
//! | int8 | within `largest / 250` |
//! | fp8 | within 1/15 of the value, or `largest / 450_000` where that is more |
//! | int4 | within `range / 19`, `largest / 168` or 1/64 of the tile's coarsest bound, whichever is most |
//!
//! Each plus the rounding to the element's own precision. NaN stays NaN (int4: its whole group becomes NaN); an infinity
//! becomes the nearest value that its scale reaches (int8, fp8: NaN in a group whose finite values are all zero, or so small that
//! their scale would be none: below about `127 * 2^-126` in int8, they come back as zeros). Scales are per channel for keys and per token for values (KIVI: Liu
//! et al., ICML 2024); int4 takes whichever fits a tile of 32 tokens better, and values of 16 to 31 tokens, which by channel
//! have three bits and come back within `range / 9`.
//!
//! ```
//! use kvhive_gpu::codec::{Codec, Element, Order, Shape, decode, encode};
//! let shape = Shape::Tensor {
//!     layers: 1, kv_heads: 1, head_dim: 64, tokens: 16, element: Element::F32, order: Order::LayersFirst,
//! };
//! let raw: Vec<u8> = (0..2 * 64 * 16).flat_map(|at| (at as f32).sin().to_le_bytes()).collect();
//! let (mut stored, mut back) = (Vec::new(), vec![0; raw.len()]);
//! encode(Codec::Int8, &shape, &raw, &mut stored)?;
//! assert!(stored.len() * 3 < raw.len());
//! decode(Codec::Int8, &shape, &stored, &mut back)?;
//! let first = f32::from_le_bytes([back[4], back[5], back[6], back[7]]);
//! assert!((first - 1f32.sin()).abs() < 1.0 / 250.0);
//! # Ok::<(), kvhive_gpu::codec::CodecError>(())
//! ```

#[cfg(target_arch = "x86_64")]
mod avx2;
mod eight;
mod four;
mod lossless;
mod places;
mod planes;
mod shape;
mod wide;

#[cfg(test)]
mod codec_test;

pub(crate) use places::{Place, places};
pub use shape::{Element, Order, Shape};

use std::fmt;
use thiserror::Error;
use wide::Path;

/// How a block's bytes are stored. The numbers are part of the format and never change.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(u16)]
pub enum Codec {
    /// As the engine gave them.
    #[default]
    Raw = 0,
    /// Byte planes apart, of differences from token to token or not, each compressed where that helps. The same bits come back.
    Lossless = 1,
    /// OCP fp8 e4m3 with a scale a channel (keys) or token (values).
    Fp8 = 2,
    /// Eight bits, symmetric, with a scale a channel (keys) or token (values).
    Int8 = 3,
    /// Four bits with a scale and a zero point a group.
    Int4 = 4,
}

impl Codec {
    /// Every codec, by rising id.
    pub const ALL: [Codec; 5] = [Codec::Raw, Codec::Lossless, Codec::Fp8, Codec::Int8, Codec::Int4];

    /// Returns the number that headers carry.
    pub const fn id(self) -> u16 {
        self as u16
    }

    /// Returns the codec of an id; `None` when this build knows none.
    pub fn from_id(id: u16) -> Option<Codec> {
        Codec::ALL.get(usize::from(id)).copied()
    }

    /// Returns its name, as the configuration and the metrics write it.
    pub const fn name(self) -> &'static str {
        match self {
            Codec::Raw => "raw",
            Codec::Lossless => "lossless",
            Codec::Fp8 => "fp8",
            Codec::Int8 => "int8",
            Codec::Int4 => "int4",
        }
    }

    /// Returns whether exactly the same bits come back.
    pub const fn is_exact(self) -> bool {
        matches!(self, Codec::Raw | Codec::Lossless)
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why bytes were not encoded or decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum CodecError {
    /// No machine has so many bytes.
    #[error("the shape has more bytes than 64 bits count, or an axis of length 0")]
    Shape,
    /// Opaque bytes have no numbers to round.
    #[error("{codec} needs a tensor's shape, these bytes are opaque")]
    Opaque {
        /// The codec that was asked for.
        codec: Codec,
    },
    /// The raw bytes are not as many as the shape says.
    #[error("{given} raw bytes were given, the shape has {wanted}")]
    RawLength {
        /// Bytes of the shape.
        wanted: u64,
        /// Bytes of the buffer.
        given: u64,
    },
    /// The stored bytes are not as many as the codec makes of this shape.
    #[error("{given} stored bytes were given, {codec} makes {wanted} of this shape")]
    StoredLength {
        /// The codec.
        codec: Codec,
        /// Bytes that it makes, or at most makes.
        wanted: u64,
        /// Bytes that were given.
        given: u64,
    },
    /// The stored bytes are not what an encoder writes.
    #[error("stored bytes are damaged from byte {at} on")]
    Damaged {
        /// Where the damaged part starts.
        at: u64,
    },
    /// The compressor gave up.
    #[error("the compressor failed, most likely for want of memory")]
    Compressor,
}

/// Encodes a block. `stored` is overwritten and becomes exactly the stored bytes; reuse it, and nothing is allocated.
///
/// # Errors
/// [`CodecError::Shape`], [`CodecError::Opaque`] and [`CodecError::RawLength`] when the three do not go together,
/// [`CodecError::Compressor`] when there is no memory for it.
pub fn encode(codec: Codec, shape: &Shape, raw: &[u8], stored: &mut Vec<u8>) -> Result<(), CodecError> {
    encode_as(Path::best(), codec, shape, raw, stored)
}

/// Decodes a block into `raw`, which must have the shape's bytes. After an error its content is unspecified.
///
/// # Errors
/// As [`encode`], and [`CodecError::StoredLength`] or [`CodecError::Damaged`] when no encoder wrote `stored`.
pub fn decode(codec: Codec, shape: &Shape, stored: &[u8], raw: &mut [u8]) -> Result<(), CodecError> {
    decode_as(Path::best(), codec, shape, stored, raw)
}

/// Returns the bytes that [`encode`] makes of this shape: exact for every codec but lossless, which makes at most so
/// many. `None` when the shape's bytes overflow or the codec needs a tensor.
pub fn max_stored_bytes(codec: Codec, shape: &Shape) -> Option<u64> {
    match codec {
        Codec::Raw | Codec::Lossless => shape.raw_bytes(),
        Codec::Fp8 | Codec::Int8 => eight::stored_bytes(&shape.tensor()?),
        Codec::Int4 => four::stored_bytes(&shape.tensor()?),
    }
}

/// Chooses a codec for what a caller wants. `quantization_bits` wins over `compression_ratio_per_mille` (stored bytes
/// for 1000 raw ones). Bits: 8 to 15 are int8, fewer are int4, more are raw. A ratio: 1000 and more is raw, down to
/// [`LOSSLESS_PER_MILLE`] lossless, which reaches what the data allow, then int8 where its exact ratio on this shape is
/// low enough, else int4. Opaque bytes are never rounded: what asks for that makes them lossless.
pub fn choose(
    quantization_bits: Option<u8>,
    compression_ratio_per_mille: Option<u16>,
    shape: &Shape,
) -> Codec {
    let rounded = match (quantization_bits, compression_ratio_per_mille) {
        (Some(16..), _) | (None, None | Some(1000..)) => return Codec::Raw,
        (None, Some(LOSSLESS_PER_MILLE..)) => return Codec::Lossless,
        (Some(8..), _) => Codec::Int8,
        (Some(_), _) => Codec::Int4,
        (None, Some(wanted)) if reaches(Codec::Int8, wanted, shape) => Codec::Int8,
        (None, Some(_)) => Codec::Int4,
    };
    if max_stored_bytes(rounded, shape).is_some() { rounded } else { Codec::Lossless }
}

/// The lowest ratio at which [`choose`] stays exact: what lossless reaches on 16-bit tensors is 0.6 to 0.9.
pub const LOSSLESS_PER_MILLE: u16 = 700;

fn reaches(codec: Codec, per_mille: u16, shape: &Shape) -> bool {
    match (max_stored_bytes(codec, shape), shape.raw_bytes()) {
        (Some(stored), Some(raw)) => u128::from(stored) * 1000 <= u128::from(raw) * u128::from(per_mille),
        _ => false,
    }
}

fn encode_as(
    path: Path,
    codec: Codec,
    shape: &Shape,
    raw: &[u8],
    stored: &mut Vec<u8>,
) -> Result<(), CodecError> {
    check_raw(shape, raw)?;
    match codec {
        Codec::Raw => {
            stored.clear();
            stored.extend_from_slice(raw);
        }
        Codec::Lossless => return lossless::encode(path, shape.numbers(), raw, stored),
        Codec::Fp8 | Codec::Int8 | Codec::Int4 => {
            let tensor = shape.tensor().ok_or(CodecError::Opaque { codec })?;
            // Not cleared first: every byte is overwritten, and zeroing them costs as much as a copy.
            stored.resize(stored_length(codec, shape)?, 0);
            match codec {
                Codec::Int4 => four::encode(path, &tensor, raw, stored),
                _ => eight::encode(path, codec == Codec::Fp8, &tensor, raw, stored),
            }
        }
    }
    Ok(())
}

fn decode_as(
    path: Path,
    codec: Codec,
    shape: &Shape,
    stored: &[u8],
    raw: &mut [u8],
) -> Result<(), CodecError> {
    check_raw(shape, raw)?;
    if codec == Codec::Lossless {
        return lossless::decode(path, shape.numbers(), stored, raw);
    }
    let wanted = stored_length(codec, shape)?;
    if stored.len() != wanted {
        return Err(CodecError::StoredLength { codec, wanted: wanted as u64, given: stored.len() as u64 });
    }
    match (codec, shape.tensor()) {
        (Codec::Raw | Codec::Lossless, _) => raw.copy_from_slice(stored),
        (_, None) => return Err(CodecError::Opaque { codec }),
        (Codec::Int4, Some(tensor)) => four::decode(path, &tensor, stored, raw),
        (_, Some(tensor)) => eight::decode(path, codec == Codec::Fp8, &tensor, stored, raw),
    }
    Ok(())
}

fn check_raw(shape: &Shape, raw: &[u8]) -> Result<(), CodecError> {
    let wanted = shape.raw_bytes().ok_or(CodecError::Shape)?;
    if raw.len() as u64 != wanted {
        return Err(CodecError::RawLength { wanted, given: raw.len() as u64 });
    }
    Ok(())
}

/// Returns the exact stored length of a codec that has one. The raw bytes were checked before, so it fits memory.
fn stored_length(codec: Codec, shape: &Shape) -> Result<usize, CodecError> {
    let bytes = max_stored_bytes(codec, shape).ok_or(CodecError::Opaque { codec })?;
    usize::try_from(bytes).map_err(|_| CodecError::Shape)
}
