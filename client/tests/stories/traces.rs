//! Traced calls: whose part nodes are told that their requests are.

use crate::fakes::{Cluster, Text};
use kvhive_client::{Client, ClientConfig, NamespaceClient, Prefix, StoreOptions, Tracer, TracerConfig};
use kvhive_protocol::trace::{SpanId, SpanKind, TraceAnswer, TraceAsk};
use kvhive_protocol::{TraceContext, TraceId};
use std::collections::BTreeSet;

fn context() -> TraceContext {
    TraceContext { trace: TraceId::of_request("a"), span: SpanId::new([7; 8]).expect("it is not zero") }
}

async fn store_match_fetch(blocks: &NamespaceClient, prefix: &Prefix) {
    let block = vec![1; blocks.block_bytes() as usize];
    let bytes = vec![&block[..]; prefix.len()];
    let stored = blocks.store(prefix, 0..prefix.len(), &bytes, StoreOptions::default()).await;
    assert_eq!(stored.expect("range and blocks fit").acknowledged(), prefix.len());
    assert_eq!(blocks.match_prefix(prefix).await.expect("it is short").covered, prefix.len());
    let mut memory = vec![block.clone(); prefix.len()];
    let mut targets: Vec<&mut [u8]> = memory.iter_mut().map(|block| &mut block[..]).collect();
    let fetched = blocks.fetch_into(prefix, 0..prefix.len(), &mut targets).await;
    assert_eq!(fetched.expect("range and memory fit").delivered(), prefix.len());
}

#[tokio::test]
async fn what_its_caller_traces_is_passed_on_and_what_nobody_traces_carries_nothing() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let Text { namespace, prefix, .. } = Text::of(&client, 3);
    store_match_fetch(&namespace, &prefix).await;
    let plain = cluster.nodes[0].contexts();
    assert!(plain.len() >= 3 && plain.iter().all(Option::is_none), "{plain:?}");
    store_match_fetch(&namespace.traced(context()), &prefix).await;
    let traced = &cluster.nodes[0].contexts()[plain.len()..];
    assert!(traced.len() >= 3 && traced.iter().all(|one| *one == Some(context())), "{traced:?}");
}

#[tokio::test]
async fn a_client_that_records_has_its_own_requests_between() {
    let cluster = Cluster::start(1, 1).await;
    let config = TracerConfig {
        service: "engine".into(),
        process: "engine".into(),
        endpoint: None,
        sample_ppm: 0,
        keep: 4,
    };
    let tracer = Tracer::new(&config).expect("nothing is exported");
    let config = ClientConfig { tracer: tracer.clone(), ..cluster.config() };
    let client = Client::connect(config).await.expect("the coordinator answers");
    let Text { namespace, prefix, .. } = Text::of(&client, 3);
    store_match_fetch(&namespace, &prefix).await;
    assert_eq!(tracer.answer(TraceAsk::Newest(9)), TraceAnswer::Newest(Vec::new()), "nobody asked for it");
    store_match_fetch(&namespace.traced(context()), &prefix).await;

    let TraceAnswer::Spans(spans) = tracer.answer(TraceAsk::One(context().trace)) else {
        panic!("it is kept")
    };
    let calls: Vec<_> = spans.iter().filter(|span| span.parent == Some(context().span)).collect();
    let names: BTreeSet<&str> = calls.iter().map(|span| &*span.name).collect();
    assert_eq!(names, BTreeSet::from(["fetch blocks", "match prefix", "store blocks"]));
    let asked: BTreeSet<SpanId> =
        spans.iter().filter(|span| span.kind == SpanKind::Asked).map(|span| span.id).collect();
    let told: BTreeSet<SpanId> =
        cluster.nodes[0].contexts().into_iter().flatten().map(|one| one.span).collect();
    assert_eq!(told, asked, "nodes are told of the very requests");
}
