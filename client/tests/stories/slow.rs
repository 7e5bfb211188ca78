//! Slow replicas: who reads asks another one, and stays away from what is slow.

use crate::fakes::{Cluster, Node, Text, Turn, device, in_patience};
use kvhive_client::{Client, ClientConfig, FetchOutcome, MissReason};
use kvhive_protocol::data::DataRequest;
use kvhive_protocol::map::Filling;
use kvhive_protocol::{SLOTS, Slot};
use std::sync::Arc;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(600);

fn fetches(node: &Node) -> usize {
    node.requests().iter().filter(|request| matches!(request, DataRequest::Fetch(_))).count()
}

/// Two nodes that both hold all of a text.
async fn replicated(replicas: usize) -> Cluster {
    let cluster = Cluster::start(replicas, replicas).await;
    let text = Text::of(&cluster.client().await, 8);
    text.store().await;
    for node in &cluster.nodes[1..] {
        node.copy_from(&cluster.nodes[0]);
    }
    cluster
}

#[tokio::test]
async fn blocks_of_a_silent_primary_come_from_another_replica() {
    let cluster = replicated(2).await;
    let client = cluster.client().await;
    let text = Text::of(&client, 8);
    cluster.nodes[0].always(Turn::hang());
    text.fetch_all().await;
    assert_eq!(client.stats().hedges, 1);
    for _ in 0..20 {
        text.fetch_all().await;
    }
    // From then on it is asked only where the other one is late itself, as on a busy machine.
    assert_eq!(fetches(&cluster.nodes[1]), 21);
    assert!(fetches(&cluster.nodes[0]) as u64 <= client.stats().hedges, "{:?}", client.stats());
}

#[tokio::test]
async fn a_match_does_not_wait_for_a_silent_primary() {
    let cluster = replicated(2).await;
    let client = cluster.client().await;
    let text = Text::of(&client, 8);
    cluster.nodes[0].always(Turn::hang());
    assert_eq!(text.covered().await, (8, 0));
    assert_eq!(client.stats().hedges, 1);
}

#[tokio::test]
async fn a_replica_that_is_still_being_filled_has_no_say_in_what_is_there() {
    let cluster = Cluster::start(2, 2).await;
    let being_filled = Filling { devices: vec![device(1)], streams: true };
    cluster.coordinator.change(|map| {
        map.filling = Arc::new((0..SLOTS).map(|slot| (Slot(slot), being_filled.clone())).collect());
    });
    let client = cluster.client().await;
    let text = Text::of(&client, 8);
    text.store().await;
    cluster.nodes[0].always(Turn::late(Duration::from_millis(120)));
    assert_eq!(text.covered().await, (8, 0));
    assert_eq!((client.stats().hedges, cluster.nodes[1].asked()), (0, 0));
}

#[tokio::test]
async fn what_the_other_replica_lacks_is_awaited_from_the_late_one() {
    let cluster = Cluster::start(2, 2).await;
    let client = cluster.client().await;
    let text = Text::of(&client, 8);
    text.store().await;
    cluster.nodes[0].always(Turn::late(Duration::from_millis(120)));
    text.fetch_all().await;
    assert_eq!((client.stats().hedges, fetches(&cluster.nodes[1])), (1, 1));
}

#[tokio::test]
async fn what_a_quicker_replica_lacks_is_asked_of_the_primary() {
    let cluster = Cluster::start(2, 2).await;
    let client = cluster.client().await;
    let text = Text::of(&client, 8);
    text.store().await;
    // The client learns that the primary is slow, so the other one is asked first.
    cluster.nodes[0].next(Turn::late(Duration::from_millis(150)));
    text.fetch_all().await;
    let asked = fetches(&cluster.nodes[1]);
    text.fetch_all().await;
    assert_eq!(fetches(&cluster.nodes[1]), asked + 1);
    assert_eq!(fetches(&cluster.nodes[0]), 2);
}

#[tokio::test]
async fn a_block_that_no_replica_has_is_absent() {
    let cluster = Cluster::start(2, 2).await;
    let client = cluster.client().await;
    let text = Text::of(&client, 3);
    cluster.nodes[0].next(Turn::late(Duration::from_millis(150)));
    let report = text.fetch().await;
    assert_eq!(report.outcomes, [FetchOutcome::Missed(MissReason::Absent); 3]);
}

#[tokio::test]
async fn a_block_of_one_replica_is_awaited_as_before() {
    let cluster = Cluster::start(2, 1).await;
    let client = cluster.client().await;
    let text = Text::of(&client, 8);
    text.store().await;
    cluster.nodes[0].next(Turn::late(Duration::from_millis(120)));
    text.fetch_all().await;
    assert_eq!((client.stats().hedges, cluster.nodes[1].asked()), (0, 0));
}

#[tokio::test]
async fn a_cluster_that_is_slow_as_a_whole_is_not_asked_twice_for_everything() {
    let cluster = replicated(2).await;
    let client = cluster.client().await;
    let texts: Vec<Text> = (0..40).map(|_| Text::of(&client, 8)).collect();
    for node in &cluster.nodes {
        node.always(Turn::late(Duration::from_millis(60)));
    }
    in_patience(futures_util::future::join_all(texts.iter().map(Text::fetch_all))).await;
    // Ten that may come at once, and a tenth of all.
    assert!((1..=14).contains(&client.stats().hedges), "{:?}", client.stats());
}

#[tokio::test]
async fn readers_of_a_hot_slot_spread_over_its_replicas() {
    let cluster = replicated(4).await;
    for _ in 0..40 {
        let text = Text::of(&cluster.client().await, 8);
        assert_eq!(text.covered().await, (8, 0));
        text.fetch_all().await;
    }
    for (at, node) in cluster.nodes.iter().enumerate() {
        // 40 clients, two segments each, a quarter of them here: few enough that none at all is one in a billion.
        assert!(fetches(node) >= 4, "{} of {:?}", fetches(node), device(at));
    }
}

#[tokio::test]
async fn who_is_near_a_replica_reads_there_and_elsewhere_what_that_lacks() {
    let cluster = replicated(2).await;
    // The fakes' names are their addresses.
    let near = Some(cluster.nodes[1].address.clone());
    let client = Client::connect(ClientConfig { near, ..cluster.config() }).await.expect("it answers");
    let text = Text::of(&client, 8);
    assert_eq!(text.covered().await, (8, 0));
    // The primary says what is there; others are asked besides only where it is late.
    assert!(cluster.nodes[1].asked() as u64 <= client.stats().hedges, "{:?}", client.stats());
    for _ in 0..10 {
        text.fetch_all().await;
    }
    // Of others only where it is late, as on a busy machine: a test of `waits` says exactly when.
    assert!(fetches(&cluster.nodes[1]) >= 1, "{:?}", client.stats());
    let before = fetches(&cluster.nodes[0]);
    let other = Text::numbered(&client, 1, 8);
    other.store().await;
    other.fetch_all().await;
    assert!(fetches(&cluster.nodes[0]) > before, "the primary has what it lacks");
}

#[tokio::test]
async fn fetching_is_compared_with_recomputing() {
    let cluster = replicated(1).await;
    let client = cluster.client().await;
    let text = Text::of(&client, 8);
    let advise = |rate| text.namespace.advise(&text.prefix, 0..8, rate);
    let first = advise(1000.0).expect("the range fits");
    assert_eq!((first.fetching, first.recomputing), (None, Duration::from_millis(128)));
    assert!(first.is_worth_fetching(), "nobody knows");
    let big = Text::numbered(&client, 1, 300);
    big.store().await;
    cluster.nodes[0].next(Turn::late(Duration::from_millis(200)));
    big.fetch_all().await;
    let slow = advise(1e9).expect("the range fits");
    assert!(slow.fetching.is_some() && !slow.is_worth_fetching(), "{slow:?}");
    let fast = advise(0.01).expect("the range fits");
    assert!(fast.is_worth_fetching() && fast.recomputing > LONG, "{fast:?}");
    for rate in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(advise(rate).is_err());
    }
    assert!(text.namespace.advise(&text.prefix, 0..9, 1.0).is_err());
}

#[tokio::test]
async fn a_call_may_be_given_less_time_than_its_client_has() {
    let cluster = replicated(1).await;
    let client = cluster.client().await;
    let text = Text::of(&client, 8);
    cluster.nodes[0].always(Turn::hang());
    let hurried = Text { namespace: text.namespace.within(Duration::from_millis(30)), prefix: text.prefix };
    let report = hurried.fetch().await;
    assert_eq!(report.outcomes, [FetchOutcome::Missed(MissReason::Unreachable); 8]);
}
