//! Coordinators that are down, hang, do not lead or refuse: who is asked next, and when no one is.

use crate::fakes::{Cluster, ControlTurn, Coordinator, Nobody, PATIENCE, SHORT, TOKEN, Text, in_patience};
use kvhive_client::{Client, ClientConfig, ClientError};
use kvhive_protocol::WireError;
use kvhive_protocol::control::{ControlReply, ControlRequest};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

fn of(cluster: &Cluster, coordinators: &[&str]) -> ClientConfig {
    ClientConfig {
        coordinators: coordinators.iter().map(|address| (*address).to_owned()).collect(),
        ..cluster.config()
    }
}

#[tokio::test]
async fn the_next_coordinator_is_asked_when_the_first_is_down() {
    let cluster = Cluster::start(1, 1).await;
    let nobody = Nobody::somewhere();
    let config = of(&cluster, &[&nobody.address, &cluster.coordinator.address]);
    let client = in_patience(Client::connect(config)).await.expect("one coordinator answers");
    // It is remembered: a refresh asks nobody else first.
    client.refresh().await.expect("it answers");
    assert_eq!(cluster.coordinator.connections(), 1);
}

#[tokio::test]
async fn the_next_coordinator_is_asked_when_the_first_hangs() {
    let cluster = Cluster::start(1, 1).await;
    let silent = Coordinator::start(cluster.coordinator.map()).await;
    silent.always(ControlTurn::Hang);
    let config = of(&cluster, &[&silent.address, &cluster.coordinator.address]);
    let client = in_patience(Client::connect(config)).await.expect("one coordinator answers");
    assert_eq!(silent.asked(), 1);
    Text::of(&client, 1).store().await;
}

#[tokio::test]
async fn a_short_deadline_is_shared_among_the_coordinators() {
    let cluster = Cluster::start(1, 1).await;
    let silent = Coordinator::start(cluster.coordinator.map()).await;
    silent.always(ControlTurn::Hang);
    let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let mute = mute.local_addr().map(|address| (address.to_string(), mute)).expect("it is bound");
    let config = ClientConfig {
        // Shorter than a coordinator may take where there is time.
        request_timeout: Duration::from_millis(900),
        connect_timeout: Duration::from_millis(900),
        ..of(&cluster, &[&silent.address, &mute.0, &cluster.coordinator.address])
    };
    in_patience(Client::connect(config)).await.expect("one coordinator answers");
}

#[tokio::test]
async fn a_cluster_that_has_no_map_yet_is_asked_again() {
    let cluster = Cluster::start(1, 1).await;
    for _ in 0..3 {
        cluster.coordinator.next(ControlTurn::reply(ControlReply::Map(None)));
    }
    let client = cluster.client().await;
    assert_eq!(*client.map(), cluster.coordinator.map());
    cluster.coordinator.always(ControlTurn::reply(ControlReply::Map(None)));
    let config = ClientConfig { request_timeout: SHORT, connect_timeout: SHORT, ..cluster.config() };
    let error = in_patience(Client::connect(config)).await.err().expect("there is none");
    assert_eq!(error.to_string(), "the cluster has no map yet");
}

#[tokio::test]
async fn without_a_coordinator_the_error_names_who_was_asked() {
    let cluster = Cluster::start(1, 1).await;
    let (first, second) = (Nobody::somewhere(), Nobody::somewhere());
    let short = ClientConfig {
        request_timeout: SHORT,
        connect_timeout: SHORT,
        ..of(&cluster, &[&first.address, &second.address])
    };
    let begun = Instant::now();
    let error = in_patience(Client::connect(short)).await.err().expect("nobody is there");
    assert!(begun.elapsed() < PATIENCE / 2);
    let ClientError::Unreachable { addresses, last, .. } = error else { panic!("{error}") };
    assert_eq!(addresses, [&first.address[..], &second.address]);
    assert!(last.contains("refused"), "{last}");
}

#[tokio::test]
async fn a_wrong_token_is_refused_once_and_the_error_says_what_to_do() {
    let cluster = Cluster::start(1, 1).await;
    let wrong = ClientConfig { token: b"a wrong token".to_vec(), ..cluster.config() };
    let error = in_patience(Client::connect(wrong)).await.err().expect("it is wrong");
    assert!(matches!(error, ClientError::Refused(WireError::Unauthorized)));
    assert_eq!(
        error.to_string(),
        "authentication failed: the token is missing or wrong; give this process the token of the cluster's token file"
    );
    assert_eq!((cluster.coordinator.connections(), cluster.coordinator.asked()), (1, 0));
}

#[tokio::test]
async fn a_change_follows_the_hint_to_the_leader_under_one_request_id() {
    let cluster = Cluster::start(1, 1).await;
    let follower = Coordinator::start(cluster.coordinator.map()).await;
    let client =
        in_patience(Client::connect(of(&cluster, &[&follower.address, &cluster.coordinator.address]))).await;
    let client = client.expect("the follower answers");
    let leader = Some(cluster.coordinator.address.clone());
    follower.next(ControlTurn::reply(ControlReply::Failed(WireError::NotLeader { leader })));

    let begun = Instant::now();
    let tenant = in_patience(client.create_tenant("another")).await.expect("the leader does it");

    assert!(begun.elapsed() < PATIENCE / 2);
    assert_eq!(client.map().tenant("another").expect("the map is new").0, tenant);
    let submitted = |coordinator: &Coordinator| {
        let requests = coordinator.requests().into_iter();
        let ids = requests.filter_map(|request| match request {
            ControlRequest::Submit { request, .. } => Some(request),
            _ => None,
        });
        ids.collect::<Vec<_>>()
    };
    let ids = submitted(&follower);
    assert_eq!(ids.len(), 1);
    assert_eq!(submitted(&cluster.coordinator), ids);
}

#[tokio::test]
async fn coordinators_that_point_at_each_other_are_not_asked_in_a_storm() {
    let cluster = Cluster::start(1, 1).await;
    let other = Coordinator::start(cluster.coordinator.map()).await;
    let config = ClientConfig {
        request_timeout: SHORT,
        ..of(&cluster, &[&other.address, &cluster.coordinator.address])
    };
    let client = in_patience(Client::connect(config)).await.expect("both answer");
    let hint = |leader: &str| {
        ControlTurn::reply(ControlReply::Failed(WireError::NotLeader { leader: Some(leader.to_owned()) }))
    };
    other.always(hint(&cluster.coordinator.address));
    cluster.coordinator.always(hint(&other.address));
    let error = in_patience(client.refresh()).await.expect_err("nobody leads");
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
    // Two hints are followed at once, then each try waits longer than the one before.
    let asked = other.asked() + cluster.coordinator.asked();
    assert!(asked <= 16, "asked {asked} times");
}

#[tokio::test]
async fn a_change_of_unknown_outcome_is_repeated_under_its_request_id() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    cluster.coordinator.next(ControlTurn::reply(ControlReply::Failed(WireError::OutcomeUnknown)));
    cluster.coordinator.next(ControlTurn::reply(ControlReply::Failed(WireError::busy("proposals"))));
    in_patience(client.create_tenant("another")).await.expect("the third time");
    let ids: Vec<_> = cluster
        .coordinator
        .requests()
        .into_iter()
        .filter_map(|request| match request {
            ControlRequest::Submit { request, .. } => Some(request),
            _ => None,
        })
        .collect();
    assert_eq!(ids, [ids[0]; 3]);
}

#[tokio::test]
async fn a_change_that_was_made_is_no_error_when_the_map_cannot_be_fetched_after_it() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.hurried_client().await;
    let done = kvhive_protocol::control::CommandReply::TenantCreated {
        tenant: kvhive_protocol::TenantId(5),
        epoch: kvhive_protocol::Epoch(2),
    };
    cluster.coordinator.next(ControlTurn::reply(ControlReply::Done(done)));
    cluster.coordinator.always(ControlTurn::Hang);
    let tenant = in_patience(client.create_tenant("another")).await.expect("it was created");
    assert_eq!(tenant, kvhive_protocol::TenantId(5));
}

#[tokio::test]
async fn a_refused_change_is_not_repeated() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let asked = cluster.coordinator.asked();
    let why = WireError::rejected(format_args!("tenant default exists"));
    let rejected = kvhive_protocol::control::CommandReply::Rejected(why.clone());
    cluster.coordinator.next(ControlTurn::reply(ControlReply::Done(rejected)));
    let error = in_patience(client.create_tenant("default")).await.expect_err("it exists");
    assert!(matches!(error, ClientError::Refused(error) if error == why));
    assert_eq!(cluster.coordinator.asked(), asked + 1);
}

#[tokio::test]
async fn another_answer_than_the_question_asks_for_is_an_error() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    cluster.coordinator.next(ControlTurn::reply(ControlReply::Fenced));
    let error = in_patience(client.refresh()).await.expect_err("a client has no lease");
    assert!(error.to_string().contains("unexpected answer"), "{error}");
}

#[tokio::test]
async fn reads_go_on_without_coordinators() {
    let mut cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let text = Text::of(&client, 4);
    text.store().await;
    cluster.coordinator.stop().await;
    text.fetch_all().await;
    assert_eq!(text.covered().await, (4, 0));
    assert_eq!(TOKEN, cluster.config().token);
}

#[tokio::test]
async fn coordinators_are_followed_to_where_the_map_has_them_and_the_first_ones_are_the_last_resort() {
    let mut cluster = Cluster::start(1, 1).await;
    let seed = Coordinator::start(cluster.coordinator.map()).await;
    let config = of(&cluster, &[&cluster.coordinator.address, &seed.address]);
    let client = in_patience(Client::connect(config)).await.expect("the first answers");
    let mut new = Coordinator::start(cluster.coordinator.map()).await;
    let there = Arc::new(vec![new.address.clone()]);
    for one in [&cluster.coordinator, &new, &seed] {
        one.change(|map| map.coordinators = there.clone());
    }
    in_patience(client.refresh()).await.expect("it says where the others are");
    cluster.coordinator.stop().await;
    in_patience(client.refresh()).await.expect("the new one answers");
    assert_eq!((new.asked(), seed.asked()), (1, 0), "who was named to begin with may be gone for good");
    new.stop().await;
    in_patience(client.refresh()).await.expect("the last one answers");
    assert_eq!(seed.asked(), 1);
}
