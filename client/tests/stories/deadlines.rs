//! Busy nodes, silent nodes, and callers that go away: every call ends by its deadline, and others don't notice.

use crate::fakes::{Answer, Cluster, PATIENCE, SHORT, Text, Turn, device, in_patience, until, whole_frame};
use kvhive_client::{Client, ClientConfig, FetchOutcome, MissReason, StoreOptions, StoreOutcome};
use kvhive_protocol::WireError;
use kvhive_protocol::data::DataRequest;
use std::time::Duration;
use tokio::time::Instant;

#[tokio::test]
async fn a_busy_node_is_asked_again_after_a_pause() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let text = Text::of(&client, 3);
    for _ in 0..3 {
        cluster.nodes[0].next(Turn::refuse(WireError::busy("frames")));
    }
    let begun = Instant::now();
    text.store().await;
    // Pauses of 5, 10 and 20 ms, each at least half of that.
    assert!(begun.elapsed() >= Duration::from_micros(17_500));
    cluster.nodes[0].next(Turn::refuse(WireError::busy("frames")));
    text.fetch_all().await;
    cluster.nodes[0].next(Turn::refuse(WireError::busy("frames")));
    assert_eq!(text.covered().await, (3, 0));
    assert_eq!(client.stats().busy, 5);
    assert_eq!(client.stats().dials, 1, "a refusal leaves the connection whole");
}

#[tokio::test]
async fn a_node_that_stays_busy_is_asked_until_the_deadline_and_ever_more_rarely() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.hurried_client().await;
    let text = Text::of(&client, 3);
    cluster.nodes[0].always(Turn::refuse(WireError::busy("frames")));
    let begun = Instant::now();
    let report = text.fetch().await;
    assert_eq!(report.outcomes, [FetchOutcome::Missed(MissReason::Unreachable); 3]);
    assert!(begun.elapsed() < PATIENCE / 2);
    // 5 + 10 + … + 160 ms fill the time, or half of each with the luckiest jitter.
    let asked = cluster.nodes[0].asked();
    assert!((2..=9).contains(&asked), "asked {asked} times");
    let report = text.store_with(StoreOptions::default()).await;
    assert_eq!(report.outcomes, [StoreOutcome::Unreachable; 3]);
}

#[tokio::test]
async fn many_busy_nodes_cost_one_pause_together() {
    // Each segment of four blocks is on one node of many.
    let nodes = 8;
    let cluster = Cluster::placed(nodes, |slot| vec![device(usize::from(slot.0) % nodes)]).await;
    // Enough for the first pauses of one call; not for as many as there are nodes and rounds.
    let config = ClientConfig { request_timeout: Duration::from_secs(2), ..cluster.config() };
    let client = Client::connect(config).await.expect("the coordinator answers");
    let text = Text::of(&client, 200);
    text.store().await;
    for node in &cluster.nodes {
        assert!(node.asked() > 0, "no block is on {}", node.address);
        for _ in 0..4 {
            node.next(Turn::refuse(WireError::busy("frames")));
        }
    }
    let before = client.stats().requests;
    text.fetch_all().await;
    assert_eq!(client.stats().requests - before, 5 * nodes as u64);
    assert_eq!(client.stats().busy, 4 * nodes as u64);
}

#[tokio::test]
async fn a_silent_node_costs_its_callers_the_deadline_and_no_more() {
    let cluster = Cluster::placed(2, |slot| vec![device(usize::from(slot.0) % 2)]).await;
    let client = cluster.hurried_client().await;
    let text = Text::of(&client, 60);
    text.store().await;
    cluster.nodes[1].always(Turn::hang());
    let begun = Instant::now();
    let report = text.fetch().await;
    assert!(begun.elapsed() >= SHORT / 2 && begun.elapsed() < PATIENCE / 2);
    for (at, outcome) in report.outcomes.iter().enumerate() {
        let home = text.prefix.keys()[at - at % crate::fakes::SEGMENT_BLOCKS as usize];
        let silent = home.slot().0 % 2 == 1;
        assert_eq!(matches!(outcome, FetchOutcome::Loaded(_)), !silent, "block {at}: {outcome:?}");
    }
}

#[tokio::test]
async fn callers_of_other_nodes_do_not_wait_for_a_silent_one() {
    let cluster = Cluster::placed(2, |slot| vec![device(usize::from(slot.0) % 2)]).await;
    let client = cluster.client().await;
    let texts: Vec<Text> = (0..20).map(|number| Text::numbered(&client, number, 1)).collect();
    let (silent, awake): (Vec<Text>, Vec<Text>) =
        texts.into_iter().partition(|text| text.prefix.keys()[0].slot().0 % 2 == 1);
    assert!(silent.len() > 1 && awake.len() > 1);
    for text in &awake {
        text.store().await;
    }
    cluster.nodes[1].always(Turn::hang());
    let stuck = silent.iter().map(|text| text.covered());
    let stuck = futures_util::future::join_all(stuck);
    let others = async {
        until(|| cluster.nodes[1].asked() >= 2).await;
        for text in &awake {
            text.fetch_all().await;
        }
    };
    tokio::select! {
        _ = stuck => panic!("the silent node answered"),
        () = others => {}
    }
}

#[tokio::test]
async fn a_peer_that_never_greets_is_left_after_the_limit_of_a_dial() {
    let cluster = Cluster::start(2, 2).await;
    let client = cluster.client().await;
    let text = Text::of(&client, 4);
    text.store().await;
    cluster.nodes[1].copy_from(&cluster.nodes[0]);
    let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = mute.local_addr().expect("it is bound").to_string();
    cluster.coordinator.change(|map| {
        map.members.get_mut(&device(0).member).expect("it is there").data_address = address;
    });
    let config = ClientConfig { connect_timeout: Duration::from_millis(50), ..cluster.config() };
    let client = Client::connect(config).await.expect("the coordinator answers");
    let begun = Instant::now();
    Text::of(&client, 4).fetch_all().await;
    assert!(begun.elapsed() < PATIENCE / 2);
}

#[tokio::test]
async fn a_fetch_given_up_half_way_leaves_no_bytes_for_the_next() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let (first, second) = (Text::numbered(&client, 1, 4), Text::numbered(&client, 2, 4));
    first.store().await;
    second.store().await;
    let block = first.namespace.block_bytes() as usize;
    // Nothing, part of the frame's header, of its message, of a block, all but a byte.
    for sent in [0, 10, 100, 600, 600 + block, usize::MAX] {
        cluster.nodes[0].next(Turn::new(move |honest| {
            let mut bytes = whole_frame(&honest);
            bytes.truncate(sent.min(bytes.len() - 1));
            Answer::Bytes(bytes)
        }));
        let asked = cluster.nodes[0].asked();
        tokio::select! {
            report = first.fetch() => panic!("it cannot end: {report:?}"),
            () = async {
                until(|| cluster.nodes[0].asked() > asked).await;
                // What was sent may arrive or not before the fetch is dropped: both must do.
                tokio::time::sleep(Duration::from_millis(5)).await;
            } => {}
        }
        second.fetch_all().await;
        first.fetch_all().await;
    }
}

#[tokio::test]
async fn fetches_given_up_leave_room_for_others() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let text = Text::of(&client, 4);
    text.store().await;
    cluster.nodes[0].always(Turn::hang());
    // More than the connections that are kept to a node, at a time and after each other.
    for _ in 0..3 {
        let asked = cluster.nodes[0].asked();
        let many = futures_util::future::join_all((0..6).map(|_| text.fetch()));
        tokio::select! {
            _ = many => panic!("the silent node answered"),
            () = until(|| cluster.nodes[0].asked() >= asked + 4) => {}
        }
    }
    cluster.nodes[0].behave();
    text.fetch_all().await;
}

#[tokio::test]
async fn a_limit_without_end_is_no_panic() {
    let cluster = Cluster::start(1, 1).await;
    let config =
        ClientConfig { request_timeout: Duration::MAX, connect_timeout: Duration::MAX, ..cluster.config() };
    let client = in_patience(Client::connect(config)).await.expect("the coordinator answers");
    let text = Text::of(&client, 4);
    text.store().await;
    text.fetch_all().await;
    in_patience(client.refresh()).await.expect("the coordinator answers");
    in_patience(client.create_tenant("another")).await.expect("it is new");
}

#[tokio::test]
async fn a_large_fetch_goes_in_parts_and_keeps_what_came_before_one_failed() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    // Over the 512 blocks that one request may name.
    let text = Text::of(&client, 600);
    text.store().await;
    cluster.nodes[0].next(Turn::new(|honest| Answer::Reply(honest.reply, honest.payload)));
    cluster.nodes[0].next(Turn::refuse(WireError::NoLease));
    assert_eq!(text.fetch().await.delivered(), 512);
    text.fetch_all().await;
    let parts = cluster.nodes[0].requests().into_iter().filter_map(|request| match request {
        DataRequest::Fetch(request) => Some(request.keys.len()),
        _ => None,
    });
    assert_eq!(parts.collect::<Vec<_>>(), [512, 88, 512, 88]);
}
