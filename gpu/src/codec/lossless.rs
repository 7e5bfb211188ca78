//! Exact compression: pieces of raw bytes, split into byte planes (all first bytes of the numbers, then all second ones),
//! each plane compressed by zstd at level 1 where that helps. Exponents repeat and shrink; mantissas do not.
//!
//! Stored bytes as many as the raw ones are the raw ones. Fewer are pieces of [`PIECE_BYTES`] raw bytes, the last one
//! shorter; a piece is its planes, each a length of 4 bytes whose upper bit says "compressed", then so many bytes.

use super::Codec;
use super::CodecError;
use std::cell::RefCell;
use zstd::bulk::{Compressor, Decompressor};

/// Raw bytes of a piece: both its planes and what becomes of them stay in the second cache.
const PIECE_BYTES: usize = 256 << 10;
const COMPRESSED: u32 = 1 << 31;
const LENGTH_BYTES: usize = 4;
const LEVEL: i32 = 1;
/// Bytes looked at to tell whether compressing a plane is worth trying.
const SAMPLE: usize = 2048;

thread_local! {
    // Making either costs more than a small block does.
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
    static PLANES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Encodes bytes of numbers of `stride` bytes each.
pub(super) fn encode(stride: usize, raw: &[u8], stored: &mut Vec<u8>) -> Result<(), CodecError> {
    stored.clear();
    stored.reserve(raw.len());
    let shrunk = COMPRESSOR.with_borrow_mut(|kept| {
        let compressor = match kept {
            Some(compressor) => compressor,
            None => kept.insert(Compressor::new(LEVEL).map_err(|_| CodecError::Compressor)?),
        };
        PLANES.with_borrow_mut(|planes| {
            for piece in raw.chunks(PIECE_BYTES) {
                planes.resize(piece.len(), 0);
                split(stride, piece, planes);
                let mut rest = &planes[..];
                for plane in 0..stride {
                    let (bytes, after) = rest.split_at(plane_bytes(piece.len(), stride, plane));
                    rest = after;
                    append(compressor, bytes, stored)?;
                    if stored.len() >= raw.len() {
                        return Ok(false);
                    }
                }
            }
            Ok(!raw.is_empty())
        })
    })?;
    if !shrunk {
        stored.clear();
        stored.extend_from_slice(raw);
    }
    Ok(())
}

/// Decodes into `raw`, whose length alone says how much comes out: no length among the stored bytes is trusted.
pub(super) fn decode(stride: usize, stored: &[u8], raw: &mut [u8]) -> Result<(), CodecError> {
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
            for piece in raw.chunks_mut(PIECE_BYTES) {
                planes.resize(piece.len(), 0);
                let mut places = &mut planes[..];
                for plane in 0..stride {
                    let (place, after) =
                        std::mem::take(&mut places).split_at_mut(plane_bytes(piece.len(), stride, plane));
                    places = after;
                    let damaged = CodecError::Damaged { at: (stored.len() - rest.len()) as u64 };
                    rest = take(decompressor, rest, place).ok_or(damaged)?;
                }
                join(stride, planes, piece);
            }
            Ok(())
        })
    })?;
    if !rest.is_empty() {
        return Err(CodecError::Damaged { at: (stored.len() - rest.len()) as u64 });
    }
    Ok(())
}

/// Returns the bytes of one plane of a piece.
fn plane_bytes(piece: usize, stride: usize, plane: usize) -> usize {
    (piece + stride - 1 - plane) / stride
}

fn append(compressor: &mut Compressor, plane: &[u8], stored: &mut Vec<u8>) -> Result<(), CodecError> {
    let at = stored.len();
    stored.extend_from_slice(&(plane.len() as u32).to_le_bytes());
    if is_worth_it(plane) {
        let start = stored.len();
        stored.resize(start + plane.len(), 0);
        // An error says that the place is too small: the plane does not shrink.
        if let Ok(bytes) = compressor.compress_to_buffer(plane, &mut stored[start..]) {
            stored.truncate(start + bytes);
            stored[at..start].copy_from_slice(&(bytes as u32 | COMPRESSED).to_le_bytes());
            return Ok(());
        }
        stored.truncate(start);
    }
    stored.extend_from_slice(plane);
    Ok(())
}

/// Fills `place` from the front of `stored` and returns what follows; `None` when it is damaged.
fn take<'a>(decompressor: &mut Decompressor, stored: &'a [u8], place: &mut [u8]) -> Option<&'a [u8]> {
    let (length, rest) = stored.split_first_chunk::<LENGTH_BYTES>()?;
    let length = u32::from_le_bytes(*length);
    let (bytes, rest) = rest.split_at_checked((length & !COMPRESSED) as usize)?;
    if length & COMPRESSED == 0 {
        (bytes.len() == place.len()).then(|| place.copy_from_slice(bytes))?;
    } else {
        let written = decompressor.decompress_to_buffer(bytes, place).ok()?;
        (written == place.len()).then_some(())?;
    }
    Some(rest)
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

fn split(stride: usize, piece: &[u8], planes: &mut [u8]) {
    if stride == 2 && piece.len().is_multiple_of(2) {
        let (low, high) = planes.split_at_mut(piece.len() / 2);
        for ((two, low), high) in piece.chunks_exact(2).zip(low).zip(high) {
            (*low, *high) = (two[0], two[1]);
        }
        return;
    }
    let mut rest = planes;
    for plane in 0..stride {
        let (place, after) = std::mem::take(&mut rest).split_at_mut(plane_bytes(piece.len(), stride, plane));
        for (to, from) in place.iter_mut().zip(piece[plane.min(piece.len())..].iter().step_by(stride)) {
            *to = *from;
        }
        rest = after;
    }
}

fn join(stride: usize, planes: &[u8], piece: &mut [u8]) {
    if stride == 2 && piece.len().is_multiple_of(2) {
        let (low, high) = planes.split_at(piece.len() / 2);
        for ((two, low), high) in piece.chunks_exact_mut(2).zip(low).zip(high) {
            (two[0], two[1]) = (*low, *high);
        }
        return;
    }
    let length = piece.len();
    let mut rest = planes;
    for plane in 0..stride {
        let (from, after) = rest.split_at(plane_bytes(length, stride, plane));
        for (to, from) in piece[plane.min(length)..].iter_mut().step_by(stride).zip(from) {
            *to = *from;
        }
        rest = after;
    }
}
