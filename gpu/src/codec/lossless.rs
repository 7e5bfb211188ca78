//! Exact compression: pieces of raw bytes, where a channel's numbers are near from token to token their differences, split
//! into byte planes (all first bytes of the numbers, then all second ones), each plane compressed by zstd at level 1 where
//! that helps. Exponents repeat and shrink; mantissas do not.
//!
//! Stored bytes as many as the raw ones are the raw ones. Fewer are pieces of [`PIECE_BYTES`] raw bytes, the last one
//! shorter; a piece is a byte, [`AS_THEY_ARE`] or [`DIFFERENCES`], and its planes, each a length of 4 bytes whose upper bit
//! says "compressed", then so many bytes.

use super::planes::{self, plane_bytes};
use super::shape::Numbers;
use super::wide::Path;
use super::{Codec, CodecError};
use std::cell::RefCell;
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::{CParameter, ParamSwitch};

/// Raw bytes of a piece: both its planes and what becomes of them stay in the second cache.
const PIECE_BYTES: usize = 256 << 10;
/// The planes are those of the numbers.
const AS_THEY_ARE: u8 = 0;
/// The planes are those of each number, its bits taken as an integer, less the one of the token before.
const DIFFERENCES: u8 = 1;
const COMPRESSED: u32 = 1 << 31;
const LENGTH_BYTES: usize = 4;
/// Bytes of the longest number.
const MOST_PLANES: usize = 4;
const LEVEL: i32 = 1;
/// Bytes that the search for matches goes on by where it finds none.
const STRIDE: u32 = 512;
/// Bytes looked at to tell whether compressing a plane is worth trying.
const SAMPLE: usize = 2048;

thread_local! {
    // Making either costs more than a small block does.
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
    static PLANES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Encodes bytes of numbers of `numbers.bytes` bytes each.
pub(super) fn encode(
    path: Path,
    numbers: Numbers,
    raw: &[u8],
    stored: &mut Vec<u8>,
) -> Result<(), CodecError> {
    // Not cleared first: what is kept of it is overwritten.
    stored.resize(raw.len(), 0);
    let written = COMPRESSOR.with_borrow_mut(|kept| {
        let compressor = match kept {
            Some(compressor) => compressor,
            None => kept.insert(compressor()?),
        };
        PLANES.with_borrow_mut(|planes| {
            let mut at = 0;
            for start in (0..raw.len()).step_by(PIECE_BYTES) {
                let piece = start..raw.len().min(start + PIECE_BYTES);
                planes.resize(piece.len(), 0);
                let row_bytes = numbers.row_bytes.filter(|row| planes::are_near(*row, raw, &piece));
                let Some(how) = stored.get_mut(at) else { return Ok(None) };
                *how = if row_bytes.is_some() { DIFFERENCES } else { AS_THEY_ARE };
                at += 1;
                planes::split(path, Numbers { row_bytes, ..numbers }, raw, piece.clone(), planes);
                let mut rest = &planes[..];
                for plane in 0..numbers.bytes {
                    let (bytes, after) = rest.split_at(plane_bytes(piece.len(), numbers.bytes, plane));
                    rest = after;
                    match append(compressor, bytes, &mut stored[at..]) {
                        Some(more) => at += more,
                        None => return Ok(None),
                    }
                }
            }
            Ok((at < raw.len()).then_some(at))
        })
    })?;
    match written {
        Some(bytes) => stored.truncate(bytes),
        None => stored.copy_from_slice(raw),
    }
    Ok(())
}

/// Returns a compressor that looks for what is frequent and hardly for what repeats: exponents are frequent, and their
/// matches cost more time than they save bytes.
fn compressor() -> Result<Compressor<'static>, CodecError> {
    let mut compressor = Compressor::new(LEVEL).map_err(|_| CodecError::Compressor)?;
    for parameter in
        [CParameter::TargetLength(STRIDE), CParameter::LiteralCompressionMode(ParamSwitch::Enable)]
    {
        compressor.set_parameter(parameter).map_err(|_| CodecError::Compressor)?;
    }
    Ok(compressor)
}

/// Decodes into `raw`, whose length alone says how much comes out: no length among the stored bytes is trusted.
pub(super) fn decode(path: Path, numbers: Numbers, stored: &[u8], raw: &mut [u8]) -> Result<(), CodecError> {
    if stored.len() >= raw.len() {
        if stored.len() > raw.len() {
            return Err(CodecError::StoredLength {
                codec: Codec::Lossless,
                wanted: raw.len() as u64,
                given: stored.len() as u64,
            });
        }
        raw.copy_from_slice(stored);
        return Ok(());
    }
    let mut rest = stored;
    DECOMPRESSOR.with_borrow_mut(|kept| {
        let decompressor = match kept {
            Some(decompressor) => decompressor,
            None => kept.insert(Decompressor::new().map_err(|_| CodecError::Compressor)?),
        };
        PLANES.with_borrow_mut(|planes| {
            for start in (0..raw.len()).step_by(PIECE_BYTES) {
                let piece = start..raw.len().min(start + PIECE_BYTES);
                planes.resize(piece.len(), 0);
                let damaged = CodecError::Damaged { at: (stored.len() - rest.len()) as u64 };
                let (how, after) = rest.split_first().ok_or(damaged)?;
                let row_bytes = match *how {
                    AS_THEY_ARE => None,
                    DIFFERENCES => Some(numbers.row_bytes.ok_or(damaged)?),
                    _ => return Err(damaged),
                };
                rest = after;
                let mut places = &mut planes[..];
                let mut sources: [&[u8]; MOST_PLANES] = [&[]; MOST_PLANES];
                for (plane, source) in sources.iter_mut().enumerate().take(numbers.bytes) {
                    let (place, after) = std::mem::take(&mut places).split_at_mut(plane_bytes(
                        piece.len(),
                        numbers.bytes,
                        plane,
                    ));
                    places = after;
                    let damaged = CodecError::Damaged { at: (stored.len() - rest.len()) as u64 };
                    (*source, rest) = take(decompressor, rest, place).ok_or(damaged)?;
                }
                planes::join(path, row_bytes, &sources[..numbers.bytes], raw, piece);
            }
            Ok(())
        })
    })?;
    if !rest.is_empty() {
        return Err(CodecError::Damaged { at: (stored.len() - rest.len()) as u64 });
    }
    Ok(())
}

/// Writes a plane to the front of `place` and returns its bytes there; `None` when there are too few.
fn append(compressor: &mut Compressor, plane: &[u8], place: &mut [u8]) -> Option<usize> {
    let (length, place) = place.split_first_chunk_mut::<LENGTH_BYTES>()?;
    if is_worth_it(plane) {
        let most = plane.len().min(place.len());
        // An error says that the place is too small: the plane does not shrink.
        if let Ok(bytes) = compressor.compress_to_buffer(plane, &mut place[..most]) {
            *length = (bytes as u32 | COMPRESSED).to_le_bytes();
            return Some(LENGTH_BYTES + bytes);
        }
    }
    place.get_mut(..plane.len())?.copy_from_slice(plane);
    *length = (plane.len() as u32).to_le_bytes();
    Some(LENGTH_BYTES + plane.len())
}

/// Returns the plane at the front of `stored`, in `place` where it had to be decompressed, and what follows it; `None`
/// when it is damaged.
fn take<'a, 'b>(
    decompressor: &mut Decompressor,
    stored: &'a [u8],
    place: &'b mut [u8],
) -> Option<(&'b [u8], &'a [u8])>
where
    'a: 'b,
{
    let (length, rest) = stored.split_first_chunk::<LENGTH_BYTES>()?;
    let length = u32::from_le_bytes(*length);
    let (bytes, rest) = rest.split_at_checked((length & !COMPRESSED) as usize)?;
    if length & COMPRESSED == 0 {
        return (bytes.len() == place.len()).then_some((bytes, rest));
    }
    let written = decompressor.decompress_to_buffer(bytes, place).ok()?;
    (written == place.len()).then_some((place, rest))
}

/// Returns false for bytes that look random. Only an estimate: a plane that repeats itself over long distances may be
/// missed, never damaged.
fn is_worth_it(plane: &[u8]) -> bool {
    if plane.len() < SAMPLE {
        return true;
    }
    let mut seen = [0u32; 256];
    let step = plane.len() / SAMPLE;
    for byte in plane.iter().step_by(step).take(SAMPLE) {
        seen[usize::from(*byte)] += 1;
    }
    // The chance that two draws agree: 1/256 for random bytes, twice that for bytes of 7 bits.
    let pairs: u32 = seen.iter().map(|count| count * count).sum();
    let random = (SAMPLE * SAMPLE / 256 + SAMPLE) as u32;
    pairs > random + random / 8
}
