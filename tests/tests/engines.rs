//! Routing on a cluster of real processes: an engine that speaks through ZeroMQ's own library, blocks in kvhive, one answer.

use anyhow::Context;
use kvhive_client::StoreOptions;
use kvhive_protocol::engines::EngineLoad;
use kvhive_protocol::routing::{Part, RouteRequest};
use kvhive_tests::Cluster;
use kvhive_tests::engine::{Engine, removed, stored, tokens};
use serde_json::{Value, json};

fn amounts(chosen: &Value) -> anyhow::Result<Vec<(String, u64)>> {
    let terms = chosen["ranked"][0]["terms"].as_array().context("no terms")?;
    let term = |one: &Value| Some((one["part"].as_str()?.to_owned(), one["amount"].as_u64()?));
    terms.iter().map(|one| term(one).with_context(|| format!("no term: {one}"))).collect()
}

#[test]
#[ignore = "takes Python with pyzmq: scripts/test engines"]
fn an_engines_own_cache_and_kvhives_count_together() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let cluster = Cluster::start(&["--nodes", "2", "--device-memory", "8MiB", "--host-memory", "0"]);
    let client = cluster.client();
    let blocks = client.namespace("default", "tiny@1", kvhive_tests::engine::LAYOUT, 0)?;
    let file = |name: &str, text: String| -> anyhow::Result<String> {
        let path = folder.path().join(name);
        std::fs::write(&path, text)?;
        Ok(path.display().to_string())
    };
    let layout = json!({"layers": 2, "kv_heads": 2, "head_dim": 64, "tokens": 16, "dtype": "f16", "order": "layers-first"});
    let blocks_file = file("blocks.json", json!({"layout": layout}).to_string())?;
    let tokens_file = file("tokens.json", json!(tokens(9)).to_string())?;
    // Nobody publishes there: what is followed and not heard is still a candidate when it is named.
    let follow = |name: &str, events: &str, more: &[&str]| {
        let words = ["engines", "follow", name, "--model", "tiny@1", "--block-tokens", "16"];
        let words = [&words[..], &["--events", events, "--blocks-file", &blocks_file], more].concat();
        cluster.json(&words)
    };
    follow("silent", "tcp://127.0.0.1:9", &[])?;
    let prefix = blocks.keys(&tokens(7));
    let tensors: Vec<Vec<u8>> = (0..7).map(|at| vec![at; blocks.block_bytes() as usize]).collect();
    let tensors: Vec<&[u8]> = tensors.iter().map(Vec::as_slice).collect();
    let report = cluster.wait(blocks.store(&prefix, 0..7, &tensors, StoreOptions::default()))?;
    assert_eq!(report.acknowledged(), 7);
    let route = |candidates: &str| {
        cluster.json(&["route", "--tokens-file", &tokens_file, "--candidates", candidates])
    };
    let chosen = cluster.until("a follower knows the engine", || route("silent").ok());
    assert_eq!(amounts(&chosen)?, [("hive_memory".to_owned(), 112), ("compute".to_owned(), 32)], "{chosen}");
    assert_eq!(
        (&chosen["ranked"][0]["known"]["connected"], &chosen["heard"]),
        (&json!(false), &json!(false))
    );

    let mut engine = Engine::start();
    let nodes: Vec<String> = client.map().members.values().map(|node| node.name.clone()).collect();
    let replay = engine.replay.clone();
    follow("libzmq", &engine.events, &["--replay", &replay, "--node", &nodes[0]])?;
    let known = |cluster: &Cluster| -> Option<Value> {
        let list = cluster.json(&["engines"]).ok()?;
        list["engines"].as_array()?.iter().find(|one| one["name"] == "libzmq").cloned()
    };
    cluster.until("it is heard", || known(&cluster).filter(|one| one["known"]["connected"] == true));
    engine.say("publish", vec![stored(0..4)]);
    engine.say("lose", vec![removed(3)]);
    let whole = cluster.until("what was lost is repeated", || {
        // What the last batches before a silence were is told by the next one.
        engine.say("publish", Vec::new());
        known(&cluster).filter(|one| one["known"]["blocks"] == 3 && one["known"]["exact"] == true)
    });
    assert_eq!((&whole["given_up"], &whole["trouble"]), (&json!(0), &json!("")), "{whole}");
    let chosen = route("silent,libzmq")?;
    assert_eq!(chosen["engine"], "libzmq", "{chosen}");
    let parts = amounts(&chosen)?;
    assert_eq!(parts[0], ("engine_device".to_owned(), 48));
    let hive: u64 =
        parts.iter().filter(|(part, _)| part.starts_with("hive_")).map(|(_, amount)| amount).sum();
    assert_eq!((hive, parts.last()), (64, Some(&("compute".to_owned(), 32))), "{chosen}");

    // The client's call says the same, and hears how busy an engine is.
    let answer = cluster.wait(client.route(RouteRequest::of_tokens(tokens(9))))?;
    assert_eq!(answer.ranked[0].engine, "libzmq");
    let load = EngineLoad { waiting: 5, ..EngineLoad::default() };
    cluster.wait(client.report_load("libzmq", load))?;
    let answer = cluster.wait(client.route(RouteRequest::of_tokens(tokens(9))))?;
    let waits = |term: &&kvhive_protocol::routing::Term| term.part == Part::Waiting;
    let waiting = answer.ranked[0].terms.iter().find(waits).map(|term| term.amount);
    assert_eq!(waiting, Some(5), "{answer:?}");
    cluster.json(&["engines", "forget", "libzmq"])?;
    cluster.until("it is followed no longer", || known(&cluster).is_none().then_some(()));
    Ok(())
}
