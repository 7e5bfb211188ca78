//! Emptying a node, as a coordinator of the test's own answers.

use super::*;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A coordinator that gives `answer` to each first line of a request. Ends with the test's process.
fn coordinator(answer: fn(&str) -> String) -> (Target, tempfile::TempDir) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("it is bound"));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("somebody asks");
            let mut reader = BufReader::new(stream.try_clone().expect("a second hold"));
            let (mut asked, mut length) = (String::new(), 0);
            reader.read_line(&mut asked).expect("a request");
            for line in reader.by_ref().lines() {
                let line = line.expect("readable").to_lowercase();
                if line.is_empty() {
                    break;
                }
                if let Some(value) = line.strip_prefix("content-length: ") {
                    length = value.parse().expect("a number");
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).expect("a body");
            let answer = answer(&asked);
            let length = answer.len();
            write!(
                stream,
                "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{answer}"
            )
            .expect("it reads");
        }
    });
    let folder = tempfile::tempdir().expect("a folder");
    let token_file = folder.path().join("token");
    std::fs::write(&token_file, "a token of a test").expect("a file");
    let dir = folder.path().to_owned();
    (Target { admin: Some(url), token_file: Some(token_file), ca: None, dir }, folder)
}

#[test]
fn a_node_of_any_page_is_known() {
    let (target, _folder) = coordinator(|asked| {
        let (name, next) = if asked.contains("after=1 ") { ("node-2", "null") } else { ("node-1", "1") };
        format!(r#"{{"members":[{{"name":"{name}"}}],"next":{next}}}"#)
    });
    let admin = target.resolve().expect("it says which");
    for (name, known) in [("node-1", true), ("node-2", true), ("node-3", false)] {
        assert_eq!(Drain::of(target.clone(), name).is_known(&admin).expect("an answer"), known, "{name}");
    }
}

#[test]
fn the_end_of_a_drain_gives_a_cordoned_node_no_slots() {
    assert_eq!(undone("a", true, false), "a may hold slots again");
    assert_eq!(undone("a", false, false), "a was not being emptied: nothing to undo");
    for drained in [true, false] {
        let said = undone("a", drained, true);
        assert!(said.ends_with("no slots before `kvhive uncordon a`") && !said.contains("again"), "{said}");
    }
}

#[test]
fn of_a_node_that_is_down_it_is_not_said_that_it_holds_nothing() {
    let (target, _folder) = coordinator(|asked| {
        assert!(!asked.contains("/v1/drains"), "its room is asked for: {asked}");
        let node = |name: &str, state: &str| json!({"name": name, "state": state, "drains": false});
        json!({"nodes": [node("node-1", "up"), node("node-2", "down")], "devices": []}).to_string()
    });
    let error = Drain::of(target, "node-2").run().expect_err("it cannot move").to_string();
    assert!(error.starts_with("node-2 is down, and what it holds is not known"), "{error}");
    assert!(error.contains("--forget"), "{error}");
}

#[test]
fn a_node_that_goes_down_is_empty_where_others_had_what_was_acknowledged() {
    static LOOKS: AtomicUsize = AtomicUsize::new(0);
    let (target, _folder) = coordinator(|asked| {
        if asked.contains("/v1/events") {
            let finished = |member: &str, cut_short: u64| {
                let facts = json!({"slots": 7, "moved_blocks": 9, "cut_short": cut_short});
                json!({"kind": "drain-finished", "subject": {"member": member}, "facts": facts})
            };
            let events = [finished("node-2", 0), finished("node-3", 1)];
            return json!({"events": events, "next_after": 1}).to_string();
        }
        if asked.starts_with("PATCH") {
            return "{}".to_owned();
        }
        let state = if LOOKS.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) { "up" } else { "down" };
        let node = |name: &str, state: &str| json!({"name": name, "state": state, "drains": false});
        let device = |node: &str| json!({"node": node, "slots": 7, "blocks": 9});
        json!({
            "nodes": [node("node-1", "up"), node("node-2", state), node("node-3", state)],
            "devices": [device("node-2"), device("node-3")],
        })
        .to_string()
    });
    let admin = target.resolve().expect("it says which");
    let emptied = Drain::of(target.clone(), "node-2").empty(&admin).expect("others had it");
    assert_eq!((emptied.slots, emptied.left), (7, 0));
    assert_eq!(emptied.came_to.map(|came_to| (came_to.moved_blocks, came_to.cut_short)), Some((9, 0)));
    let error = Drain::of(target, "node-3").empty(&admin).expect_err("something only it had");
    let cut = error.downcast_ref::<CutShort>().expect("it is told as such");
    assert_eq!((cut.emptied.slots, cut.emptied.left), (7, 7));
}

#[test]
fn of_a_node_that_was_empty_before_it_is_said_at_once() {
    let (target, _folder) = coordinator(|_| {
        let node = |name: &str| {
            let drains = ["node-2", "node-3"].contains(&name);
            json!({"name": name, "state": "up", "drains": drains})
        };
        let device = |node: &str, slots: u64| json!({"node": node, "slots": slots, "blocks": 9});
        json!({
            "nodes": [node("node-1"), node("node-2"), node("node-3"), node("node-4")],
            "devices": [device("node-2", 0), device("node-3", 7)],
        })
        .to_string()
    });
    let admin = target.resolve().expect("it says which");
    for (name, was_before) in [("node-1", false), ("node-2", true), ("node-3", false)] {
        let begun = Drain::of(target.clone(), name).without_waiting().empty(&admin).expect("it need not end");
        assert_eq!(begun.was_before, was_before, "{name}");
    }
}

#[test]
fn a_node_that_gets_no_emptier_is_given_up() {
    let (target, _folder) = coordinator(|_| {
        let node = |name: &str| json!({"name": name, "state": "up", "drains": name == "node-2"});
        json!({
            "nodes": [node("node-1"), node("node-2")],
            "devices": [{"node": "node-2", "slots": 7, "blocks": 9}],
        })
        .to_string()
    });
    let admin = target.resolve().expect("it says which");
    let drain = Drain::of(target, "node-2").giving_up_after(Duration::ZERO);
    let Err(error) = drain.empty(&admin) else { panic!("no slot leaves") };
    let stalled = error.downcast_ref::<Stalled>().expect("it is told as such");
    assert_eq!((stalled.node.as_str(), stalled.left), ("node-2", 7));
    assert!(error.to_string().contains("7 slots of node-2 left"), "{error}");
    let begun = drain.without_waiting().empty(&admin).expect("it need not end");
    assert_eq!((begun.slots, begun.left, begun.blocks), (7, 7, 9));
}
