//! Hugging Face `tokenizer.json` files, and SentencePiece models where there is none ([`super::sentencepiece`]), with the padding
//! and truncation that they may carry switched off: lengths are our callers' business.

use super::guard::guarded;
use super::sentencepiece;
use super::weights::{LFS_POINTER, is_lfs_pointer};
use crate::{Error, Result};
use std::path::{Path, PathBuf};
use tokenizers::{AddedToken, DecoderWrapper, TruncationDirection};

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
    /// Whether the decoder looks no further than runs of byte tokens and the first token.
    local: bool,
    /// Which end of a text is dropped where it is too long.
    dropped: TruncationDirection,
}

/// Special tokens of a vocabulary of BERT's kind.
#[derive(Clone, Debug)]
pub(super) struct WordPieceTokens {
    /// Before a text, after it, and for what has no token.
    pub cls: String,
    pub sep: String,
    pub unk: String,
    /// Those that a text never has by itself.
    pub others: Vec<String>,
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
            if is_lfs_pointer(&bytes) {
                return Err(Error::invalid(&path, "", LFS_POINTER));
            }
            let inner = guarded(&path, LIBRARY, || tokenizers::Tokenizer::from_bytes(&bytes))?
                .map_err(|e| Error::invalid(&path, "", format!("not a tokenizer.json: {e}")))?;
            (inner, path)
        };
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| Error::invalid(&path, "", e.to_string()))?;
        Self::new(inner, path)
    }

    fn new(inner: tokenizers::Tokenizer, path: PathBuf) -> Result<Self> {
        let local = inner.get_decoder().is_none_or(is_local);
        let this = Self { inner, path, local, dropped: TruncationDirection::Right };
        // A template without its tokens is only found out when it is used.
        this.encode("", true)?;
        Ok(this)
    }

    /// The tokenizer of a `vocab.txt` of BERT's kind, a token a line. It has no normalizer: see
    /// [`Tokenizer::normalize_as_bert`].
    ///
    /// # Errors
    /// [`Error::Invalid`] if the file is no vocabulary, or lacks a special token.
    pub(super) fn of_vocabulary(path: &Path, tokens: &WordPieceTokens) -> Result<Self> {
        use tokenizers::models::wordpiece::WordPiece;
        use tokenizers::{decoders, pre_tokenizers, processors};
        let invalid = |message: String| Error::invalid(path, "", message);
        let name = path.display().to_string();
        let model = WordPiece::from_file(&name).unk_token(tokens.unk.clone()).build();
        let mut inner = tokenizers::Tokenizer::new(model.map_err(|e| invalid(e.to_string()))?);
        let mut of_text = Vec::new();
        for token in [&tokens.cls, &tokens.sep, &tokens.unk] {
            let id = inner.token_to_id(token);
            let id = id.ok_or_else(|| invalid(format!("has no token {token:?}")))?;
            of_text.push((token.clone(), id));
        }
        let known = tokens.others.iter().filter(|token| inner.token_to_id(token).is_some());
        let special = of_text.iter().map(|(token, _)| token).chain(known);
        let special: Vec<AddedToken> =
            special.map(|token| AddedToken::from(token.clone(), true)).collect();
        inner.add_special_tokens(special).map_err(|e| invalid(e.to_string()))?;
        of_text.truncate(2);
        let processor = processors::template::TemplateProcessing::builder()
            .try_single(vec![tokens.cls.as_str(), "$A", tokens.sep.as_str()])
            .map_err(invalid)?
            .special_tokens(of_text)
            .build()
            .map_err(|e| invalid(e.to_string()))?;
        inner.with_post_processor(Some(processor));
        inner.with_pre_tokenizer(Some(pre_tokenizers::bert::BertPreTokenizer));
        inner.with_decoder(Some(decoders::wordpiece::WordPiece::default()));
        Self::new(inner, path.to_owned())
    }

    /// Whether words are split by a vocabulary of BERT's kind.
    pub(super) fn is_word_piece(&self) -> bool {
        matches!(self.inner.get_model(), tokenizers::ModelWrapper::WordPiece(_))
    }

    /// Whether the byte-level rules put a blank before a text; none where there are no such rules.
    pub(super) fn adds_prefix_space(&self) -> Option<bool> {
        match self.inner.get_pre_tokenizer()? {
            tokenizers::PreTokenizerWrapper::ByteLevel(level) => Some(level.add_prefix_space),
            _ => None,
        }
    }

    /// Puts BERT's normalizer in the place of the file's. Accents are stripped where the case is
    /// lowered, unless `strip_accents` says otherwise.
    ///
    /// # Errors
    /// As [`Tokenizer::lower_case`].
    pub(super) fn normalize_as_bert(
        &mut self,
        lower_case: bool,
        strip_accents: Option<bool>,
        chinese: bool,
    ) -> Result<()> {
        let rules =
            tokenizers::normalizers::BertNormalizer::new(true, chinese, strip_accents, lower_case);
        self.inner
            .with_normalizer(Some(rules))
            .map_err(|e| Error::invalid(&self.path, "", e.to_string()))?;
        Ok(())
    }

    /// Texts that are too long lose their beginning.
    pub(super) fn keep_the_end(&mut self) {
        self.dropped = TruncationDirection::Left;
    }

    /// Encodes a text; with `special`, the tokenizer's template adds its special tokens. Empty text is valid.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the tokenizer cannot represent the text (no unknown token).
    pub fn encode(&self, text: &str, special: bool) -> Result<Encoding> {
        let encoding = self.encoding(text, special)?;
        Ok(result(&encoding, encoding.len()))
    }

    /// Encodes a text with its special tokens, dropping tokens of the text from the end so that at most `max` ids
    /// remain, special tokens included (as sentence-transformers does). `total` counts before that.
    ///
    /// Of a text that is far too long (more than 256 bytes a token that it may have, and more than 64 KiB) only a part is
    /// tokenised, up to white space. The ids are those of the whole text; `total` then counts the part.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`]; [`Error::Argument`] if `max` cannot hold the special tokens.
    pub fn encode_truncated(&self, text: &str, max: usize) -> Result<Encoding> {
        let added = self.special_tokens_added();
        if max < added {
            let expected = format!("at least the {added} special tokens");
            return Err(Error::argument("Tokenizer::encode_truncated", "max", max, expected));
        }
        let mut bytes = max.saturating_mul(256).max(1 << 16);
        let mut encoding = loop {
            let part = self.part(text, bytes);
            let encoding = self.encoding(part, false)?;
            // What is cut off must be far from what is kept: a word may end elsewhere without it.
            if part.len() == text.len() || encoding.len() / 4 > max {
                break encoding;
            }
            bytes = bytes.saturating_mul(4);
        };
        let total = encoding.len() + added;
        if total > max {
            encoding.truncate(max - added, 0, self.dropped);
            // The part cut off would be given special tokens too.
            encoding.take_overflowing();
        }
        let processed =
            guarded(&self.path, LIBRARY, || self.inner.post_process(encoding, None, true))?;
        Ok(result(&processed.map_err(|e| self.failed(text, e))?, total))
    }

    /// About so many bytes of the end of a text that is kept, cut at white space where there is any.
    fn part<'a>(&self, text: &'a str, bytes: usize) -> &'a str {
        if text.len() <= bytes {
            return text;
        }
        match self.dropped {
            TruncationDirection::Right => {
                let part = &text[..text.floor_char_boundary(bytes)];
                let word = part.rfind(|c: char| !c.is_whitespace()).unwrap_or(0);
                match part[..word].rfind(char::is_whitespace) {
                    // White space that follows other white space may be one token with it.
                    Some(space) if space > bytes / 2 => &part[..part[..space].trim_end().len()],
                    _ => part,
                }
            }
            TruncationDirection::Left => {
                let part = &text[text.ceil_char_boundary(text.len() - bytes)..];
                match part[..part.len() / 2].find(char::is_whitespace) {
                    Some(space) => &part[space..],
                    None => part,
                }
            }
        }
    }

    fn encoding(&self, text: &str, special: bool) -> Result<tokenizers::Encoding> {
        guarded(&self.path, LIBRARY, || self.inner.encode(text, special))?
            .map_err(|e| self.failed(text, e))
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
    /// Ids that are no token have no text.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let failed = |e: &dyn std::fmt::Display| {
            Error::invalid(&self.path, "", format!("decoding {ids:?}: {e}"))
        };
        // Decoders may take it that there is a token.
        if !ids.iter().any(|&id| self.has_text(id, skip_special)) {
            return Ok(String::new());
        }
        guarded(&self.path, LIBRARY, || self.inner.decode(ids, skip_special))?
            .map_err(|e| failed(&e))
    }

    fn has_text(&self, id: u32, skip_special: bool) -> bool {
        let special = |token: &str| self.inner.get_added_vocabulary().is_special_token(token);
        self.token(id).is_some_and(|token| !skip_special || !special(&token))
    }

    /// The text of one token, if it ends what came before it, and what follows only adds to it: for
    /// any tokens a and b, `decode(a, id, b)` is `decode(a, id)`, and after it what `decode(id, b)`
    /// has beyond `decode(id)`. None for byte tokens, parts of characters and special tokens, which
    /// are skipped, and for every token of a decoder that is not known to work token by token.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn stands_alone(&self, id: u32) -> Result<Option<String>> {
        let token = self.token(id).unwrap_or_default();
        let byte = token.len() == 6 && token.starts_with("<0x") && token.ends_with('>');
        if !self.local || byte || !self.has_text(id, true) {
            return Ok(None);
        }
        let text = self.decode(&[id], true)?;
        let whole = !text.is_empty() && !text.contains(char::REPLACEMENT_CHARACTER);
        Ok(whole.then_some(text))
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

/// What panics are laid to.
const LIBRARY: &str = "tokenizers";

/// Whether a token's text depends on no other tokens than those of its run of bytes or characters,
/// and on whether it is the first or the last.
fn is_local(decoder: &DecoderWrapper) -> bool {
    use DecoderWrapper::{CTC, Fuse, Sequence, Strip};
    let DecoderWrapper::Sequence(steps) = decoder else { return !matches!(decoder, CTC(_)) };
    let mut joined = false;
    steps.get_decoders().iter().all(|step| {
        let local = match step {
            Sequence(_) => false,
            // Of one text, other steps see all.
            _ if joined => matches!(step, Fuse(_) | Strip(_)),
            step => is_local(step),
        };
        joined |= matches!(step, Fuse(_) | DecoderWrapper::ByteLevel(_));
        local
    })
}

fn result(encoding: &tokenizers::Encoding, total: usize) -> Encoding {
    let ids = encoding.get_ids().to_vec();
    Encoding { ids, offsets: encoding.get_offsets().to_vec(), total }
}
