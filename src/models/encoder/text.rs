//! The tokenizer of a sentence encoder, as `tokenizer_config.json` has it beside `tokenizer.json`.

use super::Config;
use crate::models::settings;
use crate::models::tokenizer::{Tokenizer, WordPieceTokens};
use crate::{Error, Result};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// The vocabulary of BERT's kind that older folders have in place of a `tokenizer.json`.
pub(super) const VOCABULARY: &str = crate::models::files::VOCABULARY;

/// `tokenizer_config.json` of a folder; empty where there is none.
pub(super) struct Settings {
    path: PathBuf,
    fields: Map<String, Value>,
}

impl Settings {
    /// Reads and checks the file.
    pub(super) fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer_config.json");
        let mut fields = Map::new();
        if path.is_file() {
            let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
            fields = serde_json::from_str(&text)
                .map_err(|e| Error::invalid(&path, format!("line {}", e.line()), e.to_string()))?;
            settings::TOKENIZER.check(&fields, &path)?;
        }
        Ok(Self { path, fields })
    }

    /// The most tokens of a text, if there is a limit.
    pub(super) fn max_tokens(&self) -> Result<Option<usize>> {
        match self.value("model_max_length") {
            None => Ok(None),
            // A float beyond the integers ("no limit" is written as 1e30) becomes the largest one.
            Some(value) => match value.as_f64() {
                Some(most) => Ok(Some(most as usize)),
                None => Err(self.wrong("model_max_length", value, "a number")),
            },
        }
    }

    /// The tokenizer of the folder. The class that the settings name decides as in transformers: BERT's
    /// and its like are made anew from the vocabulary and the settings, whatever normalizer
    /// `tokenizer.json` has.
    pub(super) fn tokenizer(&self, dir: &Path, config: &Config) -> Result<Tokenizer> {
        let class = self.class(config)?;
        let vocabulary = dir.join(VOCABULARY);
        let others = ["tokenizer.json", crate::models::sentencepiece::PIECES];
        let alone = vocabulary.is_file() && !others.iter().any(|name| dir.join(name).is_file());
        let mut tokenizer = match (alone, &class) {
            (false, _) => Tokenizer::load(dir)?,
            (true, Some(marks)) => Tokenizer::of_vocabulary(&vocabulary, &self.tokens(marks))?,
            (true, None) => {
                let message = "is read for BERT, DistilBERT, ELECTRA and MPNet tokenizers alone; save the model with a \
                               tokenizer.json (AutoTokenizer.from_pretrained(...).save_pretrained(...))";
                return Err(Error::invalid(vocabulary, "", message));
            }
        };
        if class.is_some() && tokenizer.is_word_piece() {
            let lower = self.flag("do_lower_case")?.unwrap_or(true);
            let chinese = self.flag("tokenize_chinese_chars")?.unwrap_or(true);
            tokenizer.normalize_as_bert(lower, self.flag("strip_accents")?, chinese)?;
        }
        self.check_prefix_space(&tokenizer)?;
        match self.text("truncation_side")? {
            None | Some("right") => {}
            Some("left") => tokenizer.keep_the_end(),
            Some(_) => {
                let value = &self.fields["truncation_side"];
                return Err(self.wrong("truncation_side", value, "\"left\" or \"right\""));
            }
        }
        Ok(tokenizer)
    }

    /// Start and end of a text for tokenizers of BERT's kind; none for others.
    fn class(&self, config: &Config) -> Result<Option<[&'static str; 2]>> {
        let class = match self.text("tokenizer_class")? {
            Some(class) => class.trim_end_matches("Fast"),
            None => match config.model_type.as_str() {
                "bert" => "BertTokenizer",
                "distilbert" => "DistilBertTokenizer",
                "mpnet" => "MPNetTokenizer",
                _ => "",
            },
        };
        Ok(match class {
            "BertTokenizer" | "DistilBertTokenizer" | "ElectraTokenizer" => {
                Some(["[CLS]", "[SEP]"])
            }
            "MPNetTokenizer" => Some(["<s>", "</s>"]),
            _ => None,
        })
    }

    fn tokens(&self, [cls, sep]: &[&str; 2]) -> WordPieceTokens {
        let token = |name: &str, default: &str| {
            let value = self.value(name);
            let text = value.and_then(|v| v.as_str().or_else(|| v["content"].as_str()));
            text.unwrap_or(default).to_owned()
        };
        let brackets = *cls == "[CLS]";
        WordPieceTokens {
            cls: token("cls_token", cls),
            sep: token("sep_token", sep),
            unk: token("unk_token", "[UNK]"),
            others: vec![
                token("pad_token", if brackets { "[PAD]" } else { "<pad>" }),
                token("mask_token", if brackets { "[MASK]" } else { "<mask>" }),
            ],
        }
    }

    /// RoBERTa's tokenizers are made anew as well, with this setting.
    fn check_prefix_space(&self, tokenizer: &Tokenizer) -> Result<()> {
        let (Some(said), Some(done)) =
            (self.flag("add_prefix_space")?, tokenizer.adds_prefix_space())
        else {
            return Ok(());
        };
        if said == done {
            return Ok(());
        }
        let what = format!("add_prefix_space = {said} in {}", self.path.display());
        let message = format!("{} says {done}: make the two agree", tokenizer.path().display());
        Err(Error::unsupported(what, message))
    }

    fn value(&self, name: &str) -> Option<&Value> {
        self.fields.get(name).filter(|value| !value.is_null())
    }

    fn flag(&self, name: &str) -> Result<Option<bool>> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(value) => Err(self.wrong(name, value, "true or false")),
        }
    }

    fn text(&self, name: &str) -> Result<Option<&str>> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(value) => Err(self.wrong(name, value, "a text")),
        }
    }

    fn wrong(&self, name: &str, value: &Value, expected: &str) -> Error {
        let message = format!("is {value}, expected {expected}");
        Error::invalid(&self.path, format!("field {name}"), message)
    }
}
