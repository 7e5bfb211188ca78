//! Where the planes of a block lie, raw or stored: what another implementation of the codecs must know of a shape. It moves no bytes.

use super::shape::{Plane, Shape};
use super::{Codec, eight, four};

/// Where one plane is: the keys or the values of a layer, in packed blocks of a layer and head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    /// Its first byte.
    pub(crate) start: u64,
    /// From one token to the next, in raw bytes.
    pub(crate) row_bytes: u64,
    /// It has a scale a channel, else one a token and head.
    pub(crate) by_channel: bool,
}

/// Returns the places of all planes in the order in which they lie; none for opaque bytes, and for a codec whose planes have no places
/// that are known beforehand.
pub(crate) fn places(codec: Codec, shape: &Shape) -> Option<Vec<Place>> {
    let bytes: fn(&Plane) -> usize = match codec {
        Codec::Raw => |_| 0,
        Codec::Fp8 | Codec::Int8 => eight::plane_bytes,
        Codec::Int4 => four::plane_bytes,
        Codec::Lossless => return None,
    };
    let mut stored = 0;
    let place = |plane: Plane| {
        let start = if codec == Codec::Raw { plane.start } else { stored };
        stored += bytes(&plane);
        Place {
            start: start as u64,
            row_bytes: plane.row_bytes as u64,
            by_channel: matches!(codec, Codec::Fp8 | Codec::Int8) && eight::by_channel(&plane),
        }
    };
    Some(shape.tensor()?.planes().map(place).collect())
}

#[cfg(test)]
mod tests {
    use super::super::{Element, Order, max_stored_bytes};
    use super::*;

    #[test]
    fn the_last_plane_ends_where_the_block_does() {
        for (tokens, order) in [(3, Order::LayersFirst), (16, Order::KvFirst), (70, Order::Packed)] {
            let shape =
                Shape::Tensor { layers: 2, kv_heads: 3, head_dim: 130, tokens, element: Element::F16, order };
            let twice =
                Shape::Tensor { layers: 4, kv_heads: 3, head_dim: 130, tokens, element: Element::F16, order };
            for codec in [Codec::Fp8, Codec::Int8, Codec::Int4] {
                let places = places(codec, &twice).expect("a tensor");
                // Half of the planes are half of the block, unless all keys come first.
                if order != Order::KvFirst {
                    let half = places[places.len() / 2].start;
                    assert_eq!(Some(half), max_stored_bytes(codec, &shape), "{codec} {order:?}");
                }
                assert_eq!(places[0].start, 0);
            }
        }
        assert_eq!(places(Codec::Raw, &Shape::Opaque { bytes: 8 }), None);
    }
}
