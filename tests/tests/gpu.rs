//! The command on a GPU that is made for tests, by a driver of their own: `kvhive bench gpu` has every row and draws them, whatever they say
//! of speed; and a cluster whose node has a GPU's memory as its device tier, host memory and a disk under it, gives back what it was given.

#[path = "../../gpu/tests/fake/mod.rs"]
mod fake;
#[path = "../../gpu/nccl-rs/tests/fake/mod.rs"]
mod fake_nccl;

use fake::{Fake, FakeNvml};
use fake_nccl::FakeNccl;
use kvhive_gpu::Device;
use kvhive_gpu::cuda::CudaDevice;
use kvhive_gpu::worker::{self, Answer, Heard, Setup, Worker};
use kvhive_tests::files::{list, word};
use kvhive_tests::{Cluster, kvhive, run_with};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

fn bench(folder: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(kvhive());
    command.env("LD_LIBRARY_PATH", folder).args(["bench", "gpu", "--json", "--runs", "1"]).args(words);
    command.output().expect("it runs")
}

#[test]
fn the_bench_of_a_gpu_has_all_rows_and_draws_them() {
    let (fake, folder) = (Fake::new(), tempfile::tempdir().expect("room"));
    let plot = folder.path().join("roofline.svg").display().to_string();
    let output = bench(fake.folder(), &["--bytes", "2MiB", "--plot", &plot]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("a report");
    let cases: Vec<&str> = list(&report["rows"]).iter().map(|row| word(&row["case"])).collect();
    let mut expected = Vec::new();
    for way in ["host-to-gpu", "gpu-to-host", "gpu-to-gpu"] {
        for size in ["4KiB", "16KiB", "28KiB", "64KiB", "256KiB", "1MiB", "2MiB"] {
            expected.push(format!("{way}-{size}"));
        }
    }
    for pages in ["2KiB", "8KiB", "32KiB", "128KiB", "512KiB", "32KiB-hnd"] {
        for codec in ["raw", "fp8", "int8", "int4"] {
            expected.extend(["gather", "scatter"].map(|way| format!("{way}-{codec}-{pages}")));
        }
    }
    expected.extend(["64KiB", "512KiB", "2MiB"].map(|size| format!("digest-{size}")));
    let of_nodes = ["lane-up-2MiB", "lane-down-2MiB", "stage-store-2MiB", "stage-fetch-2MiB"];
    // From the other GPU, as there are two.
    expected.extend(of_nodes.into_iter().chain(["peer-64KiB", "peer-2MiB"]).map(str::to_owned));
    assert_eq!(cases, expected);
    let bar = |case: &str| {
        let row = list(&report["rows"]).iter().find(|row| row["case"] == case);
        row.unwrap_or_else(|| panic!("{case} in {report:#}"))["bar"]["at_least"].as_f64()
    };
    let bars =
        ["gpu-to-gpu-64KiB", "host-to-gpu-4KiB", "gpu-to-host-1MiB", "gather-int8-2KiB", "digest-2MiB"];
    assert_eq!(bars.map(bar), [0.9, 0.6, 0.9, 0.8, 0.8].map(Some));
    assert_eq!(bar("gather-int4-2KiB"), None);
    for row in list(&report["rows"]) {
        assert!(row["ours"].as_f64() > Some(0.0) && row["baseline"].as_f64() > Some(0.0), "{row}");
    }
    let svg = std::fs::read_to_string(&plot).expect("it was drawn");
    assert_eq!(svg.matches("<circle").count(), expected.len());
    assert!(svg.contains("one copy, gpu-to-gpu: ") && svg.contains(">gather-int8<"), "{svg}");
    assert!(svg.contains("Roofline of Fake 0, ceilings of the same run"), "{svg}");

    let refused = bench(fake.folder(), &["--bytes", "1MiB"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && said.contains("--bytes is 1MiB, and at least 2MiB is needed"),
        "{said}"
    );
    let nowhere = bench(fake.folder(), &["--bytes", "2MiB", "--plot", "/nowhere/x.svg"]);
    assert!(String::from_utf8_lossy(&nowhere.stderr).contains("cannot write /nowhere/x.svg"));
}

#[test]
fn the_bench_of_pairs_has_all_rows_with_two_gpus_and_with_one() {
    let nccl = FakeNccl::new();
    let sizes = ["1KiB", "64KiB", "1MiB", "8MiB", "64MiB"];
    let mut expected: Vec<String> =
        sizes.iter().flat_map(|size| [format!("pair-{size}"), format!("pair-{size}-to-copy")]).collect();
    let lives =
        ["latency-1KiB", "set-up", "set-up-first", "first-transfer", "abort", "memory-next", "worker-start"];
    expected.extend(lives.map(str::to_owned));
    for setting in ["2-ctas-1MiB", "1-ctas-1MiB", "2-ctas-4MiB", "8-ctas-4MiB"] {
        expected.extend([format!("memory-{setting}"), format!("pair-8MiB-{setting}")]);
    }
    for (gpus, said) in [(1, "both ends on it"), (2, "by the way that NCCL chooses")] {
        let fake = Fake::with(&[&format!("-DGPUS={gpus}"), "-DMEMORY_MIB=512"]);
        let mut command = Command::new(kvhive());
        command.env("LD_LIBRARY_PATH", fake.folder()).env("KVHIVE_NCCL", nccl.path());
        let output =
            command.args(["bench", "gpu", "--nccl", "--json", "--runs", "1"]).output().expect("it runs");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && told.contains(said) && told.contains("NCCL 2.28.9"), "{told}");
        let report: Value = serde_json::from_slice(&output.stdout).expect("a report");
        let rows = list(&report["rows"]);
        assert_eq!(rows.iter().map(|row| word(&row["case"])).collect::<Vec<_>>(), expected);
        for row in rows {
            // Each process has memory of its own of a GPU that is made for tests.
            let least = if word(&row["unit"]) == "MiB" { -1.0 } else { 0.0 };
            assert!(row["ours"].as_f64() > Some(least) && row["baseline"].as_f64() > Some(least), "{row}");
        }
    }
}

#[test]
fn the_bench_of_pairs_says_what_is_missing() {
    let fake = Fake::with(&["-DMEMORY_MIB=512"]);
    let bench = |folder: &Path, words: &[&str]| {
        let mut command = Command::new(kvhive());
        command.env("LD_LIBRARY_PATH", folder).env("KVHIVE_NCCL", "/nowhere/libnccl.so.2");
        let output = command.args(["bench", "gpu", "--nccl"]).args(words).output().expect("it runs");
        assert!(!output.status.success() && output.stdout.is_empty());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let said = bench(fake.folder(), &[]);
    assert!(said.contains("no pair can be made here: NCCL is not on this machine"), "{said}");
    assert!(said.contains("say where it lies by KVHIVE_NCCL=.../libnccl.so.2"), "{said}");
    let said = bench(Path::new("/nowhere"), &[]);
    assert!(
        said.contains("a GPU is needed") && said.contains("CUDA's driver is not on this machine"),
        "{said}"
    );
    let said = bench(fake.folder(), &["--bytes", "2MiB"]);
    assert!(said.contains("cannot be used with"), "{said}");
}

#[test]
fn doctor_lists_gpus_and_the_links_between_them() {
    let fake = Fake::new();
    let doctor = |folder: &Path| -> Value {
        let mut command = Command::new(kvhive());
        let words = ["doctor", "--json", "--python", "/nowhere/python", "--dir"];
        command.env("LD_LIBRARY_PATH", folder).args(words).arg(folder);
        serde_json::from_slice(&command.output().expect("it runs").stdout).expect("a report")
    };
    let found = |report: &Value, what: &str| -> String {
        let one = list(&report["findings"]).iter().find(|one| one["what"] == what);
        word(&one.unwrap_or_else(|| panic!("{what} in {report:#}"))["found"]).to_owned()
    };
    let alone = doctor(fake.folder());
    assert_eq!(found(&alone, "GPU 1"), "Fake 1, 0.2 GiB, sm_90, at 0000:02:00.0");
    assert_eq!(found(&alone, "GPU links"), "peer access");
    let link = &alone["gpus"]["links"][0];
    assert_eq!((&link["peer_access"], &link["nvlink"]), (&Value::Bool(true), &Value::Null), "{link}");
    let _management = FakeNvml::beside(&fake);
    let report = doctor(fake.folder());
    assert_eq!(found(&report, "GPU links"), "NVLink");
    let gpus = &report["gpus"];
    assert_eq!((word(&gpus["cuda"]), word(&gpus["driver"])), ("13.0", "580.00.01"));
    let names: Vec<&str> = list(&gpus["gpus"]).iter().map(|gpu| word(&gpu["name"])).collect();
    assert_eq!(names, ["Fake 0", "Fake 1"]);
    assert_eq!(gpus["links"][0]["by"], "the host's PCIe bridge");
    let none = doctor(&fake.folder().join("nothing"));
    assert_eq!(none["gpus"], Value::Null);
    let numa: Vec<&Value> = list(&none["numa_nodes"]).iter().collect();
    assert_eq!(numa.is_empty(), !Path::new("/sys/devices/system/node/node0").exists());
    assert!(numa.iter().all(|one| one["memory_bytes"].as_u64() > Some(0)), "{numa:?}");
}

#[test]
fn requests_are_replayed_through_a_gpu_host_memory_and_a_disk() {
    let fake = Fake::new();
    // Whoever looks for the driver by its name finds this one.
    let folder = fake.folder().to_str().expect("a temporary folder has a plain name");
    let sizes =
        ["--device-kind", "cuda", "--device-memory", "32MiB", "--host-memory", "16MiB", "--disk", "32MiB"];
    let shape = ["--coordinators", "1", "--nodes", "1", "--devices", "1", "--block-size", "2MiB"];
    let options: Vec<&str> = sizes.iter().chain(&shape).copied().collect();
    let cluster = Cluster::start_with(&options, &[("LD_LIBRARY_PATH", folder)]);
    let words = ["replay", "--requests", "60", "--block-size", "2MiB"];
    let report = cluster.json(&words).expect("every request is answered");
    let count = |name: &str| report[name].as_u64().unwrap_or_else(|| panic!("{name} in {report:#}"));
    assert!(count("hits") > 0 && count("wrong_bytes") == 0, "{report:#}");
    let devices = cluster.json(&["devices"]).expect("the coordinator answers");
    let device = &devices["devices"][0];
    assert_eq!(device["kind"], "cuda", "{devices:#}");
    let blocks = |tier: &str| {
        let tiers = device["tiers"].as_array().into_iter().flatten();
        let of = tiers.filter(|one| one["tier"] == tier).filter_map(|one| one["blocks"].as_u64());
        of.sum::<u64>()
    };
    assert!(["device", "host", "disk"].iter().all(|tier| blocks(tier) > 0), "{devices:#}");
    let doctor = run_with(&["doctor", "--json"], &[("LD_LIBRARY_PATH", folder)]);
    let said =
        doctor.map_or_else(|error| error.to_string(), |said| String::from_utf8_lossy(&said.stdout).into());
    assert!(said.contains("Fake 0") && said.contains("Fake 1"), "the same GPUs are listed: {said}");
}

#[test]
fn a_node_without_the_gpu_that_it_is_to_have_does_not_start_and_one_that_may_do_without_it_does() {
    let nowhere = [("LD_LIBRARY_PATH", "/nowhere"), ("KVHIVE_LOG", "info")];
    let shape = ["--coordinators", "1", "--nodes", "1", "--devices", "2", "--device-kind"];
    let auto: Vec<&str> = shape.iter().copied().chain(["auto"]).collect();
    let cluster = Cluster::start_with(&auto, &nowhere);
    let devices: Value = cluster.json(&["devices"]).expect("the coordinator answers");
    let kinds: Vec<&str> = list(&devices["devices"]).iter().map(|one| word(&one["kind"])).collect();
    assert_eq!(kinds, ["host"; 2], "{devices:#}");
    let log = std::fs::read_to_string(format!("{}/logs/node-1.log", cluster.dir())).expect("it keeps one");
    let said = log.matches("no GPU for these devices").count();
    assert_eq!(said, 1, "once for all of its devices: {log}");
    drop(cluster);
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let dir = folder.path().to_str().expect("a temporary folder has a plain name");
    let cuda: Vec<&str> = ["up", "--detach", "--dir", dir].into_iter().chain(shape).chain(["cuda"]).collect();
    let error = run_with(&cuda, &nowhere).err().map(|error| error.to_string()).unwrap_or_default();
    assert!(error.contains("CUDA's driver is not on this machine"), "{error}");
}

#[test]
fn the_command_is_a_gpus_worker_and_does_not_say_so() {
    let (fake, nccl) = (Fake::new(), FakeNccl::new());
    let slab =
        CudaDevice::new(fake.gpu(), 4 << 20).and_then(|device| device.open_slab(4 << 20)).expect("room");
    let lent = slab.export().expect("it can be lent").expect("it is a file");
    let mut program = Command::new(kvhive());
    program.arg("gpu-worker").env("LD_LIBRARY_PATH", fake.folder()).env("KVHIVE_NCCL", nccl.path());
    let (tell, heard) = channel();
    let setup = Setup { slab_bytes: 4 << 20, ..Setup::default() };
    let worker = Worker::start(program, &setup, lent, move |one| drop(tell.send(one))).expect("it starts");
    let next = || heard.recv_timeout(Duration::from_secs(60)).expect("it is heard");
    let first = next();
    assert!(matches!(&first, Heard::Answer(Answer::Started { nccl }) if nccl == "2.28.9"), "{first:?}");
    worker.tell(&worker::Command::End).expect("it is there");
    let rest = [next(), next()];
    assert!(matches!(&rest, [Heard::Gone, Heard::Ended(status)] if status.success()), "{rest:?}");

    let help = Command::new(kvhive()).arg("--help").output().expect("it runs");
    assert!(!String::from_utf8_lossy(&help.stdout).contains("gpu-worker"));
    let mut typed = Command::new(kvhive());
    let typed = typed.arg("gpu-worker").stdin(Stdio::null()).output().expect("it runs");
    let said = String::from_utf8_lossy(&typed.stderr).into_owned();
    assert!(
        !typed.status.success() && said.contains("a GPU's worker is started by its node alone"),
        "{said}"
    );
}
