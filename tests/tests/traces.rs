//! Traces of requests on a cluster of real processes: one request's spans from the client to the node to its peer, at a collector and
//! by `kvhive trace`; and nothing at all of what is not traced.

use kvhive_client::{Client, ClientConfig, NamespaceClient, StoreOptions, Tracer, TracerConfig};
use kvhive_protocol::data::Ack;
use kvhive_protocol::trace::{Parent, SpanId};
use kvhive_protocol::{TraceContext, TraceId};
use kvhive_tests::collector::{Collected, Collector};
use kvhive_tests::{Cluster, run};
use serde_json::Value;

const REQUEST: &str = "chatcmpl-4bf92f35-77b3-4da6-a3ce-929d0e0e4736";
const BLOCK: u32 = 4096;

fn context() -> TraceContext {
    TraceContext { trace: TraceId::of_request(REQUEST), span: SpanId::new([7; 8]).expect("it is not zero") }
}

/// Stores a prefix of four blocks, acknowledged by all, and fetches it.
fn store_and_fetch(cluster: &Cluster, blocks: &NamespaceClient, token: u32) {
    let prefix = blocks.keys(&[token; 64]);
    let bytes = vec![vec![token as u8; BLOCK as usize]; prefix.len()];
    let bytes: Vec<&[u8]> = bytes.iter().map(|block| &block[..]).collect();
    let all = StoreOptions { ack: Some(Ack::All), ..StoreOptions::default() };
    let stored = cluster.wait(blocks.store(&prefix, 0..prefix.len(), &bytes, all)).expect("it is asked well");
    assert_eq!(stored.acknowledged(), prefix.len(), "{stored:?}");
    let covered = cluster.wait(blocks.match_prefix(&prefix)).expect("it is asked well").covered;
    assert_eq!(covered, prefix.len());
    let mut memory = vec![vec![0; BLOCK as usize]; covered];
    let mut targets: Vec<&mut [u8]> = memory.iter_mut().map(|block| &mut block[..]).collect();
    let fetched =
        cluster.wait(blocks.fetch_into(&prefix, 0..covered, &mut targets)).expect("it is asked well");
    assert_eq!(fetched.delivered(), covered);
}

fn spans(trace: &Value) -> &Vec<Value> {
    trace["spans"].as_array().expect("a list")
}

fn one<'a>(spans: &'a [Collected], sender: &str, name: &str, kind: i32) -> &'a Collected {
    let is_it = |one: &&Collected| one.sender.0 == sender && one.span.name == name && one.span.kind == kind;
    spans.iter().find(is_it).unwrap_or_else(|| panic!("no {name} of {sender} among {spans:#?}"))
}

/// OTLP's numbers.
const SERVER: i32 = 2;
const CLIENT: i32 = 3;

#[test]
fn a_traced_request_is_followed_from_the_client_to_the_node_to_its_peer() {
    let collector = Collector::start();
    let options =
        ["--coordinators", "1", "--nodes", "2", "--devices", "1", "--replicas", "2", "--block-size", "4KiB"];
    let cluster = Cluster::start_with(&options, &[("KVHIVE_TRACES__ENDPOINT", collector.url())]);
    cluster.until("two replicas of each slot", || {
        let slots = cluster.json(&["slots"]).ok()?;
        let devices = slots["devices"].as_array()?;
        (devices.len() == 2 && devices.iter().all(|device| device["slots"] == 4096)).then_some(())
    });
    let tracer = Tracer::new(&TracerConfig {
        service: "engine".into(),
        process: "engine-0".into(),
        endpoint: Some(collector.url().into()),
        sample_ppm: 0,
        keep: 0,
    })
    .expect("its collector has a URL");
    let config = ClientConfig { tracer: tracer.clone(), ..cluster.client_config() };
    let client = cluster.wait(Client::connect(config)).expect("a coordinator answers");
    let plain = cluster.blocks(&client, BLOCK);

    store_and_fetch(&cluster, &plain, 1);
    let none = cluster.json(&["trace"]).expect("the cluster answers");
    assert_eq!(none["traces"], Value::Array(Vec::new()), "nothing was traced: {none}");

    store_and_fetch(&cluster, &plain.traced(context()), 2);
    tracer.close();

    // What processes keep, by the id of the request itself.
    let trace = cluster.until("the peer's part", || {
        let trace = cluster.json(&["trace", REQUEST]).ok()?;
        spans(&trace).iter().any(|span| span["name"] == "copy" && span["kind"] == "served").then_some(trace)
    });
    assert_eq!(trace["trace"], "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(trace["silent"], Value::Array(Vec::new()));
    let of = |name: &str, kind: &str| {
        let found = spans(&trace).iter().find(|span| span["name"] == name && span["kind"] == kind);
        found.unwrap_or_else(|| panic!("no {name} in {trace:#}")).clone()
    };
    // A store that was asked for once more, as the map had changed, is there twice.
    let with = |id: &Value| {
        let found = spans(&trace).iter().find(|span| span["span"] == *id);
        found.unwrap_or_else(|| panic!("no {id} in {trace:#}")).clone()
    };
    let copy = of("copy", "served");
    let asked = with(&copy["parent"]);
    let store = with(&asked["parent"]);
    assert_eq!((&asked["name"], &asked["kind"]), (&"copy".into(), &"asked".into()));
    assert_eq!((&store["name"], &store["kind"]), (&"store".into(), &"served".into()));
    assert_eq!(store["process"], asked["process"]);
    assert_ne!(store["process"], copy["process"], "it went to the other node");
    assert_eq!(
        (&store["facts"]["kvhive.tenant"], &store["facts"]["kvhive.new"]),
        (&"default".into(), &4.into())
    );
    let fetch = of("fetch", "served");
    let bytes = 4 * u64::from(BLOCK);
    assert_eq!((&fetch["facts"]["kvhive.hits"], &fetch["facts"]["kvhive.bytes"]), (&4.into(), &bytes.into()));
    for part in ["queue", "device", "send", "receive and verify"] {
        of(part, "inner");
    }
    let text = run(&["trace", REQUEST, "--dir", cluster.dir()]).expect("the cluster answers").stdout;
    let text = String::from_utf8(text).expect("it is text");
    assert!(text.contains("  → copy") && text.contains("tenant=default"), "{text}");

    // The same at the collector, with the client's own part on top.
    let all = cluster.until("all parts at the collector", || {
        let all = collector.spans();
        let has = |name: &str, kind: i32| {
            all.iter()
                .any(|one| one.sender.0 == "kvhive-node" && one.span.name == name && one.span.kind == kind)
        };
        // Each node sends its own, when it has some.
        (has("copy", SERVER) && has("copy", CLIENT) && has("store", SERVER)).then_some(all)
    });
    assert!(all.iter().all(|one| one.trace() == "4bf92f3577b34da6a3ce929d0e0e4736"), "{all:#?}");
    let parent = |of: &Collected| {
        let found = all.iter().find(|one| one.span.span_id == of.span.parent_span_id);
        found.unwrap_or_else(|| panic!("no parent of {of:#?} among {all:#?}"))
    };
    let is = |one: &Collected, sender: &str, name: &str, kind: i32| {
        assert_eq!((&*one.sender.0, &*one.span.name, one.span.kind), (sender, name, kind));
    };
    let copied = one(&all, "kvhive-node", "copy", SERVER);
    let asked = parent(copied);
    is(asked, "kvhive-node", "copy", CLIENT);
    let served = parent(asked);
    is(served, "kvhive-node", "store", SERVER);
    assert_ne!(copied.sender.1, served.sender.1);
    assert_eq!(served.fact("kvhive.asker").as_deref(), Some("client"));
    let request = parent(served);
    is(request, "engine", "store", CLIENT);
    let call = parent(request);
    is(call, "engine", "store blocks", 1);
    assert_eq!(call.span.parent_span_id, [7; 8]);

    // A request to the admin API is a part of whatever it comes with.
    let admin = cluster.running()["admin_urls"][0].as_str().expect("an address").to_owned();
    ask_with(&cluster, &admin, &context().to_string());
    let trace = cluster.json(&["trace", &context().to_string()]).expect("the cluster answers");
    let asked = spans(&trace).iter().find(|span| span["name"] == "admin request").expect("it was traced");
    assert_eq!(
        (&asked["facts"]["url.path"], &asked["parent"]),
        (&"/v1/members".into(), &"0707070707070707".into())
    );
    let listed = cluster.json(&["trace"]).expect("the cluster answers");
    assert_eq!(listed["traces"].as_array().map(Vec::len), Some(1), "{listed}");
}

#[test]
fn what_is_sampled_needs_nobody_to_ask_for_it_and_a_collector_that_is_away_harms_nobody() {
    let away = Collector::start();
    let url = away.url().to_owned();
    drop(away);
    let options = ["--coordinators", "1", "--nodes", "1", "--devices", "1", "--block-size", "4KiB"];
    let variables = [("KVHIVE_TRACES__SAMPLE", "1"), ("KVHIVE_TRACES__ENDPOINT", &url)];
    let cluster = Cluster::start_with(&options, &variables);
    let client = cluster.client();
    store_and_fetch(&cluster, &cluster.blocks(&client, BLOCK), 3);
    let listed = cluster.json(&["trace", "-n", "50"]).expect("the cluster answers");
    let names: Vec<&str> =
        listed["traces"].as_array().expect("a list").iter().filter_map(|one| one["name"].as_str()).collect();
    for name in ["store", "match", "fetch"] {
        assert!(names.contains(&name), "{names:?}");
    }
    let metrics = cluster.status()["nodes"][0]["metrics_address"].as_str().expect("an address").to_owned();
    cluster.until("the failure to be counted", || {
        let page = cluster.get(&metrics, "/metrics");
        let failed = page.lines().find(|line| line.starts_with("kvhive_trace_exports_failed_total "))?;
        (!failed.ends_with(" 0")).then_some(())
    });
    // Whoever says that it records nothing has chosen for everybody.
    let unsampled = context().to_string().replace("-01", "-00");
    assert_eq!(unsampled.parse(), Ok(Parent::Unsampled));
    let admin = cluster.running()["admin_urls"][0].as_str().expect("an address").to_owned();
    ask_with(&cluster, &admin, &unsampled);
    let missing = cluster.json(&["trace", REQUEST]).expect_err("it was not traced").to_string();
    assert!(missing.contains("nothing is kept of trace 4bf92f3577b34da6a3ce929d0e0e4736"), "{missing}");
}

/// Asks the admin API for the members, as a part of something.
fn ask_with(cluster: &Cluster, admin: &str, traceparent: &str) {
    let asked = ureq::get(format!("{admin}/v1/members"))
        .header("authorization", format!("Bearer {}", cluster.token()))
        .header("traceparent", traceparent);
    assert_eq!(asked.call().expect("it answers").status(), 200);
}
