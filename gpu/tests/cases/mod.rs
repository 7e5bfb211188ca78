//! Engines' pages as tests have them: how they lie, what is in them, and what blocks they make by the host's codecs.
#![allow(dead_code, reason = "each test that takes it in uses a part")]

use kvhive_gpu::codec::{Codec, Element, Order, Shape};
use kvhive_gpu::pages::{LayerPages, PageOrder, PageShape};

/// How a layer's tensor or tensors lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Tensors {
    Apart,
    KeysFirst,
    PagesFirst,
    Together,
}

/// A case: an engine, and what its blocks are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) tensors: Tensors,
    pub(crate) order: PageOrder,
    pub(crate) page_tokens: u32,
    pub(crate) heads: u32,
    pub(crate) head_dim: u32,
    pub(crate) element: Element,
    pub(crate) block_order: Order,
    pub(crate) tokens: u32,
    /// Bytes that the engine's memory, and the blocks, begin after a multiple of 16.
    pub(crate) off: [u64; 2],
}

pub(crate) const LAYERS: u32 = 2;
pub(crate) const PAGES: u32 = 20;
pub(crate) const BLOCKS: usize = 3;

impl Case {
    pub(crate) fn pages(&self) -> PageShape {
        PageShape {
            order: self.order,
            page_tokens: self.page_tokens,
            kv_heads: self.heads,
            head_dim: if self.order == PageOrder::Latent { 2 * self.head_dim } else { self.head_dim },
            element: self.element,
        }
    }

    pub(crate) fn shape(&self) -> Shape {
        Shape::Tensor {
            layers: LAYERS,
            kv_heads: self.heads,
            head_dim: self.head_dim,
            tokens: self.tokens,
            element: self.element,
            order: self.block_order,
        }
    }

    /// Bytes of one layer's memory.
    pub(crate) fn layer_bytes(&self) -> usize {
        (2 * PAGES * self.page_tokens * self.heads * self.head_dim) as usize * self.element.bytes()
    }

    pub(crate) fn engine_bytes(&self) -> usize {
        self.off[0] as usize + LAYERS as usize * self.layer_bytes()
    }

    pub(crate) fn layers(&self, start: u64) -> Vec<LayerPages> {
        let (pages, bytes) = (self.pages(), self.layer_bytes() as u64);
        (0..u64::from(LAYERS))
            .map(|layer| start + self.off[0] + layer * bytes)
            .map(|at| match self.tensors {
                Tensors::Apart => pages.apart(at, at + bytes / 2, PAGES),
                Tensors::KeysFirst => pages.keys_first(at, PAGES),
                Tensors::PagesFirst => pages.pages_first(at, PAGES),
                Tensors::Together => pages.together(at, PAGES),
            })
            .collect()
    }

    /// Returns where a number is in the engine's memory, by the axes of its tensors.
    pub(crate) fn engine_place(
        &self,
        layer: u32,
        is_values: bool,
        page: u32,
        token: u32,
        head: u32,
        at: u32,
    ) -> usize {
        let (kv, heads, dim, tokens) = (u32::from(is_values), self.heads, self.head_dim, self.page_tokens);
        let outer = match self.tensors {
            Tensors::Apart | Tensors::KeysFirst => index([(0, 1), (kv, 2), (page, PAGES)]),
            Tensors::PagesFirst => index([(0, 1), (page, PAGES), (kv, 2)]),
            Tensors::Together => index([(0, 1), (0, 1), (page, PAGES)]),
        };
        let (inner, size) = match self.order {
            PageOrder::TokensFirst => (index([(token, tokens), (head, heads), (at, dim)]), 1),
            PageOrder::HeadsFirst => (index([(head, heads), (token, tokens), (at, dim)]), 1),
            PageOrder::PackedTokensFirst | PageOrder::Latent => {
                (index([(token, tokens), (head, heads), (kv, 2), (at, dim)]), 2)
            }
            PageOrder::PackedHeadsFirst => (index([(head, heads), (token, tokens), (kv, 2), (at, dim)]), 2),
        };
        let place = outer * (size * tokens * heads * dim) as usize + inner;
        self.off[0] as usize + layer as usize * self.layer_bytes() + place * self.element.bytes()
    }

    /// Returns where a number is in a raw block.
    pub(crate) fn block_place(&self, layer: u32, is_values: bool, token: u32, head: u32, at: u32) -> usize {
        let (kv, heads, dim, tokens) = (u32::from(is_values), self.heads, self.head_dim, self.tokens);
        let place = match self.block_order {
            Order::LayersFirst => {
                index([(layer, LAYERS), (kv, 2), (token, tokens), (head, heads), (at, dim)])
            }
            Order::KvFirst => index([(kv, 2), (layer, LAYERS), (token, tokens), (head, heads), (at, dim)]),
            Order::Packed => index([(layer, LAYERS), (head, heads), (token, tokens), (kv, 2), (at, dim)]),
        };
        place * self.element.bytes()
    }

    /// Returns the two places of each number of a block that is in these pages: the engine's, the block's.
    pub(crate) fn places(&self, pages: &[u32]) -> Vec<(usize, usize)> {
        let mut places = Vec::new();
        for (layer, is_values) in (0..LAYERS).flat_map(|layer| [(layer, false), (layer, true)]) {
            for token in 0..self.tokens {
                let (page, within) = (pages[(token / self.page_tokens) as usize], token % self.page_tokens);
                for head in 0..self.heads {
                    // A head's numbers follow each other on both sides.
                    let engine = self.engine_place(layer, is_values, page, within, head, 0);
                    let block = self.block_place(layer, is_values, token, head, 0);
                    let bytes = self.element.bytes();
                    places.extend(
                        (0..self.head_dim as usize).map(|at| (engine + at * bytes, block + at * bytes)),
                    );
                }
            }
        }
        places
    }
}

/// Returns where something is among axes, of each its place and size, outermost first.
pub(crate) fn index<const AXES: usize>(axes: [(u32, u32); AXES]) -> usize {
    axes.into_iter().fold(0, |index, (at, size)| index * size as usize + at as usize)
}

/// Numbers that follow from a seed.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB) >> 7
    }

    /// Fills memory with numbers as keys and values have them and, here and there, all others: infinite ones, none at all, the smallest, runs
    /// of zeros. In the first half each channel has a size of its own, which suits scales of channels; in the second none has.
    pub(crate) fn fill(&mut self, element: Element, channels: usize, memory: &mut [u8]) {
        let size = element.bytes();
        let mut zeros = 0;
        let half = memory.len() / size / 2;
        for (at, place) in memory.chunks_exact_mut(size).enumerate() {
            let (kind, any) = (self.next() % 2000, self.next());
            if kind == 0 {
                zeros = any % 300;
            }
            zeros = u64::saturating_sub(zeros, 1);
            let of_channel = (((at % channels) as u64 * 0x9E37) >> 8) & 7;
            let (exponent, less) = if at < half { (of_channel, 3) } else { (any >> 40 & 7, 0) };
            // Between a thousandth and ten; those of a channel within an eighth of each other.
            let usual = f32::from_bits((118 + exponent as u32) << 23 | (any as u32 & 0x7F_FFFF) >> less);
            let sign = if at < half { of_channel & 1 } else { any >> 50 & 1 };
            let usual = if sign == 0 { usual } else { -usual };
            let half_bits = sign << 15 | (6 + exponent) << 10 | (any & 0x3FF) >> less;
            let bits = match element {
                _ if zeros > 0 => 0,
                Element::F32 if kind > 3 => u64::from(usual.to_bits()),
                Element::Bf16 if kind > 3 => u64::from(usual.to_bits() >> 16),
                Element::F16 if kind > 3 => half_bits,
                // Anything, NaN and infinities among it.
                _ if kind > 1 => any,
                Element::F32 => 0x7F80_0000,
                Element::Bf16 => 0x7F80,
                Element::F16 => 0xFC00,
            };
            place.copy_from_slice(&bits.to_le_bytes()[..size]);
        }
    }
}

pub(crate) const CODECS: [Codec; 4] = [Codec::Raw, Codec::Fp8, Codec::Int8, Codec::Int4];
pub(crate) const ELEMENTS: [Element; 3] = [Element::F16, Element::Bf16, Element::F32];

/// Every way in which engines lay out their pages, by blocks of each order.
pub(crate) fn arrangements() -> Vec<Case> {
    let (apart, packed) = (
        [PageOrder::TokensFirst, PageOrder::HeadsFirst],
        [PageOrder::PackedTokensFirst, PageOrder::PackedHeadsFirst],
    );
    let tensors = [Tensors::Apart, Tensors::KeysFirst, Tensors::PagesFirst];
    let engines: Vec<(Tensors, PageOrder)> = tensors
        .into_iter()
        .flat_map(|tensors| apart.map(|order| (tensors, order)))
        .chain(packed.map(|order| (Tensors::Together, order)))
        .collect();
    let orders = [Order::LayersFirst, Order::KvFirst, Order::Packed];
    let mut cases = Vec::new();
    for (tensors, order) in engines {
        for block_order in orders {
            cases.push(Case {
                tensors,
                order,
                page_tokens: 8,
                heads: 3,
                head_dim: 64,
                element: Element::F16,
                block_order,
                tokens: 16,
                off: [0, 0],
            });
        }
    }
    cases
}
