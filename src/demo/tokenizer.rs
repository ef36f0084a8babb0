//! The demo's vocabularies, made by the `tokenizers` crate's trainers from the scene world's texts.

use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::models::unigram::{Unigram, UnigramTrainer};
use tokenizers::models::wordlevel::{WordLevel, WordLevelTrainer};
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::{
    bert::BertPreTokenizer,
    byte_level::ByteLevel,
    metaspace::{Metaspace, PrependScheme},
};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, ModelWrapper, Tokenizer};

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

/// Whole words, and single characters for all others. (The crate's trainer of word pieces breaks ties by the order of a
/// hash map, so no two runs of it give the same pieces.)
fn word_pieces(scheme: &Scheme, texts: &[String]) -> Result<Tokenizer> {
    let trainer = WordLevelTrainer::builder()
        .show_progress(false)
        .min_frequency(2)
        .vocab_size(scheme.vocab)
        .special_tokens(tokens(&scheme.special))
        .build()
        .map_err(|e| failed(e.into()))?;
    let mut tokenizer = Tokenizer::new(WordLevel::default());
    tokenizer.with_normalizer(Some(BertNormalizer::default())).map_err(failed)?;
    tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
    let mut tokenizer = train(tokenizer, trainer.into(), texts)?;
    let mut words: Vec<(String, u32)> = tokenizer.get_vocab(false).into_iter().collect();
    words.sort_by_key(|(_, id)| *id);
    let mut pieces: Vec<String> = words.into_iter().map(|(word, _)| word).collect();
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

fn unigram(scheme: &Scheme, texts: &[String]) -> Result<Tokenizer> {
    let trainer = UnigramTrainer::builder()
        .show_progress(false)
        .vocab_size(scheme.vocab as u32)
        .unk_token(Some(scheme.unknown.into()))
        .special_tokens(tokens(&scheme.special))
        .build()
        .map_err(|e| failed(e.into()))?;
    let mut tokenizer = Tokenizer::new(Unigram::default());
    let space = Metaspace::new('\u{2581}', PrependScheme::Always, true);
    tokenizer.with_pre_tokenizer(Some(space.clone()));
    tokenizer.with_decoder(Some(space));
    let mut tokenizer = train(tokenizer, trainer.into(), texts)?;
    let ModelWrapper::Unigram(model) = tokenizer.get_model() else { return Ok(tokenizer) };
    // The trainer adds likelihoods in any order: rounded, and sorted anew, they are the same in every run.
    let mut pieces: Vec<(String, f64)> =
        model.iter().map(|(piece, score)| (piece.clone(), (score * 1e6).round() / 1e6)).collect();
    pieces[scheme.special.len()..].sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let unknown = pieces.iter().position(|(piece, _)| piece == scheme.unknown);
    let model = Unigram::from(pieces, unknown, false).map_err(failed)?;
    tokenizer.with_model(model);
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
