//! `bdhs train`: an adapter from pairs.

use std::path::PathBuf;

use clap::Args;

use super::{
    Global,
    sweep::{PixelArgs, ReadingArgs, set},
    ui::{Bars, print_json, print_text},
};
use crate::{
    Result,
    config::{self, Config, named},
    data::{Skipped, reasons},
    demo::embedded::is_embedded,
    engine::Progress,
    lock::check_folder,
    sampling::acceptance::PAPER_THRESHOLD,
    sweep::survey,
    train::{self, Loss, Online, Options, PairSource, Pairs},
};

/// Arguments of `bdhs train`.
#[derive(Args)]
pub(super) struct Train {
    /// Configuration: its [model] and [train]; every field of docs/config.md
    #[arg(value_name = "CONFIG.toml")]
    config: Option<PathBuf>,
    /// Pairs: a run's folder, RUN:CELL, or rows with rejected answers of any shape that docs/data.md lists
    #[arg(long, value_name = "RUN|FILE")]
    pairs: PathBuf,
    #[command(flatten)]
    reading: ReadingArgs,
    /// Model folder in the Hugging Face layout (docs/models.md), its name on the hub (org/repo[@revision]), or demo-llava
    #[arg(long, value_name = "DIR|NAME")]
    model: Option<PathBuf>,
    #[command(flatten)]
    pixels: PixelArgs,
    /// Folder of the adapter, in PEFT's layout; an interrupted training continues in it
    #[arg(long, value_name = "DIR", default_value = "runs/train")]
    out: PathBuf,
    /// sigmoid (DPO), ipo, or sft: the control, on chosen answers alone
    #[arg(long, value_name = "LOSS", value_parser = loss)]
    loss: Option<Loss>,
    /// Strength of the pull to the reference model
    #[arg(long, value_name = "B")]
    beta: Option<f64>,
    /// Rank of the adapters
    #[arg(long, value_name = "R")]
    rank: Option<usize>,
    /// Adapters count ALPHA / R
    #[arg(long, value_name = "ALPHA")]
    alpha: Option<f64>,
    /// Highest learning rate
    #[arg(long, value_name = "X")]
    learning_rate: Option<f64>,
    /// Train the projector, whole, with this highest learning rate
    #[arg(long, value_name = "X")]
    projector_learning_rate: Option<f64>,
    /// Passes over the pairs
    #[arg(long, value_name = "N")]
    epochs: Option<u32>,
    /// Pairs an optimiser step
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Draw rejected answers from the model in training, accepted by this encoder: a folder, a name on the hub, or demo-*
    #[arg(long, value_name = "DIR|NAME")]
    online: Option<PathBuf>,
    /// With --online, weight of the drawn answer beside the pair's own; else of the pair's beside the one that its data came with
    #[arg(long, value_name = "G")]
    gamma: Option<f64>,
    /// Storage type of the base: f32, f16 or bf16
    #[arg(long, value_name = "TYPE")]
    dtype: Option<String>,
    /// Seed of the adapters' start, the order of pairs and dropout
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
}

fn loss(text: &str) -> Result<Loss, String> {
    match text {
        "sigmoid" => Ok(Loss::Sigmoid),
        "ipo" => Ok(Loss::Ipo),
        "sft" => Ok(Loss::Sft),
        _ => Err("expected sigmoid, ipo or sft".to_owned()),
    }
}

impl Train {
    pub(super) fn run(&self, global: &Global) -> Result<()> {
        let mut config = match (&self.config, &self.model) {
            (Some(path), _) => Config::load(path)?,
            (None, Some(model)) if !is_embedded(model) => Config::default(),
            (None, _) => config::demo(),
        };
        set(&mut config.model.path, &self.model);
        set(&mut config.model.dtype, &self.dtype);
        self.pixels.set(&mut config.model);
        let settings = &mut config.train;
        set(&mut settings.loss, &self.loss);
        set(&mut settings.beta, &self.beta);
        set(&mut settings.rank, &self.rank);
        set(&mut settings.alpha, &self.alpha);
        set(&mut settings.learning_rate, &self.learning_rate);
        set(&mut settings.epochs, &self.epochs);
        set(&mut settings.batch, &self.batch);
        set(&mut settings.seed, &self.seed);
        set(&mut settings.projector_learning_rate, &self.projector_learning_rate);
        if let Some(encoder) = &self.online {
            let (threshold, gamma) = (PAPER_THRESHOLD, self.gamma.unwrap_or(1.0));
            settings.online = Some(Online { encoder: encoder.clone(), threshold, gamma });
        } else if self.gamma.is_some() {
            settings.gamma = self.gamma;
        }
        settings.projector |= self.projector_learning_rate.is_some();
        check_folder(&self.out)?;
        let device = global.device()?;
        let bars = Bars::new(global);
        let pairs_file = PairSource::find(&self.pairs)?;
        self.reading.apply(&mut config.data);
        config.train.validate()?;
        let mut pairs = self.read(&pairs_file, &config, &bars)?;
        // What follows may fetch gigabytes.
        config.model.path = named::model(&config.model.path, &bars)?;
        let source = config.model.source()?;
        let model = source.unadapted()?;
        config.model.dtype = source.dtype(&config.model.dtype, &device)?.as_str().to_owned();
        if let Some(online) = &mut config.train.online {
            online.encoder = named::encoder(&online.encoder, &bars)?;
        }
        if config.data.skip_bad {
            bars.begin("checking pairs", None);
            let most = config.data.max_skipped;
            pairs.leave_out(&source, &config.train, &pairs_file.file, most)?;
            survey::write(&self.out, &pairs.skipped)?;
        }
        let options = Options {
            model,
            pixels: config.model.pixels(),
            base: &source.fingerprint()?,
            device: &device,
            dtype: &config.model.dtype,
            out: &self.out,
            file: &pairs_file.file,
            sampling: &config.sampling,
            reference: None,
        };
        let outcome = train::run(&pairs.pairs, &config.train, &options, &bars)?;
        bars.clear();
        match global.json {
            true => print_json(&outcome),
            false => {
                let left = match pairs.skipped.len() {
                    0 => String::new(),
                    count => {
                        let reasons = reasons(&Skipped::counts(&pairs.skipped));
                        format!("\n{count} rows left out (skipped.jsonl): {reasons}")
                    }
                };
                print_text(&format!("{}{left}\nwritten to {}", outcome.text(), self.out.display()))
            }
        }
    }

    /// Reads the pairs that were asked for.
    fn read(&self, source: &PairSource, config: &Config, bars: &Bars) -> Result<Pairs> {
        let mut options = config.data.options(true);
        options.anywhere = source.own;
        options.image_folder = options.image_folder.or_else(|| source.images.clone());
        let most = config.data.skip_bad.then_some(config.data.max_skipped);
        bars.begin("reading pairs", None);
        let pairs = train::read_some(&source.files().0, &options, most)?;
        bars.begin(&format!("reading pairs: {}", pairs.about), None);
        source.note.iter().chain(&pairs.note).for_each(|note| bars.warn(note));
        Ok(pairs)
    }
}
