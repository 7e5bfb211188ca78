//! Explanations: who is asked why a block is a miss, and what their answers come to.

use crate::fakes::{Answer, Cluster, LAYOUT, SHORT, Text, Turn, device, in_patience};
use kvhive_client::{ClientError, Explanation, Place, Prefix, Silence, Verdict};
use kvhive_protocol::data::{DataReply, DataRequest};
use kvhive_protocol::explain::{Departure, ExplainRequest, Explained, Lapse, MAX_KEYS_PER_EXPLAIN, Since};
use kvhive_protocol::watch::{BlockTier, Gone};
use kvhive_protocol::{AxisOrder, BlockKey, Epoch, Layout, Strategy, WireError};

const EVICTED: Departure =
    Departure { why: Gone::Evicted, from: Some(BlockTier::Host), strategy: Strategy::Lru, ago_s: 60 };

fn questions(cluster: &Cluster, node: usize) -> Vec<ExplainRequest> {
    let requests = cluster.nodes[node].requests().into_iter();
    let questions = requests.filter_map(|request| match request {
        DataRequest::Explain(question) => Some(question),
        _ => None,
    });
    questions.collect()
}

async fn explain(text: &Text) -> Explanation {
    in_patience(text.namespace.explain(&text.prefix)).await.expect("it is short")
}

fn verdicts(explanation: &Explanation) -> Vec<Verdict> {
    explanation.blocks.iter().map(|block| block.verdict).collect()
}

/// Says this of every block that is asked for.
fn say(said: Explained) -> Turn {
    Turn::new(move |honest| {
        let DataReply::Explained { epoch, blocks, .. } = honest.reply else { panic!("not a question why") };
        let lapse = Some(Lapse { ago_s: 7, for_ms: 900 });
        let reply = DataReply::Explained { epoch, lapse, blocks: vec![said; blocks.len()] };
        Answer::Reply(reply, Vec::new())
    })
}

#[tokio::test]
async fn every_replica_is_asked_and_the_prefix_ends_where_none_has_the_block() {
    let cluster = Cluster::start(2, 2).await;
    let client = cluster.client().await;
    let text = Text::of(&client, 6);
    text.store().await;
    let explanation = explain(&text).await;
    assert_eq!((explanation.covered(), verdicts(&explanation)), (6, vec![Verdict::Here; 6]));
    let longer = Text { prefix: Text::of(&client, 9).prefix, ..text };
    let explanation = explain(&longer).await;
    assert_eq!(explanation.covered(), 6);
    let never = Verdict::Never { since: Since::Began, for_s: 100 };
    assert_eq!(verdicts(&explanation)[6..], [never; 3]);
    for node in 0..2 {
        let asked: Vec<Vec<BlockKey>> =
            questions(&cluster, node).iter().map(|one| one.keys.iter().collect()).collect();
        let prefix = longer.prefix.keys().to_vec();
        assert_eq!(asked, [prefix[..6].to_vec(), prefix], "no others are left to be asked");
    }
}

#[tokio::test]
async fn what_one_replica_says_went_last_is_why_and_lapses_are_told() {
    let cluster = Cluster::start(2, 2).await;
    let client = cluster.client().await;
    let text = Text::of(&client, 1);
    cluster.nodes[0].next(say(Explained::Gone(EVICTED)));
    cluster.nodes[1].next(say(Explained::Gone(Departure { why: Gone::NoRoom, ago_s: 5, ..EVICTED })));
    let explanation = explain(&text).await;
    let Verdict::Gone(who, departure) = explanation.blocks[0].verdict else { panic!("{explanation:?}") };
    assert_eq!((who, departure.why, departure.ago_s), (device(1), Gone::NoRoom, 5));
    assert_eq!(explanation.lapses.len(), 2);
    assert!(explanation.notes()[0].contains("had no serving lease for 0.9 s until 7 s ago"));
}

#[tokio::test]
async fn a_block_of_another_layout_is_told_as_such() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let text = Text::of(&client, 2);
    text.store().await;
    let other = Layout { order: AxisOrder::KvFirst, ..LAYOUT };
    let reader = client.namespace("default", "model@1", other, 0).expect("the tenant is there");
    let explanation = in_patience(reader.explain(&text.prefix)).await.expect("it is short");
    assert_eq!(verdicts(&explanation), [Verdict::OtherLayout(LAYOUT.fingerprint()); 2]);
    assert_eq!(explanation.covered(), 0);
}

#[tokio::test]
async fn a_node_without_a_lease_and_one_that_is_late_are_named_as_the_cause() {
    let cluster = Cluster::start(2, 2).await;
    let client = cluster.hurried_client().await;
    let text = Text::of(&client, 1);
    cluster.nodes[0].always(Turn::refuse(WireError::NoLease));
    cluster.nodes[1].always(Turn::hang());
    let explanation = explain(&text).await;
    let block = &explanation.blocks[0];
    assert_eq!(block.verdict, Verdict::Unheard);
    assert_eq!(block.replicas[0].said, Err(Silence::NoLease));
    assert!(matches!(block.replicas[1].said, Err(Silence::Late(limit)) if limit <= SHORT), "{block:?}");
}

#[tokio::test]
async fn what_its_slot_has_left_behind_is_found_where_the_prefix_ends() {
    let cluster = Cluster::placed(3, |_| vec![device(0)]).await;
    let client = cluster.client().await;
    let text = Text::of(&client, 3);
    text.store().await;
    cluster.nodes[2].copy_from(&cluster.nodes[0]);
    cluster.nodes[0].always(say(Explained::Unknown { since: Since::Placed, for_s: 9 }));
    let explanation = explain(&text).await;
    let placed = Verdict::Never { since: Since::Placed, for_s: 9 };
    assert_eq!(verdicts(&explanation), [Verdict::Stray(device(2)), placed, placed]);
    let asked: Vec<(usize, usize)> =
        questions(&cluster, 1).iter().map(|one| (one.runs.len(), one.keys.len())).collect();
    assert_eq!(asked, [(0, 1)], "the others are asked for one block");
    // By its key alone it is found as well, and where it is of no use is told.
    let key = text.prefix.keys()[0];
    let alone = in_patience(client.explain_keys("default", &[key])).await.expect("the tenant is there");
    assert_eq!(alone.blocks[0].verdict, Verdict::Stray(device(2)));
    assert_eq!(alone.blocks[0].replicas[2].place, Place::Elsewhere);
}

#[tokio::test]
async fn a_slot_that_is_placed_nowhere_is_the_cause_itself() {
    let cluster = Cluster::placed(1, |_| Vec::new()).await;
    let client = cluster.client().await;
    let explanation = explain(&Text::of(&client, 2)).await;
    assert_eq!(verdicts(&explanation), [Verdict::Unplaced; 2]);
}

#[tokio::test]
async fn a_question_by_an_old_map_is_asked_again_by_the_new_one() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let text = Text::of(&client, 2);
    text.store().await;
    cluster.coordinator.change(|_| {});
    cluster.nodes[0].set_epoch(Epoch(2));
    cluster.nodes[0].next(Turn::refuse(WireError::StaleEpoch { epoch: Epoch(2) }));
    assert_eq!(explain(&text).await.covered(), 2);
    assert_eq!(questions(&cluster, 0).iter().map(|one| one.epoch.0).collect::<Vec<_>>(), [1, 2]);
}

#[tokio::test]
async fn many_keys_are_asked_for_in_pieces_and_too_many_are_refused() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let key = |number: u64| {
        let mut bytes = [3; 32];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        BlockKey::from_bytes(bytes)
    };
    let keys: Vec<BlockKey> = (0..MAX_KEYS_PER_EXPLAIN as u64 + 3).map(key).collect();
    let explanation = in_patience(client.explain_keys("default", &keys)).await.expect("the tenant is there");
    assert_eq!((explanation.blocks.len(), explanation.covered()), (keys.len(), 0));
    let asked: Vec<usize> = questions(&cluster, 0).iter().map(|one| one.keys.len()).collect();
    assert_eq!(asked, [MAX_KEYS_PER_EXPLAIN, 3]);
    let nobody = client.explain_keys("nobody", &keys).await;
    assert!(matches!(nobody, Err(ClientError::UnknownTenant(_))), "{nobody:?}");
    let text = Text::of(&client, 1);
    let endless = Prefix::loose(vec![key(1); 70_000]);
    assert!(matches!(text.namespace.explain(&endless).await, Err(ClientError::Misuse(_))));
}

#[tokio::test]
async fn an_answer_that_does_not_fit_is_no_answer() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let text = Text::of(&client, 2);
    cluster.nodes[0].always(Turn::new(|honest| {
        let DataReply::Explained { epoch, lapse, .. } = honest.reply else { panic!("not a question why") };
        Answer::Reply(DataReply::Explained { epoch, lapse, blocks: Vec::new() }, Vec::new())
    }));
    let explanation = explain(&text).await;
    assert_eq!(verdicts(&explanation), [Verdict::Unheard; 2]);
    assert!(matches!(explanation.blocks[0].replicas[0].said, Err(Silence::Unreachable(_))));
}
