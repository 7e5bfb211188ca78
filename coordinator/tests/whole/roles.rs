//! The control plane from outside: a role may ask what is its own, and nothing is heard before the token is proved.

use crate::group::{Group, fresh_request};
use kvhive_protocol::control::{Command, ControlReply, ControlRequest, Heartbeat, Registration};
use kvhive_protocol::data::Ack;
use kvhive_protocol::handshake::{Role, TokenKey};
use kvhive_protocol::{ClusterId, Epoch, Generation, MemberId, Reason, TenantId, TenantRules, WireError};
use kvhive_wire::{Fault, Identity};

fn submit(command: Command) -> ControlRequest {
    ControlRequest::Submit { request: fresh_request(), command, reason: Reason::default() }
}

fn register() -> Registration {
    Registration {
        request: fresh_request(),
        name: "sneaked-in".to_owned(),
        data_address: "127.0.0.1:1".to_owned(),
        metrics_address: "127.0.0.1:2".to_owned(),
        labels: Default::default(),
        devices: Vec::new(),
        codec: Default::default(),
        speaks: kvhive_protocol::Level::NEWEST,
    }
}

#[test]
fn a_role_that_is_too_weak_is_told_so_and_nothing_changes() {
    let group = Group::of(1);
    let before = group.map(0);
    let beat = || {
        ControlRequest::Heartbeat(Heartbeat {
            member: MemberId(1),
            generation: Generation(1),
            epoch: Epoch(1),
            devices: Vec::new(),
        })
    };
    let down = || submit(Command::MarkDown { member: MemberId(1), generation: Generation(1) });
    let start_again = || {
        submit(Command::Bootstrap {
            cluster: ClusterId(1),
            name: "taken-over".to_owned(),
            settings: crate::group::settings(),
            default_secret: [0; 32],
            scaling: Default::default(),
            coordinators: Vec::new(),
            level: kvhive_protocol::Level::NEWEST,
        })
    };
    let create = || {
        submit(Command::CreateTenant {
            name: "sneaked-in".to_owned(),
            secret: [0; 32],
            rules: TenantRules::default(),
        })
    };
    let place = || submit(Command::PlaceSlots { based_on: before.epoch, changes: Vec::new() });
    let tries = [
        (Role::Client, ControlRequest::Register(register())),
        (Role::Client, submit(Command::Register(register()))),
        (Role::Client, beat()),
        (Role::Client, down()),
        (Role::Client, place()),
        (Role::Client, start_again()),
        (Role::Client, submit(Command::SetCoordinators { addresses: vec!["elsewhere:1".to_owned()] })),
        (Role::Client, submit(Command::Leave { member: MemberId(1), generation: Generation(1) })),
        (Role::Client, ControlRequest::Overview),
        (Role::Node, create()),
        (Role::Node, submit(Command::ClearTenant { tenant: TenantId(1) })),
        (Role::Node, submit(Command::RotateSecret { tenant: TenantId(1), secret: [1; 32] })),
        (Role::Node, submit(Command::DeleteTenant { tenant: TenantId(2) })),
        (Role::Node, submit(Command::RemoveMember { member: MemberId(1) })),
        (Role::Node, submit(Command::SetAck { ack: Ack::Primary })),
        (Role::Node, submit(Command::SetCoordinators { addresses: vec!["elsewhere:1".to_owned()] })),
        (Role::Node, down()),
        (Role::Node, place()),
        (Role::Node, start_again()),
        (Role::Node, submit(Command::Register(register()))),
        (Role::Node, ControlRequest::Overview),
    ];
    for (role, request) in tries {
        match group.ask(0, role, &request) {
            ControlReply::Failed(WireError::Forbidden { role: told, .. }) => {
                assert_eq!(told, role.to_string())
            }
            other => panic!("{role} was not refused {request:?}: {other:?}"),
        }
    }
    assert_eq!(group.map(0), before);
}

#[test]
fn idle_strangers_keep_nobody_out() {
    let group = Group::of(1);
    let (raft, admin) = (group.configs[0].raft_listen, group.configs[0].admin_listen);
    // More than there are places for, and all of them stay.
    let mut strangers: Vec<std::net::TcpStream> = Vec::new();
    for _ in 0..100 {
        strangers.push(std::net::TcpStream::connect(raft).expect("it listens"));
        strangers.push(std::net::TcpStream::connect(admin).expect("it listens"));
    }
    for _ in 0..10 {
        let known = group.ask(0, Role::Client, &ControlRequest::Status);
        assert!(matches!(known, ControlReply::Status(_)), "{known:?}");
        assert_eq!(group.admin(0).get_open("/healthz").status, 200);
    }
}

#[test]
fn a_wrong_token_or_another_cluster_is_turned_away_in_the_handshake() {
    let group = Group::of(1);
    let ours = group.map(0).cluster;
    let knock = |token: &[u8], cluster| {
        let identity = Identity {
            token: TokenKey::new(token),
            role: Role::Coordinator,
            sender: 1,
            cluster,
            tls: None,
            levels: Default::default(),
        };
        group.run(async { group.connect(0, &identity).await.map(|_| ()) })
    };
    let token = crate::group::TOKEN.as_bytes();
    for wrong in [&b""[..], b"wrong", &token[1..]] {
        let refused = knock(wrong, None);
        assert!(matches!(refused, Err(Fault::Refused(WireError::Unauthorized))), "{refused:?}");
    }
    let stranger = knock(token, Some(ClusterId(ours.0 ^ 1)));
    assert!(matches!(stranger, Err(Fault::Refused(WireError::WrongCluster))), "{stranger:?}");
    assert!(knock(token, Some(ours)).is_ok());
}
