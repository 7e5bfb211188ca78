//! Layouts in JSON.

use kvhive_protocol::{AxisOrder, Dtype, Layout};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a block's bytes mean.
#[derive(Serialize, Deserialize, ToSchema, Clone, Copy)]
#[serde(deny_unknown_fields)]
pub(super) struct OneLayout {
    /// Layers held by one rank.
    layers: u32,
    /// KV heads held by one rank.
    kv_heads: u32,
    /// Elements of one head.
    head_dim: u32,
    /// Tokens of one block.
    tokens: u32,
    dtype: OneDtype,
    order: OneOrder,
}

/// Number format of one element.
#[derive(Serialize, Deserialize, ToSchema, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum OneDtype {
    F16,
    Bf16,
    F32,
    Fp8E4m3,
    U8,
}

/// Order of a block's axes, outermost first.
#[derive(Serialize, Deserialize, ToSchema, Clone, Copy)]
#[serde(rename_all = "kebab-case")]
enum OneOrder {
    LayersFirst,
    KvFirst,
    Packed,
}

impl OneLayout {
    pub(super) fn layout(self) -> Layout {
        let OneLayout { layers, kv_heads, head_dim, tokens, dtype, order } = self;
        let dtype = match dtype {
            OneDtype::F16 => Dtype::F16,
            OneDtype::Bf16 => Dtype::Bf16,
            OneDtype::F32 => Dtype::F32,
            OneDtype::Fp8E4m3 => Dtype::Fp8E4M3,
            OneDtype::U8 => Dtype::U8,
        };
        let order = match order {
            OneOrder::LayersFirst => AxisOrder::LayersFirst,
            OneOrder::KvFirst => AxisOrder::KvFirst,
            OneOrder::Packed => AxisOrder::Packed,
        };
        Layout { layers, kv_heads, head_dim, tokens, dtype, order }
    }

    pub(super) fn of(layout: &Layout) -> OneLayout {
        let Layout { layers, kv_heads, head_dim, tokens, dtype, order } = *layout;
        let dtype = match dtype {
            Dtype::F16 => OneDtype::F16,
            Dtype::Bf16 => OneDtype::Bf16,
            Dtype::F32 => OneDtype::F32,
            Dtype::Fp8E4M3 => OneDtype::Fp8E4m3,
            Dtype::U8 => OneDtype::U8,
        };
        let order = match order {
            AxisOrder::LayersFirst => OneOrder::LayersFirst,
            AxisOrder::KvFirst => OneOrder::KvFirst,
            AxisOrder::Packed => OneOrder::Packed,
        };
        OneLayout { layers, kv_heads, head_dim, tokens, dtype, order }
    }
}
