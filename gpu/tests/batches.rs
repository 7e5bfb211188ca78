//! Copies that wait for one of their direction are done together: one wait for the GPU, and one copy of what lies side by side. What waits
//! has a limit.

mod fake;

use fake::{Fake, eventually};
use kvhive_gpu::cuda::{Cuda, CudaDevice, GpuSlab};
use kvhive_gpu::{Arena, ClassId, Device, DeviceError, HostDevice, ReadFrame, SizeClass, WriteFrame};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

const BYTES: u64 = 2 << 20;
/// With the first: what waits behind that is 40 MiB, which copy engines do in any direction.
const COPIES: usize = 21;
const CLASSES: [SizeClass; 1] = [SizeClass { frame_bytes: BYTES, frames: COPIES as u32 }];

type Told = Sender<Result<(), DeviceError>>;

/// Has a first copy hang, asks for all others and lets it go on; says how many copies of this name, launches and waits the others took.
fn taken_together(fake: &Fake, copy: &str, mut ask: impl FnMut(Told)) -> [i32; 3] {
    let (tell, told) = channel();
    fake.hang("cuStreamSynchronize", 1);
    ask(tell.clone());
    eventually("the first hangs", || fake.ask("fake_hung") == 1);
    let calls = || [copy, "cuLaunchKernel", "cuStreamSynchronize"].map(|call| fake.calls(call));
    let before = calls();
    (1..COPIES).for_each(|_| ask(tell.clone()));
    drop(tell);
    fake.release();
    let mut over = 0;
    for ended in told {
        ended.expect("it copies");
        over += 1;
    }
    assert_eq!(over, COPIES);
    let after = calls();
    [0, 1, 2].map(|at| after[at] - before[at])
}

fn device(cuda: &Arc<Cuda>, gpu: u32) -> (CudaDevice, Arena<GpuSlab>) {
    let device = CudaDevice::new(cuda.open(gpu).expect("it is there"), 128 << 20).expect("it works");
    let arena = Arena::new(&device, &CLASSES).expect("there is room");
    (device, arena)
}

fn filled(device: &CudaDevice, arena: &Arena<GpuSlab>) -> Vec<ReadFrame<GpuSlab>> {
    let frame = |at: usize| {
        let mut frame = arena.take(ClassId(0), BYTES).expect("a frame is free");
        device.write(&vec![at as u8; BYTES as usize], &mut frame).expect("it copies");
        frame.seal()
    };
    (0..COPIES).map(frame).collect()
}

fn are_as_filled(device: &CudaDevice, frames: Vec<WriteFrame<GpuSlab>>) {
    assert_eq!(frames.len(), COPIES);
    for (at, frame) in frames.into_iter().enumerate() {
        let mut bytes = vec![0; BYTES as usize];
        device.read(&frame.seal(), &mut bytes).expect("it copies");
        assert!(bytes.iter().all(|byte| *byte == at as u8), "frame {at}");
    }
}

#[test]
fn frames_side_by_side_go_to_a_gpu_and_back_in_one_copy() {
    let fake = Fake::new();
    let (device, there) = device(&fake.cuda().expect("it works"), 0);
    let [host, other] = [(); 2].map(|()| {
        let host = Arena::new(&HostDevice::new(64 << 20), &CLASSES).expect("there is room");
        host.register(device.gpu()).expect("it is pinned");
        host
    });
    let here: Vec<ReadFrame> = (0..COPIES)
        .map(|at| {
            let mut frame = host.take(ClassId(0), BYTES).expect("a frame is free");
            frame.bytes_mut().fill(at as u8);
            frame.seal()
        })
        .collect();
    let (keep, kept) = channel();
    let mut from = here.into_iter();
    let up = taken_together(&fake, "cuMemcpyHtoDAsync_v2", |tell| {
        let to = there.take(ClassId(0), BYTES).expect("a frame is free");
        let keep = keep.clone();
        device.upload(from.next().expect("there are as many"), to, move |ended| {
            let ended = ended.map(|frame| keep.send(frame.seal()).expect("it is kept"));
            tell.send(ended).expect("it is waited for");
        });
    });
    assert_eq!(up, [1, 0, 1], "copies, launches, waits on the way up");
    let mut from = kept.try_iter();
    let (back, came) = channel();
    let down = taken_together(&fake, "cuMemcpyDtoHAsync_v2", |tell| {
        let to = other.take(ClassId(0), BYTES).expect("a frame is free");
        let back = back.clone();
        device.download(from.next().expect("there are as many"), to, move |ended| {
            let ended = ended.map(|frame| back.send(frame).expect("it is kept"));
            tell.send(ended).expect("it is waited for");
        });
    });
    assert_eq!(down, [1, 0, 1], "copies, launches, waits on the way down");
    let came: Vec<WriteFrame> = came.try_iter().collect();
    assert_eq!(came.len(), COPIES);
    for (at, frame) in came.iter().enumerate() {
        assert!(frame.bytes().iter().all(|byte| *byte == at as u8), "frame {at}");
    }
}

/// Has frames of one GPU go to another, or to other frames of its own.
fn taken(from: u32, to: u32) -> [i32; 3] {
    let fake = Fake::new();
    let cuda = fake.cuda().expect("it works");
    let (source, theirs) = device(&cuda, from);
    let other = (from != to).then(|| device(&cuda, to));
    let target = other.as_ref().map_or(&source, |(device, _)| device);
    let own = Arena::new(target, &CLASSES).expect("there is room");
    assert_eq!(target.reaches(&theirs), Ok(true));
    let mut frames = filled(&source, &theirs).into_iter();
    let (keep, kept) = channel();
    let calls = taken_together(&fake, "cuMemcpyDtoDAsync_v2", |tell| {
        let frame = own.take(ClassId(0), BYTES).expect("a frame is free");
        let keep = keep.clone();
        target.take(frames.next().expect("there are as many"), frame, move |ended| {
            let ended = ended.map(|frame| keep.send(frame).expect("it is kept"));
            tell.send(ended).expect("it is waited for");
        });
    });
    are_as_filled(target, kept.try_iter().collect());
    calls
}

#[test]
fn frames_side_by_side_go_from_one_gpu_to_another_in_one_copy() {
    assert_eq!(taken(0, 1), [1, 0, 1], "copies, launches, waits");
}

#[test]
fn frames_side_by_side_go_from_place_to_place_within_a_gpu_in_one_copy() {
    assert_eq!(taken(0, 0), [1, 0, 1], "copies, launches, waits");
}

#[test]
fn what_waits_to_be_copied_has_a_limit_and_more_is_refused_at_once() {
    let fake = Fake::new();
    // 1 GiB in all.
    let (large, frames) = (64 << 20, 16);
    let device = CudaDevice::new(fake.gpu(), large).expect("it works");
    let arena = Arena::new(&device, &[SizeClass { frame_bytes: large, frames: 1 }]).expect("there is room");
    let frame = arena.take(ClassId(0), large).expect("it is free").seal();
    let (tell, told) = channel();
    // Nobody writes this memory: the first copy hangs, and no other comes about.
    let ask = || {
        let tell = tell.clone();
        device.download(frame.clone(), vec![0u8; large as usize], move |ended| {
            tell.send(ended.map(|_| ())).expect("it is waited for");
        });
    };
    fake.hang("cuMemcpyDtoHAsync_v2", 1);
    (0..frames).for_each(|_| ask());
    eventually("the first hangs", || fake.ask("fake_hung") == 1);
    assert!(told.try_recv().is_err(), "1 GiB may wait");
    ask();
    let refused = told.try_recv().expect("it is told at once").expect_err("it is refused");
    assert_eq!(refused.to_string(), "GPU 0 (Fake 0): 1073741824 bytes wait to be copied already");
    assert_eq!(device.loss(), None);
    fake.set("fake_die", 719);
    fake.release();
    for _ in 0..frames {
        let ended = told.recv().expect("each is told");
        assert!(matches!(ended, Err(DeviceError::Lost { .. })), "{ended:?}");
    }
}
