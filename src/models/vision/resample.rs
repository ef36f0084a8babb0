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

/// `image` resized to `width` x `height`; both must be positive. A side that does not change is not filtered.
pub fn resize(image: &RgbImage, width: u32, height: u32, filter: Filter) -> RgbImage {
    let (w, h) = (image.width() as usize, image.height() as usize);
    let (new_w, new_h) = (width as usize, height as usize);
    let columns_first = h > new_h && (h - new_h) > 2 * w.saturating_sub(new_w);
    let along = |pixels: Vec<u8>, w| match new_w == w {
        true => pixels,
        false => filter_rows(&pixels, w, &taps(w, new_w, filter)),
    };
    let down = |pixels: Vec<u8>, w| match new_h == h {
        true => pixels,
        false => filter_columns(&pixels, w, &taps(h, new_h, filter)),
    };
    let pixels = image.as_raw().clone();
    let pixels = match columns_first {
        true => along(down(pixels, w), w),
        false => down(along(pixels, w), new_w),
    };
    let mut out = RgbImage::new(width, height);
    out.copy_from_slice(&pixels);
    out
}

/// The source pixels of one output pixel: the first one and their fixed-point weights.
struct Taps {
    first: usize,
    weights: Vec<i32>,
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
            Taps { first, weights: weights.iter().map(fixed).collect() }
        })
        .collect()
}

fn clip(sum: i32) -> u8 {
    (sum >> FRACTION).clamp(0, 255) as u8
}

const HALF: i32 = 1 << (FRACTION - 1);

fn filter_rows(pixels: &[u8], width: usize, taps: &[Taps]) -> Vec<u8> {
    let mut out = Vec::with_capacity(pixels.len() / width * taps.len());
    for row in pixels.chunks_exact(width * 3) {
        for tap in taps {
            let mut sum = [HALF; 3];
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

fn filter_columns(pixels: &[u8], width: usize, taps: &[Taps]) -> Vec<u8> {
    let pitch = width * 3;
    let mut out = Vec::with_capacity(taps.len() * pitch);
    let mut sums = vec![HALF; pitch];
    for tap in taps {
        sums.fill(HALF);
        for (row, w) in pixels[tap.first * pitch..].chunks_exact(pitch).zip(&tap.weights) {
            for (s, &p) in sums.iter_mut().zip(row) {
                *s += i32::from(p) * w;
            }
        }
        out.extend(sums.iter().map(|&s| clip(s)));
    }
    out
}
