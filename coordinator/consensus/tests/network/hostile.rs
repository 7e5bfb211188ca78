//! Messages that no honest peer sends: ignored or answered, never a panic.

use super::net::{Net, Random};
use kvhive_consensus::{Effect, Event, PeerId, Ticket};
use protobuf::Message as _;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, Entry, EntryType, Message,
    MessageType,
};

#[test]
fn a_damaged_or_senseless_message_is_ignored() {
    let mut net = Net::new(3, 9);
    let leader = net.elect();
    net.propose(leader, "x");
    let (from, to, bytes) =
        net.flying.iter().find(|(from, ..)| *from == leader).expect("an append flies").clone();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << bit;
            let mut fork = Net::new(3, 9);
            fork.elect();
            // Whatever it decodes to, nothing panics.
            fork.step(to, Event::Received { from, bytes: damaged });
        }
        if at > 24 {
            break;
        }
    }
    for cut in 0..bytes.len() {
        net.step(to, Event::Received { from, bytes: bytes[..cut].to_vec() });
    }
    net.step(to, Event::Received { from: to, bytes: bytes.clone() });
    net.step(to, Event::Received { from: PeerId(77), bytes });
    assert!(net.peers[&to].machine.as_ref().expect("it runs").status().ignored_messages > 2);
}

/// A change of the group, mostly one that does not fit it.
fn conf_change(random: &mut Random) -> Vec<u8> {
    let mut change = ConfChangeV2::default();
    for _ in 0..random.next() % 3 {
        let mut single = ConfChangeSingle { node_id: random.next() % 5, ..ConfChangeSingle::default() };
        let kinds = [ConfChangeType::AddNode, ConfChangeType::AddLearnerNode, ConfChangeType::RemoveNode];
        single.set_change_type(kinds[random.next() as usize % 3]);
        change.mut_changes().push(single);
    }
    if random.one_in(2) {
        change.set_transition(ConfChangeTransition::Explicit);
    }
    change.write_to_bytes().expect("it encodes")
}

/// A message whose every field is plausible, or extreme.
fn forged(random: &mut Random, to: PeerId, interesting: &[u64]) -> Message {
    let any = |random: &mut Random| interesting[random.next() as usize % interesting.len()];
    let kinds = [
        MessageType::MsgAppend,
        MessageType::MsgAppendResponse,
        MessageType::MsgRequestVote,
        MessageType::MsgRequestVoteResponse,
        MessageType::MsgSnapshot,
        MessageType::MsgHeartbeat,
        MessageType::MsgHeartbeatResponse,
        MessageType::MsgTimeoutNow,
        MessageType::MsgRequestPreVote,
        MessageType::MsgRequestPreVoteResponse,
        MessageType::MsgUnreachable,
        MessageType::MsgSnapStatus,
        MessageType::MsgCheckQuorum,
        MessageType::MsgTransferLeader,
        MessageType::MsgReadIndexResp,
    ];
    let mut message = Message {
        to: to.0,
        from: 1 + random.next() % 3,
        term: any(random),
        log_term: any(random),
        index: any(random),
        commit: any(random),
        commit_term: any(random),
        request_snapshot: any(random) * (random.next() % 2),
        reject: random.one_in(2),
        reject_hint: any(random),
        ..Message::default()
    };
    message.set_msg_type(kinds[random.next() as usize % kinds.len()]);
    if random.one_in(2) {
        let (index, term) = (message.index, any(random));
        for at in 1..=random.next() % 4 {
            let context = vec![1; random.next() as usize % 30].into();
            let mut entry = Entry { index: index.wrapping_add(at), term, context, ..Entry::default() };
            if random.one_in(4) {
                entry.set_entry_type(EntryType::EntryConfChangeV2);
                entry.data = conf_change(random).into();
            }
            message.mut_entries().push(entry);
        }
    }
    if message.get_msg_type() == MessageType::MsgSnapshot {
        let metadata = message.mut_snapshot().mut_metadata();
        (metadata.index, metadata.term) = (any(random), any(random));
        metadata.mut_conf_state().voters = vec![1, 2, 3];
        // What a group of three without anything known of them encodes to, before an empty state.
        let peers = [1u64, 2, 3].iter().flat_map(|id| id.to_le_bytes());
        let group: Vec<u8> = [3].into_iter().chain(peers).chain([0, 0, 0]).collect();
        let data: Vec<u8> = (group.len() as u32).to_le_bytes().into_iter().chain(group).collect();
        message.mut_snapshot().set_data(data.into());
    }
    message
}

#[test]
fn no_message_makes_a_peer_panic() {
    for seed in 0..300 {
        let mut net = Net::new(3, seed);
        let leader = net.elect();
        for at in 0..40 {
            net.propose(leader, &format!("change {at}"));
        }
        for _ in 0..seed % 8 {
            net.tick();
        }
        let victim = if seed % 2 == 0 { leader } else { net.follower() };
        let peer = net.peers.get_mut(&victim).expect("a known peer");
        let mut machine = peer.machine.take().expect("it runs");
        let mut writes: Vec<_> = peer.disk.queued.iter().map(|(write, _)| *write).collect();
        let mut random = Random(seed);
        for at in 0..400 {
            let status = machine.status();
            let near = [status.term, status.last_index, status.committed, status.applied];
            let mut interesting = vec![0, 1, u64::MAX / 2 - 1, u64::MAX / 2, u64::MAX];
            interesting
                .extend(near.iter().flat_map(|number| [number.saturating_sub(1), *number, number + 1]));
            // Mostly believable, or everything would be refused at the door.
            interesting.extend(near.repeat(4));
            let message = forged(&mut random, victim, &interesting);
            let event = match random.next() % 8 {
                0 => Event::Tick,
                1 if !writes.is_empty() => Event::Persisted { write: writes.remove(0) },
                2 => Event::Propose { ticket: Ticket(10_000 + at), data: vec![1; 9] },
                3 => Event::Read { ticket: Ticket(20_000 + at) },
                _ => {
                    let bytes = message.write_to_bytes().expect("it encodes");
                    Event::Received { from: PeerId(message.from), bytes }
                }
            };
            let mut effects = Vec::new();
            machine.step(event, &mut effects);
            machine.invariants().unwrap_or_else(|broken| panic!("seed {seed} step {at}: {broken}"));
            for effect in effects {
                match effect {
                    Effect::Persist { write, .. } => writes.push(write),
                    Effect::TakeSnapshot { index } => {
                        let taken = Event::SnapshotTaken { index, data: vec![7; 10] };
                        machine.step(taken, &mut Vec::new());
                    }
                    _ => {}
                }
            }
        }
    }
}
