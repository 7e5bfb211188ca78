//! The journal of events from outside: the same at every coordinator, followed across the end of its leader.

use crate::group::{Group, TOKEN, bearer, eventually};
use crate::http::connect;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

/// A reader of the stream of one coordinator.
struct Reader(BufReader<TcpStream>);

impl Reader {
    /// Asks for the stream and returns its reader, or the status of a refusal.
    fn follow(group: &Group, at: usize, after: Option<u64>, query: &str) -> Result<Reader, u16> {
        let address = group.admin(at).address;
        let mut stream = connect(address);
        let last = after.map_or(String::new(), |after| format!("last-event-id: {after}\r\n"));
        let token = bearer(TOKEN);
        let request = format!(
            "GET /v1/events/stream{query} HTTP/1.1\r\nhost: x\r\nauthorization: {token}\r\n{last}\r\n"
        );
        stream.write_all(request.as_bytes()).expect("the request is sent");
        let mut reader = Reader(BufReader::new(stream));
        let status = reader.line().and_then(|line| line.split(' ').nth(1).and_then(|code| code.parse().ok()));
        match status {
            Some(200) => Ok(reader),
            status => Err(status.expect("an answer has a status")),
        }
    }

    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        match self.0.read_line(&mut line) {
            Ok(1..) => Some(line.trim_end().to_owned()),
            _ => None,
        }
    }

    /// Returns the next event; none when the stream ends.
    fn next(&mut self) -> Option<Value> {
        loop {
            let line = self.line()?;
            if let Some(data) = line.strip_prefix("data:") {
                return Some(serde_json::from_str(data).expect("events are JSON"));
            }
        }
    }
}

fn create(group: &Group, at: usize, name: &str) {
    let body = json!({ "name": name }).to_string();
    eventually("the tenant is made", || {
        let status = group.admin(at).post("/v1/tenants", &body).status;
        [201, 409].contains(&status)
    });
}

fn events(group: &Group, at: usize, query: &str) -> Value {
    group.admin(at).get(&format!("/v1/events{query}")).json()
}

#[test]
fn every_coordinator_tells_the_same_under_the_same_numbers() {
    let group = Group::of(3);
    group.elected();
    let (leader, follower) = (group.leader(), group.follower());
    create(&group, follower, "first");
    group.register("node-1");
    let told = events(&group, leader, "?limit=1000");
    let newest = told["newest"].as_u64().expect("a number");
    let kinds: Vec<&str> =
        told["events"].as_array().expect("a list").iter().filter_map(|one| one["kind"].as_str()).collect();
    for kind in ["cluster-started", "leader-elected", "tenant-created", "member-registered"] {
        assert!(kinds.contains(&kind), "{kind} is missing: {kinds:?}");
    }
    for at in 0..3 {
        eventually("it has applied as much", || events(&group, at, "")["newest"].as_u64() >= Some(newest));
        let same = events(&group, at, "?limit=1000");
        let count = told["events"].as_array().map_or(0, Vec::len);
        assert_eq!(
            same["events"].as_array().map(|all| &all[..count]),
            told["events"].as_array().map(|all| &all[..])
        );
    }
    let page = events(&group, follower, "?after=1&limit=1");
    assert_eq!((&page["events"][0]["sequence"], &page["next_after"]), (&json!(2), &json!(2)));
    assert_eq!((&page["lost"], &page["oldest"]), (&json!(false), &json!(1)));
    let some = events(&group, leader, "?kind=tenant-created,member-registered");
    let named: Vec<&Value> =
        some["events"].as_array().expect("a list").iter().map(|one| &one["subject"]).collect();
    assert_eq!(named, [&json!({"tenant": "first"}), &json!({"member": "node-1"})]);
    let said = &some["events"][0];
    assert_eq!(said["reason"], json!("asked for through the admin API"));
    assert!(said["at_ms"].as_u64() > Some(1_600_000_000_000), "{said}");
    for query in ["?limit=0", "?limit=1025", "?after=-1", "?kind=nothing", "?other=1"] {
        let refused = group.admin(leader).get(&format!("/v1/events{query}")).refusal();
        assert_eq!(refused, (400, "bad_request".to_owned()), "{query}");
    }
    assert_eq!(Reader::follow(&group, leader, None, "?limit=3").err(), Some(400));
}

#[test]
fn a_reader_goes_on_with_another_coordinator_when_the_leader_ends() {
    let mut group = Group::of(3);
    group.elected();
    let leader = group.leader();
    let others: Vec<usize> = group.living().into_iter().filter(|at| *at != leader).collect();
    create(&group, leader, "before");
    let mut seen = Vec::new();
    let mut reader = Reader::follow(&group, leader, Some(0), "").expect("it is ready");
    while !seen.iter().any(|event: &Value| event["subject"]["tenant"] == "before") {
        seen.push(reader.next().expect("it was told"));
    }
    create(&group, others[0], "during");
    group.stop(leader);
    // What the first sent before it ended is read to the end; what it did not, the next knows.
    seen.extend(std::iter::from_fn(|| reader.next()));
    create(&group, others[0], "after");
    let last = seen.last().and_then(|event| event["sequence"].as_u64()).expect("some were seen");
    let mut reader = None;
    eventually("the next is ready", || {
        reader = Reader::follow(&group, others[1], Some(last), "").ok();
        reader.is_some()
    });
    let mut reader = reader.expect("it was just found");
    let is_told = |seen: &[Value]| {
        let elected = seen.iter().filter(|event| event["kind"] == "leader-elected").count();
        elected >= 2 && seen.iter().any(|event| event["subject"]["tenant"] == "after")
    };
    while !is_told(&seen) {
        seen.push(reader.next().expect("it was told"));
    }
    let sequences: Vec<u64> = seen.iter().filter_map(|event| event["sequence"].as_u64()).collect();
    assert_eq!(sequences, (1..=sequences.len() as u64).collect::<Vec<_>>(), "no gap, no repeat");
    // And what it is told is what the journal says.
    let told = events(&group, others[0], &format!("?limit={}", sequences.len()));
    assert_eq!(told["events"].as_array(), Some(&seen));
}

#[test]
fn readers_are_bounded_and_hold_up_no_shutdown() {
    let mut group = Group::of(1);
    let mut readers: Vec<Reader> =
        (0..64).map(|_| Reader::follow(&group, 0, None, "").expect("there is room")).collect();
    assert_eq!(Reader::follow(&group, 0, None, "").err(), Some(503));
    assert_eq!(group.admin(0).get("/v1/events").status, 200);
    drop(readers.pop());
    eventually("its place is free again", || Reader::follow(&group, 0, None, "").is_ok());
    group.stop(0);
    for mut reader in readers {
        while reader.next().is_some() {}
    }
}

#[test]
fn who_knows_no_leader_lets_its_readers_go_on_elsewhere() {
    let mut group = Group::of(3);
    let follower = group.follower();
    let mut reader = Reader::follow(&group, follower, None, "").expect("it is ready");
    for at in group.living() {
        if at != follower {
            group.stop(at);
        }
    }
    while reader.next().is_some() {}
    assert_eq!(Reader::follow(&group, follower, None, "").err(), Some(503));
    // What it has it still tells.
    assert_eq!(group.admin(follower).get("/v1/events").status, 200);
}
