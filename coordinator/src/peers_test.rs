//! Raft messages from one end to the other: through real sockets, into a mailbox that only listens.

use super::*;
use crate::control_plane::ControlPlane;
use crate::server::{self, Room, Server};
use kvhive_protocol::ClusterId;
use kvhive_protocol::handshake::{Role, TokenKey};
use kvhive_runtime::{Actor, Context, Runtime, RuntimeConfig, Spawn};
use std::sync::Arc;

/// Stands where the raft actor would be, and tells how long each message was and how it ended.
struct Ear(mpsc::UnboundedSender<(usize, u8)>);

impl Actor for Ear {
    type Message = RaftMessage;

    fn handle(&mut self, message: RaftMessage, _ctx: &mut Context<'_, Self>) {
        if let RaftMessage::Received { bytes, .. } = message {
            let last = bytes.last().copied().unwrap_or_default();
            // The test may have heard enough.
            let _ = self.0.send((bytes.len(), last));
        }
    }
}

struct Pair {
    runtime: Runtime,
    lanes: Lanes,
    heard: mpsc::UnboundedReceiver<(usize, u8)>,
    _stop: watch::Sender<bool>,
    _cluster: watch::Sender<Belonging>,
}

fn belonging(cluster: Option<u128>) -> Belonging {
    Belonging { cluster: cluster.map(ClusterId), ..Belonging::default() }
}

/// Connects peer 1 to a listening peer 2; each knows a cluster, or none.
fn pair(ours: Option<u128>, theirs: Option<u128>) -> Pair {
    let runtime = Runtime::new(RuntimeConfig { name: "pair".to_owned(), io_threads: 2 }).expect("threads");
    let (ear, heard) = mpsc::unbounded_channel();
    let arbiter = runtime.arbiter("ear").expect("a thread");
    let raft: Raft = Spawn::new("ear").on(&arbiter, move || Ear(ear.clone()));
    let token = TokenKey::new(b"a token of the two of them");
    let (stop, stopping) = watch::channel(false);
    let (listener, address) = runtime.listen(([127, 0, 0, 1], 0).into()).expect("a port is free");
    let (_, known) = watch::channel(belonging(theirs));
    let server = Server {
        raft: raft.clone(),
        raft_thread: arbiter.clone(),
        io: runtime.io().clone(),
        control: ControlPlane::new(
            raft.clone(),
            Arc::new(crate::engines::Engines::new(
                Vec::new(),
                Vec::new(),
                None,
                None,
                Arc::new(kvhive_runtime::BootClock),
            )),
            kvhive_spans::Tracer::OFF,
        ),
        token: token.clone(),
        tls: None,
        cluster: known,
        room: Room::default(),
    };
    runtime.io().spawn(server::serve(listener, Arc::new(server), stopping.clone()));
    let (cluster, known) = watch::channel(belonging(ours));
    let destination = Destination {
        peer: PeerId(2),
        name: "the other".to_owned(),
        address: address.to_string(),
        identity: Identity {
            token,
            role: Role::Coordinator,
            sender: 1,
            cluster: None,
            tls: None,
            levels: Default::default(),
        },
        cluster: known,
    };
    let (lanes, outgoing) = lanes();
    arbiter.spawn(run(runtime.io().clone(), destination, outgoing, raft, stopping));
    Pair { runtime, lanes, heard, _stop: stop, _cluster: cluster }
}

impl Pair {
    fn hear(&mut self, limit: Duration) -> Option<(usize, u8)> {
        let heard = &mut self.heard;
        self.runtime.io().block_on(async { tokio::time::timeout(limit, heard.recv()).await.ok().flatten() })
    }

    /// Sends small messages until one arrives: what is queued before a connection stands may be dropped.
    fn wait_until_connected(&mut self) {
        for _ in 0..200 {
            self.lanes.try_send(vec![0]);
            if self.hear(Duration::from_millis(100)).is_some() {
                while self.hear(Duration::from_millis(50)).is_some() {}
                return;
            }
        }
        panic!("nothing ever arrived");
    }
}

const LONG: Duration = Duration::from_secs(60);

#[test]
fn messages_of_a_frame_come_apart_as_they_were_put_together() {
    let mut payload = Vec::new();
    for message in [&b"one"[..], b"", b"three"] {
        append(&mut payload, message);
    }
    assert_eq!(split(&payload), Some(vec![&b"one"[..], b"", b"three"]));
    for cut in 1..payload.len() {
        let whole = [7, 11].contains(&cut);
        assert_eq!(split(&payload[..cut]).is_some(), whole, "cut at {cut}");
    }
}

#[test]
fn the_largest_message_arrives_whole_again_and_again() {
    let mut pair = pair(None, None);
    pair.wait_until_connected();
    // More in all than the room for large frames: each gives back what it took.
    for last in 1..=4 {
        let mut largest = vec![0; MAX_MESSAGE_BYTES];
        largest[MAX_MESSAGE_BYTES - 1] = last;
        // What is queued while the one before is being finished may be dropped, so it is sent again, as raft would; one
        // of the number before may still come.
        let heard = (0..60).find_map(|_| {
            pair.lanes.try_send(largest.clone());
            pair.hear(Duration::from_secs(1)).filter(|(_, found)| *found >= last)
        });
        assert_eq!(heard, Some((MAX_MESSAGE_BYTES, last)));
    }
}

#[test]
fn a_group_that_the_largest_small_message_fills_arrives_whole() {
    let mut pair = pair(None, None);
    pair.wait_until_connected();
    // Queued together, they go out in few frames; each bound of a frame is met by some split of these.
    let sizes = [1, MAX_GROUP_BYTES - 6, LARGE_BYTES, MAX_GROUP_BYTES - 1, LARGE_BYTES, LARGE_BYTES, 2];
    for size in sizes {
        assert!(pair.lanes.try_send(vec![7; size]));
    }
    let heard: Vec<usize> = sizes.iter().filter_map(|_| pair.hear(LONG)).map(|(bytes, _)| bytes).collect();
    assert_eq!(heard, sizes);
}

#[test]
fn small_messages_do_not_wait_behind_a_large_one() {
    let mut pair = pair(None, None);
    pair.wait_until_connected();
    assert!(pair.lanes.try_send(vec![1; MAX_MESSAGE_BYTES]));
    for _ in 0..20 {
        assert!(pair.lanes.try_send(vec![2; 100]));
    }
    let heard: Vec<u8> = (0..21).filter_map(|_| pair.hear(LONG)).map(|(_, last)| last).collect();
    assert_eq!(heard.iter().filter(|last| **last == 2).count(), 20);
    assert_ne!(heard.first(), Some(&1), "{heard:?}");
}

#[test]
fn what_was_queued_before_the_lanes_were_dropped_still_arrives() {
    for _ in 0..8 {
        let mut pair = pair(None, None);
        pair.wait_until_connected();
        assert!(pair.lanes.try_send(vec![9; 10]));
        let (others, _) = lanes();
        drop(std::mem::replace(&mut pair.lanes, others));
        assert_eq!(pair.hear(LONG), Some((10, 9)));
    }
}

#[test]
fn a_snapshot_that_cannot_be_sent_holds_no_more_than_one_other() {
    let (lanes, _outgoing) = lanes();
    let taken: Vec<bool> = (0..3).map(|_| lanes.try_send(vec![0; LARGE_BYTES + 1])).collect();
    assert_eq!(taken, [true, false, false]);
    assert!(lanes.try_send(vec![0; LARGE_BYTES]), "the other lane has room");
}

#[test]
fn a_slow_way_is_given_time_in_proportion() {
    assert_eq!(frame_limit(100), FRAME_LIMIT);
    assert_eq!(frame_limit(64 << 20), FRAME_LIMIT + Duration::from_secs(64));
}

#[test]
fn logs_of_two_clusters_are_never_mixed() {
    for (ours, theirs, may) in
        [(Some(1), Some(1), true), (None, Some(1), true), (Some(1), None, true), (Some(1), Some(2), false)]
    {
        let mut pair = pair(ours, theirs);
        if may {
            pair.wait_until_connected();
            continue;
        }
        for _ in 0..10 {
            pair.lanes.try_send(vec![0]);
            pair.lanes.try_send(vec![0; LARGE_BYTES + 1]);
            assert_eq!(pair.hear(Duration::from_millis(100)), None, "{ours:?} {theirs:?}");
        }
    }
}
