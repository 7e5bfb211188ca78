//! Who may speak raft, and what one that may not can do to those that may.

use crate::group::{Group, TOKEN, eventually, fresh_request, submit};
use kvhive_protocol::control::{Command, CommandReply, ControlReply, ControlRequest};
use kvhive_protocol::frame::Kind;
use kvhive_protocol::handshake::{Role, TokenKey};
use kvhive_protocol::{Reason, TenantRules, WireError};
use kvhive_wire::{Fault, Identity};
use std::time::Duration;

#[test]
fn a_coordinator_with_another_token_takes_no_part_and_disturbs_nobody() {
    let mut group = Group::of(3);
    // Somebody else starts in the place of one of them.
    group.stop(2);
    std::fs::remove_dir_all(&group.configs[2].data_dir).expect("the folder is ours");
    group.configs[2].token = b"a token that nobody else here has".to_vec();
    let led = group.leader();
    let term = group.status(led).expect("it answers").term;
    group.start(2);
    // Longer than several election timeouts: by then it has asked for votes again and again.
    std::thread::sleep(Duration::from_secs(2));
    let after = group.status(led).expect("it answers");
    assert_eq!((after.role.as_str(), after.term), ("leader", term));
    let stranger = group.admin(2);
    let shown = crate::http::ask(
        stranger.address,
        "GET",
        "/v1/cluster?consistency=stale",
        &[("authorization", "Bearer a token that nobody else here has")],
        b"",
    );
    assert_eq!(shown.status, 200, "{shown:?}");
    let shown = shown.json();
    assert_eq!((&shown["leader"], &shown["cluster"]), (&serde_json::Value::Null, &serde_json::Value::Null));
    assert_eq!(stranger.get_open("/readyz").status, 503);
}

#[test]
fn only_coordinators_may_speak_raft() {
    let group = Group::of(1);
    let tries = [Role::Coordinator, Role::Node, Role::Client].map(|role| {
        let refused = speak_raft(&group, 0, role, 1, b"");
        matches!(refused, Ok(WireError::Forbidden { .. }))
    });
    assert_eq!(tries, [false, true, true]);
    // Others may send no payload at all, whatever it is.
    let large = speak_raft(&group, 0, Role::Client, 1, &[0; 100]);
    assert!(matches!(large, Ok(WireError::TooLarge { .. })), "{large:?}");
}

#[test]
fn garbage_in_the_name_of_a_peer_is_counted_and_changes_nothing() {
    let group = Group::of(3);
    let (leader, follower) = (group.leader(), group.follower());
    let term = group.status(leader).expect("it answers").term;
    let sender = group.configs[follower].peer;
    let before = ignored(&group, leader);
    // What is no messages, or too many of them, ends its connection; 1 + 256 that cannot be decoded are left out.
    for garbage in [&b"abc"[..], &[0xFF; 64], &[4, 0, 0, 0, 1, 2, 3, 4], &[0; 1024], &[0; 1028]] {
        assert!(speak_raft(&group, leader, Role::Coordinator, sender, garbage).is_err());
    }
    eventually("all of them are counted", || ignored(&group, leader) == before + 257);
    let request = ControlRequest::Submit {
        request: fresh_request(),
        reason: Reason::default(),
        command: Command::CreateTenant {
            name: "still-here".to_owned(),
            secret: [0; 32],
            rules: TenantRules::default(),
        },
    };
    assert!(matches!(submit(&group, &request), ControlReply::Done(CommandReply::TenantCreated { .. })));
    assert_eq!((group.leader(), group.status(leader).map(|own| own.term)), (leader, Some(term)));
}

/// Sends one frame of raft messages and returns what it is refused with, if anything comes back.
fn speak_raft(group: &Group, at: usize, role: Role, sender: u64, payload: &[u8]) -> Result<WireError, Fault> {
    let limit = Duration::from_millis(500);
    let identity = Identity {
        token: TokenKey::new(TOKEN.as_bytes()),
        role,
        sender,
        cluster: None,
        tls: None,
        levels: Default::default(),
    };
    group.run(async {
        let mut connection = group.connect(at, &identity).await?;
        connection.send(Kind::Raft, 0, &(), &[payload]).await?;
        let answer = tokio::time::timeout(limit, connection.receive()).await;
        let frame = answer.map_err(|_| Fault::Timeout(limit))??;
        assert_eq!(frame.kind, Kind::Refused);
        connection.message::<WireError>()
    })
}

/// Returns how many raft messages this coordinator has ignored.
fn ignored(group: &Group, at: usize) -> u64 {
    let metrics = group.admin(at).get("/metrics").body;
    let line =
        metrics.lines().find_map(|line| line.strip_prefix("kvhive_coordinator_raft_messages_ignored_total "));
    line.and_then(|value| value.parse().ok()).expect("it is among the metrics")
}
