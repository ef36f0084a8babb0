//! Sizes, token counts, pixels and windows.

use bdhs::models::families::Pictures;
use bdhs::models::families::qwen::{Config as Qwen, PatchSettings, image::ImageProcessor};
use bdhs::models::vision::qwen::{Kind, TowerConfig};
use bdhs::models::{Bounds, Config, PatchMap, Source};
use serde_json::json;

use super::*;

/// The released settings with these bounds, spelled in the old or the new way.
fn settings(bounds: (usize, usize), new: bool) -> (tempfile::TempDir, Qwen) {
    let dir = tempfile::tempdir().unwrap();
    let (low, high) = bounds;
    let mut processor =
        json!({"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14, "merge_size": 2});
    if new {
        processor["size"] = json!({"shortest_edge": low, "longest_edge": high});
    } else {
        processor["min_pixels"] = json!(low);
        processor["max_pixels"] = json!(high);
    }
    let write =
        |name: &str, value: &Value| std::fs::write(dir.path().join(name), value.to_string());
    write("preprocessor_config.json", &processor).unwrap();
    write("config.json", &json!({"model_type": "qwen2_vl"})).unwrap();
    let Pictures::Qwen(config) = Config::read(dir.path()).unwrap().pictures else { panic!() };
    (dir, config)
}

/// As in the golden script: the position-weighted sum of the 8-bit values behind normalised ones.
fn checksum(values: &[f32], channel: usize) -> u64 {
    let (mean, std) = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]);
    let mut sum = 0u64;
    for (i, &value) in values.iter().enumerate() {
        let c = i / channel % 3;
        let level = (f64::from(value) * std[c] + mean[c]) * 255.0;
        assert!((level - level.round()).abs() < 1e-3, "{level} is not a level");
        let weight = ((i as u64).wrapping_mul(2_654_435_761) + 12_345) & 0xFFFF_FFFF;
        sum = sum.wrapping_add(level.round() as u64 * weight);
    }
    sum
}

/// 60 odd shapes: sizes under three pairs of bounds, and all pixels in the tower's order, bit for bit.
#[test]
fn sizes_and_pixels_equal_the_processor_of_transformers() {
    let golden = json_file(&golden("sizes.json"));
    let bounds: Vec<(usize, usize)> = golden["bounds"]
        .as_array()
        .unwrap()
        .iter()
        .map(|b| (numbers(b)[0], numbers(b)[1]))
        .collect();
    let kinds: Vec<_> =
        bounds.iter().enumerate().map(|(i, &bounds)| settings(bounds, i % 2 == 0)).collect();
    let rows = golden["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 60);
    let (dir, config) = kinds.last().unwrap();
    let processor = ImageProcessor::read(dir.path(), config).unwrap();
    let mut worst = 0f32;
    for row in rows {
        let (width, height) =
            (row["width"].as_u64().unwrap() as usize, row["height"].as_u64().unwrap() as usize);
        for ((dir, config), grid) in kinds.iter().zip(row["grids"].as_array().unwrap()) {
            let settings = PatchSettings::read(dir.path(), config).unwrap();
            let (rows, cols) = settings.grid(width, height).unwrap();
            assert_eq!(vec![2 * rows, 2 * cols], numbers(grid), "{width}x{height}");
        }
        let (rows, cols) = processor.settings().grid(width, height).unwrap();
        let pixels = processor.preprocess(&picture(width, height)).unwrap();
        assert_eq!(pixels.dims(), [1, 3, 28 * rows, 28 * cols]);
        let pixels: Vec<f32> = pixels.flatten_all().unwrap().to_vec1().unwrap();
        let order: Vec<u32> = (0..(rows * cols) as u32).collect();
        let flat = config.tower.flatten(&pixels, rows, cols, &order);
        let expected: u64 = row["checksum"].as_str().unwrap().parse().unwrap();
        assert_eq!(checksum(&flat, 2 * 14 * 14), expected, "{width}x{height}");
        for spot in row["spots"].as_array().unwrap() {
            let value = spot[1].as_f64().unwrap() as f32;
            worst = worst.max((flat[spot[0].as_u64().unwrap() as usize] - value).abs());
        }
    }
    println!("largest difference after normalisation: {worst:e}");
    assert!(worst <= 1e-6);
}

/// Regression: the shape after the resize must not depend on integers that overflow, and a picture that is too long is
/// refused with its size.
#[test]
fn absurd_sizes_are_refused_or_bounded() {
    let (dir, config) = settings((3136, 12_845_056), true);
    let settings = PatchSettings::read(dir.path(), &config).unwrap();
    for (width, height) in [(0, 5), (5, 0), (201, 1), (1, 201), (10_000, 49)] {
        let error = settings.size(width, height).unwrap_err().to_string();
        assert!(error.contains(&format!("{width}x{height}")), "{error}");
    }
    for (width, height) in [(1, 1), (200, 1), (1 << 31, 1 << 31), (usize::MAX / 2, usize::MAX / 2)]
    {
        let (h, w) = settings.size(width, height).unwrap();
        assert!(h * w <= 12_845_056 + 28 * (h + w) && h * w >= 3136, "{width}x{height}: {w}x{h}");
        assert!(h.is_multiple_of(28) && w.is_multiple_of(28));
    }
    let narrow = settings.with_bounds(3136, 100_352).unwrap();
    assert_eq!(narrow.grid(4000, 4000).unwrap(), (11, 11));
    for (low, high) in [(0, 5), (6, 5), (1, usize::MAX)] {
        assert!(settings.with_bounds(low, high).is_err());
    }
}

/// Regression: bounds by option must reach counts, pixels, drawings and the model's identity alike.
#[test]
fn bounds_by_option_take_the_place_of_the_checkpoints() {
    let dir = copy("qwen2_5");
    let source = |max| {
        let bounds = Bounds { min: None, max };
        Source::new(dir.path(), None).unwrap().with_pixels(bounds)
    };
    let open = |source: &Source| Model::open(source, &place::device(), DType::F32);
    let narrow = open(&source(Some(1152))).unwrap();
    let layout = narrow.layout(60, 60).unwrap();
    assert_eq!((layout.tokens, load("qwen2_5").layout(60, 60).unwrap().tokens), (4, 25));
    assert_eq!(narrow.preprocess(&picture(60, 60)).unwrap().tiles.dims(), [1, 3, 24, 24]);
    let map = PatchMap::read(&source(Some(1152))).unwrap();
    assert_eq!(map.patches(60, 60, true).unwrap().tokens, 4);
    assert_ne!(source(Some(1152)).fingerprint().unwrap(), source(None).fingerprint().unwrap());
    let own = Model::load(dir.path(), &place::device(), DType::F32).unwrap();
    assert_eq!(source(None).fingerprint().unwrap(), own.fingerprint().unwrap());
    let error = open(&source(Some(3))).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("576 to 3"), "{error}");
    // A family whose pictures have one size.
    let llava = place::root().join("tests/golden/llava/llava15");
    let llava = Source::new(&llava, None).unwrap();
    let llava = llava.with_pixels(Bounds { min: Some(1), max: None });
    let error = open(&llava).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("min_pixels") && error.contains("LLaVA-1.5"), "{error}");
}

#[test]
fn pictures_that_are_not_resized_must_fit() {
    let dir = copy("qwen2_5");
    let path = dir.path().join("preprocessor_config.json");
    let mut file = json_file(&path);
    file["do_resize"] = json!(false);
    std::fs::write(&path, file.to_string()).unwrap();
    let model = Model::load(dir.path(), &place::device(), DType::F32).unwrap();
    assert_eq!(model.layout(24, 36).unwrap().tokens, 6);
    let error = model.layout(25, 36).unwrap_err().to_string();
    assert!(error.contains("25x36") && error.contains("multiples of 12"), "{error}");
}

/// Windows cut from the upper left corner; the rows of each follow one another.
#[test]
fn windows_hold_every_block_once() {
    let tower = TowerConfig {
        width: 8,
        inner: 8,
        layers: 1,
        heads: 1,
        patch: 14,
        frames: 2,
        merge: 2,
        output: 8,
        theta: 1e4,
        kind: Kind::Windowed { window: 4, full: vec![] },
    };
    let (order, counts) = tower.windows(5, 6);
    assert_eq!(counts, [16, 8, 4, 2]);
    assert_eq!(order[..5], [0, 1, 2, 3, 6]);
    assert_eq!(order[16..20], [4, 5, 10, 11]);
    let mut all = order.clone();
    all.sort_unstable();
    assert_eq!(all, (0..30).collect::<Vec<u32>>());
}
