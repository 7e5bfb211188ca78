//! Blocks that lie one after the other, as they are, seen as an engine's pages: one page each, so that what encodes pages encodes them.

use crate::codec::{Order, Shape};
use crate::pages::{LayerPages, PageOrder, PageShape};

/// The most layers that a block has here.
const MOST_LAYERS: u32 = 4096;

/// Returns the pages that blocks of a tensor are, which lie in so many bytes from an address on. None where blocks are no numbers, or have
/// no size, or more layers than any model.
pub(crate) fn pages_of(block: &Shape, address: u64, bytes: u64) -> Option<(PageShape, Vec<LayerPages>)> {
    let Shape::Tensor { layers, kv_heads, head_dim, tokens, element, order } = *block else { return None };
    let stride = block.raw_bytes().filter(|stride| *stride > 0 && layers <= MOST_LAYERS)?;
    // More than a page has a number are of no use.
    let pages = u32::try_from(bytes / stride).unwrap_or(u32::MAX);
    let page = match order {
        Order::LayersFirst | Order::KvFirst => PageOrder::TokensFirst,
        Order::Packed => PageOrder::PackedHeadsFirst,
    };
    let shape = PageShape { order: page, page_tokens: tokens, kv_heads, head_dim, element };
    let (side, all) = (shape.side_bytes()?, u64::from(layers));
    let row = u64::from(head_dim) * element.bytes() as u64;
    let layer = |at: u64| {
        let (keys, values) = match order {
            Order::LayersFirst => (2 * at * side, (2 * at + 1) * side),
            Order::KvFirst => (at * side, (all + at) * side),
            Order::Packed => (2 * at * side, 2 * at * side + row),
        };
        LayerPages { keys: address + keys, values: address + values, stride, pages }
    };
    // The last of these is below the block's end, which has an address.
    address.checked_add(stride)?;
    Some((shape, (0..all).map(layer).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Element;

    fn shape(order: Order) -> Shape {
        Shape::Tensor { layers: 2, kv_heads: 3, head_dim: 4, tokens: 5, element: Element::F16, order }
    }

    #[test]
    fn each_block_is_a_page_and_its_planes_are_where_its_order_has_them() {
        let side = 5 * 3 * 4 * 2;
        for (order, starts) in [
            (Order::LayersFirst, [(0, side), (2 * side, 3 * side)]),
            (Order::KvFirst, [(0, 2 * side), (side, 3 * side)]),
            (Order::Packed, [(0, 8), (2 * side, 2 * side + 8)]),
        ] {
            let (_, layers) = pages_of(&shape(order), 1000, 10 * side).expect("they are numbers");
            let found: Vec<_> = layers.iter().map(|one| (one.keys - 1000, one.values - 1000)).collect();
            assert_eq!(found, starts, "{order:?}");
            assert!(layers.iter().all(|one| (one.stride, one.pages) == (4 * side, 2)), "{order:?}");
        }
        assert_eq!(pages_of(&Shape::Opaque { bytes: 100 }, 0, 1000), None);
        assert_eq!(pages_of(&shape(Order::KvFirst), u64::MAX - 3, 1000), None);
    }
}
