//! Resizing 8-bit RGB images exactly as Pillow's `Image.resize` does.
//!
//! Pillow filters in two passes, one a direction, with the support of the filter stretched when shrinking (so it
//! antialiases). Weights are normalised in f64, then rounded to fixed point with 22 fractional bits; each pass adds half
//! a unit, shifts and clips to 0..=255, so what the second pass reads is already 8-bit, and the order of the passes
//! shows in the last bits: along rows first, except that Pillow 13 goes down the columns first where the height loses
//! more than twice as many pixels as the width (earlier releases never do). Equality with its pixels, bit for bit, is what keeps a model's
//! inputs equal to those of the processors of transformers.
//!
//! Source: Pillow 13.0's results (tests/models/llava/ compares; the rule for the order was found from 900 random shapes).

use image::RgbImage;

/// Fractional bits of a weight: 32 bits less 8 for the pixel and 2 for the sign and overshoot.
const FRACTION: u32 = 32 - 8 - 2;

/// Pillow's resampling filters that work by convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// `Resampling.LANCZOS` (1).
    Lanczos,
    /// `Resampling.BILINEAR` (2).
    Bilinear,
    /// `Resampling.BICUBIC` (3), a = -1/2.
    Bicubic,
    /// `Resampling.BOX` (4).
    Box,
    /// `Resampling.HAMMING` (5).
    Hamming,
}

impl Filter {
    /// The filter with Pillow's number; 0 (nearest) is not a convolution and has none.
    pub fn from_number(number: usize) -> Option<Self> {
        Some(match number {
            1 => Self::Lanczos,
            2 => Self::Bilinear,
            3 => Self::Bicubic,
            4 => Self::Box,
            5 => Self::Hamming,
            _ => return None,
        })
    }

    /// Half the width of the filter, in source pixels at scale 1.
    fn support(self) -> f64 {
        match self {
            Self::Lanczos => 3.0,
            Self::Bilinear | Self::Hamming => 1.0,
            Self::Bicubic => 2.0,
            Self::Box => 0.5,
        }
    }

    fn weight(self, x: f64) -> f64 {
        let sinc = |x: f64| {
            let y = x * std::f64::consts::PI;
            if x == 0.0 { 1.0 } else { y.sin() / y }
        };
        match self {
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Self::Lanczos => 0.0,
            Self::Bilinear => (1.0 - x.abs()).max(0.0),
            Self::Bicubic => bicubic(x.abs()),
            Self::Box if x > -0.5 && x <= 0.5 => 1.0,
            Self::Box => 0.0,
            Self::Hamming if x.abs() >= 1.0 => 0.0,
            // Pillow's two constants are single precision.
            Self::Hamming => {
                let wave = (x * std::f64::consts::PI).cos();
                sinc(x) * (f64::from(0.54f32) + f64::from(0.46f32) * wave)
            }
        }
    }
}

fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// A square that a picture stands in the middle of, on one colour. It is never made: what lies outside of the picture counts as
/// weights.
#[derive(Debug, Clone, Copy)]
pub struct Square {
    /// Its colour around the picture.
    pub colour: [u8; 3],
}

/// One direction of a resize: a source of `from` pixels, of which the picture has `len` from `first` on.
struct Axis {
    from: usize,
    to: usize,
    first: usize,
    len: usize,
}

impl Axis {
    fn new(len: usize, from: usize, to: usize) -> Self {
        Self { from, to, first: (from - len) / 2, len }
    }

    /// A source that has the result's size already is not filtered.
    fn taps(&self, filter: Filter) -> Vec<Taps> {
        match self.from == self.to {
            true => (0..self.to)
                .map(|i| Taps { first: i, weights: vec![1 << FRACTION], outside: 0 })
                .collect(),
            false => taps(self.from, self.to, filter),
        }
        .into_iter()
        .map(|tap| tap.within(self.first, self.len))
        .collect()
    }
}

/// Whether a resize from one (width, height) to another filters columns before rows.
pub fn columns_first(from: (usize, usize), to: (usize, usize)) -> bool {
    from.1.saturating_sub(to.1) > 2 * from.0.saturating_sub(to.0)
}

/// `image` resized to `width` x `height`; both must be positive. With `square` the image is padded to it first. A side that does
/// not change is not filtered.
pub fn resize(
    image: &RgbImage,
    square: Option<Square>,
    width: u32,
    height: u32,
    filter: Filter,
) -> RgbImage {
    let (w, h) = (image.width() as usize, image.height() as usize);
    let (new_w, new_h) = (width as usize, height as usize);
    let (full_w, full_h) = if square.is_some() { (w.max(h), w.max(h)) } else { (w, h) };
    let colour = square.map_or([0; 3], |square| square.colour);
    let along = || Axis::new(w, full_w, new_w).taps(filter);
    let down = || Axis::new(h, full_h, new_h).taps(filter);
    let pixels = image.as_raw();
    let same = (full_w, full_h) == (w, h);
    let pixels = match (same && w == new_w, same && h == new_h) {
        (true, true) => pixels.clone(),
        (true, false) => filter_columns(pixels, w, &down(), &[]),
        (false, true) => filter_rows(pixels, w, &along(), |_| colour),
        (false, false) if columns_first((full_w, full_h), (new_w, new_h)) => {
            let taps = down();
            let around: Vec<[u8; 3]> = taps.iter().map(|tap| tap.of_one_colour(colour)).collect();
            let blank = colour.repeat(w);
            let pixels = filter_columns(pixels, w, &taps, &blank);
            filter_rows(&pixels, w, &along(), |y| around[y])
        }
        (false, false) => {
            let taps = along();
            let around: Vec<u8> = taps.iter().flat_map(|tap| tap.of_one_colour(colour)).collect();
            let pixels = filter_rows(pixels, w, &taps, |_| colour);
            filter_columns(&pixels, new_w, &down(), &around)
        }
    };
    let mut out = RgbImage::new(width, height);
    out.copy_from_slice(&pixels);
    out
}

/// The source pixels of one output pixel: the first one and their fixed-point weights.
struct Taps {
    /// Of the picture's pixels.
    first: usize,
    weights: Vec<i32>,
    /// Sum of the weights of pixels around the picture.
    outside: i32,
}

impl Taps {
    /// The same taps where the picture has `len` of the source's pixels, from `first` on.
    fn within(self, first: usize, len: usize) -> Self {
        let start = self.first.clamp(first, first + len);
        let end = (self.first + self.weights.len()).clamp(start, first + len);
        let own = match end > start {
            true => start - self.first..end - self.first,
            false => 0..0,
        };
        let all: i32 = self.weights.iter().sum();
        let weights = self.weights[own].to_vec();
        let outside = all - weights.iter().sum::<i32>();
        Self { first: start - first, weights, outside }
    }

    /// What it makes of a source of one colour.
    fn of_one_colour(&self, colour: [u8; 3]) -> [u8; 3] {
        let all = self.outside + self.weights.iter().sum::<i32>();
        colour.map(|c| clip(HALF + i32::from(c) * all))
    }
}

fn taps(from: usize, to: usize, filter: Filter) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let support = filter.support() * stretch;
    let inverse = 1.0 / stretch;
    let one = f64::from(1u32 << FRACTION);
    (0..to)
        .map(|i| {
            let center = (i as f64 + 0.5) * scale;
            // Casts truncate, as in C; the lower end may be negative before that.
            let first = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(from);
            let mut weights: Vec<f64> =
                (first..end).map(|x| filter.weight((x as f64 - center + 0.5) * inverse)).collect();
            let sum: f64 = weights.iter().sum();
            if sum != 0.0 {
                weights.iter_mut().for_each(|w| *w /= sum);
            }
            let fixed = |w: &f64| (w * one + if *w < 0.0 { -0.5 } else { 0.5 }) as i32;
            Taps { first, weights: weights.iter().map(fixed).collect(), outside: 0 }
        })
        .collect()
}

fn clip(sum: i32) -> u8 {
    (sum >> FRACTION).clamp(0, 255) as u8
}

const HALF: i32 = 1 << (FRACTION - 1);

/// Each row along its taps; `around` is the colour beside the picture in a row.
fn filter_rows(
    pixels: &[u8],
    width: usize,
    taps: &[Taps],
    around: impl Fn(usize) -> [u8; 3],
) -> Vec<u8> {
    let mut out = Vec::with_capacity(pixels.len() / width * taps.len());
    for (y, row) in pixels.chunks_exact(width * 3).enumerate() {
        let around = around(y).map(i32::from);
        for tap in taps {
            let mut sum = around.map(|colour| HALF + colour * tap.outside);
            for (pixel, w) in row[tap.first * 3..].chunks_exact(3).zip(&tap.weights) {
                for (s, &p) in sum.iter_mut().zip(pixel) {
                    *s += i32::from(p) * w;
                }
            }
            out.extend(sum.map(clip));
        }
    }
    out
}

/// Each column along its taps; `around` is the row above and below the picture, which may be empty where there is none.
fn filter_columns(pixels: &[u8], width: usize, taps: &[Taps], around: &[u8]) -> Vec<u8> {
    let pitch = width * 3;
    let mut out = Vec::with_capacity(taps.len() * pitch);
    let mut sums = vec![HALF; pitch];
    for tap in taps {
        sums.fill(HALF);
        for (s, &p) in sums.iter_mut().zip(around) {
            *s += i32::from(p) * tap.outside;
        }
        for (row, w) in pixels[tap.first * pitch..].chunks_exact(pitch).zip(&tap.weights) {
            for (s, &p) in sums.iter_mut().zip(row) {
                *s += i32::from(p) * w;
            }
        }
        out.extend(sums.iter().map(|&s| clip(s)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{Filter, Square, resize};
    use image::{Rgb, RgbImage};

    /// A padded picture that is made, then resized, is the reference.
    #[test]
    fn a_square_that_is_never_made_gives_the_same_pixels() {
        let colour = [122, 116, 104];
        let filters = [Filter::Bicubic, Filter::Lanczos, Filter::Box, Filter::Bilinear];
        let shapes = [(1, 40), (40, 1), (13, 29), (64, 24), (24, 63), (300, 7), (7, 301), (9, 9)];
        for (w, h) in shapes {
            let picture = RgbImage::from_fn(w, h, |x, y| {
                Rgb([x, y, x ^ y].map(|v| (v * 37 % 251) as u8 ^ (x * y) as u8))
            });
            let side = w.max(h);
            let mut padded = RgbImage::from_pixel(side, side, Rgb(colour));
            let at = (i64::from((side - w) / 2), i64::from((side - h) / 2));
            image::imageops::replace(&mut padded, &picture, at.0, at.1);
            for (new_w, new_h) in [(28, 28), (28, 90), (90, 28), (side, side), (side, 5), (3, side)]
            {
                for filter in filters {
                    let expected = resize(&padded, None, new_w, new_h, filter);
                    let found = resize(&picture, Some(Square { colour }), new_w, new_h, filter);
                    assert_eq!(found, expected, "{w}x{h} to {new_w}x{new_h}, {filter:?}");
                }
            }
        }
    }
}
