//! What a user relies on, on a cluster of real processes.

use kvhive_client::{
    Client, ClientConfig, ClientError, FetchOutcome, NamespaceClient, Prefix, StoreOptions, StoreOutcome,
};
use kvhive_protocol::data::{Accept, Ack, DataRequest, FetchRequest, Refusal, Run};
use kvhive_protocol::frame::Kind;
use kvhive_protocol::handshake::{Role, TokenKey};
use kvhive_protocol::{DeviceId, TenantId, WireError};
use kvhive_tests::{Cluster, PATIENCE, run};
use kvhive_wire::{Connection, Identity};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

const BLOCK: usize = 64 << 10;

fn prefix(blocks: &NamespaceClient, name: u64, count: u64) -> Prefix {
    let hashes: Vec<[u8; 16]> =
        (0..count).map(|at| (u128::from(name) << 64 | u128::from(at)).to_le_bytes()).collect();
    blocks.prefix_of_engine_hashes(&hashes)
}

/// Bytes that say which block of which prefix they are.
fn content(name: u64, at: usize, bytes: usize) -> Vec<u8> {
    let mut word = name.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ at as u64;
    let mut block = vec![0; bytes];
    for piece in block.chunks_mut(8) {
        word = word.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        piece.copy_from_slice(&word.to_le_bytes()[..piece.len()]);
    }
    block
}

async fn store(blocks: &NamespaceClient, name: u64, count: usize, ack: Option<Ack>) -> Vec<StoreOutcome> {
    let prefix = prefix(blocks, name, count as u64);
    let memory: Vec<Vec<u8>> =
        (0..count).map(|at| content(name, at, blocks.block_bytes() as usize)).collect();
    let memory: Vec<&[u8]> = memory.iter().map(|block| &block[..]).collect();
    let options = StoreOptions { ack, ..StoreOptions::default() };
    blocks.store(&prefix, 0..count, &memory, options).await.expect("the arguments fit").outcomes
}

/// Fetches a prefix and returns which blocks came, each compared with what was stored.
async fn fetch(blocks: &NamespaceClient, name: u64, count: usize) -> Vec<bool> {
    let prefix = prefix(blocks, name, count as u64);
    let bytes = blocks.block_bytes() as usize;
    let mut memory = vec![vec![0u8; bytes]; count];
    let mut targets: Vec<&mut [u8]> = memory.iter_mut().map(|block| &mut block[..]).collect();
    let report = blocks.fetch_into(&prefix, 0..count, &mut targets).await.expect("the arguments fit");
    let came = |(at, outcome): (usize, &FetchOutcome)| {
        let loaded = matches!(outcome, FetchOutcome::Loaded(_));
        assert!(
            !loaded || memory[at] == content(name, at, bytes),
            "block {at} of prefix {name} has wrong bytes"
        );
        loaded
    };
    report.outcomes.iter().enumerate().map(came).collect()
}

fn all_acknowledged(outcomes: &[StoreOutcome]) -> bool {
    outcomes.iter().all(|outcome| matches!(outcome, StoreOutcome::Acknowledged { .. }))
}

#[test]
fn blocks_come_back_over_a_killed_leader_and_changes_go_on() {
    let cluster = Cluster::start(&["--nodes", "2"]);
    let client = cluster.client();
    let blocks = cluster.blocks(&client, BLOCK as u32);
    assert!(all_acknowledged(&cluster.wait(store(&blocks, 1, 40, None))));
    let leader = cluster.status()["leader"].as_str().expect("somebody leads").to_owned();
    cluster.signal(&leader, "KILL");
    // Nothing on the way of a block waits for a coordinator.
    assert!(cluster.wait(fetch(&blocks, 1, 40)).iter().all(|came| *came));
    assert!(all_acknowledged(&cluster.wait(store(&blocks, 2, 40, None))));
    let tenant = cluster.wait(client.create_tenant("after-the-kill")).expect("another leads");
    let next = cluster.until("another leader", || {
        cluster.status()["leader"].as_str().filter(|name| *name != leader).map(str::to_owned)
    });
    let again = cluster.respawn(&leader);
    cluster.until("three coordinators", || {
        let status = cluster.status();
        let all = status["coordinators"].as_array().expect("a list").clone();
        all.iter()
            .all(|one| one["role"] != "unreachable" && one["applied"] == all[0]["applied"])
            .then_some(())
    });
    let tenants = cluster.json(&["tenants"]).expect("an answer");
    let names: Vec<&str> = tenants["tenants"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|one| one["name"].as_str())
        .collect();
    assert_eq!((names, tenant), (vec!["default", "after-the-kill"], TenantId(2)), "{next} leads");
    drop(again);
    assert!(cluster.wait(fetch(&blocks, 2, 40)).iter().all(|came| *came));
}

#[test]
fn a_killed_node_loses_no_block_that_all_replicas_acknowledged() {
    let cluster = Cluster::start(&["--nodes", "2", "--replicas", "2"]);
    let client = cluster.client();
    let blocks = cluster.blocks(&client, BLOCK as u32);
    for name in 0..20 {
        let outcomes = cluster.wait(store(&blocks, name, 30, Some(Ack::All)));
        let two = |outcome: &StoreOutcome| matches!(outcome, StoreOutcome::Acknowledged { copies: 2, .. });
        assert!(outcomes.iter().all(two), "{outcomes:?}");
    }
    let before = cluster.status();
    cluster.signal("node-1", "KILL");
    // At once, while its lease still runs: the other replica answers.
    for name in 0..20 {
        assert!(
            cluster.wait(fetch(&blocks, name, 30)).iter().all(|came| *came),
            "prefix {name} right after the kill"
        );
    }
    cluster.until("the node to be declared down", || {
        let status = cluster.status();
        let down = status["nodes"]
            .as_array()?
            .iter()
            .any(|node| node["name"] == "node-1" && node["state"] == "down");
        (down && status["slots"]["unavailable"] == 0).then_some(())
    });
    assert!(cluster.status()["epoch"].as_u64() > before["epoch"].as_u64());
    // This client may still have the old map: it is answered where that still holds, told where not, and goes on.
    for name in 0..20 {
        assert!(
            cluster.wait(fetch(&blocks, name, 30)).iter().all(|came| *came),
            "prefix {name} after the failover"
        );
    }
    let outcomes = cluster.wait(store(&blocks, 99, 30, None));
    assert!(all_acknowledged(&outcomes), "stores go on: {outcomes:?}");
    cluster.until("the client to hear of the new map by an answer", || {
        (Some(client.map().epoch.0) > before["epoch"].as_u64()).then_some(())
    });
    // The node comes back empty: it serves again, and hides nothing that the survivor has.
    let _again = cluster.respawn("node-1");
    cluster.until("both nodes", || {
        let status = cluster.status();
        status["nodes"].as_array()?.iter().all(|node| node["state"] == "up").then_some(())
    });
    for name in 0..20 {
        assert!(
            cluster.wait(fetch(&blocks, name, 30)).iter().all(|came| *came),
            "prefix {name} after the return"
        );
    }
}

#[test]
fn a_full_cache_keeps_the_newest_and_never_a_wrong_byte() {
    let cluster = Cluster::start(&[
        "--nodes",
        "1",
        "--devices",
        "2",
        "--device-memory",
        "8MiB",
        "--host-memory",
        "4MiB",
    ]);
    let client = cluster.client();
    let blocks = cluster.blocks(&client, BLOCK as u32);
    // 384 frames; three times as many blocks.
    for name in 0..72 {
        let outcomes = cluster.wait(store(&blocks, name, 16, None));
        assert!(all_acknowledged(&outcomes), "prefix {name}: {outcomes:?}");
    }
    let kept: Vec<usize> = (0..72)
        .map(|name| cluster.wait(fetch(&blocks, name, 16)).iter().filter(|came| **came).count())
        .collect();
    assert_eq!(kept[66..], [16; 6], "the newest are there");
    assert_eq!(kept[..20].iter().sum::<usize>(), 0, "the oldest are gone");
    let total: usize = kept.iter().sum();
    assert!((370..=384).contains(&total), "{total} of 384 frames hold a block");
    let large = cluster.blocks(&client, 2 * BLOCK as u32);
    assert_eq!(cluster.wait(store(&large, 1, 1, None)), [StoreOutcome::Refused(Refusal::TooLarge)]);
}

#[test]
fn a_slow_reader_holds_its_frames_and_nobody_else() {
    let cluster =
        Cluster::start(&["--nodes", "1", "--devices", "1", "--device-memory", "8MiB", "--host-memory", "0"]);
    let client = cluster.client();
    let blocks = cluster.blocks(&client, BLOCK as u32);
    // Half of the frames, asked for by somebody who does not read.
    assert!(all_acknowledged(&cluster.wait(store(&blocks, 7, 64, None))));
    let asked = prefix(&blocks, 7, 64);
    let map = client.map();
    let device = DeviceId::new(*map.members.keys().next().expect("one node"), 0);
    let runs = asked.keys().chunks(map.settings.segment_blocks as usize);
    let request = DataRequest::Fetch(FetchRequest {
        epoch: map.epoch,
        device,
        tenant: map.tenant("default").expect("it exists").0,
        runs: runs.map(|segment| Run { slot: segment[0].slot(), keys: segment.len() as u32 }).collect(),
        keys: asked.keys().iter().collect(),
        accept: Accept::Stored,
    });
    let identity = Identity {
        token: TokenKey::new(cluster.token().as_bytes()),
        role: Role::Client,
        sender: 0,
        cluster: None,
        tls: None,
        levels: Default::default(),
    };
    let address = &map.members[&device.member].data_address;
    let mut slow = cluster.wait(async {
        let (mut slow, _) = Connection::connect(address, &identity, PATIENCE).await.expect("it listens");
        slow.send(Kind::DataRequest, 1, &request, &[]).await.expect("it is taken");
        slow.receive().await.expect("the answer begins");
        slow
    });
    // Others fill the cache over and over meanwhile.
    for name in 100..140 {
        cluster.wait(store(&blocks, name, 32, None));
        assert!(cluster.wait(fetch(&blocks, name, 4)).iter().all(|came| *came), "others are served");
    }
    // What the slow reader gets at last is what it asked for.
    cluster.wait(async {
        let mut block = vec![0; BLOCK];
        for at in 0..64 {
            slow.read_payload(&mut block).await.expect("the node waits for it");
            assert_eq!(block, content(7, at, BLOCK), "block {at}");
        }
    });
}

#[test]
fn garbage_on_every_port_is_refused_and_hurts_nobody() {
    let cluster = Cluster::start(&["--nodes", "1"]);
    let client = cluster.client();
    let blocks = cluster.blocks(&client, BLOCK as u32);
    assert!(all_acknowledged(&cluster.wait(store(&blocks, 1, 8, None))));
    let status = cluster.status();
    let mut ports: Vec<String> = cluster.client_config().coordinators;
    for one in status["coordinators"].as_array().expect("a list") {
        ports.push(one["admin_address"].as_str().expect("an address").to_owned());
    }
    for node in status["nodes"].as_array().expect("a list") {
        for field in ["data_address", "metrics_address"] {
            ports.push(node[field].as_str().expect("an address").to_owned());
        }
    }
    let mut word = 1u64;
    for port in &ports {
        for length in [1usize, 31, 32, 33, 4096, 100_000] {
            let mut stream = TcpStream::connect(port).expect("it listens");
            stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a live socket");
            let mut garbage = vec![0u8; length];
            for byte in &mut garbage {
                word = word.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                *byte = (word >> 33) as u8;
            }
            if length == 4096 {
                // A header that announces four gigabytes.
                garbage[..8].copy_from_slice(b"KVHF\x01\0\x01\0");
                garbage[16..24].fill(0xFF);
            }
            // The other end may close while this is on its way.
            let _ = stream.write_all(&garbage);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let mut answer = Vec::new();
            let _ = stream.take(1 << 20).read_to_end(&mut answer);
            assert!(answer.len() < 4096, "{port} answers garbage with {} bytes", answer.len());
        }
    }
    assert!(cluster.wait(fetch(&blocks, 1, 8)).iter().all(|came| *came));
    assert_eq!(cluster.status()["slots"]["unavailable"], 0);
    let running = cluster.running();
    for process in running["processes"].as_array().expect("a list") {
        assert!(
            std::path::Path::new(&format!("/proc/{}", process["pid"])).exists(),
            "{} lives",
            process["id"]
        );
    }
}

#[test]
fn without_the_token_nothing_is_said() {
    let cluster = Cluster::start(&["--nodes", "1", "--coordinators", "1"]);
    let config = cluster.client_config();
    for token in [&b"not the cluster's token"[..], b""] {
        let wrong = ClientConfig { token: token.to_vec(), ..config.clone() };
        match cluster.wait(Client::connect(wrong)) {
            Err(ClientError::Refused(WireError::Unauthorized)) => {}
            other => panic!("{:?}", other.map(|_| "let in")),
        }
    }
    let admin = cluster.running()["admin_urls"][0].as_str().expect("a URL").to_owned();
    let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
    for path in
        ["/v1/cluster", "/v1/members", "/v1/slots", "/v1/tenants", "/v1/stats", "/metrics", "/openapi.json"]
    {
        for token in ["", "Bearer wrong"] {
            let mut answer =
                agent.get(format!("{admin}{path}")).header("authorization", token).call().expect("an answer");
            assert_eq!(answer.status().as_u16(), 401, "{path}");
            let text = answer.body_mut().read_to_string().expect("JSON");
            assert!(text.contains("\"unauthorized\"") && !text.contains("127.0.0.1"), "{path}: {text}");
        }
        let token = format!("Bearer {}", cluster.token());
        let answer =
            agent.get(format!("{admin}{path}")).header("authorization", token).call().expect("an answer");
        assert_eq!(answer.status().as_u16(), 200, "{path}");
    }
    for path in ["/healthz", "/readyz"] {
        assert_eq!(
            agent.get(format!("{admin}{path}")).call().expect("an answer").status().as_u16(),
            200,
            "{path}"
        );
    }
}

#[test]
fn after_a_clear_nobody_serves_an_older_block() {
    let cluster = Cluster::start(&["--nodes", "2"]);
    let client = cluster.client();
    let blocks = cluster.blocks(&client, BLOCK as u32);
    for round in 0..3 {
        assert!(all_acknowledged(&cluster.wait(store(&blocks, round, 40, None))));
        assert!(cluster.wait(fetch(&blocks, round, 40)).iter().all(|came| *came));
        let cleared = cluster.json(&["tenants", "clear", "default"]).expect("it is cleared");
        assert_eq!(cleared["era"].as_u64(), Some(round + 2), "an era a clear, from 1");
        // A client that knows nothing of it, and one that does.
        for client in [client.clone(), cluster.client()] {
            let blocks = cluster.blocks(&client, BLOCK as u32);
            for name in 0..=round {
                assert!(cluster.wait(fetch(&blocks, name, 40)).iter().all(|came| !came), "prefix {name}");
            }
        }
    }
}

#[test]
fn replay_and_simulation_agree_within_a_point() {
    let cluster =
        Cluster::start(&["--device-memory", "8MiB", "--host-memory", "4MiB", "--block-size", "4KiB"]);
    let replayed =
        cluster.json(&["replay", "--requests", "600", "--block-size", "4KiB", "--concurrency", "1"]);
    let replayed = replayed.expect("it runs");
    let blocks = ((4 * 12) << 20) / 4096;
    let words = ["simulate", "--requests", "600", "--capacity-blocks", &blocks.to_string(), "--json"];
    let simulated: serde_json::Value =
        serde_json::from_slice(&run(&words).expect("it runs").stdout).expect("JSON");
    let rate = |report: &serde_json::Value| report["block_hit_rate"].as_f64().expect("a rate");
    assert!((rate(&replayed) - rate(&simulated)).abs() < 0.01, "{replayed}\n{simulated}");
    for (field, value) in [("errors", 0), ("wrong_bytes", 0), ("requests", 600)] {
        assert_eq!(replayed[field].as_u64(), Some(value), "{field}");
    }
    for field in ["blocks", "hits", "bytes", "seconds", "latencies"] {
        assert!(!replayed[field].is_null(), "{field}");
    }
    for field in
        ["strategy", "capacity_blocks", "requests", "blocks", "hits", "tokens_saved_ratio", "seconds"]
    {
        assert!(!simulated[field].is_null(), "{field}");
    }
}

#[test]
fn a_new_cluster_takes_other_ports_where_one_was_lost_and_one_that_was_there_says_which() {
    let cluster =
        Cluster::start(&["--coordinators", "1", "--nodes", "1", "--devices", "1", "--device-memory", "4MiB"]);
    let address = || {
        let status = cluster.status();
        status["nodes"][0]["data_address"].as_str().expect("it has registered").to_owned()
    };
    let lost = address();
    run(&["down", "--dir", cluster.dir()]).expect("it ends");
    let _held = std::net::TcpListener::bind(&lost).expect("it is free again");
    let up = ["up", "--detach", "--dir", cluster.dir()];
    let error = run(&up).expect_err("its port is taken").to_string();
    assert!(error.contains(&format!("cannot listen on {lost}")), "{error}");
    run(&[&up[..], &["--just-made"]].concat()).expect("there are other ports");
    assert_ne!(address(), lost);
}
