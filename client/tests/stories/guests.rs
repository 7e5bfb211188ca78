//! A node that is near is asked for what it is no replica of. Whatever it answers, its replicas have the last word.

use crate::fakes::{Cluster, Text, Turn, device};
use kvhive_client::{Client, ClientConfig};
use kvhive_protocol::data::{DataRequest, Fetched};
use kvhive_protocol::{Epoch, Era, ReplicaSet, SLOTS, WireError};
use std::sync::Arc;

/// Which of the nodes is near.
const NEAR: usize = 1;

async fn client_near(cluster: &Cluster) -> Client {
    let near = Some(cluster.nodes[NEAR].address.clone());
    let config = ClientConfig { near, ..cluster.config() };
    Client::connect(config).await.expect("the coordinator answers")
}

fn visits(cluster: &Cluster) -> usize {
    let requests = cluster.nodes[NEAR].requests();
    requests.iter().filter(|request| matches!(request, DataRequest::Guest(_))).count()
}

#[tokio::test]
async fn a_node_that_gives_no_guests_is_still_asked_as_the_replica_that_it_is() {
    // Each slot has one replica: this node of every other one.
    let cluster = Cluster::placed(2, |slot| vec![device(usize::from(slot.0 % 2))]).await;
    let client = client_near(&cluster).await;
    let text = Text::of(&client, 32);
    text.store().await;
    for refusal in [WireError::NotCarried { why: "it keeps none".into() }, WireError::Deadline] {
        // A client that has not been refused yet.
        let client = client_near(&cluster).await;
        let text = Text::of(&client, 32);
        let before = visits(&cluster);
        cluster.nodes[NEAR].visited(Turn::refuse(refusal));
        // It has not heard of the map yet, and is to be asked again for what is its own.
        cluster.nodes[NEAR].next(Turn::refuse(WireError::StaleEpoch { epoch: Epoch(1) }));
        text.fetch_all().await;
        assert_eq!(visits(&cluster) - before, 1);
        let stats = client.stats();
        assert_eq!((stats.stale_epochs, stats.shed), (1, 0), "{stats:?}");
    }
}

#[tokio::test]
async fn guests_that_did_not_come_do_not_keep_a_client_from_looking_for_a_newer_map() {
    let mut cluster = Cluster::placed(3, |_| vec![device(0)]).await;
    let client = client_near(&cluster).await;
    let text = Text::of(&client, 4);
    text.store().await;
    cluster.nodes[2].copy_from(&cluster.nodes[0]);
    cluster.nodes[0].stop().await;
    cluster.coordinator.change(|map| {
        map.slots = Arc::new(vec![ReplicaSet(vec![device(2)]); usize::from(SLOTS)]);
    });
    text.fetch_all().await;
    assert_eq!(visits(&cluster), 1, "it had none of them");
}

#[tokio::test]
async fn a_guest_that_is_not_the_block_is_asked_of_replicas() {
    let cluster = Cluster::placed(2, |_| vec![device(0)]).await;
    let client = client_near(&cluster).await;
    let text = Text::of(&client, 4);
    text.store().await;
    cluster.nodes[NEAR].copy_from(&cluster.nodes[0]);
    let of_an_older_era = |blocks: &mut Vec<Fetched>, _: &mut Vec<u8>| {
        for block in blocks {
            let Fetched::Hit(header) = block else { panic!("it has them") };
            header.era = Era(0);
        }
    };
    let damaged = |_: &mut Vec<Fetched>, bytes: &mut Vec<u8>| bytes.iter_mut().for_each(|byte| *byte ^= 1);
    for (round, turn) in [Turn::fetched(of_an_older_era), Turn::fetched(damaged)].into_iter().enumerate() {
        cluster.nodes[NEAR].visited(turn);
        text.fetch_all().await;
        assert_eq!(visits(&cluster), round + 1);
        assert_eq!(client.stats().corrupt_blocks, 4 * (round as u64 + 1));
    }
}
