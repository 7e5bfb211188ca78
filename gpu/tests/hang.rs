//! A GPU that hangs: whoever waits for it is told, nobody waits for ever, and what it may still use stays.

mod fake;

use fake::{Fake, eventually};
use kvhive_gpu::cuda::{CudaDevice, GpuSlab, Patience};
use kvhive_gpu::{Arena, ClassId, Device, DeviceError, HostDevice, ReadFrame, SizeClass, WriteFrame};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

const CLASSES: [SizeClass; 1] = [SizeClass { frame_bytes: 3 << 20, frames: 4 }];
const BYTES: u64 = 3 << 20;
const SHORT: Patience = Patience { copy: Duration::from_millis(20), stall: Duration::from_millis(60) };

struct Bench {
    fake: Fake,
    device: CudaDevice,
    there: Arena<GpuSlab>,
    here: Arena,
}

impl Bench {
    fn new(patience: Patience) -> Bench {
        let fake = Fake::new();
        let device = CudaDevice::with_patience(fake.gpu(), 64 << 20, patience).expect("it works");
        let there = Arena::new(&device, &CLASSES).expect("there is room");
        let here = Arena::new(&HostDevice::new(64 << 20), &CLASSES).expect("there is room");
        here.register(device.gpu()).expect("it is pinned");
        Bench { fake, device, there, here }
    }

    fn there(&self) -> WriteFrame<GpuSlab> {
        self.there.take(ClassId(0), BYTES).expect("a frame is free")
    }

    fn here(&self) -> WriteFrame {
        self.here.take(ClassId(0), BYTES).expect("a frame is free")
    }

    fn stored(&self, byte: u8) -> ReadFrame<GpuSlab> {
        let mut frame = self.there();
        self.device.write(&vec![byte; BYTES as usize], &mut frame).expect("it copies");
        frame.seal()
    }

    fn upload(&self) -> Receiver<Result<WriteFrame<GpuSlab>, DeviceError>> {
        let (tell, told) = channel();
        self.device.upload(self.here().seal(), self.there(), move |ended| {
            let _ = tell.send(ended);
        });
        told
    }

    fn download(&self, from: ReadFrame<GpuSlab>) -> Receiver<Result<WriteFrame, DeviceError>> {
        let (tell, told) = channel();
        self.device.download(from, self.here(), move |ended| {
            let _ = tell.send(ended);
        });
        told
    }

    /// Waits until so many calls hang.
    fn hung(&self, calls: i32) {
        eventually("a call hangs", || self.fake.ask("fake_hung") == calls);
    }

    fn used(&self) -> [u64; 2] {
        [self.there.used_bytes() / BYTES, self.here.used_bytes() / BYTES]
    }
}

#[test]
fn whichever_call_hangs_those_who_wait_are_told_and_what_it_uses_stays() {
    let calls = ["cuCtxPushCurrent_v2", "cuMemcpyHtoDAsync_v2", "cuStreamSynchronize"];
    for call in calls {
        let bench = Bench::new(SHORT);
        let stored = bench.stored(7);
        bench.fake.hang(call, 1);
        let first = bench.upload();
        bench.hung(1);
        // Behind what hangs.
        let (second, third) = (bench.upload(), bench.upload());
        assert_eq!(bench.used(), [4, 3]);
        eventually("it is seen to hang", || bench.device.loss().is_some());
        let lost = bench.device.loss().expect("it is lost");
        assert!(
            matches!(&lost, DeviceError::Lost { .. }) && lost.to_string().ends_with("the GPU hangs"),
            "{lost}"
        );
        for told in [first, second, third] {
            let ended = told.recv().expect("each is told").map(|_| ());
            assert_eq!(ended, Err(lost.clone()), "{call}");
        }
        assert_eq!(bench.used(), [2, 1], "{call}: what waited is free, and what hangs is not");
        // Whoever comes now hears it at once, in every direction.
        assert_eq!(bench.upload().recv().expect("it is told").map(|_| ()), Err(lost.clone()));
        assert_eq!(bench.download(stored).recv().expect("it is told").map(|_| ()), Err(lost.clone()));
        assert_eq!(bench.used(), [1, 1], "{call}");
        // Should it come back, nobody hears of it, and its memory is free again.
        bench.fake.release();
        eventually("its frames are free", || bench.used() == [0, 0]);
        assert_eq!(bench.device.loss(), Some(lost));
    }
}

#[test]
fn what_goes_with_a_frame_lasts_as_long_as_the_copy_that_may_write_it() {
    let bench = Bench::new(SHORT);
    bench.fake.hang("cuMemcpyHtoDAsync_v2", 1);
    let with = Arc::new(());
    let is_there = Arc::downgrade(&with);
    let (tell, told) = channel();
    bench.device.upload_with(bench.here().seal(), bench.there(), with, move |ended| {
        let _ = tell.send(ended.map(|_| ()));
    });
    bench.hung(1);
    eventually("it is seen to hang", || bench.device.loss().is_some());
    let lost = bench.device.loss().expect("it is lost");
    assert_eq!(told.recv().expect("it is told"), Err(lost));
    assert!(is_there.upgrade().is_some() && bench.used() == [1, 1], "the copy has both");
    bench.fake.release();
    eventually("it is let go of after the frame", || is_there.upgrade().is_none());
    assert_eq!(bench.used(), [0, 0]);
}

#[test]
fn a_gpu_that_hangs_holds_up_nobodys_end() {
    // It is not yet seen to hang when its device goes.
    let patience = Patience { stall: Duration::from_secs(3600), ..SHORT };
    for settles in [true, false] {
        let bench = Bench::new(patience);
        let stored = bench.stored(7);
        bench.fake.hang("cuStreamSynchronize", 1);
        let told = bench.download(stored);
        bench.hung(1);
        let Bench { fake, device, there, here } = bench;
        if settles {
            assert_eq!(device.loss(), None);
            device.settle();
            assert!(told.recv().expect("it is told").is_err() && device.loss().is_some());
        }
        let held = fake.ask("fake_live");
        drop((device, there, here));
        // The way up ends before that down is found to hang, and gives its stream back.
        let gone = i32::from(!settles);
        assert_eq!(fake.ask("fake_live"), held - gone, "nothing is taken from a GPU that may use it");
        assert_eq!(fake.ask("fake_hung"), 1);
        fake.release();
        eventually("its thread ends", || fake.ask("fake_hung") == 0);
    }
}

#[test]
fn a_gpu_that_is_slow_is_waited_for() {
    let bench = Bench::new(Patience { copy: Duration::from_secs(60), stall: Duration::from_secs(60) });
    let stored = bench.stored(9);
    bench.fake.hang("cuStreamSynchronize", 1);
    let told = bench.download(stored);
    bench.hung(1);
    assert_eq!(bench.device.loss(), None);
    let Bench { fake, device, there, here } = bench;
    std::thread::scope(|scope| {
        let settled = scope.spawn(|| device.settle());
        fake.release();
        settled.join().expect("it ends");
    });
    let back = told.recv().expect("it is told").expect("it came");
    assert!(back.bytes().iter().all(|byte| *byte == 9));
    assert_eq!(device.loss(), None);
    drop((back, there, here, device));
    assert!(fake.is_clean());
}
