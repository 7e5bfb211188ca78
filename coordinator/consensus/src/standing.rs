//! What a peer's log is worth: a peer whose log is empty may have lost it, and with it votes and entries that others count
//! on. It takes no part until its peers have shown that there is nothing to lose, or a leader has given everything back.
//!
//! Raft has no word for this, so peers exchange one of their own beside raft's messages.

use crate::group::{Input, put_peers};
use crate::types::{ConsensusError, PeerId, Restored};
use kvhive_planted::{Bug, is};
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
    /// A peer like any other.
    Settled,
    /// It knows that it is not of the group, or not any more: it takes no part. Nothing says so on disk but the log itself.
    Removed,
}

impl Standing {
    fn code(self) -> u8 {
        match self {
            Standing::Newborn => 0,
            Standing::Founder => 1,
            Standing::Rejoining => 2,
            Standing::Settled => 3,
            Standing::Removed => 4,
        }
    }

    fn from_code(code: u8) -> Option<Standing> {
        let all = [Standing::Newborn, Standing::Founder, Standing::Rejoining, Standing::Settled];
        all.into_iter().find(|standing| standing.code() == code)
    }

    /// Returns what a log is worth that held this when it was opened, and who founded its group, so far as it took part in
    /// that. A lone founder has nobody to ask.
    pub(crate) fn of(
        restored: &Restored,
        named: &[PeerId],
    ) -> Result<(Standing, Vec<PeerId>), ConsensusError> {
        match &restored.hard_state {
            Some(bytes) => decode_hard_state(bytes).map(|held| (held.standing, held.founders)),
            None if named.len() > 1 && *restored == Restored::default() && !is(Bug::NewbornVotes) => {
                Ok((Standing::Newborn, Vec::new()))
            }
            None => Ok((Standing::Settled, named.to_vec())),
        }
    }

    /// Says whether a peer of this standing takes in a message of raft's.
    pub(crate) fn heeds(self, kind: MessageType) -> bool {
        match self {
            Standing::Founder | Standing::Settled | Standing::Removed => true,
            Standing::Newborn => false,
            Standing::Rejoining => {
                matches!(kind, MessageType::MsgAppend | MessageType::MsgHeartbeat | MessageType::MsgSnapshot)
            }
        }
    }

    /// Says whether others may have counted on this peer's log.
    pub(crate) fn has_past(self) -> bool {
        matches!(self, Standing::Rejoining | Standing::Settled)
    }
}

/// No protobuf message begins with this: it tells words from raft's own messages.
const MARK: u8 = 0;
const ASKS: u8 = 1;
const FAREWELL: u8 = 2;
/// No index, in a word.
const NONE: u64 = u64::MAX;
/// Terms and indices stay below this, as in raft's messages.
const NUMBER_LIMIT: u64 = u64::MAX / 2;

/// What one peer tells another of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Word {
    /// Whether an answer is wanted.
    pub(crate) asks: bool,
    /// Whether a leader says that the other is not of its group.
    pub(crate) is_farewell: bool,
    pub(crate) standing: Standing,
    /// The asker's start: an answer to an earlier one says nothing of now.
    pub(crate) start: u64,
    pub(crate) term: u64,
    /// The last entry that is durable there.
    pub(crate) last_index: u64,
    /// What it has committed, if it leads and an entry of its own term is among it.
    pub(crate) committed: Option<u64>,
    /// Tells the set apart that it would found, or has founded, the group with.
    pub(crate) founders: u64,
    /// Who votes, as it knows; while votes are joint, who votes afterwards.
    pub(crate) voters: Vec<PeerId>,
    /// While votes are joint: who voted before.
    pub(crate) outgoing: Vec<PeerId>,
}

impl Word {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let flags = u8::from(self.asks) * ASKS + u8::from(self.is_farewell) * FAREWELL;
        let mut out = vec![MARK, flags, self.standing.code()];
        let committed = self.committed.unwrap_or(NONE);
        for number in [self.start, self.term, self.last_index, committed, self.founders] {
            out.extend(number.to_le_bytes());
        }
        put_peers(&mut out, &self.voters);
        put_peers(&mut out, &self.outgoing);
        out
    }

    /// Decodes a word; none when the bytes are none, or make no sense.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Word> {
        let mut input = Input(bytes);
        let (mark, flags) = (input.byte()?, input.byte()?);
        let standing = Standing::from_code(input.byte()?)?;
        let word = Word {
            asks: flags & ASKS != 0,
            is_farewell: flags & FAREWELL != 0,
            standing,
            start: input.word()?,
            term: input.word()?,
            last_index: input.word()?,
            committed: Some(input.word()?).filter(|index| *index != NONE),
            founders: input.word()?,
            voters: input.peers()?,
            outgoing: input.peers()?,
        };
        let numbers = [word.term, word.last_index, word.committed.unwrap_or(0)];
        let sound = mark == MARK && flags <= ASKS + FAREWELL && input.0.is_empty();
        (sound && numbers.iter().all(|number| *number < NUMBER_LIMIT)).then_some(word)
    }
}

/// Says whether bytes claim to be a word.
pub(crate) fn is_word(bytes: &[u8]) -> bool {
    bytes.first() == Some(&MARK)
}

/// Returns a number that tells sets of peers apart (FNV-1a).
pub(crate) fn digest(peers: impl Iterator<Item = PeerId>) -> u64 {
    let bytes = peers.flat_map(|peer| peer.0.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// What the log keeps beside its entries.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Held {
    pub(crate) standing: Standing,
    /// Who voted when the log began; nobody where it began as a copy of others'.
    pub(crate) founders: Vec<PeerId>,
    pub(crate) state: HardState,
}

impl Held {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![self.standing.code()];
        put_peers(&mut out, &self.founders);
        self.state.write_to_vec(&mut out).expect("a hard state in memory always encodes");
        out
    }
}

/// Decodes what [`Held::encode`] gave.
pub(crate) fn decode_hard_state(bytes: &[u8]) -> Result<Held, ConsensusError> {
    let fail = |what: String| ConsensusError::Log(format!("hard state: {what}"));
    let mut input = Input(bytes);
    let head = input.byte().and_then(Standing::from_code).zip(input.peers());
    let (standing, founders) = head.ok_or_else(|| fail("it does not begin as any is written".to_owned()))?;
    let state = HardState::parse_from_bytes(input.0).map_err(|error| fail(error.to_string()))?;
    Ok(Held { standing, founders, state })
}

/// What the other peers have said since this start.
#[derive(Default)]
pub(crate) struct Heard(BTreeMap<PeerId, Word>);

impl Heard {
    pub(crate) fn note(&mut self, from: PeerId, word: Word) {
        self.0.insert(from, word);
    }

    /// Says whether a group of `peers` is only now being founded: all others are there, and none has a past.
    pub(crate) fn is_beginning(&self, peers: usize) -> bool {
        self.0.len() + 1 == peers && !self.anyone_has_past()
    }

    /// Says whether every other peer of `peers` knows that the group is being founded, or one has gone further already.
    pub(crate) fn is_founded(&self, peers: usize) -> bool {
        let all = self.0.len() + 1 == peers;
        self.anyone_has_past() || (all && self.0.values().all(|word| word.standing == Standing::Founder))
    }

    /// Returns the term below which nothing may be heard any more, once there is a past and enough peers have spoken: of every
    /// set of voters that any of them knows, each majority has one of them in it. So whatever this peer has once voted for, or
    /// taken in, with others, one of those has told of it. A change to a set that they do not know was decided by a majority of
    /// one that they do.
    pub(crate) fn floor(&self) -> Option<u64> {
        let sets = || self.0.values().filter(|word| word.standing.has_past());
        let sets = || sets().flat_map(|word| [&word.voters, &word.outgoing]).filter(|set| !set.is_empty());
        let is_met = |set: &Vec<PeerId>| {
            let spoke = set.iter().filter(|peer| self.0.contains_key(peer)).count();
            spoke > set.len() - (set.len() / 2 + 1)
        };
        let enough = sets().next().is_some() && sets().all(is_met);
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
        Word {
            asks: false,
            is_farewell: false,
            standing,
            start: 7,
            term,
            last_index: 3,
            committed: None,
            founders: 11,
            voters: Vec::new(),
            outgoing: Vec::new(),
        }
    }

    fn among(voters: &[u64], word: Word) -> Word {
        Word { voters: voters.iter().copied().map(PeerId).collect(), ..word }
    }

    fn heard(words: &[Word]) -> Heard {
        let mut heard = Heard::default();
        for (at, word) in words.iter().enumerate() {
            heard.note(PeerId(at as u64 + 2), word.clone());
        }
        heard
    }

    #[test]
    fn a_word_reads_back_and_no_other_bytes_do() {
        let outgoing = vec![PeerId(4), PeerId(5)];
        let said = Word { asks: true, committed: Some(9), outgoing, ..word(Standing::Rejoining, 5) };
        let said = among(&[1, 2, 3], said);
        let bytes = said.encode();
        assert_eq!((Word::decode(&bytes), is_word(&bytes)), (Some(said), true));
        for length in 0..bytes.len() {
            assert_eq!(Word::decode(&bytes[..length]), None);
        }
        // The last: its first voter is numbered as the second.
        for (at, value) in [(0, 8), (1, 4), (2, 5), (18, 0xFF), (26, 0xFF), (34, 0xFE), (43, 33), (44, 2)] {
            let mut forged = bytes.clone();
            forged[at] = value;
            assert_eq!(Word::decode(&forged), None, "byte {at}");
        }
    }

    #[test]
    fn what_the_log_keeps_reads_back() {
        let state = HardState { term: 4, vote: 2, commit: 9, ..HardState::default() };
        for standing in [Standing::Founder, Standing::Rejoining, Standing::Settled] {
            let held = Held { standing, founders: vec![PeerId(1), PeerId(2)], state: state.clone() };
            assert_eq!(decode_hard_state(&held.encode()), Ok(held));
        }
        assert!(decode_hard_state(&[9, 0]).is_err() && decode_hard_state(&[]).is_err());
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
            let say = |(of, term): (&Standing, u64)| match of.has_past() {
                true => among(&[1, 2, 3], word(*of, term)),
                false => word(*of, term),
            };
            let words: Vec<Word> = others.iter().zip([4, 5]).map(say).collect();
            let heard = heard(&words);
            assert_eq!(
                (heard.is_beginning(3), heard.is_founded(3), heard.floor()),
                (beginning, founded, floor),
                "{others:?}"
            );
        }
    }

    #[test]
    fn enough_have_spoken_when_no_majority_of_any_known_set_is_without_one_of_them() {
        let five = |term| among(&[1, 2, 3, 4, 5], word(Standing::Settled, term));
        assert_eq!(heard(&[five(5), five(9)]).floor(), None, "two of five may both miss what was lost");
        assert_eq!(heard(&[five(5), five(9), five(6)]).floor(), Some(9));
        let three = |term| among(&[1, 2, 3], word(Standing::Settled, term));
        assert_eq!(heard(&[three(5), three(6)]).floor(), Some(6));
        // One of them knows that others vote now, or are about to: they are heard as well, or nobody is believed.
        let joint = Word { outgoing: vec![PeerId(1), PeerId(2), PeerId(3)], ..among(&[1, 4, 5], three(6)) };
        assert_eq!(heard(&[three(5), joint.clone()]).floor(), None);
        assert_eq!(heard(&[three(5), joint, five(8)]).floor(), None, "4 alone is no majority's");
        // Who is new waits for as many as could have outvoted it.
        let alone = among(&[2], word(Standing::Settled, 3));
        assert_eq!(heard(std::slice::from_ref(&alone)).floor(), Some(3));
        let without_us = among(&[2, 3, 4], word(Standing::Settled, 4));
        assert_eq!(heard(&[without_us.clone(), without_us]).floor(), Some(4));
    }
}
