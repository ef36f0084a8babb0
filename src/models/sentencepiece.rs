//! SentencePiece BPE as `tokenizer.json` of the `tokenizers` crate: from a `tokenizer.model` and the settings beside it, which is
//! all that older Llama checkpoints have, or from a vocabulary and its scores.
//!
//! Ids are those of transformers' Llama tokenizers, fast ones. Two rules exist for where a text gets the blank that words begin
//! with, by `legacy` in `tokenizer_config.json`: after every special token (true, and where it is not said), or only at the
//! start of the text.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use prost::Message;
use serde_json::{Map, Value, json};

use crate::{Error, Result};

/// The name of a model's file.
pub(super) const PIECES: &str = "tokenizer.model";

/// Which parts of a text begin with a blank of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefix {
    /// None.
    Never,
    /// What is between special tokens.
    Segments,
    /// The start of the text, unless a blank is there.
    Start,
}

/// The parts `normalizer`, `pre_tokenizer`, `decoder` and `model` of a `tokenizer.json`, for tokens in the order of their ids.
///
/// # Errors
/// A message: other numbers of tokens and scores, a score that is no number, a token that is there twice, or a byte without one.
pub fn bpe(tokens: &[&str], scores: &[f32], unk: &str, prefix: Prefix) -> Result<Value, String> {
    if scores.len() != tokens.len() || scores.iter().any(|score| score.is_nan()) {
        return Err(format!(
            "has {} scores, expected {} that are numbers",
            scores.len(),
            tokens.len()
        ));
    }
    let mut ids = HashMap::with_capacity(tokens.len());
    for (id, token) in tokens.iter().enumerate() {
        if let Some(first) = ids.insert(*token, id) {
            return Err(format!("{token:?} is both token {first} and token {id}"));
        }
    }
    let byte = |byte: &u8| !ids.contains_key(format!("<0x{byte:02X}>").as_str());
    if let Some(byte) = (0..=255).find(byte) {
        return Err(format!("<0x{byte:02X}> is missing: bytes cannot be written"));
    }
    let mut normalizers = Vec::new();
    if prefix == Prefix::Segments {
        normalizers.push(json!({"type": "Prepend", "prepend": "▁"}));
    }
    normalizers.push(json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"}));
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix != Prefix::Never {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let start = json!({
        "type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false,
    });
    Ok(json!({
        "normalizer": match prefix {
            Prefix::Start => Value::Null,
            _ => json!({"type": "Sequence", "normalizers": normalizers}),
        },
        "pre_tokenizer": if prefix == Prefix::Start { start } else { Value::Null },
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": unk, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": ids, "merges": merges(tokens, &ids, scores),
        },
    }))
}

/// SentencePiece joins the neighbours whose joint piece has the best score; as a merge list that is: every way to cut a
/// piece into two pieces, in descending order of the piece's score. Of equal ones the longer left part goes first, as in
/// transformers: it is further left where two overlap.
fn merges<'a>(tokens: &[&'a str], ids: &HashMap<&str, usize>, scores: &[f32]) -> Vec<[&'a str; 2]> {
    let mut cuts = Vec::new();
    for (&piece, &score) in tokens.iter().zip(scores) {
        for (at, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(at);
            if ids.contains_key(left) && ids.contains_key(right) {
                cuts.push((score, left.chars().count(), right.chars().count(), [left, right]));
            }
        }
    }
    cuts.sort_by(|a, b| b.0.total_cmp(&a.0).then((b.1, b.2).cmp(&(a.1, a.2))));
    cuts.into_iter().map(|(_, _, _, pair)| pair).collect()
}

/// An entry of `added_tokens` in a `tokenizer.json`: never cut, and left out of decoded answers if `special`.
pub fn added_token(id: usize, content: &str, special: bool) -> Value {
    json!({
        "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": special,
    })
}

/// A `post_processor` of a `tokenizer.json` that puts tokens (content and id) before and behind a text.
pub fn surround(before: Option<&(String, usize)>, behind: Option<&(String, usize)>) -> Value {
    let described = |(text, id): &(String, usize)| {
        (text.clone(), json!({"id": text, "ids": [id], "tokens": [text]}))
    };
    let part = |name: &str, part: u32| -> Vec<Value> {
        let special =
            |(text, _): &(String, usize)| json!({"SpecialToken": {"id": text, "type_id": part}});
        let text = json!({"Sequence": {"id": name, "type_id": part}});
        before.map(special).into_iter().chain([text]).chain(behind.map(special)).collect()
    };
    let single = part("A", 0);
    let pair = [single.clone(), part("B", 1)].concat();
    let tokens: Map<String, Value> = before.into_iter().chain(behind).map(described).collect();
    json!({
        "type": "TemplateProcessing",
        "single": single,
        "pair": pair,
        "special_tokens": tokens,
    })
}

/// The tokenizer in `tokenizer.model`, with the special and added tokens that `tokenizer_config.json`,
/// `special_tokens_map.json` and `added_tokens.json` in the same folder name.
///
/// # Errors
/// [`Error::Invalid`] for a file that is malformed, or tokens that contradict each other; [`Error::Unsupported`] for another
/// model than BPE with byte fallback, and for one that changes characters.
pub(super) fn load(path: &Path) -> Result<tokenizers::Tokenizer> {
    let model = Model::read(path)?;
    let dir = path.parent().unwrap_or(Path::new(""));
    let settings = Settings::read(dir)?;
    let tokens: Vec<&str> = model.pieces.iter().map(|piece| piece.text()).collect();
    let scores: Vec<f32> = model.pieces.iter().map(|piece| piece.score()).collect();
    let unk = model.trainer().unk_piece().to_owned();
    let mut file = bpe(&tokens, &scores, &unk, settings.prefix(&model)?)
        .map_err(|message| Error::invalid(path, "pieces", message))?;
    let added = added_tokens(path, &model, &settings)?;
    type End = Option<(String, usize)>;
    let end = |flag: &str, usual: bool, name: &str, default: &str| -> Result<End> {
        if !settings.flag(flag, usual)? {
            return Ok(None);
        }
        let text = settings.token(name).unwrap_or_else(|| default.to_owned());
        let of_model = tokens.iter().position(|token| *token == text);
        let id = of_model.or_else(|| Some(*added.iter().find(|(_, (t, _))| *t == text)?.0));
        let absent = || Error::invalid(path, "pieces", format!("have no {text:?}, the {name}"));
        let id = id.ok_or_else(absent)?;
        Ok(Some((text, id)))
    };
    let bos = end("add_bos_token", true, "bos_token", "<s>")?;
    let eos = end("add_eos_token", false, "eos_token", "</s>")?;
    file["version"] = json!("1.0");
    file["post_processor"] = surround(bos.as_ref(), eos.as_ref());
    file["added_tokens"] =
        added.iter().map(|(id, (text, special))| added_token(*id, text, *special)).collect();
    let tokenizer = tokenizers::Tokenizer::from_str(&file.to_string())
        .map_err(|e| Error::invalid(path, "", format!("does not make a tokenizer: {e}")))?;
    for (id, (text, _)) in &added {
        let seen = tokenizer.token_to_id(text);
        if seen != Some(*id as u32) {
            let message =
                format!("is to be {id}, but would be {seen:?}; expected ids without a gap");
            return Err(Error::invalid(path, format!("added token {text:?}"), message));
        }
    }
    Ok(tokenizer)
}

/// Tokens that are never cut, by id: content, and whether they are special.
type Added = BTreeMap<usize, (String, bool)>;

fn added_tokens(path: &Path, model: &Model, settings: &Settings) -> Result<Added> {
    let mut all = Added::new();
    for (id, piece) in model.pieces.iter().enumerate() {
        if matches!(piece.kind(), kind::UNKNOWN | kind::CONTROL | kind::USER_DEFINED) {
            all.insert(id, (piece.text().to_owned(), piece.kind() != kind::USER_DEFINED));
        }
    }
    for (id, text, special) in settings.added()? {
        let known = model.pieces.get(id).map(|piece| piece.text());
        let known = known.or_else(|| all.get(&id).map(|(text, _)| text.as_str()));
        if let Some(known) = known.filter(|known| *known != text) {
            let message = format!("is {known:?}, but the settings beside it say {text:?}");
            return Err(Error::invalid(path, format!("token {id}"), message));
        }
        all.insert(id, (text, special));
    }
    Ok(all)
}

/// Kinds of pieces that matter here.
mod kind {
    pub const UNKNOWN: i32 = 2;
    pub const CONTROL: i32 = 3;
    pub const USER_DEFINED: i32 = 4;
}

/// What of a SentencePiece model's file is needed; numbers and defaults are those of its protobuf definition.
#[derive(Clone, PartialEq, Message)]
struct Model {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    trainer: Option<Trainer>,
    #[prost(message, optional, tag = "3")]
    normalizer: Option<Normalizer>,
}

#[derive(Clone, PartialEq, Message)]
struct Piece {
    #[prost(string, optional, tag = "1")]
    text: Option<String>,
    #[prost(float, optional, tag = "2")]
    score: Option<f32>,
    #[prost(int32, optional, tag = "3", default = "1")]
    kind: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct Trainer {
    /// 1 is Unigram, 2 BPE.
    #[prost(int32, optional, tag = "3", default = "1")]
    model_type: Option<i32>,
    #[prost(bool, optional, tag = "35")]
    byte_fallback: Option<bool>,
    #[prost(string, optional, tag = "45", default = "<unk>")]
    unk_piece: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Normalizer {
    #[prost(bytes = "vec", optional, tag = "2")]
    precompiled_charsmap: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "3", default = "true")]
    add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4", default = "true")]
    remove_extra_whitespaces: Option<bool>,
}

impl Model {
    fn trainer(&self) -> Trainer {
        self.trainer.clone().unwrap_or_default()
    }

    fn normalizer(&self) -> Normalizer {
        self.normalizer.clone().unwrap_or_default()
    }

    fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        let model = Self::decode(bytes.as_slice())
            .map_err(|e| Error::invalid(path, "", format!("not a SentencePiece model: {e}")))?;
        let (trainer, normalizer) = (model.trainer(), model.normalizer());
        if model.pieces.is_empty() {
            return Err(Error::invalid(path, "", "not a SentencePiece model: it has no pieces"));
        }
        let refused = if trainer.model_type() != 2 || !trainer.byte_fallback() {
            "it is no BPE with byte fallback"
        } else if !normalizer.precompiled_charsmap().is_empty() {
            "it replaces characters before it cuts a text"
        } else if normalizer.remove_extra_whitespaces() {
            "it removes blanks before it cuts a text"
        } else {
            return Ok(model);
        };
        Err(Error::unsupported(
            format!("SentencePiece model {}", path.display()),
            format!("{refused}, as Llama's and Mistral's do; use a checkpoint with tokenizer.json"),
        ))
    }
}

/// The JSON files beside a SentencePiece model. What is absent says nothing.
struct Settings {
    /// In the order in which they are asked.
    files: Vec<(PathBuf, Map<String, Value>)>,
    /// `added_tokens.json`.
    ids: (PathBuf, Map<String, Value>),
}

impl Settings {
    fn read(dir: &Path) -> Result<Self> {
        let read = |name: &str| -> Result<(PathBuf, Map<String, Value>)> {
            let path = dir.join(name);
            if !path.is_file() {
                return Ok((path, Map::new()));
            }
            let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
            let map = serde_json::from_str(&text).map_err(|e| {
                Error::invalid(
                    &path,
                    format!("line {}", e.line()),
                    format!("not a JSON object: {e}"),
                )
            })?;
            Ok((path, map))
        };
        let files = vec![read("tokenizer_config.json")?, read("special_tokens_map.json")?];
        let this = Self { files, ids: read("added_tokens.json")? };
        let (path, config) = &this.files[0];
        let class =
            config.get("tokenizer_class").and_then(Value::as_str).unwrap_or("LlamaTokenizer");
        if !["LlamaTokenizer", "LlamaTokenizerFast"].contains(&class) {
            return Err(Error::unsupported(
                format!("tokenizer class \"{class}\" of a {PIECES}"),
                format!("{}: expected LlamaTokenizer", path.display()),
            ));
        }
        Ok(this)
    }

    fn flag(&self, name: &str, default: bool) -> Result<bool> {
        let (path, config) = &self.files[0];
        match config.get(name) {
            None | Some(Value::Null) => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => {
                let message = format!("is {other}, expected true or false");
                Err(Error::invalid(path, format!("field {name}"), message))
            }
        }
    }

    fn prefix(&self, model: &Model) -> Result<Prefix> {
        if !self.flag("add_prefix_space", model.normalizer().add_dummy_prefix())? {
            return Ok(Prefix::Never);
        }
        Ok(if self.flag("legacy", true)? { Prefix::Segments } else { Prefix::Start })
    }

    /// A special token: a string, or an object with its content.
    fn token(&self, name: &str) -> Option<String> {
        let value =
            self.files.iter().find_map(|(_, map)| map.get(name).filter(|v| !v.is_null()))?;
        value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
    }

    /// Added tokens: id, content, whether they are special.
    fn added(&self) -> Result<Vec<(usize, String, bool)>> {
        let mut all = Vec::new();
        let (path, config) = &self.files[0];
        for (id, token) in
            config.get("added_tokens_decoder").and_then(Value::as_object).into_iter().flatten()
        {
            let content = token["content"].as_str();
            let Some((id, content)) = id.parse().ok().zip(content) else {
                let at = format!("field added_tokens_decoder.{id}");
                return Err(Error::invalid(
                    path,
                    at,
                    format!("is {token}, expected an id and its content"),
                ));
            };
            all.push((id, content.to_owned(), token["special"].as_bool().unwrap_or(false)));
        }
        let (path, ids) = &self.ids;
        let special: Vec<String> = ["bos_token", "eos_token", "unk_token", "pad_token"]
            .iter()
            .filter_map(|name| self.token(name))
            .collect();
        for (content, id) in ids {
            let Some(number) = id.as_u64() else {
                let at = format!("field {content}");
                return Err(Error::invalid(path, at, format!("is {id}, expected a token's id")));
            };
            if !all.iter().any(|(known, _, _)| *known == number as usize) {
                all.push((number as usize, content.clone(), special.contains(content)));
            }
        }
        Ok(all)
    }
}
