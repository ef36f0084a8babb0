//! Answer normalisers for VQA.

use crate::eval::python::{split, strip};

/// Characters that count as punctuation, in the order in which they are dealt with.
const PUNCTUATION: [char; 21] = [
    ';', '/', '[', ']', '"', '{', '}', '(', ')', '=', '+', '\\', '_', '-', '>', '<', '@', '`', ',',
    '?', '!',
];

/// Full stops that `re.sub(..., re.UNICODE)` deletes at most: the flag stands where the count belongs, and is 32.
const STOPS: usize = 32;

/// EvalAI's answer processor (`EvalAIAnswerProcessor` of m4c_evaluator.py), as LLaVA and lmms-eval use it.
///
/// Its faults are part of it: only the first 32 full stops go, and all of those that no digit follows, also after a digit;
/// contractions with a capital (`Im`) can never match, since the text is in lower case.
pub fn evalai(answer: &str) -> String {
    if answer.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b' ') {
        return words(answer, false);
    }
    let lower: String = answer.to_lowercase().chars().filter(|c| !matches!(c, ',' | '?')).collect();
    let text = lower.replace("'s", " 's");
    let text = strip(&text).replace(['\n', '\t'], " ");
    let text = spread_punctuation(strip(&text), false);
    words(&drop_stops(&text, |_, after| !after, STOPS), false)
}

/// VLMEvalKit's processor: no early deletion of `,` and `?` and no split of `'s`; a comma between digits makes all punctuation
/// vanish instead of leaving a blank; a full stop after a digit stays.
pub fn vlmevalkit(answer: &str) -> String {
    let text = answer.replace(['\n', '\t'], " ");
    words(&delete_punctuation(strip(&text)), false)
}

/// What the processors describe: commas between digits go, other punctuation is a blank, full stops go unless they stand
/// between digits (all of them), and contractions are found in any case.
pub fn strict(answer: &str) -> String {
    let lower = answer.to_lowercase().replace('\u{2019}', "'");
    let chars: Vec<char> = lower.chars().collect();
    let digit = |i: Option<usize>| i.and_then(|i| chars.get(i)).is_some_and(|c| c.is_numeric());
    let mut text = String::with_capacity(lower.len());
    for (i, &c) in chars.iter().enumerate() {
        let between = digit(i.checked_sub(1)) && digit(Some(i + 1));
        match c {
            ',' | '.' if between => text.extend((c == '.').then_some('.')),
            '.' => {}
            c if PUNCTUATION.contains(&c) => text.push(' '),
            c => text.push(c),
        }
    }
    words(&text.replace("'s", " 's"), true)
}

/// VLMEvalKit's `process_punctuation`, which also reads its yes/no answers.
pub fn delete_punctuation(text: &str) -> String {
    let text = spread_punctuation(text, true);
    drop_stops(&text, |before, after| !before && !after, STOPS)
}

/// Deletes each punctuation character that has a blank beside it somewhere in the text, and turns the others into blanks.
/// With `commas`, a comma between digits anywhere makes all of them go without a blank.
fn spread_punctuation(text: &str, commas: bool) -> String {
    let chars: Vec<char> = text.chars().collect();
    let commas = commas
        && chars.windows(3).any(|three| three[1] == ',' && decimal(three[0]) && decimal(three[2]));
    // Which characters have a blank beside them; the text is looked at as it was before any deletion.
    let mut beside = [false; PUNCTUATION.len()];
    for (i, &c) in chars.iter().enumerate() {
        if let Some(p) = PUNCTUATION.iter().position(|&p| p == c) {
            let blank = |i: Option<usize>| i.and_then(|i| chars.get(i)) == Some(&' ');
            beside[p] |= blank(i.checked_sub(1)) || blank(Some(i + 1));
        }
    }
    let mut out = String::with_capacity(text.len());
    for c in chars {
        match PUNCTUATION.iter().position(|&p| p == c) {
            Some(p) if beside[p] || commas => {}
            Some(_) => out.push(' '),
            None => out.push(c),
        }
    }
    out
}

/// Deletes the first `most` full stops for which `goes(digit before, digit after)` holds.
fn drop_stops(text: &str, goes: impl Fn(bool, bool) -> bool, most: usize) -> String {
    let mut out = String::with_capacity(text.len());
    let (mut before, mut dropped) = (None, 0);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let after = chars.peek().copied().is_some_and(decimal);
        if c == '.' && dropped < most && goes(before.is_some_and(decimal), after) {
            dropped += 1;
        } else {
            out.push(c);
        }
        before = Some(c);
    }
    out
}

/// Python's `\d`: decimal digits of any script.
fn decimal(c: char) -> bool {
    c.is_ascii_digit() || (!c.is_ascii() && unicode_decimal(c))
}

/// Blocks of ten decimal digits (general category Nd) outside ASCII, by their zero.
const ZEROS: [u32; 36] = [
    0x660, 0x6F0, 0x7C0, 0x966, 0x9E6, 0xA66, 0xAE6, 0xB66, 0xBE6, 0xC66, 0xCE6, 0xD66, 0xDE6,
    0xE50, 0xED0, 0xF20, 0x1040, 0x1090, 0x17E0, 0x1810, 0x1946, 0x19D0, 0x1A80, 0x1A90, 0x1B50,
    0x1BB0, 0x1C40, 0x1C50, 0xA620, 0xA8D0, 0xA900, 0xA9D0, 0xA9F0, 0xAA50, 0xABF0, 0xFF10,
];

fn unicode_decimal(c: char) -> bool {
    ZEROS.iter().any(|&zero| (zero..zero + 10).contains(&(c as u32)))
}

/// Numbers as digits, no articles, contractions with their apostrophe; single blanks between.
fn words(text: &str, any_case: bool) -> String {
    let lower = text.to_lowercase();
    let mut out = String::with_capacity(lower.len());
    for word in split(&lower) {
        let word = number(word);
        if matches!(word, "a" | "an" | "the") {
            continue;
        }
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(contraction(word, any_case));
    }
    out
}

fn number(word: &str) -> &str {
    match word {
        "none" | "zero" => "0",
        "one" => "1",
        "two" => "2",
        "three" => "3",
        "four" => "4",
        "five" => "5",
        "six" => "6",
        "seven" => "7",
        "eight" => "8",
        "nine" => "9",
        "ten" => "10",
        word => word,
    }
}

/// The word with its apostrophe. The references' keys with capitals are [`CAPITAL`]; they match where `any_case` is set.
fn contraction(word: &str, any_case: bool) -> &str {
    if let Ok(place) = CONTRACTIONS.binary_search_by_key(&word, |(key, _)| key) {
        return CONTRACTIONS[place].1;
    }
    match CAPITAL.iter().find(|(key, _)| any_case && *key == word) {
        Some((_, value)) => value,
        None => word,
    }
}

/// `Id've`, `I'dve`, `Im` and `Ive` in the references' table, in lower case here.
const CAPITAL: [(&str, &str); 4] =
    [("id've", "i'd've"), ("i'dve", "i'd've"), ("im", "i'm"), ("ive", "i've")];

/// Contractions of the VQA evaluation, sorted; `let's` and `she's` stand for themselves, as there.
const CONTRACTIONS: [(&str, &str); 116] = [
    ("'ow'sat", "'ow's'at"),
    ("'ows'at", "'ow's'at"),
    ("aint", "ain't"),
    ("arent", "aren't"),
    ("cant", "can't"),
    ("couldn'tve", "couldn't've"),
    ("couldnt", "couldn't"),
    ("couldnt've", "couldn't've"),
    ("couldve", "could've"),
    ("didnt", "didn't"),
    ("doesnt", "doesn't"),
    ("dont", "don't"),
    ("hadn'tve", "hadn't've"),
    ("hadnt", "hadn't"),
    ("hadnt've", "hadn't've"),
    ("hasnt", "hasn't"),
    ("havent", "haven't"),
    ("he'dve", "he'd've"),
    ("hed", "he'd"),
    ("hed've", "he'd've"),
    ("hes", "he's"),
    ("howd", "how'd"),
    ("howll", "how'll"),
    ("hows", "how's"),
    ("isnt", "isn't"),
    ("it'dve", "it'd've"),
    ("itd", "it'd"),
    ("itd've", "it'd've"),
    ("itll", "it'll"),
    ("let's", "let's"),
    ("maam", "ma'am"),
    ("mightn'tve", "mightn't've"),
    ("mightnt", "mightn't"),
    ("mightnt've", "mightn't've"),
    ("mightve", "might've"),
    ("mustnt", "mustn't"),
    ("mustve", "must've"),
    ("neednt", "needn't"),
    ("notve", "not've"),
    ("oclock", "o'clock"),
    ("oughtnt", "oughtn't"),
    ("ow's'at", "'ow's'at"),
    ("shant", "shan't"),
    ("she'dve", "she'd've"),
    ("she's", "she's"),
    ("shed've", "she'd've"),
    ("shouldn'tve", "shouldn't've"),
    ("shouldnt", "shouldn't"),
    ("shouldnt've", "shouldn't've"),
    ("shouldve", "should've"),
    ("somebody'd", "somebodyd"),
    ("somebody'dve", "somebody'd've"),
    ("somebodyd've", "somebody'd've"),
    ("somebodyll", "somebody'll"),
    ("somebodys", "somebody's"),
    ("someone'dve", "someone'd've"),
    ("someoned", "someone'd"),
    ("someoned've", "someone'd've"),
    ("someonell", "someone'll"),
    ("someones", "someone's"),
    ("something'dve", "something'd've"),
    ("somethingd", "something'd"),
    ("somethingd've", "something'd've"),
    ("somethingll", "something'll"),
    ("thats", "that's"),
    ("there'dve", "there'd've"),
    ("thered", "there'd"),
    ("thered've", "there'd've"),
    ("therere", "there're"),
    ("theres", "there's"),
    ("they'dve", "they'd've"),
    ("theyd", "they'd"),
    ("theyd've", "they'd've"),
    ("theyll", "they'll"),
    ("theyre", "they're"),
    ("theyve", "they've"),
    ("twas", "'twas"),
    ("wasnt", "wasn't"),
    ("we'dve", "we'd've"),
    ("wed've", "we'd've"),
    ("werent", "weren't"),
    ("weve", "we've"),
    ("whatll", "what'll"),
    ("whatre", "what're"),
    ("whats", "what's"),
    ("whatve", "what've"),
    ("whens", "when's"),
    ("whered", "where'd"),
    ("wheres", "where's"),
    ("whereve", "where've"),
    ("who'dve", "who'd've"),
    ("whod", "who'd"),
    ("whod've", "who'd've"),
    ("wholl", "who'll"),
    ("whos", "who's"),
    ("whove", "who've"),
    ("whyll", "why'll"),
    ("whyre", "why're"),
    ("whys", "why's"),
    ("wont", "won't"),
    ("wouldn'tve", "wouldn't've"),
    ("wouldnt", "wouldn't"),
    ("wouldnt've", "wouldn't've"),
    ("wouldve", "would've"),
    ("y'all'dve", "y'all'd've"),
    ("y'alld've", "y'all'd've"),
    ("y'allll", "y'all'll"),
    ("yall", "y'all"),
    ("yall'd've", "y'all'd've"),
    ("yall'll", "y'all'll"),
    ("you'dve", "you'd've"),
    ("youd", "you'd"),
    ("youd've", "you'd've"),
    ("youll", "you'll"),
    ("youre", "you're"),
    ("youve", "you've"),
];
