//! Coordinators that are lost for good, on a cluster of real processes: all of them, with a backup; a majority, with one left.

use kvhive_client::{FetchOutcome, NamespaceClient, Prefix, StoreOptions, StoreOutcome};
use kvhive_protocol::TenantId;
use kvhive_tests::{Cluster, Respawned, run};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const BLOCK: usize = 64 << 10;
const BLOCKS: usize = 40;
const COORDINATORS: [&str; 3] = ["coord-1", "coord-2", "coord-3"];
/// Epochs of a cluster that goes on by an older state are above this.
const RAISED: u64 = 1 << 32;

fn prefix(blocks: &NamespaceClient, name: u8) -> Prefix {
    let hashes: Vec<[u8; 16]> = (0..BLOCKS).map(|at| [name, at as u8].repeat(8)).map(hash).collect();
    blocks.prefix_of_engine_hashes(&hashes)
}

fn hash(bytes: Vec<u8>) -> [u8; 16] {
    bytes.try_into().expect("eight times two")
}

fn content(name: u8, at: usize) -> Vec<u8> {
    [name, at as u8].repeat(BLOCK / 2)
}

/// Stores a prefix; says whether all of it is acknowledged.
async fn store(blocks: &NamespaceClient, name: u8) -> bool {
    let memory: Vec<Vec<u8>> = (0..BLOCKS).map(|at| content(name, at)).collect();
    let memory: Vec<&[u8]> = memory.iter().map(|block| &block[..]).collect();
    let stored = blocks.store(&prefix(blocks, name), 0..BLOCKS, &memory, StoreOptions::default()).await;
    let outcomes = stored.expect("the arguments fit").outcomes;
    outcomes.iter().all(|one| matches!(one, StoreOutcome::Acknowledged { .. }))
}

/// Returns how many blocks of a prefix come, each as it was stored.
async fn hits(blocks: &NamespaceClient, name: u8) -> usize {
    let mut memory = vec![vec![0u8; BLOCK]; BLOCKS];
    let mut targets: Vec<&mut [u8]> = memory.iter_mut().map(|block| &mut block[..]).collect();
    let fetched = blocks.fetch_into(&prefix(blocks, name), 0..BLOCKS, &mut targets).await;
    let outcomes = fetched.expect("the arguments fit").outcomes;
    let came = |at: &usize| matches!(outcomes[*at], FetchOutcome::Loaded(_));
    let came: Vec<usize> = (0..BLOCKS).filter(came).collect();
    assert!(came.iter().all(|at| memory[*at] == content(name, *at)), "a block has wrong bytes");
    came.len()
}

fn refused(words: &[&str]) -> String {
    format!("{:#}", run(words).expect_err("it is refused"))
}

fn names(tenants: &Value) -> Vec<&str> {
    let all = tenants["tenants"].as_array().expect("a list").iter();
    all.filter_map(|one| one["name"].as_str()).collect()
}

fn data_dir(cluster: &Cluster, id: &str) -> std::path::PathBuf {
    Path::new(cluster.dir()).join("data").join(id)
}

/// Kills a coordinator, and takes its folder away.
fn lose(cluster: &Cluster, id: &str) {
    cluster.signal(id, "KILL");
    cluster.until("it to be gone", || {
        let log = std::fs::File::open(data_dir(cluster, id).join("lock")).ok()?;
        rustix::fs::flock(&log, rustix::fs::FlockOperation::NonBlockingLockExclusive).ok()
    });
    std::fs::remove_dir_all(data_dir(cluster, id)).expect("it was there");
}

fn generations(cluster: &Cluster) -> Vec<u64> {
    let status = cluster.status();
    let nodes = status["nodes"].as_array().expect("a list");
    assert!(nodes.iter().all(|node| node["state"] == "up"), "{status}");
    nodes.iter().filter_map(|node| node["generation"].as_u64()).collect()
}

fn leader(cluster: &Cluster) -> String {
    cluster.until("a leader", || cluster.status()["leader"].as_str().map(str::to_owned))
}

/// Adds a coordinator as the cluster file has it, which begins with nothing, and has it vote.
fn join(cluster: &Cluster, id: &str, is_there: bool) -> Respawned {
    let config = format!("{}/cluster.toml", cluster.dir());
    if !is_there {
        cluster.json(&["raft", "add", id, "--config", &config]).expect("it is added");
    }
    let running = cluster.respawn(id);
    let group = cluster.json(&["raft", "promote", id]).expect("it catches up");
    let all = group["coordinators"].as_array().expect("a list");
    assert!(all.iter().any(|one| one["name"] == id && one["role"] == "voter"), "{group}");
    running
}

#[test]
fn a_cluster_that_lost_every_coordinator_begins_again_from_a_backup_and_its_blocks_are_hit() {
    let cluster = Cluster::start(&["--nodes", "2", "--devices", "1"]);
    let client = cluster.client();
    let blocks = cluster.blocks(&client, BLOCK as u32);
    cluster.wait(client.create_tenant("kept")).expect("somebody leads");
    assert!(cluster.wait(store(&blocks, 1)));
    let before = (cluster.status(), generations(&cluster));

    // Any coordinator gives a backup, one that follows too.
    let leads = leader(&cluster);
    let coordinators = before.0["coordinators"].as_array().expect("a list").iter();
    let mut followers = coordinators.filter(|one| one["name"] != *leads);
    let admin = followers.next().and_then(|one| one["admin_address"].as_str()).expect("one follows");
    let file = format!("{}/kvhive.backup", cluster.dir());
    let taken = cluster.json(&["backup", &file, "--admin", admin]).expect("it gives one");
    assert_eq!(
        (taken["tenants"].as_u64(), taken["nodes"].as_u64(), &taken["cluster"]),
        (Some(2), Some(2), &before.0["cluster"])
    );
    let mode = std::fs::metadata(&file).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "the tenants' secrets are in it");
    let viewer = format!("{}/wrong", cluster.dir());
    std::fs::write(&viewer, "a token of nobody that is long enough").expect("room for a file");
    let other = format!("{}/other.backup", cluster.dir());
    let strange = refused(&["backup", &other, "--dir", cluster.dir(), "--token-file", &viewer]);
    assert!(strange.contains("does not accept the token"), "{strange}");
    let again = refused(&["backup", &file, "--dir", cluster.dir()]);
    assert!(again.contains("is there already") && again.contains("--force"), "{again}");
    cluster.json(&["backup", &file, "--force"]).expect("it may be replaced");

    // What is done after the backup is forgotten with the logs.
    cluster.wait(client.create_tenant("forgotten")).expect("somebody leads");
    let config = format!("{}/cluster.toml", cluster.dir());
    let restore = ["restore", &*file, "--config", &*config, "--id", "coord-1"];
    assert!(refused(&restore).contains("answers at"), "a cluster that runs is not written over");
    for id in &COORDINATORS[1..] {
        lose(&cluster, id);
    }
    cluster.signal("coord-1", "KILL");
    cluster.until("it to be gone", || {
        let said = refused(&restore);
        said.contains("holds a log already").then_some(())
    });
    std::fs::remove_dir_all(data_dir(&cluster, "coord-1")).expect("it was there");
    let mut damaged = std::fs::read(&file).expect("it is there");
    damaged[100] ^= 1;
    let other = format!("{}/damaged.backup", cluster.dir());
    std::fs::write(&other, damaged).expect("room for a file");
    let said = refused(&["restore", &other, "--config", &config, "--id", "coord-1"]);
    assert!(said.contains("its checksum does not match"), "{said}");

    run(&restore).expect("the folder is empty");
    let mut running = vec![cluster.respawn("coord-1")];
    assert_eq!(leader(&cluster), "coord-1", "it decides alone");
    let status = cluster.status();
    assert_eq!((&status["cluster"], &status["name"]), (&before.0["cluster"], &before.0["name"]));
    assert!(status["epoch"].as_u64() >= Some(RAISED), "{status}");
    for id in &COORDINATORS[1..] {
        running.push(join(&cluster, id, true));
    }
    assert_eq!(names(&cluster.json(&["tenants"]).expect("an answer")), ["default", "kept"]);

    // Nodes went on running: they are the same members, and what they hold is found, also by who knew the cluster before.
    assert_eq!(generations(&cluster), before.1);
    cluster.until("every block", || (cluster.wait(hits(&blocks, 1)) == BLOCKS).then_some(()));
    let fresh = cluster.client();
    assert_eq!(cluster.wait(hits(&cluster.blocks(&fresh, BLOCK as u32), 1)), BLOCKS);
    assert!(cluster.wait(store(&blocks, 2)));
    assert_eq!(cluster.wait(fresh.create_tenant("new")).expect("it leads"), TenantId(3));
    // A node that starts again is another than any that the lost logs knew.
    cluster.signal("node-1", "KILL");
    let _node = cluster.respawn("node-1");
    cluster.until("the node", || {
        let status = cluster.status();
        let nodes = status["nodes"].as_array().expect("a list").iter();
        let mut nodes = nodes.filter(|node| node["name"] == "node-1" && node["state"] == "up");
        nodes.any(|node| node["generation"].as_u64() > Some(RAISED)).then_some(())
    });

    // Each of the three decides with one other.
    drop(running.remove(0));
    assert_eq!(cluster.wait(fresh.create_tenant("newer")).expect("two of three decide"), TenantId(4));
    // One line, as it happened once.
    let told = cluster.json(&["events", "--kind", "cluster-restored"]).expect("an answer");
    let reason = told["reason"].as_str().expect("an event says why");
    assert!(reason.starts_with("restored from the backup of entry "), "{told}");
}

#[test]
fn coordinators_of_one_machine_begin_again_together_and_cleared_blocks_stay_gone() {
    let cluster = Cluster::start(&["--nodes", "1", "--devices", "1"]);
    let client = cluster.client();
    let blocks = cluster.blocks(&client, BLOCK as u32);
    assert!(cluster.wait(store(&blocks, 1)));
    let file = format!("{}/kvhive.backup", cluster.dir());
    cluster.json(&["backup", &file]).expect("somebody gives one");
    COORDINATORS.iter().for_each(|id| lose(&cluster, id));
    let config = format!("{}/cluster.toml", cluster.dir());
    let unknown = refused(&["restore", &file, "--config", &config, "--cleared", "nobody"]);
    assert!(unknown.contains("there is no tenant \"nobody\""), "{unknown}");
    let words = ["restore", &file, "--config", &config, "--cleared", "default", "--json"];
    let begun: Value = serde_json::from_slice(&run(&words).expect("all are here").stdout).expect("JSON");
    assert_eq!(begun["begin"], serde_json::json!(COORDINATORS));
    let _running = COORDINATORS.map(|id| cluster.respawn(id));
    cluster.until("three coordinators", || {
        let group = cluster.json(&["raft", "status"]).ok()?;
        let all = group["coordinators"].as_array().expect("a list").clone();
        (all.len() == 3 && all.iter().all(|one| one["role"] == "voter" && one["heard"] == true)).then_some(())
    });
    let fresh = cluster.client();
    let blocks = cluster.blocks(&fresh, BLOCK as u32);
    cluster.until("the node to serve", || cluster.wait(store(&blocks, 2)).then_some(()));
    assert_eq!(cluster.wait(hits(&blocks, 1)), 0, "an era that is over does not come back");
    assert_eq!(cluster.wait(hits(&blocks, 2)), BLOCKS);
}

#[test]
fn one_of_three_coordinators_goes_on_alone_and_others_are_added_to_it() {
    let cluster = Cluster::start(&["--nodes", "1", "--devices", "1"]);
    let client = cluster.client();
    let blocks = cluster.blocks(&client, BLOCK as u32);
    cluster.wait(client.create_tenant("before")).expect("somebody leads");
    assert!(cluster.wait(store(&blocks, 1)));
    let before = generations(&cluster);
    let (left, config) = (leader(&cluster), format!("{}/cluster.toml", cluster.dir()));
    let lost: Vec<&str> = COORDINATORS.into_iter().filter(|id| *id != left).collect();
    let recover = ["coordinator", "recover", "--config", &*config, "--id", &*left, "--yes", "--json"];
    let used = refused(&recover);
    assert!(used.contains("is used by another process"), "{used}");

    lose(&cluster, lost[0]);
    cluster.signal(&left, "KILL");
    cluster.until("it to be gone", || refused(&recover).contains("answers at").then_some(()));
    lose(&cluster, lost[1]);
    let unasked = refused(&recover[..6]);
    assert!(unasked.contains("say --yes"), "{unasked}");
    let recovered: Value = serde_json::from_slice(&run(&recover).expect("nobody runs").stdout).expect("JSON");
    assert_eq!(recovered["lost"], serde_json::json!(lost));
    let mut running = vec![cluster.respawn(&left)];
    assert_eq!(leader(&cluster), left);
    assert!(cluster.status()["epoch"].as_u64() >= Some(RAISED));
    for id in &lost {
        running.push(join(&cluster, id, false));
    }
    let tenants = cluster.json(&["tenants"]).expect("an answer");
    assert_eq!(names(&tenants)[..2], ["default", "before"]);
    assert_eq!(generations(&cluster), before, "the node went on running");
    cluster.until("every block", || (cluster.wait(hits(&blocks, 1)) == BLOCKS).then_some(()));
    // The two that were added decide without the one that was left.
    drop(running.remove(0));
    cluster.wait(client.create_tenant("after")).expect("two of three decide");
}
