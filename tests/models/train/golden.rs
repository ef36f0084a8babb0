//! The same numbers as TRL and PEFT.

use bdhs::train::{Loss, Tokens};
use serde_json::Value;

use super::*;

fn expected() -> Value {
    let text = std::fs::read_to_string(golden("dpo/expected.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn log_probs_are_those_of_trl() {
    let mut trainer = trainer(&settings());
    let mut examples = examples(&trainer);
    for (example, pair) in examples.iter().zip(expected()["pairs"].as_array().unwrap()) {
        for (side, name) in ["reference_chosen", "reference_rejected"].iter().enumerate() {
            let difference = example.reference[side] - pair[*name].as_f64().unwrap();
            assert!(difference.abs() < 2e-4, "{}: {name}: {difference}", example.pair.place);
        }
        // Places and tokens are TRL's own: what counts as an answer, and that its end counts.
        for (side, name) in ["chosen", "rejected"].iter().enumerate() {
            let ids = pair[format!("{name}_ids")].as_array().unwrap().len();
            let start = pair[format!("{name}_start")].as_u64().unwrap() as usize;
            assert_eq!(example.sequences.tokens()[side], ids - start, "{name}");
        }
    }
    trainer.load_adapter(&golden("dpo/adapter")).unwrap();
    for (example, pair) in examples.iter_mut().zip(expected()["pairs"].as_array().unwrap()) {
        let (stats, _) = trainer.gradients(&[example]).unwrap();
        for (side, name) in ["policy_chosen", "policy_rejected"].iter().enumerate() {
            let difference = stats.log_probs[side] - pair[*name].as_f64().unwrap();
            assert!(difference.abs() < 2e-4, "{}: {name}: {difference}", example.pair.place);
        }
    }
}

/// With the checkpoint as it is, whose tokenizer would put a BOS in front and whose template does not.
#[test]
fn tokens_are_those_of_trl_where_that_is_asked_for() {
    let trainer = |tokenisation| {
        let settings = Settings { tokenisation, ..settings() };
        Trainer::new(&golden("llava/llava15"), &place::device(), DType::F32, &settings).unwrap()
    };
    let (trl, whole) = (examples(&trainer(Tokens::Trl)), examples(&trainer(Tokens::Whole)));
    let mut furthest = 0f64;
    for (i, pair) in expected()["pairs"].as_array().unwrap().iter().enumerate() {
        for (side, name) in ["reference_chosen", "reference_rejected"].iter().enumerate() {
            let wanted = pair[*name].as_f64().unwrap();
            let difference = trl[i].reference[side] - wanted;
            assert!(difference.abs() < 2e-4, "{}: {name}: {difference}", trl[i].pair.place);
            furthest = furthest.max((whole[i].reference[side] - wanted).abs());
        }
        assert_eq!(trl[i].sequences.tokens(), whole[i].sequences.tokens());
        assert_eq!(trl[i].sequences.rows() + 1, whole[i].sequences.rows());
    }
    assert!(furthest > 1e-3, "a BOS changes nothing: {furthest}");
}

#[test]
fn losses_and_gradients_are_those_of_trl_with_and_without_recomputation() {
    let expected = expected();
    let tensors = load(&golden("dpo/expected.safetensors"));
    let cases = [
        ("sigmoid", Loss::Sigmoid, 0.0, true, 4096),
        // A part a pair: sums over parts are the sums over the batch.
        ("sigmoid", Loss::Sigmoid, 0.0, true, 1),
        ("sigmoid", Loss::Sigmoid, 0.0, false, 4096),
        ("sigmoid_label_smoothing_0.1", Loss::Sigmoid, 0.1, true, 4096),
        ("ipo", Loss::Ipo, 0.0, true, 4096),
    ];
    for (name, loss, label_smoothing, recompute, tokens) in cases {
        let settings = Settings { loss, label_smoothing, recompute, tokens, ..settings() };
        let mut trainer = trainer(&settings);
        let examples = examples(&trainer);
        trainer.load_adapter(&golden("dpo/adapter")).unwrap();
        let batch: Vec<&Example> = examples[..4].iter().collect();
        let (stats, grads) = trainer.gradients(&batch).unwrap();
        let wanted = expected["first_batch"][name].as_f64().unwrap();
        let difference = (stats.loss - wanted).abs() / wanted.max(1.0);
        println!("{name}: loss off by {difference:e}");
        assert!(difference <= 1e-5, "{name}: {} for {wanted}", stats.loss);
        if name != "sigmoid" {
            continue;
        }
        assert_eq!(grads.len(), 32);
        let mut worst = 0f32;
        for (name, grad) in &grads {
            let wanted = &tensors[&format!("grad.{name}")];
            worst = worst.max(off(grad, wanted) / largest(wanted));
        }
        println!("gradients off by {worst:e} of their largest value");
        assert!(worst <= 1e-4);
    }
}

#[test]
fn twenty_steps_stay_with_trl() {
    let settings = settings();
    let mut trainer = trainer(&settings);
    let examples = examples(&trainer);
    trainer.load_adapter(&golden("dpo/adapter")).unwrap();
    let steps = expected()["steps"].as_array().unwrap().clone();
    for (i, step) in steps.iter().enumerate() {
        let start = 4 * i % 8;
        let batch: Vec<&Example> = examples[start..start + 4].iter().collect();
        let rate = settings.schedule(i as u32, 20);
        let wanted = |field: &str| step[field].as_f64().unwrap();
        assert!((rate * 5e-3 - wanted("learning_rate")).abs() < 1e-12);
        let stats = trainer.step(&batch, rate).unwrap();
        assert!((stats.loss - wanted("loss")).abs() <= 2e-5, "step {i}: {}", stats.loss);
        let norm = (stats.gradient_norm - wanted("grad_norm")).abs() / wanted("grad_norm");
        assert!(norm < 1e-4, "step {i}: norm off by {norm}");
    }
    let tensors = load(&golden("dpo/expected.safetensors"));
    let mut worst = 0f32;
    for (name, tensor) in trainer.tensors().unwrap() {
        worst = worst.max(off(&tensor, &tensors[&format!("final.{name}")]));
    }
    println!("tensors off by {worst:e} after 20 steps");
    assert!(worst <= 1e-4);
}
