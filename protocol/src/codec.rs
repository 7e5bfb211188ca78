//! The one place that names bincode: fixed-width little-endian integers, a hard limit, no trailing bytes. Messages are
//! decoded from a slice that was bounded before, never from a reader (docs/decisions/0002-bincode.md).

use crate::error::WireError;
use serde::Serialize;
use serde::de::{DeserializeOwned, DeserializeSeed};

/// The largest encoded message, in bytes. A cluster map of 64 members fits many times over.
pub const MAX_MESSAGE_BYTES: usize = 16 << 20;

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_fixed_int_encoding().with_limit::<MAX_MESSAGE_BYTES>()
}

/// Appends the encoding of `message` to `out`.
///
/// # Errors
/// [`WireError::TooLarge`] when it passes [`MAX_MESSAGE_BYTES`]; `out` is then as it was.
pub fn encode_into<T: Serialize>(message: &T, out: &mut Vec<u8>) -> Result<(), WireError> {
    let start = out.len();
    let written = bincode::serde::encode_into_std_write(message, &mut *out, config());
    let length = out.len() - start;
    if written.is_err() || length > MAX_MESSAGE_BYTES {
        out.truncate(start);
        return Err(WireError::TooLarge { bytes: length as u64, limit: MAX_MESSAGE_BYTES as u64 });
    }
    Ok(())
}

/// Returns the encoding of `message`.
///
/// # Errors
/// As [`encode_into`].
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, WireError> {
    let mut out = Vec::with_capacity(128);
    encode_into(message, &mut out)?;
    Ok(out)
}

/// Decodes the message that fills `bytes` exactly.
///
/// # Errors
/// [`WireError::Malformed`] for anything else: cut short, trailing bytes, unknown variants, values over the limit.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    let (message, used) = bincode::serde::decode_from_slice::<T, _>(bytes, config())
        .map_err(|error| WireError::malformed(format_args!("message does not decode: {error}")))?;
    if used != bytes.len() {
        return Err(WireError::malformed(format_args!("{} bytes after the message", bytes.len() - used)));
    }
    Ok(message)
}

/// Decodes what `bytes` begin with; returns it and how many it took.
///
/// # Errors
/// As [`decode`], for all but trailing bytes.
pub(crate) fn decode_first<'de, S: DeserializeSeed<'de>>(
    seed: S,
    bytes: &'de [u8],
) -> Result<(S::Value, usize), WireError> {
    bincode::serde::seed_decode_from_slice(seed, bytes, config())
        .map_err(|error| WireError::malformed(format_args!("message does not decode: {error}")))
}
