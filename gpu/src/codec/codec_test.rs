//! The codecs' promises: exact ones are exact, bounds hold on tensors as models make them, paths agree, and what no
//! encoder wrote is refused or decodes to something, without a panic.

use super::*;
use proptest::prelude::*;
use std::collections::HashMap;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Roughly normal, variance 1.
    fn normal(&mut self) -> f32 {
        (0..12).map(|_| (self.next() >> 40) as f32 / (1 << 24) as f32).sum::<f32>() - 6.0
    }
}

fn tensor(kv_heads: u32, head_dim: u32, tokens: u32, element: Element, order: Order) -> Shape {
    Shape::Tensor { layers: 2, kv_heads, head_dim, tokens, element, order }
}

/// Where a number is: its plane, whether that holds keys, and its token and channel within the plane.
struct Place {
    plane: usize,
    keys: bool,
    token: usize,
    channel: usize,
}

fn places(shape: &Shape) -> Vec<Place> {
    let Shape::Tensor { layers, kv_heads, head_dim, tokens, order, .. } = *shape else { return Vec::new() };
    let [layers, heads, dim, tokens] = [layers, kv_heads, head_dim, tokens].map(|axis| axis as usize);
    let mut places = Vec::new();
    let count = layers * heads * dim * tokens * 2;
    for at in 0..count {
        let (inner, width) = (at % (tokens * heads * dim), heads * dim);
        places.push(match order {
            Order::LayersFirst | Order::KvFirst => {
                let outer = at / (tokens * width);
                let keys = if order == Order::LayersFirst { outer % 2 == 0 } else { outer < layers };
                Place { plane: outer, keys, token: inner / width, channel: inner % width }
            }
            Order::Packed => {
                let (row, column) = (at / (2 * dim), at % (2 * dim));
                let (outer, keys) = (row / tokens, column < dim);
                Place {
                    plane: 2 * outer + usize::from(!keys),
                    keys,
                    token: row % tokens,
                    channel: column % dim,
                }
            }
        });
    }
    places
}

/// A tensor as models make them: every channel walks from token to token, some keys' channels are far larger and far
/// from zero.
fn walking(shape: &Shape, seed: u64) -> Vec<u8> {
    let Shape::Tensor { element, .. } = *shape else { return Vec::new() };
    let mut random = Random(seed | 1);
    let mut walks: HashMap<(usize, usize), (f32, f32)> = HashMap::new();
    let mut values = Vec::new();
    for place in places(shape) {
        let (level, gain) = walks.entry((place.plane, place.channel)).or_insert_with(|| {
            let outlier = place.keys && place.channel % 29 == 3;
            (random.normal() + if outlier { 3.0 } else { 0.0 }, if outlier { 20.0 } else { 1.0 })
        });
        *level += 0.2 * random.normal();
        values.push(*level * *gain);
    }
    bytes_of(element, &values)
}

fn bytes_of(element: Element, values: &[f32]) -> Vec<u8> {
    let mut raw = vec![0; values.len() * element.bytes()];
    <wide::Portable as wide::Wide>::save(element, values, &mut raw);
    raw
}

fn values_of(element: Element, raw: &[u8]) -> Vec<f32> {
    let mut values = vec![0.0; raw.len() / element.bytes()];
    <wide::Portable as wide::Wide>::load(element, raw, &mut values);
    values
}

fn there_and_back(codec: Codec, shape: &Shape, raw: &[u8]) -> Vec<u8> {
    let mut stored = vec![0xAA; 7];
    encode(codec, shape, raw, &mut stored).expect("the bytes are the shape's");
    let most = max_stored_bytes(codec, shape).expect("the shape is small");
    assert!(stored.len() as u64 <= most, "{codec}: {} of at most {most}", stored.len());
    assert!(codec == Codec::Lossless || stored.len() as u64 == most, "{codec}'s length is exact");
    let mut back = vec![0x55; raw.len()];
    decode(codec, shape, &stored, &mut back).expect("an encoder wrote it");
    back
}

fn shapes() -> impl Strategy<Value = Shape> {
    let element = prop::sample::select(vec![Element::F16, Element::Bf16, Element::F32]);
    let order = prop::sample::select(vec![Order::LayersFirst, Order::KvFirst, Order::Packed]);
    let dim = prop_oneof![1..40u32, Just(64), Just(128), 120..140u32];
    (1..4u32, dim, prop_oneof![1..70u32, Just(16), Just(32)], element, order)
        .prop_map(|(heads, dim, tokens, element, order)| tensor(heads, dim, tokens, element, order))
}

/// Random bits: all the odd numbers that a format has, NaN payloads and subnormals among them.
fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed | 1);
    (0..bytes).map(|_| random.next() as u8).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn exact_codecs_give_the_same_bits(shape in shapes(), seed: u64, is_noise: bool) {
        let bytes = shape.raw_bytes().expect("small") as usize;
        let raw = if is_noise { noise(bytes, seed) } else { walking(&shape, seed) };
        for codec in [Codec::Raw, Codec::Lossless] {
            prop_assert!(there_and_back(codec, &shape, &raw) == raw, "{codec}");
        }
        let opaque = Shape::Opaque { bytes: bytes as u64 - 1 };
        prop_assert!(there_and_back(Codec::Lossless, &opaque, &raw[1..]) == raw[1..]);
    }

    #[test]
    fn values_stay_within_the_documented_bounds(shape in shapes(), seed: u64) {
        let Shape::Tensor { element, head_dim, tokens, .. } = shape else { unreachable!("they are tensors") };
        let raw = walking(&shape, seed);
        let before = values_of(element, &raw);
        let places = places(&shape);
        let ulp = match element { Element::F16 => 1e-3, Element::Bf16 => 8e-3, Element::F32 => 1e-6 };
        let eight_group = |place: &Place| match place.keys && tokens >= 16 {
            true => (place.plane, usize::MAX, place.channel),
            false => (place.plane, place.token, place.channel / head_dim as usize),
        };
        let mut largest: HashMap<_, f32> = HashMap::new();
        for (place, value) in places.iter().zip(&before) {
            let most = largest.entry(eight_group(place)).or_default();
            *most = most.max(value.abs());
        }
        for codec in [Codec::Int8, Codec::Fp8] {
            let after = values_of(element, &there_and_back(codec, &shape, &raw));
            for ((place, was), is) in places.iter().zip(&before).zip(&after) {
                let most = largest[&eight_group(place)];
                let bound = match codec {
                    Codec::Int8 => most / 250.0,
                    _ => (was.abs() / 15.0).max(most / 450_000.0),
                } + was.abs() * ulp + 1e-7;
                prop_assert!((was - is).abs() <= bound, "{codec}: {was} became {is}, bound {bound}");
            }
        }
        check_four(&shape, element, &raw, &places, &before, ulp)?;
    }

    #[test]
    fn every_path_gives_the_same_bytes(shape in shapes(), seed: u64, is_noise: bool) {
        let bytes = shape.raw_bytes().expect("small") as usize;
        let raw = if is_noise { noise(bytes, seed) } else { walking(&shape, seed) };
        for codec in [Codec::Fp8, Codec::Int8, Codec::Int4] {
            let (mut slow, mut fast) = (vec![1; bytes], vec![2; 3]);
            encode_as(Path::Portable, codec, &shape, &raw, &mut slow).expect("sound");
            encode(codec, &shape, &raw, &mut fast).expect("sound");
            prop_assert!(slow == fast, "{codec} encodes differently");
            // Damaged ones too: a kernel that is handed anything decodes it as the reference does.
            if is_noise {
                slow.copy_from_slice(&noise(fast.len(), seed ^ 5));
            }
            let (mut slow_raw, mut fast_raw) = (vec![1; bytes], vec![2; bytes]);
            decode_as(Path::Portable, codec, &shape, &slow, &mut slow_raw).expect("sound");
            decode(codec, &shape, &slow, &mut fast_raw).expect("sound");
            prop_assert!(slow_raw == fast_raw, "{codec} decodes differently");
        }
    }

    #[test]
    fn damage_never_panics_and_lengths_are_checked(shape in shapes(), seed: u64, flips in 1..20usize) {
        let raw = walking(&shape, seed);
        let mut random = Random(seed | 1);
        for codec in Codec::ALL {
            let (mut stored, mut back) = (Vec::new(), vec![0; raw.len()]);
            encode(codec, &shape, &raw, &mut stored).expect("sound");
            for wrong in [0, stored.len() / 2, stored.len() - 1] {
                prop_assert!(decode(codec, &shape, &stored[..wrong], &mut back).is_err(), "{codec} cut to {wrong}");
            }
            let mut longer = stored.clone();
            longer.push(0);
            // One byte more may make lossless ones as many as the raw bytes, which are then taken as they are.
            if codec != Codec::Lossless || longer.len() != raw.len() {
                prop_assert!(decode(codec, &shape, &longer, &mut back).is_err(), "{codec} with a byte more");
            }
            for _ in 0..flips {
                let at = random.next() as usize % stored.len();
                stored[at] ^= 1 << (random.next() % 8);
            }
            // The header's digest finds these; what is asked of a codec is only that it ends.
            let _ = decode(codec, &shape, &stored, &mut back);
        }
    }
}

#[test]
fn lossless_stores_walking_channels_as_differences_on_every_path() {
    // Rows far shorter than a piece, and longer; several pieces, the last one shorter.
    for (heads, dim, tokens, order) in
        [(8, 128, 90, Order::LayersFirst), (2, 64, 300, Order::Packed), (1100, 128, 2, Order::KvFirst)]
    {
        for element in [Element::F16, Element::Bf16] {
            let shape = Shape::Tensor { layers: 1, kv_heads: heads, head_dim: dim, tokens, element, order };
            let row = if order == Order::Packed { 2 } else { heads } * dim;
            let mut random = Random(11);
            let mut levels: Vec<f32> = (0..row).map(|_| random.normal()).collect();
            let mut raw = Vec::new();
            while (raw.len() as u64) < shape.raw_bytes().expect("small") {
                levels.iter_mut().for_each(|level| *level += (random.next() % 256) as f32 / 1024.0 - 0.125);
                raw.extend(bytes_of(element, &levels));
            }
            let (mut stored, mut slow) = (Vec::new(), Vec::new());
            encode(Codec::Lossless, &shape, &raw, &mut stored).expect("sound");
            encode_as(Path::Portable, Codec::Lossless, &shape, &raw, &mut slow).expect("sound");
            assert!(stored == slow, "{shape:?} encodes differently");
            let opaque = Shape::Opaque { bytes: raw.len() as u64 };
            let mut without = Vec::new();
            encode(Codec::Lossless, &opaque, &raw, &mut without).expect("sound");
            let (with, without) = (stored.len(), without.len());
            assert!(with * 100 < without * 95, "{shape:?}: {with} bytes, {without} without a shape");
            for path in [Path::Portable, Path::best()] {
                let mut back = vec![3; raw.len()];
                decode_as(path, Codec::Lossless, &shape, &stored, &mut back).expect("an encoder wrote it");
                assert!(back == raw, "{shape:?} comes back otherwise");
            }
            // Differences from a row that opaque bytes do not have, and a kind of piece that nobody writes.
            let mut back = vec![3; raw.len()];
            stored[0] = 1;
            let damaged = Err(CodecError::Damaged { at: 0 });
            assert_eq!(decode(Codec::Lossless, &opaque, &stored, &mut back), damaged);
            stored[0] = 2;
            assert_eq!(decode(Codec::Lossless, &shape, &stored, &mut back), damaged);
        }
    }
}

/// The bound of int4 holds under one of the two groupings in each tile.
fn check_four(
    shape: &Shape,
    element: Element,
    raw: &[u8],
    places: &[Place],
    before: &[f32],
    ulp: f32,
) -> Result<(), TestCaseError> {
    let Shape::Tensor { head_dim, tokens, .. } = *shape else { return Ok(()) };
    let (dim, tokens) = (head_dim as usize, tokens as usize);
    let tile =
        |place: &Place| (place.plane, place.token / 32, place.channel / dim, place.channel % dim / 128);
    let rows = |place: &Place| (tokens - place.token / 32 * 32).min(32);
    let group = |place: &Place, by_channel: bool| {
        let each = if rows(place) == 32 { 32 } else { 64 };
        let within = place.channel % dim % 128;
        (
            tile(place),
            if by_channel { usize::MAX } else { place.token },
            if by_channel { within } else { within / each },
        )
    };
    let after = values_of(element, &there_and_back(Codec::Int4, shape, raw));
    let mut broken = HashMap::new();
    for by_channel in [true, false] {
        let mut ranges = HashMap::new();
        for (place, value) in places.iter().zip(before) {
            let (low, high) = ranges.entry(group(place, by_channel)).or_insert((*value, *value));
            (*low, *high) = (value.min(*low), value.max(*high));
        }
        let bound = |place: &Place| {
            let (low, high) = ranges[&group(place, by_channel)];
            // Three bits.
            let is_short = by_channel && !place.keys && (16..32).contains(&rows(place));
            let steps = if is_short { 9.0 } else { 19.0 };
            ((high - low) / steps).max(low.abs().max(high.abs()) / 168.0)
        };
        let mut coarsest: HashMap<_, f32> = HashMap::new();
        for place in places {
            let most = coarsest.entry(tile(place)).or_default();
            *most = most.max(bound(place));
        }
        for ((place, was), is) in places.iter().zip(before).zip(&after) {
            let tile = tile(place);
            let bound = bound(place).max(coarsest[&tile] / 64.0);
            if (was - is).abs() > bound + was.abs() * ulp + 1e-7 {
                broken.entry(tile).or_insert([false; 2])[usize::from(by_channel)] = true;
            }
        }
    }
    prop_assert!(broken.values().all(|either| *either != [true, true]), "int4 exceeds its bound");
    Ok(())
}

#[test]
fn odd_numbers_become_what_the_docs_say() {
    let shape = tensor(1, 64, 32, Element::F32, Order::KvFirst);
    let count = shape.raw_bytes().expect("small") as usize / 4;
    for codec in [Codec::Fp8, Codec::Int8, Codec::Int4] {
        let zeros = bytes_of(Element::F32, &vec![0.0; count]);
        assert_eq!(there_and_back(codec, &shape, &zeros), zeros, "{codec}: zeros are zeros");
        for constant in [1.0f32, -3.5, 1e-30, 1e30, f32::MAX] {
            let raw = bytes_of(Element::F32, &vec![constant; count]);
            for is in values_of(Element::F32, &there_and_back(codec, &shape, &raw)) {
                let off = (is - constant).abs() / constant.abs();
                assert!(off <= 1.0 / 15.0, "{codec}: {constant} became {is}");
            }
        }
        let mut values = vec![1.0; count];
        values[5] = f32::NAN;
        values[200] = f32::INFINITY;
        values[300] = f32::NEG_INFINITY;
        values[400] = -1.0;
        let mut raw = Vec::new();
        values.iter().for_each(|value| raw.extend_from_slice(&value.to_le_bytes()));
        let back = values_of(Element::F32, &there_and_back(codec, &shape, &raw));
        assert!(back[5].is_nan(), "{codec}: NaN stays");
        assert!((0.9..2.0).contains(&back[200]), "{codec}: an infinity became {}", back[200]);
        assert!(back[300].is_finite(), "{codec}: an infinity became {}", back[300]);
        let nans = back.iter().filter(|value| value.is_nan()).count();
        assert!(nans == 1 || codec == Codec::Int4 && nans == 32, "{codec}: {nans} NaN");
    }
}

#[test]
fn conversions_agree_with_every_half() {
    for bits in 0..=u16::MAX {
        for element in [Element::F16, Element::Bf16] {
            let value = values_of(element, &bits.to_le_bytes())[0];
            if value.is_finite() {
                assert_eq!(bytes_of(element, &[value]), bits.to_le_bytes(), "{element:?} {bits:#x}");
            }
        }
    }
    // Half way between two f16: the even one. Beyond the largest: the largest.
    let above = |bits: u16| f32::from_bits(0x3F80_0000 + (u32::from(bits) << 12));
    assert_eq!(bytes_of(Element::F16, &[above(1), above(3), 1e9]), [0x00, 0x3C, 0x02, 0x3C, 0xFF, 0x7B]);
}

#[test]
fn int4_stores_at_most_28_percent_of_f16_from_16_tokens_on() {
    for tokens in [16, 32, 48, 64, 128, 256] {
        for (dim, order) in [(64, Order::Packed), (128, Order::LayersFirst), (256, Order::KvFirst)] {
            let shape = tensor(8, dim, tokens, Element::F16, order);
            let stored = max_stored_bytes(Codec::Int4, &shape).expect("small") as f64;
            let ratio = stored / shape.raw_bytes().expect("small") as f64;
            assert!(ratio <= 0.28, "{tokens} tokens of {dim}: {ratio}");
        }
    }
}

#[test]
fn settings_choose_a_codec() {
    let shape = tensor(8, 128, 16, Element::F16, Order::LayersFirst);
    let opaque = Shape::Opaque { bytes: 4096 };
    let chosen = |bits, ratio| (choose(bits, ratio, &shape), choose(bits, ratio, &opaque));
    assert_eq!(chosen(None, None), (Codec::Raw, Codec::Raw));
    assert_eq!(chosen(Some(16), Some(100)), (Codec::Raw, Codec::Raw));
    assert_eq!(chosen(Some(8), Some(1000)), (Codec::Int8, Codec::Lossless));
    assert_eq!(chosen(Some(4), None), (Codec::Int4, Codec::Lossless));
    assert_eq!(chosen(None, Some(1000)), (Codec::Raw, Codec::Raw));
    assert_eq!(chosen(None, Some(800)), (Codec::Lossless, Codec::Lossless));
    assert_eq!(chosen(None, Some(540)), (Codec::Int8, Codec::Lossless));
    assert_eq!(chosen(None, Some(530)), (Codec::Int4, Codec::Lossless));
}

#[test]
fn what_does_not_go_together_is_refused() {
    let shape = tensor(1, 64, 16, Element::F16, Order::LayersFirst);
    let opaque = Shape::Opaque { bytes: 10 };
    let empty = tensor(1, 0, 16, Element::F16, Order::LayersFirst);
    let endless = tensor(u32::MAX, u32::MAX, u32::MAX, Element::F16, Order::LayersFirst);
    let mut stored = Vec::new();
    let mut ask = |codec, shape: &Shape, bytes| encode(codec, shape, &vec![0; bytes], &mut stored);
    assert_eq!(ask(Codec::Int8, &shape, 5), Err(CodecError::RawLength { wanted: 8192, given: 5 }));
    assert_eq!(ask(Codec::Int4, &opaque, 10), Err(CodecError::Opaque { codec: Codec::Int4 }));
    assert_eq!(ask(Codec::Raw, &empty, 0), Err(CodecError::Shape));
    assert_eq!(ask(Codec::Fp8, &endless, 0), Err(CodecError::Shape));
    assert!(Codec::ALL.iter().all(|codec| Codec::from_id(codec.id()) == Some(*codec)));
    assert_eq!(Codec::from_id(5), None);
}
