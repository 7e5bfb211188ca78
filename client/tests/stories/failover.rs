//! Members that are gone, have no lease or let nobody in: the replica is asked, and who was merely restarted is asked again.

use crate::fakes::{Answer, Cluster, Nobody, Node, TOKEN, Text, Turn, device, whole_frame};
use kvhive_protocol::WireError;

/// Four blocks on two nodes, the first of which is their primary.
async fn twofold() -> (Cluster, kvhive_client::Client, Text) {
    let cluster = Cluster::start(2, 2).await;
    let client = cluster.client().await;
    let text = Text::of(&client, 4);
    text.store().await;
    cluster.nodes[1].copy_from(&cluster.nodes[0]);
    (cluster, client, text)
}

#[tokio::test]
async fn the_replica_is_asked_when_the_primary_is_dead() {
    let (mut cluster, client, text) = twofold().await;
    cluster.nodes[0].stop().await;
    text.fetch_all().await;
    assert_eq!(text.covered().await, (4, 0));
    assert_eq!(cluster.nodes[1].asked(), 2);
    assert_eq!(client.stats().failovers, 2);
}

#[tokio::test]
async fn a_dead_primary_is_not_dialled_for_each_read() {
    let (mut cluster, client, text) = twofold().await;
    cluster.nodes[0].stop().await;
    let begun = tokio::time::Instant::now();
    let dials = client.stats().dials;
    for _ in 0..50 {
        text.fetch_all().await;
    }
    // The first rest is 50 ms long and each other longer; one dial is the replica's.
    let rests = begun.elapsed().as_millis() as u64 / 50 + 1;
    assert!(client.stats().dials - dials <= 1 + rests, "{:?} in {rests} rests", client.stats());
}

#[tokio::test]
async fn the_replica_is_asked_when_the_primary_closes_before_its_answer() {
    let (cluster, _, text) = twofold().await;
    cluster.nodes[0].always(Turn::close());
    text.fetch_all().await;
    assert_eq!(text.covered().await, (4, 0));
}

#[tokio::test]
async fn the_replica_is_asked_for_what_is_missing_when_the_primary_closes_in_mid_answer() {
    let (cluster, client, text) = twofold().await;
    // Within the frame's header, its message, and each block.
    let whole = 4 * text.namespace.block_bytes() as usize;
    for missing in [1, whole / 4, whole - 1, whole, whole + 10, whole + 500] {
        cluster.nodes[0].always(Turn::new(move |honest| {
            let mut bytes = whole_frame(&honest);
            bytes.truncate(bytes.len() - missing);
            Answer::BytesAndClose(bytes)
        }));
        text.fetch_all().await;
    }
    assert_eq!(client.stats().corrupt_blocks, 0);
    // With one byte missing, three blocks had come whole.
    let first = cluster.nodes[1].requests().swap_remove(0);
    let kvhive_protocol::data::DataRequest::Fetch(request) = first else { panic!("{first:?}") };
    assert_eq!(request.keys.len(), 1);
}

#[tokio::test]
async fn the_replica_is_asked_when_the_primary_has_no_lease() {
    let (cluster, client, text) = twofold().await;
    cluster.nodes[0].always(Turn::refuse(WireError::NoLease));
    text.fetch_all().await;
    assert_eq!(text.covered().await, (4, 0));
    assert_eq!(client.stats().failovers, 2);
}

#[tokio::test]
async fn without_any_replica_left_blocks_are_missed_at_once() {
    let (mut cluster, _, text) = twofold().await;
    cluster.nodes[0].stop().await;
    cluster.nodes[1].stop().await;
    let begun = tokio::time::Instant::now();
    assert_eq!(text.fetch().await.delivered(), 0);
    assert_eq!(text.covered().await, (0, 1));
    assert!(begun.elapsed() < crate::fakes::PATIENCE / 2, "nothing waits for the deadline");
}

#[tokio::test]
async fn a_restarted_member_is_asked_again_on_a_new_connection() {
    let mut cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let text = Text::of(&client, 4);
    text.store().await;
    // All the connections that the client keeps are dead then.
    tokio::join!(text.fetch_all(), text.fetch_all(), text.fetch_all());
    cluster.nodes[0].restart().await;
    text.fetch_all().await;
    assert_eq!(client.stats().failovers, 0);
    cluster.nodes[0].restart().await;
    assert_eq!(text.covered().await, (4, 0));
    cluster.nodes[0].restart().await;
    text.store().await;
    assert_eq!(client.stats().failovers, 0);
}

#[tokio::test]
async fn a_restarted_member_is_dialled_anew_while_others_hold_every_connection_that_is_allowed() {
    let mut cluster = Cluster::start(1, 1).await;
    for connections_per_member in [1, 4] {
        let config = kvhive_client::ClientConfig { connections_per_member, ..cluster.config() };
        let client = kvhive_client::Client::connect(config).await.expect("the coordinator answers");
        let text = Text::of(&client, 4);
        text.store().await;
        let all = || {
            let fetch = || Box::pin(text.fetch_all());
            async move { tokio::join!(fetch(), fetch(), fetch(), fetch()) }
        };
        all().await;
        // Each of these takes a dead connection, and no other may be had until one of them is done.
        cluster.nodes[0].restart().await;
        all().await;
        assert_eq!(client.stats().failovers, 0, "{connections_per_member} connections");
    }
}

#[tokio::test]
async fn a_node_with_another_token_costs_a_miss_and_no_storm() {
    let mut cluster = Cluster::start(1, 1).await;
    let stranger = Node::start(device(0), b"another token altogether").await;
    cluster.coordinator.change(|map| {
        map.members.get_mut(&device(0).member).expect("it is there").data_address = stranger.address.clone();
    });
    cluster.nodes.clear();
    let client = cluster.client().await;
    let text = Text::of(&client, 4);
    assert_eq!(text.fetch().await.delivered(), 0);
    assert_eq!(text.store_with(Default::default()).await.acknowledged(), 0);
    assert!(stranger.connections() <= 2, "{} connections", stranger.connections());
    assert_eq!(stranger.asked(), 0);
}

#[tokio::test]
async fn a_replica_is_asked_when_the_primary_lets_nobody_in() {
    let (cluster, _, text) = twofold().await;
    let stranger = Node::start(device(0), b"another token altogether").await;
    cluster.coordinator.change(|map| {
        map.members.get_mut(&device(0).member).expect("it is there").data_address = stranger.address.clone();
    });
    cluster.nodes[0].next(Turn::refuse(WireError::StaleEpoch { epoch: kvhive_protocol::Epoch(2) }));
    text.fetch_all().await;
    assert_eq!(stranger.connections(), 1);
}

#[tokio::test]
async fn a_store_finds_the_replica_that_was_promoted() {
    let (cluster, _, text) = twofold().await;
    let gone = Nobody::somewhere();
    let promoted = Node::start(device(1), TOKEN).await;
    cluster.coordinator.change(|map| {
        map.members.get_mut(&device(0).member).expect("it is there").data_address = gone.address.clone();
    });
    cluster.nodes[0].next(Turn::refuse(WireError::StaleEpoch { epoch: kvhive_protocol::Epoch(2) }));
    let promotion = async {
        crate::fakes::until(|| cluster.coordinator.asked() >= 3).await;
        cluster.coordinator.change(|map| {
            map.members.get_mut(&device(1).member).expect("it is there").data_address =
                promoted.address.clone();
            for set in std::sync::Arc::make_mut(&mut map.slots) {
                set.0 = vec![device(1)];
            }
        });
    };
    tokio::join!(text.store(), promotion);
    assert_eq!(promoted.asked(), 1);
}
