//! Where a sentence ends: one rule for splitting a reference and for stopping a completion.
//!
//! Both uses share one function, [`SentenceRule::first_end`]; splitting is asking it again after each end. The answer for a
//! text that is still being written is final: [`End::At`] on a prefix is `At` the same byte on every longer text.
//!
//! # Pieces
//! A text is `leading, sentence, separator, sentence, separator, ...`. Sentences start and end with something visible; leading
//! and separators hold the white space around them, byte for byte, so that joining everything gives the text back.
//!
//! # Rule `unicode` (default) `[C]`
//! 1. A *mark* is one of `. ! ?`, a full-width form (`。 ！ ？ ．`), or `…`. A *cluster* is a run of marks and closing
//!    quotes, brackets, `*` and `_`, beginning with a mark. A sentence ends after a whole cluster, never inside one,
//!    and not before it holds something besides marks and closers: `...` alone is no sentence.
//! 2. Full-width marks end a sentence whatever follows, except `．` between two digits (`３．５`).
//! 3. Others need white space or the end of the text after the cluster; so `3.5`, `example.com` and `e.g.,` do not end.
//!    A Han or kana character directly behind does as well, but not for an ellipsis.
//! 4. With `!` or `?` in it a cluster then ends the sentence, unless it has a closer and a lower-case letter follows:
//!    `"Stop!" he said.` is one sentence.
//! 5. With dots only it ends the sentence unless a lower-case letter follows (openers skipped), or the cluster has one dot and
//!    - the word before it is a title or similar (`Dr.`, `vs.`, `cf.`; small list), or `No.`, `Fig.`, `p.` ... before a digit,
//!    - the word is dotted (`U.S.`, `e.g.`, `Ph.D.`); `a.m.` and `p.m.` do end before a capital,
//!    - the word is one capital letter (`J. Smith`), but not `I`,
//!    - the word opens the sentence or the line and is a number of up to three digits or one Latin letter (`1. A cat`).
//! 6. A blank line ends a sentence, and so does a line break before a list item (`-`, `*`, `+`, `•`, `–`, or a number with
//!    `.` or `)`, then a blank), with or without a mark. Other line breaks are white space, since lines may be wrapped.
//! 7. The end of the text ends the last sentence.
//!
//! Known limits: `in the U.S. The cat` and `plan B. The cat` stay one sentence; `approx. Five` is cut in two. Marks of other
//! scripts (`؟`, `।`) are no marks.
//!
//! # Rule `first_dot` (`paper`)
//! A sentence ends after the first `.` character, whatever is around it. Dots and white space between two sentences belong to
//! the separator, so `...` makes no empty sentences.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// How sentences end. See the module docs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SentenceRule {
    /// `. ! ?` and their full-width forms, with abbreviations, numbers, quotes and lists looked after.
    #[default]
    Unicode,
    /// The first `.` character.
    FirstDot,
}

/// Where the first sentence of a text ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Behind this byte's predecessor: the sentence is `text[..byte]`. Final: more text cannot change it.
    At(usize),
    /// There is a possible end, but what follows it decides and is not written yet.
    Undecided,
    /// Nothing so far.
    Open,
}

impl SentenceRule {
    /// Finds the end of the sentence that `text` begins with; `text` is what stands there so far.
    ///
    /// - `kept`: bytes at the start that are given (the part kept of a reference sentence). Only an end that the rest of
    ///   the text takes part in counts; it can lie at `kept` itself, when the rest begins a new paragraph. 0 considers everything.
    /// - `finished`: nothing more will be written. Then the answer is never [`End::Undecided`], and `Open` only for a text
    ///   without anything visible.
    ///
    /// White space at the start belongs to the sentence here, so that offsets are offsets into `text`.
    pub fn first_end(self, text: &str, kept: usize, finished: bool) -> End {
        let end = match self {
            Self::Unicode => Scanner { text, kept, finished }.first_end(),
            Self::FirstDot => text
                .bytes()
                .enumerate()
                .position(|(i, b)| b == b'.' && i >= kept)
                .map_or(End::Open, |i| End::At(i + 1)),
        };
        let visible = text.trim_end().len();
        match end {
            End::At(_) => end,
            _ if !finished => end,
            _ if visible == 0 => End::Open,
            _ => End::At(visible.max(kept)),
        }
    }

    /// Splits a text: byte ranges of its sentences, ascending and apart. What lies between them is white space
    /// (and dots, under `first_dot`). A text of white space only has no sentence; any other text has at least one.
    pub fn split(self, text: &str) -> Vec<Range<usize>> {
        let mut sentences = Vec::new();
        let mut start = self.skip(text, 0);
        while start < text.len() {
            let End::At(length) = self.first_end(&text[start..], 0, true) else { break };
            sentences.push(start..start + length);
            start = self.skip(text, start + length);
        }
        let trimmed = text.trim();
        if sentences.is_empty() && !trimmed.is_empty() {
            let start = text.len() - text.trim_start().len();
            sentences.push(start..start + trimmed.len());
        }
        sentences
    }

    /// First byte at or after `from` where a sentence can start.
    fn skip(self, text: &str, from: usize) -> usize {
        let rest = text[from..].trim_start_matches(|c: char| {
            c.is_whitespace() || (self == Self::FirstDot && c == '.')
        });
        text.len() - rest.len()
    }
}

fn is_dot(c: char) -> bool {
    matches!(c, '.' | '…')
}

fn is_full_width(c: char) -> bool {
    matches!(c, '。' | '！' | '？' | '．')
}

fn is_mark(c: char) -> bool {
    is_dot(c) || is_full_width(c) || matches!(c, '!' | '?')
}

fn is_closer(c: char) -> bool {
    matches!(
        c,
        '"' | '\''
            | '”'
            | '’'
            | '»'
            | '›'
            | ')'
            | ']'
            | '}'
            | '）'
            | '］'
            | '】'
            | '」'
            | '』'
            | '》'
            | '〉'
            | '〕'
            | '*'
            | '_'
    )
}

/// Opening characters that a rule looks through to the letter behind them.
fn is_opener(c: char) -> bool {
    matches!(c, '"' | '\'' | '“' | '‘' | '«' | '‹' | '(' | '[' | '{' | '*' | '_' | '¿' | '¡')
}

/// Scripts written without spaces between sentences that also use ASCII marks.
fn is_han_or_kana(c: char) -> bool {
    matches!(c, '\u{3040}'..='\u{30FF}' | '\u{3400}'..='\u{4DBF}' | '\u{4E00}'..='\u{9FFF}' | '\u{F900}'..='\u{FAFF}'
        | '\u{20000}'..='\u{3134F}')
}

/// Words that a dot behind them does not make the end of a sentence; compared in lower case.
const ABBREVIATIONS: [&str; 32] = [
    "mr", "mrs", "ms", "mx", "dr", "prof", "st", "jr", "sr", "gen", "col", "capt", "cpt", "lt",
    "sgt", "maj", "rev", "hon", "gov", "sen", "rep", "pres", "mt", "ft", "vs", "cf", "ca", "al",
    "viz", "resp", "esp", "messrs",
];

/// The same, but only before a digit.
const NUMBERED: [&str; 23] = [
    "no", "nos", "nr", "fig", "figs", "eq", "eqs", "vol", "p", "pp", "sec", "ch", "jan", "feb",
    "mar", "apr", "jun", "jul", "aug", "sept", "oct", "nov", "dec",
];

/// What the text behind a cluster says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    End,
    Goes,
    Undecided,
}

/// Marks and closers `text[start..end]`.
struct Cluster {
    start: usize,
    end: usize,
    marks: usize,
    closers: usize,
    strong: bool,
    /// Has a full-width mark other than `．`.
    full_width: bool,
    /// Has `．`.
    full_stop: bool,
}

struct Scanner<'a> {
    text: &'a str,
    kept: usize,
    finished: bool,
}

impl Scanner<'_> {
    fn first_end(&self) -> End {
        let mut visible = false;
        let mut at = 0;
        while let Some(c) = self.text[at..].chars().next() {
            let (next, end, verdict) = if c.is_whitespace() {
                let space = self.space(at);
                let counts = visible && at >= self.kept;
                (space, at, if counts { self.line_break(at, space) } else { Verdict::Goes })
            } else if is_mark(c) {
                let cluster = self.cluster(at);
                let counts = visible && cluster.end > self.kept;
                let verdict = if counts { self.judge(&cluster) } else { Verdict::Goes };
                (cluster.end, cluster.end, verdict)
            } else {
                visible |= !is_closer(c);
                (at + c.len_utf8(), 0, Verdict::Goes)
            };
            match verdict {
                Verdict::End => return End::At(end),
                Verdict::Undecided => return End::Undecided,
                Verdict::Goes => at = next,
            }
        }
        End::Open
    }

    fn cluster(&self, start: usize) -> Cluster {
        let mut cluster = Cluster {
            start,
            end: start,
            marks: 0,
            closers: 0,
            strong: false,
            full_width: false,
            full_stop: false,
        };
        for c in self.text[start..].chars() {
            if is_mark(c) {
                cluster.marks += 1;
                cluster.strong |= matches!(c, '!' | '?');
                cluster.full_width |= is_full_width(c) && c != '．';
                cluster.full_stop |= c == '．';
            } else if is_closer(c) {
                cluster.closers += 1;
            } else {
                break;
            }
            cluster.end += c.len_utf8();
        }
        cluster
    }

    fn judge(&self, cluster: &Cluster) -> Verdict {
        let rest = &self.text[cluster.end..];
        let Some(next) = rest.chars().next() else { return self.at_the_edge() };
        if cluster.full_width {
            return Verdict::End;
        }
        if cluster.full_stop {
            let decimal = cluster.marks == 1
                && cluster.closers == 0
                && next.is_numeric()
                && self.text[..cluster.start].ends_with(char::is_numeric);
            return if decimal { Verdict::Goes } else { Verdict::End };
        }
        let ellipsis =
            !cluster.strong && (cluster.marks > 1 || self.text[cluster.start..].starts_with('…'));
        if !next.is_whitespace() {
            return if is_han_or_kana(next) && !ellipsis { Verdict::End } else { Verdict::Goes };
        }
        self.before_space(cluster)
    }

    /// A cluster without full-width marks, with white space behind it.
    fn before_space(&self, cluster: &Cluster) -> Verdict {
        let rest = &self.text[cluster.end..];
        if cluster.strong && cluster.closers == 0 {
            return Verdict::End;
        }
        let one_dot = cluster.marks == 1 && self.text[cluster.start..].starts_with('.');
        let word = one_dot.then(|| self.word_before(cluster.start));
        if word.is_some_and(|word| self.never_ends(word, cluster.start)) {
            return self.line_break_after(cluster);
        }
        let Some(next) = rest.trim_start().trim_start_matches(is_opener).chars().next() else {
            // A blank line ends the sentence whatever comes; so does the end of the text.
            return match self.line_break_after(cluster) {
                Verdict::Goes => self.at_the_edge(),
                verdict => verdict,
            };
        };
        if next.is_lowercase() || (next.is_numeric() && word.is_some_and(is_numbered)) {
            self.line_break_after(cluster)
        } else {
            Verdict::End
        }
    }

    /// Whether the dot at `dot` behind `word` belongs to the word in any context but a line break.
    fn never_ends(&self, word: &str, dot: usize) -> bool {
        let start = dot - word.len();
        let lower = word.to_lowercase();
        let mut chars = word.chars();
        let single = chars.next().filter(|_| chars.next().is_none());
        let opens = self.text[..start]
            .trim_end_matches([' ', '\t'])
            .chars()
            .next_back()
            .is_none_or(|c| c == '\n');
        let enumerator = opens
            && (single.is_some_and(|c| c.is_ascii_alphabetic())
                || (word.len() <= 3
                    && !word.is_empty()
                    && word.bytes().all(|b| b.is_ascii_digit())));
        enumerator
            || ABBREVIATIONS.contains(&lower.as_str())
            || (word.contains('.') && !matches!(lower.as_str(), "a.m" | "p.m"))
            || single.is_some_and(|c| c.is_uppercase() && c != 'I')
    }

    /// The letters (or digits) right before `end`, with single dots between letters: `U.S`, `Dr`, `12`; else empty.
    fn word_before(&self, end: usize) -> &str {
        let head = &self.text[..end];
        let mut start = end;
        let mut behind_dot = true;
        let mut dotted = false;
        for (at, c) in head.char_indices().rev() {
            if c == '.' && !behind_dot {
                dotted = true;
                behind_dot = true;
                continue;
            }
            if !c.is_alphanumeric() {
                break;
            }
            start = at;
            behind_dot = false;
        }
        let word = &head[start..];
        // `3.5` and `v2.10` are numbers at the end of a sentence, not abbreviations.
        if dotted && word.contains(char::is_numeric) { "" } else { word }
    }

    /// End of the white space that starts at `at`.
    fn space(&self, at: usize) -> usize {
        self.text.len() - self.text[at..].trim_start().len()
    }

    fn line_break_after(&self, cluster: &Cluster) -> Verdict {
        self.line_break(cluster.end, self.space(cluster.end))
    }

    /// Whether the white space `from..to` ends a sentence by itself: a blank line, or a break before a list item.
    fn line_break(&self, from: usize, to: usize) -> Verdict {
        let breaks = self.text[from..to].matches('\n').count();
        if breaks >= 2 {
            return Verdict::End;
        }
        let rest = &self.text[to..];
        if rest.is_empty() {
            // Another line break, or the list item, may follow.
            return if self.finished { Verdict::Goes } else { Verdict::Undecided };
        }
        if breaks == 0 {
            return Verdict::Goes;
        }
        let after_digits = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        let digits = rest.len() - after_digits.len();
        let marker = match (digits, after_digits.chars().next()) {
            (0, Some('-' | '*' | '+' | '•' | '–')) | (1..=3, Some('.' | ')')) => true,
            (1..=3, None) => return self.pending(),
            _ => false,
        };
        if !marker {
            return Verdict::Goes;
        }
        match after_digits.chars().nth(1) {
            None => self.pending(),
            Some(c) if c.is_whitespace() => Verdict::End,
            Some(_) => Verdict::Goes,
        }
    }

    /// The text stops here: an end if it is finished.
    fn at_the_edge(&self) -> Verdict {
        if self.finished { Verdict::End } else { Verdict::Undecided }
    }

    /// What has been read so far decides nothing, and there is no more.
    fn pending(&self) -> Verdict {
        if self.finished { Verdict::Goes } else { Verdict::Undecided }
    }
}

fn is_numbered(word: &str) -> bool {
    NUMBERED.contains(&word.to_lowercase().as_str())
}
