//! What one attempt produced.

use serde::{Deserialize, Serialize};

use super::SentenceRule;

/// One generated response: a possible rejected answer of a DPO pair.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Index of the sample in its dataset; the same in a shard.
    pub sample: u32,
    /// Attempt number, from 1.
    pub attempt: u32,
    /// Completed sentence by sentence from the reference, or one free response (the last attempt).
    pub guided: bool,
    /// The whole response: all parts joined.
    pub text: String,
    /// One part a sentence of the reference; a single part where unguided.
    pub parts: Vec<Part>,
    /// Image tokens of the prompt before masking, over all its images.
    pub image_tokens: u32,
    /// Indices of the image tokens that stayed visible, ascending, counted over all images.
    pub kept: Vec<u32>,
}

/// One sentence of a guided response, or a whole unguided one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// What was kept of the reference sentence, after a yes/no swap.
    pub kept: String,
    /// What the model wrote after it.
    pub completion: String,
    /// The bytes between this sentence and the next one in the reference.
    pub separator: String,
    /// Whether the leading yes/no was swapped.
    pub swapped: bool,
    /// Why the completion ended.
    pub stop: Stop,
    /// Tokens drawn, the one that ended it included.
    pub tokens: u32,
    /// Sum of the natural-log probabilities of the drawn tokens, under the sampling distribution.
    pub logprob: f32,
}

/// Why a completion ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stop {
    /// The sentence was complete.
    FullStop,
    /// The model ended the sequence.
    EndOfSequence,
    /// The token limit of the configuration was reached.
    TokenLimit,
}

/// Something about a candidate that a reader of the pairs may want to know. None of them rejects it: the paper describes no filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Flag {
    /// Nothing visible in the response.
    Empty,
    /// Byte for byte the reference.
    Identical,
    /// The reference up to white space, but not byte for byte.
    SameWords,
    /// A completion was cut off by the token limit.
    TokenLimit,
    /// A sentence of a guided response is the reference's, up to white space.
    UnchangedSentence,
    /// The model wrote nothing visible for a sentence of a guided response.
    EmptyCompletion,
}

impl Flag {
    /// All flags, in the order in which [`Candidate::flags`] gives them.
    pub const ALL: [Self; 6] = [
        Self::Empty,
        Self::Identical,
        Self::SameWords,
        Self::TokenLimit,
        Self::UnchangedSentence,
        Self::EmptyCompletion,
    ];

    /// Those of responses that teach nothing, or something else.
    pub const UNUSABLE: [Self; 4] =
        [Self::Empty, Self::Identical, Self::SameWords, Self::TokenLimit];
}

impl Candidate {
    /// The flags of this candidate, ascending; `sentences` is the rule by which the reference was split.
    pub fn flags(&self, reference: &str, sentences: SentenceRule) -> Vec<Flag> {
        let same = same_words(&self.text, reference);
        let holds = |flag: &Flag| match flag {
            Flag::Empty => self.text.trim().is_empty(),
            Flag::Identical => self.text == reference,
            Flag::SameWords => same && self.text != reference,
            Flag::TokenLimit => self.parts.iter().any(|part| part.stop == Stop::TokenLimit),
            Flag::UnchangedSentence => {
                self.guided
                    && self.parts.iter().zip(sentences.split(reference)).any(|(part, sentence)| {
                        same_words(
                            &format!("{}{}", part.kept, part.completion),
                            &reference[sentence],
                        )
                    })
            }
            Flag::EmptyCompletion => {
                self.guided && self.parts.iter().any(|part| part.completion.trim().is_empty())
            }
        };
        Flag::ALL.into_iter().filter(holds).collect()
    }
}

/// Whether two texts differ in white space at most.
fn same_words(a: &str, b: &str) -> bool {
    a.split_whitespace().eq(b.split_whitespace())
}
