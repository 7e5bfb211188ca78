//! Messages of peers, checked before raft sees them: it panics on some that no honest peer sends, and grows on others.

use crate::group::{Group, decode_change};
use crate::types::PeerId;
use protobuf::{CodedInputStream, Message as _};
use raft::eraftpb::{EntryType, Message, MessageType};

/// The largest message, in bytes. A snapshot travels in one.
pub const MAX_MESSAGE_BYTES: usize = 64 << 20;
/// The largest state that a snapshot may hold, in bytes: it must fit into a message.
pub const MAX_SNAPSHOT_BYTES: usize = MAX_MESSAGE_BYTES - (1 << 20);
/// The largest proposal that may be configured, in bytes.
pub const MAX_PROPOSAL_BYTES: usize = 8 << 20;
/// The largest append, in bytes: raft closes one with the entry that passes 1 MiB. A log must take as many
/// entries at once.
pub const MAX_APPEND_MESSAGE_BYTES: usize = MAX_PROPOSAL_BYTES + MAX_APPEND_BYTES as usize + (1 << 20);
/// Bytes of entries in one append, unless a single entry has more.
pub(crate) const MAX_APPEND_BYTES: u64 = 1 << 20;

/// Entries in one message: a decoded entry takes many times the two bytes that an empty one takes on the wire.
pub const MAX_ENTRIES: usize = 1 << 17;
/// Bytes of a heartbeat's context: the number of a read round.
const MAX_CONTEXT_BYTES: usize = 64;
/// Indices and terms stay below this, so that adding to them never overflows.
const NUMBER_LIMIT: u64 = u64::MAX / 2;
/// The field of a message that holds its entries (eraftpb.proto).
const ENTRIES_FIELD: u32 = 7;

/// What a message is checked against.
pub(crate) struct Expected {
    pub(crate) us: PeerId,
    pub(crate) from: PeerId,
    /// Whether the sender is of the group here.
    pub(crate) is_known: bool,
    pub(crate) term: u64,
    pub(crate) last_index: u64,
    /// Whether all entries here are durable.
    pub(crate) is_durable: bool,
    /// Whether a leader's snapshot is here that is not durable yet.
    pub(crate) is_installing: bool,
}

/// Decodes a peer's message; none when it is damaged or makes no sense.
pub(crate) fn decode(bytes: &[u8], expected: &Expected) -> Option<Message> {
    if bytes.len() > MAX_MESSAGE_BYTES || count_entries(bytes)? > MAX_ENTRIES {
        return None;
    }
    let message = Message::parse_from_bytes(bytes).ok()?;
    let known = (1..NUMBER_LIMIT).contains(&expected.from.0) && expected.from != expected.us;
    // A message of term 0 would pass for one of our own.
    let in_range = (1..NUMBER_LIMIT).contains(&message.term)
        && [message.index, message.commit, message.reject_hint].into_iter().all(|index| index < NUMBER_LIMIT);
    if !known || message.from != expected.from.0 || message.to != expected.us.0 || !in_range {
        return None;
    }
    let kind = message.get_msg_type();
    if kind != MessageType::MsgAppend && !message.get_entries().is_empty() {
        return None;
    }
    // Who lags may not know yet that a leader or a candidate is of the group, and must heed it all the same. Answers and words
    // that only a leader it has followed sends come from those it knows.
    let may_be_strange = matches!(
        kind,
        MessageType::MsgAppend
            | MessageType::MsgHeartbeat
            | MessageType::MsgSnapshot
            | MessageType::MsgRequestVote
            | MessageType::MsgRequestPreVote
    );
    if !expected.is_known && !may_be_strange {
        return None;
    }
    let sound = match kind {
        // No log takes more at once.
        MessageType::MsgAppend => bytes.len() <= MAX_APPEND_MESSAGE_BYTES && is_append(&message),
        // A leader that believes us to have more than we have met us before our log was lost.
        MessageType::MsgHeartbeat => {
            message.commit <= expected.last_index && message.get_context().len() <= MAX_CONTEXT_BYTES
        }
        MessageType::MsgHeartbeatResponse => message.get_context().len() <= MAX_CONTEXT_BYTES,
        MessageType::MsgSnapshot => is_snapshot(&message, expected.us),
        // Nobody in our term can hold more than its leader, and nobody here asks for snapshots.
        MessageType::MsgAppendResponse => {
            let beyond = message.term == expected.term && message.index > expected.last_index;
            message.request_snapshot == 0 && !beyond
        }
        // We ask for votes only once everything is durable, and raft relies on it.
        MessageType::MsgRequestVoteResponse => message.reject || expected.is_durable,
        // Raft would look for entries that the snapshot has replaced.
        MessageType::MsgTimeoutNow => !expected.is_installing,
        MessageType::MsgRequestVote
        | MessageType::MsgRequestPreVote
        | MessageType::MsgRequestPreVoteResponse => true,
        // Local messages, proposals and reads never come from a peer.
        _ => false,
    };
    sound.then_some(message)
}

/// Counts a message's entries without decoding them; none when the message is damaged.
fn count_entries(bytes: &[u8]) -> Option<usize> {
    let mut input = CodedInputStream::from_bytes(bytes);
    let mut entries = 0;
    while !input.eof().ok()? {
        let (field, wire_type) = input.read_tag_unpack().ok()?;
        entries += usize::from(field == ENTRIES_FIELD);
        input.skip_field(wire_type).ok()?;
    }
    Some(entries)
}

fn is_append(message: &Message) -> bool {
    // Term 0 belongs to index 0 alone; elsewhere raft takes it for the term of an entry that is not there.
    if message.log_term > message.term || (message.log_term == 0) != (message.index == 0) {
        return false;
    }
    let mut term = message.log_term.max(1);
    for (at, entry) in message.get_entries().iter().enumerate() {
        let follows =
            entry.index == message.index + 1 + at as u64 && entry.term >= term && entry.term <= message.term;
        let makes_sense = match entry.get_entry_type() {
            EntryType::EntryNormal => true,
            EntryType::EntryConfChangeV2 => decode_change(entry.get_data()).is_some(),
            EntryType::EntryConfChange => false,
        };
        if !follows || !makes_sense {
            return false;
        }
        term = entry.term;
    }
    true
}

/// Nobody takes a snapshot of a group that it is not of, or that is not the one that raft is told of beside it.
fn is_snapshot(message: &Message, us: PeerId) -> bool {
    let snapshot = message.get_snapshot();
    let metadata = snapshot.get_metadata();
    let state = metadata.get_conf_state();
    let Some((group, _)) = Group::unwrap(snapshot.get_data()) else { return false };
    (1..NUMBER_LIMIT).contains(&metadata.index)
        && (1..=message.term).contains(&metadata.term)
        && group.contains(us)
        && Group::of(state, group.about.clone()) == group
        && state.learners_next.is_empty()
        && !state.auto_leave
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::group::{MAX_ABOUT_BYTES, MAX_PEERS};
    use raft::eraftpb::Entry;

    fn expected() -> Expected {
        Expected {
            us: PeerId(1),
            from: PeerId(2),
            is_known: true,
            term: 5,
            last_index: 9,
            is_durable: true,
            is_installing: false,
        }
    }

    fn message(kind: MessageType) -> Message {
        let mut message = Message { from: 2, to: 1, term: 5, ..Message::default() };
        message.set_msg_type(kind);
        message
    }

    fn passes(message: &Message, expected: &Expected) -> bool {
        decode(&message.write_to_bytes().expect("it encodes"), expected).is_some()
    }

    #[test]
    fn an_append_joins_onto_an_entry_and_has_no_gap() {
        let mut append = message(MessageType::MsgAppend);
        (append.index, append.log_term) = (9, 4);
        let entry = |index, term| Entry { index, term, ..Entry::default() };
        for (entries, sound) in [
            (vec![], true),
            (vec![entry(10, 4), entry(11, 5)], true),
            (vec![entry(10, 4), entry(12, 5)], false),
            (vec![entry(10, 5), entry(11, 4)], false),
            (vec![entry(10, 6)], false),
        ] {
            append.entries = entries.into();
            assert_eq!(passes(&append, &expected()), sound, "{append:?}");
        }
        append.entries.clear();
        append.log_term = 0;
        assert!(!passes(&append, &expected()), "raft would take it to follow an entry that is not there");
        append.index = 0;
        assert!(passes(&append, &expected()));
    }

    #[test]
    fn an_append_is_no_larger_than_a_log_takes() {
        let mut append = message(MessageType::MsgAppend);
        (append.index, append.log_term) = (9, 4);
        for (bytes, sound) in [(MAX_PROPOSAL_BYTES, true), (MAX_APPEND_MESSAGE_BYTES, false)] {
            append.entries =
                vec![Entry { index: 10, term: 5, data: vec![7; bytes].into(), ..Entry::default() }].into();
            assert_eq!(passes(&append, &expected()), sound, "{bytes} bytes");
        }
    }

    #[test]
    fn what_depends_on_our_state_is_held_against_it() {
        let mut heartbeat = message(MessageType::MsgHeartbeat);
        heartbeat.commit = 9;
        assert!(passes(&heartbeat, &expected()));
        heartbeat.commit = 10;
        assert!(!passes(&heartbeat, &expected()));
        let mut answer = message(MessageType::MsgAppendResponse);
        answer.index = 10;
        assert!(!passes(&answer, &expected()));
        answer.term = 6;
        assert!(passes(&answer, &expected()), "that is how a later term is learnt");
        let vote = message(MessageType::MsgRequestVoteResponse);
        assert!(passes(&vote, &expected()));
        assert!(!passes(&vote, &Expected { is_durable: false, ..expected() }));
        let now = message(MessageType::MsgTimeoutNow);
        assert!(passes(&now, &expected()));
        assert!(!passes(&now, &Expected { is_installing: true, ..expected() }));
    }

    #[test]
    fn strangers_local_messages_and_absurd_numbers_are_refused() {
        let vote = message(MessageType::MsgRequestVote);
        assert!(passes(&vote, &expected()));
        let forged: [fn(&mut Message); 6] = [
            |forged| forged.from = 1,
            |forged| forged.from = 3, // Not who sent it.
            |forged| forged.to = 2,
            |forged| forged.term = 0,
            |forged| forged.term = u64::MAX,
            |forged| forged.reject_hint = u64::MAX,
        ];
        for forge in forged {
            let mut forged = vote.clone();
            forge(&mut forged);
            assert!(!passes(&forged, &expected()), "{forged:?}");
        }
        for kind in [MessageType::MsgHup, MessageType::MsgPropose, MessageType::MsgReadIndex] {
            assert!(!passes(&message(kind), &expected()), "{kind:?}");
        }
    }

    #[test]
    fn a_stranger_may_lead_or_stand_for_election_and_say_nothing_else() {
        let stranger = Expected { is_known: false, ..expected() };
        let append = Message { index: 9, log_term: 4, ..message(MessageType::MsgAppend) };
        for said in [append, message(MessageType::MsgHeartbeat), message(MessageType::MsgRequestPreVote)] {
            assert!(passes(&said, &stranger), "{said:?}");
        }
        for kind in [MessageType::MsgTimeoutNow, MessageType::MsgRequestVoteResponse] {
            assert!(!passes(&message(kind), &stranger) && passes(&message(kind), &expected()), "{kind:?}");
        }
    }

    #[test]
    fn a_small_message_of_very_many_entries_is_refused_before_it_is_decoded() {
        let mut bytes = message(MessageType::MsgAppend).write_to_bytes().expect("it encodes");
        let empty_entry = [(ENTRIES_FIELD as u8) << 3 | 2, 0];
        for _ in 0..=MAX_ENTRIES {
            bytes.extend(empty_entry);
        }
        assert_eq!(count_entries(&bytes), Some(MAX_ENTRIES + 1));
        assert!(decode(&bytes, &expected()).is_none());
    }

    #[test]
    fn the_largest_snapshot_of_the_largest_group_is_a_message() {
        let voters: Vec<PeerId> = (1..=MAX_PEERS as u64).map(|peer| PeerId(u64::MAX / 4 + peer)).collect();
        let about = voters.iter().map(|peer| (*peer, vec![0xFF; MAX_ABOUT_BYTES])).collect();
        let group = Group { voters, about, ..Group::default() };
        let expected = Expected { us: group.voters[0], from: group.voters[1], ..expected() };
        let mut snapshot =
            Message { from: expected.from.0, to: expected.us.0, ..message(MessageType::MsgSnapshot) };
        let content = snapshot.mut_snapshot();
        content.set_data(group.wrap(&vec![0xFF; MAX_SNAPSHOT_BYTES]).into());
        (content.mut_metadata().index, content.mut_metadata().term) = (NUMBER_LIMIT - 1, 5);
        *content.mut_metadata().mut_conf_state() = group.conf_state();
        let bytes = snapshot.write_to_bytes().expect("it encodes");
        assert!(bytes.len() <= MAX_MESSAGE_BYTES, "{} bytes", bytes.len());
        assert!(decode(&bytes, &expected).is_some());
    }
}
