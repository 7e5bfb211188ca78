//! What NVIDIA's management library says of GPUs and what befalls them, by one that is made for tests.

mod fake;

use fake::{Fake, FakeNvml, eventually};
use kvhive_gpu::cuda::{CudaDevice, Nvml, NvmlError, Topology, Trouble, Watch};
use std::path::Path;
use std::sync::mpsc::channel;

const GPUS: [&str; 2] = ["0000:01:00.0", "0000:02:00.0"];
const XID: i32 = 8;
const ECC: i32 = 2;

#[test]
fn links_between_gpus_are_told_and_how_busy_each_is() {
    let (fake, nowhere) = (Fake::new(), Nvml::load(Path::new("/nowhere/libnvidia-ml.so.1")).err());
    assert!(matches!(nowhere, Some(NvmlError::NoLibrary { .. })), "{nowhere:?}");
    let other = Nvml::load(fake.path()).err().expect("that is another library");
    assert_eq!(other, NvmlError::NoSymbol { symbol: "nvmlInit_v2" });
    let made = FakeNvml::beside(&fake);
    let nvml = made.nvml().expect("it works");
    assert_eq!(nvml.driver_version().as_deref(), Ok("580.00.01"));
    assert_eq!(nvml.between(GPUS[0], GPUS[1]), Ok((true, Topology::Bridge)));
    made.set("fake_linked", 0);
    made.set("fake_level", 10);
    assert_eq!(nvml.between(GPUS[1], GPUS[0]), Ok((false, Topology::Switch)));
    let unknown = nvml.between("0000:03:00.0", GPUS[0]).expect_err("there is no such GPU");
    assert_eq!(unknown.to_string(), "nvmlDeviceGetHandleByPciBusId_v2: Not Found (6)");
    made.set("fake_busy", 62);
    assert_eq!(GPUS.map(|gpu| nvml.busy_percent(gpu)), [Ok(0), Ok(62)]);
    drop(nvml);
    assert_eq!(made.ask("fake_live"), 0);
}

#[test]
fn whichever_call_fails_is_named_and_nothing_is_left() {
    let calls = [
        "nvmlInit_v2",
        "nvmlSystemGetDriverVersion",
        "nvmlDeviceGetHandleByPciBusId_v2",
        "nvmlDeviceGetP2PStatus",
        "nvmlDeviceGetTopologyCommonAncestor",
        "nvmlDeviceGetUtilizationRates",
        "nvmlEventSetCreate",
        "nvmlDeviceRegisterEvents",
    ];
    for failing in calls {
        for nth in 1.. {
            let fake = Fake::new();
            let made = FakeNvml::beside(&fake);
            made.fail(failing, nth, 999);
            let everything = || -> Result<(), NvmlError> {
                let nvml = made.nvml()?;
                nvml.driver_version()?;
                nvml.between(GPUS[0], GPUS[1])?;
                nvml.busy_percent(GPUS[0])?;
                Watch::start(&nvml, GPUS[0], |_| ()).map(|_| ())
            };
            let Err(error) = everything() else {
                assert!(nth > 1, "{failing} is never made");
                break;
            };
            let expected = NvmlError::Failed { call: failing, code: 999, what: "Unknown Error".to_owned() };
            assert_eq!(error, expected);
            assert_eq!(made.ask("fake_live"), 0, "{failing} {nth}");
            assert_eq!(everything(), Ok(()), "{failing} {nth}: once is once");
        }
    }
}

#[test]
fn a_watch_ends_where_its_library_says_no_more_and_the_gpu_is_not_lost_by_that() {
    let fake = Fake::new();
    let made = FakeNvml::beside(&fake);
    let device = CudaDevice::new(fake.gpu(), 1 << 20).expect("it works");
    let (tell, told) = channel();
    made.fail("nvmlEventSetWait_v2", 1, 999);
    let watched = device.watch(&made.nvml().expect("it works"), move |trouble| {
        tell.send(trouble.clone()).expect("it is heard");
    });
    assert_eq!(watched, Ok(()));
    assert!(told.recv().is_err(), "nothing befell the GPU, and nobody listens any more");
    assert_eq!(device.loss(), None);
    drop(device);
    assert_eq!(made.ask("fake_live"), 0, "its set is freed");
}

#[test]
fn what_is_let_go_of_and_fails_has_nobody_to_be_told_to() {
    for call in ["nvmlEventSetFree", "nvmlShutdown"] {
        let fake = Fake::new();
        let made = FakeNvml::beside(&fake);
        made.fail(call, 1, 999);
        let nvml = made.nvml().expect("it works");
        drop(Watch::start(&nvml, GPUS[0], |_| ()).expect("it works"));
        drop(nvml);
        assert_eq!(made.ask("fake_live"), 1, "{call} was made, and failed");
    }
}

#[test]
fn what_befalls_a_gpu_is_heard_by_who_watches_that_one() {
    let fake = Fake::new();
    let made = FakeNvml::beside(&fake);
    let nvml = made.nvml().expect("it works");
    let (tell, told) = channel();
    let watch = Watch::start(&nvml, GPUS[1], move |trouble| tell.send(trouble).expect("it is heard"));
    let watch = watch.expect("it works");
    made.set("fake_busy", 62);
    eventually("it is told how busy that one is", || watch.busy_percent() == Some(62));
    for (kind, data, trouble) in
        [(XID, 31, Trouble::Xid(31)), (XID, 79, Trouble::Xid(79)), (ECC, 0, Trouble::Ecc)]
    {
        made.befall(1, kind, data);
        assert_eq!(told.recv(), Ok(trouble));
    }
    made.set("fake_gone", 1);
    assert_eq!(told.recv(), Ok(Trouble::Gone));
    assert!(told.recv().is_err(), "there is no more to be heard of it");
    assert_eq!(watch.busy_percent(), None);
    drop((watch, nvml));
    assert_eq!(made.ask("fake_live"), 0);
}

#[test]
fn a_gpu_is_lost_by_what_takes_all_it_holds_and_by_nothing_less() {
    let fake = Fake::new();
    let made = FakeNvml::beside(&fake);
    let device = CudaDevice::new(fake.gpu(), 1 << 20).expect("it works");
    let (tell, told) = channel();
    let watched = device.watch(&made.nvml().expect("it works"), move |trouble| {
        tell.send(trouble.clone()).expect("it is heard");
    });
    assert_eq!(watched, Ok(()));
    // A program's own mistake, and what befalls the other GPU.
    made.befall(0, XID, 43);
    assert_eq!(told.recv(), Ok(Trouble::Xid(43)));
    assert_eq!(device.loss(), None);
    made.befall(0, XID, 79);
    eventually("it is lost", || device.loss().is_some());
    assert_eq!(device.loss().expect("as above").to_string(), "GPU 0 (Fake 0) is lost: Xid 79");
    drop(device);
    assert!(fake.is_clean());
    assert_eq!(made.ask("fake_live"), 0);
}

#[test]
fn what_befalls_a_real_gpu_would_be_heard() {
    let gpus = fake::real_gpus();
    let Some(nvml) = (!gpus.is_empty()).then(Nvml::find) else { return };
    let nvml = nvml.expect("it comes with the driver");
    println!("driver {}", nvml.driver_version().expect("it says"));
    for gpu in &gpus {
        match Watch::start(&nvml, &gpu.info().pci, |_| ()) {
            Ok(_watch) => println!("{}: is watched", gpu.info()),
            // As some hypervisors have it.
            Err(error) => println!("{}: cannot be watched: {error}", gpu.info()),
        }
        println!("GPU {} is busy by {:?} %", gpu.info().ordinal, nvml.busy_percent(&gpu.info().pci));
        for other in gpus.iter().filter(|other| other.info().ordinal > gpu.info().ordinal) {
            let between = nvml.between(&gpu.info().pci, &other.info().pci).expect("both are there");
            println!("GPU {} to {}: {between:?}", gpu.info().ordinal, other.info().ordinal);
        }
    }
}
