//! Blocks go from a stage that another process lends to frames of a device's and back, on the GPU, as they are and encoded: their bytes and
//! digests are the host's.
mod cases;
mod fake;
mod other;

use cases::{CODECS, Numbers};
use fake::Fake;
use kvhive_gpu::codec::{Codec, Element, Order, Shape, decode, encode, max_stored_bytes};
use kvhive_gpu::cuda::{CudaDevice, CudaError, Ferry, Gpu, GpuSlab, Loan, PagerError, Pinned, Stage};
use kvhive_gpu::pages::PagesError;
use kvhive_gpu::{Arena, ClassId, Device, ReadFrame, SizeClass, WriteFrame};
use kvhive_protocol::block::{digest, digest_of_pieces};
use other::{Other, loan, told_gpu, words};
use std::path::Path;
use std::sync::Arc;

const BLOCKS: usize = 3;
const CLASSES: [SizeClass; 1] = [SizeClass { frame_bytes: 64 << 10, frames: 8 * BLOCKS as u32 }];

fn shapes() -> Vec<Shape> {
    let shape = |order| Shape::Tensor {
        layers: 3,
        kv_heads: 2,
        head_dim: 64,
        tokens: 20,
        element: Element::Bf16,
        order,
    };
    [Order::LayersFirst, Order::KvFirst, Order::Packed].map(shape).to_vec()
}

/// Returns what is on the stage: blocks, one after the other, and as many places that are empty.
fn raw_blocks(shape: &Shape) -> Vec<Vec<u8>> {
    let bytes = shape.raw_bytes().expect("few") as usize;
    (0..BLOCKS as u64)
        .map(|at| {
            let mut raw = vec![0; bytes];
            Numbers(at + 1).fill(Element::Bf16, 64, &mut raw);
            raw
        })
        .collect()
}

/// Makes a stage with the blocks of a shape on it, and room for as many more.
fn staged(gpu: &Arc<Gpu>, shape: &Shape) -> Stage {
    let all = raw_blocks(shape).concat();
    let stage = Stage::new(gpu, 2 * all.len()).expect("it is lent");
    stage.write(0, &all).expect("it copies");
    stage
}

fn second_half(stage: &Stage) -> Vec<u8> {
    let half = stage.len() / 2;
    let mut here = vec![0; half as usize];
    stage.read(half, &mut here).expect("it copies");
    here
}

#[test]
#[ignore = "a process that other tests start"]
fn engine_that_lends_a_stage() {
    let gpu = told_gpu();
    for shape in shapes() {
        let stage = staged(&gpu, &shape);
        println!("KVHIVE stage {}", words(&stage.loan()));
        let mut line = String::new();
        // Once for each codec, and for what comes from the host.
        for _ in 0..=CODECS.len() {
            if std::io::stdin().read_line(&mut line).expect("it is told") == 0 {
                return;
            }
            println!("KVHIVE then {:016x}", digest(&second_half(&stage)));
        }
        std::io::stdin().read_line(&mut line).expect("it is told");
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

    /// Takes every block of a stage to a frame, and compares bytes and digests with the host's.
    fn takes(&self, ferry: &Ferry, shape: &Shape, codec: Codec) -> Vec<ReadFrame<GpuSlab>> {
        let bytes = max_stored_bytes(codec, shape).expect("few");
        let raw = shape.raw_bytes().expect("few");
        let mut frames: Vec<_> = (0..BLOCKS).map(|_| self.empty(bytes)).collect();
        let mut blocks: Vec<_> = frames.iter_mut().zip((0..).map(|at: u64| at * raw)).collect();
        let digests = match codec {
            Codec::Raw => ferry.take(&mut blocks),
            codec => ferry.encode((codec, shape), &mut blocks),
        };
        let digests = digests.expect("it works");
        let mut sealed = Vec::new();
        for ((frame, pieces), raw) in frames.into_iter().zip(digests).zip(raw_blocks(shape)) {
            let (mut wanted, mut got) = (Vec::new(), vec![0; bytes as usize]);
            encode(codec, shape, &raw, &mut wanted).expect("a tensor");
            let frame = frame.seal();
            self.device.read(&frame, &mut got).expect("it copies");
            assert!(got == wanted, "{shape:?} {codec}: bytes differ");
            assert_eq!(digest_of_pieces(&pieces, bytes), digest(&wanted), "{shape:?} {codec}");
            sealed.push(frame);
        }
        let digests = ferry.digests(&sealed.iter().collect::<Vec<_>>()).expect("it works");
        assert_eq!(digests.len(), BLOCKS);
        sealed
    }

    /// Puts blocks on the second half of a stage, in reverse.
    fn puts(&self, ferry: &Ferry, shape: &Shape, codec: Codec, frames: &[ReadFrame<GpuSlab>]) -> Vec<u8> {
        let raw = shape.raw_bytes().expect("few");
        let places = (BLOCKS as u64..).map(|at| at * raw);
        let blocks: Vec<_> = frames.iter().rev().zip(places).collect();
        match codec {
            Codec::Raw => ferry.put(&blocks),
            codec => ferry.decode((codec, shape), &blocks),
        }
        .expect("it works");
        let mut wanted = Vec::new();
        for block in raw_blocks(shape).iter().rev() {
            let (mut stored, mut back) = (Vec::new(), vec![0; raw as usize]);
            encode(codec, shape, block, &mut stored).expect("a tensor");
            decode(codec, shape, &stored, &mut back).expect("it was encoded");
            wanted.extend(back);
        }
        wanted
    }
}

/// Has every shape go both ways between this process and another.
fn goes_both_ways(gpu: &Arc<Gpu>, driver: Option<&Path>) {
    let bench = Bench::new(gpu);
    let mut other = Other::start("engine_that_lends_a_stage", driver, None, None);
    for shape in shapes() {
        let lent = loan(&other.hear("stage"));
        let ferry = Ferry::new(&bench.device, lent).expect("it is lent");
        for codec in CODECS {
            let frames = bench.takes(&ferry, &shape, codec);
            let wanted = bench.puts(&ferry, &shape, codec, &frames);
            other.go_on();
            assert_eq!(other.hear("then"), format!("{:016x}", digest(&wanted)), "{shape:?} {codec}");
        }
        // Down to the host, and up from there, by pinned memory and by any.
        let raw = raw_blocks(&shape);
        let bytes = raw[0].len();
        let mut pinned = Pinned::new(gpu, bytes).expect("there is room");
        let mut plain = vec![0; bytes];
        ferry.take_down(&mut [(pinned.bytes_mut(), 0), (&mut plain[..], bytes as u64)]).expect("it works");
        assert!(pinned.bytes() == raw[0] && plain == raw[1]);
        let half = lent.bytes / 2;
        let places = [half, half + bytes as u64, half + 2 * bytes as u64];
        ferry
            .put_up(&[(&raw[2], places[0]), (pinned.bytes(), places[1]), (&plain, places[2])])
            .expect("it works");
        other.go_on();
        let wanted = [&raw[2][..], &raw[0], &raw[1]].concat();
        assert_eq!(other.hear("then"), format!("{:016x}", digest(&wanted)), "{shape:?}");
        drop(ferry);
        other.go_on();
    }
    other.end();
    assert_eq!(bench.arena.used_bytes(), 0);
}

#[test]
fn blocks_on_another_processes_stage_are_the_hosts_both_ways() {
    let fake = Fake::new();
    let gpu = fake.gpu();
    goes_both_ways(&gpu, Some(fake.path()));
    drop(gpu);
    assert!(fake.is_clean());
}

#[test]
fn blocks_on_another_processes_stage_are_the_hosts_on_a_real_gpu() {
    for gpu in fake::real_gpus().into_iter().take(1) {
        goes_both_ways(&gpu, None);
    }
}

#[test]
fn a_stage_of_ones_own_needs_no_handle() {
    let fake = Fake::new();
    let gpu = fake.gpu();
    let bench = Bench::new(&gpu);
    for shape in shapes() {
        let stage = staged(&gpu, &shape);
        let own = |loan| Ferry::new(&bench.device, loan);
        let more = own(Loan { bytes: 3 << 20, ..stage.loan() }).err();
        assert!(
            matches!(more, Some(CudaError::Failed { code: 201, .. })),
            "a process opens no handle of its own"
        );
        let ferry = own(stage.loan()).expect("it is there");
        let frames = bench.takes(&ferry, &shape, Codec::Int8);
        let wanted = bench.puts(&ferry, &shape, Codec::Int8, &frames);
        assert!(second_half(&stage) == wanted);
        drop(stage);
        // What carries keeps the memory.
        assert!(bench.takes(&ferry, &shape, Codec::Raw).len() == BLOCKS);
    }
    drop((bench, gpu));
    assert!(fake.is_clean());
}

#[test]
fn what_lies_elsewhere_is_refused_before_the_gpu_touches_anything() {
    let fake = Fake::new();
    let gpu = fake.gpu();
    let bench = Bench::new(&gpu);
    let shape = shapes()[0];
    let raw = shape.raw_bytes().expect("few");
    let stage = staged(&gpu, &shape);
    let ferry = Ferry::new(&bench.device, stage.loan()).expect("it is there");
    let outside = |what| Some(PagerError::Pages(PagesError::Outside { what }));
    assert!(ferry.has(stage.len() - raw, raw) && !ferry.has(stage.len() - raw + 1, raw));
    assert!(!ferry.has(u64::MAX, 2));
    for at in [stage.len() - 3, u64::MAX - 2] {
        assert!(matches!(stage.write(at, &[0; 4]), Err(CudaError::Beyond { .. })));
        assert!(matches!(stage.read(at, &mut [0; 4]), Err(CudaError::Beyond { .. })));
    }
    for at in [stage.len() - raw + 1, stage.len(), u64::MAX - 3] {
        let (mut frame, mut here) = (bench.empty(raw), vec![0; raw as usize]);
        assert_eq!(ferry.take(&mut [(&mut frame, at)]).err(), outside("blocks"));
        assert_eq!(ferry.take_down(&mut [(&mut here[..], at)]).err(), outside("blocks"));
        assert_eq!(ferry.put_up(&[(&here[..], at)]).err(), outside("blocks"));
        assert_eq!(ferry.put(&[(&frame.seal(), at)]).err(), outside("blocks"));
    }
    let bytes = max_stored_bytes(Codec::Int8, &shape).expect("few");
    let int8 = (Codec::Int8, &shape);
    assert_eq!(ferry.encode(int8, &mut [(&mut bench.empty(bytes), 16)]).err(), outside("blocks"));
    assert_eq!(ferry.encode(int8, &mut [(&mut bench.empty(raw), 0)]).err(), outside("blocks"));
    let beyond = ferry.encode(int8, &mut [(&mut bench.empty(bytes), stage.len())]).err();
    assert!(matches!(beyond, Some(PagerError::Pages(PagesError::NoSuchPage { .. }))), "{beyond:?}");
    let opaque = Shape::Opaque { bytes: raw };
    let none = ferry.encode((Codec::Int8, &opaque), &mut [(&mut bench.empty(raw), 0)]).err();
    assert_eq!(none, Some(PagesError::Codec { codec: Codec::Int8 }.into()));
    let none = ferry.decode((Codec::Lossless, &shape), &[(&bench.empty(raw).seal(), 0)]).err();
    assert_eq!(none, Some(PagesError::Codec { codec: Codec::Lossless }.into()));
    let strange = Bench::new(&Fake::new().gpu());
    assert_eq!(ferry.take(&mut [(&mut strange.empty(raw), 0)]).err(), outside("frames"));
    assert_eq!(ferry.digests(&[&strange.empty(raw).seal()]).err(), outside("frames"));
    let none = Loan { handle: [7; 64], offset: 0, bytes: 1 };
    assert!(matches!(Ferry::new(&bench.device, none).err(), Some(CudaError::Failed { code: 1, .. })));
}

#[test]
fn a_ferry_does_one_thing_at_a_time_and_nobody_waits_for_it() {
    let fake = Fake::new();
    let bench = Bench::new(&fake.gpu());
    let stage = Stage::new(bench.device.gpu(), 4096).expect("there is room");
    let ferry = Ferry::new(&bench.device, stage.loan()).expect("it is there");
    let frame = bench.empty(4096).seal();
    fake.hang("cuStreamSynchronize", 1);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| ferry.put(&[(&frame, 0)]));
        fake::eventually("it is under way", || fake.ask("fake_hung") == 1);
        let busy = Some(PagerError::Cuda(CudaError::Busy { bytes: 4096 }));
        assert_eq!(ferry.put(&[(&frame, 0)]).err(), busy);
        assert_eq!(ferry.digests(&[&frame]).err(), busy);
        assert_eq!(bench.device.loss(), None);
        fake.release();
        assert_eq!(first.join().expect("it ends"), Ok(()));
    });
    assert_eq!(ferry.put(&[(&frame, 0)]), Ok(()), "the next has its turn");
}

#[test]
fn whichever_call_of_a_ferry_fails_is_told_and_a_gpu_that_dies_of_it_is_lost() {
    let shape = shapes()[0];
    let raw = shape.raw_bytes().expect("few");
    let everything = |bench: &Bench| -> Result<(), PagerError> {
        let stage = Stage::new(bench.device.gpu(), 2 * raw as usize)?;
        let ferry = Ferry::new(&bench.device, stage.loan())?;
        let mut frame = bench.empty(raw);
        ferry.take(&mut [(&mut frame, 0)])?;
        let mut encoded = bench.empty(max_stored_bytes(Codec::Fp8, &shape).expect("few"));
        ferry.encode((Codec::Fp8, &shape), &mut [(&mut encoded, 0)])?;
        ferry.decode((Codec::Fp8, &shape), &[(&encoded.seal(), raw)])?;
        let mut here = vec![0; raw as usize];
        ferry.take_down(&mut [(&mut here[..], 0)])?;
        ferry.put_up(&[(&here[..], raw)])?;
        let frame = frame.seal();
        ferry.digests(&[&frame])?;
        ferry.put(&[(&frame, raw)])
    };
    let calls = [
        "cuMemAlloc_v2",
        "cuMemGetAddressRange_v2",
        "cuIpcGetMemHandle",
        "cuStreamCreate",
        "cuMemHostAlloc",
        "cuLaunchKernel",
        "cuMemcpyHtoDAsync_v2",
        "cuMemcpyDtoHAsync_v2",
        "cuStreamSynchronize",
    ];
    for call in calls {
        for nth in 1.. {
            let fake = Fake::new();
            let bench = Bench::new(&fake.gpu());
            fake.fail(call, nth, 1);
            let Err(error) = everything(&bench) else {
                match fake::unheard(&fake, call, nth) {
                    true => continue,
                    false => break,
                }
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
    let stage = Stage::new(bench.device.gpu(), 2 * raw as usize).expect("there is room");
    let ferry = Ferry::new(&bench.device, stage.loan()).expect("it is there");
    fake.set("fake_die", 719);
    assert!(ferry.take(&mut [(&mut bench.empty(raw), 0)]).is_err());
    assert!(bench.device.loss().is_some(), "its device knows");
    fake.set("fake_die", 0);
    assert!(ferry.take(&mut [(&mut bench.empty(raw), 0)]).is_err(), "it does not come back");
}
