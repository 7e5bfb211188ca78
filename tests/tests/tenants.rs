//! Tenants on a cluster of real processes: rules that operators say reach nodes and clients, and hold.

use kvhive_client::{Client, FetchOutcome, NamespaceClient, Prefix, StoreOptions};
use kvhive_protocol::{AxisOrder, Dtype, Layout};
use kvhive_tests::Cluster;
use serde_json::json;
use std::fs;
use std::path::Path;

/// Blocks of 16 KiB.
const LAYOUT: Layout = Layout {
    layers: 2,
    kv_heads: 2,
    head_dim: 64,
    tokens: 16,
    dtype: Dtype::F16,
    order: AxisOrder::LayersFirst,
};
const BLOCKS: usize = 32;

fn open(client: &Client, tenant: &str) -> NamespaceClient {
    client.namespace(tenant, "model@1", LAYOUT, 0).expect("the tenant is there")
}

fn tensor(at: usize) -> Vec<u8> {
    // The upper bytes of ordinary fp16 numbers.
    (0..LAYOUT.block_bytes().expect("small"))
        .map(|byte| if byte % 2 == 0 { (byte as usize * 7 + at) as u8 } else { 0x3C })
        .collect()
}

/// Stores a prefix named by a number; returns how many of its blocks were taken.
async fn store(blocks: &NamespaceClient, name: u32) -> usize {
    let prefix = blocks.keys(&vec![name; BLOCKS * 16]);
    let tensors: Vec<Vec<u8>> = (0..BLOCKS).map(tensor).collect();
    let tensors: Vec<&[u8]> = tensors.iter().map(Vec::as_slice).collect();
    let report = blocks.store(&prefix, 0..BLOCKS, &tensors, StoreOptions::default()).await;
    report.expect("range and blocks fit").acknowledged()
}

/// Fetches a prefix; returns the bytes that each of its blocks that are there was sent as.
async fn fetch(blocks: &NamespaceClient, name: u32) -> Vec<u64> {
    let prefix = blocks.keys(&vec![name; BLOCKS * 16]);
    let mut memory = vec![vec![0; blocks.block_bytes() as usize]; BLOCKS];
    let mut targets: Vec<&mut [u8]> = memory.iter_mut().map(Vec::as_mut_slice).collect();
    let report = blocks.fetch_into(&prefix, 0..BLOCKS, &mut targets).await.expect("range and memory fit");
    let sent = report.outcomes.iter().filter_map(|outcome| match outcome {
        FetchOutcome::Loaded(loaded) => Some(loaded.stored_bytes()),
        FetchOutcome::Missed(_) => None,
    });
    sent.collect()
}

#[test]
fn a_tenant_has_its_room_its_codec_and_its_guests_and_another_finds_nothing() {
    let cluster = Cluster::start(&[
        "--nodes",
        "2",
        "--device-memory",
        "4MiB",
        "--host-memory",
        "0",
        "--block-size",
        "16KiB",
    ]);
    // A quarter of the four devices, each with both of a block's copies counted.
    for words in [
        &["tenants", "create", "search", "--device-quota", "4MiB", "--strategy", "adaptive"][..],
        &["tenants", "create", "guest", "--shares-with", "search"],
        &["tenants", "create", "rival"],
    ] {
        cluster.json(words).expect("it is made");
    }
    let client = cluster.client();
    let [search, guest, rival] = ["search", "guest", "rival"].map(|tenant| open(&client, tenant));
    assert_eq!(cluster.wait(store(&search, 1)), BLOCKS);
    assert_eq!(cluster.wait(fetch(&guest, 1)), vec![16 * 1024; BLOCKS], "a guest finds what is there, raw");
    assert_eq!(cluster.wait(fetch(&rival, 1)), Vec::<u64>::new(), "another's keys are others");

    for name in 100..160 {
        cluster.wait(store(&rival, name));
    }
    assert_eq!(cluster.wait(fetch(&search, 1)).len(), BLOCKS, "a flood takes nothing of what was promised");

    let set = cluster.json(&["tenants", "set", "search", "--quantization-bits", "4", "--reset", "strategy"]);
    let set = set.expect("it is changed");
    assert_eq!((&set["strategy"], &set["quantization_bits"]), (&json!(null), &json!(4)));
    cluster.wait(client.refresh()).expect("a coordinator answers");
    assert_eq!(cluster.wait(store(&guest, 2)), BLOCKS);
    let sent = cluster.wait(fetch(&search, 2));
    assert!(sent.len() == BLOCKS && sent.iter().all(|bytes| *bytes < 5 * 1024), "{sent:?}");
    assert_eq!(
        cluster.wait(fetch(&search, 1)),
        vec![16 * 1024; BLOCKS],
        "what was stored before stays as it is"
    );

    let shown = cluster.until("its figures are reported", || {
        let shown = cluster.json(&["tenants", "show", "search"]).ok()?;
        (shown["stored_blocks"].as_u64()? >= 2 * BLOCKS as u64).then_some(shown)
    });
    assert!(shown["used_bytes"].as_u64() > Some(0) && shown["fetched_blocks"].as_u64() > Some(0), "{shown}");
    cluster.json(&["tenants", "clear", "guest"]).expect("its own blocks, of which there are none");
    assert_eq!(cluster.wait(fetch(&guest, 1)).len(), BLOCKS, "what it shares stays");
    cluster.wait(client.refresh()).expect("a coordinator answers");
    cluster.json(&["tenants", "clear", "search"]).expect("it is cleared");
    assert_eq!(cluster.wait(fetch(&guest, 1)), Vec::<u64>::new(), "for its guests too");
}

/// Says how many blocks of a prefix whoever holds its keys is given, and how many are taken from it. One whose tenant is gone is refused.
fn served(cluster: &Cluster, blocks: &NamespaceClient, prefix: &Prefix) -> (usize, usize) {
    let mut memory = vec![vec![0; blocks.block_bytes() as usize]; BLOCKS];
    let mut targets: Vec<&mut [u8]> = memory.iter_mut().map(Vec::as_mut_slice).collect();
    let fetched = cluster.wait(blocks.fetch_into(prefix, 0..BLOCKS, &mut targets));
    let given = fetched.map_or(0, |report| report.delivered());
    let tensors: Vec<Vec<u8>> = (0..BLOCKS).map(tensor).collect();
    let tensors: Vec<&[u8]> = tensors.iter().map(Vec::as_slice).collect();
    let stored = cluster.wait(blocks.store(prefix, 0..BLOCKS, &tensors, StoreOptions::default()));
    (given, stored.map_or(0, |report| report.acknowledged()))
}

/// Blocks that all devices hold, as last reported.
fn resident(cluster: &Cluster) -> u64 {
    let status = cluster.status();
    let devices = status["devices"].as_array().expect("a list").iter();
    devices.map(|device| device["blocks"].as_u64().expect("a number")).sum()
}

#[test]
fn a_rotated_secret_and_a_deleted_tenant_leave_nothing_behind() {
    let options = ["--nodes", "2", "--device-memory", "4MiB", "--host-memory", "0", "--block-size", "16KiB"];
    let cluster = Cluster::start(&options);
    cluster.json(&["tenants", "create", "acme"]).expect("it is made");
    let client = cluster.client();
    let blocks = open(&client, "acme");
    let keys = || blocks.keys(&[1; BLOCKS * 16]);
    let old = keys();
    assert_eq!(cluster.wait(store(&blocks, 1)), BLOCKS);
    assert_eq!(served(&cluster, &blocks, &old), (BLOCKS, BLOCKS));
    cluster.until("its blocks to be reported", || (resident(&cluster) >= BLOCKS as u64).then_some(()));

    // Whoever has been told nothing yet comes with the keys and the era of before.
    cluster.json(&["tenants", "rotate", "acme"]).expect("nobody serves the old ones");
    assert_eq!(served(&cluster, &blocks, &old), (0, 0), "nothing is given for old keys, and nothing taken");
    cluster.until("their room to be free", || (resident(&cluster) == 0).then_some(()));
    cluster.wait(client.refresh()).expect("a coordinator answers");
    let new = keys();
    assert_ne!(new.keys(), old.keys(), "its keys are others");
    assert_eq!(served(&cluster, &blocks, &new), (0, BLOCKS), "nothing of before is found by the new ones");
    assert_eq!(served(&cluster, &blocks, &old), (0, 0), "nor anything of now by the old ones");
    assert_eq!(served(&cluster, &blocks, &new), (BLOCKS, BLOCKS));

    cluster.json(&["tenants", "delete", "acme"]).expect("nobody serves its blocks");
    assert_eq!(served(&cluster, &blocks, &new), (0, 0), "a tenant that is gone is given nothing");
    cluster.until("their room to be free", || (resident(&cluster) == 0).then_some(()));
    cluster.wait(client.refresh()).expect("a coordinator answers");
    assert!(client.namespace("acme", "model@1", LAYOUT, 0).is_err(), "it is known no more");
    // Another of its name is another.
    cluster.json(&["tenants", "create", "acme"]).expect("the name is free");
    cluster.wait(client.refresh()).expect("a coordinator answers");
    assert_eq!(cluster.wait(fetch(&open(&client, "acme"), 1)), Vec::<u64>::new());
    assert_eq!(served(&cluster, &blocks, &new), (0, 0), "who was the one before is not this one");
}

/// Says whether any file below a folder has these bytes.
fn holds(folder: &Path, what: &[u8]) -> bool {
    fs::read_dir(folder).expect("a folder").any(|entry| {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            return holds(&path, what);
        }
        fs::read(path).expect("readable").windows(what.len()).any(|part| part == what)
    })
}

/// Returns how many data keys a node has.
fn keys(node: &Path) -> usize {
    let names =
        fs::read_dir(node.join("keys")).expect("a folder").map(|entry| entry.expect("an entry").file_name());
    names.filter(|name| name.to_string_lossy().starts_with("tenant-")).count()
}

#[test]
fn what_a_deleted_tenant_has_left_on_disk_is_noise() {
    let shape = ["--coordinators", "1", "--nodes", "1", "--devices", "1", "--device-memory", "1MiB"];
    let disk = ["--host-memory", "0", "--block-size", "16KiB", "--disk", "16MiB"];
    let cluster = Cluster::start(&[&shape[..], &disk[..]].concat());
    cluster.json(&["tenants", "create", "acme"]).expect("it is made");
    let node = Path::new(cluster.dir()).join("data").join("node-1");
    let metrics = cluster.status()["nodes"][0]["metrics_address"].as_str().expect("an address").to_owned();
    let figure = |name: &str| -> Option<f64> {
        // None while the node is away.
        let page =
            ureq::get(format!("http://{metrics}/metrics")).call().ok()?.body_mut().read_to_string().ok()?;
        page.lines().find(|line| line.starts_with(name))?.rsplit(' ').next()?.parse().ok()
    };
    let acme = open(&cluster.client(), "acme");
    // Eight prefixes of half a MiB: more than memory holds. The first is looked for on disk.
    cluster.until("the first of them is on disk", || {
        (1..=8).for_each(|name| assert_eq!(cluster.wait(store(&acme, name)), BLOCKS));
        (figure("kvhive_node_disk_blocks_total{device=\"0\",way=\"write\"}")? >= 4.0 * BLOCKS as f64)
            .then_some(())
    });
    assert_eq!(cluster.wait(fetch(&acme, 1)).len(), BLOCKS, "they come back");
    assert_eq!(keys(&node), 1);
    assert!(!holds(&node, &tensor(0)[..64]), "what an engine computed stands on disk as it is");

    let records = node.join("device-0").join("sealed-16384");
    let kept = fs::read(&records).expect("readable");
    cluster.json(&["tenants", "delete", "acme"]).expect("nobody serves its blocks");
    assert_eq!(keys(&node), 0, "answered is what has been done");

    // Whoever has kept the records has nothing: a node that is given them takes none in.
    cluster.signal("node-1", "KILL");
    fs::write(&records, kept).expect("writable");
    let _running = cluster.respawn("node-1");
    cluster.until("the disk is open again", || (figure("kvhive_node_disk_open")? == 1.0).then_some(()));
    assert_eq!(figure("kvhive_node_disk_restored_blocks_total"), Some(0.0));
    assert!(figure("kvhive_node_disk_ended_records_total") >= Some(4.0 * BLOCKS as f64));
    assert!(!holds(&node, &tensor(0)[..64]));
}
