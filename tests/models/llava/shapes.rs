//! Images of many shapes, kinds and orientations as transformers sees them (scripts/golden_images.py).

use bdhs::data::image::decode;
use bdhs::models::families::llava::Tiling;

use super::images::{check_pixels, processor};
use super::*;

#[test]
fn pixels_of_twelve_aspect_ratios_equal_transformers() {
    let mut seen = 0;
    let mut worst = 0f32;
    for case in json_file(folder("shapes.json")).as_array().unwrap() {
        if case.get("counted").is_some() {
            continue;
        }
        worst = worst.max(check_pixels(case));
        seen += 1;
    }
    println!("{seen} images, largest difference after normalisation: {worst:e}");
    assert!(seen >= 4 * 12 && worst <= 1e-6, "{seen} {worst}");
}

/// (tiles, chosen resolution, tokens) of a size.
fn layout(tiling: &Tiling, width: usize, height: usize) -> (usize, Option<(usize, usize)>, usize) {
    let found = tiling.layout(width, height, true).unwrap();
    (found.tiles, found.anyres.map(|a| (a.height, a.width)), found.tokens)
}

#[test]
fn tiles_resolutions_and_tokens_equal_transformers() {
    let pair = |v: &Value| v.as_array().map(|_| ids(v)).map(|p| (p[0] as usize, p[1] as usize));
    let number = |v: &Value| v.as_u64().unwrap() as usize;
    let mut seen = 0;
    for case in json_file(folder("shapes.json")).as_array().unwrap() {
        let (config, _) = processor(case);
        let tiling = Tiling::of(&config);
        let one =
            [json!([case["width"], case["height"], case["tiles"], case["best"], case["tokens"]])];
        let rows = case["counted"].as_array().map_or(&one[..], Vec::as_slice);
        for row in rows {
            let found = layout(&tiling, number(&row[0]), number(&row[1]));
            let expected = (number(&row[2]), pair(&row[3]), number(&row[4]));
            assert_eq!(found, expected, "{} {row}, {}", case["processor"], case["settings"]);
            seen += 1;
        }
    }
    println!("{seen} sizes");
    assert!(seen > 250);
}

fn bytes(hex: &Value) -> Vec<u8> {
    let digits = hex.as_str().unwrap().as_bytes();
    let digit = |d: u8| (d as char).to_digit(16).unwrap() as u8;
    digits.chunks_exact(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

#[test]
fn files_of_every_mode_and_orientation_decode_as_in_transformers() {
    let cases = json_file(folder("pictures.json"));
    let mut different = Vec::new();
    for case in cases.as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let found = match decode(&bytes(&case["file"]), Path::new(name)) {
            Ok(found) => found,
            Err(error) => {
                different.push(error.to_string());
                continue;
            }
        };
        let expected = bytes(&case["rgb"]);
        let size = [found.width(), found.height()];
        // JPEG decoders may round otherwise.
        let bound = if name.ends_with(".jpeg") { 2 } else { 0 };
        let worst = found.as_raw().iter().zip(&expected).map(|(a, b)| a.abs_diff(*b)).max();
        if size.map(|s| json!(s)) != [case["width"].clone(), case["height"].clone()]
            || worst.is_none_or(|w| w > bound)
        {
            different.push(format!("{name}: {size:?}, off by {worst:?}"));
        }
    }
    assert!(different.is_empty(), "{different:#?}");
}
