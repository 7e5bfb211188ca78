//! Connections over real sockets: who gets in, what is read before, what breaks one.

use kvhive_protocol::frame::Kind;
use kvhive_protocol::handshake::{Role, TokenKey};
use kvhive_protocol::{ClusterId, Level, Levels, WireError};
use kvhive_wire::{Connection, Fault, Identity, Listening, Peer};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const PATIENCE: Duration = Duration::from_secs(20);

fn identity(token: &str, cluster: Option<u128>) -> Identity {
    Identity {
        token: TokenKey::new(token.as_bytes()),
        role: Role::Node,
        sender: 5,
        cluster: cluster.map(ClusterId),
        tls: None,
        levels: Default::default(),
    }
}

fn listening(cluster: Option<u128>) -> Listening {
    Listening {
        token: TokenKey::new(b"the right token"),
        cluster: cluster.map(ClusterId),
        tls: None,
        levels: Default::default(),
    }
}

type End = Result<(Connection, Peer), Fault>;

async fn both(identity: Identity, listening: Listening) -> (End, End) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    let accept = async {
        let (stream, _) = listener.accept().await.expect("somebody connects");
        Connection::accept(stream, &listening, PATIENCE).await
    };
    tokio::join!(Connection::connect(&address, &identity, PATIENCE), accept)
}

async fn pair() -> (Connection, Connection) {
    let (connecting, accepting) = both(identity("the right token", Some(1)), listening(Some(1))).await;
    (connecting.expect("let in").0, accepting.expect("lets in").0)
}

/// A raw socket, and what the listening end makes of it.
async fn raw(limit: Duration) -> (TcpStream, tokio::task::JoinHandle<End>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let stream = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("it listens");
    let (accepted, _) = listener.accept().await.expect("somebody connects");
    (stream, tokio::spawn(async move { Connection::accept(accepted, &listening(None), limit).await }))
}

#[tokio::test]
async fn both_ends_learn_who_the_other_is() {
    let (connecting, accepting) = both(identity("the right token", None), listening(Some(9))).await;
    assert_eq!(connecting.expect("let in").1.cluster, Some(ClusterId(9)));
    let peer = accepting.expect("lets in").1;
    assert_eq!((peer.role, peer.sender), (Role::Node, 5));
}

#[tokio::test]
async fn a_wrong_token_or_cluster_is_refused_and_told() {
    let (connecting, accepting) = both(identity("a wrong token", Some(1)), listening(Some(2))).await;
    assert!(
        matches!(connecting, Err(Fault::Refused(WireError::Unauthorized))),
        "nothing else is said to a stranger"
    );
    assert!(matches!(accepting, Err(Fault::Protocol(WireError::Unauthorized))));
    let (connecting, _) = both(identity("the right token", Some(1)), listening(Some(2))).await;
    assert!(matches!(connecting, Err(Fault::Refused(WireError::WrongCluster))));
}

#[tokio::test]
async fn neighbouring_levels_speak_the_older_and_a_member_that_is_too_old_is_turned_away() {
    let token = "the right token";
    let older = Levels { newest: Level::OLDEST, cluster: Level::OLDEST };
    let (upgraded, risen) = (Levels::default(), Levels { cluster: Level::NEWEST, ..Levels::default() });
    let ends = |ours, theirs, role| async move {
        let identity = Identity { levels: ours, role, ..identity(token, None) };
        both(identity, Listening { levels: theirs, ..listening(None) }).await
    };
    for (ours, theirs) in [(older, upgraded), (upgraded, older)] {
        let (connecting, accepting) = ends(ours, theirs, Role::Node).await;
        assert_eq!(connecting.expect("let in").1.level, Level::OLDEST);
        let peer = accepting.expect("lets in").1;
        assert_eq!((peer.level, peer.speaks), (Level::OLDEST, ours.newest));
    }
    let too_old = WireError::TooOld { speaks: Level::OLDEST, cluster: Level::NEWEST };
    for role in [Role::Node, Role::Coordinator] {
        let (connecting, accepting) = ends(older, risen, role).await;
        assert!(matches!(connecting, Err(Fault::Refused(error)) if error == too_old));
        assert!(matches!(accepting, Err(Fault::Protocol(error)) if error == too_old));
        let (connecting, _) = ends(risen, older, role).await;
        assert!(matches!(connecting, Err(Fault::Protocol(error)) if error == too_old), "nor is it spoken to");
    }
    let (connecting, _) = ends(older, risen, Role::Client).await;
    assert_eq!(connecting.expect("no member").1.level, Level::OLDEST);
}

#[tokio::test]
async fn garbage_and_oversized_greetings_are_refused_before_more_is_read() {
    let mut huge = b"KVHF\x01\0\x01\0".to_vec();
    huge.extend([0; 8]);
    huge.extend(u32::MAX.to_le_bytes());
    huge.extend([0; 12]);
    for bytes in [vec![0x16; 300], huge, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n padding padding".to_vec()] {
        let (mut stream, accepting) = raw(PATIENCE).await;
        stream.write_all(&bytes).await.expect("a live socket");
        let ended = accepting.await.expect("no panic");
        assert!(matches!(ended, Err(Fault::Protocol(_))), "{:?}", ended.err());
        let mut said = Vec::new();
        // A reset after unread bytes is an end as well.
        let _ = stream.read_to_end(&mut said).await;
        assert!(said.len() < 512);
    }
}

#[tokio::test]
async fn a_greeting_that_never_comes_ends_at_the_limit() {
    let (mut stream, accepting) = raw(Duration::from_millis(50)).await;
    stream.write_all(b"KVHF").await.expect("a live socket");
    assert!(matches!(accepting.await.expect("no panic"), Err(Fault::Timeout(_))));
}

#[tokio::test]
async fn payloads_travel_whole_in_any_number_of_slices() {
    let (mut ours, mut theirs) = pair().await;
    let blocks: Vec<Vec<u8>> =
        (0..200u32).map(|at| vec![at as u8; 1 + (at as usize * 977) % 40_000]).collect();
    let payload: Vec<&[u8]> = blocks.iter().map(|block| &block[..]).collect();
    let receive = async {
        let frame = theirs.receive().await.expect("a frame");
        assert_eq!((frame.kind, frame.request), (Kind::DataReply, 3));
        assert_eq!(theirs.message::<u64>().expect("a number"), 42);
        for block in &blocks {
            let mut into = vec![0; block.len()];
            let digest = theirs.read_payload(&mut into).await.expect("it was announced");
            assert_eq!((&into, digest), (block, kvhive_protocol::block::digest(block)));
        }
        assert!(theirs.is_idle());
    };
    let (sent, ()) = tokio::join!(ours.send(Kind::DataReply, 3, &42u64, &payload), receive);
    sent.expect("it is taken");
}

#[tokio::test]
async fn payload_that_is_left_or_overdrawn_breaks_the_connection() {
    let (mut ours, mut theirs) = pair().await;
    ours.send(Kind::DataReply, 1, &(), &[&[1, 2, 3]]).await.expect("it is taken");
    theirs.receive().await.expect("a frame");
    assert!(theirs.read_payload(&mut [0; 4]).await.is_err(), "more than was announced");
    assert!(!theirs.is_idle());
    let (mut ours, mut theirs) = pair().await;
    ours.send(Kind::DataReply, 1, &(), &[&[1, 2, 3]]).await.expect("it is taken");
    theirs.receive().await.expect("a frame");
    theirs.skip_payload(2).await.expect("there are three");
    assert!(matches!(theirs.receive().await, Err(Fault::Protocol(_))), "one byte is left");
}

#[tokio::test]
async fn an_answer_to_another_question_breaks_the_connection_and_a_refusal_does_not() {
    let (mut ours, mut theirs) = pair().await;
    theirs.refuse(7, &WireError::NoLease).await.expect("it is taken");
    let answer = ours.receive_answer::<u64>(Kind::DataReply, 7).await;
    assert!(matches!(answer, Err(Fault::Refused(WireError::NoLease))) && ours.is_idle());
    theirs.send(Kind::DataReply, 8, &1u64, &[]).await.expect("it is taken");
    assert!(ours.receive_answer::<u64>(Kind::DataReply, 9).await.is_err() && !ours.is_idle());
}

#[tokio::test]
async fn a_future_dropped_half_way_leaves_the_connection_unusable() {
    let (ours, mut theirs) = pair().await;
    assert!(tokio::time::timeout(Duration::from_millis(10), theirs.receive()).await.is_err());
    assert!(!theirs.is_idle(), "it was waiting for a frame");
    drop(ours);
    let (ours, mut theirs) = pair().await;
    ours.close().await;
    assert!(matches!(theirs.receive().await, Err(Fault::Closed)));
}
