//! What a peer's log is worth: a peer whose log is empty may have lost it, and with it votes and entries that others count
//! on. It takes no part until its peers have shown that there is nothing to lose, or a leader has given everything back.
//!
//! Raft has no word for this, so peers exchange one of their own beside raft's messages.

use crate::types::{ConsensusError, PeerId, Restored};
use protobuf::Message as _;
use raft::eraftpb::{HardState, MessageType};
use std::collections::BTreeMap;

/// What a peer's log is worth.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Standing {
    /// It started with an empty log and knows nothing of its peers: it hears raft's messages and answers none.
    Newborn,
    /// Every peer's log was empty as well, and that is durable here: it votes, and campaigns once every other knows it too.
    Founder,
    /// Its log was empty and its peers' are not: it follows a leader, and neither votes nor campaigns until it has
    /// everything that was committed before it asked.
    Rejoining,
    /// A voter like any other.
    Settled,
}

impl Standing {
    fn code(self) -> u8 {
        match self {
            Standing::Newborn => 0,
            Standing::Founder => 1,
            Standing::Rejoining => 2,
            Standing::Settled => 3,
        }
    }

    fn from_code(code: u8) -> Option<Standing> {
        let all = [Standing::Newborn, Standing::Founder, Standing::Rejoining, Standing::Settled];
        all.into_iter().find(|standing| standing.code() == code)
    }

    /// Returns what a log is worth that held this when it was opened. A lone voter has nobody to ask.
    pub(crate) fn of(restored: &Restored, voters: usize) -> Result<Standing, ConsensusError> {
        match &restored.hard_state {
            Some(bytes) => Ok(decode_hard_state(bytes)?.0),
            None if voters > 1 && *restored == Restored::default() => Ok(Standing::Newborn),
            None => Ok(Standing::Settled),
        }
    }

    /// Says whether a peer of this standing takes in a message of raft's.
    pub(crate) fn heeds(self, kind: MessageType) -> bool {
        match self {
            Standing::Founder | Standing::Settled => true,
            Standing::Newborn => false,
            Standing::Rejoining => {
                matches!(kind, MessageType::MsgAppend | MessageType::MsgHeartbeat | MessageType::MsgSnapshot)
            }
        }
    }

    /// Says whether others may have counted on this peer's log.
    fn has_past(self) -> bool {
        matches!(self, Standing::Rejoining | Standing::Settled)
    }
}

/// No protobuf message begins with this: it tells words and marked hard states from raft's own bytes.
const MARK: u8 = 0;
const WORD_BYTES: usize = 35;
/// No index, in a word.
const NONE: u64 = u64::MAX;
/// Terms and indices stay below this, as in raft's messages.
const NUMBER_LIMIT: u64 = u64::MAX / 2;

/// What one peer tells another of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Word {
    /// Whether an answer is wanted.
    pub(crate) asks: bool,
    pub(crate) standing: Standing,
    /// The asker's start: an answer to an earlier one says nothing of now.
    pub(crate) start: u64,
    pub(crate) term: u64,
    /// The last entry that is durable there.
    pub(crate) last_index: u64,
    /// What it has committed, if it leads and an entry of its own term is among it.
    pub(crate) committed: Option<u64>,
}

impl Word {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![MARK, u8::from(self.asks), self.standing.code()];
        for number in [self.start, self.term, self.last_index, self.committed.unwrap_or(NONE)] {
            out.extend(number.to_le_bytes());
        }
        out
    }

    /// Decodes a word; none when the bytes are none, or make no sense.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Word> {
        if bytes.len() != WORD_BYTES || bytes[0] != MARK || bytes[1] > 1 {
            return None;
        }
        let number = |at: usize| {
            u64::from_le_bytes(bytes[3 + 8 * at..11 + 8 * at].try_into().expect("the length was checked"))
        };
        let committed = Some(number(3)).filter(|index| *index != NONE);
        let word = Word {
            asks: bytes[1] == 1,
            standing: Standing::from_code(bytes[2])?,
            start: number(0),
            term: number(1),
            last_index: number(2),
            committed,
        };
        let in_range = [word.term, word.last_index, committed.unwrap_or(0)].iter().all(|n| *n < NUMBER_LIMIT);
        in_range.then_some(word)
    }
}

/// Says whether bytes claim to be a word.
pub(crate) fn is_word(bytes: &[u8]) -> bool {
    bytes.first() == Some(&MARK)
}

/// Encodes a hard state as the log keeps it: raft's own bytes, behind a mark while the peer is not settled.
pub(crate) fn encode_hard_state(standing: Standing, state: &HardState) -> Vec<u8> {
    let mut out = match standing {
        Standing::Settled => Vec::new(),
        marked => vec![MARK, marked.code()],
    };
    state.write_to_vec(&mut out).expect("a hard state in memory always encodes");
    out
}

/// Decodes what [`encode_hard_state`] gave.
pub(crate) fn decode_hard_state(bytes: &[u8]) -> Result<(Standing, HardState), ConsensusError> {
    let fail = |what: String| ConsensusError::Log(format!("hard state: {what}"));
    let (standing, state) = match bytes {
        [MARK, code, state @ ..] => {
            let standing = Standing::from_code(*code);
            (standing.ok_or_else(|| fail(format!("it has the unknown mark {code}")))?, state)
        }
        state => (Standing::Settled, state),
    };
    let state = HardState::parse_from_bytes(state).map_err(|error| fail(error.to_string()))?;
    Ok((standing, state))
}

/// What the other peers have said since this start.
#[derive(Default)]
pub(crate) struct Heard(BTreeMap<PeerId, Word>);

impl Heard {
    pub(crate) fn note(&mut self, from: PeerId, word: Word) {
        self.0.insert(from, word);
    }

    /// Says whether a group of `voters` is only now being founded: all others are there, and none has a past.
    pub(crate) fn is_beginning(&self, voters: usize) -> bool {
        self.0.len() + 1 == voters && !self.anyone_has_past()
    }

    /// Says whether every other peer of `voters` knows that the group is being founded, or one has gone further already.
    pub(crate) fn is_founded(&self, voters: usize) -> bool {
        let all = self.0.len() + 1 == voters;
        self.anyone_has_past() || (all && self.0.values().all(|word| word.standing == Standing::Founder))
    }

    /// Returns the term below which nothing may be heard any more, once there is a past and enough peers have spoken: any
    /// majority that this peer was part of before it lost its log has one of them in it.
    pub(crate) fn floor(&self, voters: usize) -> Option<u64> {
        let majority = voters / 2 + 1;
        let enough = self.anyone_has_past() && self.0.len() > voters - majority;
        enough.then(|| self.0.values().map(|word| word.term).max().unwrap_or(0))
    }

    fn anyone_has_past(&self) -> bool {
        self.0.values().any(|word| word.standing.has_past())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(standing: Standing, term: u64) -> Word {
        Word { asks: false, standing, start: 7, term, last_index: 3, committed: None }
    }

    fn heard(words: &[Word]) -> Heard {
        let mut heard = Heard::default();
        for (at, word) in words.iter().enumerate() {
            heard.note(PeerId(at as u64 + 2), *word);
        }
        heard
    }

    #[test]
    fn a_word_reads_back_and_no_other_bytes_do() {
        let said = Word { asks: true, committed: Some(9), ..word(Standing::Rejoining, 5) };
        let bytes = said.encode();
        assert_eq!((Word::decode(&bytes), is_word(&bytes)), (Some(said), true));
        for length in 0..bytes.len() {
            assert_eq!(Word::decode(&bytes[..length]), None);
        }
        for (at, value) in [(0, 8), (1, 2), (2, 4), (18, 0xFF), (26, 0xFF), (34, 0xFE)] {
            let mut forged = bytes.clone();
            forged[at] = value;
            assert_eq!(Word::decode(&forged), None, "byte {at}");
        }
    }

    #[test]
    fn a_hard_state_reads_back_and_a_settled_one_is_as_raft_encodes_it() {
        let state = HardState { term: 4, vote: 2, commit: 9, ..HardState::default() };
        for standing in [Standing::Founder, Standing::Rejoining, Standing::Settled] {
            let bytes = encode_hard_state(standing, &state);
            assert_eq!(decode_hard_state(&bytes), Ok((standing, state.clone())));
        }
        let plain = state.write_to_bytes().expect("it encodes");
        assert_eq!(encode_hard_state(Standing::Settled, &state), plain);
        assert!(decode_hard_state(&[MARK, 9]).is_err());
    }

    #[test]
    fn a_group_begins_only_when_all_are_there_and_none_has_a_past() {
        use Standing::{Founder, Newborn, Rejoining, Settled};
        // Standings of the two others; whether the group is beginning, whether it is founded, whether there is a floor.
        for (others, beginning, founded, floor) in [
            (&[][..], false, false, None),
            (&[Newborn], false, false, None),
            (&[Newborn, Newborn], true, false, None),
            (&[Newborn, Founder], true, false, None),
            (&[Founder, Founder], true, true, None),
            (&[Settled], false, true, None),
            (&[Settled, Newborn], false, true, Some(5)),
            (&[Settled, Settled], false, true, Some(5)),
            (&[Rejoining, Newborn], false, true, Some(5)),
        ] {
            let words: Vec<Word> = others.iter().zip([4, 5]).map(|(of, term)| word(*of, term)).collect();
            let heard = heard(&words);
            assert_eq!(
                (heard.is_beginning(3), heard.is_founded(3), heard.floor(3)),
                (beginning, founded, floor),
                "{others:?}"
            );
        }
        let three = [word(Settled, 5), word(Settled, 9), word(Settled, 6)];
        assert_eq!(heard(&three[..2]).floor(5), None, "two of five may both be strangers to what was lost");
        assert_eq!(heard(&three).floor(5), Some(9));
    }
}
