//! What kernels make of an engine's pages, by the size of a layer's page: to blocks and back, raw and by each codec, and digests of blocks.

use super::{Bench, Measured, TIMES, Way, place_of};
use crate::bench::{Bar, Row};
use anyhow::{Result, ensure};
use kvhive_gpu::codec::{Codec, Element, Order, Shape, decode, encode};
use kvhive_gpu::cuda::{Digester, Paged, Pager, Part, Span, Way as Turn};
use kvhive_gpu::pages::{PageOrder, PagePlan, PageShape};
use kvhive_protocol::block::{digest, digest_of_pieces};
use std::ops::Range;

/// Keys of a token of a layer: 8 heads of 128 numbers of two bytes, those of an 8B model.
const HEADS: u32 = 8;
const HEAD_DIM: u32 = 128;
const TOKEN_BYTES: usize = HEADS as usize * HEAD_DIM as usize * 2;
/// Layers of it, and tokens of which all layers are 1 GiB; with fewer bytes there are fewer layers.
const LAYERS: usize = 32;
const TOKENS: usize = 8192;
/// Tokens of a page, by what the keys of one layer's page are then; and of a block at least.
const PAGES: [(u32, &str); 5] = [(1, "2KiB"), (4, "8KiB"), (16, "32KiB"), (64, "128KiB"), (256, "512KiB")];
const BLOCK_TOKENS: u32 = 16;
const CODECS: [Codec; 4] = [Codec::Raw, Codec::Fp8, Codec::Int8, Codec::Int4];
/// Bytes of a block that is digested.
const DIGESTED: [(usize, &str); 3] = [(64 << 10, "64KiB"), (512 << 10, "512KiB"), (2 << 20, "2MiB")];
/// What gathers that encode 8 bits, and digests, are to reach of a copy, by the bytes that are moved.
const AIM: Bar = Bar::AtLeast(0.8);
/// Where a block may begin.
const ALIGNED: usize = 256;

/// An engine whose pages fill the bench's memory.
struct Engine {
    name: &'static str,
    pages: PageShape,
    layers: usize,
    /// Tokens of all blocks.
    tokens: u32,
    shape: Shape,
    block_tokens: u32,
    numbers: Vec<u32>,
}

impl Engine {
    fn new(name: &'static str, order: PageOrder, page_tokens: u32, bytes: usize) -> Engine {
        let layers = (bytes / (TOKENS * 2 * TOKEN_BYTES)).clamp(1, LAYERS);
        let block_tokens = page_tokens.max(BLOCK_TOKENS);
        let tokens = (bytes / (layers * 2 * TOKEN_BYTES)) as u32 / block_tokens * block_tokens;
        let count = (tokens / page_tokens) as usize;
        Engine {
            name,
            pages: PageShape {
                order,
                page_tokens,
                kv_heads: HEADS,
                head_dim: HEAD_DIM,
                element: Element::Bf16,
            },
            layers,
            tokens,
            shape: Shape::Tensor {
                layers: layers as u32,
                kv_heads: HEADS,
                head_dim: HEAD_DIM,
                tokens: block_tokens,
                element: Element::Bf16,
                order: Order::LayersFirst,
            },
            block_tokens,
            numbers: (0..count).map(|at| place_of(at, count) as u32).collect(),
        }
    }

    fn plan(&self, start: u64, codec: Codec) -> Result<PagePlan> {
        let pages = self.tokens / self.pages.page_tokens;
        let layer_bytes = u64::from(self.tokens) * 2 * TOKEN_BYTES as u64;
        let layers: Vec<_> = (0..self.layers as u64)
            .map(|layer| self.pages.keys_first(start + layer * layer_bytes, pages))
            .collect();
        Ok(PagePlan::new(self.pages, &layers, codec, &self.shape)?)
    }

    /// Returns the blocks of a codec, one after the other.
    fn blocks(&self, plan: &PagePlan) -> Vec<Paged<'_>> {
        let stride = plan.block_bytes().next_multiple_of(ALIGNED as u64);
        self.numbers
            .chunks(plan.block_pages())
            .zip(0..)
            .map(|(pages, at)| Paged { block: at * stride, pages })
            .collect()
    }

    fn piece(&self) -> usize {
        self.pages.page_tokens as usize * TOKEN_BYTES
    }
}

/// Measures all of it.
///
/// # Errors
/// When something comes out as other bytes than the host's, or the GPU fails.
pub(super) fn run(runs: u32, bench: &mut Bench, measured: &mut Measured) -> Result<()> {
    let bytes = bench.bytes;
    let mut engines: Vec<Engine> = PAGES
        .iter()
        .map(|(tokens, name)| Engine::new(name, PageOrder::TokensFirst, *tokens, bytes))
        .collect();
    engines.push(Engine::new("32KiB-hnd", PageOrder::HeadsFirst, 16, bytes));
    for engine in &engines {
        for codec in CODECS {
            is_exact(bench, engine, codec)?;
            for (turn, name) in [(Turn::Gather, "gather"), (Turn::Scatter, "scatter")] {
                let (mut ours, mut baseline) = (Vec::new(), Vec::new());
                for _ in 0..runs {
                    baseline.push(moved(bench)?);
                    ours.push(speed(bench, engine, codec, turn)?);
                }
                let case = format!("{name}-{codec}-{}", engine.name);
                let row = Row::of_runs(&case, "GB/s", &ours, &baseline, &baseline_name(bench));
                let is_aimed_at = turn == Turn::Gather && matches!(codec, Codec::Fp8 | Codec::Int8);
                let row = if is_aimed_at { row.with_bar(AIM) } else { row };
                let line = if engine.pages.order == PageOrder::HeadsFirst { "-hnd" } else { "" };
                measured.add(&format!("{name}-{codec}{line}"), engine.piece(), row.ours, row);
            }
        }
    }
    for (bytes, name) in DIGESTED {
        let (mut ours, mut baseline) = (Vec::new(), Vec::new());
        let mut digester = Digester::new(&bench.gpu)?;
        are_the_hosts(bench, &mut digester, bytes)?;
        for _ in 0..runs {
            baseline.push(moved(bench)?);
            ours.push(digests(bench, &mut digester, bytes, TIMES)?);
        }
        let row = Row::of_runs(&format!("digest-{name}"), "GB/s", &ours, &baseline, &baseline_name(bench));
        measured.add("digest", bytes, row.ours, row.with_bar(AIM));
    }
    Ok(())
}

fn baseline_name(bench: &Bench) -> String {
    format!("one copy of {}, read and written", bench.size())
}

/// Returns how many bytes one large copy reads and writes, in GB/s.
fn moved(bench: &mut Bench) -> Result<f64> {
    Ok(bench.speed(Way::Within, &[bench.whole()])? * Way::Within.memory_moves())
}

/// Returns how many bytes are read and written when all blocks go one way, in GB/s.
fn speed(bench: &mut Bench, engine: &Engine, codec: Codec, turn: Turn) -> Result<f64> {
    let mut pager = Pager::new(&bench.gpu, engine.plan(bench.there.address(), codec)?)?;
    let blocks = engine.blocks(pager.plan());
    let moved = blocks.len() as u64 * (pager.plan().block_bytes() + raw_bytes(engine));
    let Bench { timer, there, other, .. } = bench;
    pager.timed(timer, turn, there, other, &blocks, 1)?;
    let seconds = pager.timed(timer, turn, there, other, &blocks, TIMES)?;
    Ok((moved * u64::from(TIMES)) as f64 / seconds / 1e9)
}

fn raw_bytes(engine: &Engine) -> u64 {
    (engine.block_tokens as usize * engine.layers * 2 * TOKEN_BYTES) as u64
}

/// Checks that the last block is what the host makes of the same numbers, both ways, and that raw bytes come back as they went.
fn is_exact(bench: &mut Bench, engine: &Engine, codec: Codec) -> Result<()> {
    let [raw, stored] = [Codec::Raw, codec].map(|codec| engine.plan(bench.there.address(), codec));
    let (raw, stored) = (gathered(bench, engine, raw?)?, gathered(bench, engine, stored?)?);
    let mut expected = Vec::new();
    encode(codec, &engine.shape, &raw, &mut expected)?;
    ensure!(stored == expected, "{codec} of a GPU is not what the host makes of {}", engine.name);
    // Back into the pages, out of which it then comes as the host decodes it.
    let mut pager = Pager::new(&bench.gpu, engine.plan(bench.there.address(), codec)?)?;
    let blocks = engine.blocks(pager.plan());
    let Bench { timer, there, other, .. } = bench;
    pager.timed(timer, Turn::Gather, there, other, &blocks, 1)?;
    pager.timed(timer, Turn::Scatter, there, other, &blocks, 1)?;
    let mut expected = vec![0; raw.len()];
    decode(codec, &engine.shape, &stored, &mut expected)?;
    let plan = engine.plan(bench.there.address(), Codec::Raw)?;
    ensure!(
        gathered(bench, engine, plan)? == expected,
        "{codec} comes back from a GPU as it does not from the host, {}",
        engine.name
    );
    // The numbers as they were.
    bench.copy(Way::ToGpu, &[bench.whole()], 1)?;
    Ok(())
}

/// Gathers all blocks, and returns the last.
fn gathered(bench: &mut Bench, engine: &Engine, plan: PagePlan) -> Result<Vec<u8>> {
    let mut pager = Pager::new(&bench.gpu, plan)?;
    let blocks = engine.blocks(pager.plan());
    let Bench { timer, there, other, .. } = bench;
    pager.timed(timer, Turn::Gather, there, other, &blocks, 1)?;
    let last = blocks.last().map_or(0, |paged| paged.block as usize);
    let bytes = pager.plan().block_bytes() as usize;
    fetched(bench, last..last + bytes)
}

/// Returns some bytes of the memory that blocks are in. What the host has of the engine's pages stays.
fn fetched(bench: &mut Bench, range: Range<usize>) -> Result<Vec<u8>> {
    let mut here = kvhive_gpu::cuda::Pinned::new(&bench.gpu, range.len())?;
    let part = [Part { from: range.start, to: 0, bytes: range.len() }];
    let between = kvhive_gpu::cuda::Between::ToHost(&bench.other, &mut here);
    bench.copier.timed(&bench.timer, between, &part, 1)?;
    Ok(here.bytes().to_vec())
}

fn spans(bench: &Bench, bytes: usize) -> Vec<Span> {
    (0..bench.bytes / bytes).map(|at| Span { start: (at * bytes) as u64, bytes: bytes as u64 }).collect()
}

/// Returns how many bytes of blocks are read for their digests, in GB/s.
fn digests(bench: &Bench, digester: &mut Digester, bytes: usize, times: u32) -> Result<f64> {
    let spans = spans(bench, bytes);
    digester.timed(&bench.timer, &bench.there, &spans, 1)?;
    let (seconds, _) = digester.timed(&bench.timer, &bench.there, &spans, times)?;
    Ok((spans.len() * bytes * times as usize) as f64 / seconds / 1e9)
}

/// Checks the digests of all blocks.
fn are_the_hosts(bench: &mut Bench, digester: &mut Digester, bytes: usize) -> Result<()> {
    bench.copy(Way::ToGpu, &[bench.whole()], 1)?;
    let spans = spans(bench, bytes);
    let (_, found) = digester.timed(&bench.timer, &bench.there, &spans, 1)?;
    for (span, pieces) in spans.iter().zip(&found) {
        let block = &bench.here.bytes()[span.start as usize..][..bytes];
        ensure!(
            digest_of_pieces(pieces, span.bytes) == digest(block),
            "a digest of a GPU is not the host's, of {bytes} bytes"
        );
    }
    Ok(())
}
