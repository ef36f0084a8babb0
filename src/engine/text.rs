//! Text of a token sequence that grows one token at a time.

use crate::{Result, models::tokenizer::Tokenizer};

/// Turns drawn tokens into text, in the context of the tokens before them.
///
/// The text after any number of tokens is that of [`Tokenizer::decode`] over the context and all of
/// them, without the text of the context. A token's text depends on its neighbours: characters may
/// be split over tokens, a run of byte tokens that is no UTF-8 becomes U+FFFD as a whole, and some
/// decoders drop the blank of the first token. So each step decodes a window that begins with an
/// anchor: the last token that [stands alone](Tokenizer::stands_alone), which no later token changes.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    /// The anchor and every token after it; all tokens where there is no anchor yet.
    window: Vec<u32>,
    /// Text of the window's tokens that are not counted: the context's, or the anchor's.
    before: String,
    /// Text of the drawn tokens up to the anchor.
    anchored: String,
    /// Text of the drawn tokens when their last character was complete.
    settled: String,
    /// Text of all drawn tokens.
    whole: String,
}

impl Detokenizer {
    /// Starts after the tokens `context`, which may be empty.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn after(tokenizer: &Tokenizer, context: &[u32]) -> Result<Self> {
        let mut anchor = context.len();
        while anchor > 0 {
            anchor -= 1;
            if tokenizer.stands_alone(context[anchor])?.is_some() {
                break;
            }
        }
        let window = context[anchor..].to_vec();
        let before = tokenizer.decode(&window, true)?;
        Ok(Self {
            window,
            before,
            anchored: String::new(),
            settled: String::new(),
            whole: String::new(),
        })
    }

    /// Adds a drawn token.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<()> {
        self.window.push(id);
        let all = tokenizer.decode(&self.window, true)?;
        self.whole = format!("{}{}", self.anchored, added(&self.before, &all));
        if !self.whole.ends_with(char::REPLACEMENT_CHARACTER) {
            self.settled.clone_from(&self.whole);
        }
        if let Some(text) = tokenizer.stands_alone(id)? {
            self.window = vec![id];
            self.before = text;
            self.anchored.clone_from(&self.whole);
        }
        Ok(())
    }

    /// The text of the drawn tokens while more may come: without those at the end whose last
    /// character is not complete.
    pub fn settled(&self) -> &str {
        &self.settled
    }

    /// The text of all drawn tokens. A character that is not complete is U+FFFD, as many times as
    /// the tokenizer says.
    pub fn whole(&self) -> &str {
        &self.whole
    }
}

/// What `all` has beyond `before`, the text of its first tokens.
///
/// Byte tokens that are drawn after byte tokens of the context can make one run that is no UTF-8.
/// The decoder then gives U+FFFD for each byte, those of the context's characters among them. These
/// characters are known, so only the U+FFFD of the drawn bytes count.
fn added<'a>(before: &str, all: &'a str) -> &'a str {
    if let Some(rest) = all.strip_prefix(before) {
        return rest;
    }
    let pairs = before.char_indices().zip(all.chars());
    let common = pairs.take_while(|((_, a), b)| a == b).last();
    let common = common.map_or(0, |((at, c), _)| at + c.len_utf8());
    let (lost, rest) = (before.len() - common, &all[common..]);
    let unknown = rest.chars().take_while(|&c| c == char::REPLACEMENT_CHARACTER).count();
    match unknown >= lost {
        true => &rest[lost * char::REPLACEMENT_CHARACTER.len_utf8()..],
        false => rest,
    }
}
