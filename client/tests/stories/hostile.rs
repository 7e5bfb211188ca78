//! Answers that are damaged, or made to do damage: each is a miss or an error, and what is reported as loaded is right.
//! [`Text::fetch`] compares every loaded block.

use crate::fakes::{Answer, Cluster, Text, Turn, in_patience, whole_frame};
use kvhive_client::{FetchOutcome, MissReason, StoreOptions, StoreOutcome};
use kvhive_protocol::block::digest;
use kvhive_protocol::data::{DataReply, Fetched, Stored};
use kvhive_protocol::frame::{FRAME_HEADER_BYTES, Kind, encode_frame};
use kvhive_protocol::{Epoch, Era, HeaderError, LayoutFingerprint, TenantId};

/// Where a frame's header says how long message and payload are.
const LENGTHS_AT: usize = 16;

fn header(blocks: &mut [Fetched], at: usize) -> &mut kvhive_protocol::BlockHeader {
    match &mut blocks[at] {
        Fetched::Hit(header) => header,
        Fetched::Miss => panic!("block {at} is there"),
    }
}

/// Fetches four blocks, the first answer being `turn`'s; returns what became of each and how many count as corrupt.
async fn fetched_by(turn: Turn) -> (Vec<Result<(), MissReason>>, u64) {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let text = Text::of(&client, 4);
    text.store().await;
    cluster.nodes[0].next(turn);
    let report = text.fetch().await;
    // Whatever came: the same client gets right bytes next.
    text.fetch_all().await;
    let outcomes = report.outcomes.iter().map(|outcome| match outcome {
        FetchOutcome::Loaded(_) => Ok(()),
        FetchOutcome::Missed(reason) => Err(*reason),
    });
    (outcomes.collect(), client.stats().corrupt_blocks)
}

fn corrupt(error: HeaderError) -> Result<(), MissReason> {
    Err(MissReason::Corrupt(error))
}

const UNREACHABLE: Result<(), MissReason> = Err(MissReason::Unreachable);

#[tokio::test]
async fn a_corrupt_byte_makes_its_block_a_counted_miss_and_no_other() {
    let turn = Turn::fetched(|_, payload| {
        let block = payload.len() / 4;
        payload[2 * block - 1] ^= 1;
    });
    let (outcomes, counted) = fetched_by(turn).await;
    assert_eq!(outcomes, [Ok(()), corrupt(HeaderError::Digest), Ok(()), Ok(())]);
    assert_eq!(counted, 1);
}

#[tokio::test]
async fn a_header_of_another_block_is_a_miss() {
    let turn = Turn::fetched(|blocks, _| {
        let other = header(blocks, 1).key;
        header(blocks, 0).key = other;
        header(blocks, 1).fingerprint = LayoutFingerprint([9; 16]);
        header(blocks, 2).tenant = TenantId(9);
        header(blocks, 3).era = Era(0);
    });
    let (outcomes, counted) = fetched_by(turn).await;
    let errors = [HeaderError::Key, HeaderError::Layout, HeaderError::Tenant, HeaderError::Era];
    assert_eq!(outcomes, errors.map(corrupt));
    assert_eq!(counted, 4);
}

#[tokio::test]
async fn blocks_in_another_order_are_misses() {
    let turn = Turn::fetched(|blocks, payload| {
        blocks.swap(1, 2);
        let block = payload.len() / 4;
        let (left, right) = payload.split_at_mut(2 * block);
        left[block..].swap_with_slice(&mut right[..block]);
    });
    let (outcomes, _) = fetched_by(turn).await;
    assert_eq!(outcomes, [Ok(()), corrupt(HeaderError::Key), corrupt(HeaderError::Key), Ok(())]);
}

#[tokio::test]
async fn a_payload_of_another_size_than_the_layout_s_is_a_miss() {
    let turn = Turn::fetched(|blocks, payload| {
        let block = payload.len() / 4;
        // One is short by a byte, which the next one has too many.
        header(blocks, 1).payload_bytes -= 1;
        header(blocks, 2).payload_bytes += 1;
        let bytes = &payload[2 * block - 1..3 * block];
        header(blocks, 2).digest = digest(bytes);
    });
    let (outcomes, counted) = fetched_by(turn).await;
    assert_eq!(outcomes, [Ok(()), corrupt(HeaderError::Length), corrupt(HeaderError::Length), Ok(())]);
    assert_eq!(counted, 2);
}

#[tokio::test]
async fn sizes_that_do_not_add_up_to_the_payload_are_no_answer() {
    type Change = fn(&mut Vec<Fetched>, &mut Vec<u8>);
    let changes: [Change; 5] = [
        |blocks, _| header(blocks, 3).payload_bytes += 1,
        |blocks, _| header(blocks, 3).payload_bytes = u64::MAX,
        |blocks, _| blocks.iter_mut().for_each(|block| *block = Fetched::Miss),
        |_, payload| payload.truncate(payload.len() - 1),
        |_, payload| payload.push(0),
    ];
    for change in changes {
        assert_eq!(fetched_by(Turn::fetched(change)).await.0, [UNREACHABLE; 4]);
    }
}

#[tokio::test]
async fn too_many_or_too_few_blocks_are_no_answer() {
    let more = Turn::fetched(|blocks, _| blocks.push(Fetched::Miss));
    assert_eq!(fetched_by(more).await.0, [UNREACHABLE; 4]);
    let many = Turn::fetched(|blocks, _| blocks.resize(100_000, Fetched::Miss));
    assert_eq!(fetched_by(many).await.0, [UNREACHABLE; 4]);
    let fewer = Turn::fetched(|blocks, payload| {
        blocks.pop();
        payload.truncate(payload.len() / 4 * 3);
    });
    assert_eq!(fetched_by(fewer).await.0, [UNREACHABLE; 4]);
    let none = Turn::fetched(|blocks, payload| {
        blocks.clear();
        payload.clear();
    });
    assert_eq!(fetched_by(none).await.0, [UNREACHABLE; 4]);
}

#[tokio::test]
async fn what_is_no_frame_or_the_wrong_one_is_no_answer() {
    let answers: [fn(Vec<u8>) -> Vec<u8>; 4] = [
        |_| b"HTTP/1.1 400 Bad Request\r\n\r\n<html>what?</html>".to_vec(),
        // Each part of the frame's header, and its message.
        |frame| changed(frame, 0),
        |frame| changed(frame, 6),
        |frame| changed(frame, FRAME_HEADER_BYTES),
    ];
    for answer in answers {
        let turn = Turn::new(move |honest| Answer::BytesAndClose(answer(whole_frame(&honest))));
        assert_eq!(fetched_by(turn).await.0, [UNREACHABLE; 4]);
    }
    let other_number = Turn::new(|mut honest| {
        honest.number += 1;
        Answer::Bytes(whole_frame(&honest))
    });
    assert_eq!(fetched_by(other_number).await.0, [UNREACHABLE; 4]);
    let other_kind =
        Turn::new(|_| Answer::Reply(DataReply::Matched { epoch: Epoch(1), covered: vec![4] }, Vec::new()));
    assert_eq!(fetched_by(other_kind).await.0, [UNREACHABLE; 4]);
}

fn changed(mut bytes: Vec<u8>, at: usize) -> Vec<u8> {
    bytes[at] ^= 0xFF;
    bytes
}

/// The header of a frame that announces this, and nothing after it.
fn announcing(number: u64, message_bytes: u32, payload_bytes: u32) -> Vec<u8> {
    let mut frame = Vec::new();
    encode_frame(Kind::DataReply, number, &(), 0, &mut frame).expect("it is small");
    frame.truncate(FRAME_HEADER_BYTES);
    frame[LENGTHS_AT..LENGTHS_AT + 4].copy_from_slice(&message_bytes.to_le_bytes());
    frame[LENGTHS_AT + 4..LENGTHS_AT + 8].copy_from_slice(&payload_bytes.to_le_bytes());
    frame
}

#[tokio::test]
async fn a_frame_larger_than_any_answer_is_refused_by_its_header() {
    // The rest never comes: who waits for it, or makes room for it, waits until the deadline.
    for (message, payload) in [(u32::MAX, 0), (8 << 20, 0), (64 << 10, 0), (0, u32::MAX), (0, 64 << 20)] {
        let turn = Turn::new(move |honest| Answer::Bytes(announcing(honest.number, message, payload)));
        let fetched = tokio::time::timeout(std::time::Duration::from_secs(10), fetched_by(turn)).await;
        assert_eq!(fetched.expect("nothing is waited for").0, [UNREACHABLE; 4]);
    }
}

#[tokio::test]
async fn an_answer_that_nobody_asked_for_is_never_taken_for_another() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let (first, second) = (Text::numbered(&client, 1, 4), Text::numbered(&client, 2, 4));
    first.store().await;
    second.store().await;
    // The answer to the first question comes twice, the second time under the next question's number.
    cluster.nodes[0].next(Turn::new(|mut honest| {
        let mut bytes = whole_frame(&honest);
        honest.number += 1;
        bytes.extend(whole_frame(&honest));
        Answer::Bytes(bytes)
    }));
    first.fetch_all().await;
    assert_eq!(second.fetch().await.outcomes.len(), 4);
    second.fetch_all().await;
}

#[tokio::test]
async fn a_match_that_claims_too_much_claims_what_was_asked() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let text = Text::of(&client, 10);
    cluster.nodes[0].next(Turn::new(|mut honest| {
        if let DataReply::Matched { covered, .. } = &mut honest.reply {
            covered.fill(u32::MAX);
        }
        Answer::Reply(honest.reply, Vec::new())
    }));
    assert_eq!(text.covered().await, (10, 0));
    for runs in [0, 2, 4, 1000] {
        cluster.nodes[0].next(Turn::new(move |_| {
            Answer::Reply(DataReply::Matched { epoch: Epoch(1), covered: vec![4; runs] }, Vec::new())
        }));
        assert_eq!(text.covered().await, (0, 1), "{runs} runs instead of 3");
    }
    assert_eq!(text.covered().await, (0, 0));
}

#[tokio::test]
async fn a_store_s_answer_of_another_length_acknowledges_nothing() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let text = Text::of(&client, 4);
    for blocks in [0, 3, 5, 4000] {
        cluster.nodes[0].next(Turn::new(move |_| {
            let kept = Stored::Kept { copies: 1, already: false };
            Answer::Reply(DataReply::Stored { epoch: Epoch(1), blocks: vec![kept; blocks] }, Vec::new())
        }));
        let report = in_patience(text.store_with(StoreOptions::default())).await;
        assert_eq!(report.outcomes, [StoreOutcome::Unreachable; 4]);
    }
    text.store().await;
}

#[tokio::test]
async fn the_replica_is_asked_when_the_primary_talks_nonsense() {
    let cluster = Cluster::start(2, 2).await;
    let client = cluster.client().await;
    let text = Text::of(&client, 4);
    text.store().await;
    cluster.nodes[1].copy_from(&cluster.nodes[0]);
    cluster.nodes[0].always(Turn::new(|_| Answer::BytesAndClose(vec![0; 4096])));
    text.fetch_all().await;
    assert_eq!(text.covered().await, (4, 0));
}
