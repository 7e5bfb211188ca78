//! What a peer may say, and what it may not.

use super::*;
use tokio::net::TcpListener;

const LIMIT: Duration = Duration::from_secs(10);

fn greeting() -> Vec<u8> {
    let mut greeting = vec![0; GREETING_BYTES];
    (greeting[0], greeting[9], greeting[10]) = (0xff, 0x7f, 3);
    greeting[12..16].copy_from_slice(b"NULL");
    greeting
}

fn ready(kind: &[u8]) -> Vec<u8> {
    let mut ready = b"\x05READY".to_vec();
    property(&mut ready, b"Identity", b"x");
    property(&mut ready, b"socket-type", kind);
    [&[COMMAND, ready.len() as u8], &ready[..]].concat()
}

/// Listens once, says `words`, and returns what our side made of it, then what it was told.
async fn against(words: Vec<u8>) -> (Result<Vec<Vec<u8>>, ZmtpError>, Vec<u8>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it listens").to_string();
    let peer = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("we dial");
        let _ = stream.write_all(&words).await;
        let _ = stream.shutdown().await;
        let mut told = Vec::new();
        let _ = stream.read_to_end(&mut told).await;
        told
    });
    let made = async {
        let mut connection = Connection::dial(&address, Kind::Sub, LIMIT).await?;
        connection.subscribe(b"kv").await?;
        connection.receive().await
    };
    let made = made.await;
    (made, peer.await.expect("the peer ends"))
}

async fn refusal(words: Vec<u8>) -> String {
    against(words).await.0.expect_err("it is refused").to_string()
}

#[tokio::test]
async fn a_publisher_is_subscribed_to_and_its_parts_arrive_around_its_heartbeats() {
    let ping = [&[COMMAND, 9][..], b"\x04PING\0\x01ab"].concat();
    let long = vec![7; 70_000];
    let mut words = [greeting(), ready(b"PUB"), vec![MORE, 2], b"kv".to_vec(), ping].concat();
    words.extend_from_slice(&[MORE | LONG]);
    words.extend_from_slice(&(long.len() as u64).to_be_bytes());
    words.extend_from_slice(&long);
    words.extend_from_slice(&[0, 1, 9]);
    let (made, told) = against(words).await;
    assert_eq!(made.expect("a message"), [b"kv".to_vec(), long, vec![9]]);
    let told = &told[GREETING_BYTES..];
    let subscription = [&[0, 3, 1][..], b"kv", &[COMMAND, 7], b"\x04PONGab"].concat();
    assert!(told.starts_with(&[COMMAND]) && told.ends_with(&subscription), "{told:?}");
}

#[tokio::test]
async fn who_is_no_publisher_is_refused_with_what_it_is() {
    assert!(refusal(b"HTTP/1.1 400 Bad Request\r\n\r\n".repeat(4)).await.contains("no ZeroMQ socket"));
    let mut old = greeting();
    old[10] = 1;
    assert!(refusal(old).await.contains("ZMTP 1"));
    let mut secure = greeting();
    secure[12..17].copy_from_slice(b"CURVE");
    assert!(refusal(secure).await.contains("security"));
    assert!(refusal([greeting(), ready(b"PUSH")].concat()).await.contains("\"PUSH\""));
    assert!(refusal([greeting(), vec![0, 1, 1]].concat()).await.contains("what socket it is"));
    let endless = [&[COMMAND, 11][..], b"\x05READY\xffabcd"].concat();
    assert!(refusal([greeting(), endless].concat()).await.contains("what socket it is"));
}

#[tokio::test]
async fn what_is_announced_is_bounded_and_never_set_aside() {
    let after = |words: &[u8]| [greeting(), ready(b"PUB"), words.to_vec()].concat();
    for announced in [u64::MAX, MAX_MESSAGE_BYTES as u64 + 1] {
        let frame = [&[LONG][..], &announced.to_be_bytes()].concat();
        assert!(refusal(after(&frame)).await.contains("larger than"));
    }
    // As much as is allowed, of which nothing comes.
    let frame = [&[LONG][..], &(MAX_MESSAGE_BYTES as u64).to_be_bytes()].concat();
    assert!(matches!(against(after(&frame)).await.0, Err(ZmtpError::Io(_))));
    let command = [&[COMMAND | LONG][..], &5000u64.to_be_bytes()].concat();
    assert!(refusal(after(&command)).await.contains("larger than"));
    assert!(refusal(after(&[MORE, 0].repeat(MAX_PARTS + 1))).await.contains("parts"));
    assert!(refusal(after(&[0x80, 0])).await.contains("flags"));
}
