//! What a group knows outlives all of its processes.

use crate::group::{Group, eventually, fresh_request, submit};
use kvhive_protocol::control::{Command, CommandReply, ControlReply, ControlRequest};
use kvhive_protocol::{Epoch, Era};

fn create(name: &str, secret: u8) -> ControlRequest {
    ControlRequest::Submit {
        request: fresh_request(),
        command: Command::CreateTenant { name: name.to_owned(), secret: [secret; 32] },
    }
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
