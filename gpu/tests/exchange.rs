//! Blocks go from the pages of an engine that is another process to frames of a device's and back, on the GPU: their bytes and digests are the
//! host's, and so are the pages.
#![allow(unsafe_code, reason = "copies between addresses")]

mod cases;
mod fake;
mod other;

use cases::{BLOCKS, CODECS, Case, Numbers, PAGES, Tensors as Lie, arrangements};
use fake::Fake;
use kvhive_gpu::codec::{Codec, Element, Order, decode, encode};
use kvhive_gpu::cuda::{
    Copier, CudaDevice, CudaError, Direction, Exchange, Gpu, GpuMemory, GpuSlab, LentLayer, Loan, PagerError,
    Piece, Pinned, Tensors,
};
use kvhive_gpu::pages::{PageOrder, PagesError};
use kvhive_gpu::{Arena, ClassId, Device, ReadFrame, SizeClass, WriteFrame};
use kvhive_protocol::block::{digest, digest_of_pieces};
use other::{Other, loan, told_gpu, words};
use std::path::Path;
use std::sync::Arc;

const CLASSES: [SizeClass; 1] = [SizeClass { frame_bytes: 1 << 20, frames: 2 * BLOCKS as u32 }];

/// Every layout of engines by blocks of every order, and latent rows.
fn cases() -> Vec<Case> {
    let latent = Case {
        tensors: Lie::Together,
        order: PageOrder::Latent,
        page_tokens: 4,
        heads: 1,
        head_dim: 288,
        element: Element::Bf16,
        block_order: Order::Packed,
        tokens: 24,
        off: [0, 0],
    };
    arrangements().into_iter().chain([latent]).collect()
}

/// Returns what an engine has in its pages.
fn engine(case: &Case) -> Vec<u8> {
    let mut bytes = vec![0; case.engine_bytes()];
    Numbers(case.tokens.into()).fill(case.element, case.head_dim as usize, &mut bytes);
    bytes
}

/// Returns the pages of each block; no page is in two.
fn pages(case: &Case) -> Vec<Vec<u32>> {
    let each = case.tokens / case.page_tokens;
    let all: Vec<u32> = (0..BLOCKS as u32 * each).map(|at| at * 7 % PAGES).collect();
    all.chunks(each as usize).map(<[u32]>::to_vec).collect()
}

/// Returns a block as the host stores it.
fn stored(case: &Case, codec: Codec, engine: &[u8], pages: &[u32]) -> Vec<u8> {
    let (shape, size) = (case.shape(), case.element.bytes());
    let mut raw = vec![0; shape.raw_bytes().expect("few") as usize];
    for (from, to) in case.places(pages) {
        raw[to..to + size].copy_from_slice(&engine[from..from + size]);
    }
    let mut stored = Vec::new();
    encode(codec, &shape, &raw, &mut stored).expect("a tensor");
    stored
}

/// Copies between the host and an address of a GPU's.
fn copy(gpu: &Arc<Gpu>, direction: Direction, there: u64, here: &mut Pinned) {
    let (own, bytes) = (here.bytes_mut().as_mut_ptr().expose_provenance() as u64, here.bytes().len());
    let (from, to) = if direction == Direction::ToGpu { (own, there) } else { (there, own) };
    let mut copier = Copier::new(gpu).expect("it works");
    // SAFETY: the host's end is borrowed alone, and whoever calls has the other.
    unsafe { copier.copy(direction, &[Piece { from, to, bytes }]) }.expect("it copies");
}

/// Has an engine's memory of each layer in a GPU's.
fn put(gpu: &Arc<Gpu>, case: &Case) -> Vec<GpuMemory> {
    let bytes = engine(case);
    let put = |layer: &[u8]| {
        let memory = GpuMemory::new(gpu, layer.len()).expect("there is room");
        let mut here = Pinned::new(gpu, layer.len()).expect("there is room");
        here.bytes_mut().copy_from_slice(layer);
        copy(gpu, Direction::ToGpu, memory.address(), &mut here);
        memory
    };
    bytes.chunks(case.layer_bytes()).map(put).collect()
}

fn get(gpu: &Arc<Gpu>, memory: &[GpuMemory]) -> Vec<u8> {
    let get = |layer: &GpuMemory| {
        let mut here = Pinned::new(gpu, layer.len()).expect("there is room");
        copy(gpu, Direction::ToHost, layer.address(), &mut here);
        here.bytes().to_vec()
    };
    memory.iter().flat_map(get).collect()
}

/// Says in which pieces an engine lends a layer.
fn lent(case: &Case, loans: &[Loan]) -> Vec<LentLayer> {
    let layer = |tensors| LentLayer { tensors, pages: PAGES };
    match case.tensors {
        Lie::Apart => {
            loans.chunks(2).map(|two| layer(Tensors::Apart { keys: two[0], values: two[1] })).collect()
        }
        Lie::KeysFirst => loans.iter().map(|one| layer(Tensors::KeysFirst(*one))).collect(),
        Lie::PagesFirst => loans.iter().map(|one| layer(Tensors::PagesFirst(*one))).collect(),
        Lie::Together => loans.iter().map(|one| layer(Tensors::Together(*one))).collect(),
    }
}

#[test]
#[ignore = "a process that other tests start"]
fn engine_that_lends_its_pages() {
    let gpu = told_gpu();
    for case in cases() {
        let memory = put(&gpu, &case);
        let parts = if case.tensors == Lie::Apart { 2 } else { 1 };
        let mut loans = Vec::new();
        for layer in &memory {
            let bytes = (layer.len() / parts) as u64;
            for part in 0..parts as u64 {
                let one = Loan::new(&gpu, layer.address() + part * bytes, bytes).expect("it is lent");
                loans.push(words(&one));
            }
        }
        println!("KVHIVE pages {}", loans.join(","));
        let mut line = String::new();
        if std::io::stdin().read_line(&mut line).expect("it is told") == 0 {
            return;
        }
        println!("KVHIVE then {:016x}", digest(&get(&gpu, &memory)));
    }
}

struct Bench {
    device: CudaDevice,
    arena: Arena<GpuSlab>,
}

impl Bench {
    fn new(gpu: &Arc<Gpu>) -> Bench {
        let device = CudaDevice::new(gpu.clone(), 64 << 20).expect("it works");
        Bench { arena: Arena::new(&device, &CLASSES).expect("there is room"), device }
    }

    fn empty(&self, bytes: u64) -> WriteFrame<GpuSlab> {
        self.arena.take(ClassId(0), bytes).expect("a frame is free")
    }

    fn exchange(&self, case: &Case, loans: &[Loan], codec: Codec) -> Result<Exchange, PagerError> {
        Exchange::borrow(&self.device, case.pages(), &lent(case, loans), codec, &case.shape())
    }

    /// Has every block of a case be gathered, and compares bytes and digests with the host's.
    fn gathers(&self, exchange: &mut Exchange, case: &Case, codec: Codec) -> Vec<ReadFrame<GpuSlab>> {
        let (engine, pages) = (engine(case), pages(case));
        let bytes = exchange.plan().block_bytes();
        let mut blocks: Vec<_> = pages.iter().map(|pages| (self.empty(bytes), &pages[..])).collect();
        let digests = exchange.gather(&mut blocks).expect("it works");
        let mut frames = Vec::new();
        for ((frame, pages), pieces) in blocks.into_iter().zip(digests) {
            let (frame, wanted) = (frame.seal(), stored(case, codec, &engine, pages));
            let mut got = vec![0; frame.len()];
            self.device.read(&frame, &mut got).expect("it copies");
            assert!(got == wanted, "{case:?} {codec}: gathered bytes differ");
            assert_eq!(digest_of_pieces(&pieces, bytes), digest(&wanted), "{case:?} {codec}");
            frames.push(frame);
        }
        frames
    }
}

/// Has every case go both ways between this process and another.
fn goes_both_ways(gpu: &Arc<Gpu>, driver: Option<&Path>) {
    let bench = Bench::new(gpu);
    let mut other = Other::start("engine_that_lends_its_pages", driver, None, None);
    for (at, case) in cases().iter().enumerate() {
        let loans: Vec<Loan> = other.hear("pages").split(',').map(loan).collect();
        for codec in CODECS {
            let mut exchange = bench.exchange(case, &loans, codec).expect("it is lent");
            bench.gathers(&mut exchange, case, codec);
        }
        // Each block goes back to the pages of another.
        let codec = CODECS[at % CODECS.len()];
        let mut exchange = bench.exchange(case, &loans, codec).expect("it is lent");
        let frames = bench.gathers(&mut exchange, case, codec);
        let (mut wanted, pages) = (engine(case), pages(case));
        let mut raw = vec![0; case.shape().raw_bytes().expect("few") as usize];
        let size = case.element.bytes();
        let before = wanted.clone();
        let mut back = Vec::new();
        for (frame, (own, others)) in frames.into_iter().zip(pages.iter().zip(pages.iter().rev())) {
            decode(codec, &case.shape(), &stored(case, codec, &before, own), &mut raw)
                .expect("it was encoded");
            for (to, from) in case.places(others) {
                wanted[to..to + size].copy_from_slice(&raw[from..from + size]);
            }
            back.push((frame, &others[..]));
        }
        exchange.scatter(&back).expect("it works");
        other.go_on();
        assert_eq!(other.hear("then"), format!("{:016x}", digest(&wanted)), "{case:?} {codec}");
    }
    other.end();
    assert_eq!(bench.arena.used_bytes(), 0);
}

#[test]
fn blocks_of_another_processes_pages_are_the_hosts_both_ways() {
    let fake = Fake::new();
    let gpu = fake.gpu();
    goes_both_ways(&gpu, Some(fake.path()));
    drop(gpu);
    assert!(fake.is_clean());
}

#[test]
fn blocks_of_another_processes_pages_are_the_hosts_on_a_real_gpu() {
    for gpu in fake::real_gpus().into_iter().take(1) {
        goes_both_ways(&gpu, None);
    }
}

#[test]
fn blocks_of_ones_own_pages_need_no_handle() {
    let fake = Fake::new();
    let gpu = fake.gpu();
    let bench = Bench::new(&gpu);
    for case in arrangements().iter().filter(|case| case.tensors == Lie::KeysFirst) {
        let memory = put(&gpu, case);
        let layers: Vec<_> =
            memory.iter().map(|layer| case.pages().keys_first(layer.address(), PAGES)).collect();
        let shape = case.shape();
        // SAFETY: the memory outlives what uses it.
        let made = unsafe { Exchange::own(&bench.device, case.pages(), &layers, Codec::Int8, &shape) };
        let mut exchange = made.expect("it works");
        bench.gathers(&mut exchange, case, Codec::Int8);
        drop(exchange);
    }
    drop((bench, gpu));
    assert!(fake.is_clean());
}

/// A process that lends the pages of the first case until it is ended, and its loans.
fn lender(fake: &Fake) -> (Other, Case, Vec<Loan>) {
    let mut other = Other::start("engine_that_lends_its_pages", Some(fake.path()), None, None);
    let loans = other.hear("pages").split(',').map(loan).collect();
    (other, cases()[0], loans)
}

#[test]
fn what_does_not_go_together_is_refused_before_the_gpu_touches_anything() {
    let fake = Fake::new();
    let gpu = fake.gpu();
    let (other, case, loans) = lender(&fake);
    let bench = Bench::new(&gpu);
    let mut short = loans.clone();
    short[1].bytes -= 1;
    let error = bench.exchange(&case, &short, Codec::Raw).err();
    assert!(matches!(error, Some(PagerError::Cuda(CudaError::Beyond { .. }))), "{error:?}");
    short[1] = Loan { offset: loans[1].offset + 1, ..loans[1] };
    let error = bench.exchange(&case, &short, Codec::Raw).err();
    assert!(matches!(error, Some(PagerError::Cuda(CudaError::Beyond { .. }))), "{error:?}");
    let error = bench.exchange(&case, &loans[..2], Codec::Raw).err();
    assert_eq!(error, Some(PagesError::Layers { wanted: 2, given: 1 }.into()));

    let mut exchange = bench.exchange(&case, &loans, Codec::Raw).expect("it is lent");
    let bytes = exchange.plan().block_bytes();
    let outside = Err(PagerError::Pages(PagesError::Outside { what: "blocks" }));
    assert_eq!(exchange.gather(&mut [(bench.empty(bytes - 1), &[0, 1][..])]), outside);
    let strange = Bench::new(&Fake::new().gpu());
    assert_eq!(exchange.gather(&mut [(strange.empty(bytes), &[0, 1][..])]), outside);
    let missing = exchange.scatter(&[(bench.empty(bytes).seal(), &[0, PAGES][..])]);
    assert_eq!(missing, Err(PagesError::NoSuchPage { page: PAGES, pages: PAGES }.into()));
    let few = exchange.gather(&mut [(bench.empty(bytes), &[0][..])]);
    assert_eq!(few, Err(PagesError::Pages { wanted: 2, given: 1 }.into()));
    assert_eq!(exchange.gather(&mut []), Ok(Vec::new()));
    drop((exchange, bench, gpu));
    other.end();
    assert!(fake.is_clean());
}

#[test]
fn whichever_call_fails_is_told_and_a_gpu_that_dies_of_it_is_lost() {
    let driver = Fake::new();
    let (other, case, loans) = lender(&driver);
    let everything = |bench: &Bench| -> Result<(), PagerError> {
        let mut exchange = bench.exchange(&case, &loans, Codec::Raw)?;
        let frame = bench.empty(exchange.plan().block_bytes());
        let mut blocks = [(frame, &[0, 1][..])];
        exchange.gather(&mut blocks)?;
        let [(frame, pages)] = blocks;
        exchange.scatter(&[(frame.seal(), pages)])
    };
    for call in ["cuIpcOpenMemHandle_v2", "cuMemGetAddressRange_v2", "cuLaunchKernel", "cuStreamSynchronize"]
    {
        for nth in 1.. {
            let fake = Fake::new();
            let bench = Bench::new(&fake.gpu());
            fake.fail(call, nth, 1);
            let Err(error) = everything(&bench) else {
                assert!(nth > 1, "{call} is never made");
                break;
            };
            assert!(error.to_string().contains(call), "{call} {nth}: {error}");
            assert_eq!(bench.device.loss(), None, "an error of one call is no death");
            assert_eq!(everything(&bench), Ok(()), "{call} {nth}");
            assert_eq!(bench.arena.used_bytes(), 0, "{call} {nth}");
            drop(bench);
            assert!(fake.is_clean(), "{call} {nth}");
        }
    }
    let fake = Fake::new();
    let bench = Bench::new(&fake.gpu());
    let mut exchange = bench.exchange(&case, &loans, Codec::Raw).expect("it is lent");
    let bytes = exchange.plan().block_bytes();
    fake.set("fake_die", 719);
    assert!(exchange.gather(&mut [(bench.empty(bytes), &[0, 1][..])]).is_err());
    assert!(bench.device.loss().is_some(), "its device knows");
    fake.set("fake_die", 0);
    assert!(exchange.gather(&mut [(bench.empty(bytes), &[0, 1][..])]).is_err(), "it does not come back");
    other.end();
}
