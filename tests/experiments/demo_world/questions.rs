//! Questions and answers, and the words of it all.

use std::collections::HashSet;

use bdhs::demo::questions::{Kind, Negative, Question, exists, questions};
use bdhs::demo::scene::{Background, Cell, Colour, Dice, Object, Scene, Shape, Size, Split, Theme};
use bdhs::demo::train::vocabulary_corpus;
use bdhs::demo::words::{claims, describe, mentions};
use bdhs::sampling::SentenceRule;

use super::descriptions::Reader;
use super::scenes;

fn check_question(scene: &Scene, question: &Question) {
    let about = format!("{question:?}\n{scene:?}");
    let shape = mentions(&question.text).first().copied();
    let object = shape.and_then(|shape| scene.object(shape));
    let answer = question.answer.as_str();
    let expected = match question.kind {
        Kind::Exists => (if object.is_some() { "Yes" } else { "No" }).to_owned(),
        Kind::Colour => object.unwrap().colour.name().to_owned(),
        Kind::Where => object.unwrap().cell.name().to_owned(),
        Kind::Size => object.unwrap().size.name().to_owned(),
        Kind::HowMany => ["two", "three", "four", "five"][scene.objects.len() - 2].to_owned(),
        Kind::IsColour => {
            let named = question.text.contains(&format!(" {}?", object.unwrap().colour.name()));
            (if named { "Yes" } else { "No" }).to_owned()
        }
        Kind::WhatIsAt => {
            let words: Vec<_> = question.text.trim_end_matches('?').split(' ').skip(4).collect();
            let name = words.join(" ").replace(" corner", "");
            let cell = Cell::ALL.into_iter().find(|cell| cell.name() == name).expect(&about);
            scene.at(cell).expect(&about).shape.name().to_owned()
        }
        Kind::Letter => scene.letter.unwrap().character.to_string(),
    };
    assert_eq!(answer, expected, "{about}");
    assert!(answer.split(' ').count() <= 2, "{about}");
    if matches!(question.kind, Kind::Exists | Kind::IsColour) {
        assert!(question.long.starts_with(&format!("{answer}, ")), "{about}");
    } else if question.kind != Kind::Where {
        assert!(question.long.contains(answer), "{about}");
    }
    assert!((1..=2).contains(&SentenceRule::Unicode.split(&question.long).len()), "{about}");
    for (shape, colour) in claims(&question.long) {
        assert_eq!(scene.object(shape).map(|o| o.colour), Some(colour), "{about}");
    }
}

#[test]
fn answers_are_true_and_yes_and_no_are_balanced() {
    let reader = Reader::new();
    let (mut yes, mut no) = ([0; 2], [0; 2]);
    let mut negatives = [0; 3];
    for (scene, mut dice) in scenes(2000) {
        let all = questions(&scene, &mut dice);
        assert_eq!(all.len(), 8 + usize::from(scene.letter.is_some()));
        for question in &all {
            check_question(&scene, question);
            reader.check(&scene, &question.long).unwrap();
            let kind = match question.kind {
                Kind::Exists => 0,
                Kind::IsColour => 1,
                _ => continue,
            };
            *(if question.answer == "Yes" { &mut yes[kind] } else { &mut no[kind] }) += 1;
            if let Some(negative) = question.negative {
                assert_eq!(question.answer, "No");
                negatives[negative as usize] += 1;
            }
        }
        for &shape in Shape::ALL {
            check_question(&scene, &exists(&scene, shape));
        }
    }
    assert_eq!((yes[0], no[0]), (2000, 2000));
    assert!((900..1100).contains(&yes[1]), "{yes:?}");
    assert!(negatives.iter().all(|n| (570..770).contains(n)), "{negatives:?}");
}

#[test]
fn negatives_are_the_most_common_and_the_closest_absent_shapes() {
    let object = |shape, index: usize| Object {
        shape,
        colour: Colour::Red,
        size: Size::Small,
        cell: Cell::ALL[index],
    };
    let scene = Scene {
        objects: vec![object(Shape::Arrow, 0), object(Shape::Square, 1), object(Shape::Star, 2)],
        background: Background::White,
        letter: None,
        theme: Theme::Signs,
    };
    let mut dice = Dice::new(0, Split::Train, 0);
    // The star is the most common shape, but there; the circle is next.
    assert_eq!(Negative::Popular.choose(&scene, &mut dice), Shape::Circle);
    // Ring: signs twice (arrow, square) and sky once (star).
    assert_eq!(Negative::Adversarial.choose(&scene, &mut dice), Shape::Ring);
    let random: HashSet<_> = (0..200).map(|_| Negative::Random.choose(&scene, &mut dice)).collect();
    assert_eq!(random.len(), 7);
}

#[test]
fn the_corpus_holds_every_word() {
    let words = |text: &str| -> Vec<String> {
        text.split(|c: char| !c.is_alphabetic()).map(str::to_owned).collect()
    };
    let corpus: HashSet<_> = vocabulary_corpus(5).flat_map(|text| words(&text)).collect();
    assert!((90..150).contains(&corpus.len()), "{}", corpus.len());
    for (scene, mut dice) in scenes(1000) {
        let mut texts = vec![describe(&scene, &mut dice)];
        for question in questions(&scene, &mut dice) {
            texts.extend([question.text, question.answer, question.long]);
        }
        for word in texts.iter().flat_map(|text| words(text)) {
            assert!(corpus.contains(&word), "{word}");
        }
    }
    assert!(vocabulary_corpus(5).take(50).eq(vocabulary_corpus(5).take(50)));
}
