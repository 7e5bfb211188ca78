//! Codecs as the cluster uses them, in clients and in nodes: from a block's layout to the shape that the codecs know. The
//! codecs themselves are `kvhive-gpu`'s.

use kvhive_gpu::codec::{self, CodecError, Element, Order, Shape};
use kvhive_protocol::block::Codec;
use kvhive_protocol::{AxisOrder, Dtype, Layout, TenantRules};

/// Bits of a quantized element, unless a tenant's rules say.
const QUANTIZED_BITS: u8 = 8;

/// Encodes a block; `stored` becomes its stored bytes.
///
/// # Errors
/// When `raw` is no block of the layout, or the codec is not for such blocks.
pub fn encode(codec: Codec, layout: &Layout, raw: &[u8], stored: &mut Vec<u8>) -> Result<(), CodecError> {
    codec::encode(of_gpu(codec), &shape(layout), raw, stored)
}

/// Decodes a block into `raw`, which has the layout's bytes. After an error their content is unspecified.
///
/// # Errors
/// When `stored` is not what the codec makes of a block of the layout.
pub fn decode(codec: Codec, layout: &Layout, stored: &[u8], raw: &mut [u8]) -> Result<(), CodecError> {
    codec::decode(of_gpu(codec), &shape(layout), stored, raw)
}

/// Returns how many bytes a codec makes of any block of the layout, where that is known before.
pub fn stored_bytes(codec: Codec, layout: &Layout) -> Option<u64> {
    if codec == Codec::Lossless { None } else { codec::max_stored_bytes(of_gpu(codec), &shape(layout)) }
}

/// Returns a codec and blocks of a layout as those know them who encode on a GPU.
pub fn on_gpu(codec: Codec, layout: &Layout) -> (codec::Codec, Shape) {
    (of_gpu(codec), shape(layout))
}

/// Returns the codec that blocks of this layout are quantized with: to 4 bits where a tenant's rules say so, or where they say
/// nothing and its node stores so. A lossless one where the rules say 16, which are all of them, or the blocks have no numbers.
pub fn quantized(layout: &Layout, rules: &TenantRules, of_node: Codec) -> Codec {
    match rules.quantization_bits {
        Some(16..) => Codec::Lossless,
        None if !rules.asks_for_a_codec() && of_node == Codec::Int4 => fitting(Codec::Int4, layout),
        said => of_protocol(codec::choose(said.or(Some(QUANTIZED_BITS)), None, &shape(layout))),
    }
}

/// Returns the codec that a tenant's rules ask for blocks of this layout; where they ask for none, that of the node which is the
/// first to hold them.
pub fn of_rules(rules: &TenantRules, of_node: Codec, layout: &Layout) -> Codec {
    if !rules.asks_for_a_codec() {
        return fitting(of_node, layout);
    }
    of_protocol(codec::choose(rules.quantization_bits, rules.compression_per_mille, &shape(layout)))
}

/// Returns a codec, or a lossless one in its place for bytes that are no numbers.
fn fitting(codec: Codec, layout: &Layout) -> Codec {
    let is_opaque = matches!(shape(layout), Shape::Opaque { .. });
    if is_opaque && !codec.is_exact() { Codec::Lossless } else { codec }
}

fn of_gpu(codec: Codec) -> codec::Codec {
    match codec {
        Codec::Raw => codec::Codec::Raw,
        Codec::Lossless => codec::Codec::Lossless,
        Codec::Fp8 => codec::Codec::Fp8,
        Codec::Int8 => codec::Codec::Int8,
        Codec::Int4 => codec::Codec::Int4,
    }
}

fn of_protocol(codec: codec::Codec) -> Codec {
    match codec {
        codec::Codec::Raw => Codec::Raw,
        codec::Codec::Lossless => Codec::Lossless,
        codec::Codec::Fp8 => Codec::Fp8,
        codec::Codec::Int8 => Codec::Int8,
        codec::Codec::Int4 => Codec::Int4,
    }
}

fn shape(layout: &Layout) -> Shape {
    let Layout { layers, kv_heads, head_dim, tokens, dtype, order } = *layout;
    let element = match dtype {
        Dtype::F16 => Element::F16,
        Dtype::Bf16 => Element::Bf16,
        Dtype::F32 => Element::F32,
        // A layout whose size overflows has no block.
        Dtype::Fp8E4M3 | Dtype::U8 => return Shape::Opaque { bytes: layout.block_bytes().unwrap_or(0) },
    };
    let order = match order {
        AxisOrder::LayersFirst => Order::LayersFirst,
        AxisOrder::KvFirst => Order::KvFirst,
        AxisOrder::Packed => Order::Packed,
    };
    Shape::Tensor { layers, kv_heads, head_dim, tokens, element, order }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_codec_has_one_id_and_one_name_on_the_wire_and_in_the_library() {
        for codec in Codec::ALL {
            let of_gpu = of_gpu(codec);
            assert_eq!((of_gpu.id(), of_gpu.name()), (codec as u16, codec.name()));
            assert_eq!(of_gpu.is_exact(), codec.is_exact());
            assert_eq!(of_protocol(of_gpu), codec);
        }
    }

    #[test]
    fn a_tenants_rules_choose_a_codec_and_bits_win_over_a_ratio() {
        let layout = Layout {
            layers: 2,
            kv_heads: 2,
            head_dim: 64,
            tokens: 16,
            dtype: Dtype::F16,
            order: AxisOrder::LayersFirst,
        };
        let opaque = Layout::opaque(1000, 16);
        let chosen = |bits, per_mille| {
            let rules = TenantRules {
                quantization_bits: bits,
                compression_per_mille: per_mille,
                ..TenantRules::default()
            };
            let of = |layout| of_rules(&rules, Codec::Raw, layout);
            (of(&layout), of(&opaque))
        };
        assert_eq!(chosen(None, None), (Codec::Raw, Codec::Raw));
        assert_eq!(chosen(None, Some(800)), (Codec::Lossless, Codec::Lossless));
        assert_eq!(chosen(None, Some(600)), (Codec::Int8, Codec::Lossless));
        assert_eq!(chosen(None, Some(300)), (Codec::Int4, Codec::Lossless));
        assert_eq!(chosen(Some(8), Some(300)), (Codec::Int8, Codec::Lossless));
        assert_eq!(chosen(Some(4), None), (Codec::Int4, Codec::Lossless));
        assert_eq!(chosen(Some(16), Some(300)), (Codec::Raw, Codec::Raw));
        let four = TenantRules { quantization_bits: Some(4), ..TenantRules::default() };
        assert_eq!(quantized(&layout, &four, Codec::Raw), Codec::Int4);
        assert_eq!(quantized(&layout, &TenantRules::default(), Codec::Raw), Codec::Int8);
        let ratio = TenantRules { compression_per_mille: Some(300), ..TenantRules::default() };
        assert_eq!(quantized(&layout, &ratio, Codec::Raw), Codec::Int8);
        let whole = TenantRules { quantization_bits: Some(16), ..ratio };
        assert_eq!(quantized(&layout, &whole, Codec::Raw), Codec::Lossless, "no bit may go");
        assert_eq!(quantized(&opaque, &four, Codec::Raw), Codec::Lossless);
    }

    #[test]
    fn a_node_chooses_for_tenants_that_ask_for_nothing() {
        let layout = Layout {
            layers: 2,
            kv_heads: 2,
            head_dim: 64,
            tokens: 16,
            dtype: Dtype::F16,
            order: AxisOrder::LayersFirst,
        };
        let opaque = Layout::opaque(1000, 16);
        let silent = TenantRules::default();
        let whole = TenantRules { quantization_bits: Some(16), ..silent };
        let as_is = TenantRules { compression_per_mille: Some(1000), ..silent };
        for of_node in Codec::ALL {
            assert_eq!(of_rules(&silent, of_node, &layout), of_node);
            let of_opaque = if of_node.is_exact() { of_node } else { Codec::Lossless };
            assert_eq!(of_rules(&silent, of_node, &opaque), of_opaque, "no rounding of what is no number");
            for rules in [whole, as_is] {
                assert_eq!(of_rules(&rules, of_node, &layout), Codec::Raw, "what a tenant says wins");
            }
            let dense = if of_node == Codec::Int4 { Codec::Int4 } else { Codec::Int8 };
            assert_eq!(quantized(&layout, &silent, of_node), dense);
            assert_eq!(quantized(&layout, &as_is, of_node), Codec::Int8);
            assert_eq!(quantized(&layout, &whole, of_node), Codec::Lossless);
            assert_eq!(quantized(&opaque, &silent, of_node), Codec::Lossless);
        }
    }

    #[test]
    fn a_layout_and_its_shape_have_as_many_bytes() {
        for dtype in [Dtype::F16, Dtype::Bf16, Dtype::F32, Dtype::Fp8E4M3, Dtype::U8] {
            for order in [AxisOrder::LayersFirst, AxisOrder::KvFirst, AxisOrder::Packed] {
                let layout = Layout { layers: 3, kv_heads: 2, head_dim: 8, tokens: 5, dtype, order };
                assert_eq!(shape(&layout).raw_bytes(), layout.block_bytes(), "{layout:?}");
            }
        }
        let opaque = Layout::opaque(1000, 16);
        assert_eq!(shape(&opaque).raw_bytes(), Some(1000));
    }
}
