//! A node without rules: it keeps what it is told, and answers honestly unless a story has put a turn in its way.

use super::{CLUSTER, Nobody, PATIENCE, second};
use kvhive_protocol::data::{DataReply, DataRequest, FetchRequest, Fetched, MatchRequest, Stored};
use kvhive_protocol::explain::{Explained, Since};
use kvhive_protocol::frame::{Kind, encode_frame};
use kvhive_protocol::handshake::TokenKey;
use kvhive_protocol::share::{NotShared, ShareAnswer};
use kvhive_protocol::survey::Surveyed;
use kvhive_protocol::watch::BlockTier;
use kvhive_protocol::{BlockHeader, BlockKey, DeviceId, Epoch, TraceContext, WireError};
use kvhive_wire::{Connection, Listening};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

pub(crate) struct Node {
    pub(crate) address: String,
    state: Arc<Mutex<State>>,
    serving: JoinHandle<()>,
    /// Holds the address while it is stopped.
    stopped: Option<Nobody>,
}

struct State {
    device: DeviceId,
    epoch: Epoch,
    copies: u8,
    blocks: HashMap<BlockKey, (BlockHeader, Vec<u8>)>,
    turns: VecDeque<Turn>,
    always: Option<Turn>,
    /// How it answers who asks for guests.
    visited: Option<Turn>,
    requests: Vec<DataRequest>,
    /// Whose part each of them was.
    contexts: Vec<Option<TraceContext>>,
    connections: usize,
}

/// What an answer is made of: the request's number, and what an honest node would say.
#[derive(Clone)]
pub(crate) struct Honest {
    pub(crate) number: u64,
    pub(crate) reply: DataReply,
    pub(crate) payload: Vec<u8>,
}

/// What a node does with one request.
#[derive(Clone)]
pub(crate) enum Answer {
    Reply(DataReply, Vec<u8>),
    Refuse(WireError),
    /// These bytes, be they a frame or not; the connection stands.
    Bytes(Vec<u8>),
    /// These bytes, and the connection is closed.
    BytesAndClose(Vec<u8>),
    /// Nothing, and the connection stays open.
    Hang,
    /// A reply, after this time.
    Late(Duration, DataReply, Vec<u8>),
}

/// How a node answers one request.
#[derive(Clone)]
pub(crate) struct Turn(Arc<dyn Fn(Honest) -> Answer + Send + Sync>);

impl Turn {
    pub(crate) fn new(answer: impl Fn(Honest) -> Answer + Send + Sync + 'static) -> Turn {
        Turn(Arc::new(answer))
    }

    pub(crate) fn refuse(error: WireError) -> Turn {
        Turn::new(move |_| Answer::Refuse(error.clone()))
    }

    pub(crate) fn hang() -> Turn {
        Turn::new(|_| Answer::Hang)
    }

    pub(crate) fn late(wait: Duration) -> Turn {
        Turn::new(move |honest| Answer::Late(wait, honest.reply, honest.payload))
    }

    pub(crate) fn close() -> Turn {
        Turn::new(|_| Answer::BytesAndClose(Vec::new()))
    }

    /// Changes an honest answer to a fetch.
    pub(crate) fn fetched(change: impl Fn(&mut Vec<Fetched>, &mut Vec<u8>) + Send + Sync + 'static) -> Turn {
        Turn::new(move |mut honest| {
            let DataReply::Fetched { blocks, .. } = &mut honest.reply else { panic!("not a fetch") };
            change(blocks, &mut honest.payload);
            Answer::Reply(honest.reply, honest.payload)
        })
    }
}

/// Encodes a reply and its payload as they travel.
pub(crate) fn whole_frame(honest: &Honest) -> Vec<u8> {
    let mut bytes = Vec::new();
    let length = honest.payload.len() as u64;
    encode_frame(Kind::DataReply, honest.number, &honest.reply, length, &mut bytes).expect("within limits");
    bytes.extend_from_slice(&honest.payload);
    bytes
}

impl Node {
    pub(crate) async fn start(device: DeviceId, token: &[u8]) -> Node {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let state = State {
            device,
            epoch: Epoch(1),
            copies: 1,
            blocks: HashMap::new(),
            turns: VecDeque::new(),
            always: None,
            visited: None,
            requests: Vec::new(),
            contexts: Vec::new(),
            connections: 0,
        };
        let state = Arc::new(Mutex::new(state));
        let serving = tokio::spawn(serve(listener, token.to_vec(), state.clone()));
        Node { address, state, serving, stopped: None }
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

    /// Answers every request for guests so, and these alone.
    pub(crate) fn visited(&self, turn: Turn) {
        self.state().visited = Some(turn);
    }

    /// Answers honestly again.
    pub(crate) fn behave(&self) {
        let mut state = self.state();
        state.always = None;
        state.turns.clear();
    }

    /// Says so many copies of each block that it is told to store.
    pub(crate) fn say_copies(&self, copies: u8) {
        self.state().copies = copies;
    }

    /// Answers by this epoch.
    pub(crate) fn set_epoch(&self, epoch: Epoch) {
        self.state().epoch = epoch;
    }

    /// Takes over what another node holds.
    pub(crate) fn copy_from(&self, other: &Node) {
        let blocks = other.state().blocks.clone();
        self.state().blocks.extend(blocks);
    }

    /// Returns whose part each request was.
    pub(crate) fn contexts(&self) -> Vec<Option<TraceContext>> {
        self.state().contexts.clone()
    }

    pub(crate) fn requests(&self) -> Vec<DataRequest> {
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

    /// Closes everything and listens anew at the same address, holding what it held.
    pub(crate) async fn restart(&mut self) {
        self.stop().await;
        self.stopped = None;
        let listener = TcpListener::bind(&self.address).await.expect("the port is free again");
        self.serving = tokio::spawn(serve(listener, super::TOKEN.to_vec(), self.state.clone()));
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().expect("no story panics holding it")
}

async fn serve(listener: TcpListener, token: Vec<u8>, state: Arc<Mutex<State>>) {
    // Ends with this future, and all conversations with it.
    let mut conversations = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        lock(&state).connections += 1;
        conversations.spawn(converse(stream, token.clone(), state.clone()));
    }
}

async fn converse(stream: TcpStream, token: Vec<u8>, state: Arc<Mutex<State>>) {
    let (stream, mut raw) = second(stream);
    let listening = Listening {
        token: TokenKey::new(&token),
        cluster: Some(CLUSTER),
        tls: None,
        levels: Default::default(),
    };
    let Ok((mut connection, _)) = Connection::accept(stream, &listening, PATIENCE).await else { return };
    while let Ok(frame) = connection.receive().await {
        let (context, request) = if frame.kind == Kind::TracedRequest {
            let Ok((context, request)) = connection.message() else { return };
            (Some(context), request)
        } else {
            let Ok(request) = connection.message::<DataRequest>() else { return };
            (None, request)
        };
        lock(&state).contexts.push(context);
        let mut payload = vec![0; frame.payload_bytes as usize];
        if connection.read_payload(&mut payload).await.is_err() {
            return;
        }
        let answer = lock(&state).answer(frame.request, request, payload);
        let sent = match answer {
            Answer::Reply(reply, payload) => {
                connection.send(Kind::DataReply, frame.request, &reply, &[&payload]).await.is_ok()
            }
            Answer::Refuse(error) => connection.refuse(frame.request, &error).await.is_ok(),
            Answer::Bytes(bytes) => raw.write_all(&bytes).await.is_ok(),
            Answer::BytesAndClose(bytes) => {
                // Whoever has read enough of it may be gone.
                let _ = raw.write_all(&bytes).await;
                false
            }
            Answer::Hang => true,
            Answer::Late(wait, reply, payload) => {
                tokio::time::sleep(wait).await;
                connection.send(Kind::DataReply, frame.request, &reply, &[&payload]).await.is_ok()
            }
        };
        if !sent {
            return;
        }
    }
}

impl State {
    fn answer(&mut self, number: u64, request: DataRequest, payload: Vec<u8>) -> Answer {
        self.requests.push(request.clone());
        let turn = match request {
            DataRequest::Guest(_) => self.visited.clone(),
            _ => self.turns.pop_front().or_else(|| self.always.clone()),
        };
        // A node that refuses or hangs does not do the work either.
        let (reply, payload) = match request {
            DataRequest::Match(request) => (self.matched(&request), Vec::new()),
            DataRequest::Fetch(request) => self.fetched(&request),
            // It has others' blocks where a story has copied them to it.
            DataRequest::Guest(request) => self.fetched(&request.fetch),
            DataRequest::Release(request) => {
                assert_eq!(request.device, self.device);
                let here = request.keys.iter().filter(|key| self.blocks.contains_key(key)).count();
                (DataReply::Released { epoch: self.epoch, blocks: here as u32 }, Vec::new())
            }
            DataRequest::Watch(_) => {
                let answer = kvhive_protocol::watch::WatchAnswer::Gap { stream: None };
                (DataReply::Watched { epoch: self.epoch, answer }, Vec::new())
            }
            DataRequest::Strategies(_) => {
                (DataReply::Strategies { epoch: self.epoch, reports: Vec::new() }, Vec::new())
            }
            DataRequest::Survey(request) => {
                assert_eq!(request.device, self.device);
                let mut keys = request.keys.iter();
                let runs = request.runs.iter().map(|run| {
                    let run: Vec<BlockKey> = keys.by_ref().take(run.keys as usize).collect();
                    let covered = run.iter().take_while(|key| self.blocks.contains_key(key)).count() as u32;
                    Surveyed { covered, in_memory: covered }
                });
                (DataReply::Surveyed { epoch: self.epoch, runs: runs.collect() }, Vec::new())
            }
            DataRequest::Explain(request) => {
                assert_eq!(request.device, self.device);
                let blocks = request.keys.iter().map(|key| self.explained(&key)).collect();
                (DataReply::Explained { epoch: self.epoch, lapse: None, blocks }, Vec::new())
            }
            DataRequest::Trace(_) => {
                let answer = kvhive_protocol::trace::TraceAnswer::Off;
                (DataReply::Traced { epoch: self.epoch, answer }, Vec::new())
            }
            DataRequest::Recall(_) => {
                (DataReply::Recalled { epoch: self.epoch, parts: Vec::new() }, Vec::new())
            }
            // Real nodes answer for names, in the stories of the Redis port.
            DataRequest::Names(_)
            | DataRequest::Receive(_)
            | DataRequest::Packed(_)
            | DataRequest::Pair(_)
            | DataRequest::Pull(_) => {
                panic!("no story of these asks for that")
            }
            DataRequest::Lend(_) | DataRequest::Gather(_) | DataRequest::Scatter(_) => {
                panic!("no story of these has a GPU")
            }
            DataRequest::Share(request) => {
                let answer = ShareAnswer::Not(NotShared::Elsewhere);
                (DataReply::Shared { epoch: request.epoch, answer }, Vec::new())
            }
            DataRequest::Look(_) | DataRequest::Done(_) | DataRequest::Carry(_) => {
                panic!("nobody looks at another host's memory")
            }
            DataRequest::Store(request) => {
                let headers = request.blocks.iter().map(|block| block.header);
                (
                    if turn.is_none() {
                        self.stored(headers, &payload)
                    } else {
                        self.would_store(&request.blocks)
                    },
                    Vec::new(),
                )
            }
        };
        match turn {
            Some(turn) => (turn.0)(Honest { number, reply, payload }),
            None => Answer::Reply(reply, payload),
        }
    }

    fn explained(&self, key: &BlockKey) -> Explained {
        match self.blocks.get(key) {
            Some((header, _)) => Explained::Here {
                tier: BlockTier::Host,
                codec: header.codec,
                bytes: header.payload_bytes,
                fingerprint: header.fingerprint,
                slot: key.slot(),
                pinned: false,
            },
            None => Explained::Unknown { since: Since::Began, for_s: 100 },
        }
    }

    fn matched(&self, request: &MatchRequest) -> DataReply {
        assert_eq!(request.device, self.device);
        let mut keys = request.keys.iter();
        let covered = request.runs.iter().map(|run| {
            let run: Vec<BlockKey> = keys.by_ref().take(run.keys as usize).collect();
            run.iter().take_while(|key| self.blocks.contains_key(key)).count() as u32
        });
        DataReply::Matched { epoch: self.epoch, covered: covered.collect() }
    }

    fn fetched(&self, request: &FetchRequest) -> (DataReply, Vec<u8>) {
        assert_eq!(request.device, self.device);
        let mut payload = Vec::new();
        let blocks = request.keys.iter().map(|key| match self.blocks.get(&key) {
            Some((header, bytes)) => {
                payload.extend_from_slice(bytes);
                Fetched::Hit(*header)
            }
            None => Fetched::Miss,
        });
        let blocks = blocks.collect();
        (DataReply::Fetched { epoch: self.epoch, blocks }, payload)
    }

    fn stored(&mut self, headers: impl Iterator<Item = BlockHeader>, mut payload: &[u8]) -> DataReply {
        let mut blocks = Vec::new();
        for header in headers {
            let (bytes, rest) = payload.split_at(header.payload_bytes as usize);
            payload = rest;
            let already = self.blocks.insert(header.key, (header, bytes.to_vec())).is_some();
            blocks.push(Stored::Kept { copies: self.copies, already });
        }
        DataReply::Stored { epoch: self.epoch, blocks }
    }

    fn would_store(&self, blocks: &[kvhive_protocol::data::StoreBlock]) -> DataReply {
        let kept = Stored::Kept { copies: self.copies, already: false };
        DataReply::Stored { epoch: self.epoch, blocks: vec![kept; blocks.len()] }
    }
}
