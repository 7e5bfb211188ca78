//! `kvhive explain` on a cluster of real processes: from what was never stored to what a node that died had.

use kvhive_client::{Client, StoreOptions};
use kvhive_protocol::trace::SpanId;
use kvhive_protocol::{AxisOrder, Dtype, Layout, TraceContext, TraceId};
use kvhive_tests::{Cluster, run};
use serde_json::{Value, json};
use std::path::Path;

const BLOCK: &str = "4KiB";

fn explain(cluster: &Cluster, words: &[&str]) -> Value {
    let words: Vec<&str> = ["explain"].iter().chain(words).copied().collect();
    cluster.json(&words).expect("the cluster answers")
}

fn of_request(cluster: &Cluster, number: usize) -> Value {
    explain(cluster, &["--request", &number.to_string(), "--block-size", BLOCK])
}

fn replay(cluster: &Cluster, requests: &str) {
    let report =
        cluster.json(&["replay", "--requests", requests, "--block-size", BLOCK, "--concurrency", "1"]);
    assert_eq!(report.expect("a replay")["errors"], 0);
}

/// The verdict on the block at which a prefix ends, and the sentence.
fn ends(said: &Value) -> (String, String) {
    let at = said["ends_at"].as_u64().expect("it ends somewhere") as usize;
    let verdict = said["blocks"][at]["verdict"].as_str().expect("a verdict").to_owned();
    (verdict, said["why"].as_str().expect("a sentence").to_owned())
}

/// Says whether nobody has ever heard of the first block. A node that registered first had all slots until the others did.
fn is_news(said: &Value) -> bool {
    said["ends_at"] == 0 && ["never-stored", "slot-moved"].contains(&ends(said).0.as_str())
}

#[test]
fn every_miss_of_a_request_has_its_cause() {
    let cluster = Cluster::start(&[
        "--coordinators",
        "1",
        "--nodes",
        "2",
        "--devices",
        "1",
        "--device-memory",
        "512KiB",
        "--host-memory",
        "0",
        "--block-size",
        BLOCK,
        "--strategy",
        "lru",
    ]);

    let before = of_request(&cluster, 1);
    let blocks = before["blocks"].as_array().expect("a list").len();
    assert_eq!((&before["covered"], is_news(&before)), (&0.into(), true), "{before}");

    replay(&cluster, "1");
    let stored = of_request(&cluster, 1);
    assert_eq!((&stored["covered"], &stored["ends_at"]), (&blocks.into(), &Value::Null), "{stored}");
    assert_eq!(stored["blocks"][0]["replicas"][0]["tier"], "device");
    let fetched =
        explain(&cluster, &["--request", "1", "--block-size", BLOCK, "--within", "20s"])["fetch"].clone();
    assert_eq!((&fetched["blocks"], &fetched["delivered"]), (&blocks.into(), &blocks.into()), "{fetched}");

    // By its key alone a block is found as well, wherever its prefix has put it.
    let key = stored["blocks"][blocks - 1]["key"].as_str().expect("a key").to_owned();
    let alone = explain(&cluster, &[&key]);
    assert_eq!(
        (&alone["blocks"][0]["verdict"], &alone["covered"]),
        (&"here".into(), &Value::Null),
        "{alone}"
    );

    // Another size of blocks is another layout: nothing of it was stored.
    let other = explain(&cluster, &["--request", "1", "--block-size", "8KiB"]);
    assert!(is_news(&other), "{other}");
    let late = explain(&cluster, &["--request", "1", "--block-size", BLOCK, "--within", "1us"]);
    assert!(late["why"].as_str().expect("a sentence").starts_with("too slow: "), "{late}");

    // Far more than there are frames.
    replay(&cluster, "300");
    let evicted = (1..=300)
        .map(|number| of_request(&cluster, number))
        .find(|said| said["ends_at"].is_u64() && ends(said).0 == "evicted");
    let evicted = evicted.expect("some request has lost a block");
    let (_, why) = ends(&evicted);
    assert!(why.contains("evicted it from its device tier") && why.contains("`lru`"), "{why}");
    let at = evicted["ends_at"].as_u64().expect("a block") as usize;
    let gone = evicted["blocks"][at]["replicas"].as_array().expect("a list").iter();
    assert!(gone.clone().any(|one| one["state"] == "gone" && one["strategy"] == "lru"), "{evicted}");

    // For people the same in a table, with what to do.
    let text = run(&["explain", &key, "--dir", cluster.dir()]).expect("the cluster answers").stdout;
    let text = String::from_utf8(text).expect("it is text");
    assert!(text.contains("VERDICT") && text.contains("to do: ") && text.contains(&key[..12]), "{text}");

    // Which of 300 requests' blocks are left depends on where their slots are; one that comes once more is there.
    replay(&cluster, "1");
    let is_here = |said: &Value| said["blocks"][0]["verdict"] == "here";
    // A node that is late for once says nothing of its blocks.
    cluster.until("what came last to be there", || is_here(&of_request(&cluster, 1)).then_some(()));
    run(&["tenants", "clear", "default", "--dir", cluster.dir()]).expect("it is cleared");
    let said = of_request(&cluster, 1);
    // A clear ends many blocks at once, and devices remember the last of them.
    let mut blocks = said["blocks"].as_array().expect("a list").iter();
    let cleared = blocks.find(|block| block["verdict"] == "cleared");
    let why = cleared.and_then(|block| block["why"].as_str()).unwrap_or_else(|| panic!("{said}"));
    assert!(why.starts_with("the tenant was cleared"), "{why}");

    cluster.signal("node-1", "KILL");
    cluster.signal("node-2", "KILL");
    let said = cluster.until("both to be down", || {
        let said = of_request(&cluster, 1);
        // In the order in which they registered, which nobody knows.
        let notes = said["notes"].to_string();
        ["down: ", "node-1", "node-2"].iter().all(|word| notes.contains(word)).then_some(said)
    });
    let (verdict, why) = ends(&said);
    assert!(["unheard", "unplaced"].contains(&verdict.as_str()), "{verdict}: {why}");
}

/// Writes a file of how an engine's blocks are named, so many tokens each.
fn blocks_file(folder: &Path, tokens: u32) -> String {
    let layout = json!({"layers": 2, "kv_heads": 1, "head_dim": 8, "tokens": tokens, "dtype": "f16", "order": "layers-first"});
    let file = folder.join(format!("blocks-{tokens}.json"));
    std::fs::write(&file, json!({"layout": layout}).to_string()).expect("room for a file");
    file.display().to_string()
}

#[test]
fn a_prompt_is_explained_by_its_tokens_also_in_another_layout() {
    let options = ["--coordinators", "1", "--nodes", "1", "--devices", "1", "--device-memory", "8MiB"];
    let cluster = Cluster::start(&options);
    let client = cluster.client();
    let layout = Layout {
        layers: 2,
        kv_heads: 1,
        head_dim: 8,
        tokens: 16,
        dtype: Dtype::F16,
        order: AxisOrder::LayersFirst,
    };
    let namespace = client.namespace("default", "model@1", layout, 0).expect("the tenant is there");
    let tokens: Vec<u32> = (0..70).collect();
    let prefix = namespace.keys_with(&tokens, &[b"user-7"]);
    let block = vec![7u8; namespace.block_bytes() as usize];
    let store = async {
        let blocks = vec![&block[..]; prefix.len()];
        namespace.store(&prefix, 0..prefix.len(), &blocks, StoreOptions::default()).await
    };
    assert_eq!(cluster.wait(store).expect("it fits").acknowledged(), 4);

    let folder = tempfile::tempdir().expect("room for files");
    let file = folder.path().join("tokens.json");
    std::fs::write(&file, json!(tokens).to_string()).expect("room for a file");
    let file = file.display().to_string();
    let (right, wrong) = (blocks_file(folder.path(), 16), blocks_file(folder.path(), 32));
    let ask = |words: &[&str]| {
        let prompt = ["--tokens-file", &file, "--model", "model@1"];
        explain(&cluster, &[&prompt, words].concat())
    };
    let salted = ask(&["--salt", "user-7", "--blocks-file", &right]);
    assert_eq!((&salted["covered"], &salted["ends_at"]), (&4.into(), &Value::Null), "{salted}");
    let unsalted = ask(&["--blocks-file", &right]);
    assert_eq!((&unsalted["covered"], ends(&unsalted).0.as_str()), (&0.into(), "never-stored"));
    let other = ask(&["--salt", "user-7", "--blocks-file", &wrong, "--blocks-file", &right]);
    assert_eq!(other["covered"], 0);
    let why = other["why"].as_str().expect("a sentence");
    assert!(
        why.starts_with("it is there in another layout: 4 blocks as") && why.contains("blocks-16"),
        "{why}"
    );
}

#[test]
fn a_question_that_names_nothing_or_nonsense_is_refused_with_what_is_allowed() {
    let said = |words: &[&str]| format!("{:#}", run(words).expect_err("it is refused"));
    assert!(said(&["explain"]).contains("<KEY"), "{}", said(&["explain"]));
    assert!(said(&["explain", "abc", "def"]).contains("64 hexadecimal digits"));
    assert!(said(&["explain", "--request", "0", "--dir", "/nowhere"]).contains("the first request is 1"));
}

#[test]
fn a_request_is_explained_by_its_id_though_its_blocks_have_come_since_and_nothing_is_traced() {
    let cluster =
        Cluster::start(&["--coordinators", "1", "--nodes", "2", "--devices", "1", "--block-size", BLOCK]);
    let client = cluster.wait(Client::connect(cluster.client_config())).expect("a coordinator answers");
    let blocks = cluster.blocks(&client, 4096);
    let id = "chatcmpl-4bf92f35-77b3-4da6-a3ce-929d0e0e4736";
    let span = SpanId::new([7; 8]).expect("it is not zero");
    let context = TraceContext { trace: TraceId::of_request(id), span };
    let prefix = blocks.keys(&[3; 64]);
    let found = cluster.wait(blocks.traced(context).match_prefix(&prefix)).expect("it is asked well");
    assert_eq!(found.covered, 0);
    let bytes = vec![vec![3; 4096]; prefix.len()];
    let bytes: Vec<&[u8]> = bytes.iter().map(|block| &block[..]).collect();
    let stored = blocks.store(&prefix, 0..prefix.len(), &bytes, StoreOptions::default());
    assert_eq!(cluster.wait(stored).expect("it is asked well").acknowledged(), prefix.len());
    let told = cluster.until("it is remembered", || cluster.json(&["explain", id]).ok());
    let missed = told["missed"].as_array().expect("a list");
    let keys: Vec<&str> = missed.iter().filter_map(|one| one["key"].as_str()).collect();
    assert_eq!(keys, prefix.keys().iter().map(ToString::to_string).collect::<Vec<_>>(), "{told}");
    // What was known of them then; a slot that had just come to its node tells that.
    let was_unknown =
        |one: &serde_json::Value| one["verdict"] == "never-stored" || one["verdict"] == "slot-moved";
    assert!(missed.iter().all(was_unknown), "{told}");
    let asked = told["asked"].as_array().expect("a list");
    let sum = |field: &str| asked.iter().filter_map(|part| part[field].as_u64()).sum::<u64>();
    assert_eq!((sum("blocks"), sum("hits")), (prefix.len() as u64, 0));
    // Today they are there.
    assert_eq!(cluster.json(&["explain", keys[0]]).expect("it is told")["blocks"][0]["verdict"], "here");
    let said = run(&["explain", "chatcmpl-other", "--dir", cluster.dir()]).expect_err("nobody knows it");
    assert!(format!("{said:#}").contains("no node remembers a request"), "{said:#}");
}
