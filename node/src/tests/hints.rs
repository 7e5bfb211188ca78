//! Hints at a real node: what the engine says of a session decides what is kept of it.

use super::Setup;
use super::asker::Block;
use kvhive_cache::policy::Strategy;
use kvhive_protocol::data::{About, Ack, Hint};

const ROUNDS: u64 = 600;
/// Rounds until a session comes back: blocks enough for all of them to have left 32 frames in the order of their use.
const BACK_AFTER: u64 = 24;

/// In each round one session ends, and another will come back once. Returns how many of the second half's were found then.
async fn found(over: Hint, pending: Hint) -> u64 {
    let setup = Setup { frame_bytes: 4096, strategy: Strategy::Adaptive, ..Setup::default() };
    let (_coordinator, node) = setup.one().await;
    let mut asker = node.ask().await;
    let mut found = 0;
    for round in 0..ROUNDS {
        for (number, hint) in [(2 * round, pending), (2 * round + 1, over)] {
            // A match begins a request; the stores after it are of it.
            assert_eq!(asker.covered(&[number]).await, Ok(0));
            asker.about = About { hint, ..About::default() };
            asker.store(&[Block::new(number, 4096)], Ack::Primary).await.expect("an answer");
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
    let told = found(Hint::Over, Hint::Pending).await;
    let untold = found(Hint::None, Hint::None).await;
    let asked = ROUNDS / 2;
    assert!(
        told * 10 >= asked * 9 && told >= untold + asked / 4,
        "of {asked} found {told} told, {untold} untold"
    );
}
