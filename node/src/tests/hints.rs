//! Hints at a real node: what the engine says of a session decides what is kept of it.

use super::Setup;
use super::asker::Block;
use kvhive_cache::policy::Strategy;
use kvhive_cache::{Reason, ShardStats};
use kvhive_protocol::data::{
    About, Ack, DataReply, DataRequest, Hint, MAX_KEYS_PER_RELEASE, Stored, StrategiesRequest,
};
use kvhive_protocol::strategy::{Reason as Choice, StrategyReport};
use kvhive_protocol::{DeviceId, Epoch, TenantId, WireError};
use kvhive_wire::Fault;

const ROUNDS: u64 = 600;
/// Rounds until a session comes back: blocks enough for all of them to have left 32 frames in the order of their use.
const BACK_AFTER: u64 = 24;

/// How a node is told.
#[derive(Clone, Copy, PartialEq)]
enum By {
    Store,
    Release,
}

/// In each round one session ends, and another will come back once. Returns how many of the second half's were found then.
async fn found(over: Hint, pending: Hint, by: By) -> u64 {
    let setup = Setup { frame_bytes: 4096, strategy: Strategy::Adaptive, ..Setup::default() };
    let (_coordinator, node) = setup.one().await;
    let mut asker = node.ask().await;
    let mut found = 0;
    for round in 0..ROUNDS {
        for (number, hint) in [(2 * round, pending), (2 * round + 1, over)] {
            // A match begins a request; the stores after it are of it.
            assert_eq!(asker.covered(&[number]).await, Ok(0));
            let told = if by == By::Store { hint } else { Hint::None };
            asker.about = About { hint: told, ..About::default() };
            let stored = asker.store(&[Block::new(number, 4096)], Ack::Primary).await.expect("an answer");
            if by == By::Release {
                let kept = u32::from(matches!(stored[0], Stored::Kept { .. }));
                assert_eq!(asker.release(&[number], hint).await, Ok(kept));
            }
        }
        if let Some(back) = round.checked_sub(BACK_AFTER) {
            let blocks = asker.fetch(&[2 * back]).await.expect("an answer");
            found += u64::from(round >= ROUNDS / 2 && blocks[0].is_some());
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_will_come_back_are_kept_when_the_engine_says_so() {
    let untold = found(Hint::None, Hint::None, By::Store).await;
    let asked = ROUNDS / 2;
    for by in [By::Store, By::Release] {
        let told = found(Hint::Over, Hint::Pending, by).await;
        assert!(
            told * 10 >= asked * 9 && told >= untold + asked / 4,
            "of {asked} found {told} told, {untold} untold"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_lets_go_what_its_primary_was_told_is_over() {
    let setup = Setup { frame_bytes: 4096, gc_per_mille: Some(500), ..Setup::default() };
    let (_coordinator, nodes) = setup.several(2).await;
    let mut asker = nodes[0].ask().await;
    let store = async |asker: &mut super::asker::Asker, numbers: std::ops::Range<u64>| {
        let blocks: Vec<Block> = numbers.map(|number| Block::new(number, 4096)).collect();
        asker.store(&blocks, Ack::All).await.expect("an answer");
    };
    store(&mut asker, 0..10).await;
    asker.about = About { hint: Hint::Over, ..About::default() };
    // Some of these are there before the memory is as full as lets a collection begin.
    store(&mut asker, 10..16).await;
    store(&mut asker, 16..20).await;
    let over = |stats: &ShardStats| stats.collected[Reason::Over as usize].blocks;
    let others: Vec<u64> = (0..10).collect();
    for node in &nodes {
        node.settles("it has let go", |stats| over(stats) >= 4 && stats.blocks() <= 16).await;
        let found = node.ask().await.fetch(&others).await.expect("an answer");
        assert!(found.iter().all(Option::is_some), "nobody has said that of these");
        assert_eq!(node.stats().evictions.for_room, 0);
        assert!(node.stats().evictions.over >= 4);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_says_what_its_strategies_have_chosen_and_chooses_when_asked() {
    let setup = Setup { frame_bytes: 4096, strategy: Strategy::Adaptive, ..Setup::default() };
    let (coordinator, node) = setup.one().await;
    let mut asker = node.ask().await;
    let ask = async |asker: &mut super::asker::Asker, adjust: bool| {
        let request =
            DataRequest::Strategies(StrategiesRequest { epoch: asker.epoch, device: asker.device, adjust });
        match asker.exchange(&request, &[]).await {
            Ok(DataReply::Strategies { reports, .. }) => reports,
            other => panic!("answered by {other:?}"),
        }
    };
    let unused =
        StrategyReport { tenant: None, frame_bytes: 4096, strategy: Strategy::Adaptive, choice: None };
    assert_eq!(ask(&mut asker, false).await, [unused], "nothing was ranked; the sizes of frames are told");
    assert!(node.stats().strategies.is_empty());
    asker.store(&[Block::new(1, 4096)], Ack::Primary).await.expect("an answer");
    for adjust in [false, true] {
        let reports = ask(&mut asker, adjust).await;
        let choice = reports[0].choice.clone().expect("it chooses");
        assert_eq!((reports.len(), reports[0].frame_bytes, reports[0].tenant), (1, 4096, None));
        assert_eq!((choice.in_charge.as_str(), choice.reason), ("learnt", Choice::TooLittleEvidence));
        assert_eq!(choice.estimates.len(), 4);
        assert_eq!(node.stats().strategies[0].report, reports[0]);
    }
    assert_eq!(node.adjust_strategy().len(), 1);
    super::eventually("the coordinators are told", || {
        coordinator.strategies().iter().any(|report| report.choice.is_some())
    })
    .await;
    let page = super::life::get(node.metrics_address(), "/metrics").await;
    let of = "{device=\"0\",tenant=\"\",frame_bytes=\"4096\",strategy=\"adaptive\"";
    for line in [
        format!("kvhive_node_strategy_in_charge{of},ranker=\"learnt\"}} 1\n"),
        format!("kvhive_node_strategy_in_charge{of},ranker=\"lru\"}} 0\n"),
        format!("kvhive_node_strategy_switches_total{of}}} 0\n"),
        "kvhive_node_collected_blocks_total{device=\"0\",reason=\"overdue\"} 0\n".to_owned(),
        "kvhive_node_collections_total{device=\"0\"} 0\n".to_owned(),
    ] {
        assert!(page.contains(&line), "{line} is missing in {page}");
    }
    let ours = asker.epoch;
    let foreign = async |asker: &mut super::asker::Asker, epoch: Epoch| {
        let device = DeviceId { index: 7, ..asker.device };
        let request = StrategiesRequest { epoch, device, adjust: true };
        asker.exchange(&DataRequest::Strategies(request), &[]).await
    };
    let refused = foreign(&mut asker, ours).await;
    assert!(matches!(refused, Err(Fault::Refused(WireError::WrongDevice { .. }))), "{refused:?}");
    let refused = foreign(&mut asker, Epoch(u64::MAX)).await;
    assert!(matches!(refused, Err(Fault::Refused(WireError::StaleEpoch { .. }))), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_names_no_more_keys_than_it_may_and_only_those_of_its_tenant() {
    let (_coordinator, node) = Setup { frame_bytes: 4096, ..Setup::default() }.one().await;
    let mut asker = node.ask().await;
    asker.store(&[Block::new(1, 4096)], Ack::Primary).await.expect("an answer");
    assert_eq!(asker.release(&[1, 2], Hint::Returns(9)).await, Ok(1));
    let many: Vec<u64> = (0..=MAX_KEYS_PER_RELEASE as u64).collect();
    let refused = asker.release(&many, Hint::Over).await;
    assert!(matches!(refused, Err(WireError::TooLarge { .. })), "{refused:?}");
    asker.tenant = TenantId(77);
    assert!(matches!(asker.release(&[1], Hint::Over).await, Err(WireError::UnknownTenant { .. })));
    assert_eq!(node.counted(|counters| &counters.releases), 3);
}
