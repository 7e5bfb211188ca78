//! Routing on a cluster of real processes: an engine that speaks through ZeroMQ's own library, blocks in kvhive, one answer.

use anyhow::Context;
use kvhive_client::StoreOptions;
use kvhive_protocol::engines::EngineLoad;
use kvhive_protocol::routing::{Part, RouteRequest};
use kvhive_protocol::{AxisOrder, Dtype, Layout};
use kvhive_tests::Cluster;
use rmpv::Value as Msg;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

/// Blocks of 16 KiB.
const LAYOUT: Layout = Layout {
    layers: 2,
    kv_heads: 2,
    head_dim: 64,
    tokens: 16,
    dtype: Dtype::F16,
    order: AxisOrder::LayersFirst,
};
/// vLLM's publisher in a few lines: PUB and ROUTER sockets of libzmq, batches kept for replays, all in one loop.
const PUBLISHER: &str = r#"
import json, sys, zmq
context = zmq.Context()
publisher, router = context.socket(zmq.PUB), context.socket(zmq.ROUTER)
for socket in (publisher, router):
    socket.bind("tcp://127.0.0.1:*")
print(json.dumps([socket.getsockopt_string(zmq.LAST_ENDPOINT) for socket in (publisher, router)]), flush=True)
poller, ring = zmq.Poller(), []
poller.register(router, zmq.POLLIN)
poller.register(sys.stdin.fileno(), zmq.POLLIN)
while True:
    ready = dict(poller.poll())
    if router in ready:
        asker, _, start = router.recv_multipart()
        for number in range(int.from_bytes(start, "big"), len(ring)):
            router.send_multipart((asker, b"", number.to_bytes(8, "big"), ring[number]))
        router.send_multipart((asker, b"", (-1).to_bytes(8, "big", signed=True), b""))
    if sys.stdin.fileno() in ready:
        line = sys.stdin.buffer.raw.readline()
        if not line:
            break
        verb, payload = line.split()
        ring.append(bytes.fromhex(payload.decode()))
        if verb == b"publish":
            publisher.send_multipart((b"kv-events", (len(ring) - 1).to_bytes(8, "big"), ring[-1]))
"#;

/// An engine of another process. Dropped, it ends.
struct Engine {
    process: Child,
    words: Option<ChildStdin>,
    events: String,
    replay: String,
}

impl Engine {
    fn start() -> Engine {
        let mut python =
            Command::new(std::env::var_os("KVHIVE_PYTHON").expect("scripts/test engines says which"));
        python.args(["-c", PUBLISHER]);
        let mut process = python.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it is there");
        let mut first = String::new();
        BufReader::new(process.stdout.take().expect("piped")).read_line(&mut first).expect("it says where");
        let [events, replay]: [String; 2] = serde_json::from_str(&first).expect("two endpoints");
        let words = process.stdin.take();
        Engine { process, words, events, replay }
    }

    fn say(&mut self, verb: &str, events: Vec<Msg>) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64();
        let mut payload = Vec::new();
        let batch = Msg::Array(vec![Msg::from(now), Msg::Array(events), Msg::from(0)]);
        rmpv::encode::write_value(&mut payload, &batch).expect("it encodes");
        let hex: String = payload.iter().map(|byte| format!("{byte:02x}")).collect();
        let words = self.words.as_mut().expect("it runs");
        writeln!(words, "{verb} {hex}").expect("it listens");
        words.flush().expect("it listens");
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        drop(self.words.take());
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn tokens(blocks: u32) -> Vec<u32> {
    (0..blocks * LAYOUT.tokens).collect()
}

fn hashes(blocks: std::ops::Range<u32>) -> Msg {
    Msg::Array(blocks.map(|at| Msg::Binary(vec![at as u8 + 1; 32])).collect())
}

fn stored(blocks: std::ops::Range<u32>) -> Msg {
    let own = tokens(blocks.end)[(blocks.start * LAYOUT.tokens) as usize..].to_vec();
    let pairs = [
        ("type", Msg::from("BlockStored")),
        ("block_hashes", hashes(blocks)),
        ("parent_block_hash", Msg::Nil),
        ("token_ids", Msg::Array(own.into_iter().map(Msg::from).collect())),
        ("block_size", Msg::from(LAYOUT.tokens)),
        ("lora_id", Msg::Nil),
        ("medium", Msg::from("GPU")),
    ];
    Msg::Map(pairs.into_iter().map(|(name, value)| (Msg::from(name), value)).collect())
}

fn removed(at: u32) -> Msg {
    // As releases before the maps say it.
    Msg::Array(vec![Msg::from("BlockRemoved"), hashes(at..at + 1), Msg::from("GPU")])
}

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
    let blocks = client.namespace("default", "tiny@1", LAYOUT, 0)?;
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
    assert_eq!(chosen["ranked"][0]["known"]["connected"], false);

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
