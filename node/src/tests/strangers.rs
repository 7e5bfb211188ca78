//! Who may ask a node what, and what one tenant learns of another: every verb by every role, and very many attempts at blocks and names
//! that are somebody else's. `KVHIVE_CROSS_TENANT` says how many (20,000), `KVHIVE_SEED` which.

use super::asker::{Asker, Block, kept, key};
use super::coordinator::{FakeCoordinator, TENANT};
use super::{KIB, Setup, TOKEN, eventually};
use crate::NodeHandle;
use kvhive_oracle::Random;
use kvhive_protocol::data::{
    Accept, Ack, DataReply, DataRequest, FetchRequest, Fetched, Hint, MatchRequest, ReleaseRequest, Run,
    StoreBlock, StoreRequest,
};
use kvhive_protocol::explain::{ExplainRequest, Explained};
use kvhive_protocol::frame::{FRAME_HEADER_BYTES, FrameHeader, FrameLimits, Kind, encode_frame};
use kvhive_protocol::handshake::{Challenge, Hello, Proof, Role, TokenKey, Welcome};
use kvhive_protocol::map::{ReplicaSet, Tenant};
use kvhive_protocol::names::{Life, NameOp, NameVerb, NamesAsk, NamesRequest, Target, When};
use kvhive_protocol::recall::RecallRequest;
use kvhive_protocol::survey::SurveyRequest;
use kvhive_protocol::trace::{SpanId, TraceAsk, TraceContext, TraceId, TraceRequest};
use kvhive_protocol::{
    BlockKey, DeviceId, Epoch, Era, KeyList, Layout, MemberId, SLOTS, TenantId, TenantRules, WireError, codec,
};
use kvhive_wire::Fault;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const OTHER: TenantId = TenantId(2);
const LIMIT: Duration = Duration::from_secs(20);
const FRAME: usize = 4 * KIB;
/// Blocks that the other tenant has stored: more than there is room for.
const STORED: u64 = 80;

const EVERYBODY: &[Role] = &[Role::Client, Role::Node, Role::Coordinator];
const CLIENTS: &[Role] = &[Role::Client];
const NODES: &[Role] = &[Role::Node];
const NOBODY: &[Role] = &[];

/// Who may ask what of a node. A verb that has no row here fails the test: whoever makes one decides whose it is.
const VERBS: [(&str, &[Role]); 24] = [
    ("Match", EVERYBODY),
    ("Fetch", EVERYBODY),
    ("Store", EVERYBODY),
    ("Store of a copy", NODES),
    ("Release", EVERYBODY),
    ("Strategies", EVERYBODY),
    ("Watch", EVERYBODY),
    ("Survey", EVERYBODY),
    ("Explain", EVERYBODY),
    ("Trace", EVERYBODY),
    ("Recall", EVERYBODY),
    ("Names", EVERYBODY),
    ("Share", EVERYBODY),
    ("Look", EVERYBODY),
    // Nothing is answered to it.
    ("Done", NOBODY),
    ("Carry", NODES),
    ("Receive", NODES),
    ("Pair", NODES),
    ("Lend", EVERYBODY),
    ("Gather", EVERYBODY),
    ("Scatter", EVERYBODY),
    ("Guest", CLIENTS),
    ("Pull", NODES),
    ("Packed", NODES),
];

/// An example of each verb, by its name.
fn verbs(member: MemberId) -> Vec<(String, DataRequest)> {
    let error = codec::decode::<DataRequest>(&[255; 4]).expect_err("there are not so many").to_string();
    let said = error.rsplit("i < ").next().unwrap_or_default();
    let digits: String = said.chars().take_while(char::is_ascii_digit).collect();
    let kinds: u32 = digits.parse().unwrap_or_else(|_| panic!("it says how many there are: {error}"));
    let mut all = Vec::new();
    for kind in 0..kinds {
        // What begins so and goes on with zeros is one of nearly every kind.
        let mut bytes = kind.to_le_bytes().to_vec();
        let zeros = (0..1024).find_map(|_| {
            bytes.push(0);
            codec::decode::<DataRequest>(&bytes).ok()
        });
        let (epoch, device, trace) = (Epoch(1), DeviceId::new(member, 0), TraceId::of_request("any"));
        let example = || match kind {
            8 => Some(DataRequest::Trace(TraceRequest { epoch, device, ask: TraceAsk::Newest(1) })),
            9 => Some(DataRequest::Recall(RecallRequest { epoch, device, trace })),
            _ => None,
        };
        let request = zeros.or_else(example);
        let mut request = request.unwrap_or_else(|| panic!("verb {kind} wants an example here"));
        let name = format!("{request:?}");
        let name = name.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned();
        match &mut request {
            DataRequest::Receive(request) | DataRequest::Packed(request) => request.store.copy = true,
            DataRequest::Store(request) => {
                let copy = StoreRequest { copy: true, ..request.clone() };
                all.push(("Store of a copy".to_owned(), DataRequest::Store(copy)));
            }
            _ => {}
        }
        all.push((name, request));
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_verb_is_answered_to_whom_the_table_says_and_to_no_stranger() {
    let (_coordinator, node) = Setup::default().one().await;
    let member = node.member().expect("it is a member");
    let verbs = verbs(member);
    let mut known: Vec<&str> = VERBS.iter().map(|(name, _)| *name).collect();
    let mut named: Vec<&str> = verbs.iter().map(|(name, _)| name.as_str()).collect();
    known.sort_unstable();
    named.sort_unstable();
    assert_eq!(named, known, "each verb has a row that says whose it is");
    for role in [Role::Client, Role::Node, Role::Coordinator] {
        for (name, request) in &verbs {
            let (_, whose) = VERBS.iter().find(|(known, _)| known == name).expect("it was looked for");
            let connected = Asker::connect_as(&node.data_address().to_string(), member, TOKEN, role).await;
            let mut asker = connected.expect("it knows the token");
            if whose.is_empty() {
                continue;
            }
            let answer = asker.exchange(request, &[]).await;
            let is_refused = matches!(answer, Err(Fault::Refused(WireError::Forbidden { .. })));
            assert_eq!(is_refused, !whose.contains(&role), "{role} asks {name}: {answer:?}");
        }
    }
    let wrong =
        Asker::connect_with(&node.data_address().to_string(), member, b"not a token of these tests").await;
    assert!(matches!(wrong, Err(Fault::Refused(WireError::Unauthorized))));
    for (name, request) in &verbs {
        let mut stranger = Raw::open(&node).await;
        stranger.say(Kind::DataRequest, request).await;
        stranger.hears_no_answer(name).await;
    }
}

/// A connection of somebody who sends whatever bytes.
struct Raw {
    stream: TcpStream,
}

/// What was said in a handshake that went well.
struct Shaken {
    hello: Hello,
    proof: Proof,
}

impl Raw {
    async fn open(node: &NodeHandle) -> Raw {
        Raw { stream: TcpStream::connect(node.data_address()).await.expect("it listens") }
    }

    async fn send(&mut self, bytes: &[u8]) {
        // Whoever has been turned away already need not be heard to the end.
        let _ = timeout(LIMIT, self.stream.write_all(bytes)).await.expect("it reads");
    }

    async fn say<T: Serialize>(&mut self, kind: Kind, message: &T) {
        self.send(&framed(kind, message)).await;
    }

    /// Returns the next frame; none at the end.
    async fn hear(&mut self) -> Option<(Kind, Vec<u8>, u64)> {
        let mut head = [0; FRAME_HEADER_BYTES];
        timeout(LIMIT, self.stream.read_exact(&mut head)).await.expect("in time").ok()?;
        let header = FrameHeader::decode(&head, FrameLimits::OPEN).expect("a node sends frames");
        let mut message = vec![0; header.message_bytes as usize];
        timeout(LIMIT, self.stream.read_exact(&mut message)).await.expect("in time").expect("it is whole");
        Some((header.kind, message, u64::from(header.payload_bytes)))
    }

    /// Hears a refusal, or nothing at all, and then the end.
    async fn hears_no_answer(&mut self, what: &str) {
        while let Some((kind, _, payload)) = self.hear().await {
            assert!(matches!(kind, Kind::Refused | Kind::Challenge), "{what} was answered by {kind:?}");
            assert_eq!(payload, 0, "{what}");
        }
    }

    /// Shakes hands by this token.
    async fn shake(&mut self, token: &[u8], nonce: [u8; 32]) -> Shaken {
        let hello = Hello::new(Role::Client, 0, None, nonce, Default::default());
        self.say(Kind::Hello, &hello).await;
        let (_, challenge, _) = self.hear().await.expect("it is challenged");
        let challenge: Challenge = codec::decode(&challenge).expect("a challenge");
        let proof = Proof { proof: TokenKey::new(token).client_proof(&hello, &challenge) };
        self.say(Kind::Proof, &proof).await;
        Shaken { hello, proof }
    }
}

fn framed<T: Serialize>(kind: Kind, message: &T) -> Vec<u8> {
    let mut frame = Vec::new();
    encode_frame(kind, 1, message, 0, &mut frame).expect("it is small");
    frame
}

/// Who attacks: one of another tenant, who knows the cluster's token and what the keys of the first look like, and a stranger.
struct Attacker {
    random: Random,
    asker: Asker,
    names: Vec<BlockKey>,
    /// What is answered, by shape, where nobody has any of the keys.
    nothing: BTreeMap<(u64, usize, TenantId), Vec<u8>>,
}

/// How many shapes of attempts there are that are made on an open connection.
const SHAPES: u64 = 15;

impl Attacker {
    fn drawn_key(&mut self) -> BlockKey {
        let words = [0; 4].map(|_: u8| self.random.draw().to_le_bytes());
        BlockKey::from_bytes(words.concat().try_into().expect("32 bytes"))
    }

    /// A key that the other tenant stores something under, or one that differs from such in a bit.
    fn forged_key(&mut self, exact: bool) -> BlockKey {
        let known = match self.random.below(8) {
            0 => self.names[self.random.below(self.names.len() as u64) as usize],
            _ => key(self.random.below(STORED)),
        };
        let mut bytes = *known.as_bytes();
        if !exact {
            let bit = self.random.below(256) as usize;
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        BlockKey::from_bytes(bytes)
    }

    /// A request of this shape for these keys.
    fn request(&self, shape: u64, tenant: TenantId, keys: &[BlockKey]) -> (DataRequest, Vec<u8>) {
        let (epoch, device) = (self.asker.epoch, self.asker.device);
        let runs = vec![Run { slot: self.asker.slot, keys: keys.len() as u32 }];
        let list: KeyList = keys.iter().collect();
        let fetch = |accept| {
            let (runs, keys) = (runs.clone(), list.clone());
            DataRequest::Fetch(FetchRequest { epoch, device, tenant, runs, keys, accept })
        };
        let names = |verb: NameVerb| {
            let ops = keys.iter().map(|key| NameOp { key: *key, verb: verb.clone() }).collect();
            DataRequest::Names(NamesRequest { epoch, device, tenant, ask: NamesAsk::Do(ops) })
        };
        let ask_names = |ask| DataRequest::Names(NamesRequest { epoch, device, tenant, ask });
        let mut payload = Vec::new();
        let request = match shape {
            0 => DataRequest::Match(MatchRequest { epoch, device, tenant, hold_ms: 0, runs, keys: list }),
            1 => DataRequest::Match(MatchRequest { epoch, device, tenant, hold_ms: 50, runs, keys: list }),
            2 => fetch(Accept::Stored),
            3 => fetch(Accept::Raw(Layout::opaque(FRAME as u32, 16))),
            4 => DataRequest::Survey(SurveyRequest { epoch, device, tenant, runs, keys: list }),
            5 => DataRequest::Explain(ExplainRequest { epoch, device, tenant, runs, keys: list }),
            6 => {
                let runs = Vec::new();
                DataRequest::Explain(ExplainRequest { epoch, device, tenant, runs, keys: list })
            }
            7 => {
                let hint = Hint::Over;
                DataRequest::Release(ReleaseRequest { epoch, device, tenant, hint, runs, keys: list })
            }
            8 => names(NameVerb::Look),
            9 => names(NameVerb::Drop { only: None }),
            10 => names(NameVerb::Drop { only: Some(7) }),
            11 => ask_names(NamesAsk::List { from: 0, limit: 1000 }),
            12 => ask_names(NamesAsk::Count),
            // Stores whose headers name the other tenant, or an era that is none.
            shape => {
                let block = |key: &BlockKey| {
                    let mut header = Block::new(1, 64).header;
                    header.key = *key;
                    (header.tenant, header.era) = match shape {
                        13 => (TENANT, Era(1)),
                        _ => (OTHER, Era(9)),
                    };
                    StoreBlock { header, parent: BlockKey::NONE }
                };
                payload = Block::new(1, 64).bytes.repeat(keys.len());
                let blocks = keys.iter().map(block).collect();
                let (ack, copy, moved, layout) = (Ack::Primary, false, false, None);
                let about = Default::default();
                DataRequest::Store(StoreRequest {
                    epoch,
                    device,
                    tenant,
                    ack,
                    copy,
                    moved,
                    layout,
                    about,
                    runs,
                    blocks,
                })
            }
        };
        (request, payload)
    }

    /// Asks, again where the node can answer nobody just then, and returns all that is answered.
    async fn told(&mut self, shape: u64, tenant: TenantId, keys: &[BlockKey]) -> Vec<u8> {
        let (request, payload) = self.request(shape, tenant, keys);
        let begun = Instant::now();
        let answer = loop {
            let answer = self.asker.exchange(&request, &[&payload]).await;
            assert_eq!(self.asker.connection.payload_left(), 0, "not a byte of a block");
            match answer {
                Err(Fault::Refused(WireError::NoLease | WireError::Busy { .. })) => {
                    assert!(begun.elapsed() < LIMIT, "{request:?} is not answered");
                    tokio::task::yield_now().await;
                }
                answer => break answer,
            }
        };
        let (kind, bytes) = match answer {
            Ok(mut reply) => {
                if let DataReply::Fetched { blocks, .. } = &reply {
                    assert!(blocks.iter().all(|block| *block == Fetched::Miss), "{reply:?}");
                }
                // For how long the device has known of nothing grows as time goes by.
                if let DataReply::Explained { blocks, .. } = &mut reply {
                    for block in blocks {
                        if let Explained::Unknown { for_s, .. } = block {
                            *for_s = 0;
                        }
                    }
                }
                (0, codec::encode(&reply))
            }
            Err(Fault::Refused(error)) => (1, codec::encode(&error)),
            Err(fault) => panic!("{request:?} ended the connection: {fault}"),
        };
        [vec![kind], bytes.expect("it came from the wire")].concat()
    }

    /// Asks for what the other tenant has, and wants to hear what is heard of what nobody has.
    async fn probe(&mut self) {
        let (shape, count) = (self.random.below(SHAPES), 1 + self.random.below(4) as usize);
        // In its own name with the other's keys; in the other's, and in that of nobody, with keys that it has made up.
        let tenant = [OTHER, OTHER, OTHER, TENANT, TenantId(77)][self.random.below(5) as usize];
        let is_list = shape == 11 || shape == 12;
        // Who has the cluster's token may list any tenant's names (docs/tenants.md): it is not what is kept from it.
        let tenant = if tenant == TENANT && (is_list || shape >= 13) { OTHER } else { tenant };
        let at = (shape, count, tenant);
        if !self.nothing.contains_key(&at) {
            let nobodys: Vec<BlockKey> = (0..count).map(|_| self.drawn_key()).collect();
            let told = self.told(shape, tenant, &nobodys).await;
            self.nothing.insert(at, told);
        }
        let keys: Vec<BlockKey> = (0..count).map(|_| self.forged_key(tenant != TENANT)).collect();
        let told = self.told(shape, tenant, &keys).await;
        assert!(
            told == self.nothing[&at],
            "shape {shape} for {tenant} and {keys:?}: {told:02x?}, of nobody's {:02x?}",
            self.nothing[&at]
        );
    }

    /// Comes without the token: with another's handshake, a part of one, or none; or with it, and frames that somebody changed.
    async fn intrude(&mut self, node: &NodeHandle) {
        let mut raw = Raw::open(node).await;
        let nonce = [self.random.draw() as u8; 32];
        let keys = [self.forged_key(true)];
        let (request, _) = self.request(2, TENANT, &keys);
        match self.random.below(5) {
            0 => {
                let shaken = Raw::open(node).await.shake(TOKEN, nonce).await;
                raw.say(Kind::Hello, &shaken.hello).await;
                raw.say(Kind::Proof, &shaken.proof).await;
            }
            1 => _ = raw.shake(b"another token", nonce).await,
            2 => {
                let proof = [self.random.draw() as u8; 32];
                raw.say(Kind::Hello, &Hello::new(Role::Node, 1, None, nonce, Default::default())).await;
                raw.say(Kind::Welcome, &Welcome { proof }).await;
            }
            3 => {
                let context = TraceContext {
                    trace: TraceId::of_request("any"),
                    span: SpanId::new([1; 8]).expect("not all zero"),
                };
                raw.say(Kind::TracedRequest, &(context, request.clone())).await;
            }
            _ => {
                raw.shake(TOKEN, nonce).await;
                let welcome = raw.hear().await.expect("it is let in");
                assert_eq!(welcome.0, Kind::Welcome);
                let mut frame = framed(Kind::DataRequest, &request);
                let bit = self.random.below(frame.len() as u64 * 8) as usize;
                frame[bit / 8] ^= 1 << (bit % 8);
                raw.send(&frame).await;
                // A length that was changed may announce more than comes.
                let _ = raw.stream.shutdown().await;
                return raw.hears_no_answer("a frame that somebody changed").await;
            }
        }
        raw.say(Kind::DataRequest, &request).await;
        let _ = raw.stream.shutdown().await;
        raw.hears_no_answer("a stranger").await;
    }
}

fn number(variable: &str, otherwise: u64) -> u64 {
    let said = std::env::var(variable).ok();
    said.map_or(otherwise, |said| said.parse().unwrap_or_else(|_| panic!("{variable} is no number")))
}

/// Has the first tenant store blocks, in memory, on disk and no more, and set names.
async fn settled(coordinator: &FakeCoordinator, node: &NodeHandle) -> Vec<BlockKey> {
    let member = node.member().expect("it is a member");
    let other = Tenant { name: "other".into(), era: Era(1), secret: [8; 32], rules: TenantRules::default() };
    coordinator.change(|map| {
        map.tenants.insert(OTHER, other);
        map.slots = Arc::new(vec![ReplicaSet(vec![DeviceId::new(member, 0)]); usize::from(SLOTS)]);
    });
    let epoch = coordinator.epoch();
    eventually("the node serves by the map", || coordinator.has_confirmed(member, epoch)).await;
    let mut owner = node.ask().await;
    owner.epoch = epoch;
    for number in 0..STORED {
        assert_eq!(owner.store(&[Block::new(number, FRAME)], Ack::Primary).await, Ok(vec![kept(1)]));
        node.settles("memory has room", |stats| stats.device.used_bytes < 32 * FRAME as u64).await;
    }
    let found = owner.fetch(&(0..STORED).collect::<Vec<_>>()).await.expect("the node serves");
    let here = found.iter().filter(|block| block.is_some()).count();
    assert!(here > 32 && here < STORED as usize, "{here} are in memory or on disk");
    let names: Vec<BlockKey> = (0..16).map(|number| key(500 + number)).collect();
    let set = NameVerb::Set {
        name: b"a name".to_vec(),
        target: Target { nonce: 7, bytes: 9 },
        when: When::Always,
        life: Life::Open,
    };
    let ops = names.iter().map(|key| NameOp { key: *key, verb: set.clone() }).collect();
    let (device, tenant, ask) = (owner.device, TENANT, NamesAsk::Do(ops));
    let request = DataRequest::Names(NamesRequest { epoch, device, tenant, ask });
    // Names are not answered for right after their slot has come.
    loop {
        match owner.exchange(&request, &[]).await {
            Ok(_) => return names,
            Err(Fault::Refused(WireError::Busy { .. })) => tokio::task::yield_now().await,
            Err(fault) => panic!("names cannot be set: {fault}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_attempt_at_anothers_blocks_tells_more_than_that_nothing_is_there() {
    let (attempts, seed) = (number("KVHIVE_CROSS_TENANT", 20_000), number("KVHIVE_SEED", 1));
    let folder = tempfile::tempdir().expect("a folder");
    let disk = Some((folder.path().to_owned(), 32));
    // What a node answers whose lease runs out is another story, and a busy machine's heartbeats are late. Names are answered for no
    // sooner than a lease after their slot has come, so it is not longer.
    let lease = Duration::from_secs(5);
    let setup = Setup { frame_bytes: FRAME, device_frames: 32, disk, lease, ..Setup::default() };
    let (coordinator, node) = setup.one().await;
    let names = settled(&coordinator, &node).await;
    let member = node.member().expect("it is a member");
    let mut asker =
        Asker::connect(&node.data_address().to_string(), member).await.expect("it knows the token");
    asker.epoch = coordinator.epoch();
    let mut attacker = Attacker { random: Random::new(seed), asker, names, nothing: BTreeMap::new() };
    let (mut probes, mut intrusions) = (0, 0);
    for attempt in 0..attempts {
        if attempt % 64 == 63 {
            attacker.intrude(&node).await;
            intrusions += 1;
        } else {
            attacker.probe().await;
            probes += 1;
        }
    }
    println!("{probes} probes and {intrusions} intrusions by seed {seed}: not a byte, not an existence bit");
    // What was attempted has changed nothing of what the other has.
    let mut owner = node.ask().await;
    owner.epoch = coordinator.epoch();
    let found = owner.fetch(&(0..STORED).collect::<Vec<_>>()).await.expect("the node serves");
    let mut here = 0;
    for (number, block) in found.iter().enumerate() {
        let Some(bytes) = block else { continue };
        assert!(*bytes == Block::new(number as u64, FRAME).bytes, "block {number}");
        here += 1;
    }
    assert!(here > 32, "{here} are left");
}
