//! From text to vector: a sentence-transformers folder as one pipeline.
//!
//! What is read: `modules.json` (Transformer, Pooling, Normalize, Dense, LayerNorm, Dropout), `config.json`, `tokenizer.json` or
//! `vocab.txt`, `sentence_bert_config.json` or its older names, `tokenizer_config.json` (the length limit, if no other file has
//! one, and how BERT's tokenizers normalise), `config_sentence_transformers.json` (prompts, `truncate_dim`), and safetensors
//! weights. A folder without `modules.json` gives means over tokens. Anything else that would change the vectors is refused by
//! name ([`settings`](crate::models::settings)), never ignored.

use super::choice::Choice;
use super::modules::{Dense, Module, Modules, Pooling};
use super::text::Settings;
use super::{Config, Encoder, load_network};
use crate::models::tokenizer::{Encoding, Tokenizer};
use crate::models::weights::Weights;
use crate::ops::act::bias_act;
use crate::ops::norm::layer_norm;
use crate::ops::pool::{Mode, Options, Rows, pool};
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use std::path::Path;

/// Tokens packed into one forward pass, by default: large enough for full GEMM speed; on a CPU, where each thread has its own pass,
/// small enough for the caches.
const TOKEN_BUDGET: usize = 2048;
const TOKEN_BUDGET_ON_CPU: usize = 512;

/// Vectors of some texts, in the order of the texts.
#[derive(Clone, Debug)]
pub struct Embeddings {
    /// `[B, D]`, f32.
    pub vectors: Tensor,
    /// Tokens of each text before truncation, prompt and special tokens included.
    pub tokens: Vec<u32>,
    /// Whether a text had more tokens than the encoder takes, so that its end is invisible in the vector.
    pub truncated: Vec<bool>,
}

/// A sentence encoder.
pub struct SentenceEncoder {
    name: String,
    fingerprint: String,
    tokenizer: Tokenizer,
    network: Box<dyn Encoder>,
    pooling: Pooling,
    /// What follows pooling.
    head: Vec<Head>,
    prompt: String,
    max_tokens: usize,
    dim: usize,
    /// Components of the head's output; `dim` is less where it is truncated.
    full_dim: usize,
    token_budget: usize,
    on_cpu: bool,
    products: usize,
    warnings: Vec<String>,
}

enum Head {
    Normalize,
    LayerNorm { weight: Tensor, bias: Tensor },
    Dense { weight: Tensor, bias: Option<Tensor>, dense: Dense },
}

impl SentenceEncoder {
    /// Loads a sentence-transformers folder, after whose name there may be options ([`Choice`]); the network computes in
    /// `dtype` (F32, F16, BF16) on `device`, while pooling and all that follows is f32.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming file and field or tensor; [`Error::Unsupported`] for weights that are not safetensors
    /// and for architectures, modules, pooling modes or options that we do not have; [`Error::Io`]. A prompt that the folder
    /// does not have, or more components than its vectors have, are [`Error::Invalid`].
    pub fn load(dir: impl AsRef<Path>, device: &Device, dtype: DType) -> Result<Self> {
        let choice = Choice::parse(dir.as_ref())?;
        let dir = choice.place.as_path();
        let modules = Modules::load(dir, choice.variant.prompt.as_deref())?;
        let weights = Weights::open(&modules.transformer_dir, device, dtype)?;
        let network = load_network(&modules.transformer_dir, &weights)?;
        let config = Config::load(&modules.transformer_dir)?;
        let settings = Settings::read(&modules.transformer_dir)?;
        let mut tokenizer = settings.tokenizer(&modules.transformer_dir, &config)?;
        if modules.lower_case {
            tokenizer.lower_case()?;
        }
        let max_tokens = modules.max_tokens.unwrap_or(usize::MAX).min(network.max_tokens());
        if max_tokens <= tokenizer.special_tokens_added() {
            let message = format!("max_seq_length {max_tokens} leaves no room for text");
            return Err(Error::invalid(dir, "", message));
        }
        let mut dim = modules.pooling.width(network.hidden_size(), &modules.pooling_path)?;
        let mut head = Vec::new();
        for module in modules.head {
            head.push(match module {
                Module::Normalize => Head::Normalize,
                Module::Dense(dense) => load_dense(dense, &mut dim, device)?,
                Module::LayerNorm(dir, declared) => load_layer_norm(&dir, declared, dim, device)?,
            });
        }
        let full_dim = dim;
        if let Some(asked) = choice.variant.dim.filter(|&asked| asked > full_dim) {
            let message =
                format!("{asked}, expected at most the {full_dim} components of a vector");
            return Err(Error::invalid(dir, "option dim", message));
        }
        let kept = choice.variant.dim.or(modules.truncate_dim);
        let (h, wide) = (config.hidden_size, config.intermediate_size);
        Ok(Self {
            name: choice.name(),
            fingerprint: choice.fingerprint()?,
            tokenizer,
            network,
            pooling: modules.pooling,
            head,
            prompt: modules.prompt,
            max_tokens,
            dim: kept.map_or(full_dim, |kept| kept.min(full_dim)),
            full_dim,
            token_budget: if device.is_cpu() { TOKEN_BUDGET_ON_CPU } else { TOKEN_BUDGET },
            on_cpu: device.is_cpu(),
            products: config.num_hidden_layers * (4 * h * h + 2 * h * wide),
            warnings: modules.warnings,
        })
    }

    /// Packs about this many tokens into a forward pass (at least one text), and half as many where memory runs out. Vectors change by
    /// rounding only.
    pub fn with_token_budget(mut self, tokens: usize) -> Self {
        self.token_budget = tokens;
        self
    }

    /// The vectors of these texts. Empty texts and an empty list are valid. A text's vector does not depend on the
    /// other texts beyond rounding (below 1e-6 a component).
    ///
    /// # Errors
    /// [`Error::Invalid`] where the tokenizer cannot encode a text; [`Error::Candle`] if the device fails.
    pub fn embed<S: AsRef<str> + Sync>(&self, texts: &[S]) -> Result<Embeddings> {
        let encodings =
            texts.par_iter().map(|t| self.encode(t.as_ref())).collect::<Result<Vec<_>>>()?;
        let mut budget = self.token_budget;
        let vectors = loop {
            match self.vectors(&encodings, budget) {
                Err(error) if error.is_out_of_memory() && budget > self.max_tokens => budget /= 2,
                vectors => break vectors?,
            }
        };
        Ok(Embeddings {
            vectors,
            tokens: encodings.iter().map(|e| e.total as u32).collect(),
            truncated: encodings.iter().map(|e| e.total > self.max_tokens).collect(),
        })
    }

    /// One vector a text, in order.
    fn vectors(&self, encodings: &[Encoding], budget: usize) -> Result<Tensor> {
        // Longest first, ties by place: a batch then holds sequences of like length, which share rayon's tasks evenly.
        let mut order: Vec<usize> = (0..encodings.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(encodings[i].ids.len()));
        let mut cuts = Vec::new();
        let mut rest = &order[..];
        while !rest.is_empty() {
            let mut tokens = 0;
            let fits = |&&i: &&usize| {
                tokens += encodings[i].ids.len();
                tokens <= budget
            };
            let count = rest.iter().take_while(fits).count().max(1);
            let (batch, after) = rest.split_at(count);
            cuts.push(batch);
            rest = after;
        }
        let embed = |batch: &&[usize]| self.embed_batch(batch, encodings);
        // Each thread its own batches: a pass has many small steps, and threads that share them wait for each other at every one.
        let batches = match self.on_cpu {
            true => cuts.par_iter().map(embed).collect::<Result<Vec<_>>>()?,
            false => cuts.iter().map(embed).collect::<Result<Vec<_>>>()?,
        };
        if batches.is_empty() {
            return Ok(Tensor::zeros((0, self.dim), DType::F32, &Device::Cpu)?);
        }
        let mut place = vec![0u32; order.len()];
        for (row, &i) in order.iter().enumerate() {
            place[i] = row as u32;
        }
        let sorted = Tensor::cat(&batches, 0)?;
        Ok(sorted.index_select(&Tensor::new(place, sorted.device())?, 0)?)
    }

    fn encode(&self, text: &str) -> Result<Encoding> {
        match self.prompt.is_empty() {
            true => self.tokenizer.encode_truncated(text, self.max_tokens),
            false => {
                let text = format!("{}{text}", self.prompt);
                self.tokenizer.encode_truncated(&text, self.max_tokens)
            }
        }
    }

    fn embed_batch(&self, batch: &[usize], encodings: &[Encoding]) -> Result<Tensor> {
        let mut ids = Vec::new();
        let mut cu_seqlens = vec![0u32];
        for &i in batch {
            ids.extend_from_slice(&encodings[i].ids);
            cu_seqlens.push(ids.len() as u32);
        }
        let states = self.network.forward(&ids, &cu_seqlens)?;
        let rows = Rows::Packed { cu_seqlens: &cu_seqlens };
        let parts = self.pooling.modes.iter();
        let parts = parts.map(|&mode| pool(&states, rows, &Options::new(mode), None));
        let mut x = Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 1)?;
        for head in &self.head {
            x = match head {
                Head::Normalize => normalize(&x)?,
                Head::LayerNorm { weight, bias } => {
                    layer_norm(&x, None, weight, Some(bias), LAYER_NORM_EPS)?
                }
                Head::Dense { weight, bias, dense } => {
                    bias_act(&x.matmul(weight)?, bias.as_ref(), dense.activation)?
                }
            };
        }
        // As there, the part of a unit vector is no unit vector; cosines do not mind.
        if self.dim < self.full_dim {
            x = x.narrow(1, 0, self.dim)?.contiguous()?;
        }
        Ok(x)
    }

    /// The folder's name, or its repository's if it is from the hub, and the options: `all-mpnet-base-v2`,
    /// `all-mpnet-base-v2,dim=256`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// D: the length of a vector.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// The most tokens of a text that the vector can depend on, prompt and special tokens included.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Weights of the network's dense layers: what each token is multiplied by.
    pub fn products(&self) -> usize {
        self.products
    }

    /// What a user should know of the folder, a sentence each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// What identifies the files and options: see [`Choice::fingerprint`].
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

/// Unit vectors: pooling of sequences of one row each.
fn normalize(x: &Tensor) -> Result<Tensor> {
    let rows = x.dims()[0] as u32;
    let cu_seqlens: Vec<u32> = (0..=rows).collect();
    let options = Options { normalize: true, ..Options::new(Mode::Cls) };
    pool(x, Rows::Packed { cu_seqlens: &cu_seqlens }, &options, None)
}

/// torch's default, which a LayerNorm module has.
const LAYER_NORM_EPS: f64 = 1e-5;

/// Reads a LayerNorm module's weights, for vectors of width `dim`.
fn load_layer_norm(dir: &Path, declared: usize, dim: usize, device: &Device) -> Result<Head> {
    if declared != dim {
        let message = format!("{declared}, expected {dim} from the module before");
        return Err(Error::invalid(dir.join("config.json"), "field dimension", message));
    }
    let weights = Weights::open(dir, device, DType::F32)?.pp("norm");
    Ok(Head::LayerNorm {
        weight: weights.get(&[dim], "weight")?,
        bias: weights.get(&[dim], "bias")?,
    })
}

/// Reads a Dense module's weights; `dim` is the width before it and becomes the one after it.
fn load_dense(dense: Dense, dim: &mut usize, device: &Device) -> Result<Head> {
    if dense.input != *dim {
        let message = format!("{}, expected {dim} from the module before", dense.input);
        return Err(Error::invalid(dense.dir.join("config.json"), "field in_features", message));
    }
    let weights = Weights::open(&dense.dir, device, DType::F32)?.pp("linear");
    let weight = weights.get(&[dense.output, dense.input], "weight")?.t()?.contiguous()?;
    let bias = dense.bias.then(|| weights.get(&[dense.output], "bias")).transpose()?;
    *dim = dense.output;
    Ok(Head::Dense { weight, bias, dense })
}
