//! Questions about scenes, with short and long answers.
//!
//! [`questions`] makes the mix for training and short-answer figures, [`probes`] the balanced yes/no probes of object
//! hallucination (POPE, Y. Li et al., "Evaluating Object Hallucination in Large Vision-Language Models", EMNLP 2023).

use super::scene::{Colour, Dice, Object, Scene, Shape, named};
use super::words::{noun, number, place, with_article};

named! {
    /// What is asked.
    Kind {
        /// Is there a star? Yes or No.
        Exists = "exists",
        /// What colour is the star?
        Colour = "colour",
        /// Where is the star? A cell's name.
        Where = "where",
        /// What is at the top? A shape.
        WhatIsAt = "what is at",
        /// How many shapes are there? A number word.
        HowMany = "how many",
        /// Is the star small or large?
        Size = "size",
        /// Is the star red? Yes or No.
        IsColour = "is colour",
        /// Which letter is there? A capital. Only of scenes that have one.
        Letter = "letter",
    }
}

named! {
    /// How an absent shape is chosen to ask for.
    Negative {
        /// Any absent shape.
        Random = "random",
        /// The absent shape that is most common in the world.
        Popular = "popular",
        /// The absent shape that goes together most with the scene's.
        Adversarial = "adversarial",
    }
}

/// A question and its answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// What is asked.
    pub kind: Kind,
    /// The question.
    pub text: String,
    /// The answer in one or two words: `Yes`, `No`, `red`, `top left`, `star`, `four`, `large`, `K`.
    pub answer: String,
    /// The answer in one or two sentences. To a yes/no question it begins with `Yes, ` or `No, `.
    pub long: String,
    /// How the shape of an [`Kind::Exists`] question with answer `No` was chosen, if by [`questions`] or [`probes`].
    pub negative: Option<Negative>,
}

impl Negative {
    /// The absent shape that it chooses for a scene. Only `Random` uses the dice.
    pub fn choose(self, scene: &Scene, dice: &mut Dice) -> Shape {
        let absent = scene.absent();
        match self {
            Self::Random => *dice.pick(&absent),
            Self::Popular => absent[0],
            Self::Adversarial => {
                let affinity = |shape: Shape| -> f64 {
                    scene.objects.iter().map(|object| object.shape.affinity(shape)).sum()
                };
                // The first of equals, the more common one.
                absent
                    .iter()
                    .copied()
                    .reduce(
                        |best, shape| if affinity(shape) > affinity(best) { shape } else { best },
                    )
                    .expect("a scene has five of ten shapes at most")
            }
        }
    }
}

/// One question of each kind that fits, and both a yes and a no for [`Kind::Exists`]: 8 or, with a letter, 9.
///
/// The no asks for each [`Negative`] equally often; half of the [`Kind::IsColour`] questions are true, and half of the
/// false ones name the shape's favourite colour where that is false.
pub fn questions(scene: &Scene, dice: &mut Dice) -> Vec<Question> {
    let negative = *dice.pick(Negative::ALL);
    let mut all = vec![present(scene, dice), absent(scene, negative, dice)];
    let mut object = || *dice.pick(&scene.objects);
    let (colour, place, what, size, is) = (object(), object(), object(), object(), object());
    all.push(ask_colour(&colour, dice));
    all.push(ask_where(&place, dice));
    all.push(ask_what(&what, dice));
    all.push(ask_how_many(scene, dice));
    all.push(ask_size(&size, dice));
    all.push(ask_is_colour(&is, dice));
    all.extend(ask_letter(scene, dice));
    dice.shuffle(&mut all);
    all
}

/// A question of one kind, `None` for the letter of a scene that has none. Half of the yes/no questions are true.
pub fn ask(kind: Kind, scene: &Scene, dice: &mut Dice) -> Option<Question> {
    let object = *dice.pick(&scene.objects);
    match kind {
        Kind::Exists if dice.chance(0.5) => Some(present(scene, dice)),
        Kind::Exists => {
            let negative = *dice.pick(Negative::ALL);
            Some(absent(scene, negative, dice))
        }
        Kind::Colour => Some(ask_colour(&object, dice)),
        Kind::Where => Some(ask_where(&object, dice)),
        Kind::WhatIsAt => Some(ask_what(&object, dice)),
        Kind::HowMany => Some(ask_how_many(scene, dice)),
        Kind::Size => Some(ask_size(&object, dice)),
        Kind::IsColour => Some(ask_is_colour(&object, dice)),
        Kind::Letter => ask_letter(scene, dice),
    }
}

/// Yes/no probes of one kind as (scene, question): for each scene a shape that it does not have, and the same shape of another
/// scene that does.
///
/// Each shape is so asked for as often where it is as where it is not, and the words of a question tell nothing: without
/// the picture the accuracy is one half. (What [`questions`] asks can be guessed: popular shapes are absent more often.)
pub fn probes(scenes: &[Scene], negative: Negative, dice: &mut Dice) -> Vec<(usize, Question)> {
    let mut found = Vec::new();
    // Where the search for the next scene that has a shape begins.
    let mut next = [0; Shape::ALL.len()];
    for (i, scene) in scenes.iter().enumerate() {
        let shape = negative.choose(scene, dice);
        let from: usize = next[shape as usize];
        let has = |place: &usize| scenes[*place % scenes.len()].object(shape).is_some();
        let Some(place) = (from..from + scenes.len()).find(has) else { continue };
        next[shape as usize] = place + 1;
        let place = place % scenes.len();
        found.push((place, exists(&scenes[place], shape)));
        let mut absent = exists(scene, shape);
        absent.negative = Some(negative);
        found.push((i, absent));
    }
    found
}

/// "Is there a star in the picture?" and its answer.
pub fn exists(scene: &Scene, shape: Shape) -> Question {
    let text = format!("Is there {} in the picture?", with_article(shape.name()));
    let (answer, long) = match scene.object(shape) {
        Some(object) => {
            ("Yes", format!("Yes, there is {} {}.", noun(object, None), place(object.cell)))
        }
        None => ("No", format!("No, there is no {} in the picture.", shape.name())),
    };
    Question { kind: Kind::Exists, text, answer: answer.to_owned(), long, negative: None }
}

fn present(scene: &Scene, dice: &mut Dice) -> Question {
    let object = dice.pick(&scene.objects);
    let mut question = exists(scene, object.shape);
    if dice.chance(0.4) {
        question.long += &format!(" It is {}.", object.size.name());
    }
    reword(question, object.shape, dice)
}

fn absent(scene: &Scene, negative: Negative, dice: &mut Dice) -> Question {
    let shape = negative.choose(scene, dice);
    let mut question = exists(scene, shape);
    question.negative = Some(negative);
    if dice.chance(0.4) {
        let object = dice.pick(&scene.objects);
        question.long += &format!(" There is {} {}.", noun(object, None), place(object.cell));
    }
    reword(question, shape, dice)
}

/// Asks "Can you see a star?" in some of the draws.
fn reword(mut question: Question, shape: Shape, dice: &mut Dice) -> Question {
    if dice.chance(0.3) {
        question.text = format!("Can you see {}?", with_article(shape.name()));
    }
    question
}

fn question(kind: Kind, text: String, answer: &str, long: String) -> Question {
    Question { kind, text, answer: answer.to_owned(), long, negative: None }
}

/// Adds a second sentence in some of the draws.
fn maybe(first: String, second: String, dice: &mut Dice) -> String {
    if dice.chance(0.4) { format!("{first} {second}") } else { first }
}

fn ask_colour(object: &Object, dice: &mut Dice) -> Question {
    let (shape, colour) = (object.shape.name(), object.colour.name());
    let first = format!("The {shape} is {colour}.");
    let long = maybe(first, format!("It is {}.", place(object.cell)), dice);
    question(Kind::Colour, format!("What colour is the {shape}?"), colour, long)
}

fn ask_where(object: &Object, dice: &mut Dice) -> Question {
    let shape = object.shape.name();
    let first = format!("The {shape} is {}.", place(object.cell));
    let second = format!("It is {} and {}.", object.size.name(), object.colour.name());
    let long = maybe(first, second, dice);
    question(Kind::Where, format!("Where is the {shape}?"), object.cell.name(), long)
}

fn ask_what(object: &Object, dice: &mut Dice) -> Question {
    let place = place(object.cell);
    let first = format!("There is {} {place}.", noun(object, None));
    let long = maybe(first, format!("It is {}.", object.size.name()), dice);
    question(Kind::WhatIsAt, format!("What is {place}?"), object.shape.name(), long)
}

fn ask_how_many(scene: &Scene, dice: &mut Dice) -> Question {
    let count = number(scene.objects.len());
    let first = format!("There are {count} shapes in the picture.");
    let object = dice.pick(&scene.objects);
    let second = format!("There is {} {}.", noun(object, None), place(object.cell));
    let long = maybe(first, second, dice);
    question(Kind::HowMany, "How many shapes are there?".to_owned(), count, long)
}

fn ask_size(object: &Object, dice: &mut Dice) -> Question {
    let (shape, size) = (object.shape.name(), object.size.name());
    let long =
        maybe(format!("The {shape} is {size}."), format!("It is {}.", object.colour.name()), dice);
    question(Kind::Size, format!("Is the {shape} small or large?"), size, long)
}

fn ask_is_colour(object: &Object, dice: &mut Dice) -> Question {
    let (shape, colour) = (object.shape, object.colour);
    let asked = if dice.chance(0.5) {
        colour
    } else if colour != shape.favourite_colour() && dice.chance(0.5) {
        shape.favourite_colour()
    } else {
        dice.other(colour, Colour::ALL)
    };
    let answer = if asked == colour { "Yes" } else { "No" };
    let first = format!("{answer}, the {} is {}.", shape.name(), colour.name());
    let long = maybe(first, format!("It is {}.", place(object.cell)), dice);
    question(Kind::IsColour, format!("Is the {} {}?", shape.name(), asked.name()), answer, long)
}

fn ask_letter(scene: &Scene, dice: &mut Dice) -> Option<Question> {
    let letter = scene.letter?;
    let text = *dice.pick(&["Which letter is in the picture?", "Which letter can you read?"]);
    let long = format!("The letter {} is {}.", letter.character, place(letter.cell));
    Some(question(Kind::Letter, text.to_owned(), &letter.character.to_string(), long))
}
