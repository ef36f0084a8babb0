//! `tokenizer.json` from the vocabulary of a GGUF file.
//!
//! Two kinds are known exactly: byte-level BPE (`gpt2`, with its pre-tokenizer named by `tokenizer.ggml.pre`) and
//! SentencePiece BPE with byte fallback (`llama`). Anything else is refused by name: a tokenizer that is nearly right
//! gives text that is nearly right, and nobody notices.

use std::collections::HashMap;
use std::str::FromStr;

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
        Some("llama") => sentence_piece(gguf, &tokens, &ids, &roles)?,
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
        (Some(bos), true) => starts_with(bos),
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
        Some("llama-bpe") => {
            let split = json!({
                "type": "Split", "pattern": {"Regex": LLAMA3_SPLIT}, "behavior": "Isolated", "invert": false,
            });
            (json!({"type": "Sequence", "pretokenizers": [split, byte_level(false)]}), true)
        }
        other => {
            return Err(Error::unsupported(
                format!(
                    "GGUF pre-tokenizer {}",
                    other.map_or("(none named)".into(), |p| format!("{p:?}"))
                ),
                format!("{}: expected smollm, gpt-2 or llama-bpe", gguf.path.display()),
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
        "normalizer": null,
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
fn sentence_piece(
    gguf: &Gguf,
    tokens: &[&str],
    ids: &HashMap<&str, u32>,
    roles: &Roles,
) -> Result<Value> {
    const SCORES: &str = "tokenizer.ggml.scores";
    let scores = gguf
        .list(SCORES, "a list of numbers", |v| v.to_f32())?
        .ok_or_else(|| gguf.invalid(SCORES, "is missing"))?;
    if scores.len() != tokens.len() || scores.iter().any(|s| s.is_nan()) {
        let message =
            format!("has {} scores, expected {} that are numbers", scores.len(), tokens.len());
        return Err(gguf.invalid(SCORES, message));
    }
    let unk = roles
        .unk
        .as_ref()
        .ok_or_else(|| gguf.invalid("tokenizer.ggml.unknown_token_id", "is missing"))?;
    if let Some(byte) = (0..=255).find(|byte| !ids.contains_key(format!("<0x{byte:02X}>").as_str()))
    {
        return Err(
            gguf.invalid(TOKENS, format!("<0x{byte:02X}> is missing: bytes cannot be written"))
        );
    }
    let blank = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let prefix = gguf.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let mut normalizers = vec![blank];
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Ok(json!({
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": unk.text, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": ids, "merges": merges_by_score(tokens, ids, &scores),
        },
    }))
}

/// SentencePiece joins the neighbours whose joint piece has the best score; as a merge list that is: every way to cut a
/// piece into two pieces, in descending order of the piece's score.
fn merges_by_score<'a>(
    tokens: &[&'a str],
    ids: &HashMap<&str, u32>,
    scores: &[f32],
) -> Vec<[&'a str; 2]> {
    let mut order: Vec<usize> = (0..tokens.len()).collect();
    // Equal scores: the earlier piece first.
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    let mut merges = Vec::new();
    for piece in order {
        let text = tokens[piece];
        let mut cuts: Vec<(u32, u32, [&str; 2])> = text
            .char_indices()
            .skip(1)
            .filter_map(|(at, _)| {
                let (left, right) = text.split_at(at);
                Some((*ids.get(left)?, *ids.get(right)?, [left, right]))
            })
            .collect();
        cuts.sort_unstable();
        merges.extend(cuts.into_iter().map(|(_, _, pair)| pair));
    }
    merges
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
    let added = |id: u32, text: &str, special: bool| {
        json!({
            "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": special,
        })
    };
    let mut list: Vec<Value> = (0..tokens.len())
        .filter(|&i| matches!(kinds[i], kind::UNKNOWN | kind::CONTROL | kind::USER_DEFINED))
        .map(|i| added(i as u32, tokens[i], kinds[i] != kind::USER_DEFINED))
        .collect();
    list.push(added(image_token, IMAGE, true));
    Ok(Value::from(list))
}

fn starts_with(bos: &Special) -> Value {
    let first = json!({"SpecialToken": {"id": bos.text, "type_id": 0}});
    let text = |id: &str, type_id: u32| json!({"Sequence": {"id": id, "type_id": type_id}});
    json!({
        "type": "TemplateProcessing",
        "single": [first, text("A", 0)],
        "pair": [first, text("A", 0), text("B", 1)],
        "special_tokens": {&bos.text: {"id": bos.text, "ids": [bos.id], "tokens": [bos.text]}},
    })
}
