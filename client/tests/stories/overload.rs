//! More is asked than nodes serve: who would be late is told so at once, and nobody asks a busy node again and again.

use crate::fakes::{Cluster, Text, Turn, in_patience};
use futures_util::future::join_all;
use kvhive_client::{Client, ClientConfig, FetchOutcome, MissReason};
use kvhive_protocol::WireError;
use std::time::{Duration, Instant};

#[tokio::test]
async fn who_could_not_be_served_in_time_is_told_at_once_and_costs_the_node_nothing() {
    let cluster = Cluster::start(1, 1).await;
    let limit = Duration::from_secs(4);
    let config = ClientConfig { connections_per_member: 1, request_timeout: limit, ..cluster.config() };
    let client = Client::connect(config).await.expect("the coordinator answers");
    let text = Text::of(&client, 4);
    text.store().await;
    cluster.nodes[0].always(Turn::late(Duration::from_millis(100)));
    // What a transfer takes is known from then on.
    for _ in 0..8 {
        text.fetch_all().await;
    }
    let asked = cluster.nodes[0].asked();
    let fetches = (0..100).map(|_| async {
        let begun = Instant::now();
        (text.fetch().await, begun.elapsed())
    });
    let reports = in_patience(join_all(fetches)).await;
    let whole = reports.iter().filter(|(report, _)| report.delivered() == 4).count();
    assert!((2..=60).contains(&whole), "{whole} of 100 were served");
    let unreachable = FetchOutcome::Missed(MissReason::Unreachable);
    let told: Vec<_> = reports.iter().filter(|(report, _)| report.outcomes == [unreachable; 4]).collect();
    assert!(client.stats().shed >= 40, "{:?}", client.stats());
    assert!(
        told.iter().filter(|(_, took)| *took < limit / 2).count() >= 40,
        "nothing waits for its deadline"
    );
    assert!(cluster.nodes[0].asked() - asked <= 60, "of 100 fetches");
}

#[tokio::test]
async fn a_busy_node_is_asked_again_for_a_share_of_what_it_answers() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.hurried_client().await;
    let text = Text::of(&client, 4);
    text.store().await;
    cluster.nodes[0].always(Turn::refuse(WireError::busy("it is")));
    let asked = cluster.nodes[0].asked();
    in_patience(join_all((0..200).map(|_| text.fetch()))).await;
    let asked = cluster.nodes[0].asked() - asked;
    assert!((1..=301).contains(&asked), "{asked} requests for 200 fetches");
    cluster.nodes[0].behave();
    text.fetch_all().await;
}
