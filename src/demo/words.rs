//! What is said about scenes: descriptions, paraphrases, edits, and what a text claims.
//!
//! A description has 3 to 5 sentences and 30 to 55 words. It names every object with its colour, the letter if there is one,
//! and mostly the background; sizes are named in part. Every statement is true: [`Statement::holds`] says so for the list
//! that each [`Description`] carries. About four objects in ten are placed relative to one named before.
//!
//! "Above" and "below" mean the same column, "to the left of" and "to the right of" the same row.

use super::scene::{Background, Cell, Colour, Dice, Letter, Object, Scene, Shape, Size, named};

mod edits;
pub use edits::edit;

/// Sentences of a description, both ends included.
pub const SENTENCES: (usize, usize) = (3, 5);
/// Words of a description, both ends included.
pub const WORDS: (usize, usize) = (30, 55);

named! {
    /// Where something is, seen from something else.
    Relation {
        /// Same row, smaller column.
        LeftOf = "to the left of",
        /// Same row, larger column.
        RightOf = "to the right of",
        /// Same column, smaller row.
        Above = "above",
        /// Same column, larger row.
        Below = "below",
    }
}

impl Relation {
    /// How `cell` lies to `other`; `None` if they share neither row nor column, or are the same.
    pub fn between(cell: Cell, other: Cell) -> Option<Self> {
        match (cell.row == other.row, cell.column == other.column) {
            (true, false) if cell.column < other.column => Some(Self::LeftOf),
            (true, false) => Some(Self::RightOf),
            (false, true) if cell.row < other.row => Some(Self::Above),
            (false, true) => Some(Self::Below),
            _ => None,
        }
    }
}

/// What is placed: an object or the letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// The object of this shape.
    Object(Shape),
    /// The drawn letter.
    Letter(char),
}

/// One thing that a description says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Statement {
    /// There is an object of this shape and colour and, if it is named, size.
    Object(Shape, Colour, Option<Size>),
    /// Something is in a cell.
    At(Subject, Cell),
    /// Something is there, seen from the object of this shape.
    Relative(Subject, Relation, Shape),
    /// The background has this colour.
    Background(Background),
    /// So many objects are shown.
    Count(usize),
    /// No letter is shown.
    NoLetter,
}

impl Statement {
    /// Whether it is true of a scene.
    pub fn holds(&self, scene: &Scene) -> bool {
        let cell = |subject: Subject| match subject {
            Subject::Object(shape) => scene.object(shape).map(|object| object.cell),
            Subject::Letter(character) => scene
                .letter
                .filter(|letter| letter.character == character)
                .map(|letter| letter.cell),
        };
        match *self {
            Self::Object(shape, colour, size) => scene
                .object(shape)
                .is_some_and(|o| o.colour == colour && size.is_none_or(|size| o.size == size)),
            Self::At(subject, place) => cell(subject) == Some(place),
            Self::Relative(subject, relation, other) => {
                cell(subject).zip(scene.object(other)).is_some_and(|(place, other)| {
                    Relation::between(place, other.cell) == Some(relation)
                })
            }
            Self::Background(background) => scene.background == background,
            Self::Count(count) => scene.objects.len() == count,
            Self::NoLetter => scene.letter.is_none(),
        }
    }
}

/// A description and what it says, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// The sentences, joined by single blanks.
    pub text: String,
    /// Every statement of the text.
    pub statements: Vec<Statement>,
}

/// Describes a scene in 3 to 5 sentences: its objects in reading order or, in half of the draws, in any order.
pub fn describe(scene: &Scene, dice: &mut Dice) -> String {
    description(scene, dice).text
}

/// As [`describe`], with the statements.
pub fn description(scene: &Scene, dice: &mut Dice) -> Description {
    let mut order = scene.objects.clone();
    if dice.chance(0.5) {
        dice.shuffle(&mut order);
    }
    describe_in_order(scene, &order, dice)
}

/// Two descriptions of one scene. In half of the draws they name the objects in the same order.
pub fn paraphrases(scene: &Scene, dice: &mut Dice) -> (String, String) {
    let mut order = scene.objects.clone();
    dice.shuffle(&mut order);
    let first = describe_in_order(scene, &order, dice).text;
    if dice.chance(0.5) {
        dice.shuffle(&mut order);
    }
    (first, describe_in_order(scene, &order, dice).text)
}

/// Describes a scene with its objects in this order, which must hold each of them once.
pub fn describe_in_order(scene: &Scene, order: &[Object], dice: &mut Dice) -> Description {
    // A draw fits in a few tries, since each learns from the one before; the last is only there to end the loop.
    const TRIES: usize = 1000;
    let mut tries = 0;
    let mut length = Length::Free;
    loop {
        let mut writer = Writer::new(scene, dice, length);
        writer.write(order);
        let sentences = writer.sentences.len();
        let text = writer.sentences.join(" ");
        let words = text.split_whitespace().count();
        tries += 1;
        let fits = (SENTENCES.0..=SENTENCES.1).contains(&sentences)
            && (WORDS.0..=WORDS.1).contains(&words);
        if fits || tries == TRIES {
            return Description { text, statements: writer.statements };
        }
        length = match words {
            _ if words > WORDS.1 => Length::Short,
            _ if words < WORDS.0 => Length::Long,
            _ => Length::Free,
        };
    }
}

/// What a try aims at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Length {
    Free,
    /// Few sizes, "in the top left", no sentence that can be spared.
    Short,
    /// All sizes and every extra sentence.
    Long,
}

/// How a description begins.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Opening {
    /// With an object.
    Plain,
    /// "On a grey background, there is ..."
    LeadIn,
    /// "The background is grey."
    Background,
    /// "The picture shows four shapes on a grey background."
    Count,
}

/// A place in words, and whether "it" may mean what stands there.
struct Place {
    phrase: String,
    absolute: bool,
}

struct Writer<'a> {
    scene: &'a Scene,
    dice: &'a mut Dice,
    sentences: Vec<String>,
    statements: Vec<Statement>,
    /// Objects named so far.
    named: Vec<Object>,
    /// What "it" means now.
    it: Option<Object>,
    size_share: f64,
    length: Length,
}

impl<'a> Writer<'a> {
    fn new(scene: &'a Scene, dice: &'a mut Dice, length: Length) -> Self {
        let size_share = match length {
            Length::Free => *dice.pick(&[0.3, 0.7, 1.0]),
            Length::Short => 0.2,
            Length::Long => 1.0,
        };
        let (sentences, statements, named) = (Vec::new(), Vec::new(), Vec::new());
        Self { scene, dice, sentences, statements, named, it: None, size_share, length }
    }

    fn write(&mut self, order: &[Object]) {
        use Opening::*;
        let opening = match self.length {
            Length::Free => *self.dice.pick(&[Plain, LeadIn, Background, Count]),
            Length::Short => *self.dice.pick(&[Plain, LeadIn]),
            Length::Long => Count,
        };
        match opening {
            Background => self.background(),
            Count => self.count(),
            Plain | LeadIn => {}
        }
        let letter_first = self.dice.chance(0.2);
        if letter_first && opening != LeadIn {
            self.letter();
        }
        let mut lead_in = opening == LeadIn;
        let joins = self.dice.below(order.len() / 2 + 1);
        for group in self.groups(order, joins) {
            self.objects(group, std::mem::take(&mut lead_in));
        }
        if !letter_first || opening == LeadIn {
            self.letter();
        }
        if opening == Plain && self.length == Length::Free && self.dice.chance(0.8) {
            self.background();
        }
    }

    /// Cuts the objects into runs of one and, `joins` times, two.
    fn groups<'o>(&mut self, order: &'o [Object], joins: usize) -> Vec<&'o [Object]> {
        let mut lengths = vec![2; joins];
        lengths.resize(order.len() - joins, 1);
        self.dice.shuffle(&mut lengths);
        let mut rest = order;
        let cut = |length| {
            let (group, tail) = rest.split_at(length);
            rest = tail;
            group
        };
        lengths.into_iter().map(cut).collect()
    }

    fn say(&mut self, sentence: &str) {
        self.sentences.push(format!("{}.", capitalised(sentence)));
    }

    fn background(&mut self) {
        let background = self.scene.background;
        self.statements.push(Statement::Background(background));
        let name = background.name();
        if self.dice.chance(0.5) {
            self.say(&format!("the background is {name}"));
        } else {
            self.say(&format!("the picture has a {name} background"));
        }
    }

    fn count(&mut self) {
        let (count, background) = (self.scene.objects.len(), self.scene.background);
        self.statements.extend([Statement::Count(count), Statement::Background(background)]);
        let verb = *self.dice.pick(&["the picture shows", "there are"]);
        self.say(&format!("{verb} {} shapes on a {} background", number(count), background.name()));
    }

    fn letter(&mut self) {
        let Some(Letter { character, cell }) = self.scene.letter else {
            if self.length == Length::Long || self.dice.chance(0.3) {
                self.statements.push(Statement::NoLetter);
                let ending = *self.dice.pick(&["", " in the picture"]);
                self.say(&format!("there is no letter{ending}"));
            }
            return;
        };
        let place = self.place(Subject::Letter(character), cell).phrase;
        // The letter never ends the sentence: "K." would read as an initial.
        let start = *self.dice.pick(&[
            "the letter {} is",
            "there is a letter {}",
            "you can read the letter {}",
        ]);
        self.say(&format!("{} {place}", start.replace("{}", &character.to_string())));
        self.it = None;
    }

    /// One sentence about one or two objects.
    fn objects(&mut self, group: &[Object], lead_in: bool) {
        let mut parts = Vec::new();
        for object in group {
            let place = self.place(Subject::Object(object.shape), object.cell);
            let size = self.dice.chance(self.size_share).then_some(object.size);
            self.statements.push(Statement::Object(object.shape, object.colour, size));
            self.named.push(*object);
            self.it = place.absolute.then_some(*object);
            parts.push((noun(object, size), place.phrase));
        }
        let joined = |clause: &dyn Fn(&str, &str) -> String| {
            let clauses: Vec<_> = parts.iter().map(|(noun, place)| clause(noun, place)).collect();
            clauses.join(" and ")
        };
        let plain = joined(&|noun, place| format!("{noun} {place}"));
        let start = *self.dice.pick(&["there is", "there is", "you can see", "the picture shows"]);
        let verb = *self.dice.pick(&["is", "is", "sits"]);
        let sentence = if lead_in {
            let background = self.scene.background;
            self.statements.push(Statement::Background(background));
            format!("on a {} background, {start} {plain}", background.name())
        } else {
            match self.dice.below(if parts.len() == 1 { 5 } else { 4 }) {
                0 => joined(&|noun, place| format!("{noun} {verb} {place}")),
                1 => joined(&|noun, place| format!("{place} {verb} {noun}")),
                4 => format!("{}, {start} {}", parts[0].1, parts[0].0),
                _ => format!("{start} {plain}"),
            }
        };
        self.say(&sentence);
    }

    /// Says where something is, from an object named before if one is in line with it.
    fn place(&mut self, subject: Subject, cell: Cell) -> Place {
        let anchors: Vec<_> = self
            .named
            .iter()
            .filter_map(|&other| Some((Relation::between(cell, other.cell)?, other)))
            .collect();
        // More than four in ten, because the first object and some others have no anchor.
        if anchors.is_empty() || !self.dice.chance(0.8) {
            self.statements.push(Statement::At(subject, cell));
            let mut phrase = place(cell);
            if self.length == Length::Short {
                phrase = phrase.trim_end_matches(" corner");
            }
            return Place { phrase: phrase.to_owned(), absolute: true };
        }
        let nearby = anchors.iter().copied().find(|(_, other)| self.it == Some(*other));
        let (relation, other) = match nearby {
            Some(anchor) if self.dice.chance(0.7) => anchor,
            _ => *self.dice.pick(&anchors),
        };
        self.statements.push(Statement::Relative(subject, relation, other.shape));
        let anchor = if self.it == Some(other) && self.dice.chance(0.7) {
            "it".to_owned()
        } else if self.dice.chance(0.6) {
            format!("the {} {}", other.colour.name(), other.shape.name())
        } else {
            format!("the {}", other.shape.name())
        };
        Place { phrase: format!("{} {anchor}", relation.name()), absolute: false }
    }
}

/// A count of 0 to 9 as a word.
pub(crate) fn number(count: usize) -> &'static str {
    ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"][count]
}

/// The place as an adverbial: "in the top left corner", "at the top", "on the left", "in the middle".
pub(crate) fn place(cell: Cell) -> &'static str {
    const PLACES: [[&str; 3]; 3] = [
        ["in the top left corner", "at the top", "in the top right corner"],
        ["on the left", "in the middle", "on the right"],
        ["in the bottom left corner", "at the bottom", "in the bottom right corner"],
    ];
    PLACES[cell.row][cell.column]
}

/// "a small red star", "an orange ring".
pub(crate) fn noun(object: &Object, size: Option<Size>) -> String {
    let (colour, shape) = (object.colour.name(), object.shape.name());
    match size {
        Some(size) => with_article(&format!("{} {colour} {shape}", size.name())),
        None => with_article(&format!("{colour} {shape}")),
    }
}

/// Puts "a" or "an" in front.
pub(crate) fn with_article(words: &str) -> String {
    let article = if words.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {words}")
}

pub(crate) fn capitalised(sentence: &str) -> String {
    let mut characters = sentence.chars();
    characters
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().chain(characters).collect())
}

/// The shapes that a text names, in singular or plural, each once, in the order of their first mention.
pub fn mentions(text: &str) -> Vec<Shape> {
    let mut shapes = Vec::new();
    for shape in words(text).filter_map(|word| shape(&word)) {
        if !shapes.contains(&shape) {
            shapes.push(shape);
        }
    }
    shapes
}

/// The (shape, colour) pairs that a text names as "red star" or "the star is red", each once, in order.
pub fn claims(text: &str) -> Vec<(Shape, Colour)> {
    let words: Vec<_> = words(text).collect();
    let mut claims = Vec::new();
    for (i, word) in words.iter().enumerate() {
        let Some(colour) = Colour::ALL.iter().copied().find(|colour| colour.name() == word) else {
            continue;
        };
        let after = words.get(i + 1).and_then(|next| shape(next));
        let before = (i > 1 && matches!(words[i - 1].as_str(), "is" | "are"))
            .then(|| shape(&words[i - 2]))
            .flatten();
        if let Some(shape) = after.or(before)
            && !claims.contains(&(shape, colour))
        {
            claims.push((shape, colour));
        }
    }
    claims
}

fn words(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty()).map(str::to_lowercase)
}

fn shape(word: &str) -> Option<Shape> {
    Shape::ALL.iter().copied().find(|shape| {
        let rest = word.strip_prefix(shape.name());
        rest.is_some_and(|ending| matches!(ending, "" | "s" | "es"))
    })
}
