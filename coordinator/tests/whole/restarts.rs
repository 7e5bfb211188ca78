//! What a group knows outlives all of its processes.

use crate::group::{Group, eventually, fresh_request, submit};
use kvhive_coordinator::{CoordinatorConfig, CoordinatorError, MembershipError};
use kvhive_protocol::control::{Command, CommandReply, ControlReply, ControlRequest};
use kvhive_protocol::{Epoch, Era, Reason, TenantRules, WireError};
use std::path::{Path, PathBuf};

fn create(name: &str, secret: u8) -> ControlRequest {
    ControlRequest::Submit {
        request: fresh_request(),
        reason: Reason::default(),
        command: Command::CreateTenant {
            name: name.to_owned(),
            secret: [secret; 32],
            rules: TenantRules::default(),
        },
    }
}

#[test]
fn a_name_is_its_nodes_until_the_lease_has_run_out_and_its_next_start_is_let_in_at_once() {
    let group = Group::of(3);
    let first = group.register("node-a");
    let next = group.register("node-a");
    assert!(next.member == first.member && next.generation > first.generation, "started anew where it was");
    let taken = WireError::NameTaken { name: "node-a".to_owned(), address: "127.0.0.1:1".to_owned() };
    let elsewhere = || group.try_register("node-a", "127.0.0.1:9");
    assert_eq!(elsewhere(), ControlReply::Failed(taken));
    let member = group.map(group.leader()).members[&next.member].clone();
    assert_eq!((member.generation, member.data_address.as_str()), (next.generation, "127.0.0.1:1"));
    eventually(
        "it is silent, and its name is free",
        || matches!(elsewhere(), ControlReply::Registered { member, .. } if member == next.member),
    );
    assert_eq!(group.beat(&next), ControlReply::Fenced);
}

#[test]
fn all_coordinators_started_again_know_what_they_knew() {
    // Once with everything in the log, once with most of it in a snapshot.
    for snapshot_every in [10_000, 4] {
        let mut group = Group::with(3, |config| config.snapshot_every = snapshot_every);
        group.register("node-a");
        let requests: Vec<ControlRequest> = (1..=12).map(|at| create(&format!("tenant-{at}"), at)).collect();
        let replies: Vec<ControlReply> = requests.iter().map(|request| submit(&group, request)).collect();
        let cleared = match replies[0] {
            ControlReply::Done(CommandReply::TenantCreated { tenant, .. }) => tenant,
            ref other => panic!("no tenant: {other:?}"),
        };
        let clear = ControlRequest::Submit {
            request: fresh_request(),
            reason: Reason::default(),
            command: Command::ClearTenant { tenant: cleared },
        };
        submit(&group, &clear);
        let mut before = group.map(group.leader());
        // The node is silent: its lease runs out and its slots are taken from it, before or after the restart.
        eventually("the map rests", || {
            let now = group.map(group.leader());
            let rests = now == before
                && now.members.values().all(|one| one.state != kvhive_protocol::MemberState::Up);
            before = now;
            rests
        });
        eventually("all have it", || (0..3).all(|at| group.map(at) == before));
        group.stop_all();
        for at in 0..3 {
            group.start(at);
        }
        group.wait_until_it_serves();
        eventually("all have applied what they knew", || {
            (0..3).all(|at| group.map(at).epoch >= before.epoch)
        });
        for at in 0..3 {
            assert_eq!(group.map(at), before, "coordinator {at}, a snapshot every {snapshot_every} entries");
        }
        assert_eq!(before.tenants[&cleared].era, Era(2));
        assert_eq!(before.tenant("tenant-7").map(|(_, tenant)| tenant.secret), Some([7; 32]));
        let again: Vec<ControlReply> = requests.iter().map(|request| submit(&group, request)).collect();
        assert_eq!(again, replies, "a repeat after the restart is answered as before");
        assert_eq!(group.map(group.leader()).epoch, before.epoch);
        let next = submit(&group, &create("later", 99));
        let ControlReply::Done(CommandReply::TenantCreated { epoch, .. }) = next else {
            panic!("no tenant: {next:?}");
        };
        assert_eq!(epoch, Epoch(before.epoch.0 + 1));
    }
}

#[test]
fn a_coordinator_that_missed_everything_is_sent_a_snapshot() {
    let mut group = Group::with(3, |config| config.snapshot_every = 4);
    let behind = group.follower();
    group.stop(behind);
    for at in 1..=40 {
        submit(&group, &create(&format!("tenant-{at}"), at));
    }
    group.start(behind);
    eventually("it has caught up", || {
        group.status(behind).is_some_and(|status| status.epoch == group.map(group.leader()).epoch)
    });
    assert_eq!(group.map(behind), group.map(group.leader()));
}

#[test]
fn a_coordinator_whose_folder_was_emptied_catches_up_where_nothing_happens_and_votes_again() {
    let mut group = Group::of(3);
    for at in 1..=5 {
        submit(&group, &create(&format!("tenant-{at}"), at));
    }
    let (leader, emptied) = (group.leader(), group.follower());
    let before = group.map(leader);
    group.stop(emptied);
    std::fs::remove_dir_all(&group.configs[emptied].data_dir).expect("the folder is ours");
    group.start(emptied);
    eventually("it has caught up", || {
        let status = group.status(emptied);
        status.is_some_and(|status| status.epoch == before.epoch && status.role == "follower")
    });
    // Its vote is needed now.
    group.stop(leader);
    eventually("the two that are left elect one of them", || {
        group.status(emptied).is_some_and(|status| status.leader.is_some())
    });
    assert_eq!(group.map(group.leader()), before);
}

#[test]
fn an_emptied_coordinator_and_one_that_knows_little_elect_nobody() {
    let mut group = Group::of(3);
    let (leader, lags) = (group.leader(), group.follower());
    group.stop(lags);
    submit(&group, &create("kept", 7));
    let emptied = (0..3).find(|at| ![leader, lags].contains(at)).expect("there are three");
    group.stop_all();
    std::fs::remove_dir_all(&group.configs[emptied].data_dir).expect("the folder is ours");
    group.start(emptied);
    group.start(lags);
    // Elections are due every 300 to 600 ms.
    for _ in 0..100 {
        assert_eq!(group.status(emptied).and_then(|status| status.leader), None);
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    group.start(leader);
    group.wait_until_it_serves();
    let tenants = group.map(emptied).tenants;
    assert!(tenants.values().any(|tenant| tenant.name == "kept"), "{tenants:?}");
}

#[test]
fn a_log_is_refused_to_another_coordinator_or_cluster_and_left_as_it_is() {
    let mut group = Group::of(3);
    submit(&group, &create("kept", 7));
    let before = group.map(group.leader());
    group.stop_all();
    let configured = group.configs[0].clone();
    type Change = fn(&mut CoordinatorConfig);
    let changes: [(&str, Change); 3] = [
        ("renamed", |config| config.peers[0].name = "another".to_owned()),
        ("another's", |config| config.peer = 2),
        ("another cluster", |config| config.cluster_name = "theirs".to_owned()),
    ];
    for (what, change) in changes {
        let files = files_of(&configured.data_dir);
        let mut changed = configured.clone();
        change(&mut changed);
        match kvhive_coordinator::start(changed).map(|_| ()) {
            Err(CoordinatorError::Membership(error @ MembershipError::Mismatch { .. })) => {
                let said = error.to_string();
                for part in [
                    configured.data_dir.display().to_string().as_str(),
                    "log of coordinator coordinator-1 (peer 1) of cluster \"tried\"",
                    "configured is coordinator ",
                    "back",
                ] {
                    assert!(said.contains(part), "{what}: {part:?} is not in {said}");
                }
            }
            other => panic!("{what}: {other:?}"),
        }
        assert_eq!(files_of(&configured.data_dir), files, "{what}");
    }
    // Who the others are is in the log: the file may name fewer by now, or somebody else.
    group.configs[0].peers.truncate(1);
    group.configs[1].peers[2].name = "somebody-else".to_owned();
    for at in 0..3 {
        // Where they listen is not part of it: the admin API moves.
        group.configs[at].admin_listen.set_port(0);
        let handle = kvhive_coordinator::start(group.configs[at].clone()).expect("it is its own log");
        group.configs[at].admin_listen = handle.admin_address();
        group.adopt(at, handle);
    }
    group.wait_until_it_serves();
    eventually("what was known is known", || group.map(0).epoch == before.epoch);
    assert_eq!(group.map(0), before);
}

/// Returns every file's name and bytes.
fn files_of(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = std::fs::read_dir(folder).expect("the folder is there");
    let mut files: Vec<_> = entries
        .map(|entry| entry.expect("it can be listed").path())
        .map(|path| (path.clone(), std::fs::read(&path).expect("it can be read")))
        .collect();
    files.sort();
    files
}
