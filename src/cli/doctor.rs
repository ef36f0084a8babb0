//! `bdhs doctor`: what this build and this machine can do.

use clap::Args;
use serde::Serialize;

use super::{
    Global,
    ui::{print_json, print_text},
};
use crate::{Result, models::device};

/// Arguments of `bdhs doctor`.
#[derive(Args)]
pub(super) struct Doctor {}

#[derive(Serialize)]
struct Report {
    version: &'static str,
    target: String,
    features: Vec<Check>,
    cores: usize,
    threads: usize,
    memory_gib: Option<f64>,
    instructions: Vec<Check>,
    /// The GPU asked for, else the first; none in a build without CUDA.
    gpu: Option<Gpu>,
    device: Opened,
}

#[derive(Serialize)]
struct Gpu {
    usable: bool,
    message: String,
}

#[derive(Serialize)]
struct Check {
    name: &'static str,
    present: bool,
}

#[derive(Serialize)]
struct Opened {
    name: String,
    usable: bool,
    message: String,
}

impl Doctor {
    pub(super) fn run(&self, global: &Global) -> Result<()> {
        let report = report(global);
        if global.json { print_json(&report) } else { print_text(&human(&report)) }
    }
}

fn report(global: &Global) -> Report {
    let opened = device::open(&global.device).and_then(|device| {
        // An empty device would pass `open`; a product shows that it computes.
        let x = candle_core::Tensor::ones((8, 8), candle_core::DType::F32, &device)?;
        Ok(x.matmul(&x)?.sum_all()?.to_scalar::<f32>()?)
    });
    let device = match opened {
        Ok(512.0) => Opened {
            name: global.device.clone(),
            usable: true,
            message: "a product was right".into(),
        },
        Ok(sum) => Opened {
            name: global.device.clone(),
            usable: false,
            message: format!("a product of ones summed to {sum}, expected 512"),
        },
        Err(error) => {
            Opened { name: global.device.clone(), usable: false, message: error.to_string() }
        }
    };
    Report {
        version: env!("CARGO_PKG_VERSION"),
        target: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
        features: vec![
            Check { name: "toolkit", present: cfg!(feature = "toolkit") },
            Check { name: "cuda", present: cfg!(feature = "cuda") },
            Check { name: "flash-attn", present: cfg!(feature = "flash-attn") },
        ],
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        threads: rayon::current_num_threads(),
        memory_gib: memory_gib(),
        instructions: instructions(),
        gpu: gpu(&global.device),
        device,
    }
}

#[cfg(feature = "cuda")]
fn gpu(device: &str) -> Option<Gpu> {
    let ordinal = device::ordinal(device).ok().flatten().unwrap_or(0);
    Some(match crate::ops::cuda::probe(ordinal) {
        Ok(gpu) => Gpu {
            usable: true,
            message: format!(
                "{}, compute capability {}, driver for CUDA {}, kernels {} of CUDA {}",
                gpu.name, gpu.capability, gpu.driver, gpu.target, gpu.toolkit
            ),
        },
        Err(error) => Gpu { usable: false, message: error.to_string() },
    })
}

#[cfg(not(feature = "cuda"))]
fn gpu(_: &str) -> Option<Gpu> {
    None
}

#[cfg(target_arch = "x86_64")]
fn instructions() -> Vec<Check> {
    vec![
        Check { name: "avx2", present: is_x86_feature_detected!("avx2") },
        Check { name: "fma", present: is_x86_feature_detected!("fma") },
        Check { name: "f16c", present: is_x86_feature_detected!("f16c") },
        Check { name: "avx512f", present: is_x86_feature_detected!("avx512f") },
    ]
}

#[cfg(not(target_arch = "x86_64"))]
fn instructions() -> Vec<Check> {
    Vec::new()
}

/// Physical memory where the system tells it in Linux's way.
fn memory_gib() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / (1024.0 * 1024.0))
}

fn human(report: &Report) -> String {
    let list = |checks: &[Check]| {
        checks
            .iter()
            .map(|check| format!("{}{}", if check.present { "+" } else { "-" }, check.name))
            .collect::<Vec<_>>()
            .join(" ")
    };
    let gpu = match &report.gpu {
        Some(gpu) => gpu.message.as_str(),
        None => "not looked for: a build without CUDA",
    };
    let memory = report.memory_gib.map_or("unknown".to_owned(), |gib| format!("{gib:.1} GiB"));
    format!(
        "bdhs {} on {}\nfeatures      {}\nprocessor     {} cores, {} threads in use\n\
         instructions  {}\nmemory        {memory}\ngpu           {gpu}\ndevice        {}: {} ({})",
        report.version,
        report.target,
        list(&report.features),
        report.cores,
        report.threads,
        list(&report.instructions),
        report.device.name,
        if report.device.usable { "usable" } else { "not usable" },
        report.device.message,
    )
}
