//! Pixels, token counts and grids.

use bdhs::models::families::llava::image::ImageProcessor;
use bdhs::ops::mask::TokenGrid;

use super::*;

#[test]
fn pixels_of_the_tiny_models_equal_transformers() {
    let (mean, std) = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]);
    for name in MODELS {
        let (model, golden) = (load(name), Golden::of(name));
        for (case, width, height, _) in golden.cases() {
            let Some(levels) = golden.tensors.get(&format!("{case}.tiles")) else { continue };
            let tensor =
                |v: [f64; 3]| Tensor::new(&v, &Device::Cpu).unwrap().reshape((3, 1, 1)).unwrap();
            let expected = (levels.to_dtype(DType::F64).unwrap() / 255.0).unwrap();
            let expected = expected
                .broadcast_sub(&tensor(mean))
                .and_then(|t| t.broadcast_div(&tensor(std)))
                .and_then(|t| t.to_dtype(DType::F32))
                .unwrap();
            let tiles = model.preprocess(&picture(width, height)).unwrap().tiles;
            let difference = max_difference(&tiles, &expected);
            assert!(difference <= 1e-5, "{name} {case}: {difference}");
        }
    }
}

/// Settings of the released checkpoints at full size, 14 shapes, five filters: 8-bit values bit for bit.
#[test]
fn pixels_at_full_size_equal_pillow() {
    let cases = json_file(folder("pixels.json"));
    let worst = cases.as_array().unwrap().iter().map(check_pixels).fold(0f32, f32::max);
    println!("largest difference after normalisation: {worst:e}");
    assert!(worst <= 1e-6);
}

/// The processor with a case's settings, at 336 pixels a tile.
pub(super) fn processor(case: &Value) -> (llava::Config, ImageProcessor) {
    let dir = tempfile::tempdir().unwrap();
    let kind = case["processor"].as_str().unwrap();
    let mut settings = case["settings"].clone();
    settings["image_processor_type"] = json!(match kind {
        "clip" => "CLIPImageProcessor",
        "llava" => "LlavaImageProcessorFast",
        _ => "LlavaNextImageProcessor",
    });
    write(dir.path(), "preprocessor_config.json", &settings);
    let mut config = json!({"model_type": if kind == "next" { "llava_next" } else { "llava" }});
    config["image_grid_pinpoints"] = settings["image_grid_pinpoints"].clone();
    write(dir.path(), "config.json", &config);
    let config = pictures(dir.path());
    let processor = ImageProcessor::read(dir.path(), &config).unwrap();
    (config, processor)
}

/// Checks a case's 8-bit values bit for bit; returns the largest difference of the normalised ones that it names.
pub(super) fn check_pixels(case: &Value) -> f32 {
    let (_, processor) = processor(case);
    let side = |s: &str| case[s].as_u64().unwrap() as usize;
    let tiles = processor.preprocess(&picture(side("width"), side("height"))).unwrap().tiles;

    let settings = &case["settings"];
    let what = format!("{} {}x{} {settings}", case["processor"], side("width"), side("height"));
    assert_eq!(tiles.dims()[0], side("tiles"), "{what}");
    let normal = settings["do_normalize"].as_bool().unwrap_or(true);
    let values: Vec<f32> = tiles.flatten_all().unwrap().to_vec1().unwrap();
    let expected: u64 = case["checksum"].as_str().unwrap().parse().unwrap();
    assert_eq!(checksum(levels(&values, normal)), expected, "{what}");
    let difference = |spot: &Value| {
        let value = spot[1].as_f64().unwrap() as f32;
        (values[spot[0].as_u64().unwrap() as usize] - value).abs()
    };
    case["spots"].as_array().unwrap().iter().map(difference).fold(0.0, f32::max)
}

/// The 8-bit values behind values that may be normalised.
fn levels(values: &[f32], normal: bool) -> impl Iterator<Item = u8> {
    let (mean, std) = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]);
    let channel = 336 * 336;
    values.iter().enumerate().map(move |(i, &value)| {
        let c = i / channel % 3;
        let x = if normal { f64::from(value) * std[c] + mean[c] } else { f64::from(value) };
        let level = x * 255.0;
        assert!((level - level.round()).abs() < 1e-3, "{level} is not a level");
        level.round() as u8
    })
}

#[test]
fn token_counts_and_layouts_equal_the_processor() {
    for name in MODELS {
        let (model, golden) = (load(name), Golden::of(name));
        for size in golden.results["sizes"].as_array().unwrap() {
            let [w, h, n] = ids(size)[..] else { panic!() };
            let layout = model.layout(w as usize, h as usize).unwrap();
            assert_eq!(layout.tokens, n as usize, "{name} {w}x{h}");
        }
        for (case, width, height, expected) in golden.cases() {
            let layout = model.layout(width, height).unwrap();
            assert_eq!(layout.tokens as u64, expected["image"].as_u64().unwrap(), "{name} {case}");
            let pixels = model.preprocess(&picture(width, height)).unwrap();
            assert_eq!(pixels.layout, layout);
            assert_eq!(pixels.tiles.dim(0).unwrap(), layout.tiles);
            assert_eq!(model.image_features(&pixels).unwrap().dim(0).unwrap(), layout.tokens);
        }
    }
}

#[test]
fn grids_cover_all_but_newlines() {
    let next = load("next_vicuna");
    // 61x23 is widest against 28x84: 3 tiles across, one of 4 patch rows lost to padding at each end... or none.
    let layout = next.layout(61, 23).unwrap();
    let [base, grid] = layout.grids[..] else { panic!("{layout:?}") };
    assert_eq!(base, TokenGrid { start: 0, rows: 4, cols: 4, stride: 4 });
    assert_eq!((grid.start, grid.stride), (16, grid.cols + 1));
    assert_eq!(layout.tokens, 16 + grid.rows * grid.stride);

    let first = load("llava15").layout(61, 23).unwrap();
    assert_eq!((first.tokens, first.grids), (16, vec![base]));
    let full = load("llava15_odd").layout(61, 23).unwrap();
    assert_eq!(full.tokens, 17, "strategy full keeps the class token");
    assert_eq!(full.grids, vec![TokenGrid { start: 1, ..base }]);
}

/// Regression: one axis mistaken for the other gives the same counts for square images only.
#[test]
fn unpadding_cuts_the_right_axis() {
    let next = load("next_vicuna");
    let wide = next.layout(560, 200).unwrap().anyres.unwrap();
    // 560x200 goes to 28 rows x 84 columns at scale 0.14 (78 wide), padded left and right.
    assert_eq!((wide.height, wide.width), (28, 84));
    assert_eq!((wide.rows, wide.top), (4, 0));
    let tall = next.layout(200, 560).unwrap().anyres.unwrap();
    assert_eq!((tall.height, tall.width), (84, 28));
    assert_eq!(
        (tall.rows, tall.cols, tall.top, tall.left),
        (wide.cols, wide.rows, wide.left, wide.top)
    );
    let flat = next.layout(600, 100).unwrap().anyres.unwrap();
    // 600x100: 12 patch columns show a height of 2 patches, so one row goes above and one below.
    assert_eq!((flat.rows, flat.cols, flat.top, flat.left), (2, 12, 1, 0));
}
