//! A GPU's digests are those that blocks' headers carry: by a kernel that the CPU runs and, where there is a GPU, by that.
#![allow(unsafe_code, reason = "names memory by addresses")]

mod fake;

use fake::Fake;
use kvhive_gpu::cuda::{Between, Copier, Digester, Gpu, GpuMemory, PagerError, Part, Pinned, Span, Timer};
use kvhive_gpu::pages::PagesError;
use kvhive_protocol::block::{PIECE_BYTES, digest, digest_of_pieces};
use std::sync::Arc;

/// Bytes of which no two stretches are alike.
fn varied(count: usize) -> Vec<u8> {
    (0..count as u64).map(|at| (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as u8).collect()
}

/// Has stretches of some bytes be digested on a GPU, and compares with what the host says of them.
fn are_the_same(gpu: &Arc<Gpu>, bytes: &[u8], spans: &[Span]) -> Result<(), PagerError> {
    let (mut copier, timer) = (Copier::new(gpu)?, Timer::new(gpu)?);
    let mut digester = Digester::new(gpu)?;
    let (mut here, mut there) = (Pinned::new(gpu, bytes.len())?, GpuMemory::new(gpu, bytes.len())?);
    here.bytes_mut().copy_from_slice(bytes);
    let whole = [Part { from: 0, to: 0, bytes: bytes.len() }];
    copier.timed(&timer, Between::ToGpu(&here, &mut there), &whole, 1)?;
    let (seconds, found) = digester.timed(&timer, &there, spans, 2)?;
    assert!(seconds > 0.0);
    let at_addresses: Vec<Span> =
        spans.iter().map(|span| Span { start: there.address() + span.start, ..*span }).collect();
    // SAFETY: the memory is this function's own.
    assert_eq!(unsafe { digester.digest(&at_addresses) }?, found);
    assert_eq!(found.len(), spans.len());
    for (pieces, span) in found.iter().zip(spans) {
        let block = &bytes[span.start as usize..][..span.bytes as usize];
        assert_eq!(pieces.len(), block.len().div_ceil(PIECE_BYTES));
        assert_eq!(digest_of_pieces(pieces, span.bytes), digest(block), "{span:?}");
    }
    Ok(())
}

/// Stretches of every length for which XXH3 has a way of its own, and of those around whole sections, stripes and pieces; at places that are
/// even and at others.
fn lengths() -> Vec<Span> {
    let around = [1024, 2048, 8192, 15 << 10, 16 << 10, 17 << 10, 32 << 10, 33 << 10];
    let near = around.into_iter().flat_map(|length| length - 65..length + 67);
    (0..600).chain(near).map(|bytes| Span { start: bytes * 16 % 1600 + bytes % 3 / 2 * 5, bytes }).collect()
}

#[test]
fn digests_of_every_length_are_those_of_headers() {
    let fake = Fake::new();
    let gpu = fake.gpu();
    are_the_same(&gpu, &varied(40 << 10), &lengths()).expect("it works");
    // No block, and blocks without a byte.
    are_the_same(&gpu, &varied(1), &[]).expect("it works");
    are_the_same(&gpu, &varied(1), &[Span { start: 1, bytes: 0 }]).expect("it works");
    drop(gpu);
    assert!(fake.is_clean());
}

#[test]
fn blocks_outside_of_their_memory_and_too_many_are_refused() {
    let gpu = Fake::new().gpu();
    let (mut digester, timer) = (Digester::new(&gpu).expect("it works"), Timer::new(&gpu).expect("it works"));
    let memory = GpuMemory::new(&gpu, 100).expect("there is room");
    for (start, bytes) in [(0, 101), (100, 1), (u64::MAX, 2)] {
        let error = digester.timed(&timer, &memory, &[Span { start, bytes }], 1).err();
        assert_eq!(error, Some(PagesError::Outside { what: "blocks" }.into()), "{start} {bytes}");
    }
    // SAFETY: it is refused before anything is touched.
    let error = unsafe { digester.digest(&[Span { start: 0, bytes: 1 << 50 }; 2]) }.err();
    assert_eq!(error, Some(PagesError::TooMany { blocks: 2 }.into()));
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
        "cuMemcpyDtoHAsync_v2",
        "cuStreamSynchronize",
        "cuEventRecord",
        "cuEventElapsedTime",
    ];
    let everything = |fake: &Fake| {
        let spans = [Span { start: 16, bytes: 20_000 }, Span { start: 1, bytes: 7 }];
        are_the_same(&fake.cuda()?.open(0)?, &varied(30_000), &spans)
    };
    fake::each_call_fails_once(&calls, everything, |error| match error {
        PagerError::Cuda(error) => Some(error),
        _ => None,
    });
}

#[test]
fn a_real_gpu_has_the_same_digests() {
    for gpu in fake::real_gpus() {
        are_the_same(&gpu, &varied(40 << 10), &lengths()).expect("it works");
        are_the_same(&gpu, &varied(9 << 20), &[Span { start: 0, bytes: 9 << 20 }]).expect("it works");
    }
}
