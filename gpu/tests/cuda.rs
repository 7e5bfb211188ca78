//! CUDA's driver as it is called here, against one that is made for tests and, where there is a GPU, against the real one.
#![allow(unsafe_code, reason = "copies between addresses")]

mod fake;

use fake::Fake;
use kvhive_gpu::cuda::{
    Between, Copier, Cuda, CudaDevice, CudaError, Direction, Gpu, GpuMemory, GpuSlab, Part, Piece, Pinned,
    Timer,
};
use kvhive_gpu::{
    Arena, ArenaError, ClassId, Device, DeviceError, HostDevice, SizeClass, WriteFrame, contract,
};
use libloading::{Library, Symbol};
use std::ffi::{c_int, c_uint, c_void};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;

/// Has whole pieces go there, to another place there, and back: so large that copy engines do it. Returns the first bytes that came back,
/// and the seconds.
fn whole_there_and_back(gpu: &Arc<Gpu>, bytes: &[u8]) -> Result<(Vec<u8>, f64), CudaError> {
    let (mut copier, timer) = (Copier::new(gpu)?, Timer::new(gpu)?);
    let (mut there, mut other) = (GpuMemory::new(gpu, 32 << 20)?, GpuMemory::new(gpu, 32 << 20)?);
    let (mut here, mut back) = (Pinned::new(gpu, 2 << 20)?, Pinned::new(gpu, 2 << 20)?);
    here.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
    let part = |bytes| [Part { from: 0, to: 0, bytes }];
    let up = copier.timed(&timer, Between::ToGpu(&here, &mut there), &part(2 << 20), 3)?;
    let within = copier.timed(&timer, Between::Within(&there, &mut other), &part(32 << 20), 1)?;
    let down = copier.timed(&timer, Between::ToHost(&other, &mut back), &part(2 << 20), 1)?;
    Ok((back.bytes()[..bytes.len()].to_vec(), up + within + down))
}

/// Has pieces of many sizes, some of them not even, go to the GPU, to other places there, and back. Returns the bytes that came back.
fn pieces_there_and_back(gpu: &Arc<Gpu>, bytes: &[u8], sizes: &[usize]) -> Result<Vec<u8>, CudaError> {
    let (mut copier, timer) = (Copier::new(gpu)?, Timer::new(gpu)?);
    let (mut there, mut other) = (GpuMemory::new(gpu, bytes.len())?, GpuMemory::new(gpu, bytes.len())?);
    let (mut here, mut back) = (Pinned::new(gpu, bytes.len())?, Pinned::new(gpu, bytes.len())?);
    here.bytes_mut().copy_from_slice(bytes);
    // Each piece goes to where it lies when all are in the opposite order, and back.
    let (mut parts, mut from, mut sizes) = (Vec::new(), 0, sizes.iter().cycle());
    while from < bytes.len() {
        let size = (*sizes.next().expect("there are some")).min(bytes.len() - from);
        parts.push(Part { from, to: bytes.len() - from - size, bytes: size });
        from += size;
    }
    let turned: Vec<Part> = parts.iter().map(|part| Part { from: part.to, to: part.from, ..*part }).collect();
    copier.timed(&timer, Between::ToGpu(&here, &mut there), &parts, 2)?;
    copier.timed(&timer, Between::Within(&there, &mut other), &turned, 1)?;
    copier.timed(&timer, Between::ToHost(&other, &mut back), &parts, 1)?;
    here.bytes_mut().fill(0);
    let address = |bytes: &[u8]| bytes.as_ptr().expose_provenance() as u64;
    let turned: Vec<Piece> = turned
        .iter()
        .map(|part| Piece {
            from: address(&back.bytes()[part.from..]),
            to: there.address() + part.to as u64,
            bytes: part.bytes,
        })
        .collect();
    let whole = Piece { from: there.address(), to: address(here.bytes()), bytes: bytes.len() };
    // SAFETY: all of it is memory of this function, pinned or the GPU's, and used by nobody meanwhile.
    unsafe {
        copier.copy(Direction::ToGpu, &turned)?;
        copier.copy(Direction::ToHost, &[whole])?;
    }
    Ok(here.bytes().to_vec())
}

/// Bytes of which no two stretches are alike.
fn varied(count: u32) -> Vec<u8> {
    (0..count).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect()
}

#[test]
fn pieces_of_any_size_come_back_as_they_went() {
    let fake = Fake::new();
    let gpu = fake.gpu();
    let sizes: [&[usize]; 6] =
        [&[16], &[4096], &[1, 15, 16, 17, 31], &[4096, 100_000, 3], &[65_536 + 16], &[2 << 20]];
    for sizes in sizes {
        let bytes = varied(if sizes[0] < 4096 { 20_000 } else { 5 << 20 });
        assert!(pieces_there_and_back(&gpu, &bytes, sizes).expect("it copies") == bytes, "{sizes:?}");
    }
    // No piece is no trouble.
    let mut copier = Copier::new(&gpu).expect("it works");
    // SAFETY: no piece at all.
    unsafe { copier.copy(Direction::ToGpu, &[]) }.expect("nothing is soon done");
    drop((copier, gpu));
    assert!(fake.is_clean());
}

#[test]
fn what_is_no_driver_is_told_by_name() {
    let nowhere = Cuda::load(Path::new("/nowhere/libcuda.so.1")).err().expect("it is not there");
    assert!(matches!(&nowhere, CudaError::NoLibrary { .. }), "{nowhere}");
    assert!(nowhere.to_string().contains("/nowhere/libcuda.so.1"), "{nowhere}");
    let lacking = Fake::with(&["-DcuMemHostAlloc=cuSomethingElse"]);
    let lacks = lacking.cuda().err().expect("a function is not there");
    assert!(matches!(&lacks, CudaError::NoSymbol { symbol: "cuMemHostAlloc", .. }), "{lacks}");
    let old = Fake::new();
    old.set("fake_version", 11080);
    let error = old.cuda().err().expect("it is too old");
    assert_eq!(error.to_string(), "the driver speaks CUDA 11.8, and 12.4 is needed: install a newer driver");
}

#[test]
fn gpus_describe_themselves_and_others_are_not_there() {
    let fake = Fake::new();
    let cuda = fake.cuda().expect("it works");
    assert_eq!(cuda.version().to_string(), "13.0");
    let told: Vec<String> = cuda.gpus().expect("they answer").iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        ["GPU 0: Fake 0, 0.2 GiB, sm_90, at 0000:01:00.0", "GPU 1: Fake 1, 0.2 GiB, sm_90, at 0000:02:00.0"]
    );
    assert_eq!(cuda.open(2).err(), Some(CudaError::NoSuchGpu { ordinal: 2, count: 2 }));
    fake.set("fake_count", 0);
    assert_eq!(cuda.gpus(), Ok(Vec::new()), "a driver without a GPU is no error");
    assert_eq!(cuda.open(0).err(), Some(CudaError::NoSuchGpu { ordinal: 0, count: 0 }));
}

#[test]
fn bytes_come_back_as_they_went() {
    let fake = Fake::new();
    let gpu = fake.gpu();
    let bytes = varied(100_000);
    let (back, seconds) = whole_there_and_back(&gpu, &bytes).expect("it copies");
    assert!(back == bytes && (seconds - 0.006).abs() < 1e-9);
    // Pinned memory for a while is kept for who comes next, and goes with its GPU.
    let held = fake.ask("fake_live");
    drop(Pinned::for_a_while(&gpu, 5000).expect("there is room"));
    assert_eq!(fake.ask("fake_live"), held + 1);
    assert!(Pinned::for_a_while(&gpu, 4000).expect("it is kept").bytes().len() >= 5000);
    assert_eq!(fake.ask("fake_live"), held + 1);
    drop(gpu);
    assert!(fake.is_clean());
}

#[test]
#[should_panic(expected = "2 bytes at 4095 lie outside of 4096")]
fn parts_outside_of_their_memory_are_a_mistake() {
    let fake = Fake::new();
    let gpu = fake.gpu();
    let (mut copier, timer) = (Copier::new(&gpu).expect("it works"), Timer::new(&gpu).expect("it works"));
    let here = Pinned::new(&gpu, 4096).expect("there is room");
    let mut there = GpuMemory::new(&gpu, 4096).expect("there is room");
    let part = Part { from: 0, to: 4095, bytes: 2 };
    let _ = copier.timed(&timer, Between::ToGpu(&here, &mut there), &[part], 1);
}

#[test]
fn memory_that_is_not_there_is_refused_and_nothing_is_lost() {
    let fake = Fake::new();
    let gpu = fake.gpu();
    let error = GpuMemory::new(&gpu, 257 << 20).err().expect("it has 256 MiB");
    assert!(error.is_out_of_memory(), "{error}");
    assert_eq!(error.to_string(), "cuMemAlloc_v2: CUDA_ERROR_OUT_OF_MEMORY (2): out of memory");
    assert!(Pinned::for_a_while(&gpu, 257 << 20).is_err());
    let nothing = GpuMemory::new(&gpu, 0).expect("nothing is always there");
    assert!(nothing.is_empty() && Pinned::new(&gpu, 0).expect("as above").bytes().is_empty());
    drop((nothing, gpu));
    assert!(fake.is_clean());
}

#[test]
fn whichever_call_fails_is_named_and_nothing_is_left_behind() {
    let calls = [
        "cuDriverGetVersion",
        "cuInit",
        "cuDeviceGetCount",
        "cuDeviceGet",
        "cuDeviceGetName",
        "cuDeviceGetPCIBusId",
        "cuDeviceTotalMem_v2",
        "cuDeviceGetAttribute",
        "cuDevicePrimaryCtxRetain",
        "cuCtxPushCurrent_v2",
        "cuMemGetInfo_v2",
        "cuMemAlloc_v2",
        "cuMemHostAlloc",
        "cuStreamCreate",
        "cuModuleLoadData",
        "cuModuleGetFunction",
        "cuLaunchKernel",
        "cuMemcpyHtoDAsync_v2",
        "cuMemcpyDtoHAsync_v2",
        "cuMemcpyDtoDAsync_v2",
        "cuStreamSynchronize",
        "cuEventCreate",
        "cuEventRecord",
        "cuEventElapsedTime",
    ];
    let everything = |fake: &Fake| -> Result<(), CudaError> {
        let gpu = fake.cuda()?.open(0)?;
        assert!(gpu.free_bytes()? > 0);
        whole_there_and_back(&gpu, &[7; 999])?;
        pieces_there_and_back(&gpu, &[7; 999], &[100]).map(|_| ())
    };
    fake::each_call_fails_once(&calls, everything, |error| Some(error));
}

#[test]
fn a_test_of_a_real_gpu_is_skipped_where_there_is_none_and_fails_where_there_is_to_be_one() {
    let nowhere = || CudaError::NoLibrary { reason: "not found".to_owned() };
    assert_eq!(fake::seen(Ok(vec![()]), true).len(), 1);
    for found in [Ok(Vec::<i32>::new()), Err(nowhere())] {
        assert!(fake::seen(found.clone(), false).is_empty());
        let fails = std::panic::catch_unwind(|| fake::seen(found, true));
        assert!(fails.is_err(), "it would pass with nothing done");
    }
}

#[test]
fn a_real_gpu_gives_back_what_it_got() {
    for gpu in fake::real_gpus() {
        let bytes = varied(9 << 20);
        let (back, seconds) = whole_there_and_back(&gpu, &bytes[..2 << 20]).expect("it copies");
        assert!(back == bytes[..2 << 20] && seconds > 0.0, "{}", gpu.info());
        for sizes in [&[4096][..], &[28 << 10], &[1, 16, 4095, 70_000], &[1 << 20], &[2 << 20]] {
            assert!(
                pieces_there_and_back(&gpu, &bytes, sizes).expect("it copies") == bytes,
                "{} {sizes:?}",
                gpu.info()
            );
        }
        let error = GpuMemory::new(&gpu, usize::MAX >> 1).err().expect("no GPU has so much");
        assert!(error.is_out_of_memory(), "{error}");
    }
}

const CLASSES: [SizeClass; 2] =
    [SizeClass { frame_bytes: 4096, frames: 4 }, SizeClass { frame_bytes: 3 << 20, frames: 2 }];

fn device(fake: &Fake) -> Arc<CudaDevice> {
    Arc::new(CudaDevice::new(fake.gpu(), 64 << 20).expect("it works"))
}

/// Has bytes go up and down again by messages, from memory that is pinned to memory that is and to some that is not.
fn by_messages(gpu: &Arc<Gpu>) -> Result<(), DeviceError> {
    let device = CudaDevice::new(gpu.clone(), 64 << 20)?;
    let unwrapped = |error| match error {
        ArenaError::Device(error) => error,
        other => unreachable!("{other}"),
    };
    let there = Arena::new(&device, &CLASSES).map_err(unwrapped)?;
    let host = Arena::new(&HostDevice::new(64 << 20), &CLASSES).map_err(unwrapped)?;
    let failed = |error: CudaError| DeviceError::Failed { device: String::new(), reason: error.to_string() };
    host.register(gpu).map_err(failed)?;
    host.register(gpu).expect("it is there already");
    for (class, bytes) in [(ClassId(0), 4001), (ClassId(1), 3 << 20)] {
        let bytes = varied(bytes);
        let mut here = host.take(class, bytes.len() as u64).expect("a frame is free");
        here.bytes_mut().copy_from_slice(&bytes);
        let (tell, told) = channel();
        let to = there.take(class, bytes.len() as u64).expect("a frame is free");
        device.upload(here.seal(), to, move |ended| tell.send(ended).expect("it is waited for"));
        let up = told.recv().expect("it ends")?.seal();
        assert_eq!(host.used_bytes(), 0, "the source is let go of first");
        let back: [Box<dyn AsMut<[u8]> + Send>; 2] = [
            Box::new(vec![0u8; bytes.len()]),
            Box::new(host.take(class, bytes.len() as u64).expect("a frame is free")),
        ];
        for back in back {
            let (tell, told) = channel();
            device
                .download(up.clone(), Erased(back), move |ended| tell.send(ended).expect("it is waited for"));
            let mut back = told.recv().expect("it ends")?;
            assert!(back.as_mut() == bytes);
        }
        assert_eq!(up.readers(), 1);
    }
    Ok(())
}

/// Any memory of the host's.
struct Erased(Box<dyn AsMut<[u8]> + Send>);

impl AsMut<[u8]> for Erased {
    fn as_mut(&mut self) -> &mut [u8] {
        (*self.0).as_mut()
    }
}

#[test]
fn a_gpu_keeps_the_contract_of_every_device() {
    for mappable in [1, 0] {
        let fake = Fake::new();
        let gpu = fake.gpu();
        fake.set("fake_mappable", mappable);
        contract::check(&|bytes| Arc::new(CudaDevice::new(gpu.clone(), bytes).expect("it works")));
        drop(gpu);
        assert!(fake.is_clean());
    }
}

#[test]
fn bytes_go_by_messages_and_come_back_as_they_went() {
    let fake = Fake::new();
    let gpu = fake.gpu();
    by_messages(&gpu).expect("it copies");
    drop(gpu);
    assert!(fake.is_clean());
}

#[test]
fn memory_of_a_gpu_can_be_lent_to_another_process_where_the_gpu_can() {
    let fake = Fake::new();
    let device = device(&fake);
    let slab = device.open_slab(5 << 20).expect("there is room");
    let file = std::fs::File::from(slab.export().expect("it can").expect("it has virtual memory"));
    assert_eq!(file.metadata().expect("it is open").len(), 6 << 20, "whole units are taken");
    fake.set("fake_mappable", 0);
    let plain = device.open_slab(5 << 20).expect("there is room");
    assert!(plain.export().expect("nothing is asked of the driver").is_none());
    drop((slab, plain, device));
    assert!(fake.is_clean());
}

#[test]
fn frames_of_another_gpu_are_refused() {
    let fake = Fake::new();
    let (one, other) = (device(&fake), device(&fake));
    let other_gpu = fake.cuda().and_then(|cuda| cuda.open(1)).expect("it works");
    let second = CudaDevice::new(other_gpu, 64 << 20).expect("it works");
    let take = |device: &CudaDevice| -> WriteFrame<GpuSlab> {
        Arena::new(device, &CLASSES).expect("there is room").take(ClassId(0), 5).expect("a frame is free")
    };
    let mut frame = take(&second);
    let refused = one.write(b"bytes", &mut frame).expect_err("it is not its own");
    assert_eq!(refused.to_string(), "GPU 0 (Fake 0): a frame is another GPU's");
    assert!(other.copy(&take(&second).seal(), &mut take(&other)).is_err());
    let (tell, told) = channel();
    one.upload(*b"bytes", frame, move |ended| tell.send(ended.map(|_| ())).expect("it is waited for"));
    assert!(told.recv().expect("it ends").is_err());
}

#[test]
fn whichever_call_of_a_device_fails_is_told_and_nothing_is_left_behind() {
    let calls = [
        "cuCtxPushCurrent_v2",
        "cuMemGetAllocationGranularity",
        "cuMemCreate",
        "cuMemAddressReserve",
        "cuMemMap",
        "cuMemSetAccess",
        "cuDeviceGetAttribute",
        "cuMemHostRegister_v2",
        "cuMemHostAlloc",
        "cuMemAlloc_v2",
        "cuStreamCreate",
        "cuStreamSynchronize",
        "cuLaunchKernel",
        "cuMemcpyHtoDAsync_v2",
        "cuMemcpyDtoHAsync_v2",
    ];
    for call in calls {
        for nth in 1.. {
            let fake = Fake::new();
            let gpu = fake.gpu();
            fake.fail(call, nth, 700);
            let Err(error) = by_messages(&gpu) else {
                match fake::unheard(&fake, call, nth) {
                    true => continue,
                    false => break,
                }
            };
            assert!(error.to_string().contains(call), "{call} {nth}: {error}");
            by_messages(&gpu).expect("once is once");
            drop(gpu);
            assert!(fake.is_clean(), "{call} {nth}: something is left");
        }
    }
}

#[test]
fn what_is_let_go_of_and_fails_has_nobody_to_be_told_to() {
    let calls = [
        "cuCtxPopCurrent_v2",
        "cuDevicePrimaryCtxRelease_v2",
        "cuMemFree_v2",
        "cuMemFreeHost",
        "cuMemHostUnregister",
        "cuMemUnmap",
        "cuMemAddressFree",
        "cuMemRelease",
        "cuStreamDestroy_v2",
        "cuEventDestroy_v2",
        "cuModuleUnload",
    ];
    for call in calls {
        let fake = Fake::new();
        fake.fail(call, 1, 700);
        let gpu = fake.gpu();
        let (back, _) = whole_there_and_back(&gpu, &[7; 999]).expect("it copies");
        assert!(back == [7; 999], "{call}");
        by_messages(&gpu).expect("it copies");
        drop(gpu);
        assert!(fake.calls(call) > 0, "{call} is never made");
        assert!(!fake.is_clean(), "{call} failed, and what it is for is left");
    }
}

#[test]
fn host_memory_that_a_gpu_does_not_find_once_registered_is_copied_by_way_of_some_that_it_does() {
    let fake = Fake::new();
    let gpu = fake.gpu();
    fake.set("fake_mappable", 0);
    let device = CudaDevice::new(gpu.clone(), 64 << 20).expect("it works");
    let there = Arena::new(&device, &CLASSES).expect("there is room");
    let host = Arena::new(&HostDevice::new(64 << 20), &CLASSES).expect("there is room");
    let error = host.register(&gpu).expect_err("it is asked first");
    let said = "cuMemHostRegister_v2: CUDA_ERROR_NOT_SUPPORTED (801): this GPU does not find registered memory by the host's addresses";
    assert_eq!((error.to_string().as_str(), fake.calls("cuMemHostRegister_v2")), (said, 0));
    let bytes = varied(4001);
    let mut here = host.take(ClassId(0), 4001).expect("a frame is free");
    here.bytes_mut().copy_from_slice(&bytes);
    let to = there.take(ClassId(0), 4001).expect("a frame is free");
    let (tell, told) = channel();
    device.upload(here.seal(), to, move |ended| tell.send(ended).expect("it is waited for"));
    let up = told.recv().expect("it ends").expect("it copies").seal();
    let mut back = vec![0; 4001];
    device.read(&up, &mut back).expect("it copies");
    assert!(back == bytes);
}

#[test]
fn host_memory_that_a_cpu_would_read_slowly_is_refused_by_the_driver_of_these_tests() {
    // Write-combined, and mapped besides, as no call here asks for it.
    let fake = Fake::new();
    let _gpu = fake.gpu();
    let mut start = std::ptr::null_mut::<c_void>();
    // SAFETY: the fake's own functions, with the driver's signatures; what they write is looked at by nobody.
    let said = unsafe {
        let library = Library::new(fake.path()).expect("it is loaded");
        let alloc: Symbol<unsafe extern "C" fn(*mut *mut c_void, usize, c_uint) -> c_int> =
            library.get(b"cuMemHostAlloc\0").expect("it is there");
        let stream: Symbol<unsafe extern "C" fn(*mut *mut c_void, c_uint) -> c_int> =
            library.get(b"cuStreamCreate\0").expect("it is there");
        let push: Symbol<unsafe extern "C" fn(*mut c_void) -> c_int> =
            library.get(b"cuCtxPushCurrent_v2\0").expect("it is there");
        assert_eq!(push(std::ptr::without_provenance_mut(1)), 0);
        [alloc(&raw mut start, 4096, 5), alloc(&raw mut start, 4096, 3), stream(&raw mut start, 0)]
    };
    assert_eq!(said, [1; 3]);
}

#[test]
fn a_callback_that_panics_ends_its_lane_and_whoever_copies_is_told() {
    let fake = Fake::new();
    let device = device(&fake);
    let arena = Arena::new(&*device, &CLASSES).expect("there is room");
    let frame = || arena.take(ClassId(0), 5).expect("a frame is free");
    device.upload(*b"bytes", frame(), |_| panic!("as none should"));
    fake::eventually("its lane has ended", || device.loss().is_some());
    let error = device.write(b"bytes", &mut frame()).expect_err("nobody copies any more");
    assert_eq!(error.to_string(), "GPU 0 (Fake 0) is lost: its thread has ended; why is in the log");
    assert_eq!(device.loss(), Some(error));
    assert_eq!(arena.used_bytes(), 0);
}

#[test]
fn digests_are_taken_for_one_at_a_time() {
    let fake = Fake::new();
    let device = device(&fake);
    let arena = Arena::new(&*device, &CLASSES).expect("there is room");
    let frame = arena.take(ClassId(0), 5).expect("a frame is free");
    fake.hang("cuStreamSynchronize", 1);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| device.digests(&[&frame]));
        fake::eventually("they are under way", || fake.ask("fake_hung") == 1);
        let error = device.digests(&[&frame]).expect_err("nobody waits behind a GPU that may hang");
        assert_eq!(error.to_string(), "GPU 0 (Fake 0): other digests are being taken");
        fake.release();
        assert_eq!(first.join().expect("it ends").map(|digests| digests.len()), Ok(1));
    });
    assert_eq!(device.digests(&[&frame]).map(|digests| digests.len()), Ok(1), "the next has its turn");
}

#[test]
fn a_gpu_that_dies_is_lost_and_says_so_from_then_on() {
    let fake = Fake::new();
    let device = device(&fake);
    let arena = Arena::new(&*device, &CLASSES).expect("there is room");
    let mut frame = arena.take(ClassId(0), 5).expect("a frame is free");
    device.write(b"bytes", &mut frame).expect("it works");
    let frame = frame.seal();
    assert_eq!(device.loss(), None);
    fake.fail("cuStreamSynchronize", 1, 1);
    let error = device.read(&frame, &mut [0; 5]).expect_err("it fails once");
    assert!(matches!(&error, DeviceError::Failed { .. }), "{error}");
    device.read(&frame, &mut [0; 5]).expect("once is once");
    fake.set("fake_die", 700);
    let error = device.read(&frame, &mut [0; 5]).expect_err("it is dead");
    assert!(matches!(&error, DeviceError::Lost { .. }), "{error}");
    assert!(error.to_string().contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{error}");
    // A GPU that is dead does not come back, whatever its driver says.
    fake.set("fake_die", 0);
    let (tell, told) = channel();
    let back: Vec<u8> = vec![0; 5];
    device.download(frame, back, move |ended| tell.send(ended.map(|_| ())).expect("it is waited for"));
    assert_eq!(told.recv().expect("it ends"), Err(error.clone()));
    assert_eq!(device.loss(), Some(error));
    assert_eq!(arena.used_bytes(), 0, "its frames are given back all the same");
}

#[test]
fn a_real_gpu_keeps_the_contract_too() {
    for gpu in fake::real_gpus() {
        let info = gpu.info().clone();
        contract::check(&|bytes| Arc::new(CudaDevice::new(gpu.clone(), bytes).expect("it works")));
        by_messages(&gpu).expect("it copies");
        let slab = CudaDevice::new(gpu, 1 << 20).and_then(|device| device.open_slab(1 << 20));
        println!(
            "{info}: lends its memory: {}",
            slab.expect("there is room").export().is_ok_and(|file| file.is_some())
        );
    }
}
