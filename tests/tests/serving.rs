//! The engine of a Rust serving process, on a cluster of real processes: cached answers are the answers, whatever becomes of the cache.

use kvhive_client::{Client, ClientConfig};
use kvhive_node::engine::{
    Answer, Engine, EngineConfig, EngineError, Memory, Model, NewTenants, Request, Target,
};
use kvhive_protocol::block::Codec;
use kvhive_protocol::data::Hint;
use kvhive_protocol::strategy::Strategy;
use kvhive_protocol::{AxisOrder, Dtype, Layout};
use kvhive_tests::Cluster;
use std::convert::Infallible;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const LAYERS: usize = 2;
const HEADS: usize = 2;
const WIDTH: usize = 16;
/// Elements of one token, `[layers, 2, heads, width]`.
const TOKEN: usize = LAYERS * 2 * HEADS * WIDTH;
const VOCABULARY: u32 = 128;
const BLOCK: usize = 16;

/// A model of which every number depends on all tokens before, through their keys and values alone.
#[derive(Default)]
struct Chain {
    computed: AtomicUsize,
}

type Token = [f32; TOKEN];

impl Chain {
    fn element(layer: usize, of: usize, head: usize, at: usize) -> usize {
        ((layer * 2 + of) * HEADS + head) * WIDTH + at
    }
}

impl Model for Chain {
    type Past = Vec<Token>;
    type Error = Infallible;

    fn name(&self) -> String {
        "chain@1".to_owned()
    }

    fn layout(&self, tokens: u32) -> Layout {
        Layout {
            layers: LAYERS as u32,
            kv_heads: HEADS as u32,
            head_dim: WIDTH as u32,
            tokens,
            dtype: Dtype::F32,
            order: AxisOrder::LayersFirst,
        }
    }

    fn tokenize(&self, text: &str) -> Result<Vec<u32>, Infallible> {
        Ok(text.bytes().map(|byte| u32::from(byte) % VOCABULARY).collect())
    }

    fn detokenize(&self, tokens: &[u32]) -> Result<String, Infallible> {
        Ok(tokens.iter().filter_map(|token| char::from_u32(*token)).collect())
    }

    fn is_end(&self, token: u32) -> Result<bool, Infallible> {
        Ok(token == 0)
    }

    fn begin(&self, most_tokens: usize) -> Vec<Token> {
        Vec::with_capacity(most_tokens)
    }

    fn compute(&self, past: &mut Vec<Token>, tokens: &[u32]) -> Result<Vec<f32>, Infallible> {
        self.computed.fetch_add(tokens.len(), Ordering::Relaxed);
        for token in tokens {
            let mut next = [0.0; TOKEN];
            for (at, element) in next.iter_mut().enumerate() {
                let before: f32 = past.iter().rev().map(|token| token[at]).sum();
                *element = (*token as f32 * (at + 1) as f32 + before).sin();
            }
            past.push(next);
        }
        let sum = |at: usize| past.iter().map(|token| token[at % TOKEN] * (at + 1) as f32).sum::<f32>();
        Ok((0..VOCABULARY as usize).map(|at| sum(at).cos()).collect())
    }

    fn save(&self, past: &Vec<Token>, tokens: Range<usize>, block: &mut [u8]) -> Result<(), Infallible> {
        let mut bytes = block.chunks_exact_mut(4);
        for (layer, of) in (0..LAYERS).flat_map(|layer| [(layer, 0), (layer, 1)]) {
            for token in &past[tokens.clone()] {
                for (head, at) in (0..HEADS).flat_map(|head| (0..WIDTH).map(move |at| (head, at))) {
                    let element = token[Chain::element(layer, of, head, at)];
                    bytes.next().expect("a block's size").copy_from_slice(&element.to_le_bytes());
                }
            }
        }
        assert!(bytes.next().is_none());
        Ok(())
    }

    fn load(&self, past: &mut Vec<Token>, block: &[u8]) -> Result<(), Infallible> {
        let mut loaded = [[0.0; TOKEN]; BLOCK];
        let mut bytes = block.chunks_exact(4);
        for (layer, of) in (0..LAYERS).flat_map(|layer| [(layer, 0), (layer, 1)]) {
            for token in &mut loaded {
                for (head, at) in (0..HEADS).flat_map(|head| (0..WIDTH).map(move |at| (head, at))) {
                    let element = bytes.next().expect("a block's size");
                    token[Chain::element(layer, of, head, at)] =
                        f32::from_le_bytes(element.try_into().expect("of four"));
                }
            }
        }
        past.extend(loaded);
        Ok(())
    }

    fn truncate(&self, past: &mut Vec<Token>, tokens: usize) -> Result<(), Infallible> {
        past.truncate(tokens);
        Ok(())
    }
}

fn config(codec: Codec) -> EngineConfig {
    EngineConfig { max_tokens: 400, codec, ..EngineConfig::default() }
}

/// Another serving process, as far as the cluster can tell.
async fn engine(connect: &ClientConfig, codec: Codec) -> Engine<Chain> {
    let client = Client::connect(connect.clone()).await.expect("a coordinator answers");
    Engine::new(&client, "default", Chain::default(), config(codec)).expect("the default tenant exists")
}

/// What a model answers that nobody helps.
fn alone(prompt: &str) -> Vec<u32> {
    let model = Chain::default();
    let Ok(tokens) = model.tokenize(prompt);
    let (mut past, mut logits) = (model.begin(tokens.len()), Vec::new());
    for piece in tokens.chunks(BLOCK) {
        logits = model.compute(&mut past, piece).expect("it never fails");
    }
    let mut answer = Vec::new();
    while answer.len() < Request::NEW_TOKENS {
        let likeliest = |best: usize, at: usize| if logits[at] > logits[best] { at } else { best };
        let token = (1..logits.len()).fold(0, likeliest) as u32;
        if model.is_end(token) == Ok(true) {
            break;
        }
        answer.push(token);
        logits = model.compute(&mut past, &[token]).expect("it never fails");
    }
    answer
}

fn computed(engine: &Engine<Chain>) -> usize {
    engine.model().computed.swap(0, Ordering::Relaxed)
}

const SYSTEM: &str =
    "You answer questions about a warehouse, in one short sentence, and never about anything else. ";

#[test]
fn a_prompt_that_begins_as_anothers_did_is_computed_from_there_and_answered_alike() {
    let cluster = Cluster::start(&["--nodes", "2"]);
    let connect = cluster.client_config();
    cluster.wait(async {
        let first = engine(&connect, Codec::Raw).await;
        let prompt = format!("{SYSTEM}Where are the pallets?");
        assert!(size_of_val(&first.serve(Request::new(&prompt))) < 1024, "many may wait");
        let answer = first.serve(Request::new(&prompt)).await.expect("it is served");
        assert_eq!((answer.cached_tokens, &answer.tokens), (0, &alone(&prompt)));
        let uncached = first.serve_uncached(Request::new(&prompt)).await.expect("it is served");
        assert_eq!((uncached.cached_tokens, &uncached.tokens), (0, &answer.tokens));
        assert_eq!(first.stats().requests, 1, "it counts nowhere");
        // What waits to be stored is found already, by whoever computed it.
        let again = first.serve(Request::new(&prompt)).await.expect("it is served");
        assert_eq!((again.cached_tokens, &again.tokens), (112, &answer.tokens));
        assert_eq!(Ok(again.text), first.model().detokenize(&answer.tokens));
        first.settled().await;
        // Another process, of another prompt that begins alike.
        let second = engine(&connect, Codec::Raw).await;
        let other = format!("{SYSTEM}Who drives?");
        let answer = second.serve(Request::new(&other)).await.expect("it is served");
        let shared = (SYSTEM.len() + 2) / BLOCK * BLOCK;
        assert_eq!((answer.prompt_tokens, answer.cached_tokens), (other.len(), shared));
        assert_eq!(answer.tokens, alone(&other));
        assert_eq!(computed(&second), other.len() - shared + answer.tokens.len() - 1);
        // A prompt that ends with a block: its last token is computed in any case.
        let whole = Request { max_new_tokens: Some(1), ..Request::new(&prompt[..96]) };
        let answer = second.serve(whole).await.expect("it is served");
        assert_eq!((answer.cached_tokens, answer.tokens.len()), (80, 1));
        second.expect(&prompt, Hint::Over).await.expect("it is read");
        let stats = second.stats();
        assert_eq!((stats.requests, stats.hits, stats.cache_failures), (2, 2, 0));
        assert_eq!(
            (stats.prompt_tokens, stats.cached_tokens),
            ((other.len() + 96) as u64, (shared + 80) as u64)
        );
        assert!(stats.hit_rate() > 0.99 && stats.took.p99 >= stats.first_token.p50);
        // Blocks that are rounded are others'.
        let rounding = engine(&connect, Codec::Int8).await;
        assert_eq!(rounding.serve(Request::new(&prompt)).await.expect("it is served").cached_tokens, 0);
        let computed = rounding.serve(Request::new(&other)).await.expect("it is served");
        rounding.settled().await;
        let another = engine(&connect, Codec::Int8).await;
        let found = another.serve(Request::new(&other)).await.expect("it is served");
        assert_eq!((found.cached_tokens, found.tokens), (96, computed.tokens));
    });
}

#[test]
fn a_batch_computes_what_its_prompts_share_once_and_what_cannot_be_served_is_refused() {
    let cluster = Cluster::start(&["--nodes", "1"]);
    let connect = cluster.client_config();
    cluster.wait(async {
        let engine = engine(&connect, Codec::Lossless).await;
        let prompts = [3, 1, 2].map(|number| format!("{SYSTEM}Question {number}?"));
        let mut requests: Vec<Request> = prompts.iter().map(Request::new).collect();
        requests.insert(1, Request::new("Something else altogether"));
        requests.push(Request::new("x".repeat(400)));
        requests.push(Request::new(""));
        requests.push(Request { max_new_tokens: Some(400), ..Request::new("Long answers") });
        let answers = engine.serve_all(engine.prepare(requests).await, 10).await;
        let cached: Vec<Option<usize>> =
            answers.iter().map(|answer| answer.as_ref().ok().map(|answer| answer.cached_tokens)).collect();
        // In the order of their tokens the first question of all is computed whole.
        assert_eq!(cached, [Some(96), Some(0), Some(0), Some(96), None, None, None]);
        for (answer, prompt) in [0, 2, 3].into_iter().zip(&prompts) {
            assert_eq!(answers[answer].as_ref().expect("it was served").tokens, alone(prompt));
        }
        let refused: Vec<String> =
            answers[4..].iter().map(|answer| answer.as_ref().expect_err("refused").to_string()).collect();
        assert_eq!(refused[0], "the prompt has 400 tokens: 1 to 399 are allowed, with max_tokens=400");
        assert_eq!(refused[1], "the prompt has 0 tokens: 1 to 399 are allowed, with max_tokens=400");
        assert_eq!(
            refused[2],
            "max_new_tokens is 400: 1 to 388 are allowed, with 12 tokens of prompt and max_tokens=400"
        );
        let client = Client::connect(connect.clone()).await.expect("a coordinator answers");
        let wrong = EngineConfig { block_tokens: 0, ..config(Codec::Raw) };
        assert!(matches!(
            Engine::new(&client, "default", Chain::default(), wrong),
            Err(EngineError::Config(_))
        ));
        assert!(matches!(
            Engine::new(&client, "nobody", Chain::default(), config(Codec::Raw)),
            Err(EngineError::Cache(_))
        ));
    });
}

#[test]
fn tenants_keep_their_blocks_and_sessions_their_turns_until_the_engine_ends() {
    let cluster = Cluster::start(&["--nodes", "1"]);
    let connect = cluster.client_config();
    cluster.wait(async {
        for (new_tenants, name, others) in [
            (NewTenants::Isolated, "isolated", 0),
            (NewTenants::Sharing, "sharing", 112),
            (NewTenants::Unknown, "unknown", 0),
        ] {
            let client = Client::connect(connect.clone()).await.expect("a coordinator answers");
            let config = EngineConfig { new_tenants, pending_bytes: 0, ..config(Codec::Raw) };
            let engine =
                Engine::new(&client, "default", Chain::default(), config).expect("the default tenant exists");
            let prompt = format!("{name}: {SYSTEM}Where are the pallets?")[..120].to_owned();
            let ask = async |tenant: &str| {
                let tenant = Some(format!("{name}-{tenant}"));
                let session = Some("night".to_owned());
                let request = Request { tenant, session, ..Request::new(&prompt) };
                let answer = engine.serve(request).await.expect("it is served");
                assert_eq!(answer.tokens, alone(&prompt));
                (answer.cached_tokens, answer.session_turn)
            };
            let own = if new_tenants == NewTenants::Unknown { 0 } else { 112 };
            assert_eq!(ask("one").await, (0, Some(1)));
            assert_eq!(ask("one").await, (own, Some(2)));
            assert_eq!(ask("two").await, (others, Some(3)));
            assert_eq!(engine.stats().cache_failures > 0, new_tenants == NewTenants::Unknown);
            assert!(engine.end_session("night").await && !engine.end_session("night").await);
            assert_eq!(ask("two").await, (own, Some(1)));
            engine.pause().await.expect("it has not ended").clear().await.expect("it is cleared");
            assert_eq!(ask("one").await.0, 0);
            engine.end().await;
            assert!(matches!(engine.serve(Request::new(&prompt)).await, Err(EngineError::Closed)));
            assert!(matches!(engine.pause().await, Err(EngineError::Closed)));
        }
    });
}

#[test]
fn better_settings_are_advised_by_what_was_served_and_taken_when_asked() {
    let cluster = Cluster::start(&["--nodes", "1"]);
    let connect = cluster.client_config();
    cluster.wait(async {
        let engine = engine(&connect, Codec::Raw).await;
        let prompt = format!("{SYSTEM}Where are the pallets?");
        let serve = async || engine.serve(Request::new(&prompt)).await.expect("it is served").cached_tokens;
        let memory = Memory {
            strategy: Strategy::Lru,
            frames: [(4 << 10, 64), (16 << 10, 64)].into(),
            codecs: vec![Codec::Raw, Codec::Int8],
        };
        let paused = engine.pause().await.expect("it has not ended");
        let nothing = paused.advise(Target::Memory, memory.clone()).await.expect("it is compared");
        assert!(nothing.advised.is_empty() && nothing.before.is_none());
        drop(paused);
        assert_eq!((serve().await, serve().await), (0, 112));
        let paused = engine.pause().await.expect("it has not ended");
        let advice = paused.advise(Target::Memory, memory).await.expect("it is compared");
        assert_eq!((advice.before, advice.after), (Some(16384.0), Some(4096.0)));
        assert_eq!(advice.advised["codec"].to, "int8");
        paused.take(&advice).await.expect("it is taken");
        drop(paused);
        // What was rounded goes by other keys.
        assert_eq!((serve().await, serve().await), (0, 112));
    });
}

#[test]
fn a_cache_that_is_gone_costs_time_and_no_answer() {
    let cluster = Cluster::start(&["--nodes", "1"]);
    let connect = ClientConfig { request_timeout: Duration::from_millis(300), ..cluster.client_config() };
    cluster.wait(async {
        let engine = engine(&connect, Codec::Raw).await;
        let prompt = format!("{SYSTEM}Where are the pallets?");
        let serve = async || -> Answer { engine.serve(Request::new(&prompt)).await.expect("it is served") };
        let before = serve().await;
        engine.settled().await;
        assert_eq!(serve().await.cached_tokens, 112);
        cluster.signal("node-1", "KILL");
        let without = serve().await;
        assert_eq!((without.cached_tokens, &without.tokens), (0, &before.tokens));
        assert!(engine.stats().cache_failures > 0 && !engine.stats().is_resting);
        // Who did not answer twice is not waited for by everybody after that; what was computed is not sent there either.
        serve().await;
        assert!(engine.stats().is_resting);
        let failures = engine.stats().cache_failures;
        assert_eq!(serve().await.tokens, before.tokens);
        assert!(engine.stats().cache_failures > failures);
        engine.settled().await;
    });
}
