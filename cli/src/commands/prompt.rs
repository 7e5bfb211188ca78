//! What a request's blocks are called, wherever a command is given one: by keys' files, by a trace, by tokens.

use anyhow::{Context, Result};
use kvhive_client::{NamespaceClient, Prefix};
use kvhive_config::Bytes;
use kvhive_protocol::frame::MAX_PAYLOAD_BYTES;
use kvhive_protocol::{AxisOrder, Dtype, Layout};
use serde::Deserialize;
use serde_json::{Value, json};
use std::io::Read;
use std::path::Path;

/// How an engine's blocks are named in kvhive, as `kvhive engines follow --blocks-file` takes it too.
#[derive(Clone, Copy, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Naming {
    #[serde(deserialize_with = "layout")]
    pub(super) layout: Layout,
    #[serde(default)]
    pub(super) rank: u32,
    #[serde(default)]
    pub(super) named_by: NamedBy,
}

/// What block keys are made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum NamedBy {
    /// Tokens, adapter and salt.
    #[default]
    Tokens,
    /// The engine's own hashes.
    Hashes,
}

impl Naming {
    /// Blocks of bytes without meaning, as replays store them.
    pub(super) fn opaque(bytes: Bytes, tokens: u32) -> Result<Naming> {
        let layout = Layout::opaque(block_bytes(bytes)?, tokens);
        Ok(Naming { layout, rank: 0, named_by: NamedBy::Hashes })
    }

    /// Reads a file.
    pub(super) fn read(file: &Path) -> Result<Naming> {
        serde_json::from_str(&read(file)?)
            .with_context(|| format!("{} does not say how blocks are named", file.display()))
    }
}

/// Returns a block's bytes. A larger block than one answer carries would be refused by every node.
pub(super) fn block_bytes(size: Bytes) -> Result<u32> {
    let bytes = u32::try_from(size.0).ok().filter(|bytes| (1..=MAX_PAYLOAD_BYTES).contains(bytes));
    let most = Bytes(u64::from(MAX_PAYLOAD_BYTES));
    bytes.with_context(|| format!("--block-size is {size}: 1B to {most} are allowed"))
}

/// Names the blocks of a trace's request.
pub(super) fn of_trace(namespace: &NamespaceClient, hash_ids: &[u64]) -> Prefix {
    let hashes: Vec<[u8; 8]> = hash_ids.iter().map(|id| id.to_le_bytes()).collect();
    namespace.prefix_of_engine_hashes(&hashes)
}

/// Reads a file, or standard input for `-`.
pub(super) fn read(file: &Path) -> Result<String> {
    if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
        return Ok(text);
    }
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

/// Reads tokens: a JSON array, or numbers between spaces, commas or lines.
pub(super) fn tokens(file: &Path, text: &str) -> Result<Vec<u32>> {
    if text.trim_start().starts_with('[') {
        return serde_json::from_str(text)
            .with_context(|| format!("{} is not a JSON array of tokens", file.display()));
    }
    let token = |word: &str| {
        word.parse().with_context(|| {
            format!("{}: {:?} is not a token, 0 to {}", file.display(), short(word), u32::MAX)
        })
    };
    words(text).map(token).collect()
}

/// Reads an engine's hashes as JSON: hexadecimal or numbers.
pub(super) fn hashes(file: &Path, text: &str) -> Result<Vec<Value>> {
    if text.trim_start().starts_with('[') {
        return serde_json::from_str(text)
            .with_context(|| format!("{} is not a JSON array of hashes", file.display()));
    }
    Ok(words(text).map(|word| json!(word)).collect())
}

/// Returns the bytes of a hash, as the coordinators read it.
pub(super) fn hash_bytes(hash: &Value) -> Result<Vec<u8>> {
    let expected = || format!("{hash} is no hash: write hexadecimal digits, two for each byte, or a number");
    if let Some(number) = hash.as_u64() {
        return Ok(number.to_be_bytes().to_vec());
    }
    let text = hash.as_str().with_context(expected)?;
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let bytes = pairs.iter().map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect();
    let bytes: Option<Vec<u8>> = bytes;
    bytes.filter(|bytes| rest.is_empty() && !bytes.is_empty()).with_context(expected)
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|letter: char| letter.is_whitespace() || letter == ',').filter(|word| !word.is_empty())
}

fn short(word: &str) -> String {
    word.chars().take(32).collect()
}

fn layout<'de, D: serde::Deserializer<'de>>(json: D) -> Result<Layout, D::Error> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct OneLayout {
        layers: u32,
        kv_heads: u32,
        head_dim: u32,
        tokens: u32,
        dtype: OneDtype,
        order: OneOrder,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum OneDtype {
        F16,
        Bf16,
        F32,
        Fp8E4m3,
        U8,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    enum OneOrder {
        LayersFirst,
        KvFirst,
        Packed,
    }

    let OneLayout { layers, kv_heads, head_dim, tokens, dtype, order } = OneLayout::deserialize(json)?;
    let dtype = match dtype {
        OneDtype::F16 => Dtype::F16,
        OneDtype::Bf16 => Dtype::Bf16,
        OneDtype::F32 => Dtype::F32,
        OneDtype::Fp8E4m3 => Dtype::Fp8E4M3,
        OneDtype::U8 => Dtype::U8,
    };
    let order = match order {
        OneOrder::LayersFirst => AxisOrder::LayersFirst,
        OneOrder::KvFirst => AxisOrder::KvFirst,
        OneOrder::Packed => AxisOrder::Packed,
    };
    Ok(Layout { layers, kv_heads, head_dim, tokens, dtype, order })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_however_they_are_parted() {
        let file = Path::new("tokens.txt");
        for text in ["1 2 3", "1,2,3", "[1, 2, 3]", "1\n2\n3\n", " [1,2,3]\n"] {
            assert_eq!(tokens(file, text).expect("tokens"), [1, 2, 3], "{text:?}");
        }
        let error = format!("{:#}", tokens(file, "1 x 3").expect_err("no token"));
        assert!(error.contains("tokens.txt: \"x\" is not a token"), "{error}");
        assert!(tokens(file, "[1, -2]").is_err());
    }

    #[test]
    fn hashes_are_hexadecimal_or_numbers() {
        let file = Path::new("hashes.txt");
        let read = |text| hashes(file, text).expect("hashes");
        assert_eq!(read("ab cd"), [json!("ab"), json!("cd")]);
        let bytes: Vec<_> = read("[\"0aFF\", 258]").iter().map(|hash| hash_bytes(hash).ok()).collect();
        assert_eq!(bytes, [Some(vec![0x0A, 0xFF]), Some(vec![0, 0, 0, 0, 0, 0, 1, 2])]);
        for wrong in [json!("abc"), json!("xy"), json!(""), json!(-1), json!([1])] {
            assert!(hash_bytes(&wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_file_says_how_blocks_are_named() {
        let text = r#"{"layout": {"layers": 2, "kv_heads": 1, "head_dim": 8, "tokens": 16, "dtype": "fp8e4m3", "order": "kv-first"},
            "rank": 3, "named_by": "hashes"}"#;
        let naming: Naming = serde_json::from_str(text).expect("as documented");
        assert_eq!((naming.rank, naming.layout.dtype, naming.layout.tokens), (3, Dtype::Fp8E4M3, 16));
        assert!(serde_json::from_str::<Naming>(&text.replace("rank", "ranks")).is_err());
    }

    #[test]
    fn a_block_that_no_answer_carries_is_refused_before_anybody_is_asked() {
        assert_eq!(block_bytes(Bytes(256 << 20)).expect("it fits"), 256 << 20);
        for size in [0, (256 << 20) + 1, 1 << 32] {
            let error = block_bytes(Bytes(size)).expect_err("it does not fit").to_string();
            assert!(error.ends_with("1B to 256MiB are allowed"), "{error}");
        }
    }
}
