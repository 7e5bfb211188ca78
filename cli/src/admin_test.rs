//! The admin API as the command line uses it: whom it asks, how often, and what it makes of silence.

use super::*;
use serde_json::json;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread::JoinHandle;

/// Reads one request and returns what it named its change, and the connection.
fn take(listener: &TcpListener) -> (Option<String>, TcpStream) {
    let (stream, _) = listener.accept().expect("somebody asks");
    let mut reader = BufReader::new(stream.try_clone().expect("a second hold"));
    let (mut name, mut length) = (None, 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).expect("a line");
        let line = line.trim_end().to_ascii_lowercase();
        match line.split_once(": ") {
            Some((CHANGE_NAME, value)) => name = Some(value.to_owned()),
            Some(("content-length", value)) => length = value.parse().expect("a number"),
            Some(_) => {}
            None if line.is_empty() => break,
            None => {}
        }
    }
    reader.read_exact(&mut vec![0; length]).expect("the body");
    (name, stream)
}

fn fake<T: Send + 'static>(serve: impl FnOnce(TcpListener) -> T + Send + 'static) -> (String, JoinHandle<T>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("it is bound"));
    (url, std::thread::spawn(move || serve(listener)))
}

fn admin(urls: &[&String], change: Duration) -> Admin {
    let urls = urls.iter().map(|url| (*url).clone()).collect();
    Admin::new(urls, "token".to_owned(), "a test".to_owned(), &[], READ_LIMIT, change)
}

#[test]
fn a_change_that_one_coordinator_broke_off_is_asked_of_the_next_under_its_name() {
    let (first, asked_first) = fake(|listener| take(&listener).0);
    let (second, asked_second) = fake(|listener| {
        let (name, mut stream) = take(&listener);
        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 8\r\nconnection: close\r\n\r\n{\"id\":1}";
        stream.write_all(answer.as_bytes()).expect("it reads");
        name
    });
    let answer: Value =
        admin(&[&first, &second], CHANGE_LIMIT).post("/v1/tenants", &json!({})).expect("an answer");
    assert_eq!(answer, json!({ "id": 1 }));
    let (first, second) = (asked_first.join().expect("it ends"), asked_second.join().expect("it ends"));
    assert!(first.as_ref().is_some_and(|name| name.len() == 32) && first == second, "{first:?} {second:?}");
}

#[test]
fn a_cluster_without_a_leader_is_asked_again_under_the_same_name() {
    let (url, asked) = fake(|listener| {
        let refusal = r#"{"detail":"the leader does not answer","code":"no_leader"}"#;
        let says = |status: &str, body: &str| {
            let (name, mut stream) = take(&listener);
            let head =
                format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
            stream.write_all(format!("{head}{body}").as_bytes()).expect("it reads");
            name
        };
        [says("503 No", refusal), says("503 No", refusal), says("200 OK", "{\"id\":1}")]
    });
    let answer: Value = admin(&[&url], CHANGE_LIMIT).post("/v1/tenants", &json!({})).expect("an answer");
    assert_eq!(answer, json!({ "id": 1 }));
    let names = asked.join().expect("it ends");
    assert!(names[0].is_some() && names.iter().all(|name| *name == names[0]), "{names:?}");
}

#[test]
fn a_change_that_is_not_answered_in_time_is_asked_of_nobody_else() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.set_nonblocking(true).expect("a socket can");
    let other = format!("http://{}", listener.local_addr().expect("it is bound"));
    let (silent, asked) = fake(|listener| {
        let (_, mut stream) = take(&listener);
        // Until the asker has given up.
        stream.read_to_end(&mut Vec::new())
    });
    let admin = admin(&[&silent, &other], Duration::from_millis(300));
    let error = admin.patch::<Value>("/v1/tenants/x", &json!({})).expect_err("nobody answers");
    assert!(error.to_string().contains("whether it happened is unknown"), "{error}");
    drop(admin);
    asked.join().expect("it ends").expect("readable");
    assert!(listener.accept().is_err(), "nobody else was asked");
}

#[test]
fn a_local_cluster_is_found_by_those_who_came_in_the_place_of_all_that_it_was_started_with() {
    let dir = tempfile::tempdir().expect("a folder");
    let nobody = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let gone = format!("http://{}", nobody.local_addr().expect("it is bound"));
    drop(nobody);
    let (came, asked) = fake(|listener| {
        for answer in ["{\"id\":1}", "{\"coordinators\":[{\"admin_address\":\"127.0.0.1:9\"}]}"] {
            let (_, mut stream) = take(&listener);
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close", answer.len());
            write!(stream, "{head}\r\n\r\n{answer}").expect("it reads");
        }
    });
    let known = Admin { local: Some(dir.path().to_owned()), ..admin(&[&gone, &came], CHANGE_LIMIT) };
    let answer: Value = known.get("/v1/tenants").expect("one answers");
    asked.join().expect("it ends");
    assert_eq!(
        (answer, local::joined(dir.path())),
        (json!({ "id": 1 }), vec!["http://127.0.0.1:9".to_owned()])
    );
}
