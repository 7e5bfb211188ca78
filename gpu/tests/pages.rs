//! Engines' pages become blocks and blocks pages, with the bytes of the host's codecs: by kernels that the CPU runs and, where there is a GPU,
//! by that.
#![allow(unsafe_code, reason = "names memory by addresses")]

mod cases;
mod fake;

use cases::{BLOCKS, CODECS, Case, ELEMENTS, Numbers, PAGES, Tensors, arrangements};
use fake::Fake;
use kvhive_gpu::codec::{Codec, Element, Order, Shape, decode, encode, max_stored_bytes};
use kvhive_gpu::cuda::{
    Between, Copier, CudaError, Gpu, GpuMemory, Paged, Pager, PagerError, Part, Pinned, Timer, Way,
};
use kvhive_gpu::pages::{LayerPages, PageOrder, PagePlan, PageShape, PagesError};
use std::sync::Arc;

/// A GPU with memory, and what takes bytes there and back.
struct There {
    gpu: Arc<Gpu>,
    copier: Copier,
    timer: Timer,
}

impl There {
    fn new(gpu: &Arc<Gpu>) -> Result<There, CudaError> {
        Ok(There { gpu: gpu.clone(), copier: Copier::new(gpu)?, timer: Timer::new(gpu)? })
    }

    fn put(&mut self, bytes: &[u8]) -> Result<GpuMemory, CudaError> {
        let mut here = Pinned::new(&self.gpu, bytes.len())?;
        let mut there = GpuMemory::new(&self.gpu, bytes.len())?;
        here.bytes_mut().copy_from_slice(bytes);
        let whole = [Part { from: 0, to: 0, bytes: bytes.len() }];
        self.copier.timed(&self.timer, Between::ToGpu(&here, &mut there), &whole, 1)?;
        Ok(there)
    }

    fn get(&mut self, memory: &GpuMemory) -> Result<Vec<u8>, CudaError> {
        let mut here = Pinned::new(&self.gpu, memory.len())?;
        let whole = [Part { from: 0, to: 0, bytes: memory.len() }];
        self.copier.timed(&self.timer, Between::ToHost(memory, &mut here), &whole, 1)?;
        Ok(here.bytes().to_vec())
    }
}

/// The oldest kind of GPU that there are kernels for: it has no instructions for fp8.
const OLDEST: (u32, u32) = (8, 0);
/// The first that has them.
const HAS_FP8: (u32, u32) = (8, 9);

/// Has blocks be gathered and scattered, and compares both with what the host makes of the same bytes.
fn both_ways(gpu: &Arc<Gpu>, case: &Case, codec: Codec) -> Result<(), PagerError> {
    both_ways_as_on(gpu.info().capability, gpu, case, codec)
}

/// Does so with the kernels for GPUs of this capability.
fn both_ways_as_on(
    capability: (u32, u32),
    gpu: &Arc<Gpu>,
    case: &Case,
    codec: Codec,
) -> Result<(), PagerError> {
    let mut there = There::new(gpu)?;
    let mut numbers = Numbers(case.tokens.into());
    let mut engine = vec![0; case.engine_bytes()];
    numbers.fill(case.element, case.head_dim as usize, &mut engine[case.off[0] as usize..]);
    let each = case.tokens / case.page_tokens;
    // No page is in two blocks.
    let pages: Vec<u32> = (0..BLOCKS as u32 * each).map(|at| at * 7 % PAGES).collect();
    let shape = case.shape();
    let stored_bytes = max_stored_bytes(codec, &shape).expect("a tensor") as usize;
    // What is between blocks stays as it is.
    let (stride, first) = ((stored_bytes + 31).next_multiple_of(16), case.off[1] as usize);
    let mut stored = Vec::new();
    let mut expected = vec![0xEE; first + BLOCKS * stride];
    let size = case.element.bytes();
    let mut raw = vec![0; shape.raw_bytes().expect("few") as usize];
    let places: Vec<_> = pages.chunks(each as usize).map(|pages| case.places(pages)).collect();
    for (block, places) in places.iter().enumerate() {
        for (from, to) in places {
            raw[*to..*to + size].copy_from_slice(&engine[*from..*from + size]);
        }
        encode(codec, &shape, &raw, &mut stored).expect("a tensor");
        expected[first + block * stride..][..stored_bytes].copy_from_slice(&stored);
    }
    let on_gpu = there.put(&engine)?;
    let blocks = there.put(&vec![0xEE; first + BLOCKS * stride])?;
    let plan = PagePlan::new(case.pages(), &case.layers(on_gpu.address()), codec, &shape)?;
    assert_eq!((plan.block_bytes(), plan.block_pages()), (stored_bytes as u64, each as usize));
    let mut pager = Pager::with_kernels_for(gpu, plan, capability)?;
    let list = |from: u64| -> Vec<Paged<'_>> {
        let pages = pages.chunks(each as usize).enumerate();
        pages.map(|(at, pages)| Paged { block: from + (first + at * stride) as u64, pages }).collect()
    };
    // SAFETY: all of it is memory of this function, and used by nobody meanwhile.
    unsafe { pager.go(Way::Gather, &list(blocks.address()))? };
    let got = there.get(&blocks)?;
    let differs = got.iter().zip(&expected).position(|(got, wanted)| got != wanted);
    assert_eq!(differs, None, "{case:?} {codec}: gathered bytes differ from {differs:?} on");

    // Back, into memory that holds something else.
    let mut other = vec![0; engine.len()];
    numbers.fill(case.element, case.head_dim as usize, &mut other);
    let mut memory = there.put(&other)?;
    for (block, places) in places.iter().enumerate() {
        let stored = &expected[first + block * stride..][..stored_bytes];
        decode(codec, &shape, stored, &mut raw).expect("they were encoded");
        for (to, from) in places {
            other[*to..*to + size].copy_from_slice(&raw[*from..*from + size]);
        }
    }
    let plan = PagePlan::new(case.pages(), &case.layers(memory.address()), codec, &shape)?;
    let mut pager = Pager::with_kernels_for(gpu, plan, capability)?;
    let mut blocks = blocks;
    let seconds = pager.timed(&there.timer, Way::Scatter, &mut memory, &mut blocks, &list(0), 2)?;
    assert!(seconds > 0.0);
    let got = there.get(&memory)?;
    let differs = got.iter().zip(&other).position(|(got, wanted)| got != wanted);
    assert_eq!(differs, None, "{case:?} {codec}: scattered bytes differ from {differs:?} on");
    Ok(())
}

#[test]
fn every_arrangement_becomes_blocks_of_every_order() {
    let gpu = Fake::new().gpu();
    for case in arrangements() {
        for codec in CODECS {
            both_ways(&gpu, &case, codec).expect("it works");
        }
    }
}

/// Shapes that are not even, long and short blocks, wide rows, memory that begins anywhere.
fn shapes() -> Vec<Case> {
    // Heads, numbers of one, tokens of a page and of a block, and where memory begins.
    let all: [(u32, u32, u32, u32, [u64; 2]); 14] = [
        (1, 1, 1, 1, [0, 0]),
        (2, 63, 3, 3, [0, 1]),
        (3, 65, 1, 17, [4, 0]),
        (2, 80, 16, 32, [0, 8]),
        (8, 128, 1, 15, [0, 0]),
        (4, 128, 16, 48, [0, 4]),
        (2, 32, 4, 100, [0, 0]),
        (1, 256, 10, 20, [0, 0]),
        (2, 300, 3, 15, [8, 3]),
        (1, 576, 4, 24, [0, 0]),
        (1, 2100, 1, 2, [0, 0]),
        // Whole tiles of int4, blocks beginning anywhere in a word, and pages in the middle of a chunk.
        (2, 256, 32, 64, [0, 1]),
        (1, 128, 32, 32, [0, 2]),
        (1, 128, 8, 32, [8, 3]),
    ];
    let mut cases = Vec::new();
    for (heads, head_dim, page_tokens, tokens, off) in all {
        for (order, block_order) in
            [(PageOrder::TokensFirst, Order::LayersFirst), (PageOrder::HeadsFirst, Order::Packed)]
        {
            // Three blocks find their pages.
            let page_tokens = if BLOCKS as u32 * tokens / page_tokens > PAGES { tokens } else { page_tokens };
            let tensors = Tensors::PagesFirst;
            let element = Element::F16;
            cases.push(Case {
                tensors,
                order,
                page_tokens,
                heads,
                head_dim,
                element,
                block_order,
                tokens,
                off,
            });
        }
    }
    cases
}

#[test]
fn shapes_of_any_size_and_elements_of_any_kind_are_the_hosts() {
    let gpu = Fake::new().gpu();
    for case in shapes() {
        // What elements are does not depend on where they lie.
        for element in if case.block_order == Order::Packed { &ELEMENTS[..1] } else { &ELEMENTS[..] } {
            let element = *element;
            // Raw, one of two bytes is as the other.
            for codec in CODECS.into_iter().skip(usize::from(element == Element::Bf16)) {
                both_ways(&gpu, &Case { element, ..case }, codec).expect("it works");
            }
        }
    }
}

#[test]
fn latent_rows_go_as_they_are_and_as_two_halves() {
    let fake = Fake::new();
    let gpu = fake.gpu();
    for element in ELEMENTS {
        let case = Case {
            tensors: Tensors::Together,
            order: PageOrder::Latent,
            page_tokens: 4,
            heads: 1,
            head_dim: 288,
            element,
            block_order: Order::Packed,
            tokens: 24,
            off: [0, 0],
        };
        for codec in CODECS {
            both_ways(&gpu, &case, codec).expect("it works");
        }
    }
    // Opaque bytes: whole rows, layer by layer.
    let pages = PageShape {
        order: PageOrder::Latent,
        page_tokens: 2,
        kv_heads: 1,
        head_dim: 576,
        element: Element::Bf16,
    };
    let mut there = There::new(&gpu).expect("it works");
    let mut engine = vec![0; 3 * 5 * 2 * 1152];
    Numbers(1).fill(Element::Bf16, 576, &mut engine);
    let mut memory = there.put(&engine).expect("there is room");
    let layers: Vec<LayerPages> =
        (0..3).map(|layer| pages.together(memory.address() + layer * 5 * 2 * 1152, 5)).collect();
    let shape = Shape::Opaque { bytes: 3 * 4 * 1152 };
    let plan = PagePlan::new(pages, &layers, Codec::Raw, &shape).expect("whole rows");
    let mut pager = Pager::new(&gpu, plan).expect("it works");
    let mut block = GpuMemory::new(&gpu, 3 * 4 * 1152).expect("there is room");
    let list = [Paged { block: 0, pages: &[4, 1] }];
    pager.timed(&there.timer, Way::Gather, &mut memory, &mut block, &list, 1).expect("it works");
    let page = |layer: usize, page: usize| &engine[(layer * 5 + page) * 2 * 1152..][..2 * 1152];
    let expected: Vec<u8> = (0..3).flat_map(|layer| [page(layer, 4), page(layer, 1)].concat()).collect();
    assert!(there.get(&block).expect("it copies") == expected);
    drop((pager, memory, block, there, gpu));
    assert!(fake.is_clean());
}

/// Which numbers share a scale with the one that is every number in turn.
#[derive(Clone, Copy, Debug)]
enum Beside {
    /// So many others of the same token and head.
    Row(u32),
    /// Those of 15 other tokens, and in values its 127 neighbours, which are every number too.
    Channel,
}

/// Has every number of two bytes be one of some that share a scale, the others being this, and compares what becomes of them with the host's.
fn every_number(
    gpu: &Arc<Gpu>,
    element: Element,
    codec: Codec,
    beside: Beside,
    other: u16,
) -> Result<(), PagerError> {
    every_number_as_on(gpu.info().capability, gpu, (element, codec), beside, other)
}

/// Does so with the kernels for GPUs of this capability.
fn every_number_as_on(
    capability: (u32, u32),
    gpu: &Arc<Gpu>,
    (element, codec): (Element, Codec),
    beside: Beside,
    other: u16,
) -> Result<(), PagerError> {
    let (kv_heads, head_dim, tokens) = match beside {
        Beside::Row(others) => (1 << 16, 1 + others, 1),
        Beside::Channel => (1 << 9, 1 << 7, 16),
    };
    let pages = PageShape { order: PageOrder::TokensFirst, page_tokens: tokens, kv_heads, head_dim, element };
    let order = Order::LayersFirst;
    let shape = Shape::Tensor { layers: 1, kv_heads, head_dim, tokens, element, order };
    // One page is the whole block.
    let each = match beside {
        Beside::Row(others) => others as usize,
        Beside::Channel => 0,
    };
    let mut side: Vec<u16> = (0..=u16::MAX)
        .flat_map(|number| std::iter::once(number).chain(std::iter::repeat_n(other, each)))
        .collect();
    side.resize((kv_heads * head_dim * tokens) as usize, other);
    let raw: Vec<u8> = side.iter().chain(&side).flat_map(|number| number.to_le_bytes()).collect();
    let (mut stored, mut back) = (Vec::new(), vec![0; raw.len()]);
    encode(codec, &shape, &raw, &mut stored).expect("a tensor");
    decode(codec, &shape, &stored, &mut back).expect("they were encoded");
    let mut there = There::new(gpu)?;
    let mut engine = there.put(&raw)?;
    let mut block = GpuMemory::new(gpu, stored.len())?;
    let plan = PagePlan::new(pages, &[pages.keys_first(engine.address(), 1)], codec, &shape)?;
    let mut pager = Pager::with_kernels_for(gpu, plan, capability)?;
    let list = [Paged { block: 0, pages: &[0] }];
    pager.timed(&there.timer, Way::Gather, &mut engine, &mut block, &list, 1)?;
    let differs = there.get(&block)?.iter().zip(&stored).position(|(got, wanted)| got != wanted);
    assert_eq!(
        differs, None,
        "{element:?} {codec} beside {other:#06x} {beside:?}: gathered bytes differ from {differs:?} on"
    );
    pager.timed(&there.timer, Way::Scatter, &mut engine, &mut block, &list, 1)?;
    assert!(
        there.get(&engine)? == back,
        "{element:?} {codec} beside {other:#06x} {beside:?}: scattered bytes differ"
    );
    Ok(())
}

/// Has every number beside these be rounded by all kernels of eight bits: those of fp8 with and without instructions for it.
fn every_number_by_all_kernels(beside: Beside, halves: [u16; 2], upper: [u16; 2]) {
    let (older, newer) = (Fake::new(), Fake::new());
    older.set("fake_capability", 80);
    let (older, newer) = (older.gpu(), newer.gpu());
    for (element, others) in [(Element::F16, halves), (Element::Bf16, upper)] {
        for other in others {
            every_number(&newer, element, Codec::Int8, beside, other).expect("it works");
            every_number(&newer, element, Codec::Fp8, beside, other).expect("it works");
            every_number(&older, element, Codec::Fp8, beside, other).expect("it works");
        }
    }
}

// Nothing, and numbers of many sizes: those beside them come to all codes.

#[test]
fn every_number_of_a_row_of_whole_chunks_is_rounded_as_the_host_rounds_it() {
    every_number_by_all_kernels(Beside::Row(7), [0, 0x3C00], [0, 0x3F80]);
}

#[test]
fn every_number_of_a_row_that_is_less_is_rounded_as_the_host_rounds_it() {
    every_number_by_all_kernels(Beside::Row(1), [0, 0x1234], [0, 0x0155]);
}

#[test]
fn every_number_of_a_channel_is_rounded_as_the_host_rounds_it() {
    every_number_by_all_kernels(Beside::Channel, [0x1234, 0x7BFF], [0x3F80, 0x7F7F]);
}

#[test]
fn a_gpu_without_instructions_for_fp8_has_kernels_without() {
    // The driver of one refuses the others, as a real one does.
    for (capability, kind) in [(80, 80), (86, 80), (89, 89), (90, 89), (100, 89), (120, 89)] {
        let fake = Fake::new();
        fake.set("fake_capability", capability);
        let gpu = fake.gpu();
        let case = Case { heads: 2, ..arrangements()[0] };
        for codec in [Codec::Int8, Codec::Raw] {
            both_ways(&gpu, &case, codec).expect("it works");
            assert_eq!(fake.ask("fake_newest"), 80, "{codec} for {capability}");
        }
        both_ways(&gpu, &case, Codec::Fp8).expect("it works");
        assert_eq!(fake.ask("fake_newest"), kind, "fp8 for {capability}");
    }
    let fake = Fake::new();
    fake.set("fake_capability", 80);
    let gpu = fake.gpu();
    for case in arrangements() {
        both_ways(&gpu, &case, Codec::Fp8).expect("it works");
    }
}

#[test]
fn a_newer_gpu_is_tried_with_the_kernels_for_an_older_one() {
    let fake = Fake::new();
    let gpu = fake.gpu();
    assert!(gpu.info().capability >= HAS_FP8);
    both_ways_as_on(OLDEST, &gpu, &arrangements()[0], Codec::Fp8).expect("it works");
    assert_eq!(fake.ask("fake_newest"), 80);
    both_ways(&gpu, &arrangements()[0], Codec::Fp8).expect("it works");
    assert_eq!(fake.ask("fake_newest"), 89);
}

#[test]
fn what_lies_outside_or_is_not_there_is_refused() {
    let gpu = Fake::new().gpu();
    let case = arrangements()[0];
    let there = There::new(&gpu).expect("it works");
    let mut engine = GpuMemory::new(&gpu, case.engine_bytes()).expect("there is room");
    let plan = |layers: &[LayerPages]| {
        PagePlan::new(case.pages(), layers, Codec::Raw, &case.shape()).expect("they go together")
    };
    let bytes = plan(&case.layers(0)).block_bytes();
    let mut blocks = GpuMemory::new(&gpu, bytes as usize).expect("there is room");
    let start = engine.address();
    let mut ask = |start: u64, block: u64, pages: &[u32]| {
        let mut pager = Pager::new(&gpu, plan(&case.layers(start))).expect("it works");
        pager.timed(&there.timer, Way::Gather, &mut engine, &mut blocks, &[Paged { block, pages }], 1)
    };
    let outside = |what| Err(PagerError::Pages(PagesError::Outside { what }));
    assert!(ask(start, 0, &[0, 1]).is_ok());
    assert_eq!(ask(start - 1, 0, &[0, 1]), outside("pages"));
    assert_eq!(ask(start + 1, 0, &[0, 1]), outside("pages"));
    assert_eq!(ask(start, 1, &[0, 1]), outside("blocks"));
    assert_eq!(ask(start, u64::MAX, &[0, 1]), outside("blocks"));
    assert_eq!(ask(start, 0, &[0, 20]), Err(PagesError::NoSuchPage { page: 20, pages: 20 }.into()));
    assert_eq!(ask(start, 0, &[0]), Err(PagesError::Pages { wanted: 2, given: 1 }.into()));
}

#[test]
fn whichever_call_fails_is_named_and_nothing_is_left_behind() {
    let calls = [
        "cuCtxPushCurrent_v2",
        "cuMemAlloc_v2",
        "cuMemHostAlloc",
        "cuStreamCreate",
        "cuModuleLoadData",
        "cuModuleGetFunction",
        "cuLaunchKernel",
        "cuMemcpyHtoDAsync_v2",
        "cuStreamSynchronize",
        "cuEventRecord",
        "cuEventElapsedTime",
    ];
    let case = Case { tokens: 8, heads: 1, ..arrangements()[0] };
    let everything = |fake: &Fake| both_ways(&fake.cuda()?.open(0)?, &case, Codec::Int4);
    fake::each_call_fails_once(&calls, everything, |error| match error {
        PagerError::Cuda(error) => Some(error),
        _ => None,
    });
}

#[test]
fn a_real_gpu_makes_the_same_blocks() {
    for gpu in fake::real_gpus() {
        let own = gpu.info().capability;
        // By its own kernels, and fp8 by those for GPUs without instructions for it, too.
        let is_newer = own >= HAS_FP8;
        for case in arrangements().into_iter().chain(shapes()) {
            for element in ELEMENTS {
                let case = Case { element, ..case };
                for codec in CODECS {
                    both_ways(&gpu, &case, codec).expect("it works");
                }
                if is_newer {
                    both_ways_as_on(OLDEST, &gpu, &case, Codec::Fp8).expect("it works");
                }
            }
        }
        for (element, codec) in
            [(Element::F16, Codec::Fp8), (Element::Bf16, Codec::Fp8), (Element::Bf16, Codec::Int8)]
        {
            for beside in [Beside::Row(1), Beside::Row(7), Beside::Channel] {
                every_number(&gpu, element, codec, beside, 0x3C00).expect("it works");
                if is_newer && codec == Codec::Fp8 {
                    every_number_as_on(OLDEST, &gpu, (element, codec), beside, 0x3C00).expect("it works");
                }
            }
        }
    }
}
