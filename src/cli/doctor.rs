//! `bdhs doctor`: what this build and this machine can do.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::{
    Global,
    sweep::{PixelArgs, ReadingArgs},
    ui::{Bars, print_json, print_text},
};
use crate::{
    Error, Result,
    config::{Data, Files, named},
    data::{Dataset, Described},
    demo::embedded::is_embedded,
    engine::Progress,
    models::{
        Source, device,
        hub::{self, Kind, Name, Origin},
        outline::{Memory, Outline},
    },
    sweep::survey,
};

/// Arguments of `bdhs doctor`.
#[derive(Args)]
pub(super) struct Doctor {
    /// Also check a model folder (docs/models.md), or its name on the hub, all but the values of its weights, which are not fetched
    #[arg(long, value_name = "DIR|NAME")]
    model: Option<PathBuf>,
    /// With --model: a LoRA adapter's folder that changes it
    #[arg(long, value_name = "DIR", requires = "model")]
    adapter: Option<PathBuf>,
    #[command(flatten)]
    pixels: PixelArgs,
    /// Also read data: its shape, its rows, and those of no use
    #[arg(long, value_name = "FILE|DIR")]
    data: Vec<PathBuf>,
    #[command(flatten)]
    reading: ReadingArgs,
    /// Key-value slots of one wave, for the memory that --model needs
    #[arg(long, value_name = "N", default_value_t = 16_384)]
    token_budget: usize,
}

#[derive(Serialize)]
struct Report {
    version: &'static str,
    target: String,
    features: Vec<Check>,
    cores: usize,
    threads: usize,
    memory_gib: Option<f64>,
    instructions: Vec<Check>,
    /// Every GPU that the driver reports, or why none is; empty in a build without CUDA.
    gpus: Vec<Gpu>,
    /// What --device names.
    device: Opened,
    /// What --model names.
    model: Option<Outline>,
    /// Where that is from, if it is from the hub.
    origin: Option<Origin>,
    /// What --data names.
    data: Option<Described>,
    /// Memory that is free now.
    free_gib: Option<f64>,
}

#[derive(Serialize)]
struct Gpu {
    /// As --device names it.
    name: String,
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
        let mut report = report(global);
        if let Some(model) = &self.model {
            let bars = Bars::new(global);
            let headers = match model.to_str().and_then(|text| Name::parse(text, Kind::Model)) {
                Some(name) if !model.is_dir() && !is_embedded(model) => hub::headers(&name, &bars)?,
                _ => None,
            };
            let folder = match &headers {
                Some(headers) => headers.folder().to_owned(),
                None => named::model(model, &bars)?,
            };
            let adapter = self.adapter.as_deref().map(|path| named::adapter(path, &bars));
            bars.clear();
            let source = Source::new(&folder, adapter.transpose()?.as_deref())?;
            let source = source.with_pixels(self.pixels.bounds());
            report.model = Some(Outline::read(&source, self.token_budget)?);
            report.origin = match &headers {
                Some(headers) => Some(headers.origin.clone()),
                None => Origin::of(&folder),
            };
        }
        if !self.data.is_empty() {
            let mut data = Data { file: Files(self.data.clone()), ..Data::default() };
            self.reading.apply(&mut data);
            let bars = Bars::new(global);
            bars.begin("reading data", None);
            let dataset = Dataset::list(&data.file.0, &data.options(true))?;
            bars.clear();
            if !data.skip_bad {
                dataset.check(survey::ADVICE)?;
            }
            report.data = Some(dataset.described());
        }
        if global.json {
            print_json(&report)?
        } else {
            print_text(&human(&report))?
        }
        // A script that asks for a device hears by the exit code whether it can be used.
        match report.device {
            Opened { usable: true, .. } => Ok(()),
            Opened { name, message, .. } => {
                Err(Error::unsupported(format!("device {name:?}"), message))
            }
        }
    }
}

/// Opens all devices that a name stands for, one after another.
fn opened(names: &str) -> Result<()> {
    for name in device::list(names)? {
        let device = device::open(&name)?;
        // An empty device would pass `open`; a product shows that it computes.
        let x = candle_core::Tensor::ones((8, 8), candle_core::DType::F32, &device)?;
        let sum = x.matmul(&x)?.sum_all()?.to_scalar::<f32>()?;
        if sum != 512.0 {
            return Err(Error::unsupported(
                format!("device {name:?}"),
                format!("a product of ones summed to {sum}, expected 512"),
            ));
        }
    }
    Ok(())
}

fn report(global: &Global) -> Report {
    let (usable, message) = match opened(&global.device) {
        Ok(()) => (true, "a product was right".to_owned()),
        Err(error) => (false, error.to_string()),
    };
    let device = Opened { name: global.device.clone(), usable, message };
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
        memory_gib: memory_gib("MemTotal:"),
        instructions: instructions(),
        gpus: gpus(),
        device,
        model: None,
        origin: None,
        data: None,
        free_gib: memory_gib("MemAvailable:"),
    }
}

#[cfg(feature = "cuda")]
fn gpus() -> Vec<Gpu> {
    let one = |ordinal: usize| {
        let (usable, message) = match crate::ops::cuda::probe(ordinal) {
            Ok(gpu) => (
                true,
                format!(
                    "{}, compute capability {}, driver for CUDA {}, kernels {} of CUDA {}",
                    gpu.name, gpu.capability, gpu.driver, gpu.target, gpu.toolkit
                ),
            ),
            Err(error) => (false, error.to_string()),
        };
        Gpu { name: format!("cuda:{ordinal}"), usable, message }
    };
    match device::gpus() {
        Ok(count) => (0..count).map(one).collect(),
        Err(error) => {
            vec![Gpu { name: "cuda:all".into(), usable: false, message: error.to_string() }]
        }
    }
}

#[cfg(not(feature = "cuda"))]
fn gpus() -> Vec<Gpu> {
    Vec::new()
}

#[cfg(target_arch = "x86_64")]
fn instructions() -> Vec<Check> {
    vec![
        Check { name: "avx2", present: is_x86_feature_detected!("avx2") },
        Check { name: "fma", present: is_x86_feature_detected!("fma") },
        Check { name: "f16c", present: is_x86_feature_detected!("f16c") },
        Check { name: "avx512f", present: is_x86_feature_detected!("avx512f") },
        Check { name: "avx512_bf16", present: is_x86_feature_detected!("avx512bf16") },
    ]
}

#[cfg(not(target_arch = "x86_64"))]
fn instructions() -> Vec<Check> {
    Vec::new()
}

/// Memory where the system tells it in Linux's way.
fn memory_gib(field: &str) -> Option<f64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
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
    let gpus: Vec<String> =
        report.gpus.iter().map(|gpu| format!("{}: {}", gpu.name, gpu.message)).collect();
    let gpu = match gpus.is_empty() {
        true if cfg!(feature = "cuda") => "none".to_owned(),
        true => "not looked for: a build without CUDA".to_owned(),
        false => gpus.join("\n              "),
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
    ) + &report
        .data
        .as_ref()
        .map_or(String::new(), |data| format!("\ndata          {}", data.text()))
        + &report.model.as_ref().map_or(String::new(), |model| outline(model, report))
}

/// A checkpoint, for people.
fn outline(model: &Outline, report: &Report) -> String {
    let count = |count: u64| match count as f64 {
        n if n >= 1e9 => format!("{:.3} B", n / 1e9),
        n => format!("{:.3} M", n / 1e6),
    };
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let size = |bytes: u64| match gib(bytes) {
        n if n >= 1.0 => format!("{n:.2} GiB"),
        n => format!("{:.1} MiB", n * 1024.0),
    };
    let fits = |memory: &Memory| match report.free_gib {
        Some(free) if gib(memory.total_bytes) <= free => "fits into what is free here",
        Some(_) => "does not fit into what is free here",
        None => "",
    };
    let stored: Vec<String> = model
        .stored_bytes
        .iter()
        .map(|(dtype, bytes)| format!("{} in {dtype}", size(*bytes)))
        .collect();
    let images: Vec<String> = model
        .image_tokens
        .iter()
        .map(|(width, height, tokens)| format!("{width}x{height}: {tokens}"))
        .collect();
    let mut text = format!(
        "\n\nmodel         {} around {}, {} layout, {} parameters (language {}, vision {}, projector {})\n\
         language      {} layers of {}, {} heads ({} for keys and values), {} tokens, context {}\n\
         stored        {}\nimage tokens  {}\n",
        model.family,
        model.language,
        model.layout,
        count(model.language_parameters + model.vision_parameters + model.projector_parameters),
        count(model.language_parameters),
        count(model.vision_parameters),
        count(model.projector_parameters),
        model.layers,
        model.hidden,
        model.heads.0,
        model.heads.1,
        model.vocabulary,
        model.context,
        stored.join(", "),
        images.join(", "),
    );
    for memory in &model.memory {
        text.push_str(&format!(
            "memory, {:<5} {} of weights, {:.1} KiB a token; with a wave {}, {}\n",
            memory.dtype,
            size(memory.weight_bytes),
            memory.cache_bytes_per_token as f64 / 1024.0,
            size(memory.total_bytes),
            fits(memory),
        ));
    }
    if let Some(Origin { repo, commit }) = &report.origin {
        text.push_str(&format!("from          {repo}, commit {commit}\n"));
    }
    text + "runs          on the CPU; in a build with the feature cuda on a GPU too"
}
