//! Block events in vLLM's wire format, of a cluster of real processes: read by who reads engines' events, our own reader and ZeroMQ's and
//! msgspec's own libraries; and what kvhive has of a prompt by its engine's hashes.

use kvhive_client::{NamespaceClient, Prefix, StoreOptions};
use kvhive_protocol::data::Ack;
use kvhive_tests::engine::{Engine, LAYOUT, Reader, removed, stored, tokens};
use kvhive_tests::{Cluster, run};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;

const TOPIC: &str = "kv@coord-1@";

/// A cluster whose one coordinator publishes at free ports.
struct Publishing {
    cluster: Cluster,
    events: String,
    replay: String,
}

impl Publishing {
    fn start() -> Publishing {
        let free = [0, 1].map(|_| TcpListener::bind("127.0.0.1:0").expect("a port is free"));
        let [events, replay] = free.map(|one| one.local_addr().expect("it is bound").to_string());
        let options = ["--coordinators", "1", "--nodes", "2", "--devices", "1", "--replicas", "2"];
        let sizes = ["--device-memory", "8MiB", "--host-memory", "0", "--block-size", "16KiB"];
        let variables = [
            ("KVHIVE_COORDINATOR__COORD_1__BLOCK_EVENTS", &*events),
            ("KVHIVE_COORDINATOR__COORD_1__BLOCK_EVENTS_REPLAY", &*replay),
        ];
        let cluster = Cluster::start_with(&[&options[..], &sizes[..]].concat(), &variables);
        cluster.until("two replicas of each slot", || {
            let slots = cluster.json(&["slots"]).ok()?;
            let devices = slots["devices"].as_array()?;
            (devices.len() == 2 && devices.iter().all(|device| device["slots"] == 4096)).then_some(())
        });
        let [events, replay] = [events, replay].map(|address| format!("tcp://{address}"));
        Publishing { cluster, events, replay }
    }

    fn blocks(&self) -> NamespaceClient {
        self.cluster.client().namespace("default", "tiny@1", LAYOUT, 0).expect("the tenant exists")
    }

    fn store(&self, blocks: &NamespaceClient, prefix: &Prefix) {
        let bytes = vec![vec![7; blocks.block_bytes() as usize]; prefix.len()];
        let bytes: Vec<&[u8]> = bytes.iter().map(|block| &block[..]).collect();
        let all = StoreOptions { ack: Some(Ack::All), ..StoreOptions::default() };
        let report = self.cluster.wait(blocks.store(prefix, 0..prefix.len(), &bytes, all)).expect("they fit");
        assert_eq!(report.acknowledged(), prefix.len(), "{report:?}");
    }

    fn follow(&self, name: &str, events: &str, replay: &str, more: &[&str]) {
        let words = ["engines", "follow", name, "--model", "tiny@1", "--block-tokens", "16"];
        let words = [&words[..], &["--events", events, "--replay", replay], more].concat();
        self.cluster.json(&words).expect("it is followed");
    }

    /// Waits until so many blocks of what is followed under a name are known, and nothing is missing.
    fn hears_the_first_engine(&self) {
        self.cluster.until("the engine to be heard", || {
            let list = self.cluster.json(&["engines"]).ok()?;
            (list["engines"][0]["known"]["connected"] == true).then_some(())
        });
    }

    fn knows(&self, name: &str, blocks: u64) -> Value {
        self.cluster.until(&format!("{blocks} blocks of {name} to be known"), || {
            let list = self.cluster.json(&["engines"]).ok()?;
            let one = list["engines"].as_array()?.iter().find(|one| one["name"] == name)?.clone();
            (one["known"]["blocks"] == blocks && one["known"]["exact"] == true).then_some(one)
        })
    }

    /// Asks which blocks are there, by the engine's hashes of them.
    fn check(&self, body: Value) -> (u16, Value) {
        let running = self.cluster.running();
        let admin = running["admin_urls"][0].as_str().expect("an address");
        let asked = ureq::post(format!("{admin}/check_blocks"))
            .header("authorization", format!("Bearer {}", self.cluster.token()))
            .config()
            .http_status_as_error(false)
            .build();
        let mut answer = asked.send_json(body).expect("it answers");
        let status = answer.status().as_u16();
        (status, answer.body_mut().read_json::<Value>().expect("it is JSON"))
    }

    /// Writes down how an engine's blocks are named here.
    fn blocks_file(&self, named_by: &str) -> String {
        let layout = json!({
            "layers": 2, "kv_heads": 2, "head_dim": 64, "tokens": 16, "dtype": "f16", "order": "layers-first",
        });
        let path = format!("{}/blocks-{named_by}.json", self.cluster.dir());
        let text = json!({"layout": layout, "named_by": named_by}).to_string();
        std::fs::write(&path, text).expect("room for it");
        path
    }
}

#[test]
fn who_follows_engines_follows_kvhive_as_one_of_them() {
    let publishing = Publishing::start();
    let blocks = publishing.blocks();
    publishing.store(&blocks, &blocks.keys(&tokens(5)));
    publishing.follow("hive", &publishing.events, &publishing.replay, &[]);
    // Told once, though two nodes have each of them, and though they were there before anybody listened.
    let known = publishing.knows("hive", 5);
    assert_eq!((&known["trouble"], &known["ignored"]), (&"".into(), &0.into()), "{known}");
    let other = blocks.keys(&[9; 48]);
    publishing.store(&blocks, &other);
    publishing.knows("hive", 8);
    run(&["tenants", "clear", "default", "--dir", publishing.cluster.dir()]).expect("it is cleared");
    publishing.knows("hive", 0);
    publishing.store(&blocks, &other);
    publishing.knows("hive", 3);
    // Who comes later, or again, knows as much.
    publishing.cluster.json(&["engines", "forget", "hive"]).expect("it is known");
    publishing.follow("again", &publishing.events, &publishing.replay, &["--topic", TOPIC]);
    publishing.knows("again", 3);
}

#[test]
fn a_router_is_told_which_blocks_of_a_prompt_are_there() {
    let publishing = Publishing::start();
    let blocks = publishing.blocks();
    let hashes: Vec<u64> = (1..=6).map(|at| u64::MAX - at).collect();
    let bytes: Vec<[u8; 8]> = hashes.iter().map(|hash| hash.to_be_bytes()).collect();
    publishing.store(&blocks, &blocks.prefix_of_engine_hashes(&bytes[..4]));
    let ask = |body| publishing.check(body);
    let (status, refused) = ask(json!({"block_hashes": hashes}));
    assert_eq!(status, 409, "{refused}");
    assert!(refused["detail"].as_str().expect("words").contains("by hashes"), "{refused}");
    let file = publishing.blocks_file("hashes");
    publishing.follow("vllm-0", "tcp://127.0.0.1:9", "tcp://127.0.0.1:9", &["--blocks-file", &file]);
    publishing.cluster.until("what is there to be said", || {
        (ask(json!({"block_hashes": hashes})) == (200, json!({"ranges": [[0, 4]]}))).then_some(())
    });
    assert_eq!(
        ask(json!({"block_hashes": &hashes[..2], "engine": "vllm-0"})),
        (200, json!({"ranges": [[0, 2]]}))
    );
    assert_eq!(
        ask(json!({"block_hashes": &hashes[1..]})),
        (200, json!({"ranges": []})),
        "not from its begin"
    );
    assert_eq!(ask(json!({"block_hashes": []})), (200, json!({"ranges": []})));
    assert_eq!(ask(json!({"block_hashes": ["a"]})).0, 400);
}

#[test]
#[ignore = "takes Python with pyzmq and msgspec: scripts/test engines"]
fn blocks_under_whole_hashes_are_found_by_cut_ones_and_by_tokens() {
    let publishing = Publishing::start();
    let mut engine = Engine::start();
    let file = publishing.blocks_file("hashes");
    publishing.follow("vllm-0", &engine.events, &engine.replay, &["--blocks-file", &file]);
    // Of the same weights, and never heard.
    publishing.follow("vllm-1", "tcp://127.0.0.1:9", "tcp://127.0.0.1:9", &["--blocks-file", &file]);
    publishing.hears_the_first_engine();
    engine.say("publish", vec![stored(0..4)]);
    publishing.knows("vllm-0", 4);
    // As vLLM's connector hands them over: whole. Three of four are there.
    let blocks = publishing.blocks();
    let whole: Vec<[u8; 32]> = (1..=3).map(|at| [at; 32]).collect();
    publishing.store(&blocks, &blocks.prefix_of_engine_hashes(&whole));
    let cut: Vec<u64> = (1..=4).map(|at| u64::from_be_bytes([at; 8])).collect();
    publishing.cluster.until("what is there to be said", || {
        (publishing.check(json!({"block_hashes": cut})) == (200, json!({"ranges": [[0, 3]]}))).then_some(())
    });
    // What the engine has forgotten since is told of all the same.
    engine.say("publish", (0..4).map(removed).collect());
    publishing.knows("vllm-0", 0);
    let prompt = format!("{}/prompt.json", publishing.cluster.dir());
    std::fs::write(&prompt, json!(tokens(6)).to_string()).expect("room for it");
    for name in ["vllm-0", "vllm-1"] {
        let chosen = publishing.cluster.json(&["route", "--tokens-file", &prompt, "--candidates", name]);
        let chosen = chosen.expect("it answers");
        let terms = chosen["ranked"][0]["terms"].as_array().expect("terms");
        let hive =
            terms.iter().filter(|term| term["part"].as_str().is_some_and(|part| part.starts_with("hive_")));
        let hive: u64 = hive.filter_map(|term| term["amount"].as_u64()).sum();
        assert_eq!(hive, 48, "{chosen}");
    }
}

#[test]
#[ignore = "takes Python with pyzmq and msgspec: scripts/test engines"]
fn a_reader_made_for_vllm_reads_kvhives_blocks_by_their_engines_names() {
    let publishing = Publishing::start();
    let mut engine = Engine::start();
    let file = publishing.blocks_file("tokens");
    publishing.follow("vllm-0", &engine.events, &engine.replay, &["--blocks-file", &file]);
    publishing.hears_the_first_engine();
    engine.say("publish", vec![stored(0..4)]);
    publishing.knows("vllm-0", 4);
    let blocks = publishing.blocks();
    let prefix = blocks.keys(&tokens(6));
    publishing.store(&blocks, &prefix);

    let mut reader = Reader::start(&publishing.events, &publishing.replay, TOPIC);
    let names: Vec<String> = (1..=4).map(|at| format!("{at:02x}").repeat(32)).collect();
    let (mut told, mut seen): (BTreeSet<String>, Vec<(String, u64, Value)>) = Default::default();
    let wanted = |told: &BTreeSet<String>| names.iter().all(|name| told.contains(name)) && told.len() == 6;
    while !wanted(&told) {
        reader.ask(0);
        loop {
            let next = reader.read();
            if next.0 == "end" {
                break;
            }
            let hashes = next.2["block_hashes"].as_array().cloned().unwrap_or_default();
            told.extend(
                hashes.iter().map(|hash| hash.as_str().map_or_else(|| hash.to_string(), str::to_owned)),
            );
            seen.push(next);
        }
    }
    // What is told live may come between; what is repeated begins with that.
    let begins = seen.iter().find(|one| one.0 != "live").expect("something was repeated");
    assert_eq!((&begins.1, &begins.2["type"]), (&0, &json!("AllBlocksCleared")));
    let stored: Vec<&Value> =
        seen.iter().map(|one| &one.2).filter(|event| event["type"] == "BlockStored").collect();
    let first =
        stored.iter().find(|event| event["block_hashes"][0] == names[0].as_str()).expect("it is told of");
    assert_eq!((&first["parent_block_hash"], &first["block_size"]), (&Value::Null, &json!(16)));
    assert_eq!((&first["medium"], &first["token_ids"][15]), (&json!("CPU"), &json!(15)));
    let second = stored
        .iter()
        .find_map(|event| {
            event["block_hashes"].as_array()?.iter().position(|hash| *hash == names[1].as_str())
        })
        .expect("it is told of");
    assert!(second <= 1, "by itself, or behind its parent");
    // What no engine has told of is told by a number and without tokens, as vLLM tells of what it has offloaded.
    let unknown = stored.iter().find(|event| event["block_hashes"][0].is_number()).expect("two are unknown");
    assert_eq!((&unknown["token_ids"], &unknown["block_size"]), (&json!([]), &json!(0)));

    // Live, and by the same names.
    run(&["tenants", "clear", "default", "--dir", publishing.cluster.dir()]).expect("it is cleared");
    let mut gone = BTreeSet::new();
    while gone != told {
        let (how, _, event) = reader.read();
        if event["type"] == "BlockStored" {
            // Of before.
            continue;
        }
        assert_eq!((how.as_str(), &event["type"]), ("live", &json!("BlockRemoved")), "{event}");
        let hashes = event["block_hashes"].as_array().expect("a list");
        gone.extend(hashes.iter().map(|hash| hash.as_str().map_or_else(|| hash.to_string(), str::to_owned)));
    }
    reader.ask(u64::MAX >> 1);
    assert_eq!(reader.read().0, "end");
}

#[test]
#[ignore = "takes Python with pyzmq and msgspec: scripts/test engines"]
fn blocks_that_are_there_before_their_engine_is_followed_get_its_names() {
    let publishing = Publishing::start();
    let mut engine = Engine::start();
    engine.say("publish", vec![stored(0..4)]);
    let blocks = publishing.blocks();
    publishing.store(&blocks, &blocks.keys(&tokens(4)));
    let mut reader = Reader::start(&publishing.events, &publishing.replay, TOPIC);
    // Of what is there, whether it has tokens.
    let mut there = |has_tokens: bool| {
        publishing.cluster.until("four blocks to be told of", || {
            let mut names: BTreeMap<String, bool> = BTreeMap::new();
            reader.ask(0);
            loop {
                let (how, _, event) = reader.read();
                if how == "end" {
                    break;
                }
                let hashes = event["block_hashes"].as_array().cloned().unwrap_or_default();
                for hash in hashes.iter().map(Value::to_string).filter(|_| how == "replay") {
                    match event["type"] == "BlockStored" {
                        true => names.insert(hash, event["block_size"] == 16),
                        false => names.remove(&hash),
                    };
                }
            }
            (names.len() == 4 && names.values().all(|has| *has == has_tokens)).then_some(names)
        })
    };
    there(false);
    let file = publishing.blocks_file("tokens");
    publishing.follow("vllm-0", &engine.events, &engine.replay, &["--blocks-file", &file]);
    let names: Vec<String> = there(true).into_keys().collect();
    let expected: Vec<String> = (1..=4).map(|at| format!("{:?}", format!("{at:02x}").repeat(32))).collect();
    assert_eq!(names, expected);
}
