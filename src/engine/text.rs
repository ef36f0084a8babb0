//! Text of a token sequence that grows one token at a time.

use crate::{Result, models::tokenizer::Tokenizer};

/// Turns drawn tokens into text, in the context of what stands before them.
///
/// Byte-level vocabularies split characters over tokens and SentencePiece ones drop a leading blank
/// at the start of a decode, so a token's text depends on its neighbours: each step decodes a short
/// window that begins before the unsettled tokens.
pub(super) struct Detokenizer {
    ids: Vec<u32>,
    /// Start of the window.
    window: usize,
    /// First token of the window whose text is not settled.
    unsettled: usize,
    text: String,
}

/// Context tokens that a window starts with.
const CONTEXT: usize = 6;

impl Detokenizer {
    /// Starts after `before`, of which only the end matters.
    pub(super) fn after(before: &[u32]) -> Self {
        let ids = before[before.len().saturating_sub(CONTEXT)..].to_vec();
        Self { unsettled: ids.len(), ids, window: 0, text: String::new() }
    }

    /// Adds a drawn token. An incomplete character stays out of [`Self::text`] until it is whole.
    pub(super) fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<()> {
        self.ids.push(id);
        let settled = tokenizer.decode(&self.ids[self.window..self.unsettled], true)?;
        let all = tokenizer.decode(&self.ids[self.window..], true)?;
        if all.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(());
        }
        if let Some(new) = all.strip_prefix(&settled)
            && !new.is_empty()
        {
            self.text.push_str(new);
            self.window = self.unsettled;
            self.unsettled = self.ids.len();
        }
        Ok(())
    }

    /// The settled text of the drawn tokens.
    pub(super) fn text(&self) -> &str {
        &self.text
    }
}
