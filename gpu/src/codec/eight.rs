//! Eight bits a number, int8 or fp8 e4m3. A plane is stored as its scales, bf16, then its codes, a byte a number, row
//! by row. Keys of at least [`CHANNEL_TOKENS`] tokens have a scale a channel, everything else a scale a token and head.
#![allow(unsafe_code, reason = "calls functions compiled for instructions that the CPU was asked about")]

use super::shape::{Element, Plane, Tensor};
use super::wide::{PIECE, Path, Portable, RUN, Wide, from_e4m3, to_e4m3, to_int8};

/// Tokens from which on a scale a channel costs at most an eighth of the codes.
pub(super) const CHANNEL_TOKENS: usize = 16;

/// Bytes of a scale.
const SCALE: usize = 2;

/// Returns the bytes of a whole tensor; `None` when they overflow.
pub(super) fn stored_bytes(tensor: &Tensor) -> Option<u64> {
    let numbers = (tensor.heads * tensor.head_dim).checked_mul(tensor.tokens)?;
    let by_token = tensor.heads.checked_mul(tensor.tokens)?;
    let by_channel = tensor.heads * tensor.head_dim;
    let key_scales = if tensor.tokens >= CHANNEL_TOKENS as u64 { by_channel } else { by_token };
    let both = numbers.checked_mul(2)?.checked_add((key_scales.checked_add(by_token)?).checked_mul(2)?)?;
    both.checked_mul(tensor.plane_count() / 2)
}

/// Returns the bytes of a plane.
pub(super) fn plane_bytes(plane: &Plane) -> usize {
    scales_bytes(plane) + plane.tokens * plane.width()
}

/// Encodes a tensor; both lengths are checked.
pub(super) fn encode(path: Path, fp8: bool, tensor: &Tensor, raw: &[u8], stored: &mut [u8]) {
    match (path, fp8) {
        (Path::Portable, false) => encode_planes::<Portable, Int8>(tensor, raw, stored),
        (Path::Portable, true) => encode_planes::<Portable, Fp8>(tensor, raw, stored),
        // SAFETY: this path is chosen only where the CPU has AVX2 and F16C.
        #[cfg(target_arch = "x86_64")]
        (Path::Avx2, _) => unsafe { encode_avx2(fp8, tensor, raw, stored) },
    }
}

/// Decodes a tensor; both lengths are checked.
pub(super) fn decode(path: Path, fp8: bool, tensor: &Tensor, stored: &[u8], raw: &mut [u8]) {
    match (path, fp8) {
        (Path::Portable, false) => decode_planes::<Portable, Int8>(tensor, stored, raw),
        (Path::Portable, true) => decode_planes::<Portable, Fp8>(tensor, stored, raw),
        // SAFETY: this path is chosen only where the CPU has AVX2 and F16C.
        #[cfg(target_arch = "x86_64")]
        (Path::Avx2, _) => unsafe { decode_avx2(fp8, tensor, stored, raw) },
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
fn encode_avx2(fp8: bool, tensor: &Tensor, raw: &[u8], stored: &mut [u8]) {
    if fp8 {
        encode_planes::<super::avx2::Avx2, Fp8>(tensor, raw, stored);
    } else {
        encode_planes::<super::avx2::Avx2, Int8>(tensor, raw, stored);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
fn decode_avx2(fp8: bool, tensor: &Tensor, stored: &[u8], raw: &mut [u8]) {
    if fp8 {
        decode_planes::<super::avx2::Avx2, Fp8>(tensor, stored, raw);
    } else {
        decode_planes::<super::avx2::Avx2, Int8>(tensor, stored, raw);
    }
}

/// A code of one byte.
trait Code {
    /// The largest magnitude that has a code.
    const LARGEST: f32;
    /// Returns the code nearest to a scaled value; what is beyond the largest gets the largest.
    fn code(scaled: f32) -> u8;
    /// Does as [`Code::code`] with each of a run.
    fn codes<W: Wide>(scaled: &[f32; RUN]) -> [u8; RUN];
    /// Returns what a code stands for before it is scaled.
    fn value(code: u8) -> f32;
    /// Does as [`Code::value`] with each of a run.
    fn values<W: Wide>(codes: &[u8; RUN]) -> [f32; RUN];
}

/// Two's complement; -128 is NaN.
struct Int8;

impl Code for Int8 {
    const LARGEST: f32 = 127.0;

    #[inline(always)]
    fn code(scaled: f32) -> u8 {
        to_int8(scaled)
    }

    #[inline(always)]
    fn codes<W: Wide>(scaled: &[f32; RUN]) -> [u8; RUN] {
        W::int8(scaled)
    }

    #[inline(always)]
    fn value(code: u8) -> f32 {
        if code == 0x80 { f32::NAN } else { f32::from(code as i8) }
    }

    #[inline(always)]
    fn values<W: Wide>(codes: &[u8; RUN]) -> [f32; RUN] {
        // A loop: an array's `map` is not vectorised, which was measured to halve the speed.
        let mut values = [0f32; RUN];
        for (value, code) in values.iter_mut().zip(codes) {
            *value = Int8::value(*code);
        }
        values
    }
}

/// OCP e4m3: bias 7, no infinities; 0x7F and 0xFF are NaN, of which 0x7F is written.
struct Fp8;

impl Code for Fp8 {
    const LARGEST: f32 = 448.0;

    #[inline(always)]
    fn code(scaled: f32) -> u8 {
        to_e4m3(scaled)
    }

    #[inline(always)]
    fn codes<W: Wide>(scaled: &[f32; RUN]) -> [u8; RUN] {
        W::e4m3(scaled)
    }

    #[inline(always)]
    fn value(code: u8) -> f32 {
        from_e4m3(code)
    }

    #[inline(always)]
    fn values<W: Wide>(codes: &[u8; RUN]) -> [f32; RUN] {
        W::from_e4m3(codes)
    }
}

/// Returns the bits of the scale that brings a magnitude under the largest code, rounded up; 0 where its reciprocal
/// would not be finite: such a group is stored as zeros.
#[inline(always)]
fn scale_for<C: Code>(magnitude: u32) -> u16 {
    let exact = f32::from_bits(magnitude) / C::LARGEST;
    let half = (exact.to_bits() + 0xFFFF) >> 16;
    if half < 0x0080 { 0 } else { half as u16 }
}

#[inline(always)]
fn scale_value(half: u16) -> f32 {
    f32::from_bits(u32::from(half) << 16)
}

/// Returns 1 / scale, 0 for a scale of 0.
#[inline(always)]
fn reciprocal(half: u16) -> f32 {
    if half == 0 { 0.0 } else { 1.0 / scale_value(half) }
}

/// Says whether a plane has a scale a channel, else it has one a token and head.
#[inline(always)]
pub(super) fn by_channel(plane: &Plane) -> bool {
    plane.keys && plane.tokens >= CHANNEL_TOKENS
}

/// The largest finite magnitude of each of [`PIECE`] channels, in the bits of the element: they order as magnitudes do,
/// and 16 of 16 bits fit one register.
struct Largest {
    of_two: [u16; PIECE],
    of_four: [u32; PIECE],
}

impl Largest {
    #[inline(always)]
    fn new() -> Largest {
        Largest { of_two: [0; PIECE], of_four: [0; PIECE] }
    }

    /// Takes one token's numbers, from the first channel on.
    #[inline(always)]
    fn take<W: Wide>(&mut self, element: Element, raw: &[u8]) {
        match element {
            Element::F16 => W::raise::<0x7C00>(raw, &mut self.of_two),
            Element::Bf16 => W::raise::<0x7F80>(raw, &mut self.of_two),
            Element::F32 => {
                for (most, four) in self.of_four.iter_mut().zip(raw.chunks_exact(4)) {
                    let bits = u32::from_le_bytes([four[0], four[1], four[2], four[3]]) & 0x7FFF_FFFF;
                    *most = (if bits < 0x7F80_0000 { bits } else { 0 }).max(*most);
                }
            }
        }
    }

    /// Returns one channel's as the bits of a binary32.
    #[inline(always)]
    fn of(&self, element: Element, at: usize) -> u32 {
        match element {
            Element::F32 => self.of_four[at],
            _ => widened(element, self.of_two[at]),
        }
    }
}

/// Returns the largest finite magnitude of some numbers as the bits of a binary32.
#[inline(always)]
fn largest_of<W: Wide>(element: Element, raw: &[u8]) -> u32 {
    match element {
        Element::F16 => widened(element, largest_half::<W, 0x7C00>(raw)),
        Element::Bf16 => widened(element, largest_half::<W, 0x7F80>(raw)),
        Element::F32 => raw.chunks_exact(4).fold(0, |most, four| {
            let bits = u32::from_le_bytes([four[0], four[1], four[2], four[3]]) & 0x7FFF_FFFF;
            most.max(if bits < 0x7F80_0000 { bits } else { 0 })
        }),
    }
}

#[inline(always)]
fn largest_half<W: Wide, const INFINITE: u16>(raw: &[u8]) -> u16 {
    let mut most = [0u16; RUN];
    let (runs, rest) = raw.as_chunks::<{ 2 * RUN }>();
    for run in runs {
        W::raise::<INFINITE>(run, &mut most);
    }
    W::raise::<INFINITE>(rest, &mut most);
    most.into_iter().fold(0, u16::max)
}

#[inline(always)]
fn widened(element: Element, half: u16) -> u32 {
    let mut value = [0f32];
    Portable::load(element, &half.to_le_bytes(), &mut value);
    value[0].to_bits()
}

#[inline(always)]
fn scales_bytes(plane: &Plane) -> usize {
    SCALE * if by_channel(plane) { plane.width() } else { plane.tokens * plane.heads }
}

#[inline(always)]
fn encode_planes<W: Wide, C: Code>(tensor: &Tensor, raw: &[u8], mut stored: &mut [u8]) {
    for plane in tensor.planes() {
        let (scales, rest) = stored.split_at_mut(scales_bytes(&plane));
        let (codes, rest) = rest.split_at_mut(plane.tokens * plane.width());
        if by_channel(&plane) {
            encode_channels::<W, C>(&plane, raw, scales, codes);
        } else {
            encode_tokens::<W, C>(&plane, raw, scales, codes);
        }
        stored = rest;
    }
}

#[inline(always)]
fn encode_channels<W: Wide, C: Code>(plane: &Plane, raw: &[u8], scales: &mut [u8], codes: &mut [u8]) {
    let width = plane.width();
    let mut inverses = [0f32; PIECE];
    for column in (0..width).step_by(PIECE) {
        let count = PIECE.min(width - column);
        let mut largest = Largest::new();
        for token in 0..plane.tokens {
            largest.take::<W>(plane.element, &raw[plane.range(token, column, count)]);
        }
        let places = scales[column * SCALE..(column + count) * SCALE].chunks_exact_mut(SCALE);
        for (at, (place, inverse)) in places.zip(&mut inverses).enumerate() {
            let half = scale_for::<C>(largest.of(plane.element, at));
            *inverse = reciprocal(half);
            place.copy_from_slice(&half.to_le_bytes());
        }
        for token in 0..plane.tokens {
            let numbers = &raw[plane.range(token, column, count)];
            encode_row::<W, C>(
                plane.element,
                numbers,
                &inverses[..count],
                &mut codes[token * width + column..],
            );
        }
    }
}

#[inline(always)]
fn encode_tokens<W: Wide, C: Code>(plane: &Plane, raw: &[u8], scales: &mut [u8], codes: &mut [u8]) {
    let mut inverses = [0f32; PIECE];
    let rows = codes.chunks_exact_mut(plane.head_dim).zip(scales.chunks_exact_mut(SCALE));
    for (at, (codes, scale)) in rows.enumerate() {
        let (token, first) = (at / plane.heads, at % plane.heads * plane.head_dim);
        let largest = largest_of::<W>(plane.element, &raw[plane.range(token, first, plane.head_dim)]);
        let half = scale_for::<C>(largest);
        inverses[..PIECE.min(plane.head_dim)].fill(reciprocal(half));
        scale.copy_from_slice(&half.to_le_bytes());
        for column in (0..plane.head_dim).step_by(PIECE) {
            let count = PIECE.min(plane.head_dim - column);
            let numbers = &raw[plane.range(token, first + column, count)];
            encode_row::<W, C>(plane.element, numbers, &inverses[..count], &mut codes[column..]);
        }
    }
}

/// Writes the codes of as many numbers as there are inverses.
#[inline(always)]
fn encode_row<W: Wide, C: Code>(element: Element, raw: &[u8], inverses: &[f32], codes: &mut [u8]) {
    match element {
        Element::F16 => encode_row_of::<W, C>(Element::F16, raw, inverses, codes),
        Element::Bf16 => encode_row_of::<W, C>(Element::Bf16, raw, inverses, codes),
        Element::F32 => encode_row_of::<W, C>(Element::F32, raw, inverses, codes),
    }
}

/// As [`encode_row`], the element known when it is compiled: a run of numbers goes from memory to its codes in registers.
#[inline(always)]
fn encode_row_of<W: Wide, C: Code>(element: Element, raw: &[u8], inverses: &[f32], codes: &mut [u8]) {
    let bytes = element.bytes();
    let whole = inverses.len() / RUN * RUN;
    for at in (0..whole).step_by(RUN) {
        let mut values = [0f32; RUN];
        W::load(element, &raw[at * bytes..][..RUN * bytes], &mut values);
        for (value, inverse) in values.iter_mut().zip(&inverses[at..][..RUN]) {
            *value *= *inverse;
        }
        codes[at..][..RUN].copy_from_slice(&C::codes::<W>(&values));
    }
    for at in whole..inverses.len() {
        let mut value = [0f32];
        W::load(element, &raw[at * bytes..][..bytes], &mut value);
        codes[at] = C::code(value[0] * inverses[at]);
    }
}

#[inline(always)]
fn decode_planes<W: Wide, C: Code>(tensor: &Tensor, mut stored: &[u8], raw: &mut [u8]) {
    for plane in tensor.planes() {
        let (scales, rest) = stored.split_at(scales_bytes(&plane));
        let (codes, rest) = rest.split_at(plane.tokens * plane.width());
        if by_channel(&plane) {
            decode_channels::<W, C>(&plane, scales, codes, raw);
        } else {
            decode_tokens::<W, C>(&plane, scales, codes, raw);
        }
        stored = rest;
    }
}

#[inline(always)]
fn decode_channels<W: Wide, C: Code>(plane: &Plane, scales: &[u8], codes: &[u8], raw: &mut [u8]) {
    let width = plane.width();
    let mut factors = [0f32; PIECE];
    for column in (0..width).step_by(PIECE) {
        let count = PIECE.min(width - column);
        let places = scales[column * SCALE..(column + count) * SCALE].chunks_exact(SCALE);
        for (place, factor) in places.zip(&mut factors) {
            *factor = scale_value(u16::from_le_bytes([place[0], place[1]]));
        }
        for token in 0..plane.tokens {
            let place = &mut raw[plane.range(token, column, count)];
            let codes = &codes[token * width + column..];
            decode_row::<W, C>(plane.element, codes, &factors[..count], place);
        }
    }
}

#[inline(always)]
fn decode_tokens<W: Wide, C: Code>(plane: &Plane, scales: &[u8], codes: &[u8], raw: &mut [u8]) {
    let mut factors = [0f32; PIECE];
    let rows = codes.chunks_exact(plane.head_dim).zip(scales.chunks_exact(SCALE));
    for (at, (codes, scale)) in rows.enumerate() {
        let (token, first) = (at / plane.heads, at % plane.heads * plane.head_dim);
        let factor = scale_value(u16::from_le_bytes([scale[0], scale[1]]));
        factors[..PIECE.min(plane.head_dim)].fill(factor);
        for column in (0..plane.head_dim).step_by(PIECE) {
            let count = PIECE.min(plane.head_dim - column);
            let place = &mut raw[plane.range(token, first + column, count)];
            decode_row::<W, C>(plane.element, &codes[column..], &factors[..count], place);
        }
    }
}

/// Writes as many numbers as there are factors.
#[inline(always)]
fn decode_row<W: Wide, C: Code>(element: Element, codes: &[u8], factors: &[f32], raw: &mut [u8]) {
    match element {
        Element::F16 => decode_row_of::<W, C>(Element::F16, codes, factors, raw),
        Element::Bf16 => decode_row_of::<W, C>(Element::Bf16, codes, factors, raw),
        Element::F32 => decode_row_of::<W, C>(Element::F32, codes, factors, raw),
    }
}

/// As [`decode_row`], the element known when it is compiled.
#[inline(always)]
fn decode_row_of<W: Wide, C: Code>(element: Element, codes: &[u8], factors: &[f32], raw: &mut [u8]) {
    let bytes = element.bytes();
    let whole = factors.len() / RUN * RUN;
    for at in (0..whole).step_by(RUN) {
        let Some(run) = codes[at..].first_chunk::<RUN>() else { break };
        let mut values = C::values::<W>(run);
        for (value, factor) in values.iter_mut().zip(&factors[at..][..RUN]) {
            *value *= *factor;
        }
        W::save(element, &values, &mut raw[at * bytes..][..RUN * bytes]);
    }
    for at in whole..factors.len() {
        let value = C::value(codes[at]) * factors[at];
        W::save(element, &[value], &mut raw[at * bytes..][..bytes]);
    }
}
