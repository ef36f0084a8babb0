//! Captions as words, split where NLTK's `word_tokenize` does.
//!
//! That is Punkt's sentences, each split by the Treebank rules. What matters for finding objects is kept exactly: which
//! letters end up in one word. Two things are simpler here. Every full stop before a blank or a closing character ends a
//! sentence, also after abbreviations and numbers, whose own full stop would otherwise stay with them; none of those (`dr.`,
//! `u.s.`, `5.`) is an object word. And quotation marks keep their form.

/// Characters that stand alone wherever they are.
const ALONE: &str = ";@#$%&?!*[](){}<>\u{ab}\u{201c}\u{2018}\u{201e}\u{bb}\u{201d}\u{2019}\u{2012}\u{2013}\u{2014}\u{2015}\"`";

/// Characters that, right after a full stop, show that it ends a sentence.
const AFTER_STOP: &str = ")\";}]*:@'({[!?";

/// The words of a text in lower case.
pub fn words(text: &str) -> Vec<String> {
    let text = text.to_lowercase();
    let mut words = Vec::new();
    for sentence in sentences(&text) {
        let spaced = space_out(sentence);
        for word in spaced.split_whitespace() {
            clitics(word, &mut words);
        }
    }
    words
}

/// Cuts after full stops that end a sentence, closing quotes and brackets included.
fn sentences(text: &str) -> Vec<&str> {
    let mut sentences = Vec::new();
    let mut start = 0;
    for (i, _) in text.match_indices('.') {
        let after = &text[i + 1..];
        let ends = after.chars().next().is_none_or(|c| c.is_whitespace() || AFTER_STOP.contains(c));
        if !ends || i < start {
            continue;
        }
        let rest = after.trim_start_matches(['"', '\'', ')', ']', '}']);
        let closed =
            rest.is_empty() || rest.starts_with("--") || rest.starts_with(char::is_whitespace);
        let end = if closed { text.len() - rest.len() } else { i + 1 };
        sentences.push(&text[start..end]);
        start = end;
    }
    sentences.push(&text[start..]);
    sentences
}

/// Puts blanks around what the Treebank rules separate.
fn space_out(sentence: &str) -> String {
    let last_stop = final_stop(sentence);
    let mut out = String::with_capacity(sentence.len() + 16);
    let chars: Vec<(usize, char)> = sentence.char_indices().collect();
    let at = |i: usize| chars.get(i).map(|&(_, c)| c);
    let mut i = 0;
    while let Some(c) = at(i) {
        let run = chars[i..].iter().take_while(|&&(_, other)| other == c).count();
        let apart = match c {
            // Runs of full stops are one word; the last single one of a sentence is, too.
            '.' => run > 1 || last_stop == Some(chars[i].0),
            '-' if run > 1 => true,
            // Before a digit they belong to a number or a time.
            ',' | ':' => !at(i + 1).is_some_and(|next| next.is_numeric()),
            // Two of them are a quotation mark; one before a word opens a quotation, one before a blank may close one.
            '\'' if run > 1 => true,
            '\'' => opens(&chars, i),
            c => ALONE.contains(c),
        };
        let len = if matches!(c, '.' | '-' | '\'') && run > 1 { run } else { 1 };
        if apart {
            out.push(' ');
        }
        out.extend(std::iter::repeat_n(c, len));
        if apart {
            out.push(' ');
        }
        i += len;
    }
    out
}

/// Place of the full stop that ends the sentence: only closing characters and blanks follow, and no other stop precedes it.
fn final_stop(sentence: &str) -> Option<usize> {
    let closing = |c: char| c.is_whitespace() || "])}>\"'\u{bb}\u{201d}\u{2019}".contains(c);
    let body = sentence.trim_end_matches(closing);
    let before = body.strip_suffix('.')?;
    (!before.is_empty() && !before.ends_with('.')).then_some(before.len())
}

/// Whether an apostrophe before a word is a quotation mark rather than a clitic's.
fn opens(chars: &[(usize, char)], i: usize) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let after_word = i.checked_sub(1).is_some_and(|i| word(chars[i].1));
    let next: String = chars[i + 1..].iter().map(|&(_, c)| c).take_while(|&c| word(c)).collect();
    !after_word
        && !next.is_empty()
        && !matches!(next.as_str(), "re" | "ve" | "ll" | "m" | "t" | "s" | "d" | "n")
}

/// Words that are two, at the byte where they part.
const JOINED: [(&str, usize); 9] = [
    ("cannot", 3),
    ("d'ye", 1),
    ("gimme", 3),
    ("gonna", 3),
    ("gotta", 3),
    ("lemme", 3),
    ("more'n", 4),
    ("wanna", 3),
    ("'tis", 2),
];

/// Splits contractions off a word.
fn clitics(word: &str, words: &mut Vec<String>) {
    let part = |at: usize, words: &mut Vec<String>| {
        let (stem, end) = word.split_at(at);
        words.extend([stem.to_owned(), end.to_owned()]);
    };
    for end in ["'ll", "'re", "'ve", "n't", "'s", "'m", "'d", "'"] {
        if let Some(stem) = word.strip_suffix(end)
            && !stem.is_empty()
            && !stem.ends_with('\'')
        {
            return part(stem.len(), words);
        }
    }
    match JOINED.iter().find(|(joined, _)| *joined == word) {
        Some(&(_, at)) => part(at, words),
        None if word == "'twas" => part(2, words),
        None => words.push(word.to_owned()),
    }
}
