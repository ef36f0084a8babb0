//! The language model of a GGUF file: its settings and its weights under Hugging Face names.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use bdhs::{Error, Result};
use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{DType, Device, IndexOp, Tensor};

/// An open GGUF file.
pub struct Gguf {
    /// Where it is, for messages.
    pub path: PathBuf,
    content: Content,
    reader: BufReader<File>,
    /// Root mean square of the token embeddings; set by [`Gguf::language_weights`].
    pub embedding_spread: f64,
}

/// What the language model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// Llama, whose query and key rows GGUF keeps in another order.
    Llama,
    /// Qwen2: biases of queries, keys and values, rows as they are.
    Qwen2,
}

impl Architecture {
    /// A field of the architecture's own.
    fn field(self, name: &str) -> String {
        match self {
            Self::Llama => format!("llama.{name}"),
            Self::Qwen2 => format!("qwen2.{name}"),
        }
    }
}

/// The language model's settings.
#[derive(Debug, Clone, PartialEq)]
pub struct LanguageConfig {
    /// Llama or Qwen2.
    pub architecture: Architecture,
    /// Rows of the token embedding in the GGUF; at least one per token.
    pub rows: usize,
    /// Width of the states.
    pub hidden: usize,
    /// Inner width of the feed-forward part.
    pub inner: usize,
    /// Number of layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Epsilon of the RMS norms.
    pub eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Longest sequence.
    pub context: usize,
    /// Whether the output layer is the embedding matrix.
    pub tied: bool,
}

impl Gguf {
    /// Reads the header of `path`.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path))?;
        let mut reader = BufReader::new(file);
        let content = Content::read(&mut reader)
            .map_err(|e| Error::invalid(path, "", format!("is not a readable GGUF file: {e}")))?;
        Ok(Self { path: path.to_owned(), content, reader, embedding_spread: 0.0 })
    }

    /// An error about `field` of this file.
    pub fn invalid(&self, field: &str, message: impl Into<String>) -> Error {
        Error::invalid(&self.path, format!("field {field}"), message)
    }

    fn get(&self, field: &str) -> Option<&Value> {
        self.content.metadata.get(field)
    }

    fn wrong(&self, field: &str, value: &Value, expected: &str) -> Error {
        let kind = value.value_type();
        self.invalid(field, format!("is of type {kind:?}, expected {expected}"))
    }

    fn missing(&self, field: &str) -> Error {
        self.invalid(field, "is missing")
    }

    /// A string, or none where the field is absent.
    pub fn string(&self, field: &str) -> Result<Option<&str>> {
        self.get(field)
            .map(|v| {
                v.to_string().map(String::as_str).map_err(|_| self.wrong(field, v, "a string"))
            })
            .transpose()
    }

    /// A flag, or none where the field is absent.
    pub fn flag(&self, field: &str) -> Result<Option<bool>> {
        self.get(field)
            .map(|v| v.to_bool().map_err(|_| self.wrong(field, v, "true or false")))
            .transpose()
    }

    /// A number that fits a `u32`, or none where the field is absent.
    pub fn number(&self, field: &str) -> Result<Option<u32>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let number = match value {
            Value::I32(n) => u32::try_from(*n).ok(),
            Value::I64(n) => u32::try_from(*n).ok(),
            other => other.to_u64().ok().and_then(|n| u32::try_from(n).ok()),
        };
        number.map(Some).ok_or_else(|| self.wrong(field, value, "a number from 0 to 2^32 - 1"))
    }

    fn size(&self, field: &str) -> Result<usize> {
        match self.number(field)? {
            None => Err(self.missing(field)),
            Some(0) => Err(self.invalid(field, "is 0, expected a positive number")),
            Some(n) => Ok(n as usize),
        }
    }

    fn real(&self, field: &str) -> Result<Option<f64>> {
        self.get(field)
            .map(|v| {
                v.to_f32()
                    .map(shortest)
                    .or_else(|_| v.to_f64())
                    .map_err(|_| self.wrong(field, v, "a number"))
            })
            .transpose()
    }

    /// A list read by `item`, or none where the field is absent.
    pub fn list<'a, T>(
        &'a self,
        field: &str,
        expected: &str,
        item: impl Fn(&'a Value) -> candle_core::Result<T>,
    ) -> Result<Option<Vec<T>>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let values = value.to_vec().map_err(|_| self.wrong(field, value, expected))?;
        let items: candle_core::Result<Vec<T>> = values.iter().map(item).collect();
        items.map(Some).map_err(|_| self.invalid(field, format!("expected {expected}")))
    }

    /// A list that must be there.
    pub fn strings(&self, field: &str) -> Result<Vec<&str>> {
        self.list(field, "a list of strings", |v| v.to_string().map(String::as_str))?
            .ok_or_else(|| self.missing(field))
    }

    /// Reads and checks the model's settings.
    ///
    /// Anything that would change the model's function and that is not carried over is refused.
    pub fn language_config(&self) -> Result<LanguageConfig> {
        let architecture = match self.string("general.architecture")? {
            Some("llama") => Architecture::Llama,
            Some("qwen2") => Architecture::Qwen2,
            Some(other) => {
                return Err(Error::unsupported(
                    format!("GGUF architecture \"{other}\""),
                    format!("{}: expected llama or qwen2", self.path.display()),
                ));
            }
            None => return Err(self.missing("general.architecture")),
        };
        let of = |name: &str| architecture.field(name);
        self.refuse_extensions(architecture)?;
        let hidden = self.size(&of("embedding_length"))?;
        let (heads, kv_heads) = self.heads(architecture, hidden)?;
        let rows = match self.content.tensor_infos.get(EMBEDDING) {
            Some(info) => info.shape.dims()[0],
            None => {
                return Err(Error::invalid(
                    &self.path,
                    format!("tensor {EMBEDDING}"),
                    "is missing",
                ));
            }
        };
        Ok(LanguageConfig {
            architecture,
            rows,
            hidden,
            inner: self.size(&of("feed_forward_length"))?,
            layers: self.size(&of("block_count"))?,
            heads,
            kv_heads,
            head_dim: hidden / heads,
            eps: self
                .real(&of("attention.layer_norm_rms_epsilon"))?
                .ok_or_else(|| self.missing(&of("attention.layer_norm_rms_epsilon")))?,
            // 10,000 is the format's default for this field.
            rope_theta: self.real(&of("rope.freq_base"))?.unwrap_or(10_000.0),
            context: self.size(&of("context_length"))?,
            tied: !self.content.tensor_infos.contains_key(OUTPUT),
        })
    }

    /// Query heads and key heads, checked against the width of the states.
    fn heads(&self, architecture: Architecture, hidden: usize) -> Result<(usize, usize)> {
        let of = |name: &str| architecture.field(name);
        let heads = self.size(&of("attention.head_count"))?;
        let kv_heads = match self.get(&of("attention.head_count_kv")) {
            None => heads,
            Some(_) => self.size(&of("attention.head_count_kv"))?,
        };
        if !hidden.is_multiple_of(2 * heads) || !heads.is_multiple_of(kv_heads) {
            return Err(self.invalid(
                &of("attention.head_count"),
                format!(
                    "is {heads} with {kv_heads} key heads and width {hidden}; \
                     expected heads of one even width, in groups of one size"
                ),
            ));
        }
        let head_dim = hidden / heads;
        for field in ["rope.dimension_count", "attention.key_length", "attention.value_length"] {
            let field = of(field);
            if let Some(n) = self.number(&field)?.filter(|n| *n as usize != head_dim) {
                return Err(
                    self.invalid(&field, format!("is {n}, expected the head's width {head_dim}"))
                );
            }
        }
        Ok((heads, kv_heads))
    }

    fn refuse_extensions(&self, architecture: Architecture) -> Result<()> {
        let field = architecture.field("expert_count");
        if let Some(n) = self.number(&field)?.filter(|n| *n > 0) {
            return Err(self.invalid(&field, format!("is {n}, expected a dense model")));
        }
        let field = architecture.field("rope.scaling.type");
        if let Some(kind) = self.string(&field)?.filter(|kind| *kind != "none") {
            return Err(self.invalid(&field, format!("is \"{kind}\", expected none")));
        }
        let field = architecture.field("rope.scale_linear");
        if let Some(x) = self.real(&field)?.filter(|x| *x != 1.0) {
            return Err(self.invalid(&field, format!("is {x}, expected 1")));
        }
        Ok(())
    }

    /// All weights under Hugging Face names, dequantised, with one embedding row for `image_token`.
    ///
    /// That row (and the output layer's, if it has one of its own) is the mean of the others: the logit of `<image>` is
    /// then the mean logit, so that the model practically never says it.
    pub fn language_weights(
        &mut self,
        config: &LanguageConfig,
        image_token: u32,
        dtype: DType,
    ) -> Result<BTreeMap<String, Tensor>> {
        let plan = tensor_plan(config);
        if let Some(name) =
            self.content.tensor_infos.keys().filter(|n| !plan.contains_key(*n)).min()
        {
            return Err(Error::invalid(
                &self.path,
                format!("tensor {name}"),
                "is not part of a plain model of its architecture; leaving it out would change the model",
            ));
        }
        let mut weights = BTreeMap::new();
        for (name, entry) in &plan {
            let mut tensor = self.tensor(name, &entry.shape)?;
            if let Some(heads) = entry.rope_heads {
                tensor = split_halves(&tensor, heads)?;
            }
            if name == EMBEDDING {
                self.embedding_spread = root_mean_square(&tensor)?;
            }
            if name == EMBEDDING || name == OUTPUT {
                tensor = with_mean_row(&tensor, image_token as usize)?;
            }
            weights.insert(format!("language_model.{}", entry.name), tensor.to_dtype(dtype)?);
        }
        Ok(weights)
    }

    fn tensor(&mut self, name: &str, expected: &[usize]) -> Result<Tensor> {
        let at = || format!("tensor {name}");
        let Some(info) = self.content.tensor_infos.get(name) else {
            return Err(Error::invalid(&self.path, at(), "is missing"));
        };
        let seen = info.shape.dims();
        if seen != expected {
            return Err(Error::invalid(
                &self.path,
                at(),
                format!("has the shape {seen:?}, expected {expected:?}"),
            ));
        }
        let read = self.content.tensor(&mut self.reader, name, &Device::Cpu);
        read.and_then(|t| t.dequantize(&Device::Cpu))
            .map_err(|e| Error::invalid(&self.path, at(), e.to_string()))
    }
}

const EMBEDDING: &str = "token_embd.weight";
const OUTPUT: &str = "output.weight";

/// Where a GGUF tensor goes.
struct Entry {
    /// Hugging Face name, without the prefix of the language model.
    name: String,
    shape: Vec<usize>,
    /// The number of heads where the rows are in rotary order.
    rope_heads: Option<usize>,
}

/// GGUF tensor name to Hugging Face tensor.
fn tensor_plan(c: &LanguageConfig) -> BTreeMap<String, Entry> {
    let entry = |name: String, shape: &[usize], rope_heads| Entry {
        name,
        shape: shape.to_vec(),
        rope_heads,
    };
    let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    let qwen = c.architecture == Architecture::Qwen2;
    let turned = |heads: usize| (!qwen).then_some(heads);
    let mut plan = BTreeMap::new();
    plan.insert(
        EMBEDDING.into(),
        entry("model.embed_tokens.weight".into(), &[c.rows, c.hidden], None),
    );
    plan.insert("output_norm.weight".into(), entry("model.norm.weight".into(), &[c.hidden], None));
    if !c.tied {
        plan.insert(OUTPUT.into(), entry("lm_head.weight".into(), &[c.rows, c.hidden], None));
    }
    for i in 0..c.layers {
        for (from, to, shape, rope_heads) in [
            ("attn_norm", "input_layernorm", &[c.hidden][..], None),
            ("attn_q", "self_attn.q_proj", &[q, c.hidden], turned(c.heads)),
            ("attn_k", "self_attn.k_proj", &[kv, c.hidden], turned(c.kv_heads)),
            ("attn_v", "self_attn.v_proj", &[kv, c.hidden], None),
            ("attn_output", "self_attn.o_proj", &[c.hidden, q], None),
            ("ffn_norm", "post_attention_layernorm", &[c.hidden], None),
            ("ffn_gate", "mlp.gate_proj", &[c.inner, c.hidden], None),
            ("ffn_up", "mlp.up_proj", &[c.inner, c.hidden], None),
            ("ffn_down", "mlp.down_proj", &[c.hidden, c.inner], None),
        ] {
            let to = format!("model.layers.{i}.{to}.weight");
            plan.insert(format!("blk.{i}.{from}.weight"), entry(to, shape, rope_heads));
        }
        for (from, to, width) in [("attn_q", "q", q), ("attn_k", "k", kv), ("attn_v", "v", kv)] {
            if qwen {
                let to = format!("model.layers.{i}.self_attn.{to}_proj.bias");
                plan.insert(format!("blk.{i}.{from}.bias"), entry(to, &[width], None));
            }
        }
    }
    plan
}

/// Rows of a query or key projection from GGUF's rotary order to Hugging Face's.
///
/// GGUF rotates neighbours (rows 2i and 2i+1 of a head), Hugging Face rotates row i with row i + d/2.
fn split_halves(weight: &Tensor, heads: usize) -> Result<Tensor> {
    let (rows, columns) = weight.dims2()?;
    let half = rows / heads / 2;
    Ok(weight
        .reshape((heads, half, 2, columns))?
        .transpose(1, 2)?
        .contiguous()?
        .reshape((rows, columns))?)
}

/// `weight` with row `row` set to the mean of the rows before it; appended where the matrix ends there.
fn with_mean_row(weight: &Tensor, row: usize) -> Result<Tensor> {
    let mean = weight.i(..row)?.mean_keepdim(0)?;
    let mut parts = vec![weight.i(..row)?, mean];
    if row + 1 < weight.dim(0)? {
        parts.push(weight.i(row + 1..)?);
    }
    Ok(Tensor::cat(&parts, 0)?)
}

fn root_mean_square(tensor: &Tensor) -> Result<f64> {
    Ok(f64::from(tensor.sqr()?.mean_all()?.to_scalar::<f32>()?).sqrt())
}

/// The f64 that reads like the f32: 1e-5, not 9.999999747378752e-6.
fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}
