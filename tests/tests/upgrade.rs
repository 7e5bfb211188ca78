//! A rolling upgrade on a cluster of real processes: builds of two neighbouring levels work together, the level rises when all speak
//! the newer one, and who is too old for it then is turned away. An older build is this one told to speak no newer level than the
//! one before.

use kvhive_client::{NamespaceClient, StoreOptions};
use kvhive_tests::{Cluster, Respawned, run};
use serde_json::{Value, json};
use std::path::Path;

/// The level that this build speaks when it is not told otherwise.
const NEWEST: u64 = kvhive_protocol::Level::NEWEST.0 as u64;
const BLOCK: usize = 16 << 10;
const BLOCKS: usize = 8;
const PROCESSES: [&str; 5] = ["coord-1", "coord-2", "coord-3", "node-1", "node-2"];
const KEY: &str = "3f0c3f0c3f0c3f0c3f0c3f0c3f0c3f0c3f0c3f0c3f0c3f0c3f0c3f0c3f0c3f0c";

async fn store(blocks: &NamespaceClient, name: u32) {
    let tensor = vec![name as u8; BLOCK];
    let prefix = blocks.keys(&vec![name; BLOCKS * 16]);
    let tensors = vec![&tensor[..]; BLOCKS];
    let report = blocks.store(&prefix, 0..BLOCKS, &tensors, StoreOptions::default()).await;
    assert_eq!(report.expect("it fits").acknowledged(), BLOCKS, "of prefix {name}");
}

async fn fetched(blocks: &NamespaceClient, name: u32) -> usize {
    let mut memory = vec![vec![0; BLOCK]; BLOCKS];
    let mut targets: Vec<&mut [u8]> = memory.iter_mut().map(Vec::as_mut_slice).collect();
    let prefix = blocks.keys(&vec![name; BLOCKS * 16]);
    blocks.fetch_into(&prefix, 0..BLOCKS, &mut targets).await.expect("it fits").delivered()
}

fn speaks(status: &Value, name: &str) -> Option<u64> {
    let lists = [&status["coordinators"], &status["nodes"]].into_iter().filter_map(Value::as_array);
    let one = lists.flatten().find(|one| one["name"] == name)?;
    if one["state"] == "down" { None } else { one["speaks"].as_u64() }
}

/// Waits until everybody is there, speaks what it should, and all slots are where they belong.
fn settled(cluster: &Cluster, what: &str, levels: &[(&str, u64)]) -> Value {
    cluster.until(what, || {
        let status = cluster.json(&["status"]).ok()?;
        let all_are = levels.iter().all(|(name, level)| speaks(&status, name) == Some(*level));
        let slots = &status["slots"];
        let is_so =
            all_are && slots["moving"] == 0 && slots["unavailable"] == 0 && status["leader"].is_string();
        is_so.then_some(status)
    })
}

fn pin(cluster: &Cluster) -> Result<Value, String> {
    run(&["pin", "add", "system", KEY, "--dir", cluster.dir()]).map_err(|error| format!("{error:#}"))?;
    cluster.json(&["pin", "list"]).map_err(|error| format!("{error:#}"))
}

/// Waits until a process has said this in the log of its last start.
fn said(cluster: &Cluster, id: &str, words: &str) {
    let log = Path::new(cluster.dir()).join(format!("logs/{id}-again.log"));
    cluster.until(words, || std::fs::read_to_string(&log).ok().filter(|log| log.contains(words)));
}

#[test]
fn a_cluster_is_upgraded_process_by_process_and_rises_when_all_speak_the_newer_level() {
    let options = [
        "--coordinators",
        "3",
        "--nodes",
        "2",
        "--devices",
        "1",
        "--device-memory",
        "64MiB",
        "--replicas",
        "2",
    ];
    let cluster = Cluster::start_with(&options, &[("KVHIVE_CLUSTER__MAX_LEVEL", "1")]);
    let file = Path::new(cluster.dir()).join("cluster.toml");
    let newer = std::fs::read_to_string(&file).expect("the cluster has one");
    let older = newer.replacen("[cluster]\n", "[cluster]\nmax_level = 1\n", 1);
    assert_ne!(older, newer);
    std::fs::write(file.with_file_name("older.toml"), older).expect("writable");

    let status = settled(&cluster, "all to be of before", &PROCESSES.map(|name| (name, 1)));
    assert_eq!(status["level"], 1);
    let refused = pin(&cluster).expect_err("nobody knows of pins yet");
    assert!(refused.contains("needs level 2 and the cluster is at level 1"), "{refused}");
    let client = cluster.client();
    let blocks = cluster.blocks(&client, BLOCK as u32);
    cluster.wait(store(&blocks, 0));

    let mut upgraded: Vec<Respawned> = Vec::new();
    for (at, name) in PROCESSES.into_iter().enumerate() {
        assert_eq!(cluster.status()["level"], 1, "before {name} is upgraded");
        cluster.signal(name, "TERM");
        cluster.until("it to end", || {
            let status = cluster.json(&["status"]).ok()?;
            speaks(&status, name).is_none().then_some(())
        });
        upgraded.push(cluster.respawn(name));
        let levels: Vec<_> = PROCESSES
            .into_iter()
            .enumerate()
            .map(|(of, name)| (name, if of <= at { NEWEST } else { 1 }))
            .collect();
        settled(&cluster, "it to be back, speaking the newer level", &levels);
        // Whatever mixture it is, it works: what was stored before is there, and more can be.
        cluster.wait(async {
            for before in 0..=at as u32 {
                assert_eq!(
                    fetched(&blocks, before).await,
                    BLOCKS,
                    "prefix {before} when {name} was upgraded"
                );
            }
            store(&blocks, at as u32 + 1).await;
        });
    }
    cluster.until("the cluster to rise", || (cluster.status()["level"] == NEWEST).then_some(()));
    let pins = cluster.until("a pin to be taken", || pin(&cluster).ok());
    assert_eq!(pins["pins"][0]["name"], json!("system"));
    // One event, as it is one line of JSON.
    let raised = cluster.json(&["events", "--kind", "level-raised"]).expect("it rose once");
    assert_eq!(raised["facts"], json!({"from": 1, "to": NEWEST}));

    // There is no way back: who speaks only the level of before is turned away, and says why.
    let too_old = format!(
        "the cluster is at level {NEWEST}, from which it does not go back, and this member speaks none after 1"
    );
    upgraded.pop().expect("node-2").end();
    let _node = cluster.spawn_by("older.toml", "node-2");
    said(&cluster, "node-2", &too_old);
    upgraded.remove(2).end();
    let _coordinator = cluster.spawn_by("older.toml", "coord-3");
    said(&cluster, "coord-3", &too_old);
    let status = cluster.status();
    assert_eq!((speaks(&status, "node-2"), speaks(&status, "coord-3")), (None, None), "{status}");
    // The others go on.
    assert_eq!(cluster.wait(fetched(&blocks, 0)), BLOCKS);
    assert_eq!(
        cluster.json(&["pin", "list"]).expect("a coordinator answers")["pins"][0]["name"],
        json!("system")
    );
}
