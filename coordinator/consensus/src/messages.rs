//! Messages of peers, checked before raft sees them: it panics on some that no honest peer sends.

use crate::types::PeerId;
use protobuf::Message as _;
use raft::eraftpb::{EntryType, Message, MessageType};

/// The largest message, in bytes. A snapshot travels in one.
pub const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// What a message is checked against.
pub(crate) struct Expected<'a> {
    pub(crate) us: PeerId,
    pub(crate) from: PeerId,
    pub(crate) voters: &'a [PeerId],
    pub(crate) last_index: u64,
}

/// Decodes a peer's message; none when it is damaged or makes no sense.
pub(crate) fn decode(bytes: &[u8], expected: &Expected<'_>) -> Option<Message> {
    if bytes.len() > MAX_MESSAGE_BYTES {
        return None;
    }
    let message = Message::parse_from_bytes(bytes).ok()?;
    let known = expected.voters.contains(&expected.from) && expected.from != expected.us;
    if !known || message.from != expected.from.0 || message.to != expected.us.0 || message.term == u64::MAX {
        return None;
    }
    let sound = match message.get_msg_type() {
        MessageType::MsgAppend => is_append(&message),
        // A leader that believes us to have more than we have met us before our log was lost.
        MessageType::MsgHeartbeat => message.commit <= expected.last_index,
        MessageType::MsgSnapshot => {
            let metadata = message.get_snapshot().get_metadata();
            let mut voters = metadata.get_conf_state().voters.clone();
            voters.sort_unstable();
            metadata.index > 0
                && metadata.index < u64::MAX / 2
                && voters.iter().copied().eq(expected.voters.iter().map(|voter| voter.0))
                && metadata.get_conf_state().learners.is_empty()
                && metadata.get_conf_state().voters_outgoing.is_empty()
        }
        MessageType::MsgAppendResponse | MessageType::MsgHeartbeatResponse => message.index < u64::MAX / 2,
        MessageType::MsgRequestVote
        | MessageType::MsgRequestVoteResponse
        | MessageType::MsgRequestPreVote
        | MessageType::MsgRequestPreVoteResponse
        | MessageType::MsgTimeoutNow => true,
        // Local messages, proposals and reads never come from a peer.
        _ => false,
    };
    sound.then_some(message)
}

fn is_append(message: &Message) -> bool {
    if message.index >= u64::MAX / 2 || message.log_term > message.term {
        return false;
    }
    let mut term = message.log_term;
    for (at, entry) in message.get_entries().iter().enumerate() {
        let follows =
            entry.index == message.index + 1 + at as u64 && entry.term >= term && entry.term <= message.term;
        if !follows || entry.get_entry_type() != EntryType::EntryNormal {
            return false;
        }
        term = entry.term;
    }
    true
}
