//! Stores: what is said about copies, refusals and repeats.

use crate::fakes::{Answer, Cluster, Text, Turn};
use kvhive_client::{StoreOptions, StoreOutcome};
use kvhive_protocol::data::{About, Ack, DataReply, DataRequest, Hint, Refusal, Stored};
use kvhive_protocol::{BlockKey, Epoch};

fn asking(ack: Ack) -> StoreOptions {
    StoreOptions { ack: Some(ack), ..StoreOptions::default() }
}

#[tokio::test]
async fn fewer_copies_than_asked_are_no_acknowledgement() {
    let cluster = Cluster::start(3, 3).await;
    let client = cluster.client().await;
    let text = Text::of(&client, 1);
    let few = |copies, wanted| StoreOutcome::TooFewCopies { copies, wanted };
    let kept = |copies| StoreOutcome::Acknowledged { copies, already: false };
    let cases = [
        (1, Ack::Primary, kept(1)),
        (1, Ack::Quorum, few(1, 2)),
        (2, Ack::Quorum, kept(2)),
        (2, Ack::All, few(2, 3)),
        (3, Ack::All, kept(3)),
        (0, Ack::Primary, few(0, 1)),
    ];
    for (copies, ack, outcome) in cases {
        cluster.nodes[0].next(Turn::new(move |_| {
            let blocks = vec![Stored::Kept { copies, already: false }];
            Answer::Reply(DataReply::Stored { epoch: Epoch(1), blocks }, Vec::new())
        }));
        let report = text.store_with(asking(ack)).await;
        assert_eq!(report.outcomes, [outcome]);
        assert_eq!(report.acknowledged(), usize::from(outcome == kept(copies)));
    }
}

#[tokio::test]
async fn a_store_asks_for_the_cluster_s_acknowledgement_unless_told_otherwise() {
    let cluster = Cluster::start(3, 3).await;
    cluster.coordinator.change(|map| map.settings.ack = Ack::All);
    let client = cluster.client().await;
    let text = Text::of(&client, 1);
    cluster.nodes[0].say_copies(2);
    let report = text.store_with(StoreOptions::default()).await;
    assert_eq!(report.outcomes, [StoreOutcome::TooFewCopies { copies: 2, wanted: 3 }]);
    let report = text.store_with(asking(Ack::Quorum)).await;
    assert_eq!(report.outcomes, [StoreOutcome::Acknowledged { copies: 2, already: true }]);
}

#[tokio::test]
async fn each_block_of_a_store_has_its_own_outcome() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let text = Text::of(&client, 4);
    cluster.nodes[0].next(Turn::new(|_| {
        let blocks = vec![
            Stored::Kept { copies: 1, already: false },
            Stored::Kept { copies: 1, already: true },
            Stored::Refused(Refusal::NoRoom),
            Stored::Refused(Refusal::Corrupt),
        ];
        Answer::Reply(DataReply::Stored { epoch: Epoch(1), blocks }, Vec::new())
    }));
    let report = text.store_with(StoreOptions::default()).await;
    let kept = |already| StoreOutcome::Acknowledged { copies: 1, already };
    let refused = StoreOutcome::Refused;
    assert_eq!(
        report.outcomes,
        [kept(false), kept(true), refused(Refusal::NoRoom), refused(Refusal::Corrupt)]
    );
    assert_eq!((report.acknowledged(), report.sent()), (2, 1));
    assert_eq!(client.stats().bytes_stored, text.namespace.block_bytes());
}

#[tokio::test]
async fn a_store_whose_answer_was_lost_is_repeated_and_found_done() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let text = Text::of(&client, 4);
    text.store().await;
    cluster.nodes[0].next(Turn::close());
    let report = text.store_with(StoreOptions::default()).await;
    assert_eq!(report.outcomes, [StoreOutcome::Acknowledged { copies: 1, already: true }; 4]);
}

#[tokio::test]
async fn a_block_says_who_comes_before_it() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let text = Text::of(&client, 6);
    text.store().await;
    let DataRequest::Store(request) = cluster.nodes[0].requests().swap_remove(0) else { panic!("a store") };
    let parents: Vec<BlockKey> = request.blocks.iter().map(|block| block.parent).collect();
    assert_eq!(parents[0], BlockKey::NONE);
    assert_eq!(parents[1..], text.prefix.keys()[..5]);
    let depths: Vec<u32> = request.blocks.iter().map(|block| block.header.depth).collect();
    assert_eq!(depths, [0, 1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn what_is_known_of_the_request_travels_with_its_blocks() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let text = Text::of(&client, 2);
    let about = About { input_tokens: 900, output_tokens: 70, hint: Hint::Returns(60) };
    text.store_with(StoreOptions { about, ..StoreOptions::default() }).await;
    let told = cluster.nodes[0].requests().into_iter().filter_map(|request| match request {
        DataRequest::Store(request) => Some(request.about),
        _ => None,
    });
    assert_eq!(told.collect::<Vec<_>>(), [about]);
}

#[tokio::test]
async fn a_block_of_a_loose_set_is_before_and_after_none() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let Text { namespace, prefix } = Text::of(&client, 4);
    let loose = Text { namespace, prefix: kvhive_client::Prefix::loose(prefix.keys().to_vec()) };
    loose.store().await;
    let mut stored = Vec::new();
    for request in cluster.nodes[0].requests() {
        if let kvhive_protocol::data::DataRequest::Store(store) = request {
            stored.extend(store.blocks.iter().map(|block| (block.header.depth, block.parent)));
        }
    }
    assert_eq!(stored, [(0, kvhive_protocol::BlockKey::NONE); 4]);
    loose.fetch_all().await;
}
