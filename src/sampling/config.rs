//! Every setting of the method: what the paper states `[S]`, and what it leaves open `[C]`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::SentenceRule;
use crate::{Error, Result, ops::mask};

/// Which sentences count as starting with yes or no. Both know the four spellings of the paper: Yes, yes, No, no.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum YesNoRule {
    /// `[C]` As a word of its own: no letter, digit, mark or underscore behind it, no `-` or apostrophe with a letter (`No-one`),
    /// and not the abbreviation of number (`No. 5`).
    #[default]
    Word,
    /// `[S]` The paper's pattern `^[\s]*(Yes|yes|No|no)`, which also finds the "No" of "Not" and "North".
    Pattern,
}

/// The unit a cut counts in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CutUnit {
    /// Between words.
    #[default]
    Word,
    /// Between user-perceived characters (extended grapheme clusters).
    Character,
}

/// How masked image tokens are drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum MaskScheme {
    /// Each token on its own.
    #[default]
    Bernoulli,
    /// A fixed number, uniformly without replacement.
    ExactK,
    /// Squares of each tile.
    Blocks {
        /// Side of a square in tokens.
        block: usize,
    },
}

/// RoPE positions of what is left after masking.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Positions {
    /// As in the unmasked sequence.
    #[default]
    Original,
    /// Counted again, as Hugging Face `generate` does when only an attention mask is passed.
    Compact,
}

/// What the newline tokens of AnyRes are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Newlines {
    /// Image tokens: masked like the others.
    #[default]
    Image,
    /// Always visible.
    Exempt,
}

/// Most attempts at a sample.
pub const MOST_ATTEMPTS: u32 = 1000;

/// The settings of the method. Read from TOML or JSON; unknown fields are errors, missing ones take the default.
///
/// [`SETTINGS`] lists each with its default, its `paper` value and its meaning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SamplingConfig {
    /// `[S]` Probability that an image token is masked; 0 = off, 1 = no image.
    pub rho: f64,
    /// `[S]` bernoulli; the others are `[C]` variants.
    pub law: MaskScheme,
    /// `[C]` Positions after masking.
    pub positions: Positions,
    /// `[C]` Whether newline tokens are masked.
    pub newlines: Newlines,
    /// `[S App. E]` Diffusion steps of noise on the pixels, 1 to 1000 (the paper tries 100 to 500); 0 = none. The paper's
    /// noise runs do not mask: set `rho = 0` with it. Both together are allowed and mean both.
    pub noise_steps: u32,
    /// `[S]` Guide the attempts by the reference. False is the paper's "mask without guidance": every attempt is a full response.
    pub guidance: bool,
    /// `[S]` Attempts N; the last one is unguided if N > 1.
    pub attempts: u32,
    /// `[C]` Where sentences end, in the reference and in completions.
    pub sentences: SentenceRule,
    /// `[C]` What starts with yes or no.
    pub yes_no: YesNoRule,
    /// `[S]` Probability that a leading yes/no is swapped.
    pub swap_probability: f64,
    /// `[C]` Unit of the random cut.
    pub cut: CutUnit,
    /// `[C]` Softmax temperature; 0 = greedy.
    pub temperature: f64,
    /// `[C]` Draw among the k likeliest tokens; 0 = all.
    pub top_k: u32,
    /// `[C]` Draw among the likeliest tokens that together have this probability; 1 = all.
    pub top_p: f64,
    /// `[C]` Drop tokens below this share of the likeliest token's probability; 0 = none.
    pub min_p: f64,
    /// `[C]` Divides the positive and multiplies the negative logits of tokens seen before; 1 = off.
    pub repetition_penalty: f64,
    /// `[C]` Tokens the model may write for one sentence.
    pub max_sentence_tokens: u32,
    /// `[C]` Tokens the model may write for a full response.
    pub max_response_tokens: u32,
}

impl Default for SamplingConfig {
    fn default() -> Self {
        Self {
            rho: 0.99,
            law: MaskScheme::Bernoulli,
            positions: Positions::Original,
            newlines: Newlines::Image,
            noise_steps: 0,
            guidance: true,
            attempts: 5,
            sentences: SentenceRule::Unicode,
            yes_no: YesNoRule::Word,
            swap_probability: 0.5,
            cut: CutUnit::Word,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            max_sentence_tokens: 128,
            max_response_tokens: 1024,
        }
    }
}

/// One row of the table of settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Field of [`SamplingConfig`].
    pub name: &'static str,
    /// `[S]` or `[C]`.
    pub source: &'static str,
    /// One line for the documentation.
    pub meaning: &'static str,
}

const fn setting(name: &'static str, source: &'static str, meaning: &'static str) -> Setting {
    Setting { name, source, meaning }
}

/// Every field of [`SamplingConfig`], in order.
pub const SETTINGS: [Setting; 18] = [
    setting("rho", "S", "probability that an image token is masked; 0 = off, 1 = no image"),
    setting(
        "law",
        "S",
        "how masked tokens are drawn: bernoulli, exact_k, { blocks = { block = n } }",
    ),
    setting("positions", "C", "RoPE positions of what is left: original, compact (counted again)"),
    setting("newlines", "C", "AnyRes newline tokens: image (masked too), exempt (always visible)"),
    setting(
        "noise_steps",
        "S",
        "diffusion steps of pixel noise, 1 to 1000; 0 = none; use rho = 0 for noise alone",
    ),
    setting("guidance", "S", "complete the reference's sentences; false = mask without guidance"),
    setting("attempts", "S", "attempts N; the last is unguided if N > 1"),
    setting("sentences", "C", "where a sentence ends: unicode, first_dot"),
    setting("yes_no", "C", "leading yes/no: word (a word of its own), pattern (also Not, North)"),
    setting("swap_probability", "S", "probability that a leading yes/no is swapped"),
    setting("cut", "C", "unit of the random cut: word, character"),
    setting("temperature", "C", "softmax temperature; 0 = greedy"),
    setting("top_k", "C", "draw among the k likeliest tokens; 0 = all"),
    setting("top_p", "C", "draw among the likeliest tokens of this total probability; 1 = all"),
    setting("min_p", "C", "drop tokens below this share of the likeliest one; 0 = none"),
    setting("repetition_penalty", "C", "penalty on logits of tokens seen before; 1 = off"),
    setting("max_sentence_tokens", "C", "tokens the model may write for one sentence"),
    setting("max_response_tokens", "C", "tokens the model may write for a full response"),
];

/// Fields that choose among candidates but do not change any. (Whether a candidate is guided is known with its attempt.)
const ACCEPTANCE: [&str; 2] = ["guidance", "attempts"];

impl SamplingConfig {
    /// Every `[C]` setting at the nearest literal reading of the paper. Where the paper says nothing that could be read
    /// literally (sampling parameters, limits, newline tokens), it equals the default.
    pub fn paper() -> Self {
        Self::default().with_paper_choices()
    }

    /// These settings with the literal readings of [`SamplingConfig::paper`]; the rest stays.
    pub fn with_paper_choices(self) -> Self {
        Self {
            // Hugging Face's `generate` with an attention mask counts positions over visible tokens.
            positions: Positions::Compact,
            sentences: SentenceRule::FirstDot,
            yes_no: YesNoRule::Pattern,
            ..self
        }
    }

    /// Checks every value against its range.
    ///
    /// # Errors
    /// On the first field out of range; the message names it, its value and the range.
    pub fn validate(&self) -> Result<()> {
        let share = "between 0 and 1";
        check("rho", self.rho, (0.0..=1.0).contains(&self.rho), share)?;
        check(
            "swap_probability",
            self.swap_probability,
            (0.0..=1.0).contains(&self.swap_probability),
            share,
        )?;
        check("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), share)?;
        check("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "above 0, at most 1")?;
        let scale = 1e-4..=1e4;
        check(
            "temperature",
            self.temperature,
            self.temperature == 0.0 || scale.contains(&self.temperature),
            "0 (greedy) or between 1e-4 and 1e4",
        )?;
        let penalty = self.repetition_penalty;
        check("repetition_penalty", penalty, scale.contains(&penalty), "between 1e-4 and 1e4")?;
        if let MaskScheme::Blocks { block } = self.law {
            check("law.blocks.block", block, (1..=1024).contains(&block), "between 1 and 1024")?;
        }
        check("noise_steps", self.noise_steps, self.noise_steps <= 1000, "between 0 and 1000")?;
        check(
            "attempts",
            self.attempts,
            (1..=MOST_ATTEMPTS).contains(&self.attempts),
            "between 1 and 1000",
        )?;
        let tokens = "between 1 and 1000000";
        for (name, limit) in [
            ("max_sentence_tokens", self.max_sentence_tokens),
            ("max_response_tokens", self.max_response_tokens),
        ] {
            check(name, limit, (1..=1_000_000).contains(&limit), tokens)?;
        }
        Ok(())
    }

    /// The masking scheme with its rho, for [`mask::draw`].
    pub fn mask_scheme(&self) -> mask::MaskScheme {
        match self.law {
            MaskScheme::Bernoulli => mask::MaskScheme::Bernoulli { rho: self.rho },
            MaskScheme::ExactK => mask::MaskScheme::ExactK { rho: self.rho },
            MaskScheme::Blocks { block } => mask::MaskScheme::Blocks { rho: self.rho, block },
        }
    }

    /// All fields as JSON with sorted keys and no blanks: equal configurations give equal bytes.
    pub fn canonical(&self) -> String {
        canonical_json(&self.fields(&[]))
    }

    /// As [`SamplingConfig::canonical`], without the fields that only choose among candidates: guidance and attempts; and with
    /// `text_rule`, [`TEXT_RULE`].
    pub fn canonical_generation(&self) -> String {
        let mut fields = self.fields(&ACCEPTANCE);
        fields["text_rule"] = TEXT_RULE.into();
        canonical_json(&fields)
    }

    /// Rows `[setting, default, paper, source, meaning]` of the documentation's table; values as in TOML.
    pub fn table() -> Vec<[String; 5]> {
        let (default, paper) = (Self::default().fields(&[]), Self::paper().fields(&[]));
        let value = |fields: &Value, name: &str| {
            fields.get(name).map_or_else(String::new, Value::to_string)
        };
        SETTINGS
            .iter()
            .map(|row| {
                let (default, paper) = (value(&default, row.name), value(&paper, row.name));
                [
                    row.name.to_owned(),
                    default,
                    paper,
                    format!("[{}]", row.source),
                    row.meaning.to_owned(),
                ]
            })
            .collect()
    }

    /// The fields as a JSON object, without those named.
    fn fields(&self, without: &[&str]) -> Value {
        // Serialising plain fields into a tree cannot fail; `null` would show up in every test of this file.
        let mut fields = serde_json::to_value(self).unwrap_or_default();
        if let Value::Object(map) = &mut fields {
            map.retain(|name, _| !without.contains(&name.as_str()));
        }
        fields
    }
}

fn check(field: &'static str, got: impl ToString, valid: bool, expected: &str) -> Result<()> {
    if valid { Ok(()) } else { Err(Error::argument("sampling config", field, got, expected)) }
}

/// How tokens became the texts of a store. Where it is absent, rule 1: text after an invalid byte
/// token was missing, and so was an incomplete character at the end. Rule 2: texts are the
/// tokenizer's decoding of all drawn tokens; and pictures of a checkpoint in the original LLaVA layout
/// are not turned by their EXIF orientation.
pub const TEXT_RULE: u32 = 2;

/// JSON with keys sorted at every level, no blanks, and -0 written as 0.
fn canonical_json(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(name, _)| *name);
            let entries: Vec<String> = entries
                .into_iter()
                .map(|(name, value)| {
                    format!("{}:{}", Value::from(name.as_str()), canonical_json(value))
                })
                .collect();
            format!("{{{}}}", entries.join(","))
        }
        Value::Array(values) => {
            let values: Vec<String> = values.iter().map(canonical_json).collect();
            format!("[{}]", values.join(","))
        }
        Value::Number(number) if number.as_f64() == Some(0.0) && number.is_f64() => {
            "0.0".to_owned()
        }
        other => other.to_string(),
    }
}
