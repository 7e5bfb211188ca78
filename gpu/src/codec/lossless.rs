//! Exact compression: pieces of raw bytes, split into byte planes (all first bytes of the numbers, then all second ones),
//! each plane compressed by zstd at level 1 where that helps. Exponents repeat and shrink; mantissas do not.
//!
//! Stored bytes as many as the raw ones are the raw ones. Fewer are pieces of [`PIECE_BYTES`] raw bytes, the last one
//! shorter; a piece is its planes, each a length of 4 bytes whose upper bit says "compressed", then so many bytes.
#![allow(unsafe_code, reason = "calls functions compiled for instructions that the CPU was asked about")]

use super::wide::Path;
use super::{Codec, CodecError};
use std::cell::RefCell;
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::{CParameter, ParamSwitch};

/// Raw bytes of a piece: both its planes and what becomes of them stay in the second cache.
const PIECE_BYTES: usize = 256 << 10;
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

/// Encodes bytes of numbers of `stride` bytes each.
pub(super) fn encode(path: Path, stride: usize, raw: &[u8], stored: &mut Vec<u8>) -> Result<(), CodecError> {
    // Not cleared first: what is kept of it is overwritten.
    stored.resize(raw.len(), 0);
    let written = COMPRESSOR.with_borrow_mut(|kept| {
        let compressor = match kept {
            Some(compressor) => compressor,
            None => kept.insert(compressor()?),
        };
        PLANES.with_borrow_mut(|planes| {
            let mut at = 0;
            for piece in raw.chunks(PIECE_BYTES) {
                planes.resize(piece.len(), 0);
                split(path, stride, piece, planes);
                let mut rest = &planes[..];
                for plane in 0..stride {
                    let (bytes, after) = rest.split_at(plane_bytes(piece.len(), stride, plane));
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
pub(super) fn decode(path: Path, stride: usize, stored: &[u8], raw: &mut [u8]) -> Result<(), CodecError> {
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
                let mut sources: [&[u8]; MOST_PLANES] = [&[]; MOST_PLANES];
                for (plane, source) in sources.iter_mut().enumerate().take(stride) {
                    let (place, after) =
                        std::mem::take(&mut places).split_at_mut(plane_bytes(piece.len(), stride, plane));
                    places = after;
                    let damaged = CodecError::Damaged { at: (stored.len() - rest.len()) as u64 };
                    (*source, rest) = take(decompressor, rest, place).ok_or(damaged)?;
                }
                join(path, &sources[..stride], piece);
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

fn split(path: Path, stride: usize, piece: &[u8], planes: &mut [u8]) {
    if stride == 2 && piece.len().is_multiple_of(2) {
        let (low, high) = planes.split_at_mut(piece.len() / 2);
        return match path {
            Path::Portable => split_pairs(piece, low, high),
            // SAFETY: this path is chosen only where the CPU has AVX2.
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => unsafe { split_pairs_avx2(piece, low, high) },
        };
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

fn join(path: Path, planes: &[&[u8]], piece: &mut [u8]) {
    if let ([low, high], true) = (planes, piece.len().is_multiple_of(2)) {
        return match path {
            Path::Portable => join_pairs(low, high, piece),
            // SAFETY: this path is chosen only where the CPU has AVX2.
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => unsafe { join_pairs_avx2(low, high, piece) },
        };
    }
    let length = piece.len();
    for (plane, from) in planes.iter().enumerate() {
        let places = piece[plane.min(length)..].iter_mut().step_by(planes.len());
        for (to, from) in places.zip(*from) {
            *to = *from;
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn split_pairs_avx2(piece: &[u8], low: &mut [u8], high: &mut [u8]) {
    split_pairs(piece, low, high);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn join_pairs_avx2(low: &[u8], high: &[u8], piece: &mut [u8]) {
    join_pairs(low, high, piece);
}

#[inline(always)]
fn split_pairs(piece: &[u8], low: &mut [u8], high: &mut [u8]) {
    for ((two, low), high) in piece.chunks_exact(2).zip(low).zip(high) {
        (*low, *high) = (two[0], two[1]);
    }
}

#[inline(always)]
fn join_pairs(low: &[u8], high: &[u8], piece: &mut [u8]) {
    for ((two, low), high) in piece.chunks_exact_mut(2).zip(low).zip(high) {
        (two[0], two[1]) = (*low, *high);
    }
}
