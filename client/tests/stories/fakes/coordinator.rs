//! A coordinator without raft: it holds one map, and answers from it unless a story has put a turn in its way.

use super::{CLUSTER, Nobody, PATIENCE, TOKEN};
use kvhive_protocol::Era;
use kvhive_protocol::control::{Command, CommandReply, ControlReply, ControlRequest};
use kvhive_protocol::frame::Kind;
use kvhive_protocol::handshake::TokenKey;
use kvhive_protocol::map::Tenant;
use kvhive_protocol::{ClusterMap, TenantId};
use kvhive_wire::{Connection, Listening};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

pub(crate) struct Coordinator {
    pub(crate) address: String,
    state: Arc<Mutex<State>>,
    serving: JoinHandle<()>,
    /// Holds the address while it is stopped.
    stopped: Option<Nobody>,
}

struct State {
    map: ClusterMap,
    turns: VecDeque<Turn>,
    always: Option<Turn>,
    requests: Vec<ControlRequest>,
    connections: usize,
}

/// What a coordinator says instead of what it knows.
#[derive(Clone)]
pub(crate) enum Turn {
    Reply(Box<ControlReply>),
    /// Nothing; the connection stays open.
    Hang,
}

impl Turn {
    pub(crate) fn reply(reply: ControlReply) -> Turn {
        Turn::Reply(Box::new(reply))
    }
}

impl Coordinator {
    pub(crate) async fn start(map: ClusterMap) -> Coordinator {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let state = State { map, turns: VecDeque::new(), always: None, requests: Vec::new(), connections: 0 };
        let state = Arc::new(Mutex::new(state));
        let serving = tokio::spawn(serve(listener, state.clone()));
        Coordinator { address, state, serving, stopped: None }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Answers the next request so; several in order.
    pub(crate) fn next(&self, turn: Turn) {
        self.state().turns.push_back(turn);
    }

    /// Answers every request so that has no turn of its own.
    pub(crate) fn always(&self, turn: Turn) {
        self.state().always = Some(turn);
    }

    pub(crate) fn map(&self) -> ClusterMap {
        self.state().map.clone()
    }

    /// Changes the map, which is of the next epoch then.
    pub(crate) fn change(&self, change: impl FnOnce(&mut ClusterMap)) {
        let mut state = self.state();
        state.map.epoch = state.map.epoch.next();
        change(&mut state.map);
    }

    pub(crate) fn requests(&self) -> Vec<ControlRequest> {
        self.state().requests.clone()
    }

    pub(crate) fn asked(&self) -> usize {
        self.state().requests.len()
    }

    pub(crate) fn connections(&self) -> usize {
        self.state().connections
    }

    /// Closes everything: who connects is refused.
    pub(crate) async fn stop(&mut self) {
        self.serving.abort();
        let ended = (&mut self.serving).await;
        assert!(ended.is_err_and(|error| error.is_cancelled()));
        self.stopped = Some(Nobody::at(self.address.parse().expect("it was bound")));
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().expect("no story panics holding it")
}

async fn serve(listener: TcpListener, state: Arc<Mutex<State>>) {
    // Ends with this future, and all conversations with it.
    let mut conversations = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        lock(&state).connections += 1;
        conversations.spawn(converse(stream, state.clone()));
    }
}

async fn converse(stream: TcpStream, state: Arc<Mutex<State>>) {
    let listening = Listening {
        token: TokenKey::new(TOKEN),
        cluster: Some(CLUSTER),
        tls: None,
        levels: Default::default(),
    };
    let Ok((mut connection, _)) = Connection::accept(stream, &listening, PATIENCE).await else { return };
    while let Ok(frame) = connection.receive().await {
        let Ok(request) = connection.message::<ControlRequest>() else { return };
        let Some(reply) = lock(&state).answer(request) else { continue };
        if connection.send(Kind::ControlReply, frame.request, &reply, &[]).await.is_err() {
            return;
        }
    }
}

impl State {
    fn answer(&mut self, request: ControlRequest) -> Option<ControlReply> {
        self.requests.push(request.clone());
        match self.turns.pop_front().or_else(|| self.always.clone()) {
            Some(Turn::Reply(reply)) => return Some(*reply),
            Some(Turn::Hang) => return None,
            None => {}
        }
        Some(match request {
            ControlRequest::FetchMap { have, .. } => {
                ControlReply::Map((self.map.epoch > have).then(|| Box::new(self.map.clone())))
            }
            ControlRequest::Submit { command: Command::CreateTenant { name, secret, rules }, .. } => {
                let tenant = TenantId(self.map.tenants.len() as u32 + 1);
                self.map.epoch = self.map.epoch.next();
                self.map.tenants.insert(tenant, Tenant { name, era: Era(1), secret, rules });
                ControlReply::Done(CommandReply::TenantCreated { tenant, epoch: self.map.epoch })
            }
            other => panic!("no story asks {other:?}"),
        })
    }
}
