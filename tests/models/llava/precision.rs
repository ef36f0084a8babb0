//! f16 and bf16: at most twice as far from f32 as transformers is on the same checkpoint (scripts/golden_half.py).

use super::*;

/// Pairs of found and right values, by what they are.
type Pairs = Vec<(&'static str, Vec<(Tensor, Tensor)>)>;

/// As in the golden script: the largest difference over the largest value, and the same of root mean squares.
fn errors(pairs: &[(Tensor, Tensor)]) -> [f64; 2] {
    let values = |t: &Tensor| -> Vec<f32> {
        t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    };
    let (mut largest, mut most, mut squares, mut all) = (0f64, 0f64, 0f64, 0f64);
    for (found, right) in pairs {
        assert_eq!(found.dims(), right.dims());
        for (f, r) in values(found).into_iter().zip(values(right)) {
            assert!(f.is_finite(), "{f} beside {r}");
            let (difference, r) = (f64::from(f - r).abs(), f64::from(r));
            largest = largest.max(difference);
            most = most.max(r.abs());
            squares += difference * difference;
            all += r * r;
        }
    }
    [largest / most, (squares / all).sqrt()]
}

fn found(name: &str, dtype: DType) -> Pairs {
    let model = Model::load(folder(name), &place::device(), dtype).unwrap();
    let golden = Golden::of(name);
    let full = golden.results["full"].as_str().unwrap();
    let columns = Tensor::new(ids(&golden.results["columns"]), &place::device()).unwrap();
    let right = |key: String| golden.tensors[&key].clone();
    let (mut logits, mut vision, mut features) = (vec![], vec![], vec![]);
    let of = |x: &Tensor, positions: &[u32]| {
        let logits = model.language.logits(&prefill(&model.language, x, positions)).unwrap();
        assert_eq!(logits.dtype(), DType::F32);
        logits
    };
    for (case, width, height, _) in golden.cases() {
        let (x, positions) = sequence(&model, width, height, full);
        assert_eq!(x.dtype(), dtype);
        let some = of(&x, &positions).index_select(&columns, 1).unwrap();
        logits.push((some, right(format!("{case}.logits"))));
        if golden.tensors.contains_key(&format!("{case}.vision")) {
            let pixels = model.preprocess(&picture(width, height)).unwrap();
            let states = model.vision_features(&pixels).unwrap();
            vision.push((states, right(format!("{case}.vision"))));
            let rows = model.image_features(&pixels).unwrap();
            features.push((rows, right(format!("{case}.features"))));
        }
    }
    let text = model.language.embed(&ids(&golden.results["text_ids"])).unwrap();
    let positions: Vec<u32> = (0..text.dim(0).unwrap() as u32).collect();
    logits.push((of(&text, &positions), right("text.logits".into())));
    let far = vec![(of(&text, &ids(&golden.results["far"])), right("far.logits".into()))];
    vec![("vision", vision), ("features", features), ("logits", logits), ("far", far)]
}

#[test]
fn half_precision_is_as_close_as_transformers() {
    let golden = json_file(place::root().join("tests/golden/half.json"));
    let mut past = Vec::new();
    println!("model dtype what: largest and rms error; transformers'");
    for name in MODELS {
        for (dtype, label) in [(DType::F16, "f16"), (DType::BF16, "bf16")] {
            for (what, pairs) in found(name, dtype) {
                let ours = errors(&pairs);
                let theirs: Vec<f64> =
                    serde_json::from_value(golden["llava"][name][label]["sdpa"][what].clone())
                        .unwrap();
                let line = format!(
                    "{name} {label} {what}: {:.2e} {:.2e}; {:.2e} {:.2e}",
                    ours[0], ours[1], theirs[0], theirs[1]
                );
                println!("{line}");
                if ours[0] > 2.0 * theirs[0] || ours[1] > 2.0 * theirs[1] {
                    past.push(line);
                }
            }
        }
    }
    assert!(past.is_empty(), "more than twice as far: {past:#?}");
}
