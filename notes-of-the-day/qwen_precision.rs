//! f16 and bf16: at most twice as far from f32 as transformers is on the same checkpoint.

use super::*;

/// As in the golden script: the largest difference over the largest value, and the same of root mean squares.
fn errors(pairs: &[(Tensor, &Tensor)]) -> [f64; 2] {
    let values = |t: &Tensor| -> Vec<f32> {
        t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    };
    let (mut largest, mut most, mut squares, mut all) = (0f64, 0f64, 0f64, 0f64);
    for (found, right) in pairs {
        assert_eq!(found.dims(), right.dims());
        for (f, r) in values(found).into_iter().zip(values(right)) {
            assert!(f.is_finite(), "{f} for {r}");
            let (difference, r) = (f64::from(f - r).abs(), f64::from(r));
            largest = largest.max(difference);
            most = most.max(r.abs());
            squares += difference * difference;
            all += r * r;
        }
    }
    [largest / most, (squares / all).sqrt()]
}

#[test]
fn half_precision_is_as_close_as_transformers() {
    let theirs = json_file(&golden("half.json"));
    let mut past = Vec::new();
    for name in MODELS {
        let dir = golden(name);
        let (results, right) =
            (json_file(&dir.join("expected.json")), tensors(&dir.join("expected.safetensors")));
        let columns = Tensor::new(ids(&results["columns"]), &place::device()).unwrap();
        for (dtype, label) in [(DType::F16, "f16"), (DType::BF16, "bf16")] {
            let model = load_as(name, dtype);
            let (mut features, mut logits) = (vec![], vec![]);
            for case in results["cases"].as_array().unwrap() {
                let what = case["name"].as_str().unwrap();
                let Some(expected) = right.get(&format!("{what}.features")) else { continue };
                let rows = Rows::of(&model, case["text"].as_str().unwrap(), &sizes(case));
                let states = prefill(&model.language, &rows.x, &rows.places);
                let found = model.language.logits(&states).unwrap();
                let found = found.index_select(&columns, 1).unwrap();
                logits.push((found, &right[&format!("{what}.logits")]));
                features.push((rows.features, expected));
            }
            for (what, pairs) in [("features", features), ("logits", logits)] {
                assert_eq!(pairs.len(), 2);
                let ours = errors(&pairs);
                let theirs = &theirs[name][label][what];
                let [largest, rms] = [0, 1].map(|i| theirs[i].as_f64().unwrap());
                let line = format!(
                    "{name} {label} {what}: {:.2e} {:.2e}; transformers {largest:.2e} {rms:.2e}",
                    ours[0], ours[1]
                );
                println!("{line}");
                if ours[0] > 2.0 * largest || ours[1] > 2.0 * rms {
                    past.push(line);
                }
            }
        }
    }
    assert!(past.is_empty(), "{past:#?}");
}
