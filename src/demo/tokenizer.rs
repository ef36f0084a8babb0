//! The demo's vocabularies, made by the `tokenizers` crate's trainers from the scene world's texts.

use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::models::unigram::Unigram;
use tokenizers::models::wordlevel::{WordLevel, WordLevelTrainer};
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::{
    bert::BertPreTokenizer,
    byte_level::ByteLevel,
    metaspace::{Metaspace, PrependScheme},
};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Tokenizer};

use crate::{Error, Result};

/// Special tokens of the demo LLaVA, in the order of their ids.
pub(super) const LLAVA_SPECIAL: [&str; 4] = ["<s>", "</s>", "<pad>", "<image>"];
/// The id of the image placeholder.
pub(super) const IMAGE_ID: u32 = 3;

/// How a text becomes tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Lower-cased words and their pieces.
    WordPiece,
    /// Bytes, merged by frequency.
    BytePairs,
    /// Pieces by likelihood, blanks as part of them.
    Unigram,
}

/// What an encoder's tokenizer is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scheme {
    pub kind: Kind,
    pub vocab: usize,
    /// In the order of their ids.
    pub special: [&'static str; 5],
    /// What is put before and after a text.
    pub around: [&'static str; 2],
    pub unknown: &'static str,
}

/// The demo LLaVA's: byte pairs, so that any text has tokens; `<s>` in front.
pub(super) fn llava(vocab: usize, texts: &[String]) -> Result<Tokenizer> {
    let mut tokenizer = byte_pairs(vocab, &LLAVA_SPECIAL, texts)?;
    front_and_back(&mut tokenizer, "<s> $A", &LLAVA_SPECIAL)?;
    Ok(tokenizer)
}

/// An encoder's.
pub(super) fn encoder(scheme: &Scheme, texts: &[String]) -> Result<Tokenizer> {
    let mut tokenizer = match scheme.kind {
        Kind::WordPiece => word_pieces(scheme, texts)?,
        Kind::BytePairs => byte_pairs(scheme.vocab, &scheme.special, texts)?,
        Kind::Unigram => unigram(scheme, texts)?,
    };
    let [before, after] = scheme.around;
    front_and_back(&mut tokenizer, &format!("{before} $A {after}"), &scheme.special)?;
    Ok(tokenizer)
}

fn byte_pairs(vocab: usize, special: &[&str], texts: &[String]) -> Result<Tokenizer> {
    let trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(vocab)
        .min_frequency(2)
        .special_tokens(tokens(special))
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    tokenizer.with_decoder(Some(ByteLevel::new(false, true, true)));
    train(tokenizer, trainer.into(), texts)
}

/// Whole words and punctuation, most frequent first, the special tokens in front.
///
/// The crate's trainers of word pieces and unigrams leave ties to the order of a hash map and of threads, so that no two runs
/// give the same pieces. This one counts.
fn words(scheme: &Scheme, texts: &[String], lower: bool) -> Result<Tokenizer> {
    let trainer = WordLevelTrainer::builder()
        .show_progress(false)
        .min_frequency(2)
        .vocab_size(scheme.vocab)
        .special_tokens(tokens(&scheme.special))
        .build()
        .map_err(|e| failed(e.into()))?;
    let mut tokenizer = Tokenizer::new(WordLevel::default());
    if lower {
        tokenizer.with_normalizer(Some(BertNormalizer::default())).map_err(failed)?;
    }
    tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
    train(tokenizer, trainer.into(), texts)
}

/// The vocabulary in the order of the ids.
fn in_order(tokenizer: &Tokenizer) -> Vec<String> {
    let mut words: Vec<(String, u32)> = tokenizer.get_vocab(false).into_iter().collect();
    words.sort_by_key(|(_, id)| *id);
    words.into_iter().map(|(word, _)| word).collect()
}

/// Lower-cased words, and single characters for all others.
fn word_pieces(scheme: &Scheme, texts: &[String]) -> Result<Tokenizer> {
    let mut tokenizer = words(scheme, texts, true)?;
    let mut pieces = in_order(&tokenizer);
    for character in ('a'..='z').chain('0'..='9') {
        for piece in [character.to_string(), format!("##{character}")] {
            if !pieces.contains(&piece) {
                pieces.push(piece);
            }
        }
    }
    let numbered = pieces.into_iter().enumerate();
    let vocab: serde_json::Map<_, _> = numbered.map(|(id, piece)| (piece, id.into())).collect();
    let model = serde_json::json!({
        "type": "WordPiece",
        "unk_token": scheme.unknown,
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": vocab,
    });
    let model: WordPiece =
        serde_json::from_str(&model.to_string()).map_err(|e| failed(e.into()))?;
    tokenizer.with_model(model);
    Ok(tokenizer)
}

/// Words with the blank before them, and characters for what they do not cover; likelihoods fall with the rank, as Zipf has it.
fn unigram(scheme: &Scheme, texts: &[String]) -> Result<Tokenizer> {
    const BLANK: char = '\u{2581}';
    let special = scheme.special.len();
    let ranked = in_order(&words(scheme, texts, false)?);
    let mut pieces: Vec<(String, f64)> =
        ranked[..special].iter().map(|token| (token.clone(), 0.0)).collect();
    for (rank, word) in ranked[special..].iter().enumerate() {
        let joined = word.chars().all(char::is_alphanumeric);
        let piece = if joined { format!("{BLANK}{word}") } else { word.clone() };
        pieces.push((piece, -((rank + 2) as f64).ln()));
    }
    let characters = (' '..='~').filter(|c| *c != ' ').chain([BLANK, '\n']);
    for piece in characters.map(String::from) {
        if pieces.iter().all(|(known, _)| *known != piece) {
            // Below any word that it could be a part of.
            pieces.push((piece, -12.0));
        }
    }
    let unknown = scheme.special.iter().position(|&token| token == scheme.unknown);
    let mut tokenizer = Tokenizer::new(Unigram::from(pieces, unknown, false).map_err(failed)?);
    let space = Metaspace::new(BLANK, PrependScheme::Always, true);
    tokenizer.with_pre_tokenizer(Some(space.clone()));
    tokenizer.with_decoder(Some(space));
    tokenizer.add_special_tokens(tokens(&scheme.special)).map_err(failed)?;
    Ok(tokenizer)
}

fn train(
    mut tokenizer: Tokenizer,
    mut trainer: TrainerWrapper,
    texts: &[String],
) -> Result<Tokenizer> {
    tokenizer.train(&mut trainer, texts.iter()).map_err(failed)?;
    Ok(tokenizer)
}

fn tokens(special: &[&str]) -> Vec<AddedToken> {
    special.iter().map(|&token| AddedToken::from(token, true)).collect()
}

fn front_and_back(tokenizer: &mut Tokenizer, form: &str, special: &[&str]) -> Result<()> {
    let named: Vec<(&str, u32)> =
        special.iter().enumerate().map(|(id, &token)| (token, id as u32)).collect();
    let processor = TemplateProcessing::builder()
        .try_single(form)
        .map_err(|e| Error::argument("demo::tokenizer", "template", form, e))?
        .special_tokens(named)
        .build()
        .map_err(|e| failed(e.into()))?;
    tokenizer.with_post_processor(Some(processor));
    Ok(())
}

fn failed(error: tokenizers::Error) -> Error {
    Error::argument("demo::tokenizer", "corpus", error, "texts that a vocabulary can be made from")
}

/// Rows that the embedding needs.
pub(super) fn size(tokenizer: &Tokenizer) -> usize {
    tokenizer.get_vocab_size(true)
}
