//! Whole trainings: the same bytes however often they are stopped, and adapters that load as models.

use std::sync::atomic::{AtomicU64, Ordering};

use bdhs::Error;
use bdhs::engine::Progress;
use bdhs::models::Model;
use bdhs::sampling::SamplingConfig;
use bdhs::train::{Loss, Options, Outcome, run};

use super::*;
use crate::common::disk::Disk;

fn short() -> Settings {
    Settings { epochs: 3, batch: 3, checkpoint: 2, dropout: 0.2, ..settings() }
}

fn train(settings: &Settings, out: &Path, progress: &dyn Progress) -> bdhs::Result<Outcome> {
    let base = base();
    let file = golden("dpo/pairs.jsonl");
    let options = Options {
        model: base,
        pixels: Default::default(),
        base: "the tiny LLaVA",
        device: &Device::Cpu,
        dtype: "f32",
        out,
        file: &file,
        sampling: &SamplingConfig::default(),
        reference: None,
    };
    run(&pairs(), settings, &options, progress)
}

/// Asks to stop after so many steps of any stage.
pub struct StopAfter(AtomicU64);

impl StopAfter {
    pub fn new(steps: u64) -> Self {
        Self(AtomicU64::new(steps))
    }
}

impl Progress for StopAfter {
    fn advance(&self, steps: u64) {
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            Some(left.saturating_sub(steps))
        });
    }

    fn stop_requested(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }
}

#[test]
fn a_stopped_training_continues_to_the_same_bytes() {
    let settings = short();
    let whole = tempfile::tempdir().unwrap();
    let outcome = train(&settings, whole.path(), &()).unwrap();
    assert_eq!((outcome.steps, outcome.pairs), (9, 8));
    let file = |dir: &Path, name: &str| std::fs::read(dir.join(name)).unwrap();

    let stopped = tempfile::tempdir().unwrap();
    let mut stops = 0;
    let again = loop {
        match train(&settings, stopped.path(), &StopAfter::new(11)) {
            Ok(outcome) => break outcome,
            Err(Error::Interrupted) => stops += 1,
            Err(error) => panic!("{error}"),
        }
        assert!(stops < 50);
    };
    assert!(stops >= 2, "{stops}");
    for name in ["adapter_model.safetensors", "train.jsonl"] {
        assert!(file(whole.path(), name) == file(stopped.path(), name), "{name}");
    }
    assert_eq!(again.last, outcome.last);
    assert!(!stopped.path().join("checkpoint.safetensors").exists());
    // Done: nothing is computed again, and the folder takes no other training.
    assert_eq!(train(&settings, stopped.path(), &StopAfter::new(0)).unwrap(), again);
    let other = Settings { beta: 0.2, ..settings };
    let message = train(&other, stopped.path(), &()).unwrap_err().to_string();
    assert!(message.contains("another training"), "{message}");
}

#[test]
fn a_log_that_is_ahead_of_its_checkpoint_is_cut_back() {
    let settings = short();
    let (whole, killed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    train(&settings, whole.path(), &()).unwrap();
    // 8 pairs' references and 4 steps.
    let stopped = train(&settings, killed.path(), &StopAfter::new(12));
    assert!(matches!(stopped, Err(Error::Interrupted)));
    let log = killed.path().join("train.jsonl");
    let mut text = std::fs::read_to_string(&log).unwrap();
    text.push_str("{\"step\": 99");
    std::fs::write(&log, text).unwrap();
    train(&settings, killed.path(), &()).unwrap();
    let file = |dir: &Path, name: &str| std::fs::read(dir.join(name)).unwrap();
    for name in ["adapter_model.safetensors", "train.jsonl"] {
        assert!(file(whole.path(), name) == file(killed.path(), name), "{name}");
    }
}

/// The first checkpoint fits, the second does not beside it: it says so, and the first is gone on from.
#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_costs_no_checkpoint() {
    let settings = short();
    let whole = tempfile::tempdir().unwrap();
    train(&settings, whole.path(), &()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::mount(dir.path(), "160k") else { return };
    let out = disk.path().join("adapter");
    let message = train(&settings, &out, &()).unwrap_err().to_string();
    println!("{message}");
    assert!(message.contains("space") && message.contains("checkpoint"), "{message}");
    let kept = std::fs::read(out.join("checkpoint.safetensors")).unwrap();
    assert!(!kept.is_empty());
    disk.grow();
    train(&settings, &out, &()).unwrap();
    let file = |dir: &Path, name: &str| std::fs::read(dir.join(name)).unwrap();
    for name in ["adapter_model.safetensors", "train.jsonl"] {
        assert!(file(whole.path(), name) == file(&out, name), "{name}");
    }
}

#[test]
fn an_adapter_is_a_model_and_says_what_the_trainer_said() {
    let mut trainer = trainer(&settings());
    let examples = examples(&trainer);
    let batch: Vec<&Example> = examples.iter().collect();
    for _ in 0..5 {
        trainer.step(&batch, 1.0).unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    trainer.save_adapter(folder.path()).unwrap();
    let merged = Model::load(folder.path(), &Device::Cpu, DType::F32).unwrap();
    let logits = |model: &Model| {
        let ids: Vec<u32> = (5..25).collect();
        let positions: Vec<u32> = (0..20).collect();
        let plan = bdhs::ops::attend::AttendPlan::ragged(&[0, 20], true);
        let x = model.language.embed(&ids).unwrap();
        let states = model.language.forward_packed(&x, &positions, &plan).unwrap();
        model.language.logits(&states).unwrap().detach()
    };
    let base = Model::load(base(), &Device::Cpu, DType::F32).unwrap();
    assert!(off(&logits(&trainer.model), &logits(&merged)) < 1e-4);
    assert!(off(&logits(&trainer.model), &logits(&base)) > 1e-2);
    let view = image::RgbImage::from_fn(40, 24, |x, y| image::Rgb([x as u8 * 5, y as u8 * 9, 77]));
    let rows =
        |model: &Model| model.image_features(&model.preprocess(&view).unwrap()).unwrap().detach();
    assert!(off(&rows(&trainer.model), &rows(&merged)) < 1e-5);
    assert!(off(&rows(&trainer.model), &rows(&base)) > 1e-3);
    // For scripts/check_adapters.py.
    if let Some(out) = std::env::var_os("BDHS_ADAPTER_OUT").map(PathBuf::from) {
        trainer.save_adapter(&out).unwrap();
        view.save(out.join("view.png")).unwrap();
        let ids = Tensor::arange(5u32, 25, &Device::Cpu).unwrap().reshape((1, 20)).unwrap();
        let all =
            HashMap::from([("ids", ids), ("logits", logits(&merged)), ("features", rows(&merged))]);
        candle_core::safetensors::save(&all, out.join("expected.safetensors")).unwrap();
    }
}

#[test]
fn the_supervised_control_raises_the_chosen_answers() {
    let settings = Settings { loss: Loss::Sft, projector: false, ..short() };
    let folder = tempfile::tempdir().unwrap();
    train(&settings, folder.path(), &()).unwrap();
    let text = std::fs::read_to_string(folder.path().join("train.jsonl")).unwrap();
    let losses: Vec<f64> = text
        .lines()
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["loss"].as_f64().unwrap()
        })
        .collect();
    // A mean over tokens, so of the size of a token's negative log-probability.
    assert!(losses[0] > 1.0 && losses[0] < 20.0, "{losses:?}");
    let mean = |epoch: usize| losses[3 * epoch..][..3].iter().sum::<f64>() / 3.0;
    assert!(mean(2) < 0.95 * mean(0), "{losses:?}");
}

#[test]
fn half_precision_bases_train() {
    for (name, dtype) in [("bf16", DType::BF16), ("f16", DType::F16)] {
        let settings = settings();
        let base = base();
        let mut half = Trainer::new(base, &Device::Cpu, dtype, &settings).unwrap();
        let mut full = trainer(&settings);
        let (halves, fulls) = (examples(&half), examples(&full));
        let run = |trainer: &mut Trainer, examples: &[Example]| {
            let batch: Vec<&Example> = examples.iter().collect();
            let losses = (0..4).map(|_| trainer.step(&batch, 1.0).unwrap().loss);
            losses.collect::<Vec<f64>>()
        };
        let (found, wanted) = (run(&mut half, &halves), run(&mut full, &fulls));
        println!("{name}: {found:?} for {wanted:?}");
        assert!(found[3] < 0.5 * found[0]);
        assert!(found.iter().zip(&wanted).all(|(a, b)| (a - b).abs() < 0.1), "{name}");
    }
}
