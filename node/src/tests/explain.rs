//! What a node says of blocks that somebody misses.

use super::asker::{Asker, Block, kept, key};
use super::coordinator::{FakeCoordinator, TENANT};
use super::{KIB, Setup, eventually};
use crate::NodeHandle;
use kvhive_protocol::block::Codec;
use kvhive_protocol::data::{Ack, DataReply, DataRequest, Run};
use kvhive_protocol::explain::{Departure, ExplainRequest, Explained, Lapse, MAX_KEYS_PER_EXPLAIN, Since};
use kvhive_protocol::map::{ReplicaSet, Tenant};
use kvhive_protocol::recall::RecallRequest;
use kvhive_protocol::trace::{SpanId, TraceContext, TraceId};
use kvhive_protocol::watch::{BlockTier, Gone};
use kvhive_protocol::{DeviceId, Era, LayoutFingerprint, Strategy, TenantId, TenantRules, WireError};
use kvhive_wire::Fault;
use std::sync::Arc;

const OTHER: TenantId = TenantId(2);

impl Asker {
    /// Asks why; without `slots` wherever the blocks are.
    async fn explain(
        &mut self,
        numbers: &[u64],
        slots: bool,
    ) -> Result<(Vec<Explained>, Option<Lapse>), WireError> {
        let runs = if slots { vec![Run { slot: self.slot, keys: numbers.len() as u32 }] } else { Vec::new() };
        let request = DataRequest::Explain(ExplainRequest {
            epoch: self.epoch,
            device: self.device,
            tenant: self.tenant,
            runs,
            keys: numbers.iter().map(|number| key(*number)).collect(),
        });
        match self.exchange(&request, &[]).await {
            Ok(DataReply::Explained { blocks, lapse, .. }) => Ok((blocks, lapse)),
            Err(Fault::Refused(error)) => Err(error),
            other => panic!("a question why was answered by {other:?}"),
        }
    }

    async fn why(&mut self, number: u64) -> Explained {
        self.explain(&[number], true).await.expect("the node serves").0[0]
    }
}

async fn has_adopted(coordinator: &FakeCoordinator, node: &NodeHandle) {
    let (member, epoch) = (node.member().expect("it is a member"), coordinator.epoch());
    eventually("the node serves by the new map", || coordinator.has_confirmed(member, epoch)).await;
}

/// Without its time, which no test waits for.
fn gone(explained: Explained) -> Option<(Gone, Option<BlockTier>, Strategy)> {
    match explained {
        Explained::Gone(Departure { why, from, strategy, .. }) => Some((why, from, strategy)),
        _ => None,
    }
}

fn is_unknown(explained: Explained, wanted: Since) -> bool {
    matches!(explained, Explained::Unknown { since, .. } if since == wanted)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_is_told_from_its_store_to_its_eviction_and_after() {
    let setup = Setup { device_frames: 4, strategy: Strategy::S3Fifo, ..Setup::default() };
    let (_coordinator, node) = setup.one().await;
    let mut client = node.ask().await;
    assert!(is_unknown(client.why(1).await, Since::Began));
    assert_eq!(client.store(&[Block::new(1, 4 * KIB)], Ack::Primary).await, Ok(vec![kept(1)]));
    let here = Explained::Here {
        tier: BlockTier::Device,
        codec: Codec::Raw,
        bytes: 4 * KIB as u64,
        fingerprint: LayoutFingerprint([3; 16]),
        slot: client.slot,
        pinned: false,
    };
    assert_eq!(client.why(1).await, here);
    assert_eq!(client.explain(&[1], false).await, Ok((vec![here], None)), "its slot need not be known");
    for number in 2..12 {
        assert_eq!(client.store(&[Block::new(number, 4 * KIB)], Ack::Primary).await, Ok(vec![kept(1)]));
    }
    let evicted = Some((Gone::Evicted, Some(BlockTier::Device), Strategy::S3Fifo));
    assert_eq!(gone(client.why(1).await), evicted);
    assert_eq!(client.store(&[Block::new(1, 4 * KIB)], Ack::Primary).await, Ok(vec![kept(1)]));
    assert_eq!(client.why(1).await, here, "it came again");
    let hits = node.shard_stats().await;
    assert_eq!((hits.hits, hits.misses, hits.matched_keys), (0, 0, 0), "nobody has used anything");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_refused_or_cleared_is_told_as_that() {
    let (coordinator, node) = Setup::default().one().await;
    let mut client = node.ask().await;
    let too_large = Block::new(1, 65 * KIB);
    client.store(&[too_large], Ack::Primary).await.expect("the node serves");
    assert_eq!(gone(client.why(1).await), Some((Gone::TooLarge, None, Strategy::Lru)));
    let mut torn = Block::new(2, 4 * KIB);
    torn.bytes[7] ^= 1;
    client.store(&[torn], Ack::Primary).await.expect("the node serves");
    node.settles("the write has ended", |stats| stats.abandoned == 1).await;
    assert_eq!(gone(client.why(2).await), Some((Gone::Unwritten, None, Strategy::Lru)));
    assert_eq!(client.store(&[Block::new(3, 4 * KIB)], Ack::Primary).await, Ok(vec![kept(1)]));
    coordinator.change(|map| map.tenants.get_mut(&TENANT).expect("it is there").era = Era(2));
    has_adopted(&coordinator, &node).await;
    let cleared = Some((Gone::Cleared, Some(BlockTier::Device), Strategy::Lru));
    assert_eq!(gone(client.why(3).await), cleared, "swept or not");
    node.settles("it was swept", |stats| stats.cleared == 1).await;
    assert_eq!(gone(client.why(3).await), cleared);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_hears_nothing_of_what_another_has_or_had_under_the_same_key() {
    let setup = Setup { device_frames: 4, ..Setup::default() };
    let (coordinator, node) = setup.one().await;
    let other = Tenant { name: "other".into(), era: Era(1), secret: [8; 32], rules: TenantRules::default() };
    coordinator.change(|map| drop(map.tenants.insert(OTHER, other)));
    has_adopted(&coordinator, &node).await;
    let mut client = node.ask().await;
    for number in 0..8 {
        assert_eq!(client.store(&[Block::new(number, 4 * KIB)], Ack::Primary).await, Ok(vec![kept(1)]));
    }
    let (ours, _) = client.explain(&[0, 7], true).await.expect("the node serves");
    assert!(gone(ours[0]).is_some() && matches!(ours[1], Explained::Here { .. }), "{ours:?}");
    client.tenant = OTHER;
    for slots in [true, false] {
        let (theirs, _) = client.explain(&[0, 7, 1000], slots).await.expect("the node serves");
        assert!(theirs.iter().all(|one| is_unknown(*one, Since::Began)), "{theirs:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_has_just_come_is_told_as_the_cause() {
    let (coordinator, node) = Setup::default().one().await;
    let mut client = node.ask().await;
    let (slot, own) = (usize::from(client.slot.0), DeviceId::new(node.member().expect("it is a member"), 0));
    coordinator.change(|map| Arc::make_mut(&mut map.slots)[slot] = ReplicaSet(Vec::new()));
    has_adopted(&coordinator, &node).await;
    assert!(matches!(client.explain(&[1], true).await, Err(WireError::StaleEpoch { .. })));
    // Enough for the two to differ in whole seconds.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    coordinator.change(|map| Arc::make_mut(&mut map.slots)[slot] = ReplicaSet(vec![own]));
    has_adopted(&coordinator, &node).await;
    assert!(is_unknown(client.why(1).await, Since::Placed));
    let (anywhere, _) = client.explain(&[1], false).await.expect("the node serves");
    assert!(is_unknown(anywhere[0], Since::Began), "without its slot nobody knows");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_made_anew_knows_nothing_of_what_it_held() {
    let (_coordinator, node) = Setup::default().one().await;
    let mut client = node.ask().await;
    assert_eq!(client.store(&[Block::new(1, 4 * KIB)], Ack::Primary).await, Ok(vec![kept(1)]));
    node.devices[0].actor().try_send(crate::actors::core::DeviceMessage::Panic).expect("it has room");
    node.is_made_anew().await;
    let (told, lapse) = client.explain(&[1], true).await.expect("the node serves");
    assert!(is_unknown(told[0], Since::Began), "{told:?}");
    assert!(lapse.is_some(), "it served nothing until it was a member again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn questions_are_bounded_and_must_add_up() {
    let (_coordinator, node) = Setup::default().one().await;
    let mut client = node.ask().await;
    let many: Vec<u64> = (0..=MAX_KEYS_PER_EXPLAIN as u64).collect();
    for slots in [true, false] {
        let refused = client.explain(&many, slots).await;
        assert!(matches!(refused, Err(WireError::TooLarge { .. })), "{refused:?}");
        let (told, _) = client.explain(&many[1..], slots).await.expect("as many as allowed");
        assert_eq!(told.len(), MAX_KEYS_PER_EXPLAIN);
    }
    client.tenant = TenantId(99);
    let nobody = client.explain(&[1], true).await;
    assert_eq!(nobody, Err(WireError::UnknownTenant { tenant: TenantId(99) }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn why_a_request_missed_is_known_by_its_trace_after_the_blocks_have_come() {
    // Nothing is traced here.
    let setup = Setup { device_frames: 4, ..Setup::default() };
    let (_coordinator, node) = setup.one().await;
    let mut client = node.ask().await;
    for number in 0..8 {
        assert_eq!(client.store(&[Block::new(number, 4 * KIB)], Ack::Primary).await, Ok(vec![kept(1)]));
    }
    let trace = TraceId::of_request("chatcmpl-7");
    let asked = client.match_request(&[7, 0, 100], 0);
    let context = TraceContext { trace, span: SpanId::new([1; 8]).expect("it is not zero") };
    assert!(matches!(client.exchange_traced(context, &asked).await, Ok(DataReply::Matched { .. })));
    // Without a context nothing is remembered.
    assert_eq!(client.covered(&[101]).await, Ok(0));
    assert_eq!(client.store(&[Block::new(100, 4 * KIB)], Ack::Primary).await, Ok(vec![kept(1)]));
    let mut recall = async |trace| {
        let request = RecallRequest { epoch: client.epoch, device: client.device, trace };
        match client.exchange(&DataRequest::Recall(request), &[]).await {
            Ok(DataReply::Recalled { parts, .. }) => parts,
            other => panic!("a question for a request was answered by {other:?}"),
        }
    };
    let parts = recall(trace).await;
    let [part] = &parts[..] else { panic!("{parts:?}") };
    assert_eq!((part.fetches, part.blocks, part.hits, part.missed.len()), (false, 3, 1, 2));
    assert_eq!(part.missed[0].0, key(0));
    assert_eq!(gone(part.missed[0].1), Some((Gone::Evicted, Some(BlockTier::Device), Strategy::Lru)));
    assert_eq!(part.missed[1].0, key(100));
    assert!(is_unknown(part.missed[1].1, Since::Began), "as it was then: {part:?}");
    assert_eq!(recall(TraceId::of_request("chatcmpl-8")).await, []);
}
