//! Tests of what a plan says, and of what it refuses.

use super::*;

const PAGES: PageShape = PageShape {
    order: PageOrder::TokensFirst,
    page_tokens: 8,
    kv_heads: 2,
    head_dim: 64,
    element: Element::F16,
};
const BLOCK: Shape = Shape::Tensor {
    layers: 2,
    kv_heads: 2,
    head_dim: 64,
    tokens: 16,
    element: Element::F16,
    order: Order::KvFirst,
};

fn plan(pages: PageShape, codec: Codec, block: &Shape) -> Result<PagePlan, PagesError> {
    PagePlan::new(pages, &[pages.keys_first(4096, 10), pages.keys_first(1 << 20, 9)], codec, block)
}

#[test]
fn a_plan_knows_where_everything_is() {
    let plan = plan(PAGES, Codec::Int8, &BLOCK).expect("they go together");
    // A page's keys are 2 KiB; a plane is 2 * 64 scales or 16 * 2, and as many codes as numbers.
    let side = 2048;
    let places: Vec<(u64, u64, bool)> =
        plan.planes.iter().map(|plane| (plane.base, plane.start, plane.by_channel)).collect();
    let (keys, values) = (256 + 2048, 64 + 2048);
    assert_eq!(
        places,
        [
            (4096, 0, true),
            (4096 + 10 * side, 2 * keys, false),
            (1 << 20, keys, true),
            ((1 << 20) + 9 * side, 2 * keys + values, false)
        ]
    );
    assert_eq!(plan.block_bytes(), 2 * (keys + values));
    assert_eq!((plan.block_pages(), plan.reach()), (2, 4096..(1 << 20) + 18 * side));
    assert_eq!((plan.chunks, plan.lanes, plan.row_lanes), (8, 8, 4));
    assert_eq!((plan.columns, plan.part_rows, plan.parts), (64, 256, [1, 1]));
}

#[test]
fn the_more_tokens_share_a_scale_the_fewer_channels_are_a_part() {
    for (tokens, columns) in [(16, 64), (24, 32), (32, 32), (40, 16), (64, 16), (128, 8), (256, 8)] {
        let pages = PageShape { kv_heads: 8, head_dim: 128, ..PAGES };
        let Shape::Tensor { layers, element, order, .. } = BLOCK else { unreachable!("it is one") };
        let block = Shape::Tensor { layers, kv_heads: 8, head_dim: 128, tokens, element, order };
        let layer = LayerPages { keys: 0, values: 1 << 20, stride: 1 << 14, pages: 64 };
        let plan = PagePlan::new(pages, &[layer, layer], Codec::Fp8, &block).expect("they go together");
        // A head's row is 16 chunks.
        let rows = (tokens * 8).div_ceil(128);
        assert_eq!((plan.row_lanes, plan.columns, plan.parts), (8, columns, [128 / columns, rows]));
    }
}

#[test]
fn what_does_not_go_together_is_refused_by_what_it_is() {
    let with = |change: fn(&mut PageShape)| {
        let mut pages = PAGES;
        change(&mut pages);
        plan(pages, Codec::Raw, &BLOCK).map(|_| ())
    };
    assert!(matches!(with(|pages| pages.kv_heads = 4), Err(PagesError::Numbers { .. })));
    assert!(matches!(with(|pages| pages.kv_heads = 0), Err(PagesError::Numbers { .. })));
    assert!(matches!(with(|pages| pages.element = Element::F32), Err(PagesError::Numbers { .. })));
    assert_eq!(with(|pages| pages.page_tokens = 3), Err(PagesError::Tokens { tokens: 16, page_tokens: 3 }));
    assert_eq!(with(|pages| pages.page_tokens = 1 << 31), Err(PagesError::TooLarge));
    assert!(matches!(with(|pages| pages.order = PageOrder::Latent), Err(PagesError::Numbers { .. })));
    let lossless = plan(PAGES, Codec::Lossless, &BLOCK);
    assert_eq!(lossless, Err(PagesError::Codec { codec: Codec::Lossless }));
    let opaque = Shape::Opaque { bytes: 16384 };
    assert_eq!(plan(PAGES, Codec::Int8, &opaque), Err(PagesError::Codec { codec: Codec::Int8 }));
    assert!(matches!(plan(PAGES, Codec::Raw, &opaque), Err(PagesError::Numbers { .. })));
    let one = PagePlan::new(PAGES, &[PAGES.keys_first(0, 1)], Codec::Raw, &BLOCK);
    assert_eq!(one, Err(PagesError::Layers { wanted: 2, given: 1 }));
    let high = [PAGES.keys_first(0, 1), PAGES.keys_first(u64::MAX - 5000, 9)];
    assert_eq!(PagePlan::new(PAGES, &high, Codec::Raw, &BLOCK), Err(PagesError::Addresses { layer: 1 }));
}

#[test]
fn pages_that_are_not_there_are_refused() {
    let plan = plan(PAGES, Codec::Raw, &BLOCK).expect("they go together");
    let check = |pages: &[u32]| plan.check([pages].into_iter());
    assert_eq!(check(&[8, 0]), Ok(4));
    assert_eq!(check(&[0, 9]), Err(PagesError::NoSuchPage { page: 9, pages: 9 }));
    assert_eq!(check(&[0]), Err(PagesError::Pages { wanted: 2, given: 1 }));
    let (long, of_many) = (PageShape { page_tokens: 1 << 16, ..PAGES }, 1 << 19);
    let block = Shape::Tensor {
        layers: 2,
        kv_heads: 2,
        head_dim: 64,
        tokens: 1 << 16,
        element: Element::F16,
        order: Order::LayersFirst,
    };
    let plan = self::plan(long, Codec::Raw, &block).expect("they go together");
    let many = std::iter::repeat_n(&[0u32][..], of_many);
    assert_eq!(plan.check(many), Err(PagesError::TooMany { blocks: of_many }));
}

#[test]
fn latent_rows_are_opaque_or_two_halves() {
    let pages = PageShape {
        order: PageOrder::Latent,
        page_tokens: 4,
        kv_heads: 1,
        head_dim: 576,
        element: Element::Bf16,
    };
    let layers = [pages.together(0, 3), pages.together(1 << 20, 3), pages.together(2 << 20, 3)];
    let opaque = Shape::Opaque { bytes: 3 * 8 * 1152 };
    let plan = PagePlan::new(pages, &layers, Codec::Raw, &opaque).expect("whole rows");
    assert_eq!((plan.tokens, plan.planes.len(), plan.chunks, plan.lanes), (8, 3, 72, 32));
    let halves = Shape::Tensor {
        layers: 3,
        kv_heads: 1,
        head_dim: 288,
        tokens: 8,
        element: Element::Bf16,
        order: Order::Packed,
    };
    let plan = PagePlan::new(pages, &layers, Codec::Int8, &halves).expect("two halves");
    assert_eq!((plan.planes[1].base, plan.planes[1].stride), (576, 4 * 1152));
}
