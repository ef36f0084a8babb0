//! A picture, small enough to be part of the page, and what the model saw of it.

use std::{fmt::Write, io::Cursor, path::Path};

use base64::{Engine, engine::general_purpose::STANDARD};
use image::{DynamicImage, ImageFormat, RgbImage, codecs::jpeg::JpegEncoder, imageops::FilterType};
use serde::Serialize;

use super::super::number::count;
use crate::{
    Error, Result, data,
    models::{
        PatchMap,
        patches::{PatchGrid, Patches},
    },
    sampling::Candidate,
};

/// Longest side of a picture on the page, pixels.
const SIDE: u32 = 400;

/// Up to this side a picture is kept as it is and shown with its pixels.
const TINY: u32 = 128;

/// JPEG quality of pictures on the page.
const QUALITY: u8 = 80;

/// A picture with a mask over it; coordinates are pixels of the original.
#[derive(Clone, Debug, Serialize)]
pub(in crate::report) struct Picture {
    pub href: String,
    pub width: u32,
    pub height: u32,
    /// To be shown with sharp pixels.
    pub tiny: bool,
    pub mask: Option<Mask>,
    /// What is to be said below it.
    pub note: String,
}

/// The visible patches.
#[derive(Clone, Debug, Serialize)]
pub(in crate::report) struct Mask {
    /// SVG path of the visible patches of the base view; empty if there are none.
    pub base: String,
    /// And of the AnyRes tiles.
    pub tiles: String,
    /// SVG path of the lines between the base view's patches.
    pub grid: String,
}

/// Reads and shrinks a picture, and lays the candidate's mask over it.
pub(super) fn load(
    path: &Path,
    candidate: &Candidate,
    patches: Option<&PatchMap>,
    pictures: usize,
) -> Result<Picture> {
    let image = data::image::open(path)?;
    let (width, height) = image.dimensions();
    let grids = patches
        .and_then(|map| map.patches(width as usize, height as usize, pictures == 1).ok())
        // Another number of tokens: not the picture, or not the model, that the run had.
        .filter(|grids| pictures > 1 || grids.tokens == candidate.image_tokens as usize);
    let note = note(candidate, grids.as_ref(), patches.is_some(), pictures);
    let mask = grids.map(|grids| mask(candidate, &grids));
    let tiny = width.max(height) <= TINY;
    Ok(Picture { href: encode(image, path)?, width, height, tiny, mask, note })
}

/// Reads and shrinks a picture.
pub(in crate::report) fn plain(path: &Path) -> Result<Picture> {
    let image = data::image::open(path)?;
    let (width, height) = image.dimensions();
    let tiny = width.max(height) <= TINY;
    let note = String::new();
    Ok(Picture { href: encode(image, path)?, width, height, tiny, mask: None, note })
}

fn encode(image: RgbImage, path: &Path) -> Result<String> {
    let (width, height) = image.dimensions();
    let side = width.max(height);
    let failed = |error: image::ImageError| Error::invalid(path, "", error.to_string());
    let mut bytes = Cursor::new(Vec::new());
    let kind = if side <= TINY {
        DynamicImage::ImageRgb8(image).write_to(&mut bytes, ImageFormat::Png).map_err(failed)?;
        "png"
    } else {
        let scale = f64::from(SIDE.min(side)) / f64::from(side);
        let scaled = |length: u32| ((f64::from(length) * scale).round() as u32).max(1);
        let (w, h) = (scaled(width), scaled(height));
        let image = image::imageops::resize(&image, w, h, FilterType::CatmullRom);
        JpegEncoder::new_with_quality(&mut bytes, QUALITY).encode_image(&image).map_err(failed)?;
        "jpeg"
    };
    Ok(format!("data:image/{kind};base64,{}", STANDARD.encode(bytes.into_inner())))
}

fn note(candidate: &Candidate, grids: Option<&Patches>, known: bool, pictures: usize) -> String {
    let (kept, all) = (candidate.kept.len() as u64, u64::from(candidate.image_tokens));
    let mut note = format!("{} of {} image tokens visible", count(kept), count(all));
    if let Some(Patches { tiles: Some(tiles), base, .. }) = grids {
        let inside = |grid: &PatchGrid| {
            candidate.kept.iter().filter(|&&token| grid.place(token as usize).is_some()).count()
        };
        let (base, tiles) = (inside(base), inside(tiles));
        let rest = kept as usize - base - tiles;
        let _ = write!(
            note,
            ": {base} of the base view (solid outline, with its grid), {tiles} of the AnyRes tiles (dotted outline)"
        );
        if rest > 0 {
            let _ = write!(note, ", {rest} without a place (line ends)");
        }
    }
    if grids.is_none() {
        note.push_str(match known {
            true => "; not drawn, as the picture is not the one of the run",
            false => "; not drawn, as the model's settings are not known",
        });
    }
    if pictures > 1 {
        let _ = write!(note, "; the first of {pictures} pictures is shown");
    }
    note.push('.');
    note
}

fn mask(candidate: &Candidate, grids: &Patches) -> Mask {
    let path = |grid: &PatchGrid| visible(candidate, grid);
    Mask {
        base: path(&grids.base),
        tiles: grids.tiles.as_ref().map(path).unwrap_or_default(),
        grid: lines(&grids.base),
    }
}

/// The visible patches of a grid, neighbours in a row as one rectangle.
fn visible(candidate: &Candidate, grid: &PatchGrid) -> String {
    let mut path = String::new();
    let mut runs: Vec<(usize, usize, usize)> = Vec::new();
    let places = candidate.kept.iter().filter_map(|&token| grid.place(token as usize));
    for (row, col) in places {
        match runs.last_mut() {
            Some((r, c, cols)) if *r == row && *c + *cols == col => *cols += 1,
            _ => runs.push((row, col, 1)),
        }
    }
    for (row, col, cols) in runs {
        let rect = grid.run(row, col, cols);
        let [x, y, w, h] = [rect.x, rect.y, rect.width, rect.height].map(short);
        let _ = write!(path, "M{x} {y}h{w}v{h}h-{w}z");
    }
    path
}

fn lines(grid: &PatchGrid) -> String {
    let area = grid.area;
    let [x, y, w, h] = [area.x, area.y, area.width, area.height].map(short);
    let mut path = String::new();
    for row in 0..=grid.rows {
        let at = short(area.y + area.height * row as f64 / grid.rows as f64);
        let _ = write!(path, "M{x} {at}h{w}");
    }
    for col in 0..=grid.cols {
        let at = short(area.x + area.width * col as f64 / grid.cols as f64);
        let _ = write!(path, "M{at} {y}v{h}");
    }
    path
}

/// Two decimals at most.
fn short(value: f64) -> String {
    let text = format!("{value:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".into() } else { text.into() }
}
