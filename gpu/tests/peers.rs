//! Copies from one GPU of a process to another: by the second itself where it reaches the first's memory, and refused where not.
#![allow(unsafe_code, reason = "copies between addresses")]

mod fake;

use fake::Fake;
use kvhive_gpu::cuda::{
    Copier, CudaDevice, CudaError, Direction, GpuMemory, GpuSlab, Imported, Patience, Piece,
};
use kvhive_gpu::{Arena, ClassId, Device, DeviceError, SizeClass, WriteFrame, contract};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

/// Alone, the first is copied by a kernel, the second by a copy engine.
const CLASSES: [SizeClass; 2] =
    [SizeClass { frame_bytes: 4096, frames: 80 }, SizeClass { frame_bytes: 3 << 20, frames: 8 }];

struct End {
    device: CudaDevice,
    arena: Arena<GpuSlab>,
}

impl End {
    fn new(device: CudaDevice) -> End {
        End { arena: Arena::new(&device, &CLASSES).expect("there is room"), device }
    }

    fn empty(&self, class: u8, bytes: usize) -> WriteFrame<GpuSlab> {
        self.arena.take(ClassId(class), bytes as u64).expect("a frame is free")
    }

    fn read(&self, frame: WriteFrame<GpuSlab>) -> Vec<u8> {
        let mut bytes = vec![0; frame.len()];
        self.device.read(&frame.seal(), &mut bytes).expect("it copies");
        bytes
    }
}

/// Two GPUs of one driver.
fn two(fake: &Fake, patience: Patience) -> [End; 2] {
    let cuda = fake.cuda().expect("it works");
    [0, 1].map(|ordinal| {
        let gpu = cuda.open(ordinal).expect("it is there");
        End::new(CudaDevice::with_patience(gpu, 64 << 20, patience).expect("it works"))
    })
}

fn varied(bytes: usize, seed: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at ^ (at >> 8) ^ (at >> 16)).wrapping_add(seed) as u8).collect()
}

/// Has frames of both classes go from one GPU to another, all at once, and compares their bytes.
fn goes_over(from: &End, to: &End) {
    let lengths: Vec<(u8, usize)> =
        (0..40).map(|at| (0, 4096 - at * 7)).chain([(1, 3 << 20), (1, (3 << 20) - 1), (1, 4097)]).collect();
    let (tell, told) = channel();
    for (seed, (class, bytes)) in lengths.iter().enumerate() {
        let mut frame = from.empty(*class, *bytes);
        from.device.write(&varied(*bytes, seed), &mut frame).expect("it copies");
        let tell = tell.clone();
        to.device.take(frame.seal(), to.empty(*class, *bytes), move |ended| {
            tell.send((seed, ended)).expect("it is waited for");
        });
    }
    drop(tell);
    for (seed, ended) in told {
        let bytes = to.read(ended.expect("it is reached"));
        assert!(bytes == varied(lengths[seed].1, seed), "frame {seed}");
    }
    assert_eq!((from.arena.used_bytes(), to.arena.used_bytes()), (0, 0), "the source is let go of");
}

fn refusal(from: &End, to: &End, lengths: [usize; 2]) -> DeviceError {
    let (tell, told) = channel();
    to.device.take(from.empty(1, lengths[0]).seal(), to.empty(1, lengths[1]), move |ended| {
        tell.send(ended.map(|_| ())).expect("it is waited for");
    });
    told.recv().expect("it ends").expect_err("it is refused")
}

#[test]
fn frames_go_from_one_gpu_to_another_and_within_one() {
    let fake = Fake::new();
    let [one, other] = two(&fake, Patience::default());
    goes_over(&one, &other);
    goes_over(&other, &other);
    assert_eq!(one.device.reaches(&other.arena), Ok(true));
    assert_eq!(one.device.reaches(&other.arena), Ok(true), "once more");
    goes_over(&other, &one);
    let (tell, told) = channel();
    one.device.take(one.empty(1, 9).seal(), other.empty(1, 9), move |ended| {
        tell.send(ended.map(|_| ())).expect("it is waited for");
    });
    let refused = told.recv().expect("it ends").expect_err("a GPU writes to its own memory alone");
    assert_eq!(refused.to_string(), "GPU 0 (Fake 0): a frame is another GPU's");
    assert_eq!(refusal(&one, &other, [9, 8]), DeviceError::Length { from: 9, to: 8 });
    drop((one, other));
    assert!(fake.is_clean());
}

#[test]
fn frames_go_between_two_devices_of_one_gpu() {
    let fake = Fake::new();
    let cuda = fake.cuda().expect("it works");
    let end = || End::new(CudaDevice::new(cuda.open(0).expect("it works"), 64 << 20).expect("it works"));
    let (one, other) = (end(), end());
    goes_over(&one, &other);
    goes_over(&other, &one);
    drop((one, other, cuda));
    assert!(fake.is_clean());
}

#[test]
fn a_gpu_that_reaches_another_keeps_the_contract_beside_it() {
    let fake = Fake::new();
    let [one, other] = two(&fake, Patience::default());
    assert_eq!(other.device.reaches(&one.arena), Ok(true));
    let gpu = one.device.gpu().clone();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            contract::check(&|bytes| Arc::new(CudaDevice::new(gpu.clone(), bytes).expect("it works")));
        });
        (0..5).for_each(|_| goes_over(&one, &other));
    });
    drop((one, other, gpu));
    assert!(fake.is_clean());
}

#[test]
fn gpus_that_do_not_reach_each_other_say_so() {
    let fake = Fake::new();
    fake.set("fake_peers", 0);
    let [one, other] = two(&fake, Patience::default());
    assert_eq!(other.device.reaches(&one.arena), Ok(false));
    let refused = "GPU 1 (Fake 1): a frame is of a GPU that it does not reach";
    assert_eq!(refusal(&one, &other, [9, 9]).to_string(), refused);
    // What was found of a slab stands.
    fake.set("fake_peers", 1);
    assert_eq!(other.device.reaches(&one.arena), Ok(false));
    fake.set("fake_mappable", 0);
    let plain = End::new(CudaDevice::new(one.device.gpu().clone(), 64 << 20).expect("it works"));
    assert_eq!(other.device.reaches(&plain.arena), Ok(false), "it has no virtual memory");
    drop((one, other, plain));
    assert!(fake.is_clean());
}

#[test]
fn whichever_call_of_a_peers_copy_fails_is_told_and_nothing_is_left_behind() {
    let calls = [
        "cuDeviceGetCount",
        "cuDeviceGet",
        "cuDeviceCanAccessPeer",
        "cuCtxPushCurrent_v2",
        "cuMemSetAccess",
        "cuStreamCreate",
        "cuModuleGetFunction",
        "cuMemHostAlloc",
        "cuMemAlloc_v2",
        "cuMemcpyHtoDAsync_v2",
        "cuLaunchKernel",
        "cuMemcpyDtoDAsync_v2",
        "cuStreamSynchronize",
    ];
    let everything = |one: &End, other: &End| -> Result<(), DeviceError> {
        assert!(other.device.reaches(&one.arena)?);
        // The first by a kernel, the second by a copy engine.
        for (class, bytes) in [(0, 4096), (1, 3 << 20)] {
            let (tell, told) = channel();
            other.device.take(one.empty(class, bytes).seal(), other.empty(class, bytes), move |ended| {
                tell.send(ended.map(|_| ())).expect("it is waited for");
            });
            told.recv().expect("it ends")?;
        }
        Ok(())
    };
    for call in calls {
        let fake = Fake::new();
        let [one, other] = two(&fake, Patience::default());
        let before = fake.calls(call);
        everything(&one, &other).expect("nothing fails");
        let made = fake.calls(call) - before;
        assert!(made > 0, "{call} is never made");
        drop((one, other));
        for nth in 1..=made {
            let fake = Fake::new();
            let [one, other] = two(&fake, Patience::default());
            fake.fail(call, nth, 700);
            match everything(&one, &other) {
                Err(failed) => assert!(failed.to_string().contains(call), "{call} {nth}: {failed}"),
                Ok(()) => assert_eq!(call, fake::ENTERS, "{nth}: nobody hears of it"),
            }
            assert_eq!(other.device.reaches(&one.arena), Ok(true), "once is once");
            goes_over(&one, &other);
            drop((one, other));
            assert!(fake.is_clean() || call == fake::ENTERS, "{call} {nth}");
        }
    }
}

#[test]
fn memory_that_a_gpu_was_not_let_reach_is_out_of_its_reach_for_engines_and_kernels() {
    // What the driver of these tests says of it, so that who forgets to ask finds out here.
    for bytes in [4096, 3 << 20] {
        let fake = Fake::new();
        let [one, other] = two(&fake, Patience::default());
        let file = one.arena.export().expect("it can be lent").expect("it has virtual memory");
        let theirs = Imported::new(one.device.gpu(), file.as_fd(), 3 << 20).expect("it is lent");
        let own = GpuMemory::new(other.device.gpu(), bytes).expect("there is room");
        let mut copier = Copier::new(other.device.gpu()).expect("it works");
        let piece = Piece { from: theirs.address(), to: own.address(), bytes };
        // SAFETY: the memory is this test's own, and the fake touches none of it.
        let error = unsafe { copier.copy(Direction::FromPeer, &[piece]) }.expect_err("it may not");
        let by = if bytes == 4096 { "cuStreamSynchronize" } else { "cuMemcpyDtoDAsync_v2" };
        assert!(matches!(&error, CudaError::Failed { call, .. } if *call == by), "{error}");
    }
}

#[test]
fn a_peers_copy_that_hangs_is_given_up() {
    let fake = Fake::new();
    let patience = Patience { copy: Duration::from_millis(20), stall: Duration::from_secs(3600) };
    let [one, other] = two(&fake, patience);
    assert_eq!(other.device.reaches(&one.arena), Ok(true));
    let (tell, told) = channel();
    fake.hang("cuMemcpyDtoDAsync_v2", 1);
    other.device.take(one.empty(1, 3 << 20).seal(), other.empty(1, 3 << 20), move |ended| {
        tell.send(ended.map(|_| ())).expect("it is waited for");
    });
    other.device.settle();
    assert!(matches!(told.recv().expect("it is told"), Err(DeviceError::Lost { .. })));
    assert_eq!(one.device.loss(), None, "it is the other that hangs");
    fake.release();
}

#[test]
fn real_gpus_reach_each_other_where_their_driver_says_so() {
    let gpus = fake::real_gpus();
    let [one, other, ..] = &gpus[..] else { return println!("SKIPPED: there are no two GPUs") };
    let [one, other] =
        [one, other].map(|gpu| End::new(CudaDevice::new(gpu.clone(), 64 << 20).expect("it works")));
    match other.device.reaches(&one.arena).expect("it says") {
        true => goes_over(&one, &other),
        false => println!("SKIPPED: they do not reach each other"),
    }
}
