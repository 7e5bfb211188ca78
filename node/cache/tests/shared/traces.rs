//! The shared traces and the table of reference results, where they are at hand.

use kvhive_cache::simulate::{Trace, Turn};
use kvhive_protocol::{BlockKey, Moment};
use std::io::Read;
use std::path::{Path, PathBuf};

pub(crate) const BLOCK_TOKENS: u32 = 512;

pub(crate) fn key(id: u64) -> BlockKey {
    let mut bytes = [0; 32];
    for (at, piece) in bytes.chunks_exact_mut(8).enumerate() {
        let word = (id + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(16 * at as u32) ^ (at as u64);
        piece.copy_from_slice(&word.to_le_bytes());
    }
    BlockKey::from_bytes(bytes)
}

/// The folder of the shared traces: beside the checkout, or where `KVHIVE_TRACES` says.
pub(crate) fn traces() -> Option<PathBuf> {
    let beside = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/traces");
    let folder = std::env::var_os("KVHIVE_TRACES").map_or_else(beside, PathBuf::from);
    if folder.join("baseline_hit_rates.csv.gz").exists() {
        return Some(folder);
    }
    println!("SKIPPED: no traces at {}", folder.display());
    None
}

pub(crate) fn unzip(path: &Path) -> String {
    let file = std::fs::File::open(path).expect("it is there");
    let mut text = String::new();
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).expect("a gzip file of text");
    text
}

pub(crate) fn load(path: &Path) -> Trace {
    let mut trace = Trace::new();
    for line in unzip(path).lines() {
        let value: serde_json::Value = serde_json::from_str(line).expect("a request a line");
        let number = |value: &serde_json::Value| value.as_u64().expect("a whole number");
        let ids: Vec<u64> = match value["hash_ids"].as_array() {
            Some(ids) => ids.iter().map(number).collect(),
            None => {
                let runs = value["hash_runs"].as_array().expect("ids or runs");
                runs.iter().flat_map(|run| number(&run[0])..number(&run[0]) + number(&run[1])).collect()
            }
        };
        let input_tokens = number(&value["input_length"]) as u32;
        let turn = Turn {
            now: Moment::from_millis(value["timestamp"].as_f64().expect("milliseconds") as u64),
            input_tokens,
            output_tokens: number(&value["output_length"]) as u32,
            partial: ids.len() as u64 * u64::from(BLOCK_TOKENS) > u64::from(input_tokens),
            ..Turn::default()
        };
        trace.push(turn, ids.into_iter().map(key)).expect("a short trace");
    }
    trace
}
