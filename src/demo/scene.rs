//! Scenes of the demo world, their priors, and the dice that draw them.
//!
//! A [`Scene`] is two to five objects of distinct shapes on a 3x3 grid, a background and, in 60 % of scenes, a capital letter
//! in a cell of its own. [`Scene::sample`] is a pure function of (seed, split, index).
//!
//! # Priors
//! They are what a language model learns to rely on, and falls for once its image is hidden:
//!
//! | what | follows | share |
//! |---|---|---|
//! | shape | the scene's [`Theme`], four shapes each, every shape in two themes | .85 |
//! | colour | the shape ([`Shape::favourite_colour`]) | .6 |
//! | row | the shape ([`Shape::favourite_row`]) | .6 |
//! | size | the shape ([`Shape::favourite_size`]) | .7 |
//! | background | the theme ([`Theme::favourite_background`]) | .6 |
//!
//! Themes are not equally frequent, so some shapes are common and others rare. Letters follow nothing: they must be read.
//!
//! # Splits
//! A hash of what the objects are and where they stand says which [`Split`] a scene belongs to; sampling redraws until it
//! fits. So no scene of one split is in another, whatever the seeds, also none that differs only in sizes, letter or
//! background.

use crate::ops::philox::{philox4x32, unit_interval};

/// An enum without data whose variants have a name in the world's English.
macro_rules! named {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$doc])* $variant,)+ }

        impl $name {
            /// Every value, in the order of the declaration.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The word for it, in lower case.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }
    };
}
pub(crate) use named;

named! {
    /// What an object is. A scene has each shape at most once, so "the star" names one object.
    Shape {
        /// A disc.
        Circle = "circle",
        /// A square, not turned.
        Square = "square",
        /// A triangle that points up.
        Triangle = "triangle",
        /// Five points.
        Star = "star",
        /// A heart.
        Heart = "heart",
        /// A plus sign.
        Cross = "cross",
        /// A tall rhombus.
        Diamond = "diamond",
        /// A circle with a hole.
        Ring = "ring",
        /// A crescent.
        Moon = "moon",
        /// An arrow that points right.
        Arrow = "arrow",
    }
}

named! {
    /// The colour of an object.
    Colour {
        /// Red.
        Red = "red",
        /// Orange.
        Orange = "orange",
        /// Yellow.
        Yellow = "yellow",
        /// Green.
        Green = "green",
        /// Blue.
        Blue = "blue",
        /// Purple.
        Purple = "purple",
    }
}

named! {
    /// What is behind the objects. No background is a colour that objects have.
    Background {
        /// Warm white.
        White = "white",
        /// Light grey.
        Grey = "grey",
        /// Nearly black.
        Black = "black",
    }
}

named! {
    /// The size of an object.
    Size {
        /// A little over half of a cell.
        Small = "small",
        /// Nearly all of a cell.
        Large = "large",
    }
}

named! {
    /// Which shapes a scene is likely to have.
    Theme {
        /// Star, moon, circle, ring.
        Sky = "sky",
        /// Heart, diamond, cross, star.
        Cards = "cards",
        /// Square, triangle, circle, cross.
        Blocks = "blocks",
        /// Arrow, triangle, square, ring.
        Signs = "signs",
        /// Diamond, heart, moon, arrow.
        Jewels = "jewels",
    }
}

named! {
    /// Which scenes a sample is drawn from. Splits share no scene.
    Split {
        /// For training: 70 % of all scenes.
        Train = "train",
        /// For choices between trained models: 15 %.
        Select = "select",
        /// For figures that are reported: 15 %.
        Eval = "eval",
    }
}

impl Theme {
    /// Its four shapes.
    pub fn shapes(self) -> [Shape; 4] {
        use Shape::*;
        match self {
            Self::Sky => [Star, Moon, Circle, Ring],
            Self::Cards => [Heart, Diamond, Cross, Star],
            Self::Blocks => [Square, Triangle, Circle, Cross],
            Self::Signs => [Arrow, Triangle, Square, Ring],
            Self::Jewels => [Diamond, Heart, Moon, Arrow],
        }
    }

    /// The share of scenes that have it.
    pub fn weight(self) -> f64 {
        match self {
            Self::Sky => 0.30,
            Self::Cards => 0.25,
            Self::Blocks => 0.20,
            Self::Signs => 0.15,
            Self::Jewels => 0.10,
        }
    }

    /// The background of 60 % of its scenes; the other two share the rest.
    pub fn favourite_background(self) -> Background {
        match self {
            Self::Sky | Self::Jewels => Background::Black,
            Self::Cards | Self::Signs => Background::White,
            Self::Blocks => Background::Grey,
        }
    }

    fn has(self, shape: Shape) -> bool {
        self.shapes().contains(&shape)
    }
}

impl Shape {
    /// The colour of 60 % of its objects; the other five share the rest.
    pub fn favourite_colour(self) -> Colour {
        match self {
            Self::Heart | Self::Cross => Colour::Red,
            Self::Square => Colour::Orange,
            Self::Star | Self::Moon => Colour::Yellow,
            Self::Triangle => Colour::Green,
            Self::Circle | Self::Arrow => Colour::Blue,
            Self::Diamond | Self::Ring => Colour::Purple,
        }
    }

    /// The row (0 is the top one) of about 60 % of its objects.
    pub fn favourite_row(self) -> usize {
        match self {
            Self::Star | Self::Moon | Self::Circle => 0,
            Self::Heart | Self::Diamond | Self::Ring | Self::Arrow => 1,
            Self::Square | Self::Triangle | Self::Cross => 2,
        }
    }

    /// The size of 70 % of its objects.
    pub fn favourite_size(self) -> Size {
        match self {
            Self::Circle | Self::Square | Self::Triangle | Self::Heart | Self::Moon => Size::Large,
            Self::Star | Self::Cross | Self::Diamond | Self::Ring | Self::Arrow => Size::Small,
        }
    }

    /// Its share of themes, by their weight: how common it is.
    pub fn frequency(self) -> f64 {
        Theme::ALL.iter().filter(|t| t.has(self)).map(|t| t.weight()).sum()
    }

    /// How much it and `other` go together: the weight of the themes that have both. 0 for a shape and itself.
    pub fn affinity(self, other: Self) -> f64 {
        if self == other {
            return 0.0;
        }
        Theme::ALL.iter().filter(|t| t.has(self) && t.has(other)).map(|t| t.weight()).sum()
    }

    /// The shapes that share a theme with it, closest first; equal ones in the order of [`Shape::ALL`].
    pub fn partners(self) -> Vec<Self> {
        let mut partners = Self::ALL.to_vec();
        partners.retain(|&other| self.affinity(other) > 0.0);
        partners.sort_by(|&a, &b| self.affinity(b).total_cmp(&self.affinity(a)));
        partners
    }

    /// All shapes, the most common first; equal ones in the order of [`Shape::ALL`].
    pub fn by_frequency() -> Vec<Self> {
        let mut shapes = Self::ALL.to_vec();
        shapes.sort_by(|a, b| b.frequency().total_cmp(&a.frequency()));
        shapes
    }
}

/// A place on the 3x3 grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cell {
    /// 0 is the top row.
    pub row: usize,
    /// 0 is the left column.
    pub column: usize,
}

impl Cell {
    /// All nine, in reading order.
    pub const ALL: [Self; 9] = {
        let mut cells = [Self { row: 0, column: 0 }; 9];
        let mut i = 0;
        while i < 9 {
            cells[i] = Self { row: i / 3, column: i % 3 };
            i += 1;
        }
        cells
    };

    /// Its name in one or two words: `top left`, `top`, `left`, `middle`, ...
    pub fn name(self) -> &'static str {
        const NAMES: [[&str; 3]; 3] = [
            ["top left", "top", "top right"],
            ["left", "middle", "right"],
            ["bottom left", "bottom", "bottom right"],
        ];
        NAMES[self.row][self.column]
    }

    /// Its index in reading order.
    pub fn index(self) -> usize {
        self.row * 3 + self.column
    }
}

/// One object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Object {
    /// What it is.
    pub shape: Shape,
    /// Its colour.
    pub colour: Colour,
    /// Its size.
    pub size: Size,
    /// Where it is.
    pub cell: Cell,
}

/// A drawn capital letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Letter {
    /// One of [`Letter::CHARACTERS`].
    pub character: char,
    /// Where it is. No object is there.
    pub cell: Cell,
}

impl Letter {
    /// Ten capitals that are easily told apart and resemble no [`Shape`].
    pub const CHARACTERS: [char; 10] = ['E', 'H', 'K', 'L', 'M', 'P', 'T', 'V', 'X', 'Z'];
}

/// What a picture shows.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Scene {
    /// 2 to 5 objects of distinct shapes in distinct cells, in reading order of the cells.
    pub objects: Vec<Object>,
    /// What is behind them.
    pub background: Background,
    /// In 60 % of scenes.
    pub letter: Option<Letter>,
    /// What the shapes were drawn from. It cannot be seen.
    pub theme: Theme,
}

impl Scene {
    /// The scene with this number in a split: a pure function of the three. Takes some microseconds.
    pub fn sample(seed: u64, split: Split, index: u32) -> Self {
        let mut dice = Dice::new(seed, split, index);
        loop {
            let scene = Self::draw(&mut dice);
            if scene.split() == split {
                return scene;
            }
        }
    }

    /// The only split that this scene can be sampled in.
    pub fn split(&self) -> Split {
        match self.content_hash() % 20 {
            0..=13 => Split::Train,
            14..=16 => Split::Select,
            _ => Split::Eval,
        }
    }

    /// The object of this shape, if there is one.
    pub fn object(&self, shape: Shape) -> Option<&Object> {
        self.objects.iter().find(|object| object.shape == shape)
    }

    /// The object in this cell, if there is one.
    pub fn at(&self, cell: Cell) -> Option<&Object> {
        self.objects.iter().find(|object| object.cell == cell)
    }

    /// The shapes it does not have, the most common first.
    pub fn absent(&self) -> Vec<Shape> {
        let mut shapes = Shape::by_frequency();
        shapes.retain(|&shape| self.object(shape).is_none());
        shapes
    }

    /// Cells with neither an object nor the letter, in reading order.
    pub fn free_cells(&self) -> Vec<Cell> {
        let letter = self.letter.map(|letter| letter.cell);
        Cell::ALL.into_iter().filter(|&c| self.at(c).is_none() && letter != Some(c)).collect()
    }

    /// One draw from the priors, of any split.
    fn draw(dice: &mut Dice) -> Self {
        let theme = *dice.weighted(Theme::ALL, |theme| theme.weight());
        let background = dice.favour(0.6, theme.favourite_background(), Background::ALL);
        let mut scene = Self { objects: Vec::new(), background, letter: None, theme };
        let count = *dice.weighted(&[2, 3, 4, 5], |&n| if n == 2 || n == 5 { 0.2 } else { 0.3 });
        for _ in 0..count {
            scene.add(dice);
        }
        if dice.chance(0.6) {
            let cell = *dice.pick(&scene.free_cells());
            scene.letter = Some(Letter { character: *dice.pick(&Letter::CHARACTERS), cell });
        }
        scene
    }

    /// Adds an object drawn from the priors, and returns it. There must be a free cell.
    pub(crate) fn add(&mut self, dice: &mut Dice) -> Object {
        let absent = self.absent();
        let (mut likely, others): (Vec<_>, Vec<_>) =
            absent.into_iter().partition(|&shape| self.theme.has(shape));
        // Above .85, because the fifth object of a scene has no theme shape left.
        if likely.is_empty() || !dice.chance(0.88) {
            likely = others;
        }
        let shape = *dice.pick(&likely);
        let free = self.free_cells();
        let row: Vec<_> = free.iter().copied().filter(|c| c.row == shape.favourite_row()).collect();
        // The favourite row, or any other: a share of .6 where the row has room.
        let cell = if row.is_empty() || !dice.chance(0.62) {
            let rest: Vec<_> =
                free.iter().copied().filter(|c| c.row != shape.favourite_row()).collect();
            *dice.pick(if rest.is_empty() { &free } else { &rest })
        } else {
            *dice.pick(&row)
        };
        let object = Object {
            shape,
            colour: dice.favour(0.6, shape.favourite_colour(), Colour::ALL),
            size: dice.favour(0.7, shape.favourite_size(), Size::ALL),
            cell,
        };
        self.objects.push(object);
        self.objects.sort_by_key(|object| object.cell);
        object
    }

    /// A hash of the objects' shapes, colours and cells. Fixed for all time: splits depend on it.
    fn content_hash(&self) -> u32 {
        let mut word = 0;
        for object in &self.objects {
            let code =
                object.shape as u32 * 54 + object.colour as u32 * 9 + object.cell.index() as u32;
            word = philox4x32([word, code, 0, HASHES], [0, 0])[0];
        }
        word
    }
}

/// Counter words that keep the demo's draws apart from each other; [`crate::ops::philox::Purpose`] ends far below.
const SCENES: u32 = 0xD000_0000;
const HASHES: u32 = 0xD100_0000;

/// A small seeded generator: Philox4x32-10 keyed by the seed, counted by (block, index, fork, split).
///
/// Two dice with different seed, split, index or fork are independent.
#[derive(Debug, Clone)]
pub struct Dice {
    key: [u32; 2],
    counter: [u32; 4],
    words: [u32; 4],
    used: usize,
}

impl Dice {
    /// The dice of one scene.
    pub fn new(seed: u64, split: Split, index: u32) -> Self {
        let counter = [0, index, 0, SCENES | split as u32];
        Self { key: [seed as u32, (seed >> 32) as u32], counter, words: [0; 4], used: 4 }
    }

    /// Independent dice for another purpose. Depends on `purpose` and on how these were made, not on what they have
    /// drawn. 0 is the purpose of dice that were not forked.
    pub fn fork(&self, purpose: u32) -> Self {
        let counter = [0, self.counter[1], purpose, self.counter[3]];
        Self { key: self.key, counter, words: [0; 4], used: 4 }
    }

    fn word(&mut self) -> u32 {
        if self.used == 4 {
            self.words = philox4x32(self.counter, self.key);
            self.counter[0] = self.counter[0].wrapping_add(1);
            self.used = 0;
        }
        self.used += 1;
        self.words[self.used - 1]
    }

    /// Uniform in the open interval (0, 1).
    pub fn unit(&mut self) -> f64 {
        unit_interval(self.word())
    }

    /// Uniform between two bounds.
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Uniform in `0..n`, up to a bias of `n / 2^32`. 0 for `n = 0`.
    pub fn below(&mut self, n: usize) -> usize {
        ((u64::from(self.word()) * n as u64) >> 32) as usize
    }

    /// Whether something of probability `p` happens.
    pub fn chance(&mut self, p: f64) -> bool {
        self.unit() < p
    }

    /// One of the items. Panics if there is none.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// A random order (Fisher-Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }

    /// One of the items by weight. Weights need not sum to 1. Panics if there is no item.
    pub fn weighted<'a, T>(&mut self, items: &'a [T], weight: impl Fn(&T) -> f64) -> &'a T {
        let mut rest = self.unit() * items.iter().map(&weight).sum::<f64>();
        for item in items {
            rest -= weight(item);
            if rest < 0.0 {
                return item;
            }
        }
        &items[items.len() - 1]
    }

    /// The favourite with probability `p`, otherwise one of the others.
    fn favour<T: Copy + PartialEq>(&mut self, p: f64, favourite: T, all: &[T]) -> T {
        if self.chance(p) { favourite } else { self.other(favourite, all) }
    }

    /// Any of the items but this one. Panics if there is no other.
    pub fn other<T: Copy + PartialEq>(&mut self, value: T, all: &[T]) -> T {
        let others: Vec<_> = all.iter().copied().filter(|&item| item != value).collect();
        *self.pick(&others)
    }
}
