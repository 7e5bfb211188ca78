//! `kvhive events -f` on a cluster of real processes: the leader is killed while somebody follows.

use kvhive_tests::{Cluster, kvhive};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};

/// A command that follows; ended when dropped.
struct Follower {
    child: Child,
    lines: Receiver<Value>,
    seen: Vec<Value>,
    said: Receiver<String>,
}

impl Follower {
    fn begin(cluster: &Cluster) -> Follower {
        let words = ["events", "-f", "--after", "0", "--json", "--dir", cluster.dir()];
        let child = Command::new(kvhive()).args(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.expect("kvhive is there");
        let out = child.stdout.take().expect("it is piped");
        let words = child.stderr.take().expect("it is piped");
        let (sender, said) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(words).lines().map_while(Result::ok) {
                // Nobody need listen.
                let _ = sender.send(line);
            }
        });
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let event = serde_json::from_str(&line).expect("each line is JSON");
                if sender.send(event).is_err() {
                    break;
                }
            }
        });
        Follower { child, lines, seen: Vec::new(), said }
    }

    /// Waits for an event of this kind about this subject, among those that were not waited for yet.
    fn wait(&mut self, cluster: &Cluster, kind: &str, subject: &Value) -> Value {
        let from = self.seen.len();
        cluster.until(kind, || {
            self.seen.extend(self.lines.try_iter());
            let is_it = |event: &&Value| event["kind"] == kind && event["subject"] == *subject;
            self.seen[from..].iter().find(is_it).cloned()
        })
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        // Fails only when it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn who_follows_while_the_leader_is_killed_misses_nothing_and_hears_nothing_twice() {
    let cluster = Cluster::start(&[]);
    let tenant = |name: &str| {
        cluster.until("the tenant is made", || cluster.json(&["tenants", "create", name]).ok());
        json!({ "tenant": name })
    };
    let mut follower = Follower::begin(&cluster);
    let before = tenant("before");
    follower.wait(&cluster, "tenant-created", &before);
    let leader = cluster.status()["leader"].as_str().expect("one leads").to_owned();
    cluster.signal(&leader, "KILL");
    let after = tenant("after");
    follower.wait(&cluster, "tenant-created", &after);
    // The new leader may have made that change before it has written down that it leads.
    cluster.until("it is told who leads now", || {
        follower.seen.extend(follower.lines.try_iter());
        let mut elected = follower.seen.iter().filter(|event| event["kind"] == "leader-elected");
        elected.any(|event| event["subject"]["coordinator"] != leader.as_str()).then_some(())
    });
    // A node that is killed is told with how long it was silent, and what became of its slots.
    cluster.signal("node-2", "KILL");
    let down = follower.wait(&cluster, "member-down", &json!({"member": "node-2"}));
    assert!(down["reason"].as_str().is_some_and(|why| why.starts_with("no heartbeat for ")), "{down}");
    assert!(down["facts"]["slots_lost"].as_u64() > Some(0), "one replica each, by default: {down}");
    let sequences: Vec<u64> = follower.seen.iter().filter_map(|event| event["sequence"].as_u64()).collect();
    assert_eq!(sequences, (1..=sequences.len() as u64).collect::<Vec<_>>(), "no gap, no repeat");
    // The same for people, and only of one kind.
    let words = ["events", "--kind", "member-down", "--dir", cluster.dir()];
    let text = kvhive_tests::run(&words).expect("it is a kind").stdout;
    let text = String::from_utf8(text).expect("it is text");
    assert!(text.lines().count() == 1 && text.contains("node-2  no heartbeat for "), "{text}");
    assert!(kvhive_tests::run(&["events", "--kind", "nothing", "--dir", cluster.dir()]).is_err());
    let later =
        kvhive_tests::run(&["events", "--after", "99999", "--dir", cluster.dir()]).expect("an answer");
    let told = String::from_utf8_lossy(&later.stderr);
    assert!(
        later.stdout.is_empty() && told.contains("nothing has happened after 99999: the newest event"),
        "{told}"
    );
}

#[test]
fn who_begins_to_follow_while_no_coordinator_answers_hears_of_everything_once_one_does() {
    let cluster = Cluster::start(&["--coordinators", "1", "--nodes", "1", "--devices", "1"]);
    cluster.signal("coord-1", "KILL");
    let at_once = ["events", "--dir", cluster.dir()];
    cluster.until("nobody to answer", || kvhive_tests::run(&at_once).is_err().then_some(()));
    let mut follower = Follower::begin(&cluster);
    let said = cluster.until("it to be said", || follower.said.try_iter().next());
    assert_eq!(said, "no coordinator answers, trying again:");
    let _coordinator = cluster.respawn("coord-1");
    cluster.until("both elections", || {
        follower.seen.extend(follower.lines.try_iter());
        let elected = follower.seen.iter().filter(|event| event["kind"] == "leader-elected").count();
        (elected == 2).then_some(())
    });
    assert!(follower.child.try_wait().expect("it is ours").is_none(), "it follows on");
}

/// Runs a command whose output nobody reads.
fn unread(words: &[&str]) -> Output {
    let mut command = Command::new(kvhive());
    command.args(words).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("kvhive is there");
    drop(child.stdout.take());
    child.wait_with_output().expect("it ends")
}

#[test]
fn who_reads_no_further_is_no_error() {
    let cluster = Cluster::start(&["--coordinators", "1", "--nodes", "1", "--devices", "1"]);
    for words in [
        &["events", "--after", "0"][..],
        &["events", "--after", "0", "--json"],
        &["top", "--once", "--interval", "100ms"],
        &["status"],
        // More of it than a pipe holds.
        &["trace", "generate", "--requests", "2000"],
    ] {
        let in_dir = ["--dir", cluster.dir()];
        let ended = unread(&if words[0] == "trace" { words.to_vec() } else { [words, &in_dir].concat() });
        assert!(ended.status.success() && ended.stderr.is_empty(), "{words:?} {ended:?}");
    }
}

#[test]
fn what_cannot_be_written_down_is_an_error() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../cluster-configs/laptop.toml");
    for words in [["trace", "generate", "--requests=9"], ["config", "check", file]] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("Linux has it");
        let ended = Command::new(kvhive()).args(words).stdout(full).output().expect("kvhive is there");
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{said}");
        assert!(said.starts_with("error: standard output cannot be written: No space left"), "{said}");
    }
}
