//! A pool in miniature for the tests of policies: blocks are letters, a request is a word whose letters are a prefix.

use super::{Policy, Removal, Request, Strategy, Verdict, Visit, build};
use kvhive_protocol::BlockKey;

pub(super) struct Scenario {
    policy: Box<dyn Policy>,
    /// Letter, parent and the request that used it last, by record.
    records: Vec<Option<(char, Option<u32>, u64)>>,
    requests: u64,
    /// Letters that were not taken.
    pub(super) refused: String,
}

fn key(letter: char) -> BlockKey {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&u32::from(letter).to_le_bytes());
    BlockKey::from_bytes(bytes)
}

pub(super) fn visit(letter: char, parent: Option<u32>, depth: u32) -> Visit {
    Visit { key: key(letter), parent, depth, partial: false }
}

impl Scenario {
    pub(super) fn with_room_for(blocks: u32, strategy: Strategy) -> Scenario {
        Scenario::of(blocks, build(strategy, blocks, 7))
    }

    pub(super) fn of(blocks: u32, policy: Box<dyn Policy>) -> Scenario {
        let records = vec![None; blocks as usize];
        Scenario { policy, records, requests: 0, refused: String::new() }
    }

    /// One request for each word.
    pub(super) fn serve(&mut self, words: &str) -> &mut Scenario {
        for word in words.split_whitespace() {
            self.requests += 1;
            let (number, blocks) = (self.requests, word.len() as u32);
            self.policy.begin(&Request { number, blocks, ..Request::default() });
            let mut parent = None;
            for (depth, letter) in (0..).zip(word.chars()) {
                let visit = visit(letter, parent, depth);
                parent = self.find(letter).or_else(|| self.admit(letter, &visit));
                match parent {
                    Some(at) => self.records[at as usize].as_mut().expect("just found").2 = number,
                    None => {
                        self.policy.refused(&visit);
                        self.refused.push(letter);
                        break;
                    }
                }
            }
        }
        self
    }

    /// One request for each letter.
    pub(super) fn serve_each(&mut self, letters: &str) -> &mut Scenario {
        letters.chars().for_each(|letter| {
            self.serve(letter.encode_utf8(&mut [0; 4]));
        });
        self
    }

    /// What is resident, in the alphabet's order.
    pub(super) fn resident(&self) -> String {
        let mut letters: Vec<char> = self.records.iter().flatten().map(|record| record.0).collect();
        letters.sort_unstable();
        letters.into_iter().collect()
    }

    fn find(&mut self, letter: char) -> Option<u32> {
        let at =
            self.records.iter().position(|record| record.is_some_and(|record| record.0 == letter))? as u32;
        let (_, parent, _) = self.records[at as usize].expect("just found");
        self.policy.hit(at, &visit(letter, parent, 0));
        Some(at)
    }

    fn admit(&mut self, letter: char, visit: &Visit) -> Option<u32> {
        if self.records.iter().all(Option::is_some) {
            let (records, now) = (&self.records, self.requests);
            let is_parent = |at: u32| records.iter().flatten().any(|record| record.1 == Some(at));
            let used_now = |at: u32| records[at as usize].is_some_and(|record| record.2 == now);
            let mut may_go = |at: u32| !is_parent(at) && !used_now(at);
            match self.policy.victim(visit, &mut may_go) {
                Verdict::Evict(at) => {
                    let (gone, parent, _) =
                        self.records[at as usize].take().expect("what leaves is resident");
                    self.policy.removed(at, &key(gone), Removal::Evicted);
                    let is_parent =
                        |at: u32| self.records.iter().flatten().any(|record| record.1 == Some(at));
                    if let Some(parent) = parent.filter(|parent| !is_parent(*parent)) {
                        self.policy.set_leaf(parent, true);
                    }
                }
                Verdict::Refuse | Verdict::Stuck => return None,
            }
        }
        let at = self.records.iter().position(Option::is_none).expect("one has just left") as u32;
        self.records[at as usize] = Some((letter, visit.parent, self.requests));
        self.policy.inserted(at, visit);
        Some(at)
    }
}

#[test]
fn whatever_the_strategy_a_prefix_is_never_cut_above_its_end() {
    for strategy in Strategy::ALL {
        let mut pool = Scenario::with_room_for(4, strategy);
        pool.serve("abcd ab xy ab z abq");
        let resident = pool.resident();
        for (parent, child) in ["ab", "bc", "cd", "bq", "xy"].map(|pair| pair.split_at(1)) {
            assert!(!resident.contains(child) || resident.contains(parent), "{strategy}: {resident}");
        }
    }
}
