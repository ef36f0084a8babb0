//! The demo's checkpoint folders, in the formats of real checkpoints: everything but the weights.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tokenizers::Tokenizer;

use super::tokenizer::{self, IMAGE_ID, Kind, LLAVA_SPECIAL, Scheme};
use crate::{Error, Result, files::write_file};

/// The demo LLaVA's folder name.
pub const LLAVA: &str = "demo-llava";

/// Rows of the demo LLaVA's embedding.
pub(super) const LLAVA_VOCAB: usize = 512;

/// The sizes of the demo LLaVA: a CLIP tower of 36 patches and a Llama.
pub(super) mod size {
    pub const IMAGE: usize = 48;
    pub const PATCH: usize = 8;
    pub const VISION: usize = 128;
    pub const VISION_INNER: usize = 320;
    pub const VISION_LAYERS: usize = 3;
    pub const VISION_HEADS: usize = 4;
    pub const TEXT: usize = 160;
    pub const TEXT_INNER: usize = 384;
    pub const TEXT_LAYERS: usize = 4;
    pub const TEXT_HEADS: usize = 5;
    pub const POSITIONS: usize = 512;
}

/// One of the demo's sentence encoders.
#[derive(Debug, Clone, Copy)]
pub(super) struct EncoderSpec {
    /// Folder name.
    pub name: &'static str,
    /// `model_type` of its architecture.
    pub architecture: &'static str,
    /// Tokens it reads, special ones included. Like the real four, the last reads the fewest.
    pub max_tokens: usize,
    /// How much one edited attribute lowers the cosine it is trained to give.
    pub slope: f64,
    /// Its tokenizer.
    pub scheme: Scheme,
}

const ROBERTA_SPECIAL: [&str; 5] = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"];

/// The demo's encoders, one for each architecture of the ablation.
pub(super) const ENCODERS: [EncoderSpec; 4] = [
    EncoderSpec {
        name: "demo-mpnet",
        architecture: "mpnet",
        max_tokens: 128,
        slope: 0.030,
        scheme: Scheme {
            kind: Kind::WordPiece,
            vocab: 320,
            special: ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"],
            around: ["<s>", "</s>"],
            unknown: "[UNK]",
        },
    },
    EncoderSpec {
        name: "demo-bert",
        architecture: "bert",
        max_tokens: 96,
        slope: 0.036,
        scheme: Scheme {
            kind: Kind::WordPiece,
            vocab: 320,
            special: ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
            around: ["[CLS]", "[SEP]"],
            unknown: "[UNK]",
        },
    },
    EncoderSpec {
        name: "demo-roberta",
        architecture: "roberta",
        max_tokens: 96,
        slope: 0.026,
        scheme: Scheme {
            kind: Kind::BytePairs,
            vocab: 448,
            special: ROBERTA_SPECIAL,
            around: ["<s>", "</s>"],
            unknown: "<unk>",
        },
    },
    EncoderSpec {
        name: "demo-xlm-roberta",
        architecture: "xlm-roberta",
        max_tokens: 64,
        slope: 0.032,
        scheme: Scheme {
            kind: Kind::Unigram,
            vocab: 320,
            special: ROBERTA_SPECIAL,
            around: ["<s>", "</s>"],
            unknown: "<unk>",
        },
    },
];

/// Names of the demo's encoders, in the order of the grid.
pub fn encoder_names() -> [&'static str; 4] {
    ENCODERS.map(|spec| spec.name)
}

impl EncoderSpec {
    /// The layers' sizes, alike in all four.
    pub const HIDDEN: usize = 96;
    pub const INNER: usize = 192;
    pub const LAYERS: usize = 3;
    pub const HEADS: usize = 4;
    pub const BUCKETS: usize = 32;

    /// The id of the padding token.
    pub fn padding(&self) -> Option<usize> {
        self.scheme.special.iter().position(|token| token.to_lowercase().contains("pad"))
    }

    /// Rows of the position table: RoBERTa's kind counts from 2.
    pub fn positions(&self) -> usize {
        if self.architecture == "bert" { self.max_tokens } else { self.max_tokens + 2 }
    }
}

/// Writes the demo LLaVA's folder but its weights; returns its tokenizer.
pub(super) fn write_llava(dir: &Path, texts: &[String]) -> Result<Tokenizer> {
    create(dir)?;
    let tokenizer = tokenizer::llava(LLAVA_VOCAB, texts)?;
    save(dir, &tokenizer)?;
    let special = json!({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"});
    let mut settings = special.clone();
    settings["tokenizer_class"] = json!("PreTrainedTokenizerFast");
    settings["model_max_length"] = json!(size::POSITIONS);
    settings["clean_up_tokenization_spaces"] = json!(false);
    settings["image_token"] = json!(LLAVA_SPECIAL[IMAGE_ID as usize]);
    json_file(dir, "config.json", &llava_config())?;
    json_file(dir, "tokenizer_config.json", &settings)?;
    json_file(dir, "special_tokens_map.json", &special)?;
    json_file(
        dir,
        "generation_config.json",
        &json!({"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}),
    )?;
    json_file(dir, "preprocessor_config.json", &preprocessor())?;
    json_file(
        dir,
        "processor_config.json",
        &json!({
            "processor_class": "LlavaProcessor",
            "patch_size": size::PATCH,
            "vision_feature_select_strategy": "default",
            "image_token": "<image>",
            "num_additional_image_tokens": 1,
        }),
    )?;
    write(dir, "chat_template.jinja", TEMPLATE)?;
    Ok(tokenizer)
}

/// Turns as LLaVA-1.5 writes them, without its system text.
const TEMPLATE: &str = "{% for m in messages %}\
    {% if m['role'] == 'assistant' %}{{ 'ASSISTANT: ' + m['content'] + '</s>' }}\
    {% else %}{{ 'USER: ' + m['content'] + ' ' }}{% endif %}{% endfor %}\
    {% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}";

fn llava_config() -> Value {
    json!({
        "model_type": "llava",
        "architectures": ["LlavaForConditionalGeneration"],
        "torch_dtype": "float16",
        "image_token_index": IMAGE_ID,
        "image_seq_length": (size::IMAGE / size::PATCH).pow(2),
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": true,
        "pad_token_id": 2,
        "text_config": {
            "model_type": "llama",
            "vocab_size": LLAVA_VOCAB,
            "hidden_size": size::TEXT,
            "intermediate_size": size::TEXT_INNER,
            "num_hidden_layers": size::TEXT_LAYERS,
            "num_attention_heads": size::TEXT_HEADS,
            "num_key_value_heads": size::TEXT_HEADS,
            "head_dim": size::TEXT / size::TEXT_HEADS,
            "max_position_embeddings": size::POSITIONS,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": true,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 2,
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": size::VISION,
            "intermediate_size": size::VISION_INNER,
            "num_hidden_layers": size::VISION_LAYERS,
            "num_attention_heads": size::VISION_HEADS,
            "image_size": size::IMAGE,
            "patch_size": size::PATCH,
            "projection_dim": size::VISION,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
        },
    })
}

fn preprocessor() -> Value {
    json!({
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": size::IMAGE},
        "crop_size": {"height": size::IMAGE, "width": size::IMAGE},
        "do_resize": true,
        "do_center_crop": true,
        "do_rescale": true,
        "do_normalize": true,
        "do_convert_rgb": true,
        "resample": 3,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    })
}

/// Writes an encoder's folder but its weights; returns its tokenizer.
pub(super) fn write_encoder(dir: &Path, spec: &EncoderSpec, texts: &[String]) -> Result<Tokenizer> {
    create(dir)?;
    let tokenizer = tokenizer::encoder(&spec.scheme, texts)?;
    save(dir, &tokenizer)?;
    json_file(dir, "config.json", &encoder_config(spec, tokenizer::size(&tokenizer)))?;
    let [before, after] = spec.scheme.around;
    json_file(
        dir,
        "tokenizer_config.json",
        &json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": spec.max_tokens,
            "pad_token": spec.padding().map(|id| spec.scheme.special[id]),
            "unk_token": spec.scheme.unknown,
            "cls_token": before,
            "sep_token": after,
        }),
    )?;
    json_file(
        dir,
        "sentence_bert_config.json",
        &json!({"max_seq_length": spec.max_tokens, "do_lower_case": false}),
    )?;
    let modules = ["Transformer", "Pooling", "Normalize"];
    let modules: Vec<Value> = modules
        .iter()
        .enumerate()
        .map(|(i, kind)| {
            let path = if i == 0 { String::new() } else { format!("{i}_{kind}") };
            let kind = format!("sentence_transformers.models.{kind}");
            json!({"idx": i, "name": i.to_string(), "path": path, "type": kind})
        })
        .collect();
    json_file(dir, "modules.json", &json!(modules))?;
    create(&dir.join("1_Pooling"))?;
    json_file(
        &dir.join("1_Pooling"),
        "config.json",
        &json!({
            "word_embedding_dimension": EncoderSpec::HIDDEN,
            "pooling_mode_cls_token": false,
            "pooling_mode_mean_tokens": true,
            "pooling_mode_max_tokens": false,
            "pooling_mode_mean_sqrt_len_tokens": false,
        }),
    )?;
    Ok(tokenizer)
}

fn encoder_config(spec: &EncoderSpec, vocab: usize) -> Value {
    let mut config = json!({
        "model_type": spec.architecture,
        "vocab_size": vocab,
        "hidden_size": EncoderSpec::HIDDEN,
        "intermediate_size": EncoderSpec::INNER,
        "num_hidden_layers": EncoderSpec::LAYERS,
        "num_attention_heads": EncoderSpec::HEADS,
        "max_position_embeddings": spec.positions(),
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "pad_token_id": spec.padding(),
        "torch_dtype": "float16",
    });
    match spec.architecture {
        "mpnet" => config["relative_attention_num_buckets"] = json!(EncoderSpec::BUCKETS),
        "bert" => config["type_vocab_size"] = json!(2),
        _ => config["type_vocab_size"] = json!(1),
    }
    config
}

pub(super) fn create(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(Error::io(dir))
}

fn save(dir: &Path, tokenizer: &Tokenizer) -> Result<()> {
    let path = dir.join("tokenizer.json");
    tokenizer
        .save(&path, false)
        .map_err(|e| Error::invalid(&path, "", format!("could not be written: {e}")))
}

fn json_file(dir: &Path, name: &str, value: &Value) -> Result<()> {
    write(dir, name, &format!("{value:#}\n"))
}

fn write(dir: &Path, name: &str, text: &str) -> Result<()> {
    write_file(dir.join(name), text.as_bytes())
}
