//! Pictures: every scene looks like itself and like no other.

use std::collections::HashSet;

use bdhs::demo::draw::{SIDE, draw};
use bdhs::demo::scene::{Background, Cell, Colour, Letter, Object, Scene, Shape, Size, Theme};

use super::scenes;

#[test]
fn pictures_are_pure_and_distinct() {
    let mut seen = HashSet::new();
    for (index, (scene, _)) in scenes(200).enumerate() {
        let picture = draw(&scene, index as u64);
        assert_eq!(picture.dimensions(), (SIDE, SIDE));
        assert_eq!(picture, draw(&scene, index as u64));
        assert!(seen.insert(picture.into_raw()));
    }
    let (scene, _) = scenes(1).next().unwrap();
    assert_ne!(draw(&scene, 1), draw(&scene, 2));
}

/// The largest difference of a channel between two pictures in a cell.
fn change(a: &image::RgbImage, b: &image::RgbImage, cell: Cell) -> u8 {
    let side = SIDE / 3;
    let (left, top) = (cell.column as u32 * side, cell.row as u32 * side);
    let pixels = (top..top + side).flat_map(|y| (left..left + side).map(move |x| (x, y)));
    pixels
        .flat_map(|(x, y)| (0..3).map(move |c| a.get_pixel(x, y)[c].abs_diff(b.get_pixel(x, y)[c])))
        .max()
        .unwrap()
}

#[test]
fn objects_and_letters_are_drawn_where_they_are() {
    for (scene, mut dice) in scenes(100) {
        let picture = draw(&scene, 3);
        for object in &scene.objects {
            let mut without = scene.clone();
            without.objects.retain(|other| other != object);
            assert_changed(&picture, &draw(&without, 3), object.cell);
            let mut recoloured = scene.clone();
            let index = scene.objects.iter().position(|other| other == object).unwrap();
            recoloured.objects[index].colour =
                *Colour::ALL.iter().find(|c| **c != object.colour).unwrap();
            assert!(change(&picture, &draw(&recoloured, 3), object.cell) > 60);
        }
        if let Some(letter) = scene.letter {
            assert_changed(
                &picture,
                &draw(&Scene { letter: None, ..scene.clone() }, 3),
                letter.cell,
            );
            let other = *dice.pick(&Letter::CHARACTERS);
            if other != letter.character {
                let other = Letter { character: other, ..letter };
                let read = draw(&Scene { letter: Some(other), ..scene.clone() }, 3);
                assert!(change(&picture, &read, letter.cell) > 100);
            }
        }
    }
}

/// That two pictures differ clearly in one cell, and in the others at most by a shadow or the tip of an object.
fn assert_changed(a: &image::RgbImage, b: &image::RgbImage, cell: Cell) {
    assert!(change(a, b, cell) > 60, "{cell:?}");
    let middle = |cell: Cell| {
        let at = |index: usize| (index as u32 * 2 + 1) * SIDE / 6;
        (at(cell.column), at(cell.row))
    };
    for other in Cell::ALL.into_iter().filter(|other| *other != cell) {
        let (x, y) = middle(other);
        assert_eq!(a.get_pixel(x, y), b.get_pixel(x, y), "{other:?}");
    }
}

#[test]
fn shapes_sizes_and_letters_differ_at_half_size() {
    let half = |scene: &Scene| {
        image::imageops::resize(&draw(scene, 0), 48, 48, image::imageops::FilterType::Triangle)
    };
    let cell = Cell { row: 1, column: 1 };
    let scene = |objects, letter| Scene {
        objects,
        background: Background::White,
        letter,
        theme: Theme::Sky,
    };
    let mut pictures = Vec::new();
    for &shape in Shape::ALL {
        for &size in Size::ALL {
            let object = Object { shape, colour: Colour::Green, size, cell };
            pictures.push((format!("{size:?} {shape:?}"), half(&scene(vec![object], None))));
        }
    }
    for character in Letter::CHARACTERS {
        let letter = Letter { character, cell };
        pictures.push((character.to_string(), half(&scene(vec![], Some(letter)))));
    }
    for (i, (name, a)) in pictures.iter().enumerate() {
        for (other, b) in &pictures[..i] {
            // Pixels of 2,304 that differ by more than an eighth of the range.
            let far = |(p, q): &(&u8, &u8)| p.abs_diff(**q) > 32;
            let channels = a.as_raw().iter().zip(b.as_raw()).filter(far).count();
            assert!(channels >= 24, "{name} and {other}: {channels} channels differ");
        }
    }
}

#[test]
fn a_picture_is_a_small_png() {
    let sizes = scenes(40).map(|(scene, _)| {
        let mut png = std::io::Cursor::new(Vec::new());
        draw(&scene, 1).write_to(&mut png, image::ImageFormat::Png).unwrap();
        png.into_inner().len()
    });
    let largest = sizes.max().unwrap();
    assert!(largest < 9000, "{largest} bytes");
}
