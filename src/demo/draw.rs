//! Pictures of scenes: 96x96 pixels, a 3x3 grid of cells of 32x32.
//!
//! Every shape is a signed distance function; a pixel's coverage is its distance to the outline in pixels, clamped to one
//! pixel, which is what antialiases it. Objects have a darker rim, a light from above and a soft shadow. There is no pixel
//! noise, so a PNG takes a few kilobytes. A picture halved to 48x48 still tells all shapes, colours, sizes and letters.

use std::path::Path;

use image::{Rgb, RgbImage};

use super::scene::{Background, Cell, Colour, Dice, Letter, Object, Scene, Shape, Size, Split};
use crate::{Error, Result};

/// Width and height of a picture, in pixels.
pub const SIDE: u32 = 96;

const CELL: f32 = SIDE as f32 / 3.0;
/// Half the extent of an object, in pixels.
const LARGE: f32 = 13.2;
const SMALL: f32 = 8.0;
/// How far a centre may move from its cell's, in pixels.
const JITTER: f32 = 1.4;
/// Width of an object's rim, in pixels.
const RIM: f32 = 1.3;
/// Where a shadow falls, how soft it is (pixels), and how dark.
const SHADOW: Point = Point { x: 1.0, y: 1.8 };
const SHADOW_BLUR: f32 = 2.6;
const SHADOW_ALPHA: f32 = 0.30;
/// Half the extent of a letter and half the width of its strokes, in pixels.
const LETTER: Point = Point { x: 7.4, y: 9.8 };
const STROKE: f32 = 2.1;

/// Draws a scene. The seed moves, scales, turns and tints each object a little, and the letter likewise.
///
/// An object's jitter depends on the seed and its shape only: where two scenes agree, so do their pictures for one seed.
/// Takes well under a millisecond.
pub fn draw(scene: &Scene, seed: u64) -> RgbImage {
    let mut canvas = Canvas::new(scene.background);
    let painted: Vec<_> = scene.objects.iter().map(|object| Painted::new(object, seed)).collect();
    for object in &painted {
        canvas.shadow(object);
    }
    for object in &painted {
        canvas.fill(object);
    }
    if let Some(letter) = &scene.letter {
        canvas.letter(letter, scene.background, &mut dice(seed, Shape::ALL.len()));
    }
    canvas.finish()
}

/// Writes a picture as PNG.
pub(super) fn save(picture: &RgbImage, path: &Path) -> Result<()> {
    picture.save(path).map_err(|e| Error::invalid(path, "", format!("could not be written: {e}")))
}

/// The picture of a scene.
pub(super) fn picture(seed: u64, split: Split, index: u32) -> RgbImage {
    draw(&Scene::sample(seed, split, index), seed.wrapping_add(u64::from(index)))
}

fn dice(seed: u64, of: usize) -> Dice {
    const PICTURES: u32 = 0xD2;
    Dice::new(seed, Split::Train, of as u32).fork(PICTURES)
}

#[derive(Debug, Clone, Copy)]
struct Point {
    x: f32,
    y: f32,
}

impl Point {
    fn length(self) -> f32 {
        self.x.hypot(self.y)
    }

    fn minus(self, other: Self) -> Self {
        Self { x: self.x - other.x, y: self.y - other.y }
    }

    fn dot(self, other: Self) -> f32 {
        self.x * other.x + self.y * other.y
    }

    fn turned(self, sine: f32, cosine: f32) -> Self {
        Self { x: cosine * self.x + sine * self.y, y: cosine * self.y - sine * self.x }
    }
}

const fn at(x: f32, y: f32) -> Point {
    Point { x, y }
}

type Paint = [f32; 3];

fn mix(a: Paint, b: Paint, share: f32) -> Paint {
    [0, 1, 2].map(|i| a[i] + (b[i] - a[i]) * share)
}

const BLACK: Paint = [0.0; 3];
const WHITE: Paint = [255.0; 3];

fn paint(colour: Colour) -> Paint {
    match colour {
        Colour::Red => [224.0, 41.0, 52.0],
        Colour::Orange => [250.0, 132.0, 16.0],
        Colour::Yellow => [255.0, 214.0, 20.0],
        Colour::Green => [40.0, 166.0, 76.0],
        Colour::Blue => [50.0, 118.0, 244.0],
        Colour::Purple => [164.0, 74.0, 220.0],
    }
}

/// The colours at the top and the bottom edge.
fn sky(background: Background) -> [Paint; 2] {
    match background {
        Background::White => [[253.0, 252.0, 249.0], [244.0, 242.0, 235.0]],
        Background::Grey => [[190.0, 197.0, 206.0], [170.0, 177.0, 187.0]],
        Background::Black => [[30.0, 35.0, 48.0], [16.0, 19.0, 28.0]],
    }
}

fn centre(cell: Cell, dice: &mut Dice) -> Point {
    let mut along =
        |index: usize| (index as f32 + 0.5) * CELL + dice.between(-1.0, 1.0) as f32 * JITTER;
    at(along(cell.column), along(cell.row))
}

/// An object with its jitter.
struct Painted {
    shape: Shape,
    centre: Point,
    radius: f32,
    turn: (f32, f32),
    paint: Paint,
}

impl Painted {
    fn new(object: &Object, seed: u64) -> Self {
        let mut dice = dice(seed, object.shape as usize);
        let radius = match object.size {
            Size::Large => LARGE,
            Size::Small => SMALL,
        };
        let tint = dice.between(-0.07, 0.07) as f32;
        let base = mix(paint(object.colour), if tint < 0.0 { BLACK } else { WHITE }, tint.abs());
        Self {
            shape: object.shape,
            centre: centre(object.cell, &mut dice),
            radius: radius * dice.between(0.95, 1.05) as f32,
            turn: (dice.between(-0.1, 0.1) as f32).sin_cos(),
            paint: base.map(|channel| channel + dice.between(-6.0, 6.0) as f32),
        }
    }

    /// The position in units of the radius, and the distance to the outline in pixels, negative inside.
    fn distance(&self, pixel: Point) -> (Point, f32) {
        let offset = pixel.minus(self.centre);
        let unit = at(offset.x / self.radius, offset.y / self.radius);
        (unit, outline(self.shape, unit.turned(self.turn.0, self.turn.1)) * self.radius)
    }
}

/// Distance to the outline of a shape of radius about 1 around the origin, y down; negative inside.
fn outline(shape: Shape, p: Point) -> f32 {
    const TRIANGLE: [Point; 3] = [at(0.0, -0.98), at(1.0, 0.80), at(-1.0, 0.80)];
    const DIAMOND: [Point; 4] = [at(0.0, -1.08), at(0.74, 0.0), at(0.0, 1.08), at(-0.74, 0.0)];
    const ARROW: [Point; 7] = [
        at(-1.0, -0.29),
        at(0.0, -0.29),
        at(0.0, -0.82),
        at(1.05, 0.0),
        at(0.0, 0.82),
        at(0.0, 0.29),
        at(-1.0, 0.29),
    ];
    match shape {
        Shape::Circle => p.length() - 0.95,
        Shape::Square => rectangle(p, 0.84, 0.84),
        Shape::Triangle => polygon(&TRIANGLE, p),
        Shape::Star => polygon(&star_points(), p),
        Shape::Heart => heart(at(p.x.abs(), p.y)),
        Shape::Cross => rectangle(p, 0.98, 0.34).min(rectangle(p, 0.34, 0.98)),
        Shape::Diamond => polygon(&DIAMOND, p),
        Shape::Ring => (p.length() - 0.72).abs() - 0.25,
        Shape::Moon => moon(p),
        Shape::Arrow => polygon(&ARROW, p),
    }
}

/// A disc of radius 1 without a smaller one that is moved right and a little up.
fn moon(p: Point) -> f32 {
    const CUT: f32 = 0.80;
    const MOVED: f32 = 0.47;
    const TILT: (f32, f32) = (-0.21, 0.977_7);
    let p = p.turned(TILT.0, TILT.1);
    let p = at(p.x, p.y.abs());
    // The upper tip, where the two circles meet. It is nearest for what lies on the far side of the line from the middle
    // of the disc through it, and of the line from the middle of the cut.
    let x = (1.0 + MOVED * MOVED - CUT * CUT) / (2.0 * MOVED);
    let tip = at(x, (1.0 - x * x).sqrt());
    let past = |middle: f32| (p.x - middle) * tip.y > p.y * (tip.x - middle);
    if past(0.0) && past(MOVED) {
        return p.minus(tip).length();
    }
    let (disc, cut) = (p.length() - 1.0, p.minus(at(MOVED, 0.0)).length() - CUT);
    disc.max(-cut)
}

/// A square on its tip and a circle on each of its upper sides. `p.x` is not negative.
fn heart(p: Point) -> f32 {
    const HALF_DIAGONAL: f32 = 0.86;
    let p = at(p.x, p.y - 0.08);
    let square = (p.x + p.y.abs() - HALF_DIAGONAL) * std::f32::consts::FRAC_1_SQRT_2;
    let side = at(HALF_DIAGONAL / 2.0, -HALF_DIAGONAL / 2.0);
    let circle = p.minus(side).length() - HALF_DIAGONAL * std::f32::consts::FRAC_1_SQRT_2;
    square.min(circle)
}

fn star_points() -> [Point; 10] {
    std::array::from_fn(|i| {
        let radius = if i % 2 == 0 { 1.12 } else { 0.48 };
        let (sine, cosine) = (i as f32 * std::f32::consts::PI / 5.0).sin_cos();
        at(radius * sine, 0.06 - radius * cosine)
    })
}

fn rectangle(p: Point, half_width: f32, half_height: f32) -> f32 {
    let (x, y) = (p.x.abs() - half_width, p.y.abs() - half_height);
    at(x.max(0.0), y.max(0.0)).length() + x.max(y).min(0.0)
}

/// Distance to a segment.
fn segment(p: Point, a: Point, b: Point) -> f32 {
    let (from, along) = (p.minus(a), b.minus(a));
    let share = (from.dot(along) / along.dot(along)).clamp(0.0, 1.0);
    from.minus(at(along.x * share, along.y * share)).length()
}

/// Distance to a simple polygon, negative inside (even-odd rule).
fn polygon(corners: &[Point], p: Point) -> f32 {
    let mut nearest = f32::INFINITY;
    let mut inside = false;
    for (i, &a) in corners.iter().enumerate() {
        let b = corners[(i + 1) % corners.len()];
        nearest = nearest.min(segment(p, a, b));
        if (a.y > p.y) != (b.y > p.y) && p.x < a.x + (p.y - a.y) / (b.y - a.y) * (b.x - a.x) {
            inside = !inside;
        }
    }
    if inside { -nearest } else { nearest }
}

/// The strokes of a letter: runs of points in -1..1, y down.
fn strokes(character: char) -> &'static [&'static [Point]] {
    const E: &[&[Point]] =
        &[&[at(1., -1.), at(-1., -1.), at(-1., 1.), at(1., 1.)], &[at(-1., 0.), at(0.7, 0.)]];
    const H: &[&[Point]] =
        &[&[at(-1., -1.), at(-1., 1.)], &[at(1., -1.), at(1., 1.)], &[at(-1., 0.), at(1., 0.)]];
    const K: &[&[Point]] = &[
        &[at(-1., -1.), at(-1., 1.)],
        &[at(1., -1.), at(-0.9, 0.1)],
        &[at(-0.35, -0.2), at(1., 1.)],
    ];
    const L: &[&[Point]] = &[&[at(-0.9, -1.), at(-0.9, 1.), at(1., 1.)]];
    const M: &[&[Point]] =
        &[&[at(-1.1, 1.), at(-1.1, -1.), at(0., 0.35), at(1.1, -1.), at(1.1, 1.)]];
    const P: &[&[Point]] = &[&[
        at(-0.9, 1.),
        at(-0.9, -1.),
        at(0.25, -1.),
        at(0.75, -0.85),
        at(1., -0.45),
        at(0.75, -0.05),
        at(0.25, 0.1),
        at(-0.9, 0.1),
    ]];
    const T: &[&[Point]] = &[&[at(-1.05, -1.), at(1.05, -1.)], &[at(0., -1.), at(0., 1.)]];
    const V: &[&[Point]] = &[&[at(-1.05, -1.), at(0., 1.), at(1.05, -1.)]];
    const X: &[&[Point]] = &[&[at(-1., -1.), at(1., 1.)], &[at(1., -1.), at(-1., 1.)]];
    const Z: &[&[Point]] = &[&[at(-1., -1.), at(1., -1.), at(-1., 1.), at(1., 1.)]];
    match character {
        'E' => E,
        'H' => H,
        'K' => K,
        'L' => L,
        'M' => M,
        'P' => P,
        'T' => T,
        'V' => V,
        'X' => X,
        'Z' => Z,
        other => {
            panic!("no strokes for the letter {other:?}, expected one of {:?}", Letter::CHARACTERS)
        }
    }
}

/// Pixels in f32, so that layers blend without rounding.
struct Canvas {
    pixels: Vec<Paint>,
}

impl Canvas {
    fn new(background: Background) -> Self {
        let [top, bottom] = sky(background);
        // Whole levels per row: a smooth gradient that PNG's row filters remove.
        let rows =
            (0..SIDE).map(|y| mix(top, bottom, y as f32 / (SIDE - 1) as f32).map(f32::round));
        Self { pixels: rows.flat_map(|row| std::iter::repeat_n(row, SIDE as usize)).collect() }
    }

    /// Blends onto the pixels within `reach` of a point what `layer` gives: paint and coverage.
    fn blend(&mut self, around: Point, reach: f32, layer: impl Fn(Point) -> (Paint, f32)) {
        let range = |middle: f32| {
            let last = SIDE as f32;
            (middle - reach).floor().clamp(0.0, last) as usize
                ..(middle + reach).ceil().clamp(0.0, last) as usize
        };
        for y in range(around.y) {
            for x in range(around.x) {
                let (paint, coverage) = layer(at(x as f32 + 0.5, y as f32 + 0.5));
                if coverage > 0.0 {
                    let pixel = &mut self.pixels[y * SIDE as usize + x];
                    *pixel = mix(*pixel, paint, coverage.min(1.0));
                }
            }
        }
    }

    fn shadow(&mut self, object: &Painted) {
        let middle = at(object.centre.x + SHADOW.x, object.centre.y + SHADOW.y);
        self.blend(middle, object.radius * 1.2 + SHADOW_BLUR, |pixel| {
            let (_, distance) = object.distance(pixel.minus(SHADOW));
            let soft = (0.5 - distance / (2.0 * SHADOW_BLUR)).clamp(0.0, 1.0);
            (BLACK, SHADOW_ALPHA * soft * soft)
        });
    }

    fn fill(&mut self, object: &Painted) {
        let light = mix(object.paint, WHITE, 0.14);
        let dark = mix(object.paint, BLACK, 0.07);
        let rim = mix(object.paint, BLACK, 0.27);
        self.blend(object.centre, object.radius * 1.2 + 1.0, |pixel| {
            let (unit, distance) = object.distance(pixel);
            let body = mix(light, dark, (0.5 + 0.5 * unit.y).clamp(0.0, 1.0));
            let edge = (0.5 + distance + RIM).clamp(0.0, 1.0);
            (mix(body, rim, edge), (0.5 - distance).clamp(0.0, 1.0))
        });
    }

    fn letter(&mut self, letter: &Letter, background: Background, dice: &mut Dice) {
        let ink = match background {
            Background::White | Background::Grey => [38.0, 41.0, 58.0],
            Background::Black => [244.0, 244.0, 238.0],
        };
        let middle = centre(letter.cell, dice);
        let scale = dice.between(0.94, 1.04) as f32;
        let place =
            |p: Point| at(middle.x + p.x * LETTER.x * scale, middle.y + p.y * LETTER.y * scale);
        let segments: Vec<_> = strokes(letter.character)
            .iter()
            .flat_map(|run| run.windows(2).map(|ends| (place(ends[0]), place(ends[1]))))
            .collect();
        self.blend(middle, CELL / 2.0 + JITTER, |pixel| {
            let distances = segments.iter().map(|&(a, b)| segment(pixel, a, b));
            let distance = distances.fold(f32::INFINITY, f32::min) - STROKE;
            (ink, (0.5 - distance).clamp(0.0, 1.0))
        });
    }

    fn finish(self) -> RgbImage {
        let pixels = self.pixels;
        RgbImage::from_fn(SIDE, SIDE, |x, y| {
            let pixel = pixels[(y * SIDE + x) as usize];
            Rgb(pixel.map(|channel| channel.round().clamp(0.0, 255.0) as u8))
        })
    }
}
