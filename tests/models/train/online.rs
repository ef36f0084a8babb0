//! Rejected answers drawn from the model in training.

use bdhs::sampling::SamplingConfig;
use bdhs::train::{Online, Options, run};

use super::*;

fn online(gamma: f64) -> Settings {
    let online = Online { encoder: golden("encoders/bert"), threshold: 0.999, gamma };
    Settings {
        online: Some(online),
        projector: false,
        // The tiny model rarely ends a sentence.
        exclude_flagged: false,
        epochs: 2,
        batch: 3,
        checkpoint: 1,
        ..settings()
    }
}

fn train(settings: &Settings, out: &Path, stop: Option<u64>) -> bdhs::Result<()> {
    let sampling = SamplingConfig {
        rho: 0.5,
        attempts: 3,
        max_sentence_tokens: 12,
        max_response_tokens: 24,
        ..SamplingConfig::default()
    };
    let file = golden("dpo/pairs.jsonl");
    let options = Options {
        model: base(),
        pixels: Default::default(),
        base: "the tiny LLaVA",
        device: &Device::Cpu,
        dtype: "f32",
        out,
        file: &file,
        sampling: &sampling,
        reference: None,
    };
    match stop {
        None => run(&pairs(), settings, &options, &()).map(|_| ()),
        Some(after) => run(&pairs(), settings, &options, &runs::StopAfter::new(after)).map(|_| ()),
    }
}

#[test]
fn drawn_answers_are_a_function_of_the_training() {
    let folders: Vec<tempfile::TempDir> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let file = |i: usize, name: &str| std::fs::read(folders[i].path().join(name)).unwrap();
    train(&online(1.0), folders[0].path(), None).unwrap();
    // Stopped after the references of 8 pairs and 4 of 6 steps, then continued.
    assert!(train(&online(1.0), folders[1].path(), Some(12)).is_err());
    train(&online(1.0), folders[1].path(), None).unwrap();
    for name in ["adapter_model.safetensors", "train.jsonl"] {
        assert!(file(0, name) == file(1, name), "{name}");
    }
    // Averaged with the pair's own rejected answer it is another training.
    train(&online(0.5), folders[2].path(), None).unwrap();
    assert_ne!(file(0, "adapter_model.safetensors"), file(2, "adapter_model.safetensors"));
    // The model learns to tell its own answers from the chosen ones.
    let text = String::from_utf8(file(0, "train.jsonl")).unwrap();
    let line = |i: usize| -> serde_json::Value {
        serde_json::from_str(text.lines().nth(i).unwrap()).unwrap()
    };
    assert!(line(0)["rewards/margins"].as_f64().unwrap().abs() < 1e-4);
    assert!(line(5)["rewards/margins"].as_f64().unwrap() > 0.1, "{text}");
}

#[test]
fn weights_average_the_losses() {
    let mut trainer = trainer(&Settings { projector: false, ..settings() });
    let examples = examples(&trainer);
    let one = |trainer: &mut Trainer, i: usize| trainer.gradients(&[&examples[i]]).unwrap();
    let (a, b) = (one(&mut trainer, 3), one(&mut trainer, 5));
    let weighted =
        [(3, 0.3), (5, 0.7)].map(|(i, weight)| Example { weight, ..examples[i].clone() });
    let (stats, grads) = trainer.gradients(&[&weighted[0], &weighted[1]]).unwrap();
    assert!((stats.loss - 0.3 * a.0.loss - 0.7 * b.0.loss).abs() < 1e-6);
    for (name, grad) in &grads {
        let wanted = ((&a.1[name] * 0.3).unwrap() + (&b.1[name] * 0.7).unwrap()).unwrap();
        assert!(off(grad, &wanted) <= 1e-5 * largest(&wanted).max(1e-3), "{name}");
    }
}

#[test]
fn what_cannot_be_drawn_is_refused() {
    let refused = |settings: Settings, part: &str| {
        let message = settings.validate().unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    };
    refused(online(0.0), "train.online.gamma");
    refused(Settings { projector: true, ..online(1.0) }, "train.projector must be false");
    refused(Settings { loss: bdhs::train::Loss::Sft, ..online(1.0) }, "train.online");
}
