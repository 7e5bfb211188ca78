//! The project's own workload: multi-turn chats, questions over documents and agent loops, over a few shared system
//! prompts. Seeded: the same seed gives the same trace on every machine.

use super::format::Request;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// What to generate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Workload {
    /// How many requests.
    pub(crate) requests: usize,
    /// Tokens of a block.
    pub(crate) block_tokens: u32,
    /// What the random choices start from.
    pub(crate) seed: u64,
}

/// Milliseconds between the starts of two sessions, on average.
const SESSION_GAP_MS: f64 = 900.0;

struct Session {
    chat_id: i64,
    /// Block ids so far: system prompt, document, turns.
    blocks: Vec<u64>,
    turns_left: u32,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    Chat,
    Document,
    Agent,
}

impl Kind {
    /// New blocks of one turn (question and earlier answer): least, most.
    fn growth(self) -> (u64, u64) {
        match self {
            Kind::Chat => (1, 4),
            Kind::Document => (1, 2),
            Kind::Agent => (2, 12),
        }
    }

    /// Average milliseconds until the next turn.
    fn pause_ms(self) -> f64 {
        match self {
            Kind::Chat => 45_000.0,
            Kind::Document => 30_000.0,
            Kind::Agent => 6_000.0,
        }
    }
}

/// Generates a trace, sorted by time.
pub(crate) fn generate(workload: Workload) -> Vec<Request> {
    let mut rng = ChaCha8Rng::seed_from_u64(workload.seed);
    let mut fresh = 0u64;
    let mut take = |count: u64| -> Vec<u64> {
        let first = fresh;
        fresh += count;
        (first..fresh).collect()
    };
    // Shared system prompts, the first ones far more popular: chats 1 to 6 blocks, agents (with their tools) 10 to 30.
    let chat_prompts: Vec<Vec<u64>> = (0..12).map(|_| take(rng.random_range(1..=6))).collect();
    let agent_prompts: Vec<Vec<u64>> = (0..5).map(|_| take(rng.random_range(10..=30))).collect();

    let mut waiting: BinaryHeap<Reverse<(u64, u64)>> = BinaryHeap::new();
    let mut sessions: Vec<Session> = Vec::new();
    let mut next_session_ms = 0.0;
    let mut requests = Vec::with_capacity(workload.requests);
    while requests.len() < workload.requests {
        let now = waiting.peek().map(|Reverse((at, _))| *at);
        if now.is_none_or(|at| at as f64 >= next_session_ms) {
            let kind = match rng.random_range(0..10) {
                0..=4 => Kind::Chat,
                5..=6 => Kind::Document,
                _ => Kind::Agent,
            };
            let prompts = if matches!(kind, Kind::Agent) { &agent_prompts } else { &chat_prompts };
            let mut blocks = prompts[popular(&mut rng, prompts.len())].clone();
            let turns_left = match kind {
                Kind::Chat => rng.random_range(1..=10),
                Kind::Document => {
                    blocks.extend(take(rng.random_range(20..=200)));
                    rng.random_range(1..=4)
                }
                Kind::Agent => rng.random_range(3..=40),
            };
            let id = sessions.len() as u64;
            sessions.push(Session { chat_id: id as i64, blocks, turns_left, kind });
            waiting.push(Reverse((next_session_ms as u64, id)));
            next_session_ms += exponential(&mut rng, SESSION_GAP_MS);
            continue;
        }
        let Some(Reverse((at, id))) = waiting.pop() else { continue };
        let session = &mut sessions[id as usize];
        let (least, most) = session.kind.growth();
        session.blocks.extend(take(rng.random_range(least..=most)));
        let tail = rng.random_range(0..u64::from(workload.block_tokens));
        requests.push(Request {
            timestamp: at as f64,
            input_length: session.blocks.len() as u64 * u64::from(workload.block_tokens) + tail,
            output_length: rng.random_range(20..=600),
            hash_ids: session.blocks.clone(),
            chat_id: Some(session.chat_id),
        });
        session.turns_left -= 1;
        if session.turns_left > 0 {
            let pause = 500.0 + exponential(&mut rng, session.kind.pause_ms());
            waiting.push(Reverse((at + pause as u64, id)));
        } else {
            session.blocks = Vec::new();
        }
    }
    requests
}

/// Picks the first of `count` things half of the time, the second a quarter of it, and so on.
fn popular(rng: &mut ChaCha8Rng, count: usize) -> usize {
    (rng.random::<u64>().trailing_zeros() as usize).min(count - 1)
}

fn exponential(rng: &mut ChaCha8Rng, mean: f64) -> f64 {
    let uniform: f64 = rng.random();
    -mean * (1.0 - uniform).ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    const WORKLOAD: Workload = Workload { requests: 1500, block_tokens: 512, seed: 7 };

    #[test]
    fn the_same_seed_gives_the_same_trace() {
        assert_eq!(generate(WORKLOAD), generate(WORKLOAD));
        assert_ne!(generate(WORKLOAD), generate(Workload { seed: 8, ..WORKLOAD }));
    }

    #[test]
    fn requests_are_sorted_by_time_and_a_block_has_one_parent() {
        let trace = generate(WORKLOAD);
        assert_eq!(trace.len(), WORKLOAD.requests);
        assert!(trace.windows(2).all(|pair| pair[0].timestamp <= pair[1].timestamp));
        let mut parents: HashMap<u64, Option<u64>> = HashMap::new();
        for request in &trace {
            let mut parent = None;
            for id in &request.hash_ids {
                assert_eq!(*parents.entry(*id).or_insert(parent), parent, "block {id}");
                parent = Some(*id);
            }
        }
    }

    #[test]
    fn much_of_the_work_is_repeated() {
        let trace = generate(WORKLOAD);
        let asked: usize = trace.iter().map(|request| request.hash_ids.len()).sum();
        let unique: std::collections::HashSet<u64> =
            trace.iter().flat_map(|request| request.hash_ids.iter().copied()).collect();
        let share = 1.0 - unique.len() as f64 / asked as f64;
        assert!((0.5..0.97).contains(&share), "{share}");
    }
}
