//! An engine's memory of keys and values, as pages, and what takes some of them to one block and back. Numbers and checks: it touches no
//! memory.

use crate::codec::{Codec, Element, Order, Place, Shape, max_stored_bytes, places};
use std::ops::Range;
use thiserror::Error;

/// Bytes that a thread of a GPU reads at a time.
const CHUNK_BYTES: u64 = 16;
/// Threads of a warp.
const WARP: u32 = 32;
/// Threads that do a part of a plane together, and rows that each has under way: `THREADS` and `AHEAD` of `pages.cuh`.
pub(crate) const THREADS: u32 = 256;
const AHEAD: u32 = 4;
/// Chunks of a row that a thread keeps: `OF_ROW` of `eight.cuh`.
const OF_ROW: u32 = 2;
/// Of the chunks of all tokens beside each other, what a part has at least and at most where tokens share a scale: `COLUMNS` of `eight.cuh`, and
/// 128 bytes, which memory brings at once.
const COLUMNS: [u32; 2] = [8, 64];
/// Tokens and channels of a tile of int4, and threads that do one together.
const TILE: (u32, u32) = (32, 128);
const TILE_THREADS: u32 = 128;
/// The most planes of a block, and bytes of one: what 32 bits count with room to spare.
const MOST_PLANES: usize = 1 << 20;
const MOST_PLANE_BYTES: u64 = 1 << 30;

/// The order of the axes of one page, outermost first.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PageOrder {
    /// `[page_tokens, kv_heads, head_dim]`, keys and values apart: vLLM's NHD, and SGLang's slots, a slot being a page of one token.
    TokensFirst,
    /// `[kv_heads, page_tokens, head_dim]`, keys and values apart: vLLM's HND.
    HeadsFirst,
    /// `[page_tokens, kv_heads, 2 * head_dim]`: K and V side by side.
    PackedTokensFirst,
    /// `[kv_heads, page_tokens, 2 * head_dim]`: K and V side by side.
    PackedHeadsFirst,
    /// `[page_tokens, head_dim]`: one row a token, without keys and values (MLA).
    Latent,
}

/// What one layer's page is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PageShape {
    /// Order of axes.
    pub order: PageOrder,
    /// Tokens of a page.
    pub page_tokens: u32,
    /// KV heads; 1 where it is latent.
    pub kv_heads: u32,
    /// Numbers of one head; of a whole row where it is latent.
    pub head_dim: u32,
    /// Number format.
    pub element: Element,
}

/// Where one layer has its pages, in a GPU's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LayerPages {
    /// The first number of the keys of page 0.
    pub keys: u64,
    /// The first number of the values of page 0.
    pub values: u64,
    /// From one page to the next, in bytes.
    pub stride: u64,
    /// How many there are.
    pub pages: u32,
}

/// Why pages and blocks do not go together.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum PagesError {
    /// The engine's layers are not those of a block.
    #[error("the engine has {given} layers, a block has {wanted}")]
    Layers {
        /// Layers of a block.
        wanted: u32,
        /// Layers of the engine.
        given: usize,
    },
    /// Heads, their numbers or the number format differ.
    #[error("pages and blocks have other heads or numbers: {pages:?} and {block:?}")]
    Numbers {
        /// What a page is.
        pages: PageShape,
        /// What a block is.
        block: Shape,
    },
    /// A block is no whole number of pages.
    #[error("{tokens} tokens of a block are no whole number of pages of {page_tokens}")]
    Tokens {
        /// Tokens of a block.
        tokens: u64,
        /// Tokens of a page.
        page_tokens: u32,
    },
    /// This is not encoded by a GPU.
    #[error("{codec} of these blocks is not for a GPU")]
    Codec {
        /// The codec.
        codec: Codec,
    },
    /// There is more of something than can be counted.
    #[error("blocks of this shape are too large for a GPU")]
    TooLarge,
    /// A layer's pages end beyond all addresses.
    #[error("pages of layer {layer} have no addresses")]
    Addresses {
        /// The layer, from 0.
        layer: usize,
    },
    /// A block was given too few pages, or too many.
    #[error("{given} pages were given for a block, which has {wanted}")]
    Pages {
        /// Pages of a block.
        wanted: usize,
        /// Pages that were given.
        given: usize,
    },
    /// The engine has no such page.
    #[error("there is no page {page}: every layer has {pages} at least")]
    NoSuchPage {
        /// Its number, from 0.
        page: u32,
        /// The least that a layer has.
        pages: u32,
    },
    /// Something lies outside of the memory that was given for it.
    #[error("{what} lie outside of the memory that is theirs")]
    Outside {
        /// What does.
        what: &'static str,
    },
    /// One call has too much to do.
    #[error("{blocks} blocks are too many for one call")]
    TooMany {
        /// How many blocks were given.
        blocks: usize,
    },
}

impl PageShape {
    fn row_bytes(&self) -> u64 {
        u64::from(self.head_dim) * self.element.bytes() as u64
    }

    /// Returns the bytes of a page's keys, which are those of its values; of all of it where it is latent. `None` when they overflow.
    pub fn side_bytes(&self) -> Option<u64> {
        let heads = self.row_bytes().checked_mul(u64::from(self.kv_heads))?;
        heads.checked_mul(u64::from(self.page_tokens))
    }

    /// Returns a layer whose keys and values are two tensors `[pages, ...]`: SGLang's.
    pub fn apart(&self, keys: u64, values: u64, pages: u32) -> LayerPages {
        LayerPages { keys, values, stride: self.side_bytes().unwrap_or(u64::MAX), pages }
    }

    /// Returns a layer of one tensor `[2, pages, ...]`: vLLM's.
    pub fn keys_first(&self, address: u64, pages: u32) -> LayerPages {
        let stride = self.side_bytes().unwrap_or(u64::MAX);
        let values = address.saturating_add(stride.saturating_mul(u64::from(pages)));
        LayerPages { keys: address, values, stride, pages }
    }

    /// Returns a layer of one tensor `[pages, 2, ...]`: vLLM's, where blocks come first.
    pub fn pages_first(&self, address: u64, pages: u32) -> LayerPages {
        let side = self.side_bytes().unwrap_or(u64::MAX);
        LayerPages {
            keys: address,
            values: address.saturating_add(side),
            stride: side.saturating_mul(2),
            pages,
        }
    }

    /// Returns a layer of one tensor `[pages, ...]` whose rows hold keys and values side by side, or are latent.
    pub fn together(&self, address: u64, pages: u32) -> LayerPages {
        let side = self.side_bytes().unwrap_or(u64::MAX);
        let (half, stride) = match self.order {
            PageOrder::Latent => (self.row_bytes() / 2, side),
            _ => (self.row_bytes(), side.saturating_mul(2)),
        };
        LayerPages { keys: address, values: address.saturating_add(half), stride, pages }
    }

    /// Returns how far it is in a page from one token to the next, and from one head to the next.
    fn steps(&self) -> (u64, u64) {
        let (row, heads, tokens) = (self.row_bytes(), u64::from(self.kv_heads), u64::from(self.page_tokens));
        match self.order {
            PageOrder::TokensFirst => (heads * row, row),
            PageOrder::HeadsFirst => (row, tokens * row),
            PageOrder::PackedTokensFirst => (2 * heads * row, 2 * row),
            PageOrder::PackedHeadsFirst => (2 * row, 2 * tokens * row),
            PageOrder::Latent => (row, 0),
        }
    }
}

/// A plane as the kernels read it: `Plane` of `pages.cuh`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Plane {
    pub(crate) base: u64,
    pub(crate) stride: u64,
    pub(crate) start: u64,
    pub(crate) is_values: bool,
    pub(crate) by_channel: bool,
}

/// Whose numbers a plane has: all of them, or half of each row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Rows {
    tokens: u32,
    heads: u32,
    head_dim: u32,
}

/// How an engine's pages become blocks of one layout and codec, and blocks pages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PagePlan {
    pub(crate) codec: Codec,
    pub(crate) element: Element,
    pub(crate) planes: Vec<Plane>,
    /// 2 where keys and values come in turn and may differ, else 1.
    pub(crate) kinds: u32,
    pub(crate) tokens: u32,
    pub(crate) heads: u32,
    pub(crate) head_dim: u32,
    pub(crate) page_tokens: u32,
    pub(crate) block_pages: u32,
    pub(crate) token_bytes: u64,
    pub(crate) head_bytes: u64,
    /// From one token to the next in a raw block.
    pub(crate) row_bytes: u64,
    pub(crate) chunks: u32,
    pub(crate) lanes: u32,
    /// Threads that keep a row of 8 bits a number, and columns of a part where tokens share a scale.
    pub(crate) row_lanes: u32,
    pub(crate) columns: u32,
    /// Of a plane of each kind.
    pub(crate) parts: [u32; 2],
    pub(crate) part_rows: u32,
    block_bytes: u64,
    pages: u32,
    reach: Range<u64>,
}

impl PagePlan {
    /// Makes one for an engine's layers.
    ///
    /// # Errors
    /// When they do not go together, or there is no kernel for it.
    pub fn new(
        pages: PageShape,
        layers: &[LayerPages],
        codec: Codec,
        block: &Shape,
    ) -> Result<PagePlan, PagesError> {
        let block_bytes = max_stored_bytes(codec, block).ok_or(PagesError::Codec { codec })?;
        if codec == Codec::Lossless {
            return Err(PagesError::Codec { codec });
        }
        let numbers = || PagesError::Numbers { pages, block: *block };
        if [pages.page_tokens, pages.kv_heads, pages.head_dim].contains(&0) {
            return Err(numbers());
        }
        pages.side_bytes().filter(|bytes| *bytes <= MOST_PLANE_BYTES).ok_or(PagesError::TooLarge)?;
        let rows = rows_of(&pages, layers.len(), codec, block)?;
        if !rows.tokens.is_multiple_of(pages.page_tokens) {
            let tokens = u64::from(rows.tokens);
            return Err(PagesError::Tokens { tokens, page_tokens: pages.page_tokens });
        }
        let bytes = rows.head_bytes(pages.element);
        let plane_bytes = bytes.checked_mul(u64::from(rows.tokens) * u64::from(rows.heads));
        plane_bytes.filter(|bytes| *bytes <= MOST_PLANE_BYTES).ok_or(PagesError::TooLarge)?;
        let (token_bytes, head_bytes) = pages.steps();
        let mut plan = PagePlan {
            codec,
            element: pages.element,
            planes: Vec::new(),
            kinds: if codec == Codec::Raw { 1 } else { 2 },
            tokens: rows.tokens,
            heads: rows.heads,
            head_dim: rows.head_dim,
            page_tokens: pages.page_tokens,
            block_pages: rows.tokens / pages.page_tokens,
            token_bytes,
            head_bytes,
            row_bytes: 0,
            chunks: bytes.div_ceil(CHUNK_BYTES) as u32,
            lanes: 0,
            row_lanes: 0,
            columns: 0,
            parts: [0; 2],
            part_rows: 0,
            block_bytes,
            pages: layers.iter().map(|layer| layer.pages).min().unwrap_or(0),
            reach: 0..0,
        };
        plan.lay_out(layers, block)?;
        plan.measure(layers)?;
        plan.cut();
        Ok(plan)
    }

    /// Returns the bytes of a block as it is stored.
    pub fn block_bytes(&self) -> u64 {
        self.block_bytes
    }

    /// Returns how many pages a block has.
    pub fn block_pages(&self) -> usize {
        self.block_pages as usize
    }

    /// Returns the addresses between which all pages are; none where there is no page.
    pub(crate) fn reach(&self) -> Range<u64> {
        self.reach.clone()
    }

    /// Returns how many parts some blocks have at most, either way, of which a block of threads does one at a time.
    ///
    /// # Errors
    /// When a block has too many pages or too few, the engine lacks one, or they are too many.
    pub(crate) fn check<'a>(&self, blocks: impl Iterator<Item = &'a [u32]>) -> Result<u32, PagesError> {
        let mut count = 0usize;
        for pages in blocks {
            count += 1;
            if pages.len() != self.block_pages() {
                return Err(PagesError::Pages { wanted: self.block_pages(), given: pages.len() });
            }
            if let Some(page) = pages.iter().find(|page| **page >= self.pages) {
                return Err(PagesError::NoSuchPage { page: *page, pages: self.pages });
            }
        }
        let groups = self.planes.len() as u64 / u64::from(self.kinds);
        let parts =
            (count as u64).checked_mul(groups * (u64::from(self.parts[0]) + u64::from(self.parts[1])));
        let parts =
            parts.and_then(|parts| i32::try_from(parts).ok()).ok_or(PagesError::TooMany { blocks: count })?;
        Ok(parts as u32)
    }

    /// Finds where each plane is on both sides. Planes of a pair follow each other, its keys first.
    fn lay_out(&mut self, layers: &[LayerPages], block: &Shape) -> Result<(), PagesError> {
        let Shape::Tensor { layers: of_block, kv_heads, order, .. } = *block else {
            // A row a token, layer by layer.
            self.row_bytes = self.token_bytes;
            let bytes = self.row_bytes * u64::from(self.tokens);
            let planes = layers.iter().zip(0u64..).map(|(layer, at)| Plane {
                base: layer.keys,
                stride: layer.stride,
                start: at * bytes,
                is_values: false,
                by_channel: false,
            });
            self.planes = planes.collect();
            return Ok(());
        };
        let heads_apart = if order == Order::Packed { kv_heads as usize } else { 1 };
        if layers.len().checked_mul(2 * heads_apart).is_none_or(|planes| planes > MOST_PLANES) {
            return Err(PagesError::TooLarge);
        }
        let places = places(self.codec, block).ok_or(PagesError::Codec { codec: self.codec })?;
        self.row_bytes = places.first().map_or(0, |place| place.row_bytes);
        for (layer, at) in layers.iter().zip(0..) {
            for head in 0..heads_apart {
                let pair = at * heads_apart + head;
                let (keys, values) = match order {
                    Order::KvFirst => (pair, of_block as usize + pair),
                    Order::LayersFirst | Order::Packed => (2 * pair, 2 * pair + 1),
                };
                let skip = head as u64 * self.head_bytes;
                let plane = |address: u64, place: &Place, is_values| Plane {
                    base: address.saturating_add(skip),
                    stride: layer.stride,
                    start: place.start,
                    is_values,
                    by_channel: place.by_channel,
                };
                self.planes.push(plane(layer.keys, &places[keys], false));
                self.planes.push(plane(layer.values, &places[values], true));
            }
        }
        Ok(())
    }

    /// Finds between which addresses all pages are.
    fn measure(&mut self, layers: &[LayerPages]) -> Result<(), PagesError> {
        let row = u64::from(self.head_dim) * self.element.bytes() as u64;
        let page = u64::from(self.page_tokens - 1) * self.token_bytes
            + u64::from(self.heads - 1) * self.head_bytes
            + row;
        let each = self.planes.len() / layers.len().max(1);
        let (mut first, mut beyond) = (u64::MAX, 0);
        for (at, plane) in self.planes.iter().enumerate() {
            let layer = at / each;
            let Some(last) = layers[layer].pages.checked_sub(1) else { continue };
            let end = plane.stride.checked_mul(u64::from(last)).and_then(|far| plane.base.checked_add(far));
            let end = end.and_then(|last| last.checked_add(page)).ok_or(PagesError::Addresses { layer })?;
            (first, beyond) = (first.min(plane.base), beyond.max(end));
        }
        self.reach = first.min(beyond)..beyond;
        Ok(())
    }

    /// Cuts planes into parts, each for a block of threads.
    fn cut(&mut self) {
        self.lanes = self.chunks.next_power_of_two().min(WARP);
        let laps = self.chunks.div_ceil(self.lanes);
        self.part_rows = (AHEAD * THREADS / (self.lanes * laps)).max(THREADS / self.lanes);
        if matches!(self.codec, Codec::Int8 | Codec::Fp8) {
            // What a thread has to find out about a part is a quarter of what it does at a time.
            self.part_rows *= 2;
        }
        let by_rows = (self.tokens * self.heads).div_ceil(self.part_rows);
        self.row_lanes = self.chunks.div_ceil(OF_ROW).next_power_of_two().min(WARP);
        // All tokens of a part are under way at once, if that leaves it wide enough.
        let columns = AHEAD * THREADS / self.tokens.next_power_of_two().min(AHEAD * THREADS);
        self.columns = columns.clamp(COLUMNS[0], COLUMNS[1]);
        let by_channels = (self.heads * self.chunks).div_ceil(self.columns);
        let by_tiles = self.tokens.div_ceil(TILE.0) * self.heads * self.head_dim.div_ceil(TILE.1);
        let keys_by_channel = self.planes.first().is_some_and(|plane| plane.by_channel);
        self.parts = match self.codec {
            Codec::Raw => [by_rows, 0],
            Codec::Int4 => [by_tiles, by_tiles],
            _ => [if keys_by_channel { by_channels } else { by_rows }, by_rows],
        };
    }

    /// Returns how many threads do a part together.
    pub(crate) fn threads(&self) -> u32 {
        if self.codec == Codec::Int4 { TILE_THREADS } else { THREADS }
    }

    /// Returns the parts of each kind for the way back, in which eight bits are taken by rows throughout.
    pub(crate) fn parts_back(&self) -> [u32; 2] {
        if self.kinds == 1 { self.parts } else { [self.parts[1]; 2] }
    }
}

impl Rows {
    fn head_bytes(&self, element: Element) -> u64 {
        u64::from(self.head_dim) * element.bytes() as u64
    }
}

/// Checks that pages have the numbers of a block, and returns a plane's.
fn rows_of(pages: &PageShape, layers: usize, codec: Codec, block: &Shape) -> Result<Rows, PagesError> {
    let numbers = || PagesError::Numbers { pages: *pages, block: *block };
    let is_latent = pages.order == PageOrder::Latent;
    if is_latent && pages.kv_heads != 1 {
        return Err(numbers());
    }
    match *block {
        Shape::Opaque { .. } if codec != Codec::Raw => Err(PagesError::Codec { codec }),
        Shape::Opaque { bytes } => {
            let row = pages.row_bytes() * layers as u64;
            if !is_latent || row == 0 || bytes == 0 || !bytes.is_multiple_of(row) {
                return Err(numbers());
            }
            let tokens = u32::try_from(bytes / row).map_err(|_| PagesError::TooLarge)?;
            Ok(Rows { tokens, heads: 1, head_dim: pages.head_dim })
        }
        Shape::Tensor { layers: wanted, kv_heads, head_dim, tokens, element, order } => {
            if wanted as usize != layers {
                return Err(PagesError::Layers { wanted, given: layers });
            }
            let width = if is_latent { head_dim.checked_mul(2) } else { Some(head_dim) };
            if (kv_heads, width, element) != (pages.kv_heads, Some(pages.head_dim), pages.element) {
                return Err(numbers());
            }
            let heads = if order == Order::Packed { 1 } else { kv_heads };
            Ok(Rows { tokens, heads, head_dim })
        }
    }
}

#[cfg(test)]
#[path = "pages_test.rs"]
mod tests;
