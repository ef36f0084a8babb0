//! What a text in the world's English says about a scene, read as a list of claims that each hold or do not.
//!
//! Made for what the demo LLaVA writes: the forms of [`crate::demo::words`] and of long answers. Words it does not know are
//! passed over.

use crate::demo::scene::{Background, Cell, Colour, Letter, Scene, Shape, Size};
use crate::demo::words::{Relation, Statement, Subject, number};

/// One thing that is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// There is this shape.
    Present(Shape),
    /// There is no such shape.
    Absent(Shape),
    /// The shape has this colour.
    Coloured(Shape, Colour),
    /// The shape has this size.
    Sized(Shape, Size),
    /// There is this letter.
    Letter(char),
    /// There is no letter.
    NoLetter,
    /// The shape or letter is in this cell.
    At(Subject, Cell),
    /// The shape or letter lies so to the other shape.
    Relative(Subject, Relation, Shape),
    /// The background has this colour.
    Background(Background),
    /// There are so many shapes.
    Count(usize),
}

impl Claim {
    /// Whether it is true of a scene.
    pub fn holds(self, scene: &Scene) -> bool {
        let statement = match self {
            Self::Present(shape) => return scene.object(shape).is_some(),
            Self::Absent(shape) => return scene.object(shape).is_none(),
            Self::Sized(shape, size) => {
                return scene.object(shape).is_some_and(|object| object.size == size);
            }
            Self::Letter(c) => return scene.letter.is_some_and(|letter| letter.character == c),
            Self::Coloured(shape, colour) => Statement::Object(shape, colour, None),
            Self::NoLetter => Statement::NoLetter,
            Self::At(subject, cell) => Statement::At(subject, cell),
            Self::Relative(subject, relation, other) => {
                Statement::Relative(subject, relation, other)
            }
            Self::Background(background) => Statement::Background(background),
            Self::Count(count) => Statement::Count(count),
        };
        statement.holds(scene)
    }
}

/// The claims of a text, each once, in order.
pub fn claims(text: &str) -> Vec<Claim> {
    let mut reader = Reader::default();
    for sentence in text.split(['.', '!', '?', '\n']) {
        let words: Vec<&str> = words(sentence).collect();
        for clause in clauses(&words) {
            reader.clause(clause);
        }
    }
    reader.claims
}

/// The cells that a text names, each once: "in the top left corner", "at the top".
pub fn cells(text: &str) -> Vec<Cell> {
    let words: Vec<&str> = words(text).collect();
    let (mut found, mut at) = (Vec::new(), 0);
    while at < words.len() {
        match place(&words[at..]) {
            Some((cell, length)) => {
                if !found.contains(&cell) {
                    found.push(cell);
                }
                at += length;
            }
            None => at += 1,
        }
    }
    found
}

/// Words as they are written; single capitals are letters.
pub(super) fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty())
}

/// Whether a word is one of the world's, in any case, singular or plural.
fn is(word: &str, name: &str) -> bool {
    let word = word.to_lowercase();
    word.strip_prefix(name).is_some_and(|end| matches!(end, "" | "s" | "es"))
}

fn named<T: Copy>(word: &str, all: &[T], name: fn(T) -> &'static str) -> Option<T> {
    all.iter().copied().find(|value| is(word, name(*value)))
}

fn shape(word: &str) -> Option<Shape> {
    named(word, Shape::ALL, Shape::name)
}

/// A sentence's parts: an "and" that is followed by a new shape or letter begins another.
fn clauses<'a>(words: &'a [&'a str]) -> Vec<&'a [&'a str]> {
    let has_noun = |words: &[&str]| words.iter().any(|w| shape(w).is_some() || is(w, "letter"));
    let (mut parts, mut start) = (Vec::new(), 0);
    for (i, word) in words.iter().enumerate() {
        if word.eq_ignore_ascii_case("and")
            && has_noun(&words[start..i])
            && has_noun(&words[i + 1..])
        {
            parts.push(&words[start..i]);
            start = i + 1;
        }
    }
    parts.push(&words[start..]);
    parts
}

/// A cell at the beginning of the words, and how many of them it takes.
fn place(words: &[&str]) -> Option<(Cell, usize)> {
    let axis = |at: usize, names: [&str; 2]| {
        let word = words.get(at)?;
        names.iter().position(|name| word.eq_ignore_ascii_case(name)).map(|i| 2 * i)
    };
    if let Some(row) = axis(0, ["top", "bottom"]) {
        return Some(match axis(1, ["left", "right"]) {
            Some(column) => (Cell { row, column }, 2),
            None => (Cell { row, column: 1 }, 1),
        });
    }
    if words.first()?.eq_ignore_ascii_case("middle") {
        return Some((Cell { row: 1, column: 1 }, 1));
    }
    axis(0, ["left", "right"]).map(|column| (Cell { row: 1, column }, 1))
}

/// A relation at the beginning of the words, and how many of them it takes.
fn relation(words: &[&str]) -> Option<(Relation, usize)> {
    Relation::ALL.iter().find_map(|relation| {
        let name: Vec<&str> = relation.name().split(' ').collect();
        let same = |(word, part): (&&str, &&str)| word.eq_ignore_ascii_case(part);
        let fits = words.len() >= name.len() && words.iter().zip(&name).all(same);
        fits.then_some((*relation, name.len()))
    })
}

#[derive(Default)]
struct Reader {
    claims: Vec<Claim>,
    /// What "it" means.
    it: Option<Subject>,
}

/// What a clause has said so far.
#[derive(Default)]
struct Clause {
    subject: Option<Subject>,
    colour: Option<Colour>,
    size: Option<Size>,
    /// Places and relations; they are the subject's, wherever they stand.
    cell: Option<Cell>,
    relative: Option<(Relation, Shape)>,
    negated: bool,
}

impl Reader {
    fn say(&mut self, claim: Claim) {
        if !self.claims.contains(&claim) {
            self.claims.push(claim);
        }
    }

    fn clause(&mut self, words: &[&str]) {
        let mut clause = Clause::default();
        let mut at = 0;
        while at < words.len() {
            at += self.word(&words[at..], &mut clause);
        }
        let subject = clause.subject.or(self.it);
        if let Some(Subject::Object(shape)) = subject {
            self.adjectives(shape, &mut clause);
        }
        if let Some(subject) = subject {
            if let Some(cell) = clause.cell {
                self.say(Claim::At(subject, cell));
            }
            if let Some((relation, other)) = clause.relative {
                self.say(Claim::Relative(subject, relation, other));
            }
        }
        self.it = subject;
    }

    fn adjectives(&mut self, shape: Shape, clause: &mut Clause) {
        if let Some(colour) = clause.colour.take() {
            self.say(Claim::Coloured(shape, colour));
        }
        if let Some(size) = clause.size.take() {
            self.say(Claim::Sized(shape, size));
        }
    }

    /// Reads what stands at the beginning of the words; returns how many it took.
    fn word(&mut self, words: &[&str], clause: &mut Clause) -> usize {
        if let Some((relation, length)) = relation(words) {
            let (other, taken) = self.anchor(&words[length..]);
            clause.relative = other.map(|other| (relation, other)).or(clause.relative);
            return length + taken;
        }
        if let Some((cell, length)) = place(words) {
            clause.cell = Some(cell);
            return length;
        }
        let word = words[0];
        if let Some(shape) = shape(word) {
            if clause.negated {
                self.say(Claim::Absent(shape));
            } else {
                self.say(Claim::Present(shape));
                self.adjectives(shape, clause);
                clause.subject.get_or_insert(Subject::Object(shape));
            }
            (clause.colour, clause.size) = (None, None);
        } else if is(word, "letter") {
            return self.letter(words, clause);
        } else if let Some(background) = named(word, Background::ALL, Background::name) {
            self.say(Claim::Background(background));
        } else if let Some(count) = count(words) {
            self.say(Claim::Count(count));
        }
        clause.colour = named(word, Colour::ALL, Colour::name).or(clause.colour);
        clause.size = named(word, Size::ALL, Size::name).or(clause.size);
        // "No" as an answer is no negation of what comes later.
        clause.negated |= is(word, "no") && words.get(1).is_some_and(|next| begins_noun(next));
        1
    }

    fn letter(&mut self, words: &[&str], clause: &mut Clause) -> usize {
        let mut characters = words.get(1).unwrap_or(&"").chars();
        match (characters.next(), characters.next()) {
            (Some(c), None) if Letter::CHARACTERS.contains(&c) => {
                self.say(Claim::Letter(c));
                clause.subject.get_or_insert(Subject::Letter(c));
                2
            }
            _ => {
                if clause.negated {
                    self.say(Claim::NoLetter);
                }
                1
            }
        }
    }

    /// What a relation is to: "the red star", "it". Also how many words that takes.
    fn anchor(&mut self, words: &[&str]) -> (Option<Shape>, usize) {
        if words.first().is_some_and(|word| is(word, "it")) {
            let shape = match self.it {
                Some(Subject::Object(shape)) => Some(shape),
                _ => None,
            };
            return (shape, 1);
        }
        // An article, a size, a colour, the shape.
        for (taken, word) in words.iter().enumerate().take(4) {
            if let Some(shape) = shape(word) {
                self.say(Claim::Present(shape));
                for word in &words[..taken] {
                    if let Some(colour) = named(word, Colour::ALL, Colour::name) {
                        self.say(Claim::Coloured(shape, colour));
                    }
                }
                return (Some(shape), taken + 1);
            }
        }
        (None, 0)
    }
}

/// Whether a word can begin "red star", "star" or "letter".
fn begins_noun(word: &str) -> bool {
    shape(word).is_some()
        || is(word, "letter")
        || named(word, Colour::ALL, Colour::name).is_some()
        || named(word, Size::ALL, Size::name).is_some()
}

/// "four shapes".
fn count(words: &[&str]) -> Option<usize> {
    let counted = words.get(1).is_some_and(|word| is(word, "shape"));
    (0..10).find(|&n| counted && words[0].eq_ignore_ascii_case(number(n)))
}
