//! `tokenizer.json` from the vocabulary of a GGUF file.
//!
//! Two kinds are known exactly: byte-level BPE (`gpt2`, with its pre-tokenizer named by `tokenizer.ggml.pre`) and
//! SentencePiece BPE with byte fallback (`llama`). Anything else is refused by name: a tokenizer that is nearly right
//! gives text that is nearly right, and nobody notices.

use std::collections::HashMap;
use std::str::FromStr;

use bdhs::models::sentencepiece::{Prefix, added_token, bpe, surround};
use bdhs::{Error, Result};
use serde_json::{Value, json};
use tokenizers::Tokenizer;

use super::gguf::Gguf;

/// The placeholder of an image in a prompt.
pub const IMAGE: &str = "<image>";

/// The tokenizer and the ids that the other files name.
pub struct TokenizerFiles {
    /// What goes into `tokenizer.json`.
    pub tokenizer: Tokenizer,
    /// Id of `<image>`: the first after the GGUF's tokens.
    pub image_token: u32,
    /// Start of a text, where the model has one.
    pub bos: Option<Special>,
    /// End of an answer.
    pub eos: Special,
    /// Padding; the end token where the GGUF names none.
    pub pad: Special,
    /// Unknown, where the GGUF names one.
    pub unk: Option<Special>,
    /// Whether texts start with `bos`.
    pub add_bos: bool,
}

/// A token with a role.
#[derive(Debug, Clone)]
pub struct Special {
    /// Its id.
    pub id: u32,
    /// Its text.
    pub text: String,
}

/// GGUF token types that matter here.
mod kind {
    pub const UNKNOWN: u32 = 2;
    pub const CONTROL: u32 = 3;
    pub const USER_DEFINED: u32 = 4;
}

/// The regular expression by which Llama 3 cuts a text before merging.
const LLAMA3_SPLIT: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    r"|[^\r\n\p{L}\p{N}]?\p{L}+",
    r"|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"|\s*[\r\n]+",
    r"|\s+(?!\S)",
    r"|\s+",
);

/// The same of Qwen2: every digit by itself.
const QWEN2_SPLIT: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    r"|[^\r\n\p{L}\p{N}]?\p{L}+",
    r"|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"|\s*[\r\n]+",
    r"|\s+(?!\S)",
    r"|\s+",
);

/// Builds the tokenizer; `rows` is the height of the embedding, which must hold all tokens.
pub fn build(gguf: &Gguf, rows: usize) -> Result<TokenizerFiles> {
    let tokens = gguf.strings(TOKENS)?;
    if tokens.is_empty() || tokens.len() > rows {
        let message =
            format!("has {} tokens, expected 1 to {rows} (rows of the embedding)", tokens.len());
        return Err(gguf.invalid(TOKENS, message));
    }
    let mut ids = HashMap::with_capacity(tokens.len());
    for (id, token) in tokens.iter().enumerate() {
        if let Some(first) = ids.insert(*token, id as u32) {
            return Err(
                gguf.invalid(TOKENS, format!("{token:?} is both token {first} and token {id}"))
            );
        }
    }
    if let Some(id) = ids.get(IMAGE) {
        return Err(
            gguf.invalid(TOKENS, format!("{IMAGE} is token {id}: this model already has images"))
        );
    }
    let image_token = tokens.len() as u32;
    let roles = Roles::read(gguf, &tokens)?;
    let mut file = match gguf.string("tokenizer.ggml.model")? {
        Some("gpt2") => byte_level(gguf, &ids)?,
        Some("llama") => sentence_piece(gguf, &tokens, &roles)?,
        other => {
            return Err(Error::unsupported(
                format!("GGUF tokenizer {other:?}"),
                format!("{}: expected \"gpt2\" or \"llama\"", gguf.path.display()),
            ));
        }
    };
    file["version"] = json!("1.0");
    file["truncation"] = Value::Null;
    file["padding"] = Value::Null;
    file["added_tokens"] = added_tokens(gguf, &tokens, image_token)?;
    file["post_processor"] = match (&roles.bos, roles.add_bos) {
        (Some(bos), true) => surround(Some(&(bos.text.clone(), bos.id as usize)), None),
        _ => Value::Null,
    };
    let tokenizer = Tokenizer::from_str(&file.to_string())
        .map_err(|e| gguf.invalid("tokenizer.ggml", format!("do not make a tokenizer: {e}")))?;
    let Roles { bos, eos, pad, unk, add_bos } = roles;
    Ok(TokenizerFiles { tokenizer, image_token, bos, eos, pad, unk, add_bos })
}

const TOKENS: &str = "tokenizer.ggml.tokens";

struct Roles {
    bos: Option<Special>,
    eos: Special,
    pad: Special,
    unk: Option<Special>,
    add_bos: bool,
}

impl Roles {
    fn read(gguf: &Gguf, tokens: &[&str]) -> Result<Self> {
        let role = |name: &str| -> Result<Option<Special>> {
            let field = format!("tokenizer.ggml.{name}_token_id");
            let Some(id) = gguf.number(&field)? else { return Ok(None) };
            let text = tokens.get(id as usize).ok_or_else(|| {
                gguf.invalid(&field, format!("is {id}, expected less than {}", tokens.len()))
            })?;
            Ok(Some(Special { id, text: (*text).to_owned() }))
        };
        let eos = role("eos")?.ok_or_else(|| {
            gguf.invalid("tokenizer.ggml.eos_token_id", "is missing: answers would not end")
        })?;
        if gguf.flag("tokenizer.ggml.add_eos_token")? == Some(true) {
            return Err(gguf.invalid(
                "tokenizer.ggml.add_eos_token",
                "is true, expected false: a prompt must not end",
            ));
        }
        let bos = role("bos")?;
        // Absent means yes for the two kinds whose models were trained with it.
        let usual = gguf.string("tokenizer.ggml.model")? == Some("llama")
            || gguf.string("tokenizer.ggml.pre")? == Some("llama-bpe");
        let add_bos = gguf.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(usual);
        if add_bos && bos.is_none() {
            return Err(
                gguf.invalid("tokenizer.ggml.bos_token_id", "is missing, but texts start with it")
            );
        }
        let pad = role("padding")?.unwrap_or_else(|| eos.clone());
        Ok(Self { bos, pad, eos, unk: role("unknown")?, add_bos })
    }
}

/// Byte-level BPE: every character of a piece stands for one byte, so no text is unknown.
fn byte_level(gguf: &Gguf, ids: &HashMap<&str, u32>) -> Result<Value> {
    let byte_level = |use_regex: bool| {
        json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex,
        })
    };
    let pre = gguf.string("tokenizer.ggml.pre")?;
    // Llama 3 takes a piece that is in the vocabulary as it is, even where the merges lead elsewhere.
    let (pre_tokenizer, ignore_merges) = match pre {
        Some("smollm") => {
            let digits = json!({"type": "Digits", "individual_digits": true});
            (json!({"type": "Sequence", "pretokenizers": [digits, byte_level(true)]}), false)
        }
        Some("gpt-2") => (byte_level(true), false),
        Some(kind @ ("llama-bpe" | "qwen2")) => {
            let llama = kind == "llama-bpe";
            let pattern = if llama { LLAMA3_SPLIT } else { QWEN2_SPLIT };
            let split = json!({
                "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false,
            });
            (json!({"type": "Sequence", "pretokenizers": [split, byte_level(false)]}), llama)
        }
        other => {
            return Err(Error::unsupported(
                format!(
                    "GGUF pre-tokenizer {}",
                    other.map_or("(none named)".into(), |p| format!("{p:?}"))
                ),
                format!("{}: expected smollm, gpt-2, llama-bpe or qwen2", gguf.path.display()),
            ));
        }
    };
    let merges = gguf.strings("tokenizer.ggml.merges")?;
    let pairs: Vec<[&str; 2]> = merges
        .iter()
        .enumerate()
        .map(|(i, merge)| match merge.split_once(' ') {
            Some((left, right)) if !left.is_empty() && !right.is_empty() => Ok([left, right]),
            _ => {
                let message =
                    format!("entry {i} is {merge:?}, expected two pieces with a blank between");
                Err(gguf.invalid("tokenizer.ggml.merges", message))
            }
        })
        .collect::<Result<_>>()?;
    Ok(json!({
        "normalizer": if pre == Some("qwen2") { json!({"type": "NFC"}) } else { Value::Null },
        "pre_tokenizer": pre_tokenizer,
        "decoder": byte_level(true),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": ignore_merges, "vocab": ids, "merges": pairs,
        },
    }))
}

/// SentencePiece BPE: blanks are `▁`, unknown characters fall back to `<0xNN>` bytes, merges follow the scores.
fn sentence_piece(gguf: &Gguf, tokens: &[&str], roles: &Roles) -> Result<Value> {
    const SCORES: &str = "tokenizer.ggml.scores";
    let scores = gguf
        .list(SCORES, "a list of numbers", |v| v.to_f32())?
        .ok_or_else(|| gguf.invalid(SCORES, "is missing"))?;
    let unk = roles
        .unk
        .as_ref()
        .ok_or_else(|| gguf.invalid("tokenizer.ggml.unknown_token_id", "is missing"))?;
    let prefix = match gguf.flag("tokenizer.ggml.add_space_prefix")? {
        Some(false) => Prefix::Never,
        _ => Prefix::Segments,
    };
    bpe(tokens, &scores, &unk.text, prefix).map_err(|message| gguf.invalid(TOKENS, message))
}

/// Control tokens and `<unk>` are special (never cut, left out of decoded answers); user-defined ones are never cut.
fn added_tokens(gguf: &Gguf, tokens: &[&str], image_token: u32) -> Result<Value> {
    const TYPES: &str = "tokenizer.ggml.token_type";
    let kinds = gguf
        .list(TYPES, "a list of small numbers", |v| {
            v.to_i32().map(|n| n as u32).or_else(|_| v.to_u32())
        })?
        .ok_or_else(|| gguf.invalid(TYPES, "is missing"))?;
    if kinds.len() != tokens.len() {
        let message = format!("has {} entries, expected {}", kinds.len(), tokens.len());
        return Err(gguf.invalid(TYPES, message));
    }
    let mut list: Vec<Value> = (0..tokens.len())
        .filter(|&i| matches!(kinds[i], kind::UNKNOWN | kind::CONTROL | kind::USER_DEFINED))
        .map(|i| added_token(i, tokens[i], kinds[i] != kind::USER_DEFINED))
        .collect();
    list.push(added_token(image_token as usize, IMAGE, true));
    Ok(Value::from(list))
}
