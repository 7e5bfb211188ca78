//! A small serving process with a node of kvhive inside: a Llama on the CPU answers questions about one document, and what they have in
//! common is computed once. Prints the time to the first token with the cache and without it, and checks that answers are the same.
//!
//! ```sh
//! cargo run --release                                          # alone, weights from a seed
//! cargo run --release -- --weights ~/models/tiny-llama         # config.json, *.safetensors, tokenizer.json if there is one
//! cargo run --release -- --coordinator 10.0.0.1:7801 --token-file token   # one more node of a cluster
//! ```

mod llama;
mod weights;

use anyhow::{Context, Result, bail};
use clap::Parser;
use kvhive_client::{Client, ClientConfig};
use kvhive_coordinator::Alone;
use kvhive_node::engine::{Engine, EngineConfig, Model, Request};
use kvhive_node::{ClassConfig, DeviceConfig, DeviceMemory, NodeConfig, NodeHandle};
use llama::Llama;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use weights::{Shape, Weights};

/// How long the node may take to serve, and to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// A serving process with a cache inside; shows time to first token with it and without.
#[derive(Parser)]
struct Words {
    /// Folder with config.json and *.safetensors of a Llama; without it weights are drawn from a seed.
    #[arg(long)]
    weights: Option<PathBuf>,
    /// Control address of a coordinator of the cluster to join; without it this process is a cluster of its own.
    #[arg(long, requires = "token_file")]
    coordinator: Option<String>,
    /// The cluster's token file.
    #[arg(long)]
    token_file: Option<PathBuf>,
    /// Name of the tenant whose blocks they are.
    #[arg(long, default_value = "default")]
    tenant: String,
    /// Mebibytes of the node's memory.
    #[arg(long, default_value_t = 256)]
    memory_mb: u64,
    /// Sentences of the document that all questions are about.
    #[arg(long, default_value_t = 24)]
    sentences: usize,
    /// Tokens of a block.
    #[arg(long, default_value_t = 16)]
    block_tokens: u32,
    /// One JSON object instead of lines.
    #[arg(long)]
    json: bool,
}

const QUESTIONS: [&str; 5] = [
    "Where are the pallets?",
    "Who drives the truck?",
    "When does the gate close?",
    "Which shelf is empty?",
    "How many people work at night?",
];

fn main() -> Result<()> {
    let words = Words::parse();
    let (node, alone, connect) = start(&words)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let served = runtime.block_on(serve(&words, connect));
    node.shutdown(PATIENCE);
    if let Some(alone) = alone {
        alone.handle.shutdown(PATIENCE);
    }
    served
}

/// Starts the node that this process embeds, and waits until it serves.
fn start(words: &Words) -> Result<(NodeHandle, Option<Alone>, ClientConfig)> {
    let (alone, address, token) = match (&words.coordinator, &words.token_file) {
        (Some(address), Some(file)) => {
            let token =
                std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
            (None, address.clone(), token.trim().as_bytes().to_vec())
        }
        _ => {
            let alone = Alone::start(None)?;
            let (address, token) = (alone.address.clone(), alone.token.clone());
            (Some(alone), address, token)
        }
    };
    let device = DeviceConfig {
        memory: DeviceMemory::Host,
        device_bytes: words.memory_mb << 20,
        host_bytes: 0,
        disk_bytes: 0,
        classes: vec![ClassConfig { frame_bytes: 64 << 10, share: 1 }],
    };
    let name = format!("serving-{}", std::process::id());
    let node = kvhive_node::start(NodeConfig::embedded(name, device, vec![address.clone()], token.clone()))?;
    let begun = Instant::now();
    while !node.is_serving() {
        if let Some(Err(error)) = node.ended() {
            return Err(error.into());
        }
        if begun.elapsed() > PATIENCE {
            if let Some(error) = node.refusal() {
                bail!("the coordinator at {address} does not take the node in: {error}");
            }
            bail!("the coordinator at {address} gave the node no lease within {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok((node, alone, ClientConfig::new(vec![address], token)))
}

/// Answers the questions, and says what the cache did for each.
async fn serve(words: &Words, connect: ClientConfig) -> Result<()> {
    let config = EngineConfig { block_tokens: words.block_tokens, ..EngineConfig::default() };
    let weights = match &words.weights {
        Some(folder) => Weights::read(folder)?,
        None => Weights::seeded(Shape::small(), 42)?,
    };
    let client = Client::connect(connect).await?;
    let model = Llama::new(&weights, words.weights.as_deref(), config.max_tokens)?;
    let engine = Engine::new(&client, &words.tenant, model, config)?;
    let document: String = (1..=words.sentences)
        .map(|at| format!("Rule {at}: whatever comes by truck goes to shelf {}. ", at * 7 % 12))
        .collect();
    if !words.json {
        println!("{:>8} {:>7} {:>12} {:>12}  question", "prompt", "cached", "first token", "without");
    }
    let mut rows = Vec::new();
    for question in QUESTIONS {
        let prompt = format!("{document}{question}");
        let without = engine.serve_uncached(Request::new(&prompt)).await?;
        let answer = engine.serve(Request::new(&prompt)).await?;
        if answer.tokens != without.tokens {
            bail!("{question:?} was answered otherwise than without the cache: this must not be");
        }
        if !words.json {
            let (with, without) = (answer.first_token, without.first_token);
            println!(
                "{:>8} {:>7} {with:>12.1?} {without:>12.1?}  {question}",
                answer.prompt_tokens, answer.cached_tokens
            );
        }
        rows.push(serde_json::json!({
            "question": question,
            "prompt_tokens": answer.prompt_tokens,
            "cached_tokens": answer.cached_tokens,
            "answer_tokens": answer.tokens,
            "first_token_ms": answer.first_token.as_secs_f64() * 1e3,
            "without_ms": without.first_token.as_secs_f64() * 1e3,
        }));
        // So that the next one finds it in the node and not in this process's waiting stores.
        engine.settled().await;
    }
    let ratios = rows[1..]
        .iter()
        .filter_map(|row| Some(row["first_token_ms"].as_f64()? / row["without_ms"].as_f64()?));
    let mut ratios: Vec<f64> = ratios.collect();
    ratios.sort_by(f64::total_cmp);
    let ratio = ratios[ratios.len() / 2];
    if words.json {
        println!(
            "{}",
            serde_json::json!({ "model": engine.model().name(), "requests": rows, "median_ratio": ratio, "engine": engine.stats() })
        );
    } else {
        println!(
            "every answer was the same; after the first question the first token took {ratio:.2} of its time without the cache (median)"
        );
    }
    Ok(())
}
