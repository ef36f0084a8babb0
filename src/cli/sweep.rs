//! `bdhs sweep`: the whole grid.

use std::path::PathBuf;

use candle_core::Device;
use clap::Args;

use super::{
    Global,
    ablate::{Places, ablate},
    report::write_page,
    ui::{Bars, print_json, print_text},
    worker, workers,
};
use crate::{
    Error, Result,
    ablation::{self, Share, Stage, slurm},
    config::{self, Config, Data, Files, Model, SavedRun},
    models::{Bounds, device},
    store::Shard,
    sweep::{self, Options, parse_shard, summary::Summary},
};

/// Arguments of `bdhs sweep`.
#[derive(Args)]
pub(super) struct Sweep {
    #[command(flatten)]
    run: RunArgs,
    /// sentence-transformers folder, its name on the hub, or a demo-* encoder; repeat for several, replaces the file's list
    #[arg(long = "encoder", value_name = "DIR|NAME")]
    encoders: Vec<PathBuf>,
    /// Similarity threshold in [-1, 1]; repeat for several, replaces the file's list
    #[arg(long = "threshold", value_name = "X", allow_negative_numbers = true)]
    thresholds: Vec<f64>,
    /// Work on part I of N only; a later run without this option merges the parts and exports
    #[arg(long, value_name = "I/N", value_parser = parse_shard)]
    shard: Option<Shard>,
    /// Then train a model on every cell's pairs
    #[arg(long, conflicts_with = "shard")]
    train: bool,
    /// And judge each by the benchmarks: the whole ablation
    #[arg(long, requires = "train")]
    eval: bool,
    /// Of a decided run, carry out these stages for models that no other process is at: train, judge
    #[arg(long = "stage", value_name = "STAGE", value_delimiter = ',', value_parser = stage, requires = "from_run", conflicts_with_all = ["train", "shard"])]
    stages: Option<Vec<Stage>>,
    /// Only for part I of N of the models
    #[arg(long, value_name = "I/N", value_parser = part, requires = "stages")]
    part: Option<(usize, usize)>,
    /// Submit the run to SLURM as job arrays instead; again, after a failure, submits what is left
    #[arg(long, conflicts_with_all = ["shard", "stages"])]
    slurm: bool,
    /// With --slurm: parts that candidates are generated in
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    shards: u32,
    /// With --slurm: an option of every sbatch, as --sbatch=--partition=gpu; repeat for several
    #[arg(long = "sbatch", value_name = "OPTION", allow_hyphen_values = true)]
    sbatch: Vec<String>,
    /// Tell how far the run in --from-run or --out is
    #[arg(long, conflicts_with_all = ["shard", "stages", "slurm"])]
    status: bool,
}

impl Sweep {
    pub(super) fn run(&self, global: &Global) -> Result<()> {
        if let (true, Some(shard)) = (global.worker, self.shard) {
            let config = worker::settings()?;
            let bars = Bars::new(global);
            let options = Options { device: global.device()?, shard };
            return sweep::run(&config, &options, &bars).map(|_| ());
        }
        let mut config = self.run.config()?;
        if !self.encoders.is_empty() {
            config.grid.encoders.clone_from(&self.encoders);
        }
        if !self.thresholds.is_empty() {
            config.grid.thresholds.clone_from(&self.thresholds);
        }
        if self.status {
            let status = slurm::status(&config)?;
            return if global.json { print_json(&status) } else { print_text(&status.text()) };
        }
        if self.eval {
            ablation::check(&config)?;
        }
        let bars = Bars::new(global);
        if let Some(stages) = &self.stages {
            return self.stages(&config.resolved(&bars)?, stages, global, &bars);
        }
        if self.slurm {
            config.validate()?;
            let config = fetched(&config, &bars)?;
            bars.clear();
            if self.train {
                config.model.source()?.unadapted()?;
            }
            return self.submit(&config, global);
        }
        if !self.train {
            return finish(&config, self.shard.unwrap_or(Shard::WHOLE), global, &bars);
        }
        let devices = global.devices()?;
        config.validate()?;
        config.check_folder()?;
        let config = fetched(&config, &bars)?;
        // Told before hours of sampling, not after.
        config.model.source()?.unadapted()?;
        let device = generate(&config, &devices, Shard::WHOLE, &bars)?;
        let options = Options { device, shard: Shard::WHOLE };
        match run_all(&config, &options, &bars)? {
            Some(summary) => {
                let places = Places { device: &options.device, devices: &devices };
                ablate(&config, &summary, self.eval, &places, global, &bars)
            }
            None => Ok(()),
        }
    }

    /// Submits the run's jobs.
    fn submit(&self, config: &Config, global: &Global) -> Result<()> {
        if global.device != device::AUTO && device::list(&global.device)?.len() > 1 {
            return Err(Error::unsupported(
                format!("--slurm with --device {:?}", global.device),
                "a job has one device: give --device cuda, and as many --shards as there are GPUs",
            ));
        }
        if self.train && !self.eval {
            let message = "on SLURM, models are trained to be judged: add --eval";
            return Err(Error::unsupported("--slurm --train without --eval", message));
        }
        let cluster = slurm::Cluster {
            shards: self.shards,
            train: self.train,
            options: self.sbatch.clone(),
            arguments: vec!["--device".to_owned(), global.device.clone()],
        };
        let jobs = slurm::submit(config, &cluster)?;
        if global.json {
            return print_json(&jobs);
        }
        let line = |job: &slurm::Submitted| match job.tasks {
            Some(tasks) => format!("{:<9} job {}, {tasks} tasks", job.stage, job.job),
            None => format!("{:<9} job {}", job.stage, job.job),
        };
        let lines: Vec<String> = jobs.iter().map(line).collect();
        let run = config.run.out.display();
        print_text(&format!(
            "{}\nhow far it is: bdhs sweep --status --from-run {run}",
            lines.join("\n")
        ))
    }

    /// One process's share of a decided run's models.
    fn stages(
        &self,
        config: &Config,
        stages: &[Stage],
        global: &Global,
        bars: &Bars,
    ) -> Result<()> {
        let summary = Summary::read(&config.run.out)?;
        let plan = ablation::plan(config, &summary)?;
        let share = self.part.map_or(Share::Free, |(index, count)| Share::Part { index, count });
        ablation::stages(config, &plan, stages, share, &global.device()?, bars)
    }
}

fn stage(text: &str) -> std::result::Result<Stage, String> {
    Stage::named(text).ok_or_else(|| "expected train or judge".to_owned())
}

fn part(text: &str) -> std::result::Result<(usize, usize), String> {
    match parse_shard(text) {
        Ok(Shard::Part { index, count }) => Ok((index as usize, count as usize)),
        _ => Err("expected I/N with 1 <= I <= N".to_owned()),
    }
}

/// With several devices, fills the stores of as many parts. Opens the device that is left to merge and export on, which is the first.
fn generate(config: &Config, devices: &[String], shard: Shard, bars: &Bars) -> Result<Device> {
    if devices.len() > 1 {
        if shard != Shard::WHOLE {
            return Err(Error::unsupported(
                format!("--shard with {} devices", devices.len()),
                "a part runs on one device: give --device and --shard for each",
            ));
        }
        config.runs()?.iter().try_for_each(|run| workers::divide(run, devices, bars))?;
    }
    device::open(&devices[0])
}

/// Carries out the runs of a configuration, each with its page.
fn run_all(config: &Config, options: &Options, bars: &Bars) -> Result<Option<Summary>> {
    sweep::run_all(config, options, bars, &|run| write_page(&run.run.out, bars))
}

/// A configuration with folders in place of names. Its data is checked before anything is fetched for it.
fn fetched(config: &Config, bars: &Bars) -> Result<Config> {
    let local = config.clone().with_data()?;
    // A run checks its data itself, before it loads models.
    if !local.is_here() {
        for run in local.runs()? {
            sweep::check_data(&run, bars)?;
        }
    }
    local.resolved(bars)
}

/// Runs a configuration and prints its summary.
pub(super) fn finish(config: &Config, shard: Shard, global: &Global, bars: &Bars) -> Result<()> {
    let mut devices = global.devices()?;
    if global.device == device::AUTO && shard != Shard::WHOLE {
        devices.truncate(1);
    }
    // Before anything is fetched.
    config.validate()?;
    config.check_folder()?;
    let config = &fetched(config, bars)?;
    let device = generate(config, &devices, shard, bars)?;
    let summary = run_all(config, &Options { device, shard }, bars)?;
    bars.clear();
    match (summary, global.json) {
        (Some(summary), true) => print_json(&summary),
        (Some(summary), false) => {
            print_text(&format!("{}\nwritten to {}", summary.table(), config.run.out.display()))
        }
        (None, true) => print_json(&serde_json::json!({ "shard": shard.to_string() })),
        (None, false) => print_text("this part is done; run without --shard once all parts are"),
    }
}

/// Bounds of pictures.
#[derive(Args)]
pub(super) struct PixelArgs {
    /// Fewest pixels of a picture, of models that show pictures at their own size [default: the checkpoint's]
    #[arg(long, value_name = "N")]
    min_pixels: Option<usize>,
    /// Most pixels of a picture, of models that show pictures at their own size [default: the checkpoint's]
    #[arg(long, value_name = "N")]
    max_pixels: Option<usize>,
}

impl PixelArgs {
    /// Takes the place of a configuration's bounds.
    pub(super) fn set(&self, model: &mut Model) {
        model.min_pixels = self.min_pixels.or(model.min_pixels);
        model.max_pixels = self.max_pixels.or(model.max_pixels);
    }

    /// The bounds alone.
    pub(super) fn bounds(&self) -> Bounds {
        Bounds { min: self.min_pixels, max: self.max_pixels }
    }
}

/// Which data, and how it is read.
#[derive(Args)]
pub(super) struct DataArgs {
    /// Rows of any shape that docs/data.md lists: JSON, JSONL, Parquet, Arrow, CSV, a folder or a pattern, or demo-scenes; repeat for several
    #[arg(long, value_name = "FILE|DIR")]
    data: Vec<PathBuf>,
    #[command(flatten)]
    reading: ReadingArgs,
    /// Only the first N samples
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Candidates made elsewhere, in place of the model's own: JSON lines {id, attempt, text}; see docs/data.md
    #[arg(long, value_name = "FILE")]
    candidates: Option<PathBuf>,
}

impl DataArgs {
    fn apply(&self, data: &mut Data) {
        if !self.data.is_empty() {
            data.file = Files(self.data.clone());
        }
        self.reading.apply(data);
        data.limit = self.limit.or(data.limit);
        if self.candidates.is_some() {
            data.candidates.clone_from(&self.candidates);
        }
    }
}

/// How rows are read.
#[derive(Args)]
pub(super) struct ReadingArgs {
    /// Folder that image paths are relative to
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Names of the columns where no known shape has them: prompt=question,chosen=answer
    #[arg(long, value_name = "NAME=COLUMN", value_delimiter = ',', value_parser = column)]
    columns: Vec<(String, String)>,
    /// Leave out rows that are of no use, count them, and list them
    #[arg(long)]
    skip_bad: bool,
    /// Follow links that lead out of the image folder
    #[arg(long)]
    allow_links: bool,
}

impl ReadingArgs {
    pub(super) fn apply(&self, data: &mut Data) {
        if self.images.is_some() {
            data.images.clone_from(&self.images);
        }
        data.columns.extend(self.columns.iter().cloned());
        data.skip_bad |= self.skip_bad;
        data.allow_links |= self.allow_links;
    }
}

fn column(text: &str) -> std::result::Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, column)) if !name.is_empty() && !column.is_empty() => {
            Ok((name.trim().to_owned(), column.trim().to_owned()))
        }
        _ => Err("expected NAME=COLUMN, as prompt=question".to_owned()),
    }
}

/// Where a run's settings come from: a TOML file, then options that replace its fields.
#[derive(Args)]
pub(super) struct RunArgs {
    /// Configuration; every field of docs/config.md. Without it, --model and --data, the embedded demo is run
    #[arg(value_name = "CONFIG.toml")]
    config: Option<PathBuf>,
    /// Take all settings from a run folder's run.json, and go on with that run
    #[arg(long, value_name = "DIR", conflicts_with_all = ["config", "out", "paper"])]
    from_run: Option<PathBuf>,
    /// Model folder (docs/models.md), its name on the hub (org/repo[@revision]), or demo-llava
    #[arg(long, value_name = "DIR|NAME")]
    model: Option<PathBuf>,
    /// LoRA adapter's folder, in PEFT's layout, that changes the model
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    #[command(flatten)]
    pixels: PixelArgs,
    #[command(flatten)]
    data: DataArgs,
    /// The run folder; an interrupted run continues in it
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Share of image tokens that is masked, in [0, 1]
    #[arg(long, value_name = "R")]
    rho: Option<f64>,
    /// Most attempts a sample
    #[arg(long, value_name = "N")]
    attempts: Option<u32>,
    /// Most tokens for one sentence
    #[arg(long, value_name = "N")]
    max_sentence_tokens: Option<u32>,
    /// Most tokens for a full response
    #[arg(long, value_name = "N")]
    max_response_tokens: Option<u32>,
    /// Seed of every random draw
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Storage type of the model: f32, f16 or bf16
    #[arg(long, value_name = "TYPE")]
    dtype: Option<String>,
    /// Key-value slots in use at a time [default: what free memory holds]
    #[arg(long, value_name = "N")]
    token_budget: Option<u32>,
    /// Every open choice set to the nearest literal reading of the paper
    #[arg(long)]
    paper: bool,
}

impl RunArgs {
    /// Whether the run folder was named, by itself or in a file.
    pub(super) fn chose_folder(&self) -> bool {
        let in_file = |path: &PathBuf| {
            Config::load(path).is_ok_and(|config| config.run.out != Config::default().run.out)
        };
        self.out.is_some() || self.from_run.is_some() || self.config.as_ref().is_some_and(in_file)
    }

    pub(super) fn config(&self) -> Result<Config> {
        // Nothing said about what to run: the embedded demo.
        let demo = self.model.is_none() && self.data.data.is_empty();
        let mut config = match (&self.config, &self.from_run) {
            (Some(path), _) => Config::load(path)?,
            (None, Some(run)) => {
                SavedRun::read(run)?.map(|saved| saved.config).ok_or_else(|| {
                    Error::invalid(run, "", "has no run.json, expected the folder of a decided run")
                })?
            }
            (None, None) if demo => config::demo(),
            (None, None) => Config::default(),
        };
        if let Some(run) = &self.from_run {
            // The folder may have been moved.
            config.run.out.clone_from(run);
        }
        if self.paper {
            config.sampling = config.sampling.with_paper_choices();
        }
        set(&mut config.model.path, &self.model);
        set(&mut config.model.dtype, &self.dtype);
        set(&mut config.run.out, &self.out);
        set(&mut config.run.seed, &self.seed);
        config.run.token_budget = self.token_budget.or(config.run.token_budget);
        set(&mut config.sampling.rho, &self.rho);
        set(&mut config.sampling.attempts, &self.attempts);
        set(&mut config.sampling.max_sentence_tokens, &self.max_sentence_tokens);
        set(&mut config.sampling.max_response_tokens, &self.max_response_tokens);
        if self.adapter.is_some() {
            config.model.adapter.clone_from(&self.adapter);
        }
        self.pixels.set(&mut config.model);
        self.data.apply(&mut config.data);
        Ok(config)
    }
}

/// Replaces a setting by an option of the command line, if that is given.
pub(super) fn set<T: Clone>(field: &mut T, option: &Option<T>) {
    if let Some(value) = option {
        field.clone_from(value);
    }
}
