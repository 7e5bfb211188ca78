//! What a codec must know of a block's bytes: the number format and where keys and values lie. It mirrors the
//! protocol's layout without naming it.

/// The number format of a tensor. Little endian, as on every device that this runs on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Element {
    /// IEEE binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
    /// IEEE binary32.
    F32,
}

impl Element {
    /// Returns the bytes of one number.
    pub const fn bytes(self) -> usize {
        match self {
            Element::F16 | Element::Bf16 => 2,
            Element::F32 => 4,
        }
    }
}

/// The order of a tensor's axes, outermost first.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Order {
    /// `[layers, 2, tokens, kv_heads, head_dim]`.
    LayersFirst,
    /// `[2, layers, tokens, kv_heads, head_dim]`.
    KvFirst,
    /// `[layers, kv_heads, tokens, 2 * head_dim]`: K and V side by side.
    Packed,
}

/// What a block's bytes are.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Shape {
    /// Bytes of unknown meaning.
    Opaque {
        /// How many.
        bytes: u64,
    },
    /// Keys and values.
    Tensor {
        /// Layers in the block.
        layers: u32,
        /// KV heads of a layer.
        kv_heads: u32,
        /// Numbers of one head.
        head_dim: u32,
        /// Tokens of the block.
        tokens: u32,
        /// Number format.
        element: Element,
        /// Order of axes.
        order: Order,
    },
}

impl Shape {
    /// Returns the bytes of the block; `None` when they overflow or an axis has length 0.
    pub fn raw_bytes(&self) -> Option<u64> {
        match *self {
            Shape::Opaque { bytes } => Some(bytes),
            Shape::Tensor { layers, kv_heads, head_dim, tokens, element, .. } => {
                if [layers, kv_heads, head_dim, tokens].contains(&0) {
                    return None;
                }
                let planes = u64::from(layers).checked_mul(u64::from(kv_heads))?;
                let numbers = planes.checked_mul(u64::from(head_dim))?.checked_mul(u64::from(tokens))?;
                numbers.checked_mul(2 * element.bytes() as u64)
            }
        }
    }

    /// Returns how its bytes make numbers. Opaque bytes are mostly numbers of 16 bits, in rows of unknown length. The
    /// caller holds the raw bytes, so a row's fit `usize`.
    pub(super) fn numbers(&self) -> Numbers {
        match *self {
            Shape::Opaque { .. } => Numbers { bytes: 2, row_bytes: None },
            Shape::Tensor { element: Element::F32, .. } => Numbers { bytes: 4, row_bytes: None },
            Shape::Tensor { kv_heads, head_dim, order, .. } => {
                let per_channel = if order == Order::Packed { 2 } else { kv_heads as usize };
                Numbers { bytes: 2, row_bytes: Some(2 * per_channel * head_dim as usize) }
            }
        }
    }

    /// Returns the tensor, its bytes known to fit 64 bits and to be some; `None` for opaque bytes.
    pub(super) fn tensor(&self) -> Option<Tensor> {
        self.raw_bytes()?;
        match *self {
            Shape::Opaque { .. } => None,
            Shape::Tensor { layers, kv_heads, head_dim, tokens, element, order } => {
                let packed = order == Order::Packed;
                let (heads, outer) = if packed { (1, kv_heads) } else { (kv_heads, 1) };
                Some(Tensor {
                    layers: u64::from(layers) * u64::from(outer),
                    heads: u64::from(heads),
                    head_dim: u64::from(head_dim),
                    tokens: u64::from(tokens),
                    element,
                    order,
                })
            }
        }
    }
}

/// Bytes as numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Numbers {
    /// Bytes of a number.
    pub(super) bytes: usize,
    /// From a number to that of the same channel of the next token, for numbers of two bytes where it is known.
    pub(super) row_bytes: Option<usize>,
}

/// A tensor as a row of planes. A plane is the keys or the values of one layer (of one layer and head when packed):
/// a row a token, `heads * head_dim` numbers wide.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tensor {
    layers: u64,
    pub(super) heads: u64,
    pub(super) head_dim: u64,
    pub(super) tokens: u64,
    pub(super) element: Element,
    order: Order,
}

/// Where a plane's numbers are among the raw bytes. Planes are stored in the order of [`Tensor::planes`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Plane {
    /// Keys, else values.
    pub(super) keys: bool,
    /// The first row's first byte.
    pub(super) start: usize,
    /// From one row to the next.
    pub(super) row_bytes: usize,
    pub(super) tokens: usize,
    pub(super) heads: usize,
    pub(super) head_dim: usize,
    pub(super) element: Element,
}

impl Plane {
    /// Returns the numbers of one row.
    pub(super) fn width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Returns where `count` numbers from `column` on lie in a row.
    pub(super) fn range(&self, token: usize, column: usize, count: usize) -> std::ops::Range<usize> {
        let start = self.start + token * self.row_bytes + column * self.element.bytes();
        start..start + count * self.element.bytes()
    }
}

impl Tensor {
    /// Returns how many planes there are, half of them keys.
    pub(super) fn plane_count(&self) -> u64 {
        self.layers * 2
    }

    /// Returns the planes as they lie in memory: packed ones by layer, head, then keys before values. The caller holds
    /// the raw bytes, so every place fits `usize`.
    pub(super) fn planes(&self) -> impl Iterator<Item = Plane> {
        let this = *self;
        let width = (this.heads * this.head_dim) as usize;
        let row = width * this.element.bytes();
        let plane_bytes = row * this.tokens as usize;
        (0..this.plane_count()).map(move |at| {
            let (start, row_bytes, keys) = match this.order {
                Order::LayersFirst => (at as usize * plane_bytes, row, at % 2 == 0),
                Order::KvFirst => (at as usize * plane_bytes, row, at < this.layers),
                Order::Packed => {
                    ((at / 2) as usize * 2 * plane_bytes + (at % 2) as usize * row, 2 * row, at % 2 == 0)
                }
            };
            Plane {
                keys,
                start,
                row_bytes,
                tokens: this.tokens as usize,
                heads: this.heads as usize,
                head_dim: this.head_dim as usize,
                element: this.element,
            }
        })
    }
}
