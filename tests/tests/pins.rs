//! Pins on a cluster of real processes: what is pinned outlives any pressure, and leaves when it is released.

use kvhive_client::{NamespaceClient, Prefix, StoreOptions};
use kvhive_protocol::{AxisOrder, Dtype, Layout, PinMode, Reason};
use kvhive_tests::{Cluster, kvhive, run};
use serde_json::{Value, json};
use std::process::Command;

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

fn prefix(blocks: &NamespaceClient, name: u32) -> Prefix {
    blocks.keys(&vec![name; BLOCKS * 16])
}

async fn store(blocks: &NamespaceClient, name: u32) -> usize {
    let tensor = vec![name as u8; blocks.block_bytes() as usize];
    let tensors = vec![&tensor[..]; BLOCKS];
    let prefix = prefix(blocks, name);
    let report = blocks.store(&prefix, 0..BLOCKS, &tensors, StoreOptions::default()).await;
    report.expect("range and blocks fit").acknowledged()
}

async fn fetched(blocks: &NamespaceClient, name: u32) -> usize {
    let mut memory = vec![vec![0; blocks.block_bytes() as usize]; BLOCKS];
    let mut targets: Vec<&mut [u8]> = memory.iter_mut().map(Vec::as_mut_slice).collect();
    let report = blocks.fetch_into(&prefix(blocks, name), 0..BLOCKS, &mut targets).await;
    report.expect("range and memory fit").delivered()
}

#[test]
fn a_pinned_prefix_outlives_any_pressure_and_leaves_when_it_is_released() {
    let options = "--coordinators 1 --nodes 1 --devices 1 --device-memory 4MiB --host-memory 0 --block-size 16KiB --strategy lru";
    let cluster = Cluster::start(&options.split(' ').collect::<Vec<_>>());
    let client = cluster.client();
    let blocks = client.namespace("default", "model@1", LAYOUT, 0).expect("the tenant is there");
    let pinned_are = |count: u64| {
        cluster.until("nodes know what is pinned", || {
            let said = cluster.json(&["pin", "list"]).ok()?;
            (said["pinned_blocks"] == json!(count)).then_some(said)
        })
    };
    cluster.wait(async {
        assert_eq!(store(&blocks, 1).await, BLOCKS);
        blocks
            .pin("system", &prefix(&blocks, 1), PinMode::Hard, Reason::new("every request begins so"))
            .await
            .expect("it is allowed");
    });
    let said = pinned_are(BLOCKS as u64);
    let system = &said["pins"][0];
    assert_eq!(
        (&system["name"], &system["mode"], &system["keys"]),
        (&json!("system"), &json!("hard"), &json!(32))
    );
    // Ten times the node's room.
    cluster.wait(async {
        for name in 2..82 {
            assert!(store(&blocks, name).await > 0);
        }
        assert_eq!(fetched(&blocks, 2).await, 0, "what is not pinned has gone");
        assert_eq!(fetched(&blocks, 1).await, BLOCKS);
    });
    let key = prefix(&blocks, 1).keys()[3].to_string();
    let explained = cluster.json(&["explain", &key]).expect("the node answers");
    assert_eq!(explained["blocks"][0]["replicas"][0]["pinned"], json!(true), "{explained}");

    // A soft one takes its place, and ends by itself.
    let keys: Vec<String> = prefix(&blocks, 1).keys().iter().take(4).map(ToString::to_string).collect();
    let mut words = vec!["pin", "add", "brief", "--for", "2s"];
    words.extend(keys.iter().map(String::as_str));
    words.extend(["--dir", cluster.dir()]);
    let added = run(&words).expect("kvhive runs");
    assert!(added.status.success(), "{added:?}");
    let removed = run(&["pin", "remove", "system", "--dir", cluster.dir()]).expect("kvhive runs");
    assert!(removed.status.success(), "{removed:?}");
    pinned_are(0);
    cluster.until("nothing is pinned", || {
        let said = cluster.json(&["pin", "list"]).ok()?;
        (said["pins"] == json!([])).then_some(())
    });
    cluster.wait(async {
        for name in 100..120 {
            store(&blocks, name).await;
        }
        assert_eq!(fetched(&blocks, 1).await, 0);
    });
    let events = run(&["events", "--dir", cluster.dir()]).expect("the coordinator answers");
    let events = String::from_utf8_lossy(&events.stdout);
    assert!(events.contains("pin-added") && events.contains("pin-removed"), "{events}");
}

#[test]
fn who_pins_more_than_a_device_may_is_told_how_much_is_pinned() {
    // 64 frames, of which half may be pinned.
    let options = "--coordinators 1 --nodes 1 --devices 1 --device-memory 1MiB --host-memory 0 --block-size 16KiB --strategy lru";
    let cluster = Cluster::start(&options.split(' ').collect::<Vec<_>>());
    let client = cluster.client();
    let blocks = client.namespace("default", "model@1", LAYOUT, 0).expect("the tenant is there");
    cluster.wait(async {
        for name in [2, 1] {
            assert_eq!(store(&blocks, name).await, BLOCKS);
        }
    });
    let keys = |name, count| prefix(&blocks, name).keys()[..count].iter().map(ToString::to_string).collect();
    let pin = |keys: Vec<String>| {
        let words: Vec<&str> =
            ["pin", "add", "much"].into_iter().chain(keys.iter().map(String::as_str)).collect();
        cluster.json(&words).expect("it is taken all the same")
    };
    let few = pin(keys(1, 16));
    assert_eq!((&few["blocks"]["pinned"], &few["remark"]), (&json!(16), &json!(null)), "{few}");
    assert_eq!(few["replaced_keys"], json!(null), "{few}");
    let both: Vec<String> = [keys(1, BLOCKS), keys(2, 8)].concat();
    let much = pin(both);
    assert_eq!(much["replaced_keys"], json!(16), "the pin of this name has ended: {much}");
    let count = |what: &str| much["blocks"][what].as_u64().expect("it is counted");
    assert_eq!((count("pinned"), count("pinned") + count("refused") + count("absent")), (32, 40), "{much}");
    assert!(count("refused") > 0, "{much}");
    assert!(
        much["remark"].as_str().is_some_and(|remark| remark.contains("half of a device's frames")),
        "{much}"
    );
}

/// Returns the tiers that the pinned prefix's blocks are in, as the nodes say that hold them.
fn tiers(cluster: &Cluster, blocks: &NamespaceClient) -> Option<Vec<String>> {
    let keys: Vec<String> = prefix(blocks, 1).keys().iter().map(ToString::to_string).collect();
    let words: Vec<&str> = ["explain"].into_iter().chain(keys.iter().map(String::as_str)).collect();
    let explained = cluster.json(&words).ok()?;
    let tier = |block: &Value| {
        let here = block["replicas"].as_array()?.iter().find(|replica| replica["pinned"] == json!(true))?;
        Some(here["tier"].as_str()?.to_owned())
    };
    explained["blocks"].as_array()?.iter().map(tier).collect()
}

/// Stores ten times a node's room, and looks whether what is pinned is still there.
async fn endures(blocks: &NamespaceClient, names: std::ops::Range<u32>, when: &str) {
    for name in names {
        store(blocks, name).await;
    }
    assert_eq!(fetched(blocks, 1).await, BLOCKS, "{when}");
}

#[test]
fn what_is_pinned_outlives_a_demotion_a_restart_and_moves_of_its_slots() {
    let options = "--coordinators 1 --nodes 2 --devices 1 --device-memory 2MiB --host-memory 0 --disk 4MiB --block-size 16KiB --strategy lru";
    let cluster = Cluster::start(&options.split(' ').collect::<Vec<_>>());
    for node in ["node-1", "node-2"] {
        cluster.signal(node, "TERM");
    }
    let up = |count: usize| {
        cluster.until("so many nodes to be up with all slots where they belong", || {
            let status = cluster.status();
            let nodes = status["nodes"].as_array()?;
            let up = nodes.iter().filter(|node| node["state"] == "up").count();
            let settled = up == 0 || status["slots"]["moving"] == 0 && status["slots"]["unavailable"] == 0;
            (up == count && settled).then_some(())
        });
    };
    up(0);
    let file = std::path::Path::new(cluster.dir()).join("cluster.toml");
    let text = std::fs::read_to_string(&file).expect("the cluster has one");
    std::fs::write(&file, text.replacen("[[node]]\n", "[[node]]\npersist_dir = \"snapshots\"\n", 1))
        .expect("writable");
    let first = cluster.respawn("node-1");
    up(1);
    let client = cluster.client();
    let blocks = cluster.client().namespace("default", "model@1", LAYOUT, 0).expect("the tenant is there");
    cluster.wait(async {
        assert_eq!(store(&blocks, 1).await, BLOCKS);
        let reason = Reason::new("it has to be there");
        blocks.pin("system", &prefix(&blocks, 1), PinMode::Hard, reason).await.expect("it is allowed");
    });
    let all_pinned = |when: &str| {
        cluster.until(when, || tiers(&cluster, &blocks).filter(|tiers| tiers.len() == BLOCKS));
    };
    all_pinned("it to be pinned");

    // Cold, it goes down; it does not go.
    cluster.until("it to be demoted", || {
        cluster.wait(async {
            for name in 100..130 {
                store(&blocks, name).await;
            }
        });
        let tiers = tiers(&cluster, &blocks)?;
        (tiers.len() == BLOCKS && tiers.iter().all(|tier| tier == "disk")).then_some(())
    });
    cluster.wait(endures(&blocks, 200..300, "after a demotion"));

    first.end();
    up(0);
    let first = cluster.respawn("node-1");
    up(1);
    all_pinned("it to be pinned after a restart");
    cluster.wait(endures(&blocks, 300..400, "after a restart"));

    let _second = cluster.respawn("node-2");
    up(2);
    all_pinned("it to be pinned where its slots are");
    cluster.wait(endures(&blocks, 400..600, "after half of the slots moved"));
    // Neither has room for more than its own: what is not pinned may be lost.
    let words = ["drain", "node-1", "--yes", "--dir", cluster.dir()];
    let drained = Command::new(kvhive()).args(words).output().expect("kvhive runs");
    assert_eq!(drained.status.code(), Some(3), "{drained:?}");
    first.end();
    up(1);
    all_pinned("it to be pinned on the node that is left");
    cluster.wait(endures(&blocks, 600..700, "after all slots moved"));
    drop(client);
}
