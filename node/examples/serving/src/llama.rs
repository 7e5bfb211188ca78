//! A Llama on the CPU (RMSNorm, rotary positions, grouped queries, a gated MLP), whose keys and values can be taken out and put in.

use crate::weights::{Shape, Weights};
use anyhow::{Context, Result, anyhow};
use candle_core::{D, DType, Device, Tensor};
use candle_nn::{ops, rotary_emb};
use kvhive_node::engine::Model;
use kvhive_protocol::{AxisOrder, Dtype, Layout};
use std::ops::Range;
use std::path::Path;
use tokenizers::Tokenizer;

pub struct Llama {
    shape: Shape,
    name: String,
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
    head: Tensor,
    /// Rotations by position, `[positions, head_dim / 2]`.
    cos: Tensor,
    sin: Tensor,
    /// Bytes are tokens where there is none.
    tokenizer: Option<Tokenizer>,
}

struct Layer {
    before_attention: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    before_mlp: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
}

/// Keys and values of a request's tokens: of each layer both, `[1, kv_heads, tokens, head_dim]`.
pub struct Past {
    layers: Vec<Option<(Tensor, Tensor)>>,
    tokens: usize,
}

/// What a model says that cannot go on.
#[derive(Debug)]
pub struct Trouble(anyhow::Error);

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#}", self.0)
    }
}

impl std::error::Error for Trouble {}

impl From<candle_core::Error> for Trouble {
    fn from(error: candle_core::Error) -> Self {
        Trouble(error.into())
    }
}

impl Llama {
    /// Makes a model for so many tokens at most, with the tokenizer of a folder if that has one.
    pub fn new(weights: &Weights, folder: Option<&Path>, max_tokens: usize) -> Result<Llama> {
        let shape = weights.shape.clone();
        let (d, ff, heads) = (shape.hidden_size, shape.intermediate_size, shape.head_dim());
        let (queries, values) = (shape.num_attention_heads * heads, shape.num_key_value_heads * heads);
        let embedding = weights.tensor("model.embed_tokens.weight", &[shape.vocab_size, d])?;
        let head = match shape.tie_word_embeddings {
            true => embedding.clone(),
            false => weights.tensor("lm_head.weight", &[shape.vocab_size, d])?,
        };
        let layer = |at: usize| -> Result<Layer> {
            let part = |name: &str, to: usize, from: usize| {
                weights.tensor(&format!("model.layers.{at}.{name}.weight"), &[to, from])
            };
            let scale = |name: &str| weights.scale(&format!("model.layers.{at}.{name}.weight"), d);
            Ok(Layer {
                before_attention: scale("input_layernorm")?,
                query: part("self_attn.q_proj", queries, d)?,
                key: part("self_attn.k_proj", values, d)?,
                value: part("self_attn.v_proj", values, d)?,
                output: part("self_attn.o_proj", d, queries)?,
                before_mlp: scale("post_attention_layernorm")?,
                gate: part("mlp.gate_proj", ff, d)?,
                up: part("mlp.up_proj", ff, d)?,
                down: part("mlp.down_proj", d, ff)?,
            })
        };
        let layers = (0..shape.num_hidden_layers).map(layer).collect::<Result<_>>()?;
        let steps = (0..heads / 2).map(|at| shape.rope_theta().powf(-2.0 * at as f64 / heads as f64) as f32);
        let steps = Tensor::from_vec(steps.collect::<Vec<f32>>(), (1, heads / 2), &Device::Cpu)?;
        let positions = Tensor::arange(0f32, max_tokens as f32, &Device::Cpu)?.unsqueeze(1)?;
        let angles = positions.matmul(&steps)?;
        let file = folder.map(|folder| folder.join("tokenizer.json")).filter(|file| file.exists());
        let read = |file: &std::path::PathBuf| {
            Tokenizer::from_file(file)
                .map_err(|error| anyhow::anyhow!("{}: {error}", file.display()))
                .context("the tokenizer cannot be read")
        };
        Ok(Llama {
            name: weights.name.clone(),
            embedding,
            layers,
            norm: weights.scale("model.norm.weight", d)?,
            head,
            cos: angles.cos()?,
            sin: angles.sin()?,
            tokenizer: file.as_ref().map(read).transpose()?,
            shape,
        })
    }

    /// Computes tokens after a past, which has them afterwards; returns the last one's logits.
    fn forward(&self, past: &mut Past, tokens: &[u32]) -> candle_core::Result<Vec<f32>> {
        let (count, begin, eps) = (tokens.len(), past.tokens, self.shape.rms_norm_eps as f32);
        let (cos, sin) = (self.cos.narrow(0, begin, count)?, self.sin.narrow(0, begin, count)?);
        let mask = self.mask(count, begin)?;
        let mut x = self.embedding.index_select(&Tensor::new(tokens, &Device::Cpu)?, 0)?.unsqueeze(0)?;
        for (layer, kept) in self.layers.iter().zip(&mut past.layers) {
            let y = ops::rms_norm(&x, &layer.before_attention, eps)?;
            let y = self.attend(layer, &y, kept, (&cos, &sin), mask.as_ref())?;
            x = (x + y)?;
            let y = ops::rms_norm(&x, &layer.before_mlp, eps)?;
            let gated = (times(&y, &layer.gate)?.silu()? * times(&y, &layer.up)?)?;
            x = (x + times(&gated, &layer.down)?)?;
        }
        past.tokens += count;
        let last = x.narrow(1, count - 1, 1)?.contiguous()?;
        times(&ops::rms_norm(&last, &self.norm, eps)?, &self.head)?.flatten_all()?.to_vec1()
    }

    fn attend(
        &self,
        layer: &Layer,
        y: &Tensor,
        kept: &mut Option<(Tensor, Tensor)>,
        (cos, sin): (&Tensor, &Tensor),
        mask: Option<&Tensor>,
    ) -> candle_core::Result<Tensor> {
        let (_, count, _) = y.dims3()?;
        let (heads, kv_heads, width) =
            (self.shape.num_attention_heads, self.shape.num_key_value_heads, self.shape.head_dim());
        let by_head =
            |x: Tensor, heads: usize| x.reshape((1, count, heads, width))?.transpose(1, 2)?.contiguous();
        let query = rotary_emb::rope(&by_head(times(y, &layer.query)?, heads)?, cos, sin)?;
        let key = rotary_emb::rope(&by_head(times(y, &layer.key)?, kv_heads)?, cos, sin)?;
        let value = by_head(times(y, &layer.value)?, kv_heads)?;
        let (key, value) = match kept.take() {
            Some((before, values)) => {
                (Tensor::cat(&[&before, &key], 2)?, Tensor::cat(&[&values, &value], 2)?)
            }
            None => (key, value),
        };
        *kept = Some((key.clone(), value.clone()));
        let all = key.dim(2)?;
        let shared = |x: Tensor| {
            x.unsqueeze(2)?
                .expand((1, kv_heads, heads / kv_heads, all, width))?
                .reshape((1, heads, all, width))
        };
        let scores = (query.matmul(&shared(key)?.t()?)? / (width as f64).sqrt())?;
        let scores = match mask {
            Some(mask) => scores.broadcast_add(mask)?,
            None => scores,
        };
        let seen = ops::softmax_last_dim(&scores)?.matmul(&shared(value)?.contiguous()?)?;
        times(&seen.transpose(1, 2)?.reshape((1, count, heads * width))?, &layer.output)
    }

    /// Hides what comes later; one token alone sees all.
    fn mask(&self, count: usize, begin: usize) -> candle_core::Result<Option<Tensor>> {
        if count == 1 {
            return Ok(None);
        }
        let all = begin + count;
        let hidden =
            |row: usize| (0..all).map(move |at| if at > begin + row { f32::NEG_INFINITY } else { 0.0 });
        let mask: Vec<f32> = (0..count).flat_map(hidden).collect();
        Tensor::from_vec(mask, (count, all), &Device::Cpu).map(Some)
    }
}

/// Multiplies by weights of `[to, from]`.
fn times(x: &Tensor, weights: &Tensor) -> candle_core::Result<Tensor> {
    x.broadcast_matmul(&weights.t()?)
}

impl Model for Llama {
    type Past = Past;
    type Error = Trouble;

    fn name(&self) -> String {
        let tokenizer = if self.tokenizer.is_some() { "" } else { "+bytes" };
        format!("{}{tokenizer}", self.name)
    }

    fn layout(&self, tokens: u32) -> Layout {
        Layout {
            layers: self.shape.num_hidden_layers as u32,
            kv_heads: self.shape.num_key_value_heads as u32,
            head_dim: self.shape.head_dim() as u32,
            tokens,
            dtype: Dtype::F32,
            order: AxisOrder::LayersFirst,
        }
    }

    fn tokenize(&self, text: &str) -> Result<Vec<u32>, Trouble> {
        match &self.tokenizer {
            Some(tokenizer) => {
                let encoded = tokenizer.encode(text, true).map_err(|error| Trouble(anyhow!(error)))?;
                Ok(encoded.get_ids().to_vec())
            }
            None => Ok(text.bytes().map(u32::from).collect()),
        }
    }

    fn detokenize(&self, tokens: &[u32]) -> Result<String, Trouble> {
        match &self.tokenizer {
            Some(tokenizer) => tokenizer.decode(tokens, true).map_err(|error| Trouble(anyhow!(error))),
            None => {
                let bytes: Vec<u8> =
                    tokens.iter().map(|token| u8::try_from(*token).unwrap_or(b'?')).collect();
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
        }
    }

    fn is_end(&self, token: u32) -> Result<bool, Trouble> {
        Ok(self.shape.eos_token_id == Some(token))
    }

    fn begin(&self, _most_tokens: usize) -> Past {
        Past { layers: vec![None; self.layers.len()], tokens: 0 }
    }

    fn compute(&self, past: &mut Past, tokens: &[u32]) -> Result<Vec<f32>, Trouble> {
        Ok(self.forward(past, tokens)?)
    }

    fn save(&self, past: &Past, tokens: Range<usize>, block: &mut [u8]) -> Result<(), Trouble> {
        let mut places = block.chunks_exact_mut(4);
        for (key, value) in past.layers.iter().flatten() {
            for half in [key, value] {
                // From heads first to tokens first.
                let part = half.narrow(2, tokens.start, tokens.len())?.squeeze(0)?.transpose(0, 1)?;
                for element in part.contiguous()?.flatten_all()?.to_vec1::<f32>()? {
                    let place = places.next().context("the block is too small").map_err(Trouble)?;
                    place.copy_from_slice(&element.to_le_bytes());
                }
            }
        }
        Ok(())
    }

    fn load(&self, past: &mut Past, block: &[u8]) -> Result<(), Trouble> {
        let (kv_heads, width) = (self.shape.num_key_value_heads, self.shape.head_dim());
        let half = block.len() / self.layers.len() / 2;
        let tokens = half / (kv_heads * width * 4);
        let mut halves = block.chunks_exact(half);
        let mut tensor = || -> candle_core::Result<Tensor> {
            let bytes = halves.next().unwrap_or_default();
            let part = Tensor::from_raw_buffer(bytes, DType::F32, &[tokens, kv_heads, width], &Device::Cpu)?;
            part.transpose(0, 1)?.unsqueeze(0)?.contiguous()
        };
        for kept in &mut past.layers {
            let (key, value) = (tensor()?, tensor()?);
            *kept = Some(match kept.take() {
                Some((keys, values)) => {
                    (Tensor::cat(&[&keys, &key], 2)?, Tensor::cat(&[&values, &value], 2)?)
                }
                None => (key, value),
            });
        }
        past.tokens += tokens;
        Ok(())
    }

    fn truncate(&self, past: &mut Past, tokens: usize) -> Result<(), Trouble> {
        for kept in &mut past.layers {
            *kept = match kept.take() {
                Some((key, value)) if tokens > 0 => {
                    Some((key.narrow(D::Minus2, 0, tokens)?, value.narrow(D::Minus2, 0, tokens)?))
                }
                _ => None,
            };
        }
        past.tokens = tokens;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::safetensors;
    use serde_json::json;
    use std::collections::HashMap;
    use std::fs;
    use std::path::PathBuf;

    const QUESTION: &str = "where are the pallets";

    /// A folder of this test's own.
    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("kvhive-serving-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).expect("room");
        folder
    }

    /// Writes weights as Hugging Face has them, parted among files as large models are.
    fn write(folder: &Path, weights: &Weights, dtype: DType) {
        let shape = &weights.shape;
        let config = json!({
            "hidden_size": shape.hidden_size, "intermediate_size": shape.intermediate_size,
            "num_hidden_layers": shape.num_hidden_layers, "num_attention_heads": shape.num_attention_heads,
            "num_key_value_heads": shape.num_key_value_heads, "vocab_size": shape.vocab_size,
            "rms_norm_eps": shape.rms_norm_eps, "rope_parameters": { "rope_theta": 10_000.0, "rope_type": "default" },
            "model_type": "llama",
        });
        fs::write(folder.join("config.json"), config.to_string()).expect("room");
        let mut files = [HashMap::new(), HashMap::new()];
        for (name, tensor) in weights.tensors() {
            let is_first = name.starts_with("model.layers.0.");
            files[usize::from(!is_first)]
                .insert(name.clone(), tensor.to_dtype(dtype).expect("they are numbers"));
        }
        // Hugging Face's have scales too, which drawn ones have not.
        let ones = Tensor::ones(shape.hidden_size, dtype, &Device::Cpu).expect("room");
        files[0].insert("model.layers.0.input_layernorm.weight".to_owned(), ones);
        for (at, tensors) in files.iter().enumerate() {
            let file = folder.join(format!("model-0000{}-of-00002.safetensors", at + 1));
            safetensors::save(tensors, file).expect("room");
        }
    }

    /// Returns what a model answers, taking the likeliest token each time.
    fn answer(model: &Llama, tokens: &[u32]) -> Vec<u32> {
        let mut past = model.begin(64);
        let mut logits = model.compute(&mut past, tokens).expect("it computes");
        let mut answered = Vec::new();
        for _ in 0..12 {
            let likeliest = (0..logits.len()).max_by(|one, other| logits[*one].total_cmp(&logits[*other]));
            answered.push(likeliest.expect("there are tokens") as u32);
            logits = model.compute(&mut past, &answered[answered.len() - 1..]).expect("it computes");
        }
        answered
    }

    #[test]
    fn weights_of_a_folder_answer_as_those_that_were_written_there() {
        let drawn = Weights::seeded(Shape::small(), 42).expect("they are drawn");
        let model = Llama::new(&drawn, None, 64).expect("it is whole");
        let tokens = model.tokenize(QUESTION).expect("bytes");
        let folder = folder("same");
        write(&folder, &drawn, DType::F32);
        let read = Weights::read(&folder).expect("it is a Llama's");
        let again = Llama::new(&read, Some(&folder), 64).expect("it is whole");
        assert_eq!(answer(&again, &tokens), answer(&model, &tokens));
        assert!(again.name().ends_with("+bytes") && again.name() != model.name());

        // Weights that differ have another name: their blocks are never taken for each other's.
        write(&folder, &drawn, DType::BF16);
        let rounded = Weights::read(&folder).expect("it is a Llama's");
        assert_ne!(rounded.name, read.name);
        let rounded = Llama::new(&rounded, None, 64).expect("it is whole");
        assert_eq!(answer(&rounded, &tokens).len(), 12, "elements of 16 bits are read as well");

        let words = ["[UNK]", "where", "are", "the", "pallets"];
        let vocab: HashMap<_, _> = words.iter().enumerate().map(|(token, word)| (word, token)).collect();
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": { "type": "Whitespace" }, "post_processor": null, "decoder": null,
            "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]" },
        });
        fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).expect("room");
        let spoken = Llama::new(&read, Some(&folder), 64).expect("it is whole");
        assert_eq!(spoken.tokenize(QUESTION).expect("words"), [1, 2, 3, 4]);
        assert_eq!(spoken.detokenize(&[1, 4]).expect("words"), "where pallets");
        assert!(!spoken.name().ends_with("+bytes"));
        fs::remove_dir_all(folder).expect("it is this test's own");
    }

    #[test]
    fn what_a_folder_lacks_is_named() {
        let drawn = Weights::seeded(Shape::small(), 1).expect("they are drawn");
        let folder = folder("lacks");
        let refused = |of: &Path| match Weights::read(of) {
            Ok(weights) => Llama::new(&weights, Some(of), 64).err(),
            Err(error) => Some(error),
        };
        let told = |of: &Path| format!("{:#}", refused(of).expect("it is refused"));
        assert!(told(&folder).contains("cannot read"), "{}", told(&folder));
        write(&folder, &drawn, DType::F32);
        assert!(refused(&folder).is_none());
        fs::remove_file(folder.join("model-00001-of-00002.safetensors")).expect("it is there");
        assert!(told(&folder).contains("the weights have no model.layers.0."), "{}", told(&folder));
        fs::remove_file(folder.join("model-00002-of-00002.safetensors")).expect("it is there");
        assert!(told(&folder).contains("has no *.safetensors"), "{}", told(&folder));
        let config = fs::read_to_string(folder.join("config.json")).expect("it is there");
        fs::write(folder.join("config.json"), config.replace("\"default\"", "\"yarn\"")).expect("room");
        assert!(told(&folder).contains("positions of type \"yarn\" are not known here"), "{}", told(&folder));
        fs::remove_dir_all(folder).expect("it is this test's own");
    }
}
