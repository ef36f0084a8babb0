//! `bdhs demo`: the embedded demo's models and scenes.

use std::path::{Path, PathBuf};

use candle_core::DType;
use clap::{Args, Subcommand};

use super::{
    Global,
    ui::{Bars, print_json, print_text},
};
use crate::{
    Error, Result,
    config::named,
    demo::{
        benchmarks,
        embedded::write_scenes,
        figures, folder,
        scene::Split,
        train::{self, Settings},
    },
    models::Model,
};

/// Arguments of `bdhs demo`.
#[derive(Args)]
pub(super) struct Demo {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train the demo's models from nothing, on the CPU
    Train(Train),
    /// Measure what a model sees and makes up in the scene world, with its image and without
    Figures(FiguresArgs),
    /// Write scenes as pictures and a LLaVA conversation file
    Scenes(Scenes),
    /// Write the demo's eight benchmarks, in the formats of the real ones
    Benchmarks(Benchmarks),
}

/// Arguments of `bdhs demo figures`.
#[derive(Args)]
struct FiguresArgs {
    /// A LLaVA that knows the scene world
    #[arg(long, value_name = "DIR", default_value = folder::LLAVA)]
    model: PathBuf,
    /// Evaluation scenes
    #[arg(long, value_name = "N", default_value_t = 300)]
    scenes: u32,
    /// Share of image tokens that is masked, in [0, 1]; repeat for several [default: 0 0.9 1]
    #[arg(long = "rho", value_name = "R")]
    rhos: Vec<f64>,
}

/// Arguments of `bdhs demo benchmarks`.
#[derive(Args)]
struct Benchmarks {
    /// The folder
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// train, select or eval: settings are chosen on select
    #[arg(long, value_name = "SPLIT", default_value = "eval", value_parser = split)]
    split: Split,
}

/// Arguments of `bdhs demo scenes`.
#[derive(Args)]
struct Scenes {
    /// The folder
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How many
    #[arg(long, value_name = "N", default_value_t = 300)]
    count: u32,
    /// Seed of the scenes
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// train, select or eval: no scene is in two of them
    #[arg(long, value_name = "SPLIT", default_value = "eval", value_parser = split)]
    split: Split,
}

fn split(text: &str) -> std::result::Result<Split, String> {
    match text {
        "train" => Ok(Split::Train),
        "select" => Ok(Split::Select),
        "eval" => Ok(Split::Eval),
        _ => Err(format!("{text:?}, expected train, select or eval")),
    }
}

/// Arguments of `bdhs demo train`.
#[derive(Args)]
struct Train {
    /// Folder for the five checkpoints and the log
    #[arg(long, value_name = "DIR", default_value = "runs/demo-models")]
    out: PathBuf,
    /// Train this one only
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Seed of scenes, texts and first weights
    #[arg(long, value_name = "S", default_value_t = Settings::default().seed)]
    seed: u64,
    /// Steps of the vision tower on patch labels
    #[arg(long, value_name = "N", default_value_t = Settings::default().vision_steps)]
    vision_steps: usize,
    /// Steps of the LLaVA on texts
    #[arg(long, value_name = "N", default_value_t = Settings::default().llava_steps)]
    llava_steps: usize,
    /// Steps of each encoder
    #[arg(long, value_name = "N", default_value_t = Settings::default().encoder_steps)]
    encoder_steps: usize,
}

impl Demo {
    pub(super) fn run(&self, global: &Global) -> Result<()> {
        match &self.command {
            Command::Train(train) => train.run(global),
            Command::Figures(figures) => figures.run(global),
            Command::Scenes(scenes) => scenes.run(global),
            Command::Benchmarks(Benchmarks { out, split }) => {
                benchmarks::write(out, *split)?;
                written(out, global)
            }
        }
    }
}

impl FiguresArgs {
    fn run(&self, global: &Global) -> Result<()> {
        let rhos = if self.rhos.is_empty() { &[0.0, 0.9, 1.0] } else { &self.rhos[..] };
        let bars = Bars::new(global);
        let model = named::model(&self.model, &bars)?;
        let model = Model::load(model, &global.device()?, DType::F32)?;
        let work = std::env::temp_dir().join(format!("bdhs-figures-{}", std::process::id()));
        let figures = figures::figures(&model, self.scenes, rhos, &work, &bars);
        bars.clear();
        std::fs::remove_dir_all(&work).map_err(Error::io(&work))?;
        let figures = figures?;
        if global.json { print_json(&figures) } else { print_text(&figures.table()) }
    }
}

impl Scenes {
    fn run(&self, global: &Global) -> Result<()> {
        write_scenes(&self.out, self.seed, self.split, self.count)?;
        match global.json {
            true => print_json(&serde_json::json!({ "out": self.out, "count": self.count })),
            false => print_text(&format!("written to {}", self.out.display())),
        }
    }
}

impl Train {
    fn run(&self, global: &Global) -> Result<()> {
        let settings = Settings {
            seed: self.seed,
            vision_steps: self.vision_steps,
            llava_steps: self.llava_steps,
            encoder_steps: self.encoder_steps,
        };
        let bars = Bars::new(global);
        train::train(&settings, self.only.as_deref(), &self.out, &bars)?;
        bars.clear();
        written(&self.out, global)
    }
}

fn written(out: &Path, global: &Global) -> Result<()> {
    match global.json {
        true => print_json(&serde_json::json!({ "out": out })),
        false => print_text(&format!("written to {}", out.display())),
    }
}
