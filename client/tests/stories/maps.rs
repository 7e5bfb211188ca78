//! Maps of another epoch than the members': who refreshes, how often, and who waits for it.

use crate::fakes::{Cluster, ControlTurn, Text, Turn, device, in_patience, until};
use kvhive_client::StoreOptions;
use kvhive_protocol::control::{ControlReply, ControlRequest};
use kvhive_protocol::data::{DataReply, DataRequest, Refusal, Stored};
use kvhive_protocol::{Epoch, Era, WireError};
use std::time::Duration;

fn map_requests(cluster: &Cluster) -> Vec<(Epoch, bool)> {
    let requests = cluster.coordinator.requests().into_iter();
    let maps = requests.filter_map(|request| match request {
        ControlRequest::FetchMap { have, linearizable } => Some((have, linearizable)),
        _ => None,
    });
    maps.collect()
}

fn epoch_of(request: &DataRequest) -> Epoch {
    match request {
        DataRequest::Match(request) => request.epoch,
        DataRequest::Fetch(request) => request.epoch,
        DataRequest::Store(request) => request.epoch,
        DataRequest::Release(request) => request.epoch,
        DataRequest::Strategies(request) => request.epoch,
        DataRequest::Watch(request) => request.epoch,
        DataRequest::Survey(request) => request.epoch,
        DataRequest::Explain(request) => request.epoch,
        DataRequest::Trace(request) => request.epoch,
        DataRequest::Recall(request) => request.epoch,
        DataRequest::Names(request) => request.epoch,
        DataRequest::Share(_) | DataRequest::Look(_) | DataRequest::Done(_) | DataRequest::Carry(_) => {
            request.epoch()
        }
    }
}

#[tokio::test]
async fn a_stale_epoch_costs_one_map_and_one_repeat() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let text = Text::of(&client, 3);
    text.store().await;
    cluster.coordinator.change(|_| {});
    cluster.nodes[0].set_epoch(Epoch(2));
    cluster.nodes[0].next(Turn::refuse(WireError::StaleEpoch { epoch: Epoch(2) }));

    text.fetch_all().await;

    assert_eq!(map_requests(&cluster), [(Epoch(0), false), (Epoch(1), false)]);
    let epochs: Vec<Epoch> = cluster.nodes[0].requests().iter().map(epoch_of).collect();
    assert_eq!(epochs, [Epoch(1), Epoch(1), Epoch(2)]);
    assert_eq!((client.stats().stale_epochs, client.stats().requests), (1, 3));
}

#[tokio::test]
async fn many_reads_by_an_old_map_cost_one_refresh() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let text = Text::of(&client, 3);
    text.store().await;
    cluster.coordinator.change(|_| {});
    for _ in 0..4 {
        cluster.nodes[0].next(Turn::refuse(WireError::StaleEpoch { epoch: Epoch(2) }));
    }

    tokio::join!(text.fetch_all(), text.fetch_all(), text.fetch_all(), text.fetch_all());

    assert_eq!(map_requests(&cluster).len(), 2);
}

#[tokio::test]
async fn a_coordinator_that_lags_behind_is_asked_for_what_the_cluster_agreed_on() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let text = Text::of(&client, 1);
    text.store().await;
    cluster.coordinator.change(|_| {});
    cluster.coordinator.next(ControlTurn::reply(ControlReply::Map(None)));
    cluster.nodes[0].next(Turn::refuse(WireError::StaleEpoch { epoch: Epoch(2) }));

    text.fetch_all().await;

    assert_eq!(map_requests(&cluster)[1..], [(Epoch(1), false), (Epoch(1), true)]);
}

#[tokio::test]
async fn a_member_that_is_behind_gets_time_and_costs_no_map() {
    let cluster = Cluster::start(1, 1).await;
    cluster.coordinator.change(|_| {});
    let client = cluster.client().await;
    let text = Text::of(&client, 1);
    text.store().await;
    cluster.nodes[0].next(Turn::refuse(WireError::StaleEpoch { epoch: Epoch(1) }));
    cluster.nodes[0].next(Turn::refuse(WireError::StaleEpoch { epoch: Epoch(1) }));

    text.fetch_all().await;

    assert_eq!(map_requests(&cluster).len(), 1);
    assert_eq!(client.stats().stale_epochs, 2);
}

#[tokio::test]
async fn an_epoch_that_nobody_has_makes_a_miss_and_no_storm() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let text = Text::of(&client, 1);
    cluster.nodes[0].always(Turn::refuse(WireError::StaleEpoch { epoch: Epoch(u64::MAX) }));

    assert_eq!(text.fetch().await.delivered(), 0);
    assert_eq!(text.covered().await, (0, 1));

    assert_eq!(cluster.nodes[0].asked(), 2);
    assert_eq!(map_requests(&cluster).len(), 1 + 2 * 2);
}

#[tokio::test]
async fn a_slot_that_moved_is_asked_for_at_its_new_place() {
    let cluster = Cluster::start(2, 1).await;
    let client = cluster.client().await;
    let text = Text::of(&client, 3);
    text.store().await;
    cluster.nodes[1].copy_from(&cluster.nodes[0]);
    cluster.coordinator.change(|map| {
        let slots = std::sync::Arc::make_mut(&mut map.slots);
        for set in slots {
            set.0 = vec![device(1)];
        }
    });
    cluster.nodes[0].next(Turn::refuse(WireError::StaleEpoch { epoch: Epoch(2) }));

    text.fetch_all().await;

    assert_eq!(cluster.nodes[1].asked(), 1);
}

#[tokio::test]
async fn a_reply_of_a_newer_epoch_makes_the_client_fetch_the_map() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let text = Text::of(&client, 3);
    text.store().await;
    cluster.coordinator.change(|_| {});
    cluster.nodes[0].set_epoch(Epoch(2));

    text.fetch_all().await;
    until(|| client.map().epoch == Epoch(2)).await;
    text.fetch_all().await;

    assert_eq!(map_requests(&cluster).len(), 2);
    assert_eq!((client.stats().stale_epochs, client.stats().requests), (0, 3));
}

#[tokio::test]
async fn no_answer_waits_for_the_map_it_calls_for() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let text = Text::of(&client, 3);
    text.store().await;
    cluster.coordinator.always(ControlTurn::Hang);
    cluster.nodes[0].set_epoch(Epoch(2));

    for _ in 0..20 {
        text.fetch_all().await;
    }

    until(|| cluster.coordinator.asked() == 2).await;
    // The one refresh is under way still: no other was begun beside it.
    assert_eq!(client.map().epoch, Epoch(1));
    assert_eq!(client.stats().requests, 21);
}

#[tokio::test]
async fn answers_by_an_epoch_that_nobody_has_cost_few_maps() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let text = Text::of(&client, 1);
    cluster.nodes[0].set_epoch(Epoch(u64::MAX));
    text.store().await;
    until(|| cluster.coordinator.asked() == 3).await;

    let begun = tokio::time::Instant::now();
    for _ in 0..200 {
        text.fetch_all().await;
    }

    // Two requests each 200 ms, and those under way at both ends.
    let periods = begun.elapsed().as_millis() / 200 + 2;
    assert!((map_requests(&cluster).len() as u128) < 3 + 2 * periods);
}

#[tokio::test]
async fn a_store_by_an_ended_era_is_repeated_by_the_new_one() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let text = Text::of(&client, 3);
    cluster.coordinator.change(|map| {
        for tenant in map.tenants.values_mut() {
            tenant.era = Era(2);
        }
    });
    let refused = DataReply::Stored { epoch: Epoch(2), blocks: vec![Stored::Refused(Refusal::WrongEra); 3] };
    let old = Turn::new(move |_| crate::fakes::Answer::Reply(refused.clone(), Vec::new()));
    cluster.nodes[0].next(old);

    text.store().await;

    let eras: Vec<Era> = cluster.nodes[0]
        .requests()
        .iter()
        .map(|request| match request {
            DataRequest::Store(request) => request.blocks[0].header.era,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(eras, [Era(1), Era(2)]);
    text.fetch_all().await;
}

#[tokio::test]
async fn a_refusal_of_the_era_without_a_newer_map_is_the_outcome() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let text = Text::of(&client, 40);
    let old = Turn::new(|mut honest| {
        if let DataReply::Stored { blocks, .. } = &mut honest.reply {
            blocks.fill(Stored::Refused(Refusal::WrongEra));
        }
        crate::fakes::Answer::Reply(honest.reply, Vec::new())
    });
    cluster.nodes[0].always(old);

    let report = in_patience(text.store_with(StoreOptions::default())).await;

    assert!(
        report
            .outcomes
            .iter()
            .all(|outcome| { *outcome == kvhive_client::StoreOutcome::Refused(Refusal::WrongEra) })
    );
    // One look for a newer map, not one for each block.
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(map_requests(&cluster).len() <= 3);
}

#[tokio::test]
async fn who_follows_blocks_learns_of_nodes_though_no_node_is_there_to_tell() {
    let cluster = Cluster::start(1, 1).await;
    let whole = cluster.coordinator.map();
    cluster.coordinator.change(|map| {
        map.members.clear();
        map.slots = std::sync::Arc::new(vec![Default::default(); map.slots.len()]);
    });
    let client = cluster.client().await;
    let mut watch = client.watch_blocks(None).expect("all tenants may be followed");

    watch.poll().await;
    assert_eq!(watch.devices().len(), 0);
    cluster.coordinator.change(|map| {
        map.members = whole.members.clone();
        map.slots = whole.slots.clone();
    });
    watch.poll().await;
    let report = watch.poll().await;

    assert!(report.failed.is_empty(), "{report:?}");
    assert!(watch.devices().contains_key(&device(0)));
    let asked = map_requests(&cluster).len();
    watch.poll().await;
    assert_eq!(map_requests(&cluster).len(), asked, "who answers would say that there is a newer one");
}
