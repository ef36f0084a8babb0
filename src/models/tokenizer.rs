//! Hugging Face `tokenizer.json` files, and SentencePiece models where there is none ([`super::sentencepiece`]), with the padding
//! and truncation that they may carry switched off: lengths are our callers' business.

use super::sentencepiece;
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// A text as token ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoding {
    /// The ids, in order.
    pub ids: Vec<u32>,
    /// The bytes of the text that each id stands for, start and end; (0, 0) for special tokens that were added.
    pub offsets: Vec<(usize, usize)>,
    /// How many ids the text has without truncation, added special tokens included.
    pub total: usize,
}

/// A tokenizer and the file it came from.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
}

impl Tokenizer {
    /// Loads `tokenizer.json`, given the file or its folder; of a folder without one, `tokenizer.model`.
    ///
    /// # Errors
    /// [`Error::Io`] if neither is there; [`Error::Invalid`] if the file is not a tokenizer; those of `tokenizer.model` as
    /// [`super::sentencepiece`] says.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let pieces = path.join(sentencepiece::PIECES);
        let path = if path.is_dir() { path.join("tokenizer.json") } else { path.to_path_buf() };
        let (mut inner, path) = if pieces.is_file() && !path.is_file() {
            (sentencepiece::load(&pieces)?, pieces)
        } else {
            let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
            let inner = tokenizers::Tokenizer::from_bytes(&bytes)
                .map_err(|e| Error::invalid(&path, "", format!("not a tokenizer.json: {e}")))?;
            (inner, path)
        };
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| Error::invalid(&path, "", e.to_string()))?;
        Ok(Self { inner, path })
    }

    /// Encodes a text; with `special`, the tokenizer's template adds its special tokens. Empty text is valid.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the tokenizer cannot represent the text (no unknown token).
    pub fn encode(&self, text: &str, special: bool) -> Result<Encoding> {
        let encoding = self.inner.encode(text, special).map_err(|e| self.failed(text, e))?;
        Ok(result(&encoding, encoding.len()))
    }

    /// Encodes a text with its special tokens, dropping tokens of the text from the end so that at most `max` ids
    /// remain, special tokens included (as sentence-transformers does). `total` counts before that.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`]; [`Error::Argument`] if `max` cannot hold the special tokens.
    pub fn encode_truncated(&self, text: &str, max: usize) -> Result<Encoding> {
        let added = self.special_tokens_added();
        if max < added {
            let expected = format!("at least the {added} special tokens");
            return Err(Error::argument("Tokenizer::encode_truncated", "max", max, expected));
        }
        let mut encoding = self.inner.encode(text, false).map_err(|e| self.failed(text, e))?;
        let total = encoding.len() + added;
        if total > max {
            encoding.truncate(max - added, 0, tokenizers::TruncationDirection::Right);
            // The part cut off would be given special tokens too.
            encoding.take_overflowing();
        }
        let encoding =
            self.inner.post_process(encoding, None, true).map_err(|e| self.failed(text, e))?;
        Ok(result(&encoding, total))
    }

    /// Makes every text lower case before anything else, whether or not the file's own rules do.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the added tokens cannot be normalised anew.
    pub fn lower_case(&mut self) -> Result<()> {
        use tokenizers::normalizers::{Lowercase, Sequence};
        let mut steps = vec![Lowercase.into()];
        steps.extend(self.inner.get_normalizer().cloned());
        self.inner
            .with_normalizer(Some(Sequence::new(steps)))
            .map_err(|e| Error::invalid(&self.path, "", e.to_string()))?;
        Ok(())
    }

    /// How many special tokens the template adds to one text.
    pub fn special_tokens_added(&self) -> usize {
        use tokenizers::PostProcessor;
        self.inner.get_post_processor().map_or(0, |p| p.added_tokens(false))
    }

    /// The text of these ids; with `skip_special`, without special tokens.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner
            .decode(ids, skip_special)
            .map_err(|e| Error::invalid(&self.path, "", format!("decoding {ids:?}: {e}")))
    }

    /// The id of a token, added ones included.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token of an id.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// How many ids there are, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it wraps, for what this type does not offer.
    pub fn inner(&self) -> &tokenizers::Tokenizer {
        &self.inner
    }

    fn failed(&self, text: &str, error: impl std::fmt::Display) -> Error {
        let start: String = text.chars().take(40).collect();
        Error::invalid(&self.path, "", format!("cannot encode the text {start:?}: {error}"))
    }
}

fn result(encoding: &tokenizers::Encoding, total: usize) -> Encoding {
    let ids = encoding.get_ids().to_vec();
    Encoding { ids, offsets: encoding.get_offsets().to_vec(), total }
}
