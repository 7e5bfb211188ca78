//! Frames as they lie on the wire: golden bytes, and what becomes of damaged ones.

use kvhive_protocol::block::{BlockDigest, BlockHeader, Codec, HEADER_BYTES, digest};
use kvhive_protocol::codec;
use kvhive_protocol::control::{
    Command, CommandReply, ControlReply, ControlRequest, DeviceLoad, Heartbeat, Registration,
};
use kvhive_protocol::data::{
    About, Accept, Ack, DataReply, DataRequest, FetchRequest, Fetched, GuestRequest, Hint, MatchRequest,
    PairRequest, PullRequest, ReceiveRequest, Refusal, ReleaseRequest, Run, StoreBlock, StoreRequest, Stored,
    StrategiesRequest,
};
use kvhive_protocol::error::WireError;
use kvhive_protocol::explain::{Departure, ExplainRequest, Explained, Lapse, Since};
use kvhive_protocol::frame::{FRAME_HEADER_BYTES, FrameHeader, FrameLimits, Kind, encode_frame};
use kvhive_protocol::handshake::{Challenge, Hello, Proof, Role, TokenKey, agree};
use kvhive_protocol::names::{
    Life, ListedName, Meaning, NameAnswer, NameOp, NameVerb, NamesAnswer, NamesAsk, NamesRequest, Target,
    When,
};
use kvhive_protocol::pairs::{
    GroupWord, Incarnation, PairMessage, PairWord, TransferId, UNIQUE_ID_BYTES, UniqueId,
};
use kvhive_protocol::share::{
    CarryRequest, DoneRequest, HostId, LookRequest, Looked, NotShared, Pass, ShareAnswer, ShareOffer,
    ShareRequest, SharedAt,
};
use kvhive_protocol::stage::{LendRequest, StagedFetch, StagedStore};
use kvhive_protocol::strategy::{ChoiceReport, Estimate, Reason, StrategyReport};
use kvhive_protocol::survey::{SurveyRequest, Surveyed};
use kvhive_protocol::trace::{Fact, Span, SpanId, SpanKind, TraceAnswer, TraceAsk, TraceRequest};
use kvhive_protocol::watch::{BlockEvent, BlockTier, Gone, WatchAnswer, WatchAsk, WatchRequest};
use kvhive_protocol::*;
use proptest::prelude::*;
use proptest::strategy::Strategy as _;
use serde::{Serialize, de::DeserializeOwned};
use std::fmt::Debug;

fn key(byte: u8) -> BlockKey {
    BlockKey::from_bytes([byte; 32])
}

fn header() -> BlockHeader {
    BlockHeader {
        key: key(3),
        fingerprint: LayoutFingerprint([9; 16]),
        tenant: TenantId(4),
        era: Era(5),
        depth: 6,
        codec: Codec::Raw,
        payload_bytes: 7,
        digest: 8,
    }
}

fn layout() -> Layout {
    Layout {
        layers: 4,
        kv_heads: 2,
        head_dim: 64,
        tokens: 4,
        dtype: Dtype::F16,
        order: AxisOrder::LayersFirst,
    }
}

fn requests() -> Vec<DataRequest> {
    let (epoch, device, tenant) = (Epoch(2), DeviceId::new(MemberId(1), 1), TenantId(4));
    let runs = vec![Run { slot: Slot(17), keys: 2 }];
    let keys: KeyList = [key(3), key(4)].iter().collect();
    let carried = StoreRequest {
        epoch,
        device,
        tenant,
        ack: Ack::Primary,
        copy: true,
        moved: true,
        layout: None,
        about: About::default(),
        runs: runs.clone(),
        blocks: vec![StoreBlock { header: header(), parent: key(1) }; 2],
    };
    let looked_for = FetchRequest {
        epoch,
        device,
        tenant,
        runs: runs.clone(),
        keys: keys.clone(),
        accept: Accept::Stored,
    };
    let incarnation = Incarnation { generation: Generation(2), number: 5 };
    let offer = PairWord::Offer { incarnation, id: UniqueId([7; UNIQUE_ID_BYTES]) };
    let members = vec![DeviceId::new(MemberId(4), 0), DeviceId::new(MemberId(5), 0)];
    let offered = GroupWord::Offer { incarnation, id: UniqueId([7; UNIQUE_ID_BYTES]), members };
    let wound = GroupWord::Wound { transfer: transfer(), round: 4 };
    let proposal = PairWord::Propose { transfer: transfer(), round: 4, incarnation, bytes: 1 << 20 };
    vec![
        DataRequest::Match(MatchRequest {
            epoch,
            device,
            tenant,
            hold_ms: 100,
            runs: runs.clone(),
            keys: keys.clone(),
        }),
        DataRequest::Fetch(FetchRequest {
            epoch,
            device,
            tenant,
            runs: runs.clone(),
            keys: keys.clone(),
            accept: Accept::Raw(layout()),
        }),
        DataRequest::Store(StoreRequest {
            epoch,
            device,
            tenant,
            ack: Ack::Quorum,
            copy: false,
            moved: false,
            layout: Some(layout()),
            about: About { input_tokens: 64, output_tokens: 9, hint: Hint::Returns(30) },
            runs: runs.clone(),
            blocks: vec![StoreBlock { header: header(), parent: key(2) }],
        }),
        DataRequest::Release(ReleaseRequest {
            epoch,
            device,
            tenant,
            hint: Hint::Pending,
            runs: runs.clone(),
            keys: keys.clone(),
        }),
        DataRequest::Strategies(StrategiesRequest { epoch, device, adjust: true }),
        DataRequest::Watch(WatchRequest {
            epoch,
            device,
            tenant: Some(tenant),
            ask: WatchAsk::Events { stream: 7, after: 9 },
        }),
        DataRequest::Survey(SurveyRequest { epoch, device, tenant, runs: runs.clone(), keys: keys.clone() }),
        DataRequest::Explain(ExplainRequest { epoch, device, tenant, runs, keys }),
        DataRequest::Trace(TraceRequest { epoch, device, ask: TraceAsk::One(context().trace) }),
        DataRequest::Names(NamesRequest { epoch, device, tenant, ask: NamesAsk::Do(name_ops()) }),
        DataRequest::Names(NamesRequest {
            epoch,
            device,
            tenant,
            ask: NamesAsk::List { from: 7, limit: 10 },
        }),
        DataRequest::Share(ShareRequest { epoch, device, host: HostId([6; 32]) }),
        DataRequest::Look(LookRequest { start: 9, fetch: looked_for.clone() }),
        DataRequest::Done(DoneRequest { epoch, grant: 3 }),
        DataRequest::Carry(Box::new(CarryRequest {
            source: MemberId(3),
            start: 9,
            places: vec![Some(SharedAt { slab: 1, at: 4096 }), None],
            store: carried.clone(),
        })),
        DataRequest::Receive(ReceiveRequest { store: carried.clone(), transfer: transfer() }),
        DataRequest::Packed(ReceiveRequest { store: carried.clone(), transfer: transfer() }),
        DataRequest::Pair(PairRequest { epoch, message: said(PairWord::Accept { incarnation }) }),
        DataRequest::Pair(PairRequest { epoch, message: said(offer) }),
        DataRequest::Pair(PairRequest { epoch, message: said(proposal) }),
        DataRequest::Pair(PairRequest { epoch, message: said(PairWord::Group(offered)) }),
        DataRequest::Pair(PairRequest { epoch, message: said(PairWord::Group(wound)) }),
        DataRequest::Lend(LendRequest { epoch, device, host: HostId([6; 32]) }),
        DataRequest::Gather(Box::new(StagedStore {
            stage: Pass([5; 32]),
            at: vec![0, 4096],
            store: carried,
        })),
        DataRequest::Scatter(Box::new(StagedFetch {
            stage: Pass([5; 32]),
            at: vec![0, 4096],
            fetch: looked_for.clone(),
        })),
        DataRequest::Guest(Box::new(GuestRequest { fetch: looked_for.clone(), limit_ms: 250 })),
        DataRequest::Pull(Box::new(PullRequest { fetch: looked_for, start: Some(9), to: Some(device) })),
    ]
}

fn replies() -> Vec<DataReply> {
    vec![
        DataReply::Matched { epoch: Epoch(2), covered: vec![1, 0] },
        DataReply::Fetched { epoch: Epoch(2), blocks: vec![Fetched::Hit(header()), Fetched::Miss] },
        DataReply::Stored {
            epoch: Epoch(2),
            blocks: vec![Stored::Kept { copies: 2, already: true }, Stored::Refused(Refusal::Corrupt)],
        },
        DataReply::Released { epoch: Epoch(2), blocks: 2 },
        DataReply::Strategies { epoch: Epoch(2), reports: vec![report()] },
        DataReply::Watched { epoch: Epoch(2), answer: watched() },
        DataReply::Surveyed { epoch: Epoch(2), runs: vec![Surveyed { covered: 3, in_memory: 1 }] },
        DataReply::Explained {
            epoch: Epoch(2),
            lapse: Some(Lapse { ago_s: 60, for_ms: 2500 }),
            blocks: explained(),
        },
        DataReply::Traced { epoch: Epoch(2), answer: TraceAnswer::Spans(vec![span()]) },
        DataReply::Named { epoch: Epoch(2), answer: NamesAnswer::Done(vec![named()]) },
        DataReply::Named {
            epoch: Epoch(2),
            answer: NamesAnswer::Listed {
                names: vec![ListedName { position: 9, name: b"a:1".to_vec() }],
                next: Some(10),
            },
        },
        DataReply::Named { epoch: Epoch(2), answer: NamesAnswer::Counted(3) },
        DataReply::Shared {
            epoch: Epoch(2),
            answer: ShareAnswer::Offered(ShareOffer {
                start: 9,
                door: "kvhive-1".into(),
                pass: Pass([5; 32]),
            }),
        },
        DataReply::Shared { epoch: Epoch(2), answer: ShareAnswer::Not(NotShared::Full) },
        DataReply::Looked {
            epoch: Epoch(2),
            grant: 3,
            blocks: vec![
                Looked::At(header(), SharedAt { slab: 1, at: 4096 }),
                Looked::Sent(header()),
                Looked::Miss,
            ],
        },
        DataReply::Unseen { epoch: Epoch(2) },
        DataReply::Heard { epoch: Epoch(2) },
    ]
}

fn transfer() -> TransferId {
    TransferId { number: 8, sender: DeviceId::new(MemberId(3), 1), generation: Generation(2) }
}

fn said(word: PairWord) -> PairMessage {
    let (from, to) = (DeviceId::new(MemberId(3), 1), DeviceId::new(MemberId(4), 0));
    PairMessage { from, generation: Generation(2), to, to_generation: Generation(1), word }
}

fn target() -> Target {
    Target { nonce: 7, bytes: 100 }
}

fn named() -> NameAnswer {
    NameAnswer { done: true, before: Some(Meaning { target: target(), left_ms: Some(250) }) }
}

fn name_ops() -> Vec<NameOp> {
    let set = |life, when| NameVerb::Set { name: b"a:1".to_vec(), target: target(), when, life };
    let verbs = [
        NameVerb::Look,
        set(Life::Open, When::Always),
        set(Life::Ms(1000), When::Absent),
        set(Life::Kept, When::Present),
        NameVerb::Drop { only: Some(7) },
        NameVerb::Drop { only: None },
    ];
    verbs.into_iter().map(|verb| NameOp { key: key(2), verb }).collect()
}

fn context() -> TraceContext {
    let trace = TraceId::of_request("4bf92f35-77b3-4da6-a3ce-929d0e0e4736");
    TraceContext { trace, span: SpanId::new([9; 8]).expect("it is not zero") }
}

fn span() -> Span {
    let TraceContext { trace, span } = context();
    Span {
        trace,
        id: span,
        parent: None,
        kind: SpanKind::Served,
        name: "fetch".into(),
        began_ns: 1,
        took_ns: 2,
        facts: vec![("kvhive.blocks".into(), Fact::Number(3)), ("kvhive.tenant".into(), Fact::from("a"))],
        failed: Some("busy".into()),
    }
}

fn explained() -> Vec<Explained> {
    let here = Explained::Here {
        tier: BlockTier::Host,
        codec: Codec::Int8,
        bytes: 4096,
        fingerprint: LayoutFingerprint([9; 16]),
        slot: Slot(17),
        pinned: true,
    };
    let gone = Explained::Gone(Departure {
        why: Gone::Unwritten,
        from: Some(BlockTier::Disk),
        strategy: kvhive_protocol::Strategy::S3Fifo,
        ago_s: 42,
    });
    vec![here, Explained::Coming, gone, Explained::Unknown { since: Since::Forgotten, for_s: 600 }]
}

fn watched() -> WatchAnswer {
    let cleared = BlockEvent::Cleared { tenant: TenantId(4), era: Era(2) };
    WatchAnswer::Events { stream: 7, after: 9, through: 11, events: vec![(10, cleared)] }
}

fn report() -> StrategyReport {
    let choice = ChoiceReport {
        in_charge: "lru".into(),
        estimates: vec![Estimate { ranker: "lru".into(), hit_rate_ppm: 250_000 }],
        evidence: 3000,
        sampled_one_in: 2,
        switches: 1,
        reason: Reason::IsBetter,
    };
    StrategyReport {
        tenant: Some(TenantId(4)),
        frame_bytes: 4096,
        strategy: kvhive_protocol::Strategy::Adaptive,
        choice: Some(choice),
    }
}

fn frame<T: Serialize>(kind: Kind, message: &T, payload: u64) -> Vec<u8> {
    let mut out = Vec::new();
    encode_frame(kind, 77, message, payload, &mut out).expect("a small frame");
    out
}

fn open<T: DeserializeOwned>(frame: &[u8]) -> Result<(FrameHeader, T), WireError> {
    let head: &[u8; FRAME_HEADER_BYTES] = frame
        .get(..FRAME_HEADER_BYTES)
        .and_then(|head| head.try_into().ok())
        .ok_or_else(|| WireError::malformed(format_args!("short")))?;
    let header = FrameHeader::decode(head, FrameLimits::OPEN)?;
    let message = header.message(head, &frame[FRAME_HEADER_BYTES..])?;
    Ok((header, message))
}

fn fold(bytes: &[u8]) -> String {
    digest(bytes).to_le_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The whole bytes of a small frame, and digests of larger ones. A difference is one that builds of before
/// cannot read: let the struct grow, add a variant behind a new `Level`, or undo the change.
#[test]
fn frames_on_the_wire_are_what_they_were() {
    let small = frame(Kind::DataReply, &replies()[0], 0);
    let hex: String = small.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, GOLDEN_MATCHED);
    let folded: Vec<String> = requests()
        .iter()
        .map(|request| fold(&frame(Kind::DataRequest, request, 7)))
        .chain(replies().iter().map(|reply| fold(&frame(Kind::DataReply, reply, 7))))
        .collect();
    assert_eq!(folded, GOLDEN_DATA);
    assert_eq!(fold(&header().encode()), GOLDEN_HEADER);
}

/// What is traced carries 24 bytes more, in front; what is not carries none.
#[test]
fn a_traced_request_is_a_request_behind_its_context() {
    for request in requests() {
        let plain = frame(Kind::DataRequest, &request, 7);
        let traced = frame(Kind::TracedRequest, &(context(), &request), 7);
        let (header, back) = open::<(TraceContext, DataRequest)>(&traced).expect("whole");
        assert_eq!((header.kind, back), (Kind::TracedRequest, (context(), request)));
        assert_eq!(traced.len(), plain.len() + 24);
        assert_eq!(traced[FRAME_HEADER_BYTES + 24..], plain[FRAME_HEADER_BYTES..]);
    }
    let nobody = frame(Kind::TracedRequest, &([0u8; 24], &requests()[0]), 7);
    assert!(refused::<(TraceContext, DataRequest)>(&nobody), "zero names no trace");
}

/// Commands lie in coordinators' logs, tenants in their snapshots: a difference is a new version of that state, raise
/// `kvhive_control::STATE_VERSION`.
#[test]
fn commands_and_tenants_are_what_they_were() {
    let rules = TenantRules {
        strategy: Some(kvhive_protocol::Strategy::Adaptive),
        device_quota_bytes: Some(1),
        host_quota_bytes: Some(2),
        disk_quota_bytes: Some(3),
        quantization_bits: Some(4),
        compression_per_mille: Some(500),
        shares_with: Some(TenantId(3)),
    };
    let change = RulesChange {
        strategy: Change::Set(kvhive_protocol::Strategy::Lru),
        host_quota_bytes: Change::Reset,
        ..RulesChange::default()
    };
    let registration = Registration {
        request: RequestId { client: 5, sequence: 6 },
        name: "node-a".into(),
        data_address: "10.0.0.1:7810".into(),
        metrics_address: "10.0.0.1:7811".into(),
        labels: [("rack".to_owned(), "3".to_owned())].into(),
        devices: vec![map::DeviceDescription {
            kind: "host".into(),
            device_bytes: 1,
            host_bytes: 2,
            disk_bytes: 3,
        }],
        codec: Codec::Lossless,
        speaks: Level(7),
    };
    let folded = [
        codec::encode(&Command::Register(registration)),
        codec::encode(&Command::CreateTenant { name: "a".into(), secret: [7; 32], rules }),
        codec::encode(&Command::ClearTenant { tenant: TenantId(2) }),
        codec::encode(&Command::SetTenantRules { tenant: TenantId(2), change }),
        codec::encode(&Command::SetPin {
            name: "system".into(),
            pin: Box::new(Pin {
                tenant: TenantId(2),
                keys: [key(1), key(2)].iter().collect(),
                mode: PinMode::Soft { until_ms: 9 },
                reason: kvhive_protocol::Reason::new("each request begins so"),
            }),
        }),
        codec::encode(&Command::RemovePin { name: "system".into(), ended_ms: Some(9) }),
        codec::encode(&Command::RaiseLevel { to: Level(2) }),
        codec::encode(&Tenant { name: "a".into(), era: Era(2), secret: [7; 32], rules }),
    ]
    .map(|encoded| fold(&encoded.expect("small")));
    assert_eq!(folded, GOLDEN_COMMANDS);
}

#[test]
fn keys_and_slots_are_what_they_were() {
    let layout = layout();
    let namespace = |rank| Namespace { tenant_secret: [7; 32], model: "tiny@1".into(), layout, rank }.key();
    let keys = namespace(0).prefix(&[1, 2, 3, 4, 5, 6, 7, 8, 9], 4, &[]);
    assert_eq!(keys.len(), 2, "a partial block has no key");
    let folded: Vec<String> = keys.iter().map(|key| fold(key.as_bytes())).collect();
    assert_eq!(folded, GOLDEN_KEYS);
    assert_eq!(keys.iter().map(|key| key.slot().0).collect::<Vec<_>>(), GOLDEN_SLOTS);
    assert_ne!(keys, namespace(1).prefix(&[1, 2, 3, 4, 5, 6, 7, 8], 4, &[]), "another rank, other keys");
    let other = Layout { dtype: Dtype::Bf16, ..layout };
    assert_ne!(layout.fingerprint(), other.fingerprint());
    let first = namespace(0);
    assert_ne!(
        first.block(&BlockKey::NONE, &[1], &[b"ab", b"c"]),
        first.block(&BlockKey::NONE, &[1], &[b"a", b"bc"])
    );
    assert_ne!(first.rekey(&BlockKey::NONE, b"x"), first.block(&BlockKey::NONE, &[], &[b"x"]));
    assert_eq!(BlockKey::from_hex(&keys[0].to_string()), Some(keys[0]));
}

fn refused<T: DeserializeOwned + Debug>(bytes: &[u8]) -> bool {
    open::<T>(bytes).is_err()
}

#[test]
fn every_truncation_and_every_flipped_bit_is_an_error() {
    for request in requests() {
        let whole = frame(Kind::DataRequest, &request, 7);
        let (header, back) = open::<DataRequest>(&whole).expect("whole");
        assert_eq!(
            (header.kind, header.request, header.payload_bytes, back),
            (Kind::DataRequest, 77, 7, request)
        );
        for cut in 0..whole.len() {
            assert!(refused::<DataRequest>(&whole[..cut]), "cut at {cut}");
        }
        for at in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[at / 8] ^= 1 << (at % 8);
            assert!(refused::<DataRequest>(&flipped), "bit {at}");
        }
        let mut longer = whole.clone();
        longer.push(0);
        assert!(refused::<DataRequest>(&longer));
    }
}

#[test]
fn lengths_over_the_limits_are_refused_by_the_header_alone() {
    let whole = frame(Kind::DataRequest, &requests()[0], 7);
    let mut head: [u8; FRAME_HEADER_BYTES] = whole[..FRAME_HEADER_BYTES].try_into().expect("32 bytes");
    for at in [16, 20] {
        let kept = head;
        head[at..at + 4].fill(0xFF);
        let refused = FrameHeader::decode(&head, FrameLimits::OPEN);
        assert!(matches!(refused, Err(WireError::TooLarge { bytes: 0xFFFF_FFFF, .. })), "{refused:?}");
        head = kept;
    }
    let greeting = FrameHeader::decode(&head, FrameLimits::GREETING);
    assert!(
        matches!(greeting, Err(WireError::TooLarge { bytes: 7, limit: 0 })),
        "no payload before the handshake"
    );
    let mut out = vec![1];
    let too_much = encode_frame(Kind::DataReply, 1, &(), u64::from(u32::MAX), &mut out);
    assert!(matches!(too_much, Err(WireError::TooLarge { .. })) && out == [1]);
}

#[test]
fn a_length_inside_a_message_is_bounded_by_the_message() {
    // A list that claims 2^40 keys, in a dozen bytes.
    let mut message = codec::encode(&0u32).expect("four bytes");
    message.extend((1u64 << 40).to_le_bytes());
    assert!(codec::decode::<(u32, Vec<u64>)>(&message).is_err());
    assert!(codec::decode::<(u32, String)>(&message).is_err());
    assert!(codec::decode::<(u32, KeyList)>(&message).is_err());
    let odd = codec::encode(&serde_bytes::Bytes::new(&[0; 33])).expect("small");
    assert!(codec::decode::<KeyList>(&odd).is_err(), "keys come in 32 bytes");
}

#[test]
fn a_header_is_of_its_block_alone() {
    let header = header();
    let ok = |key, fingerprint, tenant, era| header.check(&key, fingerprint, tenant, era);
    let print = header.fingerprint;
    assert_eq!(ok(key(3), print, TenantId(4), Era(5)), Ok(()));
    assert_eq!(ok(key(2), print, TenantId(4), Era(5)), Err(HeaderError::Key));
    assert_eq!(ok(key(3), LayoutFingerprint([8; 16]), TenantId(4), Era(5)), Err(HeaderError::Layout));
    assert_eq!(ok(key(3), print, TenantId(5), Era(5)), Err(HeaderError::Tenant));
    assert_eq!(ok(key(3), print, TenantId(4), Era(6)), Err(HeaderError::Era));
    let encoded = header.encode();
    assert_eq!(BlockHeader::decode(&encoded), Ok(header));
    for at in 0..HEADER_BYTES * 8 {
        let mut flipped = encoded;
        flipped[at / 8] ^= 1 << (at % 8);
        assert!(BlockHeader::decode(&flipped).is_err(), "bit {at}");
    }
    for id in 0..=u16::from(u8::MAX) + 1 {
        // As a writer of a later version would make it, checksum and all.
        let mut encoded = header.encode();
        encoded[6..8].copy_from_slice(&id.to_le_bytes());
        let sum = xxhash_rust::xxh3::xxh3_64(&encoded[..96]);
        encoded[96..].copy_from_slice(&sum.to_le_bytes());
        let known = Codec::from_id(id).map(|codec| BlockHeader { codec, ..header });
        assert_eq!(BlockHeader::decode(&encoded), known.ok_or(HeaderError::Format), "codec {id}");
        assert_eq!(known.is_some(), id < 5);
    }
    let bytes = [5u8; 7];
    let sealed = BlockHeader { digest: digest(&bytes), ..header };
    assert_eq!(sealed.check_bytes(&bytes), Ok(()));
    assert_eq!(sealed.check_bytes(&bytes[..6]), Err(HeaderError::Length));
    assert_eq!(sealed.check_bytes(&[4; 7]), Err(HeaderError::Digest));
}

#[test]
fn two_ends_agree_on_the_newest_level_that_both_speak() {
    let hello = |newest| Hello::new(Role::Node, 3, None, [1; 32], Levels::up_to(Level(newest)));
    let ours = |newest| Levels::up_to(Level(newest));
    for (theirs, newest, agreed) in [(1, 1, 1), (2, 1, 1), (1, 2, 1), (2, 2, 2)] {
        assert_eq!(agree(&hello(theirs), ours(newest)), Ok(Level(agreed)));
    }
    let beyond = Level::NEWEST.0 + 1;
    let far_ahead = Hello { version_min: beyond, version_max: beyond + 2, ..hello(2) };
    let refused = agree(&far_ahead, Levels::default());
    let Err(WireError::Version { theirs_min, theirs_max, .. }) = refused else { panic!("{refused:?}") };
    assert_eq!((theirs_min, theirs_max), (beyond, beyond + 2));
}

#[test]
fn a_member_speaks_its_clusters_level_and_a_client_need_not() {
    let levels = Levels { newest: Level(2), cluster: Level(2) };
    let hello = |role, newest| Hello::new(role, 3, None, [1; 32], Levels::up_to(Level(newest)));
    for role in [Role::Node, Role::Coordinator] {
        assert_eq!(agree(&hello(role, 2), levels), Ok(Level(2)));
        let refused = agree(&hello(role, 1), levels).expect_err("it is too old");
        assert_eq!(refused, WireError::TooOld { speaks: Level(1), cluster: Level(2) });
        assert!(refused.to_string().contains("run a newer build"), "{refused}");
    }
    assert_eq!(agree(&hello(Role::Client, 1), levels), Ok(Level(1)));
}

#[test]
fn a_proof_is_bound_to_everything_that_was_said() {
    let hello = Hello::new(Role::Node, 3, Some(ClusterId(1)), [1; 32], Levels::default());
    let challenge = Challenge { version: 1, cluster: Some(ClusterId(1)), nonce: [2; 32] };
    let token = TokenKey::new(b"a token of sixteen");
    let proof = token.client_proof(&hello, &challenge);
    assert!(TokenKey::same(&proof, &token.client_proof(&hello, &challenge)));
    let others = [
        TokenKey::new(b"another token here").client_proof(&hello, &challenge),
        token.server_proof(&hello, &challenge),
        token.client_proof(&Hello { role: Role::Client, ..hello.clone() }, &challenge),
        token.client_proof(&Hello { sender: 4, ..hello.clone() }, &challenge),
        token.client_proof(&Hello { nonce: [3; 32], ..hello.clone() }, &challenge),
        token.client_proof(&Hello { cluster: None, ..hello.clone() }, &challenge),
        token.client_proof(&Hello { version_max: hello.version_max + 1, ..hello.clone() }, &challenge),
        token.client_proof(&hello, &Challenge { nonce: [3; 32], ..challenge.clone() }),
        token.client_proof(&hello, &Challenge { version: 2, ..challenge.clone() }),
        token.client_proof(&hello, &Challenge { cluster: None, ..challenge }),
    ];
    assert!(others.iter().all(|other| !TokenKey::same(&proof, other)));
    assert!(
        !format!(
            "{token:?} {:?}",
            Command::CreateTenant { name: "a".into(), secret: [0xAB; 32], rules: TenantRules::default() }
        )
        .contains("171")
    );
}

#[test]
fn control_messages_come_back_as_they_went() {
    let load = DeviceLoad { blocks: 3, occupied: vec![0b10; 512], ..DeviceLoad::default() };
    assert!(load.occupies(Slot(1)) && !load.occupies(Slot(2)) && load.occupies(Slot(4089)));
    let beat =
        Heartbeat { member: MemberId(1), generation: Generation(2), epoch: Epoch(3), devices: vec![load] };
    let request = ControlRequest::Heartbeat(beat);
    assert_eq!(codec::decode::<ControlRequest>(&codec::encode(&request).expect("small")), Ok(request));
    let reply =
        ControlReply::Done(CommandReply::Rejected(WireError::rejected(format_args!("{}", "é".repeat(400)))));
    assert_eq!(
        codec::decode::<ControlReply>(&codec::encode(&reply).expect("small")),
        Ok(reply),
        "details are bounded"
    );
}

/// Where the fuzzer begins: `UPDATE=1` puts there what is not (docs/fuzzing.md).
#[test]
fn every_golden_frame_is_in_the_fuzzers_corpus() {
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    let requests = requests();
    let asked = requests.iter().map(|request| frame(Kind::DataRequest, request, 7));
    let answered = replies().into_iter().map(|reply| frame(Kind::DataReply, &reply, 7));
    let traced = frame(Kind::TracedRequest, &(context(), &requests[0]), 0);
    // What a stranger says first.
    let hello = Hello::new(Role::Node, 3, Some(ClusterId(7)), [1; 32], Levels::default());
    let greetings = [frame(Kind::Hello, &hello, 0), frame(Kind::Proof, &Proof { proof: [2; 32] }, 0)];
    let frames = asked.chain(answered).chain([traced]).map(|frame| ("frame", frame));
    for (target, bytes) in frames.chain(greetings.map(|frame| ("greeting", frame))) {
        let file = corpus.join(target).join(format!("golden-{}", fold(&bytes)));
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&file, &bytes).expect("writable");
        }
        let kept = std::fs::read(&file).unwrap_or_default();
        assert!(kept == bytes, "{} is not there: UPDATE=1 writes it", file.display());
    }
}

proptest! {
    #[test]
    fn random_bytes_are_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = open::<DataRequest>(&bytes);
        let _ = codec::decode::<DataRequest>(&bytes);
        let _ = codec::decode::<DataReply>(&bytes);
        let _ = codec::decode::<ControlRequest>(&bytes);
        let _ = codec::decode::<ControlReply>(&bytes);
        let _ = codec::decode::<LogEntry>(&bytes);
        let _ = codec::decode::<ClusterMap>(&bytes);
        let _ = codec::decode::<Proof>(&bytes);
        let _ = codec::decode::<WireError>(&bytes);
    }

    #[test]
    fn a_release_comes_back_as_it_went(
        numbers in proptest::collection::vec((0u16..4096, any::<u8>()), 0..200),
        hint in prop_oneof![
            Just(Hint::None),
            Just(Hint::Over),
            Just(Hint::Pending),
            any::<u32>().prop_map(Hint::Returns)
        ],
    ) {
        let release = DataRequest::Release(ReleaseRequest {
            epoch: Epoch(2),
            device: DeviceId::new(MemberId(1), 1),
            tenant: TenantId(4),
            hint,
            runs: numbers.iter().map(|(slot, _)| Run { slot: Slot(*slot), keys: 1 }).collect(),
            keys: numbers.iter().map(|(_, byte)| key(*byte)).collect(),
        });
        let whole = frame(Kind::DataRequest, &release, 0);
        prop_assert!(whole.len() <= data::MAX_REQUEST_BYTES + FRAME_HEADER_BYTES);
        let back = open::<DataRequest>(&whole);
        prop_assert_eq!(back.map(|(_, message)| message), Ok(release));
    }

    #[test]
    fn a_digest_is_the_same_however_the_bytes_arrive(
        bytes in proptest::collection::vec(any::<u8>(), 0..70_000),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.sort_unstable();
        let mut arriving = BlockDigest::default();
        for cut in cuts {
            arriving.advance(&bytes[..cut]);
        }
        prop_assert_eq!(arriving.finish(&bytes), digest(&bytes));
    }
}

const GOLDEN_MATCHED: &str = "4b564846020011004d000000000000001c00000000000000294fad96f94860b100000000020000000000000002000000000000000100000000000000";
const GOLDEN_DATA: [&str; 44] = [
    "80c3ad5a1f9d2f6e",
    "d6ce58de67428ad2",
    "d2294f65d9f11aad",
    "19e7714755fad94b",
    "55ce9def68043645",
    "925fcf9b6ddbeab0",
    "b8cf151ce6d8f528",
    "f351be503dbe9f17",
    "4237df82bc136424",
    "575dcb16c2d599de",
    "4b847d9ea4dc9924",
    "4762362b2167fa7b",
    "6b497b825020a414",
    "e4b6a3a2329e9c3d",
    "7593d67d3044f945",
    "1e8bac09d272f42c",
    "b0c42b02b827272a",
    "ac729a20128459de",
    "f9fc4c2ea07d142a",
    "fc007ca4515a3bfb",
    "993e7e7126511046",
    "a2116473fa308a67",
    "ee274979e2599e6c",
    "fe4d442d6591b264",
    "5bce4fc62f6455fe",
    "128e9fee18db88c3",
    "b1d9671c950f83ca",
    "7d5b4e526fde8d0f",
    "adf02e136c16781e",
    "b35c5b20b52b6421",
    "f492055784af7bdd",
    "a7150877f8b7586f",
    "381857575643bc09",
    "c74dfcf1bd11d317",
    "8284c0859e021c4f",
    "abc40821d37191bd",
    "26166303d9444b0d",
    "80ed9c8ff57bf39b",
    "733f5bf697ebd62f",
    "a38a12a261f4719e",
    "0c0095032199ee8e",
    "0f5a11d76c56bb8f",
    "cec2959456776ce6",
    "3f6772c0954ea101",
];
const GOLDEN_COMMANDS: [&str; 8] = [
    "ea3a16194dde5e0e",
    "e80c4e49e0b1e297",
    "5516b38b5a66a5e0",
    "6baa492c98bbfa21",
    "89d1528332bb4927",
    "7a8c25f87d2fdaf8",
    "58bf5bfd6af940fb",
    "3a32a325d230e3c7",
];
const GOLDEN_HEADER: &str = "146920c73de8eb0a";
const GOLDEN_KEYS: [&str; 2] = ["b0d0b3ebcd406732", "4e5fe816c51df97e"];
const GOLDEN_SLOTS: [u16; 2] = [3143, 1214];
