//! Dropped image tokens against masked keys, with positions of three components.

use super::*;

/// 200 random masks of each family, 40 of each share: logits behind the prompt, and greedy answers of 20 tokens.
/// All in one arena, so that sequences of other lengths and offsets decode side by side.
#[test]
fn dropped_tokens_equal_masked_keys() {
    for name in COMPLETE {
        let (model, dir) = (load(name), golden(name));
        let results = json_file(&dir.join("masks.json"));
        let first = tensors(&dir.join("masks.safetensors")).remove("first").unwrap();
        let cases = json_file(&dir.join("expected.json"));
        let case =
            cases["cases"].as_array().unwrap().iter().find(|c| c["name"] == "three").unwrap();
        let rows = Rows::of(&model, case["prompt"].as_str().unwrap(), &sizes(case));
        let masks = results["rows"].as_array().unwrap();
        assert_eq!(masks.len(), 200);
        let tokens = rows.features.dim(0).unwrap();
        let kept: Vec<Vec<u32>> =
            masks.iter().map(|row| rows.masked(&kept(&row[1], tokens))).collect();
        let answers: Vec<Vec<u32>> =
            results["answers"].as_array().unwrap().iter().map(ids).collect();
        let found = decode(&model, &rows, &kept, 20);
        let columns = Tensor::new(ids(&results["columns"]), found.0.device()).unwrap();
        let difference = max_difference(&found.0.index_select(&columns, 1).unwrap(), &first);
        println!("{name}: logits {difference:e}, {} different answers", answers.len());
        assert!(difference <= 1e-4, "{name}: {difference}");
        for (row, found) in masks.iter().zip(&found.1) {
            let expected = &answers[row[2].as_u64().unwrap() as usize];
            assert_eq!(found, expected, "{name}, mask {row}");
        }
    }
}

/// Logits behind each prompt, and greedy answers.
fn decode(model: &Model, rows: &Rows, kept: &[Vec<u32>], steps: usize) -> (Tensor, Vec<Vec<u32>>) {
    let language = &model.language;
    let parts: Vec<(Tensor, Vec<Place>)> = kept.iter().map(|kept| rows.select(kept)).collect();
    let x = Tensor::cat(&parts.iter().map(|(x, _)| x).collect::<Vec<_>>(), 0).unwrap();
    let places: Vec<Place> = parts.iter().flat_map(|(_, places)| places.clone()).collect();
    let (n, count) = (places.len(), kept.len());
    let mut cache = language.new_cache(n + count * steps).unwrap();
    let mut starts = vec![0];
    starts.extend(kept.iter().scan(0, |end, kept| {
        *end += kept.len();
        Some(*end)
    }));
    let blocks = starts.windows(2).map(|w| causal(w[0]..w[1], w[0], w[1] - w[0])).collect();
    let slots: Vec<u32> = (0..n as u32).collect();
    let states = language.forward(&x, &places, &mut cache, &slots, &AttendPlan { blocks }).unwrap();
    let last: Vec<u32> = starts[1..].iter().map(|&end| end as u32 - 1).collect();
    let last = Tensor::new(last, states.device()).unwrap();
    let first = language.logits(&states.index_select(&last, 0).unwrap()).unwrap();
    let mut logits = first.clone();
    // The prompt ends in text, whose last place is the largest of all.
    let next = places.iter().map(|place| place.0[0]).max().unwrap() + 1;
    let mut answers = vec![Vec::new(); count];
    for step in 0..steps {
        let best: Vec<u32> = logits.argmax(1).unwrap().to_vec1().unwrap();
        answers.iter_mut().zip(&best).for_each(|(answer, &id)| answer.push(id));
        let own = |i: usize| n + i * steps;
        let slots: Vec<u32> = (0..count).map(|i| (own(i) + step) as u32).collect();
        let block = |i: usize| Block {
            rows: i..i + 1,
            keys: vec![
                Segment { start: starts[i], len: starts[i + 1] - starts[i] },
                Segment { start: own(i), len: step + 1 },
            ],
            causal: true,
        };
        let plan = AttendPlan { blocks: (0..count).map(block).collect() };
        let places = vec![Place::from(next + step as u32); count];
        let x = language.embed(&best).unwrap();
        let states = language.forward(&x, &places, &mut cache, &slots, &plan).unwrap();
        logits = language.logits(&states).unwrap();
    }
    (first, answers)
}
