//! A cluster whose node has a GPU's memory as its device tier, by a driver that is made for tests, and a disk under it all: requests are
//! replayed through it, and what is fetched is what was stored.

#[path = "../../gpu/tests/fake/mod.rs"]
mod fake;

use fake::Fake;
use kvhive_tests::{Cluster, run_with};
use serde_json::Value;

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
    let nowhere = [("LD_LIBRARY_PATH", "/nowhere")];
    let shape = ["--coordinators", "1", "--nodes", "1", "--devices", "1", "--device-kind"];
    let auto: Vec<&str> = shape.iter().copied().chain(["auto"]).collect();
    let cluster = Cluster::start_with(&auto, &nowhere);
    let devices: Value = cluster.json(&["devices"]).expect("the coordinator answers");
    assert_eq!(devices["devices"][0]["kind"], "host", "{devices:#}");
    drop(cluster);
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let dir = folder.path().to_str().expect("a temporary folder has a plain name");
    let cuda: Vec<&str> = ["up", "--detach", "--dir", dir].into_iter().chain(shape).chain(["cuda"]).collect();
    let error = run_with(&cuda, &nowhere).err().map(|error| error.to_string()).unwrap_or_default();
    assert!(error.contains("CUDA's driver is not on this machine"), "{error}");
}
