//! The coordinators themselves, on a cluster of real processes: who leads, and who is one.

use kvhive_protocol::TenantId;
use kvhive_tests::{Cluster, run};
use std::net::TcpListener;

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
