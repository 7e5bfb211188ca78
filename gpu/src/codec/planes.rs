//! Numbers' byte planes, as they are or of the differences from token to token. Sizes are its caller's; it compresses
//! nothing.
#![allow(unsafe_code, reason = "calls functions compiled for instructions that the CPU was asked about")]

use super::shape::Numbers;
use super::wide::Path;
use std::ops::Range;

/// Numbers looked at to tell whether differences are worth it: so many runs, each so long. Apart, each would wait for memory.
const SAMPLE_RUNS: usize = 16;
const SAMPLE_RUN: usize = 64;

/// Added to a difference, so that small ones of either sign have the same upper byte.
const BIAS: u16 = 0x80;

/// Returns the bytes of one plane of a piece.
pub(super) fn plane_bytes(piece: usize, stride: usize, plane: usize) -> usize {
    (piece + stride - 1 - plane) / stride
}

/// Returns whether the upper bytes of differences say less than those of the numbers. An estimate from a sample.
pub(super) fn are_near(row_bytes: usize, raw: &[u8], piece: &Range<usize>) -> bool {
    let from = piece.start.max(row_bytes).min(piece.end);
    let (mut plain, mut apart) = ([0u32; 256], [0u32; 256]);
    let between = (piece.end - from) / 2 / SAMPLE_RUNS;
    if between < SAMPLE_RUN {
        return false;
    }
    for run in 0..SAMPLE_RUNS {
        let at = from + run * between * 2;
        let numbers = raw[at..][..2 * SAMPLE_RUN].chunks_exact(2);
        for (number, before) in numbers.zip(raw[at - row_bytes..].chunks_exact(2)) {
            let number = u16::from_le_bytes([number[0], number[1]]);
            let before = u16::from_le_bytes([before[0], before[1]]);
            plain[usize::from(number >> 8)] += 1;
            apart[usize::from(number.wrapping_sub(before).wrapping_add(BIAS) >> 8)] += 1;
        }
    }
    certainty(&apart) > certainty(&plain)
}

/// Returns a measure that is higher for counts that say less: their entropy, negative and without the constant part.
fn certainty(counts: &[u32; 256]) -> f32 {
    counts.iter().filter(|count| **count > 1).map(|count| *count as f32 * (*count as f32).log2()).sum()
}

/// Writes the planes of a piece of `raw`: of differences where `numbers` have rows.
pub(super) fn split(path: Path, numbers: Numbers, raw: &[u8], piece: Range<usize>, planes: &mut [u8]) {
    let stride = numbers.bytes;
    if stride == 2 && piece.len().is_multiple_of(2) {
        let (low, high) = planes.split_at_mut(piece.len() / 2);
        let plain = numbers.row_bytes.map_or(piece.len(), |row| plain_bytes(row, &piece));
        let from = &raw[piece.clone()];
        split_pairs(path, &from[..plain], low, high);
        if let Some(row_bytes) = numbers.row_bytes {
            // Where all of the piece is plain, this row may start before the block.
            let before = &raw[(piece.start + plain).saturating_sub(row_bytes)..];
            let (low, high) = (&mut low[plain / 2..], &mut high[plain / 2..]);
            split_differences(path, &from[plain..], before, low, high);
        }
        return;
    }
    let piece = &raw[piece];
    let mut rest = planes;
    for plane in 0..stride {
        let (place, after) = std::mem::take(&mut rest).split_at_mut(plane_bytes(piece.len(), stride, plane));
        for (to, from) in place.iter_mut().zip(piece[plane.min(piece.len())..].iter().step_by(stride)) {
            *to = *from;
        }
        rest = after;
    }
}

/// Undoes [`split`] for a piece of `raw`, all before it being there.
pub(super) fn join(
    path: Path,
    row_bytes: Option<usize>,
    planes: &[&[u8]],
    raw: &mut [u8],
    piece: Range<usize>,
) {
    if let ([low, high], true) = (planes, piece.len().is_multiple_of(2)) {
        let plain = row_bytes.map_or(piece.len(), |row| plain_bytes(row, &piece));
        let (mut at, mut done) = (piece.start + plain, plain / 2);
        join_pairs(path, &low[..done], &high[..done], &mut raw[piece.start..at]);
        // A row at a time: what it is added to is there then.
        while let (Some(row), true) = (row_bytes, at < piece.end) {
            let bytes = row.min(piece.end - at);
            let (before, place) = raw.split_at_mut(at);
            let (low, high) = (&low[done..][..bytes / 2], &high[done..][..bytes / 2]);
            join_differences(path, low, high, &before[at - row..][..bytes], &mut place[..bytes]);
            (at, done) = (at + bytes, done + bytes / 2);
        }
        return;
    }
    let piece = &mut raw[piece];
    let length = piece.len();
    for (plane, from) in planes.iter().enumerate() {
        let places = piece[plane.min(length)..].iter_mut().step_by(planes.len());
        for (to, from) in places.zip(*from) {
            *to = *from;
        }
    }
}

/// Returns the bytes of a piece that have no row before them: they are stored as they are.
fn plain_bytes(row_bytes: usize, piece: &Range<usize>) -> usize {
    row_bytes.saturating_sub(piece.start).min(piece.len())
}

/// Defines a function for each path: the loop itself, compiled for the path's instructions.
macro_rules! on_each_path {
    ($name:ident, $avx2:ident, ($($argument:ident: $kind:ty),*), $body:block) => {
        #[inline(always)]
        fn $name(path: Path, $($argument: $kind),*) {
            #[inline(always)]
            fn everywhere($($argument: $kind),*) $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2")]
            fn $avx2($($argument: $kind),*) {
                everywhere($($argument),*)
            }
            match path {
                Path::Portable => everywhere($($argument),*),
                // SAFETY: this path is chosen only where the CPU has AVX2.
                #[cfg(target_arch = "x86_64")]
                Path::Avx2 => unsafe { $avx2($($argument),*) },
            }
        }
    };
}

on_each_path!(split_pairs, split_pairs_avx2, (piece: &[u8], low: &mut [u8], high: &mut [u8]), {
    for ((two, low), high) in piece.chunks_exact(2).zip(low).zip(high) {
        (*low, *high) = (two[0], two[1]);
    }
});

on_each_path!(join_pairs, join_pairs_avx2, (low: &[u8], high: &[u8], piece: &mut [u8]), {
    for ((two, low), high) in piece.chunks_exact_mut(2).zip(low).zip(high) {
        (two[0], two[1]) = (*low, *high);
    }
});

on_each_path!(
    split_differences,
    split_differences_avx2,
    (piece: &[u8], before: &[u8], low: &mut [u8], high: &mut [u8]),
    {
        let numbers = piece.chunks_exact(2).zip(before.chunks_exact(2));
        for (((two, before), low), high) in numbers.zip(low).zip(high) {
            let before = u16::from_le_bytes([before[0], before[1]]);
            let apart = u16::from_le_bytes([two[0], two[1]]).wrapping_sub(before).wrapping_add(BIAS);
            (*low, *high) = (apart as u8, (apart >> 8) as u8);
        }
    }
);

on_each_path!(
    join_differences,
    join_differences_avx2,
    (low: &[u8], high: &[u8], before: &[u8], piece: &mut [u8]),
    {
        let numbers = piece.chunks_exact_mut(2).zip(before.chunks_exact(2));
        for (((two, before), low), high) in numbers.zip(low).zip(high) {
            let before = u16::from_le_bytes([before[0], before[1]]);
            let number = u16::from_le_bytes([*low, *high]).wrapping_add(before).wrapping_sub(BIAS);
            two.copy_from_slice(&number.to_le_bytes());
        }
    }
);
