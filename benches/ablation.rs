//! The whole ablation, stage by stage and cell by cell: candidates, training and judging of each of the 20 cells, the table. A
//! change in any part of the program shows here, in the stage it belongs to.
//!
//! ```text
//! cargo bench --bench ablation                    the embedded demo, 24 samples, one epoch, two metrics
//! BDHS_BENCH_CONFIG=sweep.toml BDHS_BENCH_SAMPLES=500 cargo bench --bench ablation
//! ```
//!
//! `BDHS_BENCH_CONFIG` names any configuration; its models, data and benchmarks are used as they are, and its run folder is not
//! touched. A summary goes to `benches/results/ablation-cpu.json` if `BDHS_BENCH_RESULT` is set to that path.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use bdhs::{
    ablation::{self, Plan, Share, Stage, judged_folder, model_folder},
    config::{self, Config},
    store::Shard,
    sweep::{Options, run, summary::Summary},
};
use candle_core::Device;
use criterion::{Criterion, SamplingMode, criterion_group, criterion_main};
use serde_json::json;

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

fn configuration() -> Config {
    let mut config = match variable("BDHS_BENCH_CONFIG") {
        Some(path) => Config::load(Path::new(&path)).expect("a configuration"),
        None => {
            let mut demo = config::demo();
            demo.train.epochs = 1;
            demo.train.batch = 8;
            demo.eval.metrics = ["vqat", "mmhal"].map(str::to_owned).to_vec();
            demo.eval.resamples = 100;
            demo
        }
    };
    let samples = variable("BDHS_BENCH_SAMPLES").map(|text| text.parse().expect("a number"));
    config.data.limit = samples.or(config.data.limit).or(Some(24));
    config.ablation.seeds = 1;
    config.resolved(&()).expect("the embedded files")
}

/// Seconds of each run of each stage.
#[derive(Default)]
struct Times(BTreeMap<String, Vec<f64>>);

impl Times {
    /// Runs a stage, criterion's number of times; `clear` undoes what the last run left.
    fn measure(&mut self, name: &str, runs: u64, clear: impl Fn(), stage: impl Fn()) -> Duration {
        let mut total = Duration::ZERO;
        for _ in 0..runs {
            clear();
            let begun = Instant::now();
            stage();
            let mut time = begun.elapsed();
            // BDHS_BENCH_PLANT=train: a fifth more in that stage, to see that the comparison with the last run tells it.
            if variable("BDHS_BENCH_PLANT").is_some_and(|planted| name.starts_with(&planted)) {
                std::thread::sleep(time / 5);
                time = begun.elapsed();
            }
            self.0.entry(name.to_owned()).or_default().push(time.as_secs_f64());
            total += time;
        }
        total
    }
}

fn remove(folder: &Path) {
    if folder.exists() {
        std::fs::remove_dir_all(folder).expect("a folder of this benchmark");
    }
}

fn sweep(config: &Config) -> Summary {
    let options = Options { device: Device::Cpu, shard: Shard::WHOLE };
    run(config, &options, &()).expect("a sweep").expect("a whole run")
}

fn bench(c: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut config = configuration();
    config.run.out = folder.path().join("run");
    let out = config.run.out.clone();
    let mut times = Times::default();
    let mut group = c.benchmark_group("ablation");
    group.sample_size(10).sampling_mode(SamplingMode::Flat).warm_up_time(Duration::from_millis(1));
    group.measurement_time(Duration::from_secs(1));
    group.bench_function("candidates", |b| {
        b.iter_custom(|n| times.measure("candidates", n, || remove(&out), || drop(sweep(&config))));
    });
    let summary = sweep(&config);
    let plan = ablation::plan(&config, &summary).expect("a plan");
    let stage = |stage: Stage, index: usize| {
        let share = Share::Part { index, count: plan.models.len() };
        ablation::stages(&config, &plan, &[stage], share, &Device::Cpu, &()).expect("a stage");
    };
    for (i, model) in plan.models.iter().enumerate() {
        if model.training.is_some() {
            let (name, own) = (format!("train/{}", model.name), model_folder(&out, &model.name));
            // Each pays for its own reference log-probabilities, as one that is trained alone does.
            let clear = || {
                remove(&own);
                let _ = std::fs::remove_file(out.join("reference.jsonl"));
            };
            group.bench_function(&name, |b| {
                b.iter_custom(|n| times.measure(&name, n, clear, || stage(Stage::Train, i)));
            });
            stage(Stage::Train, i);
        }
        let (name, own) = (format!("judge/{}", model.name), judged_folder(&out, &model.name));
        group.bench_function(&name, |b| {
            b.iter_custom(|n| times.measure(&name, n, || remove(&own), || stage(Stage::Judge, i)));
        });
        stage(Stage::Judge, i);
    }
    group.bench_function("table", |b| {
        b.iter_custom(|n| {
            times.measure(
                "table",
                n,
                || {},
                || drop(ablation::table(&config, &plan).expect("a table")),
            )
        });
    });
    group.finish();
    if let Some(path) = variable("BDHS_BENCH_RESULT") {
        write(&PathBuf::from(path), &config, &plan, &summary, &times);
    }
}

/// The medians, and what sharing the candidates saved.
fn write(path: &Path, config: &Config, plan: &Plan, summary: &Summary, times: &Times) {
    let median = |seconds: &Vec<f64>| {
        let mut sorted = seconds.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    };
    let medians: BTreeMap<&String, f64> =
        times.0.iter().map(|(name, all)| (name, median(all))).collect();
    let of = |stage: &str, model: &str| medians.get(&format!("{stage}/{model}")).copied();
    let cells: Vec<_> = plan
        .cells
        .iter()
        .map(|cell| {
            let (train, judge) = (of("train", &cell.model), of("judge", &cell.model));
            json!({"cell": cell.cell, "model": cell.model, "train": train, "judge": judge})
        })
        .collect();
    let stage = |stage: &str| -> f64 {
        medians.iter().filter(|(name, _)| name.starts_with(stage)).map(|(_, seconds)| seconds).sum()
    };
    let document = json!({
        "command": "cargo bench --bench ablation",
        "threads": rayon::current_num_threads(),
        "samples": summary.samples,
        "metrics": config.eval.metrics,
        "epochs": config.train.epochs,
        "cells": cells,
        "models": plan.models.len(),
        "seconds": {
            "candidates": stage("candidates"), "train": stage("train"), "judge": stage("judge"), "table": stage("table"),
        },
        "candidates_generated": summary.candidates_generated,
        "candidates_if_independent": summary.candidates_if_independent,
    });
    std::fs::write(path, format!("{document:#}\n")).expect("a writable file");
}

criterion_group!(benches, bench);
criterion_main!(benches);
