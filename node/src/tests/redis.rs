//! Callers that speak Redis, to nodes that are asked for the same names whoever takes the call.

use super::coordinator::{FakeCoordinator, TENANT};
use super::life::get;
use super::{KIB, Setup, TOKEN, eventually};
use crate::{NodeHandle, RedisConfig};
use kvhive_client::{Client, ClientConfig};
use kvhive_protocol::map::ReplicaSet;
use kvhive_protocol::{DeviceId, Era, SLOTS};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(20);

fn setup() -> Setup {
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let redis = RedisConfig {
        listen,
        max_connections: 4,
        max_value_bytes: 128 * KIB as u64,
        max_inflight_bytes: 1024 * KIB as u64,
    };
    Setup { redis: Some(redis), ..Setup::default() }
}

/// Somebody who speaks Redis.
struct Caller {
    stream: TcpStream,
}

impl Caller {
    async fn stranger(node: &NodeHandle) -> Caller {
        let address = node.redis_address().expect("it speaks Redis");
        Caller { stream: TcpStream::connect(address).await.expect("it listens") }
    }

    async fn to(node: &NodeHandle) -> Caller {
        let mut caller = Caller::stranger(node).await;
        assert_eq!(caller.says(&[b"AUTH", TOKEN]).await, "+OK");
        caller
    }

    async fn send(&mut self, bytes: &[u8]) {
        timeout(LIMIT, self.stream.write_all(bytes)).await.expect("it reads").expect("it is there");
    }

    /// Asks, and returns the answer as it is told in tests: lines without their ends, parted by blanks.
    async fn says(&mut self, args: &[&[u8]]) -> String {
        self.send(&request(args)).await;
        self.answer().await
    }

    async fn asks(&mut self, line: &str) -> String {
        let args: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        self.says(&args).await
    }

    async fn answer(&mut self) -> String {
        let mut told = Vec::new();
        let mut left = 1;
        while left > 0 {
            left -= 1;
            let line = self.line().await;
            let number = || line[1..].parse::<i64>().expect("a length");
            match line.as_bytes()[0] {
                b'$' if number() >= 0 => {
                    let mut bytes = vec![0; number() as usize + 2];
                    timeout(LIMIT, self.stream.read_exact(&mut bytes))
                        .await
                        .expect("in time")
                        .expect("whole");
                    bytes.truncate(bytes.len() - 2);
                    told.push(String::from_utf8_lossy(&bytes).into_owned());
                }
                b'$' | b'_' => told.push("nil".to_owned()),
                b'*' => left += number(),
                _ => told.push(line),
            }
        }
        told.join(" ")
    }

    async fn line(&mut self) -> String {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let byte = timeout(LIMIT, self.stream.read_u8()).await.expect("in time");
            line.push(byte.unwrap_or_else(|error| panic!("{error} after {}", line.escape_ascii())));
        }
        line.truncate(line.len() - 2);
        String::from_utf8(line).expect("a line is text")
    }

    async fn is_ended(&mut self) -> bool {
        let mut rest = Vec::new();
        // A connection that was reset has ended too.
        timeout(LIMIT, self.stream.read_to_end(&mut rest)).await.is_ok() && rest.is_empty()
    }
}

fn request(args: &[&[u8]]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        out.extend(format!("${}\r\n", arg.len()).bytes());
        out.extend(*arg);
        out.extend(b"\r\n");
    }
    out
}

/// Has every slot led by this node.
fn lead(coordinator: &FakeCoordinator, nodes: &[NodeHandle], first: usize) {
    let mut devices: Vec<DeviceId> =
        nodes.iter().map(|node| DeviceId::new(node.member().expect("it is a member"), 0)).collect();
    devices.swap(0, first);
    coordinator.change(|map| map.slots = Arc::new(vec![ReplicaSet(devices); usize::from(SLOTS)]));
}

async fn serve_the_newest(coordinator: &FakeCoordinator, nodes: &[NodeHandle]) {
    eventually("all serve by the newest map", || {
        nodes
            .iter()
            .all(|node| coordinator.has_confirmed(node.member().expect("a member"), coordinator.epoch()))
    })
    .await;
}

async fn cluster() -> (FakeCoordinator, Vec<NodeHandle>) {
    let (coordinator, nodes) = setup().several(2).await;
    // No slot is nowhere.
    lead(&coordinator, &nodes, 0);
    serve_the_newest(&coordinator, &nodes).await;
    (coordinator, nodes)
}

async fn end(nodes: Vec<NodeHandle>) {
    for node in nodes {
        tokio::task::spawn_blocking(move || node.shutdown(Duration::from_secs(10))).await.expect("it ends");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_node_answers_for_what_was_set_at_another() {
    let (_coordinator, nodes) = cluster().await;
    let (mut one, mut other) = (Caller::to(&nodes[0]).await, Caller::to(&nodes[1]).await);
    assert_eq!(one.asks("SET a first").await, "+OK");
    assert_eq!(other.asks("GET a").await, "first");
    assert_eq!(other.asks("SET a second").await, "+OK");
    assert_eq!(one.asks("GET a").await, "second");
    assert_eq!(one.asks("SET a third NX").await, "nil");
    assert_eq!(one.asks("SET b other XX").await, "nil");
    assert_eq!(one.asks("SET a third XX GET").await, "second");
    assert_eq!(other.asks("SETNX b 1").await, ":1");
    assert_eq!(other.says(&[b"SET", b"empty", b""]).await, "+OK");
    assert_eq!(one.asks("MGET a b empty c a").await, "third 1  nil third");
    assert_eq!(one.asks("EXISTS a a c empty").await, ":3");
    assert_eq!(other.asks("DEL a c a").await, ":1");
    assert_eq!(one.asks("GET a").await, "nil");
    assert_eq!(one.asks("MSET a 1 b 2 a 3").await, "+OK");
    assert_eq!(other.asks("MGET a b").await, "3 2");
    assert_eq!(other.asks("STRLEN a").await, ":1");
    assert_eq!(other.asks("TYPE a").await, "+string");
    assert_eq!(other.asks("TYPE c").await, "+none");
    assert_eq!(other.asks("DBSIZE").await, ":3");
    end(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_is_kept_no_longer_than_was_said() {
    let (_coordinator, nodes) = cluster().await;
    let mut caller = Caller::to(&nodes[1]).await;
    assert_eq!(caller.asks("SET a 1 PX 60").await, "+OK");
    assert_eq!(caller.asks("SET b 1 EX 100").await, "+OK");
    assert_eq!(caller.asks("SET c 1").await, "+OK");
    let left: i64 = caller.asks("PTTL b").await[1..].parse().expect("a number");
    assert!((1..=100_000).contains(&left), "{left}");
    assert_eq!(caller.asks("TTL c").await, ":-1");
    assert_eq!(caller.asks("TTL d").await, ":-2");
    loop {
        // It is over when its time is, whoever asks and however often.
        match caller.asks("GET a").await.as_str() {
            "1" => tokio::time::sleep(Duration::from_millis(5)).await,
            over => break assert_eq!(over, "nil"),
        }
    }
    assert_eq!(caller.asks("DBSIZE").await, ":2");
    end(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scan_finds_every_name_once_and_those_of_a_pattern() {
    let (_coordinator, nodes) = cluster().await;
    let (mut one, mut other) = (Caller::to(&nodes[0]).await, Caller::to(&nodes[1]).await);
    for number in 0..30 {
        assert_eq!(one.asks(&format!("SET key:{number} {number}")).await, "+OK");
    }
    let (mut cursor, mut found, mut rounds) = ("0".to_owned(), Vec::new(), 0);
    loop {
        let answer = other.asks(&format!("SCAN {cursor} COUNT 7 MATCH key:*")).await;
        let mut words = answer.split(' ').map(str::to_owned);
        cursor = words.next().expect("a cursor");
        found.extend(words);
        rounds += 1;
        if cursor == "0" {
            break;
        }
    }
    found.sort();
    let mut expected: Vec<String> = (0..30).map(|number| format!("key:{number}")).collect();
    expected.sort();
    assert_eq!((found, rounds >= 4), (expected, true));
    assert_eq!(one.asks("SCAN 0 COUNT 100 MATCH key:2").await, "0 key:2");
    assert_eq!(one.asks("SCAN 0 COUNT 100 TYPE hash").await, "0");
    end(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_knows_of_no_node_yet_learns_of_them_before_it_says_what_there_is() {
    let coordinator = FakeCoordinator::start().await;
    let client = ClientConfig::new(vec![coordinator.address()], TOKEN.to_vec());
    let client = Client::connect(client).await.expect("the coordinator answers");
    assert_eq!(client.map().devices_up().count(), 0);
    let node = setup().start("node-0", &coordinator);
    eventually("it serves", || node.is_serving()).await;
    let nodes = vec![node];
    lead(&coordinator, &nodes, 0);
    serve_the_newest(&coordinator, &nodes).await;
    let mut caller = Caller::to(&nodes[0]).await;
    assert_eq!(caller.asks("SET a 1").await, "+OK");
    let values = client.values("default").expect("the tenant is there");
    assert_eq!(values.count().await.expect("the node answers"), 1);
    end(nodes).await;
}

/// Returns the bytes that requests and values of callers take at a node, as its metrics say.
async fn inflight(node: &NodeHandle) -> u64 {
    let page = get(node.metrics_address(), "/metrics").await;
    let figure = page.lines().find_map(|line| line.strip_prefix("kvhive_node_redis_inflight_bytes "));
    figure.and_then(|figure| figure.parse::<f64>().ok()).expect("it is told") as u64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_read_takes_no_more_room_than_there_is() {
    let (_coordinator, nodes) = cluster().await;
    let mut slow = Caller::to(&nodes[0]).await;
    let value = vec![b'x'; 60 * KIB];
    assert_eq!(slow.says(&[b"SET", b"large", &value]).await, "+OK");
    assert_eq!(slow.says(&[b"SET", b"small", b"1"]).await, "+OK");
    // Far more than sockets take: by one each, by many at once, and by what was there before.
    let (mut all, rounds) = (Vec::new(), 150);
    for _ in 0..rounds {
        all.extend(request(&[b"GET", b"large"]));
        all.extend(request(&[b"MGET", b"large", b"small", b"large"]));
        all.extend(request(&[b"SET", b"large", b"1", b"NX", b"GET"]));
    }
    slow.send(&all).await;
    while inflight(&nodes[0]).await == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut other = Caller::to(&nodes[0]).await;
    for _ in 0..50 {
        assert!(inflight(&nodes[0]).await <= 1024 * KIB as u64);
        assert_eq!(other.asks("GET small").await, "1", "others have room meanwhile");
        assert_eq!(other.asks("STRLEN large").await, format!(":{}", value.len()));
    }
    let large = String::from_utf8(value).expect("it is text");
    let whole = |answer: String| answer.replace(&large, "large");
    for round in 0..rounds {
        assert_eq!(whole(slow.answer().await), "large", "{round}");
        assert_eq!(whole(slow.answer().await), "large 1 large", "{round}");
        assert_eq!(whole(slow.answer().await), "large", "{round}");
    }
    while inflight(&nodes[0]).await > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    end(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_come_together_are_answered_in_their_order() {
    let (_coordinator, nodes) = cluster().await;
    let mut caller = Caller::to(&nodes[0]).await;
    let mut all = Vec::new();
    for number in 0..40u8 {
        all.extend(request(&[b"SET", b"same", &[b'a' + number % 26]]));
        all.extend(request(&[b"GET", b"same"]));
        all.extend(request(&[b"SET", &[b'k', number], &[number; 300]]));
        all.extend(request(&[b"GET", &[b'k', number]]));
    }
    all.extend(b"PING\r\n");
    // In pieces that end anywhere.
    for piece in all.chunks(777) {
        caller.send(piece).await;
    }
    for number in 0..40u8 {
        assert_eq!(caller.answer().await, "+OK");
        assert_eq!(caller.answer().await, char::from(b'a' + number % 26).to_string());
        assert_eq!(caller.answer().await, "+OK");
        assert_eq!(caller.answer().await, String::from_utf8_lossy(&[number; 300]));
    }
    assert_eq!(caller.answer().await, "+PONG");
    end(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_primary_says_nothing_of_what_it_was_not_told_and_nobody_says_what_was() {
    let (coordinator, nodes) = cluster().await;
    let (mut one, mut other) = (Caller::to(&nodes[0]).await, Caller::to(&nodes[1]).await);
    assert_eq!(one.asks("SET a old").await, "+OK");
    lead(&coordinator, &nodes, 1);
    serve_the_newest(&coordinator, &nodes).await;
    // Who is asked before the former primary's lease is over waits until it is.
    assert_eq!(other.asks("GET a").await, "nil");
    assert_eq!(one.asks("SET a new").await, "+OK");
    lead(&coordinator, &nodes, 0);
    serve_the_newest(&coordinator, &nodes).await;
    assert_eq!(other.asks("GET a").await, "nil", "it has forgotten what it led before");
    end(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clear_takes_all_names_of_its_tenant() {
    let (coordinator, nodes) = cluster().await;
    let mut caller = Caller::to(&nodes[1]).await;
    assert_eq!(caller.asks("SET a 1").await, "+OK");
    coordinator.change(|map| map.tenants.get_mut(&TENANT).expect("it is there").era = Era(2));
    serve_the_newest(&coordinator, &nodes).await;
    assert_eq!(caller.asks("GET a").await, "nil");
    assert_eq!(caller.asks("DBSIZE").await, ":0");
    assert_eq!(caller.asks("SET a 2").await, "+OK");
    assert_eq!(caller.asks("GET a").await, "2");
    end(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_large_is_refused_by_its_limit_and_the_connection_stands() {
    let (_coordinator, nodes) = cluster().await;
    let mut caller = Caller::to(&nodes[0]).await;
    let refused = caller.says(&[b"SET", b"a", &vec![b'x'; 128 * KIB + 1]]).await;
    assert_eq!(refused, "-ERR an argument of 131073 bytes; allowed are 131072 (redis_max_value)");
    let refused = caller.says(&[b"SET", b"a", &vec![b'x'; 64 * KIB + 1]]).await;
    assert_eq!(
        refused,
        "-ERR a value of 65537 bytes fits no frame of the node that would hold it (block_sizes)"
    );
    let largest = vec![b'x'; 64 * KIB];
    assert_eq!(caller.says(&[b"SET", b"a", &largest]).await, "+OK");
    assert_eq!(caller.asks("GET a").await.len(), 64 * KIB);
    let many: Vec<&[u8]> = std::iter::once(&b"MGET"[..]).chain(std::iter::repeat_n(&b"a"[..], 17)).collect();
    let refused = caller.says(&many).await;
    assert_eq!(refused, "-ERR 1114112 bytes at once; allowed are 1048576 (redis_max_inflight)");
    assert_eq!(caller.asks("PING").await, "+PONG");
    let mut many = b"*20\r\n$4\r\nMSET\r\n".to_vec();
    for _ in 0..9 {
        many.extend(format!("$1\r\na\r\n${}\r\n", 127 * KIB).bytes());
        many.extend(vec![b'x'; 127 * KIB]);
        many.extend(b"\r\n");
    }
    // The answer may come, and the connection end, while this is being sent.
    let _ = timeout(LIMIT, caller.stream.write_all(&many)).await.expect("it reads or ends");
    let told = caller.line().await;
    assert_eq!(told, "-ERR Protocol error: a request of more than 1048576 bytes");
    end(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_get_nothing_and_callers_no_more_places_than_there_are() {
    let (_coordinator, nodes) = cluster().await;
    let mut stranger = Caller::stranger(&nodes[0]).await;
    assert_eq!(stranger.asks("GET a").await, "-NOAUTH Authentication required.");
    assert!(stranger.asks("AUTH wrong").await.starts_with("-WRONGPASS"));
    stranger.send(b"*2\r\n$3\r\nGET\r\n$16000\r\n").await;
    stranger.send(&vec![b'x'; 16_002]).await;
    assert!(stranger.answer().await.contains("an argument of 16000 bytes"), "it is passed over, not kept");
    stranger.send(b"*11\r\n").await;
    assert_eq!(stranger.answer().await, "-ERR Protocol error: a request of more than 10 arguments");
    assert!(stranger.is_ended().await);
    let mut callers = Vec::new();
    for _ in 0..4 {
        callers.push(Caller::to(&nodes[0]).await);
    }
    let mut late = Caller::stranger(&nodes[0]).await;
    assert_eq!(late.says(&[b"AUTH", TOKEN]).await, "-ERR max number of clients reached");
    assert!(late.is_ended().await);
    assert_eq!(callers[0].asks("QUIT").await, "+OK");
    assert!(callers[0].is_ended().await);
    eventually("its place is free", || nodes[0].counted(|counters| &counters.redis_refused) == 1).await;
    eventually_let_in(&nodes[0]).await;
    end(nodes).await;
}

/// Waits until a place is free.
async fn eventually_let_in(node: &NodeHandle) {
    for _ in 0..1000 {
        let mut caller = Caller::stranger(node).await;
        if caller.says(&[b"AUTH", TOKEN]).await == "+OK" {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("nobody is let in any more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_versions_of_the_protocol_are_spoken() {
    let (_coordinator, nodes) = cluster().await;
    let mut caller = Caller::stranger(&nodes[0]).await;
    caller.send(&request(&[b"HELLO", b"3", b"AUTH", b"default", TOKEN])).await;
    assert_eq!(caller.line().await, "%7");
    for _ in 0..7 {
        caller.answer().await;
        caller.answer().await;
    }
    caller.send(&request(&[b"GET", b"nothing"])).await;
    assert_eq!(caller.line().await, "_");
    let figures = caller.asks("INFO stats").await;
    assert!(figures.contains("keyspace_misses:1"), "{figures}");
    end(nodes).await;
}
