//! The coordinators themselves, on a cluster of real processes: who leads, and who is one.

use kvhive_client::{FetchOutcome, NamespaceClient, StoreOptions};
use kvhive_protocol::TenantId;
use kvhive_tests::{Cluster, kvhive, run};
use serde_json::Value;
use std::net::TcpListener;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

fn leader(cluster: &Cluster) -> String {
    cluster.until("a leader", || cluster.status()["leader"].as_str().map(str::to_owned))
}

/// Some coordinator that does not lead.
fn follower(cluster: &Cluster) -> String {
    let leader = leader(cluster);
    let status = cluster.status();
    let all = status["coordinators"].as_array().expect("a list").iter();
    let mut names = all.map(|one| one["name"].as_str().expect("a name").to_owned());
    names.find(|name| *name != leader).expect("there are three")
}

#[test]
fn leadership_is_handed_over_when_asked_and_when_a_leader_stops() {
    let cluster = Cluster::start(&["--nodes", "1", "--devices", "1"]);
    let client = cluster.client();
    let to = follower(&cluster);
    let term = cluster.status()["term"].as_u64().expect("a number");
    let group = cluster.json(&["raft", "transfer", &to]).expect("it takes over");
    assert_eq!((group["leader"].as_str(), group["term"].as_u64()), (Some(&*to), Some(term + 1)));
    assert_eq!(cluster.wait(client.create_tenant("after")).expect("it leads"), TenantId(2));
    let refused =
        run(&["raft", "transfer", "nobody", "--dir", cluster.dir()]).expect_err("no such coordinator");
    assert!(format!("{refused:#}").contains("there is no coordinator \"nobody\""), "{refused:#}");
    // One that votes is not added without a vote, and nobody is told to empty its folder.
    let config = format!("{}/cluster.toml", cluster.dir());
    for name in [&*to, &*follower(&cluster)] {
        let added =
            run(&["raft", "add", name, "--config", &config, "--dir", cluster.dir()]).expect("it is there");
        let said = String::from_utf8_lossy(&added.stdout).into_owned();
        assert_eq!(said, format!("{name} votes already: nothing is to be done\n"));
    }

    // A graceful stop hands over: another leads in the very next term, and in the log of the one that stopped it says so.
    cluster.signal(&to, "TERM");
    let next = cluster.until("another leader", || {
        cluster.status()["leader"].as_str().filter(|name| *name != to).map(str::to_owned)
    });
    assert_eq!(cluster.status()["term"].as_u64(), Some(term + 2), "{next} leads");
    let log = std::fs::read_to_string(format!("{}/logs/{to}.log", cluster.dir())).expect("it kept one");
    assert!(log.contains("handed leadership over"), "{log}");
    assert_eq!(cluster.wait(client.create_tenant("later")).expect("it leads"), TenantId(3));
}

/// Signals every coordinator at once.
fn signal_all(cluster: &Cluster, signal: &str) {
    let running = cluster.running();
    let processes = running["processes"].as_array().expect("a list").iter();
    let pids = processes.filter(|one| one["kind"] == "coordinator").map(|one| one["pid"].to_string());
    let sent = Command::new("kill").arg(format!("-{signal}")).args(pids).status();
    assert!(sent.expect("kill is there").success(), "cannot signal the coordinators");
}

#[test]
fn coordinators_that_were_all_held_up_keep_their_leader() {
    let cluster = Cluster::start(&["--nodes", "1", "--devices", "1"]);
    let led = || {
        let led_by = leader(&cluster);
        (led_by, cluster.status()["term"].as_u64().expect("a number"))
    };
    // A machine that is busy may hold one of them up for longer than the others: once is enough to show it.
    let keep = (0..5).any(|_| {
        let before = led();
        signal_all(&cluster, "STOP");
        // For longer than any of them waits for its leader.
        std::thread::sleep(Duration::from_millis(1500));
        signal_all(&cluster, "CONT");
        led() == before
    });
    assert!(keep, "each time they took time for past in which they could not hear their leader");
}

/// Writes a cluster file that has one more coordinator in the place of another, with ports and a folder of its own.
fn with_another(cluster: &Cluster, of: &str, place: &str, new: (&str, u64)) -> String {
    let free = || TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    // Held together, so that they differ.
    let (admin, raft) = (free(), free());
    let address = |listener: &TcpListener| listener.local_addr().expect("it is bound").to_string();
    let text = std::fs::read_to_string(format!("{}/{of}", cluster.dir())).expect("the cluster's file");
    let (before, rest) = text.split_once(&format!("id = \"{place}\"")).expect("it is there");
    let (_, after) = rest.split_once("\n[[").expect("nodes follow");
    let (name, peer) = new;
    let text = format!(
        "{before}id = \"{name}\"\npeer = {peer}\nhost = \"127.0.0.1\"\nadmin = \"{}\"\nraft = \"{}\"\ndata_dir = \"{}/data/{name}\"\n\n[[{after}",
        address(&admin),
        address(&raft),
        cluster.dir()
    );
    let file = format!("{name}.toml");
    std::fs::write(format!("{}/{file}", cluster.dir()), text).expect("room for a file");
    file
}

#[test]
fn a_coordinator_is_replaced_while_changes_go_on() {
    let cluster = Cluster::start(&["--nodes", "1", "--devices", "1"]);
    let client = cluster.client();
    cluster.wait(client.create_tenant("before")).expect("somebody leads");
    let old = follower(&cluster);
    let status = cluster.status();
    let mut coordinators = status["coordinators"].as_array().expect("a list").iter();
    let before = coordinators.find(|one| one["name"] == *old).expect("it was just there");
    let file = with_another(&cluster, "cluster.toml", &old, ("coord-4", 4));
    let config = format!("{}/{file}", cluster.dir());
    let refused = run(&["raft", "promote", "coord-4", "--dir", cluster.dir()]).expect_err("it was not added");
    assert!(format!("{refused:#}").contains("coord-4 is no coordinator of this cluster"), "{refused:#}");
    let new = cluster.spawn_by(&file, "coord-4");
    let group =
        cluster.json(&["raft", "replace", &old, "coord-4", "--config", &config]).expect("it takes its place");
    let members = group["coordinators"].as_array().expect("a list");
    let names: Vec<&str> = members.iter().filter_map(|one| one["name"].as_str()).collect();
    assert!(names.len() == 3 && names.contains(&"coord-4") && !names.contains(&&*old), "{group}");
    assert!(members.iter().all(|one| one["role"] == "voter" && one["heard"] == true), "{group}");
    cluster.until("the old one to know", || {
        let log = std::fs::read_to_string(format!("{}/logs/{old}.log", cluster.dir())).ok()?;
        log.contains("is no coordinator of this cluster any more").then_some(())
    });
    let admin = format!("http://{}", before["admin_address"].as_str().expect("an address"));
    let told = run(&["status", "--admin", &admin, "--token-file", &format!("{}/token", cluster.dir())]);
    let told = format!("{:#}", told.expect_err("it knows nothing any more"));
    assert!(told.contains("this coordinator was removed from the cluster"), "{told}");
    cluster.json(&["status"]).expect("whoever is asked next answers");

    // The old one dies, and so does whoever leads: the new one is half of the majority that is left.
    cluster.signal(&old, "KILL");
    let killed = leader(&cluster);
    assert_ne!(killed, old);
    if killed != "coord-4" {
        cluster.signal(&killed, "KILL");
    } else {
        drop(new);
    }
    assert_eq!(cluster.wait(client.create_tenant("after")).expect("two of three decide"), TenantId(3));
    // Nobody can be taken away of the two that are left of three; what would is refused.
    let left = cluster.until("the leader to miss the dead one", || {
        let group = cluster.json(&["raft", "status"]).ok()?;
        let members = group["coordinators"].as_array().expect("a list").clone();
        let silent = members.iter().any(|one| one["heard"] == false);
        silent.then_some(members).map(|members| (group, members))
    });
    let (group, members) = left;
    let other = members.iter().find(|one| one["heard"] == true && one["name"] != group["leader"]);
    let other = other.and_then(|one| one["name"].as_str()).expect("two of three are there").to_owned();
    let refused =
        run(&["raft", "remove", &other, "--dir", cluster.dir()]).expect_err("one of two would be left");
    assert!(format!("{refused:#}").contains("nothing could be decided any more"), "{refused:#}");
    let removed = cluster.json(&["raft", "remove", &killed]).expect("the dead one may go");
    assert_eq!(removed["coordinators"].as_array().expect("a list").len(), 2);
    assert_eq!(cluster.wait(client.create_tenant("last")).expect("two of two decide"), TenantId(4));
}

#[test]
fn a_coordinator_that_was_removed_while_it_was_away_is_told_when_it_comes_back() {
    let cluster = Cluster::start(&["--nodes", "1", "--devices", "1"]);
    let gone = follower(&cluster);
    cluster.signal(&gone, "KILL");
    let group = cluster.json(&["raft", "remove", &gone]).expect("two of three decide");
    assert_eq!(group["coordinators"].as_array().expect("a list").len(), 2, "{group}");
    let _back = cluster.respawn(&gone);
    cluster.until("the one that is back to know", || {
        let log = std::fs::read_to_string(format!("{}/logs/{gone}-again.log", cluster.dir())).ok()?;
        log.contains("is no coordinator of this cluster any more").then_some(())
    });
    let config = format!("{}/cluster.toml", cluster.dir());
    let refused = problem(&cluster, &["raft", "add", &gone, "--config", &config]);
    let said = refused["detail"].as_str().unwrap_or_default();
    assert!(said.contains("was removed from this cluster") && said.contains("empty its data_dir"), "{said}");
}

/// Bytes of a block.
const BLOCK: usize = 4096;
/// Longer than a node serves that no coordinator hears: 2 s, of which the half.
const LEASES: Duration = Duration::from_secs(3);

/// Stores a block of its own and fetches it.
async fn is_served(blocks: &NamespaceClient, name: u64) -> bool {
    let prefix = blocks.prefix_of_engine_hashes(&[u128::from(name).to_le_bytes()]);
    let content = vec![name as u8; BLOCK];
    blocks.store(&prefix, 0..1, &[&content], StoreOptions::default()).await.expect("it fits");
    let mut memory = vec![0; BLOCK];
    let report = blocks.fetch_into(&prefix, 0..1, &mut [&mut memory]).await.expect("it fits");
    matches!(report.outcomes[..], [FetchOutcome::Loaded(_)]) && memory == content
}

#[test]
fn all_coordinators_are_replaced_one_after_the_other_and_nodes_and_clients_go_on() {
    let cluster = Cluster::start(&["--nodes", "1", "--devices", "1", "--block-size", "4KiB"]);
    let client = cluster.client();
    let blocks = cluster.blocks(&client, BLOCK as u32);
    let is_over = Arc::new(AtomicBool::new(false));
    let load = cluster.spawn({
        let is_over = is_over.clone();
        async move {
            let mut lost = Vec::new();
            let mut name = 0;
            while !is_over.load(Ordering::Relaxed) {
                name += 1;
                if !is_served(&blocks, name).await {
                    lost.push(name);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            (name, lost)
        }
    });
    let token = format!("{}/token", cluster.dir());
    let listed = |status: &Value| -> Vec<(String, String)> {
        let text = |one: &Value, field: &str| one[field].as_str().expect("a text").to_owned();
        let all = status["coordinators"].as_array().expect("a list").iter();
        all.map(|one| (text(one, "name"), format!("http://{}", text(one, "admin_address")))).collect()
    };
    let old = listed(&cluster.status());
    let (mut file, mut admin) = ("cluster.toml".to_owned(), old[0].1.clone());
    let mut new = Vec::new();
    for (at, (name, _)) in old.iter().enumerate() {
        let ask = |admin: &str, words: &[&str]| -> Value {
            let words: Vec<&str> =
                words.iter().copied().chain(["--json", "--admin", admin, "--token-file", &token]).collect();
            serde_json::from_slice(&run(&words).expect("it is done").stdout).expect("it is JSON")
        };
        let successor = format!("coord-{}", at + 4);
        file = with_another(&cluster, &file, name, (&successor, at as u64 + 4));
        new.push(cluster.spawn_by(&file, &successor));
        let group = ask(&admin, &["raft", "status"]);
        if group["leader"] == **name {
            let others = group["coordinators"].as_array().expect("a list").iter();
            let to = others
                .filter_map(|one| one["name"].as_str())
                .find(|one| one != name)
                .expect("there are more");
            ask(&admin, &["raft", "transfer", to]);
        }
        let config = format!("{}/{file}", cluster.dir());
        ask(&admin, &["raft", "replace", name, &successor, "--config", &config]);
        cluster.signal(name, "KILL");
        // Whoever is asked from now on is one that is left.
        let left = [&admin, &old[(at + 1) % 3].1].into_iter().find_map(|one| {
            let words = ["status", "--json", "--admin", one, "--token-file", &token];
            serde_json::from_slice(&run(&words).ok()?.stdout).ok()
        });
        let left = left.expect("two that were there before are left");
        admin = listed(&left).into_iter().map(|(_, admin)| admin).collect::<Vec<_>>().join(",");
        let tenant = cluster.wait(client.create_tenant(&format!("after-{successor}")));
        assert_eq!(tenant.expect("they lead"), TenantId(at as u32 + 2));
    }
    // None of those that the node and the client were told of is there any more, and whom they ask now goes too: nobody is left to
    // send them to another.
    let group = run(&["raft", "status", "--json", "--admin", &admin, "--token-file", &token])
        .expect("they are there");
    let group: Value = serde_json::from_slice(&group.stdout).expect("it is JSON");
    let leads =
        (0..3).find(|at| group["leader"] == *format!("coord-{}", at + 4)).expect("one of the new ones leads");
    drop(new.remove(leads));
    std::thread::sleep(LEASES);
    cluster.wait(client.create_tenant("last")).expect("the client finds the new ones");
    is_over.store(true, Ordering::Relaxed);
    let (served, lost) = cluster.wait(load).expect("it does not panic");
    assert!(served > 100 && lost.is_empty(), "of {served} blocks these were not served: {lost:?}");
    let events = run(&["events", "--json", "--admin", &admin, "--token-file", &token]).expect("they tell");
    let events = String::from_utf8_lossy(&events.stdout).into_owned();
    assert_eq!(events.matches("coordinators-changed").count(), 3, "{events}");
    assert!(!events.contains("member-down"), "the node kept its lease: {events}");
}

/// The problem document that a command ends with.
fn problem(cluster: &Cluster, words: &[&str]) -> Value {
    let words = words.iter().copied().chain(["--json", "--dir", cluster.dir()]);
    let output = std::process::Command::new(kvhive()).args(words).output().expect("kvhive is there");
    assert!(!output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stderr).expect("text");
    serde_json::from_str(said.lines().last().expect("it says why")).expect("a document")
}

#[test]
fn what_is_refused_moves_no_leadership_and_without_a_majority_one_tells_what_it_knows() {
    let cluster = Cluster::start(&["--nodes", "1", "--devices", "1"]);
    let (leads, killed) = (leader(&cluster), follower(&cluster));
    let before = cluster.json(&["raft", "status"]).expect("somebody leads");
    assert!(before["known_by"].is_null(), "{before}");
    cluster.signal(&killed, "KILL");
    cluster.until("the leader to miss it", || {
        let group = cluster.json(&["raft", "status"]).ok()?;
        let members = group["coordinators"].as_array()?.iter();
        members.clone().any(|one| one["heard"] == false).then_some(())
    });
    // One of the two that would be left is dead.
    let refused = problem(&cluster, &["raft", "remove", &leads]);
    let said = refused["detail"].as_str().unwrap_or_default();
    assert!(said.contains("nothing could be decided any more"), "{refused}");
    assert_eq!((&refused["status"], &refused["code"]), (&409.into(), &"rejected".into()), "{refused}");
    let after = cluster.json(&["raft", "status"]).expect("somebody leads");
    assert_eq!((&after["leader"], &after["term"]), (&before["leader"], &before["term"]));

    cluster.signal(&leads, "KILL");
    let known = cluster.until("the last one to know that nobody leads", || {
        let group = cluster.json(&["raft", "status"]).ok()?;
        group["known_by"].is_string().then_some(group)
    });
    assert_eq!(
        (&known["leader"], known["coordinators"].as_array().map(Vec::len)),
        (&Value::Null, Some(3)),
        "{known}"
    );
    let refused = problem(&cluster, &["raft", "transfer", &killed]);
    assert_eq!(refused["status"], 503, "{refused}");
    let said = refused["detail"].as_str().unwrap_or_default();
    assert!(said.starts_with("no coordinator does it now: http"), "{said}");
    // Nobody is waited for whom no leader could hear.
    let refused = problem(&cluster, &["raft", "promote", &killed]);
    let said = refused["detail"].as_str().unwrap_or_default();
    assert!(said.starts_with("nobody leads the coordinators"), "{refused}");
    let refused = problem(&cluster, &["raft", "transfer"]);
    assert_eq!(refused["code"], "usage", "{refused}");
    let refused = problem(&cluster, &["status", "--admin", "http://127.0.0.1:1"]);
    assert_eq!(refused["code"], "unanswered", "{refused}");
    let said = refused["detail"].as_str().unwrap_or_default();
    assert!(said.starts_with("no coordinator answered: http://127.0.0.1:1: "), "{said}");
}
