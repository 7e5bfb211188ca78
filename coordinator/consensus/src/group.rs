//! Who is of the raft group, and what the others know of each: decided by entries of the log, kept with every snapshot.

use crate::types::PeerId;
use protobuf::Message as _;
use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState};
use std::collections::BTreeMap;

/// The most peers of a group, learners included.
pub const MAX_PEERS: usize = 32;
/// The longest that is known of a peer, in bytes.
pub const MAX_ABOUT_BYTES: usize = 2048;
/// Peers are numbered below this.
const NUMBER_LIMIT: u64 = u64::MAX / 2;

/// The raft group at some index of the log.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Group {
    /// Who votes, growing.
    pub voters: Vec<PeerId>,
    /// While a change is under way: who voted before. Both majorities are needed then.
    pub outgoing: Vec<PeerId>,
    /// Who follows without a vote, growing.
    pub learners: Vec<PeerId>,
    /// What the host wants known of each. Empty until the first leader has said it.
    pub about: BTreeMap<PeerId, Vec<u8>>,
}

/// What a change of the group brings besides raft's own.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Update {
    /// It restates the founding set: whoever begins with an empty log learns from it who the founders are.
    pub(crate) founding: bool,
    pub(crate) about: BTreeMap<PeerId, Vec<u8>>,
}

impl Group {
    /// Says whether a peer is of the group, with or without a vote.
    pub fn contains(&self, peer: PeerId) -> bool {
        [&self.voters, &self.outgoing, &self.learners].into_iter().any(|part| part.contains(&peer))
    }

    pub(crate) fn of(state: &ConfState, about: BTreeMap<PeerId, Vec<u8>>) -> Group {
        let sorted = |ids: &[u64]| {
            let mut ids: Vec<PeerId> = ids.iter().copied().map(PeerId).collect();
            ids.sort_unstable();
            ids
        };
        Group {
            voters: sorted(&state.voters),
            outgoing: sorted(&state.voters_outgoing),
            learners: sorted(&state.learners),
            about,
        }
    }

    pub(crate) fn conf_state(&self) -> ConfState {
        let ids = |part: &[PeerId]| part.iter().map(|peer| peer.0).collect::<Vec<u64>>();
        ConfState {
            voters: ids(&self.voters),
            voters_outgoing: ids(&self.outgoing),
            learners: ids(&self.learners),
            ..ConfState::default()
        }
    }

    /// Puts a state behind the group, as a snapshot holds both.
    pub(crate) fn wrap(&self, state: &[u8]) -> Vec<u8> {
        let mut out = vec![0; 4];
        for part in [&self.voters, &self.outgoing, &self.learners] {
            put_peers(&mut out, part);
        }
        put_about(&mut out, &self.about);
        let length = (out.len() - 4) as u32;
        out[..4].copy_from_slice(&length.to_le_bytes());
        out.extend_from_slice(state);
        out
    }

    /// Takes a snapshot's bytes apart; none when they make no sense.
    pub(crate) fn unwrap(data: &[u8]) -> Option<(Group, &[u8])> {
        let (head, state) = split(data)?;
        let mut input = Input(head);
        let group = Group {
            voters: input.peers()?,
            outgoing: input.peers()?,
            learners: input.peers()?,
            about: input.about()?,
        };
        let is_apart =
            |learner: &PeerId| !group.voters.contains(learner) && !group.outgoing.contains(learner);
        let sound = input.0.is_empty() && !group.voters.is_empty() && group.learners.iter().all(is_apart);
        sound.then_some((group, state))
    }
}

/// Splits a snapshot's bytes into the group's and the state's.
pub(crate) fn split(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = data.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_le_bytes(*length) as usize)
}

/// Makes a change of the group; several are one joint step, and so is any that concerns a voter.
pub(crate) fn change(kinds: &[(ConfChangeType, PeerId)], joint: bool, update: &Update) -> ConfChangeV2 {
    let single = |(kind, peer): &(ConfChangeType, PeerId)| {
        let mut single = ConfChangeSingle { node_id: peer.0, ..ConfChangeSingle::default() };
        single.set_change_type(*kind);
        single
    };
    let changes: Vec<ConfChangeSingle> = kinds.iter().map(single).collect();
    let mut made =
        ConfChangeV2 { changes: changes.into(), context: update.encode().into(), ..ConfChangeV2::default() };
    if joint {
        made.set_transition(ConfChangeTransition::Explicit);
    }
    made
}

/// Decodes an entry that changes the group; none when it makes no sense.
pub(crate) fn decode_change(data: &[u8]) -> Option<(ConfChangeV2, Update)> {
    let change = ConfChangeV2::parse_from_bytes(data).ok()?;
    let in_range = |single: &ConfChangeSingle| (1..NUMBER_LIMIT).contains(&single.node_id);
    let sound = change.changes.len() <= MAX_PEERS && change.changes.iter().all(in_range);
    let update = if change.context.is_empty() { Update::default() } else { Update::decode(&change.context)? };
    sound.then_some((change, update))
}

impl Update {
    fn encode(&self) -> Vec<u8> {
        let mut out = vec![u8::from(self.founding)];
        put_about(&mut out, &self.about);
        out
    }

    fn decode(bytes: &[u8]) -> Option<Update> {
        let mut input = Input(bytes);
        let update = Update { founding: input.byte()? == 1, about: input.about()? };
        input.0.is_empty().then_some(update)
    }
}

pub(crate) fn put_peers(out: &mut Vec<u8>, peers: &[PeerId]) {
    out.push(peers.len() as u8);
    for peer in peers {
        out.extend(peer.0.to_le_bytes());
    }
}

fn put_about(out: &mut Vec<u8>, about: &BTreeMap<PeerId, Vec<u8>>) {
    out.push(about.len() as u8);
    for (peer, bytes) in about {
        out.extend(peer.0.to_le_bytes());
        out.extend((bytes.len() as u16).to_le_bytes());
        out.extend_from_slice(bytes);
    }
}

/// What is left to decode. Each part is none when there is too little, or it makes no sense.
pub(crate) struct Input<'a>(pub(crate) &'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    pub(crate) fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    pub(crate) fn word(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn count(&mut self) -> Option<usize> {
        self.byte().map(usize::from).filter(|count| *count <= MAX_PEERS)
    }

    fn peer(&mut self) -> Option<PeerId> {
        self.word().filter(|id| (1..NUMBER_LIMIT).contains(id)).map(PeerId)
    }

    /// Growing numbers, each once.
    pub(crate) fn peers(&mut self) -> Option<Vec<PeerId>> {
        let count = self.count()?;
        let peers = (0..count).map(|_| self.peer()).collect::<Option<Vec<PeerId>>>()?;
        peers.windows(2).all(|pair| pair[0] < pair[1]).then_some(peers)
    }

    fn about(&mut self) -> Option<BTreeMap<PeerId, Vec<u8>>> {
        let mut about = BTreeMap::new();
        for _ in 0..self.count()? {
            let peer = self.peer()?;
            let length = u16::from_le_bytes(self.take(2)?.try_into().ok()?);
            about.insert(peer, self.take(usize::from(length).min(MAX_ABOUT_BYTES + 1))?.to_vec());
            if usize::from(length) > MAX_ABOUT_BYTES {
                return None;
            }
        }
        Some(about)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group() -> Group {
        Group {
            voters: vec![PeerId(1), PeerId(3)],
            outgoing: vec![PeerId(1), PeerId(2)],
            learners: vec![PeerId(7)],
            about: [(PeerId(1), b"one".to_vec()), (PeerId(7), Vec::new())].into(),
        }
    }

    #[test]
    fn a_group_and_the_state_behind_it_read_back_and_nothing_shorter_does() {
        let bytes = group().wrap(b"state");
        assert_eq!(Group::unwrap(&bytes), Some((group(), &b"state"[..])));
        for length in 0..bytes.len() - 5 {
            assert_eq!(Group::unwrap(&bytes[..length]), None, "{length} bytes");
        }
        let nobody = Group { voters: Vec::new(), ..group() };
        assert_eq!(Group::unwrap(&nobody.wrap(b"")), None, "a state that nobody votes on");
        let twice = Group { learners: vec![PeerId(3)], ..group() };
        assert_eq!(Group::unwrap(&twice.wrap(b"")), None);
    }

    #[test]
    fn a_change_reads_back_and_an_absurd_one_does_not() {
        let update = Update { founding: true, about: group().about };
        let made = change(&[(ConfChangeType::AddNode, PeerId(4))], true, &update);
        let bytes = made.write_to_bytes().expect("it encodes");
        assert_eq!(decode_change(&bytes), Some((made, update)));
        assert_eq!(
            decode_change(&[]),
            Some((ConfChangeV2::default(), Update::default())),
            "the end of a change"
        );
        let nobody = change(&[(ConfChangeType::AddNode, PeerId(0))], false, &Update::default());
        assert_eq!(decode_change(&nobody.write_to_bytes().expect("it encodes")), None);
        let many: Vec<_> = (1..=40).map(|id| (ConfChangeType::AddNode, PeerId(id))).collect();
        let many = change(&many, false, &Update::default());
        assert_eq!(decode_change(&many.write_to_bytes().expect("it encodes")), None);
    }
}
