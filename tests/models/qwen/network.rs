//! Features, positions, logits.

use super::*;

/// Of all positions, of one and of several images, with and without masks.
#[test]
fn features_positions_and_logits_equal_transformers() {
    for name in MODELS {
        let (model, dir) = (load(name), golden(name));
        let (results, expected) =
            (json_file(&dir.join("expected.json")), tensors(&dir.join("expected.safetensors")));
        let columns = Tensor::new(ids(&results["columns"]), &place::device()).unwrap();
        let some = |states: &Tensor| {
            let logits = model.language.logits(states).unwrap();
            (logits.index_select(&columns, 1).unwrap(), logits)
        };
        for case in results["cases"].as_array().unwrap() {
            let what = case["name"].as_str().unwrap();
            let sizes = sizes(case);
            for (&(width, height), grid) in sizes.iter().zip(case["grid"].as_array().unwrap()) {
                let Pictures::Qwen(config) = &model.config().pictures else { panic!() };
                let merge = config.tower.merge;
                let layout = model.layout(width, height).unwrap();
                let [grid_of] = layout.grids[..] else { panic!("{layout:?}") };
                let patches = vec![1, merge * grid_of.rows, merge * grid_of.cols];
                assert_eq!(patches, numbers(grid), "{name} {what}");
                assert_eq!((grid_of.start, grid_of.stride), (0, grid_of.cols));
                assert_eq!(layout.tokens, grid_of.rows * grid_of.cols);
            }
            let rows = Rows::of(&model, case["text"].as_str().unwrap(), &sizes);
            let image = model.format.image_token().unwrap();
            let found: Vec<u32> = rows.ids.iter().map(|id| id.unwrap_or(image)).collect();
            assert_eq!(found, ids(&case["ids"]), "{name} {what}");
            let places: Vec<Vec<u32>> = rows.places.iter().map(|place| place.0.to_vec()).collect();
            let expected_places: Vec<Vec<u32>> =
                case["positions"].as_array().unwrap().iter().map(ids).collect();
            assert_eq!(places, expected_places, "{name} {what}");
            let mut report = format!("{name} {what}: {} rows", rows.places.len());
            if let Some(features) = expected.get(&format!("{what}.features")) {
                let difference = max_difference(&rows.features, features);
                report += &format!(", features {difference:e}");
                assert!(difference <= 1e-4, "{report}");
            }
            let (logits, all) = some(&prefill(&model.language, &rows.x, &rows.places));
            let difference = max_difference(&logits, &expected[&format!("{what}.logits")]);
            let lse = all.to_device(&Device::Cpu).unwrap().log_sum_exp(1).unwrap();
            let total = max_difference(&lse, &expected[&format!("{what}.logsumexp")]);
            report += &format!(", logits {difference:e}, logsumexp {total:e}");
            assert!(difference <= 1e-4 && total <= 1e-4, "{report}");
            for mask in case["masks"].as_array().unwrap() {
                let tokens = rows.features.dim(0).unwrap();
                let (x, places) = rows.select(&rows.masked(&kept(&mask["kept"], tokens)));
                let states = prefill(&model.language, &x, &places);
                let thirds: Vec<u32> = (0..places.len() as u32).rev().step_by(3).collect();
                let thirds = Tensor::new(thirds, states.device()).unwrap();
                let (logits, _) = some(&states.index_select(&thirds, 0).unwrap());
                let rate = format!("{:?}", mask["rate"].as_f64().unwrap());
                let difference =
                    max_difference(&logits, &expected[&format!("{what}.masked{rate}.logits")]);
                report += &format!(", masked {rate}: {difference:e}");
                assert!(difference <= 1e-4, "{report}");
            }
            println!("{report}");
        }
        let text = model.language.embed(&ids(&results["text_ids"])).unwrap();
        let places: Vec<Place> = (0..text.dim(0).unwrap() as u32).map(Place::from).collect();
        let (logits, _) = some(&prefill(&model.language, &text, &places));
        let difference = max_difference(&logits, &expected["text.logits"]);
        println!("{name} text alone: logits {difference:e}");
        assert!(difference <= 1e-4, "{name} text: {difference}");
    }
}

/// Regression: what a picture gives must not depend on those that go through the tower with it.
#[test]
fn pictures_of_a_batch_do_not_change_each_other() {
    for name in ["qwen2_5", "qwen2"] {
        let model = load(name);
        let pixels: Vec<_> = [(61, 23), (20, 47), (80, 80), (12, 12)]
            .map(|(w, h)| model.preprocess(&picture(w, h)).unwrap())
            .into();
        let together = model.states(&pixels.iter().collect::<Vec<_>>()).unwrap();
        for (pixels, states) in pixels.iter().zip(&together) {
            let alone = model.states(&[pixels]).unwrap().remove(0);
            let difference = max_difference(&alone, states);
            assert!(difference <= 1e-5, "{name}: {difference}");
        }
        assert_ne!(together[0].dims(), together[1].dims());
    }
}

/// Regression: a tower without windows, or with windows in every layer, passes tests on pictures of one window.
#[test]
fn windows_decide_what_a_patch_sees() {
    let model = load("qwen2_5");
    let Pictures::Qwen(config) = &model.config().pictures else { panic!() };
    let (window, block) = match config.tower.kind {
        Kind::Windowed { window, .. } => (window, config.tower.block()),
        Kind::Plain(_) => panic!(),
    };
    let (width, height) = (3 * window * block / 2, window * block);
    let base = model.preprocess(&picture(width, height)).unwrap();
    let states = |pixels: &bdhs::models::Pixels| model.vision_features(pixels).unwrap();
    // The last column of pixels belongs to the second window.
    let mut changed = picture(width, height);
    (0..height as u32)
        .for_each(|y| changed.put_pixel(width as u32 - 1, y, image::Rgb([255, 0, 0])));
    let changed = model.preprocess(&changed).unwrap();
    // The layer with full attention carries the change to the first window.
    assert!(max_difference(&states(&base), &states(&changed)) > 1e-3);
    let dir = copy("qwen2_5");
    let path = dir.path().join("config.json");
    let mut file = json_file(&path);
    file["vision_config"]["fullatt_block_indexes"] = serde_json::json!([]);
    std::fs::write(&path, file.to_string()).unwrap();
    let windowed = Model::load(dir.path(), &place::device(), DType::F32).unwrap();
    let first = |pixels: &bdhs::models::Pixels| {
        let states = windowed.vision_features(pixels).unwrap();
        let cols = pixels.layout.grids[0].cols;
        let patches = config.tower.patches();
        // Blocks of the first row that are in the first window.
        assert!(cols > window);
        states.narrow(0, 0, window * patches).unwrap()
    };
    assert_eq!(max_difference(&first(&base), &first(&changed)), 0.0);
}

use bdhs::models::families::Pictures;
use bdhs::models::vision::qwen::Kind;
