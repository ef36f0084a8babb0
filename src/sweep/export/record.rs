//! One pair with everything known about it.

use serde::{Serialize, Serializer, ser::SerializeMap};

use super::File;
use crate::data::Sample;
use crate::models::IMAGE;
use crate::models::{Role, Turn};
use crate::sampling::{Candidate, Flag, SamplingConfig};
use crate::store::{Key, Score};
use crate::sweep::grid::{Cell, PairRef};

/// A row of an export; its fields are the columns, in order.
#[derive(Debug, Serialize)]
pub(super) struct Record {
    /// Absolute paths.
    pub images: Vec<String>,
    pub prompt: Vec<Message>,
    pub chosen: Vec<Message>,
    pub rejected: Vec<Message>,
    pub id: String,
    pub sample: u32,
    pub attempt: u32,
    pub guided: bool,
    pub forced: bool,
    pub encoder: String,
    pub threshold: f64,
    /// By the cell's encoder; NaN is null in the files.
    pub phi: f64,
    pub scores: Scores,
    pub mask: Mask,
    pub flags: Vec<Flag>,
    pub candidate: String,
    /// As text: many JSON readers turn large integers into floats.
    pub seed: String,
    /// The data set's own rejected answer, where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_rejected: Option<String>,
}

/// One message of a conversation.
#[derive(Debug, Serialize)]
pub(super) struct Message {
    pub role: &'static str,
    pub content: Vec<Content>,
}

/// A piece of a message: an image has no text.
#[derive(Debug, Serialize)]
pub(super) struct Content {
    pub r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// The mask under which the candidate was made.
#[derive(Debug, Serialize)]
pub(super) struct Mask {
    pub rho: f64,
    /// How many image tokens stayed visible.
    pub kept: u32,
    pub image_tokens: u32,
    /// 32 hexadecimal digits that are equal for equal masks.
    pub key: String,
}

/// What each encoder says, by its name; none where it did not score the candidate.
#[derive(Debug)]
pub(super) struct Scores(pub Vec<(String, Option<Score>)>);

#[derive(Serialize)]
struct ScoreFields {
    phi: f64,
    candidate_tokens: u32,
    reference_tokens: u32,
    candidate_truncated: bool,
    reference_truncated: bool,
}

impl Serialize for Scores {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, score) in &self.0 {
            let fields = score.map(|score| ScoreFields {
                phi: score.phi,
                candidate_tokens: score.candidate_tokens,
                reference_tokens: score.reference_tokens,
                candidate_truncated: score.candidate_truncated,
                reference_truncated: score.reference_truncated,
            });
            map.serialize_entry(name, &fields)?;
        }
        map.end()
    }
}

/// Where a pair comes from.
pub(super) struct Origin<'a> {
    pub cell: &'a Cell,
    pub pair: &'a PairRef,
    pub key: Key,
    pub config: &'a SamplingConfig,
    pub seed: u64,
    pub files: &'a [File],
    pub scores: Vec<(&'a str, Option<&'a Score>)>,
}

impl Record {
    /// The rejected answer.
    pub fn answer(&self) -> &str {
        let first = self.rejected.first().and_then(|message| message.content.first());
        first.and_then(|content| content.text.as_deref()).unwrap_or_default()
    }

    pub fn new(sample: &Sample, candidate: &Candidate, origin: &Origin) -> Self {
        let answer = |text: &str| vec![message(Role::Assistant, vec![words(text)])];
        let scores = origin.scores.iter();
        Self {
            images: origin.files.iter().map(|f| f.path.to_string_lossy().into_owned()).collect(),
            prompt: sample.turns.iter().map(|turn| message(turn.role, contents(turn))).collect(),
            chosen: answer(&sample.reference),
            rejected: answer(&candidate.text),
            id: sample.id.clone(),
            sample: sample.index,
            attempt: candidate.attempt,
            guided: candidate.guided,
            forced: origin.pair.forced,
            encoder: origin.cell.encoder.clone(),
            threshold: origin.cell.threshold,
            phi: origin.pair.phi,
            scores: Scores(scores.map(|(name, s)| ((*name).to_owned(), s.copied())).collect()),
            mask: Mask {
                rho: origin.config.rho,
                kept: candidate.kept.len() as u32,
                image_tokens: candidate.image_tokens,
                key: mask_key(candidate),
            },
            flags: candidate.flags(&sample.reference, origin.config.sentences),
            candidate: origin.key.to_string(),
            seed: origin.seed.to_string(),
            source_rejected: sample.rejected.clone(),
        }
    }
}

fn message(role: Role, content: Vec<Content>) -> Message {
    let role = match role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
    };
    Message { role, content }
}

fn words(text: &str) -> Content {
    Content { r#type: "text", text: Some(text.to_owned()) }
}

/// Images where their placeholders stood. Line breaks around one belong to LLaVA's data format, not to the prompt: the
/// chat template writes its own. The same rule as in the prompt that the model was given.
fn contents(turn: &Turn) -> Vec<Content> {
    if !turn.text.contains(IMAGE) {
        return vec![words(&turn.text)];
    }
    let mut contents = Vec::new();
    for (index, piece) in turn.text.split(IMAGE).enumerate() {
        if index > 0 {
            contents.push(Content { r#type: "image", text: None });
        }
        let piece = piece.trim_matches('\n');
        if !piece.is_empty() {
            contents.push(words(piece));
        }
    }
    contents
}

fn mask_key(candidate: &Candidate) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&candidate.image_tokens.to_le_bytes());
    candidate.kept.iter().for_each(|index| {
        hasher.update(&index.to_le_bytes());
    });
    hasher.finalize().to_hex()[..32].to_owned()
}
