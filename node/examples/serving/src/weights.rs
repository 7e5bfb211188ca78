//! Weights of a Llama: drawn from a seed, or read from a folder as Hugging Face has them.

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor, safetensors};
use serde::Deserialize;
use std::collections::HashMap;
use std::fs;
use std::path::Path;

/// The shape, by the names of a `config.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Shape {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: Option<usize>,
    pub vocab_size: usize,
    pub rms_norm_eps: f64,
    pub rope_theta: Option<f64>,
    pub rope_parameters: Option<Rope>,
    #[serde(default)]
    pub tie_word_embeddings: bool,
    pub eos_token_id: Option<u32>,
}

/// How positions are told.
#[derive(Clone, Debug, Deserialize)]
pub struct Rope {
    pub rope_theta: Option<f64>,
    pub rope_type: Option<String>,
}

impl Shape {
    /// A small one that reads bytes: 4 layers, 8 heads over 2 of keys and values.
    pub fn small() -> Shape {
        Shape {
            hidden_size: 256,
            intermediate_size: 688,
            num_hidden_layers: 4,
            num_attention_heads: 8,
            num_key_value_heads: 2,
            head_dim: None,
            vocab_size: 256,
            rms_norm_eps: 1e-5,
            rope_theta: None,
            rope_parameters: None,
            tie_word_embeddings: false,
            eos_token_id: None,
        }
    }

    pub fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads)
    }

    pub fn rope_theta(&self) -> f64 {
        self.rope_theta.or_else(|| self.rope_parameters.as_ref()?.rope_theta).unwrap_or(10_000.0)
    }
}

/// What a model is made of.
pub struct Weights {
    pub shape: Shape,
    /// Names them: other weights, another name.
    pub name: String,
    tensors: HashMap<String, Tensor>,
}

impl Weights {
    /// Draws weights from a seed: real arithmetic, no sense.
    pub fn seeded(shape: Shape, seed: u64) -> Result<Weights> {
        let mut random = Random(seed);
        let mut tensors = HashMap::new();
        let (d, heads) = (shape.hidden_size, shape.head_dim());
        let (queries, values) = (shape.num_attention_heads * heads, shape.num_key_value_heads * heads);
        let mut add = |name: String, to: usize, from: usize| -> Result<()> {
            let scale = (1.0 / from as f32).sqrt();
            let drawn: Vec<f32> = (0..to * from).map(|_| random.normal() * scale).collect();
            tensors.insert(name, Tensor::from_vec(drawn, (to, from), &Device::Cpu)?);
            Ok(())
        };
        add("model.embed_tokens.weight".into(), shape.vocab_size, d)?;
        add("lm_head.weight".into(), shape.vocab_size, d)?;
        for layer in 0..shape.num_hidden_layers {
            for (part, to, from) in [
                ("self_attn.q_proj", queries, d),
                ("self_attn.k_proj", values, d),
                ("self_attn.v_proj", values, d),
                ("self_attn.o_proj", d, queries),
                ("mlp.gate_proj", shape.intermediate_size, d),
                ("mlp.up_proj", shape.intermediate_size, d),
                ("mlp.down_proj", d, shape.intermediate_size),
            ] {
                add(format!("model.layers.{layer}.{part}.weight"), to, from)?;
            }
        }
        let name = format!("seeded-llama-{d}x{}@{seed}", shape.num_hidden_layers);
        Ok(Weights { shape, name, tensors })
    }

    /// Reads `config.json` and every `*.safetensors` of a folder.
    pub fn read(folder: &Path) -> Result<Weights> {
        let config = folder.join("config.json");
        let text = fs::read(&config).with_context(|| format!("cannot read {}", config.display()))?;
        let shape: Shape =
            serde_json::from_slice(&text).with_context(|| format!("{} is no Llama's", config.display()))?;
        let rope = shape.rope_parameters.as_ref().and_then(|rope| rope.rope_type.as_deref());
        if let Some(other) = rope.filter(|rope| *rope != "default") {
            bail!("{}: positions of type {other:?} are not known here, only \"default\"", config.display());
        }
        let mut files: Vec<_> = fs::read_dir(folder)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
            .collect();
        files.sort();
        let mut digest = blake3::Hasher::new();
        digest.update(&text);
        let mut tensors = HashMap::new();
        for file in &files {
            digest.update(&fs::read(file).with_context(|| format!("cannot read {}", file.display()))?);
            for (name, tensor) in safetensors::load(file, &Device::Cpu)? {
                tensors.insert(name, tensor.to_dtype(DType::F32)?);
            }
        }
        if tensors.is_empty() {
            bail!("{} has no *.safetensors", folder.display());
        }
        let called = folder.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let name = format!("{called}@{}", &digest.finalize().to_hex()[..16]);
        Ok(Weights { shape, name, tensors })
    }

    /// Returns a tensor of this shape, which must be there.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = self.tensors.get(name).with_context(|| format!("the weights have no {name}"))?;
        if tensor.dims() != shape {
            bail!("{name} is {:?}, the configuration says {shape:?}", tensor.dims());
        }
        Ok(tensor.clone())
    }

    /// Returns all of them by name.
    #[cfg(test)]
    pub fn tensors(&self) -> &HashMap<String, Tensor> {
        &self.tensors
    }

    /// Returns a vector that scales; ones where there is none, as in those that are drawn.
    pub fn scale(&self, name: &str, width: usize) -> Result<Tensor> {
        match self.tensors.contains_key(name) {
            true => self.tensor(name, &[width]),
            false => Ok(Tensor::ones(width, DType::F32, &Device::Cpu)?),
        }
    }
}

/// SplitMix64 and the Box–Muller transform.
struct Random(u64);

impl Random {
    fn unit(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ mixed >> 31) >> 40) as f32 / (1 << 24) as f32
    }

    fn normal(&mut self) -> f32 {
        (-2.0 * (1.0 - self.unit()).ln()).sqrt() * (std::f32::consts::TAU * self.unit()).cos()
    }
}
