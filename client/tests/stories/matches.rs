//! Matches: of what is behind a caller's own blocks, and of single blocks.

use crate::fakes::{Cluster, Text, Turn, device, in_patience};
use kvhive_client::{ClientError, Prefix, PrefixMatch};
use kvhive_protocol::BlockKey;
use kvhive_protocol::data::DataRequest;

/// Keys that nodes were asked for.
fn matched(cluster: &Cluster) -> Vec<BlockKey> {
    let requests = cluster.nodes.iter().flat_map(|node| node.requests());
    let keys = requests.flat_map(|request| match request {
        DataRequest::Match(request) => request.keys.iter().collect(),
        _ => Vec::new(),
    });
    keys.collect()
}

#[tokio::test]
async fn blocks_that_a_caller_has_are_not_asked_for() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let text = Text::of(&client, 10);
    text.store().await;
    let found = in_patience(text.namespace.match_from(&text.prefix, 4)).await.expect("it is short");
    assert_eq!(found, PrefixMatch { covered: 10, unreachable: 0 });
    assert_eq!(matched(&cluster), text.prefix.keys()[4..]);
    let found = in_patience(text.namespace.match_from(&text.prefix, 10)).await.expect("it is short");
    assert_eq!((found.covered, matched(&cluster).len()), (10, 6), "nobody was asked");
    let beyond = in_patience(text.namespace.match_from(&text.prefix, 11)).await;
    assert!(matches!(beyond, Err(ClientError::Misuse(_))), "{beyond:?}");
}

#[tokio::test]
async fn a_hole_before_what_is_asked_for_is_the_caller_s() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let (text, other) = (Text::of(&client, 6), Text::numbered(&client, 2, 2));
    text.store().await;
    let mut keys = other.prefix.keys().to_vec();
    keys.extend(&text.prefix.keys()[2..5]);
    let prefix = Prefix::chained(keys);
    let all = in_patience(text.namespace.match_prefix(&prefix)).await.expect("it is short");
    let behind = in_patience(text.namespace.match_from(&prefix, 2)).await.expect("it is short");
    assert_eq!((all.covered, behind.covered), (0, 5));
}

#[tokio::test]
async fn each_block_of_a_set_is_there_or_not_by_itself() {
    let cluster = Cluster::placed(2, |slot| vec![device(usize::from(slot.0 % 2))]).await;
    let client = cluster.client().await;
    let names: Vec<[u8; 2]> = (0..20u8).map(|at| [at, 7]).collect();
    let text = Text::of(&client, 1);
    let set = text.namespace.loose_of_engine_hashes(&names);
    let stored: Vec<usize> = (0..20).filter(|at| at % 3 != 0).collect();
    let some = Prefix::loose(stored.iter().map(|at| set.keys()[*at]).collect());
    let bytes = vec![text.bytes(0); some.len()];
    let bytes: Vec<&[u8]> = bytes.iter().map(|block| &block[..]).collect();
    let report = in_patience(text.namespace.store(&some, 0..some.len(), &bytes, Default::default())).await;
    assert_eq!(report.expect("it fits").acknowledged(), some.len());
    let found = in_patience(text.namespace.which(&set)).await.expect("it is short");
    let expected: Vec<Option<bool>> = (0..20).map(|at| Some(at % 3 != 0)).collect();
    assert_eq!(found, expected);
    // One of two nodes that has nothing to say leaves its blocks open, and no others.
    cluster.nodes[1].always(Turn::close());
    let found = in_patience(text.namespace.which(&set)).await.expect("it is short");
    for (at, found) in found.iter().enumerate() {
        let is_there = at % 3 != 0;
        let silent = set.keys()[at].slot().0 % 2 == 1;
        assert_eq!(*found, (!silent).then_some(is_there), "{at}");
    }
}
