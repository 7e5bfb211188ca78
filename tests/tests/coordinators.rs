//! The coordinators themselves, on a cluster of real processes: who leads, and who is one.

use kvhive_protocol::TenantId;
use kvhive_tests::{Cluster, run};

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
