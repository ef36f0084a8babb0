//! Which words of a rejected answer differ from the reference.

use serde::Serialize;
use similar::{ChangeTag, TextDiff};

/// A stretch of text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Span {
    /// Its bytes as they are.
    pub text: String,
    /// Not in the other text.
    pub changed: bool,
    /// The model began to write here.
    pub takeover: bool,
}

/// Reference and rejected answer, each as spans that join to the whole text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Marked {
    /// What the rejected answer dropped is marked.
    pub reference: Vec<Span>,
    /// What it has instead is marked.
    pub rejected: Vec<Span>,
}

/// Compares two texts word by word (Unicode words, white space and punctuation on their own). White space and
/// punctuation between two changed words count as changed.
///
/// `takeovers`: byte offsets in `rejected` where the model began to write, ascending; those that are no character
/// boundary are ignored.
pub fn mark_changes(reference: &str, rejected: &str, takeovers: &[usize]) -> Marked {
    let diff = TextDiff::from_unicode_words(reference, rejected);
    let (mut old, mut new) = (Vec::new(), Vec::new());
    for change in diff.iter_all_changes() {
        let text = change.value();
        match change.tag() {
            ChangeTag::Equal => {
                old.push((text, false));
                new.push((text, false));
            }
            ChangeTag::Delete => old.push((text, true)),
            ChangeTag::Insert => new.push((text, true)),
        }
    }
    Marked { reference: spans(old, &[]), rejected: spans(new, takeovers) }
}

fn spans(mut words: Vec<(&str, bool)>, takeovers: &[usize]) -> Vec<Span> {
    bridge(&mut words);
    let mut spans: Vec<Span> = Vec::new();
    let mut at = 0;
    let mut cuts = takeovers.iter().copied().peekable();
    for (mut text, changed) in words {
        while !text.is_empty() {
            while cuts.peek().is_some_and(|cut| *cut < at) {
                cuts.next();
            }
            let takeover = cuts.next_if_eq(&at).is_some();
            let end = cuts.peek().map_or(text.len(), |cut| text.len().min(cut - at));
            let end = if text.is_char_boundary(end) { end } else { text.len() };
            let (head, tail) = text.split_at(end);
            match spans.last_mut() {
                Some(last) if last.changed == changed && !takeover => last.text.push_str(head),
                _ => spans.push(Span { text: head.to_owned(), changed, takeover }),
            }
            at += head.len();
            text = tail;
        }
    }
    spans
}

/// Marks what lies between two changed words and is no word itself; white space at the ends of a change is not marked.
fn bridge(words: &mut [(&str, bool)]) {
    let mut after_change = None;
    for i in 0..words.len() {
        let (text, changed) = words[i];
        if changed {
            if let Some(start) = after_change {
                words[start..i].iter_mut().for_each(|word| word.1 = true);
            }
            after_change = Some(i + 1);
        } else if text.chars().any(char::is_alphanumeric) {
            after_change = None;
        }
    }
    let changed: Vec<bool> = words.iter().map(|word| word.1).collect();
    let blank: Vec<bool> = words.iter().map(|word| word.0.trim().is_empty()).collect();
    let solid = |i: &usize| changed[*i] && !blank[*i];
    for i in (0..words.len()).filter(|i| changed[*i] && blank[*i]) {
        // Inside a change if words of it come both before and after.
        let before = (0..i).rev().take_while(|j| changed[*j]).any(|j| solid(&j));
        let after = (i + 1..changed.len()).take_while(|j| changed[*j]).any(|j| solid(&j));
        words[i].1 = before && after;
    }
}
