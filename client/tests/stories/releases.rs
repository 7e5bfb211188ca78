//! Releases: who hears what an engine expects of a session.

use crate::fakes::{Cluster, Text, Turn, device, in_patience};
use kvhive_client::{Prefix, ReleaseReport};
use kvhive_protocol::data::{DataRequest, Hint, MAX_KEYS_PER_RELEASE, ReleaseRequest};
use kvhive_protocol::{BlockKey, Epoch, WireError};

fn releases(cluster: &Cluster, node: usize) -> Vec<ReleaseRequest> {
    let requests = cluster.nodes[node].requests().into_iter();
    let releases = requests.filter_map(|request| match request {
        DataRequest::Release(release) => Some(release),
        _ => None,
    });
    releases.collect()
}

#[tokio::test]
async fn every_replica_hears_of_all_its_blocks_and_nobody_else_does() {
    let cluster = Cluster::placed(3, |slot| {
        let first = usize::from(slot.0 % 2);
        vec![device(first), device(1 - first)]
    })
    .await;
    let client = cluster.client().await;
    let text = Text::of(&client, 10);
    text.store().await;
    let report = in_patience(text.namespace.release(&text.prefix, Hint::Returns(30))).await;
    // The fakes do not copy: each block is where it was stored.
    assert_eq!(report.expect("it is short"), ReleaseReport { copies: 10, told: 2, unreachable: 0 });
    for node in 0..2 {
        let told = releases(&cluster, node);
        let keys: Vec<BlockKey> = told.iter().flat_map(|one| one.keys.iter()).collect();
        assert_eq!((told.len(), told[0].hint, keys), (1, Hint::Returns(30), text.prefix.keys().to_vec()));
    }
    assert_eq!(cluster.nodes[2].asked(), 0);
}

#[tokio::test]
async fn a_long_prefix_is_told_in_pieces_from_its_end() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let text = Text::of(&client, 1);
    let keys: Vec<BlockKey> = (0..MAX_KEYS_PER_RELEASE as u64 + 5)
        .map(|number| {
            let mut bytes = [3; 32];
            bytes[..8].copy_from_slice(&number.to_le_bytes());
            BlockKey::from_bytes(bytes)
        })
        .collect();
    let report = in_patience(text.namespace.release(&Prefix::chained(keys.clone()), Hint::Over)).await;
    assert_eq!(report.expect("it is short enough"), ReleaseReport { copies: 0, told: 1, unreachable: 0 });
    let told: Vec<Vec<BlockKey>> =
        releases(&cluster, 0).iter().map(|one| one.keys.iter().collect()).collect();
    assert_eq!(told, [keys[MAX_KEYS_PER_RELEASE..].to_vec(), keys[..MAX_KEYS_PER_RELEASE].to_vec()]);
}

#[tokio::test]
async fn a_replica_that_is_gone_is_counted_and_the_other_is_told_once() {
    let mut cluster = Cluster::start(2, 2).await;
    let client = cluster.client().await;
    let text = Text::of(&client, 3);
    text.store().await;
    cluster.nodes[1].stop().await;
    let report = in_patience(text.namespace.release(&text.prefix, Hint::Pending)).await;
    assert_eq!(report.expect("it is short"), ReleaseReport { copies: 3, told: 1, unreachable: 1 });
    assert_eq!(releases(&cluster, 0).len(), 1);
}

#[tokio::test]
async fn a_release_by_an_old_map_is_repeated_by_the_new_one() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let text = Text::of(&client, 3);
    text.store().await;
    cluster.coordinator.change(|_| {});
    cluster.nodes[0].set_epoch(Epoch(2));
    cluster.nodes[0].next(Turn::refuse(WireError::StaleEpoch { epoch: Epoch(2) }));
    let report = in_patience(text.namespace.release(&text.prefix, Hint::Over)).await;
    assert_eq!(report.expect("it is short"), ReleaseReport { copies: 3, told: 1, unreachable: 0 });
    assert_eq!(releases(&cluster, 0).iter().map(|one| one.epoch.0).collect::<Vec<_>>(), [1, 2]);
}
